//! Records of open-iscsi: settings and passwords of a target, in a file of its own.
//!
//! `iscsiadm -o update -n KEY -v VALUE` has the value among its arguments, where every user of the host can
//! read it for as long as it runs. So what goes into a record is written here: into a new file of mode
//! 0600, moved over the old one. Names and passwords never leave this process in any other way.
//!
//! The record of a target is written whole, too: what `/etc/iscsi/iscsid.conf` says of nodes, which is
//! what `iscsiadm -o new` takes, and ours. What neither says has `iscsiadm`'s own default when it reads
//! it. Where it is not known in which folder this open-iscsi has its records, `iscsiadm` makes it.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use plugin_sdk::{Error, Result, Secret};

use super::names::{Iqn, Portal, Target};

/// Where open-iscsi keeps its records: Debian; elsewhere.
const FOLDERS: [&str; 2] = ["/etc/iscsi", "/var/lib/iscsi"];
/// What a new record begins with.
const CONFIG: &str = "/etc/iscsi/iscsid.conf";
/// The last line of a record.
const END: &str = "# END RECORD";

/// Settings under which multipath, and not a waiting session, decides what becomes of requests
/// (open-iscsi's README, "8. Advanced Configuration", for dm-multipath), and a login that cannot
/// succeed ends while somebody waits for it. Who logs in looks for the LUN that is wanted, so `iscsid`
/// does not start a process that looks for all of them.
pub(super) fn ours() -> Vec<(String, Secret)> {
    [
        ("node.startup", "manual"),
        ("node.session.scan", "manual"),
        ("node.session.timeo.replacement_timeout", "5"),
        ("node.conn[0].timeo.login_timeout", "5"),
        ("node.session.initial_login_retry_max", "2"),
        ("node.conn[0].timeo.noop_out_interval", "2"),
        ("node.conn[0].timeo.noop_out_timeout", "3"),
    ]
    .map(|(key, value)| (key.to_owned(), Secret::from(value)))
    .into()
}

fn folders() -> [PathBuf; 2] {
    FOLDERS.map(PathBuf::from)
}

/// The record of a target at a portal.
pub(super) fn of_node(target: &Target) -> Result<PathBuf> {
    node_below(&folders(), target)
        .ok_or_else(|| lost(&format!("{} at {}", target.iqn, target.portal)))
}

/// Makes the record of a target with these settings, in place of one of that kind that is there. One that
/// a discovery left has them set. False, and nothing is done, where the folder is not known.
pub(super) fn make(target: &Target, settings: &[(String, Secret)]) -> Result<bool> {
    make_below(&folders(), Path::new(CONFIG), target, settings)
}

fn make_below(
    folders: &[PathBuf],
    config: &Path,
    target: &Target,
    settings: &[(String, Secret)],
) -> Result<bool> {
    let mut known = folders.iter().filter(|folder| folder.join("nodes").is_dir());
    let (Some(folder), None) = (known.next(), known.next()) else { return Ok(false) };
    let file = plain(folder, target);
    match node_below(std::slice::from_ref(folder), target) {
        Some(other) if other != file => set(&other, settings).map(|()| true),
        _ => {
            acceptable(settings)?;
            let config = std::fs::read_to_string(config).unwrap_or_default();
            let nodes = file.parent().unwrap_or(folder);
            let made = match std::fs::DirBuilder::new().mode(0o700).create(nodes) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
                _ => replace(folder, &file, changed(&new(&config, target), settings)),
            };
            made.map_err(|error| not_written(&file, &error)).map(|()| true)
        }
    }
}

/// Removes the record of a target at a portal, which was made with this name and no discovery points to.
/// False if there is one of another kind, which `iscsiadm` must remove.
pub(super) fn forget(iqn: &Iqn, portal: &Portal) -> Result<bool> {
    // The group is in the name of those that a discovery made.
    forget_below(&folders(), &Target { iqn: iqn.clone(), portal: portal.clone(), group: 1 })
}

