//! Does a change once, whatever becomes of the answers.
//!
//! No array has idempotency keys. Before a request that changes something, its intent is recorded in
//! the host's state ([`plugin_sdk::Kv`]); after it, the record is removed. When the answer is lost
//! (reply lost, time over, this process killed), nobody asks again before somebody has looked:
//!
//! | change | resolved by |
//! |---|---|
//! | create | the object of that name: its facts are compared; none: it is made, and a name that is taken after all means that the first request arrived |
//! | resize | the size now; where the array takes a difference, only after its reads cannot be stale any more |
//! | delete | removed again: that it is gone is success |
//! | rename | which of the two names is there |
//! | make, then name | what is there now and was not before |
//!
//! An intent is found by the name of its object, so that the next operation on the same object, also
//! another one, looks first. What is still open at an attach of the SR is for
//! [`crate::driver`] to settle.

use std::time::{Duration, Instant};

use plugin_sdk::model::{Bytes, Changed, OperationId};
use plugin_sdk::{Cx, step};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::outcome::{Class, Failure, Outcome};
use crate::retry::{resolving, wait};
use crate::size::SizeRule;

/// What stands before each key of the host's state.
const PREFIX: &str = "intent/";

/// How long an array may take to show what it did.
#[derive(Clone, Copy, Debug)]
pub struct Settle {
    /// For how long after a change its reads may be stale.
    pub stale: Duration,
    /// The pause between two looks.
    pub pause: Duration,
    /// How often a change is asked for whose answers get lost.
    pub tries: u32,
}

impl Default for Settle {
    fn default() -> Self {
        Self { stale: Duration::from_secs(5), pause: Duration::from_millis(250), tries: 4 }
    }
}

/// A change that was begun, and may or may not be done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// Whose wish it is.
    pub operation_id: OperationId,
    /// What is being done.
    pub what: What,
    /// The vendor's handle of the object, where it has one already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<Value>,
}

/// A kind of change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum What {
    /// It is being made.
    Create,
    /// It is being made larger.
    Resize {
        /// The size before.
        from: Bytes,
        /// The size after.
        to: Bytes,
    },
    /// It is being removed, in one step or several.
    Delete,
    /// It is getting another name.
    Rename {
        /// The name after.
        to: String,
    },
    /// It is being made under a name that the array chooses, and then named.
    MakeThenName {
        /// The names that were there before.
        before: Vec<String>,
        /// The name that the array chose, once that is known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        made: Option<String>,
    },
}

/// How an array takes a new size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResizeKind {
    /// The new size.
    Absolute,
    /// The difference: the same request twice grows twice.
    Delta,
}

/// How a change begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Begin {
    /// Its intent is recorded now, with this [`Intent::object`].
    Now(Option<Value>),
    /// Its intent was recorded a while ago, by [`Ledger::intend`], and nothing has been asked of the
    /// array since that makes it.
    Ahead,
}

/// The intents of one call.
#[derive(Clone, Debug)]
pub struct Ledger {
    cx: Cx,
    settle: Settle,
}

impl Ledger {
    /// The ledger for a call.
    pub fn new(cx: &Cx, settle: Settle) -> Self {
        Self { cx: cx.clone(), settle }
    }

    /// For looking: goes on after a cancel, because a change that was sent is resolved.
    fn shield(&self) -> Cx {
        resolving(&self.cx)
    }

    /// The open intent of an object.
    pub async fn open(&self, name: &str) -> Outcome<Option<Intent>> {
        Ok(self.cx.kv().get(&format!("{PREFIX}{name}")).await?)
    }

    /// All open intents, by the name of their object.
    pub async fn all_open(&self) -> Outcome<Vec<(String, Intent)>> {
        let all = self.cx.kv().list::<Intent>(PREFIX).await?;
        let name = |key: &str| key.strip_prefix(PREFIX).unwrap_or(key).to_owned();
        Ok(all.into_iter().map(|(key, intent)| (name(&key), intent)).collect())
    }

