//! Named crash points.
//!
//! [`step!`] marks a place between two effects. It is always compiled in and does nothing, at the
//! cost of one relaxed load, until the environment variable `SM_STEP_KILL` names it: then the
//! process kills itself with SIGKILL there, as a power cut or an `oom-killer` would.
//!
//! ```text
//! SM_STEP_KILL=vdi_snapshot.switched      die at the first visit
//! SM_STEP_KILL=vdi_snapshot.switched:3    die at the third visit
//! ```
//!
//! `SM_STEP_LOG` names a file to which each visit is appended, a line with the step's name, so that
//! a test needs to kill an operation only where it comes by.
//!
//! Every name is also written into the ELF section [`SECTION`] of the file it is compiled into, so
//! a test enumerates the steps of a driver by reading its `.so`, and no step can be forgotten.
//!
//! Why not the `fail` crate: its registry is one static per shared library, so a host could not
//! arm the points of a driver, nor list them without running it.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// Name of the ELF section that holds the names of all steps, each ended by a NUL byte.
pub const SECTION: &str = ".sm_steps";

/// The variable that arms a step: its name, optionally `:` and which visit kills.
pub const VARIABLE: &str = "SM_STEP_KILL";

/// The variable that names a file for the visits.
pub const LOG: &str = "SM_STEP_LOG";

/// Marks a crash point. The name is `operation.what_has_just_happened`.
#[macro_export]
macro_rules! step {
    ($name:literal) => {{
        const TEXT: &[u8] = concat!($name, "\0").as_bytes();
        #[used]
        #[unsafe(link_section = ".sm_steps")]
        static NAME: [u8; TEXT.len()] = {
            let mut bytes = [0; TEXT.len()];
            let mut i = 0;
            while i < TEXT.len() {
                bytes[i] = TEXT[i];
                i += 1;
            }
            bytes
        };
        $crate::visit(&NAME);
    }};
}

const UNKNOWN: u8 = 0;
const OFF: u8 = 1;
const ARMED: u8 = 2;

static STATE: AtomicU8 = AtomicU8::new(UNKNOWN);

/// What the environment asks for.
struct Asked {
    kill: Option<Armed>,
    log: Option<OsString>,
}

struct Armed {
    name: String,
    visit: u64,
    seen: AtomicU64,
}

fn asked() -> Option<&'static Asked> {
    static ASKED: OnceLock<Option<Asked>> = OnceLock::new();
    ASKED
        .get_or_init(|| {
            let asked = Asked { kill: armed(), log: std::env::var_os(LOG) };
            (asked.kill.is_some() || asked.log.is_some()).then_some(asked)
        })
        .as_ref()
}

fn armed() -> Option<Armed> {
    let value = std::env::var(VARIABLE).ok()?;
    let (name, visit) = match value.rsplit_once(':') {
        Some((name, visit)) => (name, visit.parse().ok()?),
        None => (value.as_str(), 1),
    };
    Some(Armed { name: name.to_owned(), visit, seen: AtomicU64::new(0) })
}

/// Called by [`step!`]; `name` ends with a NUL byte.
#[inline]
pub fn visit(name: &'static [u8]) {
    if STATE.load(Ordering::Relaxed) != OFF {
        visit_slow(name);
    }
}

#[cold]
fn visit_slow(name: &'static [u8]) {
    let Some(asked) = asked() else {
        STATE.store(OFF, Ordering::Relaxed);
        return;
    };
    STATE.store(ARMED, Ordering::Relaxed);
    let name = name.strip_suffix(b"\0").unwrap_or(name);
    if let Some(log) = &asked.log
        && let Ok(mut file) = OpenOptions::new().create(true).append(true).open(log)
    {
        // In one write, so that the lines of several processes do not mix.
        let _ = file.write_all(&[name, b"\n"].concat());
    }
    if let Some(armed) = &asked.kill
        && name == armed.name.as_bytes()
        && armed.seen.fetch_add(1, Ordering::Relaxed) + 1 == armed.visit
    {
        die();
    }
}

fn die() -> ! {
    // A signal that cannot be caught: no destructor, no flush, no unwinding, as in a real crash.
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    loop {
        std::thread::park();
    }
}

/// The names in a [`SECTION`]'s bytes, sorted, each once.
pub fn names(section: &[u8]) -> Vec<String> {
    let mut names: Vec<String> = section
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| String::from_utf8_lossy(name).into_owned())
        .collect();
    names.sort();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::names;

    #[test]
    fn names_are_split_sorted_and_deduplicated() {
        assert_eq!(names(b"b.two\0\0a.one\0b.two\0"), ["a.one", "b.two"]);
    }

    #[test]
    fn an_unarmed_step_does_nothing() {
        crate::step!("test.unarmed");
    }
}
