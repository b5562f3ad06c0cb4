//! Clients that mean harm, or know no better.

use std::io::{Read as _, Write as _};
use std::sync::atomic::Ordering;
use std::time::Duration;

use datapath::error::Errno;
use datapath::nbd::Limits;
use datapath::nbd::protocol::{
    ContextRequest, InfoRequest, OPTION_MAGIC, Request, chunk, command, command_flag,
    encode_option, option, option_reply,
};

use super::disks::{Disks, Memory, noise};
use super::place::{PATIENCE, Place, until};
use super::raw::{Raw, Reply};

const MIB: u64 = 1 << 20;
const EPERM: u32 = Errno::NotPermitted as u32;
const EIO: u32 = Errno::Io as u32;
const EINVAL: u32 = Errno::Invalid as u32;
const ENOSPC: u32 = Errno::NoSpace as u32;
const ENOTSUP: u32 = Errno::NotSupported as u32;

fn place(disk: Memory) -> (Place, Disks) {
    let disks = Disks::default().add("", disk);
    (Place::new(disks.clone()), disks)
}

#[test]
fn each_wrong_request_has_its_error_and_the_connection_goes_on() {
    let (place, _) = place(Memory { no_fast_zeroes: true, ..Memory::new(MIB) });
    for structured in [false, true] {
        let mut raw = Raw::using(&place.socket(), "", structured, &[]);
        let end = MIB;
        for (what, command, flags, offset, length, error) in [
            ("nothing to read", command::READ, 0, 0, 0, EINVAL),
            ("a read past the end", command::READ, 0, end - 1, 2, EINVAL),
            ("a read that wraps", command::READ, 0, u64::MAX, 512, EINVAL),
            ("a read of 1 GiB", command::READ, 0, 0, 1 << 30, EINVAL),
            ("nothing to trim", command::TRIM, 0, 0, 0, EINVAL),
            ("a trim past the end", command::TRIM, 0, end, 1, EINVAL),
            ("no zeros", command::WRITE_ZEROES, 0, 0, 0, EINVAL),
            ("zeros past the end", command::WRITE_ZEROES, 0, 1, MIB as u32, ENOSPC),
            ("slow zeros", command::WRITE_ZEROES, command_flag::FAST_ZERO, 0, 512, ENOTSUP),
            ("nothing to cache", command::CACHE, 0, 0, 0, EINVAL),
            ("a cache past the end", command::CACHE, 0, end, 1, EINVAL),
            ("a flush of a range", command::FLUSH, 0, 512, 0, EINVAL),
            ("status without a context", command::BLOCK_STATUS, 0, 0, 512, EINVAL),
            ("an unknown command", 8, 0, 0, 512, EINVAL),
            ("another one", u16::MAX, 0, 0, 0, EINVAL),
            ("a flag of another command", command::READ, command_flag::NO_HOLE, 0, 512, EINVAL),
            ("an unknown flag", command::FLUSH, 1 << 15, 0, 0, EINVAL),
        ] {
            assert_eq!(raw.error_of(command, flags, offset, length), error, "{what}");
        }
        if !structured {
            let error = raw.error_of(command::READ, command_flag::DF, 0, 512);
            assert_eq!(error, EINVAL, "one chunk without chunks");
        }
        raw.works();
    }
}

#[test]
fn the_payload_of_a_refused_write_is_not_taken_for_requests() {
    let (place, disks) = place(Memory::new(MIB));
    let mut raw = Raw::using(&place.socket(), "", true, &[]);
    // A payload that reads as requests to overwrite the disk.
    let evil = Request { flags: 0, command: command::TRIM, cookie: 6, offset: 0, length: 512 };
    let evil = evil.encode().repeat(64 << 20 >> 4);
    disks.get("").fill(&noise(1, MIB as usize));
    let before = disks.get("").bytes();
    for (what, flags, offset, length, error) in [
        ("past the end", 0, MIB - 1, 2, ENOSPC),
        ("far past the end", 0, 1 << 60, 300_000, ENOSPC),
        ("40 MiB", 0, 0, 40 << 20, EINVAL),
        ("nothing", 0, 0, 0, EINVAL),
        ("an unknown flag", 1 << 9, 0, 512, EINVAL),
    ] {
        raw.request(command::WRITE, flags, offset, length);
        raw.give(&evil[..length as usize]);
        assert_eq!(raw.reply(), Reply::Simple { cookie: offset, error }, "{what}");
        raw.works();
    }
    assert!(disks.get("").bytes() == before);
}

