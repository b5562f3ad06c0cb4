//! How an SR's group and the volumes of its VDIs are called.

use plugin_sdk::model::{SrUuid, VdiUuid};

/// A way to call them. The name of a group says which one it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Names {
    /// `sm-<sr>`, `vdi-<vdi>`.
    #[default]
    Own,
    /// As XenServer and XCP-ng do: `VG_XenStorage-<sr>`, `LV-<vdi>` for a disk of format raw.
    XenServer,
}

const XEN_GROUP: &str = "VG_XenStorage-";

impl Names {
    /// Those of a group, by its name.
    pub(crate) fn of(group: &str) -> Self {
        if group.starts_with(XEN_GROUP) { Self::XenServer } else { Self::Own }
    }

    fn prefixes(self) -> (&'static str, &'static str) {
        match self {
            Self::Own => ("sm-", "vdi-"),
            Self::XenServer => (XEN_GROUP, "LV-"),
        }
    }

    /// The group that is an SR.
    pub fn group(self, sr: SrUuid) -> String {
        format!("{}{sr}", self.prefixes().0)
    }

    /// The SR that a group is.
    pub fn sr_of(group: &str) -> Option<SrUuid> {
        group.strip_prefix(Self::of(group).prefixes().0)?.parse().ok()
    }

    /// The volume that holds a VDI.
    pub fn volume(self, vdi: VdiUuid) -> String {
        format!("{}{vdi}", self.prefixes().1)
    }

    /// The VDI that a volume is.
    pub fn vdi_of(self, volume: &str) -> Option<VdiUuid> {
        volume.strip_prefix(self.prefixes().1)?.parse().ok()
    }

    /// The volume that will take a VDI's place, see `vdis::revert`.
    pub(crate) fn revert(vdi: VdiUuid) -> String {
        format!("revert-{vdi}")
    }

    /// The VDI whose place a volume will take.
    pub(crate) fn reverted_of(volume: &str) -> Option<VdiUuid> {
        volume.strip_prefix("revert-")?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_tells_how_its_volumes_are_called() {
        let sr: SrUuid = "11111111-2222-4333-8444-555555555555".parse().unwrap();
        let vdi: VdiUuid = "22222222-2222-4333-8444-555555555555".parse().unwrap();
        for (names, group, volume) in [
            (
                Names::Own,
                "sm-11111111-2222-4333-8444-555555555555",
                "vdi-22222222-2222-4333-8444-555555555555",
            ),
            (
                Names::XenServer,
                "VG_XenStorage-11111111-2222-4333-8444-555555555555",
                "LV-22222222-2222-4333-8444-555555555555",
            ),
        ] {
            assert_eq!((names.group(sr).as_str(), names.volume(vdi).as_str()), (group, volume));
            assert_eq!((Names::of(group), Names::sr_of(group)), (names, Some(sr)));
            assert_eq!(names.vdi_of(volume), Some(vdi));
        }
        assert_eq!(Names::sr_of("sm-data"), None);
        assert_eq!(Names::XenServer.vdi_of("VHD-22222222-2222-4333-8444-555555555555"), None);
        assert_eq!(Names::Own.vdi_of("LV-22222222-2222-4333-8444-555555555555"), None);
        assert_eq!(Names::reverted_of(&Names::revert(vdi)), Some(vdi));
    }
}
