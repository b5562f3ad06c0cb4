//! `smctl vhd info`

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sm_model::{Bytes, Error, Kind};
use vhd::check::{Anatomy, BatmapState, Code, Depth, Examination, Place, examine};
use vhd::folder::{Parents, chain};
use vhd::footer::{DiskType, Footer};
use vhd::header::Header;
use vhd::locator::{Hint, parent_name_text};

use super::{documents, line, shown};
use crate::errors::Result;
use crate::output::{Align, Block, Report, Style, Table, escape, timestamp, yes};

/// Seconds from the Unix epoch to the format's own, 2000-01-01 UTC.
const EPOCH: u64 = 946_684_800;

/// Programs that write VHDs, by the creator field of the footer.
const CREATORS: &[(&[u8; 4], &str)] = &[
    (b"tap\0", "XenServer's blktap, or this program"),
    (b"win ", "Windows: Hyper-V, disk management"),
    (b"vpc ", "Virtual PC, or qemu"),
    (b"vs  ", "Virtual Server"),
    (b"qemu", "qemu"),
    (b"qem2", "qemu, with the size in bytes"),
    (b"wa\0\0", "Azure"),
    (b"d2v ", "Disk2vhd"),
    (b"vbox", "VirtualBox"),
];

/// The chain of an image: the files, or why there is none.
type Found = std::result::Result<(Vec<vhd::folder::Link>, Vec<vhd::check::Finding>), vhd::Error>;

pub(super) fn info(
    file: &Path,
    with_chain: bool,
    parents: Parents<'_>,
    json: bool,
    style: Style,
) -> Result<Report> {
    std::fs::symlink_metadata(file)
        .map_err(|error| crate::errors::file_error(shown(file), error))?;
    let examination = examine(file, Depth::Tables);
    let Some((anatomy, footer)) =
        examination.anatomy.as_ref().and_then(|anatomy| Some((anatomy, anatomy.footer.as_ref()?)))
    else {
        let why = examination.findings.first().map(|f| f.text.clone()).unwrap_or_default();
        return Err(Error::new(Kind::Corrupt, format!("{}: {why}", file.display()))
            .hint("if this was a VHD, nothing in it says which one: a backup is the way")
            .into());
    };
    let found: Option<Found> =
        (footer.disk_type == DiskType::Differencing).then(|| chain(file, parents));
    let parent: Option<PathBuf> = match &found {
        Some(Ok((links, _))) => links.get(1).map(|link| link.path.clone()),
        _ => None,
    };
    let mut findings = examination.findings.clone();
    if let Some(Ok((_, of_links))) = &found {
        if of_links.iter().any(|finding| finding.code == Code::ParentOutside) {
            findings.retain(|finding| finding.code != Code::LocatorOutside);
        }
        findings.extend(of_links.clone());
    }
    let mut document = document(file, anatomy, footer, &examination, parent.as_deref());
    document["findings"] = json!(documents(&findings));
    let members = if with_chain { Some(members(file, found.as_ref())) } else { None };
    if let Some(members) = &members {
        document["chain"] = members.iter().map(Member::document).collect();
    }
    Ok(Report::new(json, &document, || {
        let mut text = block(file, anatomy, footer, &examination, parent.as_deref()).render();
        if let Some(members) = &members {
            text.push('\n');
            text.push_str(&table(members).render(style));
        }
        if !findings.is_empty() {
            text.push_str("\nworth knowing:\n");
        }
        for finding in &findings {
            text.push_str(&line(finding));
            text.push('\n');
        }
        text
    }))
}

fn creator(footer: &Footer) -> String {
    let known = CREATORS.iter().find(|(code, _)| **code == footer.creator);
    let by = known.map_or("a program that is not known", |(_, name)| name);
    format!("{} ({by})", escape(&footer.creator_text()))
}

fn os(footer: &Footer) -> &'static str {
    match &footer.creator_os {
        b"Wi2k" => "Windows",
        b"Mac " => "Macintosh",
        [0, 0, 0, 0] => "not said",
        _ => "not known",
    }
}

