//! The group as an [`Array`]: which commands each primitive takes.

mod access;
mod restore;
mod shown;
mod unfinished;

use std::collections::BTreeMap;
use std::future::ready;
use std::sync::{Mutex, PoisonError};

use array_kit::array::{
    Array, Capabilities, CloneKind, DeleteKind, Identity, Initiator, LunAddressing, Mapping,
    Masking, MetadataPlace, New, Pool, SnapshotScope, Volume,
};
use array_kit::job::{self, Poll, State};
use array_kit::ledger::ResizeKind;
use array_kit::metadata::Document;
use array_kit::names::{NameRule, Role};
use array_kit::outcome::{Class, Failure, OrAbsent as _, Outcome};
use array_kit::retry::Effect;
use array_kit::size::SizeRule;
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use plugin_sdk::model::{Bytes, SrUuid};
use plugin_sdk::{Cx, step};

use crate::cli::command::{Command, NewVolume, Object, quoted, word};
use crate::cli::parse::{self, Details, VolumeRow};
use crate::cli::reply::Reply;
use crate::cli::verdict::garbled;
use crate::config::{Allocation, Habits};
use crate::session::pool::Sessions;
use crate::text;

/// Names of volumes and snapshots: 63 characters are seen in use.
pub const NAMES: NameRule = NameRule::new(63);

/// A page. That sizes are multiples of it is what people report; the size is read back.
const PAGE: Bytes = Bytes(15 << 20);

/// What `Status` says while a volume is being filled from another one.
const COPYING: [&str; 4] = ["cloning", "copying", "in-progress", "creating"];

/// A group, reached by its command line.
pub struct EqualLogic {
    sessions: Sessions,
    capabilities: Capabilities,
    habits: Habits,
    /// The CHAP account that access records name.
    chap: Option<String>,
    /// Address and port of the group's iSCSI portal.
    portal: String,
    /// Which volume a snapshot was seen at: only where to look first.
    hints: Mutex<BTreeMap<String, String>>,
    /// For the second half of a scan.
    listed: Mutex<shown::Listed>,
}

/// What the array can do.
fn capabilities() -> Capabilities {
    Capabilities {
        names: NAMES,
        unique_names: true,
        size: SizeRule::new(PAGE, PAGE, Bytes(15 << 40)),
        resize: ResizeKind::Absolute,
        clone: CloneKind::Copies,
        snapshots: SnapshotScope::Unnamed,
        max_snapshots: Some(512),
        group_snapshots: false,
        delete: DeleteKind::OfflineFirst,
        delete_takes_snapshots: true,
        restore_drops_newer: false,
        lun: LunAddressing::TargetPerVolume { lun: 0 },
        metadata: MetadataPlace::Later { limit: text::ROOM },
    }
}

impl EqualLogic {
    /// A group.
    pub fn new(sessions: Sessions, habits: Habits, chap: Option<String>, portal: String) -> Self {
        let (capabilities, hints, listed) = (capabilities(), Mutex::default(), Mutex::default());
        Self { sessions, capabilities, habits, chap, portal, hints, listed }
    }

    /// Its sessions.
    pub fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    async fn run(&self, cx: &Cx, command: Command) -> Outcome<Reply> {
        self.sessions.run(cx, &command).await
    }

    /// A command about a volume or snapshot.
    async fn on(
        &self,
        cx: &Cx,
        object: &Object,
        operation: &'static str,
        effect: Effect,
        rest: &str,
    ) -> Outcome<Reply> {
        self.run(cx, object.command(operation, effect, rest)?).await
    }

    /// What the array says of a volume or snapshot.
    async fn details(&self, cx: &Cx, object: &Object) -> Outcome<Details> {
        let command = object.command("show", Effect::Reads, "show")?;
        let name = object.snapshot.as_ref().unwrap_or(&object.volume);
        let read = |reply: Reply| {
            let details = Details::read(&reply.lines);
            // A reply to something else would be believed otherwise.
            if details.get("name").is_some_and(|shown| shown.eq_ignore_ascii_case(name)) {
                return Ok(details);
            }
            Err(garbled(format!("what the array shows is not of {name}")))
        };
        self.sessions.ask(cx, &command, read).await
    }

