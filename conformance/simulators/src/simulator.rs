//! A whole array: its management, its data path, its admin port.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::admin::{self, Admin};
use crate::core::{Array, Options, Trouble, Vendor};
use crate::http::{self, Certificate, Server, Web};
use crate::iscsi;

/// Where an array listens. Port 0 is any that is free.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Management.
    pub listen: SocketAddr,
    /// Whether management is by TLS, with a certificate of its own.
    pub tls: bool,
    /// LUNs.
    pub iscsi: SocketAddr,
    /// The admin port.
    pub admin: SocketAddr,
    /// Pools and settings, where the state is new.
    pub options: Options,
}

impl Default for Plan {
    fn default() -> Self {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Self { listen: any, tls: false, iscsi: any, admin: any, options: Options::default() }
    }
}

/// An array that runs in this process until it is dropped. Its state stays in its folder.
#[derive(Debug)]
pub struct Simulator {
    /// The array itself: objects, data, faults, clock.
    pub array: Array,
    server: Server,
    targets: iscsi::Targets,
    admin: Admin,
    certificate: Option<(Certificate, PathBuf)>,
}

impl Simulator {
    /// Starts an array that is managed over HTTP, from the state in a folder if there is one.
    pub async fn start(web: Arc<dyn Web>, folder: &Path, plan: &Plan) -> Result<Self, Trouble> {
        let array = Array::open(folder, &plan.options)?;
        let certificate = plan.tls.then(|| Certificate::open(folder)).transpose()?;
        let vendor: Arc<dyn Vendor> = web.clone();
        let targets = iscsi::serve(plan.iscsi, array.clone(), vendor.clone()).await?;
        vendor.prepare(&array)?;
        let admin = admin::serve(plan.admin, array.clone(), vendor).await?;
        let server = http::serve(plan.listen, array.clone(), web, certificate.as_ref()).await?;
        let certificate = certificate.map(|own| (own, folder.join("certificate.pem")));
        Ok(Self { array, server, targets, admin, certificate })
    }

    /// Where it is managed: `https://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        let scheme = if self.certificate.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.server.address)
    }

    /// Where its LUNs are.
    pub fn portal(&self) -> SocketAddr {
        self.targets.address
    }

    /// Where its admin port is: `http://127.0.0.1:PORT`.
    pub fn admin(&self) -> String {
        format!("http://{}", self.admin.address)
    }

    /// The certificate of its management.
    pub fn certificate(&self) -> Option<&Certificate> {
        self.certificate.as_ref().map(|(certificate, _)| certificate)
    }

    /// What the program prints when it has started.
    pub fn describe(&self) -> io::Result<serde_json::Value> {
        let fingerprint = self.certificate().map(Certificate::fingerprint).transpose()?;
        Ok(serde_json::json!({
            "url": self.url(),
            "portal": self.portal().to_string(),
            "admin": self.admin(),
            "fingerprint": fingerprint,
            "certificate": self.certificate.as_ref().map(|(_, path)| path),
        }))
    }
}
