//! This host's way to mapped volumes by iSCSI: [`IscsiHost`], the connector of drivers whose arrays
//! have iSCSI targets.
//!
//! It serves both ways in which arrays give LUNs: a target for many volumes, whose session stays until
//! the last of them is detached, and a target for each. What it does is of [`host_kit`]; the order is
//! here:
//!
//! | attach | detach |
//! |---|---|
//! | the target is noted as needed by the VDI | what was written goes out |
//! | login at all its portals where no session is; if that is refused: does a portal show the target to this host? | the multipath map, then each path, are removed |
//! | a look at the LUN's number, and at nothing else; what is there must have the identity | logout, if no other VDI needs the target |
//! | its size | the target is noted as not needed |
//! | a multipath map, where multipathd runs | the array ends the mapping |
//!
//! From the first look at a LUN that is about to go until its mapping has ended, no other process of
//! ours looks for LUNs at that target ([`Disconnected`]): it would bring back a path that leads
//! nowhere a moment later.
//!
//! # Why not ...
//!
//! - **all portals that a discovery shows?** It shows those of networks that the array's administrator
//!   did not mean for this host, too. The portals are those that the array's management names.
//! - **the path to `/dev/disk/by-id`?** See [`host_kit::block`].

use std::collections::BTreeMap;

use host_kit::block::{self, ScsiId};
use host_kit::iscsi::{self, Chap, Credentials, Iqn, Portal, Session, Target, uses};
use host_kit::lun;
use plugin_sdk::config::ConfigValue as _;
use plugin_sdk::model::{Bytes, Kind};
use plugin_sdk::{Cx, Error, Result, Secret, Utf8PathBuf, step};

use crate::array::{Initiator, Mapping};
use crate::driver::{Connector, Disconnected, Lun};

/// The port if the array does not say one (RFC 7143, 14.2).
const PORT: u16 = 3260;

/// This host, with open-iscsi.
#[derive(Clone, Debug, Default)]
pub struct IscsiHost {
    name: Option<String>,
    chap: Option<(String, Secret)>,
}

impl IscsiHost {
    /// This host, under the name of `/etc/iscsi/initiatorname.iscsi`. A name of the configuration
    /// stands for it where nothing is attached; at an attach both must be the same, because that file's is
    /// the one that the host logs in by.
    pub fn new(name: Option<String>) -> Self {
        Self { name, chap: None }
    }

    /// With a name and password for targets that ask for them.
    #[must_use]
    pub fn chap(mut self, chap: Option<(String, Secret)>) -> Self {
        self.chap = chap;
        self
    }

    fn secrets(&self) -> Chap {
        let credentials = |(user, password): &(String, Secret)| Credentials {
            user: user.clone(),
            password: password.clone(),
        };
        Chap { outgoing: self.chap.as_ref().map(credentials), incoming: None }
    }

    /// The name that this host logs in by. Error kind `config` with SMAPI's 97 if the array was
    /// told another one.
    fn own_name(&self) -> Result<String> {
        let own = iscsi::initiator_name()?;
        match &self.name {
            Some(name) if !name.eq_ignore_ascii_case(&own) => Err(Error::config(format!(
                "volumes are mapped to the initiator {name}, and this host logs in as {own}"
            ))
            .legacy(97)
            .hint("leave initiator out of the device configuration, or write that name into /etc/iscsi/initiatorname.iscsi and restart iscsid")),
            _ => Ok(own),
        }
    }

    /// Logs in where there is no session yet. If the first login is refused, a portal is asked whether
    /// the target is there for this host, which a refusal does not say.
    async fn log_in(&self, cx: &Cx, iqn: &Iqn, portals: &[Target]) -> Result<()> {
        let is_first = sessions_of([iqn]).is_empty();
        match iscsi::login_anywhere(cx, portals, &self.secrets()).await {
            // 68: a portal was there, and no session came of it.
            Err(error) if is_first && error.legacy_code() == 68 => {
                Err(self.not_shown(cx, iqn, portals).await.unwrap_or(error))
            }
            other => other.map(drop),
        }
    }