fn forget_below(folders: &[PathBuf], target: &Target) -> Result<bool> {
    for folder in folders {
        let file = plain(folder, target);
        match std::fs::remove_file(&file) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                let error =
                    Error::internal(format!("{} cannot be removed", file.display())).source(&error);
                return Err(error);
            }
            // Other portals of the target may have theirs.
            _ => drop(file.parent().map(std::fs::remove_dir)),
        }
    }
    let left = folders.iter().any(|folder| {
        let begin = format!("{},{},", target.portal.address, target.portal.port);
        let entries = std::fs::read_dir(folder.join("nodes").join(target.iqn.as_str()));
        let mut entries = entries.into_iter().flatten().flatten();
        entries.any(|entry| entry.file_name().to_string_lossy().starts_with(&begin))
    });
    Ok(!left)
}

fn plain(folder: &Path, target: &Target) -> PathBuf {
    let Portal { address, port } = &target.portal;
    folder.join("nodes").join(target.iqn.as_str()).join(format!("{address},{port}"))
}

/// A record of a target as `iscsiadm -o new` makes it, without what it has by default.
fn new(config: &str, target: &Target) -> String {
    let Portal { address, port } = &target.portal;
    let mut text = format!("# BEGIN RECORD\nnode.name = {}\n", target.iqn);
    // -1: no group was asked for; any will do.
    text.push_str("node.tpgt = -1\nnode.discovery_type = static\n");
    text.push_str("iface.iscsi_ifacename = default\niface.transport_name = tcp\n");
    for line in config.lines().map(str::trim).filter(|line| line.starts_with("node.")) {
        let _ = writeln!(text, "{line}");
    }
    let _ = writeln!(text, "node.conn[0].address = {address}\nnode.conn[0].port = {port}");
    text
}

fn lost(what: &str) -> Error {
    Error::internal(format!("the record of {what} is in none of {}", FOLDERS.join(", ")))
        .hint("has this open-iscsi another folder for its records?")
}

/// Of one that was made without the number of the group it is a file `address,port`; of one that
/// `iscsiadm` discovered before, `address,port,group/interface`.
fn node_below(folders: &[PathBuf], target: &Target) -> Option<PathBuf> {
    folders.iter().find_map(|folder| {
        let plain = plain(folder, target);
        if plain.is_file() {
            return Some(plain);
        }
        let group = PathBuf::from(format!("{},{}", plain.display(), target.group));
        let file = group.join("default");
        file.is_file().then_some(file).or_else(|| group.is_file().then_some(group))
    })
}

/// The record of a discovery.
pub(super) fn of_discovery(portal: &Portal) -> Result<PathBuf> {
    let place = format!("{},{}", portal.address, portal.port);
    let file = |folder| Path::new(folder).join("send_targets").join(&place).join("st_config");
    FOLDERS.map(file).into_iter().find(|file| file.is_file()).ok_or_else(|| lost(&place))
}

/// Sets these keys of a record.
pub(super) fn set(file: &Path, settings: &[(String, Secret)]) -> Result<()> {
    acceptable(settings)?;
    // Beside the folders of records, in which every file is taken for one.
    let folder = FOLDERS.iter().map(Path::new).find(|folder| file.starts_with(folder));
    let folder = folder.or(file.parent()).unwrap_or(Path::new("/"));
    std::fs::read_to_string(file)
        .and_then(|before| replace(folder, file, changed(&before, settings)))
        .map_err(|error| not_written(file, &error))
}

fn not_written(file: &Path, error: &std::io::Error) -> Error {
    Error::internal(format!("the record {} cannot be written", file.display())).source(error)
}

/// Whether each value is one line as open-iscsi reads it.
fn acceptable(settings: &[(String, Secret)]) -> Result<()> {
    for (key, value) in settings {
        // A line break would begin another setting; open-iscsi keeps 255 bytes.
        let value = value.reveal();
        if value.contains(['\n', '\r', '\0']) || value.len() > 255 || value.trim() != value {
            return Err(Error::config(format!(
                "the value for {key} has a line break, blanks at its ends, or more than 255 bytes"
            )));
        }
    }
    Ok(())
}

