//! One snapshot of a VM: everything slow first, the guest at rest for as long as the snapshots take
//! and no longer, and a judgement at the end.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use sm_model::manifest::feature;
use sm_model::vdi::{VdiInfo, VdisDone};
use sm_model::{Error, Kind, OperationId, Result, VdiUuid};
use sm_quiesce::freezer::Start;
use sm_quiesce::{Consistency, Freezer, Method, Outcome, Report, Taken};
use sm_step::step;
use tokio::task::JoinSet;
use uuid::Uuid;

use super::keys::{self, Mark};
use super::ledger::{self, Member, Phase, Record};
use super::{SetMember, SnapshotSet, VmSnapshot};
use crate::journal;
use crate::locks::{Held, Lock};
use crate::manager::StorageManager;
use crate::op::Op;
use crate::services::blocking;
use crate::snapshot::PreparedSnapshot;
use crate::sr::{NewSnapshot, Sr};

/// The longest time for the snapshots, however long the guest may be at rest: what is not there
/// by then is late.
const LONGEST_COMMIT: Duration = Duration::from_secs(8);

/// Snapshots that are taken by one call of a driver.
struct Part {
    op: Op,
    sr: Sr,
    disks: Vec<VdiInfo>,
    prepared: PreparedSnapshot,
}

/// What came of the calls of drivers.
struct Committed {
    /// How many parts there are.
    parts: usize,
    /// The parts whose snapshots hold what they are to hold, so that the guest may go on.
    caught: BTreeSet<usize>,
    /// Those that are answered, by the number of the part.
    done: BTreeMap<usize, VdisDone>,
    failed: Option<Error>,
    late: bool,
    /// Those that still run.
    running: JoinSet<(usize, Result<VdisDone>)>,
}

impl StorageManager {
    /// Takes snapshots of all disks of a VM with its guest at rest. All of them are kept, or none.
    ///
    /// A second one of the same guest is refused while one is in progress. After an error nothing
    /// stays; what the storage takes later is destroyed by [`Self::recover_sets`].
    pub async fn vm_snapshot(&self, op: &Op, request: &VmSnapshot) -> Result<SnapshotSet> {
        check(request)?;
        let _operation = self.lock(op, &[Lock::operation(op.id)]).await?;
        let _guest = self.only_one(&request.method)?;
        let catalog = &self.inner.catalog;
        let mut attempt = 0;
        if let Some(record) = ledger::last(catalog, op.id)? {
            if record.request != *request {
                let text = format!("operation id {} was used for another snapshot", op.id);
                return Err(Error::new(Kind::Exists, text)
                    .hint("repeat the first request exactly, or use a new operation id"));
            }
            attempt = record.attempt + 1;
            let settled = self.settle_set(op, record).await?;
            if let Some(set) = settled {
                return Ok(set);
            }
        }
        self.recover_guest(op, &request.method).await?;
        let work = Work { manager: self, op, request, attempt };
        work.run().await.map_err(|error| error.operation("vm_snapshot"))
    }

    /// Refuses a second snapshot of a guest, at once.
    pub(super) fn only_one(&self, method: &Method) -> Result<Option<Held>> {
        let Some(guest) = method.guest() else { return Ok(None) };
        match self.inner.locks.try_take(&Lock::guest(&guest))? {
            Some(held) => Ok(Some(held)),
            None => Err(Error::busy(format!("a snapshot of the guest ({guest}) is in progress"))
                .context("guest", guest)
                .hint("wait for it to end")),
        }
    }

    /// The process for a guest, just started.
    pub(super) async fn freezer(
        &self,
        set: Uuid,
        method: &Method,
        limits: sm_quiesce::Limits,
    ) -> Result<Freezer> {
        use datapath::control::client::find_program;
        use sm_quiesce::freezer::{PROGRAM, VARIABLE};
        let quiescing = &self.inner.quiescing;
        let given = quiescing.program.as_ref().map(|path| path.as_std_path());
        let program = find_program(PROGRAM, VARIABLE, given).map_err(|searched| {
            let text = format!("the program {PROGRAM} is not at {}", searched.join(" or "));
            Error::internal(text)
        })?;
        let folder = quiescing.folder.clone();
        let start = Start { method: method.clone(), set, limits, folder };
        blocking(move || Freezer::start(&program, start)).await
    }
}

