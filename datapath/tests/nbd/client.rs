//! Our client against other servers, and ours.

use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use datapath::error::Errno;
use datapath::export::{Extent, Piece, Transfer, Zeroes};
use datapath::nbd::client::{Client, ClientError, Kind, Options};
use datapath::nbd::protocol::{CONTEXT_ALLOCATION, export_flag};
use datapath::nbd::{Limits, Uri};
use tempfile::TempDir;

use super::disks::{Disks, Memory, noise};
use super::place::{Place, Running, until};

const MIB: u64 = 1 << 20;

fn error<T>(result: Result<T, ClientError>) -> Kind {
    result.err().expect("it must fail").kind
}

fn data(length: u64) -> Extent {
    Extent { length, hole: false, zero: false }
}

fn hole(length: u64) -> Extent {
    Extent { length, hole: true, zero: true }
}

/// Everything a client can do, whatever the server lacks. The disk has 16 MiB.
fn use_all(client: &Client) {
    assert_eq!(client.size(), 16 * MIB);
    let bytes = noise(1, MIB as usize);
    client.write(MIB, &bytes, true).unwrap();
    let mut back = vec![0; MIB as usize];
    client.read(MIB, &mut back).unwrap();
    assert!(back == bytes);
    client.write_zeroes(MIB + 4096, 8192, Zeroes::default()).unwrap();
    let how = Zeroes { keep_space: true, durable: true, only_if_fast: false };
    client.write_zeroes(MIB + 65536, 65536, how).unwrap();
    client.read(MIB, &mut back).unwrap();
    let mut want = bytes;
    want[4096..12288].fill(0);
    want[65536..131_072].fill(0);
    assert!(back == want);
    client.trim(2 * MIB, MIB).unwrap();
    client.flush().unwrap();
    let extents = client.extents(0, 16 * MIB).unwrap();
    assert_eq!(extents.iter().map(|extent| extent.length).sum::<u64>(), 16 * MIB);
    let mut at = 0;
    for extent in extents {
        let end = at + extent.length;
        assert!(!extent.zero || end <= MIB || at >= MIB + 4096, "noise at {at} is called zero");
        at = end;
    }
    assert_eq!(error(client.read(16 * MIB - 1, &mut [0; 2])), Kind::Invalid);
    assert_eq!(error(client.write(0, &[], false)), Kind::Invalid);
    assert!(client.is_connected());
}

fn nbdkit(arguments: &[&str]) -> (TempDir, Running, Uri) {
    let folder = TempDir::new().unwrap();
    let socket = folder.path().join("s");
    let all = [&["-f", "-U", socket.to_str().unwrap()], arguments].concat();
    let running = Running::server("nbdkit", &all, &socket);
    let uri = Uri::unix(&socket, "");
    (folder, running, uri)
}

fn connect(uri: &Uri) -> Client {
    Client::connect(uri, &Options::default()).unwrap()
}

#[test]
fn all_of_it_against_our_server() {
    let place = Place::new(Disks::default().add("", Memory::new(16 * MIB)));
    let client = place.client("");
    use_all(&client);
    assert!(client.facts().structured);
    assert_eq!(client.facts().contexts, [(1, CONTEXT_ALLOCATION.to_owned())]);
}

#[test]
fn all_of_it_against_nbdkit_with_each_thing_missing() {
    for (arguments, missing) in [
        (&["memory", "16M"][..], 0),
        (&["--no-sr", "memory", "16M"], export_flag::SEND_DF),
        (&["--filter=fua", "memory", "16M"], export_flag::SEND_FUA),
        (&["--filter=nozero", "memory", "16M"], export_flag::SEND_WRITE_ZEROES),
        (
            &["--filter=noextents", "--filter=nozero", "memory", "16M"],
            export_flag::SEND_WRITE_ZEROES,
        ),
        (&["--filter=nocache", "--filter=noparallel", "memory", "16M"], 0),
        (
            &["--filter=multi-conn", "memory", "16M", "multi-conn-mode=disable"],
            export_flag::CAN_MULTI_CONN,
        ),
    ] {
        let (_folder, _running, uri) = nbdkit(arguments);
        let client = connect(&uri);
        assert!(missing == 0 || !client.can(missing), "{arguments:?} has it all the same");
        use_all(&client);
        let how = Zeroes { only_if_fast: true, ..Zeroes::default() };
        if missing == export_flag::SEND_WRITE_ZEROES {
            let kind = error(client.write_zeroes(0, 4096, how));
            assert_eq!(kind, Kind::Server(Errno::NotSupported));
        }
    }
}

