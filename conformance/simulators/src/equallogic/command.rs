//! The grammar of the command line.
//!
//! Sources: the commands that published clients of such groups send (the Cinder and OpenNebula drivers,
//! plugins of Proxmox and ganeti) and what they expect back. What the manuals have beyond that is not
//! here; it is answered as a bad command.

/// What a command is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    /// The volume.
    pub volume: String,
    /// The snapshot of it.
    pub snapshot: Option<String>,
}

/// A command, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Nothing: the prompt comes again.
    Empty,
    /// `logout`, `exit`.
    Logout,
    /// `whoami`.
    WhoAmI,
    /// `cli-settings NAME on|off`.
    Setting(String, bool),
    /// `cli-settings show`.
    ShowSettings,
    /// `stty columns N`.
    Columns(usize),
    /// `stty hardwrap on|off`.
    Hardwrap(bool),
    /// `grpparams show`.
    ShowGroup,
    /// `pool show`.
    ListPools,
    /// `pool select NAME show`.
    ShowPool(String),
    /// `volume show`.
    ListVolumes,
    /// `volume create`.
    Create(Box<Create>),
    /// `volume delete`.
    Delete(String),
    /// `... show`.
    Show(Target),
    /// `... online|offline`.
    Online(Target, bool),
    /// `... description TEXT`.
    Describe(Target, String),
    /// `... clone NAME`.
    Clone(Target, String),
    /// `... size SIZE [no-snap]`.
    Resize(String, u64, bool),
    /// `... multihost-access enable|disable`.
    Share(String, bool),
    /// `... snapshot create-now [description TEXT]`.
    Snapshot(String, Option<String>),
    /// `... snapshot rename OLD NEW`.
    RenameSnapshot(Target, String),
    /// `... snapshot delete NAME`.
    DeleteSnapshot(Target),
    /// `... snapshot show`.
    ListSnapshots(String),
    /// `... snapshot select NAME restore`.
    Restore(Target),
    /// `... access show`.
    ListAccess(Target),
    /// `... access create ...`.
    Grant(Target, Grant),
    /// `... access delete NUMBER`.
    Revoke(Target, u64),
}

/// What `volume create` says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Create {
    /// The name.
    pub name: String,
    /// The size in bytes.
    pub size: u64,
    /// The pool.
    pub pool: Option<String>,
    /// Whether it is thin.
    pub thin: bool,
    /// Percent of its size for snapshots.
    pub reserve: Option<u64>,
    /// Whether the oldest snapshots go when that is used up.
    pub delete_oldest: Option<bool>,
    /// The description.
    pub description: String,
    /// Whether it begins offline.
    pub offline: bool,
    /// Whether everybody may reach it.
    pub unrestricted: bool,
}

/// What `access create` says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grant {
    /// The initiator; none is anybody.
    pub initiator: Option<String>,
    /// The addresses; none is any.
    pub address: Option<String>,
    /// The CHAP account.
    pub chap: Option<String>,
}

/// Why a line is no command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// There is no such command.
    Unknown,
    /// A value is missing after this word.
    Missing(String),
    /// A value is not one.
    Invalid(String),
}

impl Command {
    /// The name of the call, by which faults and counts know it.
    pub fn call(&self) -> &'static str {
        let of = |target: &Target, volume, snapshot| match target.snapshot {
            None => volume,
            Some(_) => snapshot,
        };
        match self {
            Self::Empty | Self::Logout | Self::WhoAmI => "other",
            Self::Setting(..) | Self::ShowSettings | Self::Columns(_) | Self::Hardwrap(_) => {
                "settings"
            }
            Self::ShowGroup => "group.show",
            Self::ListPools => "pool.list",
            Self::ShowPool(_) => "pool.show",
            Self::ListVolumes => "volume.list",
            Self::Create(_) => "volume.create",
            Self::Delete(_) => "volume.delete",
            Self::Show(target) => of(target, "volume.show", "snapshot.show"),
            Self::Online(target, true) => of(target, "volume.online", "snapshot.online"),
            Self::Online(target, false) => of(target, "volume.offline", "snapshot.offline"),
            Self::Describe(target, _) => of(target, "volume.describe", "snapshot.describe"),
            Self::Clone(target, _) => of(target, "volume.clone", "snapshot.clone"),
            Self::Resize(..) => "volume.resize",
            Self::Share(..) => "volume.share",
            Self::Snapshot(..) => "snapshot.create",
            Self::RenameSnapshot(..) => "snapshot.rename",
            Self::DeleteSnapshot(_) => "snapshot.delete",
            Self::ListSnapshots(_) => "snapshot.list",
            Self::Restore(_) => "snapshot.restore",
            Self::ListAccess(_) => "access.list",
            Self::Grant(..) => "access.create",
            Self::Revoke(..) => "access.delete",
        }
    }

    /// Whether the array asks before it does this, if it asks.
    pub fn asks(&self) -> Option<&'static str> {
        match self {
            Self::Delete(_) => Some("Do you really want to delete the volume?"),
            Self::DeleteSnapshot(_) => Some("Do you really want to delete the snapshot?"),
            Self::Online(_, false) => Some("Do you really want to end its connections?"),
            Self::Restore(_) => Some("Do you really want to restore the volume?"),
            _ => None,
        }
    }

    /// Understands a line.
    pub fn read(line: &str) -> Result<Self, Wrong> {
        let words = words(line);
        let mut rest = Rest { words: &words };
        let command = rest.command()?;
        match rest.words {
            [] => Ok(command),
            [word, ..] => Err(Wrong::Invalid(word.clone())),
        }
    }
}

