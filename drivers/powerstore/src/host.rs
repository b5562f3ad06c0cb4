//! This host's entry at the array, and mappings to it.

use array_kit::prelude::*;

use crate::array::PowerStore;

/// The port of every iSCSI portal of a PowerStore.
const PORT: u16 = 3260;

impl HostEntries for PowerStore {
    const ONE_ENTRY: bool = true;

    fn known(&self) -> &Known {
        &self.known
    }

    fn entry_name(&self, of: &Initiator) -> String {
        format!("sm-{:016x}", of.tag())
    }

    async fn find_entry(&self, cx: &Cx, of: &Initiator) -> Outcome<Option<Entry>> {
        let request = Request::get("host_get", "initiator")
            .query("select", "host_id,host(name,host_group_id,initiators(port_name))")
            .query("port_name", &format!("eq.{}", of.iqn));
        let Some(found) = self.first(cx, request).await? else { return Ok(None) };
        Ok(Some(Entry {
            id: found.need("host_id")?.to_owned(),
            name: found.text("host.name").to_owned(),
            initiators: found.texts("host.initiators", "port_name"),
            in_group: !found.text("host.host_group_id").is_empty(),
        }))
    }

    async fn make_entry(&self, cx: &Cx, name: &str, to: &Initiator) -> Outcome<Option<String>> {
        let body = json!({
            "name": name,
            "description": format!("storage manager, {}", to.host),
            "os_type": "Linux",
            "initiators": [{ "port_name": to.iqn, "port_type": "iSCSI" }],
        });
        self.made(cx, Request::post("host_create", "host").json(&body)).await.map(Some)
    }

    async fn remove_entry(&self, cx: &Cx, of: &Initiator) -> Outcome<()> {
        let path = format!("host/name:{}", self.entry_name(of));
        self.api.just(cx, Request::delete("host_delete", &path)).await
    }

    async fn portals(&self, cx: &Cx) -> Outcome<Vec<Portal>> {
        let request = Request::get("ports", "ip_pool_address")
            .query("select", "address,appliance_id,ip_port(target_iqn)")
            .query("purposes", "cs.{Storage_Iscsi_Target}");
        let all: Vec<Value> = self.api.json(cx, request).await?;
        let portal = |one: &Value| Portal {
            target: Target::at(one.text("address"), PORT, one.text("ip_port.target_iqn")),
            // Other appliances do not have its volumes.
            part: Some(one.text("appliance_id").to_owned()),
        };
        Ok(all.iter().filter(|one| one.at("ip_port").is_object()).map(portal).collect())
    }

    async fn connect(&self, cx: &Cx, volume: &Volume, entry: &str) -> Outcome<Option<Shown>> {
        let request = Request::post("map", "volume").segment(&volume.id).then("/attach");
        self.api.just(cx, request.json(&json!({ "host_id": entry }))).await?;
        // The answer says nothing.
        Ok(None)
    }

    async fn shown(&self, cx: &Cx, volume: &Volume, entry: &str) -> Outcome<Option<Shown>> {
        let request = Request::get("reach", "volume")
            .query("select", "wwn,appliance_id,mapped_volumes(host_id,logical_unit_number)")
            .query("id", &format!("eq.{}", volume.id));
        let Some(found) = self.first(cx, request).await? else { return Ok(None) };
        let mut mapped = found.list("mapped_volumes").iter();
        let own = mapped.find(|one| one.text("host_id") == entry);
        let Some(lun) = own.and_then(|one| one.number("logical_unit_number")) else {
            return Ok(None);
        };
        let naa = found.need("wwn")?.trim_start_matches("naa.").to_ascii_lowercase();
        let part = Some(found.text("appliance_id").to_owned());
        Ok(Some(Shown { part, ..Shown::at(lun, format!("3{naa}"))? }))
    }

    async fn disconnect(&self, cx: &Cx, volume: &Volume, entry: &str) -> Outcome<()> {
        let request = Request::post("unmap", "volume").segment(&volume.id).then("/detach");
        self.api.just(cx, request.json(&json!({ "host_id": entry }))).await
    }

    async fn reached_by(&self, cx: &Cx, volume: &Volume) -> Outcome<Vec<String>> {
        let request = Request::get("mappings", "volume")
            .query("select", "mapped_volumes(host(initiators(port_name)),host_group(name))")
            .query("id", &format!("eq.{}", volume.id));
        let found = self.first(cx, request).await?.unwrap_or_default();
        let mut names = Vec::new();
        for one in found.list("mapped_volumes") {
            names.extend(one.texts("host.initiators", "port_name"));
            if one.at("host_group").is_object() {
                names.push(format!("host group {}", one.text("host_group.name")));
            }
        }
        Ok(names)
    }
}
