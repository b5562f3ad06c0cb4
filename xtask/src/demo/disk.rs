//! A disk image with an ext4 file system whose files are known.

use std::path::{Path, PathBuf};

use crate::failure::{Doing, Failure, Result};
use crate::tool::{Tool, find};

/// Name of the list of sums, a file in the disk itself.
const SUMS: &str = "SHA256SUMS";

/// An image and the sums of its files.
pub(super) struct Disk {
    pub(super) image: PathBuf,
    /// The list of sums, outside of the image.
    sums: PathBuf,
    work: PathBuf,
}

impl Disk {
    /// Makes an image of 256 MiB with some 60 MB in files of many sizes. No root is needed: the
    /// file system is filled by its own tools, not mounted.
    pub(super) fn make(work: &Path, name: &str) -> Result<Self> {
        let files = work.join("files");
        let doing = || format!("write files in {}", files.display());
        std::fs::create_dir_all(files.join("data")).doing(doing)?;
        let mut random = Random(0x5eed);
        for n in 0..40_u64 {
            // From a few bytes to 6 MB; lengths that are no multiple of anything.
            let length = (n * n * n * 100 + n) as usize;
            let bytes = random.bytes(length);
            std::fs::write(files.join(format!("data/file-{n:02}")), bytes).doing(doing)?;
        }
        std::fs::write(files.join("motd"), "version 1\n").doing(doing)?;
        let disk = Self::of(work, name, &files)?;
        ext4("mkfs.ext4")
            .args(["-q", "-F", "-d"])
            .arg(&files)
            .arg(&disk.image)
            .arg("256M")
            .run()?;
        Ok(disk)
    }

    /// Notes the sums of all files below `files`, and puts the list among them.
    fn of(work: &Path, name: &str, files: &Path) -> Result<Self> {
        let disk = Self {
            image: work.join(name),
            sums: work.join(format!("{name}.sums")),
            work: work.to_owned(),
        };
        let script = "find . -type f ! -name SHA256SUMS -print0 | LC_ALL=C sort -z | \
                      xargs -0 sha256sum";
        let sums = Tool::new("sh").args(["-c", script]).directory(files).run()?.stdout;
        for path in [&disk.sums, &files.join(SUMS)] {
            std::fs::write(path, &sums).doing(|| format!("write {}", path.display()))?;
        }
        Ok(disk)
    }

    /// What a guest makes of the disk: files added, removed and rewritten, by the file system's
    /// own tool, in a copy of the image.
    pub(super) fn changed(&self, work: &Path, name: &str) -> Result<Self> {
        let files = work.join("files");
        let doing = || format!("change files in {}", files.display());
        let new = Random(0xfeed).bytes(3_000_001);
        std::fs::write(files.join("data/file-new"), new).doing(doing)?;
        std::fs::write(files.join("motd"), "version 2, upgraded\n").doing(doing)?;
        std::fs::remove_file(files.join("data/file-20")).doing(doing)?;
        let after = Self::of(work, name, &files)?;
        Tool::new("cp").arg("--sparse=always").arg(&self.image).arg(&after.image).run()?;
        let commands = "rm data/file-20\nrm motd\nrm SHA256SUMS\n\
                        write files/data/file-new data/file-new\nwrite files/motd motd\n\
                        write files/SHA256SUMS SHA256SUMS\n";
        let script = work.join("debugfs.commands");
        std::fs::write(&script, commands).doing(|| "write the commands of debugfs".to_owned())?;
        ext4("debugfs").arg("-w").arg("-f").arg(&script).arg(&after.image).directory(work).run()?;
        // debugfs tells trouble in words, not by its exit status; the check does.
        after.files_are_right(&after.image)?;
        Ok(after)
    }

    /// Whether the file system in an image is sound and holds exactly the files it should.
    pub(super) fn files_are_right(&self, image: &Path) -> Result<()> {
        ext4("e2fsck").arg("-fn").arg(image).run()?;
        let out = tempfile::tempdir_in(&self.work).doing(|| "make a directory".to_owned())?;
        let dump = format!("rdump / {}", out.path().display());
        ext4("debugfs").args(["-R", &dump]).arg(image).run()?;
        let check = ["--check", "--strict", "--quiet"];
        Tool::new("sha256sum").args(check).arg(&self.sums).directory(out.path()).run()?;
        let sums = std::fs::read_to_string(&self.sums).doing(|| "read the sums".to_owned())?;
        let found = Tool::new("find").args([".", "-type", "f"]).directory(out.path()).run()?.stdout;
        // The list is no entry of its own.
        if found.lines().count() != sums.lines().count() + 1 {
            return Err(Failure::new(format!("{} holds other files too", image.display())));
        }
        Ok(())
    }

    /// Whether the file system in a larger disk can use the new space.
    pub(super) fn grows(&self, image: &Path) -> Result<()> {
        let blocks = |image: &Path| -> Result<u64> {
            let told = ext4("dumpe2fs").arg("-h").arg(image).run()?.stdout;
            let line = told.lines().find_map(|line| line.strip_prefix("Block count:"));
            line.and_then(|line| line.trim().parse().ok())
                .ok_or_else(|| Failure::new("dumpe2fs tells no block count").cause(&told))
        };
        ext4("e2fsck").arg("-fp").arg(image).run()?;
        let before = blocks(image)?;
        ext4("resize2fs").arg(image).run()?;
        let after = blocks(image)?;
        if after != before * 2 {
            return Err(Failure::new(format!("the file system grew from {before} to {after}")));
        }
        self.files_are_right(image)
    }
}

/// Whether two files are the same, byte for byte, by `cmp`.
pub(super) fn compare(one: &Path, other: &Path) -> Result<()> {
    Tool::new("cmp").arg(one).arg(other).run().map(drop)
}

/// A tool of ext4; not everybody has `/usr/sbin` in PATH.
fn ext4(program: &str) -> Tool {
    Tool::new(find(program).unwrap_or_else(|| program.into()))
}

/// Bytes that look random and are the same in every run.
struct Random(u64);

impl Random {
    fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length + 8);
        while bytes.len() < length {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            bytes.extend((self.0 >> 16).to_le_bytes().into_iter().take(6));
        }
        bytes.truncate(length);
        bytes
    }
}
