//! Many volumes.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use plugin_sdk::prelude::*;

use crate::bench::*;

/// As many as an SR of one host may well have.
const VOLUMES: usize = 1000;

/// The text of a group, with so many volumes that are like the one that it has. To make them one
/// by one would take minutes; to LVM these are no different, as long as they are not activated.
fn multiplied(text: &str, volume: &str) -> (String, BTreeSet<VdiUuid>) {
    let begin = text.find(&format!("\t\t{volume} {{")).expect("the volume is in the text");
    let end = begin + text[begin..].find("\n\t\t}\n").expect("its end") + "\n\t\t}\n".len();
    let block = &text[begin..end];
    let id = block.split("id = \"").nth(1).unwrap().split('"').next().unwrap();
    let (mut all, mut uuids) = (String::new(), BTreeSet::new());
    for number in 0..VOLUMES {
        let uuid = VdiUuid::random();
        let other = format!("{}{number:06}", &id[..id.len() - 6]);
        let one = block
            .replace(volume, &format!("vdi-{uuid}"))
            .replace(id, &other)
            .replace("device_id = 1\n", &format!("device_id = {}\n", number + 1));
        write!(all, "{one}").unwrap();
        uuids.insert(uuid);
    }
    (format!("{}{all}{}", &text[..begin], &text[end..]), uuids)
}

/// Each command costs tens of milliseconds, and reads the text of the whole group.
#[test]
fn a_thousand_volumes_are_listed_by_one_command() -> lab::Result<()> {
    lab::in_guest(
        |lab| machine(lab, &[256]),
        || {
            let bench = Bench::with_sr(&[("device", "/dev/ubda")]);
            let group = format!("sm-{}", bench.sr);
            let made = bench.create("disk", 4 * MIB);
            bench.call(SrDetach::default());
            sh(&["vgcfgbackup", "-q", "--file", "/run/text", &group]);
            let text = std::fs::read_to_string("/run/text").unwrap();
            let (text, uuids) = multiplied(&text, &format!("vdi-{}", made.uuid));
            std::fs::write("/run/text", text).unwrap();
            sh(&["vgcfgrestore", "-q", "-y", "--force", "--file", "/run/text", &group]);

            let mut scanned = BTreeSet::new();
            let commands = bench.commands(1, || {
                let found = bench.scan();
                assert!(found.values().all(|vdi| vdi.health == Health::Ok && vdi.name == "disk"));
                scanned.extend(found.into_keys());
            });
            assert_eq!(commands, ["fullreport"]);
            assert_eq!(scanned, uuids);
            let one = *uuids.first().unwrap();
            for (what, commands) in [
                ("attach", &["fullreport", "lvchange", "dmsetup"][..]),
                ("stat", &["fullreport"]),
                ("create", &["fullreport", "lvcreate"]),
                ("snapshot", &["fullreport", "lvcreate"]),
            ] {
                let work = || match what {
                    "attach" => bench.done(SrAttach::default()),
                    "stat" => assert_eq!(bench.call(VdiStat::of(one)).uuid, one),
                    "create" => {
                        let new = bench.create("new", 4 * MIB).uuid;
                        scanned.insert(new);
                    }
                    _ => {
                        let new = *scanned.difference(&uuids).next().unwrap();
                        bench.snapshot(new, "snap");
                    }
                };
                assert_eq!(bench.commands(commands.len(), work), commands, "{what}");
            }
            assert_eq!(bench.scan().len(), VOLUMES + 2);
        },
    )
}
