//! Servers of NFS: whether they answer, what they export, and what they refuse.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _};
use std::time::{Duration, Instant};

use plugin_sdk::model::Kind;
use plugin_sdk::{Cx, Error, Result};

use super::threads::{Ended, Threads};

/// Where servers listen, RFC 7530.
pub const PORT: u16 = 2049;

/// Number of the program NFS, RFC 5531.
const PROGRAM: u32 = 100_003;

/// Of a server that says nothing, or whose name is not looked up in time.
const SILENT: &str = "no answer in time";

/// Between two tries to reach a server.
const AGAIN: Duration = Duration::from_millis(200);

/// What is mounted, as `mount.nfs` wants it: `server:/path`, an IPv6 address in brackets.
pub fn source(server: &str, path: &str) -> String {
    if server.contains(':') { format!("[{server}]:{path}") } else { format!("{server}:{path}") }
}

/// Whether a server answers a request of NFS that asks for nothing, until a point in time. It is
/// tried again until then. Whatever it answers, also that it does not know this version, it is
/// there.
///
/// Errors: `unreachable` with the last reason; `config` if the name is not known.
pub async fn answers(
    cx: &Cx,
    threads: &Threads,
    server: &str,
    port: u16,
    until: Instant,
) -> Result<()> {
    let name = server.to_owned();
    let ended = threads.run(cx, until, move |cx| wait_for(cx, &name, port, until)).await?;
    match ended {
        Ended::Done(result) => result,
        Ended::Left => Err(dead(server, SILENT)),
    }
}

/// The error of a server that does not answer.
pub fn dead(server: &str, why: &str) -> Error {
    Error::new(Kind::Unreachable, format!("the NFS server {server} does not answer: {why}"))
        .legacy(108)
        .context("server", server)
        .hint("when it is back, the same command does; nothing has to be attached anew")
}

fn wait_for(cx: &Cx, server: &str, port: u16, until: Instant) -> Result<()> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let why = match ask(server, port, left) {
            Ok(()) => return Ok(()),
            Err(Failure::Name(why)) => {
                return Err(Error::config(format!("the server {server} is not known: {why}"))
                    .legacy(140)
                    .context("server", server));
            }
            Err(Failure::Silent(why)) => why,
        };
        cx.check()?;
        if Instant::now() + AGAIN >= until {
            return Err(dead(server, &why));
        }
        std::thread::sleep(AGAIN);
    }
}

enum Failure {
    Name(String),
    Silent(String),
}

fn ask(server: &str, port: u16, limit: Duration) -> std::result::Result<(), Failure> {
    let addresses: Vec<SocketAddr> = (server, port)
        .to_socket_addrs()
        .map_err(|error| Failure::Name(error.to_string()))?
        .collect();
    let count = u32::try_from(addresses.len()).unwrap_or(u32::MAX).max(1);
    // Zero would be refused as a timeout.
    let each = (limit / count).max(Duration::from_millis(1));
    let mut last = Failure::Name("it has no address".to_owned());
    for address in addresses {
        match null(&address, each) {
            Ok(()) => return Ok(()),
            Err(error) => last = Failure::Silent(reason(&error)),
        }
    }
    Err(last)
}

fn reason(error: &std::io::Error) -> String {
    use std::io::ErrorKind as Io;
    match error.kind() {
        Io::ConnectionRefused => "connection refused".to_owned(),
        // What a receive timeout is called differs.
        Io::TimedOut | Io::WouldBlock => SILENT.to_owned(),
        Io::HostUnreachable | Io::NetworkUnreachable => "no route to it".to_owned(),
        Io::UnexpectedEof | Io::ConnectionReset => "it ended the connection".to_owned(),
        _ => error.to_string(),
    }
}

