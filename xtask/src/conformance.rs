//! `cargo xtask conformance`: the drivers of this repository, held to the contract.
//!
//! Certificates and pages lie in `target/conformance/`. What all drivers come to is written to
//! `docs/drivers/conformance.md`, in which only verdicts are, so that it changes when one does.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::demo::simulated::Simulated;
use crate::failure::{Doing, Failure, Result};
use crate::project::{cargo, root, target};
use crate::tool::Tool;

/// The document, from the root.
const PAGE: &str = "docs/drivers/conformance.md";

/// Verdicts of what is drawn by chance are those of this seed.
const SEED: &str = "20261";

/// Time for all checks of one driver.
const RUN: Duration = Duration::from_secs(10 * 60);

/// A driver whose backend is a folder, or an array that is simulated.
struct Here {
    driver: &'static str,
    /// What is built, and where it then lies in cargo's folder.
    build: &'static [&'static str],
    library: &'static str,
    array: Option<&'static Array>,
}

/// A simulated array.
struct Array {
    /// Words of `array-sim` after the vendor, which is called as the driver is.
    words: &'static [&'static str],
    /// How it is reached: the device configuration, and the tables after it.
    config: fn(&Simulated) -> Result<String>,
}

fn equallogic(array: &Simulated) -> Result<String> {
    let (ssh, fingerprint) = (array.said("ssh")?, array.said("fingerprint")?);
    let (host, port) = ssh.rsplit_once(':').unwrap_or((&ssh, "22"));
    Ok(format!(
        "target = \"{host}\"\nport = \"{port}\"\nusername = \"grpadmin\"\n\
         storagepool = \"default\"\nhost-key-fingerprint = \"{fingerprint}\"\n\
         session-directory = \"{{scratch}}/locks\"\n\n[secrets]\npassword = \"grpadmin\"\n\n\
         [suite]\ndisk-size = \"15MiB\"\n\n[waivers]\n\
         C06 = {{ issue = \"a description has room for 127 characters\", until = \"2028-12-31\" }}\n"
    ))
}

fn truenas(array: &Simulated) -> Result<String> {
    let url = array.said("url")?;
    Ok(format!(
        "target = \"{url}\"\npool = \"tank\"\nusername = \"root\"\n\n[secrets]\n\
         password = \"simulated-password\"\n"
    ))
}

const HERE: &[Here] = &[
    Here {
        driver: "file",
        build: &["--package", "sm-driver-file"],
        library: "debug/libsm_driver_file.so",
        array: None,
    },
    Here {
        driver: "scratch",
        build: &["--package", "plugin-sdk", "--example", "scratch"],
        library: "debug/examples/libscratch.so",
        array: None,
    },
    Here {
        driver: "equallogic",
        build: &["--package", "sm-driver-equallogic"],
        library: "debug/libsm_driver_equallogic.so",
        array: Some(&Array {
            words: &["--pool", "default=1099511627776", "--page", "65536"],
            config: equallogic,
        }),
    },
    Here {
        driver: "truenas",
        build: &["--package", "sm-driver-truenas"],
        library: "debug/libsm_driver_truenas.so",
        array: Some(&Array { words: &["--pool", "tank=1099511627776"], config: truenas }),
    },
];

/// How to reach a folder.
const CONFIG: &str = "[device-config]\nlocation = \"{scratch}\"\n\n\
                      [backend]\ndirectory = \"{scratch}\"\n";

/// Why the disks of an array are not opened.
const CANNOT_ATTACH: &str = "a LUN is attached by the kernel, as root: the tests in guests do that \
                             (`tests/lab/`)";

/// What keeps a driver from being run here.
const ELSEWHERE: &[(&[&str], &str)] = &[
    (
        &["lvm", "lvmoiscsi", "nfs"],
        "its backend needs root and a kernel of its own, and the suite does not run in guests yet; \
         its tests in guests hold it to the contract (`tests/lab/`)",
    ),
    (
        &["ontap", "powerstore", "purestorage"],
        "its backend is an array, and nothing says yet how the suite reaches the simulated one; its \
         tests hold it to the contract there",
    ),
];

/// What is asked for.
#[derive(Default)]
struct Asked {
    check: bool,
    driver: Option<String>,
}

