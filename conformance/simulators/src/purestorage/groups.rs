//! Protection groups and their snapshots, `group.suffix`, each of volumes `group.suffix.volume`.

use serde_json::{Value, json};

use super::failure::{Refused, each};
use super::objects::{Group, GroupSnapshot, More, change_snapshot, check_name, named, volume_of};
use super::request::{Request, Sorted, done};
use super::snapshots;
use super::volumes::{may_eradicate, remaining};
use crate::core::{Array, Change, Snapshot, View, Volume};
use crate::http::Say;

const NO_GROUP: &str = "Protection group does not exist.";
const NO_SNAPSHOT: &str = "Protection group snapshot does not exist.";

fn group_of(view: &View, name: &str) -> Result<String, Refused> {
    named::<Group>(view, name).ok_or_else(|| Refused::of(NO_GROUP, name))
}

/// Not within a change: it asks the array for its clock and settings.
fn show(array: &Array, name: &str, group: &Group) -> Value {
    json!({
        "id": super::objects::id(&format!("{:032x}", name.len())), "name": name,
        "destroyed": group.destroyed.is_some(),
        "time_remaining": remaining(array, group.destroyed), "is_local": true,
        "volume_count": group.volumes.len(), "host_count": 0, "host_group_count": 0,
        "pod": {"id": null, "name": null}, "source": {"id": null, "name": null},
    })
}

/// Groups and their snapshots are named; ids of them are not kept.
fn names_of(request: &Request<'_>, kind: &str) -> Result<Vec<String>, Refused> {
    match request.targets(kind)? {
        (_, true) => Err(Refused::of("Name the protection group.", "ids")),
        (names, false) => Ok(names),
    }
}

pub(super) fn list(request: &Request<'_>) -> Result<Say, Refused> {
    let (array, view) = (request.array, request.array.view());
    let names = request.list("names");
    let names = each(&names, |name| group_of(&view, name))?;
    let wanted = request.flag("destroyed");
    let all = view.all::<Group>().into_iter().filter(|(name, group)| {
        (names.is_empty() || names.contains(name))
            && wanted.is_none_or(|wanted| wanted == group.destroyed.is_some())
    });
    let items = all.map(|(name, group)| (name.clone(), show(array, &name, &group)));
    request.page(items.collect::<Vec<Sorted>>())
}

pub(super) fn create(request: &Request<'_>) -> Result<Say, Refused> {
    let array = request.array;
    if !request.list("source_names").is_empty() || !request.list("source_ids").is_empty() {
        return Err(Refused::of("Copies of protection groups are not simulated.", ""));
    }
    let made = each(&request.list("names"), |name| {
        array.change(|change| {
            check_name(name, "protection group")?;
            if named::<Group>(&change.view(), name).is_some() {
                return Err(Refused::of("Protection group already exists.", name));
            }
            change.put::<_, Refused>(name, &Group::default())
        })?;
        Ok(show(array, name, &Group::default()))
    })?;
    Ok(done(made))
}

fn live(change: &Change<'_>, name: &str) -> Result<(String, Group), Refused> {
    let key = group_of(&change.view(), name)?;
    match change.get::<Group>(&key) {
        Some(group) if group.destroyed.is_none() => Ok((key, (*group).clone())),
        _ => Err(Refused::of("Protection group has been destroyed.", name)),
    }
}

pub(super) fn update(request: &Request<'_>) -> Result<Say, Refused> {
    let array = request.array;
    let changed = each(&names_of(request, "")?, |name| {
        let (key, group) = array.change(|change| {
            if request.member("destroyed").and_then(Value::as_bool) != Some(true) {
                return Err(Refused::of("Only destroying is simulated.", name));
            }
            let (key, mut group) = live(change, name)?;
            group.destroyed = Some(change.now());
            change.put::<_, Refused>(&key, &group)?;
            for (snapshot, own) in change.all::<GroupSnapshot>() {
                if own.group == key && own.destroyed.is_none() {
                    destroy_snapshot(change, &snapshot)?;
                }
            }
            Ok((key, group))
        })?;
        Ok(show(array, &key, &group))
    })?;
    Ok(done(changed))
}

