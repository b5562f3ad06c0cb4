//! All that was logged in this process, kept so that a check can look for what must not be in it.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use tracing::field::{Field, Visit};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};

/// Bytes that are kept; the oldest go first.
const LIMIT: usize = 8 << 20;

static TEXT: Mutex<String> = Mutex::new(String::new());
static INSTALLED: AtomicBool = AtomicBool::new(false);

struct Book;

struct Line<'a>(&'a mut String);

impl Visit for Line<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let _ = write!(self.0, " {field}={value:?}");
    }
}

impl<S: tracing::Subscriber> Layer<S> for Book {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let mut text = TEXT.lock().unwrap_or_else(PoisonError::into_inner);
        if text.len() > LIMIT {
            text.clear();
        }
        let _ = write!(text, "{} {}", event.metadata().level(), event.metadata().target());
        event.record(&mut Line(&mut text));
        text.push('\n');
    }
}

/// Keeps everything from now on, unless somebody else has the log of this process already.
pub(crate) fn install() {
    let subscriber = tracing_subscriber::registry().with(Book);
    if tracing::subscriber::set_global_default(subscriber).is_ok() {
        INSTALLED.store(true, Ordering::SeqCst);
    }
}

/// Whether everything is kept.
pub(crate) fn installed() -> bool {
    INSTALLED.load(Ordering::SeqCst)
}

/// All that was kept.
pub(crate) fn text() -> String {
    TEXT.lock().unwrap_or_else(PoisonError::into_inner).clone()
}
