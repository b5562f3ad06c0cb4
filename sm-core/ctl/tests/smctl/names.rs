//! Names are kept as they are, and cannot steer the terminal that shows them.

use crate::world::{PLACES, World};

const NAMES: [&str; 8] = [
    "-rf",
    "--json",
    "../../etc/passwd",
    "two\nlines\tand a tab",
    "'quoted' \"twice\" $(date) `x`",
    "💽 ünï \u{202e}gpj.exe",
    " blanks around ",
    "*",
];

/// A name goes through create, list, show and rename unchanged.
#[test]
fn names_are_verbatim() {
    for place in PLACES {
        let world = World::with_sr(place);
        for name in NAMES {
            let uuid = world.ok(&["vdi", "create", &format!("--name={name}"), "--size", "8MiB"]);
            let shown = world.json(&["vdi", "show", "--", name]);
            assert_eq!(
                (&shown["vdi"]["name"], &shown["vdi"]["uuid"]),
                (&name.into(), &uuid.into())
            );
            let renamed = format!("{name} again");
            world.ok(&["vdi", "rename", "--", name, &renamed]);
            let shown = world.json(&["vdi", "show", "--", &renamed]);
            assert_eq!(shown["vdi"]["name"], renamed.as_str());
        }
        let list = world.ok(&["vdi", "list"]);
        assert_eq!(list.lines().count(), NAMES.len() + 1, "{list}");
        assert!(list.contains("two\\nlines\\tand a tab again"), "{list}");
        assert!(list.contains("\\u{202e}gpj.exe again") && !list.contains('\u{202e}'), "{list}");
        let listed = world.json(&["vdi", "list"]).to_string();
        assert!(listed.contains("two\\nlines\\tand a tab again"));
    }
}

/// The names of SRs too.
#[test]
fn names_of_srs_are_verbatim() {
    let world = World::empty("in-process");
    let name = "a\n\u{1b}[31mb";
    let refused =
        world.run(&["sr", "create", "--driver=file", &format!("--name={name}"), &world.location()]);
    assert_eq!(refused.status, 7, "XML cannot carry an escape: {refused:?}");
    assert!(refused.stderr.contains("U+001B"), "{refused:?}");
    world.ok(&["sr", "create", "--driver=file", "--name=a\n-b", &world.location()]);
    assert!(world.ok(&["sr", "list"]).contains(" a\\n-b "));
    assert_eq!(world.json(&["sr", "list"])["srs"][0]["name"], "a\n-b");
    assert!(world.ok(&["sr", "show", "a\n-b"]).contains("name:                   a\\n-b\n"));
}
