//! iSCSI by open-iscsi: discovery, sessions, and who needs them.
//!
//! | what | how |
//! |---|---|
//! | which sessions there are, in what state, which disks they brought | sysfs: no command |
//! | discovery, login, logout | `iscsiadm`, one command each |
//! | the record of a target, with name and password | written and removed in `record.rs`, mode 0600: an argument of `iscsiadm` could be read by every user of the host |
//! | new disks | a write to sysfs, by who knows which one is wanted; `iscsid` looks for none |
//! | logout when nobody needs a target any more | [`uses`] |
//!
//! A portal is tried by TCP before `iscsiadm` is: that tries for half a minute and more what is
//! refused at once.

mod failure;
mod names;
mod record;
mod session;
pub mod uses;

use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use plugin_sdk::model::{Changed, Kind};
use plugin_sdk::{Cx, Error, Result, Secret};

pub use failure::Failure;
pub use names::{Iqn, Portal, Target};
pub use session::{Session, sessions};

use crate::block;

/// Most time for a portal to accept a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// Most time for a discovery, a login, a logout.
const ADMIN: Duration = Duration::from_secs(45);
/// Most time for requests to go through after a login.
const COMES_UP: Duration = Duration::from_secs(10);
/// Most time for a portal where another one of the target works.
const SPARE: Duration = Duration::from_secs(5);
/// Where the name of this host's initiator is.
const INITIATOR: &str = "/etc/iscsi/initiatorname.iscsi";

/// A name and its password.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// The name.
    pub user: String,
    /// The password.
    pub password: Secret,
}

/// How both sides say who they are.
#[derive(Clone, Debug, Default)]
pub struct Chap {
    /// What this host tells the target.
    pub outgoing: Option<Credentials>,
    /// What the target must tell this host: mutual CHAP.
    pub incoming: Option<Credentials>,
}

impl Chap {
    /// Whether there is anything to tell.
    pub fn is_set(&self) -> bool {
        self.outgoing.is_some()
    }

    /// What goes into a record, whose keys for it begin with `prefix`.
    fn settings(&self, prefix: &str) -> Vec<(String, Secret)> {
        let key = |end: &str| format!("{prefix}.auth.{end}");
        let mut settings = Vec::new();
        if let Some(Credentials { user, password }) = &self.outgoing {
            settings.push((key("authmethod"), Secret::from("CHAP")));
            settings.push((key("username"), Secret::from(user.as_str())));
            settings.push((key("password"), password.clone()));
        }
        if let Some(Credentials { user, password }) = &self.incoming {
            settings.push((key("username_in"), Secret::from(user.as_str())));
            settings.push((key("password_in"), password.clone()));
        }
        settings
    }
}

/// The name of this host's initiator. Error kind `config` with SMAPI's 97.
pub fn initiator_name() -> Result<String> {
    let text = std::fs::read_to_string(INITIATOR).unwrap_or_default();
    let name = text.lines().find_map(|line| line.trim().strip_prefix("InitiatorName="));
    name.map(|name| name.trim().to_owned()).ok_or_else(|| {
        Error::config(format!("{INITIATOR} has no name of this host's initiator"))
            .legacy(97)
            .hint("write InitiatorName=iqn.... into it (open-iscsi makes one at installation)")
    })
}

/// Whether somebody listens there. Errors: SMAPI's 140 for a name that is not known, 141 for a
/// portal that refuses or does not answer.
pub async fn connectable(cx: &Cx, portal: &Portal) -> Result<()> {
    let place = (portal.address.clone(), portal.port);
    let limit = CONNECT.min(cx.remaining() / 2);
    let portal = portal.clone();
    cx.blocking(move |_| {
        let addresses = place.to_socket_addrs().map_err(|error| {
            Error::config(format!("the name {} cannot be resolved", portal.address))
                .legacy(140)
                .source(&error)
                .hint("give an address, or a name that this host's resolver knows")
        })?;
        let mut last = None;
        for address in addresses {
            match TcpStream::connect_timeout(&address, limit.max(Duration::from_millis(1))) {
                Ok(_) => return Ok(()),
                Err(error) => last = Some(error),
            }
        }
        let fact = match last.as_ref().map(std::io::Error::kind) {
            Some(std::io::ErrorKind::ConnectionRefused) => "refuses the connection".to_owned(),
            Some(std::io::ErrorKind::TimedOut) => {
                format!("does not answer within {:.0} s", limit.as_secs_f64())
            }
            _ => "cannot be reached".to_owned(),
        };
        let error = Error::new(Kind::Unreachable, format!("the portal {portal} {fact}"))
            .legacy(141)
            .hint("is the target up, is this its address and port, and is the network?");
        Err(match last {
            Some(last) => error.backend(last.to_string()),
            None => error,
        })
    })
    .await
}

