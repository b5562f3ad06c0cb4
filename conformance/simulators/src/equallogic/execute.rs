//! What commands do, and what is answered.

use serde_json::{Map, Value, json};

use super::command::{Command, Create, Grant, Target};
use super::names;
use super::screen::{Page, Table, size};
use crate::core::{Array, Change, Depletion, NewVolume, Pool, Snapshot, Trouble, Volume, WhenFull};

/// Why a command is refused: the array's words.
#[derive(Debug)]
pub struct Refusal(pub String);

impl Refusal {
    fn new(words: impl Into<String>) -> Self {
        Self(words.into())
    }
}

impl From<Trouble> for Refusal {
    fn from(trouble: Trouble) -> Self {
        let name = |kind: &str| match kind {
            "snapshot" => "Snapshot",
            "pool" => "Pool",
            _ => "Volume",
        };
        Self(match trouble {
            Trouble::Missing(kind, key) => format!("{} {} does not exist.", name(kind), last(&key)),
            Trouble::Exists(kind, key) => format!("{} {} already exists.", name(kind), last(&key)),
            Trouble::InUse(key, _) => format!("{} is in use.", last(&key)),
            Trouble::NoSpace(pool) => format!("Insufficient free space in pool {pool}."),
            Trouble::Limit(what, most) => format!("Maximum number of {what} ({most}) reached."),
            Trouble::Invalid(words) => format!("Invalid value: {words}."),
            Trouble::Offline(key) => format!("Volume {key} is offline."),
            Trouble::Broken(error) => format!("Internal error: {error}."),
        })
    }
}

fn last(key: &str) -> &str {
    key.rsplit('/').next().unwrap_or(key)
}

/// A copy to be made after a clone was answered, or before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copy {
    /// The volume or snapshot it is of.
    pub from: String,
    /// The new volume.
    pub to: String,
    /// Which copy: a volume of the same name may be made again meanwhile.
    pub number: u64,
}

/// What a command does.
#[derive(Debug)]
pub struct Done {
    /// What is answered.
    pub page: Page,
    /// What is still to be done.
    pub copy: Option<Copy>,
}

impl From<Page> for Done {
    fn from(page: Page) -> Self {
        Self { page, copy: None }
    }
}

/// The attribute of a volume that is being filled: the number of the copy, or 0 where it failed.
pub const COPYING: &str = "copying";

/// The key of an object: `volume`, or `volume/snapshot`.
pub fn key(target: &Target) -> String {
    match &target.snapshot {
        Some(snapshot) => format!("{}/{snapshot}", target.volume),
        None => target.volume.clone(),
    }
}

fn check_name(name: &str) -> Result<(), Refusal> {
    if names::fits(name) { Ok(()) } else { Err(Refusal::new("Invalid name.")) }
}

fn check_text(change: &Change<'_>, text: &str) -> Result<(), Refusal> {
    let most = change.settings().limits.get("description").copied().unwrap_or(127);
    if text.len() as u64 > most {
        return Err(Refusal::new(format!("Description is too long: {most} characters at most.")));
    }
    Ok(())
}

