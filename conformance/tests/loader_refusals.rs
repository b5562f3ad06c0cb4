//! Every way in which a file is not a driver for this host: refused with one sentence that names
//! both sides, and a hint, before any of its code runs where that is possible.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

mod loader_support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use loader_support::{
    AMPLE, Variant, bench, by_another_compiler, call, driver, fixture, open_request, variant, wait,
};
use sm_loader::verify::{LOCK_FILE, Lock, Locked};
use sm_loader::{Call, DriverPort, LoadError, NoServices, Placement, discover, inspect};
use sm_model::error::Kind;
use sm_model::{DeviceConfig, Operation};
use tempfile::TempDir;

/// A file of these bytes, in a directory of its own.
fn file(bytes: &[u8]) -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("driver.so");
    fs::write(&path, bytes).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    (directory, path)
}

fn refused(path: &Path) -> LoadError {
    let error = inspect(path).expect_err("the file was accepted");
    let text = error.to_string();
    assert!(!text.contains('\n') && !text.ends_with('.'), "{text:?} is not one sentence");
    assert!(!error.hint().is_empty());
    error
}

fn answer(port: &dyn DriverPort) -> serde_json::Value {
    let reply = wait(port.call(call(Operation::SrScan), b"{}".to_vec())).unwrap();
    serde_json::from_slice(&reply).unwrap()
}

#[test]
fn a_missing_file() {
    let error = refused(Path::new("/nowhere/driver.so"));
    assert_eq!(error.to_string(), "there is no driver at /nowhere/driver.so");
    assert_eq!(bench().refusal("/nowhere/driver.so", Placement::Child).kind, Kind::NotFound);
}

#[test]
fn a_directory_and_a_pipe() {
    let directory = tempfile::tempdir().unwrap();
    let error = refused(directory.path());
    assert_eq!(
        error.to_string(),
        format!("{} is a directory, not a file", directory.path().display())
    );
    let pipe = directory.path().join("pipe.so");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(made.success());
    assert!(refused(&pipe).to_string().ends_with("is a pipe, not a file"));
}

#[test]
fn a_text_file_and_an_empty_file() {
    let (_directory, path) = file(b"#!/bin/sh\necho driver\n");
    assert_eq!(
        refused(&path).to_string(),
        format!(
            "{} is not a shared object: it begins with \"#!/b\", not with the ELF mark",
            path.display()
        )
    );
    let (_directory, path) = file(b"");
    assert!(refused(&path).to_string().ends_with("the file is empty"));
}

#[test]
fn an_elf_header_and_nothing_else() {
    let whole = fs::read(fixture("v1-0")).unwrap();
    let (_directory, path) = file(&whole[..100]);
    assert!(matches!(refused(&path), LoadError::Truncated { actual: 100, .. }));
    let (_directory, path) = file(&whole[..20]);
    assert!(matches!(refused(&path), LoadError::Truncated { actual: 20, expected: 64, .. }));
}

#[test]
fn a_file_cut_short_is_refused_before_it_is_mapped() {
    // At 64 kB dlopen would die of SIGBUS; at 90 % it would work.
    let whole = fs::read(fixture("v1-0")).unwrap();
    for length in [64 << 10, whole.len() * 9 / 10, whole.len() - 1] {
        let (_directory, path) = file(&whole[..length]);
        match refused(&path) {
            LoadError::Truncated { expected, actual, .. } => {
                assert_eq!(actual, length as u64);
                assert!(expected > actual && expected <= whole.len() as u64);
            }
            other => panic!("{other}"),
        }
        let error = bench().refusal(&path, Placement::InProcess);
        assert_eq!(error.kind, Kind::Corrupt);
        assert!(error.hint.is_some());
    }
}