#[test]
fn a_server_without_flush_and_trim_is_used_without_them() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, vec![0; 16 << 20]).unwrap();
    let file = file.to_str().unwrap();
    let read =
        format!("pread=dd if={file} skip=$4 count=$3 iflag=count_bytes,skip_bytes status=none");
    let write = format!("pwrite=dd of={file} seek=$4 conv=notrunc oflag=seek_bytes status=none");
    let (_socket, _running, uri) =
        nbdkit(&["eval", "get_size=echo 16M", &read, &write, "can_write=exit 0"]);
    let client = connect(&uri);
    for flag in [export_flag::SEND_FLUSH, export_flag::SEND_TRIM, export_flag::SEND_FUA] {
        assert!(!client.can(flag));
    }
    use_all(&client);
    assert_eq!(error(client.start_write(0, &[1], true)), Kind::Unsupported);
}

#[test]
fn all_of_it_against_qemu_nbd() {
    let folder = TempDir::new().unwrap();
    let (file, socket) = (folder.path().join("file"), folder.path().join("s"));
    std::fs::File::create(&file).unwrap().set_len(16 * MIB).unwrap();
    let (file, path) = (file.to_str().unwrap(), socket.to_str().unwrap());
    let arguments =
        ["-f", "raw", "-t", "-e", "4", "-x", "disk", "--discard=unmap", "-k", path, file];
    let _running = Running::server("qemu-nbd", &arguments, &socket);
    let client = connect(&Uri::unix(&socket, "disk"));
    use_all(&client);
    assert_eq!(client.extents(4 * MIB, MIB).unwrap(), [hole(MIB)]);
    let refused = Client::connect(&Uri::unix(&socket, "other"), &Options::default());
    let refused = refused.err().unwrap();
    assert_eq!(refused.kind, Kind::Refused, "{refused}");
}

#[test]
fn a_read_only_server_is_not_written_to() {
    let (_folder, _running, uri) = nbdkit(&["-r", "memory", "16M"]);
    let client = connect(&uri);
    assert_eq!(error(client.write(0, &[1], false)), Kind::Unsupported);
    assert_eq!(error(client.write_zeroes(0, 1, Zeroes::default())), Kind::Unsupported);
    assert_eq!(error(client.trim(0, 1)), Kind::Unsupported);
    client.read(0, &mut [0; 512]).unwrap();
}

#[test]
fn errors_of_the_server_are_told_and_the_connection_goes_on() {
    let folder = TempDir::new().unwrap();
    let trigger = folder.path().join("trigger");
    let file = format!("error-file={}", trigger.to_str().unwrap());
    let (_folder, _running, uri) =
        nbdkit(&["--filter=error", "memory", "16M", "error=ENOSPC", "error-rate=1", &file]);
    let client = connect(&uri);
    client.write(0, &[7; 512], false).unwrap();
    std::fs::write(&trigger, "").unwrap();
    let no_space = Kind::Server(Errno::NoSpace);
    assert_eq!(error(client.write(0, &[8; 512], false)), no_space);
    assert_eq!(error(client.read(0, &mut [0; 512])), no_space);
    assert_eq!(error(client.flush().and_then(|()| client.extents(0, MIB))), no_space);
    std::fs::remove_file(&trigger).unwrap();
    let mut back = [0; 512];
    client.read(0, &mut back).unwrap();
    assert_eq!(back, [7; 512]);
}

#[test]
fn a_slow_server_ends_in_a_timeout_for_all_and_not_before() {
    let (_folder, _running, uri) = nbdkit(&["--filter=delay", "memory", "16M", "rdelay=30"]);
    let timeout = Duration::from_millis(300);
    let client = Client::connect(&uri, &Options { timeout, ..Options::default() }).unwrap();
    client.write(0, &[1; 4096], false).unwrap();
    let began = Instant::now();
    assert_eq!(error(client.read(0, &mut [0; 512])), Kind::TimedOut);
    assert!(began.elapsed() >= timeout);
    assert!(!client.is_connected());
    assert_eq!(error(client.write(0, &[1; 4096], false)), Kind::TimedOut);
}

#[test]
fn a_server_that_says_nothing_does_not_hold_a_client() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("s");
    let _listener = UnixListener::bind(&path).unwrap();
    let options = Options { timeout: Duration::from_millis(200), ..Options::default() };
    let uri = Uri::unix(&path, "");
    assert_eq!(error(Client::connect(&uri, &options)), Kind::TimedOut);
    let none = Uri::unix(folder.path().join("none"), "");
    assert_eq!(error(Client::connect(&none, &options)), Kind::Disconnected);
}