impl Asked {
    fn parse(words: &[&str]) -> Result<Self> {
        match words {
            [] => Ok(Self::default()),
            ["--check"] => Ok(Self { check: true, driver: None }),
            ["--driver", name] => Ok(Self { check: false, driver: Some((*name).to_owned()) }),
            other => Err(crate::unknown(&other.join(" "))),
        }
    }
}

pub(crate) fn run(words: &[&str]) -> Result<ExitCode> {
    let asked = Asked::parse(words)?;
    let chosen: Vec<&Here> =
        HERE.iter().filter(|here| asked.driver.as_ref().is_none_or(|d| d == here.driver)).collect();
    let absent = absent(&folders()?);
    if chosen.is_empty() {
        let name = asked.driver.unwrap_or_default();
        let why = absent.iter().find(|(driver, _)| *driver == name).map(|(_, why)| why.clone());
        let why = why.unwrap_or_else(|| "there is no such driver".to_owned());
        return Err(Failure::new(format!("driver {name} cannot be run here: {why}")));
    }
    build(&chosen)?;
    let suite = target().join("debug/sm-conformance");
    let mut good = true;
    let mut certificates = Vec::new();
    for here in chosen {
        let (held, certificate) = one(&suite, here)?;
        good &= held;
        certificates.push(certificate);
    }
    for (driver, why) in &absent {
        println!("conformance: {driver} is not run: {why}");
    }
    if asked.driver.is_none() {
        good &= pages(&suite, &certificates, &absent, asked.check)?;
    }
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The suite, the program that drivers run in, and the drivers.
fn build(chosen: &[&Here]) -> Result<()> {
    let suite = ["--package", "sm-conformance", "--package", "sm-driver-host", "--lib", "--bins"];
    let mut cargo = cargo().args(["build", "--quiet"]).args(suite);
    if chosen.iter().any(|here| here.array.is_some()) {
        cargo = cargo.args(["--package", "array-sim"]);
    }
    for here in chosen {
        cargo = cargo.args(here.build);
    }
    if cargo.show()?.success() {
        return Ok(());
    }
    Err(Failure::new("the suite or a driver does not build; cargo has said why"))
}

/// Runs all checks on a driver. Answers whether nothing blocks, and its certificate.
fn one(suite: &Path, here: &Here) -> Result<(bool, PathBuf)> {
    let out = target().join("conformance").join(here.driver);
    if out.exists() {
        std::fs::remove_dir_all(&out).doing(|| format!("remove {}", out.display()))?;
    }
    std::fs::create_dir_all(&out).doing(|| format!("make {}", out.display()))?;
    let config = out.join("sr.toml");
    let simulated = here.array.map(|array| simulate(here.driver, array, &out)).transpose()?;
    let text = simulated.as_ref().map_or(CONFIG, |(_, text)| text);
    std::fs::write(&config, text).doing(|| format!("write {}", config.display()))?;
    let began = Instant::now();
    println!("conformance: {}", here.driver);
    let status = Tool::new(suite)
        .args(["run", "--level", "L5", "--quiet", "--seed", SEED, "--driver"])
        .arg(target().join(here.library))
        .arg("--config")
        .arg(&config)
        .arg("--out")
        .arg(&out)
        .arg("--scratch")
        .arg(scratch())
        .deadline(RUN)
        .lines(|line| println!("{line}"))?;
    println!(
        "in {:.0} s, see {}",
        began.elapsed().as_secs_f64(),
        out.join("report.html").display()
    );
    let certificate = out.join("certificate.json");
    if !certificate.exists() {
        return Err(Failure::new(format!("the suite came to no result on {}", here.driver)));
    }
    Ok((status.success(), certificate))
}

/// Starts the array of a driver, and says how it is reached.
fn simulate(vendor: &str, array: &Array, out: &Path) -> Result<(Simulated, String)> {
    let program = target().join("debug/array-sim");
    let simulated = Simulated::start(&program, vendor, &out.join("array"), array.words)?;
    let admin = simulated.said("admin")?;
    let admin = admin.trim_start_matches("http://");
    let text = format!(
        "[backend]\nsimulator = \"{admin}\"\nforeign = true\ncannot-attach = \"{CANNOT_ATTACH}\"\n\n\
         [device-config]\ninitiator = \"iqn.2004-01.example:conformance\"\n{}",
        (array.config)(&simulated)?
    );
    Ok((simulated, text))
}

/// In memory where there is a place: the checks wait for the disk more than for anything else.
fn scratch() -> PathBuf {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() }
}

