//! A request, before anybody has signed or sent it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use plugin_sdk::Secret;
use serde::Serialize;

use crate::outcome::{Class, Failure, Outcome};

/// What RFC 3986 calls unreserved stays as it is; all else is encoded.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The verb.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Reads.
    Get,
    /// Makes, or does.
    Post,
    /// Replaces.
    Put,
    /// Changes.
    Patch,
    /// Removes.
    Delete,
}

impl Method {
    /// As on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
        }
    }
}

/// The header `Authorization` of RFC 7617 for a user and a password.
pub fn basic(user: &str, password: &Secret) -> Secret {
    let pair = Secret::from(format!("{user}:{}", password.reveal()));
    Secret::from(format!("Basic {}", STANDARD.encode(pair.reveal())))
}

/// A request to an array's API. Cheap to clone, so that it can be sent again.
///
/// ```
/// use array_kit::http::Request;
///
/// let request = Request::put("resize", "/api/v2.0/pool/dataset/id")
///     .segment("tank/sr/vdi")
///     .query("force_size", "false")
///     .json(&serde_json::json!({ "volsize": 1 << 30 }));
/// assert_eq!(request.target(), "/api/v2.0/pool/dataset/id/tank%2Fsr%2Fvdi?force_size=false");
/// ```
#[derive(Clone)]
pub struct Request {
    pub(crate) operation: &'static str,
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) query: Vec<(String, String)>,
    pub(crate) headers: Vec<(&'static str, Secret)>,
    pub(crate) body: Option<Vec<u8>>,
    pub(crate) mutating: bool,
    pub(crate) broken: Option<String>,
}

impl Request {
    /// A request of a vendor's operation, which is how its [table](crate::classify::Table) calls
    /// it. `path` is sent as it is; one that does not begin with `/` is below the
    /// [root](crate::rest::Vendor::root) of the vendor's API.
    pub fn new(operation: &'static str, method: Method, path: &str) -> Self {
        Self {
            operation,
            method,
            path: path.to_owned(),
            query: Vec::new(),
            headers: Vec::new(),
            body: None,
            mutating: method != Method::Get,
            broken: None,
        }
    }

    /// A GET.
    pub fn get(operation: &'static str, path: &str) -> Self {
        Self::new(operation, Method::Get, path)
    }

    /// A POST.
    pub fn post(operation: &'static str, path: &str) -> Self {
        Self::new(operation, Method::Post, path)
    }

    /// A PUT.
    pub fn put(operation: &'static str, path: &str) -> Self {
        Self::new(operation, Method::Put, path)
    }

    /// A PATCH.
    pub fn patch(operation: &'static str, path: &str) -> Self {
        Self::new(operation, Method::Patch, path)
    }

    /// A DELETE.
    pub fn delete(operation: &'static str, path: &str) -> Self {
        Self::new(operation, Method::Delete, path)
    }

    /// Adds one segment of the path, encoded: a `/` in it becomes `%2F` and stays that.
    #[must_use]
    pub fn segment(mut self, segment: &str) -> Self {
        // Every URL parser takes these for the folder itself and the one above, encoded or not.
        if matches!(segment, "" | "." | "..") {
            self.broken = Some(format!("{segment:?} cannot stand in the path of a request"));
        }
        self.path.push('/');
        self.path.extend(utf8_percent_encode(segment, SEGMENT));
        self
    }

    /// Adds what follows the last segment as it is, such as `/promote`.
    #[must_use]
    pub fn then(mut self, rest: &str) -> Self {
        self.path.push_str(rest);
        self
    }

    /// Adds a parameter of the query, encoded.
    #[must_use]
    pub fn query(mut self, key: &str, value: &str) -> Self {
        self.query.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Sets the body.
    #[must_use]
    pub fn json(mut self, body: &impl Serialize) -> Self {
        match serde_json::to_vec(body) {
            Ok(body) => self.body = Some(body),
            Err(error) => self.broken = Some(format!("the body cannot be written: {error}")),
        }
        self
    }

    /// Sets a header. No header is ever recorded, so it may hold a token.
    #[must_use]
    pub fn header(mut self, name: &'static str, value: impl Into<Secret>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// A POST that changes nothing, such as a query: it is repeated like a GET.
    #[must_use]
    pub fn reading(mut self) -> Self {
        self.mutating = false;
        self
    }

    /// The request with its whole path.
    pub(crate) fn below(mut self, root: &str) -> Self {
        if !self.path.starts_with('/') {
            self.path.insert_str(0, root);
        }
        self
    }

    /// Path and query as they are sent.
    pub fn target(&self) -> String {
        let mut target = self.path.clone();
        for (n, (key, value)) in self.query.iter().enumerate() {
            target.push(if n == 0 { '?' } else { '&' });
            target.extend(utf8_percent_encode(key, SEGMENT));
            target.push('=');
            target.extend(utf8_percent_encode(value, SEGMENT));
        }
        target
    }

    pub(crate) fn check(&self) -> Outcome<()> {
        match &self.broken {
            None => Ok(()),
            Some(fact) => Err(Failure::new(Class::Invalid).fact(fact.clone())),
        }
    }
}
