//! What one check has: an SR of its own, a driver in a process of its own, and words for what it
//! does with them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sm_loader::{Call, DriverPort as _, PortHealth, ProcessPort, port};
use sm_model::operation::Request;
use sm_model::sr::{SrAttach, SrCreate, SrScan};
use sm_model::vdi::{
    SnapshotSpec, VdiActivate, VdiAttach, VdiClone, VdiCreate, VdiDeactivate, VdiDestroy,
    VdiDetach, VdiInfo, VdiSnapshot, VdiStat,
};
use sm_model::{
    Access, AttachMode, Bytes, Changed, Error, Kind, Manifest, OperationId, SrUuid, VdiUuid,
};
use uuid::Uuid;

use crate::bench::{Bench, Opening, Owned};
use crate::dice::Dice;
use crate::disk::Disk;
use crate::inventory;
use crate::oracle::{self, BLOCK, Content, Mark};
use crate::services::Services;
use crate::verdict::{Stop, Verdict, fail, must, said};

mod end;

/// The host that checks run on, unless they say otherwise.
pub(crate) const HOST: &str = "conformance-host-a";

/// Space of the identifiers that checks make up.
const IDS: Uuid = Uuid::from_u128(0x4c3b_7f0e_53f4_4b1c_9d1e_2a84_91c6_7be0);

/// Most pages of a listing.
const PAGES: usize = 10_000;

/// Bytes of an operation log that are kept of a request or an answer.
const LOGGED: usize = 400;

/// See the module.
pub(crate) struct World<'a> {
    pub(crate) bench: &'a Bench,
    pub(crate) sr: SrUuid,
    pub(crate) dice: Dice,
    pub(crate) services: Arc<Services>,
    /// What was done, a line each.
    pub(crate) log: String,
    /// Milliseconds that calls took, by operation.
    pub(crate) times: BTreeMap<&'static str, Vec<u64>>,
    /// The shortest sequence that fails, where there is one.
    pub(crate) ops: Option<Vec<crate::checks::sequences::Step>>,
    /// The device configuration of its SR.
    config: BTreeMap<String, String>,
    /// Whether its SR may be there.
    owned: bool,
    port: Option<Arc<ProcessPort>>,
    label: String,
    made: u64,
    attached: BTreeSet<VdiUuid>,
    /// Files of an SR without VDIs.
    empty: Option<BTreeSet<String>>,
    /// Files before there was an SR.
    untouched: Option<BTreeSet<String>>,
}

impl<'a> World<'a> {
    /// A world without an SR.
    pub(crate) fn bare(bench: &'a Bench, label: &str) -> Verdict<Self> {
        let sr = Uuid::new_v5(&IDS, format!("{}/{label}/sr", bench.seed).as_bytes());
        let untouched = match bench.inventory() {
            Some(tree) => Some(tree.look().map_err(Stop::NotTestable)?),
            None => None,
        };
        Ok(Self {
            bench,
            sr: sr.into(),
            dice: Dice::new(bench.seed, label),
            services: bench.services(),
            log: String::new(),
            times: BTreeMap::new(),
            ops: None,
            config: bench.device_config(false),
            owned: false,
            port: None,
            label: label.to_owned(),
            made: 0,
            attached: BTreeSet::new(),
            empty: None,
            untouched,
        })
    }

    /// A world without an SR, for one beside that of another world.
    pub(crate) fn second(bench: &'a Bench, label: &str) -> Verdict<Self> {
        let config = bench.device_config(true);
        Ok(Self { config, ..Self::bare(bench, label)? })
    }

    /// A world with an SR that is attached and empty.
    pub(crate) fn with_sr(bench: &'a Bench, label: &str) -> Verdict<Self> {
        let mut world = Self::bare(bench, label)?;
        let ready = world.begin();
        if ready.is_err() {
            world.wipe();
        }
        ready.map(|()| world)
    }

    fn begin(&mut self) -> Verdict {
        let world = self;
        if world.take_kept()? {
            return Ok(());
        }
        world.make_sr()?;
        // What a driver makes at the first use and keeps is no leak.
        let mut content = Content::default();
        let warm = world.create("warm-up")?;
        if world.can_use_data() {
            world.fill(warm.uuid, &mut content, &[0], 1)?;
        }
        world.destroy(warm.uuid)?;
        if world.can("sr_maintain") {
            world.call(sm_model::sr::SrMaintain::default())?;
        }
        world.empty = world.files()?;
        Ok(())
    }

