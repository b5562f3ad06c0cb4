//! Snapshots of volumes, `volume.suffix`, and the tags of both.

use serde_json::{Value, json};

use super::failure::{Refused, each};
use super::objects::{
    More, Tag, change_snapshot, change_volume, id, named, serial, snapshot_of, volume_of,
};
use super::request::{Request, Sorted, done};
use super::volumes::{chosen, may_eradicate, remaining};
use crate::core::{Array, Change, Snapshot, View, Volume};
use crate::http::Say;

fn show(array: &Array, view: &View, name: &str, snapshot: &Snapshot) -> Value {
    let more = More::of(&snapshot.attributes);
    let source = view.get::<Volume>(&snapshot.volume);
    json!({
        "id": id(&snapshot.uuid), "name": name, "suffix": more.suffix,
        "provisioned": snapshot.size, "created": snapshot.created,
        "serial": serial(&snapshot.uuid), "destroyed": more.destroyed.is_some(),
        "time_remaining": remaining(array, more.destroyed),
        "source": {"id": source.map(|source| id(&source.uuid)), "name": snapshot.volume},
        "space": {"snapshots": 0, "unique": 0, "total_physical": 0,
            "total_provisioned": snapshot.size, "virtual": array.referenced(snapshot.layer)},
        "pod": {"id": null, "name": null}, "volume_group": {"id": null, "name": null},
    })
}

fn shown(array: &Array, key: &str) -> Result<Value, Refused> {
    let view = array.current();
    let found = view.get::<Snapshot>(key);
    let found = found.ok_or_else(|| Refused::of("Volume snapshot does not exist.", key))?;
    Ok(show(array, &view, key, &found))
}

pub(super) fn list(request: &Request<'_>) -> Result<Say, Refused> {
    let (array, view) = (request.array, request.array.view());
    let keys = || view.all::<Snapshot>().into_iter().map(|(key, _)| key).collect();
    let names = chosen(request, &view, snapshot_of, keys)?;
    let sources = match (request.list("source_names"), request.list("source_ids")) {
        (names, _) if !names.is_empty() => each(&names, |name| volume_of(&view, name, false))?,
        (_, ids) => each(&ids, |id| volume_of(&view, id, true))?,
    };
    let wanted = request.flag("destroyed");
    let items = names.into_iter().filter_map(|name| {
        let snapshot = view.get::<Snapshot>(&name)?;
        let destroyed = More::of(&snapshot.attributes).destroyed.is_some();
        let fits = wanted.is_none_or(|wanted| wanted == destroyed)
            && (sources.is_empty() || sources.contains(&snapshot.volume));
        fits.then(|| (name.clone(), show(array, &view, &name, &snapshot)))
    });
    request.page(items.collect::<Vec<Sorted>>())
}

/// A suffix: letters, digits and `-`, and not digits alone unless the array chose it.
fn check_suffix(suffix: &str) -> Result<(), Refused> {
    let plain = suffix.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    let letter = suffix.chars().any(|c| c.is_ascii_alphabetic());
    if plain && letter && !suffix.starts_with('-') && !suffix.ends_with('-') {
        return Ok(());
    }
    Err(Refused::of("Invalid snapshot suffix.", suffix))
}

fn live_volume(change: &Change<'_>, name: &str, by_id: bool) -> Result<String, Refused> {
    let key = volume_of(&change.view(), name, by_id)?;
    if change.volume(&key)?.online {
        return Ok(key);
    }
    Err(Refused::of("Volume has been destroyed.", &key))
}

pub(super) fn create(request: &Request<'_>) -> Result<Say, Refused> {
    let (names, by_id) = request.targets("source_")?;
    let suffix = request.member("suffix").and_then(Value::as_str);
    suffix.map_or(Ok(()), check_suffix)?;
    let made = each(&names, |name| {
        request.array.change(|change| {
            let volume = live_volume(change, name, by_id)?;
            let suffix = match suffix {
                Some(suffix) => suffix.to_owned(),
                None => change.number("purestorage.suffix")?.to_string(),
            };
            make(change, &volume, &format!("{volume}.{suffix}"), More { suffix, ..More::default() })
        })
    })?;
    Ok(done(made.iter().map(|key| shown(request.array, key)).collect::<Result<_, _>>()?))
}

