//! A `qemu-storage-daemon` that is told what to do while it serves.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::images::Kind;
use crate::peers::{Cache, EXPORT, Served, blockdev, uri};
use crate::process::{Server, until};
use crate::{Result, Setting};

/// Time for a command to be answered.
const ANSWER: Duration = Duration::from_secs(30);

pub(crate) struct Daemon {
    pub(crate) served: Served,
    stream: BufReader<UnixStream>,
    /// Events that have come and that nobody has asked for yet.
    events: Vec<String>,
}

impl Daemon {
    /// Serves an image as the node `disk`.
    pub(crate) fn start(setting: &Setting, image: &Path, kind: Kind) -> Result<Self> {
        let (socket, control) = (setting.memory.join("socket"), setting.memory.join("qmp"));
        for path in [&socket, &control] {
            let _ = std::fs::remove_file(path);
        }
        let mut command = setting.scheduling.command("qemu-storage-daemon");
        command.args(["--object", "iothread,id=thread", "--chardev"]);
        command.arg(format!("socket,id=qmp,server=on,wait=off,path={}", control.display()));
        command.args(["--monitor", "chardev=qmp", "--blockdev"]);
        command.arg(blockdev("file", image, Cache::Page)).arg("--blockdev");
        command.arg(format!("driver={},node-name=disk,file=file", kind.qemu()));
        command.arg("--nbd-server");
        command.arg(format!("addr.type=unix,addr.path={}", socket.display()));
        command.args(["--export", EXPORT]);
        let server = Server::start(&mut command, &socket)?;
        let stream = UnixStream::connect(&control)?;
        stream.set_read_timeout(Some(ANSWER))?;
        let served = Served { server, uri: uri("disk", &socket) };
        let mut daemon = Self { served, stream: BufReader::new(stream), events: Vec::new() };
        daemon.line()?;
        daemon.tell("qmp_capabilities", &json!({}))?;
        Ok(daemon)
    }

    /// A command, and its answer.
    pub(crate) fn tell(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let line = json!({ "execute": command, "arguments": arguments });
        writeln!(self.stream.get_mut(), "{line}")?;
        loop {
            let answer = self.line()?;
            if let Some(error) = answer.get("error") {
                return Err(format!("qemu-storage-daemon: {command}: {error}").into());
            }
            if let Some(value) = answer.get("return") {
                return Ok(value.clone());
            }
        }
    }

    /// Waits for an event of a job; false when it has not come by the deadline.
    pub(crate) fn event(&mut self, name: &str, deadline: Duration) -> Result<bool> {
        let end = Instant::now() + deadline;
        while !self.events.iter().any(|event| event == name) {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            self.stream.get_ref().set_read_timeout(Some(left))?;
            let came = self.line();
            self.stream.get_ref().set_read_timeout(Some(ANSWER))?;
            match came {
                Err(error) if is_late(error.as_ref()) => return Ok(false),
                other => drop(other?),
            }
        }
        self.events.retain(|event| event != name);
        Ok(true)
    }

    /// The next line; an event is noted.
    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err("qemu-storage-daemon has closed its monitor".into());
        }
        let value: Value = serde_json::from_str(&line)?;
        if let Some(event) = value.get("event").and_then(Value::as_str) {
            self.events.push(event.to_owned());
        }
        Ok(value)
    }

    /// Adds an image of which the nodes below are not opened.
    pub(crate) fn add(&mut self, node: &str, image: &Path) -> Result<()> {
        let file = json!({ "driver": "file", "filename": image });
        let node = json!({ "driver": "qcow2", "node-name": node, "file": file, "backing": null });
        self.tell("blockdev-add", &node).map(drop)
    }

    /// Completes the job `job`, which is ready; false when it does not within a time.
    pub(crate) fn complete(&mut self, patience: Duration) -> Result<bool> {
        self.tell("job-complete", &json!({ "id": "job" }))?;
        self.event("BLOCK_JOB_COMPLETED", patience)
    }

    /// Stops the job `job` and waits until it is gone.
    pub(crate) fn cancel(&mut self) -> Result<()> {
        self.tell("block-job-cancel", &json!({ "device": "job", "force": true }))?;
        until("qemu-storage-daemon: no job", ANSWER, || {
            let jobs = self.tell("query-jobs", &json!({}))?;
            Ok(jobs.as_array().is_some_and(Vec::is_empty).then_some(()))
        })
    }
}

fn is_late(error: &(dyn std::error::Error + 'static)) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| {
        matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)
    })
}