fn check(request: &VmSnapshot) -> Result<()> {
    let mut disks: Vec<VdiUuid> = request.disks.iter().map(|disk| disk.vdi).collect();
    disks.sort_unstable();
    if disks.is_empty() {
        return Err(Error::new(Kind::Limit, "a snapshot needs a VDI to be taken of"));
    }
    if let Some(twice) = disks.windows(2).find(|pair| pair.first() == pair.last()) {
        let vdi = twice.first().map(ToString::to_string).unwrap_or_default();
        return Err(Error::new(Kind::Limit, format!("VDI {vdi} is named twice")));
    }
    super::sets::refuse_long(request.document.as_deref())
}

/// One attempt at one snapshot.
struct Work<'a> {
    manager: &'a StorageManager,
    op: &'a Op,
    request: &'a VmSnapshot,
    attempt: u32,
}

impl Work<'_> {
    async fn run(&self) -> Result<SnapshotSet> {
        let id = Record::id_of(self.op.id, self.attempt);
        let size = self.request.disks.len() as u32;
        let mut set = SnapshotSet::begun(id, journal::now(), size);
        let mut freezer = self.ready(&mut set).await?;
        let (atomic, parts) = self.prepare(&set, freezer.is_some()).await?;
        set.one_point_in_time = atomic;
        let mut record = self.record(&parts, set, freezer.is_some());
        let may_begin = self.op.check_cancelled();
        if let Err(error) =
            may_begin.and_then(|()| ledger::keep(&self.manager.inner.catalog, &record))
        {
            abandon(parts).await;
            return Err(error);
        }
        step!("quiesce.recorded");
        if let Some(held) = freezer.take() {
            match self.freeze(held, &record).await {
                Ok(held) => {
                    step!("quiesce.frozen");
                    freezer = Some(held);
                }
                Err(error) if self.request.allow_crash_consistent && goes_on(&error) => {
                    record.set.consistency = Consistency::Crash;
                    record.set.notes.push(format!("the guest was not brought to rest: {error}"));
                }
                Err(error) => {
                    abandon(parts).await;
                    return Err(self.give_up(record, error).await);
                }
            }
        }
        let wait = Wait::of(&record.method, freezer.is_some(), record.limits.window);
        let mut committed = commit(parts, wait).await;
        step!("quiesce.caught");
        // First of all, whatever came of them.
        let report = match freezer {
            None => None,
            Some(freezer) => Some(self.thaw(freezer, &committed, &record).await),
        };
        step!("quiesce.thawed");
        // The calls that were not waited for end in their own time, and what they took is known.
        while let Some(joined) = committed.running.join_next().await {
            committed.take(joined);
        }
        step!("quiesce.answered");
        match Self::judge(&committed, report, &mut record) {
            Ok(()) => self.manager.mark_set(self.op, record).await.map_err(|error| {
                error.hint("the snapshots are there; what is missing is said on the storage later")
            }),
            Err(error) => Err(self.give_up(record, error).await),
        }
    }

    /// The process that holds the guest, ready; none where nothing is brought to rest.
    async fn ready(&self, set: &mut SnapshotSet) -> Result<Option<Freezer>> {
        let method = &self.request.method;
        if *method == Method::None {
            set.notes.push("the guest was not asked to come to rest".to_owned());
            return Ok(None);
        }
        let mut freezer = self.manager.freezer(set.id, method, self.request.limits).await?;
        let prepared = blocking(move || freezer.prepare().map(|ready| (freezer, ready))).await;
        match prepared {
            Ok((freezer, ready)) => {
                set.consistency = ready.level;
                set.system = ready.system;
                Ok(Some(freezer))
            }
            Err(error) if self.request.allow_crash_consistent => {
                set.notes.push(format!("the guest was not brought to rest: {error}"));
                Ok(None)
            }
            Err(error) if error.hint.is_some() => Err(error),
            Err(error) => {
                let hint = "--allow-crash-consistent takes the snapshots without the guest's help";
                Err(error.hint(hint))
            }
        }
    }

    /// Does all that is slow with the storage. Answers whether the snapshots will be of one point
    /// in time.
    async fn prepare(&self, set: &SnapshotSet, at_rest: bool) -> Result<(bool, Vec<Part>)> {
        let mut by_sr = BTreeMap::<_, Vec<VdiUuid>>::new();
        for disk in &self.request.disks {
            by_sr.entry(disk.sr).or_default().push(disk.vdi);
        }
        let mut calls: Vec<(Sr, Vec<VdiUuid>)> = Vec::new();
        let mut why = (by_sr.len() > 1).then(|| "the disks are in several SRs".to_owned());
        for (sr, vdis) in by_sr {
            let sr = self.manager.sr(&sr.to_string())?;
            if vdis.len() == 1 || sr.driver_manifest()?.can(feature::GROUP_SNAPSHOT) {
                calls.push((sr, vdis));
                continue;
            }
            let driver = &sr.record().driver;
            why = Some(format!("the driver {driver} takes snapshots of one disk at a time"));
            calls.extend(vdis.into_iter().map(|vdi| (sr.clone(), vec![vdi])));
        }
        if let Some(why) = &why
            && !at_rest
            && !self.request.allow_crash_consistent
        {
            return Err(Error::unsupported(format!(
                "the snapshots would not be of one point in time: {why}"
            ))
            .hint(
                "bring the guest to rest (--agent, --xenstore, --exec), or allow it with \
                   --allow-crash-consistent",
            ));
        }
        let mut parts = Vec::with_capacity(calls.len());
        for (n, (sr, vdis)) in calls.into_iter().enumerate() {
            match self.prepare_part(set, n, sr, &vdis).await {
                Ok(part) => parts.push(part),
                Err(error) => {
                    abandon(parts).await;
                    return Err(error);
                }
            }
        }
        Ok((why.is_none() || at_rest, parts))
    }

    async fn prepare_part(
        &self,
        set: &SnapshotSet,
        n: usize,
        sr: Sr,
        vdis: &[VdiUuid],
    ) -> Result<Part> {
        // Of this attempt: see [`Record::attempt`].
        let op = self.op.clone().with_id(OperationId(set.id)).part(&format!("part-{n}"));
        let mut disks = Vec::with_capacity(vdis.len());
        for vdi in vdis {
            disks.push(sr.vdi_stat(&op, *vdi, false).await?);
        }
        let name = |disk: &VdiInfo| self.request.name.clone().unwrap_or_else(|| disk.name.clone());
        let news: Vec<NewSnapshot> = disks
            .iter()
            .map(|disk| NewSnapshot {
                vdi: disk.uuid,
                name: name(disk),
                description: self.request.description.clone(),
            })
            .collect();
        // What is said of the set in the end is as long as this.
        let keys = [Mark::of(set).key(VdiUuid(set.id))].into();
        let prepared = sr.vdi_snapshot_prepare_marked(&op, &news, keys).await?;
        Ok(Part { op, sr, disks, prepared })
    }

    fn record(&self, parts: &[Part], set: SnapshotSet, at_rest: bool) -> Record {
        let members = parts.iter().flat_map(|part| {
            part.disks.iter().zip(0..).map(|(disk, n)| Member {
                sr: part.sr.uuid(),
                vdi: disk.uuid,
                snapshot: part.op.id.vdi(n),
                operation: part.op.id,
            })
        });
        Record {
            operation: self.op.id,
            attempt: self.attempt,
            phase: Phase::Taking,
            request: self.request.clone(),
            method: if at_rest { self.request.method.clone() } else { Method::None },
            limits: self.request.limits,
            since: journal::now(),
            tried: 0,
            members: members.collect(),
            set,
            document: self.request.document.clone(),
        }
    }

    /// An error says that the guest is not at rest, or that its freezer takes care of it.
    async fn freeze(&self, mut freezer: Freezer, record: &Record) -> Result<Freezer> {
        let disks: Vec<VdiUuid> = record.members.iter().map(|member| member.vdi).collect();
        let asked = blocking(move || {
            let frozen = freezer.freeze(&disks)?;
            Ok((freezer, frozen))
        });
        let (freezer, frozen) = match asked.await {
            Ok(answer) => answer,
            // It was killed: the guest may be at rest.
            Err(error) => {
                let rescued = self.manager.rescue(record).await;
                let goes_on = rescued.is_ok_and(|report| report.goes_on);
                return Err(error.context(GOES_ON, goes_on));
            }
        };
        match frozen {
            Ok(_) => Ok(freezer),
            Err(report) => {
                let refused = report.held(record.limits.window).err();
                let error = refused.unwrap_or_else(|| Error::internal("a freeze without an end"));
                Err(error.context(GOES_ON, report.goes_on))
            }
        }
    }

    async fn thaw(&self, mut freezer: Freezer, committed: &Committed, record: &Record) -> Report {
        let outcome = committed.outcome(record);
        let told = blocking(move || freezer.thaw(outcome)).await;
        match told {
            Ok(report) => report,
            // It was killed: the guest may be at rest.
            Err(error) => self.manager.rescue(record).await.unwrap_or_else(|rescue| Report {
                frozen: None,
                microseconds: 0,
                cause: sm_quiesce::freezer::Cause::Rescued,
                refused: None,
                thawed: None,
                failed: Some(error.source(&rescue)),
                goes_on: false,
            }),
        }
    }

    /// Whether the set is to be kept; the record then says what it is worth.
    fn judge(committed: &Committed, report: Option<Report>, record: &mut Record) -> Result<()> {
        let window = record.limits.window;
        if committed.late {
            let text = "the storage did not take the snapshots in time";
            return Err(Error::new(Kind::DeadlineExceeded, text)
                .hint(format!("the guest may be at rest for {} ms", window.as_millis())));
        }
        if let Some(error) = &committed.failed {
            return Err(error.clone());
        }
        if let Some(report) = report {
            report.held(window)?;
            record.set.frozen_microseconds = Some(report.microseconds);
            if record.document.is_none() {
                record.document = report.thawed.and_then(|thawed| thawed.document);
            }
        }
        let taken = committed.infos().count();
        if taken != record.members.len() {
            let text =
                format!("the drivers have taken {taken} snapshots of {}", record.members.len());
            return Err(Error::internal(text));
        }
        for (vdi, info) in record.members.iter().zip(committed.infos()) {
            if vdi.snapshot != info.uuid {
                return Err(Error::internal(format!(
                    "the driver has taken snapshot {} and not {}",
                    info.uuid, vdi.snapshot
                )));
            }
            record.set.members.push(SetMember {
                sr: vdi.sr,
                vdi: Some(vdi.vdi),
                snapshot: vdi.snapshot,
                name: info.name.clone(),
            });
        }
        Ok(())
    }

    /// Destroys what there is of the set; the error tells why.
    async fn give_up(&self, mut record: Record, error: Error) -> Error {
        let set = record.set.id;
        record.phase = Phase::Discarding;
        let discarded = self.manager.discard_set(self.op, record).await;
        let mut error = error.context("set", set);
        error.message = format!("no snapshot is kept: {}", error.message);
        match discarded {
            Ok(true) => error,
            Ok(false) => error.context("left", "what the storage takes late is destroyed then"),
            Err(why) => error.source(&why).context("left", "some are still to be destroyed"),
        }
    }
}

