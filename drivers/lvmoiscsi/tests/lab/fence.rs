//! A host that hangs, or has lost its power, while it writes a disk: another one takes the disk over.

use std::time::Duration;

use lab::kit::iscsi::Lun;
use lab::{Guest, Lab, Result};

use crate::array::{IQN, Place, lun, smctl, told};
use crate::images::{attach, io};

/// Attaches a raw disk; its device.
fn device(host: &Guest, sr: &str, vdi: &str) -> String {
    let text = smctl(host).check(&["vdi", "attach", "--sr", sr, vdi]).unwrap();
    let device = text.split_whitespace().find(|word| word.starts_with("/dev/"));
    device.unwrap_or_else(|| panic!("{text}")).to_owned()
}

/// Fills a device with a byte.
fn fill(host: &Guest, device: &str, byte: u8) {
    let script = format!(
        "head -c 8M /dev/zero | tr '\\0' '\\{byte:03o}' | \
         dd of=$0 bs=1M oflag=direct iflag=fullblock status=none"
    );
    host.check(["sh", "-c", &script, device]).unwrap();
}

/// How many bytes of a device are another one.
fn others(host: &Guest, device: &str, byte: u8) -> String {
    let script = format!("dd if=$0 bs=1M iflag=direct status=none | tr -d '\\{byte:03o}' | wc -c");
    host.check(["sh", "-c", &script, device]).unwrap().trim().to_owned()
}

/// A LUN of a target that has no persistent reservations.
fn without_reservations(place: &mut Place) -> Result<Lun> {
    let plain = lun(2, 128);
    place.target.add(&plain)?;
    let target = "/sys/kernel/config/target";
    // Only what nobody is shown can be changed so.
    let script = "rm $0/store && echo 0 >$1/attrib/emulate_pr && ln -s $1 $0/store";
    let (unit, store) =
        (format!("{target}/iscsi/{IQN}/tpgt_1/lun/lun_2"), format!("{target}/core/fileio_2/lun2"));
    place.nas.check(["sh", "-c", script, &unit, &store])?;
    for host in ["host", "other"] {
        place.target.show(&format!("iqn.2026-01.org.example.lab:{host}"), 2)?;
    }
    Ok(plain)
}

