//! iSCSI across guests: a target, two paths, one of them cut under I/O.

use std::time::Duration;

use lab::kit::iscsi::{Initiator, Lun, Target};
use lab::kit::{lvm, multipath, udev};
use lab::{Lab, Result};

const IQN: &str = "iqn.2026-01.org.example.lab:array";

#[test]
fn a_host_logs_in_with_its_password_only() -> Result<()> {
    let lab = Lab::new()?;
    let network = lab.network()?;
    let [nas, host] = lab.boot(["nas", "host"].map(|name| lab.guest(name).network(&network)))?;
    let portal = nas.address(&network)?;
    let mut target = Target::start(&nas, IQN, &[portal])?;
    target.add(&Lun { number: 5, on: "/srv/five".into(), bytes: 64 << 20, serial: 0xabcd })?;
    target.allow(&Initiator::name_of(&host))?;
    target.demand_chap(&Initiator::name_of(&host), "user", "a good password")?;
    let initiator = Initiator::start(&host)?;
    let found = initiator.discover(portal)?;
    assert_eq!(found, [(format!("{portal}:3260,1"), IQN.to_owned())]);

    let refused = initiator.login(IQN).unwrap_err().to_string();
    assert!(refused.contains("authorization failure"), "{refused}");
    for (key, value) in [
        ("node.session.auth.authmethod", "CHAP"),
        ("node.session.auth.username", "user"),
        ("node.session.auth.password", "a good password"),
    ] {
        host.check(["iscsiadm", "-m", "node", "-T", IQN, "-o", "update", "-n", key, "-v", value])?;
    }
    initiator.login(IQN)?;
    host.wait_for("the disk", Duration::from_secs(20), |host| {
        let output = host.run(["blockdev", "--getsize64", "/dev/sda"])?;
        Ok(if output.text() == "67108864" { Ok(()) } else { Err(output.errors()) })
    })?;
    assert!(host.check(["ls", "/sys/class/scsi_device"])?.ends_with(":5"));
    host.check(["dd", "if=/dev/urandom", "of=/dev/sda", "bs=1M", "count=4", "oflag=direct"])?;

    // Out of service: errors after the time that the initiator waits for it to come back.
    let read = ["dd", "if=/dev/sda", "of=/dev/null", "bs=4096", "count=1", "iflag=direct"];
    target.enable(false)?;
    let output = host.run(read)?;
    assert!(output.errors().contains("Input/output error"), "{output:?}");
    target.enable(true)?;
    host.wait_for("the target", Duration::from_secs(40), |host| {
        let output = host.run(read)?;
        Ok(if output.status == 0 { Ok(()) } else { Err(output.errors()) })
    })?;
    initiator.logout(IQN)?;
    assert_eq!(host.run(["test", "-e", "/dev/sda"])?.status, 1);
    Ok(())
}

#[test]
fn a_path_is_cut_under_io_and_no_write_fails() -> Result<()> {
    let lab = Lab::new()?;
    let (one, two) = (lab.network()?, lab.network()?);
    let [nas, host] =
        lab.boot(["nas", "host"].map(|name| lab.guest(name).network(&one).network(&two)))?;
    let portals = [nas.address(&one)?, nas.address(&two)?];
    let mut target = Target::start(&nas, IQN, &portals)?;
    let lun = Lun { number: 0, on: "/srv/zero".into(), bytes: 64 << 20, serial: 0xbeef };
    target.add(&lun)?;
    target.allow(&Initiator::name_of(&host))?;
    udev::start(&host)?;
    let initiator = Initiator::start(&host)?;
    initiator.discover(portals[0])?;
    initiator.login(IQN)?;
    multipath::start(&host)?;
    multipath::wait_for(&host, 2, 0, Duration::from_secs(30))?;
    udev::settle(&host)?;
    let device = format!("/dev/mapper/{}", lun.scsi_id());
    assert_eq!(host.check(["blockdev", "--getsize64", &device])?, "67108864");

    // Writes until it is told to stop; each line is a write that worked.
    let script = "n=0; while [ ! -e /run/stop ]; do \
         dd if=/dev/urandom of=$0 bs=64k count=1 seek=$((n % 100)) oflag=direct conv=notrunc \
         status=none || exit 1; n=$((n + 1)); echo $n; done";
    let writer = host.command(["sh", "-c", script, &device]).start()?;
    let written = || writer.so_far().lines().count();
    let goes_on = |what: &str| {
        let before = written();
        host.wait_for(what, Duration::from_secs(40), |_| {
            let fine = written() > before + 3 && writer.ended().is_none();
            Ok(if fine { Ok(()) } else { Err(format!("{before}, then {}", written())) })
        })
    };
    goes_on("writes over two paths")?;
    one.unplug(&host);
    multipath::wait_for(&host, 1, 1, Duration::from_secs(40))?;
    goes_on("writes over one path")?;
    one.plug(&host);
    multipath::wait_for(&host, 2, 0, Duration::from_secs(40))?;
    goes_on("writes over two paths again")?;
    host.write("/run/stop", "")?;
    let output = writer.wait(Duration::from_secs(30))?;
    assert_eq!((output.status, output.errors().as_str()), (0, ""));

    // All of it is where it was written, whatever way it took.
    host.check(["blockdev", "--flushbufs", &device])?;
    let here = host.check(["sha256sum", &device])?;
    nas.check(["sync"])?;
    let there = nas.check(["sha256sum", "/srv/zero"])?;
    assert_eq!(here.split(' ').next(), there.split(' ').next());

    // A volume group takes the disk, not one of its paths.
    lvm::prepare_with_udev(&host)?;
    host.check(["pvcreate", "-q", "-y", "-ff", &device])?;
    host.check(["vgcreate", "-q", "vg", &device])?;
    host.check(["lvcreate", "-q", "-y", "-L", "8M", "-n", "disk", "vg"])?;
    assert_eq!(host.check(["pvs", "--noheadings", "-o", "pv_name"])?, device);
    assert_eq!(host.check(["blockdev", "--getsize64", "/dev/vg/disk"])?, "8388608");
    Ok(())
}