/// Carries a command out. `megabytes` is how sizes are to be shown.
pub fn execute(array: &Array, command: &Command, megabytes: bool) -> Result<Done, Refusal> {
    let shown = |bytes: u64| size(bytes, megabytes);
    match command {
        Command::ListPools => Ok(pools(array, &shown)?.into()),
        Command::ShowPool(name) => Ok(pool(array, name, &shown)?.into()),
        Command::ListVolumes => Ok(volumes(array, &shown).into()),
        Command::Show(target) => Ok(show(array, target, &shown)?.into()),
        Command::ListSnapshots(volume) => Ok(snapshots(array, volume)?.into()),
        Command::ListAccess(target) => Ok(access(array, target)?.into()),
        Command::Create(create) => array.change(|change| make(change, create)),
        Command::Clone(target, name) => array.change(|change| clone(change, target, name)),
        Command::Delete(volume) => array.change(|change| {
            if change.volume(volume)?.online {
                return Err(Refusal::new("Volume must be offline before it is deleted."));
            }
            for (key, _) in change.snapshots_of(volume) {
                change.delete_snapshot(&key)?;
            }
            change.delete_volume(volume)?;
            Ok(Page::line("Volume deletion succeeded.").into())
        }),
        Command::Resize(volume, to, no_snap) => array.change(|change| {
            if !no_snap {
                take(change, volume, None)?;
            }
            change.resize(volume, pages(*to))?;
            Ok(Page::default().into())
        }),
        Command::Snapshot(volume, text) => array.change(|change| {
            let name = take(change, volume, text.as_deref())?;
            let page = Page::line("Snapshot creation succeeded.");
            Ok(page.and_line(format!("Snapshot name is {name}.")).into())
        }),
        Command::RenameSnapshot(from, to) => array.change(|change| {
            check_name(to)?;
            change.rename_snapshot(&key(from), &format!("{}/{to}", from.volume))?;
            Ok(Page::default().into())
        }),
        Command::DeleteSnapshot(target) => array.change(|change| {
            if change.snapshot(&key(target))?.attributes.get("online") == Some(&json!(true)) {
                return Err(Refusal::new("Snapshot must be offline before it is deleted."));
            }
            change.delete_snapshot(&key(target))?;
            Ok(Page::line("Snapshot deletion succeeded.").into())
        }),
        Command::Restore(target) => array.change(|change| {
            if change.volume(&target.volume)?.online {
                return Err(Refusal::new("Volume must be offline before it is restored."));
            }
            change.snapshot(&key(target))?;
            take(change, &target.volume, None)?;
            change.restore(&target.volume, &key(target))?;
            Ok(Page::line("Volume restore succeeded.").into())
        }),
        Command::Online(target, online) => attribute(array, target, |volume, attributes| {
            if let Some(volume) = volume {
                volume.online = *online;
            } else {
                attributes.insert("online".to_owned(), json!(online));
            }
            Ok(())
        }),
        Command::Describe(target, text) => {
            array.change(|change| check_text(change, text))?;
            attribute(array, target, |_, attributes| {
                attributes.insert("description".to_owned(), json!(text));
                Ok(())
            })
        }
        Command::Share(volume, on) => {
            let target = Target { volume: volume.clone(), snapshot: None };
            attribute(array, &target, |_, attributes| {
                attributes.insert("shared".to_owned(), json!(on));
                Ok(())
            })
        }
        Command::Grant(target, grant) => {
            attribute(array, target, |_, attributes| add_access(attributes, grant))
        }
        Command::Revoke(target, number) => attribute(array, target, |_, attributes| {
            let mut records = records(attributes);
            let before = records.len();
            records.retain(|record| record["id"] != json!(number));
            if records.len() == before {
                return Err(Refusal::new(format!("Access record {number} does not exist.")));
            }
            attributes.insert("access".to_owned(), Value::Array(records));
            Ok(())
        }),
        _ => Ok(Page::default().into()),
    }
}

/// Sizes are whole pages of 15 MB.
fn pages(bytes: u64) -> u64 {
    bytes.div_ceil(15 << 20).saturating_mul(15 << 20)
}

fn make(change: &mut Change<'_>, create: &Create) -> Result<Done, Refusal> {
    check_name(&create.name)?;
    check_text(change, &create.description)?;
    let size = pages(create.size);
    let reserve = create.reserve.unwrap_or(100).saturating_mul(size) / 100;
    let depletion = match create.delete_oldest {
        Some(false) => Depletion::VolumeOffline,
        _ => Depletion::DeleteOldest,
    };
    let mut attributes = Map::new();
    attributes.insert("description".to_owned(), json!(create.description));
    attributes.insert("made_as".to_owned(), json!(create.name));
    if create.unrestricted {
        add_access(&mut attributes, &Grant::default())?;
    }
    let volume = change.create_volume(
        &create.name,
        NewVolume {
            pool: create.pool.clone().unwrap_or_else(|| "default".to_owned()),
            size,
            thick: !create.thin,
            online: !create.offline,
            when_full: WhenFull::Offline,
            snapshot_reserve: Some((reserve, depletion)),
            attributes,
        },
    )?;
    Ok(made(&create.name, &volume).into())
}

fn made(name: &str, volume: &Volume) -> Page {
    let target = names::of_volume(name, volume);
    Page::line("Volume creation succeeded.").and_line(format!("iSCSI target name is {target}."))
}

