//! This host on the array: its object there, its connections, the ports that it reaches.

use array_kit::prelude::*;

use crate::array::PureStorage;

impl PureStorage {
    /// How a host sees a volume, by a connection.
    async fn seen(&self, cx: &Cx, volume: &Volume, connection: &Value) -> Outcome<Option<Shown>> {
        let Some(lun) = connection.number("lun").filter(|lun| (1..=4095).contains(lun)) else {
            return Err(Failure::new(Class::Garbled)
                .object(volume.name.clone())
                .fact("the array connected it with a number that no LUN of a host can have"));
        };
        let serial = self.serial(cx, volume).await?.to_ascii_lowercase();
        Shown::at(lun, format!("3624a9370{serial}")).map(Some)
    }
}

impl HostEntries for PureStorage {
    const ONE_ENTRY: bool = true;

    fn known(&self) -> &Known {
        &self.known
    }

    /// 24 characters.
    fn entry_name(&self, of: &Initiator) -> String {
        format!("sm-host-{:016x}", of.tag())
    }

    async fn find_entry(&self, cx: &Cx, of: &Initiator) -> Outcome<Option<Entry>> {
        let filter = format!("iqns='{}'", of.iqn.replace('\'', ""));
        let found = self.all(cx, Request::get("host", "hosts").query("filter", &filter)).await?;
        let Some(found) = found.first() else { return Ok(None) };
        let (name, initiators) = (found.need("name")?.to_owned(), found.texts("iqns", ""));
        Ok(Some(Entry { id: name.clone(), name, initiators, in_group: false }))
    }

    async fn make_entry(&self, cx: &Cx, name: &str, to: &Initiator) -> Outcome<Option<String>> {
        let request = Request::post("make_host", "hosts").query("names", name);
        self.api.just(cx, request.json(&json!({ "iqns": [to.iqn] }))).await?;
        Ok(Some(name.to_owned()))
    }

    async fn remove_entry(&self, cx: &Cx, of: &Initiator) -> Outcome<()> {
        let request = Request::delete("revoke", "hosts").query("names", &self.entry_name(of));
        self.api.just(cx, request).await
    }

    async fn portals(&self, cx: &Cx) -> Outcome<Vec<Portal>> {
        let ports = self.all(cx, Request::get("ports", "ports")).await?;
        // Only those of iSCSI have a name of that and a portal.
        let target = |port: &Value| {
            let (iqn, portal) = (port.text("iqn").to_owned(), port.text("portal").to_owned());
            Some(Target { portal, iqn }).filter(|one| !one.iqn.is_empty() && !one.portal.is_empty())
        };
        Ok(ports.iter().filter_map(target).map(Portal::from).collect())
    }

    async fn connect(&self, cx: &Cx, volume: &Volume, entry: &str) -> Outcome<Option<Shown>> {
        let request = Request::post("map", "connections").query("volume_names", &volume.name);
        let request = request.query("host_names", entry).json(&json!({}));
        let made = self.one(cx, request).await?;
        self.seen(cx, volume, &made).await
    }

    async fn shown(&self, cx: &Cx, volume: &Volume, entry: &str) -> Outcome<Option<Shown>> {
        let request = Request::get("mapped", "connections").query("volume_names", &volume.name);
        let found = self.all(cx, request.query("host_names", entry)).await.or_absent()?;
        match found.unwrap_or_default().first() {
            Some(found) => self.seen(cx, volume, found).await,
            None => Ok(None),
        }
    }

    async fn disconnect(&self, cx: &Cx, volume: &Volume, entry: &str) -> Outcome<()> {
        let request = Request::delete("unmap", "connections").query("volume_names", &volume.name);
        self.api.just(cx, request.query("host_names", entry)).await
    }

    async fn reached_by(&self, cx: &Cx, volume: &Volume) -> Outcome<Vec<String>> {
        let request = Request::get("mappings", "connections");
        let all = self.all(cx, request.query("volume_names", &volume.name)).await?;
        let mut hosts: Vec<&str> = all.iter().map(|one| one.text("host.name")).collect();
        hosts.retain(|name| !name.is_empty());
        hosts.sort_unstable();
        hosts.dedup();
        if hosts.is_empty() {
            return Ok(Vec::new());
        }
        let request = Request::get("hosts", "hosts").query("names", &hosts.join(","));
        let known = self.all(cx, request).await?;
        Ok(known.iter().flat_map(|host| host.texts("iqns", "")).collect())
    }
}