/// Procedure 0 of NFS, by RPC over TCP (RFC 5531, sections 9 and 11).
fn null(address: &SocketAddr, limit: Duration) -> std::io::Result<()> {
    const ID: u32 = 0x736d_6e66;
    let begun = Instant::now();
    let mut stream = TcpStream::connect_timeout(address, limit)?;
    let left = limit.saturating_sub(begun.elapsed()).max(Duration::from_millis(1));
    stream.set_read_timeout(Some(left))?;
    stream.set_write_timeout(Some(left))?;
    // One fragment, the last, of 40 bytes; a call of RPC 2; version 4, procedure 0, no credentials.
    let words = [0x8000_0028, ID, 0, 2, PROGRAM, 4, 0, 0, 0, 0, 0];
    let call: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
    stream.write_all(&call)?;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer)?;
    let is_reply = answer[4..8] == ID.to_be_bytes() && answer[8..12] == 1_u32.to_be_bytes();
    if is_reply {
        Ok(())
    } else {
        Err(std::io::Error::other("what listens on its port does not speak RPC"))
    }
}

/// A folder that a server exports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// Its path.
    pub path: String,
    /// Whom it is exported to, as the server says it; none for everybody.
    pub clients: Vec<String>,
}

/// What a server exports, by its mount service (NFS 3). A server of NFS 4 alone has none.
///
/// Errors: `unreachable` if there is no such service.
pub async fn exports(cx: &Cx, server: &str) -> Result<Vec<Export>> {
    let output =
        cx.command("showmount").args(["--no-headers", "--exports", server]).output().await?;
    if output.status == 0 {
        return Ok(parse_exports(&output.text()));
    }
    let said = said(&output.stderr);
    Err(Error::new(
        Kind::Unreachable,
        format!("the server {server} does not tell what it exports: {said}"),
    )
    .legacy(108)
    .context("server", server)
    .hint("a server of NFS 4 alone has no service that tells it; give serverpath"))
}

/// Reads what `showmount --no-headers --exports` prints: a path, blanks, clients with commas.
pub fn parse_exports(text: &str) -> Vec<Export> {
    let line = |line: &str| {
        // A path may have blanks; clients have none, but `(everyone)` stands for them.
        let (path, clients) = line.trim_end().rsplit_once(char::is_whitespace)?;
        let clients = clients.split(',').map(str::trim).filter(|client| !client.is_empty());
        let clients: Vec<String> =
            clients.filter(|client| *client != "(everyone)").map(str::to_owned).collect();
        let path = path.trim_end().to_owned();
        path.starts_with('/').then_some(Export { path, clients })
    };
    text.lines().filter_map(line).collect()
}

/// The last line of what a program said, without its name.
fn said(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let line = text.lines().rev().map(str::trim).find(|line| !line.is_empty());
    let line = line.unwrap_or("it gave no reason");
    let words = line.strip_prefix("mount.nfs4: ").or_else(|| line.strip_prefix("mount.nfs: "));
    words.unwrap_or(line).to_owned()
}

/// What `mount.nfs` said, as a typed error. Its words are those of `utils/mount/error.c` of
/// nfs-utils.
pub fn refusal(server: &str, source: &str, stderr: &[u8]) -> Error {
    let whole = String::from_utf8_lossy(stderr);
    let is = |words: &[&str]| words.iter().any(|words| whole.contains(words));
    let said = said(stderr);
    let error = |kind, what: &str| Error::new(kind, format!("{source} cannot be mounted: {what}"));
    let typed = if is(&["rpc.statd is not running"]) {
        error(Kind::Unsupported, "rpc.statd does not run on this host, which locks of NFS 3 need")
            .legacy(73)
            .hint("start rpc-statd, or use nfsversion=4")
    } else if is(&["Failed to resolve server", "Name or service not known"]) {
        Error::config(format!("the server {server} is not known")).legacy(140)
    } else if is(&["access denied by server", "Permission denied", "Operation not permitted"]) {
        error(Kind::Auth, "the server refuses this host")
            .legacy(73)
            .hint("on the server, exportfs -v shows whom the folder is exported to")
    } else if is(&["No such file or directory", "Not a directory"]) {
        error(Kind::NotFound, "the server has no such folder for this host")
            .legacy(73)
            .hint("smctl sr probe with the server alone shows what is exported")
    } else if is(&[
        "Protocol not supported",
        "requested NFS version or transport protocol is not supported",
        "Program/version mismatch",
        "RPC: Program not registered",
    ]) {
        error(Kind::Unsupported, "the server does not have this version of NFS")
            .legacy(72)
            .hint("without nfsversion, the best that the server has is used")
    } else if is(&["incorrect mount option", "Invalid argument"]) {
        Error::config(format!("{source} cannot be mounted: an option is not accepted"))
            .legacy(73)
            .hint("what is in options is passed on to mount.nfs")
    } else if is(&["Connection timed out", "Connection refused", "No route to host", "timed out"]) {
        dead(server, &said)
    } else if is(&["Stale file handle"]) {
        error(Kind::Unreachable, "the server does not know the folder any more (stale handle)")
            .legacy(73)
    } else {
        error(Kind::Internal, &said).legacy(73)
    };
    typed.context("server", server).backend(whole.trim())
}

