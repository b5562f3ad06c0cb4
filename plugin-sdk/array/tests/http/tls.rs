//! Certificates that must not be trusted, each refused by name.

use std::sync::Arc;
use std::time::Duration;

use array_kit::classify::{Fault, Table};
use array_kit::http::{Limits, Request, Trust};
use array_kit::outcome::{Class, Outcome};
use array_kit::recorder::Recorder;
use array_kit::rpc::{Line, Peer, Rpc};
use plugin_sdk::tokio;
use plugin_sdk::tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use plugin_sdk::tokio::net::TcpListener;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest as _, Sha256};
use tokio_rustls::TlsAcceptor;

use crate::{client, with_cx};

struct Array {
    base: String,
    fingerprint: String,
}

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Authority {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// A server with a certificate for `name`, which ends in year `until`.
async fn array(authority: &Authority, name: &str, until: i32) -> Array {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.not_before = date_time_ymd(2000, 1, 1);
    params.not_after = date_time_ymd(until, 1, 1);
    let certificate: CertificateDer<'static> = params.signed_by(&key, authority).unwrap().into();
    let fingerprint: Vec<String> =
        Sha256::digest(&certificate).iter().map(|byte| format!("{byte:02X}")).collect();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("https://{}", listener.local_addr().unwrap());
    let acceptor = TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let mut request = [0; 4096];
                let _ = stream.read(&mut request).await;
                let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ntrue";
                let _ = stream.write_all(answer).await;
                let _ = stream.shutdown().await;
            });
        }
    });
    Array { base, fingerprint: fingerprint.join(":") }
}

async fn ask(cx: &plugin_sdk::Cx, array: &Array, trust: &Trust) -> Result<bool, String> {
    let client = client(&array.base, trust);
    match client.send(cx, &Request::post("create", "/v").json(&1)).await {
        Ok(reply) => Ok(reply.json().unwrap()),
        Err(failure) => {
            // It never left: a change may be repeated.
            assert_eq!(failure.class, Class::Unreachable);
            assert!(failure.hint.is_some());
            let text = failure.to_string();
            Err(text.replace(&array.base, "BASE"))
        }
    }
}

#[test]
fn each_flaw_of_a_certificate_is_named() {
    with_cx(Duration::from_secs(30), |cx| async move {
        let (own, other) = (authority(), authority());
        let trust = Trust::Authority(own.pem());
        let good = array(&own, "127.0.0.1", 2090).await;
        assert_eq!(ask(&cx, &good, &trust).await, Ok(true));

        let said = |text: &str| Err(format!("the array at BASE is not trusted: {text}"));
        assert_eq!(
            ask(&cx, &good, &Trust::Authority(other.pem())).await,
            said("its certificate is signed by an authority that is not trusted")
        );
        assert_eq!(
            ask(&cx, &array(&own, "127.0.0.1", 2010).await, &trust).await,
            said("its certificate has expired")
        );
        assert_eq!(
            ask(&cx, &array(&own, "array.example", 2090).await, &trust).await,
            said("its certificate is for another host name")
        );
        Ok(())
    });
}

#[test]
fn a_pinned_certificate_is_trusted_and_no_other() {
    with_cx(Duration::from_secs(30), |cx| async move {
        let own = authority();
        // As arrays come from the factory: a name of its own, and long expired.
        let array_ = array(&own, "array.example", 2010).await;
        let pinned = Trust::Fingerprint(array_.fingerprint.clone());
        assert_eq!(ask(&cx, &array_, &pinned).await, Ok(true));
        let other = array(&own, "127.0.0.1", 2090).await;
        let seen = other.fingerprint.replace(':', "").to_lowercase();
        assert_eq!(
            ask(&cx, &other, &pinned).await,
            Err(format!(
                "the array at BASE is not trusted: its certificate has another fingerprint: \
                 SHA-256 {seen}"
            ))
        );
        Ok(())
    });
}

/// The same trust holds for WebSockets: the pin, and nothing else.
#[test]
fn a_websocket_trusts_whom_http_trusts() {
    struct Nobody;
    impl Peer for Nobody {
        const TABLE: Table = Table::new(&[]);

        fn fault(&self, _: &serde_json::Value) -> Fault {
            Fault::default()
        }

        async fn login(&self, _: &Line<'_, Self>) -> Outcome<()> {
            Ok(())
        }
    }
    with_cx(Duration::from_secs(30), |cx| async move {
        let own = authority();
        let array = array(&own, "array.example", 2010).await;
        let connect = async |trust: Trust| {
            let (limits, log) = (Limits::default(), Recorder::default());
            let rpc = Rpc::new(Nobody, &array.base, "/api", &trust, limits, log).unwrap();
            rpc.connect(&cx.within(Duration::from_millis(200))).await.unwrap_err()
        };
        // It is trusted, and speaks no WebSocket.
        let spoken = connect(Trust::Fingerprint(array.fingerprint.clone())).await;
        assert_eq!((spoken.class, spoken.status), (Class::Unsupported, Some(200)));
        let other = connect(Trust::Fingerprint("00".repeat(32))).await;
        assert_eq!(other.class, Class::Unreachable);
        assert!(other.to_string().contains("its certificate has another fingerprint"), "{other}");
        let expired = connect(Trust::Authority(own.pem())).await;
        assert!(expired.to_string().contains("its certificate has expired"), "{expired}");
        Ok(())
    });
}

#[test]
fn a_port_without_tls_is_named() {
    with_cx(Duration::from_secs(30), |cx| async move {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("https://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
            }
        });
        let array = Array { base, fingerprint: String::new() };
        let error = ask(&cx, &array, &Trust::Authority(authority().pem())).await.unwrap_err();
        assert!(error.starts_with("the array at BASE is not trusted: TLS fails: "), "{error}");
        Ok(())
    });
}
