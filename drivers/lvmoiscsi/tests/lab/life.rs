//! Probe in three steps, and the whole life of SRs and disks.

use lab::kit::iscsi::Lun;
use lab::{Lab, Result};

use crate::array::{IQN, MIB, Place, lun, told};

#[test]
fn a_probe_leads_from_an_address_to_an_sr() -> Result<()> {
    let lab = Lab::new()?;
    let place = Place::new(&lab, &[(0, 64), (5, 256)])?;
    let (smctl, host) = (place.smctl(), &place.host);
    let [one, two] = place.portals;
    place.target.demand_chap(&place.initiator, "user", "a good password")?;
    place.target.answer_chap(&place.initiator, "array", "its own password")?;
    let target = place.target_key();
    let iqn = format!("targetIQN={IQN}");
    let probe = |more: &[&str]| {
        let words = [&["sr", "probe", "--driver", "lvmoiscsi", "--legacy-xml"], more].concat();
        smctl.check(&words)
    };
    let fails = |more: &[&str]| -> Result<_> {
        let words = [&["sr", "probe", "--driver", "lvmoiscsi"], more].concat();
        Ok(told(&smctl.refused(&words)?))
    };
    host.write("/run/right", "a good password\n")?;
    host.write("/run/wrong", "a bad password\n")?;
    host.write("/run/its", "its own password\n")?;
    let login = ["chapuser=user", "chappassword=@/run/right"];
    let mutual = ["incoming_chapuser=array", "incoming_chappassword=@/run/its"];

    // Each step as XenServer says it.
    let xml = format!(
        "<?xml version=\"1.0\" ?>\n<iscsi-target-iqns>\n\t<TGT>\n\t\t<Index>0</Index>\n\
         \t\t<IPAddress>{one}</IPAddress>\n\t\t<TargetIQN>{IQN}</TargetIQN>\n\t</TGT>\n\
         \t<TGT>\n\t\t<Index>1</Index>\n\t\t<IPAddress>{one},{two}</IPAddress>\n\
         \t\t<TargetIQN>*</TargetIQN>\n\t</TGT>\n</iscsi-target-iqns>"
    );
    assert_eq!(probe(&[&target])?, xml);
    let unit = |number: u32, mebibytes: u64| {
        let Lun { serial, bytes, .. } = lun(number, mebibytes);
        format!(
            "\t<LUN>\n\t\t<vendor>LIO-ORG</vendor>\n\t\t<serial>{serial:08x}{:024x}</serial>\n\
             \t\t<LUNid>{number}</LUNid>\n\t\t<size>{bytes}</size>\n\t\t<SCSIid>{}</SCSIid>\n\
             \t</LUN>\n",
            0,
            lun(number, mebibytes).scsi_id()
        )
    };
    let xml = format!(
        "<?xml version=\"1.0\" ?>\n<iscsi-target>\n{}{}</iscsi-target>",
        unit(0, 64),
        unit(5, 256)
    );
    assert_eq!(probe(&[&[target.as_str(), &iqn][..], &login, &mutual].concat())?, xml);
    let id = format!("SCSIid={}", lun(5, 256).scsi_id());
    let all = [&[target.as_str(), &iqn, &id][..], &login, &mutual].concat();
    assert_eq!(probe(&all)?, "<?xml version=\"1.0\" ?>\n<SRlist/>");
    // What was logged in to for it was logged out of; no password is left, and no device.
    assert_eq!(place.sessions(), 0);
    assert_eq!(host.run(["ls", "/etc/iscsi/nodes"])?.text(), "");
    assert_eq!(host.check(["sh", "-c", "ls /sys/block | grep -c '^sd\\|^dm-' || true"])?, "0");

    // Everything that can be wrong, by name.
    let wrong = ["chapuser=user", "chappassword=@/run/wrong"];
    let at = format!("{IQN} at {one}:3260");
    let refusal = format!("{at}: the target does not accept name and password");
    assert_eq!(
        fails(&[&[target.as_str(), &iqn][..], &wrong].concat())?,
        ("auth".into(), 68, refusal)
    );
    assert_eq!(place.sessions(), 0);
    assert_eq!(host.run(["ls", "/etc/iscsi/nodes"])?.text(), "");
    let unknown = "iqn.2026-01.org.example.lab:other";
    let said = format!("{one}:3260, {two}:3260 does not have a target {unknown}");
    assert_eq!(fails(&[&target, &format!("targetIQN={unknown}")])?, ("config".into(), 96, said));
    let said = "the target does not show the LUN 3600140500000 to this host";
    let absent = [&[target.as_str(), &iqn, "SCSIid=3600140500000"][..], &login].concat();
    assert_eq!(fails(&absent)?, ("config".into(), 107, said.into()));
    let said = format!("the portal {one}:3333 refuses the connection");
    assert_eq!(fails(&[&target, "port=3333"])?, ("unreachable".into(), 141, said));
    assert_eq!(fails(&[])?, ("config".into(), 95, "the device configuration lacks target".into()));
    assert_eq!(place.sessions(), 0);

    // An SR is found by the last step.
    let create = [&["sr", "create", "--driver", "lvmoiscsi", "--name", "san"][..], &all].concat();
    let sr = smctl.check(&create)?;
    let found = probe(&all)?;
    assert!(
        found.contains(&format!("\t\t<UUID>{sr}</UUID>\n\t\t<Devlist>/dev/mapper/")),
        "{found}"
    );
    // Passwords are nowhere to be seen.
    for words in [&["sr", "show", "san"][..], &["sr", "list", "--json"]] {
        assert!(!smctl.check(words)?.contains("good"), "{words:?}");
    }
    assert_eq!(host.check(["sh", "-c", "stat -c %a /etc/iscsi/nodes/*/* | sort -u"])?, "600");
    smctl.check(&["sr", "destroy", "san"])?;
    assert_eq!(place.sessions(), 0);
    Ok(())
}

