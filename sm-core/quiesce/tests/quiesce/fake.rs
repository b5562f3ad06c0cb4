//! A guest agent that does what a test says.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// What the fake does instead of answering as an agent.
#[derive(Clone, Debug)]
pub(crate) enum Say {
    /// This answer.
    Return(Value),
    /// This error, by class and words.
    Error(&'static str, &'static str),
    /// These bytes.
    Raw(&'static [u8]),
    /// Nothing.
    Nothing,
    /// The end of the connection.
    HangUp,
}

/// What is known of the guest.
#[derive(Debug, Default)]
pub(crate) struct Guest {
    pub(crate) frozen: u64,
    /// The commands that came, without `guest-sync-delimited`.
    pub(crate) log: Vec<String>,
    /// Answers in place of the usual ones, by command; each once.
    pub(crate) instead: Vec<(&'static str, Say)>,
    /// Written to each client that connects, before anything else.
    pub(crate) greeting: Vec<u8>,
}

/// An agent at a socket; one client at a time, as the real one.
#[derive(Clone)]
pub(crate) struct Fake {
    shared: Arc<(Mutex<Guest>, Condvar)>,
    pub(crate) socket: PathBuf,
}

impl Fake {
    pub(crate) fn new(folder: &Path) -> Self {
        let socket = folder.join("agent");
        let fake = Self { shared: Arc::default(), socket: socket.clone() };
        let listener = UnixListener::bind(&socket).unwrap();
        let agent = fake.clone();
        // Ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let _ = agent.serve(stream.unwrap());
            }
        });
        fake
    }

    pub(crate) fn guest(&self) -> MutexGuard<'_, Guest> {
        self.shared.0.lock().unwrap()
    }

    pub(crate) fn instead(&self, command: &'static str, say: Say) {
        self.guest().instead.push((command, say));
    }

    pub(crate) fn log(&self) -> Vec<String> {
        self.guest().log.clone()
    }

    /// Waits until the guest is as wanted.
    pub(crate) fn wait(&self, what: &str, wanted: impl Fn(&Guest) -> bool) {
        let until = Instant::now() + Duration::from_secs(20);
        let mut guest = self.guest();
        while !wanted(&guest) {
            let left = until.saturating_duration_since(Instant::now());
            assert!(left > Duration::ZERO, "{what}: {guest:?}");
            guest = self.shared.1.wait_timeout(guest, left).unwrap().0;
        }
    }

    fn serve(&self, mut stream: UnixStream) -> std::io::Result<()> {
        let greeting = self.guest().greeting.clone();
        stream.write_all(&greeting)?;
        let mut line = Vec::new();
        let mut byte = [0; 1];
        while stream.read(&mut byte)? == 1 {
            match byte[0] {
                0xff => line.clear(),
                b'\n' => {
                    let Ok(question) = serde_json::from_slice::<Value>(&line) else {
                        line.clear();
                        stream.write_all(b"{\"error\": {\"class\": \"GenericError\"}}\n")?;
                        continue;
                    };
                    line.clear();
                    if !self.answer(&mut stream, &question)? {
                        return Ok(());
                    }
                }
                other => line.push(other),
            }
        }
        Ok(())
    }

    fn answer(&self, stream: &mut UnixStream, question: &Value) -> std::io::Result<bool> {
        let command = question["execute"].as_str().unwrap().to_owned();
        let mut guest = self.guest();
        if command == "guest-sync-delimited" {
            let mut bytes = vec![0xff];
            let id = &question["arguments"]["id"];
            bytes.extend(json!({"return": id}).to_string().into_bytes());
            bytes.push(b'\n');
            stream.write_all(&bytes)?;
            return Ok(true);
        }
        guest.log.push(command.clone());
        let found = guest.instead.iter().position(|(name, _)| *name == command);
        let say = match found {
            Some(at) => guest.instead.remove(at).1,
            None => Self::usual(&mut guest, &command, question),
        };
        if command == "guest-fsfreeze-thaw" {
            guest.frozen = 0;
        }
        drop(guest);
        self.shared.1.notify_all();
        let answer = match say {
            Say::Return(value) => json!({"return": value}).to_string().into_bytes(),
            Say::Error(class, desc) => {
                json!({"error": {"class": class, "desc": desc}}).to_string().into_bytes()
            }
            Say::Raw(bytes) => {
                stream.write_all(bytes)?;
                return Ok(true);
            }
            Say::Nothing => return Ok(true),
            Say::HangUp => return Ok(false),
        };
        stream.write_all(&answer)?;
        stream.write_all(b"\n")?;
        Ok(true)
    }

    fn usual(guest: &mut Guest, command: &str, question: &Value) -> Say {
        let known = ["/", "/data"];
        match command {
            "guest-fsfreeze-status" => {
                Say::Return(json!(if guest.frozen > 0 { "frozen" } else { "thawed" }))
            }
            "guest-get-osinfo" => Say::Return(json!({"id": "debian", "pretty-name": "Debian 12"})),
            "guest-get-fsinfo" => {
                Say::Return(known.iter().map(|mount| json!({"mountpoint": mount})).collect())
            }
            "guest-fsfreeze-freeze" => {
                guest.frozen = known.len() as u64;
                Say::Return(json!(guest.frozen))
            }
            "guest-fsfreeze-freeze-list" => {
                let asked = question["arguments"]["mountpoints"].as_array().unwrap();
                let is_known = |mount: &&Value| known.iter().any(|it| **mount == *it);
                guest.frozen = asked.iter().filter(is_known).count() as u64;
                Say::Return(json!(guest.frozen))
            }
            "guest-fsfreeze-thaw" => Say::Return(json!(guest.frozen)),
            _ => Say::Error("CommandNotFound", "The command has not been found"),
        }
    }
}