/// Takes a snapshot under a name that nothing has, destroyed or not.
pub(super) fn make(
    change: &mut Change<'_>,
    volume: &str,
    key: &str,
    mut more: More,
) -> Result<String, Refused> {
    if named::<Snapshot>(&change.view(), key).is_some() {
        return Err(Refused::of("Volume snapshot already exists.", key));
    }
    more.tags = More::of(&change.volume(volume)?.attributes).tags;
    more.tags.retain(|tag| tag.copyable);
    change.create_snapshot(volume, key, more.attributes())?;
    Ok(key.to_owned())
}

/// What a volume had before it is cut or overwritten: a snapshot that is destroyed at once.
pub(super) fn undo(change: &mut Change<'_>, volume: &str) -> Result<(), Refused> {
    let suffix = format!("undo-{}", change.number("purestorage.suffix")?);
    let destroyed = Some(change.now());
    let more = More { suffix: suffix.clone(), destroyed, ..More::default() };
    make(change, volume, &format!("{volume}.{suffix}"), more).map(drop)
}

pub(super) fn update(request: &Request<'_>) -> Result<Say, Refused> {
    let (names, by_id) = request.targets("")?;
    let keys = each(&names, |name| {
        request.array.change(|change| {
            let key = snapshot_of(&change.view(), name, by_id)?;
            let snapshot = change.snapshot(&key)?;
            let more = More::of(&snapshot.attributes);
            if more.part_of.is_some() {
                return Err(Refused::of("Snapshot is part of a protection group snapshot.", &key));
            }
            if let Some(wanted) = request.member("destroyed").and_then(Value::as_bool) {
                match (wanted, more.destroyed.is_some()) {
                    (true, true) => {
                        return Err(Refused::of("Volume snapshot has been destroyed.", &key));
                    }
                    (false, false) => {
                        return Err(Refused::of("Volume snapshot is not destroyed.", &key));
                    }
                    _ => {}
                }
                let destroyed = wanted.then(|| change.now());
                change_snapshot(change, &key, |more| more.destroyed = destroyed)?;
                return Ok(key);
            }
            let Some(suffix) = request.member("name").and_then(Value::as_str) else {
                return Err(Refused::of("Nothing to change.", &key));
            };
            if more.destroyed.is_some() {
                return Err(Refused::of("Volume snapshot has been destroyed.", &key));
            }
            check_suffix(suffix)?;
            let to = format!("{}.{suffix}", snapshot.volume);
            if named::<Snapshot>(&change.view(), &to).is_some() {
                return Err(Refused::of("Volume snapshot already exists.", &to));
            }
            change_snapshot(change, &key, |more| suffix.clone_into(&mut more.suffix))?;
            change.rename_snapshot(&key, &to)?;
            Ok(to)
        })
    })?;
    Ok(done(keys.iter().map(|key| shown(request.array, key)).collect::<Result<_, _>>()?))
}

pub(super) fn eradicate(request: &Request<'_>) -> Result<Say, Refused> {
    let (names, by_id) = request.targets("")?;
    each(&names, |name| {
        may_eradicate(request.array, name)?;
        request.array.change(|change| {
            let key = snapshot_of(&change.view(), name, by_id)?;
            if More::of(&change.snapshot(&key)?.attributes).destroyed.is_none() {
                return Err(Refused::of("Volume snapshot is not destroyed.", &key));
            }
            Ok::<_, Refused>(change.delete_snapshot(&key)?)
        })
    })?;
    Ok(done(Vec::new()))
}

/// Where tags are: on volumes or on their snapshots.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Tagged {
    Volumes,
    Snapshots,
}

impl Tagged {
    fn find(self, view: &View, name: &str, by_id: bool) -> Result<String, Refused> {
        match self {
            Self::Volumes => volume_of(view, name, by_id),
            Self::Snapshots => snapshot_of(view, name, by_id),
        }
    }

    /// All that can have tags: name, id, and what it has.
    fn all(self, view: &View) -> Vec<(String, String, More)> {
        match self {
            Self::Volumes => {
                let all = view.all::<Volume>().into_iter();
                all.map(|(key, one)| (key, id(&one.uuid), More::of(&one.attributes))).collect()
            }
            Self::Snapshots => {
                let all = view.all::<Snapshot>().into_iter();
                all.map(|(key, one)| (key, id(&one.uuid), More::of(&one.attributes))).collect()
            }
        }
    }