/// Asks a portal which targets there are, at which portals. Errors: those of [`connectable`];
/// kind `auth` with SMAPI's 68; SMAPI's 83.
pub async fn discover(cx: &Cx, portal: &Portal, chap: &Chap) -> Result<Vec<Target>> {
    connectable(cx, portal).await?;
    let place = portal.to_string();
    let words = ["-m", "discovery", "-t", "st", "-p", &place, "-o", "nonpersistent"];
    match admin(cx, &words, None).await? {
        Ok(text) => names::targets(&text),
        // Most targets let everybody see their names; those that do not get a record.
        Err((Failure::Auth | Failure::Login, _)) if chap.is_set() => {
            discover_with_password(cx, portal, chap).await
        }
        Err(failed) => Err(not_discovered(portal, failed)),
    }
}

async fn discover_with_password(cx: &Cx, portal: &Portal, chap: &Chap) -> Result<Vec<Target>> {
    let place = portal.to_string();
    let all = |end: &[&'static str]| {
        let mut words = vec!["-m", "discoverydb", "-t", "st", "-p", place.as_str()];
        words.extend(end);
        words.into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let run = async |end: &[&'static str]| {
        let words = all(end);
        admin(cx, &words.iter().map(String::as_str).collect::<Vec<_>>(), None).await
    };
    if let Err(failed) = run(&["-o", "new"]).await? {
        return Err(not_discovered(portal, failed));
    }
    let settings = chap.settings("discovery.sendtargets");
    let file = record::of_discovery(portal)?;
    let found = async {
        record::set(&file, &settings)?;
        run(&["--discover", "-o", "nonpersistent"]).await
    };
    let found = found.await;
    // The password is in it. What cannot be removed is as safe as before: mode 0600.
    if let Err((_, words)) = run(&["-o", "delete"]).await? {
        plugin_sdk::tracing::warn!(%portal, words, "the record of a discovery stays");
    }
    match found? {
        Ok(text) => names::targets(&text),
        Err(failed) => Err(not_discovered(portal, failed)),
    }
}

fn not_discovered(portal: &Portal, (failure, words): (Failure, String)) -> Error {
    let what = format!("the targets of {portal}");
    match failure {
        Failure::Auth | Failure::Login => failure.error(&what, 68),
        _ => failure.error(&what, 83),
    }
    .backend(words)
}

/// Logs in at one portal of a target. Its disks are for the caller to look for: with [`rescan`], or as
/// [`crate::lun`] does. `already` if there is a session.
///
/// Errors: kind `auth` with SMAPI's 68; `unreachable` with 141; 68 for all else that a target says
/// to a login.
pub async fn login(cx: &Cx, target: &Target, chap: &Chap) -> Result<Changed> {
    if sessions().iter().any(|session| session.is_of(target)) {
        return Ok(Changed::Already);
    }
    connectable(cx, &target.portal).await?;
    let portal = target.portal.to_string();
    let node = ["-m", "node", "-T", target.iqn.as_str(), "-p", &portal];
    let what = format!("{} at {portal}", target.iqn);
    let mut settings = record::ours();
    settings.extend(chap.settings("node.session"));
    let mut is_written = record::make(target, &settings)?;
    let answer = loop {
        if !is_written {
            if let Err((failure, words)) = admin(cx, &node, Some(&["-o", "new"])).await? {
                return Err(failure.error(&what, 68).backend(words));
            }
            record::set(&record::of_node(target)?, &settings)?;
        }
        match admin(cx, &node, Some(&["--login"])).await {
            Ok(Ok(said)) => {
                comes_up(cx, target).await?;
                break Ok(Ok(said));
            }
            // This open-iscsi has its records elsewhere.
            Ok(Err((Failure::NoRecords, _))) if is_written => {
                record::forget(&target.iqn, &target.portal)?;
                is_written = false;
            }
            answer => break answer,
        }
    };
    match answer {
        Ok(Ok(_)) => Ok(Changed::Created),
        Ok(Err((Failure::Exists, _))) => Ok(Changed::Already),
        // Nothing goes on trying behind our back, and no password is left.
        other => {
            let cx = cx.shielded();
            let _ = admin(&cx, &node, Some(&["--logout"])).await;
            forget(&cx, &target.iqn, &target.portal).await;
            match other {
                Ok(Err((failure, words))) => Err(failure.error(&what, 68).backend(words)),
                Err(error) if error.kind == Kind::DeadlineExceeded => {
                    Err(Failure::Timeout.error(&what, 68))
                }
                Err(error) => Err(error),
                Ok(Ok(_)) => Ok(Changed::Created),
            }
        }
    }
}

/// Waits until requests go through a session that was made just now: until then the kernel looks for no
/// disks of it. One that lost its connection at once comes back by itself, or does not: then there are no
/// disks, which is told by whoever wants one.
async fn comes_up(cx: &Cx, target: &Target) -> Result<()> {
    let what = format!("the session to {} at {}", target.iqn, target.portal);
    let is_up = || sessions().iter().any(|session| session.is_of(target) && session.is_up());
    if let Err(error) = block::wait(cx, COMES_UP, &what, || Ok(is_up().then_some(()))).await {
        cx.check()?;
        plugin_sdk::tracing::warn!(%error, "a session is not up after its login");
    }
    Ok(())
}

/// Removes the record of a target at a portal, with the password in it. One that stays is as safe as
/// before: mode 0600.
async fn forget(cx: &Cx, iqn: &Iqn, portal: &Portal) {
    let done = match record::forget(iqn, portal) {
        Ok(true) => return,
        Ok(false) => {
            let portal = portal.to_string();
            let node = ["-m", "node", "-T", iqn.as_str(), "-p", &portal];
            admin(cx, &node, Some(&["-o", "delete"])).await
        }
        Err(error) => Err(error),
    };
    match done {
        Ok(Ok(_) | Err((Failure::NoRecords, _))) => {}
        Ok(Err((_, words))) => {
            plugin_sdk::tracing::warn!(%iqn, %portal, words, "the record of a target stays");
        }
        Err(error) => {
            plugin_sdk::tracing::warn!(%iqn, %portal, %error, "the record of a target stays");
        }
    }
}

/// Logs in at these portals of one target, where there is no session yet. One that works is enough:
/// then the others have a short time each, and are tried again by the next who comes.
///
/// Errors: that of the first portal, if none works.
pub async fn login_anywhere(cx: &Cx, targets: &[Target], chap: &Chap) -> Result<Changed> {
    let there = sessions();
    let (known, missing): (Vec<&Target>, Vec<&Target>) =
        targets.iter().partition(|target| there.iter().any(|session| session.is_of(target)));
    let mut works = there.iter().any(|one| one.is_up() && known.iter().any(|of| one.is_of(of)));
    let (mut changed, mut failed) = (Changed::Already, None);
    for target in missing {
        let limited = if works { cx.within(SPARE) } else { cx.clone() };
        match login(&limited, target, chap).await {
            Ok(_) => (works, changed) = (true, Changed::Created),
            Err(error) => {
                cx.check()?;
                plugin_sdk::tracing::warn!(%error, "a portal cannot be used");
                failed.get_or_insert(error);
            }
        }
    }
    match failed {
        Some(error) if !works => Err(error),
        _ => Ok(changed),
    }
}

/// Ends a session, and forgets its record with the password in it. `already` if there is none.
pub async fn logout(cx: &Cx, session: &Session) -> Result<Changed> {
    // By its number, which no later session has: whatever became of its record, this one ends.
    let words = ["-m", "session", "-r", &session.number.to_string(), "--logout"];
    let what = format!("{} at {}", session.iqn, session.portal);
    let changed = match admin(cx, &words, None).await? {
        Ok(_) => Changed::Modified,
        // It has ended by itself: the status says of such a number only that it cannot be read.
        Err(_) if !sessions().iter().any(|one| one.number == session.number) => Changed::Already,
        Err((failure, words)) => return Err(failure.error(&what, 69).backend(words)),
    };
    forget(cx, &session.iqn, &session.portal).await;
    Ok(changed)
}

/// Has the kernel look for new disks of a session. Those that are there stay as they are; for their
/// size see [`block::Disk::refresh`].
pub async fn rescan(cx: &Cx, session: &Session) -> Result<()> {
    block::scan_host(cx, session.host).await
}

/// Runs `iscsiadm`: what it said, or why it failed and what it said to that.
async fn admin(
    cx: &Cx,
    words: &[&str],
    more: Option<&[&str]>,
) -> Result<std::result::Result<String, (Failure, String)>> {
    let command = cx.within(ADMIN).command("iscsiadm").args(words).args(more.unwrap_or_default());
    let output = command.output().await?;
    if output.status == 0 {
        return Ok(Ok(output.text().into_owned()));
    }
    let words = failure::last_words(&String::from_utf8_lossy(&output.stderr));
    Ok(Err((Failure::of(output.status), words)))
}
