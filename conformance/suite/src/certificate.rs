//! What is written down of a run, so that it can be believed later.
//!
//! Canonical JSON: keys sorted, no space, one line feed at the end. The hash is over the same text
//! without the hash; so any changed bit of the file is found, in a result or in a space.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::bench::Bench;
use crate::catalog::{self, Level};
use crate::part::Part;
use crate::sign::{PrivateKey, PublicKey, Signature};
use crate::verdict::State;
use crate::{Error, RunOptions, requirement};

/// Version of the document's shape.
const FORMAT: u32 = 1;

/// A run and its results.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Certificate {
    /// Version of this document's shape.
    pub format: u32,
    /// Version of the suite.
    pub suite: String,
    /// Hash over the sentences of the contract.
    pub requirements: String,
    /// The driver.
    pub driver: DriverFacts,
    /// The configuration, without secrets.
    pub config: Value,
    /// Where chance began.
    pub seed: u64,
    /// Seconds since 1970-01-01 UTC at the end.
    pub time: u64,
    /// The machine.
    pub environment: BTreeMap<String, String>,
    /// The level that was asked for.
    pub asked: Level,
    /// The checks that were chosen by hand; then no level is given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub only: Vec<String>,
    /// The part of the checks that was run, where it was not all; then no level is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<Part>,
    /// The highest level that holds, of the checks that are built.
    pub level: Option<Level>,
    /// How many results there are of each state.
    pub counts: Counts,
    /// Checks of the levels asked for that this suite does not have yet, by id.
    pub not_built: Vec<String>,
    /// The results.
    pub results: Vec<Entry>,
    /// SHA-256 of all above.
    #[serde(default)]
    pub sha256: String,
    /// Who says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<Signature>,
}

/// Which driver it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DriverFacts {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Version of the binary interface it was built for.
    pub abi: String,
    /// Version of the SDK.
    pub sdk: String,
    /// SHA-256 of its file.
    pub sha256: String,
}

/// How many results there are of each state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counts {
    /// Ran and held.
    pub pass: usize,
    /// Ran and did not hold.
    pub fail: usize,
    /// Honestly absent.
    pub not_applicable: usize,
    /// Could not be tried here.
    pub not_testable: usize,
    /// Known to fail, for a while.
    pub waived: usize,
}

/// The result of one check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its level.
    pub level: Option<Level>,
    /// The state.
    pub state: State,
    /// Why, if it is not a pass.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// How long it took.
    pub milliseconds: u64,
    /// The sentences of the contract that it covers.
    pub sentences: Vec<String>,
    /// How long the driver's calls took.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub calls: BTreeMap<String, Timing>,
    /// The command that does it again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay: Option<String>,
}

/// How long calls of one operation took.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Timing {
    /// How many there were.
    pub calls: usize,
    /// Half took no longer, in milliseconds.
    pub p50_ms: u64,
    /// All but a twentieth took no longer.
    pub p95_ms: u64,
}

impl Certificate {
    /// The text of the file.
    ///
    /// # Errors
    /// If it cannot be written as JSON, which is a defect.
    pub fn text(&self) -> Result<String, Error> {
        let mut value = self.value()?;
        if let Value::Object(map) = &mut value {
            map.insert("sha256".into(), self.hash()?.into());
        }
        Ok(canonical(&value) + "\n")
    }

    fn value(&self) -> Result<Value, Error> {
        serde_json::to_value(self).map_err(|error| Error::json(Path::new("certificate"), &error))
    }

    fn hash(&self) -> Result<String, Error> {
        let mut value = self.value()?;
        if let Value::Object(map) = &mut value {
            map.remove("sha256");
            map.remove("signature");
        }
        Ok(crate::hex(&Sha256::digest(canonical(&value))))
    }

    /// Signs it.
    ///
    /// # Errors
    /// As [`Certificate::text`].
    pub fn sign(&mut self, key: &PrivateKey) -> Result<(), Error> {
        self.signature = Some(key.sign(&self.unsigned()?));
        Ok(())
    }

    /// What is signed: the text of the file as it would be without a signature.
    fn unsigned(&self) -> Result<String, Error> {
        Self { signature: None, ..self.clone() }.text()
    }