/// A clone is an empty volume that is filled afterwards. What it has of its source is what nobody
/// knows for certain, so it has all: description and access records too.
fn clone(change: &mut Change<'_>, target: &Target, name: &str) -> Result<Done, Refusal> {
    check_name(name)?;
    let source = change.volume(&target.volume)?;
    let (size, mut attributes, layer) = if target.snapshot.is_some() {
        let snapshot = change.snapshot(&key(target))?;
        (snapshot.size, snapshot.attributes, snapshot.layer)
    } else {
        (source.size, source.attributes.clone(), source.layer)
    };
    if !source.thick && change.referenced(layer) > change.space(&source.pool)?.free() {
        return Err(Trouble::NoSpace(source.pool).into());
    }
    let number = change.number("copy")?;
    attributes.insert("made_as".to_owned(), json!(name));
    attributes.insert(COPYING.to_owned(), json!(number));
    attributes.remove("online");
    let new = NewVolume {
        pool: source.pool.clone(),
        size,
        thick: source.thick,
        online: true,
        when_full: source.when_full,
        snapshot_reserve: source.snapshot_reserve,
        attributes,
    };
    let volume = change.create_volume(name, new)?;
    let copy = Copy { from: key(target), to: name.to_owned(), number };
    Ok(Done { page: made(name, &volume), copy: Some(copy) })
}

/// Takes a snapshot, named by the time.
fn take(change: &mut Change<'_>, volume: &str, text: Option<&str>) -> Result<String, Refusal> {
    let source = change.volume(volume)?;
    if source.snapshot_reserve.is_some_and(|(bytes, _)| bytes == 0) {
        return Err(Refusal::new(format!("Not enough snapshot reserve on volume {volume}.")));
    }
    let number = change.number("snapshot_name")?;
    let mut name = names::by_time(volume, change.now(), number);
    // It must be a name; a volume's may be as long as one can be.
    if name.len() > 63 {
        let keep = 63_usize.saturating_sub(name.len() - volume.len());
        name = names::by_time(volume.get(..keep).unwrap_or_default(), change.now(), number);
    }
    let mut attributes = Map::new();
    attributes.insert("made_as".to_owned(), json!(name));
    if let Some(text) = text {
        check_text(change, text)?;
        attributes.insert("description".to_owned(), json!(text));
    }
    change.create_snapshot(volume, &format!("{volume}/{name}"), attributes)?;
    Ok(name)
}

/// Changes what the array keeps with a volume or snapshot.
fn attribute(
    array: &Array,
    target: &Target,
    work: impl FnOnce(Option<&mut Volume>, &mut Map<String, Value>) -> Result<(), Refusal>,
) -> Result<Done, Refusal> {
    array.change(|change| {
        let key = key(target);
        if target.snapshot.is_some() {
            let mut snapshot = change.snapshot(&key)?;
            work(None, &mut snapshot.attributes)?;
            change.put::<_, Refusal>(&key, &snapshot)?;
        } else {
            let mut volume = change.volume(&key)?;
            let mut attributes = std::mem::take(&mut volume.attributes);
            work(Some(&mut volume), &mut attributes)?;
            volume.attributes = attributes;
            change.put::<_, Refusal>(&key, &volume)?;
        }
        Ok(Page::default().into())
    })
}

/// The access records among the attributes.
pub fn records(attributes: &Map<String, Value>) -> Vec<Value> {
    attributes.get("access").and_then(Value::as_array).cloned().unwrap_or_default()
}

fn add_access(attributes: &mut Map<String, Value>, grant: &Grant) -> Result<(), Refusal> {
    let mut records = records(attributes);
    if records.len() >= 16 {
        return Err(Refusal::new("Maximum number of access records (16) reached."));
    }
    let next = records.iter().filter_map(|record| record["id"].as_u64()).max().unwrap_or(0) + 1;
    records.push(json!({
        "id": next, "initiator": grant.initiator, "address": grant.address, "chap": grant.chap,
    }));
    attributes.insert("access".to_owned(), Value::Array(records));
    Ok(())
}