    fn volume(object: &Object, details: &Details) -> Outcome<Volume> {
        let name = object.snapshot.as_ref().unwrap_or(&object.volume);
        let size = details
            .size("size")
            .ok_or_else(|| garbled(format!("the array shows no size of {name}")))?;
        let status = details.get("status").unwrap_or_default().to_ascii_lowercase();
        let known = status.is_empty() || ["online", "offline"].contains(&status.as_str());
        let snapshot_of = object.snapshot.as_ref().map(|_| object.volume.clone());
        Ok(Volume {
            id: match &object.snapshot {
                Some(snapshot) => format!("{}/{snapshot}", object.volume),
                None => object.volume.clone(),
            },
            name: name.clone(),
            size,
            used: details.size("volreserveinuse"),
            snapshot_of,
            metadata: text::decode(name, details.get("description").unwrap_or_default()),
            trouble: (!known).then(|| format!("it is {status} on the array")),
            ..Volume::default()
        })
    }

    async fn get_object(&self, cx: &Cx, object: &Object) -> Outcome<Volume> {
        let details = self.details(cx, object).await?;
        if let Some(snapshot) = &object.snapshot {
            self.hint(snapshot, &object.volume);
        }
        Self::volume(object, &details)
    }

    /// Notes at which volume a snapshot is.
    fn hint(&self, snapshot: &str, volume: &str) {
        let mut hints = self.hints.lock().unwrap_or_else(PoisonError::into_inner);
        hints.insert(snapshot.to_owned(), volume.to_owned());
    }

    /// A snapshot of which no more than its name is known.
    fn bare(volume: &str, name: &str) -> Volume {
        Volume {
            id: format!("{volume}/{name}"),
            name: name.to_owned(),
            snapshot_of: Some(volume.to_owned()),
            ..Volume::default()
        }
    }

    /// The pool of a volume, where the array shows it.
    pub async fn pool_of(&self, cx: &Cx, volume: &str) -> Outcome<Option<String>> {
        Ok(self.details(cx, &Object::of(volume)).await?.get("pool").map(str::to_owned))
    }

    /// The rows of `volume show`.
    async fn rows(&self, cx: &Cx) -> Outcome<Vec<VolumeRow>> {
        let read = |reply: Reply| match parse::volumes(&reply.lines) {
            // Of an SR there is its record at least.
            Ok(rows) if rows.is_empty() && cx.sr().is_some() => {
                Err(garbled("the array shows no volumes"))
            }
            Ok(rows) => Ok(rows),
            Err(line) => Err(odd("volumes", &line)),
        };
        self.sessions.ask(cx, &Command::reads("list", "volume show"), read).await
    }

    async fn snapshot_names(&self, cx: &Cx, volume: &str) -> Outcome<Vec<String>> {
        let command =
            Object::of(volume).command("list_snapshots", Effect::Reads, "snapshot show")?;
        let read =
            |reply: Reply| parse::snapshots(&reply.lines).map_err(|line| odd("snapshots", &line));
        self.sessions.ask(cx, &command, read).await
    }

    /// The volumes of our SR that have snapshots, with the snapshots' names.
    async fn all_snapshots(&self, cx: &Cx) -> Outcome<Vec<(String, Vec<String>)>> {
        let rows = self.rows(cx).await?;
        self.names_of_snapshots(cx, with_snapshots(&rows, cx)).await
    }

    async fn names_of_snapshots(
        &self,
        cx: &Cx,
        volumes: Vec<String>,
    ) -> Outcome<Vec<(String, Vec<String>)>> {
        self.each(volumes, |name: String| async move {
            let found = self.snapshot_names(cx, &name).await.or_absent()?;
            Ok(found.map(|found| (name, found)))
        })
        .await
    }