/// What is in one of the two places of a footer.
fn place(place: &Place, short: bool) -> &'static str {
    match (&place.parsed, place.poisoned) {
        (_, true) => "interrupted resize",
        (Ok(_), _) if short => "valid, 511 bytes",
        (Ok(_), _) => "valid",
        (Err(vhd::Fault::NoFooter { .. }), _) => "missing",
        (Err(_), _) => "damaged",
    }
}

fn copy(anatomy: &Anatomy) -> &'static str {
    if anatomy.is_fixed() { "none (fixed image)" } else { place(&anatomy.copy, false) }
}

fn batmap(anatomy: &Anatomy) -> &'static str {
    match anatomy.batmap {
        BatmapState::NotPromised => "none",
        BatmapState::Missing => "missing, the creator promises one",
        BatmapState::WrongChecksum(_) => "ignored, its checksum is wrong",
        BatmapState::Good(_) => "good",
    }
}

fn exact(bytes: u64) -> String {
    format!("{} ({bytes} bytes)", Bytes(bytes))
}

fn block(
    file: &Path,
    anatomy: &Anatomy,
    footer: &Footer,
    examination: &Examination,
    parent: Option<&Path>,
) -> Block {
    let mut block = Block::default();
    let geometry = footer.geometry;
    let (cylinders, heads, sectors) = (geometry.cylinders, geometry.heads, geometry.sectors);
    block
        .line("file", shown(file))
        .line("type", footer.disk_type.to_string())
        .line("virtual size", exact(footer.current_size));
    if footer.original_size != footer.current_size {
        block.line("size when created", exact(footer.original_size));
    }
    block
        .line("file size", exact(anatomy.stat.length))
        .line("space taken", exact(anatomy.stat.allocated))
        .line("uuid", footer.uuid.to_string())
        .line("creator", creator(footer))
        .line("creator's system", os(footer))
        .line("created", timestamp(EPOCH + u64::from(footer.timestamp)))
        .line("hidden", yes(footer.hidden))
        .line(
            "geometry",
            format!("{cylinders}/{heads}/{sectors}, that is {}", exact(geometry.size())),
        )
        .line("features", format!("{:#x}", footer.features))
        .line("footer at the end", place(&anatomy.end, anatomy.has_short_footer()))
        .line("footer copy", copy(anatomy));
    let Some(header) = &anatomy.header else { return block };
    let space = examination.space;
    block
        .line("block size", exact(u64::from(header.block_size)))
        .line("blocks in use", format!("{} of {}", space.allocated, space.blocks))
        .line("space without use", exact(space.dead))
        .line("block table", format!("{} entries at {}", header.table_entries, header.table_offset))
        .line("batmap", batmap(anatomy));
    if footer.disk_type == DiskType::Differencing {
        parent_lines(&mut block, anatomy, header, parent);
    }
    block
}

fn parent_lines(block: &mut Block, anatomy: &Anatomy, header: &Header, parent: Option<&Path>) {
    let null = if header.parent_uuid.is_nil() { " (a raw file)" } else { "" };
    block
        .line("parent uuid", format!("{}{null}", header.parent_uuid))
        .text("parent's name", &parent_name_text(&header.parent_name))
        .line("parent found", parent.map_or_else(|| "no".to_owned(), shown))
        .line("parent's time", timestamp(EPOCH + u64::from(header.parent_timestamp)));
    for slot in &anatomy.slots {
        let code = String::from_utf8_lossy(&slot.locator.code).into_owned();
        let name = match &slot.name {
            Ok(Some(Hint::Sibling(name))) => format!("{name:?}"),
            Ok(Some(Hint::Elsewhere(path))) => format!("{path:?}, not followed"),
            Ok(None) => "not read".to_owned(),
            Err(fault) => fault.to_string(),
        };
        let (at, length) = (slot.locator.offset, slot.locator.length);
        block.line(
            format!("locator {}", escape(&code)),
            format!("{} ({length} bytes at {at})", escape(&name)),
        );
    }
}