#[test]
fn a_server_that_dies_ends_the_requests_in_flight() {
    let (_folder, mut running, uri) = nbdkit(&["--filter=delay", "memory", "16M", "wdelay=30"]);
    let client = connect(&uri);
    let pending = client.start_write(0, &[1; 4096], false).unwrap();
    let other = client.start_write(4096, &[1; 4096], false).unwrap();
    running.kill();
    assert_eq!(error(pending.wait()), Kind::Disconnected);
    assert_eq!(error(other.wait()), Kind::Disconnected);
    assert_eq!(error(client.flush()), Kind::Disconnected);
}

#[test]
fn a_connection_that_is_closed_here_wakes_whoever_waits() {
    let disks = Disks::default().add("", Memory::new(MIB));
    let place = Place::new(disks.clone());
    disks.get("").gate.close();
    let client = place.client("");
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| client.read(0, &mut [0; 512]));
        until("the read is in flight", || disks.get("").inside.load(Ordering::SeqCst) == 1);
        client.close();
        assert_eq!(error(waits.join().unwrap()), Kind::Disconnected);
    });
    disks.get("").gate.open();
}

#[test]
fn many_threads_share_a_connection() {
    let disks = Disks::default().add("", Memory::new(16 * MIB));
    let place = Place::new(disks.clone());
    let client = place.client("");
    std::thread::scope(|scope| {
        for thread in 0..16_u64 {
            let client = &client;
            scope.spawn(move || {
                for round in 0..50_u64 {
                    let at = thread * MIB + round * 8192;
                    let bytes = noise(at, if round % 10 == 0 { 300_000 } else { 8192 });
                    client.write(at, &bytes, false).unwrap();
                    let mut back = vec![0; bytes.len()];
                    client.read(at, &mut back).unwrap();
                    assert!(back == bytes, "thread {thread}, round {round}");
                }
            });
        }
    });
    assert_eq!(place.server.connections().len(), 1);
}

#[test]
fn one_thread_starts_many_and_waits_in_any_order() {
    let disks = Disks::default().add("", Memory::new(16 * MIB));
    let place = Place::new(disks.clone());
    let client = place.client("");
    let block = |number: u64| noise(number + 1, 4096);
    let mut pending: Vec<_> =
        (0..256).map(|n| client.start_write(n * 4096, &block(n), n % 7 == 0).unwrap()).collect();
    // Some are never waited for.
    drop(pending.drain(100..150));
    while let Some(last) = pending.pop() {
        last.wait().unwrap();
    }
    client.flush().unwrap();
    until("those that nobody waits for are written too", || {
        let bytes = disks.get("").bytes();
        (0..256).all(|n| bytes[n as usize * 4096..][..4096] == block(n))
    });
}

#[test]
fn writes_for_later_go_out_together_when_much_has_gathered_or_somebody_waits() {
    let disks = Disks::default().add("", Memory::new(16 * MIB));
    let place = Place::new(disks.clone());
    let client = place.client("");
    let block = |number: usize| noise(number as u64 + 1, 4096);
    let is_there = |number: usize| disks.get("").bytes()[number * 4096..][..4096] == block(number);
    let later = |number: usize| client.start_write_later(number as u64 * 4096, &block(number));
    let mut pending: Vec<_> = (0..20).map(|number| later(number).unwrap()).collect();
    assert!(!(0..20).any(is_there), "nothing has been sent");
    // The answer to any of them, or to something else, is enough.
    client.flush().unwrap();
    until("all of them are written", || (0..20).all(is_there));
    while let Some(last) = pending.pop() {
        last.wait().unwrap();
    }
    let pending: Vec<_> = (20..120).map(|number| later(number).unwrap()).collect();
    until("much goes by itself", || (20..80).all(is_there));
    let long = noise(7, 100_000);
    let alone = client.start_write_later(MIB, &long).unwrap();
    until("so does a long one", || disks.get("").bytes()[MIB as usize..][..100_000] == long);
    for one in pending {
        one.wait().unwrap();
    }
    alone.wait().unwrap();
    assert!((0..120).all(is_there));
    assert_eq!(error(client.start_write_later(16 * MIB, &[1])), Kind::Invalid);
    let unsent = later(0).unwrap();
    client.close();
    assert_eq!(error(unsent.wait()), Kind::Disconnected);
    assert_eq!(error(later(0)), Kind::Disconnected);
}

