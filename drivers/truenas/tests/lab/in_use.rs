//! Snapshots of LUNs that are in use, by the coordinator: one with a file system that the real guest
//! agent has at rest, and two that a program moves amounts between.
//!
//! The host is also the guest, so what is frozen there is frozen nowhere else.

use std::time::Duration;

use array_matrix::lab::Place;
use array_matrix::lab::stations::TrueNas;
use lab::{Lab, Result, Running};
use serde_json::Value;

const AGENT: &str = "/run/qga.sock";
/// Longer than anything in a guest takes.
const LONG: Duration = Duration::from_secs(60);

/// Writes one file after the other, each safe on the disk before its checksum is added to a list
/// elsewhere and the next file begins; for ever.
const WRITER: &str = "cd $0 && n=0; while :; do n=$((n+1)); head -c 16384 /dev/urandom > $n; \
                      sum=$(sha256sum $n); sync $n || exit 1; echo \"$sum\" >> $1; done";

/// Moves amounts from the first disk to the second and back, for ever. The first has the number of the
/// transfer, what it has, and what is on its way; the second the number and what it has. Between two
/// transfers it waits as long as it is told to.
const BANK: &str = "put() { printf '%-4096s' \"$2\" | dd of=$1 bs=4096 count=1 iflag=fullblock \
                    oflag=direct status=none || exit 1; }; n=0; a=5000; b=5000; while :; do \
                    n=$((n+1)); x=$(((n%40+1)*(n%3-1))); \
                    a=$((a-x)); put $0 \"$n $a $x\"; b=$((b+x)); put $1 \"$n $b\"; \
                    echo $n > $2/new; mv $2/new $2/done; \
                    if test -e $2/hold; then echo > $2/held; \
                    while test -e $2/hold; do sleep 0.02; done; fi; done";
/// What both disks have together.
const ALL: i64 = 10_000;
const FOLDER: &str = "/run/bank";
const HOLD: &str = "echo > /run/bank/hold; until test -e /run/bank/held; do sleep 0.02; done";
const GO_ON: &str = "rm -f /run/bank/hold";

/// An SR, before which `before` was all that the array had.
struct Site<'a> {
    place: &'a Place,
    before: Value,
}

impl<'a> Site<'a> {
    fn new(place: &'a Place) -> Result<Self> {
        let before = place.objects()?;
        place.create::<TrueNas>("vms", &[])?;
        Ok(Self { place, before })
    }

    fn disk(&self, name: &str, size: &str) -> Result<String> {
        let words = ["vdi", "create", "--sr", "vms", "--name", name, "--size", size];
        self.place.smctl().check(&words)?;
        self.place.attach(name, &[])
    }

    /// A set of snapshots, and those of these disks.
    fn set<const N: usize>(&self, disks: [&str; N], more: &[&str]) -> Result<(Value, [String; N])> {
        let mut words = vec!["vm-snapshot", "--name", "of the set"];
        words.extend(disks.iter().flat_map(|disk| ["--disk", *disk]));
        let set = self.place.smctl().json(&[&words, more].concat())?;
        let members = set["members"].as_array().unwrap();
        assert_eq!(members.len(), N, "{set}");
        let snapshots = disks.map(|disk| {
            let shown = self.place.smctl().json(&["vdi", "show", disk]).unwrap();
            let member = members.iter().find(|member| member["vdi"] == shown["vdi"]["uuid"]);
            member.unwrap()["snapshot"].as_str().unwrap().to_owned()
        });
        Ok((set, snapshots))
    }

    /// What somebody sees on a clone of a snapshot.
    fn on_a_clone<T>(&self, snapshot: &str, look: impl FnOnce(&str) -> Result<T>) -> Result<T> {
        let smctl = self.place.smctl();
        smctl.check(&["vdi", "clone", snapshot, "--name", "copy"])?;
        let seen = look(&self.place.attach("copy", &[])?)?;
        smctl.check(&["vdi", "detach", "copy"])?;
        smctl.check(&["vdi", "destroy", "copy"])?;
        Ok(seen)
    }

