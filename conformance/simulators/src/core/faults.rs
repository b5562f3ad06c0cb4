//! The fault script: which call goes wrong, and how.

use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

/// A line of the script.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// Which calls: the vendor's name of a call (`pool.dataset.create`), or method and path
    /// (`POST /api/v2.0/pool/dataset`). `*` stands for anything.
    pub call: String,
    /// How many of them pass before it begins.
    #[serde(default)]
    pub after: u64,
    /// How many of them it befalls; 0 is all.
    #[serde(default = "once")]
    pub times: u64,
    /// What goes wrong.
    pub effect: Effect,
}

fn once() -> u64 {
    1
}

/// What goes wrong.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Effect {
    /// The request is not carried out, and the connection ends.
    DropRequest,
    /// The request is carried out, and the connection ends without an answer.
    DropReply,
    /// The request is carried out, and nothing comes for so long; then the connection ends.
    Silence {
        /// How long.
        milliseconds: u64,
    },
    /// It is carried out, and half of the answer's body comes.
    HalfBody,
    /// It is carried out, and the connection is reset.
    Reset,
    /// It is carried out, and the answer comes byte by byte.
    SlowDrip {
        /// Between two bytes.
        milliseconds: u64,
    },
    /// It is carried out, and the answer is not what it should be: status 200 and nonsense.
    Garbage,
    /// It is not carried out; status 200 and a page for people.
    LoginPage,
    /// It is not carried out; this status.
    Refuse {
        /// 401, 403, 429, 503, 504...
        status: u16,
        /// The header `Retry-After`, seconds or a date.
        #[serde(default)]
        retry_after: Option<String>,
        /// The body, or the line of a text protocol. The vendor's own where it is left out.
        #[serde(default)]
        body: Option<String>,
    },
    /// It is carried out, and answered with this status.
    FailAfter {
        /// 500, 502, 504...
        status: u16,
    },
    /// It is carried out well, but later.
    Delay {
        /// How much.
        milliseconds: u64,
    },
    /// It is carried out, and for a while reads show what was before.
    Stale {
        /// How long.
        milliseconds: u64,
    },
    /// Its job fails; what it made is there.
    JobFails {
        /// The job's error.
        error: String,
    },
    /// Its job runs and is never heard of again: no record of it.
    JobLost,
    /// The session that asks is ended first.
    EndSession,
    /// The simulator kills itself before it carries out the request.
    DieBefore,
    /// The simulator carries out the request and kills itself.
    DieAfter,
}

impl Effect {
    /// Whether the request is carried out.
    pub fn carries_out(&self) -> bool {
        !matches!(self, Self::DropRequest | Self::LoginPage | Self::Refuse { .. } | Self::DieBefore)
    }
}

/// The script, with how far it is.
#[derive(Debug, Default)]
pub struct Faults(Mutex<Vec<(Fault, u64)>>);

impl Faults {
    fn lock(&self) -> MutexGuard<'_, Vec<(Fault, u64)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a line.
    pub fn add(&self, fault: Fault) {
        self.lock().push((fault, 0));
    }

    /// Forgets the script.
    pub fn clear(&self) {
        self.lock().clear();
    }

    /// Lines that have not befallen as many calls as they shall.
    pub fn left(&self) -> Vec<Fault> {
        let lines = self.lock();
        let open =
            |(fault, seen): &&(Fault, u64)| fault.times == 0 || *seen < fault.after + fault.times;
        lines.iter().filter(open).map(|(fault, _)| fault.clone()).collect()
    }

    /// What befalls this call, known under several names. Counts it.
    pub fn hit(&self, names: &[&str]) -> Option<Effect> {
        let mut effect = None;
        for (fault, seen) in self.lock().iter_mut() {
            if !names.iter().any(|name| matches(&fault.call, name)) {
                continue;
            }
            *seen += 1;
            let on =
                *seen > fault.after && (fault.times == 0 || *seen <= fault.after + fault.times);
            if on && effect.is_none() {
                effect = Some(fault.effect.clone());
            }
        }
        effect
    }
}

fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(rest) = parts.next().and_then(|first| name.strip_prefix(first)) else { return false };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    let mut rest = rest;
    for part in middle {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}