#[test]
fn nothing_is_written_to_a_read_only_disk() {
    let (place, disks) = place(Memory { read_only: true, ..Memory::new(MIB) });
    disks.get("").fill(&noise(2, MIB as usize));
    let mut raw = Raw::using(&place.socket(), "", true, &[]);
    raw.request(command::WRITE, 0, 0, 512);
    raw.give(&[0; 512]);
    assert_eq!(raw.reply().error(), EPERM);
    assert_eq!(raw.error_of(command::TRIM, 0, 0, 512), EPERM);
    assert_eq!(raw.error_of(command::WRITE_ZEROES, 0, 0, 512), EPERM);
    raw.works();
    assert!(disks.get("").bytes() == noise(2, MIB as usize));
}

#[test]
fn whole_blocks_are_asked_for_where_the_disk_wants_them() {
    let (place, _) = place(Memory { least: 512, ..Memory::new(MIB) });
    let mut raw = Raw::connect(&place.socket());
    assert_eq!(raw.go("").0, option_reply::ERR_BLOCK_SIZE_REQD);
    let data = InfoRequest { name: String::new(), wanted: vec![3] }.encode();
    assert_eq!(raw.ask(option::GO, &data).0, option_reply::ACK);
    assert_eq!(raw.error_of(command::READ, 0, 1, 512), EINVAL);
    assert_eq!(raw.error_of(command::READ, 0, 512, 511), EINVAL);
    assert_eq!(raw.error_of(command::TRIM, 0, 512, 513), EINVAL);
    assert_eq!(raw.error_of(command::TRIM, 0, 512, 512), 0);
}

#[test]
fn an_error_of_the_disk_is_the_error_of_that_request_only() {
    let bad = Some((600 * 1024..601 * 1024, Errno::Io));
    let (place, _) = place(Memory { bad, ..Memory::new(MIB) });
    let mut raw = Raw::using(&place.socket(), "", true, &[]);
    // Longer than a piece: what comes before the bad place has been sent already.
    raw.request(command::READ, 0, 0, MIB as u32);
    let mut kinds = Vec::new();
    loop {
        let reply = raw.reply();
        let Reply::Chunk { kind, last, .. } = &reply else { panic!("{reply:?}") };
        kinds.push(*kind);
        if *last {
            assert_eq!(reply.error(), EIO);
            break;
        }
    }
    assert_eq!(kinds, [chunk::OFFSET_HOLE, chunk::OFFSET_HOLE, chunk::ERROR]);
    assert_eq!(raw.error_of(command::READ, command_flag::DF, 0, MIB as u32), EIO);
    raw.request(command::WRITE, 0, 0, MIB as u32);
    raw.give(&vec![1; MIB as usize]);
    assert_eq!(raw.reply().error(), EIO);
    assert_eq!(raw.error_of(command::CACHE, 0, 0, 512), 0);
    let mut simple = Raw::using(&place.socket(), "", false, &[]);
    assert_eq!(simple.error_of(command::READ, 0, 0, MIB as u32), EIO);
    simple.works();
    raw.works();
}

#[test]
fn block_status_says_as_much_as_was_asked() {
    let disk = Memory { bitmaps: vec!["b".to_owned()], ..Memory::new(MIB) };
    let (place, disks) = place(disk);
    for grain in 0..32 {
        use datapath::export::Export as _;
        disks.get("").write(grain * 8192, &[1; 4096], false).unwrap();
    }
    let contexts = ["base:allocation", "qemu:dirty-bitmap:b"];
    let mut raw = Raw::using(&place.socket(), "", true, &contexts);
    for (flags, extents) in [(command_flag::REQ_ONE, 1), (0, 64)] {
        raw.request(command::BLOCK_STATUS, flags, 0, MIB as u32);
        for (context, last) in [(1, false), (2, true)] {
            let Reply::Chunk { kind, last: really, body, .. } = raw.reply() else { panic!() };
            assert_eq!((kind, really), (chunk::BLOCK_STATUS, last));
            assert_eq!(body[..4], u32::to_be_bytes(context));
            assert_eq!(body.len(), 4 + 8 * extents);
            assert_eq!(body[4..8], 4096_u32.to_be_bytes());
        }
    }
    assert_eq!(raw.error_of(command::BLOCK_STATUS, 0, 1, MIB as u32), EINVAL);
    assert_eq!(raw.error_of(command::BLOCK_STATUS, 0, 0, 0), EINVAL);
}

