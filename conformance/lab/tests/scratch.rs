//! Scratch.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails so")]
use std::time::Duration;
use lab::kit::iscsi::{Initiator, Lun, Target};
use lab::kit::{multipath, udev};
use lab::{Guest, Lab, Result};
const IQN: &str = "iqn.2026-01.org.example.lab:array";

fn show(host: &Guest, words: &[&str]) {
    let out = host.run(words.iter().copied()).unwrap();
    println!("$ {}\n[{}]\n{}\n--err--\n{}\n", words.join(" "), out.status, out.text(), out.errors());
}

#[test]
fn scratch() -> Result<()> {
    let lab = Lab::new()?;
    let (one, two) = (lab.network()?, lab.network()?);
    let [nas, host] =
        lab.boot(["nas", "host"].map(|name| lab.guest(name).network(&one).network(&two)))?;
    let portals = [nas.address(&one)?, nas.address(&two)?];
    let mut target = Target::start(&nas, IQN, &portals)?;
    for number in [0, 3] {
        target.add(&Lun { number, on: format!("/srv/l{number}"), bytes: 64 << 20, serial: 0xbeef + number })?;
    }
    target.allow(&Initiator::name_of(&host))?;
    target.demand_chap(&Initiator::name_of(&host), "user", "a good password")?;
    udev::start(&host)?;
    show(&host, &["iscsiadm", "-m", "session"]);
    let _initiator = Initiator::start(&host)?;
    let sh = |line: &str| show(&host, &["sh", "-c", line]);
    let p = format!("{}:3260", portals[0]);
    sh("iscsiadm -m session");
    sh(&format!("iscsiadm -m discovery -t st -p {p} -o nonpersistent; echo rc $?; find /etc/iscsi /var/lib/iscsi -type f"));
    sh(&format!("iscsiadm -m discovery -t st -p {}:3333 -o nonpersistent; echo rc $?", portals[0]));
    sh(&format!("iscsiadm -m node -T {IQN} -p {p} -o new; echo rc $?; find /etc/iscsi /var/lib/iscsi -type f -ls; cat /etc/iscsi/nodes/*/*/*"));
    sh(&format!("iscsiadm -m node -T {IQN} -p {p} --login; echo rc $?"));
    sh(&format!("iscsiadm -m node -T iqn.2026-01.x:unknown -p {p} -o new; iscsiadm -m node -T iqn.2026-01.x:unknown -p {p} --login; echo rc $?"));
    sh(&format!("iscsiadm -m node -T iqn.none -p {p} --login; echo rc $?"));
    sh(&format!("iscsiadm -m discoverydb -t st -p {p} -o new; echo rc $?; find /etc/iscsi -type f; cat /etc/iscsi/send_targets/*/st_config; iscsiadm -m discoverydb -t st -p {p} --discover -o nonpersistent; echo rc $?;  find /etc/iscsi -type f; iscsiadm -m discoverydb -t st -p {p} -o delete; echo rc $?; find /etc/iscsi -type f"));
    for portal in portals {
        host.check(["sh", "-c", &format!("iscsiadm -m node -T {IQN} -p {portal}:3260 -o new; cd /etc/iscsi/nodes/{IQN}/{portal},3260* 2>/dev/null || cd /etc/iscsi/nodes/{IQN}; ls -lR .; ")])?;
        for (key, value) in [("node.session.auth.authmethod", "CHAP"), ("node.session.auth.username", "user"), ("node.session.auth.password", "a good password")] {
            host.check(["iscsiadm", "-m", "node", "-T", IQN, "-p", &format!("{portal}:3260"), "-o", "update", "-n", key, "-v", value])?;
        }
        sh(&format!("cat /etc/iscsi/nodes/{IQN}/{portal}*/default | head -60 || cat /etc/iscsi/nodes/{IQN}/{portal}*"));
        sh(&format!("iscsiadm -m node -T {IQN} -p {portal}:3260 --login; echo rc $?; cat /sys/block/sd*/device/wwid; lsblk"));
        sh(&format!("iscsiadm -m node -T {IQN} -p {portal}:3260 --login; echo rc $?"));
    }
    sh("iscsiadm -m session; iscsiadm -m session -P 3");
    sh("for f in /sys/class/iscsi_session/*/*; do [ -f $f ] && echo $f: $(cat $f 2>&1 | head -c 100); done; for f in /sys/class/iscsi_connection/*/*; do [ -f $f ] && echo $f: $(cat $f 2>&1 | head -c 100); done");
    sh("ls -l /sys/class/iscsi_session/ /sys/block/sd*; ls /sys/block/sda/device/ ; for d in /sys/block/sd*; do echo $d; cat $d/device/vendor $d/device/model $d/device/state $d/size $d/device/wwid; od -An -tx1 $d/device/vpd_pg83; od -An -tx1 -c $d/device/vpd_pg80; done; ls -d /sys/class/iscsi_session/session1/device/target*/*/block/*");
    sh("/lib/udev/scsi_id -g -d /dev/sda; /lib/udev/scsi_id -g -d /dev/sdb");
    sh("multipathd show maps json; echo rc $?; multipath -ll");
    multipath::start(&host, "queue")?;
    multipath::wait_for(&host, 4, 0, Duration::from_secs(30))?;
    udev::settle(&host)?;
    sh("multipathd show maps json; echo rc $?; multipathd show maps topology; cat /etc/multipath/wwids; ls -l /dev/mapper; for d in /sys/block/dm-*; do echo $d $(cat $d/dm/uuid $d/dm/name $d/size); ls $d/slaves; done");
    sh("multipathd show paths json | head -40");
    sh("cat /proc/net/unix | grep -i 'multipath\\|iscsi'");
    one.unplug(&host);
    multipath::wait_for(&host, 2, 2, Duration::from_secs(40))?;
    sh("multipathd show maps json; echo rc $?; cat /sys/block/sd*/device/state");
    one.plug(&host);
    multipath::wait_for(&host, 4, 0, Duration::from_secs(40))?;
    sh("multipathd remove map 36001405000beef00000000000000000; echo rc $?; multipathd resize map nothing; echo rc $?; multipathd del map nothing; multipath -f nothing; echo rc $?; multipathd remove map nothing; echo rc $?; multipathd list map nothing json; echo rc $?");
    let id = Lun { number: 0, on: String::new(), bytes: 0, serial: 0xbeef }.scsi_id();
    nas.check(["truncate", "--size", "134217728", "/srv/l0"])?;
    nas.run(["sh", "-c", "ls -l /sys/kernel/config/target/core/*/*; cat /sys/kernel/config/target/core/*/*/info; cat /sys/kernel/config/target/core/fileio_0/lun0/control"])?;
    sh(&format!("for d in /sys/block/sd*; do echo 1 > $d/device/rescan; cat $d/size; done; multipathd resize map {id}; echo rc $?; blockdev --getsize64 /dev/mapper/{id}"));
    sh(&format!("multipathd remove map {id}; echo rc $?; ls -l /dev/mapper; multipathd add map {id}; echo rc $?; ls /dev/mapper; multipath -f {id}; echo rc $?; ls /dev/mapper"));
    sh(&format!("iscsiadm -m node -T {IQN} -p {p} --logout; echo rc $?; iscsiadm -m node -T {IQN} -p {p} --logout; echo rc $?;  iscsiadm -m node -T {IQN} -o delete; echo rc $?; find /etc/iscsi -type f; lsblk; multipathd show maps json"));
    Ok(())
}