    /// Reads a certificate, and finds any bit that was changed since it was written; of one that
    /// is signed also that it is not by the key that it names.
    ///
    /// # Errors
    /// What is wrong with it, in a sentence.
    pub fn verify(text: &str) -> Result<Self, String> {
        let read: Self = serde_json::from_str(text)
            .map_err(|error| format!("the certificate cannot be read: {error}"))?;
        let right = read.text().map_err(|error| error.to_string())?;
        if right != text {
            return Err("the certificate was changed after it was written: its hash is not that \
                        of its content"
                .to_owned());
        }
        if let Some(signature) = &read.signature {
            signature.check(&read.unsigned().map_err(|error| error.to_string())?)?;
        }
        Ok(read)
    }

    /// As [`Certificate::verify`], and it must be signed by this key.
    ///
    /// # Errors
    /// What is wrong with it, in a sentence.
    pub fn verify_by(text: &str, key: &PublicKey) -> Result<Self, String> {
        let read = Self::verify(text)?;
        match &read.signature {
            None => Err("the certificate is not signed, and must be by the key given".to_owned()),
            Some(signature) if signature.key != key.text() => Err(format!(
                "the certificate is signed by the key {}, and must be by {}",
                signature.key,
                key.text()
            )),
            Some(_) => Ok(read),
        }
    }
}

/// JSON with sorted keys and nothing between.
fn canonical(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let sorted: BTreeMap<&String, &Value> = map.iter().collect();
            let pairs = sorted
                .iter()
                .map(|(key, value)| format!("{}:{}", Value::from(key.as_str()), canonical(value)));
            format!("{{{}}}", pairs.collect::<Vec<_>>().join(","))
        }
        Value::Array(items) => {
            format!("[{}]", items.iter().map(canonical).collect::<Vec<_>>().join(","))
        }
        simple => simple.to_string(),
    }
}

/// Puts together what a run found.
pub(crate) fn issue(
    bench: &Bench,
    options: &RunOptions,
    results: Vec<Entry>,
) -> Result<Certificate, Error> {
    let manifest = &bench.inspection.manifest;
    let config = serde_json::to_value(&bench.config)
        .map_err(|error| Error::json(Path::new("configuration"), &error))?;
    let in_levels = |level: Option<Level>| level.is_some_and(|level| level <= options.level);
    let certificate = Certificate {
        format: FORMAT,
        suite: env!("CARGO_PKG_VERSION").to_owned(),
        requirements: requirement::hash(),
        driver: DriverFacts {
            name: manifest.name.clone(),
            version: manifest.version.clone(),
            abi: manifest.abi.clone(),
            sdk: manifest.sdk.clone(),
            sha256: bench.sha256.clone(),
        },
        config,
        seed: bench.seed,
        time: std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |time| time.as_secs()),
        environment: environment(),
        asked: options.level,
        only: options.only.clone(),
        part: options.part,
        level: reached(options, &results),
        counts: count(&results),
        not_built: catalog::not_built()
            .filter(|(row, _)| in_levels(row.level))
            .map(|(row, _)| row.id.to_owned())
            .collect(),
        results,
        sha256: String::new(),
        signature: None,
    };
    Ok(Certificate { sha256: certificate.hash()?, ..certificate })
}

/// The highest level of which, and of those below, nothing blocks.
fn reached(options: &RunOptions, results: &[Entry]) -> Option<Level> {
    let chosen = !options.only.is_empty() || options.part.is_some();
    if chosen || options.fail_fast && results.iter().any(|e| blocks(e.state)) {
        return None;
    }
    let blocked = results.iter().filter(|e| blocks(e.state)).filter_map(|e| e.level).min();
    let levels = Level::ALL.into_iter().take_while(|level| blocked.is_none_or(|b| *level < b));
    let ran =
        |level: Level| results.iter().any(|e| e.level == Some(level) && e.state == State::Pass);
    levels.filter(|level| *level <= options.level && ran(*level)).max()
}

/// Whether a state keeps a level from being given.
pub(crate) fn blocks(state: State) -> bool {
    matches!(state, State::Fail | State::NotTestable)
}

