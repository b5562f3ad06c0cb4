//! This host on the array: its object there, its connections, the ports that it reaches.

use std::time::Duration;

use array_kit::array::{Initiator, Mapping, Target, Volume};
use array_kit::http::Request;
use array_kit::outcome::{Class, Failure, OrAbsent as _, Outcome};
use array_kit::retry::wait;
use plugin_sdk::Cx;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::array::PureStorage;
use crate::object::{Connection, Host, Port};

/// How long a connection may take to show, and how often that is looked at.
const SHOWS: (u32, Duration) = (30, Duration::from_millis(250));

/// What this host is on the array.
#[derive(Clone, Debug)]
pub(crate) struct Here {
    initiator: String,
    host: String,
    targets: Vec<Target>,
}

/// What the host's object is called, if it is ours: 24 characters.
fn own_name(of: &Initiator) -> String {
    let digest = Sha256::digest(of.iqn.to_ascii_lowercase().as_bytes());
    let tag = digest.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
    format!("sm-host-{tag:016x}")
}

/// Names a volume and perhaps a host.
fn connections(request: Request, host: Option<&str>, volume: &Volume) -> Request {
    let request = request.query("volume_names", &volume.name);
    match host {
        Some(host) => request.query("host_names", host),
        None => request,
    }
}

impl PureStorage {
    /// The host that an initiator belongs to; it belongs to one at most.
    async fn find_host(&self, cx: &Cx, of: &Initiator) -> Outcome<Option<String>> {
        let filter = format!("iqns='{}'", of.iqn.replace('\'', ""));
        let request = Request::get("host", &self.api.path("hosts")).query("filter", &filter);
        let found = self.api.list::<Host>(cx, "hosts", request).await?.into_iter().next();
        match found {
            Some(host) if host.iqns.iter().all(|iqn| iqn.eq_ignore_ascii_case(&of.iqn)) => {
                Ok(Some(host.name))
            }
            Some(host) => Err(Failure::new(Class::AlreadyExists)
                .object(format!("host {}", host.name))
                .fact(
                    "it has other initiators than this host's, which would reach the same volumes",
                )
                .hint("give each host an object of its own on the array")),
            None => Ok(None),
        }
    }

    /// Finds or makes what this host needs. `anew` reads the ports again.
    pub(crate) async fn enter(&self, cx: &Cx, to: &Initiator, anew: bool) -> Outcome<Here> {
        // Held meanwhile: two tasks need not both make it.
        let mut known = self.here.lock().await;
        if let Some(here) = known.as_ref().filter(|here| here.initiator == to.iqn && !anew) {
            return Ok(here.clone());
        }
        let host = match self.find_host(cx, to).await? {
            Some(host) => host,
            None => self.make_host(cx, to).await?,
        };
        let request = Request::get("ports", &self.api.path("ports"));
        let ports = self.api.list::<Port>(cx, "ports", request).await?;
        let target = |port: Port| Some(Target { iqn: port.iqn?, portal: port.portal? });
        let targets: Vec<Target> = ports.into_iter().filter_map(target).collect();
        if targets.is_empty() {
            return Err(Failure::new(Class::Unsupported)
                .fact("the array has no port for iSCSI")
                .hint("look at its network interfaces for one with the service iscsi"));
        }
        let here = Here { initiator: to.iqn.clone(), host, targets };
        *known = Some(here.clone());
        Ok(here)
    }

    async fn make_host(&self, cx: &Cx, to: &Initiator) -> Outcome<String> {
        let name = own_name(to);
        let request = Request::post("make_host", &self.api.path("hosts")).query("names", &name);
        let made = self.api.just(cx, request.json(&json!({ "iqns": [to.iqn] }))).await;
        match made {
            // An earlier request arrived. What a stale read does not show yet has our name, because
            // nobody else could have made it since.
            Err(failure) if failure.class == Class::AlreadyExists => {
                Ok(self.find_host(cx, to).await?.unwrap_or(name))
            }
            other => other.map(|()| name),
        }
    }

