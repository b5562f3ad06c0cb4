//! LVM in a guest.

use crate::error::Result;
use crate::guest::Guest;
use crate::wire::Step;

/// The files that let LVM work without udev: for tests that are in a guest themselves.
///
/// Devices of user-mode Linux are unknown to LVM. Without udev it makes its nodes itself, and is
/// several times faster: each volume is half a dozen events whose rules start programs.
///
/// What a process costs in a guest is mostly the pages that it touches, and two things halve
/// these: no memory is locked, which a guest without swap space does not need, and `lvm.conf` is
/// empty. As it is packaged it is 110 kB of comments, which each command reads three times.
pub const FILES: [(&str, &str); 2] = [
    ("/etc/lvm/lvm.conf", ""),
    (
        LOCAL,
        "\
devices { types=[\"ubd\",16] scan_lvs=0 obtain_device_list_from_udev=0 \
external_device_info_source=\"none\" multipath_component_detection=0 md_component_detection=0 \
use_devicesfile=0 }
activation { monitoring=0 udev_sync=0 udev_rules=0 verify_udev_operations=0 \
reserved_memory=0 reserved_stack=0 mlock_filter=[\"/\",\"[\"] }
backup { backup=0 archive=0 }
global { use_lvmpolld=0 }
",
    ),
];

const LOCAL: &str = "/etc/lvm/lvmlocal.conf";

const WITH_UDEV: &str = "\
devices { types=[\"ubd\",16] scan_lvs=0 md_component_detection=0 use_devicesfile=0 }
activation { monitoring=0 reserved_memory=0 reserved_stack=0 mlock_filter=[\"/\",\"[\"] }
backup { backup=0 archive=0 }
global { use_lvmpolld=0 }
";

/// Lets LVM work in a guest without a udev daemon.
pub fn prepare(guest: &Guest) -> Result<()> {
    configure(guest, FILES)
}

/// Lets LVM work in a guest where [`super::udev::start`] was called, which multipath needs.
pub fn prepare_with_udev(guest: &Guest) -> Result<()> {
    let [main, _] = FILES;
    configure(guest, [main, (LOCAL, WITH_UDEV)])
}

fn configure(guest: &Guest, files: [(&str, &str); 2]) -> Result<()> {
    let mut steps: Vec<Step> =
        ["dm-mod", "dm-thin-pool", "dm-snapshot"].map(|name| Step::Module(name.into())).into();
    steps.push(Step::Directory("/etc/lvm".into()));
    steps.extend(files.map(|(file, text)| Step::Write(file.into(), text.into())));
    guest.steps(steps)
}
