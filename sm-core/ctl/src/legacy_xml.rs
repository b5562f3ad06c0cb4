//! What a probe found, as XenServer's drivers say it: XML as Python's `toprettyxml` writes it.
//!
//! Toolstacks compare it with nothing and read it with an XML parser, but people copy out of it:
//! one element a line, indented by tabs, text within its line.

use std::fmt::Write as _;

use sm_model::candidate::Candidate;
use sm_model::sr::{ProbeItem, SrProbed};

/// The port that is left out (RFC 7143, 14.2).
const ISCSI_PORT: u16 = 3260;

/// The document for what was found.
pub(crate) fn render(probed: &SrProbed) -> String {
    let items = &probed.items;
    let has = |wanted: fn(&Candidate) -> bool| {
        items.iter().any(|item| item.candidate.as_ref().is_some_and(wanted))
    };
    let mut xml = Xml::default();
    if has(|found| matches!(found, Candidate::IscsiTarget { .. })) {
        xml.element("iscsi-target-iqns", |xml| targets(xml, items));
    } else if has(|found| matches!(found, Candidate::Lun { .. })) {
        xml.element("iscsi-target", |xml| luns(xml, items));
    } else if has(|found| matches!(found, Candidate::NfsExport { .. })) {
        xml.element("nfs-exports", |xml| exports(xml, items));
    } else {
        xml.element("SRlist", |xml| srs(xml, items));
    }
    format!("<?xml version=\"1.0\" ?>\n{}", xml.text)
}

fn targets(xml: &mut Xml, items: &[ProbeItem]) {
    let mut index = 0;
    for item in items {
        let Some(Candidate::IscsiTarget { address, port, iqn }) = &item.candidate else { continue };
        xml.element("TGT", |xml| {
            xml.leaf("Index", &index.to_string());
            xml.leaf("IPAddress", address);
            if *port != ISCSI_PORT {
                xml.leaf("Port", &port.to_string());
            }
            xml.leaf("TargetIQN", iqn);
        });
        index += 1;
    }
}

fn luns(xml: &mut Xml, items: &[ProbeItem]) {
    for item in items {
        let Some(Candidate::Lun { vendor, serial, lun, size, scsi_id }) = &item.candidate else {
            continue;
        };
        xml.element("LUN", |xml| {
            xml.leaf("vendor", vendor);
            xml.leaf("serial", serial);
            xml.leaf("LUNid", &lun.to_string());
            xml.leaf("size", &size.0.to_string());
            xml.leaf("SCSIid", scsi_id);
        });
    }
}

fn exports(xml: &mut Xml, items: &[ProbeItem]) {
    for item in items {
        let Some(Candidate::NfsExport { target, path, access }) = &item.candidate else { continue };
        xml.element("Export", |xml| {
            xml.leaf("Target", target);
            xml.leaf("Path", path);
            xml.leaf("Accesslist", access);
        });
    }
}

fn srs(xml: &mut Xml, items: &[ProbeItem]) {
    for item in items {
        let Some(sr) = &item.sr else { continue };
        xml.element("SR", |xml| {
            xml.leaf("UUID", &sr.uuid.to_string());
            if let Some(Candidate::VolumeGroup { devices, size }) = &item.candidate {
                xml.leaf("Devlist", &devices.join(","));
                xml.leaf("size", &size.0.to_string());
            }
        });
    }
}

#[derive(Default)]
struct Xml {
    text: String,
    depth: usize,
}

impl Xml {
    fn indent(&mut self) {
        self.text.extend(std::iter::repeat_n('\t', self.depth));
    }

    /// An element with others in it; one that stays empty is closed where it opens.
    fn element(&mut self, name: &str, content: impl FnOnce(&mut Self)) {
        let mut inner = Self { text: String::new(), depth: self.depth + 1 };
        content(&mut inner);
        self.indent();
        if inner.text.is_empty() {
            let _ = writeln!(self.text, "<{name}/>");
            return;
        }
        let _ = writeln!(self.text, "<{name}>");
        self.text.push_str(&inner.text);
        self.indent();
        let _ = writeln!(self.text, "</{name}>");
    }

    /// An element with a text in it; without one it is left out.
    fn leaf(&mut self, name: &str, text: &str) {
        if text.is_empty() {
            return;
        }
        self.indent();
        let _ = writeln!(self.text, "<{name}>{}</{name}>", escaped(text));
    }
}

