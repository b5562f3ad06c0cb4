//! Changed blocks, and snapshots of several disks, as people see them.

use std::process::Command;

use crate::world::{PLACES, World};

fn write(uri: &str, command: &str) {
    let output = Command::new("qemu-io").args(["-f", "raw", "-c", command, uri]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn what_changed_is_told_and_shown_to_other_programs() {
    for place in PLACES {
        let world = World::with_sr(place);
        let disk = world.ok(&["vdi", "create", "--name", "d", "--size", "8MiB"]);
        let done = world.json(&["vdi", "cbt", "enable", "d"]);
        assert_eq!(
            (&done["changed"], &done["vdi"]["cbt_enabled"]),
            (&"modified".into(), &true.into())
        );
        let again = world.ok(&["vdi", "cbt", "enable", "d"]);
        assert_eq!(again, format!("changes of VDI {disk} are tracked (it was so already)"));
        assert!(world.ok(&["vdi", "show", "d"]).contains("changes:"));
        let uri = world.ok(&["vdi", "attach", "d"]);
        let monday = world.ok(&["vdi", "snapshot", "d", "--name", "monday"]);
        write(&uri, "write -P 1 1M 64k");
        write(&uri, "write -P 1 2M 4k");
        world.ok(&["vdi", "snapshot", "d", "--name", "tuesday"]);

        let text = world.ok(&["vdi", "cbt", "diff", "monday", "tuesday"]);
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        assert_eq!(
            lines[1..],
            ["1048576   65536", "2097152   65536", "128KiB of 8MiB changed, in 2 ranges"]
        );
        let diff = world.json(&["vdi", "cbt", "diff", "monday", "tuesday"]);
        assert_eq!((&diff["known"], &diff["changed"]), (&true.into(), &131_072.into()));
        let first = serde_json::json!({"offset": 1 << 20, "length": 65536});
        assert_eq!((&diff["ranges"][0], &diff["bitmap"]), (&first, &serde_json::Value::Null));
        // Blocks 16 and 32 of 128, the first in the most significant bit.
        let bitmap = world.ok(&["vdi", "cbt", "diff", "monday", "tuesday", "--bitmap"]);
        assert_eq!(bitmap, "AACAAIAAAAAAAAAAAAAAAA==");
        let unknown = world.run(&["vdi", "cbt", "diff", "tuesday", "monday"]);
        assert!(unknown.stdout.contains("8MiB of 8MiB changed, in 1 ranges"), "{unknown:?}");
        assert!(unknown.stderr.contains("it is not known what changed"), "{unknown:?}");

        let since = ["--read-only", "--changed-since", "monday"];
        let attach = [&["vdi", "attach", "tuesday"][..], &since].concat();
        let attached = world.json(&attach);
        assert_eq!(attached["changed_since"]["context"], format!("qemu:dirty-bitmap:{monday}"));
        assert_eq!(attached["changed_since"]["changed"], 131_072);
        let uri = attached["access"][0]["uri"].as_str().unwrap();
        let map = Command::new("nbdinfo")
            .args([&format!("--map=qemu:dirty-bitmap:{monday}"), "--totals", uri])
            .output()
            .unwrap();
        let map = String::from_utf8(map.stdout).unwrap();
        assert!(map.contains("131072   1.6%   1 dirty"), "{map}");
        world.ok(&["vdi", "detach", "tuesday"]);
        world.ok(&["vdi", "detach", "d"]);
        let refused = world.fails(&["vdi", "attach", "tuesday", "--changed-since", "monday"], 2);
        assert!(refused.contains("--read-only"), "{refused}");
        let ended = world.ok(&["vdi", "cbt", "disable", "d"]);
        assert_eq!(ended, format!("changes of VDI {disk} are not tracked any more"));
    }
}

#[test]
fn snapshots_of_several_disks_are_named_in_their_order() {
    let world = World::with_sr("in-process");
    let first = world.ok(&["vdi", "create", "--name", "a", "--size", "8MiB"]);
    let second = world.ok(&["vdi", "create", "--name", "b", "--size", "8MiB"]);
    let uri = world.ok(&["vdi", "attach", "b"]);
    write(&uri, "write -P 1 0 64k");
    let taken = world.json(&["vdi", "snapshot", "b", "a"]);
    let vdis = taken["vdis"].as_array().unwrap();
    assert_eq!(vdis.len(), 2);
    assert_eq!((&vdis[0]["snapshot_of"], &vdis[0]["name"]), (&(*second).into(), &"b".into()));
    assert_eq!((&vdis[1]["snapshot_of"], &vdis[1]["name"]), (&(*first).into(), &"a".into()));
    let lines = world.ok(&["vdi", "snapshot", &first, &second, "--name", "nightly"]);
    assert_eq!(lines.lines().count(), 2);
    let refused = world.fails(&["vdi", "snapshot", &first, &first], 7);
    assert!(refused.contains("is named twice: one snapshot of it is enough"), "{refused}");
    world.ok(&["vdi", "detach", &second]);
}
