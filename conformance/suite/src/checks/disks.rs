//! VDIs: made, described, listed, removed.

use std::collections::BTreeMap;

use sm_model::vdi::{Health, VdiDestroy, VdiIntroduce, VdiStat, VdiUpdate};
use sm_model::{Access, Bytes, Changed, Kind, VdiUuid};

use super::{Check, DATA, DISKS, Setup};
use crate::oracle::Content;
use crate::verdict::{Stop, Verdict, must, same};
use crate::world::World;

/// Texts that somebody somewhere takes for something else than a name.
const ODD: &[&str] = &[
    "../../etc/passwd",
    "-rf",
    "a/b\\c",
    "$(touch /tmp/owned)`id`;reboot",
    "'\"quoted\"'",
    "line one\nline two\ttab",
    "{\"json\": [1, 2]}",
    "<name>&amp;</name>",
    "%s%n%x",
    "\u{1f5c4} Größe \u{65e5}\u{672c}\u{8a9e} \u{202e}rtl",
    " leading and trailing ",
    ".",
];

/// What a user says of a disk.
#[derive(Clone, Debug, PartialEq)]
struct Texts {
    name: String,
    description: String,
    keys: BTreeMap<String, String>,
}

impl Texts {
    fn new(name: &str, description: &str, keys: &[(&str, &str)]) -> Self {
        let keys = keys.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        let (name, description) = (name.to_owned(), description.to_owned());
        Self { name, description, keys: keys.collect() }
    }
}

