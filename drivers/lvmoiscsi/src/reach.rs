//! Getting to a LUN and letting go of it: sessions, paths, the multipath map.

use std::collections::BTreeSet;
use std::time::Duration;

use host_kit::block::{self, Disk, ScsiId};
use host_kit::iscsi::{self, Iqn, Portal, Session, Target, uses};
use host_kit::lun;
use host_kit::multipath::{self, Map};
use plugin_sdk::config::ConfigValue as _;
use plugin_sdk::model::Kind;
use plugin_sdk::model::sr::{ProbeItem, SrPaths};
use plugin_sdk::{Cx, Error, Result, step};

use crate::config::{Place, Wanted};

/// Most time for the end of a map.
const APPEARS: Duration = Duration::from_secs(10);

/// Most time until a target shows the LUN, after a login.
const SHOWS: Duration = Duration::from_secs(2);

/// A LUN to be reached, and for whom.
#[derive(Clone, Debug)]
pub(crate) struct Lun {
    pub(crate) place: Place,
    pub(crate) wanted: Wanted,
    pub(crate) id: ScsiId,
    /// Who needs the target: the UUID of the SR.
    pub(crate) user: String,
}

impl Place {
    /// The targets that are meant. The first portal that answers and knows one tells all portals.
    /// Error with SMAPI's 96, the targets that there are being its candidates.
    pub(crate) async fn find(&self, cx: &Cx, wanted: &Wanted) -> Result<Vec<Target>> {
        let mut failed = None;
        let mut others = Vec::new();
        for portal in &self.portals {
            match iscsi::discover(cx, portal, &self.chap).await {
                Ok(found) => {
                    let (ours, rest): (Vec<_>, Vec<_>) =
                        found.into_iter().partition(|target| wanted.is(&target.iqn));
                    if !ours.is_empty() {
                        return Ok(self.portals_of(portal, ours));
                    }
                    others.extend(rest);
                }
                Err(error) => drop(failed.get_or_insert(error)),
            }
            cx.check()?;
        }
        match failed {
            Some(error) if others.is_empty() => Err(error),
            _ => Err(self.not_there(wanted, &others)),
        }
    }

    /// All portals; or of each target that which was asked, or its first.
    fn portals_of(&self, asked: &Portal, found: Vec<Target>) -> Vec<Target> {
        if self.multihomed {
            return found;
        }
        let iqns: BTreeSet<Iqn> = found.iter().map(|target| target.iqn.clone()).collect();
        let one = |iqn: &Iqn| {
            let mut of = found.iter().filter(|target| target.iqn == *iqn);
            of.clone().find(|target| target.portal == *asked).or_else(|| of.next()).cloned()
        };
        iqns.iter().filter_map(one).collect()
    }

    fn not_there(&self, wanted: &Wanted, others: &[Target]) -> Error {
        let what = match wanted {
            Wanted::All => "any target".to_owned(),
            Wanted::One(iqn) => format!("a target {iqn}"),
        };
        let places: Vec<String> = self.portals.iter().map(ToString::to_string).collect();
        let candidates = crate::probe::targets(&self.portals, others);
        Error::new(
            Kind::Config { missing: Vec::new(), candidates },
            format!("{} does not have {what}", places.join(", ")),
        )
        .legacy(96)
        .hint("smctl sr probe without targetIQN lists the targets that this host may see")
    }

    /// Logs in for `user` at every portal of these targets. One portal of each is enough: the
    /// others are tried again by the next attach.
    pub(crate) async fn login(&self, cx: &Cx, targets: &[Target], user: &str) -> Result<()> {
        let iqns: BTreeSet<&Iqn> = targets.iter().map(|target| &target.iqn).collect();
        for iqn in iqns {
            let of: Vec<&Target> = targets.iter().filter(|target| target.iqn == *iqn).collect();
            let held = uses::hold(cx, iqn).await?;
            let portals: Vec<Portal> = of.iter().map(|target| target.portal.clone()).collect();
            held.add(user, iqn, &portals)?;
            step!("sr_attach.use_noted");
            let (mut works, mut failed) = (false, None);
            for target in of {
                match iscsi::login(cx, target, &self.chap).await {
                    Ok(_) => works = true,
                    Err(error) => {
                        plugin_sdk::tracing::warn!(%error, "a portal cannot be used");
                        failed.get_or_insert(error);
                    }
                }
                step!("sr_attach.logged_in");
            }
            if let (false, Some(error)) = (works, failed) {
                held.remove(user)?;
                return Err(error);
            }
        }
        Ok(())
    }
}

