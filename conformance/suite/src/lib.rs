//! Runs the checks of the contract (`docs/driver-spec.md`) against any driver, and certifies what
//! held.
//!
//! 1. [`catalog`]: the list of all checks, built or not, and the levels they belong to;
//!    [`requirement`]: the sentences they hold a driver to.
//! 2. `checks`: what they do. Each has an SR of its own and the driver in a process of its own
//!    (`world`), so that one that dies or hangs takes neither the suite nor the next check with it.
//! 3. What they are judged by: content that says what it is (`oracle`), what the backend and the
//!    system hold apart from what the driver says (`inventory`), a model (`checks::sequences`).
//! 4. [`mod@run`]: the order, the states, the journal of what a run owns; [`certificate`]: what is
//!    written down, [`sign`]: by whom; [`page`] and [`matrix`]: the same to look at.
//!
//! A driver's own tests are one line:
//!
//! ```no_run
//! sm_conformance::suite! {
//!     driver: "sm_driver_mine",
//!     level: L2,
//!     config: r#"
//!         [device-config]
//!         location = "{scratch}"
//!         [backend]
//!         directory = "{scratch}"
//!     "#,
//! }
//! # fn main() {}
//! ```
//!
//! Why a driver port and not the core: the core's journal answers a repeated call by itself, and
//! its state machine refuses what a driver should; a check of the driver has to reach it.
//!
//! Why no test harness: which checks there are follows from what a driver declares, at run time,
//! and a check has five states where a test has two.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod bench;
pub mod catalog;
pub mod certificate;
mod checks;
mod cleanup;
pub mod config;
mod dice;
mod disk;
mod inventory;
mod logbook;
pub mod matrix;
mod oracle;
pub mod page;
pub mod part;
mod plot;
pub mod report;
pub mod requirement;
pub mod run;
mod services;
pub mod sign;
mod strace;
mod verdict;
mod world;

use std::io;
use std::path::{Path, PathBuf};

pub use catalog::Level;
pub use certificate::Certificate;
pub use cleanup::cleanup;
pub use config::Config;
pub use run::{RunOptions, run};
pub use verdict::State;

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be used.
    #[error("{path}: {source}", path = path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is not what it should be.
    #[error("{path} cannot be read: {source}", path = path.display())]
    Json {
        /// Which.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// The configuration is wrong.
    #[error("{path}: {why}", path = path.display())]
    Config {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The file is no driver.
    #[error("the driver is refused: {0}")]
    Driver(sm_model::Error),
    /// The backend is somebody's.
    #[error(
        "{directory} holds {holds}, which this run has not made: give an empty place, or say \
         `foreign = true` in [backend]",
        directory = directory.display(), holds = holds.display()
    )]
    Foreign {
        /// The folder.
        directory: PathBuf,
        /// What is in it.
        holds: PathBuf,
    },
    /// The backend cannot be looked at.
    #[error("the backend cannot be looked at: {0}")]
    Backend(String),
    /// No check was run.
    #[error("no check was run: {0}")]
    Nothing(String),
    /// A file is no key.
    #[error(
        "{path} holds no {what} key of ed25519 in PEM: `openssl genpkey -algorithm ed25519` makes \
         one, `openssl pkey -pubout` writes its public part", path = path.display()
    )]
    Key {
        /// Which.
        path: PathBuf,
        /// `private` or `public`.
        what: &'static str,
    },
    /// There is no such check.
    #[error("{0} is no check: `sm-conformance list` names them")]
    Unknown(String),
}

impl Error {
    pub(crate) fn file(path: &Path, error: &io::Error) -> Self {
        let source = io::Error::new(error.kind(), error.to_string());
        Self::File { path: path.to_owned(), source }
    }

    pub(crate) fn json(path: &Path, error: &serde_json::Error) -> Self {
        let source = serde::de::Error::custom(error.to_string());
        Self::Json { path: path.to_owned(), source }
    }
}

/// What `explain` says of a check.
///
/// # Errors
/// If there is no check of that id or name.
pub fn explain(id: &str) -> Result<String, Error> {
    use std::fmt::Write as _;
    let row = catalog::rows().iter().find(|row| row.id == id || row.name == id);
    let row = row.ok_or_else(|| Error::Unknown(id.to_owned()))?;
    let level = row.level.map_or_else(|| "the suite itself".to_owned(), |l| l.to_string());
    let mut text = format!("{} {} ({level})\nHolds when: {}\n", row.id, row.name, row.holds);
    if let Some(check) = checks::find(row.id) {
        let _ = write!(text, "\n{}\n", check.explain);
        let needs: Vec<&str> = check.needs.iter().collect();
        if !needs.is_empty() {
            let _ = writeln!(text, "\nNeeds: {}", needs.join(", "));
        }
        for id in check.sentences {
            let said = requirement::find(id).map_or("", |found| found.text.as_str());
            let _ = write!(text, "\n{id}: {said}\n");
        }
    } else {
        let why = catalog::not_built().find(|(other, _)| other.id == row.id);
        let why = why.map_or("its own tests hold the suite to it", |(_, why)| why);
        let _ = write!(text, "\nNot built: {why}\n");
    }
    Ok(text)
}

/// Whether a check is built.
pub fn is_built(id: &str) -> bool {
    checks::find(id).is_some()
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// As [`run()`], for a test: the text of an error is the whole report.
///
/// The driver is a path, or the name of a library (`sm_driver_mine`, or an example) that cargo has
/// built for this test; then the newest one beside the test's own program is taken. The program
/// `sm-driver-host` is looked for there too, unless `SM_DRIVER_HOST` says where it is.
///
/// # Errors
/// If the level is not reached, with every check that blocks it.
pub fn hold(driver: impl AsRef<Path>, level: Level, config: &str) -> Result<Certificate, String> {
    let given = driver.as_ref();
    let driver = if given.components().count() > 1 || given.extension().is_some() {
        given.to_owned()
    } else {
        beside(&given.to_string_lossy())?
    };
    let config = Config::parse(config)?;
    let options = RunOptions { level, ..RunOptions::new(driver, config) };
    let certificate = run(&options, &mut |_| {}).map_err(|error| error.to_string())?;
    let text = report::text(&certificate, false);
    if certificate.level >= Some(level) { Ok(certificate) } else { Err(text) }
}

/// A library that cargo has built: dependencies are in the folder of the test, the package's own
/// libraries above it, examples beside that.
fn beside(name: &str) -> Result<PathBuf, String> {
    let program = std::env::current_exe().map_err(|error| format!("this program: {error}"))?;
    let places: Vec<PathBuf> = program.ancestors().skip(1).take(2).map(Path::to_owned).collect();
    let examples = places.last().map(|above| above.join("examples"));
    let file = format!("lib{}.so", name.replace('-', "_"));
    let found = places.iter().chain(&examples).map(|place| place.join(&file));
    let newest =
        found.filter_map(|path| Some((path.metadata().ok()?.modified().ok()?, path))).max();
    newest.map(|(_, path)| path).ok_or_else(|| {
        format!(
            "{file} is not beside {}: its crate needs `crate-type = [\"cdylib\", \"rlib\"]` and \
             must be the test's own or a dependency of it",
            program.display()
        )
    })
}

/// Makes a test that holds a driver to a level.
#[macro_export]
macro_rules! suite {
    (driver: $driver:expr, level: $level:ident, config: $config:expr $(,)?) => {
        #[test]
        fn conformance() -> ::std::result::Result<(), ::std::string::String> {
            let certificate = $crate::hold($driver, $crate::Level::$level, $config)?;
            print!("{}", $crate::report::text(&certificate, false));
            Ok(())
        }
    };
}
