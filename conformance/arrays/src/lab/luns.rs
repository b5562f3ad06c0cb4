//! The life of LUNs on a host.

use ::lab::{Lab, Result};
use serde_json::Value;

use super::{LARGER, Place, SIZE, Station};
use crate::wishes::MIB;

/// Who is let to nothing.
const OTHER: &str = "iqn.2000-01.com.example:other";

/// Kind and message of an error of `smctl`.
pub fn told(error: &Value) -> (&str, &str) {
    let error = error.get("error").unwrap_or(error);
    (error["kind"].as_str().unwrap(), error["message"].as_str().unwrap())
}

/// A LUN is reached by what it is, has the data that it should have before and after all that the
/// array does to it, is shown to nobody else, and leaves nothing behind on host and array, wherever
/// attach and detach are cut. `more` is what only this vendor has.
pub fn luns<S: Station>(more: impl FnOnce(&Place) -> Result<()>) -> Result<()> {
    let lab = Lab::new()?;
    let place = Place::new::<S>(&lab)?;
    let (before, theirs) = (place.objects()?, place.theirs()?);
    data::<S>(&place)?;
    another_name(&place)?;
    cut_at_any_place(&place)?;
    let smctl = place.smctl();
    for vdi in ["disk", "snap", "copy"] {
        smctl.check(&["vdi", "destroy", vdi])?;
    }
    smctl.check(&["sr", "destroy", "vms"])?;
    more(&place)?;
    assert_eq!(place.objects()?, before, "what is not ours, and nothing else");
    assert_eq!(place.theirs()?, theirs);
    Ok(())
}

/// Data through a LUN, before and after all that the array does to it.
fn data<S: Station>(place: &Place) -> Result<()> {
    let (smctl, host) = (place.smctl(), &place.host);
    let sessions = |attached: usize| if S::TARGET_PER_VOLUME { attached } else { 1 };
    place.create::<S>("vms", &[])?;
    let size = format!("{SIZE}MiB");
    smctl.check(&["vdi", "create", "--sr", "vms", "--name", "disk", "--size", &size])?;
    let device = place.attach("disk", &[])?;
    let id = place.scsi_id(&device)?;
    assert!(id.starts_with(S::SCSI_ID) && id.len() == 33, "{id}");
    assert_eq!((place.size(&device)?, place.sessions()?), (SIZE * MIB, 1));
    place.fill(&device, SIZE)?;
    let first = place.sum(&device, SIZE)?;

    smctl.check(&["vdi", "snapshot", "disk", "--name", "snap"])?;
    place.fill(&device, 4)?;
    let second = place.sum(&device, SIZE)?;
    assert_ne!(first, second);
    smctl.check(&["vdi", "clone", "snap", "--name", "copy"])?;
    let copy = place.attach("copy", &[])?;
    assert_ne!(place.scsi_id(&copy)?, id);
    let sums = (place.sum(&copy, SIZE)?, place.sum(&device, SIZE)?);
    assert_eq!(sums, (first.clone(), second.clone()));
    assert_eq!(place.sessions()?, sessions(2));

    // Nobody else is let to a target, or told of it.
    let targets = host.check(["sh", "-c", "cat /sys/class/iscsi_session/*/targetname"])?;
    let at = format!("iscsi://{}:3260", place.addresses[0]);
    let sees = |who: &str| host.check(["iscsi-ls", "--initiator-name", who, &at]);
    let (own, others) = (sees(&place.initiator)?, sees(OTHER)?);
    for target in targets.lines() {
        assert!(own.contains(target) && !others.contains(target), "{own}; {others}");
        let lun = format!("{at}/{target}/0");
        assert_ne!(host.run(["iscsi-inq", "--initiator-name", OTHER, &lun])?.status, 0);
    }

    // It grows under whoever uses it.
    let larger = format!("{LARGER}MiB");
    smctl.check(&["vdi", "resize", "disk", &larger])?;
    assert_eq!((place.size(&device)?, place.sum(&device, SIZE)?), (LARGER * MIB, second.clone()));

    // What was written by way of the kernel's memory is there after a detach.
    let write = ["dd", "if=/dev/zero", &format!("of={copy}"), "bs=1M", "count=1", "status=none"];
    host.check(write)?;
    smctl.check(&["vdi", "detach", "copy"])?;
    assert_ne!(host.run(["test", "-e", &copy])?.status, 0);
    assert_eq!((place.sum(&device, SIZE)?, place.sessions()?), (second, 1));
    smctl.check(&["vdi", "detach", "disk"])?;
    assert_eq!(place.left()?, "");

    smctl.check(&["vdi", "revert", "disk", "snap"])?;
    let device = place.attach("disk", &["--read-only"])?;
    // Where the identity is that of the mapping (TrueNAS: of the extent), this is another one.
    assert!(place.scsi_id(&device)?.starts_with(S::SCSI_ID));
    assert_eq!(place.sum(&device, SIZE)?, first);
    let write = ["dd", "if=/dev/zero", &format!("of={device}"), "bs=1M", "count=1"];
    assert_ne!(host.run(write)?.status, 0, "it is for reading");
    assert_eq!(place.sum(&device, SIZE)?, first);
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
    let before = place.exports()?;
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
        assert!(place.size(&device)? >= SIZE * MIB, "{attach}");
        killed("detach", detach)?;
        smctl.check(&["vdi", "detach", "disk"])?;
        assert_eq!((place.left()?, place.exports()?), (String::new(), before.clone()), "{detach}");
    }
    // Nobody comes back to it.
    killed("attach", "array.lun_found")?;
    smctl.check(&["vdi", "detach", "disk"])?;
    assert_eq!((place.left()?, place.exports()?), (String::new(), before));
    Ok(())
}