pub(super) fn eradicate(request: &Request<'_>) -> Result<Say, Refused> {
    each(&names_of(request, "")?, |name| {
        may_eradicate(request.array, name)?;
        request.array.change(|change| {
            let key = group_of(&change.view(), name)?;
            if change.get::<Group>(&key).is_none_or(|group| group.destroyed.is_none()) {
                return Err(Refused::of("Protection group is not destroyed.", name));
            }
            for (snapshot, own) in change.all::<GroupSnapshot>() {
                if own.group == key {
                    remove_snapshot(change, &snapshot)?;
                }
            }
            change.remove::<Group>(&key);
            Ok(())
        })
    })?;
    Ok(done(Vec::new()))
}

fn members(request: &Request<'_>, view: &View) -> Result<(Vec<String>, Vec<String>), Refused> {
    let groups = match (request.list("group_names"), request.list("group_ids")) {
        (names, ids) if ids.is_empty() => each(&names, |name| group_of(view, name))?,
        _ => return Err(Refused::of("Name the protection group.", "group_ids")),
    };
    let volumes = match (request.list("member_names"), request.list("member_ids")) {
        (names, _) if !names.is_empty() => each(&names, |name| volume_of(view, name, false))?,
        (_, ids) => each(&ids, |id| volume_of(view, id, true))?,
    };
    Ok((groups, volumes))
}

fn show_member(view: &View, group: &str, volume: &str) -> Value {
    let id = view.get::<Volume>(volume).map(|one| super::objects::id(&one.uuid));
    json!({"group": {"name": group}, "member": {"id": id, "name": volume}})
}

pub(super) fn list_members(request: &Request<'_>) -> Result<Say, Refused> {
    let view = request.array.view();
    let (groups, volumes) = members(request, &view)?;
    let mut items: Vec<Sorted> = Vec::new();
    for (name, group) in view.all::<Group>() {
        for volume in &group.volumes {
            if (groups.is_empty() || groups.contains(&name))
                && (volumes.is_empty() || volumes.contains(volume))
            {
                items.push((format!("{name}\u{1}{volume}"), show_member(&view, &name, volume)));
            }
        }
    }
    request.page(items)
}

pub(super) fn change_members(request: &Request<'_>, add: bool) -> Result<Say, Refused> {
    let (groups, volumes) = members(request, &request.array.current())?;
    if groups.is_empty() || volumes.is_empty() {
        return Err(Refused::of("A group and a member are required.", ""));
    }
    let mut shown = Vec::new();
    for name in &groups {
        shown.extend(each(&volumes, |volume| {
            request.array.change(|change| {
                let (key, mut group) = live(change, name)?;
                match (group.volumes.iter().any(|one| one == volume), add) {
                    (true, true) => {
                        let text = "Volume already belongs to the protection group.";
                        return Err(Refused::of(text, volume));
                    }
                    (false, false) => {
                        let text = "Volume does not exist in the protection group.";
                        return Err(Refused::of(text, volume));
                    }
                    (_, true) if !change.volume(volume)?.online => {
                        return Err(Refused::of("Volume has been destroyed.", volume));
                    }
                    (_, true) => group.volumes.push(volume.to_owned()),
                    (_, false) => group.volumes.retain(|one| one != volume),
                }
                change.put::<_, Refused>(&key, &group)?;
                Ok(show_member(&change.view(), &key, volume))
            })
        })?);
    }
    Ok(done(if add { shown } else { Vec::new() }))
}

fn show_snapshot(array: &Array, key: &str, own: &GroupSnapshot) -> Value {
    json!({
        "name": key, "source": {"name": own.group}, "created": own.created,
        "suffix": key.rsplit('.').next(), "destroyed": own.destroyed.is_some(),
        "time_remaining": remaining(array, own.destroyed),
        "pod": {"id": null, "name": null},
    })
}

pub(super) fn list_snapshots(request: &Request<'_>) -> Result<Say, Refused> {
    let (array, view) = (request.array, request.array.view());
    let found = |name: &str| {
        named::<GroupSnapshot>(&view, name).ok_or_else(|| Refused::of(NO_SNAPSHOT, name))
    };
    let names = each(&request.list("names"), found)?;
    let sources = each(&request.list("source_names"), |name| group_of(&view, name))?;
    let wanted = request.flag("destroyed");
    let all = view.all::<GroupSnapshot>().into_iter().filter(|(key, own)| {
        (names.is_empty() || names.contains(key))
            && (sources.is_empty() || sources.contains(&own.group))
            && wanted.is_none_or(|wanted| wanted == own.destroyed.is_some())
    });
    let items = all.map(|(key, own)| (key.clone(), show_snapshot(array, &key, &own)));
    request.page(items.collect::<Vec<Sorted>>())
}