    fn destroy_set(&self, set: &Value) -> Result<()> {
        let words = ["snapshot-group", "destroy", set["id"].as_str().unwrap()];
        self.place.smctl().check(&words).map(drop)
    }

    /// Removes it all: nothing is left anywhere.
    fn end(self, disks: &[&str], snapshots: &[&str]) -> Result<()> {
        let smctl = self.place.smctl();
        for disk in disks {
            smctl.check(&["vdi", "detach", disk])?;
        }
        assert_eq!(self.place.left()?, "");
        for vdi in snapshots.iter().chain(disks) {
            smctl.check(&["vdi", "destroy", vdi])?;
        }
        smctl.check(&["sr", "destroy", "vms"])?;
        assert_eq!(self.place.objects()?, self.before);
        Ok(())
    }
}

fn start_agent(place: &Place) -> Result<Running> {
    place.host.check(["mkdir", "-p", "/run/qga"])?;
    let words = ["qemu-ga", "--method", "unix-listen", "--path", AGENT];
    let words = [&words[..], &["--statedir", "/run/qga", "--pidfile", "/run/qga/pid"]].concat();
    let agent = place.host.command(words).start()?;
    place.host.wait_for("the agent", LONG, |guest| {
        let there = guest.run(["test", "-S", AGENT])?.status == 0;
        Ok(there.then_some(()).ok_or_else(|| "no socket".to_owned()))
    })?;
    Ok(agent)
}

/// Waits until a number in a guest has become larger by three; what it was before.
fn goes_on(place: &Place, script: &str) -> Result<u64> {
    let number =
        || -> Result<u64> { Ok(place.host.run(["sh", "-c", script])?.text().parse().unwrap_or(0)) };
    let before = number()?;
    place.host.wait_for("more to be written", LONG, |_| {
        let now = number()?;
        Ok(if now >= before + 3 { Ok(()) } else { Err(format!("{before}, {now}")) })
    })?;
    Ok(before)
}

/// Ends a program, so that nothing is in use any more.
fn stop(program: Running) -> Result<()> {
    program.kill();
    program.wait(LONG).map(drop)
}

fn needs_recovery(place: &Place, device: &str) -> Result<bool> {
    Ok(place.host.check(["dumpe2fs", "-h", device])?.contains("needs_recovery"))
}

#[test]
fn ext4_on_a_lun_is_at_rest_in_a_snapshot_with_a_real_agent() -> Result<()> {
    let lab = Lab::new()?;
    let place = Place::new::<TrueNas>(&lab)?;
    let (site, host) = (Site::new(&place)?, &place.host);
    let device = site.disk("files", "128MiB")?;
    host.check(["mkfs.ext4", "-q", &device])?;
    host.check(["sh", "-c", "mkdir -p /srv/files && mount $0 /srv/files", &device])?;
    host.write("/run/sums", "")?;
    let agent = start_agent(&place)?;
    let writer = host.command(["sh", "-c", WRITER, "/srv/files", "/run/sums"]).start()?;
    let lines = "wc -l < /run/sums";
    goes_on(&place, lines)?;

    // A snapshot without the guest's help is as after a power cut: so what follows can fail.
    place.smctl().check(&["vdi", "snapshot", "files", "--name", "live"])?;
    assert!(site.on_a_clone("live", |device| needs_recovery(&place, device))?);

    let safe: u64 = host.check(["sh", "-c", lines])?.parse().unwrap();
    let (set, [snapshot]) = site.set(["files"], &["--agent", AGENT, "--mount", "/srv/files"])?;
    assert_eq!(set["consistency"], "fs-consistent", "{set}");
    goes_on(&place, lines)?;
    site.on_a_clone(&snapshot, |device| {
        assert!(!needs_recovery(&place, device)?);
        host.check(["e2fsck", "-fn", device])?;
        // Without its journal: all has to be in its place.
        host.check(["mount", "-o", "ro,noload", device, "/mnt"])?;
        let names = host.check(["sh", "-c", "ls /mnt | grep -v lost+found | sort -n"])?;
        let names: Vec<u64> = names.lines().map(|name| name.parse().unwrap()).collect();
        assert!(names.iter().copied().eq(1..=names.len() as u64), "{names:?}");
        // The last one was perhaps being written.
        let whole = names.len() as u64 - 1;
        assert!(whole + 1 >= safe, "{safe} were safe, {} are there", names.len());
        let count = whole.max(safe).to_string();
        let compare = "cd /mnt && head -n $0 /run/sums | sha256sum --check --strict --quiet -";
        host.check(["sh", "-c", compare, &count])?;
        host.check(["umount", "/mnt"]).map(drop)
    })?;

    stop(writer)?;
    host.check(["umount", "/srv/files"])?;
    stop(agent)?;
    site.destroy_set(&set)?;
    site.end(&["files"], &["live"])
}

