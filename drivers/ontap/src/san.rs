//! A LUN of this host: initiator group, map, target.
//!
//! Each host has a group of its own in each SR, which holds its initiator alone: made when the SR is
//! attached, and gone with it. All LUNs of the SVM are in one target; who sees which is the maps' matter.

use array_kit::prelude::*;

use crate::array::Ontap;
use crate::object::{scsi_id, uuid};

const IGROUPS: &str = "protocols/san/igroups";
const MAPS: &str = "protocols/san/lun-maps";
/// The port of iSCSI at all interfaces; the API does not tell it.
const PORT: u16 = 3260;

impl Ontap {
    /// How a host sees a LUN, by its map, if that tells the number.
    fn seen(volume: &Volume, map: Option<&Value>) -> Outcome<Option<Shown>> {
        let Some(scsi_id) = scsi_id(volume) else {
            return Err(Failure::new(Class::Garbled)
                .object(volume.name.clone())
                .fact("the array does not say the serial number of its LUN"));
        };
        let number = map.and_then(|map| map.number("logical_unit_number"));
        number.map(|number| Shown::at(number, scsi_id)).transpose()
    }

    /// The maps of a LUN.
    fn maps(operation: &'static str, volume: &Volume) -> Request {
        Request::get(operation, MAPS).query("lun.uuid", uuid(volume))
    }
}

impl HostEntries for Ontap {
    const ONE_ENTRY: bool = false;
    const SNAPSHOTS: bool = true;
    const ENTRY: &'static str = "initiator group";

    fn known(&self) -> &Known {
        &self.known
    }

    fn entry_name(&self, of: &Initiator) -> String {
        format!("sm-{}-{:08x}", self.sr.0.simple(), of.tag() >> 32)
    }

    async fn find_entry(&self, cx: &Cx, of: &Initiator) -> Outcome<Option<Entry>> {
        let request = Request::get("igroup_get", IGROUPS).query("name", &self.entry_name(of));
        let found = self.all(cx, request, "uuid,name,initiators.name").await?;
        let Some(found) = found.first() else { return Ok(None) };
        let (id, name) = (found.need("uuid")?.to_owned(), found.text("name").to_owned());
        let initiators = found.texts("initiators", "name");
        Ok(Some(Entry { id, name, initiators, in_group: false }))
    }

    async fn make_entry(&self, cx: &Cx, name: &str, to: &Initiator) -> Outcome<Option<String>> {
        let body = json!({
            "name": name, "protocol": "iscsi", "os_type": "linux",
            "initiators": [{ "name": to.iqn }], "svm": self.svm(),
        });
        let made = self.made(cx, Request::post("igroup_create", IGROUPS).json(&body)).await?;
        Ok(made.and_then(|made| made.need("uuid").map(str::to_owned).ok()))
    }

    async fn remove_entry(&self, cx: &Cx, of: &Initiator) -> Outcome<()> {
        // Asked for, since another one of this name may have been made meanwhile.
        let Some(found) = self.find_entry(cx, of).await? else { return Ok(()) };
        let request = Request::delete("igroup_delete", IGROUPS).segment(&found.id);
        self.api.just(cx, request).await
    }

    async fn portals(&self, cx: &Cx) -> Outcome<Vec<Portal>> {
        let request = Request::get("service", "protocols/san/iscsi/services");
        let services = self.all(cx, request, "enabled,target.name").await?;
        let request = Request::get("interfaces", "network/ip/interfaces");
        let request = request.query("services", "data_iscsi");
        let mut interfaces = self.all(cx, request, "ip.address,enabled").await?;
        interfaces.retain(|one| one.at("enabled") != &json!(false));
        let Some(service) = services.iter().find(|service| service.is("enabled")) else {
            return Err(Failure::new(Class::Unsupported)
                .fact(format!("the SVM {} serves no iSCSI", self.api.vendor().svm))
                .hint("start its iSCSI service, and give it an interface with data_iscsi"));
        };
        let iqn = service.need("target.name")?;
        let portal = |one: &Value| Ok(Target::at(one.need("ip.address")?, PORT, iqn).into());
        interfaces.iter().map(portal).collect()
    }

    async fn connect(&self, cx: &Cx, volume: &Volume, entry: &str) -> Outcome<Option<Shown>> {
        // Before the map is made: without the serial number nobody would find the LUN.
        Self::seen(volume, None)?;
        let body = json!({
            "lun": { "uuid": uuid(volume) }, "igroup": { "uuid": entry }, "svm": self.svm(),
        });
        let made = self.made(cx, Request::post("map", MAPS).json(&body)).await?;
        Self::seen(volume, made.as_ref())
    }

    async fn shown(&self, cx: &Cx, volume: &Volume, entry: &str) -> Outcome<Option<Shown>> {
        let request = Self::maps("map_get", volume).query("igroup.uuid", entry);
        let found = self.all(cx, request, "logical_unit_number").await?;
        Self::seen(volume, found.first())
    }

    async fn disconnect(&self, cx: &Cx, volume: &Volume, entry: &str) -> Outcome<()> {
        let request = Request::delete("unmap", MAPS).segment(uuid(volume)).segment(entry);
        self.api.just(cx, request).await
    }

    async fn reached_by(&self, cx: &Cx, volume: &Volume) -> Outcome<Vec<String>> {
        let request = Self::maps("maps", volume);
        let maps = self.all(cx, request, "igroup.name,igroup.initiators").await?;
        let mut names = Vec::new();
        for map in maps {
            let initiators = map.texts("igroup.initiators", "");
            if initiators.is_empty() {
                names.push(format!("initiator group {}", map.text("igroup.name")));
            }
            names.extend(initiators);
        }
        Ok(names)
    }
}
