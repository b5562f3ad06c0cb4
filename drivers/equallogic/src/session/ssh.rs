//! A connection over SSH.

use std::borrow::Cow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use array_kit::outcome::{Class, Failure, Outcome};
use plugin_sdk::tokio::net::TcpStream;
use plugin_sdk::tokio::time::timeout;
use plugin_sdk::{Cx, Secret};
use russh::client::{self, AuthResult, Handle, KeyboardInteractiveAuthResponse, Msg};
use russh::keys::HashAlg;
use russh::keys::PublicKeyOrCertificate;
use russh::{Channel, Preferred, cipher, kex, mac};

/// How long a connection, and then a login, may take.
const CONNECT: Duration = Duration::from_secs(10);
/// See [`CONNECT`].
const LOGIN: Duration = Duration::from_secs(20);

/// Which key the array must show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostKey {
    /// The one with this fingerprint, as `ssh-keygen -l` prints it: `SHA256:...`.
    Is(String),
    /// Whichever comes; the caller keeps it.
    Any,
    /// None: the connection ends once the key is known.
    Unknown,
}

/// How an array is reached.
#[derive(Clone, Debug)]
pub struct Address {
    /// Name or address.
    pub host: String,
    /// The port of SSH.
    pub port: u16,
    /// The account.
    pub user: String,
    /// Its password.
    pub password: Secret,
    /// Whether algorithms that are thought weak today may be used.
    pub old_algorithms: bool,
}

/// A connection that is logged in.
pub struct Connection {
    handle: Handle<Keeper>,
    /// The fingerprint of the array's key.
    pub fingerprint: String,
}

/// Looks at the array's key.
pub struct Keeper {
    expected: HostKey,
    seen: Arc<Mutex<Option<String>>>,
}

impl client::Handler for Keeper {
    type Error = russh::Error;

    async fn check_server_key(
        &mut self,
        key: &PublicKeyOrCertificate,
    ) -> Result<bool, russh::Error> {
        let PublicKeyOrCertificate::PublicKey { key, .. } = key else { return Ok(false) };
        let fingerprint = key.fingerprint(HashAlg::Sha256).to_string();
        let fits = match &self.expected {
            HostKey::Is(expected) => same(expected, &fingerprint),
            HostKey::Any => true,
            HostKey::Unknown => false,
        };
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(fingerprint);
        Ok(fits)
    }
}

/// Whether two fingerprints are the same; the padding and the name of the hash may be left out.
fn same(a: &str, b: &str) -> bool {
    let plain = |text: &str| {
        let text = text.trim();
        let text = text.strip_prefix("SHA256:").unwrap_or(text);
        text.trim_end_matches('=').to_owned()
    };
    plain(a) == plain(b)
}

/// What is offered to the array. Group Manager's releases are of 2001 to 2018; the old ones know
/// nothing newer than SHA-1.
fn preferred(old: bool) -> Preferred {
    let mut preferred = Preferred::default();
    if old {
        let extend = |names: &[kex::Name], more: &[kex::Name]| [names, more].concat();
        preferred.kex = Cow::Owned(extend(
            &preferred.kex,
            &[kex::DH_G14_SHA1, kex::DH_GEX_SHA1, kex::DH_G1_SHA1],
        ));
        preferred.cipher = Cow::Owned(
            [&preferred.cipher[..], &[cipher::AES_256_CBC, cipher::AES_128_CBC]].concat(),
        );
        preferred.mac = Cow::Owned([&preferred.mac[..], &[mac::HMAC_SHA1]].concat());
    } else {
        // RSA with SHA-1, which russh offers last.
        let keys = preferred.key.iter().filter(|key| key.to_string() != "ssh-rsa").cloned();
        preferred.key = Cow::Owned(keys.collect());
    }
    preferred
}

/// The failure for who cannot be reached: SMAPI's 171.
fn unreachable(fact: String) -> Failure {
    Failure::new(Class::Unreachable).fact(fact).legacy(171)
}

/// The failure for a password that is not accepted: SMAPI's 169.
fn denied(user: &str) -> Failure {
    Failure::new(Class::Denied)
        .fact(format!("the array does not accept the password of {user:?}"))
        .hint("correct username and password; they are not tried again, so that nothing is locked")
        .legacy(169)
}

