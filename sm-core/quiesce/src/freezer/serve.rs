//! Inside the process.

use std::io::{BufRead, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use sm_model::{Error, Result, VdiUuid};

use super::report::{Cause, Files, Report};
use super::{Answer, Request, Start};
use crate::quiescer::{Frozen, Outcome, Quiescer};

/// Between two attempts to let a guest go on that does not answer.
const NAP: Duration = Duration::from_millis(100);

/// How long one of these attempts may take.
const ATTEMPT: Duration = Duration::from_secs(5);

/// What can happen to a freezer.
enum Event {
    Asked(Request),
    /// Whoever started it is gone.
    Gone,
    /// It was asked to end by a signal.
    Signal,
}

/// The process: answers what comes in on its standard input, until that ends.
///
/// # Errors
/// That it cannot begin.
pub fn run() -> Result<()> {
    // Away from the terminal and its signals; it fails in a process that leads a group already,
    // which is away from them, too.
    let _ = rustix::process::setsid();
    let (events, happened) = channel();
    signals(events.clone())?;
    let reader = std::thread::Builder::new().stack_size(128 << 10).name("requests".into());
    let spawned = reader.spawn(move || requests(&events));
    spawned.map_err(|error| Error::internal("no thread for requests").source(&error))?;
    serve(&happened);
    Ok(())
}

fn signals(events: Sender<Event>) -> Result<()> {
    let failed =
        |error: std::io::Error| Error::internal("signals cannot be watched").source(&error);
    let (mut read, write) = UnixStream::pair().map_err(failed)?;
    for signal in
        [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT, signal_hook::consts::SIGHUP]
    {
        let write = write.try_clone().map_err(failed)?;
        signal_hook::low_level::pipe::register(signal, write).map_err(failed)?;
    }
    let watch = move || {
        let mut byte = [0; 1];
        while std::io::Read::read_exact(&mut read, &mut byte).is_ok() {
            if events.send(Event::Signal).is_err() {
                return;
            }
        }
    };
    let thread = std::thread::Builder::new().stack_size(128 << 10).name("signals".into());
    thread.spawn(watch).map(drop).map_err(failed)
}

fn requests(events: &Sender<Event>) {
    for line in std::io::stdin().lock().lines() {
        // What cannot be read is the end of whoever wrote it.
        let Some(request) = line.ok().and_then(|line| serde_json::from_str(&line).ok()) else {
            break;
        };
        if events.send(Event::Asked(request)).is_err() {
            return;
        }
    }
    let _ = events.send(Event::Gone);
}

/// Nobody has to be there to hear it.
fn say(answer: &Answer) {
    let Ok(mut text) = serde_json::to_string(answer) else { return };
    text.push('\n');
    let mut output = std::io::stdout().lock();
    let _ = output.write_all(text.as_bytes()).and_then(|()| output.flush());
}

fn serve(happened: &Receiver<Event>) {
    let mut prepared: Option<(Box<dyn Quiescer>, Start)> = None;
    while let Ok(event) = happened.recv() {
        let request = match event {
            Event::Asked(request) => request,
            // Nothing is frozen.
            Event::Gone | Event::Signal => return,
        };
        match (request, prepared.as_mut()) {
            (Request::Prepare(start), _) => {
                let mut quiescer = start.method.quiescer(start.set);
                match quiescer.prepare(Instant::now() + start.limits.prepare) {
                    Ok(ready) => {
                        say(&Answer::Ready(ready));
                        prepared = Some((quiescer, start));
                    }
                    Err(error) => say(&Answer::Failed { error }),
                }
            }
            (Request::Freeze { disks }, Some((quiescer, start))) => {
                let files = Files::new(&start.folder, start.set);
                let lock = match files.live() {
                    Ok(Some(lock)) => lock,
                    Ok(None) => {
                        let error = Error::busy("another process holds this guest");
                        say(&Answer::Failed { error });
                        continue;
                    }
                    Err(error) => {
                        say(&Answer::Failed { error });
                        continue;
                    }
                };
                hold(quiescer.as_mut(), start, &files, &disks, happened);
                drop(lock);
                return;
            }
            (Request::Rescue(start), _) => {
                let mut quiescer = start.method.quiescer(start.set);
                let goes_on = rescue(quiescer.as_mut(), start.limits.rescue);
                say(&Answer::Ended(Report {
                    frozen: None,
                    microseconds: 0,
                    cause: Cause::Rescued,
                    refused: None,
                    thawed: None,
                    failed: None,
                    goes_on,
                }));
                return;
            }
            (Request::Freeze { .. } | Request::Thaw { .. }, _) => {
                let error = Error::internal("a guest that is not prepared cannot be frozen");
                say(&Answer::Failed { error });
            }
        }
    }
}

/// From the request to freeze until the guest goes on, whatever happens.
fn hold(
    quiescer: &mut dyn Quiescer,
    start: &Start,
    files: &Files,
    disks: &[VdiUuid],
    happened: &Receiver<Event>,
) {
    let limits = start.limits;
    let frozen = quiescer.freeze(disks, Instant::now() + limits.freeze);
    let since = Instant::now();
    let (cause, outcome) = match &frozen {
        Err(_) => (Cause::NotFrozen, Outcome::Failed),
        Ok(frozen) => {
            say(&Answer::Frozen(*frozen));
            wait(happened, since + limits.window)
        }
    };
    let microseconds = since.elapsed().as_micros() as u64;
    let told = quiescer.thaw(&outcome, Instant::now() + limits.thaw);
    let mut report = Report {
        frozen: frozen.as_ref().ok().map(|Frozen { count }| *count),
        microseconds: if frozen.is_ok() { microseconds } else { 0 },
        cause,
        refused: frozen.err(),
        thawed: None,
        failed: None,
        goes_on: true,
    };
    match told {
        Ok(thawed) => report.thawed = Some(thawed),
        Err(error) => {
            report.failed = Some(error);
            report.goes_on = rescue(quiescer, limits.rescue);
        }
    }
    if let Err(error) = files.write(&report) {
        // Who is still there is told; who comes later finds nothing and looks at the guest.
        eprintln!("sm-freezer: {error}");
    }
    say(&Answer::Ended(report));
}

/// Until the guest has to go on: why, and with which outcome.
fn wait(happened: &Receiver<Event>, until: Instant) -> (Cause, Outcome) {
    loop {
        match happened.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(Event::Asked(Request::Thaw { outcome })) => return (Cause::Told, outcome),
            // Nothing else makes sense now.
            Ok(Event::Asked(_)) => {}
            Ok(Event::Gone) | Err(RecvTimeoutError::Disconnected) => {
                return (Cause::Orphaned, Outcome::Failed);
            }
            Ok(Event::Signal) => return (Cause::Signal, Outcome::Failed),
            Err(RecvTimeoutError::Timeout) => return (Cause::Window, Outcome::Failed),
        }
    }
}

/// Answers whether the guest is known to go on.
fn rescue(quiescer: &mut dyn Quiescer, patience: Duration) -> bool {
    let until = Instant::now() + patience;
    loop {
        let attempt = until.min(Instant::now() + ATTEMPT);
        match quiescer.rescue(attempt) {
            Ok(_) => return true,
            Err(_) if Instant::now() < until => std::thread::sleep(NAP),
            Err(error) => {
                eprintln!("sm-freezer: {error}");
                return false;
            }
        }
    }
}
