//! A disk of ours that is changed by orders on a pipe: `datapath/examples/live.rs`.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::Duration;

use crate::peers::uri;
use crate::process::{cpu_of, greeted, until, wait};
use crate::{Result, Setting};

/// Time to start, and to end.
const SHORT: Duration = Duration::from_secs(20);

pub(crate) struct Told {
    child: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    pub(crate) uri: String,
}

impl Told {
    /// Serves an image; its parents lie beside it.
    pub(crate) fn start(setting: &Setting, image: &Path, format: &str) -> Result<Self> {
        let socket = setting.memory.join("socket");
        let _ = std::fs::remove_file(&socket);
        let program = setting.product.join("examples/live");
        let mut command = setting.scheduling.command(&program);
        command.arg(&socket).arg(format).arg(image);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child =
            command.spawn().map_err(|error| format!("{}: {error}", program.display()))?;
        let (orders, answers) = (child.stdin.take(), child.stdout.take());
        let answers = BufReader::new(answers.ok_or("no pipe")?);
        let mut told = Self { child, orders, answers, uri: uri("", &socket) };
        until("the program of the live operations: a greeting", SHORT, || {
            match told.child.try_wait()? {
                Some(status) => Err(format!("{} ended: {status}", program.display()).into()),
                None => greeted(&socket),
            }
        })?;
        Ok(told)
    }

    /// An order, and that it was carried out. The program itself gives up after a minute.
    pub(crate) fn tell(&mut self, order: &str) -> Result<()> {
        writeln!(self.orders.as_mut().ok_or("no pipe")?, "{order}")?;
        let mut answer = String::new();
        self.answers.read_line(&mut answer)?;
        match answer.trim() {
            "done" => Ok(()),
            "" => Err(format!("{order}: the program has ended").into()),
            why => Err(format!("{order}: {why}").into()),
        }
    }

    pub(crate) fn cpu(&self) -> Result<Duration> {
        cpu_of(self.child.id())
    }

    pub(crate) fn stop(mut self) -> Result<()> {
        drop(self.orders.take());
        match wait(&mut self.child, SHORT)? {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(format!("the program of the live operations: {status}").into()),
            None => Err("the program of the live operations does not end".into()),
        }
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
