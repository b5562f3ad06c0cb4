//! The HTTP client, the session and the retries, against servers that misbehave.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails so")]

mod pipeline;
mod raw;
mod socket;
mod tls;

use std::time::Duration;

use array_kit::http::{Client, Limits, Trust};
use array_kit::recorder::{Recorder, Redactor};
use plugin_sdk::testing::{TestHost, run};
use plugin_sdk::{Cx, Result, Secret};

/// What must never be seen anywhere.
pub(crate) const CANARY: &str = "canary-5f3a-secret";

/// Runs a test with a call's context, on a driver's runtime.
pub(crate) fn with_cx<F>(budget: Duration, work: impl FnOnce(Cx) -> F + Send) -> TestHost
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    let host = TestHost::new();
    run(host.with_cx(budget, work)).unwrap();
    host
}

pub(crate) fn client(base: &str, trust: &Trust) -> Client {
    let redactor = Redactor::default();
    redactor.learn(&Secret::from(CANARY));
    let limits = Limits {
        connect: Duration::from_secs(5),
        read: Duration::from_secs(2),
        total: Duration::from_secs(5),
        answer: 1 << 20,
        ..Limits::default()
    };
    Client::new(base, trust, limits, Recorder::new(redactor)).unwrap()
}

/// For servers without TLS, whose client trusts nobody in particular.
pub(crate) fn plain(base: &str) -> Client {
    client(base, &Trust::Fingerprint("00".repeat(32)))
}
