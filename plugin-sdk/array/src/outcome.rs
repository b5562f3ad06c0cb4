//! What became of a request to an array.
//!
//! A primitive of an array ends well ([`Outcome`] is `Ok`) or in one [`Class`] of failure. The class
//! drives what the kit does next; words, code and status are for people. The one class that other
//! libraries lack is [`Class::Unknown`]: the request may have been done. It is resolved by looking,
//! see [`crate::ledger`], never by doing it again.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::time::Duration;

use plugin_sdk::Error;
use plugin_sdk::model::{Kind, Retry};

use crate::recorder::Redactor;

/// The result of a primitive of an array.
pub type Outcome<T> = Result<T, Failure>;

/// How a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// An object of that name or relation is there: [`FailureData::facts`] has what the array said
    /// of it. Whether it is the one that was asked for is for the ledger to compare.
    AlreadyExists,
    /// The object is not there.
    NotFound,
    /// Somebody uses it: a host, a snapshot, a clone.
    InUse,
    /// The array did nothing and says: later.
    Busy,
    /// The login session has ended. Nothing was done.
    Expired,
    /// Wrong password, or a right is missing. Asked once and never again.
    Denied,
    /// The pool is full.
    NoSpace,
    /// A limit of count, size or length.
    LimitReached,
    /// The array cannot do it.
    Unsupported,
    /// The array does not understand the request: a defect of the driver.
    Invalid,
    /// The request did not leave this host: no connection, or none that can be trusted.
    Unreachable,
    /// What came back is not an answer of the API. Of a request that changes something this is
    /// [`Class::Unknown`].
    Garbled,
    /// The answer is lost: it may have been done.
    Unknown,
    /// Not the array's: cancelled, out of time, or refused by the host.
    Own,
}

impl Class {
    /// Whether it is certain that the request changed nothing.
    pub fn is_certain(self) -> bool {
        !matches!(self, Self::Unknown | Self::Garbled | Self::Own)
    }
}

/// Why a primitive failed, in one box.
#[derive(Clone, Debug)]
pub struct Failure(Box<FailureData>);

/// The parts of a [`Failure`].
#[derive(Clone, Debug)]
pub struct FailureData {
    /// The class.
    pub class: Class,
    /// What it was about, for people: `volume web`.
    pub object: Option<String>,
    /// The fact, where it says more than the class.
    pub fact: Option<String>,
    /// The array's own words, secrets removed.
    pub words: Option<String>,
    /// The array's code, as text.
    pub code: Option<String>,
    /// HTTP status, where there is one.
    pub status: Option<u16>,
    /// When to come back, if the array said so.
    pub retry_after: Option<Duration>,
    /// Of [`Class::AlreadyExists`]: what is there, as far as the array said (`size`, `id`).
    pub facts: BTreeMap<String, String>,
    /// The next step for whoever reads it.
    pub hint: Option<String>,
    /// How often it was tried, and for how long.
    pub tried: Option<(u32, Duration)>,
    /// The first of several steps is done: what is left must be done, too.
    pub partly: bool,
    /// SMAPI's number, where it has one for this refusal of this array.
    pub legacy: Option<u16>,
    own: Option<Error>,
}

impl Failure {
    /// A failure of a class.
    pub fn new(class: Class) -> Self {
        Self(Box::new(FailureData {
            class,
            object: None,
            fact: None,
            words: None,
            code: None,
            status: None,
            retry_after: None,
            facts: BTreeMap::new(),
            hint: None,
            tried: None,
            partly: false,
            legacy: None,
            own: None,
        }))
    }

    /// [`Class::NotFound`] of a named object.
    pub fn not_found(object: impl Into<String>) -> Self {
        Self::new(Class::NotFound).object(object)
    }

    /// Names the object, unless a deeper layer has.
    #[must_use]
    pub fn object(mut self, object: impl Into<String>) -> Self {
        self.0.object.get_or_insert_with(|| object.into());
        self
    }

    /// Sets the fact.
    #[must_use]
    pub fn fact(mut self, fact: impl Into<String>) -> Self {
        self.0.fact = Some(fact.into());
        self
    }

    /// Sets the array's words.
    #[must_use]
    pub fn words(mut self, words: impl Into<String>) -> Self {
        self.0.words = Some(words.into());
        self
    }

