//! The udev daemon, with the rules of storage only.

use crate::error::Result;
use crate::guest::Guest;
use crate::wire::Step;

/// Without the rules that activate volume groups: a driver does that, never the system.
const RULES: &[&str] = &[
    "50-udev-default.rules",
    "55-dm.rules",
    "55-scsi-sg3_id.rules",
    "56-dm-mpath.rules",
    "56-dm-parts.rules",
    "56-lvm.rules",
    "58-scsi-sg3_symlink.rules",
    "60-block.rules",
    "60-kpartx.rules",
    "60-multipath.rules",
    "60-persistent-storage.rules",
    "60-persistent-storage-dm.rules",
    "68-del-part-nodes.rules",
    "95-dm-notify.rules",
];
const FOLDER: &str = "/usr/lib/udev/rules.d";
const CHOSEN: &str = "/run/lab-rules";

/// Starts it. Multipath needs it; all else is faster without.
pub fn start(guest: &Guest) -> Result<()> {
    guest.steps(vec![Step::Directory(CHOSEN.into())])?;
    let there = guest.check(["ls", FOLDER])?;
    let rules = RULES.iter().filter(|rule| there.lines().any(|file| file == **rule));
    let mut copy = vec!["cp".to_owned()];
    copy.extend(rules.map(|rule| format!("{FOLDER}/{rule}")));
    copy.push(CHOSEN.to_owned());
    guest.check(copy)?;
    guest.steps(vec![Step::Mount {
        source: CHOSEN.into(),
        target: FOLDER.into(),
        kind: "bind".into(),
        options: String::new(),
    }])?;
    guest.check(["/usr/lib/systemd/systemd-udevd", "--daemon"])?;
    guest.check(["udevadm", "trigger", "--subsystem-match=block", "--sysname-match=ubd*"])?;
    settle(guest)
}

/// Waits until all that the kernel has told is dealt with.
pub fn settle(guest: &Guest) -> Result<()> {
    guest.check(["udevadm", "settle", "--timeout=30"]).map(drop)
}
