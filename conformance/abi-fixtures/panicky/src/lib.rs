//! A driver that misbehaves on command, with no SDK to catch it. The command is the request's text.
#![allow(non_local_definitions, non_camel_case_types, dead_code)]

#[path = "interface.rs"]
mod interface;

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use abi_stable::library::{
    __call_root_module_loader, CheckTypeLayout, LibHeader, RootModuleResult,
};
use abi_stable::prefix_type::PrefixTypeTrait;
use abi_stable::sabi_trait::TD_Opaque;
use abi_stable::std_types::{RResult, RStr, RString};
use async_ffi::{FfiFuture, FutureExt};
use interface::{
    Bytes, CallContext, Driver, Driver_TO, DriverBox, DriverModule, DriverModule_Ref, HostBox,
    OpenResult, Reply,
};

macro_rules! name {
    () => {
        "fixture-panicky"
    };
}
macro_rules! version {
    () => {
        "1.0.0"
    };
}
macro_rules! abi {
    () => {
        "1.0"
    };
}
macro_rules! services {
    () => {
        ""
    };
}
include!("../../common/export.rs");

fn root() -> DriverModule_Ref {
    DriverModule { manifest, set_log_level, open }.leak_into_prefix()
}

struct Session {
    host: Arc<HostBox>,
    /// Calls that wait for their cancel.
    cancelled: Arc<Mutex<Vec<u64>>>,
}

impl Session {
    fn new(host: HostBox) -> Self {
        Self { host: Arc::new(host), cancelled: Arc::default() }
    }
}

impl Driver for Session {
    fn call(&self, context: CallContext, operation: RString, request: Bytes) -> FfiFuture<Reply> {
        let command = String::from_utf8_lossy(&request).into_owned();
        let (verb, argument) = command.split_once(' ').unwrap_or((&command, ""));
        let ok = |text: String| async move { RResult::ROk(text.into_bytes().into()) }.into_ffi();
        match verb {
            "echo" => ok(argument.to_owned()),
            "pid" => ok(std::process::id().to_string()),
            "user" => ok(status_line("Uid:")),
            "confined" => ok(format!("{} {}", status_line("NoNewPrivs:"), oom_score())),
            "error" => {
                let error = format!(
                    r#"{{"kind":"no_space","message":"the fixture is full","retry":"permanent","operation":"{operation}","context":{{"free":"0"}}}}"#
                );
                async move { RResult::RErr(error.into_bytes().into()) }.into_ffi()
            }
            "garbage" => async { RResult::RErr(b"not an error".to_vec().into()) }.into_ffi(),
            "long" => {
                let length = argument.parse().unwrap_or(0);
                async move { RResult::ROk(vec![b'x'; length].into()) }.into_ffi()
            }
            "panic" => async { panic!("the fixture panics") }.into_ffi(),
            "abort" => std::process::abort(),
            "exit" => std::process::exit(3),
            "segv" => {
                // SAFETY: none; this is the crash that is asked for.
                unsafe { std::ptr::null_mut::<u8>().write_volatile(1) };
                ok(String::new())
            }
            "overflow" => ok(overflow(1).to_string()),
            "leak" => {
                let mut kept = Vec::new();
                loop {
                    kept.push(vec![1_u8; 16 << 20]);
                    if kept.len() > 1 << 20 {
                        return ok(String::new());
                    }
                }
            }
            "hang" => std::future::pending::<Reply>().into_ffi(),
            "block" => loop {
                std::thread::park();
            },
            "until-file" => {
                let path = argument.to_owned();
                answered(move || {
                    while !std::path::Path::new(&path).exists() {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    "the file is there".to_owned()
                })
            }
            "until-cancel" => {
                let (cancelled, host) = (Arc::clone(&self.cancelled), Arc::clone(&self.host));
                let id = context.call_id;
                answered(move || {
                    while !cancelled.lock().is_ok_and(|list| list.contains(&id)) {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    format!("cancelled, and the host says {}", host.is_cancelled(id))
                })
            }
            "log" => {
                for level in 1..=5 {
                    self.host.log(
                        level,
                        context.call_id,
                        RStr::from_str("fixture::module"),
                        RStr::from_str(argument),
                        RStr::from_str(r#"{"key":"value"}"#),
                    );
                }
                self.host.progress(context.call_id, 500, RStr::from_str("half"));
                self.host.metric(
                    RStr::from_str("fixture.metric"),
                    1.5,
                    RStr::from_str(r#"{"unit":"none"}"#),
                );
                ok(String::new())
            }
            "print" => {
                println!("{argument}");
                eprintln!("{argument}");
                ok(String::new())
            }
            "service" => {
                let (service, text) = argument.split_once(' ').unwrap_or((argument, ""));
                self.host.request(
                    context.call_id,
                    RString::from(service),
                    text.as_bytes().to_vec().into(),
                )
            }
            "fork" => {
                // A process of the driver's own, which outlives it unless somebody ends it.
                let child = std::process::Command::new("sleep").arg("300").spawn();
                ok(child.map_or_else(|error| error.to_string(), |child| child.id().to_string()))
            }
            _ => {
                let error = r#"{"kind":"unsupported","message":"the fixture does not know that","retry":"permanent"}"#;
                async move { RResult::RErr(error.as_bytes().to_vec().into()) }.into_ffi()
            }
        }
    }

    fn cancel(&self, call_id: u64) {
        if let Ok(mut cancelled) = self.cancelled.lock() {
            cancelled.push(call_id);
        }
    }

    fn health(&self) -> u32 {
        0
    }

    fn close(&self, _: u64) -> FfiFuture<()> {
        async {}.into_ffi()
    }
}

fn status_line(key: &str) -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with(key)).unwrap_or_default();
    line.split_whitespace().nth(1).unwrap_or_default().to_owned()
}

fn oom_score() -> String {
    std::fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default().trim().to_owned()
}

fn overflow(depth: u64) -> u64 {
    let frame = [depth; 512];
    if std::hint::black_box(depth) == 0 {
        return 0;
    }
    overflow(depth + 1) + std::hint::black_box(&frame)[3]
}

/// The answer of work on a thread of its own: no runtime anywhere.
fn answered(work: impl FnOnce() -> String + Send + 'static) -> FfiFuture<Reply> {
    #[derive(Default)]
    struct State {
        text: Option<String>,
        waker: Option<Waker>,
    }
    struct Wait(Arc<Mutex<State>>);
    impl Future for Wait {
        type Output = Reply;
        fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Reply> {
            let mut state = self.0.lock().unwrap();
            match state.text.take() {
                Some(text) => Poll::Ready(RResult::ROk(text.into_bytes().into())),
                None => {
                    state.waker = Some(context.waker().clone());
                    Poll::Pending
                }
            }
        }
    }
    let state = Arc::new(Mutex::new(State::default()));
    let done = Arc::clone(&state);
    std::thread::spawn(move || {
        let text = work();
        let mut state = done.lock().unwrap();
        state.text = Some(text);
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
    });
    Wait(state).into_ffi()
}