fn pools(array: &Array, shown: &dyn Fn(u64) -> String) -> Result<Page, Refusal> {
    let view = array.view();
    let volumes = view.all::<Volume>();
    let mut rows = Vec::new();
    for (n, (name, pool)) in view.all::<Pool>().into_iter().enumerate() {
        let of = volumes.iter().filter(|(_, volume)| volume.pool == name).count();
        let space = array.space(&name)?;
        let first = if n == 0 { "true" } else { "false" };
        let cells = [name.as_str(), first, "1"].map(str::to_owned);
        let sizes = [of.to_string(), shown(pool.capacity), shown(space.free())];
        rows.push(cells.into_iter().chain(sizes).collect());
    }
    let columns = vec![
        ("Name", 20),
        ("Default", 7),
        ("Members", 7),
        ("Volumes", 7),
        ("Capacity", 12),
        ("FreeSpace", 12),
    ];
    Ok(Page::default().table(Table { columns, indent: 2, rows }))
}

fn pool(array: &Array, name: &str, shown: &dyn Fn(u64) -> String) -> Result<Page, Refusal> {
    let space = array.space(name)?;
    let view = array.view();
    let own: Vec<_> = view.all::<Volume>().into_iter().filter(|(_, v)| v.pool == name).collect();
    let reported: u64 = own.iter().map(|(_, volume)| volume.size).sum();
    Ok(Page::default().title("Pool Information").pairs([
        ("Name", name.to_owned()),
        ("TotalCapacity", shown(space.capacity)),
        ("FreeSpace", shown(space.free())),
        ("VolumeReportedSpace", shown(reported)),
        ("TotalVolumes", own.len().to_string()),
    ]))
}

/// How a volume is.
fn status(volume: &Volume) -> &'static str {
    match volume.attributes.get(COPYING).and_then(Value::as_u64) {
        Some(0) => "failed",
        Some(_) => "cloning",
        None if volume.online => "online",
        None => "offline",
    }
}

fn volumes(array: &Array, shown: &dyn Fn(u64) -> String) -> Page {
    let view = array.view();
    let snapshots = view.all::<Snapshot>();
    let rows = view.all::<Volume>().into_iter().map(|(name, volume)| {
        let taken = snapshots.iter().filter(|(_, snapshot)| snapshot.volume == name).count();
        let connections = array.logins(Some(&names::of_volume(&name, &volume))).len();
        let (status, thin) = (status(&volume), if volume.thick { "N" } else { "Y" });
        let (taken, connections) = (taken.to_string(), connections.to_string());
        vec![
            name,
            shown(volume.size),
            taken,
            status.to_owned(),
            "read-write".to_owned(),
            connections,
            thin.to_owned(),
        ]
    });
    let rows = rows.collect();
    let columns = vec![
        ("Name", 15),
        ("Size", 10),
        ("Snapshots", 9),
        ("Status", 7),
        ("Permission", 10),
        ("Connections", 11),
        ("T", 1),
    ];
    Page::default().table(Table { columns, indent: 2, rows })
}

