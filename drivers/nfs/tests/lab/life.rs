//! The whole life of SRs, over NFS 3 and 4.2, two of them below one export; then no space.

use crate::site::{EXPORT, Site};

/// What the client asked the server for, since it was mounted: the count of an operation.
fn count(site: &Site, operation: &str) -> u64 {
    let text = site.host.read("/proc/self/mountstats").unwrap();
    let text = String::from_utf8_lossy(&text).into_owned();
    let prefix = format!("{operation}:");
    let lines = text.lines().filter_map(|line| line.trim().strip_prefix(&prefix));
    lines.filter_map(|line| line.split_whitespace().next()?.parse::<u64>().ok()).sum()
}

/// All that the client asked the server for, since it was mounted.
fn requests(site: &Site) -> u64 {
    let text = site.host.read("/proc/self/mountstats").unwrap();
    let text = String::from_utf8_lossy(&text).into_owned();
    let operation = |line: &str| -> Option<u64> {
        let (name, numbers) = line.trim().split_once(": ")?;
        let is_one = name.chars().all(|c| c.is_ascii_uppercase() || c == '_');
        numbers.split_whitespace().next().filter(|_| is_one)?.parse().ok()
    };
    text.lines().filter_map(operation).sum()
}

/// Each part of a path that is walked asks the server, so the folders are opened once, each from the
/// one above it.
fn attach_asks_for_little(site: &Site) {
    site.create("small", &["serverpath=/"]);
    site.ok(&["sr", "detach", "small"]);
    assert_eq!(requests(site), 0);
    site.ok(&["sr", "attach", "small"]);
    let asked = requests(site);
    assert!((1..=100).contains(&asked), "{asked} requests for an attach");
    site.ok(&["sr", "destroy", "small"]);
}

fn life(site: &Site, name: &str, version: &str) -> String {
    let path = if version == "3" { EXPORT } else { "/" };
    let (path, wanted) = (format!("serverpath={path}"), format!("nfsversion={version}"));
    let sr = site.create(name, &[&path, &wanted]);
    let mount = site.mount(&sr);
    assert!(mount.contains(&format!("vers={version},")), "{mount}");
    for option in ["hard", "timeo=200", "retrans=4", "acdirmin=0", "acdirmax=0", "proto=tcp"] {
        assert!(mount.contains(option), "{option}: {mount}");
    }
    let on = |words: &[&str]| site.ok(&[words, &["--sr", name]].concat());
    let disk = on(&["vdi", "create", "--name", "disk", "--size", "32MiB"]);
    let uri = site.attach(name, &disk);
    site.write(&uri, 0xa1, 0, 1024);
    let snap = on(&["vdi", "snapshot", &disk, "--name", "snap"]);
    site.write(&uri, 0xa2, 0, 64);
    on(&["vdi", "detach", &disk]);
    let copy = on(&["vdi", "clone", &snap, "--name", "copy"]);
    on(&["vdi", "resize", &copy, "48MiB"]);
    let uri = site.attach(name, &copy);
    site.holds(&uri, 0xa1, 0, 1024);
    site.holds(&uri, 0, 40 << 10, 64);
    site.write(&uri, 0xa3, 40 << 10, 64);
    on(&["vdi", "detach", &copy]);
    on(&["vdi", "revert", &disk, &snap]);

    // Its name goes with the mount, and comes back with it.
    site.ok(&["sr", "detach", name]);
    assert_eq!(site.mount(&sr), "");
    site.ok(&["sr", "attach", name]);
    let uri = site.attach(name, &disk);
    site.holds(&uri, 0xa1, 0, 1024);
    on(&["vdi", "detach", &disk]);
    assert_eq!(site.json(&["vdi", "list", "--sr", name])["vdis"].as_array().unwrap().len(), 3);
    for vdi in [&disk, &snap, &copy] {
        assert!(on(&["vdi", "check", vdi]).len() < 200);
    }
    sr
}

#[test]
fn an_sr_lives_over_nfs_3_and_over_nfs_4_2_below_one_export() -> lab::Result<()> {
    let site = Site::new()?;
    lab::kit::nfs::client_locks(&site.host)?;
    let old = life(&site, "old", "3");
    let new = life(&site, "new", "4.2");
    // Each has a folder of its own, and one knows nothing of the other.
    for sr in [&old, &new] {
        site.nas.check(["test", "-f", &format!("{EXPORT}/{sr}/.sm/sr.json")])?;
    }

    // A raw disk is copied by the server, which shares the blocks: no byte goes over the wire.
    let raw = ["vdi", "create", "--name", "raw", "--size", "8MiB", "--format", "raw"];
    let raw = site.ok(&[&raw[..], &["--sr", "new"]].concat());
    let file = format!("{EXPORT}/{new}/{raw}.raw");
    site.nas.check([
        "dd",
        "if=/dev/urandom",
        &format!("of={file}"),
        "bs=1M",
        "count=8",
        "conv=notrunc",
    ])?;
    let before = (count(&site, "CLONE"), count(&site, "WRITE"));
    let snap = site.ok(&["vdi", "snapshot", &raw, "--name", "raw snap", "--sr", "new"]);
    assert!(count(&site, "CLONE") > before.0, "the server did not copy");
    let written = count(&site, "WRITE") - before.1;
    assert!(written < 8, "{written} writes for a copy that the server makes");
    site.nas.check(["cmp", &file, &format!("{EXPORT}/{new}/{snap}.raw")])?;

    // Full. XFS keeps a little for itself, so the last of it is written.
    let fill = "fallocate -l $(df --output=avail -B1 \"$1\" | tail -1) \"$1/fill\"; \
                dd if=/dev/zero of=\"$1/rest\" bs=64k 2>/dev/null; \
                dd if=/dev/zero of=\"$1/last\" bs=4k 2>/dev/null; true";
    site.nas.check(["sh", "-c", fill, "sh", EXPORT])?;
    let before = site.json(&["vdi", "list", "--sr", "new"]);
    let full = ["vdi", "import", "/bin/bash", "--name", "full", "--sr", "new", "--format", "raw"];
    let error = site.refused(&full);
    assert_eq!(
        (&error["kind"], &error["legacy"]["code"]),
        (&"no_space".into(), &44.into()),
        "{error}"
    );
    site.nas.check(["sh", "-c", "rm -f \"$1/fill\" \"$1/rest\" \"$1/last\"", "sh", EXPORT])?;
    site.ok(&["sr", "scan", "new"]);
    assert_eq!(site.json(&["vdi", "list", "--sr", "new"])["vdis"], before["vdis"]);

    for name in ["old", "new"] {
        let error = site.refused(&["sr", "destroy", name]);
        assert_eq!(error["legacy"]["code"], 39, "{error}");
        for vdi in site.json(&["vdi", "list", "--sr", name])["vdis"].as_array().unwrap() {
            site.ok(&["vdi", "destroy", vdi["uuid"].as_str().unwrap(), "--sr", name]);
        }
        site.ok(&["sr", "destroy", name]);
    }
    attach_asks_for_little(&site);
    assert_eq!(site.nas.check(["ls", "-A", EXPORT])?, "");
    assert_eq!((site.mount(&old), site.mount(&new)), (String::new(), String::new()));
    Ok(())
}