/// As minidom escapes; what XML cannot hold is a question mark.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\t' | '\n' => escaped.push(c),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => escaped.push('?'),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use sm_model::Bytes;
    use sm_model::sr::FoundSr;

    use super::*;

    fn rendered(items: Vec<ProbeItem>) -> String {
        render(&SrProbed { items })
    }

    fn item(candidate: Candidate) -> ProbeItem {
        ProbeItem { candidate: Some(candidate), ..ProbeItem::default() }
    }

    #[test]
    fn targets_are_as_xenserver_lists_them() {
        let target = |address: &str, port, iqn: &str| {
            item(Candidate::IscsiTarget { address: address.into(), port, iqn: iqn.into() })
        };
        assert_eq!(
            rendered(vec![
                target("192.0.2.10", 3260, "iqn.2001-05.com.example:a"),
                target("192.0.2.11", 3261, "iqn.2001-05.com.example:b"),
                target("192.0.2.10,192.0.2.11", 3260, "*"),
            ]),
            "<?xml version=\"1.0\" ?>\n\
             <iscsi-target-iqns>\n\
             \t<TGT>\n\t\t<Index>0</Index>\n\t\t<IPAddress>192.0.2.10</IPAddress>\n\
             \t\t<TargetIQN>iqn.2001-05.com.example:a</TargetIQN>\n\t</TGT>\n\
             \t<TGT>\n\t\t<Index>1</Index>\n\t\t<IPAddress>192.0.2.11</IPAddress>\n\
             \t\t<Port>3261</Port>\n\
             \t\t<TargetIQN>iqn.2001-05.com.example:b</TargetIQN>\n\t</TGT>\n\
             \t<TGT>\n\t\t<Index>2</Index>\n\t\t<IPAddress>192.0.2.10,192.0.2.11</IPAddress>\n\
             \t\t<TargetIQN>*</TargetIQN>\n\t</TGT>\n\
             </iscsi-target-iqns>\n"
        );
    }

    #[test]
    fn units_and_exports_are_as_xenserver_lists_them() {
        let lun = Candidate::Lun {
            vendor: "LIO-ORG".into(),
            serial: String::new(),
            lun: 3,
            size: Bytes(64 << 20),
            scsi_id: "36001405".into(),
        };
        assert_eq!(
            rendered(vec![item(lun)]),
            "<?xml version=\"1.0\" ?>\n<iscsi-target>\n\t<LUN>\n\t\t<vendor>LIO-ORG</vendor>\n\
             \t\t<LUNid>3</LUNid>\n\t\t<size>67108864</size>\n\t\t<SCSIid>36001405</SCSIid>\n\
             \t</LUN>\n</iscsi-target>\n"
        );
        let export = Candidate::NfsExport {
            target: "nas".into(),
            path: "/a&b<\"\u{1}".into(),
            access: "*".into(),
        };
        assert_eq!(
            rendered(vec![item(export)]),
            "<?xml version=\"1.0\" ?>\n<nfs-exports>\n\t<Export>\n\t\t<Target>nas</Target>\n\
             \t\t<Path>/a&amp;b&lt;&quot;?</Path>\n\t\t<Accesslist>*</Accesslist>\n\
             \t</Export>\n</nfs-exports>\n"
        );
    }

    #[test]
    fn srs_are_as_xenserver_lists_them() {
        let uuid = "11111111-2222-4333-8444-555555555555";
        let sr = Some(FoundSr {
            uuid: uuid.parse().unwrap(),
            name: "n".into(),
            description: String::new(),
        });
        let group = Candidate::VolumeGroup {
            devices: vec!["/dev/a".into(), "/dev/b".into()],
            size: Bytes(7),
        };
        assert_eq!(
            rendered(vec![
                ProbeItem { sr: sr.clone(), candidate: Some(group), ..ProbeItem::default() },
                ProbeItem { sr, ..ProbeItem::default() },
                ProbeItem { complete: true, ..ProbeItem::default() },
            ]),
            format!(
                "<?xml version=\"1.0\" ?>\n<SRlist>\n\t<SR>\n\t\t<UUID>{uuid}</UUID>\n\
                 \t\t<Devlist>/dev/a,/dev/b</Devlist>\n\t\t<size>7</size>\n\t</SR>\n\
                 \t<SR>\n\t\t<UUID>{uuid}</UUID>\n\t</SR>\n</SRlist>\n"
            )
        );
        assert_eq!(rendered(vec![]), "<?xml version=\"1.0\" ?>\n<SRlist/>\n");
    }
}
