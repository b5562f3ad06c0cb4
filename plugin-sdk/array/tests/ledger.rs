//! The ledger: done once, whatever becomes of the answers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails so")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use array_kit::ledger::{Intent, Ledger, ResizeKind, Settle, What};
use array_kit::outcome::{Class, Failure, Outcome};
use array_kit::size::SizeRule;
use plugin_sdk::model::{Bytes, Changed, OperationId};
use plugin_sdk::testing::{TestHost, run};
use plugin_sdk::{Cx, Error, Result};

const SETTLE: Settle =
    Settle { stale: Duration::from_millis(40), pause: Duration::from_millis(2), tries: 3 };

/// Names on an array, and how many of its next answers get lost, before or after the deed.
#[derive(Default)]
struct State {
    names: Vec<String>,
    /// The array's name of the snapshot that has our text.
    ours: Option<String>,
    size: u64,
    /// What a stale read still shows, and how often.
    stale: Option<(u64, u32)>,
    lost_after: u32,
    lost_before: u32,
    requests: u32,
}

#[derive(Clone, Default)]
struct Fake(Arc<Mutex<State>>);

impl Fake {
    fn with(state: State) -> Self {
        Self(Arc::new(Mutex::new(state)))
    }

    fn change<T>(&self, deed: impl FnOnce(&mut State) -> Outcome<T>) -> Outcome<T> {
        let mut state = self.0.lock().unwrap();
        state.requests += 1;
        let lost = || Failure::new(Class::Unknown);
        if state.lost_before > 0 {
            state.lost_before -= 1;
            return Err(lost());
        }
        let done = deed(&mut state);
        if state.lost_after > 0 {
            state.lost_after -= 1;
            return Err(lost());
        }
        done
    }

    fn size(&self) -> Bytes {
        let mut state = self.0.lock().unwrap();
        match &mut state.stale {
            Some((size, times)) if *times > 0 => {
                *times -= 1;
                Bytes(*size)
            }
            _ => Bytes(state.size),
        }
    }

    fn names(&self) -> Vec<String> {
        self.0.lock().unwrap().names.clone()
    }

    fn has(&self, name: &str) -> bool {
        self.names().iter().any(|one| one == name)
    }

    fn requests(&self) -> u32 {
        self.0.lock().unwrap().requests
    }

    async fn create(&self, cx: &Cx, unique: bool) -> Outcome<(Changed, String)> {
        Ledger::new(cx, SETTLE)
            .create(
                "web",
                unique,
                |_| async { Ok(self.has("web").then(|| "web".to_owned())) },
                |_| Ok(()),
                |_| async {
                    self.change(|state| {
                        if unique && state.names.iter().any(|name| name == "web") {
                            return Err(Failure::new(Class::AlreadyExists));
                        }
                        state.names.push("web".to_owned());
                        Ok("web".to_owned())
                    })
                },
            )
            .await
    }

    async fn grow(&self, cx: &Cx, to: u64, kind: ResizeKind) -> Outcome<(Changed, Bytes)> {
        let rule = SizeRule::new(Bytes(1), Bytes(1), Bytes(1 << 40));
        Ledger::new(cx, SETTLE)
            .resize(
                "web",
                Bytes(to),
                &rule,
                kind,
                |_| async { Ok(self.size()) },
                |_, from, to| async move {
                    self.change(|state| {
                        state.stale = state.stale.map(|(_, times)| (state.size, times));
                        state.size = match kind {
                            ResizeKind::Absolute => to.0,
                            ResizeKind::Delta => state.size + (to.0 - from.0),
                        };
                        Ok(None)
                    })
                },
            )
            .await
    }