#[cfg(test)]
mod tests {
    use plugin_sdk::model::Kind;

    use super::{Export, parse_exports, refusal, source};

    #[test]
    fn addresses_of_six_are_in_brackets() {
        assert_eq!(source("nas", "/a"), "nas:/a");
        assert_eq!(source("fd00::1", "/a"), "[fd00::1]:/a");
    }

    #[test]
    fn exports_are_read_with_their_clients() {
        let text = "/srv/nfs          10.9.0.0/16\n/srv/with blank   10.0.0.1,*.lan\n\
            /open             (everyone)\n/star *\n\nnonsense\n";
        let export = |path: &str, clients: &[&str]| Export {
            path: path.to_owned(),
            clients: clients.iter().map(|client| (*client).to_owned()).collect(),
        };
        let all = [
            export("/srv/nfs", &["10.9.0.0/16"]),
            export("/srv/with blank", &["10.0.0.1", "*.lan"]),
            export("/open", &[]),
            export("/star", &["*"]),
        ];
        assert_eq!(parse_exports(text), all);
    }

    #[test]
    fn what_mount_says_has_a_kind() {
        let kinds = [
            ("mount.nfs: access denied by server while mounting nas:/x", Kind::Auth, 73),
            (
                "mount.nfs: mounting nas:/x failed, reason given by server: No such file or \
                 directory",
                Kind::NotFound,
                73,
            ),
            ("mount.nfs: Protocol not supported", Kind::Unsupported, 72),
            (
                "mount.nfs: requested NFS version or transport protocol is not supported for /x",
                Kind::Unsupported,
                72,
            ),
            ("mount.nfs: Connection refused for nas:/x on /y", Kind::Unreachable, 108),
            ("mount.nfs: Connection timed out", Kind::Unreachable, 108),
            (
                "mount.nfs: rpc.statd is not running but is required for remote locking.\n\
                 mount.nfs: Either use '-o nolock' to keep locks local, or start statd.",
                Kind::Unsupported,
                73,
            ),
            ("mount.nfs: Stale file handle", Kind::Unreachable, 73),
            ("mount.nfs: something else", Kind::Internal, 73),
        ];
        for (words, kind, legacy) in kinds {
            let error = refusal("nas", "nas:/x", words.as_bytes());
            assert_eq!((error.kind.clone(), error.legacy_code()), (kind, legacy), "{words}");
        }
        let error = refusal("nas", "nas:/x", b"");
        assert_eq!(error.message, "nas:/x cannot be mounted: it gave no reason");
        let config =
            refusal("nas", "nas:/x", b"mount.nfs: an incorrect mount option was specified");
        assert!(matches!(config.kind, Kind::Config { .. }));
        let name = refusal("nas", "nas:/x", b"mount.nfs: Failed to resolve server nas: unknown");
        assert_eq!(
            (name.legacy_code(), name.message.as_str()),
            (140, "the server nas is not known")
        );
    }
}
