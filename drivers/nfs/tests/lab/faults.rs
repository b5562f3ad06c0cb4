//! A server that goes away and comes back.

use std::time::Duration;

use crate::site::{EXPORT, LONG, Site, error_of};

/// What is answered when nobody is there, whatever was asked for.
fn is_dead(site: &Site, error: &serde_json::Value) {
    assert_eq!(error["kind"], "unreachable", "{error}");
    assert_eq!(error["legacy"]["code"], 108);
    let message = error["message"].as_str().unwrap();
    let begin = format!("the NFS server {} does not answer: ", site.address());
    assert!(message.starts_with(&begin), "{message}");
}

/// The command and all its processes must be gone by its deadline; the guest's clock is generous.
fn ends(site: &Site, words: &[&str]) -> serde_json::Value {
    let words = [words, &["--json", "--timeout", "5s"]].concat();
    let output = site.call(&words).deadline(Duration::from_secs(20)).run().unwrap();
    error_of(&output)
}

#[test]
fn a_server_is_away_for_thirty_seconds_in_the_middle_of_writes() -> lab::Result<()> {
    let site = Site::new()?;
    let sr = site.create("images", &["serverpath=/"]);
    let disk = site.ok(&["vdi", "create", "--name", "disk", "--size", "64MiB"]);
    let uri = site.attach("images", &disk);
    let uri = format!("--uri={uri}");
    let words = ["fio", "--name=verify", "--ioengine=nbd", &uri, "--rw=randwrite", "--bs=64k"];
    let verify = ["--size=48m", "--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0"];
    let paced = ["--fsync=32", "--iodepth=4", "--rate=4m", "--randrepeat=1"];
    let fio = site.host.command([&words[..], &verify, &paced].concat()).deadline(LONG).start()?;
    let image = format!("{EXPORT}/{sr}/{disk}.vhd");
    site.nas.wait_for("writes", Duration::from_secs(30), |nas| {
        let text = nas.check(["du", "-k", &image])?;
        let taken: u64 = text.split_whitespace().next().unwrap_or_default().parse().unwrap_or(0);
        Ok(if taken > 8 << 10 { Ok(()) } else { Err(format!("{taken} KiB; {}", fio.so_far())) })
    })?;

    site.server.stop()?;
    let stopped = std::time::Instant::now();
    // Each of them ends by itself, and nothing that hangs is left to wait for.
    let mut refused = 0;
    while stopped.elapsed() < Duration::from_secs(30) {
        let error = ends(&site, &["sr", "scan", "images"]);
        is_dead(&site, &error);
        let message = error["message"].as_str().unwrap();
        // A packet may be lost between guests that share a busy machine.
        let known = ["connection refused", "no answer in time"].map(|why| message.ends_with(why));
        assert!(known.contains(&true), "{message}");
        refused += usize::from(known[0]);
    }
    assert!(refused > 0, "a port that is closed is told");
    is_dead(&site, &ends(&site, &["vdi", "snapshot", &disk, "--name", "late"]));
    assert_eq!(fio.ended(), None, "a guest waits: {}", fio.so_far());

    site.server.restart()?;
    let output = fio.wait(LONG)?;
    assert!(output.text().contains("err= 0"), "{}{}", output.text(), output.errors());
    assert_eq!(output.status, 0, "{}", output.errors());
    // Without anything being attached anew.
    site.ok(&["sr", "scan", "images"]);
    site.ok(&["vdi", "snapshot", &disk, "--name", "after"]);
    site.ok(&["vdi", "detach", &disk]);
    assert!(site.ok(&["vdi", "check", &disk]).len() < 200);
    site.ok(&["sr", "detach", "images"]);
    assert_eq!(site.mount(&sr), "");
    Ok(())
}

/// The server goes away when an operation is in the middle of it: its thread hangs in the kernel.
#[test]
fn an_operation_that_hangs_ends_and_its_repetition_finds_what_was_done() -> lab::Result<()> {
    let site = Site::new()?;
    lab::kit::nfs::client_locks(&site.host)?;
    // Without copies by the server, a snapshot of a raw disk takes its time.
    let export = format!("{EXPORT}/folder");
    site.nas.check(["mkdir", &export])?;
    let path = format!("serverpath={export}");
    let sr = site.create("images", &[&path, "nfsversion=3"]);
    let raw = site.ok(&["vdi", "create", "--name", "raw", "--size", "96MiB", "--format", "raw"]);
    let folder = format!("{export}/{sr}");
    let file = format!("of={folder}/{raw}.raw");
    site.nas.check(["dd", "if=/dev/urandom", &file, "bs=1M", "count=96", "conv=notrunc"])?;
    let id = "--operation-id=3f0f5a1e-9d0b-4c3d-8a55-6a1f4bfe0d11";
    let words = [id, "vdi", "snapshot", &raw, "--name", "snap", "--timeout", "12s", "--json"];
    let call = site.call(&words).deadline(Duration::from_secs(40)).start()?;
    site.nas.wait_for("the copy", Duration::from_secs(10), |nas| {
        let text = nas.check(["du", "-k", &format!("{folder}/.sm/tmp")])?;
        let taken: u64 = text.split_whitespace().next().unwrap_or_default().parse().unwrap_or(0);
        Ok(if taken > 1 << 10 { Ok(()) } else { Err(format!("{text}; {}", call.so_far())) })
    })?;
    site.network.unplug(&site.nas);
    let error = error_of(&call.wait(LONG)?);
    is_dead(&site, &error);
    assert!(error["message"].as_str().unwrap().ends_with("no answer in time"), "{error}");
    is_dead(&site, &ends(&site, &["vdi", "create", "--name", "new", "--size", "8MiB"]));
    is_dead(&site, &ends(&site, &["sr", "stat", "images"]));

    site.network.plug(&site.nas);
    let again = [id, "vdi", "snapshot", &raw, "--name", "snap"];
    let snap = match site.call(&again).deadline(LONG).check() {
        // Seen once when the server is just back, on a hard mount; the cause is not known. It must
        // leave nothing half-made: once more is whole.
        Err(error) if error.to_string().contains("sync failed: Input/output error") => {
            println!("{error}");
            for guest in [&site.host, &site.nas] {
                println!("{}", guest.check(["dmesg"])?);
            }
            site.call(&again).deadline(LONG).check()?
        }
        first => first?,
    };
    site.nas.check(["cmp", &format!("{folder}/{raw}.raw"), &format!("{folder}/{snap}.raw")])?;
    let scan = site.json(&["sr", "scan", "images"]);
    assert_eq!(scan["vdis"].as_array().unwrap().len(), 2, "{scan}");

    // What is mounted is another folder of the same name now: it is not said that the SR is gone.
    site.nas.check(["rm", "-rf", &export])?;
    site.nas.check(["mkdir", &export])?;
    let error = site.refused(&["sr", "scan", "images"]);
    assert_eq!(error["kind"], "unreachable", "{error}");
    assert!(error["hint"].as_str().unwrap().contains("stale handle"), "{error}");
    Ok(())
}