    async fn snapshot(&self, cx: &Cx) -> Outcome<Changed> {
        Ledger::new(cx, SETTLE)
            .make_then_name(
                "nightly",
                None,
                |_| async { Ok(self.names()) },
                |_, names| async move {
                    Ok(self.0.lock().unwrap().ours.clone().filter(|ours| names.contains(ours)))
                },
                |_| async {
                    self.change(|state| {
                        let name = format!("web-2009-06-10.{}", state.names.len());
                        state.names.push(name.clone());
                        assert_eq!(state.ours.replace(name.clone()), None, "made once");
                        Ok(name)
                    })
                },
                |_, from| async move {
                    self.change(|state| {
                        let found = state.names.iter_mut().find(|name| **name == from);
                        found
                            .map(|name| "nightly".clone_into(name))
                            .ok_or_else(|| Failure::new(Class::NotFound))
                    })
                },
                |_| async { Ok(()) },
            )
            .await
            .map(|(changed, ())| changed)
    }
}

fn with_cx<F>(work: impl FnOnce(Cx) -> F + Send) -> TestHost
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    let host = TestHost::new();
    run(host.with_cx(Duration::from_secs(20), work)).unwrap();
    host
}

fn no_intents(host: &TestHost) {
    assert_eq!(host.kv().keys().collect::<Vec<_>>(), Vec::<&String>::new());
}

/// One object, however often and wherever the answers get lost; unique names or not.
#[test]
fn a_create_makes_one_object() {
    for unique in [true, false] {
        for (lost_before, lost_after) in [(0, 0), (1, 0), (0, 1), (2, 0), (1, 1)] {
            let host = with_cx(move |cx| async move {
                let fake = Fake::with(State { lost_after, lost_before, ..State::default() });
                let (changed, _) = fake.create(&cx, unique).await.map_err(Error::from)?;
                assert_eq!(changed, Changed::Created);
                assert_eq!(fake.names(), ["web"], "{unique} {lost_before} {lost_after}");
                let (changed, _) = fake.create(&cx, unique).await.map_err(Error::from)?;
                assert_eq!(changed, Changed::Already);
                assert_eq!(fake.names(), ["web"]);
                Ok(())
            });
            no_intents(&host);
        }
    }
}

/// When every answer is lost the outcome is unknown, the intent stays, and the next try finds it.
#[test]
fn an_unknown_create_is_resolved_by_the_next_try() {
    let host = with_cx(|cx| async move {
        let fake = Fake::with(State { lost_before: 9, ..State::default() });
        let failure = fake.create(&cx, true).await.unwrap_err();
        assert_eq!((failure.class, fake.requests()), (Class::Unknown, SETTLE.tries));
        let open = Ledger::new(&cx, SETTLE).all_open().await.map_err(Error::from)?;
        assert_eq!(open.len(), 1);
        assert_eq!((open[0].0.as_str(), &open[0].1.what), ("web", &What::Create));
        // The request was under way all the time.
        fake.0.lock().unwrap().names.push("web".to_owned());
        let (changed, _) = fake.create(&cx, true).await.map_err(Error::from)?;
        assert_eq!(changed, Changed::Created);
        assert_eq!(fake.requests(), SETTLE.tries, "it was found, not asked for again");
        Ok(())
    });
    no_intents(&host);
}

#[test]
fn what_differs_under_the_name_is_left_alone() {
    let host = with_cx(|cx| async move {
        let failure = Ledger::new(&cx, SETTLE)
            .create(
                "web",
                true,
                |_| async { Ok(Some(7)) },
                |size| Err(format!("it has {size} bytes, not 8")),
                |_| async { Err(Failure::new(Class::AlreadyExists)) },
            )
            .await
            .unwrap_err();
        assert_eq!(failure.class, Class::AlreadyExists);
        assert_eq!(
            Error::from(failure).message,
            "web: an object of this name is on the array, and differs: it has 7 bytes, not 8"
        );
        // A name that is taken by something that cannot be seen.
        let failure = Ledger::new(&cx, SETTLE)
            .create(
                "web",
                true,
                |_| async { Ok(None::<u8>) },
                |_| Ok(()),
                |_| async { Err(Failure::new(Class::AlreadyExists).words("pending eradication")) },
            )
            .await
            .unwrap_err();
        assert_eq!(failure.words.as_deref(), Some("pending eradication"));
        Ok(())
    });
    no_intents(&host);
}

