//! Two hosts on one LUN: both change it at once, and one is cut off in the middle.

use std::collections::BTreeMap;
use std::time::Duration;

use lab::kit::multipath;
use lab::{Guest, Lab, Result};

use crate::array::{Place, STOPPING, go_on, lun, smctl, stop_before, stopped, told};

/// Name and size of each disk that a host sees.
fn disks(host: &Guest) -> Result<BTreeMap<String, u64>> {
    let scanned = smctl(host).json(&["sr", "scan", "san"])?;
    let row = |vdi: &serde_json::Value| {
        assert_eq!(vdi["health"]["state"], "ok", "{vdi}");
        let name = vdi["name"].as_str().unwrap().to_owned();
        (name, vdi["virtual_size"].as_u64().unwrap())
    };
    Ok(scanned["vdis"].as_array().unwrap().iter().map(row).collect())
}

#[test]
fn hosts_that_share_a_lun_lose_nothing_and_one_that_was_cut_off_is_refused() -> Result<()> {
    let lab = Lab::new()?;
    let unit = lun(1, 512);
    let place = Place::new(&lab, &[(1, 512)])?;
    let other = place.another(&lab, "other")?;
    let (host, hosts) = (&place.host, [&place.host, &other]);
    let sr = place.create("san", &unit)?;
    let group = format!("VG_XenStorage-{sr}");
    smctl(host).check(&["vdi", "create", "--sr", "san", "--name", "first", "--size", "8MiB"])?;
    place.introduce(&other, &sr, &sr, &unit)?;

    // Each command at the same time on both.
    let both = |words: &dyn Fn(&str) -> Vec<String>| -> Result<()> {
        let calls = hosts.map(|host| {
            let words = words(host.name());
            smctl(host).call(&words.iter().map(String::as_str).collect::<Vec<_>>()).start()
        });
        for call in calls {
            let output = call?.wait(Duration::from_secs(120))?;
            assert_eq!(output.status, 0, "{}", output.errors());
        }
        Ok(())
    };
    let named = |words: &str, name: &str| {
        words.replace("NAME", name).replace("SR", &sr).split(' ').map(str::to_owned).collect()
    };
    both(&|name| named("vdi create --sr SR --name NAME --size 16MiB", name))?;
    both(&|name| named("vdi snapshot --sr SR NAME --name NAME-s", name))?;
    both(&|name| named("vdi resize --sr SR NAME 24MiB", name))?;
    let mib = 1 << 20;
    let mut expected: BTreeMap<String, u64> = [("first".to_owned(), 8 * mib)].into();
    for host in hosts {
        expected.insert(host.name().to_owned(), 24 * mib);
        expected.insert(format!("{}-s", host.name()), 16 * mib);
    }
    assert_eq!(hosts.map(|host| disks(host).unwrap()), [expected.clone(), expected.clone()]);

    // What one writes, the other one neither writes, nor snapshots, nor removes.
    let attached = smctl(&other).check(&["vdi", "attach", "--sr", &sr, "first"])?;
    assert!(attached.contains("nbd+unix:"), "{attached}");
    let vdi = smctl(host).json(&["vdi", "show", "first"])?["vdi"]["uuid"].clone();
    let vdi = vdi.as_str().unwrap();
    let said = format!("VDI {vdi} is being written by host other");
    for words in [
        &["vdi", "attach", vdi][..],
        &["vdi", "snapshot", vdi, "--name", "x"],
        &["vdi", "destroy", vdi],
    ] {
        let refused = told(&smctl(host).refused(words)?);
        assert_eq!(refused, ("in_use".to_owned(), 24, said.clone()), "{words:?}");
    }
    smctl(&other).check(&["vdi", "detach", "--sr", &sr, "first"])?;

    // One has its cables pulled while it works: before its first command of LVM.
    stop_before(host, "lvcreate")?;
    let create = ["vdi", "create", "--sr", "san", "--name", "late", "--size", "8MiB", "--json"];
    let late = smctl(host).call(&create).env("PATH", STOPPING);
    let late = late.start()?;
    stopped(host)?;
    for network in &place.networks {
        network.unplug(host);
    }
    // The other one takes over when the time of the lease is over, and not before.
    let create = ["vdi", "create", "--sr", &sr, "--name", "soon", "--size", "8MiB"];
    let soon = smctl(&other).refused(&[&create[..], &["--timeout", "5s"]].concat())?;
    let (kind, _, message) = told(&soon);
    assert_eq!(kind, "busy", "{soon}");
    assert!(message.contains("locked by host host, waited"), "{message}");
    smctl(&other).check(&["vdi", "create", "--sr", &sr, "--name", "taken", "--size", "8MiB"])?;
    // And again at once.
    smctl(&other).check(&["vdi", "rename", "--sr", &sr, "taken", "taken over"])?;

    for network in &place.networks {
        network.plug(host);
    }
    multipath::wait_for(host, 2, 0, Duration::from_secs(60))?;
    go_on(host)?;
    let output = late.wait(Duration::from_secs(60))?;
    let errors = output.errors();
    let json = errors.lines().skip_while(|line| !line.starts_with('{')).collect::<String>();
    let error = serde_json::from_str(&json).unwrap_or_else(|error| panic!("{error}: {errors}"));
    let said = format!(
        "host host has lost its right to change {group}: its lease could not be renewed for 12 s"
    );
    let (kind, _, message) = told(&error);
    assert_eq!((output.status, kind.as_str(), message), (12, "fenced", said), "{error}");

    // What it had begun is gone, what the other one did is there, and it goes on.
    expected.insert("taken over".to_owned(), 8 * mib);
    assert_eq!(hosts.map(|host| disks(host).unwrap()), [expected.clone(), expected.clone()]);
    smctl(host).check(&["vdi", "create", "--sr", "san", "--name", "late", "--size", "8MiB"])?;
    expected.insert("late".to_owned(), 8 * mib);
    assert_eq!(disks(&other)?, expected);
    let filter = format!("devices {{ filter=[\"a|{}|\",\"r|.*|\"] }}", unit.scsi_id());
    let volumes =
        other.check(["lvm", "lvs", "--config", &filter, "--noheadings", "-o", "lv_name"])?;
    let mut left = volumes.split_whitespace().filter(|name| !name.starts_with("VHD-"));
    assert_eq!((left.next(), left.next()), (Some("sm-store"), None), "{volumes}");
    other.check(["lvm", "vgck", "--config", &filter, &group]).map(drop)
}
