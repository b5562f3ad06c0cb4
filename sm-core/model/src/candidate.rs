//! What a probe finds of kinds that toolstacks know by XenServer's names.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::size::Bytes;

/// What an item of a probe is, where it is of a kind that has a legacy form.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Candidate {
    /// An iSCSI target at one of its portals; or, with the name `*`, all of them.
    IscsiTarget {
        /// Address of the portal.
        address: String,
        /// Its port.
        port: u16,
        /// Name of the target.
        iqn: String,
    },
    /// A logical unit of a target.
    Lun {
        /// Who made it.
        vendor: String,
        /// Its serial number.
        serial: String,
        /// Its number at the target.
        lun: u64,
        /// Its size.
        size: Bytes,
        /// The identifier that all hosts know it by.
        scsi_id: String,
    },
    /// A folder that an NFS server exports.
    NfsExport {
        /// The server.
        target: String,
        /// The folder.
        path: String,
        /// Who may mount it, in the server's words.
        access: String,
    },
    /// The volume group of an SR.
    VolumeGroup {
        /// Its devices.
        devices: Vec<String>,
        /// Its size.
        size: Bytes,
    },
}