/// The lesson of arrays that take a difference: a lost answer and a stale read, and it grows once.
#[test]
fn a_resize_grows_once() {
    for kind in [ResizeKind::Absolute, ResizeKind::Delta] {
        for (lost_before, lost_after, stale) in
            [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 1, 5), (0, 2, 3)]
        {
            let host = with_cx(move |cx| async move {
                let fake = Fake::with(State {
                    size: 10,
                    stale: Some((10, stale)),
                    lost_before,
                    lost_after,
                    ..State::default()
                });
                let (changed, size) = fake.grow(&cx, 30, kind).await.map_err(Error::from)?;
                let case = format!("{kind:?} {lost_before} {lost_after} {stale}");
                assert_eq!((changed, size.0), (Changed::Modified, 30), "{case}");
                assert_eq!(fake.0.lock().unwrap().size, 30, "{case}");
                let (changed, _) = fake.grow(&cx, 30, kind).await.map_err(Error::from)?;
                assert_eq!(changed, Changed::Already);
                let failure = fake.grow(&cx, 20, kind).await.unwrap_err();
                assert_eq!(
                    failure.to_string(),
                    "web: it has 30 bytes, and does not become smaller: 20"
                );
                Ok(())
            });
            no_intents(&host);
        }
    }
}

/// The process died between the request and its answer: the next one reads, and does not add.
#[test]
fn a_resize_that_was_cut_is_not_added_again() {
    let host = with_cx(|cx| async move {
        let ledger = Ledger::new(&cx, SETTLE);
        let what = What::Resize { from: Bytes(10), to: Bytes(30) };
        ledger.intend("web", what, None).await.map_err(Error::from)?;
        // The array has done it, and shows it late.
        let fake = Fake::with(State { size: 30, stale: Some((10, 4)), ..State::default() });
        let done = fake.grow(&cx, 30, ResizeKind::Delta).await.map_err(Error::from)?;
        assert_eq!(done, (Changed::Modified, Bytes(30)));
        assert_eq!(fake.0.lock().unwrap().size, 30);
        assert_eq!(fake.requests(), 0);
        Ok(())
    });
    no_intents(&host);
}

/// A rename is not idempotent: the second one would fail, or hit another object.
#[test]
fn a_rename_whose_answer_is_lost_is_done() {
    for (lost_before, lost_after, requests) in [(0, 0, 1), (1, 0, 2), (0, 1, 1)] {
        let host = with_cx(move |cx| async move {
            let fake = Fake::with(State {
                names: vec!["old".to_owned()],
                lost_before,
                lost_after,
                ..State::default()
            });
            let rename = || async {
                Ledger::new(&cx, SETTLE)
                    .rename(
                        "old",
                        "new",
                        |_, name| {
                            let fake = fake.clone();
                            async move { Ok(fake.has(&name)) }
                        },
                        |_| async {
                            fake.change(|state| {
                                let found = state.names.iter_mut().find(|name| *name == "old");
                                found
                                    .map(|name| "new".clone_into(name))
                                    .ok_or_else(|| Failure::new(Class::NotFound))
                            })
                        },
                    )
                    .await
            };
            assert_eq!(rename().await.map_err(Error::from)?, Changed::Modified);
            assert_eq!((fake.names(), fake.requests()), (vec!["new".to_owned()], requests));
            assert_eq!(rename().await.map_err(Error::from)?, Changed::Already);
            fake.0.lock().unwrap().names.clear();
            assert_eq!(rename().await.unwrap_err().class, Class::NotFound);
            Ok(())
        });
        no_intents(&host);
    }
}