#[test]
fn what_lies_in_files_is_written_from_there_and_what_ends_early_is_not() {
    let disks = Disks::default().add("", Memory::new(16 * MIB));
    let place = Place::new(disks.clone());
    let client = place.client("");
    assert!(client.takes_files());
    let mut file = tempfile::tempfile().unwrap();
    let content = noise(5, 600_000);
    std::io::Write::write_all(&mut file, &content).unwrap();
    let (file, held) = (Arc::new(file), Arc::new(()));
    let transfer = |places: &[(u64, usize)]| {
        let mut end = 0;
        let piece = |&(at, length): &(u64, usize)| {
            end += length;
            Piece { part: end - length..end, place: Some((Arc::clone(&file), at)) }
        };
        let pieces = places.iter().map(piece).collect();
        Transfer { pieces, held: Box::new(Arc::clone(&held)) }
    };
    assert!(client.write_from(MIB + 512, transfer(&[(4096, 500_000), (1, 99)])).unwrap());
    let want = [&content[4096..504_096], &content[1..100]].concat();
    assert!(disks.get("").bytes()[MIB as usize + 512..][..want.len()] == want);
    assert!(!client.write_from(0, transfer(&[(590_000, 20_000)])).unwrap(), "the file ends");
    assert!(!client.write_from(0, transfer(&[(0, 2 << 20)])).unwrap(), "more than a pipe holds");
    assert!(disks.get("").bytes()[..65536].iter().all(|byte| *byte == 0), "nothing was sent");
    assert_eq!(error(client.write_from(16 * MIB, transfer(&[(0, 512)]))), Kind::Invalid);
    assert_eq!(Arc::strong_count(&held), 1, "the disk is let go");
    use_all(&client);
}

#[test]
fn requests_beyond_the_largest_are_split() {
    let disks = Disks::default().add("", Memory::new(80 * MIB));
    let place = Place::new(disks.clone());
    let client = place.client("");
    let bytes = noise(3, 70 << 20);
    client.write(5 * MIB, &bytes, true).unwrap();
    let mut back = vec![0; bytes.len()];
    client.read(5 * MIB, &mut back).unwrap();
    assert!(back == bytes);
    assert_eq!(
        client.extents(0, 80 * MIB).unwrap(),
        [hole(5 * MIB), data(70 * MIB), hole(5 * MIB)]
    );
    assert_eq!(error(client.start_write(0, &bytes, false)), Kind::Invalid);
}

#[test]
fn changes_are_read_through_a_bitmap() {
    let disk = Memory { bitmaps: vec!["since".to_owned()], ..Memory::new(MIB) };
    let place = Place::new(Disks::default().add("", disk));
    let contexts = vec!["qemu:dirty-bitmap:since".to_owned(), CONTEXT_ALLOCATION.to_owned()];
    let options = Options { contexts, ..Options::default() };
    let client = Client::connect(&place.uri(""), &options).unwrap();
    client.write(65536, &[1; 4096], false).unwrap();
    client.trim(131_072, 4096).unwrap();
    let changed = client.changed("since", 0, MIB).unwrap();
    let changed: Vec<_> = changed.iter().map(|found| (found.length, found.dirty)).collect();
    let rest = MIB - 135_168;
    assert_eq!(
        changed,
        [(65536, false), (4096, true), (61440, false), (4096, true), (rest, false)]
    );
    assert_eq!(client.extents(0, MIB).unwrap(), [hole(65536), data(4096), hole(MIB - 69632)]);
    assert_eq!(error(client.changed("other", 0, MIB)), Kind::Unsupported);
}

#[test]
fn reads_on_other_connections_go_on_while_one_waits() {
    let slow = Memory::new(MIB);
    slow.gate.close();
    let disks = Disks::default().add("slow", slow).add("quick", Memory::new(MIB));
    let place = Place::new(disks.clone());
    let (slow, quick) = (place.client("slow"), place.client("quick"));
    let pending = slow.start_write(0, &[1; 512], false).unwrap();
    until("it is inside", || disks.get("slow").inside.load(Ordering::SeqCst) == 1);
    quick.write(0, &[2; 512], true).unwrap();
    let waiting = place.server.connections();
    let of = |name: &str| waiting.iter().find(|c| c.export.as_deref() == Some(name)).unwrap();
    assert_eq!((of("slow").in_flight, of("quick").in_flight), (1, 0));
    disks.get("slow").gate.open();
    pending.wait().unwrap();
}

#[test]
fn connections_of_one_export_are_closed_and_others_stay() {
    let disks = Disks::default().add("a", Memory::new(MIB)).add("b", Memory::new(MIB));
    let place = Place::new(disks);
    let (a, b) = (place.client("a"), place.client("b"));
    a.flush().unwrap();
    assert!(place.server.close_export("a", Duration::from_secs(30)));
    assert_eq!(error(a.flush()), Kind::Disconnected);
    b.flush().unwrap();
    place.client("a").flush().unwrap();
}

