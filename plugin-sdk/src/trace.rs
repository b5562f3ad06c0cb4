//! The driver's `tracing` events appear in the host's log.
//!
//! A library has its own copy of tracing, so its dispatcher is not the host's. The SDK opens a
//! span for every call; an event finds the call, and with it the host, through that span.

use std::cell::{Cell, RefCell};
use std::fmt::{self, Write as _};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use serde_json::{Map, Value};
use sm_model::VdiUuid;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

use crate::cx::Call;
use crate::host::Host;

/// Target of the spans of calls.
const CALL: &str = "sm::call";

/// What stands for the value of a field that may hold a secret.
const HIDDEN: &str = "***";

/// Events above this level stay here, see [`sm_abi::LogLevel`].
static LEVEL: AtomicU8 = AtomicU8::new(sm_abi::LogLevel::INFO);

/// Where events outside of a call go: the host that opened the driver last.
static LAST_HOST: RwLock<Option<Host>> = RwLock::new(None);

thread_local! {
    /// The call whose span this thread is about to make.
    static NEXT_CALL: RefCell<Option<Sink>> = const { RefCell::new(None) };
    /// Whether this thread is already in the host's log: what the host itself logs there, in a
    /// program that is linked statically, does not come back.
    static FORWARDING: Cell<bool> = const { Cell::new(false) };
}

/// Where the events of a call go.
#[derive(Clone)]
struct Sink {
    host: Host,
    call: u64,
}

/// The fields of a span.
struct Fields(Map<String, Value>);

/// Makes the layer the library's dispatcher. In a program that has one of its own, as with a
/// driver that is linked statically, that one is left alone and gets the events directly.
pub(crate) fn install(host: &Host) {
    static ONCE: std::sync::Once = std::sync::Once::new();
    *LAST_HOST.write().unwrap_or_else(PoisonError::into_inner) = Some(host.clone());
    ONCE.call_once(|| {
        let subscriber = tracing_subscriber::registry().with(Forward);
        let _ = tracing::subscriber::set_global_default(subscriber);
    });
}

pub(crate) fn set_level(level: u8) {
    LEVEL.store(level.min(sm_abi::LogLevel::TRACE), Ordering::Relaxed);
    // The most verbose level is kept in a static that every event looks at first.
    tracing::callsite::rebuild_interest_cache();
}

fn filter() -> LevelFilter {
    match LEVEL.load(Ordering::Relaxed) {
        0 => LevelFilter::OFF,
        1 => LevelFilter::ERROR,
        2 => LevelFilter::WARN,
        3 => LevelFilter::INFO,
        4 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    }
}

/// The span of a call.
pub(crate) fn span(call: &Arc<Call>, vdi: Option<VdiUuid>) -> tracing::Span {
    NEXT_CALL.set(Some(Sink { host: call.session.host.clone(), call: call.id }));
    // At the level ERROR, so that it is there for every event that passes the filter.
    let span = tracing::error_span!(
        target: CALL,
        parent: None,
        "call",
        op = call.operation,
        sr = call.session.sr.map(tracing::field::display),
        vdi = vdi.map(tracing::field::display),
    );
    NEXT_CALL.set(None);
    span
}

struct Forward;

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Forward {
    fn register_callsite(
        &self,
        metadata: &'static Metadata<'static>,
    ) -> tracing::subscriber::Interest {
        // Computed anew at each change of the level.
        if *metadata.level() <= filter() {
            tracing::subscriber::Interest::always()
        } else {
            tracing::subscriber::Interest::never()
        }
    }

    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        *metadata.level() <= filter()
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(filter())
    }

    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut extensions = span.extensions_mut();
        if attributes.metadata().target() == CALL
            && let Some(sink) = NEXT_CALL.take()
        {
            extensions.insert(sink);
        }
        let mut fields = Collect::default();
        attributes.record(&mut fields);
        extensions.insert(Fields(fields.map));
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut fields = Collect::default();
        values.record(&mut fields);
        if let Some(Fields(map)) = span.extensions_mut().get_mut() {
            map.extend(fields.map);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        if FORWARDING.get() {
            return;
        }
        let mut sink = None;
        let mut map = Map::new();
        for span in context.event_scope(event).into_iter().flatten() {
            let extensions = span.extensions();
            if let Some(Fields(fields)) = extensions.get() {
                // From the inside out: the nearest span's value of a key stands.
                for (key, value) in fields {
                    map.entry(key).or_insert_with(|| value.clone());
                }
            }
            if let Some(found) = extensions.get::<Sink>() {
                sink = Some(found.clone());
                break;
            }
        }
        let last = || {
            let host = LAST_HOST.read().unwrap_or_else(PoisonError::into_inner).clone()?;
            Some(Sink { host, call: 0 })
        };
        let Some(Sink { host, call }) = sink.or_else(last) else { return };
        let mut fields = Collect::default();
        event.record(&mut fields);
        map.extend(fields.map);
        let level = match *event.metadata().level() {
            Level::ERROR => sm_abi::LogLevel::ERROR,
            Level::WARN => sm_abi::LogLevel::WARN,
            Level::INFO => sm_abi::LogLevel::INFO,
            Level::DEBUG => sm_abi::LogLevel::DEBUG,
            Level::TRACE => sm_abi::LogLevel::TRACE,
        };
        let target = event.metadata().target();
        let fields_json = Value::Object(map).to_string();
        FORWARDING.set(true);
        host.log(level, call, target, &fields.message, &fields_json);
        FORWARDING.set(false);
    }
}

/// Fields as JSON, and the message apart.
#[derive(Default)]
struct Collect {
    message: String,
    map: Map<String, Value>,
}

impl Collect {
    fn put(&mut self, field: &Field, value: Value) {
        let value = if may_hold_secret(field.name()) { HIDDEN.into() } else { value };
        self.map.insert(field.name().to_owned(), value);
    }
}

impl Visit for Collect {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            let _ = write!(self.message, "{value:?}");
        } else {
            self.put(field, format!("{value:?}").into());
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.message.push_str(value);
        } else {
            self.put(field, value.into());
        }
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }
}

/// Whether a field's name says that its value is nobody's business.
fn may_hold_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ["pass", "secret", "token", "authorization", "cookie"].iter().any(|word| name.contains(word))
}
