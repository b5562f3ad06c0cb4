//! The arrows between the crates go one way, and the rules of the house hold.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails so")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Who may depend on whom, lowest first: a crate may only name crates of lower layers.
const LAYERS: &[&[&str]] = &[
    &["sm-step", "sm-model", "sm-abi"],
    &["vhd", "lab", "array-sim"],
    &["sm-loader", "plugin-sdk", "datapath", "sm-quiesce"],
    &["sm-core", "sm-driver-host", "host-kit", "vhd-folder"],
    &["smctl", "array-kit", "vhd-lvm"],
    &["conformance", "sm-conformance", "xtask"],
    &["array-matrix"],
    &["conformance-guests"],
];

struct Package {
    manifest: PathBuf,
    /// Name and kind (`normal`, `dev`, `build`) of what it depends on.
    dependencies: BTreeSet<(String, String)>,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn workspace() -> BTreeMap<String, Package> {
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let text = |value: &Value| value.as_str().unwrap_or("normal").to_owned();
    metadata["packages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|package| {
            let dependencies = package["dependencies"].as_array().unwrap().iter();
            let package_ = Package {
                manifest: text(&package["manifest_path"]).into(),
                dependencies: dependencies.map(|d| (text(&d["name"]), text(&d["kind"]))).collect(),
            };
            (text(&package["name"]), package_)
        })
        .collect()
}

fn is_driver(package: &Package) -> bool {
    let folder = package.manifest.strip_prefix(root()).unwrap();
    folder.starts_with("drivers") || folder.starts_with("conformance/faulty")
}

#[test]
fn arrows_go_down_only() {
    let packages = workspace();
    let layer = |name: &str| LAYERS.iter().position(|layer| layer.contains(&name));
    for (name, package) in &packages {
        let own = layer(name);
        assert!(own.is_some() || is_driver(package), "{name} is in no layer: add it to LAYERS");
        for (dependency, kind) in &package.dependencies {
            if kind == "dev" || !packages.contains_key(dependency) {
                continue;
            }
            assert!(
                !is_driver(&packages[dependency]),
                "{name} links the driver {dependency}: two drivers in one program do not link"
            );
            let (Some(own), Some(below)) = (own, layer(dependency)) else { continue };
            assert!(below < own, "{name} depends on {dependency}, which is not below it");
        }
    }
}

/// Whoever may name a crate of others that has a wall around it.
#[test]
fn some_crates_stay_behind_their_wall() {
    let walls: &[(&str, &[&str])] = &[
        ("abi_stable", &["sm-abi"]),
        ("async-ffi", &["sm-abi"]),
        ("libloading", &["sm-loader"]),
        ("rusqlite", &["sm-core"]),
        ("reqwest", &["array-kit"]),
        ("clap", &["smctl", "sm-conformance"]),
    ];
    for (name, package) in workspace() {
        for (dependency, kind) in &package.dependencies {
            let wall = walls.iter().find(|(walled, _)| walled == dependency);
            if let Some((_, allowed)) = wall {
                assert!(
                    kind == "dev" || allowed.contains(&name.as_str()),
                    "{name} names {dependency}, which only {allowed:?} may"
                );
            }
            let no_runtime = ["sm-model", "sm-abi", "sm-step", "vhd"].contains(&name.as_str());
            assert!(
                !(no_runtime && dependency == "tokio" && kind == "normal"),
                "{name} does no I/O and has no runtime"
            );
        }
    }
}

/// The interface's version is part of the layout check: with the workspace's it would change with
/// every release.
#[test]
fn the_interface_has_a_version_of_its_own() {
    let manifest = std::fs::read_to_string(root().join("sm-core/abi/Cargo.toml")).unwrap();
    assert!(manifest.contains("\nversion = \"1."), "{manifest}");
    assert!(!manifest.contains("\nversion.workspace"), "{manifest}");
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn unsafe_code_is_where_it_may_be() {
    // What needs it, and why it stands in the file itself.
    let allowed = [
        "sm-abi",
        "sm-loader",
        "sm-driver-host",
        "plugin-sdk",
        "sm-step",
        "sm-driver-hostile",
        "datapath",
    ];
    for (name, package) in workspace() {
        let folder = package.manifest.parent().unwrap().join("src");
        let root =
            ["lib.rs", "main.rs"].map(|file| folder.join(file)).into_iter().find(|f| f.exists());
        let text = std::fs::read_to_string(root.unwrap()).unwrap();
        assert!(
            allowed.contains(&name.as_str()) || text.contains("#![forbid(unsafe_code)]"),
            "{name} does not forbid unsafe code"
        );
    }
}

#[test]
fn files_stay_readable() {
    let mut files = Vec::new();
    sources(&root(), &mut files);
    for file in files {
        let lines = std::fs::read_to_string(&file).unwrap().lines().count();
        assert!(lines <= 700, "{} has {lines} lines: it is two files", file.display());
    }
}

/// A file that names a path of this repository names one that exists.
#[test]
fn the_map_is_true() {
    for document in ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"] {
        let text = std::fs::read_to_string(root().join(document)).unwrap();
        for word in text.split('`').skip(1).step_by(2) {
            let folders =
                ["sm-core/", "plugin-sdk/", "drivers/", "vhd/", "conformance/", "docs/", "xtask/"];
            let is_path = folders.iter().any(|folder| word.starts_with(folder))
                && !word.contains([' ', '*', '<', '{', '$']);
            if is_path {
                let path = word.split("::").next().unwrap().trim_end_matches('/');
                assert!(root().join(path).exists(), "{document} names {word}, which is not there");
            }
        }
    }
}