    /// Does the same for many, as many at once as there are sessions. What is gone meanwhile is left
    /// out; any other failure is one of the whole.
    async fn each<I: Send, T: Send, F>(
        &self,
        items: Vec<I>,
        work: impl Fn(I) -> F + Send + Sync,
    ) -> Outcome<Vec<T>>
    where
        F: Future<Output = Outcome<Option<T>>> + Send,
    {
        let all = stream::iter(items).map(work).buffered(self.sessions.at_once());
        all.try_filter_map(|found| ready(Ok(found))).try_collect().await
    }

    /// Waits until a clone is whole, and lets nobody reach it who could reach its source.
    async fn finish_clone(&self, cx: &Cx, name: &str, used: Option<Bytes>) -> Outcome<Volume> {
        let made = self.filled(cx, name, used).await?;
        let object = Object::of(name);
        for record in self.access(cx, &object).await? {
            self.forget_access(cx, &object, record.id).await?;
        }
        Ok(made)
    }

    /// Waits until a volume is filled. The array tells how much of it is in use, which is as much as
    /// its source has when it is done.
    async fn filled(&self, cx: &Cx, name: &str, all: Option<Bytes>) -> Outcome<Volume> {
        let object = &Object::of(name);
        let ask = || async {
            let details = self.details(cx, object).await?;
            let status = details.get("status").unwrap_or_default().to_ascii_lowercase();
            if status.starts_with("failed") {
                let failure = Failure::new(Class::NoSpace).object(name);
                return Ok(State::Failed(failure.fact("the array's copy failed")));
            }
            if !COPYING.iter().any(|word| status.starts_with(word)) {
                return Ok(State::Done);
            }
            let permille = match (details.size("volreserveinuse"), all) {
                (Some(done), Some(Bytes(all))) if all > 0 => {
                    Some(u32::try_from(done.0.saturating_mul(1000) / all).unwrap_or(1000).min(999))
                }
                _ => None,
            };
            Ok(State::Running { permille })
        };
        let look = || async { self.get_object(cx, object).await.or_absent() };
        let undo = |left: Volume| async move { self.delete(cx, &left).await };
        job::wait_for(cx, "the array copies used pages", Poll::default(), ask, look, undo).await
    }
}

/// The failure for a table that cannot be read.
fn odd(what: &str, line: &str) -> Failure {
    garbled(format!("a line of the array's {what} cannot be read: {line:?}"))
}

/// Whether an object is shown as offline.
fn is_offline(details: &Details) -> bool {
    details.get("status").is_some_and(|status| status.eq_ignore_ascii_case("offline"))
}

/// The volumes of our SR that have snapshots.
fn with_snapshots(rows: &[VolumeRow], cx: &Cx) -> Vec<String> {
    let ours = |row: &&VolumeRow| {
        row.snapshots != Some(0) && is_of(NAMES.parse(&row.name).and_then(|n| n.sr), cx)
    };
    rows.iter().filter(ours).map(|row| row.name.clone()).collect()
}

/// Whether a name is of the SR of this call, or the call is of none.
fn is_of(sr: Option<SrUuid>, cx: &Cx) -> bool {
    match cx.sr() {
        Some(own) => sr == Some(own),
        None => sr.is_some(),
    }
}

impl Array for EqualLogic {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn text_size(&self, json: &str) -> usize {
        text::size(json)
    }

    async fn identity(&self, cx: &Cx) -> Outcome<Identity> {
        let read = |reply: Reply| {
            let details = Details::read(&reply.lines);
            if details.get("group-ipaddress").is_none() {
                return Err(garbled("the array does not show its group's parameters"));
            }
            Ok(details)
        };
        let command = Command::reads("identity", "grpparams show");
        let details = self.sessions.ask(cx, &command, read).await?;
        Ok(Identity {
            vendor: "EQLOGIC".to_owned(),
            model: "PS group".to_owned(),
            serial: details.get("name").unwrap_or_default().to_owned(),
            version: details.get("group-ipaddress").unwrap_or_default().to_owned(),
        })
    }

