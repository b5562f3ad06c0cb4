//! `conformance-guests`: the conformance suite in guests of the lab, for a driver that needs root, a
//! kernel of its own and a backend beside it. `cargo xtask conformance` calls it.
#![forbid(unsafe_code)]

mod host;
mod place;

use std::error::Error;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use lab::{Guest, Lab};

use place::Place;

const USAGE: &str =
    "usage: conformance-guests DRIVER --out FOLDER [--seed N] [--only CHECKS] [--part K/N]
                                          [--quiet]

Boots guests with what the driver needs, and runs sm-conformance in one of them. The programs are
those beside this one. Certificate and reports are in FOLDER then.";

/// The longest that all checks of a driver may take: of one that is not called by somebody who has a limit
/// of his own. And how often it is looked for what they say.
const RUN: Duration = Duration::from_secs(60 * 60);
const LOOK: Duration = Duration::from_millis(200);

/// Where the suite says how far it is.
const PROGRESS: &str = "progress.log";

/// Memory of the guest that the driver is in, in MiB: the run's own files are in there.
const MEMORY: u64 = 768;

type Failure = Box<dyn Error>;

#[derive(Default)]
struct Asked {
    driver: String,
    out: PathBuf,
    seed: String,
    only: Vec<String>,
    part: Option<String>,
    quiet: bool,
}

fn parse(words: impl Iterator<Item = String>) -> Result<Asked, Failure> {
    let mut words = words;
    let driver = words.next().ok_or("no driver is named")?;
    let mut asked = Asked { driver, seed: "1".to_owned(), ..Asked::default() };
    while let Some(option) = words.next() {
        if option == "--quiet" {
            asked.quiet = true;
            continue;
        }
        let value = words.next().ok_or_else(|| format!("{option} has no value"))?;
        match option.as_str() {
            "--out" => asked.out = value.into(),
            "--seed" => asked.seed = value,
            "--only" => asked.only.push(value),
            "--part" => asked.part = Some(value),
            other => return Err(format!("there is no option {other}").into()),
        }
    }
    if !asked.out.is_absolute() {
        return Err("--out must be a folder, by its whole path".into());
    }
    Ok(asked)
}

/// Programs and drivers as the guests see them: copied, since guests must not see a file that cargo
/// writes meanwhile.
struct Programs(PathBuf);

impl Programs {
    fn copy(lab: &Lab, driver: &str) -> Result<Self, Failure> {
        let beside = std::env::current_exe()?;
        let beside = beside.parent().ok_or("this program is in no folder")?;
        let folder = lab.share().join("programs");
        std::fs::create_dir(&folder)?;
        let library = format!("libsm_driver_{driver}.so");
        for name in ["sm-conformance", "sm-driver-host", "array-sim", &library] {
            let (from, to) = (beside.join(name), folder.join(name));
            std::fs::copy(&from, &to).map_err(|e| format!("copy {}: {e}", from.display()))?;
        }
        Ok(Self(folder))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

/// Answers the exit status of the suite.
fn run(asked: &Asked) -> Result<u8, Failure> {
    let lab = Lab::new()?;
    let programs = Programs::copy(&lab, &asked.driver)?;
    let place = Place::boot(&lab, &programs, asked)?;
    // Guests write there and nowhere else.
    let out = lab.share().join("out");
    std::fs::create_dir(&out)?;
    std::fs::write(out.join("sr.toml"), &place.config)?;
    let status = suite(&place.host, &programs, asked, &out);
    bring(&out, &asked.out)?;
    status
}

/// Copies what is in a folder.
fn bring(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            bring(&entry.path(), &to)?;
        } else {
            std::fs::copy(entry.path(), &to)?;
        }
    }
    Ok(())
}

/// Runs the suite on a guest, and says what it says.
fn suite(host: &Guest, programs: &Programs, asked: &Asked, out: &Path) -> Result<u8, Failure> {
    let text = |path: &Path| path.display().to_string();
    let library = programs.path(&format!("libsm_driver_{}.so", asked.driver));
    let again = format!("cargo xtask conformance --driver {} --only {{id}}", asked.driver);
    let mut words = vec![text(&programs.path("sm-conformance"))];
    words.extend(["run", "--level", "L5", "--scratch", "/run", "--seed"].map(str::to_owned));
    words.extend([asked.seed.clone(), "--driver".into(), text(&library), "--config".into()]);
    let config = out.join("sr.toml");
    words.extend([text(&config), "--out".into(), text(out), "--again".into(), again]);
    for only in &asked.only {
        words.extend(["--only".into(), only.clone()]);
    }
    if let Some(part) = &asked.part {
        words.extend(["--part".into(), part.clone()]);
    }
    if asked.quiet {
        words.push("--quiet".into());
    }
    let running = host.command(words).start()?;
    let end = Instant::now() + RUN;
    let mut said = 0;
    std::fs::create_dir_all(&asked.out)?;
    while running.ended().is_none() && Instant::now() < end {
        std::thread::sleep(LOOK);
        said += say(&running.so_far(), said)?;
        // Whoever ends this program sees there which check it was at.
        match std::fs::copy(out.join(PROGRESS), asked.out.join(PROGRESS)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
    }
    let output = running.wait(end.saturating_duration_since(Instant::now()))?;
    say(&String::from_utf8_lossy(&output.stdout), said)?;
    eprint!("{}", String::from_utf8_lossy(&output.stderr));
    Ok(u8::try_from(output.status).unwrap_or(2))
}

/// Says whole lines that are new. Answers how many bytes these were.
fn say(all: &str, said: usize) -> std::io::Result<usize> {
    let new = all.get(said..).unwrap_or_default();
    let whole = new.rfind('\n').map_or(0, |end| end + 1);
    let mut out = std::io::stdout().lock();
    out.write_all(new.get(..whole).unwrap_or_default().as_bytes())?;
    out.flush()?;
    Ok(whole)
}

fn main() -> ExitCode {
    let asked = match parse(std::env::args().skip(1)) {
        Ok(asked) => asked,
        Err(error) => {
            eprintln!("conformance-guests: {error}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match run(&asked) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("conformance-guests: {error}");
            ExitCode::from(2)
        }
    }
}