#[test]
fn a_host_that_is_shut_out_loses_its_disks_and_its_late_writes_are_refused() -> Result<()> {
    let lab = Lab::new()?;
    let unit = lun(1, 512);
    let mut place = Place::new(&lab, &[(1, 512)])?;
    let other = place.another(&lab, "other")?;
    let plain = without_reservations(&mut place)?;
    let host = &place.host;
    let sr = place.create("san", &unit)?;
    let create = ["vdi", "create", "--sr", "san", "--name"];
    let raw = ["raw", "--size", "8MiB", "--format", "raw"];
    let raw = smctl(host).check(&[&create[..], &raw].concat())?;
    let image = smctl(host).check(&[&create[..], &["image", "--size", "8MiB"]].concat())?;
    place.introduce(&other, &sr, &sr, &unit)?;
    let stat = smctl(&other).json(&["sr", "stat", &sr])?;
    assert_eq!(stat["warnings"].as_array().map_or(0, Vec::len), 0, "{stat}");

    // It writes both, the raw one without an end; then it hangs.
    let uri = attach(host, &image, &[]);
    io(host, &uri, true, 0xa1, 0, 1024);
    let path = device(host, &sr, &raw);
    let script = "while dd if=/dev/urandom of=$0 bs=64k count=128 oflag=direct conv=notrunc \
                  status=none; do echo round; done";
    let writer = host.command(["sh", "-c", script, &path]).start()?;
    host.wait_for("writes", Duration::from_secs(60), |_| {
        let writes = writer.so_far().lines().count() > 1;
        Ok(if writes { Ok(()) } else { Err("none yet".to_owned()) })
    })?;
    host.pause()?;

    // Its disks are its own, whatever it does, until somebody says that it is gone.
    for vdi in [&raw, &image] {
        let refused = told(&smctl(&other).refused(&["vdi", "attach", vdi])?);
        let said = format!("VDI {vdi} is being written by host host");
        assert_eq!(refused, ("in_use".to_owned(), 24, said));
    }
    let asked = smctl(&other).call(&["host", "fence", "host"]).run()?;
    assert_eq!(asked.status, 2, "{}", asked.errors());
    assert!(asked.errors().contains("smctl host fence host --yes"), "{}", asked.errors());
    let unknown = told(&smctl(&other).refused(&["host", "fence", "hots", "--yes"])?);
    assert_eq!(unknown.0, "not_found");
    assert_eq!(unknown.2, format!("SR {sr} knows no host hots"));

    let fenced = smctl(&other).json(&["host", "fence", "host", "--yes"])?;
    let fenced = &fenced["srs"][0]["fenced"];
    assert_eq!((&fenced["changed"], &fenced["enforced"]), (&"modified".into(), &true.into()));
    assert!(fenced["epoch"].as_u64().unwrap() > 0, "{fenced}");
    let mut free: Vec<&str> =
        fenced["vdis"].as_array().unwrap().iter().map(|vdi| vdi.as_str().unwrap()).collect();
    free.sort_unstable();
    let mut both = [raw.as_str(), image.as_str()];
    both.sort_unstable();
    assert_eq!(free, both);
    let again = smctl(&other).json(&["host", "fence", "host", "--yes"])?;
    let again = &again["srs"][0]["fenced"];
    assert_eq!((&again["changed"], &again["epoch"]), (&"already".into(), &fenced["epoch"]));

    // At once the other one has them, with what was written before.
    let taken = device(&other, &sr, &raw);
    fill(&other, &taken, 0xb1);
    let uri = attach(&other, &image, &[]);
    io(&other, &uri, false, 0xa1, 0, 1024);
    io(&other, &uri, true, 0xb2, 0, 1024);

    // The one that hung goes on where it was.
    host.resume()?;
    let output = writer.wait(Duration::from_secs(120))?;
    assert!(output.errors().contains("Invalid exchange"), "{}", output.errors());
    let late = ["dd", "if=/dev/zero", &format!("of={path}"), "bs=64k", "count=1", "oflag=direct"];
    assert_ne!(host.run(late)?.status, 0);
    assert_eq!(others(&other, &taken, 0xb1), "0");
    io(&other, &uri, false, 0xb2, 0, 1024);
    let create = ["vdi", "create", "--sr", "san", "--name", "late", "--size", "8MiB"];
    let (kind, _, message) = told(&smctl(host).refused(&create)?);
    assert_eq!(
        (kind.as_str(), message.as_str()),
        ("fenced", "the storage refuses what this host writes")
    );
    let (kind, _, message) = told(&smctl(host).refused(&["sr", "attach", "san"])?);
    let said = "host host was shut out of the SR by host other";
    assert_eq!((kind.as_str(), message.as_str()), ("fenced", said));
    // Nor does it get there by shutting the other one out in its turn.
    let turned = told(&smctl(host).refused(&["host", "fence", "other", "--yes"])?);
    assert_eq!((turned.0.as_str(), turned.2.as_str()), ("fenced", said));
    assert_ne!(host.run(late)?.status, 0);
    let warned = smctl(&other).json(&["sr", "stat", &sr])?["warnings"].to_string();
    assert!(warned.contains("host host is shut out since epoch"), "{warned}");

    // It comes back with nothing in use, after a boot for instance.
    host.kill();
    place.boot_again()?;
    place.introduce(host, &sr, &sr, &unit)?;
    smctl(host).check(&create.map(|word| if word == "san" { sr.as_str() } else { word }))?;
    let stat = smctl(&other).json(&["sr", "stat", &sr])?;
    assert_eq!(stat["warnings"].as_array().map_or(0, Vec::len), 0, "{stat}");
    let refused = told(&smctl(host).refused(&["vdi", "attach", &raw])?);
    assert_eq!(refused.2, format!("VDI {raw} is being written by host other"));
    assert_eq!(others(&other, &taken, 0xb1), "0");
    io(&other, &uri, false, 0xb2, 0, 1024);

    // And the other way round, with one that has lost its power; on a target without reservations, too.
    let weak = place.create("weak", &plain)?;
    let warned = smctl(host).json(&["sr", "stat", &weak])?["warnings"].to_string();
    let id = plain.scsi_id();
    let why = format!("the LUN {id} has no persistent reservations");
    assert!(warned.contains(&format!("writes that is shut out: {why}")), "{warned}");
    place.introduce(&other, &weak, &weak, &plain)?;
    other.kill();
    let fenced = smctl(host).json(&["host", "fence", "other", "--yes"])?;
    let of = |sr: &str| {
        let mut rows = fenced["srs"].as_array().unwrap().iter();
        rows.find(|row| row["sr"] == sr).unwrap_or_else(|| panic!("{fenced}"))["fenced"].clone()
    };
    assert_eq!(of(&sr)["enforced"], true);
    let row = of(&weak);
    let weakly = (row["enforced"].as_bool(), row["reason"].as_str());
    assert_eq!(weakly, (Some(false), Some(why.as_str())));
    let taken = device(host, &sr, &raw);
    assert_eq!(others(host, &taken, 0xb1), "0");
    let uri = attach(host, &image, &["--sr", &sr]);
    io(host, &uri, false, 0xb2, 0, 1024);
    Ok(())
}