#[test]
fn any_cut_and_any_flipped_byte_of_the_headers_is_survived() {
    use std::os::unix::fs::FileExt;
    let whole = fs::read(fixture("no-symbol")).unwrap();
    let (_directory, path) = file(&whole);
    let open = fs::File::options().write(true).open(&path).unwrap();
    // The file header, the program headers, the section headers at the end.
    for place in (0..600).chain(whole.len() - 2000..whole.len()).step_by(3) {
        open.write_all_at(&[whole[place] ^ 0xff], place as u64).unwrap();
        let _ = inspect(&path); // Whatever it says, it says it.
        open.write_all_at(&whole[place..=place], place as u64).unwrap();
    }
    inspect(&path).expect("it is whole again");
    for length in (0..whole.len()).rev().step_by(97) {
        open.set_len(length as u64).unwrap();
        refused(&path);
    }
}

#[test]
fn another_architecture() {
    let mut bytes = fs::read(fixture("v1-0")).unwrap();
    bytes[18..20].copy_from_slice(&183_u16.to_le_bytes());
    let (_directory, path) = file(&bytes);
    assert!(refused(&path).to_string().ends_with("is built for aarch64, this host is x86_64"));
}

#[test]
fn a_program_is_no_driver() {
    let error = refused(Path::new("/proc/self/exe"));
    // Position-independent programs are shared objects to the ELF header.
    assert!(matches!(error, LoadError::NotADriver { .. }), "{error}");
}

#[test]
fn a_library_that_is_no_driver() {
    let path = fixture("not-a-driver");
    assert_eq!(
        refused(&path).to_string(),
        format!(
            "{} is a shared object but not a driver: it has no .sm_driver section",
            path.display()
        )
    );
}

#[test]
fn a_manifest_without_a_header() {
    let path = fixture("no-symbol");
    inspect(&path).expect("its manifest is good");
    let error = bench().refusal(&path, Placement::InProcess);
    assert!(
        error.message.starts_with("the driver no-symbol has a manifest but exports no header ("),
        "{error}"
    );
    // The reason is the dynamic loader's, with the symbol's name.
    assert!(error.message.contains("undefined symbol: _1as_0lib_1header"), "{error}");
    let child = bench().refusal(&path, Placement::Child);
    assert_eq!(error.kind, child.kind, "{child}");
    assert!(child.message.contains("exports no header"), "{child}");
}

#[test]
fn another_major_version_by_its_manifest() {
    let error = refused(&fixture("other-major"));
    assert_eq!(
        error.to_string(),
        "the driver fixture-other-major is made for interface 2.0, this host has 1.0"
    );
}

#[test]
fn another_major_version_that_its_manifest_hides() {
    let path = variant(Variant { name: "other-major", feature: Some("lie"), ..Variant::default() });
    let error = bench().refusal(path, Placement::InProcess);
    assert_eq!(
        error.message,
        "the driver fixture-other-major does not fit this host: it was built for driver \
         interface 2.0.0, this host has 1.0.0"
    );
}

#[test]
fn another_layout_is_told_in_one_line_that_names_the_field() {
    for placement in [Placement::InProcess, Placement::Child] {
        let error = bench().refusal(fixture("broken"), placement);
        assert_eq!(
            error.message,
            "the driver fixture-broken does not fit this host: it was built for driver interface \
             1.0.0, but `open.__returns.field_0.poll_fn.__returns.field_0.field_0.obj.vtable.call.\
             param_1.span_id` is u32 there and u64 here (12 layout errors)"
        );
        assert_eq!(error.kind, Kind::Unsupported);
        assert!(error.hint.as_deref().unwrap().starts_with("rebuild the driver"));
    }
}

#[test]
fn an_older_interface_is_the_one_we_have() {
    let bench = bench();
    for placement in [Placement::InProcess, Placement::Child] {
        let port = bench.open(fixture("v1-0"), placement).unwrap();
        assert_eq!(answer(port.as_ref())["driver"], "fixture-v1");
    }
}