    /// Forgets the intent of an object: its outcome is known.
    pub async fn conclude(&self, name: &str) -> Outcome<()> {
        Ok(self.shield().kv().remove(&format!("{PREFIX}{name}")).await?)
    }

    /// As [`Self::conclude`], of a removal that was refused: its intent must not come back with a loss of
    /// power, or the next attach of the SR would remove what its owner was told is still there.
    async fn conclude_refused(&self, name: &str) -> Outcome<()> {
        Ok(self.shield().kv().remove_durably(&format!("{PREFIX}{name}")).await?)
    }

    /// Records an intent. Whoever then does the change himself concludes it himself; `object` is
    /// found in [`Intent::object`] after a crash.
    pub async fn intend(&self, name: &str, what: What, object: Option<Value>) -> Outcome<()> {
        self.cx.check()?;
        let intent = Intent { operation_id: self.cx.operation_id(), what, object };
        Ok(self.cx.kv().put(&format!("{PREFIX}{name}"), &intent).await?)
    }

    /// Makes an object, once. `look` finds it by its name, `same` says whether what was found is
    /// what is asked for (else the difference), `make` sends the request. `unique` tells that the
    /// array refuses a second object of that name; otherwise it is looked for first.
    ///
    /// [`Class::AlreadyExists`] if something else has the name.
    pub async fn create<T, L, M>(
        &self,
        name: &str,
        unique: bool,
        look: impl Fn(Cx) -> L + Send + Sync,
        same: impl Fn(&T) -> Result<(), String> + Send + Sync,
        make: impl Fn(Cx) -> M + Send + Sync,
    ) -> Outcome<(Changed, T)>
    where
        T: Send,
        L: Future<Output = Outcome<Option<T>>> + Send,
        M: Future<Output = Outcome<T>> + Send,
    {
        self.create_of(name, Begin::Now(None), unique, look, same, make).await
    }

    /// As [`Self::create`], where the intent has an object, or is there already.
    pub async fn create_of<T, L, M>(
        &self,
        name: &str,
        begin: Begin,
        unique: bool,
        look: impl Fn(Cx) -> L + Send + Sync,
        same: impl Fn(&T) -> Result<(), String> + Send + Sync,
        make: impl Fn(Cx) -> M + Send + Sync,
    ) -> Outcome<(Changed, T)>
    where
        T: Send,
        L: Future<Output = Outcome<Option<T>>> + Send,
        M: Future<Output = Outcome<T>> + Send,
    {
        // What was intended ahead was not asked for yet.
        let mut sent = begin != Begin::Ahead && self.open(name).await?.is_some();
        let judge = |found: T, sent: bool| match same(&found) {
            Ok(()) => Ok((if sent { Changed::Created } else { Changed::Already }, found)),
            Err(difference) => Err(Failure::new(Class::AlreadyExists)
                .object(name)
                .fact(format!("an object of this name is on the array, and differs: {difference}"))
                .hint("look at it on the array; it is left as it is")),
        };
        if sent || !unique {
            let found = if unique || !sent {
                look(self.shield()).await?
            } else {
                self.appears(&look).await?
            };
            if let Some(found) = found {
                self.conclude(name).await?;
                return judge(found, sent);
            }
        }
        if let Begin::Now(object) = begin {
            self.intend(name, What::Create, object).await?;
        }
        step!("array.create_intended");
        let mut tries = 0;
        loop {
            tries += 1;
            let failure = match make(self.cx.clone()).await {
                Ok(made) => {
                    step!("array.created");
                    self.conclude(name).await?;
                    return Ok((Changed::Created, made));
                }
                Err(failure) => failure,
            };
            let lost = !failure.class.is_certain();
            let found = match failure.class {
                // The name is taken: by an earlier request of ours, or by somebody.
                Class::AlreadyExists => self.appears(&look).await?,
                // Not unique: a second request would make a second object, so the array gets all
                // the time it may need to show the first.
                _ if (lost || sent) && !unique => self.appears(&look).await?,
                _ if lost || sent => look(self.shield()).await?,
                _ => None,
            };
            sent |= lost;
            if let Some(found) = found {
                self.conclude(name).await?;
                return judge(found, sent);
            }
            if !lost {
                self.conclude(name).await?;
                return Err(failure.object(name));
            }
            if tries >= self.settle.tries || failure.class == Class::Own {
                return Err(failure.object(name)); // The intent stays: it may have been done.
            }
            self.cx.check()?;
        }
    }

