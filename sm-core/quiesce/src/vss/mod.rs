//! XenServer's conversation with the guest agent and the VSS provider of a Windows guest, as the
//! host's side of it: the guest's side has been installed for years and does not change.
//!
//! | path | who writes | what |
//! |---|---|---|
//! | `/local/domain/<n>/control/feature-snapshot` | guest | `1`: it can |
//! | `/local/domain/<n>/vm-data/allowvssprovider` | administrator | absent: yes; `false`: no; `true`: once |
//! | `/local/domain/<n>/control/snapshot/action` | host | `create-snapshot` |
//! | `/vss/<vm>/snapshot/<vdi>` | guest | empty: a disk that it wants a snapshot of |
//! | `/vss/<vm>/status` | both | a request, see [`Verb`]; then the host's answer to it |
//! | `/vss/<vm>/snapshot/<vdi>/id` | host | the snapshot |
//! | `/vss/<vm>/{snapinfo,snapuuid,snaptype}` | host | the set |
//! | `/local/domain/<n>/control/snapshot/status` | guest | `snapshot-created`, `snapshot-error` |
//! | `/local/domain/<n>/control/snapshot/snapid/<k>` | guest | the backup document, see `document.rs` |
//!
//! The provider waits in its commit, with the writers at rest, from `create-snapshots` to the
//! answer, and asks each second. An answer that it does not know ends its wait as an error of the
//! programmer, so the words are those that it compares with, also where XenServer's own daemon
//! writes others: that one answers a failed `destroy-snapshots` with `snapshot-destroy-failed`, for
//! which no provider waits.

mod document;
mod pages;

use std::time::{Duration, Instant};

use sm_model::{Error, Kind, Result, VdiUuid};
use uuid::Uuid;

use crate::quiescer::{Consistency, Frozen, Outcome, Quiescer, REFUSED, Ready, Thawed};
use crate::xenstore::XenStore;

/// What a provider can ask for in `/vss/<vm>/status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Take snapshots of the disks below `snapshot`.
    Create,
    /// Say what the snapshots below `snapshot` are to a SCSI host.
    Describe,
    /// Show the snapshots to this guest.
    Import,
    /// Take them away from it.
    Deport,
    /// Destroy them.
    Destroy,
}

impl Verb {
    const ALL: [Self; 5] =
        [Self::Create, Self::Describe, Self::Import, Self::Deport, Self::Destroy];

    /// The request, what answers that it was done, and what answers that it failed: exactly what
    /// the provider compares with.
    pub fn words(self) -> [&'static str; 3] {
        match self {
            Self::Create => ["create-snapshots", "snapshots-created", "snapshots-failed"],
            Self::Describe => {
                ["create-snapshotinfo", "snapshotinfo-created", "snapshotinfo-failed"]
            }
            Self::Import => ["import-snapshots", "snapshots-imported", "snapshot-import-failed"],
            Self::Deport => ["deport-snapshots", "snapshots-deported", "deport-snapshots-failed"],
            Self::Destroy => {
                ["destroy-snapshots", "snapshots-destroyed", "snapshots-destroy-failed"]
            }
        }
    }

    /// The verb of a request; none of an answer, and of what nobody knows.
    pub fn of(status: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|verb| verb.words()[0] == status)
    }
}

/// How long the store may take for an answer beside what the guest may.
const WORD: Duration = Duration::from_secs(1);

/// How a store is connected to.
type Connect<S> = dyn Fn(Instant) -> Result<S> + Send;

/// A Windows guest behind XenStore.
pub struct Vss<S> {
    connect: Box<Connect<S>>,
    store: Option<S>,
    domain: u32,
    set: Uuid,
    /// `/vss/<vm>`, once it is known.
    base: String,
    vm: String,
    /// The disks that the guest has asked for.
    asked: Vec<VdiUuid>,
}

impl<S: XenStore> Vss<S> {
    /// The guest in `domain`, of a store that `connect` reaches.
    pub fn new(
        connect: impl Fn(Instant) -> Result<S> + Send + 'static,
        domain: u32,
        set: Uuid,
    ) -> Self {
        Self {
            connect: Box::new(connect),
            store: None,
            domain,
            set,
            base: String::new(),
            vm: String::new(),
            asked: Vec::new(),
        }
    }

    fn store(&mut self, until: Instant) -> Result<&mut S> {
        if self.store.is_none() {
            self.store = Some((self.connect)(until)?);
        }
        self.store.as_mut().ok_or_else(|| Error::internal("the store that was just found is gone"))
    }

    fn own(&self, path: &str) -> String {
        format!("/local/domain/{}/{path}", self.domain)
    }

    fn control(&self, path: &str) -> String {
        self.own(&format!("control/snapshot/{path}"))
    }

