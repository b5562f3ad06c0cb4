//! What is cut in the middle of changes of VHDs in volumes: by SIGKILL of `smctl`, and by the loss of
//! the host.

use lab::{Lab, Result};

use crate::array::{IQN, Place, STOPPING, lun, smctl, stop_before, stopped};
use crate::images::{attach, io, volumes};

#[test]
fn what_was_cut_on_thin_volumes_is_repeated_and_a_host_that_lost_power_goes_on() -> Result<()> {
    let lab = Lab::new()?;
    let place = Place::new(&lab, &[(1, 256)])?;
    let (host, unit) = (&place.host, lun(1, 256));
    let smctl = smctl(host);
    let (target, iqn) = (place.target_key(), format!("targetIQN={IQN}"));
    let id = format!("SCSIid={}", unit.scsi_id());
    let create = ["sr", "create", "--driver", "lvmoiscsi", "--name", "san", &target, &iqn, &id];
    let sr = smctl.check(&[&create[..], &["allocation=thin"]].concat())?;
    let disk =
        smctl.check(&["vdi", "create", "--sr", "san", "--name", "disk", "--size", "32MiB"])?;
    // A snapshot under a writer, who goes on.
    let uri = attach(host, "disk", &[]);
    io(host, &uri, true, 0xa1, 0, 1024);
    smctl.check(&["vdi", "snapshot", "disk", "--name", "snap"])?;
    io(host, &uri, true, 0xa2, 8192, 1024);
    smctl.check(&["vdi", "detach", "disk"])?;
    // One block of 2 MiB, and tables: the rest of its 40 MiB it had only while it was written.
    let own = format!("VHD-{disk}");
    assert_eq!(volumes(host, &unit)[&own], (4, true, false));

    // Each is cut at a place, and then repeated.
    let cuts: [(&[&str], &str); 4] = [
        (&["vdi", "clone", "snap", "--name", "copy"], "store.created"),
        (&["vdi", "resize", "disk", "48MiB"], "vdi_resize.journalled"),
        (&["vdi", "snapshot", "disk", "--name", "late"], "store.name_taken:2"),
        (&["vdi", "revert", "disk", "snap"], "store.moved_aside"),
    ];
    for (number, (words, step)) in cuts.iter().enumerate() {
        let operation = format!("5ea50000-0000-4000-8000-00000000000{number}");
        let words = [&["--operation-id", &operation][..], words].concat();
        let output = smctl.call(&words).env("SM_STEP_KILL", *step).run()?;
        assert_eq!(output.status, 128 + 9, "{step}: {}", output.errors());
        smctl.check(&words)?;
    }

    // The power goes before the first volume is removed.
    stop_before(host, "lvremove")?;
    let destroy = smctl.call(&["vdi", "destroy", "late"]).env("PATH", STOPPING).start()?;
    stopped(host)?;
    host.kill();
    drop(destroy);
    place.boot_again()?;
    place.introduce(host, &sr, &sr, &unit)?;
    let again = smctl.json(&["sr", "scan", &sr])?;

    // All is as it was said to be.
    let mut names = Vec::new();
    for vdi in again["vdis"].as_array().unwrap() {
        let name = vdi["name"].as_str().unwrap();
        names.push((name.to_owned(), vdi["virtual_size"].as_u64().unwrap() >> 20));
        assert_eq!(vdi["health"]["state"], "ok", "{vdi}");
    }
    names.sort();
    let expected = [("copy", 32), ("disk", 32), ("snap", 32)];
    assert_eq!(names, expected.map(|(name, size)| (name.to_owned(), size)));
    // With nobody else on it, the base copy is merged with the disk.
    for vdi in ["copy", "snap"] {
        smctl.check(&["vdi", "destroy", vdi])?;
    }
    smctl.check(&["sr", "maintain", &sr])?;
    let left = volumes(host, &unit);
    let names: Vec<&str> = left.keys().map(String::as_str).collect();
    assert_eq!(names, [own.as_str(), "sm-store"]);
    smctl.check(&["vdi", "check", "disk"])?;
    let uri = attach(host, "disk", &[]);
    io(host, &uri, false, 0xa1, 0, 1024);
    io(host, &uri, false, 0, 8192, 1024);
    smctl.check(&["vdi", "detach", "disk"]).map(drop)
}