    async fn pools(&self, cx: &Cx) -> Outcome<Vec<Pool>> {
        let read = |reply: Reply| match parse::pools(&reply.lines) {
            rows if rows.is_empty() => Err(garbled("the array shows no storage pools")),
            rows => Ok(rows),
        };
        let rows = self.sessions.ask(cx, &Command::reads("pools", "pool show"), read).await?;
        let pool = |row: parse::PoolRow| Pool {
            name: row.name,
            size: row.size,
            used: Bytes(row.size.0.saturating_sub(row.free.0)),
        };
        Ok(rows.into_iter().map(pool).collect())
    }

    async fn create(&self, cx: &Cx, new: &New<'_>) -> Outcome<Volume> {
        let is_record = NAMES.parse(new.name).is_some_and(|named| named.role == Role::Record);
        let keys = Document::read(new.metadata).map(|document| document.keys).unwrap_or_default();
        let habits = self.habits.with(&keys).map_err(|error| {
            // Nothing was asked: the class says that for certain.
            let failure = Failure::new(Class::LimitReached).fact(error.message.clone());
            failure.hint("correct the key, or leave it out").legacy(error.legacy_code())
        })?;
        let description = text::encode(new.name, new.metadata);
        let command = Command::create(&NewVolume {
            name: new.name,
            size: new.size,
            pool: new.pool,
            thin: is_record || habits.allocation == Allocation::Thin,
            snap_reserve: Some(if is_record { 0 } else { habits.snap_reserve }),
            snap_depletion: (!is_record).then(|| habits.snap_depletion.word()),
            description: &description,
        })?;
        self.run(cx, command).await?;
        let made = Volume {
            id: new.name.to_owned(),
            name: new.name.to_owned(),
            size: new.size,
            used: Some(Bytes(0)),
            metadata: Some(new.metadata.to_owned()),
            ..Volume::default()
        };
        if !is_record {
            shown::keep(cx, &made).await;
        }
        Ok(made)
    }

    async fn get(&self, cx: &Cx, name: &str) -> Outcome<Volume> {
        let object = &Object::of(name);
        let details = self.details(cx, object).await?;
        // A clone whose reply was lost, and that is looked for: it still has its source's text.
        let description = details.get("description").unwrap_or_default();
        if cx.operation() == "vdi_clone" && text::is_inherited(name, description) {
            return self.finish_clone(cx, name, None).await;
        }
        Self::volume(object, &details)
    }

    async fn list(&self, cx: &Cx, prefix: &str) -> Outcome<Vec<Volume>> {
        let rows = self.rows(cx).await?;
        // A name that was cut is one of ours that would be missing.
        if let Some(cut) = rows
            .iter()
            .find(|row| row.name.len() > 7 && row.name != prefix && prefix.starts_with(&row.name))
        {
            return Err(garbled(format!("the array shows a part of a name: {:?}", cut.name)));
        }
        self.note_listed(with_snapshots(&rows, cx));
        let (ours, foreign): (Vec<_>, Vec<_>) =
            rows.into_iter().partition(|row| row.name.starts_with(prefix));
        let mut volumes = self.ours(cx, ours).await?;
        volumes.extend(foreign.into_iter().map(|row| Volume {
            id: row.name.clone(),
            name: row.name,
            size: row.size.unwrap_or(Bytes(0)),
            ..Volume::default()
        }));
        Ok(volumes)
    }

    async fn resize(&self, cx: &Cx, volume: &Volume, to: Bytes) -> Outcome<Option<Bytes>> {
        self.run(cx, Command::resize(&volume.name, to)?).await?;
        Ok(None) // Read back: the array's own rounding is not known for certain.
    }

