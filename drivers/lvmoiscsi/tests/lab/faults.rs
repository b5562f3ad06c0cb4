//! What goes wrong between a host and its array.

use std::time::Duration;

use lab::kit::multipath;
use lab::{Lab, Result};
use serde_json::Value;

use crate::array::{IQN, Place, lun, smctl, told};

/// One of two cables is pulled under verified writes, and comes back: nothing fails, and whoever
/// asks is told.
#[test]
fn a_path_that_dies_under_writes_is_told_and_missed_by_nobody() -> Result<()> {
    let lab = Lab::new()?;
    let place = Place::new(&lab, &[(1, 128)])?;
    let (smctl, host) = (place.smctl(), &place.host);
    place.create("san", &lun(1, 128))?;
    let raw = ["--size", "32MiB", "--format", "raw"];
    smctl.check(&[&["vdi", "create", "--sr", "san", "--name", "disk"][..], &raw].concat())?;
    let attached = smctl.check(&["vdi", "attach", "disk"])?;
    let device = attached.strip_prefix("block device ").unwrap();
    // Each pass writes all of it and reads it back; it ends after the pass in which it is told to.
    let script = "while [ ! -e /run/stop ]; do fio --name=v --filename=$0 --rw=randwrite --bs=64k \
                  --size=32M --direct=1 --ioengine=psync --verify=crc32c --verify_fatal=1 \
                  --output=/run/fio || exit 1; echo pass; done";
    let fio = host.command(["sh", "-c", script, device]).start()?;
    let passes = || fio.so_far().lines().count();
    let another = |what: &str| {
        let before = passes();
        host.wait_for(what, Duration::from_secs(60), |_| {
            let fine = passes() > before + 1 && fio.ended().is_none();
            Ok(if fine { Ok(()) } else { Err(format!("{} after {before}", passes())) })
        })
    };
    let paths = |up: u64, down: &[String]| {
        let what = format!("{up} paths up, {down:?} down");
        host.wait_for(&what, Duration::from_secs(60), |_| {
            let output = smctl.call(&["sr", "stat", "san", "--json"]).run()?;
            let said = output.errors();
            // After the array has hung, it takes some seconds until a path is seen to be up.
            if output.status != 0 && said.contains("\"none of 2 paths to the LUN is up: ") {
                return Ok(Err(said));
            }
            let stat: Value = serde_json::from_str(&output.success()?.text()).unwrap();
            let shown = &stat["paths"]["down"];
            let shown: Vec<&str> =
                shown.as_array().into_iter().flatten().filter_map(|text| text.as_str()).collect();
            let fits = stat["paths"]["up"] == up
                && stat["paths"]["max"] == 2
                && shown.len() == down.len()
                && shown.iter().zip(down).all(|(shown, down)| shown.starts_with(down));
            Ok(if fits { Ok(stat) } else { Err(stat.to_string()) })
        })
    };
    another("verified writes over two paths")?;
    place.networks[0].unplug(host);
    let stat = paths(1, &[format!("{}:3260: ", place.portals[0])])?;
    assert_eq!(stat["health"]["reason"], "1 of 2 paths are up", "{stat}");
    another("verified writes over one path")?;
    place.networks[0].plug(host);
    paths(2, &[])?;
    host.write("/run/stop", "")?;
    let output = fio.wait(Duration::from_secs(60))?;
    assert_eq!(output.status, 0, "{}", output.errors());

    // The array hangs: an operation ends in its time, and all is well when it goes on.
    place.nas.pause()?;
    let hung = told(&smctl.refused(&["sr", "scan", "san", "--timeout", "8s"])?);
    // A driver whose thread waits in the kernel for a block cannot say so: its process is ended.
    let silent = "did not answer sr_recover within 5000 ms after its deadline";
    let ended = hung.0 == "unknown" && hung.2.ends_with(silent);
    assert!(ended || hung.0 == "unreachable" || hung.0 == "deadline_exceeded", "{hung:?}");
    multipath::wait_for(host, 0, 2, Duration::from_secs(60))?;
    place.nas.resume()?;
    paths(2, &[])?;
    smctl.check(&["sr", "scan", "san"])?;
    smctl.check(&["vdi", "detach", "disk"])?;
    smctl.check(&["sr", "detach", "san"])?;
    assert_eq!(place.sessions(), 0);
    Ok(())
}

