//! How far a job is: a bar on a terminal, nothing elsewhere; and the figures at the end.

use std::io::IsTerminal;
use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use sm_core::ProgressSink;
use sm_model::Bytes;

/// A bar, or nothing.
pub(crate) struct Progress {
    bar: ProgressBar,
    begin: Instant,
}

impl Progress {
    pub(crate) fn start(json: bool) -> Self {
        let visible = !json && std::io::stderr().is_terminal();
        let target =
            if visible { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(1000), target);
        // A template that is wrong would be a defect of ours, seen by whoever looks at the bar;
        // the default one serves as well.
        if let Ok(style) = ProgressStyle::with_template("{msg} [{wide_bar}] {percent}% {elapsed}") {
            bar.set_style(style.progress_chars("=> "));
        }
        if visible {
            // The time goes on even when the storage is slow to answer.
            bar.enable_steady_tick(Duration::from_millis(250));
        }
        Self { bar, begin: Instant::now() }
    }

    /// What the storage manager reports to.
    pub(crate) fn sink(&self) -> ProgressSink {
        let bar = self.bar.clone();
        Arc::new(move |permille, stage| {
            bar.set_message(stage.to_owned());
            bar.set_position(u64::from(permille.min(1000)));
        })
    }

    /// Takes the bar away; answers how long it took.
    pub(crate) fn finish(self) -> Duration {
        self.bar.finish_and_clear();
        self.begin.elapsed()
    }
}

/// `10GiB in 12.3 s, 832.52MiB/s`
pub(crate) fn summary(bytes: Bytes, time: Duration) -> String {
    let seconds = time.as_secs_f64();
    if seconds < 0.001 {
        return format!("{bytes} in {seconds:.3} s");
    }
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_sign_loss,
        reason = "a rate for people: positive, and three digits of it count"
    )]
    let rate = Bytes((bytes.0 as f64 / seconds) as u64);
    format!("{bytes} in {seconds:.1} s, {rate}/s")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figures_are_bytes_seconds_and_rate() {
        assert_eq!(summary(Bytes::gib(1), Duration::from_secs(2)), "1GiB in 2.0 s, 512MiB/s");
        assert_eq!(summary(Bytes::gib(1), Duration::ZERO), "1GiB in 0.000 s");
    }
}
