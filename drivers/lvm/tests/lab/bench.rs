//! What the tests have in common.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::time::{Duration, Instant};

use lab::{Builder, Lab};
use plugin_sdk::model::operation::Request;
use plugin_sdk::prelude::*;
use plugin_sdk::testing::{self, Opened, TestHost};
use sm_driver_lvm::LvmDriver;

pub(crate) const MIB: u64 = 1 << 20;

/// A guest with LVM's modules and disks of these sizes, in MiB.
pub(crate) fn machine(lab: &Lab, disks: &[u64]) -> lab::Result<Builder> {
    let mut guest =
        lab.guest("host").modules(&["dm-mod", "dm-thin-pool", "dm-snapshot", "loop", "ext4"]);
    for (number, size) in disks.iter().enumerate() {
        guest = guest.disk(&lab.disk(&format!("disk-{number}"), size * MIB)?);
    }
    Ok(guest)
}

/// Runs a program of the guest; the test ends if it fails.
pub(crate) fn sh(words: &[&str]) -> String {
    let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// An SR's driver in a guest.
pub(crate) struct Bench {
    pub(crate) host: TestHost,
    pub(crate) driver: Opened<LvmDriver>,
    pub(crate) sr: SrUuid,
}

/// Lets LVM work in this guest. Nothing of it may ever run on the machine.
pub(crate) fn prepare() {
    assert!(lab::inside(), "this would change the disks of the machine");
    std::fs::create_dir_all("/etc/lvm").unwrap();
    for (file, text) in lab::kit::lvm::FILES {
        std::fs::write(file, text).unwrap();
    }
}

impl Bench {
    pub(crate) fn open(sr: SrUuid, config: &[(&str, &str)]) -> Self {
        prepare();
        let host = TestHost::new();
        let driver = testing::run(host.open::<LvmDriver>(sr, config)).unwrap();
        Self { host, driver, sr }
    }

    /// With an SR on these devices, attached.
    pub(crate) fn with_sr(config: &[(&str, &str)]) -> Self {
        let bench = Self::open(SrUuid::random(), config);
        bench.call(SrCreate::default());
        bench.call(SrAttach::default());
        bench
    }

    pub(crate) fn call<R: Request>(&self, request: R) -> R::Reply {
        self.called(OperationId::random(), request)
    }

    pub(crate) fn called<R: Request>(&self, id: OperationId, request: R) -> R::Reply {
        testing::run(async { self.driver.call(request).operation_id(id).await }).unwrap()
    }

    /// As [`Self::call`], where the answer is of no interest.
    pub(crate) fn done<R: Request>(&self, request: R) {
        self.call(request);
    }

    pub(crate) fn fails<R: Request>(&self, request: R) -> Error
    where
        R::Reply: std::fmt::Debug,
    {
        testing::run(async { self.driver.call(request).await }).unwrap_err()
    }

    pub(crate) fn create(&self, name: &str, size: u64) -> VdiInfo {
        self.call(create(name, size)).vdi
    }

    pub(crate) fn snapshot(&self, of: VdiUuid, name: &str) -> VdiInfo {
        self.call(snapshot(of, name)).vdis.remove(0)
    }

    /// Attaches and activates; the device.
    pub(crate) fn attach(&self, vdi: VdiUuid, mode: AttachMode) -> String {
        let attached = self.call(VdiAttach { vdi, mode });
        self.call(activate(vdi, mode));
        let [Access::BlockDevice { path }] = &attached.access[..] else { panic!("{attached:?}") };
        path.to_string()
    }

    pub(crate) fn detach(&self, vdi: VdiUuid) {
        self.call(VdiDeactivate { vdi });
        self.call(VdiDetach { vdi });
    }

    pub(crate) fn scan(&self) -> BTreeMap<VdiUuid, VdiInfo> {
        let scanned = self.call(SrScan::default());
        scanned.vdis.into_iter().map(|vdi| (vdi.uuid, vdi)).collect()
    }

    /// The commands of LVM that a piece of work takes.
    pub(crate) fn commands(&self, count: usize, work: impl FnOnce()) -> Vec<String> {
        let before = self.host.commands().len();
        work();
        let end = Instant::now() + Duration::from_secs(10);
        // The record of a command is sent beside the call.
        while self.host.commands().len() < before + count && Instant::now() < end {
            std::thread::yield_now();
        }
        let name = |argv: &[String]| {
            if argv[0] == "lvm" { argv[1].clone() } else { argv[0].clone() }
        };
        self.host.commands()[before..].iter().map(|record| name(&record.argv)).collect()
    }
}

pub(crate) fn create(name: &str, size: u64) -> VdiCreate {
    serde_json::from_value(serde_json::json!({
        "uuid": VdiUuid::random(), "name": name, "virtual_size": size,
    }))
    .unwrap()
}

pub(crate) fn snapshot(of: VdiUuid, name: &str) -> VdiSnapshot {
    serde_json::from_value(serde_json::json!({
        "time": 1_700_000_000,
        "snapshots": [{ "vdi": of, "uuid": VdiUuid::random(), "name": name }],
    }))
    .unwrap()
}

pub(crate) fn clone(of: VdiUuid, name: &str) -> VdiClone {
    serde_json::from_value(
        serde_json::json!({ "vdi": of, "uuid": VdiUuid::random(), "name": name }),
    )
    .unwrap()
}

pub(crate) fn activate(vdi: VdiUuid, mode: AttachMode) -> VdiActivate {
    serde_json::from_value(serde_json::json!({ "vdi": vdi, "mode": mode })).unwrap()
}

/// Writes a pattern, and has it on the storage.
pub(crate) fn write(device: &str, at: u64, pattern: u8, length: u64) {
    let file = File::options().write(true).open(device).unwrap();
    file.write_all_at(&vec![pattern; length as usize], at).unwrap();
    file.sync_all().unwrap();
}

/// Whether the kernel refuses a write to a device. (It lets root open it for writing.)
pub(crate) fn refuses_writes(device: &str) -> bool {
    let file = File::options().write(true).open(device).unwrap();
    file.write_all_at(&[0; 4096], 0).and_then(|()| file.sync_all()).is_err()
}

/// Whether a range has nothing but that byte.
pub(crate) fn is_all(device: &str, at: u64, pattern: u8, length: u64) -> bool {
    let mut bytes = vec![!pattern; length as usize];
    File::open(device).unwrap().read_exact_at(&mut bytes, at).unwrap();
    bytes.iter().all(|byte| *byte == pattern)
}

/// The size of a device.
pub(crate) fn size_of(device: &str) -> u64 {
    sh(&["blockdev", "--getsize64", device]).parse().unwrap()
}