#[test]
fn a_driver_of_the_first_version_loads_in_a_later_host() {
    let host = fixture("future-host");
    let run = |driver: PathBuf| {
        let output = std::process::Command::new(&host).arg(driver).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let reply = |name: &str, version: &str| {
        format!(
            "reply: {{\"driver\":\"{name}\",\"version\":\"{version}\",\"operation\":\"sr_scan\",\
             \"budget\":true,\"bytes\":2}}\n"
        )
    };
    // What the old driver lacks reads as absent, or does what the default body does.
    assert_eq!(
        run(fixture("v1-0")),
        format!(
            "module.describe: None\ndriver.describe: the default body\n{}",
            reply("fixture-v1", "1.0.0")
        )
    );
    assert_eq!(
        run(fixture("future")),
        format!(
            "module.describe: Some(\"a field of the future\")\n\
             driver.describe: a method of the future\n{}",
            reply("fixture-future", "1.0.0")
        )
    );
    assert!(run(fixture("broken")).starts_with("refused: it was built for driver interface 1.0.0"));
    // A driver of today's SDK is an old driver there, too.
    let today = run(driver("hostile"));
    assert!(today.starts_with("module.describe: None\n"), "{today}");
}

#[test]
fn a_driver_of_a_later_minor_version_loads_here() {
    let bench = bench();
    for placement in [Placement::InProcess, Placement::Child] {
        let port = bench.open(fixture("future"), placement).unwrap();
        assert_eq!(answer(port.as_ref())["driver"], "fixture-future");
        assert_eq!(port.manifest().abi, "1.1");
    }
}

#[test]
fn a_driver_of_another_compiler_loads_here() {
    let (path, release) = by_another_compiler();
    let bench = bench();
    for placement in [Placement::InProcess, Placement::Child] {
        let port = bench.open(&path, placement).unwrap();
        assert_eq!(answer(port.as_ref())["driver"], "fixture-v1", "built by {release}");
    }
}

#[test]
fn panic_abort_is_refused_in_process_and_runs_in_a_child() {
    let path =
        variant(Variant { name: "panicky", profile: Some("aborting"), ..Variant::default() });
    let bench = bench();
    let error = bench.refusal(&path, Placement::InProcess);
    assert_eq!(
        error.message,
        "the driver fixture-panicky is built with panic=abort, and this host was to load it in \
         process"
    );
    let port = bench.open(&path, Placement::Child).unwrap();
    assert_eq!(loader_support::read(port.as_ref(), "echo hello").unwrap(), "hello");
    let error = loader_support::mutate(port.as_ref(), "panic").unwrap_err();
    assert_eq!(error.kind, Kind::Unknown);
    assert_eq!(error.context["signal"], "6");
}

#[test]
fn missing_host_services_are_named() {
    let path = variant(Variant { name: "v1-0", feature: Some("services"), ..Variant::default() });
    for placement in [Placement::InProcess, Placement::Child] {
        let error = bench().refusal(&path, placement);
        assert_eq!(
            error.message,
            "the driver fixture-v1 needs the host services kv, secret, this host has none"
        );
    }
}

#[test]
fn the_configuration_is_checked_before_the_driver_is_loaded() {
    // A driver that could not even be loaded: its configuration is what is complained about.
    let mut request = open_request();
    request.device_config = DeviceConfig::from([("speed".to_owned(), "11".to_owned())]);
    let bench = bench();
    let opened = wait(bench.loader.open(
        fixture("broken"),
        Placement::InProcess,
        request,
        Arc::new(NoServices),
        AMPLE,
    ));
    let Err(error) = opened else { panic!("it was opened") };
    assert_eq!(error.message, "the driver fixture-broken does not know speed");
}

#[test]
fn a_file_that_others_may_write_is_not_trusted() {
    let bytes = fs::read(fixture("v1-0")).unwrap();
    for (mode, whom) in
        [(0o775, "its group"), (0o757, "everybody"), (0o777, "its group and everybody")]
    {
        let (_directory, path) = file(&bytes);
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let error = bench().refusal(&path, Placement::InProcess);
        assert_eq!(error.kind, Kind::Auth);
        assert_eq!(
            error.message,
            format!(
                "the driver {} is not to be trusted: {whom} may write to it (mode {mode:04o})",
                path.display()
            )
        );
    }
}

#[test]
fn the_file_of_another_user_is_not_trusted() {
    assert!(rustix::process::geteuid().is_root(), "only root can give a file away: run as root");
    let (_directory, path) = file(&fs::read(fixture("v1-0")).unwrap());
    std::os::unix::fs::chown(&path, Some(1234), None).unwrap();
    let error = bench().refusal(&path, Placement::InProcess);
    assert!(error.message.ends_with("its owner is user 1234, this process runs as user 0"));
}

#[test]
fn the_lock_file_decides_where_there_is_one() {
    let bytes = fs::read(fixture("v1-0")).unwrap();
    let (directory, path) = file(&bytes);
    let bench = bench();
    let staged = bench.loader.stage(&path).unwrap();
    let lock = |entries: &[(&str, u64, &str)]| {
        let lock: Lock = entries
            .iter()
            .map(|(name, size, sha256)| {
                ((*name).to_owned(), Locked { size: *size, sha256: (*sha256).to_owned() })
            })
            .collect();
        let json = serde_json::to_vec(&lock).unwrap();
        fs::write(directory.path().join(LOCK_FILE), json).unwrap();
    };
    let size = bytes.len() as u64;
    let zero = "0".repeat(64);

    lock(&[("fixture-v1", size, &staged.sha256)]);
    bench.open(&path, Placement::InProcess).unwrap();

    // Also when the hash is known from before and the file is not read again.
    lock(&[("fixture-v1", size, &zero)]);
    let error = bench.refusal(&path, Placement::InProcess);
    assert_eq!(error.kind, Kind::Corrupt);
    assert_eq!(
        error.message,
        format!(
            "the driver fixture-v1 is not the one in {}: the sha256 is {}, locked is {zero}",
            directory.path().join(LOCK_FILE).display(),
            staged.sha256
        )
    );
    lock(&[("fixture-v1", size + 1, &staged.sha256)]);
    let error = bench.refusal(&path, Placement::InProcess);
    assert!(error.message.contains(&format!("the size is {size}, locked is {}", size + 1)));
    lock(&[("somebody-else", size, &staged.sha256)]);
    assert!(bench.refusal(&path, Placement::InProcess).message.contains("is not in"));
    fs::write(directory.path().join(LOCK_FILE), "{").unwrap();
    assert!(bench.refusal(&path, Placement::InProcess).message.contains("cannot be understood"));
}

#[test]
fn a_driver_is_called_as_its_manifest_says() {
    let directory = tempfile::tempdir().unwrap();
    fs::copy(fixture("v1-0"), directory.path().join("a-name-of-its-own.so")).unwrap();
    fs::copy(fixture("v1-0"), directory.path().join("b-again.so")).unwrap();
    fs::copy(fixture("panicky"), directory.path().join("c.so")).unwrap();
    fs::write(directory.path().join("d.so"), "text").unwrap();
    fs::write(directory.path().join("README"), "text").unwrap();
    let found = discover([directory.path(), Path::new("/nowhere")]);
    let told: Vec<String> = found
        .into_iter()
        .map(|item| match item {
            Ok(inspection) => inspection.manifest.name,
            Err(error) => {
                let error: sm_model::Error = error.into();
                error.message.replace(&format!("{}/", directory.path().display()), "")
            }
        })
        .collect();
    assert_eq!(
        told,
        [
            "fixture-v1",
            "b-again.so is a second driver of the name fixture-v1; a-name-of-its-own.so is used",
            "fixture-panicky",
            "d.so is not a shared object: it begins with \"text\", not with the ELF mark",
        ]
    );
}

#[test]
fn the_second_process_neither_hashes_nor_copies() {
    let (_directory, path) = file(&fs::read(fixture("v1-0")).unwrap());
    let bench = bench();
    let first = bench.loader.stage(&path).unwrap();
    let second = bench.loader.stage(&path).unwrap();
    assert!(!first.reused && second.reused);
    assert_eq!(first.copy, second.copy);
    assert_eq!(
        first.copy.file_name().unwrap().to_str().unwrap(),
        format!("fixture-v1-1.0.0-{}.so", &first.sha256[..12])
    );
    let mode = fs::metadata(&first.copy).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode, 0o555);

    // A copy that was cut short since is made again.
    fs::set_permissions(&first.copy, fs::Permissions::from_mode(0o755)).unwrap();
    fs::File::options().write(true).open(&first.copy).unwrap().set_len(100).unwrap();
    let third = bench.loader.stage(&path).unwrap();
    assert!(!third.reused);
    assert_eq!(fs::metadata(&third.copy).unwrap().len(), third.inspection.size);

    // A crash leaves at most a file of no importance.
    let entries = fs::read_dir(bench.state.path().join("drivers")).unwrap();
    let strays = entries
        .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with(".new"));
    assert_eq!(strays.count(), 0);
    // An index that makes no sense costs one copy.
    for entry in fs::read_dir(bench.state.path().join("drivers/index")).unwrap() {
        fs::write(entry.unwrap().path(), "nonsense").unwrap();
    }
    assert!(!bench.loader.stage(&path).unwrap().reused);
    assert!(bench.loader.stage(&path).unwrap().reused);
}

