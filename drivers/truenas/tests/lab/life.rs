//! The life of LUNs on this host.

use lab::kit::{multipath, udev};
use lab::{Lab, Result};
use serde_json::{Value, json};
use std::time::Duration;

use crate::place::{MIB, Place};

/// Kind and message of an error.
fn told(error: &Value) -> (&str, &str) {
    let error = error.get("error").unwrap_or(error);
    (error["kind"].as_str().unwrap(), error["message"].as_str().unwrap())
}

#[test]
fn luns_are_reached_by_what_they_are_and_leave_nothing_behind() -> Result<()> {
    let lab = Lab::new()?;
    let place = Place::new(&lab)?;
    let (before, theirs) = (place.objects()?, place.theirs()?);
    one_path(&place)?;
    another_name(&place)?;
    cut_at_any_place(&place)?;
    let smctl = place.smctl();
    for vdi in ["disk", "snap", "copy"] {
        smctl.check(&["vdi", "destroy", vdi])?;
    }
    smctl.check(&["sr", "destroy", "vms"])?;
    two_paths(&place)?;
    assert_eq!(place.objects()?, before, "what is not ours, and nothing else");
    assert_eq!(place.theirs()?, theirs);
    Ok(())
}

/// Data through a LUN, before and after all that the array does to it.
fn one_path(place: &Place) -> Result<()> {
    let (smctl, host) = (place.smctl(), &place.host);
    place.create("vms", &["portal=1"])?;
    smctl.check(&["vdi", "create", "--sr", "vms", "--name", "disk", "--size", "16MiB"])?;
    let device = place.attach("disk", &[])?;
    let id = place.scsi_id(&device)?;
    assert!(id.starts_with("36589cfc000000") && id.len() == 33, "{id}");
    assert_eq!((place.size(&device)?, place.sessions()?), (16 * MIB, 1));
    place.fill(&device, 16)?;
    let first = place.sum(&device, 16)?;

    smctl.check(&["vdi", "snapshot", "disk", "--name", "snap"])?;
    place.fill(&device, 4)?;
    let second = place.sum(&device, 16)?;
    assert_ne!(first, second);
    smctl.check(&["vdi", "clone", "snap", "--name", "copy"])?;
    let copy = place.attach("copy", &[])?;
    assert_ne!(place.scsi_id(&copy)?, id);
    assert_eq!((place.sum(&copy, 16)?, place.sum(&device, 16)?), (first.clone(), second.clone()));
    assert_eq!(place.sessions()?, 1, "a LUN more of the same target");

    // Nobody else is let to the target, or told of it.
    let target = host.check(["sh", "-c", "cat /sys/class/iscsi_session/*/targetname"])?;
    let at = format!("iscsi://{}:3260", place.addresses[0]);
    let sees = |who: &str| host.check(["iscsi-ls", "--initiator-name", who, &at]);
    assert!(sees(&place.initiator)?.contains(&target));
    assert_eq!(sees("iqn.2000-01.com.example:other")?, "");
    let lun = format!("{at}/{target}/0");
    let other = ["iscsi-inq", "--initiator-name", "iqn.2000-01.com.example:other", &lun];
    assert_ne!(host.run(other)?.status, 0);

    // It grows under whoever uses it.
    smctl.check(&["vdi", "resize", "disk", "24MiB"])?;
    assert_eq!((place.size(&device)?, place.sum(&device, 16)?), (24 * MIB, second.clone()));

    // What was written by way of the kernel's memory is there after a detach.
    let write = ["dd", "if=/dev/zero", &format!("of={copy}"), "bs=1M", "count=1", "status=none"];
    host.check(write)?;
    smctl.check(&["vdi", "detach", "copy"])?;
    assert_ne!(host.run(["test", "-e", &copy])?.status, 0);
    assert_eq!((place.sum(&device, 16)?, place.sessions()?), (second, 1));
    smctl.check(&["vdi", "detach", "disk"])?;
    assert_eq!(place.left()?, "");

    smctl.check(&["vdi", "revert", "disk", "snap"])?;
    let device = place.attach("disk", &["--read-only"])?;
    assert_eq!((place.size(&device)?, place.sum(&device, 16)?), (16 * MIB, first.clone()));
    let write = ["dd", "if=/dev/zero", &format!("of={device}"), "bs=1M", "count=1"];
    assert_ne!(host.run(write)?.status, 0, "it is for reading");
    assert_eq!(place.sum(&device, 16)?, first);
    smctl.check(&["vdi", "detach", "disk"])?;
    let device = place.attach("copy", &[])?;
    let script = "cmp -n 1048576 $0 /dev/zero";
    host.check(["sh", "-c", script, &device])?;
    smctl.check(&["vdi", "detach", "copy"])?;
    assert_eq!(place.left()?, "");
    Ok(())
}

