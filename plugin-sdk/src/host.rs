//! The process that loaded the driver, without the types of the binary interface.

use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use sm_abi::HostBox;
use sm_abi::abi_stable::std_types::{RResult, RStr, RString};
use sm_model::{Error, Result};

/// A handle to the host. Clones are cheap.
#[derive(Clone)]
pub(crate) struct Host(Arc<HostBox>);

impl Host {
    pub(crate) fn new(host: HostBox) -> Self {
        Self(Arc::new(host))
    }

    pub(crate) fn log(&self, level: u8, call: u64, target: &str, message: &str, fields: &str) {
        self.0.log(level, call, RStr::from(target), RStr::from(message), RStr::from(fields));
    }

    pub(crate) fn progress(&self, call: u64, permille: u32, stage: &str) {
        self.0.progress(call, permille, RStr::from(stage));
    }

    pub(crate) fn is_cancelled(&self, call: u64) -> bool {
        self.0.is_cancelled(call)
    }

    pub(crate) fn metric(&self, name: &str, value: f64, labels: &str) {
        self.0.metric(RStr::from(name), value, RStr::from(labels));
    }

    /// Asks for a service. The answer of one that the host lacks is an `unsupported` error.
    pub(crate) async fn request<A: DeserializeOwned>(
        &self,
        call: u64,
        service: &str,
        request: &impl Serialize,
    ) -> Result<A> {
        let json = serde_json::to_vec(request).map_err(|error| {
            Error::internal(format!("the request to the host's {service} is no JSON"))
                .source(&error)
        })?;
        let answer = self.0.request(call, RString::from(service), json.into()).await;
        let malformed = |error: serde_json::Error| {
            Error::internal(format!("the host's {service} answered something else than agreed"))
                .source(&error)
        };
        match answer {
            RResult::ROk(json) => serde_json::from_slice(&json).map_err(malformed),
            RResult::RErr(json) => {
                Err(serde_json::from_slice::<Error>(&json).unwrap_or_else(malformed))
            }
        }
    }
}
