//! This process, from its first line to its last.
//!
//! For the control plane (`--run-dir`) it is started with its standard output as a pipe, says
//! `ready` there when it can be told something, and belongs to nobody from then on: a session of
//! its own, nothing inherited, nothing of its starter's in its environment. For people (`--image`)
//! it serves one disk until it is ended.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::inherit::{close_inherited, raise_descriptors};
use super::run::{Place, Process};
use super::served::{How, Served};
use super::server::{self, Handler};
use crate::disk::{Drive, Format, Layer, Options, Plan};
use crate::export::{Export, Exports};
use crate::nbd::{self, Listener, Server};

/// What the program can do.
pub const USAGE: &str = "\
sm-datapath: serves a virtual disk as a network block device

  sm-datapath serve --image FILE --socket PATH [OPTIONS]
      --format raw|vhd     how the file is to be understood [vhd]
      --parents-in DIR     where the images lie that it is based on [beside it]
      --read-only          nothing is written
      --direct             past the page cache, where the storage takes that
      --foreground         do not go on in the background

  sm-datapath serve --run-dir DIR [--direct]
      for the storage manager: told what to serve on DIR/control

  sm-datapath --version";

/// How long what is under way may take to end.
const DRAIN: Duration = Duration::from_secs(30);

/// How long the background process may take to be ready.
const BIRTH: Duration = Duration::from_secs(30);

/// What the command line says.
#[derive(Debug, PartialEq, Eq)]
enum Wish {
    Usage,
    Version,
    Managed { place: PathBuf, direct: bool },
    Plain(Plain),
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Plain {
    image: PathBuf,
    format: Option<Format>,
    parents: Option<PathBuf>,
    socket: PathBuf,
    read_only: bool,
    direct: bool,
    foreground: bool,
    /// Started by itself: nobody reads its standard error any more when it is ready.
    detached: bool,
}

/// Runs the program. The arguments are without its name.
pub fn main(arguments: impl Iterator<Item = std::ffi::OsString>) -> ExitCode {
    let done = match parse(arguments) {
        Ok(Wish::Usage) => {
            println!("{USAGE}");
            Ok(())
        }
        Ok(Wish::Version) => {
            println!("sm-datapath {}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
        Ok(Wish::Managed { place, direct }) => {
            close_inherited();
            raise_descriptors();
            start_log();
            return managed(&Place::at(place), How { direct });
        }
        Ok(Wish::Plain(plain)) if plain.foreground => {
            raise_descriptors();
            start_log();
            serve_plain(&plain)
        }
        Ok(Wish::Plain(plain)) => in_background(&plain),
        Err(why) => Err(format!("{why}\n\n{USAGE}")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("sm-datapath: {why}");
            ExitCode::from(2)
        }
    }
}

fn parse(arguments: impl Iterator<Item = std::ffi::OsString>) -> Result<Wish, String> {
    let mut arguments = arguments.peekable();
    let Some(verb) = arguments.next() else { return Ok(Wish::Usage) };
    match verb.to_str() {
        Some("--help" | "-h" | "help") => return Ok(Wish::Usage),
        Some("--version" | "-V") => return Ok(Wish::Version),
        Some("serve") => {}
        _ => return Err(format!("{} is no command", verb.display())),
    }
    let (mut plain, mut place) = (Plain::default(), None);
    while let Some(option) = arguments.next() {
        let name = option.to_string_lossy().into_owned();
        let mut value =
            || arguments.next().map(PathBuf::from).ok_or_else(|| format!("{name} needs a value"));
        match name.as_str() {
            "--run-dir" => place = Some(value()?),
            "--image" => plain.image = value()?,
            "--socket" => plain.socket = value()?,
            "--parents-in" => plain.parents = Some(value()?),
            "--format" => {
                let text = value()?;
                plain.format = Some(match text.to_str() {
                    Some("raw") => Format::Raw,
                    Some("vhd") => Format::Vhd,
                    _ => return Err(format!("{} is no format: raw or vhd", text.display())),
                });
            }
            "--read-only" => plain.read_only = true,
            "--direct" => plain.direct = true,
            "--cached" => plain.direct = false,
            "--foreground" => plain.foreground = true,
            "--detached" => (plain.foreground, plain.detached) = (true, true),
            "--help" | "-h" => return Ok(Wish::Usage),
            _ => return Err(format!("{name} is no option of serve")),
        }
    }
    if let Some(place) = place {
        return Ok(Wish::Managed { place, direct: plain.direct });
    }
    if plain.image.as_os_str().is_empty() || plain.socket.as_os_str().is_empty() {
        return Err("--image and --socket are needed".to_owned());
    }
    Ok(Wish::Plain(plain))
}

fn start_log() {
    let _ = tracing_subscriber::fmt().with_writer(io::stderr).with_ansi(false).try_init();
}

/// Says that it is ready, and lets go of whoever has waited for that. That nobody is there to hear
/// it is no reason to end.
fn say_ready(more: &str) {
    let mut out = io::stdout();
    let _ = writeln!(out, "ready{more}").and_then(|()| out.flush());
    if let Ok(null) = File::options().read(true).write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stdout(&null);
    }
}

/// Serves for the control plane.
fn managed(place: &Place, how: How) -> ExitCode {
    // Refused to the leader of a group, who is in a session of his own making already.
    let _ = rustix::process::setsid();
    let lock = match place.lock() {
        Ok(Some(lock)) => lock,
        Ok(None) => {
            println!("taken");
            return ExitCode::from(3);
        }
        Err(error) => {
            eprintln!("sm-datapath: {error}");
            return ExitCode::from(2);
        }
    };
    let name = place.name();
    match listen(place, how) {
        Ok(served) => {
            tracing::info!(name, pid = std::process::id(), "ready");
            say_ready("");
            served.wait_for_end();
        }
        Err(why) => {
            let _ = place.clear_sockets();
            eprintln!("sm-datapath: {why}");
            return ExitCode::from(2);
        }
    }
    tracing::info!(name, "ends");
    // What could not be put into the image is there for the next process, and so is where the disk
    // went, if nobody has been told.
    let kept = place.has_pending() || place.moved().is_some();
    let gone = if kept { place.clear_sockets() } else { place.remove() };
    drop(lock);
    match gone {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "the run directory could not be removed");
            ExitCode::from(1)
        }
    }
}