    /// That the first portal to answer does not show the target to this host; none if it does.
    async fn not_shown(&self, cx: &Cx, iqn: &Iqn, portals: &[Target]) -> Option<Error> {
        for Target { portal, .. } in portals {
            let found = match iscsi::discover(cx, portal, &self.secrets()).await {
                // It shows none at all.
                Err(error) if error.kind == Kind::NotFound => Vec::new(),
                Err(_) => continue,
                Ok(found) => found,
            };
            if found.iter().any(|target| target.iqn == *iqn) {
                return None;
            }
            let own = self.own_name().ok()?;
            return Some(
                Error::new(
                    Kind::Auth,
                    format!("{portal} does not show the target {iqn} to {own}"),
                )
                .legacy(96)
                .hint(
                    "the array must let this initiator in; after a change of its name, restart iscsid",
                ),
            );
        }
        None
    }
}

fn no_target(what: &str) -> Error {
    Error::internal(format!("the array names {what} for a volume that it has mapped"))
}

fn identity(mapping: &Mapping) -> Result<ScsiId> {
    ScsiId::parse(&mapping.scsi_id)
        .map_err(|_| no_target(&format!("{:?}, which is no SCSIid,", mapping.scsi_id)))
}

/// The targets of a mapping with their portals. Sorted, so that whoever holds several takes them in
/// one order.
fn targets(mapping: &Mapping) -> Result<BTreeMap<Iqn, Vec<Target>>> {
    let mut found: BTreeMap<Iqn, Vec<Target>> = BTreeMap::new();
    for one in &mapping.targets {
        let iqn = Iqn::parse(&one.iqn)
            .map_err(|_| no_target(&format!("{:?}, which is no target,", one.iqn)))?;
        let portal = Portal::parse(&one.portal, PORT)
            .ok_or_else(|| no_target(&format!("{:?}, which is no portal,", one.portal)))?;
        // The group is a discovery's to tell, and no login needs it.
        found.entry(iqn.clone()).or_default().push(Target { iqn, portal, group: 1 });
    }
    if found.is_empty() { Err(no_target("no target")) } else { Ok(found) }
}

fn sessions_of<'a>(iqns: impl IntoIterator<Item = &'a Iqn>) -> Vec<Session> {
    let iqns: Vec<&Iqn> = iqns.into_iter().collect();
    iscsi::sessions().into_iter().filter(|session| iqns.contains(&&session.iqn)).collect()
}

/// Error kind `corrupt` if a device is smaller than the array says: its end would be missing.
fn whole(id: &ScsiId, size: u64, expected: Bytes) -> Result<()> {
    if size >= expected.0 {
        return Ok(());
    }
    Err(Error::new(
        Kind::Corrupt,
        format!("the LUN {id} has {size} bytes, and its volume {}", expected.0),
    )
    .legacy(119)
    .hint("look at the volume and its mapping on the array"))
}

impl Connector for IscsiHost {
    async fn initiator(&self, cx: &Cx) -> Result<Initiator> {
        let iqn = match &self.name {
            Some(name) => name.clone(),
            None => iscsi::initiator_name()
                .map_err(|error| error.hint("set initiator in the device configuration"))?,
        };
        if Iqn::parse(&iqn).is_err() {
            return Err(Error::config("the iSCSI name of this host is none")
                .legacy(97)
                .hint("it looks like iqn.1993-08.org.debian:01:222; see initiator or its file"));
        }
        Ok(Initiator { host: cx.host().to_string(), iqn, chap: self.chap.clone() })
    }

    async fn connect(&self, cx: &Cx, lun: &Lun<'_>, writable: bool) -> Result<Utf8PathBuf> {
        self.own_name()?;
        let (id, targets) = (identity(lun.mapping)?, targets(lun.mapping)?);
        let user = lun.vdi.to_string();
        let mut held = Vec::new();
        for (iqn, portals) in &targets {
            let target = uses::hold(cx, iqn).await?;
            let places: Vec<Portal> = portals.iter().map(|one| one.portal.clone()).collect();
            target.add(&user, iqn, &places)?;
            step!("array.target_noted");
            self.log_in(cx, iqn, portals).await?;
            step!("array.logged_in");
            held.push(target);
        }
        let paths = lun::find(cx, &id, lun.mapping.lun, &sessions_of(targets.keys())).await?;
        step!("array.lun_found");
        drop(held);
        whole(&id, block::size(&id, &paths)?, lun.size)?;
        lun::join(cx, &id, &paths).await?;
        let device = lun::device(&id)?;
        lun::set_read_only(cx, &device, !writable).await?;
        Ok(device.into())
    }

