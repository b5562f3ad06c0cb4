//! The process's side of the control socket: who may speak, and lines.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::Value;

use super::protocol::{
    Command, Failure, FailureKind, LONGEST_LINE, Outcome, Reply, Request, VERSION,
};

/// Connections at the same time: a control plane, a second one that takes over, and people.
const MOST_CONNECTIONS: usize = 32;

/// How long an answer may take to be taken.
const PATIENCE: Duration = Duration::from_secs(10);

/// Does what is said on the connections.
pub(crate) trait Handler: Send + Sync + 'static {
    /// Does a command that came on a connection. `end` of the answer: nothing comes after it.
    fn handle(&self, connection: u64, command: Command) -> Result<Value, Failure>;

    /// A connection has ended, by whatever reason.
    fn gone(&self, connection: u64);

    /// The answer to [`Command::End`] is on its way.
    fn ended(&self);
}

/// Serves connections until the process ends; a thread for each.
pub(crate) fn serve(listener: &UnixListener, handler: &Arc<dyn Handler>) {
    let next = AtomicU64::new(1);
    let count = Arc::new(AtomicUsize::new(0));
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Descriptors or memory are short; they come back.
                tracing::warn!(%error, "no connection on the control socket");
                std::thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        if !is_ours(&stream) || count.load(Ordering::SeqCst) >= MOST_CONNECTIONS {
            continue;
        }
        let id = next.fetch_add(1, Ordering::SeqCst);
        let handler = Arc::clone(handler);
        count.fetch_add(1, Ordering::SeqCst);
        let counted = Arc::clone(&count);
        let thread = std::thread::Builder::new()
            .name(format!("control-{id}"))
            .stack_size(256 << 10)
            .spawn(move || {
                talk(stream, id, handler.as_ref());
                handler.gone(id);
                counted.fetch_sub(1, Ordering::SeqCst);
            });
        if thread.is_err() {
            count.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

/// Root, and the user this process runs as.
fn is_ours(stream: &UnixStream) -> bool {
    let own = rustix::process::geteuid();
    rustix::net::sockopt::socket_peercred(stream)
        .is_ok_and(|peer| peer.uid.is_root() || peer.uid == own)
}

fn talk(stream: UnixStream, id: u64, handler: &dyn Handler) {
    let _ = stream.set_write_timeout(Some(PATIENCE));
    let mut stream = BufReader::new(stream);
    loop {
        let mut line = Vec::new();
        match stream.by_ref().take(LONGEST_LINE as u64).read_until(b'\n', &mut line) {
            Ok(_) if line.last() == Some(&b'\n') => {}
            // The end, or a line that is too long to be one of ours.
            _ => return,
        }
        let (reply, ends) = answer(&line, id, handler);
        let Ok(mut text) = serde_json::to_vec(&reply) else { return };
        text.push(b'\n');
        let written = stream.get_mut().write_all(&text);
        if ends {
            handler.ended();
        }
        if written.is_err() {
            return;
        }
    }
}

/// The answer to a line, and whether it is the last one.
fn answer(line: &[u8], connection: u64, handler: &dyn Handler) -> (Reply, bool) {
    let request: Request = match serde_json::from_slice(line) {
        Ok(request) => request,
        Err(error) => {
            let failure = Failure::new(FailureKind::Malformed, format!("no request: {error}"));
            // The number is told if that much can be read.
            let value: Value = serde_json::from_slice(line).unwrap_or_default();
            let id = value.get("id").and_then(Value::as_u64).unwrap_or(0);
            return (Reply { id, outcome: Outcome::Error(failure) }, false);
        }
    };
    let id = request.id;
    let ends = request.command == Command::End;
    let done = if request.version == VERSION {
        handler.handle(connection, request.command)
    } else {
        let text = format!("this is version {VERSION} of the protocol, not {}", request.version);
        Err(Failure::new(FailureKind::Malformed, text))
    };
    match done {
        Ok(value) => (Reply { id, outcome: Outcome::Done(value) }, ends),
        Err(failure) => (Reply { id, outcome: Outcome::Error(failure) }, false),
    }
}