    fn read(&mut self, path: &str, until: Instant) -> Result<Option<String>> {
        self.store(until)?.read(path, until)
    }

    fn write(&mut self, path: &str, value: &str, until: Instant) -> Result<()> {
        self.store(until)?.write(path, value, until)
    }

    /// Learns which VM the domain is.
    fn find(&mut self, until: Instant) -> Result<()> {
        let domain = self.domain;
        let Some(path) = self.read(&self.own("vm"), until)? else {
            return Err(Error::not_found(format!("there is no domain {domain} on this host")));
        };
        let vm = path.strip_prefix("/vm/").unwrap_or_default();
        let vm = vm.parse::<Uuid>().map_err(|_| {
            let text = format!("the VM of domain {domain} is {path:?}, which is none");
            Error::new(Kind::Corrupt, text)
        })?;
        self.vm = vm.to_string();
        self.base = format!("/vss/{vm}");
        Ok(())
    }

    /// Refuses a guest that must not be asked; the leave for one time is used up.
    fn use_leave(&mut self, until: Instant) -> Result<()> {
        let path = self.own("vm-data/allowvssprovider");
        match self.read(&path, until)?.as_deref() {
            None => Ok(()),
            Some("true") => self.write(&path, "false", until),
            Some(_) => Err(Error::new(
                Kind::Auth,
                format!("domain {} must not take part: {path} is not true", self.domain),
            )
            .context("xapi_error", "VM_SNAPSHOT_WITH_QUIESCE_FAILED")
            .hint("write true there, which is good for one snapshot, or remove it")),
        }
    }

    /// The words of the guest's agent about a snapshot that failed.
    fn refusal(&mut self, until: Instant) -> Result<Error> {
        let message = self.read(&self.control("error/message"), until)?;
        let code = self.read(&self.control("error/code"), until)?;
        let words = message.unwrap_or_else(|| "no reason".to_owned());
        let text = format!("the guest in domain {} has failed to take part", self.domain);
        Ok(Error::new(REFUSED, text)
            .backend(words)
            .context("vss_code", code.unwrap_or_default())
            .context("xapi_error", "VM_SNAPSHOT_WITH_QUIESCE_FAILED"))
    }

    fn silent(&self, what: &str) -> Error {
        let text = format!("the guest in domain {} does not {what} in time", self.domain);
        // Xen's own spelling.
        let name = "VM_SNAPSHOT_WITH_QUIESCE_PLUGIN_DEOS_NOT_RESPOND";
        Error::new(Kind::DeadlineExceeded, text).context("xapi_error", name)
    }

    /// The UUIDs below `snapshot`; what is none names no disk of ours.
    fn named(&mut self, until: Instant) -> Result<Vec<VdiUuid>> {
        let below = format!("{}/snapshot", self.base);
        let names = self.store(until)?.list(&below, until)?;
        Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// Waits for the guest's agent to say how it ended; the provider asks for more meanwhile.
    fn ended(&mut self, until: Instant) -> Result<bool> {
        let (status, asked) = (self.control("status"), format!("{}/status", self.base));
        let store = until + WORD;
        loop {
            match self.read(&status, store)?.as_deref() {
                Some("snapshot-created") => return Ok(true),
                Some("snapshot-error") => return Ok(false),
                _ => {}
            }
            if let Some(verb) = self.read(&asked, store)?.as_deref().and_then(Verb::of) {
                self.answer(verb, &asked, store)?;
            }
            if Instant::now() >= until {
                return Err(self.silent("say how its snapshot ended"));
            }
            self.store(store)?.changed(until)?;
        }
    }

    /// Answers what a provider asks for after its commit.
    fn answer(&mut self, verb: Verb, status: &str, until: Instant) -> Result<()> {
        let [_, done, failed] = verb.words();
        let word = match verb {
            // The commit's own, which was answered: its answer has not been seen yet.
            Verb::Create => return Ok(()),
            Verb::Describe => {
                for snapshot in self.named(until)? {
                    let path = format!("{}/snapshot/{snapshot}", self.base);
                    for (page, value) in pages::of(snapshot) {
                        self.write(&format!("{path}/{page}"), &value, until)?;
                    }
                }
                done
            }
            // Nothing is shown to the guest while its snapshot is taken, so nothing is to be
            // taken away; the set is destroyed by whoever took it.
            Verb::Deport | Verb::Destroy => done,
            Verb::Import => failed,
        };
        self.write(status, word, until)
    }
}

impl<S: XenStore> Quiescer for Vss<S> {
    fn prepare(&mut self, until: Instant) -> Result<Ready> {
        self.find(until)?;
        if self.read(&self.own("control/feature-snapshot"), until)?.as_deref() != Some("1") {
            return Err(Error::unsupported(format!(
                "the guest in domain {} cannot take part in snapshots",
                self.domain
            ))
            .context("xapi_error", "VM_SNAPSHOT_WITH_QUIESCE_NOT_SUPPORTED")
            .hint("its guest agent and VSS provider are not installed, or not running"));
        }
        let status = format!("{}/status", self.base);
        let running = self.read(&status, until)?;
        if running.as_deref().and_then(Verb::of) == Some(Verb::Create) {
            let text = format!("a snapshot of domain {} is in progress", self.domain);
            return Err(Error::new(Kind::InUse, text));
        }
        // What an earlier one has left would be taken for answers.
        for name in ["snapshot", "status", "snapinfo", "snapuuid", "snaptype", "vdisnap"] {
            let path = format!("{}/{name}", self.base);
            self.store(until)?.remove(&path, until)?;
        }
        for name in ["status", "error", "snapid", "snapuuid", "action"] {
            let path = self.control(name);
            self.store(until)?.remove(&path, until)?;
        }
        let (base, domain, agent) = (self.base.clone(), self.domain, self.control("status"));
        self.write(&base, "", until)?;
        let store = self.store(until)?;
        store.give(&base, domain, until)?;
        store.watch(&status, until)?;
        store.watch(&agent, until)?;
        Ok(Ready { level: Consistency::Application, system: format!("Windows, VM {}", self.vm) })
    }