#[test]
fn writing_over_a_loaded_file_changes_nothing() {
    let (_directory, path) = file(&fs::read(fixture("v1-0")).unwrap());
    let port = bench().open(&path, Placement::InProcess).unwrap();
    let length = fs::metadata(&path).unwrap().len();
    fs::write(&path, vec![0; length as usize]).unwrap();
    assert_eq!(answer(port.as_ref())["driver"], "fixture-v1");
    wait(port.close(AMPLE));
}

#[test]
fn a_new_file_by_rename_runs_new_code_beside_the_old() {
    let (directory, path) = file(&fs::read(fixture("v1-0")).unwrap());
    let bench = bench();
    for placement in [Placement::InProcess, Placement::Child] {
        fs::copy(fixture("v1-0"), directory.path().join("new")).unwrap();
        fs::rename(directory.path().join("new"), &path).unwrap();
        let old = bench.open(&path, placement).unwrap();
        let second = Variant { name: "v1-0", feature: Some("second"), ..Variant::default() };
        fs::copy(variant(second), directory.path().join("new")).unwrap();
        fs::rename(directory.path().join("new"), &path).unwrap();
        let new = bench.open(&path, placement).unwrap();
        assert_eq!(answer(new.as_ref())["version"], "2.0.0");
        assert_eq!(answer(old.as_ref())["version"], "1.0.0");
    }
}

