//! The NBD protocol: server and client.
pub mod protocol;
pub mod tls;
pub mod uri;
pub mod wire;
pub mod client;
