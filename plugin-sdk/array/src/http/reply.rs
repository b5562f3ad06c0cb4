//! A whole answer.

use std::time::{Duration, SystemTime};

use serde::de::DeserializeOwned;

use crate::outcome::{Class, Failure, Outcome};

/// An answer of an array: status, headers, and the whole body.
#[derive(Clone)]
pub struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// What was asked, for messages.
    pub(crate) asked: String,
}

impl Reply {
    /// The HTTP status.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// Whether the status is one of success.
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// The body.
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// The first header of that name, in upper or lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut all = self.headers.iter();
        all.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// The value of a cookie that the answer sets.
    pub fn cookie(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .filter(|(key, _)| key.eq_ignore_ascii_case("set-cookie"))
            .filter_map(|(_, value)| value.split(';').next()?.split_once('='))
            .find(|(key, _)| key.trim() == name)
            .map(|(_, value)| value.trim())
    }

    /// When the array wants to be asked again: `Retry-After` in seconds or as an HTTP date, else
    /// `RateLimit-Reset`.
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after_at(SystemTime::now())
    }

    pub(crate) fn retry_after_at(&self, now: SystemTime) -> Option<Duration> {
        if let Some(text) = self.header("retry-after") {
            let text = text.trim();
            if let Ok(seconds) = text.parse() {
                return Some(Duration::from_secs(seconds));
            }
            if let Ok(date) = httpdate::parse_http_date(text) {
                return Some(date.duration_since(now).unwrap_or_default());
            }
        }
        let reset = self.header("ratelimit-reset").or_else(|| self.header("x-ratelimit-reset"))?;
        reset.trim().parse().ok().map(Duration::from_secs)
    }

    /// The body as JSON. A page of HTML, or anything else, is [`Class::Garbled`] and says so.
    pub fn json<T: DeserializeOwned>(&self) -> Outcome<T> {
        serde_json::from_slice(&self.body).map_err(|error| self.garbled(&error))
    }

    fn garbled(&self, error: &serde_json::Error) -> Failure {
        let asked = &self.asked;
        let kind = self.header("content-type").unwrap_or_default();
        if kind.contains("html") || self.body.trim_ascii_start().starts_with(b"<") {
            let title = title(&self.body).map(|title| format!(", titled {title:?}"));
            return Failure::new(Class::Garbled)
                .fact(format!(
                    "{asked} was answered with an HTML page{} and status {}, not with JSON",
                    title.unwrap_or_default(),
                    self.status
                ))
                .hint("look at address and port: a login page or a proxy answers, not the API");
        }
        // Where, not what: the body may hold a secret.
        Failure::new(Class::Garbled).fact(format!(
            "the answer to {asked}, {} bytes with status {}, is not the JSON that was expected: {}",
            self.body.len(),
            self.status,
            place(error)
        ))
    }
}

/// serde's message without the value it may quote.
fn place(error: &serde_json::Error) -> String {
    let category = match error.classify() {
        serde_json::error::Category::Eof => "it ends too early",
        serde_json::error::Category::Data => "a field is missing or has another type",
        _ => "it is no JSON",
    };
    format!("{category}, line {} column {}", error.line(), error.column())
}

fn title(body: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(body.get(..body.len().min(4096))?).into_owned();
    let lower = text.to_ascii_lowercase();
    let start = lower.find("<title>")? + "<title>".len();
    let length = lower.get(start..)?.find('<')?;
    let title = text.get(start..start + length)?.trim().chars().take(80).collect::<String>();
    (!title.is_empty()).then_some(title)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(headers: &[(&str, &str)], body: &str) -> Reply {
        let headers = headers.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Reply { status: 200, headers, body: body.into(), asked: "GET /volumes".into() }
    }

    /// Both forms of RFC 9110 section 10.2.3, and a date that is past.
    #[test]
    fn retry_after_is_read_in_every_form() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        let after = |headers: &[(&str, &str)]| reply(headers, "").retry_after_at(now);
        assert_eq!(after(&[("Retry-After", "7")]), Some(Duration::from_secs(7)));
        let later = [("retry-after", "Sun, 06 Nov 1994 08:49:57 GMT")];
        assert_eq!(after(&later), Some(Duration::from_secs(20)));
        let past = [("retry-after", "Sun, 06 Nov 1994 08:00:00 GMT")];
        assert_eq!(after(&past), Some(Duration::ZERO));
        assert_eq!(after(&[("RateLimit-Reset", "3")]), Some(Duration::from_secs(3)));
        let both = [("ratelimit-reset", "3"), ("retry-after", "9")];
        assert_eq!(after(&both), Some(Duration::from_secs(9)));
        assert_eq!(after(&[("retry-after", "soon"), ("RateLimit-Reset", "x")]), None);
    }

    #[test]
    fn html_is_named_as_such() {
        let page = "<!DOCTYPE html><html><TITLE>Log in</TITLE>";
        let error = reply(&[("content-type", "text/html")], page).json::<u8>().unwrap_err();
        assert_eq!(error.class, Class::Garbled);
        assert_eq!(
            error.to_string(),
            "GET /volumes was answered with an HTML page, titled \"Log in\" and status 200, not \
             with JSON"
        );
    }

    #[test]
    fn what_is_no_json_is_not_quoted() {
        let body = r#"{"token":"canary"}"#;
        let error = reply(&[], body).json::<u8>().unwrap_err();
        assert!(!error.to_string().contains("canary"), "{error}");
        let error = reply(&[], r#"{"a":"#).json::<serde_json::Value>().unwrap_err();
        assert!(error.to_string().contains("it ends too early, line 1 column 5"), "{error}");
    }

    #[test]
    fn cookies_are_found() {
        let headers = [("Set-Cookie", "auth_cookie=abc=; Path=/; Secure"), ("Set-Cookie", "b=2")];
        assert_eq!(reply(&headers, "").cookie("auth_cookie"), Some("abc="));
        assert_eq!(reply(&headers, "").cookie("b"), Some("2"));
        assert_eq!(reply(&headers, "").cookie("Path"), None);
    }
}
