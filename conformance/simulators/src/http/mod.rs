//! The HTTP front: connections, TLS, WebSockets, and everything that can go wrong between a request
//! and its answer. What is asked and answered is the vendor's.

mod limit;
mod server;
mod socket;
mod tls;

use crate::core::{Array, Effect, Vendor};

pub use hyper::HeaderMap;
pub use server::{Server, serve};
pub use tls::Certificate;

/// A request.
#[derive(Clone, Debug)]
pub struct Ask {
    /// `GET`, `POST`...
    pub method: String,
    /// As it came, with `%2F`.
    pub path: String,
    /// Without the question mark, as it came.
    pub query: String,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Vec<u8>,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Say {
    /// Its status.
    pub status: u16,
    /// Names and values.
    pub headers: Vec<(String, String)>,
    /// Its body.
    pub body: Vec<u8>,
}

impl Say {
    /// JSON with a status.
    pub fn json(status: u16, body: &serde_json::Value) -> Self {
        let headers = vec![("content-type".to_owned(), "application/json".to_owned())];
        Self { status, headers, body: body.to_string().into_bytes() }
    }

    /// Text with a status.
    pub fn text(status: u16, body: &str) -> Self {
        let headers = vec![("content-type".to_owned(), "text/plain".to_owned())];
        Self { status, headers, body: body.as_bytes().to_vec() }
    }

    /// What a proxy before the array answers when nobody has logged in: a page for people.
    pub fn login_page() -> Self {
        let body = "<!DOCTYPE html><html><head><title>Sign in</title></head><body><form \
                    action=\"/login\"><input name=\"user\"></form></body></html>";
        let headers = vec![("content-type".to_owned(), "text/html".to_owned())];
        Self { status: 200, headers, body: body.as_bytes().to_vec() }
    }
}

/// A vendor that is managed over HTTP.
pub trait Web: Vendor {
    /// The vendor's name of what is asked: by it faults are addressed and requests counted.
    fn call(&self, ask: &Ask) -> String;

    /// Carries out a request. `effect` is what the fault script has for it, for what only the vendor
    /// can do: jobs that fail or are lost, a session that ends.
    fn answer(&self, array: &Array, ask: &Ask, effect: Option<&Effect>) -> Say;

    /// How it refuses a request with this status, in its own words.
    fn refusal(&self, status: u16) -> Say {
        Say::text(status, "")
    }

    /// A conversation by WebSocket at this path, if there is one.
    fn talk(&self, array: &Array, path: &str) -> Option<Box<dyn Talk>> {
        let _ = (array, path);
        None
    }
}

/// A conversation over a WebSocket.
pub trait Talk: Send {
    /// How many messages are carried out at the same time, and how many may be open before one more
    /// is refused with status 429.
    fn at_once(&self) -> (usize, usize);

    /// The vendor's name of what a message asks.
    fn call(&self, message: &str) -> String;

    /// Carries out a message, and answers with others.
    fn answer(&mut self, array: &Array, message: &str, effect: Option<&Effect>) -> Vec<String>;

    /// How it refuses a message with this status.
    fn refusal(&self, message: &str, status: u16) -> String;

    /// Whether a message only reads.
    fn reads(&self, call: &str) -> bool;
}