    fn freeze(&mut self, disks: &[VdiUuid], until: Instant) -> Result<Frozen> {
        self.use_leave(until)?;
        self.asked.clear();
        self.write(&self.control("type"), "vm", until)?;
        self.write(&self.control("action"), "create-snapshot", until)?;
        let (status, agent) = (format!("{}/status", self.base), self.control("status"));
        // The guest's deadline is not the store's.
        let store = until + WORD;
        while self.read(&status, store)?.as_deref() != Some(Verb::Create.words()[0]) {
            if self.read(&agent, store)?.as_deref() == Some("snapshot-error") {
                return Err(self.refusal(store)?);
            }
            if Instant::now() >= until {
                return Err(self.silent("come to rest"));
            }
            self.store(store)?.changed(until)?;
        }
        self.asked = self.named(store)?;
        if let Some(stranger) = self.asked.iter().find(|vdi| !disks.contains(vdi)) {
            let text = format!("the guest asks for VDI {stranger}, which is none of the disks");
            return Err(Error::new(Kind::NotFound, text).hint("snapshot that disk, too"));
        }
        if let Some(left_out) = disks.iter().find(|vdi| !self.asked.contains(vdi)) {
            let text =
                format!("VDI {left_out} is none of those that the guest has brought to rest");
            return Err(Error::new(Kind::NotFound, text)
                .hint("snapshot the disks that its VSS provider knows, in one set"));
        }
        Ok(Frozen { count: self.asked.len() as u64 })
    }

    fn thaw(&mut self, outcome: &Outcome, until: Instant) -> Result<Thawed> {
        let [_, done, failed] = Verb::Create.words();
        let status = format!("{}/status", self.base);
        let Outcome::Taken(taken) = outcome else {
            // Also where nothing was asked for: then nobody reads it.
            self.write(&status, failed, until)?;
            return Ok(Thawed { count: self.asked.len() as u64, document: None });
        };
        let base = self.base.clone();
        for pair in taken {
            let id = pair.snapshot.to_string();
            self.write(&format!("{base}/snapshot/{}/id", pair.vdi), &id, until)?;
            self.write(&format!("{base}/vdisnap/{}", pair.vdi), &id, until)?;
        }
        let info = format!(
            "<VM.snapshot><snapuuid>{}</snapuuid><parent>{}</parent></VM.snapshot>",
            self.set, self.vm
        );
        self.write(&format!("{base}/snapinfo"), &info, until)?;
        self.write(&format!("{base}/snapuuid"), &self.set.to_string(), until)?;
        self.write(&format!("{base}/snaptype"), "vm", until)?;
        // Last: from here on the guest's writers go on, as soon as the provider has looked.
        self.write(&status, done, until)?;
        if !self.ended(until)? {
            return Err(self.refusal(until)?);
        }
        let document = document::read(self, until)?;
        Ok(Thawed { count: self.asked.len() as u64, document })
    }

    fn rescue(&mut self, until: Instant) -> Result<bool> {
        self.store = None;
        self.find(until)?;
        let [asked, _, failed] = Verb::Create.words();
        let status = format!("{}/status", self.base);
        if self.read(&status, until)?.as_deref() != Some(asked) {
            return Ok(false);
        }
        self.write(&status, failed, until)?;
        Ok(true)
    }
}
