//! Waits for a job of the array.
//!
//! The end of a job is not the truth, the object is: a job's record may vanish before anybody asks,
//! and a job may fail after its object became visible. So at every end somebody looks.

use std::time::Duration;

use plugin_sdk::Cx;

use crate::outcome::{Class, Failure, Outcome};
use crate::retry::wait;

/// How a job is.
#[derive(Clone, Debug)]
pub enum State {
    /// It has not ended.
    Running {
        /// How far it is, 0 to 1000, if the array says so.
        permille: Option<u32>,
    },
    /// It ended well.
    Done,
    /// It failed, with the array's words.
    Failed(Failure),
    /// The array knows of no such job.
    Vanished,
}

/// How often to ask.
#[derive(Clone, Copy, Debug)]
pub struct Poll {
    /// The first pause.
    pub first: Duration,
    /// The longest.
    pub longest: Duration,
}

impl Default for Poll {
    fn default() -> Self {
        Self { first: Duration::from_millis(100), longest: Duration::from_secs(2) }
    }
}

/// Waits until a job has ended, and answers its object.
///
/// `ask` asks for the job's state, `look` for the object, `undo` removes an object that a failed job
/// left behind. The end of the call's time is [`Class::Unknown`]: the job goes on without us. A
/// cancel leaves the job to the array as well.
pub async fn wait_for<T, A, L, U>(
    cx: &Cx,
    stage: &str,
    poll: Poll,
    ask: impl Fn() -> A + Send + Sync,
    look: impl Fn() -> L + Send + Sync,
    undo: impl Fn(T) -> U + Send + Sync,
) -> Outcome<T>
where
    T: Send,
    A: Future<Output = Outcome<State>> + Send,
    L: Future<Output = Outcome<Option<T>>> + Send,
    U: Future<Output = Outcome<()>> + Send,
{
    let mut pause = poll.first;
    loop {
        let state = match ask().await {
            Ok(state) => state,
            // A vanished record is what a 404 means here.
            Err(failure) if failure.class == Class::NotFound => State::Vanished,
            // The job does not depend on our being able to ask.
            Err(failure)
                if matches!(failure.class, Class::Busy | Class::Unreachable | Class::Garbled) =>
            {
                State::Running { permille: None }
            }
            Err(failure) => return Err(failure.reclassed(Class::Unknown)),
        };
        match state {
            State::Running { permille } => {
                if let Some(permille) = permille {
                    cx.progress(permille, stage);
                }
            }
            State::Done => {
                cx.progress(1000, stage);
                return look().await?.ok_or_else(|| {
                    Failure::new(Class::Unknown).fact(format!(
                        "the array's job ({stage}) is done, and its object not there"
                    ))
                });
            }
            State::Vanished => {
                return look().await?.ok_or_else(|| {
                    Failure::new(Class::Unknown)
                        .fact(format!("the array's job ({stage}) is gone, and so is its object"))
                });
            }
            State::Failed(failure) => {
                if let Some(left) = look().await? {
                    match undo(left).await {
                        Err(undo) if undo.class != Class::NotFound => {
                            return Err(failure.reclassed(Class::Unknown).hint(format!(
                                "what the failed job made cannot be removed: {undo}"
                            )));
                        }
                        _ => {}
                    }
                }
                return Err(failure);
            }
        }
        if cx.remaining() <= pause {
            return Err(out_of_time(stage));
        }
        if let Err(stopped) = wait(cx, pause).await {
            // A cancel stays a cancel; the end of the time does not undo what was begun.
            let stopped = if cx.is_cancelled() { stopped } else { out_of_time(stage) };
            return Err(stopped.hint("the array goes on with its job"));
        }
        pause = pause.mul_f64(1.5).min(poll.longest);
    }
}

/// Waits until a job has ended that leaves nothing to look for: whoever needs the object looks himself.
pub async fn ended<A>(cx: &Cx, stage: &str, ask: impl Fn() -> A + Send + Sync) -> Outcome<()>
where
    A: Future<Output = Outcome<State>> + Send,
{
    wait_for(cx, stage, Poll::default(), ask, || async { Ok(Some(())) }, |()| async { Ok(()) })
        .await
}

fn out_of_time(stage: &str) -> Failure {
    Failure::new(Class::Unknown)
        .fact(format!("the array's job ({stage}) did not end within the time given"))
        .hint("the array goes on with it: the same command finds what it made")
}