    fn change(
        self,
        change: &mut Change<'_>,
        key: &str,
        work: impl FnOnce(&mut More) -> Result<(), Refused>,
    ) -> Result<(), Refused> {
        match self {
            Self::Volumes => change_volume(change, key, work)?,
            Self::Snapshots => change_snapshot(change, key, work)?,
        }
    }
}

fn show_tag(name: &str, id: &str, tag: &Tag) -> Value {
    json!({
        "resource": {"id": id, "name": name}, "namespace": tag.namespace, "key": tag.key,
        "value": tag.value, "copyable": tag.copyable,
    })
}

pub(super) fn tags(request: &Request<'_>, place: Tagged) -> Result<Say, Refused> {
    let view = request.array.view();
    let wanted = match (request.list("resource_names"), request.list("resource_ids")) {
        (names, _) if !names.is_empty() => each(&names, |name| place.find(&view, name, false))?,
        (_, ids) => each(&ids, |id| place.find(&view, id, true))?,
    };
    let namespaces = request.list("namespaces");
    let destroyed = request.flag("resource_destroyed");
    let mut items: Vec<Sorted> = Vec::new();
    for (name, id, more) in place.all(&view) {
        if !wanted.is_empty() && !wanted.contains(&name)
            || destroyed.is_some_and(|destroyed| destroyed != more.destroyed.is_some())
        {
            continue;
        }
        let fits = |tag: &&Tag| namespaces.is_empty() || namespaces.contains(&tag.namespace);
        for tag in more.tags.iter().filter(fits) {
            let key = format!("{name}\u{1}{}\u{1}{}", tag.namespace, tag.key);
            items.push((key, show_tag(&name, &id, tag)));
        }
    }
    request.page(items)
}

pub(super) fn set_tags(request: &Request<'_>, place: Tagged) -> Result<Say, Refused> {
    let (names, by_id) = request.targets("resource_")?;
    let wanted: Vec<Tag> = request.body.as_array().into_iter().flatten().map(tag_of).collect();
    let most = request.array.settings().limits.get("tags").copied();
    let mut shown = Vec::new();
    each(&names, |name| {
        let key = request.array.change(|change| {
            let key = place.find(&change.view(), name, by_id)?;
            place.change(change, &key, |more| {
                if more.destroyed.is_some() {
                    return Err(Refused::of("Resource has been destroyed.", name));
                }
                for tag in &wanted {
                    more.tags
                        .retain(|own| (&own.namespace, &own.key) != (&tag.namespace, &tag.key));
                    more.tags.push(tag.clone());
                }
                if most.is_some_and(|most| more.tags.len() as u64 > most) {
                    return Err(Refused::of("Tag limit reached.", name));
                }
                Ok(())
            })?;
            Ok::<_, Refused>(key)
        })?;
        shown.extend(wanted.iter().map(|tag| show_tag(&key, "", tag)));
        Ok(())
    })?;
    Ok(done(shown))
}

fn tag_of(value: &Value) -> Tag {
    let text = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or("").to_owned();
    let namespace = match text("namespace") {
        none if none.is_empty() => "default".to_owned(),
        given => given,
    };
    let copyable = value.get("copyable").and_then(Value::as_bool).unwrap_or(true);
    Tag { namespace, key: text("key"), value: text("value"), copyable }
}

pub(super) fn remove_tags(request: &Request<'_>, place: Tagged) -> Result<Say, Refused> {
    let (names, by_id) = request.targets("resource_")?;
    let (keys, mut namespaces) = (request.list("keys"), request.list("namespaces"));
    if namespaces.is_empty() {
        namespaces.push("default".to_owned());
    }
    each(&names, |name| {
        request.array.change(|change| {
            let key = place.find(&change.view(), name, by_id)?;
            place.change(change, &key, |more| {
                let doomed =
                    |tag: &Tag| keys.contains(&tag.key) && namespaces.contains(&tag.namespace);
                if !more.tags.iter().any(doomed) {
                    return Err(Refused::of("Tag does not exist.", name));
                }
                more.tags.retain(|tag| !doomed(tag));
                Ok(())
            })
        })
    })?;
    Ok(done(Vec::new()))
}
