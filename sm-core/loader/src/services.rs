//! What a host offers to the drivers it loads.

use async_trait::async_trait;
use sm_model::{Error, Result};

/// What a host offers to one opened driver. Runs on the loader's own runtime: an implementation
/// that blocks uses `spawn_blocking`.
#[async_trait]
pub trait HostServices: Send + Sync + 'static {
    /// The services, as a manifest names them: `kv`, `secret`, `command`, ... A driver that needs
    /// another is not opened.
    fn names(&self) -> &[&str];

    /// A request of the driver: the service's name with its verb (`kv.get`), and JSON. Only called
    /// for services of [`Self::names`].
    async fn request(&self, service: &str, request: Vec<u8>) -> Result<Vec<u8>>;

    /// A measured value; `labels` is a JSON object.
    fn metric(&self, _name: &str, _value: f64, _labels: &str) {}
}

/// A host without services.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoServices;

#[async_trait]
impl HostServices for NoServices {
    fn names(&self) -> &[&str] {
        &[]
    }

    async fn request(&self, service: &str, _request: Vec<u8>) -> Result<Vec<u8>> {
        Err(Error::unsupported(format!("this host has no service {service}")))
    }
}
