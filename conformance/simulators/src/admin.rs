//! The admin port: what an operator of the simulator can see and do, apart from what the array says
//! of itself. It has no password, so it belongs on a loopback address.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::core::{Array, Fault, NewVolume, Trouble, Vendor};

/// Most bytes of a request.
const MOST: usize = 64 << 20;

/// The admin port. It ends when this is dropped.
#[derive(Debug)]
pub struct Admin {
    /// Where it listens.
    pub address: SocketAddr,
    _tasks: JoinSet<()>,
}

/// Opens the admin port of an array.
pub async fn serve(listen: SocketAddr, array: Array, vendor: Arc<dyn Vendor>) -> io::Result<Admin> {
    let listener = TcpListener::bind(listen).await?;
    let address = listener.local_addr()?;
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            while connections.try_join_next().is_some() {}
            let (array, vendor) = (array.clone(), vendor.clone());
            connections.spawn(async move {
                let service = service_fn(move |request| {
                    let (array, vendor) = (array.clone(), vendor.clone());
                    async move { answer(request, &array, &*vendor).await }
                });
                // A client that goes away is no matter.
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    Ok(Admin { address, _tasks: tasks })
}

/// Why the admin port does not do something.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("{0}")]
    Array(#[from] Trouble),
    #[error("the body is not what {0} takes: {1}")]
    Body(&'static str, serde_json::Error),
    #[error("{0}")]
    Other(String),
}

async fn answer(
    request: Request<Incoming>,
    array: &Array,
    vendor: &dyn Vendor,
) -> Result<Response<Full<Bytes>>, http::Error> {
    let (parts, body) = request.into_parts();
    let body = match Limited::new(body, MOST).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => return say(400, &json!({"error": error.to_string()})),
    };
    let query = parts.uri.query().unwrap_or("");
    if (parts.method.as_str(), parts.uri.path()) == ("GET", "/content") {
        return match content(array, query) {
            Ok(bytes) => Response::builder().body(Full::from(bytes)),
            Err(error) => say(400, &json!({"error": error.to_string()})),
        };
    }
    match act(parts.method.as_str(), parts.uri.path(), query, &body, array, vendor) {
        Ok(Some(value)) => say(200, &value),
        Ok(None) => say(404, &json!({"error": "there is no such thing; see docs/simulators.md"})),
        Err(error) => say(400, &json!({"error": error.to_string()})),
    }
}

fn say(status: u16, value: &Value) -> Result<Response<Full<Bytes>>, http::Error> {
    let body = Full::from(value.to_string());
    Response::builder().status(status).header("content-type", "application/json").body(body)
}

fn parse<T: serde::de::DeserializeOwned>(what: &'static str, body: &[u8]) -> Result<T, Refused> {
    serde_json::from_slice(body).map_err(|error| Refused::Body(what, error))
}

fn number(body: &Value, name: &str) -> Result<u64, Refused> {
    let missing = || Refused::Other(format!("the body has no number {name}"));
    body.get(name).and_then(Value::as_u64).ok_or_else(missing)
}

fn act(
    method: &str,
    path: &str,
    query: &str,
    body: &[u8],
    array: &Array,
    vendor: &dyn Vendor,
) -> Result<Option<Value>, Refused> {
    let value = match (method, path) {
        ("GET", "/inventory") => array.inventory(&vendor.exports(&array.current())),
        ("GET", "/requests") => json!(array.requests().all()),
        ("GET", "/counts") => json!(array.requests().counts()),
        ("GET", "/moved") => {
            let [read, written, copied] = array.moved().all();
            json!({"read": read, "written": written, "copied": copied})
        }
        ("DELETE", "/requests") => {
            array.requests().clear();
            Value::Null
        }
        ("GET", "/faults") => json!(array.faults().left()),
        ("POST", "/faults") => {
            let script: Vec<Fault> = parse("a fault script", body)?;
            for fault in script {
                array.faults().add(fault);
            }
            Value::Null
        }
        ("DELETE", "/faults") => {
            array.faults().clear();
            Value::Null
        }
        ("POST", "/clock") => {
            array.clock().advance(number(&parse("the clock", body)?, "advance")?);
            json!({"now": array.clock().now()})
        }
        ("GET", "/settings") => json!(array.settings()),
        ("PUT", "/settings") => {
            let settings = parse("the settings", body)?;
            array.set(|own| *own = settings)?;
            Value::Null
        }
        ("POST", "/failover") => {
            array.fail_over(number(&parse("a failover", body)?, "milliseconds")?);
            Value::Null
        }
        ("POST", "/restart") => {
            array.restart()?;
            Value::Null
        }
        ("DELETE", "/sessions") => {
            array.sessions().drop_all();
            Value::Null
        }
        ("GET", "/sessions") => {
            json!({"open": array.sessions().count(), "peak": array.sessions().peak()})
        }
        ("POST", "/volume") => {
            let body: Value = parse("a volume", body)?;
            let text = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
            let mut new = NewVolume::thin(&text("pool"), number(&body, "size")?);
            new.attributes = body["attributes"].as_object().cloned().unwrap_or_default();
            array.change(|change| change.create_volume(&text("name"), new))?;
            Value::Null
        }
        ("PUT", "/content") => {
            let offset = asked(query, "offset")?.parse().map_err(not_a_number)?;
            array.write(&asked(query, "volume")?, offset, body)?;
            Value::Null
        }
        _ => return Ok(None),
    };
    Ok(Some(value))
}

fn not_a_number(_: std::num::ParseIntError) -> Refused {
    Refused::Other("offset and length are numbers".to_owned())
}

fn asked(query: &str, name: &str) -> Result<String, Refused> {
    let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    let value = pairs.find(|(key, _)| *key == name).map(|(_, value)| value);
    let value = value.ok_or_else(|| Refused::Other(format!("the query has no {name}")))?;
    Ok(percent_decode_str(value).decode_utf8_lossy().into_owned())
}

fn content(array: &Array, query: &str) -> Result<Vec<u8>, Refused> {
    let offset = asked(query, "offset")?.parse().map_err(not_a_number)?;
    let length: usize = asked(query, "length")?.parse().map_err(not_a_number)?;
    if length > MOST {
        return Err(Refused::Other(format!("length is at most {MOST}")));
    }
    Ok(array.read(&asked(query, "volume")?, offset, length)?)
}