    /// Sets the next step.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// Sets when to come back.
    #[must_use]
    pub fn retry_after(mut self, after: Duration) -> Self {
        self.0.retry_after = Some(after);
        self
    }

    /// Adds a fact about what is there.
    #[must_use]
    pub fn there(mut self, key: &str, value: impl fmt::Display) -> Self {
        self.0.facts.insert(key.to_owned(), value.to_string());
        self
    }

    /// Marks that the first of several steps is done.
    #[must_use]
    pub fn partly(mut self) -> Self {
        self.0.partly = true;
        self
    }

    /// Sets SMAPI's number, instead of the one that is usual for the class.
    #[must_use]
    pub fn legacy(mut self, number: u16) -> Self {
        self.0.legacy = Some(number);
        self
    }

    /// The same failure as another class.
    #[must_use]
    pub fn reclassed(mut self, class: Class) -> Self {
        self.0.class = class;
        self
    }

    /// Takes secrets out of the array's words and the fact.
    pub(crate) fn scrub(&mut self, redactor: &Redactor) {
        self.0.words = self.0.words.take().map(|words| redactor.scrub(&words));
        self.0.fact = self.0.fact.take().map(|fact| redactor.scrub(&fact));
    }

    fn sentence(&self) -> String {
        let object = self.object.as_deref().unwrap_or("the object");
        if let Some(fact) = &self.fact {
            return match &self.object {
                Some(object) => format!("{object}: {fact}"),
                None => fact.clone(),
            };
        }
        match self.class {
            Class::AlreadyExists => format!("{object} is on the array already"),
            Class::NotFound => format!("{object} is not on the array"),
            Class::InUse => format!("{object} is in use on the array"),
            Class::Busy => format!("the array is busy and did nothing about {object}"),
            Class::Expired => "the array ended the session, also the one after it".to_owned(),
            Class::Denied => format!("the array denies access to {object}"),
            Class::NoSpace => format!("the array has no space left for {object}"),
            Class::LimitReached => format!("{object} is beyond a limit of the array"),
            Class::Unsupported => format!("the array cannot do what was asked of {object}"),
            Class::Invalid => format!("the array does not accept the request about {object}"),
            Class::Unreachable => "the array does not answer".to_owned(),
            Class::Garbled => format!("the array's answer about {object} cannot be understood"),
            Class::Unknown => format!("the array's answer about {object} was lost"),
            Class::Own => format!("nothing was asked about {object}"),
        }
    }
}

impl From<Error> for Failure {
    /// An error of this host's, such as a cancel: passed through as it is.
    fn from(error: Error) -> Self {
        let mut failure = Self::new(Class::Own);
        failure.0.fact = Some(error.message.clone());
        failure.0.own = Some(error);
        failure
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        if let Some(own) = failure.0.own {
            return own;
        }
        let sentence = failure.sentence();
        let data = *failure.0;
        let kind = match data.class {
            Class::AlreadyExists => Kind::Exists,
            Class::NotFound => Kind::NotFound,
            Class::InUse => Kind::InUse,
            Class::Busy => Kind::Busy {
                retry_after_ms: data
                    .retry_after
                    .map(|after| u64::try_from(after.as_millis()).unwrap_or(u64::MAX)),
            },
            Class::Expired | Class::Denied => Kind::Auth,
            Class::NoSpace => Kind::NoSpace,
            Class::LimitReached => Kind::Limit,
            Class::Unsupported => Kind::Unsupported,
            Class::Unreachable | Class::Garbled => Kind::Unreachable,
            Class::Unknown => Kind::Unknown,
            Class::Invalid | Class::Own => Kind::Internal,
        };
        let mut error = Self::new(kind, sentence);
        let usual = match data.class {
            Class::NoSpace => {
                error = error.legacy(44);
                Some("free space in the pool, or make it larger")
            }
            Class::Unsupported => {
                error = error.legacy(38);
                None
            }
            Class::InUse => Some("look on the array for hosts, snapshots and clones that use it"),
            Class::Denied => Some("look at the user's password and rights on the array"),
            Class::Invalid => Some("this is a defect of the driver: report it with the requests"),
            Class::Unknown => {
                Some("it may have been done: the same command looks and completes it")
            }
            Class::LimitReached => Some("the array's manual has its limits"),
            _ => None,
        };
        if let Some(number) = data.legacy {
            error = error.legacy(number);
        }
        if let Some(words) = data.words {
            error = error.backend(words);
        }
        if let Some(code) = data.code {
            error = error.context("code", code);
        }
        if let Some(status) = data.status {
            error = error.context("status", status);
        }
        for (key, value) in data.facts {
            error = error.context(&format!("there_{key}"), value);
        }
        if let Some((attempts, time)) = data.tried
            && attempts > 1
        {
            error = error.context("attempts", attempts).context("milliseconds", time.as_millis());
            if error.retry == Retry::Temporary {
                error = error.retry(Retry::Persistent);
            }
        }
        match data.hint.as_deref().or(usual) {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }
}

impl Deref for Failure {
    type Target = FailureData;

