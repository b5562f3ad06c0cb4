//! TrueNAS: REST v2.0 (as of SCALE 22.12) and JSON-RPC over a WebSocket (as of 25.04), one set of
//! objects behind both.
//!
//! Settings of this vendor: `version` (`25.04.2`; before 25.04 there is no JSON-RPC), `user`,
//! `password`, `api_key`.

mod answers;
mod block;
mod dataset;
mod failure;
mod methods;
mod objects;
mod query;
mod rest;
mod rpc;
mod schema;
mod snapshot;
mod system;

use crate::core::{Array, Effect, Export, Trouble, Vendor, View};
use crate::http::{Ask, Say, Talk, Web};

/// Who manages it, where the settings say nothing else.
pub const USER: &str = "root";
/// The password of that user.
pub const PASSWORD: &str = "simulated-password";
/// Its API key.
pub const API_KEY: &str = "1-simulated-key";

/// The vendor.
#[derive(Clone, Copy, Debug, Default)]
pub struct TrueNas;

impl Vendor for TrueNas {
    fn name(&self) -> &'static str {
        "truenas"
    }

    fn prepare(&self, array: &Array) -> Result<(), Trouble> {
        system::prepare(array)
    }

    fn exports(&self, view: &View) -> Vec<Export> {
        block::exports(view)
    }
}

impl Web for TrueNas {
    fn call(&self, ask: &Ask) -> String {
        rest::call_of(ask)
    }

    fn answer(&self, array: &Array, ask: &Ask, effect: Option<&Effect>) -> Say {
        rest::answer(array, ask, effect)
    }

    /// The web server before the middleware refuses with a page of its own.
    fn refusal(&self, status: u16) -> Say {
        let title = match status {
            401 => return failure::Failure::NotAuthenticated.say(),
            500 => {
                let body = serde_json::json!({"message": "Internal error", "traceback": {}});
                return Say::json(500, &body);
            }
            429 => "429 Too Many Requests",
            502 => "502 Bad Gateway",
            503 => "503 Service Temporarily Unavailable",
            504 => "504 Gateway Time-out",
            _ => "Error",
        };
        let page = format!(
            "<html>\r\n<head><title>{title}</title></head>\r\n<body>\r\n<center><h1>{title}</h1>\
             </center>\r\n<hr><center>nginx</center>\r\n</body>\r\n</html>\r\n"
        );
        let mut say = Say::text(status, &page);
        say.headers = vec![("content-type".to_owned(), "text/html".to_owned())];
        say
    }

    fn talk(&self, array: &Array, path: &str) -> Option<Box<dyn Talk>> {
        let known = path == "/api/current" || path.starts_with("/api/v25.");
        let has = system::version(array).as_str() >= "25.04";
        (known && has).then(|| Box::new(rpc::Conversation::default()) as Box<dyn Talk>)
    }
}
