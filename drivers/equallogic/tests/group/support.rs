//! A group, and an SR on it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use array_matrix::wishes::SR;
use array_matrix::{Facts, Simulated, Vendor, runtime};
use array_sim::core::NewVolume;
use array_sim::equallogic::{Group, PsGroup as Personality, plan};
use plugin_sdk::prelude::*;
use plugin_sdk::testing::{Opened, TestHost};
use serde_json::{Value, json};
use sm_driver_equallogic::PsGroup;
use sm_driver_equallogic::array::NAMES;

pub(crate) use array_matrix::wishes::{MIB, clone, create, snapshot, vdi};
pub(crate) use plugin_sdk::testing::run;

/// The password of the simulator's account, and one that must not be seen anywhere.
pub(crate) const PASSWORD: &str = "canary-of-the-password";
/// The same for CHAP.
pub(crate) const CHAP: &str = "canary-of-chap-1";

/// The driver, with a host that needs no iSCSI.
pub(crate) type Driver = array_matrix::sr::Driver<Ps, false>;
/// An SR, and who wants something of it.
pub(crate) type Sr = array_matrix::Sr<Ps>;

/// A group.
pub(crate) struct Ps;

impl Vendor for Ps {
    type Product = PsGroup;
    const LIBRARY: &'static str = "libsm_driver_equallogic.so";
    const DOCUMENT: &'static str = include_str!("../../../../docs/drivers/equallogic.md");

    const FACTS: Facts = Facts {
        reads: &["*.list", "*.show"],
        logins: &["settings"],
        sessions: 7,
        // A group answers with what it has just done.
        stale: 0,
        // No command lists descriptions: each is asked for once.
        first_scan: |volumes| 3 + volumes,
        scan: |_| 6,
        // A line of text says that it is busy.
        retry_after: false,
        snapshots_attach: true,
        // A command line shows no pages; what it prints in the place of an answer ends with no prompt,
        // which is silence (`sessions.rs`).
        cannot: &["nonsense", "page for people"],
        steps: &[
            "array.made_without_text",
            "array.make_intended",
            "array.made_unnamed",
            "array.name_intended",
            "array.named",
            "equallogic.cloned",
            "equallogic.restore_offline",
            "equallogic.restored",
            "equallogic.restore_online",
            "equallogic.offline",
        ],
        ..Facts::new(NAMES, "36090a0", 15 * MIB)
    };

    async fn start(folder: &Path) -> Simulated {
        start(folder, &[], 1 << 40).await.1
    }

    /// Copies are whole when the group answers.
    fn steady(simulated: &Simulated) {
        habits(simulated, &[("clone_waits", json!(true))]);
    }
}

/// A group with habits, a pool of so many bytes, and somebody else's volumes.
async fn start(folder: &Path, given: &[(&str, Value)], pool: u64) -> (Arc<Group>, Simulated) {
    let group = Arc::new(Group::start(folder, &plan(pool)).await.unwrap());
    let array = group.array.clone();
    array
        .change(|change| {
            for name in ["payroll", "smv-by-hand"] {
                let mut new = NewVolume::thin("default", 30 * MIB);
                new.attributes.insert("description".into(), "not ours".into());
                change.create_volume(name, new)?;
                let nightly = format!("{name}/nightly");
                change.create_snapshot(name, &nightly, serde_json::Map::new())?;
            }
            Ok::<_, array_sim::core::Trouble>(())
        })
        .unwrap();
    let line = &group.command_line;
    let locks = folder.join("locks");
    std::fs::create_dir(&locks).unwrap();
    // A driver's process is another user's, where the test is root's.
    let all = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(&locks, all).unwrap();
    let config = vec![
        ("target", "127.0.0.1".to_owned()),
        ("port", line.address.port().to_string()),
        ("username", "vms".to_owned()),
        ("password", PASSWORD.to_owned()),
        ("storagepool", "default".to_owned()),
        ("host-key-fingerprint", line.fingerprint.clone()),
        ("session-directory", locks.display().to_string()),
    ];
    let again = Arc::clone(&group);
    let simulated = Simulated::new(&array, Personality, config, &[PASSWORD], Arc::clone(&group))
        .restarted_by(move || again.restart().unwrap());
    habits(
        &simulated,
        &[("accounts", json!({ "vms": PASSWORD })), ("chap", json!({ "vms": CHAP }))],
    );
    habits(&simulated, given);
    (group, simulated)
}

fn habits(simulated: &Simulated, given: &[(&str, Value)]) {
    let set = |settings: &mut array_sim::core::Settings| {
        let given = given.iter().map(|(habit, value)| ((*habit).to_owned(), value.clone()));
        settings.vendor.extend(given);
    };
    simulated.array.set(set).unwrap();
}

/// A group without an SR.
pub(crate) struct Fixture {
    pub(crate) group: Arc<Group>,
    pub(crate) simulated: Simulated,
    pub(crate) folder: tempfile::TempDir,
    pub(crate) extra: Vec<(&'static str, String)>,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        Self::with(&[], 1 << 40)
    }

    /// A group with habits, and a pool of so many bytes.
    pub(crate) fn with(habits: &[(&str, Value)], pool: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (group, simulated) = runtime().block_on(start(folder.path(), habits, pool));
        Self { group, simulated, folder, extra: Vec::new() }
    }

    pub(crate) fn config(&self) -> Vec<(&'static str, String)> {
        let mut config = self.simulated.config.clone();
        config.retain(|(key, _)| self.extra.iter().all(|(other, _)| key != other));
        config.extend_from_slice(&self.extra);
        config
    }

    pub(crate) async fn open(&self, host: &TestHost) -> Result<Opened<Driver>> {
        array_matrix::sr::open::<Ps, false>(host, &self.config()).await
    }

    /// The driver on it, with an SR to come.
    pub(crate) async fn sr(self) -> Result<Sr> {
        Sr::on(self.folder, self.simulated, &self.extra).await
    }
}

/// The name of a VDI's volume.
pub(crate) fn name(n: u32) -> String {
    Ps::name(SR, vdi(n))
}

/// How often each command came since the last look.
pub(crate) fn counts(simulated: &Simulated) -> BTreeMap<String, u64> {
    let counts = simulated.array.requests().counts();
    simulated.array.requests().clear();
    counts.into_iter().filter(|(call, _)| call != "settings").collect()
}
