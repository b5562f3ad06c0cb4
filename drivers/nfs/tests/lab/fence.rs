//! A host that is cut off, or has lost its power, while it writes a disk: another one takes it over.

use serde_json::Value;

use crate::site::{LONG, Site};

/// Kind and message of an error.
fn told(error: &Value) -> (&str, &str) {
    (error["kind"].as_str().unwrap(), error["message"].as_str().unwrap())
}

fn warnings(site: &Site) -> Vec<Value> {
    site.json(&["sr", "stat", "images"])["warnings"].as_array().cloned().unwrap_or_default()
}

/// Shuts `host` out, which had that disk open.
fn fence(by: &Site, disk: &str) {
    let said = format!("VDI {disk} is being written by host host");
    let refused = by.refused(&["vdi", "attach", disk]);
    assert_eq!(told(&refused), ("in_use", said.as_str()));
    assert!(refused["hint"].as_str().unwrap().contains("smctl host fence host"), "{refused}");
    let unknown = by.refused(&["host", "fence", "hots", "--yes"]);
    assert_eq!(told(&unknown).0, "not_found", "{unknown}");

    let fenced = by.json(&["host", "fence", "host", "--yes"])["srs"][0]["fenced"].clone();
    assert_eq!((&fenced["changed"], &fenced["enforced"]), (&"modified".into(), &false.into()));
    assert_eq!(fenced["vdis"], serde_json::json!([disk]));
    assert!(fenced["reason"].as_str().unwrap().contains("refuses no host"), "{fenced}");
    let again = by.json(&["host", "fence", "host", "--yes"])["srs"][0]["fenced"].clone();
    assert_eq!((&again["changed"], &again["epoch"]), (&"already".into(), &fenced["epoch"]));
    let warned = warnings(by);
    let warned = warned.first().and_then(Value::as_str).unwrap_or_default();
    let begin = format!("host host is shut out since epoch {}, by host other", fenced["epoch"]);
    assert!(warned.starts_with(&begin) && warned.contains("it must be off"), "{warned}");
}

#[test]
fn a_host_that_is_shut_out_is_refused_and_another_has_its_disk_with_all_it_flushed()
-> lab::Result<()> {
    let [host, other] = Site::of(["host", "other"])?;
    let sr = host.create("images", &["serverpath=/"]);
    let disk = host.ok(&["vdi", "create", "--name", "disk", "--size", "16MiB"]);
    let server = host.key();
    let introduce = ["sr", "introduce", "--driver", "nfs", "--uuid", &sr, &server, "serverpath=/"];
    other.ok(&introduce);

    // It is cut off while its guest writes. What the guest was told is durable is there.
    let uri = host.attach("images", &disk);
    host.write(&uri, 0xa1, 0, 1024);
    host.network.unplug(&host.host);
    let late = ["qemu-io", "-f", "raw", "-c", "write -f -P 0xee 0 1024k", &uri];
    let late = host.host.command(late).start()?;
    fence(&other, &disk);
    let taken = other.attach("images", &disk);
    other.holds(&taken, 0xa1, 0, 1024);
    other.write(&taken, 0xb1, 0, 1024);

    // It comes back: its guest's late write fails, and so does each change.
    host.network.plug(&host.host);
    let output = late.wait(LONG)?;
    let said = format!("{}{}", output.text(), output.errors());
    assert!(said.contains("failed"), "{said}");
    let shut_out = "host host was shut out of the SR by host other";
    let create = ["vdi", "create", "--sr", "images", "--name", "late", "--size", "8MiB"];
    for words in [&create[..], &["sr", "attach", "images"], &["host", "fence", "other", "--yes"]] {
        let refused = host.refused(words);
        assert_eq!(told(&refused), ("fenced", shut_out), "{words:?}");
    }
    other.holds(&taken, 0xb1, 0, 1024);

    // With nothing of the SR in use it is let in.
    host.ok(&["vdi", "detach", &disk]);
    host.ok(&["sr", "detach", "images"]);
    host.ok(&["sr", "attach", "images"]);
    host.ok(&create);
    assert!(warnings(&other).is_empty(), "{:?}", warnings(&other));
    let refused = host.refused(&["vdi", "attach", &disk]);
    assert_eq!(told(&refused).1, format!("VDI {disk} is being written by host other"));
    other.ok(&["vdi", "detach", &disk]);

    // The same with one that has lost its power; a boot lets it in.
    let uri = host.attach("images", &disk);
    host.holds(&uri, 0xb1, 0, 1024);
    host.write(&uri, 0xa2, 0, 1024);
    host.host.kill();
    fence(&other, &disk);
    let taken = other.attach("images", &disk);
    other.holds(&taken, 0xa2, 0, 1024);
    host.host.boot()?;
    host.ready()?;
    host.ok(&introduce);
    host.ok(&["vdi", "destroy", "late"]);
    assert!(warnings(&other).is_empty(), "{:?}", warnings(&other));
    let refused = host.refused(&["vdi", "attach", &disk]);
    assert_eq!(told(&refused).1, format!("VDI {disk} is being written by host other"));
    other.ok(&["vdi", "detach", &disk]);
    let uri = host.attach("images", &disk);
    host.holds(&uri, 0xa2, 0, 1024);
    Ok(())
}
