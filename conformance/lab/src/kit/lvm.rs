//! LVM in a guest.

use crate::error::Result;
use crate::guest::Guest;
use crate::wire::Step;

/// Devices of user-mode Linux are unknown to LVM. Without udev it makes its nodes itself, and is
/// several times faster: each volume is half a dozen events whose rules start programs.
pub const WITHOUT_UDEV: &str = "\
devices { types=[\"ubd\",16] scan_lvs=0 obtain_device_list_from_udev=0 \
external_device_info_source=\"none\" multipath_component_detection=0 md_component_detection=0 \
use_devicesfile=0 }
activation { monitoring=0 udev_sync=0 udev_rules=0 verify_udev_operations=0 }
backup { backup=0 archive=0 }
global { use_lvmpolld=0 }
";

const WITH_UDEV: &str = "\
devices { types=[\"ubd\",16] scan_lvs=0 md_component_detection=0 use_devicesfile=0 }
activation { monitoring=0 }
backup { backup=0 archive=0 }
global { use_lvmpolld=0 }
";

/// Lets LVM work in a guest without a udev daemon.
pub fn prepare(guest: &Guest) -> Result<()> {
    configure(guest, WITHOUT_UDEV)
}

/// Lets LVM work in a guest where [`super::udev::start`] was called, which multipath needs.
pub fn prepare_with_udev(guest: &Guest) -> Result<()> {
    configure(guest, WITH_UDEV)
}

fn configure(guest: &Guest, text: &str) -> Result<()> {
    let mut steps: Vec<Step> =
        ["dm-mod", "dm-thin-pool", "dm-snapshot"].map(|name| Step::Module(name.into())).into();
    steps.push(Step::Directory("/etc/lvm".into()));
    steps.push(Step::Write("/etc/lvm/lvmlocal.conf".into(), text.into()));
    guest.steps(steps)
}
