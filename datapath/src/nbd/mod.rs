//! The NBD protocol: server and client.
//!
//! The newstyle handshake with TLS, structured replies, block status and the usual commands; see
//! [`protocol`] for what is spoken. The server knows [`crate::export`] and nothing of disks.
//!
//! One thread for each connection; it takes as many requests as one receive brings and sends the
//! replies together. Requests that make their caller wait are given to more threads, or to the
//! kernel's ring where the disk says that a request is nothing but transfers.
//!
//! Why not an existing crate: none serves structured replies and block status, and one gives up at
//! the first option that usual clients send.

mod buffer;
mod chance;
pub mod client;
pub mod context;
pub mod handshake;
#[cfg_attr(not(feature = "ring"), allow(dead_code, reason = "only a ring reads it"))]
mod inbox;
mod link;
mod long;
mod perform;
mod pipe;
pub mod protocol;
mod reply;
mod request;
#[cfg(feature = "ring")]
mod ring;
pub mod server;
mod session;
pub mod tls;
pub mod uri;
pub mod wire;
mod workers;

pub use client::Client;
pub use server::{Limits, Listener, Server};
pub use uri::Uri;