/// A snapshot that the array names: found again by its text.
#[test]
fn a_snapshot_without_a_name_is_named_once() {
    for (lost_before, lost_after) in [(0, 0), (0, 1), (0, 2)] {
        let host = with_cx(move |cx| async move {
            let names = vec!["by hand".to_owned(), "web-2009-01-01.0".to_owned()];
            let fake = Fake::with(State { names, lost_after, lost_before, ..State::default() });
            assert_eq!(fake.snapshot(&cx).await.map_err(Error::from)?, Changed::Created);
            assert_eq!(fake.names(), ["by hand", "web-2009-01-01.0", "nightly"]);
            assert_eq!(fake.snapshot(&cx).await.map_err(Error::from)?, Changed::Already);
            Ok(())
        });
        no_intents(&host);
    }
}

/// Others take snapshots at the same time, which have such names too.
#[test]
fn somebody_elses_new_snapshot_is_not_taken_for_ours() {
    with_cx(|cx| async move {
        let ledger = Ledger::new(&cx, SETTLE);
        let what = What::MakeThenName { before: vec!["a".to_owned()], made: None };
        ledger.intend("nightly", what.clone(), None).await.map_err(Error::from)?;
        let names = || ["a", "web-1"].map(str::to_owned).to_vec();
        // The request was lost: it is made now.
        let fake = Fake::with(State { names: names(), ..State::default() });
        assert_eq!(fake.snapshot(&cx).await.map_err(Error::from)?, Changed::Created);
        assert_eq!(fake.names(), ["a", "web-1", "nightly"]);
        // It was not, and the intent is there, or on another host.
        for intend in [true, false] {
            if intend {
                ledger.intend("nightly", what.clone(), None).await.map_err(Error::from)?;
            }
            let ours = Some("web-2".to_owned());
            let names = [names(), vec!["web-2".to_owned()]].concat();
            let fake = Fake::with(State { names, ours, ..State::default() });
            assert_eq!(fake.snapshot(&cx).await.map_err(Error::from)?, Changed::Created);
            assert_eq!(fake.names(), ["a", "web-1", "nightly"], "{intend}");
        }
        // A request that is lost now makes none, and somebody else's is left alone.
        let fake = Fake::with(State { names: names(), lost_before: 1, ..State::default() });
        assert_eq!(fake.snapshot(&cx).await.unwrap_err().class, Class::Unknown);
        assert_eq!(fake.names(), names());
        Ok(())
    });
}

/// A step that is left of several keeps the intent open; a refusal of the first one does not.
#[test]
fn a_delete_remembers_the_steps_that_are_left() {
    with_cx(|cx| async move {
        let ledger = Ledger::new(&cx, SETTLE);
        let busy = |partly: bool| {
            let failure = Failure::new(Class::Busy);
            if partly { failure.partly() } else { failure }
        };
        let object = Some(serde_json::json!("handle"));
        let refused = ledger.delete("web", object.clone(), |_| async { Err(busy(false)) }).await;
        assert_eq!(refused.unwrap_err().class, Class::Busy);
        assert_eq!(ledger.open("web").await.map_err(Error::from)?, None);
        let cut = ledger.delete("web", object.clone(), |_| async { Err(busy(true)) }).await;
        assert_eq!(cut.unwrap_err().class, Class::Busy);
        let expected = Intent {
            operation_id: OperationId::from_halves([0, 0]),
            what: What::Delete,
            object: object.clone(),
        };
        let open = ledger.open("web").await.map_err(Error::from)?.unwrap();
        assert_eq!((open.what, open.object), (expected.what, expected.object));
        let gone = || async { Err(Failure::new(Class::NotFound)) };
        let done = ledger.delete("web", object.clone(), |_| gone()).await.map_err(Error::from)?;
        assert_eq!(done, Changed::Modified, "it was ours");
        let done = ledger.delete("web", object, |_| gone()).await.map_err(Error::from)?;
        assert_eq!(done, Changed::Already);
        Ok(())
    });
}