/// Puts a text in place of a file, by way of a new one in that folder.
fn replace(folder: &Path, file: &Path, text: String) -> std::io::Result<()> {
    let text = Secret::from(text);
    let new = folder.join(format!(".sm-{}-{:?}", std::process::id(), std::thread::current().id()));
    // What a process of that number left when it died.
    let _ = std::fs::remove_file(&new);
    let written = (|| {
        let mut out = File::options().write(true).create_new(true).mode(0o600).open(&new)?;
        out.write_all(text.reveal().as_bytes())?;
        out.sync_all()?;
        std::fs::rename(&new, file)
    })();
    written.inspect_err(|_| drop(std::fs::remove_file(&new)))
}

/// The text with these settings: in place of those that are there, else at the end.
fn changed(before: &str, settings: &[(String, Secret)]) -> String {
    let ours = |line: &str| {
        let key = line.split_once('=').map_or("", |(key, _)| key.trim());
        settings.iter().any(|(name, _)| name == key)
    };
    let mut text = String::with_capacity(before.len() + 1024);
    for line in before.lines().filter(|line| !ours(line) && line.trim() != END) {
        text.push_str(line);
        text.push('\n');
    }
    for (key, value) in settings {
        let _ = writeln!(text, "{key} = {}", value.reveal());
    }
    text.push_str(END);
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use plugin_sdk::config::ConfigValue as _;

    use super::*;

    fn settings(pairs: &[(&str, &str)]) -> Vec<(String, Secret)> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), Secret::from(*value))).collect()
    }

    #[test]
    fn a_record_gets_its_settings_and_keeps_the_others() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("record");
        let before = "# BEGIN RECORD 2.1.8\nnode.name = iqn.x\nnode.session.auth.authmethod = None\n\
                      node.session.auth.username_in = old\n# END RECORD\n";
        std::fs::write(&file, before).unwrap();
        let wanted = settings(&[
            ("node.session.auth.authmethod", "CHAP"),
            ("node.session.auth.username", "user"),
            ("node.session.auth.password", "a = good # password"),
        ]);
        set(&file, &wanted).unwrap();
        set(&file, &wanted).unwrap();
        assert_eq!(
            std::fs::read_to_string(&file).unwrap(),
            "# BEGIN RECORD 2.1.8\nnode.name = iqn.x\nnode.session.auth.username_in = old\n\
             node.session.auth.authmethod = CHAP\nnode.session.auth.username = user\n\
             node.session.auth.password = a = good # password\n# END RECORD\n"
        );
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_password_cannot_set_anything_else() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("record");
        std::fs::write(&file, "").unwrap();
        for odd in ["a\nnode.startup = automatic", " a", "a\r", &"x".repeat(256)] {
            let error = set(&file, &settings(&[("node.session.auth.password", odd)])).unwrap_err();
            assert_eq!(
                error.message,
                "the value for node.session.auth.password has a line break, blanks at its ends, or \
                 more than 255 bytes"
            );
        }
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "");
    }

    fn target(address: &str) -> Target {
        Target {
            iqn: Iqn::parse("iqn.2026-01.x:y").unwrap(),
            portal: Portal { address: address.into(), port: 3260 },
            group: 1,
        }
    }

    #[test]
    fn a_new_record_is_what_iscsiadm_would_make_with_our_settings_last() {
        let config = "# node.startup = automatic\nnode.startup = automatic\n  node.leading_login = No\n\
                      iscsid.startup = /bin/systemctl start iscsid.socket\n\
                      discovery.sendtargets.auth.password = other\n\
                      node.session.auth.username = all\nnode.conn[0].iscsi.HeaderDigest = None\n";
        let ours = settings(&[("node.startup", "manual"), ("node.session.scan", "manual")]);
        assert_eq!(
            changed(&new(config, &target("fd00::1")), &ours),
            "# BEGIN RECORD\nnode.name = iqn.2026-01.x:y\nnode.tpgt = -1\n\
             node.discovery_type = static\niface.iscsi_ifacename = default\n\
             iface.transport_name = tcp\nnode.leading_login = No\n\
             node.session.auth.username = all\nnode.conn[0].iscsi.HeaderDigest = None\n\
             node.conn[0].address = fd00::1\nnode.conn[0].port = 3260\nnode.startup = manual\n\
             node.session.scan = manual\n# END RECORD\n"
        );
    }

    #[test]
    fn a_record_is_made_only_where_this_open_iscsi_has_its_records() {
        let folder = tempfile::tempdir().unwrap();
        let folders = [folder.path().join("one"), folder.path().join("two")];
        let config = folder.path().join("iscsid.conf");
        std::fs::write(&config, "node.session.queue_depth = 16\n").unwrap();
        let secret = settings(&[("node.session.auth.password", "secret-of-the-test")]);
        let make = |at: &Target| make_below(&folders, &config, at, &secret).unwrap();
        let (one, other) = (target("10.9.0.1"), target("10.9.1.1"));
        // Nobody knows, or it may be either.
        std::fs::create_dir_all(&folders[0]).unwrap();
        assert!(!make(&one));
        for folder in &folders {
            std::fs::create_dir_all(folder.join("nodes")).unwrap();
        }
        assert!(!make(&one));
        assert_eq!(node_below(&folders, &one), None);
        std::fs::remove_dir(folders[0].join("nodes")).unwrap();

        let place = folders[1].join("nodes/iqn.2026-01.x:y");
        assert!(make(&one) && make(&other));
        // What somebody was cut at does not stay.
        std::fs::write(place.join("10.9.0.1,3260"), "rubbish").unwrap();
        assert!(make(&one));
        let file = node_below(&folders, &one).unwrap();
        assert_eq!(file, place.join("10.9.0.1,3260"));
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(text.contains("\nnode.session.queue_depth = 16\n"), "{text}");
        assert!(text.contains("\nnode.session.auth.password = secret-of-the-test\n"), "{text}");
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&file), mode(&place)), (0o600, 0o700));

        assert!(forget_below(&folders, &one).unwrap());
        assert_eq!((file.exists(), node_below(&folders, &other).is_some()), (false, true));
        assert!(forget_below(&folders, &other).unwrap() && !place.exists());
        assert!(forget_below(&folders, &other).unwrap(), "there is none");
        assert_eq!(std::fs::read_dir(&folders[1]).unwrap().count(), 1, "only nodes");
    }

    #[test]
    fn the_record_of_a_discovery_is_used_and_left_to_iscsiadm() {
        let folder = tempfile::tempdir().unwrap();
        let folders = [folder.path().to_owned()];
        let at = target("10.9.0.1");
        let group = folder.path().join("nodes/iqn.2026-01.x:y/10.9.0.1,3260,1");
        std::fs::create_dir_all(&group).unwrap();
        let file = group.join("default");
        std::fs::write(&file, "node.tpgt = 1\nnode.startup = automatic\n# END RECORD\n").unwrap();
        let ours = settings(&[("node.startup", "manual")]);
        assert!(make_below(&folders, &folder.path().join("none"), &at, &ours).unwrap());
        let text = "node.tpgt = 1\nnode.startup = manual\n# END RECORD\n";
        assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
        assert!(!forget_below(&folders, &at).unwrap());
        assert!(file.exists());
    }

    #[test]
    fn a_password_that_is_refused_leaves_no_record() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("nodes")).unwrap();
        let folders = [folder.path().to_owned()];
        let odd = settings(&[("node.session.auth.password", "a\nnode.startup = automatic")]);
        let at = target("10.9.0.1");
        make_below(&folders, Path::new("/nowhere"), &at, &odd).unwrap_err();
        assert_eq!(std::fs::read_dir(folder.path().join("nodes")).unwrap().count(), 0);
    }

    #[test]
    fn a_record_is_found_whoever_made_it() {
        let folder = tempfile::tempdir().unwrap();
        let target = target("10.9.0.1");
        let folders = [folder.path().join("none"), folder.path().to_owned()];
        assert_eq!(node_below(&folders, &target), None);
        let nodes = folder.path().join("nodes/iqn.2026-01.x:y");
        std::fs::create_dir_all(nodes.join("10.9.0.1,3260,1")).unwrap();
        let discovered = nodes.join("10.9.0.1,3260,1/default");
        std::fs::write(&discovered, "").unwrap();
        assert_eq!(node_below(&folders, &target), Some(discovered));
        let plain = nodes.join("10.9.0.1,3260");
        std::fs::write(&plain, "").unwrap();
        assert_eq!(node_below(&folders, &target), Some(plain));
    }
}