/// Makes a disk with these texts. None if the backend has no room for them, and nothing more on it.
fn with_texts(world: &mut World<'_>, texts: Texts) -> Verdict<Option<(VdiUuid, Texts)>> {
    let mut request = world.disk("odd");
    (request.name, request.description) = (texts.name.clone(), texts.description.clone());
    request.keys.clone_from(&texts.keys);
    let (vdi, before) = (request.uuid, world.files()?);
    world.own_vdi(vdi)?;
    match world.call(request) {
        Err(error) if error.kind == Kind::Limit => {
            same("the backend after a refusal", world.files()?, before)?;
            Ok(None)
        }
        answer => {
            same("changed of a create", answer?.changed, Changed::Created)?;
            Ok(Some((vdi, texts)))
        }
    }
}

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "C01",
        needs: DATA,
        sentences: &["DRV-VDI-2", "DRV-IDEM-4"],
        explain: "Disks of one byte, of odd sizes around 4 MiB, and of 1 GiB + 1 byte: the answered \
            size is at least what was asked for, less than 4 MiB or an ordinary disk's size more, and a \
            multiple of 512. Where more was answered, a disk of that size is asked for: the format can \
            have it, so it is not rounded again.",
        setup: Setup::Sr,
        run: |world| {
            let mut rounded = None;
            for size in [1, 512, (4 << 20) - 1, 4 << 20, (4 << 20) + 1, (1 << 30) + 1] {
                let mut request = world.disk("sized");
                request.virtual_size = Bytes(size);
                let got = world.create_as(request)?.virtual_size.0;
                let step = world.size().max(4 << 20);
                let fits = got >= size && got < size + step && got.is_multiple_of(512);
                must(fits, || format!("{size} bytes were asked for, {got} answered"))?;
                rounded = (got > size).then_some(got).or(rounded);
            }
            if let Some(size) = rounded {
                let mut request = world.disk("fits");
                request.virtual_size = Bytes(size);
                let got = world.create_as(request)?.virtual_size.0;
                same("a size that was answered, asked for", got, size)?;
            }
            Ok(())
        },
    },
    Check {
        id: "C16",
        needs: DISKS.and(&["vdi_stat"]),
        sentences: &["DRV-LIST-7", "DRV-META-1"],
        explain: "What the create answered, what `vdi_stat` tells and what the listing says of a \
            VDI must be the same, in every field, and be what was asked for.",
        setup: Setup::Sr,
        run: |world| {
            let request = world.disk("same");
            let made = world.create_as(request.clone())?;
            same("name", &made.name, &request.name)?;
            same("description", &made.description, &request.description)?;
            same("keys", &made.keys, &request.keys)?;
            same("health", &made.health, &Health::Ok)?;
            let mut told = world.stat(made.uuid)?;
            let mut listed = world.list()?.remove(&made.uuid);
            same("vdi_stat beside the create", &told, &made)?;
            // These two may be left out where they are costly.
            for vdi in listed.iter_mut().chain([&mut told]) {
                (vdi.exclusive, vdi.reclaimable) = (None, None);
            }
            same("the listing beside vdi_stat", listed, Some(told))
        },
    },
    Check {
        id: "C15",
        needs: DISKS,
        sentences: &["DRV-LIST-1", "DRV-LIST-6"],
        explain: "Sixty VDIs are made, twenty where `suite.slow` is set, and some removed. The listing, over all its pages, must name \
            every VDI exactly once, and a page that says there is more must lead on.",
        setup: Setup::Sr,
        run: |world| {
            let mut there = std::collections::BTreeSet::new();
            let all = if world.bench.config.suite.slow.is_some() { 20 } else { 60 };
            for number in 0..all {
                there.insert(world.create(&format!("n{number}"))?.uuid);
            }
            let gone: Vec<_> = there.iter().copied().step_by(7).collect();
            for vdi in gone {
                world.destroy(vdi)?;
                there.remove(&vdi);
            }
            let listed = world.list()?.into_keys().collect();
            let lost: Vec<_> = there.difference(&listed).collect();
            let extra: Vec<_> = listed.difference(&there).collect();
            must(lost.is_empty() && extra.is_empty(), || {
                format!("the listing lacks {lost:?} and has {extra:?} too much")
            })
        },
    },
    Check {
        id: "C07",
        needs: DATA,
        sentences: &["DRV-VDI-3", "DRV-IDEM-2"],
        explain: "A create of a VDI that is there, with the same size, is `already`, and leaves \
            its content alone: a retry must not wipe what was written meanwhile.",
        setup: Setup::Sr,
        run: |world| {
            let request = world.disk("once");
            let made = world.create_as(request.clone())?;
            let mut content = Content::default();
            let blocks = world.blocks(made.virtual_size.0, 8);
            world.fill(made.uuid, &mut content, &blocks, 1)?;
            let again = world.call(request)?;
            same("changed of a second create", again.changed, Changed::Already)?;
            same("the size of a second create", again.vdi.virtual_size, made.virtual_size)?;
            same("VDIs in the listing", world.list()?.len(), 1)?;
            world.verify(made.uuid, &content, "a disk that was created again")
        },
    },
    Check {
        id: "C08",
        needs: DATA,
        sentences: &["DRV-IDEM-3"],
        explain: "A create of a VDI that is there, with another size, must be refused with \
            `exists`, and the VDI must not be changed.",
        setup: Setup::Sr,
        run: |world| {
            let (vdi, content) = world.filled("there")?;
            let before = world.stat(vdi)?;
            let mut request = world.disk("other");
            request.uuid = vdi;
            request.virtual_size = Bytes(world.size() * 3);
            World::refused("a create with another size", "exists", world.call(request))?;
            same("the VDI after a refusal", world.stat(vdi)?, before)?;
            world.verify(vdi, &content, "a disk that was to be made again")
        },
    },
    Check {
        id: "C03",
        needs: DATA.and(&["max_vdi_size"]),
        sentences: &["DRV-LOAD-5"],
        explain: "A disk of the declared largest size can be made, and its last sector written.",
        setup: Setup::Sr,
        run: |world| {
            let limit = world.manifest().capability("max_vdi_size").and_then(|c| c.limit);
            let limit = limit.ok_or_else(|| Stop::Fail("max_vdi_size has no limit".into()))?;
            super::data::last_sector(world, limit)
        },
    },
    Check {
        id: "C04",
        needs: DISKS.and(&["max_vdi_size"]),
        sentences: &["DRV-VDI-2", "DRV-LOAD-5", "DRV-ERR-5"],
        explain: "One byte more than the declared largest size must be refused with `limit`, and \
            leave nothing behind.",
        setup: Setup::Sr,
        run: |world| {
            let limit = world.manifest().capability("max_vdi_size").and_then(|c| c.limit);
            let mut request = world.disk("huge");
            request.virtual_size = Bytes(limit.unwrap_or(1 << 60) + 1);
            let before = world.files()?;
            World::refused("a create above the limit", "limit", world.call(request))?;
            must(world.list()?.is_empty(), || "a VDI above the limit is listed".into())?;
            same("the backend after a refusal", world.files()?, before)
        },
    },
    Check {
        id: "C06",
        needs: DISKS.and(&["vdi_stat"]),
        sentences: &["DRV-META-2", "DRV-META-1", "DRV-META-7"],
        explain: "Names, descriptions and keys with paths, options, quotes, shell, markup, line \
            breaks, emoji, and of 1024 bytes must be kept to the byte, also over a restart, and \
            have no other effect. Where the backend has no room for all of it at once (`limit`, and \
            nothing is left behind), each odd text must be kept alone: as a name, as a description, \
            as a key, and as its value.",
        setup: Setup::Sr,
        run: |world| {
            let long = "x".repeat(1024);
            let mut made = Vec::new();
            let all =
                |text: &str| Texts::new(text, &text.repeat(2), &[(&format!("key {text}"), text)]);
            made.extend(with_texts(world, all(&long))?);
            for text in ODD {
                let together = with_texts(world, all(text))?;
                if together.is_some() {
                    made.extend(together);
                    continue;
                }
                let (name, description) = (Texts::new(text, "", &[]), Texts::new("", text, &[]));
                let (key, value) =
                    (Texts::new("", "", &[(text, "")]), Texts::new("", "", &[("k", text)]));
                for alone in [name, description, key, value] {
                    let fits = with_texts(world, alone)?;
                    must(fits.is_some(), || format!("there is no room for {text:?} alone"))?;
                    made.extend(fits);
                }
            }
            same("VDIs in the listing", world.list()?.len(), made.len())?;
            world.reopen()?;
            for (vdi, asked) in made {
                let told = world.stat(vdi)?;
                let told =
                    Texts { name: told.name, description: told.description, keys: told.keys };
                same("name, description and keys", told, asked)?;
            }
            let outside = std::path::Path::new("/tmp/owned").exists();
            must(!outside, || "a name was run by a shell".into())
        },
    },
    Check {
        id: "C10",
        needs: DISKS.and(&["vdi_stat"]),
        sentences: &["DRV-VDI-6", "DRV-ERR-1"],
        explain: "A destroyed VDI must be gone from the listing, and `vdi_stat` must answer \
            `not_found`; the others stay.",
        setup: Setup::Sr,
        run: |world| {
            let (one, two) = (world.create("one")?.uuid, world.create("two")?.uuid);
            world.destroy(one)?;
            World::refused("vdi_stat of what is gone", "not_found", world.stat(one))?;
            let listed: Vec<_> = world.list()?.into_keys().collect();
            same("the listing", listed, vec![two])
        },
    },
    Check {
        id: "C11",
        needs: DISKS,
        sentences: &["DRV-VDI-6", "DRV-IDEM-2"],
        explain: "The destroy of a VDI that is gone is success, and says `already`; so is that of \
            one that never was.",
        setup: Setup::Sr,
        run: |world| {
            let vdi = world.create("once")?.uuid;
            world.destroy(vdi)?;
            let again = world.call(VdiDestroy { vdi })?.changed;
            same("changed of a second destroy", again, Changed::Already)
        },
    },
    Check {
        id: "C12",
        needs: DISKS,
        sentences: &["DRV-VDI-6"],
        explain: "The destroy of a UUID that nothing ever had is success, and says `already`.",
        setup: Setup::Sr,
        run: |world| {
            let other = world.create("other")?.uuid;
            let vdi = world.new_vdi();
            let done = world.call(VdiDestroy { vdi })?.changed;
            same("changed of a destroy of nothing", done, Changed::Already)?;
            must(world.list()?.contains_key(&other), || "another VDI is gone".into())
        },
    },
    Check {
        id: "C14",
        needs: DATA,
        sentences: &["DRV-CRASH-3", "DRV-VDI-6"],
        explain: "After a VDI was made, used and destroyed, the backend must hold nothing of it: \
            looked at in the backend itself, not in the driver's listing.",
        setup: Setup::Sr,
        run: |world| {
            world.must_see_files()?;
            for name in ["a", "b", "c"] {
                let (vdi, _) = world.filled(name)?;
                world.destroy(vdi)?;
                let left = world.left_over()?;
                must(left.is_empty(), || {
                    format!("of a destroyed VDI is left: {}", left.join(", "))
                })?;
            }
            Ok(())
        },
    },
    Check {
        id: "C17",
        needs: DISKS.and(&["vdi_stat", "vdi_update"]),
        sentences: &["DRV-META-3", "DRV-META-1"],
        explain: "A rename, a key that is set and one that is removed must be on the backend after \
            a restart; what was not named in the request stays; and nothing to change is `already`.",
        setup: Setup::Sr,
        run: |world| {
            let made = world.create("old")?;
            let update = VdiUpdate {
                vdi: made.uuid,
                name: Some("new \u{2764} name".into()),
                description: None,
                vdi_type: None,
                read_only: None,
                keys: [
                    ("added".to_owned(), Some("1".to_owned())),
                    ("conformance".to_owned(), None),
                ]
                .into(),
                incomplete: None,
            };
            let done = world.call(update.clone())?;
            same("changed", done.changed, Changed::Modified)?;
            world.reopen()?;
            let told = world.stat(made.uuid)?;
            same("name", told.name.as_str(), "new \u{2764} name")?;
            same("description", &told.description, &made.description)?;
            same("keys", &told.keys, &[("added".to_owned(), "1".to_owned())].into())?;
            same("changed of the same again", world.call(update)?.changed, Changed::Already)
        },
    },
    Check {
        id: "C18",
        needs: DISKS.and(&["vdi_introduce"]),
        sentences: &["DRV-VDI-4"],
        explain: "The introduce of a VDI that is known is `already`, and makes no second one; that \
            of a UUID without an image is `not_found`, and makes none.",
        setup: Setup::Sr,
        run: |world| {
            let vdi = world.create("known")?;
            let introduce = |uuid| VdiIntroduce {
                uuid,
                name: String::new(),
                description: String::new(),
                vdi_type: vdi.vdi_type,
                keys: BTreeMap::new(),
            };
            let done = world.call(introduce(vdi.uuid))?;
            same("changed of the introduce of what is known", done.changed, Changed::Already)?;
            let absent = world.new_vdi();
            let answer = world.call(introduce(absent));
            World::refused("the introduce of nothing", "not_found", answer)?;
            same("VDIs in the listing", world.list()?.len(), 1)
        },
    },
    Check {
        id: "C20",
        needs: DATA,
        sentences: &["DRV-ATT-1", "DRV-IDEM-7"],
        explain: "How a disk is reached must be the same after a detach and after a restart, and \
            its UUID and format too.",
        setup: Setup::Sr,
        run: |world| {
            let vdi = world.create("stable")?;
            let mut found: Vec<Vec<Access>> = Vec::new();
            for _ in 0..2 {
                let mode = sm_model::AttachMode::ReadOnly;
                let answer = world.call(sm_model::vdi::VdiAttach { vdi: vdi.uuid, mode })?;
                world.call(sm_model::vdi::VdiDetach { vdi: vdi.uuid })?;
                found.push(answer.access);
                world.reopen()?;
            }
            let format = world.call(VdiStat::of(vdi.uuid))?.format;
            same("the format after a restart", format, vdi.format)?;
            let [before, after] = found.as_slice() else { return Ok(()) };
            same("the way to the disk after a restart", after, before)
        },
    },
];