    /// Removes the host's object, if it is ours and nothing is connected to it.
    pub(crate) async fn leave(&self, cx: &Cx, from: &Initiator) -> Outcome<()> {
        let mut known = self.here.lock().await;
        let request = Request::delete("revoke", &self.api.path("hosts"));
        let gone = self.api.just(cx, request.query("names", &own_name(from))).await;
        match gone.or_absent() {
            Err(failure) if failure.class == Class::InUse => return Ok(()),
            other => drop(other?),
        }
        *known = None;
        Ok(())
    }

    pub(crate) async fn connect(
        &self,
        cx: &Cx,
        volume: &Volume,
        to: &Initiator,
    ) -> Outcome<Mapping> {
        if volume.snapshot_of.is_some() {
            return Err(Failure::new(Class::Unsupported)
                .fact("the array gives no LUN to a snapshot")
                .hint("clone it, and attach the clone"));
        }
        let Here { host, targets, .. } = self.enter(cx, to, false).await?;
        let path = &self.api.path("connections");
        let request = connections(Request::post("map", path), Some(&host), volume);
        let made: Outcome<Connection> = self.api.one(cx, request.json(&json!({}))).await;
        let made = match made {
            Err(failure) if failure.class == Class::AlreadyExists => {
                self.shown(cx, &host, volume).await?
            }
            Err(failure) => {
                if failure.class == Class::NotFound {
                    // Somebody may have removed the host's object: the next try looks.
                    *self.here.lock().await = None;
                }
                return Err(failure);
            }
            Ok(made) => made,
        };
        let lun = made.lun.and_then(|lun| u16::try_from(lun).ok());
        let lun = lun.filter(|lun| (1..=4095).contains(lun)).ok_or_else(|| {
            Failure::new(Class::Garbled)
                .object(volume.name.clone())
                .fact("the array connected it with a number that no LUN of a host can have")
        })?;
        let serial = self.serial(cx, volume).await?.to_ascii_lowercase();
        Ok(Mapping { lun, scsi_id: format!("3624a9370{serial}"), targets })
    }

    /// The connection that the array says is there.
    async fn shown(&self, cx: &Cx, host: &str, volume: &Volume) -> Outcome<Connection> {
        let path = &self.api.path("connections");
        for _ in 0..SHOWS.0 {
            let request = connections(Request::get("mapped", path), Some(host), volume);
            let found =
                self.api.list::<Connection>(cx, "connections", request).await.or_absent()?;
            if let Some(found) = found.and_then(|all| all.into_iter().next()) {
                return Ok(found);
            }
            wait(cx, SHOWS.1).await?;
        }
        Err(Failure::new(Class::Busy)
            .object(volume.name.clone())
            .fact("the array says that it is connected, and does not show how"))
    }

    pub(crate) async fn disconnect(
        &self,
        cx: &Cx,
        volume: &Volume,
        from: &Initiator,
    ) -> Outcome<()> {
        let known = self.here.lock().await.clone();
        let host = match known.filter(|here| here.initiator == from.iqn) {
            Some(here) => Some(here.host),
            None => self.find_host(cx, from).await?,
        };
        let Some(host) = host else { return Ok(()) };
        let request = Request::delete("unmap", &self.api.path("connections"));
        self.api.just(cx, connections(request, Some(&host), volume)).await
    }

    /// The initiators that reach a volume.
    pub(crate) async fn connected_to(&self, cx: &Cx, volume: &Volume) -> Outcome<Vec<String>> {
        let request = Request::get("mappings", &self.api.path("connections"));
        let request = connections(request, None, volume);
        let all = self.api.list::<Connection>(cx, "connections", request).await?;
        let mut hosts: Vec<String> = all.into_iter().filter_map(|one| one.host.name).collect();
        hosts.sort();
        hosts.dedup();
        if hosts.is_empty() {
            return Ok(hosts);
        }
        let request = Request::get("hosts", &self.api.path("hosts"));
        let request = request.query("names", &hosts.join(","));
        let known = self.api.list::<Host>(cx, "hosts", request).await?;
        Ok(known.into_iter().flat_map(|host| host.iqns).collect())
    }
}
