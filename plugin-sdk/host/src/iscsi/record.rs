//! Records of open-iscsi: settings and passwords of a target, in a file of its own.
//!
//! `iscsiadm -o update -n KEY -v VALUE` has the value among its arguments, where every user of the host can
//! read it for as long as it runs. So `iscsiadm` makes the record, and what goes into it is written
//! here: into a new file of mode 0600, moved over the old one. Names and passwords never leave this
//! process in any other way.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use plugin_sdk::{Error, Result, Secret};

use super::names::{Portal, Target};

/// Where open-iscsi keeps its records: Debian; elsewhere.
const FOLDERS: [&str; 2] = ["/etc/iscsi", "/var/lib/iscsi"];

/// Settings under which multipath, and not a waiting session, decides what becomes of requests
/// (open-iscsi's README, "8. Advanced Configuration", for dm-multipath), and a login that cannot
/// succeed ends while somebody waits for it.
pub(super) fn timeouts() -> Vec<(String, Secret)> {
    [
        ("node.startup", "manual"),
        ("node.session.timeo.replacement_timeout", "5"),
        ("node.conn[0].timeo.login_timeout", "5"),
        ("node.session.initial_login_retry_max", "2"),
        ("node.conn[0].timeo.noop_out_interval", "2"),
        ("node.conn[0].timeo.noop_out_timeout", "3"),
    ]
    .map(|(key, value)| (key.to_owned(), Secret::from(value)))
    .into()
}

/// The record of a target at a portal.
pub(super) fn of_node(target: &Target) -> Result<PathBuf> {
    node_below(&FOLDERS.map(PathBuf::from), target)
        .ok_or_else(|| lost(&format!("{} at {}", target.iqn, target.portal)))
}

fn lost(what: &str) -> Error {
    Error::internal(format!("the record of {what} is in none of {}", FOLDERS.join(", ")))
        .hint("has this open-iscsi another folder for its records?")
}

/// Of one that was made without the number of the group it is a file `address,port`; of one that
/// `iscsiadm` discovered before, `address,port,group/interface`.
fn node_below(folders: &[PathBuf], target: &Target) -> Option<PathBuf> {
    let Portal { address, port } = &target.portal;
    folders.iter().find_map(|folder| {
        let nodes = folder.join("nodes").join(target.iqn.as_str());
        let plain = nodes.join(format!("{address},{port}"));
        if plain.is_file() {
            return Some(plain);
        }
        let group = nodes.join(format!("{address},{port},{}", target.group));
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
    let failed = |error: std::io::Error| {
        Error::internal(format!("the record {} cannot be written", file.display())).source(&error)
    };
    for (key, value) in settings {
        // A line break would begin another setting; open-iscsi keeps 255 bytes.
        let value = value.reveal();
        if value.contains(['\n', '\r', '\0']) || value.len() > 255 || value.trim() != value {
            return Err(Error::config(format!(
                "the value for {key} has a line break, blanks at its ends, or more than 255 bytes"
            )));
        }
    }
    let before = std::fs::read_to_string(file).map_err(failed)?;
    let text = Secret::from(changed(&before, settings));
    // Beside the folders of records, in which every file is taken for one.
    let folder = FOLDERS.iter().map(Path::new).find(|folder| file.starts_with(folder));
    let folder = folder.or(file.parent()).unwrap_or(Path::new("/"));
    let new = folder.join(format!(".sm-{}-{:?}", std::process::id(), std::thread::current().id()));
    let written = (|| {
        // What a process of that number left when it died.
        let _ = std::fs::remove_file(&new);
        let mut out = File::options().write(true).create_new(true).mode(0o600).open(&new)?;
        out.write_all(text.reveal().as_bytes())?;
        out.sync_all()?;
        std::fs::rename(&new, file)
    })();
    written.map_err(|error| {
        let _ = std::fs::remove_file(&new);
        failed(error)
    })
}

/// The text with these settings: in place of those that are there, else at the end.
fn changed(before: &str, settings: &[(String, Secret)]) -> String {
    const END: &str = "# END RECORD";
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

    use super::super::names::Iqn;
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

    #[test]
    fn a_record_is_found_whoever_made_it() {
        let folder = tempfile::tempdir().unwrap();
        let target = Target {
            iqn: Iqn::parse("iqn.2026-01.x:y").unwrap(),
            portal: Portal { address: "10.9.0.1".into(), port: 3260 },
            group: 1,
        };
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