/// All volumes at one instant.
pub(super) fn snapshot(request: &Request<'_>) -> Result<Say, Refused> {
    let array = request.array;
    let wanted = request.member("suffix").and_then(Value::as_str);
    let made = each(&names_of(request, "source_")?, |name| {
        let (key, own) = array.change(|change| {
            let (group, own) = live(change, name)?;
            let suffix = match wanted {
                Some(suffix) => suffix.to_owned(),
                None => change.number("purestorage.suffix")?.to_string(),
            };
            let key = format!("{group}.{suffix}");
            if named::<GroupSnapshot>(&change.view(), &key).is_some() {
                return Err(Refused::of("Protection group snapshot already exists.", &key));
            }
            for volume in &own.volumes {
                if !change.volume(volume).is_ok_and(|volume| volume.online) {
                    continue;
                }
                let name = format!("{key}.{volume}");
                let suffix = format!("{suffix}.{volume}");
                let more = More { suffix, part_of: Some(key.clone()), ..More::default() };
                snapshots::make(change, volume, &name, more)?;
            }
            let own = GroupSnapshot { group, created: change.now(), destroyed: None };
            change.put::<_, Refused>(&key, &own)?;
            Ok::<_, Refused>((key, own))
        })?;
        Ok(show_snapshot(array, &key, &own))
    })?;
    Ok(done(made))
}

fn parts(change: &Change<'_>, key: &str) -> Vec<String> {
    let all = change.all::<Snapshot>().into_iter();
    let own = all.filter(|(_, one)| More::of(&one.attributes).part_of.as_deref() == Some(key));
    own.map(|(name, _)| name).collect()
}

fn destroy_snapshot(change: &mut Change<'_>, key: &str) -> Result<(), Refused> {
    let found = change.get::<GroupSnapshot>(key);
    let mut own = found.map(|own| (*own).clone()).ok_or_else(|| Refused::of(NO_SNAPSHOT, key))?;
    if own.destroyed.is_some() {
        return Err(Refused::of("Protection group snapshot has been destroyed.", key));
    }
    own.destroyed = Some(change.now());
    change.put::<_, Refused>(key, &own)?;
    for part in parts(change, key) {
        change_snapshot(change, &part, |more| more.destroyed = own.destroyed)?;
    }
    Ok(())
}

fn remove_snapshot(change: &mut Change<'_>, key: &str) -> Result<(), Refused> {
    for part in parts(change, key) {
        change.delete_snapshot(&part)?;
    }
    change.remove::<GroupSnapshot>(key);
    Ok(())
}

pub(super) fn update_snapshot(request: &Request<'_>) -> Result<Say, Refused> {
    each(&names_of(request, "")?, |name| {
        request.array.change(|change| {
            if request.member("destroyed").and_then(Value::as_bool) != Some(true) {
                return Err(Refused::of("Only destroying is simulated.", name));
            }
            let key = named::<GroupSnapshot>(&change.view(), name);
            destroy_snapshot(change, &key.ok_or_else(|| Refused::of(NO_SNAPSHOT, name))?)
        })
    })?;
    Ok(done(Vec::new()))
}

pub(super) fn eradicate_snapshot(request: &Request<'_>) -> Result<Say, Refused> {
    each(&names_of(request, "")?, |name| {
        may_eradicate(request.array, name)?;
        request.array.change(|change| {
            let key = named::<GroupSnapshot>(&change.view(), name);
            let key = key.ok_or_else(|| Refused::of(NO_SNAPSHOT, name))?;
            if change.get::<GroupSnapshot>(&key).is_none_or(|own| own.destroyed.is_none()) {
                return Err(Refused::of("Protection group snapshot is not destroyed.", name));
            }
            remove_snapshot(change, &key)
        })
    })?;
    Ok(done(Vec::new()))
}
