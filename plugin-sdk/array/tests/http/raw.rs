//! Servers that say exactly these bytes.

use std::time::Duration;

use array_kit::http::{Request, Trust};
use array_kit::outcome::Class;
use plugin_sdk::tokio;
use plugin_sdk::tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use plugin_sdk::tokio::net::TcpListener;

use crate::{client, plain, with_cx};

const LIMIT: Duration = Duration::from_secs(20);

/// A server that reads one request per connection, says `answer`, and closes. Counts requests.
async fn server(answer: Vec<u8>) -> (String, tokio::sync::mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let (heard, requests) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = Vec::new();
            let mut piece = [0; 4096];
            while !request.windows(4).any(|end| end == b"\r\n\r\n") {
                match stream.read(&mut piece).await {
                    Ok(0) | Err(_) => break,
                    Ok(n) => request.extend_from_slice(&piece[..n]),
                }
            }
            let _ = heard.send(String::from_utf8_lossy(&request).into_owned());
            let _ = stream.write_all(&answer).await;
            let _ = stream.shutdown().await;
        }
    });
    (base, requests)
}

async fn classes(cx: &plugin_sdk::Cx, answer: &[u8]) -> (Class, Class, String) {
    let (base, _requests) = server(answer.to_vec()).await;
    let client = plain(&base);
    let reads = client.send(cx, &Request::get("get", "/v")).await.map(|_| ()).unwrap_err();
    let changes = Request::post("create", "/v").json(&1);
    let changes = client.send(cx, &changes).await.map(|_| ()).unwrap_err();
    (reads.class, changes.class, changes.to_string())
}

/// A request whose answer did not arrive whole may have been done; one that reads is repeated.
#[test]
fn an_answer_that_is_cut_is_unknown() {
    with_cx(LIMIT, |cx| async move {
        let half = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"id\":";
        let (reads, changes, text) = classes(&cx, half).await;
        assert_eq!((reads, changes), (Class::Unreachable, Class::Unknown));
        assert_eq!(
            text,
            "the connection ended in the middle of the answer to POST /v, after 6 bytes with \
             status 200"
        );
        for cut in [&b""[..], b"HTTP/1.1 2", b"garbage\r\n\r\n"] {
            let (reads, changes, text) = classes(&cx, cut).await;
            assert_eq!((reads, changes), (Class::Unreachable, Class::Unknown), "{text}");
            assert!(
                text.starts_with("the connection ended before the answer to POST /v"),
                "{text}"
            );
        }
        Ok(())
    });
}

#[test]
fn an_endless_answer_is_cut_at_the_limit() {
    with_cx(LIMIT, |cx| async move {
        let mut long = b"HTTP/1.1 200 OK\r\nContent-Length: 2000000\r\n\r\n".to_vec();
        long.resize(2_000_100, b'x');
        let (reads, changes, text) = classes(&cx, &long).await;
        assert_eq!((reads, changes), (Class::Garbled, Class::Unknown));
        assert_eq!(text, "the answer to POST /v is longer than 1048576 bytes");
        Ok(())
    });
}

/// A server that accepts and says nothing: the read deadline, not the call's.
#[test]
fn silence_ends_at_the_read_deadline() {
    with_cx(LIMIT, |cx| async move {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = plain(&format!("http://{}", listener.local_addr().unwrap()));
        let failure =
            client.send(&cx, &Request::post("create", "/v")).await.map(|_| ()).unwrap_err();
        assert_eq!(failure.class, Class::Unknown);
        assert_eq!(failure.to_string(), "no whole answer to POST /v in time");
        drop(listener);
        Ok(())
    });
}

#[test]
fn nobody_there_is_certainly_not_done() {
    with_cx(LIMIT, |cx| async move {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        drop(listener);
        let request = Request::post("create", "/v");
        let failure = plain(&base).send(&cx, &request).await.map(|_| ()).unwrap_err();
        assert_eq!(failure.class, Class::Unreachable);
        assert!(failure.to_string().starts_with(&format!("the array at {base} cannot be reached")));
        Ok(())
    });
}