#[test]
fn contexts_of_one_export_are_not_those_of_another() {
    let disks = Disks::default().add("a", Memory::new(MIB)).add("b", Memory::new(MIB));
    let place = Place::new(disks);
    let mut raw = Raw::connect(&place.socket());
    let of = |name: &str| {
        let queries = vec!["base:allocation".to_owned()];
        ContextRequest { name: name.to_owned(), queries }.encode()
    };
    let set = option::SET_META_CONTEXT;
    assert_eq!(raw.ask(set, &of("a")).0, option_reply::ERR_INVALID, "chunks come first");
    raw.ask(option::STRUCTURED_REPLY, &[]);
    assert_eq!(raw.ask(set, &of("none")).0, option_reply::ERR_UNKNOWN);
    assert_eq!(raw.ask(set, &of("a")).1.len(), 1);
    assert_eq!(raw.go("b").0, option_reply::ACK);
    assert_eq!(raw.error_of(command::BLOCK_STATUS, 0, 0, 512), EINVAL);
}

#[test]
fn options_that_are_not_known_or_malformed_are_answered() {
    let (place, _) = place(Memory::new(MIB));
    let mut raw = Raw::connect(&place.socket());
    for (option, data, answer) in [
        (0, &[][..], option_reply::ERR_UNSUP),
        (4, &[], option_reply::ERR_UNSUP),
        (option::STARTTLS, &[], option_reply::ERR_UNSUP),
        (11, &[], option_reply::ERR_UNSUP),
        (u32::MAX, &[1; 1000], option_reply::ERR_UNSUP),
        (option::LIST, &[0], option_reply::ERR_INVALID),
        (option::STRUCTURED_REPLY, &[0], option_reply::ERR_INVALID),
        (option::GO, &[], option_reply::ERR_INVALID),
        (option::GO, &[0xff; 6], option_reply::ERR_INVALID),
        (option::INFO, &[0, 0, 0, 1, 0xff, 0, 0], option_reply::ERR_INVALID),
        (option::GO, &[0, 0, 0, 1, b'x', 0, 0], option_reply::ERR_UNKNOWN),
        (option::SET_META_CONTEXT, &[0; 7], option_reply::ERR_INVALID),
        (12, &vec![7; 65537], option_reply::ERR_TOO_BIG),
        (option::LIST, &[], option_reply::ACK),
    ] {
        assert_eq!(raw.ask(option, data).0, answer, "option {option} of {} bytes", data.len());
    }
    assert_eq!(raw.go("").0, option_reply::ACK);
    raw.works();
}

#[test]
fn what_is_not_nbd_is_closed() {
    let (place, _) = place(Memory::new(MIB));
    let hello = 3_u32.to_be_bytes().to_vec();
    let with = |more: &[u8]| [&hello[..], more].concat();
    let go =
        encode_option(option::GO, &InfoRequest { name: String::new(), wanted: vec![] }.encode());
    for (what, bytes) in [
        ("unknown flags", 7_u32.to_be_bytes().to_vec()),
        ("another protocol", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec()),
        ("a wrong number before an option", with(&[0; 16])),
        ("an option of 4 GiB", {
            let option = [&OPTION_MAGIC.to_be_bytes()[..], &[0, 0, 0, 7], &[0xff; 4]].concat();
            with(&option)
        }),
        ("an export nobody has, the old way", with(&encode_option(option::EXPORT_NAME, b"x"))),
        ("leaving", with(&encode_option(option::ABORT, &[]))),
        ("rubbish after the handshake", [&with(&go)[..], &noise(5, 4096)].concat()),
    ] {
        let mut raw = Raw::silent(&place.socket());
        // The server may have closed before the last byte is written.
        let _ = raw.0.write_all(&bytes);
        assert!(raw.is_closed(), "{what}");
    }
    place.client("").flush().unwrap();
}