/// Context of an error: whether the guest is known to go on.
const GOES_ON: &str = "guest_goes_on";

fn goes_on(error: &Error) -> bool {
    error.context.get(GOES_ON).is_some_and(|value| value == "true")
}

async fn abandon(parts: Vec<Part>) {
    for part in parts {
        let sr = part.sr.uuid();
        if let Err(error) = part.prepared.abandon().await {
            tracing::warn!(%sr, %error, "what was prepared for a snapshot is not undone");
        }
    }
}

/// What is waited for.
#[derive(Clone, Copy)]
enum Wait {
    /// All answers: no guest is at rest.
    Answers,
    /// All answers, but not longer than a part of the window.
    AnswersWithin { window: Duration },
    /// That all snapshots hold what they are to hold; the answers come later.
    Caught { window: Duration },
}

impl Wait {
    fn of(method: &Method, at_rest: bool, window: Duration) -> Self {
        match method {
            _ if !at_rest => Self::Answers,
            // Windows is told the outcome, and its requester believes it.
            Method::XenStore { .. } => Self::AnswersWithin { window },
            _ => Self::Caught { window },
        }
    }
}

/// Takes all snapshots at once. With a guest at rest it does not wait for the last one at any
/// price.
async fn commit(parts: Vec<Part>, wait: Wait) -> Committed {
    let mut committed = Committed {
        parts: parts.len(),
        caught: BTreeSet::new(),
        done: BTreeMap::new(),
        failed: None,
        late: false,
        running: JoinSet::new(),
    };
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    for (n, part) in parts.into_iter().enumerate() {
        let tell = tell.clone();
        let caught = move || {
            let _ = tell.send(n);
        };
        committed.running.spawn(async move { (n, part.prepared.commit_telling(caught).await) });
    }
    let until = match wait {
        Wait::Answers => None,
        Wait::Caught { window } | Wait::AnswersWithin { window } => {
            let limit = (window * 9 / 10).min(LONGEST_COMMIT);
            Some(tokio::time::Instant::from_std(Instant::now() + limit))
        }
    };
    let over = async {
        match until {
            Some(until) => tokio::time::sleep_until(until).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(over);
    while !committed.is_caught() && committed.failed.is_none() {
        tokio::select! {
            biased;
            Some(joined) = committed.running.join_next() => committed.take(joined),
            Some(n) = told.recv(), if matches!(wait, Wait::Caught { .. }) => {
                committed.caught.insert(n);
            }
            () = &mut over => {
                committed.late = true;
                break;
            }
            else => break,
        }
    }
    committed
}

impl Committed {
    /// Whether the guest may go on.
    fn is_caught(&self) -> bool {
        self.caught.len() == self.parts
    }

    fn take(&mut self, joined: Result<(usize, Result<VdisDone>), tokio::task::JoinError>) {
        match joined {
            Ok((n, Ok(done))) => {
                self.caught.insert(n);
                self.done.insert(n, done);
            }
            Ok((_, Err(error))) => drop(self.failed.get_or_insert(error)),
            Err(error) => {
                let panicked = Error::internal("a task of a snapshot ended").source(&error);
                self.failed.get_or_insert(panicked);
            }
        }
    }

    /// The snapshots, in the order of the record.
    fn infos(&self) -> impl Iterator<Item = &VdiInfo> {
        self.done.values().flat_map(|done| &done.vdis)
    }

    fn outcome(&self, record: &Record) -> Outcome {
        if self.late || self.failed.is_some() || !self.is_caught() {
            return Outcome::Failed;
        }
        let taken = record.members.iter();
        Outcome::Taken(taken.map(|it| Taken { vdi: it.vdi, snapshot: it.snapshot }).collect())
    }
}

impl StorageManager {
    /// Says on the storage what a set is; it may have been said in part already.
    pub(super) async fn mark_set(&self, op: &Op, mut record: Record) -> Result<SnapshotSet> {
        let catalog = &self.inner.catalog;
        if record.phase != Phase::Marking {
            record.phase = Phase::Marking;
            ledger::keep(catalog, &record)?;
            step!("quiesce.kept");
        }
        for member in &record.members {
            let sr = self.sr(&member.sr.to_string())?;
            let op = Op::new().with_budget(op.budget);
            let (key, value) = Mark::of(&record.set).key(member.snapshot);
            sr.vdi_mark(&op, member.snapshot, [(key, Some(value))].into()).await?;
            step!("quiesce.marked");
        }
        // A storage whose metadata is small: the snapshots are worth more than what there is no room
        // for.
        if let Some(first) = record.members.first() {
            let sr = self.sr(&first.sr.to_string())?;
            let (op, snapshot) = (Op::new().with_budget(op.budget), first.snapshot);
            if !record.set.system.is_empty() {
                let marked = sr.vdi_mark(&op, snapshot, keys::of_system(&record.set.system)).await;
                if let Err(error) = marked {
                    let what = "what the guest says that it is, is not kept";
                    record.set.notes.push(format!("{what}: {error}"));
                }
            }
            if let Some(text) = record.document.take() {
                let op = Op::new().with_budget(op.budget);
                match sr.vdi_mark(&op, snapshot, keys::of_document(&text)).await {
                    Ok(_) => record.set.document = text.len() as u64,
                    Err(error) => {
                        record.set.notes.push(format!("the document is not kept: {error}"));
                    }
                }
            }
        }
        record.phase = Phase::Done;
        ledger::keep(catalog, &record)?;
        step!("quiesce.done");
        self.files_of(&record).remove();
        Ok(record.set)
    }
}
