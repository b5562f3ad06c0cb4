//! Looking for exports and SRs, and what a server refuses.

use crate::site::{EXPORT, Site};

fn probe<'a>(keys: &[&'a str]) -> Vec<&'a str> {
    [&["sr", "probe", "--driver", "nfs"], keys].concat()
}

#[test]
fn a_probe_goes_from_server_to_export_to_srs_and_refusals_are_exact() -> lab::Result<()> {
    let site = Site::new()?;
    let (nas, server) = (&site.nas, site.key());
    let address = site.address();
    // One that others may use.
    nas.check(["mkdir", "-p", "/srv/others"])?;
    nas.check(["mount", "-t", "tmpfs", "others", "/srv/others"])?;
    nas.check(["exportfs", "-o", "rw,no_subtree_check,fsid=7", "10.8.0.0/16:/srv/others"])?;

    let error = site.refused(&probe(&[]));
    assert_eq!(error["kind"], "config", "{error}");
    assert_eq!(error["missing"], serde_json::json!(["server"]));
    assert_eq!(error["legacy"]["code"], 102);
    assert_eq!(error["message"], "the device configuration lacks server");

    let xml = site.ok(&probe(&["--legacy-xml", &server]));
    let export = |path: &str, clients: &str| {
        format!(
            "\t<Export>\n\t\t<Target>{address}</Target>\n\t\t<Path>{path}</Path>\n\
             \t\t<Accesslist>{clients}</Accesslist>\n\t</Export>\n"
        )
    };
    let both = [export(EXPORT, "10.9.0.0/16"), export("/srv/others", "10.8.0.0/16")];
    let documents = [format!("{}{}", both[0], both[1]), format!("{}{}", both[1], both[0])];
    let documents = documents
        .map(|all| format!("<?xml version=\"1.0\" ?>\n<nfs-exports>\n{all}</nfs-exports>"));
    assert!(documents.contains(&xml), "{xml}");

    let found = site.json(&probe(&[&server, "serverpath=/"]));
    assert_eq!(found["items"].as_array().unwrap().len(), 1, "{found}");
    assert_eq!(found["items"][0]["extra_info"]["NFS version"], "4.2", "the best there is");
    let sr = site.create("images", &["serverpath=/"]);
    let found = site.ok(&probe(&[&server, "serverpath=/"]));
    assert!(found.contains(&sr) && found.contains("images"), "{found}");
    let xml = site.ok(&probe(&["--legacy-xml", &server, "serverpath=/"]));
    assert_eq!(
        xml,
        format!(
            "<?xml version=\"1.0\" ?>\n<SRlist>\n\t<SR>\n\t\t<UUID>{sr}</UUID>\n\t</SR>\n</SRlist>"
        )
    );

    // What the server has not, and what it does not give us.
    for (keys, kind, legacy, message) in [
        (
            &["serverpath=/nowhere", "nfsversion=4.2"][..],
            "not_found",
            73,
            format!(
                "{address}:/nowhere cannot be mounted: the server has no such folder for this host"
            ),
        ),
        (
            &["serverpath=/nowhere", "nfsversion=3", "options=nolock"],
            "auth",
            73,
            format!("{address}:/nowhere cannot be mounted: the server refuses this host"),
        ),
        (
            &["serverpath=/srv/others", "nfsversion=3", "options=nolock"],
            "auth",
            73,
            format!("{address}:/srv/others cannot be mounted: the server refuses this host"),
        ),
        (
            &["serverpath=/", "nfsversion=4.2", "options=nonsense"],
            "config",
            73,
            format!("{address}:/ cannot be mounted: an option is not accepted"),
        ),
    ] {
        let error = site.refused(&probe(&[&[server.as_str()], keys].concat()));
        assert_eq!(error["message"], message.as_str(), "{error}");
        assert_eq!((&error["kind"], &error["legacy"]["code"]), (&kind.into(), &legacy.into()));
    }
    // Nothing of the probes is left.
    let mounts = String::from_utf8(site.host.read("/proc/mounts")?).unwrap();
    assert!(!mounts.contains("probe-"), "{mounts}");
    assert_eq!(site.host.check(["ls", "/var/tmp/sm/run/nfs"])?, sr);

    // Exported for reading only: said when something is to be written.
    let read_only = "exportfs -u 10.9.0.0/16:/srv/nfs; \
                     exportfs -o ro,no_root_squash,insecure,no_subtree_check,fsid=0 \
                     10.9.0.0/16:/srv/nfs";
    site.ok(&["sr", "detach", "images"]);
    nas.check(["sh", "-c", read_only])?;
    let words = ["sr", "create", "--driver", "nfs", "--name", "other", &server, "serverpath=/"];
    let error = site.refused(&words);
    assert_eq!(error["kind"], "auth", "{error}");
    let message = error["message"].as_str().unwrap();
    assert!(message.ends_with("Read-only file system (os error 30)"), "{message}");
    assert_eq!(
        site.host.check(["ls", "/var/tmp/sm/run/nfs"])?,
        "",
        "what failed stays not mounted"
    );
    Ok(())
}
