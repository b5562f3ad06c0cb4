//! Jobs: asked for now, done later by the array's clock.

use serde_json::Value;

use super::array::Array;
use super::change::Change;
use super::model::{Job, Trouble};

impl Array {
    /// Ends the jobs whose time has come: `finish` does what is done at the end of one, unless it is
    /// to fail. Removes records that are too old. Vendors call it before each request.
    pub fn end_jobs<E: From<Trouble>>(
        &self,
        finish: impl Fn(&mut Change<'_>, &Job) -> Result<Value, String>,
    ) -> Result<(), E> {
        let now = self.clock().now();
        let view = self.current();
        let kept = self.settings().job_kept;
        for (key, job) in view.all::<Job>() {
            if job.finished && now > job.ends + kept {
                self.change(|change| {
                    change.remove::<Job>(&key);
                    Ok::<_, Trouble>(())
                })?;
            } else if !job.finished && now >= job.ends {
                let mut ended = (*job).clone();
                ended.finished = true;
                if ended.error.is_none() {
                    let done = self.change(|change| {
                        let result = finish(change, &job).map_err(Trouble::Invalid)?;
                        let ended = Job { result, ..ended.clone() };
                        change.put::<_, Trouble>(&key, &ended)
                    });
                    match done {
                        Err(Trouble::Invalid(error)) => ended.error = Some(error),
                        other => {
                            other?;
                            continue;
                        }
                    }
                }
                self.change(|change| change.put::<_, Trouble>(&key, &ended))?;
            }
        }
        Ok(())
    }
}