/// The sessions of targets that somebody needs.
fn sessions_of(user: &str) -> Vec<Session> {
    let iqns: Vec<String> = uses::of(user).into_iter().map(|(iqn, _)| iqn).collect();
    let all = iscsi::sessions().into_iter();
    all.filter(|session| iqns.iter().any(|iqn| iqn == session.iqn.as_str())).collect()
}

/// The disks that the sessions of somebody's targets have brought.
pub(crate) async fn disks_of(cx: &Cx, user: &str) -> Result<Vec<Disk>> {
    let sessions = sessions_of(user);
    for session in sessions.iter().filter(|session| session.is_up()) {
        iscsi::rescan(cx, session).await?;
        block::settle(cx, session.host).await?;
    }
    let of = |disk: &Disk| sessions.iter().any(|session| Some(session.number) == disk.session);
    Ok(block::disks().into_iter().filter(of).collect())
}

/// Ends what somebody needed: the last one of a target logs out.
pub(crate) async fn release(cx: &Cx, user: &str) -> Result<()> {
    for (name, _) in uses::of(user) {
        let Ok(iqn) = Iqn::parse(&name) else { continue };
        let held = uses::hold(cx, &iqn).await?;
        if !held.remove(user)? {
            continue;
        }
        step!("sr_detach.use_gone");
        for session in iscsi::sessions().iter().filter(|session| session.iqn == iqn) {
            if let Some(disk) = in_use(session) {
                plugin_sdk::tracing::warn!(target = %iqn, disk, "a disk of the target is in use by others; the session stays");
                continue;
            }
            iscsi::logout(cx, session).await?;
            step!("sr_detach.logged_out");
        }
    }
    Ok(())
}

/// A disk of a session that somebody has mounted, or that something is on.
fn in_use(session: &Session) -> Option<String> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let is_used = |disk: &Disk| {
        // A multipath map of a LUN that nobody has open is no use of it.
        let maps = block::mapped();
        let taken = disk.holders.iter().any(|holder| {
            let map = maps.iter().find(|map| map.device == *holder);
            map.is_none_or(|map| {
                let above = std::fs::read_dir(format!("/sys/block/{holder}/holders"));
                !map.uuid.starts_with("mpath-")
                    || above.is_ok_and(|mut entries| entries.next().is_some())
                    || mounts.contains(&format!("/dev/mapper/{} ", map.name))
            })
        });
        taken || mounts.lines().any(|line| line.starts_with(&disk.device()))
    };
    let disks = block::disks().into_iter();
    disks.filter(|disk| disk.session == Some(session.number)).find(is_used).map(|disk| disk.name)
}

impl Lun {
    /// Makes the LUN reachable on this host, by all of its paths. The path of its device.
    pub(crate) async fn connect(&self, cx: &Cx) -> Result<String> {
        iscsi::initiator_name()?;
        let targets = match self.place.find(cx, &self.wanted).await {
            Ok(targets) => targets,
            // Its portal for questions may be down, and the LUN be there.
            Err(error) if error.kind == Kind::Unreachable && self.device().is_ok() => {
                plugin_sdk::tracing::warn!(%error, "the target is used as it was known before");
                return self.device();
            }
            Err(error) => return Err(error),
        };
        self.place.login(cx, &targets, &self.user).await?;
        lun::refresh(cx, &self.id).await?;
        let paths = self.appear(cx).await?;
        block::size(&self.id, &paths)?;
        if self.place.multihomed || paths.len() > 1 {
            lun::join(cx, &self.id, &paths).await?;
        }
        self.device()
    }

    /// The device of the LUN as it is now, without a command: the map, or the only path.
    pub(crate) fn device(&self) -> Result<String> {
        lun::device(&self.id)
    }