/// The array knows the host by another name than the host logs in by: it was changed, and the
/// initiator not started again.
fn another_name(place: &Place) -> Result<()> {
    let (smctl, file) = (place.smctl(), "/etc/iscsi/initiatorname.iscsi");
    let name = "iqn.2026-01.org.example.lab:renamed";
    place.host.write(file, format!("InitiatorName={name}\n"))?;
    let error = smctl.refused(&["vdi", "attach", "disk"])?;
    let (kind, message) = told(&error);
    assert_eq!(kind, "auth", "{error}");
    let begin = format!("{}:3260 does not show the target iqn.", place.addresses[0]);
    let end = format!(" to {name}");
    assert!(message.starts_with(&begin) && message.ends_with(&end), "{message}");
    assert_eq!(place.left()?, "");
    smctl.check(&["sr", "detach", "vms"])?;
    place.host.write(file, format!("InitiatorName={}\n", place.initiator))?;
    smctl.check(&["sr", "attach", "vms"])?;
    Ok(())
}

/// Attach and detach are cut, and repeated.
fn cut_at_any_place(place: &Place) -> Result<()> {
    let smctl = place.smctl();
    let mapped = || -> Result<Value> { Ok(place.objects()?["iscsi.targetextent"].take()) };
    let before = mapped()?;
    let killed = |word: &str, step: &str| -> Result<()> {
        let output = smctl.call(&["vdi", word, "disk"]).env("SM_STEP_KILL", step).run()?;
        assert_ne!(output.status, 0, "{word} is not cut at {step}: {}", output.text());
        Ok(())
    };
    for (attach, detach) in [
        ("array.mapped", "lun.path_gone"),
        ("array.target_noted", "array.logged_out"),
        ("array.logged_in", "array.unmapped"),
    ] {
        killed("attach", attach)?;
        let device = place.attach("disk", &[])?;
        assert_eq!(place.size(&device)?, 16 * MIB, "{attach}");
        killed("detach", detach)?;
        smctl.check(&["vdi", "detach", "disk"])?;
        assert_eq!((place.left()?, mapped()?), (String::new(), before.clone()), "{detach}");
    }
    // Nobody comes back to it.
    killed("attach", "array.lun_found")?;
    smctl.check(&["vdi", "detach", "disk"])?;
    assert_eq!((place.left()?, mapped()?), (String::new(), before));
    Ok(())
}

/// Two portals and multipath; and a number that another LUN is behind.
fn two_paths(place: &Place) -> Result<()> {
    let (smctl, host) = (place.smctl(), &place.host);
    udev::start(host)?;
    multipath::start(host, "queue")?;
    place.create("two", &["portal=2", "api=rest"])?;
    smctl.check(&["vdi", "create", "--sr", "two", "--name", "pair", "--size", "16MiB"])?;

    // The array's management says one thing, and what it serves is somebody else's.
    let fake = "6589cfc000000fedcba9876543210fed";
    let body = json!({ "id": 1, "naa": format!("0x{fake}") }).to_string();
    let fault = json!([{ "call": "iscsi.extent.create",
        "effect": { "kind": "refuse", "status": 200, "body": body } }]);
    place.simulator("POST", "/faults", &fault)?;
    let error = smctl.refused(&["vdi", "attach", "pair"])?;
    let (kind, message) = told(&error);
    assert_eq!(kind, "corrupt", "{error}");
    let theirs = place.managed("GET", "iscsi/extent?name=theirs", &Value::Null)?;
    let theirs = theirs[0]["naa"].as_str().unwrap().trim_start_matches("0x").to_owned();
    assert!(message.starts_with("LUN 0 of iqn.2005-10.org.freenas.ctl:sm-"), "{message}");
    let end = format!(" is 3{theirs} and not 3{fake}; it is not used");
    assert!(message.ends_with(&end), "{message}");
    assert_eq!(place.left()?, "");
    // What the array did there is its own.
    let all = place.managed("GET", "iscsi/targetextent", &Value::Null)?;
    let odd = all.as_array().unwrap().iter().find(|one| one["target"] != 1).unwrap();
    place.managed("DELETE", &format!("iscsi/targetextent/id/{}", odd["id"]), &json!(true))?;

    let device = place.attach("pair", &[])?;
    let id = device.strip_prefix("/dev/mapper/").unwrap();
    assert!(id.starts_with("36589cfc000000") && id.len() == 33, "{id}");
    assert_eq!((place.size(&device)?, place.sessions()?), (16 * MIB, 2));
    multipath::wait_for(host, 2, 0, Duration::from_secs(20))?;
    place.fill(&device, 16)?;
    let sum = place.sum(&device, 16)?;
    smctl.check(&["vdi", "resize", "pair", "24MiB"])?;
    assert_eq!((place.size(&device)?, place.sum(&device, 16)?), (24 * MIB, sum));
    let busy = host.command(["sh", "-c", "mkfs.ext4 -q $0 && mount $0 /mnt", &device]);
    busy.check()?;
    let error = smctl.refused(&["vdi", "detach", "pair"])?;
    assert_eq!(told(&error).0, "in_use", "{error}");
    assert_eq!(place.sessions()?, 2);
    host.check(["umount", "/mnt"])?;
    smctl.check(&["vdi", "detach", "pair"])?;
    assert_eq!(place.left()?, "");
    let known = host.run(["cat", "/etc/multipath/wwids"])?.text();
    // The line of one that was forgotten is a comment.
    assert!(!known.lines().any(|line| line == format!("/{id}/")), "{known}");
    smctl.check(&["vdi", "destroy", "pair"])?;
    smctl.check(&["sr", "destroy", "two"])?;
    Ok(())
}