#[test]
fn drivers_in_one_process_answer_with_their_own_names() {
    let bench = bench();
    let one = bench.open(fixture("v1-0"), Placement::InProcess).unwrap();
    let other = bench.open(fixture("future"), Placement::InProcess).unwrap();
    let again = bench.open(fixture("v1-0"), Placement::InProcess).unwrap();
    for (port, name) in [(&one, "fixture-v1"), (&other, "fixture-future"), (&again, "fixture-v1")] {
        assert_eq!(answer(port.as_ref())["driver"], name);
        assert_eq!(port.manifest().name, name);
    }
}

#[test]
fn a_driver_that_needs_a_reactor_works_on_a_thread_without_a_runtime() {
    let bench = bench();
    let port = bench.open(driver("hostile"), Placement::InProcess).unwrap();
    let request = sm_model::vdi::VdiCreate {
        uuid: sm_model::VdiUuid::random(),
        name: "sleep".into(),
        description: String::new(),
        virtual_size: sm_model::Bytes(512),
        format: None,
        vdi_type: sm_model::vdi::VdiType::default(),
        sharable: false,
        keys: std::collections::BTreeMap::default(),
        incomplete: false,
    };
    let call = Call::new(Operation::VdiCreate, sm_model::OperationId::random(), AMPLE);
    let done = wait(sm_loader::port::call(port.as_ref(), call, &request)).unwrap();
    assert_eq!(done.vdi.name, "sleep");
}