#[test]
fn the_old_way_into_an_export_works() {
    let (place, _) = place(Memory::new(MIB));
    for (flags, zeros) in [(3_u32, 0), (1, 124), (0, 124)] {
        let mut raw = Raw::silent(&place.socket());
        raw.take(18);
        raw.give(&flags.to_be_bytes());
        raw.give(&encode_option(option::EXPORT_NAME, b""));
        let answer = raw.take(10 + zeros);
        assert_eq!(answer[..8], MIB.to_be_bytes());
        assert!(answer[10..].iter().all(|byte| *byte == 0));
        raw.works();
    }
}

#[test]
fn a_flood_of_options_ends() {
    let (place, _) = place(Memory::new(MIB));
    let mut raw = Raw::connect(&place.socket());
    let mut sender = raw.0.try_clone().unwrap();
    let flood = std::thread::spawn(move || {
        let list = encode_option(option::LIST, &[]).repeat(100);
        (0..1000).any(|_| sender.write_all(&list).is_err())
    });
    assert!(raw.is_closed());
    drop(raw);
    assert!(flood.join().unwrap(), "a hundred thousand options were taken");
    place.client("").flush().unwrap();
}

#[test]
fn a_half_open_handshake_ends_in_time_and_an_idle_client_may_stay() {
    let disks = Disks::default().add("", Memory::new(MIB));
    let handshake = Duration::from_millis(300);
    let limits = Limits { handshake, stall: Duration::from_millis(100), ..Limits::default() };
    let place = Place::with(disks, limits);
    let mut idle = Raw::using(&place.socket(), "", true, &[]);
    let mut silent = Raw::silent(&place.socket());
    let mut slow = Raw::connect(&place.socket());
    let dripping = slow.0.try_clone().unwrap();
    // A byte now and then does not make it longer.
    let drip = std::thread::spawn(move || {
        let option = encode_option(option::INFO, &vec![0; 60_000]);
        option.iter().any(|byte| {
            std::thread::park_timeout(Duration::from_millis(2));
            (&dripping).write_all(&[*byte]).is_err()
        })
    });
    assert!(silent.is_closed());
    assert!(slow.is_closed());
    drop(slow);
    assert!(drip.join().unwrap());
    until("only the idle one is left", || place.server.connections().len() == 1);
    let age = place.server.connections()[0].age;
    assert!(age > handshake, "{age:?}: it has been silent for longer than a stalled one may");
    idle.works();
}

#[test]
fn a_client_that_stops_within_a_request_is_ended() {
    let disks = Disks::default().add("", Memory::new(MIB));
    let limits = Limits { stall: Duration::from_millis(100), ..Limits::default() };
    let place = Place::with(disks, limits);
    let request = |length| {
        Request { flags: 0, command: command::WRITE, cookie: 1, offset: 0, length }.encode()
    };
    for (what, bytes) in [
        ("in a head", request(512)[..20].to_vec()),
        ("in a small payload", [&request(512)[..], &[0; 100]].concat()),
        ("in a long payload", [&request(300_000)[..], &[0; 100]].concat()),
        ("in a refused payload", [&request(u32::MAX)[..], &[0; 100]].concat()),
    ] {
        let mut raw = Raw::using(&place.socket(), "", true, &[]);
        raw.give(&bytes);
        assert!(raw.is_closed(), "{what}");
    }
}

#[test]
fn a_client_that_vanishes_disturbs_nobody() {
    let disks = Disks::default().add("", Memory::new(16 * MIB));
    let place = Place::new(disks.clone());
    let mut stays = Raw::using(&place.socket(), "", true, &[]);
    disks.get("").gate.close();
    for _ in 0..8 {
        let mut raw = Raw::using(&place.socket(), "", true, &[]);
        raw.request(command::WRITE, 0, 4096, 4096);
        raw.give(&[3; 4096]);
        (0..64).for_each(|_| raw.request(command::READ, 0, 0, 1 << 20));
    }
    until("they are inside", || disks.get("").inside.load(Ordering::SeqCst) == 8);
    disks.get("").gate.open();
    stays.works();
    until("they are gone", || place.server.connections().len() == 1);
    assert_eq!(disks.get("").bytes()[4096..8192], [3; 4096]);
}