/// The words of a line. Quotes of either kind hold spaces together.
pub fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    for c in line.chars() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '"' | '\'') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

/// Bytes of `15MB`, `1.5GB`, `200G`; without a unit these are megabytes.
pub fn size(text: &str) -> Option<u64> {
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let shift = match unit.to_ascii_uppercase().as_str() {
        "" | "M" | "MB" => 20,
        "G" | "GB" => 30,
        "T" | "TB" => 40,
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let digits = u32::try_from(fraction.len()).ok().filter(|digits| *digits < 10)?;
    let whole = whole.parse::<u64>().ok()?.checked_mul(1 << shift)?;
    let part = fraction.parse::<u64>().ok()?.checked_mul(1 << shift)? / 10_u64.pow(digits);
    whole.checked_add(part)
}

struct Rest<'a> {
    words: &'a [String],
}

impl<'a> Rest<'a> {
    fn next(&mut self) -> Option<&'a str> {
        let (first, rest) = self.words.split_first()?;
        self.words = rest;
        Some(first)
    }

    fn value(&mut self, of: &str) -> Result<String, Wrong> {
        self.next().map(str::to_owned).ok_or_else(|| Wrong::Missing(of.to_owned()))
    }

    fn flag(&mut self, of: &str, yes: &str, no: &str) -> Result<bool, Wrong> {
        let value = self.value(of)?;
        match value {
            value if value == yes => Ok(true),
            value if value == no => Ok(false),
            value => Err(Wrong::Invalid(value)),
        }
    }

    fn command(&mut self) -> Result<Command, Wrong> {
        match self.next() {
            None => Ok(Command::Empty),
            Some("logout" | "exit") => Ok(Command::Logout),
            Some("whoami") => Ok(Command::WhoAmI),
            Some("cli-settings") => match self.value("cli-settings")? {
                name if name == "show" => Ok(Command::ShowSettings),
                name => Ok(Command::Setting(name.clone(), self.flag(&name, "on", "off")?)),
            },
            Some("stty") => match self.value("stty")?.as_str() {
                "columns" => {
                    let text = self.value("columns")?;
                    let columns = text.parse().ok().filter(|n| (20..=1000).contains(n));
                    columns.map(Command::Columns).ok_or(Wrong::Invalid(text))
                }
                "hardwrap" => Ok(Command::Hardwrap(self.flag("hardwrap", "on", "off")?)),
                other => Err(Wrong::Invalid(other.to_owned())),
            },
            Some("grpparams") => self.shows("grpparams").map(|()| Command::ShowGroup),
            Some("show") => match self.value("show")?.as_str() {
                "pool" => Ok(Command::ListPools),
                "volume" => Ok(self.list_or_show()),
                "grpparams" => Ok(Command::ShowGroup),
                other => Err(Wrong::Invalid(other.to_owned())),
            },
            Some("pool") => match self.value("pool")?.as_str() {
                "show" => Ok(Command::ListPools),
                "select" => {
                    let name = self.value("select")?;
                    self.shows("pool").map(|()| Command::ShowPool(name))
                }
                other => Err(Wrong::Invalid(other.to_owned())),
            },
            Some("volume" | "vol") => match self.value("volume")?.as_str() {
                "show" => Ok(self.list_or_show()),
                "create" => self.create(),
                "delete" => Ok(Command::Delete(self.value("delete")?)),
                "select" => {
                    let volume = self.value("select")?;
                    self.selected(Target { volume, snapshot: None })
                }
                other => Err(Wrong::Invalid(other.to_owned())),
            },
            Some(_) => Err(Wrong::Unknown),
        }
    }

    fn shows(&mut self, of: &str) -> Result<(), Wrong> {
        match self.value(of)?.as_str() {
            "show" => Ok(()),
            other => Err(Wrong::Invalid(other.to_owned())),
        }
    }

    fn list_or_show(&mut self) -> Command {
        match self.next() {
            None | Some("-volume") => Command::ListVolumes,
            Some(name) => Command::Show(Target { volume: name.to_owned(), snapshot: None }),
        }
    }

    fn create(&mut self) -> Result<Command, Wrong> {
        let name = self.value("create")?;
        let text = self.value("size")?;
        let size = size(&text).ok_or(Wrong::Invalid(text))?;
        let mut create = Create { name, size, ..Create::default() };
        while let Some(word) = self.next() {
            match word {
                "pool" => create.pool = Some(self.value("pool")?),
                "thin-provision" => create.thin = true,
                "description" => create.description = self.value("description")?,
                "snap-reserve" => {
                    let text = self.value("snap-reserve")?;
                    let percent = text.trim_end_matches('%').parse().ok();
                    create.reserve = Some(percent.ok_or(Wrong::Invalid(text))?);
                }
                "snap-depletion" => {
                    create.delete_oldest =
                        Some(self.flag("snap-depletion", "delete-oldest", "volume-offline")?);
                }
                "offline" => create.offline = true,
                "online" | "read-write" => {}
                "unrestricted" => create.unrestricted = true,
                "iscsi-alias" => {
                    self.value("iscsi-alias")?;
                }
                other => return Err(Wrong::Invalid(other.to_owned())),
            }
        }
        Ok(Command::Create(Box::new(create)))
    }

    fn selected(&mut self, target: Target) -> Result<Command, Wrong> {
        let Some(word) = self.next() else { return Err(Wrong::Unknown) };
        let is_volume = target.snapshot.is_none();
        match word {
            "show" => Ok(Command::Show(target)),
            "online" => Ok(Command::Online(target, true)),
            "offline" => Ok(Command::Online(target, false)),
            "description" => {
                let text = self.value("description")?;
                Ok(Command::Describe(target, text))
            }
            "clone" => {
                let name = self.value("clone")?;
                Ok(Command::Clone(target, name))
            }
            "access" => match self.value("access")?.as_str() {
                "show" => Ok(Command::ListAccess(target)),
                "create" => self.grant(target),
                "delete" => {
                    let text = self.value("delete")?;
                    let number = text.parse().map_err(|_| Wrong::Invalid(text))?;
                    Ok(Command::Revoke(target, number))
                }
                other => Err(Wrong::Invalid(other.to_owned())),
            },
            "size" if is_volume => {
                let text = self.value("size")?;
                let size = size(&text).ok_or(Wrong::Invalid(text))?;
                let no_snap = self.next() == Some("no-snap");
                Ok(Command::Resize(target.volume, size, no_snap))
            }
            "multihost-access" if is_volume => {
                let on = self.flag("multihost-access", "enable", "disable")?;
                Ok(Command::Share(target.volume, on))
            }
            "snapshot" if is_volume => self.snapshot(target.volume),
            "restore" if !is_volume => Ok(Command::Restore(target)),
            other => Err(Wrong::Invalid(other.to_owned())),
        }
    }

    fn snapshot(&mut self, volume: String) -> Result<Command, Wrong> {
        let of = |rest: &mut Self, word: &str| {
            let snapshot = Some(rest.value(word)?);
            Ok::<_, Wrong>(Target { volume: volume.clone(), snapshot })
        };
        match self.value("snapshot")?.as_str() {
            "show" => Ok(Command::ListSnapshots(volume)),
            "create-now" => {
                let text = match self.next() {
                    None => None,
                    Some("description") => Some(self.value("description")?),
                    Some(other) => return Err(Wrong::Invalid(other.to_owned())),
                };
                Ok(Command::Snapshot(volume, text))
            }
            "rename" => {
                let from = of(self, "rename")?;
                Ok(Command::RenameSnapshot(from, self.value("rename")?))
            }
            "delete" => of(self, "delete").map(Command::DeleteSnapshot),
            "select" => {
                let target = of(self, "select")?;
                self.selected(target)
            }
            other => Err(Wrong::Invalid(other.to_owned())),
        }
    }

    fn grant(&mut self, target: Target) -> Result<Command, Wrong> {
        let mut grant = Grant::default();
        let mut chap = false;
        while let Some(word) = self.next() {
            match word {
                "initiator" => grant.initiator = Some(self.value(word)?).filter(|name| name != "*"),
                "ipaddress" => grant.address = Some(self.value(word)?).filter(|ip| ip != "*.*.*.*"),
                "username" => grant.chap = Some(self.value(word)?),
                "authmethod" => chap = self.flag(word, "chap", "none")?,
                other => return Err(Wrong::Invalid(other.to_owned())),
            }
        }
        if !chap {
            grant.chap = None;
        }
        Ok(Command::Grant(target, grant))
    }
}
