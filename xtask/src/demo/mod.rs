//! `cargo xtask demo`: the main job on a real disk, typed as a user types it, and checked with
//! tools that are not ours.
//!
//! The disk is made by `mkfs.ext4` with files in it whose sums are known. It is imported,
//! snapshotted, written to by a "guest", cloned, resized, reverted and exported; after each of
//! these `cmp`, `e2fsck`, `sha256sum`, `qemu-img` or `vhdiinfo` say whether the content is right.

mod array;
mod disk;
mod guest;
pub(crate) mod simulated;
pub(crate) mod steps;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::Value;

use crate::failure::{Doing, Failure, Result};
use crate::project::{self, Profile};
use crate::setup;
use crate::tool::Tool;
use disk::{Disk, compare};
use steps::{Smctl, Steps};

pub(crate) fn run(options: &[&str]) -> Result<ExitCode> {
    let hint = "[--array equallogic] [--release, or --product FOLDER]";
    let mut profile = Profile::Dev;
    let (mut array, mut built) = (None, None);
    let mut words = options.iter();
    while let Some(word) = words.next() {
        match (*word, words.len()) {
            ("--release", _) => profile = Profile::Release,
            ("--array", 1..) => array = words.next().copied(),
            ("--product", 1..) => built = words.next().map(PathBuf::from),
            _ => {
                let sentence = format!("demo does not understand {word:?}");
                return Err(Failure::new(sentence).hint(hint));
            }
        }
    }
    match (array, built) {
        (None, Some(built)) => of_files(&built),
        (None, None) => {
            setup::ensure()?;
            println!("building smctl and the file driver (the first time takes minutes)");
            of_files(&project::build_product(profile)?)
        }
        (Some("equallogic"), Some(built)) => array::run(&built),
        (Some("equallogic"), None) => {
            println!("building smctl, the driver and the simulator (the first time takes minutes)");
            let packages = ["smctl", "sm-driver-host", "sm-driver-equallogic", "array-sim"];
            array::run(&project::build(&packages, profile)?)
        }
        (Some(other), _) => {
            Err(Failure::new(format!("there is no demo of the array {other:?}")).hint(hint))
        }
    }
}

fn of_files(product: &Path) -> Result<ExitCode> {
    let work = tempfile::Builder::new()
        .prefix("sm-demo-")
        .tempdir()
        .doing(|| "make a temporary directory".to_owned())?;
    let mut steps = Steps::default();
    let outcome = story(product, work.path(), &mut steps);
    // Whatever happened: nothing of the demo stays.
    let path = work.path().to_owned();
    work.close().doing(|| format!("remove {}", path.display()))?;
    steps.end(outcome)
}

