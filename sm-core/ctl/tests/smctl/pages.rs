//! Help, completions and manual pages.

use std::process::{Command, Stdio};

use crate::world::World;

/// All commands, by asking the help of each noun.
fn commands(world: &World) -> Vec<Vec<String>> {
    let mut found = vec![Vec::new()];
    for noun in ["driver", "sr", "vdi", "job", "vhd", "snapshot-group"] {
        found.push(vec![noun.to_owned()]);
        let help = world.ok(&[noun, "--help"]);
        let verbs = help.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
        for line in verbs.lines().filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        {
            let verb = line.split_whitespace().next().unwrap();
            found.push(vec![noun.to_owned(), verb.to_owned()]);
        }
    }
    found.push(vec!["completions".to_owned()]);
    found.push(vec!["man".to_owned()]);
    assert!(found.len() > 40, "{found:?}");
    found
}

/// No line of any help is longer than 80 columns, and every verb has an example.
#[test]
fn help_fits_a_terminal() {
    let world = World::empty("in-process");
    for command in commands(&world) {
        for flag in ["-h", "--help"] {
            let mut words: Vec<&str> = command.iter().map(String::as_str).collect();
            words.push(flag);
            let help = world.ok(&words);
            for line in help.lines() {
                assert!(line.chars().count() <= 80, "{words:?}: {line}");
            }
            if command.len() == 2 {
                assert!(help.contains("Example:"), "{words:?} has no example");
            }
        }
    }
}

/// The completions of every shell are a script that the shell reads.
#[test]
fn completions() {
    let world = World::empty("in-process");
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = world.ok(&["completions", shell]);
        assert!(script.contains("smctl") && script.contains("snapshot"), "{shell}");
        if matches!(shell, "bash" | "zsh" | "fish") {
            let checked =
                Command::new(shell).args(["-n", "-c", &script]).stderr(Stdio::inherit()).status();
            // A shell that is not installed has nothing to say.
            if let Ok(status) = checked {
                assert!(status.success(), "{shell} does not read its completions");
            }
        }
    }
}

/// There is a manual page for the program and one for each command.
#[test]
fn manual_pages() {
    let world = World::empty("in-process");
    let page = world.ok(&["man"]);
    assert!(page.contains(".TH smctl 1") && page.contains("Exit status"), "{page}");
    let folder = world.path("man");
    let written = world.json(&["man", "--output", &folder]);
    let pages: Vec<&str> =
        written["pages"].as_array().unwrap().iter().map(|page| page.as_str().unwrap()).collect();
    for command in commands(&world) {
        let name = std::iter::once("smctl".to_owned()).chain(command).collect::<Vec<_>>().join("-");
        assert!(pages.contains(&format!("{name}.1").as_str()), "no page for {name}: {pages:?}");
    }
    for page in pages {
        let text = std::fs::read_to_string(world.folder.path().join("man").join(page)).unwrap();
        assert!(text.contains(".SH SYNOPSIS"), "{page}");
    }
}

/// The documentation has an example of every command.
#[test]
fn the_documentation_is_complete() {
    let docs = include_str!("../../../../docs/smctl.md");
    let world = World::empty("in-process");
    for command in commands(&world).iter().filter(|command| command.len() == 2) {
        let name = command.join(" ");
        assert!(docs.contains(&format!("| `{name}")), "{name} is not in the table of commands");
        assert!(docs.contains(&format!("smctl {name}")), "{name} has no example");
    }
}