    /// Makes and attaches the SR.
    pub(crate) fn make_sr(&mut self) -> Verdict {
        self.own_sr()?;
        self.reopen()?;
        self.call(SrCreate { name: self.name("sr"), description: String::new() })?;
        self.call(SrAttach {})?;
        Ok(())
    }

    /// Notes that the SR is this run's.
    pub(crate) fn own_sr(&mut self) -> Verdict {
        self.owned = true;
        let owned = Owned::Sr { sr: self.sr, config: self.config.clone() };
        self.bench.own(&owned).map_err(|error| Stop::NotTestable(error.to_string()))
    }

    /// The manifest.
    pub(crate) fn manifest(&self) -> &'a Manifest {
        &self.bench.inspection.manifest
    }

    /// Whether the driver claims an operation or feature.
    pub(crate) fn can(&self, capability: &str) -> bool {
        self.manifest().can(capability)
    }

    /// Whether disks can be opened: by the driver, and on this host.
    pub(crate) fn can_use_data(&self) -> bool {
        let here = self.bench.config.backend.cannot_attach.is_none();
        here && self.can("vdi_attach") && self.can("vdi_activate")
    }

    /// A name that tells whose it is.
    pub(crate) fn name(&self, what: &str) -> String {
        format!("smc-{:x}-{}-{what}", self.bench.seed, self.label)
    }

    fn fresh(&mut self) -> Uuid {
        self.made += 1;
        Uuid::new_v5(&IDS, format!("{}/{}/{}", self.bench.seed, self.label, self.made).as_bytes())
    }

    /// An identifier that nothing has.
    pub(crate) fn new_vdi(&mut self) -> VdiUuid {
        self.fresh().into()
    }

    /// A wish that nobody had before.
    pub(crate) fn new_operation(&mut self) -> OperationId {
        OperationId(self.fresh())
    }

    // The driver's process -----------------------------------------------------------------------

    /// The session.
    pub(crate) fn port(&self) -> Verdict<Arc<ProcessPort>> {
        self.port.clone().ok_or_else(|| Stop::NotTestable("the driver is not open".into()))
    }

    /// Ends the session, if there is one, and opens another in another process.
    pub(crate) fn reopen(&mut self) -> Verdict {
        self.reopen_with(Vec::new())
    }

    /// As [`World::reopen`], with variables for the first process.
    pub(crate) fn reopen_with(&mut self, environment: Vec<(&'static str, String)>) -> Verdict {
        self.close()?;
        let device_config = Some(self.config.clone());
        let opening = Opening { sr: Some(self.sr), host: HOST, environment, device_config };
        self.note("open", "", "");
        self.port = Some(Arc::new(self.bench.open(&opening, &self.services)?));
        Ok(())
    }

    /// A session of another host, or of another SR.
    pub(crate) fn other(&mut self, sr: SrUuid, host: &str) -> Verdict<Arc<ProcessPort>> {
        let device_config = Some(self.config.clone());
        let opening = Opening { sr: Some(sr), host, device_config, ..Opening::default() };
        let services = self.bench.services();
        self.note("open another session", host, "");
        Ok(Arc::new(self.bench.open(&opening, &services)?))
    }

    /// A second session of this host for its SR, opened under another runtime.
    pub(crate) fn beside(
        &mut self,
        runtime: &tokio::runtime::Runtime,
    ) -> Verdict<Arc<ProcessPort>> {
        let device_config = Some(self.config.clone());
        let opening =
            Opening { sr: Some(self.sr), host: HOST, device_config, ..Opening::default() };
        self.note("open a second session", HOST, "");
        Ok(Arc::new(self.bench.open_on(runtime, &opening, &self.services)?))
    }

    /// Ends the session. Its process must end with it.
    pub(crate) fn close(&mut self) -> Verdict {
        let Some(port) = self.port.take() else { return Ok(()) };
        let pid = port.process_id();
        self.bench.runtime.block_on(port.close(Duration::from_secs(5)));
        self.note("close", "", "");
        let until = Instant::now() + Duration::from_secs(5);
        while let Some(pid) = pid
            && inventory::held(pid).is_some_and(|held| held.threads > 0)
        {
            must(Instant::now() < until, || format!("process {pid} of the driver does not end"))?;
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Kills the driver's process; the next call starts another.
    pub(crate) fn kill(&mut self) -> Verdict {
        let port = self.port()?;
        let pid = port.process_id().and_then(|pid| i32::try_from(pid).ok());
        let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) else { return Ok(()) };
        self.note("kill -9 the driver", "", "");
        let sent = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        sent.map_err(|error| Stop::NotTestable(format!("the driver cannot be killed: {error}")))?;
        let until = Instant::now() + Duration::from_secs(5);
        while port.health() == PortHealth::Ok && port.process_id().is_some() {
            must(Instant::now() < until, || "the driver's process does not die".into())?;
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    // Calls --------------------------------------------------------------------------------------

    /// Calls an operation, as a new wish.
    #[expect(clippy::needless_pass_by_value, reason = "a request is mostly made for its call")]
    pub(crate) fn call<R: Request>(&mut self, request: R) -> Result<R::Reply, Error> {
        let id = self.new_operation();
        self.call_as(id, &request)
    }

    /// As [`World::call`], as a wish that may have been uttered before.
    pub(crate) fn call_as<R: Request>(
        &mut self,
        id: OperationId,
        request: &R,
    ) -> Result<R::Reply, Error> {
        let port = self.port.clone().ok_or_else(|| Error::internal("the driver is not open"))?;
        let call = Call::new(R::OPERATION, id, self.bench.config.call_budget());
        self.call_on(&port, call, request)
    }

    /// As [`World::call`], in any session and with any call.
    pub(crate) fn call_on<R: Request>(
        &mut self,
        port: &Arc<ProcessPort>,
        call: Call,
        request: &R,
    ) -> Result<R::Reply, Error> {
        let began = Instant::now();
        let reply = self.bench.runtime.block_on(port::call(port.as_ref(), call, request));
        let took = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.services.let_go();
        self.times.entry(R::OPERATION.name()).or_default().push(took);
        let asked = serde_json::to_string(request).unwrap_or_default();
        let answered = match &reply {
            Ok(reply) => serde_json::to_string(reply).unwrap_or_default(),
            Err(error) => said(error),
        };
        self.note(R::OPERATION.name(), &asked, &answered);
        reply
    }

    /// Writes a line of the log.
    pub(crate) fn note(&mut self, what: &str, asked: &str, answered: &str) {
        let short = |text: &str| text.chars().take(LOGGED).collect::<String>();
        let _ = writeln!(self.log, "{what} {} -> {}", short(asked), short(answered));
    }

    /// An error of exactly this kind.
    pub(crate) fn refused<T: std::fmt::Debug>(
        what: &str,
        kind: &str,
        answer: Result<T, Error>,
    ) -> Verdict<Error> {
        match answer {
            Ok(reply) => {
                let reply: String = format!("{reply:?}").chars().take(LOGGED).collect();
                fail(format!("{what} must be refused with {kind}, and succeeded: {reply}"))
            }
            Err(error) if error.kind.name() == kind => Ok(error),
            Err(error) => fail(format!("{what} must be refused with {kind}: {}", said(&error))),
        }
    }

    // Disks --------------------------------------------------------------------------------------

    /// Bytes of an ordinary disk.
    pub(crate) fn size(&self) -> u64 {
        self.bench.config.disk_size().unwrap_or(4 << 20)
    }

    /// A request for an ordinary disk.
    pub(crate) fn disk(&mut self, name: &str) -> VdiCreate {
        VdiCreate {
            uuid: self.new_vdi(),
            name: self.name(name),
            description: format!("made by a conformance run, {}", self.label),
            virtual_size: Bytes(self.size()),
            format: None,
            vdi_type: sm_model::vdi::VdiType::User,
            sharable: false,
            keys: BTreeMap::from([("conformance".to_owned(), self.label.clone())]),
            incomplete: false,
        }
    }

    /// Makes an ordinary disk.
    pub(crate) fn create(&mut self, name: &str) -> Verdict<VdiInfo> {
        let request = self.disk(name);
        self.create_as(request)
    }

    /// Makes a disk that was not there.
    pub(crate) fn create_as(&mut self, request: VdiCreate) -> Verdict<VdiInfo> {
        self.own_vdi(request.uuid)?;
        let uuid = request.uuid;
        let made = self.call(request)?;
        must(made.changed == Changed::Created && made.vdi.uuid == uuid, || {
            format!("vdi_create of a new VDI {uuid} answered {:?} {}", made.changed, made.vdi.uuid)
        })?;
        Ok(made.vdi)
    }

    /// Notes that a VDI is this run's.
    pub(crate) fn own_vdi(&self, vdi: VdiUuid) -> Verdict {
        let owned = Owned::Vdi { sr: self.sr, vdi };
        self.bench.own(&owned).map_err(|error| Stop::NotTestable(error.to_string()))
    }

    /// A request for a snapshot of a disk.
    pub(crate) fn snapshot_of(&mut self, vdi: VdiUuid) -> VdiSnapshot {
        let uuid = self.new_vdi();
        let name = self.name("snapshot");
        let spec = SnapshotSpec { vdi, uuid, name, description: "of a check".into() };
        VdiSnapshot { snapshots: vec![spec], time: 1_700_000_000 + self.made }
    }

    /// Takes a snapshot.
    pub(crate) fn snapshot(&mut self, vdi: VdiUuid) -> Verdict<VdiInfo> {
        let request = self.snapshot_of(vdi);
        for spec in &request.snapshots {
            self.own_vdi(spec.uuid)?;
        }
        let done = self.call(request)?;
        match done.vdis.into_iter().next() {
            Some(vdi) => Ok(vdi),
            None => fail("vdi_snapshot answered no VDI"),
        }
    }

    /// A request for a clone.
    pub(crate) fn clone_of(&mut self, vdi: VdiUuid) -> VdiClone {
        let (uuid, name) = (self.new_vdi(), self.name("clone"));
        VdiClone { vdi, uuid, name, description: String::new() }
    }

    /// Makes a clone.
    pub(crate) fn clone(&mut self, vdi: VdiUuid) -> Verdict<VdiInfo> {
        let request = self.clone_of(vdi);
        self.own_vdi(request.uuid)?;
        Ok(self.call(request)?.vdi)
    }

    /// What the driver says of a VDI.
    pub(crate) fn stat(&mut self, vdi: VdiUuid) -> Result<VdiInfo, Error> {
        self.call(VdiStat::of(vdi))
    }

    /// Removes a VDI that is there.
    pub(crate) fn destroy(&mut self, vdi: VdiUuid) -> Verdict {
        let done = self.call(VdiDestroy { vdi })?;
        must(done.changed == Changed::Modified, || {
            format!("vdi_destroy of {vdi}, which is there, answered {:?}", done.changed)
        })
    }

    /// The whole listing, by UUID. A VDI that is listed twice is a failure.
    pub(crate) fn list(&mut self) -> Verdict<BTreeMap<VdiUuid, VdiInfo>> {
        let mut found = BTreeMap::new();
        let mut cursor = None;
        for _ in 0..PAGES {
            let page = self.call(SrScan { cursor })?;
            for vdi in page.vdis {
                let uuid = vdi.uuid;
                must(found.insert(uuid, vdi).is_none(), || format!("VDI {uuid} is listed twice"))?;
            }
            let Some(next) = page.next else { return Ok(found) };
            cursor = Some(next);
        }
        fail(format!("the listing has more than {PAGES} pages"))
    }

    // Data ---------------------------------------------------------------------------------------

    /// Attaches and activates a VDI, and opens it.
    pub(crate) fn open(&mut self, vdi: VdiUuid, mode: AttachMode) -> Verdict<Disk> {
        let attached = self.call(VdiAttach { vdi, mode })?;
        self.open_attached(vdi, attached.access, mode)
    }

    /// Activates a VDI that is attached, and opens it.
    fn open_attached(
        &mut self,
        vdi: VdiUuid,
        access: Vec<Access>,
        mode: AttachMode,
    ) -> Verdict<Disk> {
        self.attached.insert(vdi);
        let done = self.call(VdiActivate { vdi, mode, tracked: false })?;
        let access = if done.access.is_empty() { access } else { done.access };
        self.open_access(vdi, &access, mode)
    }

    /// Opens what an attach answered.
    pub(crate) fn open_access(
        &mut self,
        vdi: VdiUuid,
        access: &[Access],
        mode: AttachMode,
    ) -> Verdict<Disk> {
        let read_only = mode == AttachMode::ReadOnly;
        let folder = self.bench.images();
        let disk = Disk::open(access, read_only, folder.as_deref());
        let disk = disk.map_err(|why| Stop::Fail(format!("VDI {vdi} cannot be opened: {why}")))?;
        if !read_only && let Some(drive) = disk.drive() {
            self.services.serve(vdi, drive);
        }
        Ok(disk)
    }

    /// Closes a VDI, and detaches it.
    pub(crate) fn shut(&mut self, vdi: VdiUuid, disk: Disk) -> Verdict {
        self.services.forget(vdi);
        disk.close().map_err(Stop::Fail)?;
        self.call(VdiDeactivate { vdi })?;
        self.call(VdiDetach { vdi })?;
        self.attached.remove(&vdi);
        Ok(())
    }

    /// Closes a VDI that stays attached.
    pub(crate) fn shut_keeping(&mut self, vdi: VdiUuid, disk: Disk) -> Verdict {
        self.services.forget(vdi);
        disk.close().map_err(Stop::Fail)?;
        self.call(VdiDeactivate { vdi })?;
        Ok(())
    }

    /// Attaches a VDI for writing and fills blocks of it.
    pub(crate) fn fill(
        &mut self,
        vdi: VdiUuid,
        content: &mut Content,
        blocks: &[u64],
        generation: u64,
    ) -> Verdict {
        let disk = self.open(vdi, AttachMode::ReadWrite)?;
        self.fill_open(&disk, vdi, content, blocks, generation)?;
        self.shut(vdi, disk)
    }

    /// Fills blocks of a disk that is open, and flushes.
    pub(crate) fn fill_open(
        &mut self,
        disk: &Disk,
        vdi: VdiUuid,
        content: &mut Content,
        blocks: &[u64],
        generation: u64,
    ) -> Verdict {
        let mark = Mark { disk: vdi.0.as_u64_pair().1, generation };
        self.note("write", &format!("{vdi} generation {generation} blocks {blocks:?}"), "");
        for lba in blocks {
            disk.write(lba * BLOCK, &oracle::block(mark, *lba)).map_err(Stop::Fail)?;
            content.set(*lba, mark);
        }
        disk.flush().map_err(Stop::Fail)
    }

    /// Blocks of a disk: its first and last, and some between.
    pub(crate) fn blocks(&mut self, size: u64, count: usize) -> Vec<u64> {
        let all = size / BLOCK;
        let mut blocks = BTreeSet::from([0, all.saturating_sub(1)]);
        while blocks.len() < count.min(all as usize) {
            blocks.insert(self.dice.below(all));
        }
        blocks.into_iter().collect()
    }

    /// A disk with something in it.
    pub(crate) fn filled(&mut self, name: &str) -> Verdict<(VdiUuid, Content)> {
        let vdi = self.create(name)?;
        let mut content = Content::default();
        let blocks = self.blocks(vdi.virtual_size.0, 12);
        self.fill(vdi.uuid, &mut content, &blocks, 1)?;
        Ok((vdi.uuid, content))
    }

    /// All of a VDI must be what was written there, and nothing else. A snapshot that the backend serves
    /// to nobody is read through a clone.
    pub(crate) fn verify(&mut self, vdi: VdiUuid, content: &Content, what: &str) -> Verdict {
        let mode = AttachMode::ReadOnly;
        let attached = match self.call(VdiAttach { vdi, mode }) {
            Err(error)
                if error.kind == Kind::Unsupported
                    && self.can("vdi_clone")
                    && self.stat(vdi)?.is_a_snapshot =>
            {
                let clone = self.clone(vdi)?.uuid;
                self.verify(clone, content, what)?;
                return self.destroy(clone);
            }
            answer => answer?,
        };
        let disk = self.open_attached(vdi, attached.access, mode)?;
        let verdict = self.verify_open(&disk, content, what);
        self.shut(vdi, disk)?;
        verdict
    }

    /// As [`World::verify`], of several.
    pub(crate) fn verify_all(&mut self, all: &[(VdiUuid, Content)], what: &str) -> Verdict {
        all.iter().try_for_each(|(vdi, content)| self.verify(*vdi, content, what))
    }

    /// As [`World::verify`], of a disk that is open.
    pub(crate) fn verify_open(&mut self, disk: &Disk, content: &Content, what: &str) -> Verdict {
        let found = disk.compare(content).map_err(Stop::Fail)?;
        self.note("verify", what, &format!("{} differences", found.len()));
        must(found.is_empty(), || format!("{what}: {}", found.join("; ")))
    }
}
