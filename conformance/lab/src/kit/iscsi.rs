//! iSCSI: the kernel's target in one guest, open-iscsi in another.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use crate::error::Result;
use crate::guest::Guest;
use crate::wire::Step;

const CONFIG: &str = "/sys/kernel/config/target";
const PORT: u16 = 3260;

/// A target of the kernel (LIO), made through configfs.
pub struct Target {
    guest: Guest,
    iqn: String,
    luns: Vec<u32>,
}

/// A logical unit to be.
#[derive(Clone, Debug)]
pub struct Lun {
    /// Its number.
    pub number: u32,
    /// The device or file of the target's guest that holds its data. A file is made if missing.
    pub on: String,
    /// Its size.
    pub bytes: u64,
    /// First eight hexadecimal digits of its serial number. What two units differ in must be at
    /// the front: only the first 25 digits get into the identifier that hosts tell them by.
    pub serial: u32,
}

impl Lun {
    /// What hosts call it: `scsi_id`, and the name of its multipath device.
    pub fn scsi_id(&self) -> String {
        format!("36001405{:08x}{:017x}", self.serial, 0)
    }
}

impl Target {
    /// A target with portals at these addresses, that lets everybody in who is named by
    /// [`Target::allow`].
    pub fn start(guest: &Guest, iqn: &str, portals: &[Ipv4Addr]) -> Result<Self> {
        let mut steps: Vec<Step> =
            ["target_core_mod", "target_core_file", "target_core_iblock", "iscsi_target_mod"]
                .map(|name| Step::Module(name.into()))
                .into();
        // Where it keeps what must outlive a restart of a real array.
        for folder in ["/var/target/alua", "/var/target/pr"] {
            steps.push(Step::Directory(folder.into()));
        }
        let target = Self { guest: guest.clone(), iqn: iqn.to_owned(), luns: Vec::new() };
        for portal in portals {
            steps.push(Step::Directory(target.group().join(format!("np/{portal}:{PORT}"))));
        }
        steps.push(Step::Write(target.group().join("attrib/authentication"), "0".into()));
        steps.push(Step::Write(target.group().join("enable"), "1".into()));
        guest.steps(steps)?;
        Ok(target)
    }

    /// Its name.
    pub fn iqn(&self) -> &str {
        &self.iqn
    }

    fn group(&self) -> PathBuf {
        PathBuf::from(CONFIG).join("iscsi").join(&self.iqn).join("tpgt_1")
    }

    /// Adds a logical unit.
    pub fn add(&mut self, lun: &Lun) -> Result<()> {
        self.add_with_serial(lun, &format!("{:08x}{:024x}", lun.serial, 0))
    }

    /// Adds a logical unit with that serial number, whatever [`Lun::serial`] says.
    pub fn add_with_serial(&mut self, lun: &Lun, serial: &str) -> Result<()> {
        let device = lun.on.starts_with("/dev/");
        if !device {
            self.guest.check(["truncate", "--size", &lun.bytes.to_string(), &lun.on])?;
        }
        let (kind, control) = if device {
            ("iblock", format!("udev_path={}", lun.on))
        } else {
            let size = lun.bytes;
            ("fileio", format!("fd_dev_name={},fd_dev_size={size},fd_buffered_io=1", lun.on))
        };
        let number = lun.number;
        let store = PathBuf::from(CONFIG).join(format!("core/{kind}_{number}/lun{number}"));
        let place = self.group().join(format!("lun/lun_{number}"));
        let mut steps = vec![
            Step::Directory(store.clone()),
            Step::Write(store.join("control"), control),
            Step::Write(store.join("wwn/vpd_unit_serial"), serial.to_owned()),
            Step::Write(store.join("enable"), "1".into()),
        ];
        if !device {
            steps.push(Step::Write(store.join("attrib/emulate_tpu"), "1".into()));
        }
        steps.push(Step::Directory(place.clone()));
        steps.push(Step::Link(store, place.join("store")));
        self.guest.steps(steps)?;
        self.luns.push(number);
        Ok(())
    }

    /// Takes a logical unit away from an initiator and from the target, while it is in use or not.
    pub fn remove(&mut self, initiator: &str, number: u32) -> Result<()> {
        let list = self.group().join("acls").join(initiator).join(format!("lun_{number}"));
        let unit = self.group().join(format!("lun/lun_{number}"));
        let script = "rm $0/unit && rmdir $0 && rm $1/store && rmdir $1 && \
                      rmdir /sys/kernel/config/target/core/*/lun$2";
        let (list, unit) = (list.display().to_string(), unit.display().to_string());
        self.guest.check(["sh", "-c", script, &list, &unit, &number.to_string()])?;
        self.luns.retain(|lun| *lun != number);
        Ok(())
    }

