//! Merges of base copies below a disk that a guest writes.

use std::time::Duration;

use lab::kit::iscsi::Lun;
use lab::kit::smctl::Smctl;
use lab::{Guest, Lab, Result};
use serde_json::Value;

use crate::array::{Place, STOPPING, lun, smctl, stop_before, stopped};
use crate::images::{attach, io, volumes};

/// Where layers of the disk are told from each other, KiB; what lies before it a guest writes all the
/// time.
const LAYERS: u64 = 16 << 10;

/// How long a maintenance may take, with a guest at the disk on the one processor there is.
const LONG: Duration = Duration::from_secs(240);

fn maintain(smctl: &Smctl<'_>, sr: &str) -> Result<Value> {
    let text = smctl.call(&["sr", "maintain", sr, "--json"]).deadline(LONG).check()?;
    Ok(serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}")))
}

/// Gives the disk base copies that nothing needs but the disk.
fn layers(host: &Guest, uri: &str, first: u8, count: u8) -> Result<()> {
    for number in first..first + count {
        io(host, uri, true, number, LAYERS + u64::from(number) * 1024, 1024);
        // A place that each of them has.
        io(host, uri, true, number, LAYERS, 64);
        smctl(host).check(&["vdi", "snapshot", "disk", "--name", "snap"])?;
        smctl(host).check(&["vdi", "destroy", "snap"])?;
    }
    Ok(())
}

fn read_layers(host: &Guest, uri: &str, last: u8) {
    io(host, uri, false, last, LAYERS, 64);
    for number in 1..=last {
        io(host, uri, false, number, LAYERS + u64::from(number) * 1024, 1024);
    }
}

/// The images that there are.
fn images(host: &Guest, unit: &Lun) -> usize {
    volumes(host, unit).keys().filter(|name| name.starts_with("VHD-")).count()
}

#[test]
fn base_copies_below_a_disk_that_is_written_are_merged_and_nothing_is_lost() -> Result<()> {
    let lab = Lab::new()?;
    let place = Place::new(&lab, &[(1, 512)])?;
    let (smctl, host, unit) = (place.smctl(), &place.host, lun(1, 512));
    let sr = place.create("san", &unit)?;
    let disk =
        smctl.check(&["vdi", "create", "--sr", "san", "--name", "disk", "--size", "32MiB"])?;
    let own = format!("VHD-{disk}");
    let uri = attach(host, "disk", &[]);

    // A guest writes and reads back all the time; it ends after the pass in which it is told to.
    let script = "while [ ! -e /run/stop ]; do fio --name=v --ioengine=nbd --uri=$0 --rw=randwrite \
                  --bs=32k --size=1M --verify=crc32c --verify_fatal=1 --verify_state_save=0 \
                  --output=/run/fio || exit 1; echo pass; sleep 2; done";
    let fio = host.command(["sh", "-c", script, &uri]).start()?;
    let another = |what: &str| {
        let before = fio.so_far().lines().count();
        host.wait_for(what, Duration::from_secs(120), |_| {
            let passes = fio.so_far().lines().count();
            let fine = passes > before + 1 && fio.ended().is_none();
            Ok(if fine { Ok(()) } else { Err(format!("{passes} after {before}")) })
        })
    };
    let mut last = 0;
    for _ in 0..2 {
        layers(host, &uri, last + 1, 2)?;
        last += 2;
        another("verified writes on a chain")?;
        let done = maintain(&smctl, "san")?;
        let merged = done["merged"].as_array().unwrap();
        assert!(!merged.is_empty() && merged.iter().all(|merge| merge["live"] == true), "{done}");
        // However many there were, one is left, small and read-only.
        let all = volumes(host, &unit);
        let bases: Vec<_> =
            all.iter().filter(|(name, _)| name.starts_with("VHD-") && **name != own).collect();
        assert_eq!(bases.len(), 1, "{all:?}");
        assert!(bases[0].1.0 < 40 && !bases[0].1.1 && bases[0].1.2, "{all:?}");
        another("verified writes on what was merged")?;
        read_layers(host, &uri, last);
    }

    // Whoever merges is killed: the guest writes on, and the next one completes it.
    for step in ["sr_maintain.readers_closed", "sr_maintain.relinked"] {
        layers(host, &uri, last + 1, 1)?;
        last += 1;
        let cut = smctl.call(&["sr", "maintain", "san"]).env("SM_STEP_KILL", step);
        let cut = cut.deadline(LONG).run()?;
        assert_eq!(cut.status, 128 + 9, "{step}: {}", cut.errors());
        another("verified writes after a kill")?;
        read_layers(host, &uri, last);
        smctl.check(&["sr", "scan", "san"])?;
        maintain(&smctl, "san")?;
        assert_eq!(images(host, &unit), 2, "{step}");
        read_layers(host, &uri, last);
    }
    host.write("/run/stop", "")?;
    let output = fio.wait(Duration::from_secs(120))?;
    assert_eq!(output.status, 0, "{}", output.errors());

    layers(host, &uri, last + 1, 1)?;
    last += 1;
    // The power goes before the image that was merged is removed.
    stop_before(host, "lvremove")?;
    let cut = smctl.call(&["sr", "maintain", "san"]).env("PATH", STOPPING).start()?;
    stopped(host)?;
    host.kill();
    drop(cut);
    place.boot_again()?;
    place.introduce(host, &sr, &sr, &unit)?;
    smctl.check(&["sr", "scan", &sr])?;
    smctl.check(&["vdi", "check", &disk])?;
    let uri = attach(host, &disk, &[]);
    read_layers(host, &uri, last);
    maintain(&smctl, &sr)?;
    assert_eq!(images(host, &unit), 2);
    read_layers(host, &uri, last);
    smctl.check(&["vdi", "detach", &disk])?;
    smctl.check(&["vdi", "check", &disk])?;
    assert!(volumes(host, &unit).values().all(|volume| !volume.2));
    // With nobody on it, the disk is merged, too.
    maintain(&smctl, &sr)?;
    assert_eq!(volumes(host, &unit).into_keys().collect::<Vec<_>>(), [own, "sm-store".to_owned()]);
    let uri = attach(host, &disk, &["--read-only"]);
    read_layers(host, &uri, last);
    smctl.check(&["vdi", "detach", &disk]).map(drop)
}