    async fn delete(&self, cx: &Cx, volume: &Volume) -> Outcome<()> {
        let object = &Object::of(&volume.id);
        shown::forget(cx, &volume.id).await?;
        // Offline ends the sessions of whoever uses it, without asking.
        let records = self.access(cx, object).await?;
        if !records.is_empty() {
            let names: Vec<&str> = records.iter().map(|record| record.initiator.as_str()).collect();
            return Err(Failure::new(Class::InUse)
                .object(volume.name.clone())
                .words(names.join(", ")));
        }
        self.on(cx, object, "offline", Effect::Changes, "offline").await?;
        step!("equallogic.offline");
        self.run(cx, Command::delete(&volume.name)?).await.map_err(Failure::partly)?;
        restore::forget(&cx.shielded(), &volume.name).await
    }

    async fn snapshot(&self, _: &Cx, volume: &Volume, _: &New<'_>) -> Outcome<Volume> {
        Err(Failure::new(Class::Unsupported).object(volume.name.clone()))
    }

    async fn snapshot_unnamed(&self, cx: &Cx, volume: &Volume, new: &New<'_>) -> Outcome<String> {
        let object = Object::of(&volume.id);
        let description = quoted(&text::encode(new.name, new.metadata))?;
        let rest = format!("snapshot create-now description {description}");
        let reply = self.on(cx, &object, "snapshot", Effect::Changes, &rest).await?;
        reply.after("snapshot name is").ok_or_else(|| {
            garbled(format!("the array does not tell the name of its snapshot of {}", volume.name))
        })
    }

    async fn taken_for(
        &self,
        cx: &Cx,
        volume: &Volume,
        new: &New<'_>,
        names: Vec<String>,
    ) -> Outcome<Option<String>> {
        self.find_taken(cx, volume, new, names).await
    }

    async fn remove_forgotten(
        &self,
        cx: &Cx,
        volume: &Volume,
        unnamed: Vec<Volume>,
    ) -> Outcome<Vec<Volume>> {
        self.remove_unnamed(cx, volume, unnamed).await
    }

    async fn rename_snapshot(&self, cx: &Cx, volume: &Volume, from: &str, to: &str) -> Outcome<()> {
        let rest = format!("snapshot rename {} {}", word("name", from)?, word("name", to)?);
        let object = Object::of(&volume.id);
        self.on(cx, &object, "rename_snapshot", Effect::Changes, &rest).await?;
        self.hint(to, &volume.name);
        Ok(())
    }

    async fn get_snapshot(&self, cx: &Cx, name: &str, of: Option<&Volume>) -> Outcome<Volume> {
        let at =
            |volume: &str| Object { volume: volume.to_owned(), snapshot: Some(name.to_owned()) };
        if let Some(of) = of {
            return self.get_object(cx, &at(&of.name)).await;
        }
        let hint = {
            let hints = self.hints.lock().unwrap_or_else(PoisonError::into_inner);
            hints.get(name).cloned()
        };
        if let Some(volume) = hint
            && let Some(found) = self.get_object(cx, &at(&volume)).await.or_absent()?
        {
            // It has just got its name, and the next scan need not ask for it.
            if cx.operation() == "vdi_snapshot" {
                shown::keep(cx, &found).await;
            }
            return Ok(found);
        }
        let all = self.all_snapshots(cx).await?;
        match all.iter().find(|(_, names)| names.iter().any(|one| one == name)) {
            Some((volume, _)) => self.get_object(cx, &at(volume)).await,
            None => Err(Failure::not_found(format!("snapshot {name}"))),
        }
    }