    /// Makes an object larger, to `to`, once. `read` says how large it is, `grow` asks for the step
    /// from a size to another one and answers the size after it if the array says it. Answers the
    /// size that it has in the end.
    ///
    /// [`Class::LimitReached`] if it is larger already.
    pub async fn resize<R, G>(
        &self,
        name: &str,
        to: Bytes,
        rule: &SizeRule,
        kind: ResizeKind,
        read: impl Fn(Cx) -> R + Send + Sync,
        grow: impl Fn(Cx, Bytes, Bytes) -> G + Send + Sync,
    ) -> Outcome<(Changed, Bytes)>
    where
        R: Future<Output = Outcome<Bytes>> + Send,
        G: Future<Output = Outcome<Option<Bytes>>> + Send,
    {
        let open = self.open(name).await?;
        let mut now = read(self.shield()).await?;
        if let Some(Intent { what: What::Resize { from, .. }, .. }) = &open
            && kind == ResizeKind::Delta
        {
            now = self.moves(*from, now, &read).await?;
        }
        let mut sent = open.is_some();
        let mut tries = 0;
        loop {
            if rule.is(to, now) {
                if sent {
                    self.conclude(name).await?;
                }
                return Ok((if sent { Changed::Modified } else { Changed::Already }, now));
            }
            if now > to {
                self.conclude(name).await?;
                return Err(Failure::new(Class::LimitReached)
                    .object(name)
                    .fact(format!("it has {} bytes, and does not become smaller: {}", now.0, to.0))
                    .hint("make a new disk of that size and copy what is needed"));
            }
            self.intend(name, What::Resize { from: now, to }, None).await?;
            step!("array.resize_intended");
            tries += 1;
            let failure = match grow(self.cx.clone(), now, to).await {
                Ok(size) => {
                    step!("array.resized");
                    let size = match size {
                        Some(size) => size,
                        None => self.moves(now, now, &read).await?,
                    };
                    self.conclude(name).await?;
                    return Ok((Changed::Modified, size));
                }
                Err(failure) => failure,
            };
            let lost = !failure.class.is_certain();
            if !lost && !sent {
                self.conclude(name).await?;
                return Err(failure.object(name));
            }
            if failure.class == Class::Own || tries >= self.settle.tries {
                return Err(failure.object(name));
            }
            let before = now;
            now = read(self.shield()).await?;
            if kind == ResizeKind::Delta {
                now = self.moves(before, now, &read).await?;
            }
            if !lost && now == before {
                self.conclude(name).await?;
                return Err(failure.object(name));
            }
            sent = true;
            self.cx.check()?;
        }
    }

    /// Removes an object, for good. `remove` takes all steps that are still needed, marks a failure
    /// after the first one as [partly](Failure::partly) done, and [`Class::NotFound`] from it is
    /// success. `object` is what [`Intent::object`] then has, for
    /// steps after the one that makes the object invisible.
    pub async fn delete<R>(
        &self,
        name: &str,
        object: Option<Value>,
        remove: impl Fn(Cx) -> R + Send + Sync,
    ) -> Outcome<Changed>
    where
        R: Future<Output = Outcome<()>> + Send,
    {
        let mut sent = self.open(name).await?.is_some();
        self.intend(name, What::Delete, object).await?;
        step!("array.delete_intended");
        let mut tries = 0;
        let mut lost = None;
        loop {
            tries += 1;
            match remove(self.cx.clone()).await {
                Ok(()) => {
                    step!("array.deleted");
                    self.conclude(name).await?;
                    return Ok(Changed::Modified);
                }
                Err(failure) if failure.class == Class::NotFound => {
                    self.conclude(name).await?;
                    return Ok(if sent { Changed::Modified } else { Changed::Already });
                }
                // What is in use is whole, whatever became of an earlier request.
                Err(failure)
                    if failure.class.is_certain()
                        && !failure.partly
                        && (!sent || failure.class == Class::InUse) =>
                {
                    self.conclude_refused(name).await?;
                    return Err(failure.object(name));
                }
                // The intent stays: somebody has to take the steps that are left. While an answer is
                // missing, that is what is told: it may have been done.
                Err(failure)
                    if failure.class == Class::Own
                        || failure.class.is_certain()
                        || tries >= self.settle.tries =>
                {
                    let told = if failure.class == Class::Own { None } else { lost };
                    return Err(told.unwrap_or(failure).object(name));
                }
                Err(failure) => {
                    sent = true;
                    lost = Some(failure);
                }
            }
            self.cx.check()?;
        }
    }

