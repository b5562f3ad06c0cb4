//! A disk that is served by a process of its own, and its images.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use datapath::control::{self, Client, Place};
use datapath::disk::{Format, Layer, Plan};
use uuid::Uuid;
use vhd::check::{Severity, check_chain};
use vhd::image::{NewImage, ParentLink, create};
use vhd::{Disk as _, Mode};

use crate::ended;

/// Bytes of a disk: so few that writes meet each other often.
pub(crate) const SIZE: u64 = 64 << 20;

/// For a command to the process.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Disk {
    folder: tempfile::TempDir,
    place: Place,
    pub(crate) client: Client,
    pub(crate) plan: Plan,
    /// Images made so far.
    made: u32,
}

fn layer(path: PathBuf) -> Layer {
    Layer { path, format: Format::Vhd }
}

fn identity(index: u32) -> Uuid {
    Uuid::from_u128(0x5000 + u128::from(index))
}

impl Disk {
    /// Makes an empty image and serves it.
    pub(crate) fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("stress-").tempdir().unwrap();
        let path = folder.path().join("0.vhd");
        create(&path, &NewImage { uuid: identity(0), size: SIZE, parent: None }).unwrap();
        let plan = Plan { leaf: layer(path), backing: Vec::new(), read_only: false };
        let place = Place::at(folder.path().join("run/disk"));
        let program = Path::new(env!("CARGO_BIN_EXE_sm-datapath"));
        let mut client = control::start(&place, program).unwrap();
        client.activate(plan.clone(), 1, PATIENCE).unwrap();
        Self { folder, place, client, plan, made: 1 }
    }

    pub(crate) fn uri(&self) -> String {
        self.place.uri()
    }

    /// Images of the chain.
    pub(crate) fn depth(&self) -> usize {
        self.plan.layers().count()
    }

    /// Makes an empty image over the leaf, and the plan with it.
    pub(crate) fn overlay(&mut self) -> Plan {
        let (below, index) = (self.made - 1, self.made);
        self.made += 1;
        let path = self.folder.path().join(format!("{index}.vhd"));
        let link = ParentLink { uuid: identity(below), name: format!("{below}.vhd") };
        create(&path, &NewImage { uuid: identity(index), size: SIZE, parent: Some(link) }).unwrap();
        let mut backing = self.plan.backing.clone();
        backing.insert(0, self.plan.leaf.clone());
        Plan { leaf: layer(path), backing, read_only: false }
    }

    /// Ends the process and compares what its clients saw with what lies there.
    pub(crate) fn compare(mut self) {
        let seen_path = self.folder.path().join("seen");
        let mut command = Command::new("timeout");
        command.args(["--signal=KILL", "60", "qemu-img", "convert", "-f", "raw", "-O", "raw"]);
        let output = ended(command.arg(self.uri()).arg(&seen_path));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        self.client.end(PATIENCE).unwrap();
        let layers: Vec<_> = self.plan.layers().map(|one| vhd::Layer::Vhd(&one.path)).collect();
        let bad = |finding: &vhd::check::Finding| finding.code.severity() >= Severity::Warning;
        let wrong: Vec<_> = check_chain(&layers).into_iter().filter(bad).collect();
        assert!(wrong.is_empty(), "{wrong:?}");
        let chain = vhd::Chain::open(&layers, Mode::Read).unwrap();
        let seen = std::fs::File::open(&seen_path).unwrap();
        assert_eq!(seen.metadata().unwrap().len(), SIZE);
        let (mut one, mut other) = (vec![0; 1 << 20], vec![0; 1 << 20]);
        for at in (0..SIZE).step_by(one.len()) {
            chain.read_at(at, &mut one).unwrap();
            seen.read_exact_at(&mut other, at).unwrap();
            let differ = one.iter().zip(&other).position(|(one, other)| one != other);
            assert_eq!(differ.map(|within| at + within as u64), None, "first byte that differs");
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Also when the test has failed: the process outlives whoever started it.
        let _ = control::end(&self.place, PATIENCE);
    }
}