    fn deref(&self) -> &FailureData {
        &self.0
    }
}

impl DerefMut for Failure {
    fn deref_mut(&mut self) -> &mut FailureData {
        &mut self.0
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence())?;
        match &self.words {
            Some(words) => write!(f, " (the array says: {words})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Failure {}

/// For what may hold already, or be none of our business: one class becomes `None`.
pub trait OrAbsent<T>: Sized {
    /// `None` where it failed by this class.
    fn unless(self, class: Class) -> Outcome<Option<T>>;

    /// `None` where the object is not there.
    fn or_absent(self) -> Outcome<Option<T>> {
        self.unless(Class::NotFound)
    }

    /// `None` where the object is there: for what has a name of ours, and is the same whoever made it.
    fn or_there(self) -> Outcome<Option<T>> {
        self.unless(Class::AlreadyExists)
    }

    /// `None` where somebody uses the object: for what goes with the last that needs it.
    fn unless_in_use(self) -> Outcome<Option<T>> {
        self.unless(Class::InUse)
    }
}

impl<T> OrAbsent<T> for Outcome<T> {
    fn unless(self, class: Class) -> Outcome<Option<T>> {
        match self {
            Ok(object) => Ok(Some(object)),
            Err(failure) if failure.class == class => Ok(None),
            Err(failure) => Err(failure),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every class has its kind, and an error for people: object, fact, next step.
    #[test]
    fn each_class_becomes_the_models_kind() {
        let kind = |class| Error::from(Failure::new(class).object("volume web")).kind.clone();
        assert_eq!(kind(Class::AlreadyExists), Kind::Exists);
        assert_eq!(kind(Class::NotFound), Kind::NotFound);
        assert_eq!(kind(Class::InUse), Kind::InUse);
        assert_eq!(kind(Class::Expired), Kind::Auth);
        assert_eq!(kind(Class::Denied), Kind::Auth);
        assert_eq!(kind(Class::NoSpace), Kind::NoSpace);
        assert_eq!(kind(Class::LimitReached), Kind::Limit);
        assert_eq!(kind(Class::Unsupported), Kind::Unsupported);
        assert_eq!(kind(Class::Invalid), Kind::Internal);
        assert_eq!(kind(Class::Unreachable), Kind::Unreachable);
        assert_eq!(kind(Class::Garbled), Kind::Unreachable);
        assert_eq!(kind(Class::Unknown), Kind::Unknown);
        let busy = Failure::new(Class::Busy).retry_after(Duration::from_secs(3));
        assert_eq!(Error::from(busy).kind, Kind::Busy { retry_after_ms: Some(3000) });
    }

    #[test]
    fn the_error_says_object_fact_and_next_step() {
        let error = Error::from(
            Failure::new(Class::NoSpace).object("volume web").words("Insufficient space in pool"),
        );
        assert_eq!(error.message, "the array has no space left for volume web");
        assert_eq!(error.backend.as_deref(), Some("Insufficient space in pool"));
        assert_eq!(error.hint.as_deref(), Some("free space in the pool, or make it larger"));
        assert_eq!(error.legacy_code(), 44);
    }

    #[test]
    fn what_was_tried_again_in_vain_says_so() {
        let mut failure = Failure::new(Class::Busy);
        failure.tried = Some((4, Duration::from_millis(1500)));
        let error = Error::from(failure);
        assert_eq!(error.retry, Retry::Persistent);
        assert_eq!(error.context["attempts"], "4");
        assert_eq!(error.context["milliseconds"], "1500");
    }

    #[test]
    fn a_cancel_passes_through() {
        let cancel = Error::new(Kind::Cancelled, "vdi_create was cancelled");
        assert_eq!(Error::from(Failure::from(cancel.clone())), cancel);
    }
}
