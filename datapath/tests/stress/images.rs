//! The images of a disk, and what lies in them.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use datapath::disk::{Format, Layer, Plan};
use uuid::Uuid;
use vhd::check::{Finding, Severity, check_chain};
use vhd::image::{NewImage, ParentLink, create, probe};
use vhd::{Disk as _, Mode};

use crate::ended;

/// Bytes of a disk: so few that writes meet each other often.
pub(crate) const SIZE: u64 = 64 << 20;

/// For whatever must not take for ever.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Images of a chain; no snapshot is taken of a longer one.
pub(crate) const LONGEST: usize = 12;

fn layer(path: PathBuf) -> Layer {
    Layer { path, format: Format::Vhd }
}

/// A disk with nothing in it.
pub(crate) fn empty(folder: &Path) -> Plan {
    let path = folder.join("root.vhd");
    create(&path, &NewImage { uuid: Uuid::new_v4(), size: SIZE, parent: None }).unwrap();
    Plan { leaf: layer(path), backing: Vec::new(), read_only: false }
}

/// Makes an empty image over the leaf of a disk, and the plan with it.
pub(crate) fn overlay(folder: &Path, plan: &Plan) -> Plan {
    let uuid = Uuid::new_v4();
    let path = folder.join(format!("{uuid}.vhd"));
    let name = plan.leaf.path.file_name().unwrap().to_str().unwrap().to_owned();
    let parent = Some(ParentLink { uuid: probe(&plan.leaf.path).unwrap().uuid, name });
    create(&path, &NewImage { uuid, size: SIZE, parent }).unwrap();
    let mut backing = plan.backing.clone();
    backing.insert(0, plan.leaf.clone());
    Plan { leaf: layer(path), backing, read_only: false }
}

/// What the clients of a disk see.
pub(crate) fn seen(uri: &str, folder: &Path) -> PathBuf {
    let path = folder.join("seen");
    let mut command = Command::new("timeout");
    command.args(["--signal=KILL", "120", "nbdcopy", uri]);
    let output = ended(command.arg(&path));
    assert!(output.status.success(), "{uri}: {output:?}");
    path
}

/// Checks the images of a disk that nobody has open, and compares them with what was seen of it.
pub(crate) fn compare(plan: &Plan, seen: &Path) {
    let layers: Vec<_> = plan.layers().map(|one| vhd::Layer::Vhd(&one.path)).collect();
    let bad = |finding: &Finding| finding.code.severity() >= Severity::Warning;
    let wrong: Vec<_> = check_chain(&layers).into_iter().filter(bad).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
    let chain = vhd::Chain::open(&layers, Mode::Read).unwrap();
    let seen = std::fs::File::open(seen).unwrap();
    assert_eq!(seen.metadata().unwrap().len(), SIZE);
    let (mut one, mut other) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    for at in (0..SIZE).step_by(one.len()) {
        chain.read_at(at, &mut one).unwrap();
        seen.read_exact_at(&mut other, at).unwrap();
        let differ = one.iter().zip(&other).position(|(one, other)| one != other);
        assert_eq!(differ.map(|within| at + within as u64), None, "first byte that differs");
    }
}