fn count(results: &[Entry]) -> Counts {
    let of = |state: State| results.iter().filter(|entry| entry.state == state).count();
    Counts {
        pass: of(State::Pass),
        fail: of(State::Fail),
        not_applicable: of(State::NotApplicable),
        not_testable: of(State::NotTestable),
        waived: of(State::Waived),
    }
}

fn environment() -> BTreeMap<String, String> {
    let system = rustix::system::uname();
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    [
        ("kernel", system.release().to_string_lossy().into_owned()),
        ("machine", system.machine().to_string_lossy().into_owned()),
        ("processors", processors.to_string()),
        ("root", rustix::process::geteuid().is_root().to_string()),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(level: Level, state: State) -> Entry {
        Entry {
            id: "A01".into(),
            name: "n".into(),
            level: Some(level),
            state,
            reason: Some("a reason \u{2764} \"quoted\"".into()),
            milliseconds: 5,
            sentences: vec!["DRV-LOAD-1".into()],
            calls: BTreeMap::from([("b".into(), Timing { calls: 1, p50_ms: 2, p95_ms: 3 })]),
            replay: None,
        }
    }

    fn certificate() -> Certificate {
        Certificate {
            format: FORMAT,
            suite: "1".into(),
            requirements: "r".into(),
            driver: DriverFacts {
                name: "d".into(),
                version: "1".into(),
                abi: "1.0".into(),
                sdk: "1".into(),
                sha256: "s".into(),
            },
            config: serde_json::json!({"z": 1, "a": {"y": [1, 2], "b": null}}),
            seed: 7,
            time: 8,
            environment: BTreeMap::new(),
            asked: Level::L2,
            only: vec![],
            part: None,
            level: Some(Level::L2),
            counts: Counts::default(),
            not_built: vec!["A02".into()],
            results: vec![entry(Level::L0, State::Pass)],
            sha256: String::new(),
            signature: None,
        }
    }

    #[test]
    fn any_changed_bit_is_found() {
        let mut signed = certificate();
        signed.sign(&crate::sign::for_tests()).unwrap();
        for certificate in [certificate(), signed] {
            let text = certificate.text().unwrap();
            let read = Certificate::verify(&text).unwrap();
            assert_eq!(read.text().unwrap(), text);
            for at in 0..text.len() {
                for bit in 0..8 {
                    let mut bytes = text.clone().into_bytes();
                    bytes[at] ^= 1 << bit;
                    if let Ok(changed) = String::from_utf8(bytes) {
                        assert!(Certificate::verify(&changed).is_err(), "bit {bit} of byte {at}");
                    }
                }
            }
            assert!(Certificate::verify(&format!("{text} ")).is_err());
        }
    }

    #[test]
    fn a_level_is_given_only_if_nothing_below_or_in_it_blocks() {
        let options = RunOptions {
            level: Level::L5,
            ..RunOptions::new("d".into(), crate::Config::default())
        };
        let entries = |results: &[(Level, State)]| -> Vec<Entry> {
            results.iter().map(|(level, state)| entry(*level, *state)).collect()
        };
        let reached = |results: &[(Level, State)]| reached(&options, &entries(results));
        let (l0, l1, l2, l5) = (Level::L0, Level::L1, Level::L2, Level::L5);
        assert_eq!(reached(&[(l0, State::Pass), (l1, State::Pass), (l2, State::Waived)]), Some(l1));
        assert_eq!(
            reached(&[(l0, State::Pass), (l1, State::NotTestable), (l2, State::Pass)]),
            Some(l0)
        );
        assert_eq!(reached(&[(l0, State::Fail), (l1, State::Pass)]), None);
        assert_eq!(reached(&[(l0, State::Pass), (l2, State::NotApplicable)]), Some(l0));
        assert_eq!(reached(&[(l0, State::Pass), (l5, State::Pass)]), Some(l5));
    }

    #[test]
    fn of_some_of_the_checks_no_level_follows() {
        let all = RunOptions::new("d".into(), crate::Config::default());
        let part = RunOptions { part: "1/1".parse().ok(), ..all.clone() };
        let only = RunOptions { only: vec!["A01".into()], ..all.clone() };
        let passed = [entry(Level::L0, State::Pass)];
        assert_eq!(reached(&all, &passed), Some(Level::L0));
        assert_eq!([reached(&part, &passed), reached(&only, &passed)], [None, None]);
    }
}
