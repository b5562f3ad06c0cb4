//! Checksums of what is imported, exported and copied, compared with those of other programs.

use std::os::unix::fs::FileExt;
use std::process::Command;

use sm_core::model::{ImageFormat, Kind};
use sm_core::{Checks, Checksum, ExportTarget, ImportSource, JobState, NewVdi, Op};

use crate::typed::text;
use crate::{PLACEMENTS, Site};

/// A file with holes, and what is in it here and there.
fn sparse(path: &str, size: u64, places: &[u64]) {
    let file = std::fs::File::create(path).unwrap();
    file.set_len(size).unwrap();
    for (n, place) in places.iter().enumerate() {
        file.write_all_at(&vec![n as u8 + 1; 100_000], *place).unwrap();
    }
}

/// What `sha256sum` says.
fn sum_of(path: &str) -> Checksum {
    let output = Command::new("sha256sum").arg(path).output().unwrap();
    assert!(output.status.success());
    format!("sha256:{}", text(&output.stdout).split(' ').next().unwrap()).parse().unwrap()
}

/// What `sha256sum` says of the content of a VHD, as `qemu-img` reads it.
fn sum_of_vhd(site: &Site, path: &str) -> Checksum {
    let raw = site.folder.join("qemu.raw");
    let arguments = ["convert", "-f", "vpc", "-O", "raw", path, raw.as_str()];
    assert!(Command::new("qemu-img").args(arguments).status().unwrap().success());
    sum_of(raw.as_str())
}

fn named(name: &str) -> NewVdi {
    NewVdi { name: name.into(), ..NewVdi::default() }
}

#[tokio::test]
async fn the_checksum_of_a_disk_is_that_of_its_bytes_whatever_it_is_stored_as() {
    for placement in PLACEMENTS {
        let site = Site::new(placement).await;
        let raw = site.folder.join("in.raw");
        sparse(raw.as_str(), 24 << 20, &[0, 5 << 20, 12_345_678, (24 << 20) - 100_000]);
        let whole = sum_of(raw.as_str());
        let all = Checks { checksum: true, expected: Some(whole), verify: true };
        let source = ImportSource::File { path: raw, format: None };
        let made = site.sr.import_checked(&Op::new(), source, named("a"), all).await.unwrap();
        assert_eq!(made.checksum, Some(whole));
        for format in [ImageFormat::Vhd, ImageFormat::Raw] {
            let new = NewVdi { format: Some(format), ..named("b") };
            let op = Op::new();
            let copy = site.sr.copy_checked(&op, made.vdi.uuid, &site.sr, new, all).await.unwrap();
            assert_eq!(copy.checksum, Some(whole), "{format}");
            for to in [ImageFormat::Vhd, ImageFormat::Raw] {
                let path = site.folder.join(format!("{format}.{to}"));
                let target = ExportTarget { path: path.clone(), format: to, overwrite: false };
                let op = Op::new();
                let done = site.sr.export_checked(&op, copy.vdi.uuid, target.clone(), all);
                assert_eq!(done.await.unwrap().checksum, Some(whole), "{format} to {to}");
                let again = site.sr.export_checked(&op, copy.vdi.uuid, target, all).await;
                assert_eq!(again.unwrap().checksum, Some(whole), "the same wish again");
                let found = match to {
                    ImageFormat::Vhd => sum_of_vhd(&site, path.as_str()),
                    ImageFormat::Raw => sum_of(path.as_str()),
                };
                assert_eq!(found, whole, "{format} to {to}");
            }
        }
        // Nobody asked: nobody took it.
        let path = site.folder.join("plain.raw");
        let target = ExportTarget { path, format: ImageFormat::Raw, overwrite: false };
        let done = site.sr.export(&Op::new(), made.vdi.uuid, target).await.unwrap();
        assert_eq!(done.checksum, None);
    }
}