    /// Looks for the LUN in the sessions of its target.
    async fn appear(&self, cx: &Cx) -> Result<Vec<Disk>> {
        let end = cx.within(SHOWS);
        let mut pause = Duration::from_millis(100);
        loop {
            let shown = self.shown(cx).await?;
            if shown.iter().any(|disk| disk.id.as_ref() == Some(&self.id)) {
                return block::paths(&self.id);
            }
            // A session may lose its connection while it is looked at, and come back.
            if end.remaining().is_zero() {
                let candidates: Vec<ProbeItem> = crate::probe::luns(&shown);
                return Err(Error::new(
                    Kind::Config { missing: Vec::new(), candidates },
                    format!("the target does not show the LUN {} to this host", self.id),
                )
                .legacy(107)
                .hint("smctl sr probe without SCSIid lists the LUNs that this host may see"));
            }
            cx.check()?;
            plugin_sdk::tokio::time::sleep(pause.min(end.remaining())).await;
            pause *= 2;
        }
    }

    /// All disks that the sessions bring which are up. A target does not show each LUN at each of its
    /// portals, so the kernel looks where this one is not known.
    async fn shown(&self, cx: &Cx) -> Result<Vec<Disk>> {
        let mut shown = Vec::new();
        for session in sessions_of(&self.user).iter().filter(|session| session.is_up()) {
            let of_session = || {
                let all = block::disks().into_iter();
                all.filter(|disk| disk.session == Some(session.number)).collect::<Vec<_>>()
            };
            let mut disks = of_session();
            if !disks.iter().any(|disk| disk.id.as_ref() == Some(&self.id)) {
                iscsi::rescan(cx, session).await?;
                block::settle(cx, session.host).await?;
                disks = of_session();
            }
            shown.append(&mut disks);
        }
        Ok(shown)
    }

    /// Whether its user is known to need a target on this host.
    pub(crate) fn is_used(&self) -> bool {
        !uses::of(&self.user).is_empty()
    }

    /// Lets go of the LUN, and of its target if nobody else needs it.
    pub(crate) async fn disconnect(&self, cx: &Cx) -> Result<()> {
        if !self.is_used() {
            return Ok(());
        }
        if let Some(map) = multipath::find(&self.id) {
            multipath::flush(cx, &map).await?;
            step!("sr_detach.map_gone");
        }
        let gone = || Ok(multipath::find(&self.id).is_none().then_some(()));
        block::wait(cx, APPEARS, &format!("the end of the map {}", self.id), gone).await?;
        // Left behind in a session that others need, they would be stale one day.
        let ours: Vec<u32> = sessions_of(&self.user).iter().map(|one| one.number).collect();
        for path in block::disks() {
            let is_ours = path.session.is_some_and(|session| ours.contains(&session));
            if is_ours && path.id.as_ref() == Some(&self.id) {
                path.remove(cx).await?;
                step!("sr_detach.path_gone");
            }
        }
        release(cx, &self.user).await
    }

    /// Which of the ways to the LUN work.
    pub(crate) async fn paths(&self, cx: &Cx) -> Result<SrPaths> {
        let map = match multipath::find(&self.id) {
            Some(_) => {
                let maps = multipath::maps(cx).await?;
                maps.into_iter().find(|map| map.id == self.id.as_str())
            }
            None => None,
        };
        let disks = block::disks();
        Ok(summary(&self.id, &uses::of(&self.user), &iscsi::sessions(), &disks, map.as_ref()))
    }
}

/// One way for each portal of each target that shows the LUN at any of its portals.
fn summary(
    id: &ScsiId,
    known: &[(String, Vec<Portal>)],
    sessions: &[Session],
    disks: &[Disk],
    map: Option<&Map>,
) -> SrPaths {
    let mut paths = SrPaths::default();
    let shows = |iqn: &str| {
        sessions.iter().filter(|session| session.iqn.as_str() == iqn).any(|session| {
            disks
                .iter()
                .any(|disk| disk.session == Some(session.number) && disk.id.as_ref() == Some(id))
        })
    };
    let any = known.iter().any(|(iqn, _)| shows(iqn));
    for (iqn, portals) in known.iter().filter(|(iqn, _)| shows(iqn) || !any) {
        for portal in portals {
            let session = sessions
                .iter()
                .find(|session| session.iqn.as_str() == iqn && session.portal == *portal);
            let disk = session.and_then(|session| {
                disks.iter().find(|disk| {
                    disk.session == Some(session.number) && disk.id.as_ref() == Some(id)
                })
            });
            let path = disk.and_then(|disk| {
                map.and_then(|map| map.paths.iter().find(|path| path.disk == disk.name))
            });
            let trouble = match (session, disk, path, map) {
                (None, ..) => Some("no session".to_owned()),
                (Some(session), ..) if !session.is_up() => {
                    Some(format!("the session is {}", session.state))
                }
                (_, None, ..) => Some("the LUN is not shown there".to_owned()),
                (_, Some(disk), Some(path), _) if !path.is_up() => {
                    Some(format!("{} is {}", disk.name, path.states()))
                }
                (_, Some(disk), None, Some(_)) => {
                    Some(format!("{} is not in the multipath map", disk.name))
                }
                (_, Some(disk), None, None) if !disk.is_running() => {
                    Some(format!("{} is {}", disk.name, disk.state))
                }
                _ => None,
            };
            paths.max += 1;
            match trouble {
                None => paths.up += 1,
                Some(trouble) => paths.down.push(format!("{portal}: {trouble}")),
            }
        }
    }
    paths
}