/// A whole session as bytes: handshake, then one of each request.
fn session() -> Vec<u8> {
    let request =
        |command, offset, length| Request { flags: 0, command, cookie: 7, offset, length }.encode();
    let queries = vec!["base:allocation".to_owned()];
    [
        &3_u32.to_be_bytes()[..],
        &encode_option(option::STRUCTURED_REPLY, &[]),
        &encode_option(option::LIST, &[]),
        &encode_option(
            option::SET_META_CONTEXT,
            &ContextRequest { name: String::new(), queries }.encode(),
        ),
        &encode_option(
            option::GO,
            &InfoRequest { name: String::new(), wanted: vec![0, 1, 2, 3] }.encode(),
        ),
        &request(command::WRITE, 0, 64),
        &[9; 64],
        &request(command::READ, 0, 64),
        &request(command::WRITE_ZEROES, 64, 64),
        &request(command::TRIM, 128, 64),
        &request(command::BLOCK_STATUS, 0, 4096),
        &request(command::FLUSH, 0, 0),
        &request(command::DISC, 0, 0),
    ]
    .concat()
}

#[test]
fn a_cut_at_every_byte_of_a_session_leaves_a_server_that_works() {
    let (place, disks) = place(Memory::new(MIB));
    let mut stays = Raw::using(&place.socket(), "", true, &[]);
    let bytes = session();
    for length in 0..bytes.len() {
        let mut raw = Raw::silent(&place.socket());
        raw.give(&bytes[..length]);
        raw.0.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(raw.is_closed(), "{length} of {} bytes", bytes.len());
        if length % 50 == 0 {
            stays.works();
        }
    }
    until("they are gone", || place.server.connections().len() == 1);
    assert_eq!(disks.get("").bytes()[..64], [9; 64]);
    // And in one piece, with everything read.
    let mut raw = Raw::silent(&place.socket());
    raw.give(&bytes);
    let mut all = Vec::new();
    raw.0.read_to_end(&mut all).unwrap();
    assert!(all.windows(64).any(|window| window == [9; 64]));
}

#[test]
fn a_session_that_comes_byte_by_byte_is_understood() {
    let (place, disks) = place(Memory::new(MIB));
    let mut raw = Raw::silent(&place.socket());
    for byte in session() {
        raw.give(&[byte]);
    }
    assert!(raw.is_closed());
    assert_eq!(disks.get("").bytes()[..64], [9; 64]);
}

#[test]
fn two_hundred_exports_on_one_socket_with_a_connection_each() {
    let name = |number: usize| format!("disk-{number}");
    let disks = (0..200).fold(Disks::default(), |disks, n| disks.add(&name(n), Memory::new(MIB)));
    let place = Place::new(disks.clone());
    let mut all: Vec<Raw> =
        (0..200).map(|n| Raw::using(&place.socket(), &name(n), true, &[])).collect();
    assert_eq!(place.server.connections().len(), 200);
    for (number, raw) in all.iter_mut().enumerate() {
        raw.request(command::WRITE, 0, 0, 512);
        raw.give(&[number as u8; 512]);
    }
    for (number, raw) in all.iter_mut().enumerate() {
        assert_eq!(raw.reply().error(), 0);
        assert_eq!(disks.get(&name(number)).bytes()[..512], [number as u8; 512]);
    }
    drop(all);
    until("they are gone", || place.server.connections().is_empty());
}

#[test]
fn connections_beyond_the_limit_are_closed_and_those_that_are_there_stay() {
    let disks = Disks::default().add("", Memory::new(MIB));
    let place = Place::with(disks, Limits { connections: 3, ..Limits::default() });
    let mut there: Vec<Raw> = (0..3).map(|_| Raw::using(&place.socket(), "", true, &[])).collect();
    let mut more = Raw::silent(&place.socket());
    assert!(more.is_closed());
    there.iter_mut().for_each(Raw::works);
    there.pop();
    until("there is room", || place.server.connections().len() == 2);
    Raw::using(&place.socket(), "", true, &[]).works();
}

#[test]
fn leaving_has_no_reply() {
    let (place, _) = place(Memory::new(MIB));
    let mut raw = Raw::using(&place.socket(), "", true, &[]);
    raw.request(command::FLUSH, 0, 0, 0);
    raw.request(command::DISC, 0, 0, 0);
    let mut all = Vec::new();
    raw.0.read_to_end(&mut all).unwrap();
    assert_eq!(all.len(), 16, "one reply, to the flush");
    assert!(place.server.stop(PATIENCE));
}