/// Disks that are not what they seem: nothing is written to any of them.
#[test]
fn a_lun_that_is_another_one_is_refused_and_left_as_it_is() -> Result<()> {
    let lab = Lab::new()?;
    let mut place = Place::new(&lab, &[(1, 128), (2, 128)])?;
    let (first, second) = (lun(1, 128), lun(2, 128));
    // A third one that calls itself as the second one does: what differs is behind the digits that
    // make the identifier.
    let twin = lun(3, 128);
    place.target.add_with_serial(&twin, &format!("{:08x}{:023x}1", second.serial, 0))?;
    place.target.show(&place.initiator, 3)?;
    let (target, iqn) = (place.target_key(), format!("targetIQN={IQN}"));
    let create = |id: &str, name: &str| -> Vec<String> {
        let id = format!("SCSIid={id}");
        ["sr", "create", "--driver", "lvmoiscsi", "--name", name, &target, &iqn, &id]
            .map(str::to_owned)
            .into()
    };
    let host = place.host.clone();
    let smctl = smctl(&host);
    let refused = |words: &[&str]| -> Result<_> { Ok(told(&smctl.refused(words)?)) };
    let words = create(&second.scsi_id(), "twins");
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let (kind, code, message) = refused(&words)?;
    assert_eq!((kind.as_str(), code), ("corrupt", 119), "{message}");
    let end = format!("have the same SCSIid {} and different serial numbers", second.scsi_id());
    assert!(message.ends_with(&end), "{message}");
    for file in ["/srv/lun2", "/srv/lun3"] {
        let script = format!("cmp -n {} {file} /dev/zero", 128 << 20);
        place.nas.check(["sh", "-c", &script])?;
    }
    assert_eq!(place.sessions(), 0);

    // The number of an SR's LUN is given to another LUN, which holds somebody's data.
    place.create("san", &first)?;
    place.target.remove(&place.initiator, 1)?;
    place.nas.check(["sh", "-c", "yes precious | head -c 134217728 > /srv/lun9"])?;
    let before = place.nas.check(["sha256sum", "/srv/lun9"])?;
    let other = lab::kit::iscsi::Lun { number: 1, ..lun(9, 128) };
    place.target.add(&other)?;
    place.target.show(&place.initiator, 1)?;
    let (kind, code, message) = refused(&["sr", "scan", "san"])?;
    assert_eq!((kind.as_str(), code), ("corrupt", 119), "{message}");
    let end = format!("was {} and is {} now", first.scsi_id(), other.scsi_id());
    assert!(message.starts_with("LUN 1 (/dev/sd") && message.ends_with(&end), "{message}");
    let make = ["vdi", "create", "--sr", "san", "--name", "x", "--size", "8MiB"];
    let (kind, code, message) = refused(&make)?;
    assert_eq!((kind.as_str(), code), ("corrupt", 119), "{message}");
    assert_eq!(place.nas.check(["sha256sum", "/srv/lun9"])?, before);
    // It can be let go of.
    smctl.check(&["sr", "detach", "san"])?;
    assert_eq!(place.sessions(), 0);
    let (kind, code, message) = refused(&["sr", "attach", "san"])?;
    assert_eq!((kind.as_str(), code), ("config", 107), "{message}");
    assert_eq!(place.sessions(), 0);

    // Two paths, and nothing that joins them.
    place.target.remove(&place.initiator, 2)?;
    place.target.remove(&place.initiator, 3)?;
    multipath::stop(&place.host)?;
    let words = create(&other.scsi_id(), "unjoined");
    let mut words: Vec<&str> = words.iter().map(String::as_str).collect();
    let (kind, code, message) = refused(&words)?;
    let said =
        format!("2 paths lead to the LUN {}, and no multipath map joins them", other.scsi_id());
    assert_eq!((kind.as_str(), code, message), ("unreachable", 430, said));
    assert_eq!(place.sessions(), 0);
    // By one portal it is one path. What is on it belongs to somebody? It is no signature, so
    // the word `precious` alone would not keep it; the refusals above did.
    words.push("multihomed=false");
    smctl.check(&words)?;
    assert_eq!(place.sessions(), 1);
    smctl.check(&["sr", "destroy", "unjoined"])?;
    assert_eq!(place.sessions(), 0);
    Ok(())
}