#[test]
fn a_stopped_server_answers_what_is_in_flight_to_the_disk_and_closes() {
    let disks = Disks::default().add("", Memory::new(MIB));
    let place = Place::new(disks.clone());
    let client = place.client("");
    disks.get("").gate.close();
    let pending = client.start_write(0, &[9; 512], false).unwrap();
    until("it is inside", || disks.get("").inside.load(Ordering::SeqCst) == 1);
    assert!(!place.server.stop(Duration::from_millis(50)), "a write is still inside");
    disks.get("").gate.open();
    assert!(place.server.stop(Duration::from_secs(30)));
    assert_eq!(error(pending.wait()), Kind::Disconnected);
    assert_eq!(disks.get("").bytes()[..512], [9; 512], "it was written all the same");
    let refused = Client::connect(&place.uri(""), &Options::default());
    assert_eq!(error(refused), Kind::Disconnected);
}

#[test]
fn a_long_socket_path_is_reached() {
    let folder = TempDir::new().unwrap();
    let deep = folder.path().join("d".repeat(120));
    std::fs::create_dir(&deep).unwrap();
    let path = deep.join("socket");
    let listener = datapath::nbd::wire::listen_unix(&path).unwrap();
    let exports = Arc::new(Disks::default().add("", Memory::new(MIB)));
    let server = datapath::nbd::Server::new(exports, Limits::default());
    server.serve(datapath::nbd::Listener::Unix(listener)).unwrap();
    let client = connect(&Uri::unix(&path, ""));
    client.write(0, &[1; 512], true).unwrap();
    drop(client);
    assert!(server.stop(Duration::from_secs(30)));
}

#[test]
fn a_flush_does_not_hold_up_the_reads_behind_it_once_it_is_known_to_be_slow() {
    // Flushes take 5 ms here: after a few of them the server gives them to other threads.
    struct Slow(Memory, AtomicUsize);
    impl datapath::export::Export for Slow {
        fn size(&self) -> u64 {
            self.0.size()
        }
        fn read_only(&self) -> bool {
            false
        }
        fn read(&self, offset: u64, buf: &mut [u8]) -> datapath::error::Result<()> {
            self.0.read(offset, buf)
        }
        fn write(&self, offset: u64, buf: &[u8], durable: bool) -> datapath::error::Result<()> {
            self.0.write(offset, buf, durable)
        }
        fn flush(&self) -> datapath::error::Result<()> {
            if self.1.fetch_add(1, Ordering::SeqCst) < 50 {
                // A slow disk is what is asked for, not a wait for something.
                std::thread::sleep(Duration::from_millis(5));
                return Ok(());
            }
            self.0.flush()
        }
        fn trim(&self, offset: u64, length: u64, durable: bool) -> datapath::error::Result<()> {
            self.0.trim(offset, length, durable)
        }
        fn write_zeroes(
            &self,
            offset: u64,
            length: u64,
            how: Zeroes,
        ) -> datapath::error::Result<()> {
            self.0.write_zeroes(offset, length, how)
        }
        fn extents(
            &self,
            offset: u64,
            length: u64,
            limit: usize,
            into: &mut Vec<Extent>,
        ) -> datapath::error::Result<()> {
            self.0.extents(offset, length, limit, into)
        }
    }
    struct Only(Arc<Slow>);
    impl datapath::export::Exports for Only {
        fn names(&self) -> Vec<String> {
            vec![String::new()]
        }
        fn find(&self, _: &str) -> Option<Arc<dyn datapath::export::Export>> {
            Some(Arc::clone(&self.0) as Arc<dyn datapath::export::Export>)
        }
    }
    let slow = Arc::new(Slow(Memory::new(MIB), AtomicUsize::new(0)));
    let place = Place::new(Only(Arc::clone(&slow)));
    let client = place.client("");
    (0..50).for_each(|_| client.flush().unwrap());
    // From here on a flush waits at the gate, and a read beside it must not.
    let disk = &slow.0;
    std::thread::scope(|scope| {
        disk.gate.close();
        let flush = scope.spawn(|| client.flush());
        until("the flush is inside", || disk.inside.load(Ordering::SeqCst) == 1);
        // The read waits at the gate too, so it has been looked at although the flush is not done.
        let read = scope.spawn(|| client.read(0, &mut [0; 512]));
        until("the read is inside", || disk.inside.load(Ordering::SeqCst) == 2);
        disk.gate.open();
        flush.join().unwrap().unwrap();
        read.join().unwrap().unwrap();
    });
}