fn story(product: &Path, work: &Path, steps: &mut Steps) -> Result<()> {
    let images = work.join("images");
    std::fs::create_dir(&images).doing(|| "make the folder of the SR".to_owned())?;
    let smctl = Smctl::new(product, &work.join("state"), work);
    println!("smctl works in {} and keeps its state there", work.display());
    let location = format!("location={}", images.display());

    steps.title("A disk with a file system and known files");
    let disk = steps.step("mkfs.ext4 -d files disk.img", || Disk::make(work, "disk.img"))?;

    steps.title("An SR, and the disk in it");
    steps.type_in(&smctl, &["driver", "list"])?;
    steps.type_in(&smctl, &["sr", "create", "--driver", "file", "--name", "images", &location])?;
    steps.type_in(&smctl, &["vdi", "import", "disk.img", "--name", "web"])?;
    exports_as(steps, &smctl, "web", &disk)?;

    steps.title("A snapshot, and a guest that writes");
    steps.type_in(&smctl, &["vdi", "snapshot", "web", "--name", "before upgrade"])?;
    let upgraded = steps
        .step("debugfs -w upgraded.img: the guest adds, removes, rewrites files", || {
            disk.changed(work, "upgraded.img")
        })?;
    let attached = steps.type_in_json(&smctl, &["vdi", "attach", "web", "--json"])?;
    let written = steps
        .step_said("the guest writes what it changed into the attached disk", || {
            guest::write(&attached, &upgraded.image)
        });
    // In any case: it is served by a process of its own.
    steps.type_in(&smctl, &["vdi", "detach", "web"])?;
    written?;
    exports_as(steps, &smctl, "web", &upgraded)?;
    exports_as(steps, &smctl, "before upgrade", &disk)?;

    steps.title("A clone, larger than its origin");
    steps.type_in(&smctl, &["vdi", "clone", "web", "--name", "web-2"])?;
    steps.type_in(&smctl, &["vdi", "resize", "web-2", "512MiB"])?;
    steps.type_in(&smctl, &["vdi", "export", "web-2", "web-2.raw"])?;
    steps.step("check: the file system grows into the new space (resize2fs, e2fsck)", || {
        upgraded.grows(&work.join("web-2.raw"))
    })?;
    remove(work, "web-2.raw")?;
    steps.type_in(&smctl, &["vdi", "tree"])?;

    steps.title("Back to the snapshot");
    steps.type_in(&smctl, &["vdi", "revert", "web", "before upgrade"])?;
    exports_as(steps, &smctl, "web", &disk)?;

    steps.title("Out of the SR as VHD, read by others");
    steps.type_in(&smctl, &["vdi", "export", "web", "web.vhd"])?;
    steps.step_said("check: vhdiinfo reads web.vhd", || vhdiinfo(&work.join("web.vhd")))?;
    steps.step(
        "check: qemu-img convert -f vpc web.vhd gives the disk we began with (cmp)",
        || {
            Tool::new("qemu-img")
                .args(["convert", "-f", "vpc", "-O", "raw", "web.vhd", "qemu.raw"])
                .directory(work)
                .run()?;
            compare(&disk.image, &work.join("qemu.raw"))
        },
    )?;
    steps.step("check: every file in it has its sum (debugfs, sha256sum -c)", || {
        disk.files_are_right(&work.join("qemu.raw"))
    })?;
    remove(work, "qemu.raw")?;
    steps.type_in(&smctl, &["vdi", "check", "web"])?;
    steps.type_in(&smctl, &["sr", "scan", "images"])?;

    steps.title("And everything away");
    for vdi in ["web-2", "web", "before upgrade"] {
        steps.type_in(&smctl, &["vdi", "destroy", vdi])?;
    }
    steps.type_in(&smctl, &["sr", "destroy", "images"])?;
    steps.step("check: the folder of the SR is empty", || is_empty(&images))
}

/// Exports a VDI and compares it with the image it must be, file system and files included.
fn exports_as(steps: &mut Steps, smctl: &Smctl, vdi: &str, disk: &Disk) -> Result<()> {
    steps.type_in(smctl, &["vdi", "export", vdi, "out.raw"])?;
    let out = smctl.directory().join("out.raw");
    let name = disk.image.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let what = format!("check: out.raw is {name}, sound, files complete (cmp, e2fsck, sha256sum)");
    steps.step(&what, || {
        compare(&disk.image, &out)?;
        disk.files_are_right(&out)
    })?;
    remove(smctl.directory(), "out.raw")
}

fn vhdiinfo(vhd: &Path) -> Result<String> {
    let printed = Tool::new("vhdiinfo").arg(vhd).run()?.stdout;
    let field = |name: &str| {
        let line = printed.lines().find(|line| line.trim_start().starts_with(name));
        let value = line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim());
        value
            .map(str::to_owned)
            .ok_or_else(|| Failure::new(format!("vhdiinfo says nothing of {name}")).cause(&printed))
    };
    let (kind, size) = (field("Disk type")?, field("Media size")?);
    if !kind.contains("Dynamic") || !size.contains("268435456") {
        return Err(Failure::new("vhdiinfo sees another disk than was exported").cause(&printed));
    }
    Ok(format!("{kind}, {size}"))
}

fn is_empty(folder: &Path) -> Result<()> {
    let doing = || format!("read {}", folder.display());
    let left: Vec<String> = std::fs::read_dir(folder)
        .doing(doing)?
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    if left.is_empty() {
        return Ok(());
    }
    Err(Failure::new(format!("left in {}: {}", folder.display(), left.join(", "))))
}

/// Images are large; each goes as soon as nothing needs it.
fn remove(directory: &Path, name: &str) -> Result<()> {
    let path = directory.join(name);
    std::fs::remove_file(&path).doing(|| format!("remove {}", path.display()))
}

/// A member of a document that must be there.
fn member<'a>(document: &'a Value, pointer: &str) -> Result<&'a Value> {
    document
        .pointer(pointer)
        .ok_or_else(|| Failure::new(format!("smctl's answer has no {pointer}")).cause(document))
}
