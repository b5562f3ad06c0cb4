//! The process that runs one driver for one SR.
//!
//! It is started by `sm-loader` with two inherited descriptors: a socket to the host and the
//! driver's file. It loads the driver, serves frames until the socket closes, and dies with its
//! host whatever happens. What confines it (user, memory, death signal) is set before it starts.

use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;

use sm_abi::DriverModule_Ref;
use sm_loader::frame::{Kind, PROTOCOL};
use sm_loader::{LoadError, dl, ffi, inspect, wire};
use sm_model::Manifest;

mod serve;

use serve::Line;

const USAGE: &str = "sm-driver-host --driver NAME --fd NUMBER --library NUMBER\n\
    It is started by the storage manager, not by hand.";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("sm-driver-host: {why}");
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<(), String> {
    let arguments = Arguments::parse(std::env::args().skip(1))?;
    let socket = UnixStream::from(take(arguments.socket)?);
    let library = take(arguments.library)?;

    // Rather this process than the toolstack when memory runs out. That it is refused (a kernel
    // without procfs) is no reason not to work.
    let _ = std::fs::write("/proc/self/oom_score_adj", "500");

    let line = Line::new(socket.try_clone().map_err(|error| format!("the socket: {error}"))?);
    match load(arguments.library) {
        Ok((module, manifest)) => {
            drop(library);
            let hello = wire::Hello { protocol: PROTOCOL, driver: manifest.name.clone() };
            line.send(wire::json_frame(Kind::Hello, 0, &hello));
            serve::serve(module, manifest.name, line, socket)
        }
        Err(error) => {
            line.error(0, &ffi::to_json(&error.into()));
            Err(format!("the driver {} was not loaded", arguments.driver))
        }
    }
}

/// Loads the driver behind the inherited descriptor: the very file the host has verified, also
/// where this user may not walk to it.
fn load(library: i32) -> Result<(DriverModule_Ref, Manifest), LoadError> {
    let path = PathBuf::from(format!("/proc/self/fd/{library}"));
    let manifest = inspect(&path)?.manifest;
    let module = dl::load(&path, &manifest)?;
    Ok((module, manifest))
}

/// Takes an inherited descriptor, and keeps it from the commands that the driver runs.
fn take(number: i32) -> Result<OwnedFd, String> {
    if number < 3 || !std::path::Path::new(&format!("/proc/self/fd/{number}")).exists() {
        return Err(format!("{number} is not an inherited descriptor\n{USAGE}"));
    }
    // SAFETY: the descriptor is open (just checked) and was inherited for us alone; nothing else
    // in this process, which has only just begun, knows its number.
    let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
    rustix::io::fcntl_setfd(&descriptor, rustix::io::FdFlags::CLOEXEC)
        .map_err(|error| format!("descriptor {number}: {error}"))?;
    Ok(descriptor)
}

struct Arguments {
    driver: String,
    socket: i32,
    library: i32,
}

impl Arguments {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let (mut driver, mut socket, mut library) = (None, None, None);
        while let Some(name) = arguments.next() {
            let value = arguments.next().ok_or_else(|| USAGE.to_owned())?;
            let number = || value.parse::<i32>().map_err(|_| USAGE.to_owned());
            match name.as_str() {
                "--driver" => driver = Some(value),
                "--fd" => socket = Some(number()?),
                "--library" => library = Some(number()?),
                _ => return Err(USAGE.to_owned()),
            }
        }
        match (driver, socket, library) {
            (Some(driver), Some(socket), Some(library)) if socket != library => {
                Ok(Self { driver, socket, library })
            }
            _ => Err(USAGE.to_owned()),
        }
    }
}
