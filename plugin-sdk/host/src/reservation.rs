//! SCSI-3 persistent reservations of a LUN: the array refuses what a host writes that was shut out.
//!
//! Each host registers one key on all of its paths while it uses the LUN, which by itself keeps nobody
//! from anything. When a host is to be shut out, another one reserves the LUN for all who are registered
//! (write exclusive, all registrants) and takes that host's key from it: what it has on its way is
//! ended by the array, and what comes later is a reservation conflict. Everybody goes on reading.
//!
//! # Why not ...
//!
//! - **a reservation all the time**: a path that comes new has to be registered before its first write,
//!   which a host cannot make sure of while multipath takes paths up by itself. So there is one only
//!   from when a host was shut out to when it has come back.
//! - **write exclusive, registrants only**: one path of one host holds it; when that host lets go of
//!   the LUN, the one that was shut out can write. Of this kind, each who is registered holds it.
//! - **`mpathpersist`**: it wants the key in `multipath.conf`, which is the administrator's file.
//! - **the ioctls of the kernel**: they cannot tell who is registered.

use std::fmt;
use std::time::Duration;

use plugin_sdk::model::Kind;
use plugin_sdk::{Cx, Error, Result, step};

use crate::block::{Disk, ScsiId};

/// The program, of sg3-utils.
const PROGRAM: &str = "sg_persist";
/// Write exclusive, all registrants (SPC-4, table 60).
const TYPE: &str = "7";
/// Most time for one command. What has a host's requests ended waits for them.
const TIME: Duration = Duration::from_secs(30);
/// How often an answer is asked for that something else was told instead: a unit attention.
const TRIES: u32 = 4;
/// Exit statuses of sg_persist: a unit attention, a reservation conflict, and what it says of a
/// command that the LUN does not know (sg3_utils(8)).
const ATTENTION: i32 = 6;
const CONFLICT: i32 = 24;
const UNKNOWN: [i32; 2] = [5, 9];

/// What a host registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key(u64);

impl Key {
    /// The key of a host: the same wherever it is asked for, and not another one's.
    pub fn of_host(name: &str) -> Self {
        // FNV-1a, which no release of anything changes; "SM" in front for whoever looks.
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        Self(0x534d << 48 | (hash ^ hash >> 48) & 0xffff_ffff_ffff)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#018x}", self.0)
    }
}

/// What a LUN can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Support {
    /// Shut hosts out.
    Full {
        /// What it was told outlasts its power.
        lasting: bool,
    },
    /// Nothing, for this reason.
    None(String),
}

/// A LUN by the paths that lead to it.
pub struct Lun<'a> {
    cx: &'a Cx,
    id: &'a ScsiId,
    paths: Vec<Disk>,
}

impl<'a> Lun<'a> {
    /// A LUN of this host. Error with SMAPI's 47 if no path leads to it.
    pub fn new(cx: &'a Cx, id: &'a ScsiId) -> Result<Self> {
        let mut paths = crate::block::paths(id)?;
        paths.retain(Disk::is_running);
        if paths.is_empty() { Err(crate::block::gone(id)) } else { Ok(Self { cx, id, paths }) }
    }

    /// Whether hosts can be shut out.
    pub async fn support(&self) -> Result<Support> {
        match self.ask("report its capabilities", &["--report-capabilities"]).await {
            Ok(text) => Ok(support(&text)),
            Err(error) if error.kind == Kind::Unsupported => {
                Ok(Support::None(error.message.clone()))
            }
            Err(error) => Err(error),
        }
    }

    /// Who is registered, each once for each of its paths.
    pub async fn keys(&self) -> Result<Vec<Key>> {
        Ok(keys(&self.ask("list its keys", &["--read-keys"]).await?))
    }

    /// Whether it is reserved for those who are registered.
    pub async fn is_reserved(&self) -> Result<bool> {
        let text = self.ask("tell of a reservation", &["--read-reservation"]).await?;
        Ok(!text.contains("NO reservation"))
    }

    /// Registers this host on each path that is up, whatever it was registered as before. One path is
    /// enough: one that dies just now is registered by the next attach, or was before.
    pub async fn register(&self, key: Key, lasting: bool) -> Result<()> {
        let key = key.to_string();
        let mut words = vec!["--out", "--register-ignore", "--param-sark", &key];
        words.extend(lasting.then_some("--param-aptpl"));
        self.on_each("register this host", &words).await?;
        step!("lun.registered");
        Ok(())
    }

    /// Ends what [`Lun::register`] began. Not to be registered is fine.
    pub async fn unregister(&self) -> Result<()> {
        let words = ["--out", "--register-ignore", "--param-sark", "0"];
        self.on_each("forget this host", &words).await?;
        step!("lun.unregistered");
        Ok(())
    }

    /// The same on each path; an error if it works on none.
    async fn on_each(&self, what: &str, words: &[&str]) -> Result<()> {
        let (mut works, mut failed) = (false, None);
        for path in &self.paths {
            match self.tell(what, path, words).await {
                Ok(_) => works = true,
                Err(error) => {
                    plugin_sdk::tracing::warn!(%error, path = path.name, "a path is left out");
                    failed.get_or_insert(error);
                }
            }
        }
        failed.filter(|_| !works).map_or(Ok(()), Err)
    }