fn show(array: &Array, target: &Target, shown: &dyn Fn(u64) -> String) -> Result<Page, Refusal> {
    let view = array.view();
    let key = key(target);
    let text = |attributes: &Map<String, Value>, name: &str| {
        attributes.get(name).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let volume = view.get::<Volume>(&target.volume);
    let volume = volume.ok_or_else(|| Trouble::Missing("volume", target.volume.clone()))?;
    if let Some(name) = &target.snapshot {
        let snapshot = view.get::<Snapshot>(&key);
        let snapshot = snapshot.ok_or_else(|| Trouble::Missing("snapshot", name.clone()))?;
        let online = snapshot.attributes.get("online") == Some(&json!(true));
        let status = if online { "online" } else { "offline" };
        let target = names::of_snapshot(name, &snapshot);
        let connections = array.logins(Some(&target)).len().to_string();
        return Ok(Page::default().title("Snapshot Information").pairs([
            ("Name", name.clone()),
            ("Size", shown(snapshot.size)),
            ("SnapReserve", shown(array.own(snapshot.layer))),
            ("iSCSI Alias", name.clone()),
            ("iSCSI Name", target),
            ("Description", text(&snapshot.attributes, "description")),
            ("Permission", "read-write".to_owned()),
            ("DesiredStatus", status.to_owned()),
            ("Status", status.to_owned()),
            ("Connections", connections),
        ]));
    }
    let in_use = array.referenced(volume.layer);
    let (reserve, depletion) = volume.snapshot_reserve.unwrap_or((0, Depletion::DeleteOldest));
    let depletion = match depletion {
        Depletion::DeleteOldest => "delete-oldest",
        Depletion::VolumeOffline => "volume-offline",
    };
    let percent = (reserve * 100).checked_div(volume.size).unwrap_or(0);
    let taken = view.all::<Snapshot>().iter().filter(|(_, s)| s.volume == key).count();
    let iqn = names::of_volume(&key, &volume);
    let connections = array.logins(Some(&iqn)).len();
    Ok(Page::default().title("Volume Information").pairs([
        ("Name", key.clone()),
        ("Size", shown(volume.size)),
        ("VolReserve", shown(if volume.thick { volume.size } else { in_use })),
        ("VolReserveInUse", shown(in_use)),
        ("ReplReserveInUse", shown(0)),
        ("iSCSI Alias", key),
        ("iSCSI Name", iqn),
        ("ActualMembers", "1".to_owned()),
        ("Snap-Warn", "10%".to_owned()),
        ("Snap-Depletion", depletion.to_owned()),
        ("Description", text(&volume.attributes, "description")),
        ("Snap-Reserve", format!("{percent}%")),
        ("Snap-Reserve-Avail", format!("100% ({})", shown(reserve))),
        ("Permission", "read-write".to_owned()),
        ("DesiredStatus", if volume.online { "online" } else { "offline" }.to_owned()),
        ("Status", status(&volume).to_owned()),
        ("Connections", connections.to_string()),
        ("Snapshots", taken.to_string()),
        ("Bind", String::new()),
        ("Type", "not-replicated".to_owned()),
        ("ReplicationReserveSpace", shown(0)),
        ("Pool", volume.pool.clone()),
        ("Thin-Provision", if volume.thick { "disabled" } else { "enabled" }.to_owned()),
    ]))
}

fn snapshots(array: &Array, volume: &str) -> Result<Page, Refusal> {
    let view = array.view();
    if view.get::<Volume>(volume).is_none() {
        return Err(Trouble::Missing("volume", volume.to_owned()).into());
    }
    let all = view.all::<Snapshot>();
    let mut own: Vec<_> = all.into_iter().filter(|(_, s)| s.volume == volume).collect();
    own.sort_by_key(|(_, snapshot)| snapshot.order);
    let rows = own.iter().map(|(key, snapshot)| {
        let online = snapshot.attributes.get("online") == Some(&json!(true));
        let status = if online { "online" } else { "offline" };
        [last(key), "read-write", status, "0"].map(str::to_owned).to_vec()
    });
    let rows = rows.collect();
    let columns = vec![("Name", 20), ("Permission", 10), ("Status", 11), ("Connections", 11)];
    Ok(Page::default().table(Table { columns, indent: 2, rows }))
}

fn access(array: &Array, target: &Target) -> Result<Page, Refusal> {
    let view = array.view();
    let key = key(target);
    let attributes = match &target.snapshot {
        None => view.get::<Volume>(&key).map(|volume| volume.attributes.clone()),
        Some(_) => view.get::<Snapshot>(&key).map(|snapshot| snapshot.attributes.clone()),
    };
    let kind = if target.snapshot.is_some() { "snapshot" } else { "volume" };
    let attributes = attributes.ok_or(Trouble::Missing(kind, key))?;
    let text = |value: &Value, other: &str| value.as_str().unwrap_or(other).to_owned();
    let records = records(&attributes);
    let rows = records.iter().map(|record| {
        let chap = if record["chap"].is_null() { "none" } else { "chap" };
        vec![
            record["id"].to_string(),
            text(&record["initiator"], "*"),
            text(&record["address"], "*.*.*.*"),
            chap.to_owned(),
            text(&record["chap"], ""),
            "both".to_owned(),
        ]
    });
    let rows = rows.collect();
    let columns = vec![
        ("ID", 3),
        ("Initiator", 29),
        ("Ipaddress", 15),
        ("AuthMethod", 10),
        ("UserName", 10),
        ("Apply-To", 8),
    ];
    Ok(Page::default().table(Table { columns, indent: 3, rows }))
}
