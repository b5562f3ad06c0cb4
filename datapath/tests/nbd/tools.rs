//! Real clients against our server.

use std::fs;

use super::disks::{Disks, Memory, noise};
use super::place::{Place, fio_verifies, good, run};

const MIB: u64 = 1 << 20;

/// A disk of 64 MiB: noise in the first, third and sixteenth MiB.
fn patched() -> Memory {
    let disk = Memory::new(64 * MIB);
    for at in [0, 2, 15] {
        use datapath::export::Export as _;
        disk.write(at * MIB, &noise(at + 1, MIB as usize), false).unwrap();
    }
    disk
}

fn place() -> (Place, Disks) {
    let disks = Disks::default()
        .add("", Memory::new(MIB))
        .add("patched", Memory { bitmaps: vec!["since".to_owned()], ..patched() })
        .add("empty", Memory::new(64 * MIB))
        .add("locked", Memory { read_only: true, ..patched() });
    (Place::new(disks.clone()), disks)
}

#[test]
fn qemu_img_sees_size_and_allocation() {
    let (place, _) = place();
    let uri = place.uri("patched").to_string();
    let info = good("qemu-img", &["info", "--output=json", "-f", "raw", &uri]);
    assert!(info.contains("\"virtual-size\": 67108864"), "{info}");
    let map = good("qemu-img", &["map", "--output=json", "-f", "raw", &uri]);
    let map: serde_json::Value = serde_json::from_str(&map).unwrap();
    let data: Vec<(u64, u64)> = map
        .as_array()
        .unwrap()
        .iter()
        .filter(|extent| extent["data"] == true)
        .map(|extent| (extent["start"].as_u64().unwrap(), extent["length"].as_u64().unwrap()))
        .collect();
    assert_eq!(data, [(0, MIB), (2 * MIB, MIB), (15 * MIB, MIB)]);
    let legacy = place.uri("patched").to_legacy().unwrap();
    let info = good("qemu-img", &["info", "--output=json", "-f", "raw", &legacy]);
    assert!(info.contains("\"virtual-size\": 67108864"), "{info}");
}

#[test]
fn qemu_img_converts_and_compares() {
    let (place, disks) = place();
    let (from, to) = (place.uri("patched").to_string(), place.uri("empty").to_string());
    good("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", &from, &to]);
    assert!(disks.get("empty").bytes() == disks.get("patched").bytes());
    good("qemu-img", &["compare", "-f", "raw", "-F", "raw", &from, &to]);
    let file = place.path("file");
    let file = file.to_str().unwrap();
    good("qemu-img", &["convert", "-W", "-m", "16", "-f", "raw", "-O", "raw", &from, file]);
    assert!(fs::read(file).unwrap() == disks.get("patched").bytes());
    let locked = place.uri("locked").to_string();
    let said = run("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", &from, &locked]);
    assert!(!said.good && said.err.contains("Permission denied"), "{said:?}");
}

#[test]
fn qemu_io_writes_discards_and_zeroes() {
    let (place, disks) = place();
    let uri = place.uri("empty").to_string();
    let io = |commands: &[&str]| {
        let mut arguments = vec!["-f", "raw", "-t", "none", "-d", "unmap"];
        for command in commands {
            arguments.extend(["-c", command]);
        }
        arguments.push(&uri);
        let out = good("qemu-io", &arguments);
        assert!(!out.contains("failed"), "{out}");
    };
    io(&[
        "write -P 0xa5 0 1M",
        "write -P 0x5a 4097 511",
        "read -P 0xa5 0 4097",
        "read -P 0x5a 4097 511",
        "read -P 0xa5 4608 520000",
        "flush",
    ]);
    assert!(disks.get("empty").flushes.load(std::sync::atomic::Ordering::SeqCst) > 0);
    io(&["write -f -P 0x11 8M 64k", "read -P 0x11 8M 64k"]);
    io(&["write -z 0 64k", "read -P 0 0 64k", "read -P 0xa5 64k 64k"]);
    io(&["write -z -u 64k 64k", "read -P 0 64k 64k"]);
    io(&["discard 128k 64k", "read -P 0 128k 64k", "read -P 0xa5 192k 64k"]);
    io(&["aio_write -P 0x77 1M 32M", "aio_flush", "read -P 0x77 1M 32M"]);
    let map = good("nbdinfo", &["--map", &uri]);
    let first: Vec<&str> = map.lines().next().unwrap().split_whitespace().take(3).collect();
    // 64 KiB keep their space, 128 KiB do not.
    assert_eq!(first, ["0", "65536", "0"], "{map}");
    assert!(map.contains("65536      131072    3"), "{map}");
}

