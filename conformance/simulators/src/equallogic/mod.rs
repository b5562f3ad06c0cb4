//! A Dell EqualLogic PS group: its command line over SSH, one target for each volume.
//!
//! | module | what |
//! |---|---|
//! | [`command`] | the grammar |
//! | [`screen`] | how replies are printed |
//! | [`execute`] | what commands do |
//! | [`names`] | identifiers, targets, names by time |
//! | `server`, `shell` | SSH; one session with its settings, events, pager, faults |
//!
//! What is certain comes from published clients of such groups and from texts that their users have
//! published; where nobody knows, both ways can be set, see `shell::Habits`.

pub mod command;
pub mod execute;
pub mod names;
pub mod screen;
mod server;
mod shell;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

pub use self::server::CommandLine;
use crate::admin::{self, Admin};
use crate::core::{
    Array, Export, Identity, Options, Settings, Snapshot, Trouble, Vendor, View, Volume, Who,
};
use crate::{Plan, iscsi};

/// The personality.
#[derive(Clone, Copy, Debug, Default)]
pub struct PsGroup;

/// The plan of a group: pages of 15 MB take long to fill in tests, so accounting is finer.
pub fn plan(pool: u64) -> Plan {
    let settings = Settings { sessions: Some(7), ..Settings::default() };
    let pools = vec![("default".to_owned(), pool)];
    Plan { options: Options { page: 64 << 10, pools, settings }, ..Plan::default() }
}

/// Who reaches an object by its access records, and with which CHAP account.
fn who(attributes: &serde_json::Map<String, Value>) -> Option<(Who, Option<String>)> {
    let records = execute::records(attributes);
    let first = records.first()?;
    let names: Option<Vec<String>> =
        records.iter().map(|record| record["initiator"].as_str().map(str::to_owned)).collect();
    let who = names.map_or(Who::All, Who::Only);
    Some((who, first["chap"].as_str().map(str::to_owned)))
}

impl Vendor for PsGroup {
    fn name(&self) -> &'static str {
        "equallogic"
    }

    fn exports(&self, view: &View) -> Vec<Export> {
        let secrets = view.get::<Settings>("").map(|s| s.vendor.get("chap").cloned());
        let secrets = secrets.flatten().unwrap_or(Value::Null);
        let export =
            |key: &str, uuid: &str, target, snapshot, (who, chap): (Who, Option<String>)| {
                let secret = |user: &String| secrets[user].as_str().unwrap_or_default().to_owned();
                Export {
                    target,
                    lun: 0,
                    volume: key.to_owned(),
                    snapshot,
                    who,
                    chap: chap.map(|user| (user.clone(), secret(&user))),
                    read_only: snapshot,
                    block: 512,
                    identity: Identity {
                        vendor: "EQLOGIC".to_owned(),
                        product: "100E-00".to_owned(),
                        revision: "8.1".to_owned(),
                        serial: names::naa(uuid).to_ascii_uppercase(),
                        naa: names::naa(uuid),
                    },
                }
            };
        let mut exports = Vec::new();
        for (key, volume) in view.all::<Volume>() {
            let ready = volume.online && !volume.attributes.contains_key(execute::COPYING);
            if let (true, Some(who)) = (ready, who(&volume.attributes)) {
                let target = names::of_volume(&key, &volume);
                exports.push(export(&key, &volume.uuid, target, false, who));
            }
        }
        for (key, snapshot) in view.all::<Snapshot>() {
            let online = snapshot.attributes.get("online") == Some(&Value::Bool(true));
            if let (true, Some(who)) = (online, who(&snapshot.attributes)) {
                let target = names::of_snapshot(&key, &snapshot);
                exports.push(export(&key, &snapshot.uuid, target, true, who));
            }
        }
        exports
    }
}

/// A group that runs in this process until it is dropped. Its state stays in its folder.
#[derive(Debug)]
pub struct Group {
    /// The array itself.
    pub array: Array,
    /// Its command line.
    pub command_line: CommandLine,
    targets: iscsi::Targets,
    admin: Admin,
}

impl Group {
    /// Starts a group from the state in a folder if there is one. There is no TLS.
    pub async fn start(folder: &Path, plan: &Plan) -> Result<Self, Trouble> {
        let array = Array::open(folder, &plan.options)?;
        array.set(|_| ())?;
        forget_copies(&array)?;
        let targets = iscsi::serve(plan.iscsi, array.clone(), Arc::new(PsGroup)).await?;
        let admin = admin::serve(plan.admin, array.clone(), Arc::new(PsGroup)).await?;
        let command_line = server::serve(plan.listen, array.clone(), folder).await?;
        Ok(Self { array, command_line, targets, admin })
    }

    /// What the program prints when it has started.
    pub fn describe(&self) -> Value {
        serde_json::json!({
            "ssh": self.command_line.address.to_string(),
            "fingerprint": self.command_line.fingerprint,
            "portal": self.portal().to_string(),
            "admin": format!("http://{}", self.admin.address),
        })
    }

    /// Where its LUNs are.
    pub fn portal(&self) -> SocketAddr {
        self.targets.address
    }

    /// The array loses power and comes back: sessions are gone, and copies that were not whole.
    pub fn restart(&self) -> Result<(), Trouble> {
        self.array.restart()?;
        forget_copies(&self.array)
    }

    /// All objects as lines: what a leak is looked for in.
    pub fn inventory(&self) -> Vec<String> {
        let view = self.array.current();
        let volumes = view.all::<Volume>().into_iter().map(|(key, volume)| {
            format!("volume {key} {} online={} {:?}", volume.size, volume.online, volume.attributes)
        });
        let snapshots = view.all::<Snapshot>().into_iter();
        let snapshots =
            snapshots.map(|(key, snapshot)| format!("snapshot {key} {:?}", snapshot.attributes));
        volumes.chain(snapshots).collect()
    }
}

/// A clone that was not whole when the array went down is none.
fn forget_copies(array: &Array) -> Result<(), Trouble> {
    array.change(|change| {
        for (key, volume) in change.all::<Volume>() {
            if volume.attributes.contains_key(execute::COPYING) {
                change.delete_volume(&key)?;
            }
        }
        Ok(())
    })
}