    async fn snapshots(&self, cx: &Cx, of: Option<&Volume>) -> Outcome<Vec<Volume>> {
        if let Some(of) = of {
            // Who asks for one volume's wants their names.
            let names = self.snapshot_names(cx, &of.name).await?;
            return Ok(names.iter().map(|name| Self::bare(&of.name, name)).collect());
        }
        let volumes = match self.take_listed() {
            Some(listed) => self.names_of_snapshots(cx, listed).await?,
            None => self.all_snapshots(cx).await?,
        };
        self.snapshots_of(cx, volumes).await
    }

    async fn delete_snapshot(&self, cx: &Cx, snapshot: &Volume) -> Outcome<()> {
        let object = Object::of(&snapshot.id);
        shown::forget(cx, &snapshot.id).await?;
        let volume = Object { snapshot: None, ..object.clone() };
        let rest = format!("snapshot delete {}", word("name", &snapshot.name)?);
        let delete = || self.on(cx, &volume, "delete_snapshot", Effect::Changes, &rest);
        match delete().await {
            // Online: it was attached, or somebody set it so.
            Err(failure) if failure.class == Class::InUse => {
                if !self.access(cx, &object).await?.is_empty() {
                    return Err(failure);
                }
                self.on(cx, &object, "offline", Effect::Changes, "offline").await?;
                step!("equallogic.snapshot_offline");
                delete().await.map(drop).map_err(Failure::partly)
            }
            other => other.map(drop),
        }
    }

    async fn restore(&self, cx: &Cx, volume: &Volume, snapshot: &Volume) -> Outcome<()> {
        restore::restore(self, cx, volume, snapshot).await
    }

    async fn settle_restores(&self, cx: &Cx) -> Outcome<Vec<String>> {
        restore::settle(self, cx).await
    }

    async fn clone_of(&self, cx: &Cx, source: &Volume, new: &New<'_>) -> Outcome<Volume> {
        let rest = format!("clone {}", word("name", new.name)?);
        self.on(cx, &Object::of(&source.id), "clone", Effect::Changes, &rest).await?;
        step!("equallogic.cloned");
        // From here on the clone is there: what fails leaves open how far it is.
        let open = |failure: Failure| match failure.class {
            Class::Own | Class::NoSpace => failure,
            _ => failure.reclassed(Class::Unknown),
        };
        self.finish_clone(cx, new.name, source.used).await.map_err(open)
    }

    async fn describe(&self, cx: &Cx, volume: &Volume, metadata: &str) -> Outcome<()> {
        let text = text::encode(&volume.name, metadata);
        let rest = format!("description {}", quoted(&text)?);
        shown::forget(cx, &volume.id).await?;
        self.on(cx, &Object::of(&volume.id), "describe", Effect::Changes, &rest).await?;
        let is_record = NAMES.parse(&volume.name).is_some_and(|named| named.role == Role::Record);
        if !is_record {
            let metadata = text::decode(&volume.name, &text);
            shown::keep(cx, &Volume { metadata, ..volume.clone() }).await;
        }
        Ok(())
    }

    fn is_denied(&self) -> bool {
        self.sessions.is_denied()
    }

    async fn close(&self, _: &Cx) {
        self.sessions.close().await;
    }
}

impl Masking for EqualLogic {
    async fn grant(&self, cx: &Cx, _: &Initiator) -> Outcome<()> {
        // Another host may have had the SR.
        shown::forget_all(cx).await
    }

    async fn revoke(&self, cx: &Cx, _: &Initiator) -> Outcome<()> {
        shown::forget_all(cx).await
    }

    async fn map(&self, cx: &Cx, volume: &Volume, to: &Initiator) -> Outcome<Mapping> {
        self.let_in(cx, volume, to).await
    }

    async fn unmap(&self, cx: &Cx, volume: &Volume, from: &Initiator) -> Outcome<()> {
        self.shut_out(cx, volume, from).await
    }

    async fn mappings(&self, cx: &Cx, volume: &Volume) -> Outcome<Vec<String>> {
        let records = self.access(cx, &Object::of(&volume.id)).await?;
        Ok(records.into_iter().map(|record| record.initiator).collect())
    }
}
