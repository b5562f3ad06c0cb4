//! The command line over SSH: logins, the cap on sessions, and the connections' ends.

use std::io;
use std::net::{Shutdown, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use russh::keys::ssh_key::LineEnding;
use russh::keys::{Algorithm, HashAlg, PrivateKey};
use russh::server::{self, Auth, ChannelOpenHandle, Msg, Session};
use russh::{Channel, ChannelId, MethodKind, MethodSet, SshId};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::shell::{Habits, Shell};
use crate::core::Array;

/// The account that every group has, unless the settings name others, and its password when new.
const ACCOUNT: (&str, &str) = ("grpadmin", "grpadmin");

/// The command line of an array. It ends when this is dropped.
#[derive(Debug)]
pub struct CommandLine {
    /// Where it listens.
    pub address: SocketAddr,
    /// The fingerprint of its host key: `SHA256:...`.
    pub fingerprint: String,
    _tasks: JoinSet<()>,
}

/// The key of the group: kept in its folder, so that a restart is no other machine.
fn host_key(folder: &Path) -> io::Result<PrivateKey> {
    let path = folder.join("host_key");
    if let Ok(text) = std::fs::read_to_string(&path) {
        return PrivateKey::from_openssh(&text).map_err(io::Error::other);
    }
    let key = PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519).map_err(io::Error::other)?;
    let text = key.to_openssh(LineEnding::LF).map_err(io::Error::other)?;
    std::fs::write(&path, text.as_bytes())?;
    Ok(key)
}

/// Opens the command line of an array whose state is in a folder.
pub(super) async fn serve(
    listen: SocketAddr,
    array: Array,
    folder: &Path,
) -> io::Result<CommandLine> {
    let listener = TcpListener::bind(listen).await?;
    let address = listener.local_addr()?;
    let key = host_key(folder)?;
    let fingerprint = key.public_key().fingerprint(HashAlg::Sha256).to_string();
    let config = server::Config {
        server_id: SshId::Standard("SSH-2.0-OpenSSH_5.0".into()),
        methods: MethodSet::from(&[MethodKind::Password][..]),
        auth_rejection_time: Duration::from_millis(50),
        auth_rejection_time_initial: Some(Duration::ZERO),
        keys: vec![key],
        nodelay: true,
        ..server::Config::default()
    };
    let config = Arc::new(config);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            while connections.try_join_next().is_some() {}
            let (config, array) = (Arc::clone(&config), array.clone());
            connections.spawn(async move {
                // Replies are many small packets.
                let _ = stream.set_nodelay(true);
                let Ok(stream) = stream.into_std() else { return };
                let Ok(line) = stream.try_clone().map(Line) else { return };
                let Ok(stream) = tokio::net::TcpStream::from_std(stream) else { return };
                let line = Arc::new(line);
                let _guard = Guard(Arc::clone(&line));
                let connection = Connection { array, line, user: String::new(), shell: None };
                if let Ok(session) = server::run_stream(config, stream, connection).await {
                    let _ = session.await;
                }
            });
        }
    });
    Ok(CommandLine { address, fingerprint, _tasks: tasks })
}

/// The connection, to cut it: without a word, as a machine that is gone.
#[derive(Debug)]
pub(super) struct Line(std::net::TcpStream);

impl Line {
    pub(super) fn cut(&self) {
        // It may be gone already.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

/// Cuts a connection with the simulator's end: the session runs on a task of russh's own.
struct Guard(Arc<Line>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.cut();
    }
}

struct Connection {
    array: Array,
    line: Arc<Line>,
    user: String,
    shell: Option<mpsc::UnboundedSender<Vec<u8>>>,
}

impl server::Handler for Connection {
    type Error = russh::Error;

    async fn auth_password(&mut self, user: &str, password: &str) -> Result<Auth, russh::Error> {
        let settings = self.array.settings();
        let expected = match settings.vendor.get("accounts").and_then(|all| all.as_object()) {
            Some(accounts) => accounts.get(user).and_then(|password| password.as_str()),
            None => (user == ACCOUNT.0).then_some(ACCOUNT.1),
        };
        if expected == Some(password) {
            user.clone_into(&mut self.user);
            return Ok(Auth::Accept);
        }
        Ok(Auth::reject())
    }

    async fn channel_open_session(
        &mut self,
        _: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), russh::Error> {
        reply.accept().await;
        Ok(())
    }

    async fn shell_request(
        &mut self,
        id: ChannelId,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        session.channel_success(id)?;
        let (input, lines) = mpsc::unbounded_channel();
        self.shell = Some(input);
        let shell = Shell {
            array: self.array.clone(),
            habits: Habits::of(&self.array.settings()),
            output: session.handle(),
            id,
            line: Arc::clone(&self.line),
            user: self.user.clone(),
        };
        tokio::spawn(shell.run(lines));
        Ok(())
    }

    async fn data(
        &mut self,
        _: ChannelId,
        data: &[u8],
        _: &mut Session,
    ) -> Result<(), russh::Error> {
        if let Some(shell) = &self.shell {
            // A shell that has ended reads nothing.
            let _ = shell.send(data.to_vec());
        }
        Ok(())
    }

    async fn channel_close(&mut self, _: ChannelId, _: &mut Session) -> Result<(), russh::Error> {
        self.shell = None;
        Ok(())
    }
}
