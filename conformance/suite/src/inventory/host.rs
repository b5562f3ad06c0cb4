//! What the kernel and LVM of a host say of it: for a host that is the run's alone, such as a guest.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use super::Inventory;

/// How long a report of LVM may take.
const REPORT: Duration = Duration::from_secs(60);

/// Volume groups, volumes and physical volumes that LVM sees here.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Volumes;

/// A volume, as far as it is looked at.
#[derive(Debug, PartialEq, Eq)]
struct Volume {
    name: String,
    taken: Result<u64, String>,
}

impl Inventory for Volumes {
    fn look(&self) -> Result<BTreeSet<String>, String> {
        let mut found = BTreeSet::new();
        for line in report("pvs", "pv_name,vg_name")?.lines() {
            let (device, group) = line.trim().split_once('|').unwrap_or((line.trim(), ""));
            found.insert(format!("physical volume {device}"));
            if !group.is_empty() {
                found.insert(format!("group {group}"));
            }
        }
        let volumes = self.volumes()?;
        found.extend(volumes.into_iter().map(|volume| format!("volume {}", volume.name)));
        Ok(found)
    }

    fn taken(&self) -> Result<u64, String> {
        self.volumes()?.into_iter().map(|volume| volume.taken).sum()
    }
}

impl Volumes {
    #[expect(clippy::unused_self, reason = "it is a part of what an inventory does")]
    fn volumes(self) -> Result<Vec<Volume>, String> {
        let fields = "vg_name,lv_name,lv_size,pool_lv,lv_layout,data_percent";
        let text = report("lvs", fields)?;
        text.lines().map(str::trim).filter(|line| !line.is_empty()).map(volume).collect()
    }
}

/// A volume of a pool takes nothing by itself, the pool what is written in it, any other one its size.
fn volume(line: &str) -> Result<Volume, String> {
    let odd = || format!("lvs answers {line:?}");
    let [group, name, size, pool, layout, percent] =
        line.split('|').collect::<Vec<_>>().try_into().map_err(|_| odd())?;
    let size: u64 = size.parse().map_err(|_| odd())?;
    let taken = if !pool.is_empty() {
        Ok(0)
    } else if layout.contains("pool") {
        // In hundredths of a percent; empty if the pool is not active.
        let hundredths = percent.split_once('.').map(|(whole, part)| format!("{whole}{part}"));
        match hundredths {
            Some(digits) => {
                let hundredths: u64 = digits.parse().map_err(|_| odd())?;
                let taken = u128::from(size) * u128::from(hundredths) / 10_000;
                Ok(u64::try_from(taken).unwrap_or(size))
            }
            None => {
                Err(format!("LVM does not tell what {group}/{name} holds, which is not active"))
            }
        }
    } else {
        Ok(size)
    };
    Ok(Volume { name: format!("{group}/{name}"), taken })
}

/// What a command of LVM reports, a line for each object.
fn report(program: &str, fields: &str) -> Result<String, String> {
    let words = ["--noheadings", "--nosuffix", "--units", "b", "--separator", "|", "-o", fields];
    command(program, &words)
}

/// Runs a command of LVM; what it prints.
pub(crate) fn command(program: &str, words: &[&str]) -> Result<String, String> {
    let fail = |error: std::io::Error| format!("{program}: {error}");
    let mut child = Command::new(program)
        .args(words)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(fail)?;
    let output = child.stdout.take();
    let (send, text) = mpsc::channel();
    // On its own, because reading a pipe has no deadline. It ends with the command.
    std::thread::spawn(move || {
        let mut text = String::new();
        let read = output.map(|mut output| output.read_to_string(&mut text));
        drop(send.send(read.is_some_and(|read| read.is_ok()).then_some(text)));
    });
    let Ok(text) = text.recv_timeout(REPORT) else {
        let _ = child.kill();
        let _ = child.wait();
        return Err(format!("{program} does not end within {} s", REPORT.as_secs()));
    };
    let status = child.wait().map_err(fail)?;
    match text {
        Some(text) if status.success() => Ok(text),
        _ => Err(format!("{program} ended with {status}")),
    }
}

/// Mounts, SCSI disks, sessions of iSCSI and nodes of device-mapper.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kernel;

impl Inventory for Kernel {
    fn look(&self) -> Result<BTreeSet<String>, String> {
        let mut found = BTreeSet::new();
        let mounts = fs::read_to_string("/proc/self/mounts");
        let mounts = mounts.map_err(|error| format!("/proc/self/mounts: {error}"))?;
        let places = mounts.lines().filter_map(|line| line.split(' ').nth(1));
        found.extend(places.map(|place| format!("mount {place}")));
        let said = |path: std::path::PathBuf| {
            fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
        };
        for session in entries("/sys/class/iscsi_session") {
            let target = said(session.join("targetname")).unwrap_or_default();
            found.insert(format!("session to {target}"));
        }
        for device in entries("/sys/block") {
            if let Some(name) = said(device.join("dm/name")) {
                found.insert(format!("dm {name}"));
            } else if device.join("device/scsi_device").exists() {
                let id = said(device.join("device/wwid")).unwrap_or_default();
                found.insert(format!("disk {id}"));
            }
        }
        Ok(found)
    }

    fn taken(&self) -> Result<u64, String> {
        Ok(0)
    }
}

/// What is in a folder; nothing if it is not there, as without the module that makes it.
fn entries(folder: impl AsRef<Path>) -> Vec<std::path::PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_takes_what_is_its_own() {
        let of = |line: &str| volume(line).map(|volume| (volume.name, volume.taken));
        let told = |name: &str, taken| Ok((name.to_owned(), Ok(taken)));
        assert_eq!(of("vg|data|8388608||linear|"), told("vg/data", 8_388_608));
        assert_eq!(of("vg|pool|1000000||thin,pool|12.34"), told("vg/pool", 123_400));
        assert_eq!(of("vg|disk|8388608|pool|thin,sparse|50.00"), told("vg/disk", 0));
        let why = "LVM does not tell what vg/pool holds, which is not active".to_owned();
        assert_eq!(of("vg|pool|1000000||thin,pool|"), Ok(("vg/pool".to_owned(), Err(why))));
        assert_eq!(of("vg|data").unwrap_err(), "lvs answers \"vg|data\"");
    }

    #[test]
    fn what_is_mounted_is_seen() {
        assert!(Kernel.look().unwrap().contains("mount /proc"));
    }
}
