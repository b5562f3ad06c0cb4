//! `--verbose` and `--trace-requests`: what is logged, on stderr.

use std::fmt;
use std::io::Write as _;

use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::output::escape;

/// The target of the events of a driver, which its own target is a field of.
const DRIVER: &str = "driver";
/// What drivers of arrays call the log of their requests.
const REQUEST: &str = "array_request";

/// The log goes to stderr, and only if asked for: a script reads stderr too.
pub(crate) fn start(verbose: u8, requests: bool) {
    let level = match verbose {
        0 => LevelFilter::OFF,
        1 => LevelFilter::INFO,
        2 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    // A driver is asked for no more than the most verbose layer wants.
    let requests = requests.then(|| Requests.with_filter(LevelFilter::DEBUG));
    if level == LevelFilter::OFF && requests.is_none() {
        return;
    }
    let log = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    tracing_subscriber::registry().with(log.with_filter(level)).with(requests).init();
}

/// A line for each request to an array. The driver has taken secrets out of it.
struct Requests;

impl<S: Subscriber> Layer<S> for Requests {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let target = event.metadata().target();
        if target != DRIVER && target != REQUEST {
            return;
        }
        let mut line = Line { target: String::new(), message: String::new() };
        event.record(&mut line);
        // A driver that is linked into this program logs directly.
        if target == REQUEST || line.target == REQUEST {
            let _ = writeln!(std::io::stderr().lock(), "request: {}", escape(&line.message));
        }
    }
}

struct Line {
    target: String,
    message: String,
}

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "target" => value.clone_into(&mut self.target),
            "message" => value.clone_into(&mut self.message),
            _ => {}
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.message = format!("{value:?}");
        }
    }
}