    async fn disconnect(&self, cx: &Cx, lun: &Lun<'_>) -> Result<Disconnected> {
        let (id, targets) = (identity(lun.mapping)?, targets(lun.mapping)?);
        let user = lun.vdi.to_string();
        let mut held = Vec::new();
        for iqn in targets.keys() {
            held.push((iqn, uses::hold(cx, iqn).await?));
        }
        lun::remove(cx, &id, &sessions_of(targets.keys())).await?;
        for (iqn, target) in &held {
            if target.is_last(&user) {
                for session in sessions_of([*iqn]) {
                    // What somebody else uses there keeps its session.
                    if lun::empty(cx, &session).await? {
                        iscsi::logout(cx, &session).await?;
                        step!("array.logged_out");
                    }
                }
            }
            target.remove(&user)?;
        }
        Ok(Disconnected::holding(held.into_iter().map(|(_, target)| target)))
    }

    async fn written(&self, cx: &Cx, lun: &Lun<'_>) -> Result<()> {
        lun::write_out(cx, &identity(lun.mapping)?).await
    }

    async fn resized(&self, cx: &Cx, lun: &Lun<'_>) -> Result<()> {
        lun::grow(cx, &identity(lun.mapping)?, lun.size.0).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::array;

    fn mapping(targets: &[(&str, &str)]) -> Mapping {
        let target = |(portal, iqn): &(&str, &str)| array::Target {
            portal: (*portal).to_owned(),
            iqn: (*iqn).to_owned(),
        };
        let targets = targets.iter().map(target).collect();
        Mapping { lun: 3, scsi_id: "36589cfc0000001".to_owned(), targets }
    }

    #[test]
    fn portals_belong_to_their_target_whichever_comes_first() {
        let one = "iqn.2005-10.org.freenas.ctl:one";
        let two = "iqn.2001-05.com.equallogic:two";
        let found =
            targets(&mapping(&[("10.0.0.1:3261", one), ("10.0.0.9", two), ("[fd00::1]", one)]))
                .unwrap();
        let shown: Vec<(String, Vec<String>)> = found
            .iter()
            .map(|(iqn, at)| {
                (iqn.to_string(), at.iter().map(|target| target.portal.to_string()).collect())
            })
            .collect();
        assert_eq!(
            shown,
            [
                (two.to_owned(), vec!["10.0.0.9:3260".to_owned()]),
                (one.to_owned(), vec!["10.0.0.1:3261".to_owned(), "[fd00::1]:3260".to_owned()]),
            ]
        );
    }

    #[test]
    fn what_an_array_names_is_looked_at_before_it_is_used() {
        for (odd, said) in [
            (mapping(&[]), "no target"),
            (mapping(&[("10.0.0.1", "../x")]), "\"../x\", which is no target,"),
            (mapping(&[("--login", "iqn.2005-10.x:y")]), "\"--login\", which is no portal,"),
        ] {
            let message = targets(&odd).unwrap_err().message.clone();
            assert_eq!(message, format!("the array names {said} for a volume that it has mapped"));
        }
        let odd = Mapping { scsi_id: "../../etc".to_owned(), ..mapping(&[]) };
        assert_eq!(
            identity(&odd).unwrap_err().message,
            "the array names \"../../etc\", which is no SCSIid, for a volume that it has mapped"
        );
    }

    #[test]
    fn a_device_without_its_end_is_refused() {
        let id = identity(&mapping(&[])).unwrap();
        whole(&id, 4096, Bytes(4096)).unwrap();
        whole(&id, 8192, Bytes(4096)).unwrap();
        let error = whole(&id, 4095, Bytes(4096)).unwrap_err();
        assert_eq!((error.kind.clone(), error.legacy_code()), (Kind::Corrupt, 119));
        assert_eq!(error.message, "the LUN 36589cfc0000001 has 4095 bytes, and its volume 4096");
    }
}