#[test]
fn nbdinfo_lists_and_describes() {
    let (place, _) = place();
    let all = good("nbdinfo", &["--list", "--json", &place.uri("").to_string()]);
    let all: serde_json::Value = serde_json::from_str(&all).unwrap();
    let exports = all["exports"].as_array().unwrap();
    let names: Vec<&str> =
        exports.iter().map(|export| export["export-name"].as_str().unwrap()).collect();
    assert_eq!(names, ["", "empty", "locked", "patched"]);
    assert_eq!(all["protocol"], "newstyle-fixed");
    assert_eq!(all["structured"], true);
    let patched = &exports[3];
    assert_eq!(patched["description"], "a disk in memory");
    assert_eq!(patched["contexts"].to_string(), r#"["base:allocation","qemu:dirty-bitmap:since"]"#);
    assert_eq!(patched["export-size"], 64 * MIB);
    for can in [
        "can_cache",
        "can_df",
        "can_fast_zero",
        "can_flush",
        "can_fua",
        "can_multi_conn",
        "can_trim",
        "can_zero",
    ] {
        assert_eq!(patched[can], true, "{can}");
    }
    assert_eq!(patched["is_read_only"], false);
    assert_eq!(patched["block_size_minimum"], 1);
    assert_eq!(patched["block_size_preferred"], 4096);
    assert_eq!(patched["block_size_maximum"], 32 * MIB);
    let locked = &exports[2];
    assert_eq!(locked["is_read_only"], true);
    assert_eq!((&locked["can_trim"], &locked["can_zero"]), (&false.into(), &false.into()));
}

#[test]
fn nbdinfo_maps_allocation_and_changes() {
    let (place, _) = place();
    let uri = place.uri("patched").to_string();
    let map = |arguments: &[&str]| {
        let out = good("nbdinfo", &[&["--json"][..], arguments, &[&uri]].concat());
        let found: serde_json::Value = serde_json::from_str(&out).unwrap();
        let number = |extent: &serde_json::Value, key: &str| extent[key].as_u64().unwrap();
        let extents = found.as_array().unwrap().iter();
        extents
            .map(|extent| {
                (number(extent, "offset"), number(extent, "length"), number(extent, "type"))
            })
            .collect::<Vec<_>>()
    };
    let parts = |set: u64, clear: u64| {
        let bounds = [(0, 1, set), (1, 1, clear), (2, 1, set), (3, 12, clear), (15, 1, set)];
        let rest = [(16, 48, clear)];
        let all = bounds.iter().chain(&rest);
        all.map(|(at, length, kind)| (at * MIB, length * MIB, *kind)).collect::<Vec<_>>()
    };
    assert_eq!(map(&["--map"]), parts(0, 3));
    assert_eq!(map(&["--map=qemu:dirty-bitmap:since"]), parts(1, 0));
    let said = run("nbdinfo", &["--map=qemu:dirty-bitmap:other", &uri]);
    assert!(!said.good && said.err.contains("does not support"), "{said:?}");
}

#[test]
fn nbdcopy_both_ways_with_many_connections() {
    let (place, disks) = place();
    let uri = place.uri("patched").to_string();
    let file = place.path("file");
    let file = file.to_str().unwrap();
    let many = ["--connections=4", "--requests=16", "--threads=4"];
    good("nbdcopy", &[&many[..], &[&uri, file]].concat());
    assert!(fs::read(file).unwrap() == disks.get("patched").bytes());
    let other = noise(99, 64 * MIB as usize);
    fs::write(file, &other).unwrap();
    good("nbdcopy", &[&many[..], &["--flush", file, &place.uri("empty").to_string()]].concat());
    assert!(disks.get("empty").bytes() == other);
    let zero = place.path("zero");
    fs::write(&zero, vec![0; 64 * MIB as usize]).unwrap();
    let zero = zero.to_str().unwrap();
    good("nbdcopy", &["--destination-is-zero", file, &place.uri("empty").to_string()]);
    good("nbdcopy", &["--allocated", zero, &place.uri("empty").to_string()]);
    assert!(disks.get("empty").bytes().iter().all(|byte| *byte == 0));
}

#[test]
fn nbdcopy_between_two_exports_of_one_server() {
    let (place, disks) = place();
    let (from, to) = (place.uri("patched").to_string(), place.uri("empty").to_string());
    good("nbdcopy", &["--synchronous", &from, &to]);
    assert!(disks.get("empty").bytes() == disks.get("patched").bytes());
}

#[test]
fn fio_verifies_what_it_wrote() {
    let (place, _) = place();
    for (rw, block, depth) in
        [("randwrite", "4k", 16), ("randwrite", "3584", 64), ("write", "1M", 4)]
    {
        fio_verifies(&place.uri("empty"), rw, block, depth, "16m");
    }
}

#[test]
fn fio_on_four_connections_at_once() {
    let (place, _) = place();
    let uri = format!("--uri={}", place.uri("empty"));
    let out = good(
        "fio",
        &[
            "--name=verify",
            "--ioengine=nbd",
            "--rw=randrw",
            "--bs=4k",
            "--iodepth=16",
            "--numjobs=4",
            "--size=8m",
            "--offset_increment=8m",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--verify_state_save=0",
            "--group_reporting",
            &uri,
        ],
    );
    assert!(out.contains("err= 0"), "{out}");
}