/// The numbers at the front of a device.
fn numbers(place: &Place, device: &str) -> Result<Vec<i64>> {
    let from = format!("if={device}");
    let words = ["dd", &from, "bs=4096", "count=1", "iflag=direct", "status=none"];
    let text = place.host.check(words)?;
    Ok(text.split_whitespace().map(|word| word.parse().unwrap()).collect())
}

/// Numbers of the last transfer on both disks of snapshots, and what is there in all.
fn counted(site: &Site<'_>, snapshots: &[String; 2]) -> Result<(i64, i64, i64)> {
    let read = |snapshot: &str| site.on_a_clone(snapshot, |device| numbers(site.place, device));
    let (first, second) = (read(&snapshots[0])?, read(&snapshots[1])?);
    let ([n, purse, moved], [m, vault]) = (&first[..], &second[..]) else {
        panic!("{first:?}, {second:?}")
    };
    let on_its_way = if n > m { *moved } else { 0 };
    Ok((*n, *m, purse + vault + on_its_way))
}

#[test]
fn nothing_is_lost_between_two_disks_of_a_set() -> Result<()> {
    let lab = Lab::new()?;
    let place = Place::new::<TrueNas>(&lab)?;
    let (site, host) = (Site::new(&place)?, &place.host);
    let disks = ["purse", "vault"];
    let devices = [site.disk(disks[0], "16MiB")?, site.disk(disks[1], "16MiB")?];
    host.check(["mkdir", "-p", FOLDER])?;
    host.write("/run/hold", HOLD)?;
    host.write("/run/go-on", GO_ON)?;
    let bank = host.command(["sh", "-c", BANK, &devices[0], &devices[1], FOLDER]).start()?;
    let done = "cat /run/bank/done";
    let mut before = 0;
    for _ in 0..3 {
        let least = i64::try_from(goes_on(&place, done)?).unwrap();
        let (set, snapshots) = site.set(disks, &["--allow-crash-consistent"])?;
        assert_eq!(set["consistency"], "crash-consistent", "{set}");
        assert_eq!(set["one_point_in_time"], true, "{set}");
        let (n, m, all) = counted(&site, &snapshots)?;
        assert!(n == m || n == m + 1, "{n} and {m} were never there at once");
        assert_eq!(all, ALL, "transfer {n}, {m}");
        assert!(m >= least && m > before, "{m} is older than the request: {least}, {before}");
        before = m;
        site.destroy_set(&set)?;
    }

    // One after the other is not the same.
    let smctl = place.smctl();
    smctl.check(&["vdi", "snapshot", disks[0], "--name", "first"])?;
    goes_on(&place, done)?;
    smctl.check(&["vdi", "snapshot", disks[1], "--name", "second"])?;
    let (n, m, _) = counted(&site, &["first".to_owned(), "second".to_owned()])?;
    assert!(m > n, "one after the other: {n} and {m}");

    // At rest between two transfers nothing is on its way.
    let (set, snapshots) = site.set(disks, &["--exec", "sh /run/hold,sh /run/go-on"])?;
    assert_eq!(set["consistency"], "app-consistent", "{set}");
    let (n, m, all) = counted(&site, &snapshots)?;
    assert_eq!((n, all), (m, ALL));
    goes_on(&place, done)?;

    stop(bank)?;
    site.destroy_set(&set)?;
    site.end(&disks, &["first", "second"])
}