#[cfg(test)]
mod tests {
    use host_kit::multipath::Path;

    use super::*;

    const IQN: &str = "iqn.2026-01.org.example:array";

    fn portal(number: u8) -> Portal {
        Portal { address: format!("10.9.{number}.1"), port: 3260 }
    }

    fn session(number: u32, state: &str) -> Session {
        Session {
            number,
            iqn: Iqn::parse(IQN).unwrap(),
            portal: portal(number as u8),
            state: state.into(),
            host: number,
        }
    }

    fn disk(name: &str, session: u32, id: &ScsiId) -> Disk {
        Disk {
            name: name.into(),
            id: Some(id.clone()),
            size: 1,
            vendor: String::new(),
            model: String::new(),
            serial: String::new(),
            lun: 0,
            host: session,
            session: Some(session),
            state: "running".into(),
            holders: Vec::new(),
        }
    }

    fn path(disk: &str, mapped: &str, checked: &str) -> Path {
        Path {
            disk: disk.into(),
            mapped: mapped.into(),
            device: "running".into(),
            checked: checked.into(),
        }
    }

    #[test]
    fn each_way_is_up_or_says_why_not() {
        let id = ScsiId::parse("3600a").unwrap();
        let known = [(IQN.to_owned(), vec![portal(0), portal(1), portal(2), portal(3)])];
        let sessions = [session(0, "LOGGED_IN"), session(1, "LOGGED_IN"), session(2, "FAILED")];
        let disks = [disk("sda", 0, &id), disk("sdb", 1, &id), disk("sdc", 2, &id)];
        let map = Map {
            name: "3600a".into(),
            id: "3600a".into(),
            device: "dm-0".into(),
            queues: true,
            paths: vec![
                path("sda", "active", "ready"),
                path("sdb", "failed", "faulty"),
                path("sdc", "failed", "faulty"),
            ],
        };
        let paths = summary(&id, &known, &sessions, &disks, Some(&map));
        assert_eq!((paths.up, paths.max), (1, 4));
        assert_eq!(
            paths.down,
            [
                "10.9.1.1:3260: sdb is failed faulty running",
                "10.9.2.1:3260: the session is FAILED",
                "10.9.3.1:3260: no session",
            ]
        );
        // A disk that multipathd has not taken in yet; one without multipath.
        let two = [disk("sdx", 0, &id)];
        let paths = summary(&id, &known, &sessions[..1], &two, Some(&map));
        assert_eq!(paths.down[0], "10.9.0.1:3260: sdx is not in the multipath map");
        let paths = summary(&id, &known, &sessions[..1], &two, None);
        assert_eq!((paths.up, paths.max), (1, 4));
    }

    #[test]
    fn targets_that_do_not_have_the_lun_do_not_count() {
        let id = ScsiId::parse("3600a").unwrap();
        let known = [
            (IQN.to_owned(), vec![portal(0)]),
            ("iqn.2026-01.org.example:other".to_owned(), vec![portal(7), portal(8)]),
        ];
        let sessions = [session(0, "LOGGED_IN")];
        let paths = summary(&id, &known, &sessions, &[disk("sda", 0, &id)], None);
        assert_eq!((paths.up, paths.max), (1, 1));
        // Nobody shows it: all that were logged in to are missing.
        assert_eq!(summary(&id, &known, &sessions, &[], None).max, 3);
    }
}
