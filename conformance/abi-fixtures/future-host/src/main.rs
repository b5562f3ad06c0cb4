//! A host of a later minor version of the interface. It uses today's compatibility check, as it is
//! in the tree, against its own interface, and prints what it finds in a driver.

#![allow(non_local_definitions, non_camel_case_types, dead_code)]

#[path = "../../../../sm-core/abi/src/compat.rs"]
mod compat;
mod interface;

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use abi_stable::library::{AbiHeaderRef, ROOT_MODULE_LOADER_NAME_WITH_NUL};
use abi_stable::sabi_trait::TD_Opaque;
use abi_stable::std_types::{RResult, RStr, RString};
use async_ffi::{FfiFuture, FutureExt};
use interface::{Bytes, CallContext, DriverModule_Ref, Host, Host_TO, Reply};
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

struct Quiet;

impl Host for Quiet {
    fn log(&self, _: u8, _: u64, _: RStr<'_>, _: RStr<'_>, _: RStr<'_>) {}
    fn progress(&self, _: u64, _: u32, _: RStr<'_>) {}
    fn is_cancelled(&self, _: u64) -> bool {
        false
    }
    fn metric(&self, _: RStr<'_>, _: f64, _: RStr<'_>) {}
    fn request(&self, _: u64, _: RString, _: Bytes) -> FfiFuture<Reply> {
        async { RResult::RErr(Bytes::new()) }.into_ffi()
    }
}

struct Unpark(std::thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn wait<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}

fn main() {
    let path = std::env::args_os().nth(1).expect("the path of a driver");
    // SAFETY: the driver is a fixture.
    let library = unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_LOCAL) }.unwrap();
    // SAFETY: it exports abi_stable's header under this name.
    let header = unsafe { library.get::<AbiHeaderRef>(ROOT_MODULE_LOADER_NAME_WITH_NUL.as_bytes()) };
    let header = *header.unwrap();
    std::mem::forget(library);
    let module = match compat::module::<DriverModule_Ref>(header) {
        Ok(module) => module,
        Err(mismatch) => {
            println!("refused: {mismatch}");
            return;
        }
    };
    println!("module.describe: {:?}", module.describe().flatten().map(|f| f()));
    let request = br#"{"sr":"d0000000-0000-4000-8000-000000000001","device_config":{},"host":"host"}"#;
    let request = request.to_vec();
    let opened = wait(module.open()(request.into(), Host_TO::from_value(Quiet, TD_Opaque)));
    let driver = match opened {
        RResult::ROk(driver) => driver,
        RResult::RErr(_) => panic!("the fixture does not open"),
    };
    println!("driver.describe: {}", driver.describe());
    let context = CallContext {
        call_id: 1,
        trace_id: [0, 0],
        span_id: 0,
        budget_ms: 1000,
        operation_id: [0, 0],
        fence_epoch: 0,
        flags: 0,
    };
    match wait(driver.call(context, RString::from("sr_scan"), Bytes::from(b"{}".to_vec()))) {
        RResult::ROk(reply) => println!("reply: {}", String::from_utf8_lossy(&reply)),
        RResult::RErr(_) => panic!("the fixture fails"),
    }
}
