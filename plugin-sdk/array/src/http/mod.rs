//! HTTP as arrays need it.
//!
//! One pool of kept connections per array (management gateways collapse under many new TLS
//! connections), TLS that is always verified, deadlines at every level, and for each failure the one
//! answer that counts: whether the request can have been done.
//!
//! | what happened | class |
//! |---|---|
//! | no connection, or a certificate that is not trusted | `Unreachable`: certainly not done |
//! | the connection ended, or the time was over, before the whole answer was here | `Unknown` |
//! | an answer that is too large, or a redirect elsewhere | `Garbled`, `Unknown` if it changes something |
//! | any status with a whole answer | an `Ok` reply: what it means is the vendor's |

mod client;
mod reply;
mod request;
mod tls;

pub use client::{Client, Limits};
pub use reply::Reply;
pub use request::{Method, Request, basic};
pub use tls::Trust;
pub(crate) use tls::problem;
