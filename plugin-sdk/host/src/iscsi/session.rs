//! Sessions of this host, as the kernel has them.

use std::path::Path;

use plugin_sdk::config::ConfigValue as _;

use super::names::{Iqn, PORT, Portal, Target};

/// A session: one way to a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// Its number.
    pub number: u32,
    /// The target.
    pub iqn: Iqn,
    /// The portal that was logged in to, which may have sent us elsewhere since.
    pub portal: Portal,
    /// `LOGGED_IN`, `FAILED`, `FREE`.
    pub state: String,
    /// The SCSI host that its disks are at.
    pub host: u32,
}

impl Session {
    /// Whether requests go through.
    pub fn is_up(&self) -> bool {
        self.state == "LOGGED_IN"
    }

    /// Whether it leads to a target at a portal.
    pub fn is_of(&self, target: &Target) -> bool {
        self.iqn == target.iqn && self.portal == target.portal
    }
}

/// All sessions. It costs no command.
pub fn sessions() -> Vec<Session> {
    sessions_below(Path::new("/sys"))
}

fn sessions_below(sys: &Path) -> Vec<Session> {
    let entries =
        std::fs::read_dir(sys.join("class/iscsi_session")).into_iter().flatten().flatten();
    let mut found: Vec<Session> = entries
        .filter_map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            let number = name.strip_prefix("session")?.parse().ok()?;
            let text = |path: &Path| Some(std::fs::read_to_string(path).ok()?.trim().to_owned());
            let connection = sys.join(format!("class/iscsi_connection/connection{number}:0"));
            // .../host0/session3/iscsi_session/session3
            let place = entry.path().canonicalize().ok()?;
            let host = place.ancestors().find_map(|folder| {
                folder.file_name()?.to_str()?.strip_prefix("host")?.parse().ok()
            })?;
            let address = text(&connection.join("persistent_address"))?;
            let port = text(&connection.join("persistent_port"))?.parse().unwrap_or(PORT);
            Some(Session {
                number,
                iqn: Iqn::parse(&text(&entry.path().join("targetname"))?).ok()?,
                portal: Portal { address, port },
                state: text(&entry.path().join("state")).unwrap_or_default(),
                host,
            })
        })
        .collect();
    found.sort_by_key(|session| session.number);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_are_read_with_their_portal_and_host() {
        let folder = tempfile::tempdir().unwrap();
        let sys = folder.path();
        for (number, host, address, state) in
            [(4, 1, "10.9.1.1", "FAILED"), (3, 0, "10.9.0.1", "LOGGED_IN")]
        {
            let place = sys.join(format!(
                "devices/platform/host{host}/session{number}/iscsi_session/session{number}"
            ));
            std::fs::create_dir_all(&place).unwrap();
            std::fs::write(place.join("targetname"), "iqn.2026-01.org.example.lab:array\n")
                .unwrap();
            std::fs::write(place.join("state"), format!("{state}\n")).unwrap();
            let class = sys.join("class/iscsi_session");
            std::fs::create_dir_all(&class).unwrap();
            std::os::unix::fs::symlink(&place, class.join(format!("session{number}"))).unwrap();
            let connection = sys.join(format!("class/iscsi_connection/connection{number}:0"));
            std::fs::create_dir_all(&connection).unwrap();
            std::fs::write(connection.join("persistent_address"), format!("{address}\n")).unwrap();
            std::fs::write(connection.join("persistent_port"), "3260\n").unwrap();
        }
        // One that is being taken down.
        std::fs::create_dir_all(sys.join("class/iscsi_session/session9")).unwrap();
        let found = sessions_below(sys);
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].number, found[0].host, found[0].is_up()), (3, 0, true));
        assert_eq!((found[1].number, found[1].host, found[1].is_up()), (4, 1, false));
        assert_eq!(found[1].portal.to_string(), "10.9.1.1:3260");
        let target = |address: &str| Target {
            iqn: found[0].iqn.clone(),
            portal: Portal { address: address.into(), port: 3260 },
            group: 1,
        };
        assert!(found[0].is_of(&target("10.9.0.1")) && !found[0].is_of(&target("10.9.1.1")));
        assert!(sessions_below(Path::new("/nowhere")).is_empty());
    }
}
