//! In a guest: does what comes over the serial line.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use lab::wire::{self, Kind, Request, Step};
use rustix::process::{Pid, Signal};
use rustix::termios::OptionalActions;

use crate::init::{self, Modules};

/// How long the outputs of a command that has ended are waited for. A daemon that it left behind
/// holds them open for as long as it lives.
const LAST_WORDS: Duration = Duration::from_millis(300);

/// The line to the runner. Several threads write to it, a frame at a time.
#[derive(Clone)]
struct Line(Arc<Mutex<File>>);

impl Line {
    fn lock(&self) -> MutexGuard<'_, File> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn say(&self, kind: Kind, call: u32, data: &[u8]) {
        // A runner that is gone is noticed by whoever reads the line.
        let _ = wire::send(&mut *self.lock(), kind, call, data);
    }

    fn exit(&self, call: u32, status: i32) {
        self.say(Kind::Exit, call, &status.to_le_bytes());
    }
}

/// A command that runs.
struct Running {
    /// Its process group, until it has been waited for.
    group: Arc<Mutex<Option<Pid>>>,
    input: Option<Sender<Vec<u8>>>,
}

pub(crate) fn run() -> ExitCode {
    if let Err(error) = serve() {
        println!("lab: the line to the runner is closed: {error}");
    }
    init::power_off()
}

fn serve() -> io::Result<()> {
    let mut from = OpenOptions::new().read(true).write(true).open("/dev/ttyS0")?;
    let mut terminal = rustix::termios::tcgetattr(&from)?;
    terminal.make_raw();
    rustix::termios::tcsetattr(&from, OptionalActions::Now, &terminal)?;
    let line = Line(Arc::new(Mutex::new(from.try_clone()?)));
    line.say(Kind::Ready, 0, wire::identity().as_bytes());
    let mut running: HashMap<u32, Running> = HashMap::new();
    loop {
        let frame = wire::receive(&mut from)?;
        line.say(Kind::Taken, 0, &[]);
        match frame.kind {
            Kind::Ask => {
                running.retain(|_, command| lock(&command.group).is_some());
                match ask(frame.call, &frame.data, &line) {
                    Ok(Some(command)) => {
                        running.insert(frame.call, command);
                    }
                    Ok(None) => line.exit(frame.call, 0),
                    Err(error) => {
                        line.say(Kind::Errors, frame.call, error.to_string().as_bytes());
                        let absent = error.kind() == io::ErrorKind::NotFound;
                        line.exit(frame.call, if absent { 127 } else { 126 });
                    }
                }
            }
            Kind::Input => {
                if let Some(command) = running.get_mut(&frame.call) {
                    if frame.data.is_empty() {
                        command.input = None;
                    } else if let Some(input) = &command.input {
                        let _ = input.send(frame.data);
                    }
                }
            }
            Kind::End => {
                if let Some(group) = running.get(&frame.call).and_then(|one| *lock(&one.group)) {
                    let _ = rustix::process::kill_process_group(group, Signal::KILL);
                }
            }
            _ => return Ok(()),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn ask(call: u32, path: &[u8], line: &Line) -> io::Result<Option<Running>> {
    let path = String::from_utf8_lossy(path);
    let bytes = std::fs::read(&*path)?;
    let _ = std::fs::remove_file(&*path);
    match serde_json::from_slice(&bytes)? {
        Request::Run { argv, env, directory } => {
            start(call, &argv, &env, &directory, line).map(Some)
        }
        Request::Steps(steps) => {
            for step in &steps {
                take(step).map_err(|error| io::Error::other(format!("{step:?}: {error}")))?;
            }
            Ok(None)
        }
    }
}

fn start(
    call: u32,
    argv: &[String],
    env: &[(String, String)],
    directory: &Path,
    line: &Line,
) -> io::Result<Running> {
    let (program, arguments) = argv.split_first().ok_or_else(|| io::Error::other("no program"))?;
    let mut child = Command::new(program)
        .args(arguments)
        .envs(env.iter().map(|(name, value)| (name, value)))
        .current_dir(directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(|error| io::Error::new(error.kind(), format!("{program}: {error}")))?;
    let (input, pieces) = channel::<Vec<u8>>();
    if let Some(mut stdin) = child.stdin.take() {
        thread::spawn(move || pieces.into_iter().try_for_each(|piece| stdin.write_all(&piece)));
    }
    let (open, silence) = channel();
    if let Some(stdout) = child.stdout.take() {
        pump(stdout, Kind::Output, call, line, open.clone());
    }
    if let Some(stderr) = child.stderr.take() {
        pump(stderr, Kind::Errors, call, line, open.clone());
    }
    drop(open);
    let group = Arc::new(Mutex::new(Some(Pid::from_child(&child))));
    let (watched, line) = (Arc::clone(&group), line.clone());
    thread::spawn(move || wait(child, call, &watched, &silence, &line));
    Ok(Running { group, input: Some(input) })
}

fn pump(
    mut from: impl Read + Send + 'static,
    kind: Kind,
    call: u32,
    line: &Line,
    open: Sender<()>,
) {
    let line = line.clone();
    thread::spawn(move || {
        let mut piece = [0_u8; 16 << 10];
        while let Ok(count @ 1..) = from.read(&mut piece) {
            line.say(kind, call, piece.get(..count).unwrap_or_default());
        }
        drop(open);
    });
}

fn wait(
    mut child: Child,
    call: u32,
    group: &Mutex<Option<Pid>>,
    silence: &Receiver<()>,
    line: &Line,
) {
    let status = child.wait();
    // From here on its number may be somebody else's. What it left running stays.
    *lock(group) = None;
    let _ = silence.recv_timeout(LAST_WORDS);
    let code = status.map_or(126, |status| {
        status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
    });
    line.exit(call, code);
}

fn take(step: &Step) -> io::Result<()> {
    match step {
        Step::Directory(path) => std::fs::create_dir_all(path),
        Step::Write(path, text) => {
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(path)?;
            // At once: a file of the kernel takes each write for a whole order.
            match file.write(text.as_bytes())? {
                written if written == text.len() => Ok(()),
                _ => Err(io::Error::other("was not taken as a whole")),
            }
        }
        Step::Append(path, text) => {
            OpenOptions::new().append(true).create(true).open(path)?.write_all(text.as_bytes())
        }
        Step::Link(to, path) => std::os::unix::fs::symlink(to, path),
        Step::Remove(path) => match std::fs::symlink_metadata(path) {
            Ok(found) if found.is_dir() => std::fs::remove_dir(path),
            Ok(_) => std::fs::remove_file(path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        },
        Step::Module(name) => {
            let folder = std::env::var_os("LAB_MODULES").unwrap_or_default();
            Modules::read(Path::new(&folder))?.load(name)
        }
        Step::Mount { source, target, kind, options } => {
            let (source, target) = (source.display().to_string(), target.display().to_string());
            init::attach(&source, &target, kind, options)
        }
    }
}