    /// Shows a unit that was added later to an initiator that is let in already.
    pub fn show(&self, initiator: &str, number: u32) -> Result<()> {
        let place = self.group().join("acls").join(initiator).join(format!("lun_{number}"));
        let unit = self.group().join(format!("lun/lun_{number}"));
        self.guest.steps(vec![Step::Directory(place.clone()), Step::Link(unit, place.join("unit"))])
    }

    /// Shows all its units to an initiator.
    pub fn allow(&self, initiator: &str) -> Result<()> {
        let list = self.group().join("acls").join(initiator);
        let mut steps = vec![Step::Directory(list.clone())];
        for number in &self.luns {
            let place = list.join(format!("lun_{number}"));
            steps.push(Step::Directory(place.clone()));
            let unit = self.group().join(format!("lun/lun_{number}"));
            steps.push(Step::Link(unit, place.join("unit")));
        }
        self.guest.steps(steps)
    }

    /// Lets an initiator in with this name and password only.
    pub fn demand_chap(&self, initiator: &str, user: &str, password: &str) -> Result<()> {
        let auth = self.group().join("acls").join(initiator).join("auth");
        self.guest.steps(vec![
            Step::Write(auth.join("userid"), user.into()),
            Step::Write(auth.join("password"), password.into()),
            Step::Write(self.group().join("attrib/authentication"), "1".into()),
        ])
    }

    /// Has the target say who it is, too, to an initiator that [`Target::demand_chap`] is for.
    pub fn answer_chap(&self, initiator: &str, user: &str, password: &str) -> Result<()> {
        let auth = self.group().join("acls").join(initiator).join("auth");
        self.guest.steps(vec![
            Step::Write(auth.join("userid_mutual"), user.into()),
            Step::Write(auth.join("password_mutual"), password.into()),
        ])
    }

    /// Takes the target out of service, or back: all sessions end, none begins.
    pub fn enable(&self, on: bool) -> Result<()> {
        let word = if on { "1" } else { "0" };
        self.guest.write(self.group().join("enable"), word)
    }
}

/// open-iscsi in a guest, with times that fit a test: a dead path is known after 3 s.
pub struct Initiator {
    guest: Guest,
    name: String,
}

impl Initiator {
    /// Starts it. Without a udev daemon a disk is `/dev/sda`; with one it has its other names, too.
    pub fn start(guest: &Guest) -> Result<Self> {
        let name = Self::name_of(guest);
        let config = "\
node.startup = manual
node.session.timeo.replacement_timeout = 5
node.conn[0].timeo.login_timeout = 5
node.conn[0].timeo.noop_out_interval = 1
node.conn[0].timeo.noop_out_timeout = 2
node.session.initial_login_retry_max = 2
node.session.scan = auto
";
        let mut steps: Vec<Step> =
            ["sd_mod", "iscsi_tcp"].map(|name| Step::Module(name.into())).into();
        for folder in ["/etc/iscsi", "/var/lib/iscsi", "/run/lock/iscsi"] {
            steps.push(Step::Directory(folder.into()));
        }
        let names = format!("InitiatorName={name}\n");
        steps.push(Step::Write("/etc/iscsi/initiatorname.iscsi".into(), names));
        steps.push(Step::Write("/etc/iscsi/iscsid.conf".into(), config.into()));
        guest.steps(steps)?;
        guest.check(["iscsid"])?;
        Ok(Self { guest: guest.clone(), name })
    }

    /// The name of a guest's initiator.
    pub fn name_of(guest: &Guest) -> String {
        format!("iqn.2026-01.org.example.lab:{}", guest.name())
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Asks a portal for its targets: portal and name of each.
    pub fn discover(&self, portal: Ipv4Addr) -> Result<Vec<(String, String)>> {
        let words = ["iscsiadm", "-m", "discovery", "-t", "st", "-p", &portal.to_string()];
        let text = self.guest.check(words)?;
        let found = text.lines().filter_map(|line| line.split_once(' '));
        Ok(found.map(|(portal, iqn)| (portal.to_owned(), iqn.to_owned())).collect())
    }

    /// Logs in at all portals that were discovered.
    pub fn login(&self, iqn: &str) -> Result<()> {
        self.guest.check(["iscsiadm", "-m", "node", "-T", iqn, "--login"]).map(drop)
    }

    /// Logs out everywhere.
    pub fn logout(&self, iqn: &str) -> Result<()> {
        self.guest.check(["iscsiadm", "-m", "node", "-T", iqn, "--logout"]).map(drop)
    }
}