/// Our credentials stay with the address that was configured.
#[test]
fn a_redirect_elsewhere_is_not_followed() {
    with_cx(LIMIT, |cx| async move {
        let (elsewhere, mut requests) =
            server(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1".to_vec()).await;
        let answer =
            format!("HTTP/1.1 302 Found\r\nLocation: {elsewhere}/v\r\nContent-Length: 0\r\n\r\n");
        let (base, _own) = server(answer.into_bytes()).await;
        let get = Request::get("get", "/v").header("x-auth-token", "t");
        let failure = plain(&base).send(&cx, &get).await.map(|_| ()).unwrap_err();
        assert_eq!(failure.class, Class::Garbled);
        assert_eq!(failure.to_string(), "GET /v is redirected to 127.0.0.1");
        assert!(requests.try_recv().is_err(), "nobody asked there");
        Ok(())
    });
}

/// A change is never turned into a GET elsewhere on the same array either.
#[test]
fn a_change_is_not_redirected_and_a_read_is() {
    with_cx(LIMIT, |cx| async move {
        let answer = b"HTTP/1.1 301 Moved\r\nLocation: /new?a=1\r\nContent-Length: 0\r\n\r\n";
        let (base, mut requests) = server(answer.to_vec()).await;
        let failure =
            plain(&base).send(&cx, &Request::post("create", "/v")).await.map(|_| ()).unwrap_err();
        assert_eq!(failure.class, Class::Unknown);
        assert!(requests.recv().await.unwrap().starts_with("POST /v HTTP/1.1"));
        let failure =
            plain(&base).send(&cx, &Request::get("get", "/v")).await.map(|_| ()).unwrap_err();
        assert_eq!(failure.to_string(), "GET /v is redirected in a circle");
        assert!(requests.recv().await.unwrap().starts_with("GET /v HTTP/1.1"));
        assert!(requests.recv().await.unwrap().starts_with("GET /new?a=1 HTTP/1.1"));
        Ok(())
    });
}

/// TrueNAS ids hold slashes: what is encoded arrives encoded.
#[test]
fn an_encoded_segment_stays_encoded() {
    with_cx(LIMIT, |cx| async move {
        let (base, mut requests) =
            server(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}".to_vec()).await;
        let request = Request::put("resize", "/api/v2.0/pool/dataset/id")
            .segment("tank/sr/a b@c%2F")
            .then("/promote")
            .query("name", "eq.a&b=c#d");
        plain(&base).send(&cx, &request).await.map_err(plugin_sdk::Error::from)?;
        let line = requests.recv().await.unwrap();
        assert!(
            line.starts_with(
                "PUT /api/v2.0/pool/dataset/id/tank%2Fsr%2Fa%20b%40c%252F/promote\
                 ?name=eq.a%26b%3Dc%23d HTTP/1.1\r\n"
            ),
            "{line}"
        );
        for wrong in ["", ".", ".."] {
            let request = Request::get("get", "/v").segment(wrong);
            let failure = plain(&base).send(&cx, &request).await.map(|_| ()).unwrap_err();
            assert_eq!(failure.class, Class::Invalid);
        }
        let request = Request::get("get", "/v/../secret");
        let failure = plain(&base).send(&cx, &request).await.map(|_| ()).unwrap_err();
        assert_eq!(failure.to_string(), "the path of the request would be changed on its way");
        assert!(requests.try_recv().is_err());
        Ok(())
    });
}

#[test]
fn an_address_that_is_none_is_refused() {
    for wrong in ["", "10.0.0.1", "ftp://a", "https://user:pw@a", "https://a/api", "https://a?b"] {
        let trust = Trust::Fingerprint("00".repeat(32));
        let error = array_kit::http::Client::new(
            wrong,
            &trust,
            array_kit::http::Limits::default(),
            array_kit::recorder::Recorder::default(),
        )
        .unwrap_err();
        assert_eq!(
            error.message, "the address of the array's API is no URL such as https://10.0.0.1:443",
            "{wrong}"
        );
    }
    drop(client("https://[::1]:8443/", &Trust::Fingerprint("00".repeat(32))));
}
