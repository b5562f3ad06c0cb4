//! What the drivers of storage arrays share, so that a vendor's crate holds tables and request
//! builders and nothing else.
//!
//! # The parts
//!
//! | module | what it does |
//! |---|---|
//! | [`mod@array`] | the trait [`Array`](array::Array): what an array can do, in small steps |
//! | [`driver`] | a whole [`plugin_sdk::Driver`] over any [`Array`](array::Array) |
//! | [`iscsi`] | how this host reaches a mapped volume: sessions, the LUN by its identity, multipath |
//! | [`outcome`], [`classify`] | what became of a request, by a table of the vendor's codes and words |
//! | [`ledger`] | each change is done once, whatever becomes of the answers |
//! | [`rest`], [`http`] | an API over HTTP: connections, TLS, deadlines, one request |
//! | [`rpc`] | an API as JSON-RPC over a WebSocket: the same for it |
//! | [`session`] | one login for all tasks, tokens that change, sessions that are capped |
//! | [`retry`] | when to try again, and how fast to ask |
//! | [`pages`], [`job`] | whole listings; jobs of the array |
//! | [`qos`] | limits that an array can have |
//! | [`names`], [`size`], [`metadata`] | how our objects are called, sized and described there |
//! | [`text`] | the same in a short form, for arrays whose descriptions are short |
//! | [`config`] | keys of device configurations that many arrays have |
//! | [`recorder`] | what was asked, without secrets |
//! | [`testing`] | an array in memory with the habits of five vendors, that fails on command |
//!
//! # A vendor's crate
//!
//! One file for the API: what is peculiar to its sessions and refusals ([`rest::Vendor`]).
//!
//! ```
//! use array_kit::classify::{Fault, Row, Table};
//! use array_kit::http::{Reply, Request};
//! use array_kit::outcome::{Class, Failure, Outcome};
//! use array_kit::rest::{Door, Vendor};
//! use plugin_sdk::Secret;
//! use serde_json::{Value, json};
//!
//! struct Api {
//!     user: String,
//!     password: Secret,
//! }
//!
//! impl Vendor for Api {
//!     type Token = Secret;
//!
//!     // 1. What its refusals mean. Codes count before texts, texts before statuses.
//!     const TABLE: Table = Table::new(&[
//!         Row::code("1254207").on("map").done(),
//!         Row::code("5374242").is(Class::AlreadyExists),
//!         Row::text("not enough space").is(Class::NoSpace),
//!     ]);
//!
//!     // 2. Where its verdict stands.
//!     fn fault(&self, reply: &Reply) -> Option<Fault> {
//!         if reply.is_success() {
//!             return None;
//!         }
//!         let body: Value = reply.json().unwrap_or_default();
//!         let text = |key: &str| body["error"][key].as_str().map(str::to_owned);
//!         let message = text("message").unwrap_or_default();
//!         Some(Fault { code: text("code"), message, ..Fault::default() })
//!     }
//!
//!     // 3. How to log in, and how a request shows it.
//!     async fn login(&self, door: &Door<'_, Self>) -> Outcome<Secret> {
//!         let body = json!({ "user": self.user, "password": self.password.reveal() });
//!         let reply = door.send(Request::post("login", "/api/sessions").json(&body)).await?;
//!         let token = reply.header("x-auth-token").map(Secret::from);
//!         token.ok_or_else(|| Failure::new(Class::Garbled).fact("the login brought no token"))
//!     }
//!
//!     fn sign(&self, token: &Secret, request: Request) -> Request {
//!         request.header("x-auth-token", token.clone())
//!     }
//!
//!     fn secrets(&self, token: &Secret) -> Vec<Secret> {
//!         vec![token.clone()]
//!     }
//! }
//! ```
//!
//! One file for the array: each primitive builds a request and reads the answer.
//!
//! ```
//! # use array_kit::{array::{New, Volume}, http::Request, outcome::Outcome};
//! # use array_kit::rest::{Rest, Vendor};
//! # use plugin_sdk::{Cx, model::Bytes};
//! # use serde_json::json;
//! # struct Acme<V: Vendor> { api: Rest<V> }
//! #[derive(serde::Deserialize)]
//! struct Lun {
//!     uuid: String,
//!     name: String,
//!     size: u64,
//!     comment: Option<String>,
//! }
//!
//! impl Lun {
//!     fn volume(self) -> Volume {
//!         Volume {
//!             id: self.uuid,
//!             name: self.name,
//!             size: Bytes(self.size),
//!             metadata: self.comment,
//!             ..Volume::default()
//!         }
//!     }
//! }
//!
//! # impl<V: Vendor> Acme<V> {
//! // In `impl Array for Acme`:
//! async fn create(&self, cx: &Cx, new: &New<'_>) -> Outcome<Volume> {
//!     let body = json!({ "name": new.name, "size": new.size, "comment": new.metadata });
//!     let made: Lun = self.api.json(cx, Request::post("create", "/api/luns").json(&body)).await?;
//!     Ok(made.volume())
//! }
//!
//! async fn get(&self, cx: &Cx, name: &str) -> Outcome<Volume> {
//!     let request = Request::get("get", "/api/luns").segment(name);
//!     Ok(self.api.json::<Lun>(cx, request).await?.volume())
//! }
//! # }
//! ```
//!
//! And `lib.rs`: its configuration, its manifest ([`array_manifest!`]), how it is opened
//! ([`driver::Product`]), and `export_driver!(Offload<Acme>)`. `testing/product.rs` of this crate is
//! a whole one. A vendor whose transport is neither HTTP nor JSON-RPC (a command line over SSH)
//! implements [`session::Login`] for it, and uses [`classify`], [`retry`] and all else as it is.
//!
//! # Why not ...
//! *... in the SDK itself?* A driver of local disks would link an HTTP client, a TLS library and a
//! list of authorities.
//!
//! *... retries within each primitive?* What may be repeated differs: a request that the array did
//! not begin, or that only reads, here; one whose answer is lost by looking first, in the
//! [`ledger`]; a login that was refused never. Each of the three is in one place.
//!
//! *... an error per vendor?* The driver would have to know all vendors' errors. It knows
//! [`outcome::Class`]; the vendor's code and words go along for people.
//!
//! *... a cookie store, a redirect policy, a proxy from the environment, HTTP/2?* Each sends
//! credentials somewhere, or repeats a request, without this crate's knowing.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod answer;
pub mod array;
pub mod classify;
pub mod config;
pub mod driver;
pub mod hosts;
pub mod http;
pub mod iscsi;
pub mod job;
pub mod ledger;
pub mod metadata;
pub mod names;
pub mod outcome;
pub mod pages;
pub mod pieces;
pub mod prelude;
pub mod qos;
pub mod recorder;
pub mod rest;
pub mod retry;
pub mod rpc;
pub mod session;
pub mod size;
mod socket;
pub mod testing;
pub mod text;
