//! No path is left.

use std::time::Duration;

use lab::kit::multipath;
use lab::{Guest, Lab, Result, Running};

use crate::array::{Place, lun, smctl, told};

const SOON: Duration = Duration::from_secs(60);

/// The first blocks of the disk, of 64 KiB, are written one after the other, again and again.
const BLOCKS: u64 = 64;

/// Writes number after number, each filling the next block, and says each that was written.
const WRITER: &str = "n=$1; while [ ! -e /run/stop ]; do n=$((n + 1)); printf '%065536d' $n | \
    dd of=$0 bs=64k seek=$((n % 64)) count=1 iflag=fullblock oflag=direct conv=notrunc status=none \
    || exit 1; echo $n; done";

/// The number in each of these blocks after an `n`, a line each; none where nothing was written.
const NUMBERS: &str = "dd if=$0 bs=64k count=64 iflag=direct status=none | tr '\\0' 0 | \
    fold -w 65536 | sed 's/^0*/n/'";

/// The rest of the disk, which nobody writes.
const REST: &str = "dd if=$0 bs=64k skip=64 iflag=direct status=none | sha256sum";

/// A disk of this host, and the last number that was written for certain.
struct Disk<'a> {
    host: &'a Guest,
    device: String,
    written: u64,
}

impl Disk<'_> {
    fn start(&self) -> Result<Running> {
        self.host.check(["rm", "-f", "/run/stop"])?;
        let from = self.written.to_string();
        self.host.command(["sh", "-c", WRITER, &self.device, &from]).start()
    }

    /// Waits until more was written than was before.
    fn goes_on(&self, writer: &Running) -> Result<()> {
        let before = last(&writer.so_far());
        self.host.wait_for("writes", SOON, |_| {
            let now = last(&writer.so_far());
            let fine = now > before.max(self.written) + 3 && writer.ended().is_none();
            Ok(if fine { Ok(()) } else { Err(format!("{before}, then {now}")) })
        })
    }

    /// Each block has the last number that was written to it; the one after the last of all, where
    /// the writer was refused, may have its new one.
    fn is_whole(&self, refused: bool) -> Result<()> {
        let text = self.host.check(["sh", "-c", NUMBERS, &self.device])?;
        let number = |line: &str| match line.strip_prefix('n') {
            Some("") => 0,
            number => number.and_then(|number| number.parse().ok()).unwrap(),
        };
        let found: Vec<u64> = text.lines().map(number).collect();
        assert_eq!(found.len() as u64, BLOCKS);
        for (place, found) in (0..BLOCKS).zip(found) {
            let back = (self.written + BLOCKS - place) % BLOCKS;
            let expected = self.written.saturating_sub(back);
            let next = refused && found == self.written + 1 && found % BLOCKS == place;
            assert!(next || found == expected, "block {place}: {found}, not {expected}");
        }
        Ok(())
    }
}

/// The last number that a writer has said.
fn last(said: &str) -> u64 {
    let whole = said.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().next_back().and_then(|line| line.parse().ok()).unwrap_or(0)
}

/// Whether a guest waits or gets errors is multipath's to decide (`no_path_retry`). Either way what was
/// written is there when the paths are back, and the disk goes on without another attach.
#[test]
fn without_a_path_a_disk_waits_or_fails_as_the_host_has_it_and_keeps_its_data() -> Result<()> {
    let lab = Lab::new()?;
    let place = Place::new(&lab, &[(1, 128)])?;
    let host = &place.host;
    let smctl = smctl(host);
    place.create("san", &lun(1, 128))?;
    let raw = ["--size", "32MiB", "--format", "raw"];
    smctl.check(&[&["vdi", "create", "--sr", "san", "--name", "disk"][..], &raw].concat())?;
    let attached = smctl.check(&["vdi", "attach", "disk"])?;
    let device = attached.strip_prefix("block device ").unwrap().to_owned();
    let fill = "dd if=/dev/urandom of=$0 bs=64k seek=64 count=448 oflag=direct status=none";
    host.check(["sh", "-c", fill, &device])?;
    let rest = host.check(["sh", "-c", REST, &device])?;
    let mut disk = Disk { host, device, written: 0 };
    let unplug = || place.networks.iter().for_each(|network| network.unplug(host));
    let plug = || place.networks.iter().for_each(|network| network.plug(host));

    // The host has guests wait.
    multipath::when_no_path_is_left(host, "queue")?;
    let writer = disk.start()?;
    disk.goes_on(&writer)?;
    unplug();
    multipath::wait_for(host, 0, 2, SOON)?;
    let waits = last(&writer.so_far());
    let (kind, code, message) = told(&smctl.refused(&["sr", "stat", "san"])?);
    let [first, second] = place.portals;
    let said = format!("none of 2 paths to the LUN is up: {first}:3260: ");
    assert_eq!((kind.as_str(), code), ("unreachable", 47), "{message}");
    assert!(
        message.starts_with(&said) && message.contains(&format!("; {second}:3260: ")),
        "{message}"
    );
    assert_eq!((last(&writer.so_far()), writer.ended()), (waits, None));
    plug();
    multipath::wait_for(host, 2, 0, SOON)?;
    disk.goes_on(&writer)?;
    host.write("/run/stop", "")?;
    let output = writer.wait(SOON)?;
    assert_eq!((output.status, output.errors().as_str()), (0, ""));
    disk.written = last(&format!("{}\n", output.text()));
    disk.is_whole(false)?;

    // The host has them fail.
    multipath::when_no_path_is_left(host, "fail")?;
    let writer = disk.start()?;
    disk.goes_on(&writer)?;
    unplug();
    let output = writer.wait(SOON)?;
    assert_eq!(output.status, 1);
    assert!(output.errors().ends_with("Input/output error"), "{}", output.errors());
    multipath::wait_for(host, 0, 2, SOON)?;
    plug();
    multipath::wait_for(host, 2, 0, SOON)?;
    disk.written = last(&format!("{}\n", output.text()));
    disk.is_whole(true)?;

    // Nothing has to be attached anew.
    let writer = disk.start()?;
    disk.goes_on(&writer)?;
    host.write("/run/stop", "")?;
    let output = writer.wait(SOON)?;
    disk.written = last(&format!("{}\n", output.text()));
    disk.is_whole(false)?;
    assert_eq!(host.check(["sh", "-c", REST, &disk.device])?, rest);
    smctl.check(&["vdi", "detach", "disk"])?;
    smctl.check(&["sr", "detach", "san"])?;
    assert_eq!(place.sessions(), 0);
    Ok(())
}
