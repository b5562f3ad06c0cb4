//! The manifest is the same constant everywhere: in the type, in the module, in the file.
#![allow(clippy::unwrap_used, reason = "tests")]

use object::{Object as _, ObjectSection as _};
use plugin_sdk::model::manifest::{FieldKind, PanicStrategy, SECTION};
use plugin_sdk::prelude::*;
use plugin_sdk::testing;

device_config! {
    /// Odd texts.
    struct Config {
        /// Say "ümläut 💽", back\slash
        /// and	tab.
        #[key = "group-name"]
        group: Option<String>,
        /// A size.
        size: Bytes = "10GiB",
        port: u16 = "3260",
        thin: bool,
        location: Utf8PathBuf,
        password: Secret,
    }
}

struct Odd;

impl Driver for Odd {
    type Config = Config;
    const MANIFEST: Manifest = manifest! {
        name: "odd",
        title: "line\nbreak \u{1} \"quoted\"",
        operations: [sr_probe, vdi_snapshot],
        vendor: "Ä & Co.",
        features: &[
            Feature::new(feature::THIN),
            Feature::limit(feature::MAX_VDI_SIZE, u64::MAX, "p. \"44\""),
            Feature::limit(feature::MAX_CHAIN, 0, ""),
        ],
        services: &["kv", "secret"],
        isolation: Isolation::Process,
        needs_root: true,
        workers: 2,
    };

    async fn open(_: Config, _: SrUuid, _: &Cx) -> Result<Self> {
        Ok(Self)
    }
}

#[test]
fn what_is_written_at_compile_time_reads_back() {
    let manifest = testing::manifest::<Odd>().unwrap();
    assert_eq!(manifest.name, "odd");
    assert_eq!(manifest.title, "line\nbreak \u{1} \"quoted\"");
    assert_eq!(manifest.vendor, "Ä & Co.");
    assert_eq!(manifest.version, env!("CARGO_PKG_VERSION"));
    assert_eq!(manifest.abi, "1.0");
    assert_eq!(manifest.panic, PanicStrategy::Unwind);
    assert_eq!(manifest.isolation, Isolation::Process);
    assert!(manifest.needs_root);
    assert_eq!(manifest.services, ["kv", "secret"]);
    let names: Vec<&str> = manifest.capabilities.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(names, ["sr_probe", "vdi_snapshot", "thin", "max_vdi_size", "max_chain"]);
    let limit = manifest.capability("max_vdi_size").unwrap();
    assert_eq!((limit.limit, limit.source.as_deref()), (Some(u64::MAX), Some("p. \"44\"")));
    assert_eq!(manifest.capability("max_chain").unwrap().limit, Some(0));

    let field = |name: &str| manifest.field(name).unwrap().clone();
    assert_eq!(field("group-name").help, "Say \"ümläut 💽\", back\\slash and\ttab.");
    assert!(!field("group-name").required);
    assert_eq!(field("size").kind, FieldKind::Size);
    assert_eq!(field("size").default.as_deref(), Some("10GiB"));
    assert_eq!((field("port").kind, field("port").required), (FieldKind::Integer, false));
    assert_eq!((field("thin").kind, field("thin").required), (FieldKind::Boolean, true));
    assert_eq!(field("location").kind, FieldKind::Path);
    assert!(field("password").secret && field("password").required && !field("thin").secret);
}

#[test]
fn the_text_of_the_module_is_canonical_json_of_the_model() {
    // Whatever the model's own writer would write is in ours, field by field.
    let text = plugin_sdk::export::root_module::<Odd>().manifest()().as_str();
    let ours: serde_json::Value = serde_json::from_str(text).unwrap();
    let models = serde_json::to_value(testing::manifest::<Odd>().unwrap()).unwrap();
    assert_eq!(ours, models);
}

/// Law: what the loader reads in the file, without running it, is what the code would answer.
#[test]
fn the_library_carries_its_manifest_in_a_section() {
    // `cargo test` builds the examples too; a single target (`--test manifest`) does not.
    let folder = std::env::current_exe().unwrap().parent().unwrap().join("../examples");
    let library = folder.join("libscratch.so");
    let bytes = std::fs::read(&library)
        .unwrap_or_else(|error| panic!("build it with `cargo build --examples`: {error}"));
    let file = object::File::parse(&*bytes).unwrap();
    let section = |name| file.section_by_name(name).unwrap().data().unwrap().to_vec();
    let manifest: plugin_sdk::model::Manifest = serde_json::from_slice(&section(SECTION)).unwrap();
    assert_eq!(manifest.name, "scratch");
    assert!(manifest.can("vdi_create") && manifest.can(feature::THIN));
    let steps = String::from_utf8(section(".sm_steps")).unwrap();
    assert!(steps.contains("vdi_create.image_made\0"), "{steps:?}");
    let symbol = b"_1as_0lib_1header_0root_bmodule_bloader";
    assert!(file.exports().unwrap().iter().any(|export| export.name() == symbol));
}