    /// Shuts a host out, by one that is registered. Once more is the same.
    pub async fn shut_out(&self, own: Key, other: Key) -> Result<()> {
        let own = own.to_string();
        let reserve = ["--out", "--reserve", "--param-rk", &own, "--prout-type", TYPE];
        self.tell("be reserved", self.first()?, &reserve).await?;
        step!("lun.reserved");
        if self.keys().await?.contains(&other) {
            let key = other.to_string();
            let take = [
                "--out",
                "--preempt-abort",
                "--param-rk",
                &own,
                "--param-sark",
                &key,
                "--prout-type",
                TYPE,
            ];
            let taken = self.tell("shut a host out", self.first()?, &take).await;
            // Somebody else may have done it just now.
            if taken.is_err() && self.keys().await?.contains(&other) {
                return taken.map(drop);
            }
            step!("lun.shut_out");
        }
        Ok(())
    }

    /// Ends the reservation, by a host that is registered.
    pub async fn release(&self, own: Key) -> Result<()> {
        let own = own.to_string();
        let words = ["--out", "--release", "--param-rk", &own, "--prout-type", TYPE];
        self.tell("be released", self.first()?, &words).await?;
        step!("lun.released");
        Ok(())
    }

    fn first(&self) -> Result<&Disk> {
        self.paths.first().ok_or_else(|| crate::block::gone(self.id))
    }

    /// A question, over whichever path answers.
    async fn ask(&self, what: &str, words: &[&str]) -> Result<String> {
        let mut answer = Err(crate::block::gone(self.id));
        for path in &self.paths {
            answer = self.tell(what, path, &[&["--in"], words].concat()).await;
            if !answer.as_ref().is_err_and(|error| error.kind == Kind::Unreachable) {
                break;
            }
        }
        answer
    }

    async fn tell(&self, what: &str, path: &Disk, words: &[&str]) -> Result<String> {
        let device = path.device();
        let mut tries = 0;
        let output = loop {
            let command = self.cx.within(TIME).command(PROGRAM).arg("--no-inquiry");
            let output = command.args(words).arg(&device).output().await;
            let output = output.map_err(|error| match error.kind {
                Kind::DeadlineExceeded if !self.cx.remaining().is_zero() => {
                    Error::new(Kind::Unreachable, error.message.clone())
                }
                _ => error,
            })?;
            tries += 1;
            // What was told instead is told once.
            if output.status != ATTENTION || tries == TRIES {
                break output;
            }
        };
        let id = self.id;
        let kind = match output.status {
            0 => return Ok(output.text().into_owned()),
            CONFLICT => Kind::Fenced,
            status if UNKNOWN.contains(&status) => Kind::Unsupported,
            _ => Kind::Unreachable,
        };
        let message = match kind {
            Kind::Fenced => format!("the LUN {id} refuses to {what}: this host is shut out"),
            Kind::Unsupported => format!("the LUN {id} has no persistent reservations"),
            _ => format!("the LUN {id} does not {what}"),
        };
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(Error::new(kind, message).context("device", &device).backend(said))
    }
}

fn support(text: &str) -> Support {
    let is = |what: &str| text.lines().any(|line| line.trim() == format!("{what}: 1"));
    if is("Type Mask Valid(TMV)") && is("Write Exclusive, all registrants") {
        Support::Full { lasting: is("Persist Through Power Loss Capable(PTPL_C)") }
    } else {
        Support::None("the LUN has no reservations for all registrants".to_owned())
    }
}

fn keys(text: &str) -> Vec<Key> {
    let words = text.lines().filter_map(|line| line.trim().strip_prefix("0x"));
    words.filter_map(|word| u64::from_str_radix(word, 16).ok()).map(Key).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hosts_key_is_always_the_same_and_no_other_hosts() {
        assert_eq!(Key::of_host("host").to_string(), "0x534df8cc7eaf0d18");
        let keys: std::collections::BTreeSet<Key> =
            (0..10_000).map(|number| Key::of_host(&format!("host{number}"))).collect();
        assert_eq!(keys.len(), 10_000);
    }

    #[test]
    fn what_sg_persist_says_is_read() {
        let text = "Report capabilities response:\n  Persist Through Power Loss Capable(PTPL_C): 1\n  \
                    Type Mask Valid(TMV): 1\n  Allow Commands: 1\n    Support indicated in Type mask:\n\
                    \u{20}     Write Exclusive, all registrants: 1\n      Exclusive Access: 1\n";
        assert_eq!(support(text), Support::Full { lasting: true });
        let forgets = text.replace("(PTPL_C): 1", "(PTPL_C): 0");
        assert_eq!(support(&forgets), Support::Full { lasting: false });
        for (one, other) in [("registrants: 1", "registrants: 0"), ("(TMV): 1", "(TMV): 0")] {
            let said = "the LUN has no reservations for all registrants".to_owned();
            assert_eq!(support(&text.replace(one, other)), Support::None(said));
        }
        let text = "  PR generation=0x3, 2 registered reservation keys follow:\n    \
                    0x534d000000000001\n    0x2\n";
        assert_eq!(keys(text), [Key(0x534d_0000_0000_0001), Key(2)]);
        assert!(keys("  PR generation=0x0, there are NO registered reservation keys\n").is_empty());
    }
}