    /// Gives an object another name, once: `look` says whether a name is there.
    pub async fn rename<L, R>(
        &self,
        from: &str,
        to: &str,
        look: impl Fn(Cx, String) -> L + Send + Sync,
        rename: impl Fn(Cx) -> R + Send + Sync,
    ) -> Outcome<Changed>
    where
        L: Future<Output = Outcome<bool>> + Send,
        R: Future<Output = Outcome<()>> + Send,
    {
        let mut sent = self.open(from).await?.is_some();
        self.intend(from, What::Rename { to: to.to_owned() }, None).await?;
        step!("array.rename_intended");
        let mut tries = 0;
        loop {
            tries += 1;
            let failure = match rename(self.cx.clone()).await {
                Ok(()) => {
                    step!("array.renamed");
                    self.conclude(from).await?;
                    return Ok(Changed::Modified);
                }
                Err(failure) => failure,
            };
            let lost = !failure.class.is_certain();
            // Gone under the old name, or there under the new one: it may be our own doing.
            if lost || matches!(failure.class, Class::NotFound | Class::AlreadyExists) {
                let old = look(self.shield(), from.to_owned()).await?;
                if !old && self.until(|| look(self.shield(), to.to_owned())).await? {
                    self.conclude(from).await?;
                    return Ok(if sent || lost { Changed::Modified } else { Changed::Already });
                }
            }
            if !lost {
                self.conclude(from).await?;
                return Err(failure.object(from));
            }
            if failure.class == Class::Own || tries >= self.settle.tries {
                return Err(failure.object(from));
            }
            sent = true;
            self.cx.check()?;
        }
    }