impl Connection {
    /// Connects and logs in.
    pub async fn open(cx: &Cx, address: &Address, key: &HostKey) -> Outcome<Self> {
        let place = format!("{}:{}", address.host, address.port);
        let tcp = TcpStream::connect((address.host.as_str(), address.port));
        let tcp = match timeout(CONNECT.min(cx.remaining()), tcp).await {
            Ok(Ok(tcp)) => tcp,
            Ok(Err(error)) => {
                return Err(unreachable(format!("no connection to {place}: {error}"))
                    .hint("look at target and port, and whether the group is up"));
            }
            Err(_) => {
                cx.check()?;
                return Err(unreachable(format!("{place} does not answer"))
                    .hint("look at target and port, and at firewalls in between"));
            }
        };
        let config = client::Config {
            preferred: preferred(address.old_algorithms),
            keepalive_interval: Some(Duration::from_secs(15)),
            nodelay: true,
            ..client::Config::default()
        };
        let seen = Arc::new(Mutex::new(None));
        let keeper = Keeper { expected: key.clone(), seen: Arc::clone(&seen) };
        let _ = tcp.set_nodelay(true);
        let handshake = client::connect_stream(Arc::new(config), tcp, keeper);
        let handshake = timeout(LOGIN.min(cx.remaining()), handshake).await;
        let fingerprint = seen.lock().unwrap_or_else(PoisonError::into_inner).take();
        let mut handle = match handshake {
            Ok(Ok(handle)) => handle,
            Ok(Err(russh::Error::UnknownKey)) => {
                return Err(wrong_key(
                    &place,
                    key,
                    fingerprint.as_deref().unwrap_or("of no known form"),
                ));
            }
            Ok(Err(error @ russh::Error::NoCommonAlgo { .. })) => {
                return Err(Failure::new(Class::Unsupported)
                    .fact(format!("{place} speaks SSH with old algorithms only"))
                    .words(error.to_string())
                    .hint("set old-ssh=true, on a network that is trusted")
                    .legacy(170));
            }
            Ok(Err(error)) => {
                return Err(unreachable(format!("{place} ends the connection at the handshake"))
                    .words(error.to_string()));
            }
            Err(_) => {
                cx.check()?;
                return Err(unreachable(format!("{place} is silent at the handshake")));
            }
        };
        let fingerprint = fingerprint.unwrap_or_default();
        match timeout(LOGIN.min(cx.remaining()), log_in(&mut handle, address)).await {
            Ok(Ok(true)) => Ok(Self { handle, fingerprint }),
            Ok(Ok(false)) => Err(denied(&address.user)),
            Ok(Err(error)) => Err(unreachable(format!("{place} ends the connection at the login"))
                .words(error.to_string())),
            Err(_) => {
                cx.check()?;
                Err(unreachable(format!("{place} is silent at the login")))
            }
        }
    }

    /// A shell on it, without a terminal. [`Class::Busy`] with SMAPI's 164 if there are too many.
    pub async fn shell(&self, cx: &Cx) -> Outcome<Channel<Msg>> {
        let open = async {
            let channel = self.handle.channel_open_session().await?;
            channel.request_shell(true).await?;
            Ok::<_, russh::Error>(channel)
        };
        match timeout(LOGIN.min(cx.remaining()), open).await {
            Ok(Ok(channel)) => Ok(channel),
            Ok(Err(russh::Error::ChannelOpenFailure(_))) => Err(too_many()),
            Ok(Err(error)) => {
                Err(unreachable("the array opens no shell".to_owned()).words(error.to_string()))
            }
            Err(_) => {
                cx.check()?;
                Err(unreachable("the array opens no shell, and is silent".to_owned()))
            }
        }
    }

    /// Ends it, and waits until the array knows.
    pub async fn close(self) {
        let reason = russh::Disconnect::ByApplication;
        let ended = async {
            let _ = self.handle.disconnect(reason, "", "").await;
            let _ = self.handle.await;
        };
        let _ = timeout(Duration::from_secs(2), ended).await;
    }

    /// Whether it has ended.
    pub fn is_closed(&self) -> bool {
        self.handle.is_closed()
    }
}

/// All sessions that the array allows are taken.
pub fn too_many() -> Failure {
    Failure::new(Class::Busy)
        .fact("the array allows no more command-line sessions")
        .hint("seven is usual; end sessions of other hosts and of people")
        .legacy(164)
}

fn wrong_key(place: &str, expected: &HostKey, seen: &str) -> Failure {
    let failure = Failure::new(Class::Denied).there("fingerprint", seen);
    match expected {
        HostKey::Is(_) => failure
            .fact(format!("{place} shows the host key {seen}, not the one of the device configuration"))
            .hint("it may be another machine: compare with the array, then set host-key-fingerprint"),
        _ => failure.fact(format!("the host key of {place}, {seen}, is not known")).hint(
            "compare it with the array and set host-key-fingerprint, or set host-key-policy=first-use",
        ),
    }
}

/// By password, or by a question for it.
async fn log_in(handle: &mut Handle<Keeper>, address: &Address) -> Result<bool, russh::Error> {
    let (user, password) = (address.user.as_str(), &address.password);
    let methods = match handle.authenticate_password(user, password.reveal()).await? {
        AuthResult::Success => return Ok(true),
        AuthResult::Failure { remaining_methods, .. } => remaining_methods,
    };
    if !methods.contains(&russh::MethodKind::KeyboardInteractive) {
        return Ok(false);
    }
    let mut answer = handle.authenticate_keyboard_interactive_start(user, None).await?;
    for _ in 0..3 {
        let KeyboardInteractiveAuthResponse::InfoRequest { prompts, .. } = &answer else { break };
        let answers = prompts.iter().map(|_| password.reveal().to_owned()).collect();
        answer = handle.authenticate_keyboard_interactive_respond(answers).await?;
    }
    Ok(matches!(answer, KeyboardInteractiveAuthResponse::Success))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints_are_compared_as_people_write_them() {
        let one = "SHA256:uNiVztksCsDhcc0u9e8BrzUXi4L4QJFH2MGFQZVJZWk";
        assert!(same(one, one) && same(&one[7..], one));
        assert!(same(&format!(" {one}= "), one));
        assert!(!same(&one[..20], one) && !same("", one));
    }

    #[test]
    fn old_algorithms_are_offered_on_request_only() {
        let weak = |preferred: &Preferred| {
            preferred.kex.iter().any(|name| name.as_ref().ends_with("sha1"))
                || preferred.key.iter().any(|key| key.to_string() == "ssh-rsa")
                || preferred.mac.iter().any(|name| name.as_ref().contains("sha1"))
        };
        assert!(!weak(&preferred(false)));
        assert!(weak(&preferred(true)));
    }
}