fn listen(place: &Place, how: How) -> Result<Arc<Served>, String> {
    let text = |error: io::Error| error.to_string();
    // Left by one that was killed.
    place.clear_sockets().map_err(|error| error.to_string())?;
    place.write_process(Process::this()).map_err(|error| error.to_string())?;
    let served = Served::new(place.clone(), how);
    let nbd = bind(&place.nbd())?;
    served.listen(nbd).map_err(text)?;
    end_on_signal({
        let served = Arc::clone(&served);
        move || served.stop()
    })?;
    // Last: whoever can connect to it finds all the rest.
    let control = bind(&place.control())?;
    let handler = Arc::clone(&served) as Arc<dyn Handler>;
    std::thread::Builder::new()
        .name("control".to_owned())
        .stack_size(256 << 10)
        .spawn(move || server::serve(&control, &handler))
        .map_err(text)?;
    Ok(served)
}

fn bind(path: &Path) -> Result<UnixListener, String> {
    UnixListener::bind(path).map_err(|error| {
        format!(
            "{}: {error} ({} bytes of path; a socket's may have {})",
            path.display(),
            path.as_os_str().len(),
            super::run::LONGEST_SOCKET_PATH
        )
    })
}

/// Ends on SIGTERM and SIGINT; a hang-up is for those who have a terminal.
fn end_on_signal(end: impl FnOnce() + Send + 'static) -> Result<(), String> {
    let mut signals =
        Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(|error| format!("signals: {error}"))?;
    std::thread::Builder::new()
        .name("signals".to_owned())
        .stack_size(256 << 10)
        .spawn(move || {
            if signals.forever().any(|signal| signal != SIGHUP) {
                end();
            }
        })
        .map(drop)
        .map_err(|error| error.to_string())
}

/// The one disk of a process for people; under any name.
struct Only(Arc<Drive>);

impl Exports for Only {
    fn names(&self) -> Vec<String> {
        vec![String::new()]
    }

    fn find(&self, _: &str) -> Option<Arc<dyn Export>> {
        Some(Arc::clone(&self.0) as Arc<dyn Export>)
    }
}