/// Writes the page of all drivers, or says whether it is as it was written.
fn pages(
    suite: &Path,
    certificates: &[PathBuf],
    absent: &[(String, String)],
    check: bool,
) -> Result<bool> {
    let matrix = |more: &[&str]| {
        let mut tool = Tool::new(suite).arg("matrix").args(certificates).args(more);
        for (driver, why) in absent {
            tool = tool.arg("--not-run").arg(format!("{driver}={why}"));
        }
        tool.run()
    };
    let html = target().join("conformance/matrix.html");
    std::fs::write(&html, matrix(&[])?.stdout).doing(|| format!("write {}", html.display()))?;
    let text = document(&matrix(&["--markdown"])?.stdout);
    let path = root().join(PAGE);
    if !check {
        std::fs::write(&path, text).doing(|| format!("write {}", path.display()))?;
        println!("{PAGE} is written");
        return Ok(true);
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    if written == text {
        println!("{PAGE} is current");
        return Ok(true);
    }
    let line = written.lines().zip(text.lines()).take_while(|(a, b)| a == b).count() + 1;
    let failure = Failure::new(format!(
        "{PAGE} is not what the drivers come to (first difference in line {line})"
    ));
    eprintln!("xtask: {}", failure.hint("cargo xtask conformance writes it anew"));
    Ok(false)
}

fn document(table: &str) -> String {
    format!(
        "# What the drivers keep to\n\n\
         Written by `cargo xtask conformance`, which runs the conformance suite (`docs/conformance.md`) up\n\
         to level L5 with seed {SEED}; `--check` says whether it is current. Not to be edited.\n\n\
         Arrays are the simulated ones (`docs/simulators.md`). Their disks are not opened here, and what\n\
         needs that is not testable: {CANNOT_ATTACH}.\n\n{table}"
    )
}

/// The folders of drivers.
fn folders() -> Result<Vec<String>> {
    let folder = root().join("drivers");
    let entries = std::fs::read_dir(&folder).doing(|| format!("list {}", folder.display()))?;
    let mut found: Vec<String> = entries
        .flatten()
        .filter(|entry| entry.path().join("Cargo.toml").exists())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    found.sort();
    Ok(found)
}

/// Those that are not run here, each with the reason: a driver is never left out silently.
fn absent(folders: &[String]) -> Vec<(String, String)> {
    let why = |driver: &str| {
        let known = ELSEWHERE.iter().find(|(drivers, _)| drivers.contains(&driver));
        known.map_or("nothing says yet how it could be run here", |(_, why)| why)
    };
    folders
        .iter()
        .filter(|driver| !HERE.iter().any(|here| here.driver == driver.as_str()))
        .map(|driver| (driver.clone(), why(driver).to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_is_run_or_listed_with_a_reason() {
        let folders: Vec<String> = ["file", "lvm", "new"].map(str::to_owned).into();
        let absent = absent(&folders);
        let names: Vec<&str> = absent.iter().map(|(driver, _)| driver.as_str()).collect();
        assert_eq!(names, ["lvm", "new"]);
        assert!(absent[0].1.starts_with("its backend needs root"));
        assert_eq!(absent[1].1, "nothing says yet how it could be run here");
    }

    #[test]
    fn the_page_in_the_repository_has_a_line_for_each_driver() {
        let page = std::fs::read_to_string(root().join(PAGE)).unwrap();
        for (driver, _) in absent(&folders().unwrap()) {
            assert!(page.contains(&format!("| {driver} |")), "{driver} is not in {PAGE}");
        }
        for here in HERE {
            assert!(page.contains(&format!("## {} ", here.driver)), "{}", here.driver);
        }
    }

    #[test]
    fn what_is_not_understood_is_said() {
        let failure = Asked::parse(&["--drivers"]).err().unwrap().to_string();
        assert!(failure.starts_with("\"--drivers\" is not understood"), "{failure}");
    }
}
