//! What is asked of a driver, and the UUIDs in it.

use plugin_sdk::model::uuid::Uuid;
use plugin_sdk::prelude::*;

/// Bytes of a mebibyte.
pub const MIB: u64 = 1 << 20;

/// The SR.
pub const SR: SrUuid = SrUuid(Uuid::from_u128(0x5e5e_0001));

/// A VDI by its number.
pub const fn vdi(n: u32) -> VdiUuid {
    VdiUuid(Uuid::from_u128(0xabc0_0000 + n as u128))
}

/// Makes a disk with a description and a key.
pub fn create(n: u32, size: u64) -> VdiCreate {
    VdiCreate {
        uuid: vdi(n),
        name: format!("disk {n}"),
        description: "for a test".into(),
        virtual_size: Bytes(size),
        format: None,
        vdi_type: VdiType::default(),
        sharable: false,
        keys: [("owner".to_owned(), "me".to_owned())].into(),
        incomplete: false,
    }
}

/// Takes a snapshot of a disk, or of several at one instant: pairs of disk and snapshot.
pub fn snapshots(pairs: &[(u32, u32)]) -> VdiSnapshot {
    let spec = |(of, n): &(u32, u32)| SnapshotSpec {
        vdi: vdi(*of),
        uuid: vdi(*n),
        name: format!("snapshot {n}"),
        description: String::new(),
    };
    VdiSnapshot { snapshots: pairs.iter().map(spec).collect(), time: 1_700_000_000 }
}

/// Takes a snapshot of a disk.
pub fn snapshot(of: u32, n: u32) -> VdiSnapshot {
    snapshots(&[(of, n)])
}

/// Clones a disk or snapshot.
pub fn clone(of: u32, n: u32) -> VdiClone {
    let name = format!("clone {n}");
    VdiClone { vdi: vdi(of), uuid: vdi(n), name, description: String::new() }
}

/// Gives a disk another name, and takes its key `owner`.
pub fn rename(n: u32, name: &str) -> VdiUpdate {
    VdiUpdate {
        vdi: vdi(n),
        name: Some(name.into()),
        description: None,
        vdi_type: None,
        read_only: None,
        keys: [("owner".to_owned(), None)].into(),
        incomplete: None,
    }
}

/// Makes a disk larger.
pub fn resize(n: u32, size: u64) -> VdiResize {
    VdiResize { vdi: vdi(n), virtual_size: Bytes(size) }
}

/// Puts a disk back.
pub fn revert(n: u32, snapshot: u32) -> VdiRevert {
    VdiRevert { vdi: vdi(n), snapshot: vdi(snapshot) }
}

/// Attaches a disk, or a snapshot for reading.
pub fn attach(n: u32, mode: AttachMode) -> VdiAttach {
    VdiAttach { vdi: vdi(n), mode }
}

/// Detaches it.
pub fn detach(n: u32) -> VdiDetach {
    VdiDetach { vdi: vdi(n) }
}

/// Removes it.
pub fn destroy(n: u32) -> VdiDestroy {
    VdiDestroy { vdi: vdi(n) }
}
