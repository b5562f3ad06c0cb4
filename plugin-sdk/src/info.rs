//! Descriptions of VDIs that every driver has to give.

use sm_model::access::ImageFormat;
use sm_model::vdi::{Health, Qos, VdiCreate, VdiInfo, VdiType};
use sm_model::{Bytes, VdiUuid};

/// The description of a VDI that was just made as asked. The driver corrects what it rounded
/// (`virtual_size`) and says what is taken (`physical_utilisation`, zero here).
pub fn new_vdi(request: VdiCreate, format: ImageFormat) -> VdiInfo {
    VdiInfo {
        uuid: request.uuid,
        name: request.name,
        description: request.description,
        virtual_size: request.virtual_size,
        physical_utilisation: Bytes(0),
        exclusive: None,
        reclaimable: None,
        format,
        vdi_type: request.vdi_type,
        read_only: false,
        sharable: request.sharable,
        is_a_snapshot: false,
        cbt_enabled: false,
        snapshot_of: None,
        snapshot_time: None,
        qos: Qos::default(),
        keys: request.keys,
        incomplete: request.incomplete,
        health: Health::Ok,
    }
}

/// The description of a VDI of which nothing can be read but that it is there. A scan lists it
/// like this, because a toolstack destroys its record of a disk that a scan did not return.
pub fn quarantined_vdi(uuid: VdiUuid, format: ImageFormat, reason: impl Into<String>) -> VdiInfo {
    let request = VdiCreate {
        uuid,
        name: String::new(),
        description: String::new(),
        virtual_size: Bytes(0),
        format: None,
        vdi_type: VdiType::default(),
        sharable: false,
        keys: std::collections::BTreeMap::new(),
        incomplete: false,
    };
    let health = Health::Quarantined { reason: reason.into() };
    VdiInfo { health, ..new_vdi(request, format) }
}