fn plan(plain: &Plain) -> Result<Plan, String> {
    let absolute = |path: &Path| {
        std::path::absolute(path).map_err(|error| format!("{}: {error}", path.display()))
    };
    let image = absolute(&plain.image)?;
    let format = plain.format.unwrap_or(Format::Vhd);
    let mut layers = vec![Layer { path: image.clone(), format }];
    if format == Format::Vhd {
        let parents = vhd::folder::Parents {
            dir: plain.parents.as_deref(),
            ..vhd::folder::Parents::default()
        };
        let (links, findings) =
            vhd::folder::chain(&image, parents).map_err(|error| error.to_string())?;
        if let Some(wrong) =
            findings.iter().find(|finding| finding.severity == vhd::check::Severity::Error)
        {
            return Err(format!("{}: {}", wrong.path.display(), wrong.text));
        }
        for link in links.into_iter().skip(1) {
            let format = if link.raw { Format::Raw } else { Format::Vhd };
            layers.push(Layer { path: absolute(&link.path)?, format });
        }
    }
    let mut layers = layers.into_iter();
    let leaf = layers.next().ok_or("there is no image")?;
    Ok(Plan { leaf, backing: layers.collect(), read_only: plain.read_only })
}

/// Serves for people, until a signal.
fn serve_plain(plain: &Plain) -> Result<(), String> {
    let options = Options { direct: plain.direct, ..Options::default() };
    let drive = Drive::open(&plan(plain)?, options).map_err(|error| error.to_string())?;
    let server = Server::new(Arc::new(Only(Arc::clone(&drive))), nbd::Limits::default());
    let listener = bind(&plain.socket)?;
    server.serve(Listener::Unix(listener)).map_err(|error| error.to_string())?;
    let (sender, ended) = std::sync::mpsc::channel();
    end_on_signal(move || {
        let _ = sender.send(());
    })?;
    let socket = std::path::absolute(&plain.socket).unwrap_or_else(|_| plain.socket.clone());
    say_ready(&format!(" nbd+unix:///?socket={}", socket.display()));
    if let Ok(null) = File::options().write(true).open("/dev/null")
        && plain.detached
    {
        let _ = rustix::stdio::dup2_stderr(&null);
    }
    let _ = ended.recv();
    let _ = std::fs::remove_file(&socket);
    server.stop(DRAIN);
    drive.close(Instant::now() + DRAIN).map_err(|error| error.to_string())
}

/// Starts the same in the background, and ends when that is ready.
fn in_background(plain: &Plain) -> Result<(), String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut command = Command::new(program);
    command.arg("serve").arg("--detached").arg("--image").arg(&plain.image);
    command.arg("--socket").arg(&plain.socket);
    if let Some(Format::Raw) = plain.format {
        command.args(["--format", "raw"]);
    }
    if let Some(parents) = &plain.parents {
        command.arg("--parents-in").arg(parents);
    }
    for (wished, option) in [(plain.read_only, "--read-only"), (plain.direct, "--direct")] {
        if wished {
            command.arg(option);
        }
    }
    // A group of its own: what is typed at the terminal is not for it.
    command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    let mut out = child.stdout.take().ok_or("no pipe")?;
    let (sender, said) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut text = String::new();
        let _ = out.read_to_string(&mut text);
        let _ = sender.send(text);
    });
    let text = said.recv_timeout(BIRTH).unwrap_or_default();
    let Some(uri) = text.strip_prefix("ready ") else {
        let _ = child.kill();
        let _ = child.wait();
        return Err("it does not serve".to_owned());
    };
    println!("{}", uri.trim());
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails so")]

    use super::*;

    fn wish(words: &[&str]) -> Result<Wish, String> {
        parse(words.iter().map(std::ffi::OsString::from))
    }

    #[test]
    fn what_is_typed_is_understood_or_refused() {
        let Ok(Wish::Plain(plain)) =
            wish(&["serve", "--image", "a", "--socket", "s", "--format", "raw", "--read-only"])
        else {
            panic!()
        };
        assert_eq!((plain.format, plain.read_only), (Some(Format::Raw), true));
        assert_eq!(
            wish(&["serve", "--image", "a"]).unwrap_err(),
            "--image and --socket are needed"
        );
        assert_eq!(wish(&["serve", "--image"]).unwrap_err(), "--image needs a value");
        assert_eq!(wish(&["serve", "--fast"]).unwrap_err(), "--fast is no option of serve");
        assert_eq!(wish(&[]).unwrap(), Wish::Usage);
        let managed = Wish::Managed { place: "/r/d".into(), direct: false };
        assert_eq!(wish(&["serve", "--run-dir", "/r/d"]).unwrap(), managed);
    }
}