#[test]
fn srs_and_disks_live_on_two_paths_and_the_last_sr_logs_out() -> Result<()> {
    let lab = Lab::new()?;
    let mut place = Place::new(&lab, &[(7, 128)])?;
    // A device, so that it can grow.
    place.nas.load(&["loop"])?;
    place.nas.check(["truncate", "--size", &(128 * MIB).to_string(), "/srv/grows"])?;
    place.nas.check(["losetup", "/dev/loop0", "/srv/grows"])?;
    let large = Lun { on: "/dev/loop0".into(), ..lun(5, 128) };
    place.target.add(&large)?;
    place.target.show(&place.initiator, 5)?;
    let (smctl, host) = (place.smctl(), &place.host);
    let sr = place.create("san", &large)?;
    let stat = smctl.json(&["sr", "stat", "san"])?;
    assert_eq!(stat["paths"], serde_json::json!({ "up": 2, "max": 2 }), "{stat}");
    assert_eq!(stat["health"]["state"], "ok", "{stat}");
    let before = stat["physical_size"].as_u64().unwrap();
    assert!(before < 128 * MIB && before > 64 * MIB, "{before}");

    // A raw disk: linear, zeroed, by XenServer's name.
    let raw = ["--size", "32MiB", "--format", "raw"];
    let vdi =
        smctl.check(&[&["vdi", "create", "--sr", "san", "--name", "disk"][..], &raw].concat())?;
    let unsupported = smctl.refused(&["vdi", "snapshot", "disk", "--name", "s"])?;
    assert_eq!(told(&unsupported).0, "unsupported", "{unsupported}");
    let attached = smctl.check(&["vdi", "attach", "disk"])?;
    let device = format!("/dev/VG_XenStorage-{sr}/LV-{vdi}");
    assert_eq!(attached, format!("block device {device}"));
    let write =
        ["dd", "if=/dev/urandom", &format!("of={device}"), "bs=1M", "count=32", "oflag=direct"];
    host.check(write)?;
    let sum = host.check(["sha256sum", &device])?;
    let busy = smctl.refused(&["sr", "detach", "san"])?;
    assert_eq!(told(&busy).0, "in_use", "{busy}");

    // The LUN grows, with the disk in use; so does the SR, and the disk when it is detached.
    place.nas.check(["truncate", "--size", &(256 * MIB).to_string(), "/srv/grows"])?;
    place.nas.check(["losetup", "--set-capacity", "/dev/loop0"])?;
    let scanned = smctl.json(&["sr", "scan", "san"])?;
    assert_eq!(
        scanned["recovered"]["completed"],
        serde_json::json!(["growth of the SR: its devices had become larger"])
    );
    let stat = smctl.json(&["sr", "stat", "san"])?;
    assert_eq!(stat["physical_size"].as_u64().unwrap(), before + 128 * MIB);
    let in_use = smctl.refused(&["vdi", "resize", "disk", "160MiB"])?;
    assert_eq!((told(&in_use).0.as_str(), told(&in_use).1), ("in_use", 24));
    smctl.check(&["vdi", "detach", "disk"])?;
    let too_large = smctl.refused(&["vdi", "resize", "disk", "1GiB"])?;
    assert_eq!((told(&too_large).0.as_str(), told(&too_large).1), ("no_space", 44));
    smctl.check(&["vdi", "resize", "disk", "160MiB"])?;
    smctl.check(&["vdi", "attach", "disk"])?;
    assert_eq!(host.check(["blockdev", "--getsize64", &device])?, (160 * MIB).to_string());
    host.check(["sh", "-c", &format!("! cmp -s -n {MIB} {device} /dev/zero")])?;
    let kept = format!("head -c {} {device} | sha256sum", 32 * MIB);
    let kept = host.check(["sh", "-c", &kept])?;
    assert_eq!(kept.split(' ').next(), sum.split(' ').next());
    smctl.check(&["vdi", "detach", "disk"])?;

    // A second SR on the same target: the first one leaves, and the sessions stay.
    place.create("other", &lun(7, 128))?;
    assert_eq!(place.sessions(), 2);
    smctl.check(&["sr", "detach", "san"])?;
    assert_eq!(place.sessions(), 2);
    let maps = host.check(["sh", "-c", "ls /dev/mapper"])?;
    assert!(!maps.contains(&large.scsi_id()) && maps.contains(&lun(7, 128).scsi_id()), "{maps}");
    smctl.check(&["sr", "detach", "other"])?;
    assert_eq!(place.sessions(), 0);
    assert_eq!(host.run(["ls", "/etc/iscsi/nodes"])?.text(), "");

    // Back again, with all that was there.
    smctl.check(&["sr", "attach", "san"])?;
    smctl.check(&["vdi", "attach", "--sr", "san", "disk", "--read-only"])?;
    let again = format!("head -c {} {device} | sha256sum", 32 * MIB);
    let again = host.check(["sh", "-c", &again])?;
    assert_eq!(again.split(' ').next(), sum.split(' ').next());
    smctl.check(&["vdi", "detach", "--sr", "san", "disk"])?;
    smctl.check(&["vdi", "destroy", "--sr", "san", "disk"])?;
    smctl.check(&["sr", "destroy", "san"])?;
    assert_eq!(place.sessions(), 0);
    Ok(())
}
