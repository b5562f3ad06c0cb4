//! One question for all who ask it at the same time.
//!
//! While a question is being put, those who come wait, and share the one that is put after it: the
//! cost is that of two, however many they are. What one is answered was found out after it came, as if
//! it had asked by itself; a question that was put before is never shared.

use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use plugin_sdk::tokio;

/// An answer to be.
type Round<T> = Arc<OnceLock<Arc<T>>>;

/// See the module.
#[derive(Debug)]
pub(crate) struct Rounds<T> {
    /// Shared by all who come before its question is put.
    next: Mutex<Round<T>>,
    /// Whoever has it puts a question.
    turn: tokio::sync::Mutex<()>,
}

impl<T> Default for Rounds<T> {
    fn default() -> Self {
        Self { next: Mutex::default(), turn: tokio::sync::Mutex::default() }
    }
}

impl<T> Rounds<T> {
    /// Asks, unless somebody else does so after this was called. An error is of the one who asked: the
    /// others ask again. `impatient` ends before its turn is there, if it is to wait no longer.
    pub(crate) async fn ask<E>(
        &self,
        question: impl Future<Output = Result<T, E>>,
        impatient: impl Future<Output = E>,
    ) -> Result<Arc<T>, E> {
        let round = Arc::clone(&self.next());
        let _turn = tokio::select! {
            biased;
            turn = self.turn.lock() => turn,
            error = impatient => return Err(error),
        };
        if let Some(answer) = round.get() {
            return Ok(Arc::clone(answer));
        }
        // Who comes from now on may want what the question does not see. That round is another one if
        // somebody of this one has failed.
        let newest = mem::take(&mut *self.next());
        let answer = Arc::new(question.await?);
        for waiting in [round, newest] {
            // Taken by nobody else: whoever sets it has the turn.
            let _ = waiting.set(Arc::clone(&answer));
        }
        Ok(answer)
    }

    fn next(&self) -> MutexGuard<'_, Round<T>> {
        self.next.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::{Duration, SystemTime};

    use super::*;

    /// What the questions are about: it only grows.
    #[derive(Default)]
    struct World {
        state: AtomicU64,
        questions: AtomicU64,
        rounds: Rounds<u64>,
    }

    impl World {
        fn now(&self) -> u64 {
            self.state.load(Ordering::SeqCst)
        }

        /// As a report: it sees the state at one instant between its begin and its end.
        async fn look(&self, before: u32, after: u32) -> Result<u64, &'static str> {
            self.questions.fetch_add(1, Ordering::SeqCst);
            for _ in 0..before {
                tokio::task::yield_now().await;
            }
            let seen = self.now();
            for _ in 0..after {
                tokio::task::yield_now().await;
            }
            Ok(seen)
        }

        async fn ask(&self, before: u32, after: u32) -> Result<u64, &'static str> {
            let answer = self.rounds.ask(self.look(before, after), pending()).await?;
            Ok(*answer)
        }
    }

    /// xorshift64*, by Vigna.
    struct Dice(u64);

    impl Dice {
        fn below(&mut self, end: u64) -> u64 {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % end
        }
    }

    /// On one thread: each task goes on until it waits.
    fn in_turn(work: impl Future<Output = ()>) {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(work);
    }

    #[test]
    fn nobody_is_told_what_was_so_before_he_asked() {
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
        let seed = std::env::var("ROUNDS_SEED").map_or(now | 1, |text| text.parse().unwrap());
        println!("ROUNDS_SEED={seed}");
        let world = Arc::new(World::default());
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(4).enable_time().build().unwrap();
        runtime.block_on(async {
            let mut tasks = tokio::task::JoinSet::new();
            for caller in 0..64 {
                let (world, mut dice) = (Arc::clone(&world), Dice(seed ^ (caller << 32)));
                tasks.spawn(async move {
                    for _ in 0..200 {
                        let before = world.now();
                        let question = async {
                            let seen = world.look(dice.below(4) as u32, dice.below(4) as u32);
                            let seen = seen.await?;
                            // Some fail.
                            if dice.below(5) == 0 { Err("failed") } else { Ok(seen) }
                        };
                        let answer = world.rounds.ask(question, pending());
                        let answer = tokio::time::timeout(Duration::from_secs(60), answer);
                        match answer.await.expect("a caller waits for ever") {
                            Ok(seen) => {
                                let after = world.now();
                                assert!((before..=after).contains(&seen), "{before} {seen}");
                            }
                            Err(error) => assert_eq!(error, "failed"),
                        }
                        world.state.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
            while let Some(ended) = tasks.join_next().await {
                ended.unwrap();
            }
        });
        let (asked, put) = (64 * 200, world.questions.load(Ordering::SeqCst));
        assert!(put < asked / 2, "{put} questions for {asked} callers");
    }

    #[test]
    fn a_question_that_was_put_before_is_shared_with_nobody() {
        let world = Arc::new(World::default());
        in_turn(async {
            let early = {
                let world = Arc::clone(&world);
                tokio::spawn(async move { world.ask(0, 1000).await })
            };
            // It has looked, and is not answered yet.
            tokio::task::yield_now().await;
            world.state.store(1, Ordering::SeqCst);
            assert_eq!(world.ask(0, 0).await, Ok(1));
            assert_eq!(early.await.unwrap(), Ok(0));
        });
    }

    #[test]
    fn all_who_wait_share_one_question() {
        let world = Arc::new(World::default());
        in_turn(async {
            let mut tasks = tokio::task::JoinSet::new();
            // All have come before the first is answered.
            for _ in 0..400 {
                let world = Arc::clone(&world);
                tasks.spawn(async move { world.ask(1000, 0).await.map(drop) });
            }
            while let Some(ended) = tasks.join_next().await {
                ended.unwrap().unwrap();
            }
        });
        assert_eq!(world.questions.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn one_that_fails_or_is_given_up_costs_the_others_nothing() {
        let world = Arc::new(World::default());
        in_turn(async {
            let stuck = {
                let world = Arc::clone(&world);
                tokio::spawn(async move {
                    world.rounds.ask(pending::<Result<u64, &str>>(), pending()).await
                })
            };
            tokio::task::yield_now().await;
            // Its turn does not come.
            let impatient = async { "it takes too long" };
            let refused = world.rounds.ask(world.look(0, 0), impatient).await;
            assert_eq!(refused.unwrap_err(), "it takes too long");
            let failing = {
                let world = Arc::clone(&world);
                let question = async { Err("its own") };
                tokio::spawn(async move { world.rounds.ask(question, pending()).await.map(|_| ()) })
            };
            tokio::task::yield_now().await;
            let other = {
                let world = Arc::clone(&world);
                tokio::spawn(async move { world.ask(0, 0).await })
            };
            tokio::task::yield_now().await;
            stuck.abort();
            assert_eq!(failing.await.unwrap(), Err("its own"));
            assert_eq!(other.await.unwrap(), Ok(0));
        });
        assert_eq!(world.questions.load(Ordering::SeqCst), 1);
    }
}