fn document(
    file: &Path,
    anatomy: &Anatomy,
    footer: &Footer,
    examination: &Examination,
    parent: Option<&Path>,
) -> Value {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_matches(['\0', ' ']).to_owned();
    let mut document = json!({
        "path": file.to_string_lossy(),
        "type": footer.disk_type.to_string(),
        "virtual_size": footer.current_size,
        "original_size": footer.original_size,
        "file_size": anatomy.stat.length,
        "allocated": anatomy.stat.allocated,
        "uuid": footer.uuid,
        "creator": {
            "application": text(&footer.creator),
            "version": format!("{}.{}", footer.creator_version >> 16, footer.creator_version & 0xffff),
            "os": text(&footer.creator_os),
        },
        "created": EPOCH + u64::from(footer.timestamp),
        "hidden": footer.hidden,
        "saved_state": footer.saved != 0,
        "features": footer.features,
        "geometry": {
            "cylinders": footer.geometry.cylinders,
            "heads": footer.geometry.heads,
            "sectors": footer.geometry.sectors,
            "size": footer.geometry.size(),
        },
        "footer_end": place(&anatomy.end, anatomy.has_short_footer()),
        "footer_copy": copy(anatomy),
    });
    let Some(header) = &anatomy.header else { return document };
    document["block_size"] = json!(header.block_size);
    document["blocks"] = json!(examination.space.blocks);
    document["blocks_in_use"] = json!(examination.space.allocated);
    document["dead_bytes"] = json!(examination.space.dead);
    document["table"] = json!({"offset": header.table_offset, "entries": header.table_entries});
    document["batmap"] = json!(batmap(anatomy));
    if footer.disk_type == DiskType::Differencing {
        let locators: Vec<Value> = anatomy
            .slots
            .iter()
            .map(|slot| {
                let (name, outside) = match &slot.name {
                    Ok(Some(Hint::Sibling(name))) => (Some(name.clone()), false),
                    Ok(Some(Hint::Elsewhere(path))) => (Some(path.clone()), true),
                    Ok(None) | Err(_) => (None, false),
                };
                json!({
                    "platform": text(&slot.locator.code),
                    "offset": slot.locator.offset,
                    "length": slot.locator.length,
                    "name": name,
                    "leads_outside": outside,
                })
            })
            .collect();
        document["parent"] = json!({
            "uuid": header.parent_uuid,
            "name": parent_name_text(&header.parent_name),
            "timestamp": EPOCH + u64::from(header.parent_timestamp),
            "found": parent.map(Path::to_string_lossy),
            "locators": locators,
        });
    }
    document
}

/// One file of a chain.
struct Member {
    path: PathBuf,
    info: Option<vhd::Info>,
    raw: bool,
}

impl Member {
    fn kind(&self) -> String {
        match (&self.info, self.raw) {
            (_, true) => "raw".to_owned(),
            (Some(info), _) => info.disk_type.to_string(),
            (None, _) => "damaged".to_owned(),
        }
    }

    fn document(&self) -> Value {
        json!({
            "path": self.path.to_string_lossy(),
            "type": self.kind(),
            "uuid": self.info.as_ref().map(|info| info.uuid),
            "virtual_size": self.info.as_ref().map(|info| info.size),
            "allocated": self.info.as_ref().map(|info| info.physical_size),
            "hidden": self.info.as_ref().map(|info| info.hidden),
        })
    }
}

fn members(file: &Path, found: Option<&Found>) -> Vec<Member> {
    let links = match found {
        Some(Ok((links, _))) => links.clone(),
        _ => vec![vhd::folder::Link { path: file.to_owned(), raw: false }],
    };
    links
        .into_iter()
        .map(|link| {
            let info = if link.raw { None } else { vhd::image::probe(&link.path).ok() };
            Member { path: link.path, info, raw: link.raw }
        })
        .collect()
}

fn table(members: &[Member]) -> Table {
    let mut table = Table::new(&[
        ("UUID", Align::Left),
        ("TYPE", Align::Left),
        ("SIZE", Align::Right),
        ("TAKEN", Align::Right),
        ("HIDDEN", Align::Left),
        ("FILE", Align::Left),
    ]);
    for member in members {
        let info = member.info.as_ref();
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        table.row([
            or_dash(info.map(|info| info.uuid.to_string())),
            member.kind(),
            or_dash(info.map(|info| Bytes(info.size).to_string())),
            or_dash(info.map(|info| Bytes(info.physical_size).to_string())),
            or_dash(info.map(|info| yes(info.hidden).to_owned())),
            shown(&member.path),
        ]);
    }
    table
}
