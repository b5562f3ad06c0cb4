//! A driver whose interface differs in one field.
#![allow(non_local_definitions, non_camel_case_types, dead_code)]

#[path = "interface.rs"]
mod interface;

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
        "fixture-broken"
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

/// Answers every call with its own name and what it was given.
struct Session;

impl Session {
    fn new(_: HostBox) -> Self {
        Self
    }
}

impl Driver for Session {
    fn call(&self, context: CallContext, operation: RString, request: Bytes) -> FfiFuture<Reply> {
        let reply = format!(
            r#"{{"driver":"{}","version":"{}","operation":"{operation}","budget":{},"bytes":{}}}"#,
            name!(),
            version!(),
            context.budget_ms > 0,
            request.len()
        );
        async move { RResult::ROk(reply.into_bytes().into()) }.into_ffi()
    }

    fn cancel(&self, _: u64) {}

    fn health(&self) -> u32 {
        0
    }

    fn close(&self, _: u64) -> FfiFuture<()> {
        async {}.into_ffi()
    }
}