    /// For arrays that choose the name of a new snapshot: makes it and names it `name`, once. `list`
    /// are the names of all snapshots of the volume, `ours` tells which of some it is that was made for
    /// this wish, `make` answers the name that the array chose, `rename` gives one its name, and `finish`
    /// what it lacks then: until that is done, nobody is told that it is there, and the intent stays.
    ///
    /// What is new may be anybody's: only `ours` decides. So a snapshot that another host made for the same
    /// wish, or a life that is forgotten, is found too.
    #[expect(clippy::too_many_arguments, reason = "each is one step of what is done")]
    pub async fn make_then_name<T, L, O, M, R, F>(
        &self,
        name: &str,
        object: Option<Value>,
        list: impl Fn(Cx) -> L + Send + Sync,
        ours: impl Fn(Cx, Vec<String>) -> O + Send + Sync,
        make: impl Fn(Cx) -> M + Send + Sync,
        rename: impl Fn(Cx, String) -> R + Send + Sync,
        finish: impl Fn(Cx) -> F + Send + Sync,
    ) -> Outcome<(Changed, T)>
    where
        T: Send,
        L: Future<Output = Outcome<Vec<String>>> + Send,
        O: Future<Output = Outcome<Option<String>>> + Send,
        M: Future<Output = Outcome<String>> + Send,
        R: Future<Output = Outcome<()>> + Send,
        F: Future<Output = Outcome<T>> + Send,
    {
        let open = self.open(name).await?;
        let now = list(self.shield()).await?;
        if now.iter().any(|one| one == name) {
            let finished = finish(self.cx.clone()).await?;
            self.conclude(name).await?;
            let changed = if open.is_some() { Changed::Created } else { Changed::Already };
            return Ok((changed, finished));
        }
        let (before, mut made) = match open {
            Some(Intent { what: What::MakeThenName { before, made }, .. }) => {
                let made = match made.filter(|made| now.contains(made)) {
                    Some(made) => Some(made),
                    None => ours(self.shield(), newer(&before, now)).await?,
                };
                (before, made)
            }
            _ => (now.clone(), ours(self.shield(), now).await?),
        };
        if made.is_none() {
            let what = What::MakeThenName { before: before.clone(), made: None };
            self.intend(name, what, object.clone()).await?;
            step!("array.make_intended");
            let chosen = match make(self.cx.clone()).await {
                Ok(chosen) => chosen,
                Err(failure) if failure.class.is_certain() => {
                    self.conclude(name).await?;
                    return Err(failure.object(name));
                }
                Err(failure) => {
                    // It is asked for once: a second request would make a second snapshot.
                    let found = self.appears(|cx| {
                        let (all, ours, before) = (list(cx.clone()), &ours, &before);
                        async move { ours(cx, newer(before, all.await?)).await }
                    });
                    match found.await? {
                        Some(chosen) => chosen,
                        None => return Err(failure.object(name)),
                    }
                }
            };
            step!("array.made_unnamed");
            made = Some(chosen);
        }
        let chosen = made.unwrap_or_default();
        let what = What::MakeThenName { before, made: Some(chosen.clone()) };
        self.intend(name, what, object).await?;
        step!("array.name_intended");
        let mut tries = 0;
        loop {
            tries += 1;
            match rename(self.cx.clone(), chosen.clone()).await {
                Ok(()) => break,
                Err(failure) => {
                    let now = list(self.shield()).await?;
                    if now.iter().any(|one| one == name) {
                        break;
                    }
                    if failure.class.is_certain() || tries >= self.settle.tries {
                        return Err(failure.object(name)); // The intent stays: it has no name yet.
                    }
                }
            }
            self.cx.check()?;
        }
        step!("array.named");
        let finished = finish(self.cx.clone()).await?;
        self.conclude(name).await?;
        Ok((Changed::Created, finished))
    }

    /// Looks until the object is there, or the array's reads cannot be stale any more.
    pub async fn appears<T, L>(&self, look: impl Fn(Cx) -> L + Send + Sync) -> Outcome<Option<T>>
    where
        T: Send,
        L: Future<Output = Outcome<Option<T>>> + Send,
    {
        let end = Instant::now() + self.settle.stale;
        loop {
            if let Some(found) = look(self.shield()).await? {
                return Ok(Some(found));
            }
            if Instant::now() >= end {
                return Ok(None);
            }
            wait(&self.shield(), self.settle.pause).await?;
        }
    }

    async fn until<L>(&self, look: impl Fn() -> L + Send + Sync) -> Outcome<bool>
    where
        L: Future<Output = Outcome<bool>> + Send,
    {
        let found = self.appears(|_| {
            let look = look();
            async move { Ok(look.await?.then_some(())) }
        });
        Ok(found.await?.is_some())
    }

    /// Reads until the size is not `from` any more, or the reads cannot be stale any more.
    async fn moves<R>(
        &self,
        from: Bytes,
        mut now: Bytes,
        read: impl Fn(Cx) -> R + Send + Sync,
    ) -> Outcome<Bytes>
    where
        R: Future<Output = Outcome<Bytes>> + Send,
    {
        let end = Instant::now() + self.settle.stale;
        while now == from && Instant::now() < end {
            now = read(self.shield()).await?;
            if now == from {
                wait(&self.shield(), self.settle.pause).await?;
            }
        }
        Ok(now)
    }
}

/// Those that were not there before.
fn newer(before: &[String], mut now: Vec<String>) -> Vec<String> {
    now.retain(|one| !before.contains(one));
    now
}
