//! A host that loses power in the middle of an operation, and boots again.

use std::time::Duration;

use crate::site::{EXPORT, Site};

#[test]
fn a_host_that_is_lost_in_the_middle_of_a_command_comes_back() -> lab::Result<()> {
    let site = Site::new()?;
    let sr = site.create("images", &["serverpath=/"]);
    let disk = site.ok(&["vdi", "create", "--name", "disk", "--size", "16MiB"]);
    let uri = site.attach("images", &disk);
    site.write(&uri, 0xa1, 0, 1024);
    site.ok(&["vdi", "detach", &disk]);
    let server = site.key();
    for (step, command) in [
        ("vdi_create.metadata_placed", &["vdi", "create", "--name", "new", "--size", "8MiB"][..]),
        ("vdi_snapshot.switched", &["vdi", "snapshot", "disk", "--name", "snap"]),
        // Wherever it is then.
        ("", &["vdi", "snapshot", "disk", "--name", "more"]),
    ] {
        if step.is_empty() {
            let running = site.call(command).start()?;
            let folder = format!("{EXPORT}/{sr}/.sm/journal");
            site.nas.wait_for("the snapshot", Duration::from_secs(20), |nas| {
                let begun = nas.check(["ls", &folder])?;
                let ended = running.ended();
                Ok(if begun.is_empty() && ended.is_none() { Err(running.so_far()) } else { Ok(()) })
            })?;
        } else {
            let output = site.call(command).env("SM_STEP_KILL", step).run()?;
            assert_ne!(output.status, 0, "{step}: {}", output.text());
        }
        // Its state is gone as well, as if the host's own disk had died.
        site.host.reboot()?;
        site.ready()?;
        let words = ["sr", "introduce", "--driver", "nfs", "--uuid", &sr, &server, "serverpath=/"];
        site.ok(&words);
        site.ok(&["sr", "scan", "images"]);
        let scan = site.json(&["sr", "scan", "images"]);
        for vdi in scan["vdis"].as_array().unwrap() {
            assert_eq!(vdi["health"]["state"], "ok", "{step}: {vdi}");
            assert!(site.ok(&["vdi", "check", vdi["uuid"].as_str().unwrap()]).len() < 200);
        }
        let left = site.nas.check([
            "sh",
            "-c",
            "ls -A \"$1/.sm/journal\" \"$1/.sm/tmp\" | grep json; true",
            "sh",
            &format!("{EXPORT}/{sr}"),
        ])?;
        assert_eq!(left, "", "{step}");
        let uri = site.attach("images", &disk);
        site.holds(&uri, 0xa1, 0, 1024);
        site.ok(&["vdi", "detach", &disk]);
    }
    Ok(())
}