#[tokio::test]
async fn content_that_is_not_what_was_expected_is_not_kept() {
    let site = Site::new(PLACEMENTS[0]).await;
    let raw = site.folder.join("in.raw");
    sparse(raw.as_str(), 8 << 20, &[1 << 20]);
    let (whole, other) = (sum_of(raw.as_str()), format!("sha256:{}", "0".repeat(64)));
    let checks = Checks { expected: Some(other.parse().unwrap()), ..Checks::default() };
    let source = ImportSource::File { path: raw.clone(), format: None };
    let error = site.sr.import_checked(&Op::new(), source, named("a"), checks).await.unwrap_err();
    assert_eq!(error.kind, Kind::Corrupt);
    assert_eq!(error.message, format!("the content has the checksum {whole}, not {other}"));
    assert_eq!(site.sr.vdis(&Op::new()).await.unwrap(), []);
    assert_eq!(site.manager.jobs().unwrap()[0].state, JobState::Failed);

    // The same as typed, and from a stream.
    let raw = raw.as_str();
    site.refuses(
        &["vdi", "import", raw, "--name", "a", "--checksum", &other],
        13,
        &format!("the content has the checksum {whole}, not {other}"),
    );
    let said = site.fails(&["vdi", "import", raw, "--name", "a", "--checksum", "md5:1"], 2);
    assert!(said.contains("is no checksum: sha256: and 64 hexadecimal digits"), "{said}");
    let words = ["vdi", "import", "-", "--name", "s", "--size", "8MiB", "--verify", "--checksum"];
    for (sum, good) in [(whole.to_string(), true), (other, false)] {
        let mut import = site.command(&words);
        import.arg(&sum).stdin(std::fs::File::open(raw).unwrap());
        assert_eq!(import.output().unwrap().status.success(), good);
    }
    let vdis = site.json(&["vdi", "list"])["vdis"].clone();
    assert_eq!((vdis.as_array().unwrap().len(), &vdis[0]["name"]), (1, &"s".into()));

    let whole = whole.to_string();
    let printed = site.ok(&["vdi", "export", "s", "s.vhd", "--checksum", "--verify"]);
    assert!(printed.ends_with(&format!("is written to s.vhd\n{whole}")), "{printed}");
    let copied = site.json(&["vdi", "copy", "s", "--name", "c", "--checksum"]);
    assert_eq!(copied["checksum"], whole.as_str());
    let jobs = site.json(&["job", "list"])["jobs"].clone();
    let job = jobs.as_array().unwrap().last().unwrap().clone();
    assert_eq!((&job["kind"], &job["checksum"]), (&"copy".into(), &whole.as_str().into()));
    assert!(site.ok(&["job", "show", job["id"].as_str().unwrap()]).contains(&whole));
}

/// The beginning was copied by a process that died; its source may be another one by now.
#[tokio::test]
async fn a_job_that_goes_on_has_the_checksum_of_the_whole() {
    let site = Site::new(PLACEMENTS[0]).await;
    let raw = site.folder.join("in.raw");
    let size = 600_u64 << 20;
    sparse(raw.as_str(), size, &[0, 100 << 20, 300 << 20, 599 << 20]);
    let whole = sum_of(raw.as_str()).to_string();
    // Cut behind the first 256 MiB, which are safe by then.
    let cut = |id: &str, words: &[&str], visit: u32| {
        let mut command = site.command(words);
        command.arg(format!("--operation-id={id}"));
        command.env("SM_STEP_KILL", format!("job.copying:{visit}"));
        assert!(!command.output().unwrap().status.success(), "it is killed");
        let job = site.json(&["job", "show", id]);
        assert_eq!(job["state"], "interrupted");
        assert!(job["bytes_done"].as_u64().unwrap() >= 256 << 20, "{job}");
    };
    let id = "11111111-1111-4111-8111-111111111111";
    let words = ["vdi", "import", raw.as_str(), "--name", "a", "--checksum", &whole];
    cut(id, &words, 12);
    let done = site.json(&["job", "resume", id]);
    assert_eq!(done["checksum"], whole.as_str());

    let id = "22222222-2222-4222-8222-222222222222";
    cut(id, &["vdi", "copy", "a", "--name", "b", "--checksum"], 12);
    assert_eq!(site.json(&["job", "resume", id])["checksum"], whole.as_str());
    site.ok(&["vdi", "export", "b", "b.vhd"]);
    let path = site.folder.join("b.vhd");
    assert_eq!(sum_of_vhd(&site, path.as_str()).to_string(), whole);

    // The file has changed in between: what was copied before is not what is there now.
    let id = "33333333-3333-4333-8333-333333333333";
    let words = ["vdi", "import", raw.as_str(), "--name", "c", "--verify"];
    cut(id, &words, 12);
    let file = std::fs::File::options().write(true).open(&raw).unwrap();
    file.write_all_at(b"changed", 50).unwrap();
    let now = sum_of(raw.as_str());
    let said = site.fails(&["job", "resume", id], 13);
    let line = format!("smctl: what was written reads back with the checksum {whole}, not {now}");
    assert_eq!(said.lines().next(), Some(line.as_str()), "{said}");
    assert_eq!(site.json(&["vdi", "list"])["vdis"].as_array().unwrap().len(), 2);
}
