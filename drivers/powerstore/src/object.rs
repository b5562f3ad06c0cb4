//! What a volume, clone or snapshot of the array is to the driver.

use array_kit::prelude::*;
use array_kit::text::decode;

use crate::array::{NAMES, PowerStore};
use crate::qos::limits;

/// What is asked for of a volume; the second with its limits, which releases before 4.0 do not have.
pub(crate) const SELECT: [&str; 2] = [
    "id,name,description,type,state,size,logical_used,protection_data",
    "id,name,description,type,state,size,logical_used,protection_data,\
     qos_performance_policy(io_limit_rule(type,max_iops,max_bw))",
];

/// Whether it is a snapshot, or a clone that has the name of one.
pub(crate) fn is_snapshot(object: &Value) -> bool {
    match object.text("type") {
        "Snapshot" => true,
        "Clone" => NAMES.is(object.text("name"), Role::Snapshot),
        _ => false,
    }
}

impl PowerStore {
    /// As the kit has it. `of` is the volume that it is a snapshot of, where that is known; else its
    /// text says the VDI. The array tells an id, and a listing would need a request for each.
    pub(crate) fn volume(&self, object: &Value, of: Option<&Volume>) -> Outcome<Volume> {
        let name = object.need("name")?;
        let metadata = decode(NAMES, name, object.text("description"));
        let source = object.text("protection_data.source_id");
        let is_snapshot = is_snapshot(object);
        let snapshot_of = || {
            let document = metadata.as_ref().and_then(|text| Document::read(text).ok());
            let vdi = document.and_then(|document| document.snapshot_of);
            match (of.filter(|of| source == of.id), vdi.zip(self.codec)) {
                (Some(of), _) => of.name.clone(),
                (None, Some((vdi, codec))) => codec.name(Role::Disk, vdi.0),
                (None, None) => source.to_owned(),
            }
        };
        let snapshot_of = is_snapshot.then(snapshot_of);
        let is_clone = object.text("type") == "Clone" && !source.is_empty();
        let offline = object.text("state") == "Offline";
        Ok(Volume {
            id: object.need("id")?.to_owned(),
            name: name.to_owned(),
            size: Bytes(object.count("size")?),
            used: object.number("logical_used").map(Bytes),
            snapshot_of,
            origin: (is_snapshot && is_clone).then(|| source.to_owned()),
            metadata,
            qos: limits(object),
            trouble: offline.then(|| "the array has taken its volume offline".to_owned()),
            ..Volume::default()
        })
    }
}
