//! XenServer's conversation, with a guest that does what the real one's sources say: over the
//! store's own protocol.

use std::os::unix::net::UnixListener;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use sm_model::{Kind, Result, VdiUuid};
use sm_quiesce::vss::{Verb, Vss};
use sm_quiesce::xenstore::{Memory, Socket, XenStore, serve};
use sm_quiesce::{Consistency, Outcome, Quiescer, Taken};
use uuid::Uuid;

const VM: &str = "0f5c2b1e-7d2a-4c39-9a51-6b0e6a1a2b3c";
const OWN: &str = "/local/domain/5";

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

fn vdi(n: u128) -> VdiUuid {
    VdiUuid(Uuid::from_u128(n))
}

/// A store with a domain in it.
fn store(feature: bool) -> Memory {
    let mut store = Memory::new();
    store.write(&format!("{OWN}/vm"), &format!("/vm/{VM}"), soon()).unwrap();
    if feature {
        store.write(&format!("{OWN}/control/feature-snapshot"), "1", soon()).unwrap();
    }
    store
}

/// Over the store's socket, as in real life.
fn host(folder: &tempfile::TempDir, store: &Memory) -> Vss<Socket> {
    let path = folder.path().join("xenstored");
    let listener = UnixListener::bind(&path).unwrap();
    let memory = store.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let memory = memory.clone();
            std::thread::spawn(move || serve(stream.unwrap(), &memory));
        }
    });
    Vss::new(move |until| Socket::connect(&path, until), 5, Uuid::from_u128(0x5e7))
}

/// What a provider's request came to.
#[derive(Debug, PartialEq, Eq)]
enum Came {
    Done,
    Failed,
    /// A word that it does not know: E_INVALIDARG.
    Unknown(String),
}

/// As the provider: writes the request, looks now and then, knows three words and no other.
fn set_and_wait(store: &mut Memory, verb: Verb) -> Came {
    let [request, done, failed] = verb.words();
    let status = format!("/vss/{VM}/status");
    store.write(&status, request, soon()).unwrap();
    let until = soon();
    while Instant::now() < until {
        let word = store.read(&status, soon()).unwrap().unwrap_or_default();
        if word == request {
            std::thread::yield_now();
            continue;
        }
        if word == done || word == failed {
            store.remove(&status, soon()).unwrap();
            return if word == done { Came::Done } else { Came::Failed };
        }
        return Came::Unknown(word);
    }
    Came::Unknown("no answer".to_owned())
}

/// The guest: agent and provider. It asks for `disks` when it is told to, and describes what it
/// gets; answers what came of its requests and the snapshots it was given.
fn guest(store: &Memory, disks: Vec<VdiUuid>) -> JoinHandle<(Vec<Came>, Vec<String>)> {
    let mut store = store.clone();
    std::thread::spawn(move || {
        let control = format!("{OWN}/control/snapshot");
        let until = soon();
        let action = format!("{control}/action");
        while store.read(&action, soon()).unwrap().as_deref() != Some("create-snapshot") {
            assert!(Instant::now() < until, "nobody asks");
            std::thread::yield_now();
        }
        store.remove(&action, soon()).unwrap();
        for disk in &disks {
            store.write(&format!("/vss/{VM}/snapshot/{disk}"), "", soon()).unwrap();
        }
        let mut came = vec![set_and_wait(&mut store, Verb::Create)];
        let id = |store: &mut Memory, disk: &VdiUuid| {
            let path = format!("/vss/{VM}/snapshot/{disk}/id");
            store.read(&path, soon()).unwrap().unwrap_or_default()
        };
        let ids: Vec<String> = disks.iter().map(|disk| id(&mut store, disk)).collect();
        if came[0] == Came::Done {
            for id in &ids {
                store.write(&format!("/vss/{VM}/snapshot/{id}"), "", soon()).unwrap();
            }
            came.push(set_and_wait(&mut store, Verb::Describe));
            for id in &ids {
                let page = format!("/vss/{VM}/snapshot/{id}/scsi/0x12/0x83");
                assert!(store.read(&page, soon()).unwrap().is_some(), "{page}");
            }
            // The document, as the agent leaves it.
            for (n, part) in ["3c00620063003e00", "3c002f00620063003e00"].iter().enumerate() {
                store.write(&format!("{control}/snapid/{n}"), part, soon()).unwrap();
            }
            store.write(&format!("{control}/status"), "snapshot-created", soon()).unwrap();
        } else {
            store.write(&format!("{control}/error/message"), "writer veto", soon()).unwrap();
            store.write(&format!("{control}/error/code"), "0x80042306", soon()).unwrap();
            store.write(&format!("{control}/status"), "snapshot-error", soon()).unwrap();
        }
        (came, ids)
    })
}

fn pairs(pairs: &[(u128, u128)]) -> Outcome {
    let pairs = pairs.iter();
    Outcome::Taken(pairs.map(|(a, b)| Taken { vdi: vdi(*a), snapshot: vdi(*b) }).collect())
}

#[test]
fn two_disks_get_two_snapshots_and_the_document_is_kept() {
    let (folder, store) = (tempfile::tempdir().unwrap(), store(true));
    let mut host = host(&folder, &store);
    let ready = host.prepare(soon()).unwrap();
    assert_eq!(ready.level, Consistency::Application);
    assert_eq!(store.owner(&format!("/vss/{VM}")), Some(5));
    let guest = guest(&store, vec![vdi(1), vdi(2)]);
    assert_eq!(host.freeze(&[vdi(1), vdi(2)], soon()).unwrap().count, 2);
    let thawed = host.thaw(&pairs(&[(1, 11), (2, 12)]), soon()).unwrap();
    assert_eq!(thawed.document.as_deref(), Some("<bc></bc>"));
    let (came, ids) = guest.join().unwrap();
    assert_eq!(came, [Came::Done, Came::Done]);
    assert_eq!(ids, [vdi(11).to_string(), vdi(12).to_string()]);
    let told = store.dump();
    let set = Uuid::from_u128(0x5e7).to_string();
    assert_eq!(told[&format!("/vss/{VM}/snapuuid")], set);
    assert_eq!(
        told[&format!("/vss/{VM}/snapinfo")],
        format!("<VM.snapshot><snapuuid>{set}</snapuuid><parent>{VM}</parent></VM.snapshot>")
    );
}

#[test]
fn a_failure_is_told_to_the_provider_in_its_word() {
    let (folder, store) = (tempfile::tempdir().unwrap(), store(true));
    let mut host = host(&folder, &store);
    host.prepare(soon()).unwrap();
    let guest = guest(&store, vec![vdi(1)]);
    host.freeze(&[vdi(1)], soon()).unwrap();
    assert_eq!(host.thaw(&Outcome::Failed, soon()).unwrap().document, None);
    assert_eq!(guest.join().unwrap().0, [Came::Failed]);
}

#[test]
fn disks_that_do_not_match_are_refused_and_the_guest_goes_on() {
    for (asked, ours, message) in [
        (
            vec![vdi(1), vdi(3)],
            vec![vdi(1)],
            format!("the guest asks for VDI {}, which is none of the disks", vdi(3)),
        ),
        (
            vec![vdi(1)],
            vec![vdi(1), vdi(2)],
            format!("VDI {} is none of those that the guest has brought to rest", vdi(2)),
        ),
    ] {
        let (folder, store) = (tempfile::tempdir().unwrap(), store(true));
        let mut host = host(&folder, &store);
        host.prepare(soon()).unwrap();
        let guest = guest(&store, asked);
        assert_eq!(host.freeze(&ours, soon()).unwrap_err().message, message);
        host.thaw(&Outcome::Failed, soon()).unwrap();
        assert_eq!(guest.join().unwrap().0, [Came::Failed]);
    }
}

#[test]
fn a_guest_that_fails_after_the_snapshots_is_told_in_its_words() {
    let (folder, mut store) = (tempfile::tempdir().unwrap(), store(true));
    let mut host = host(&folder, &store);
    host.prepare(soon()).unwrap();
    let control = format!("{OWN}/control/snapshot");
    store.write(&format!("/vss/{VM}/snapshot/{}", vdi(1)), "", soon()).unwrap();
    store.write(&format!("/vss/{VM}/status"), "create-snapshots", soon()).unwrap();
    host.freeze(&[vdi(1)], soon()).unwrap();
    store.write(&format!("{control}/error/message"), "writer timeout", soon()).unwrap();
    store.write(&format!("{control}/error/code"), "0x800423F2", soon()).unwrap();
    store.write(&format!("{control}/status"), "snapshot-error", soon()).unwrap();
    let error = host.thaw(&pairs(&[(1, 11)]), soon()).unwrap_err();
    assert_eq!(error.message, "the guest in domain 5 has failed to take part");
    assert_eq!(error.backend.as_deref(), Some("writer timeout"));
    assert_eq!(error.context["vss_code"], "0x800423F2");
    assert_eq!(error.context["xapi_error"], "VM_SNAPSHOT_WITH_QUIESCE_FAILED");
}

#[test]
fn leave_is_given_never_always_or_once() -> Result<()> {
    let flag = format!("{OWN}/vm-data/allowvssprovider");
    for (value, after, allowed) in [
        (None, None, true),
        (Some("true"), Some("false"), true),
        (Some("false"), Some("false"), false),
    ] {
        let (folder, mut store) = (tempfile::tempdir().unwrap(), store(true));
        if let Some(value) = value {
            store.write(&flag, value, soon())?;
        }
        let mut host = host(&folder, &store);
        host.prepare(soon())?;
        store.write(&format!("/vss/{VM}/status"), "create-snapshots", soon())?;
        let frozen = host.freeze(&[], soon());
        assert_eq!(frozen.is_ok(), allowed, "{value:?}");
        if let Err(error) = frozen {
            assert_eq!(error.kind, Kind::Auth);
            assert_eq!(error.message, format!("domain 5 must not take part: {flag} is not true"));
        }
        assert_eq!(store.read(&flag, soon())?.as_deref(), after);
    }
    Ok(())
}

#[test]
fn guests_that_cannot_or_do_not_take_part_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let error = host(&folder, &Memory::new()).prepare(soon()).unwrap_err();
    assert_eq!(error.message, "there is no domain 5 on this host");

    let folder = tempfile::tempdir().unwrap();
    let error = host(&folder, &store(false)).prepare(soon()).unwrap_err();
    assert_eq!(error.kind, Kind::Unsupported);
    assert_eq!(error.context["xapi_error"], "VM_SNAPSHOT_WITH_QUIESCE_NOT_SUPPORTED");

    let (folder, store) = (tempfile::tempdir().unwrap(), store(true));
    let mut host = host(&folder, &store);
    host.prepare(soon()).unwrap();
    let error = host.freeze(&[vdi(1)], Instant::now() + Duration::from_millis(100)).unwrap_err();
    assert_eq!(error.message, "the guest in domain 5 does not come to rest in time");
    assert_eq!(error.context["xapi_error"], "VM_SNAPSHOT_WITH_QUIESCE_PLUGIN_DEOS_NOT_RESPOND");
}

#[test]
fn whoever_comes_later_lets_a_waiting_provider_go_on() {
    let (folder, mut store) = (tempfile::tempdir().unwrap(), store(true));
    let mut host = host(&folder, &store);
    assert!(!host.rescue(soon()).unwrap());
    let provider = {
        let mut store = store.clone();
        std::thread::spawn(move || set_and_wait(&mut store, Verb::Create))
    };
    let until = soon();
    while store.read(&format!("/vss/{VM}/status"), soon()).unwrap().is_none() {
        assert!(Instant::now() < until);
        std::thread::yield_now();
    }
    assert!(host.rescue(soon()).unwrap());
    assert_eq!(provider.join().unwrap(), Came::Failed);
}

#[test]
fn a_store_in_memory_and_one_at_a_socket_answer_alike() -> Result<()> {
    let folder = tempfile::tempdir().unwrap();
    let memory = Memory::new();
    let path = folder.path().join("xenstored");
    let listener = UnixListener::bind(&path).unwrap();
    let served = memory.clone();
    std::thread::spawn(move || serve(listener.accept().unwrap().0, &served));
    let mut memory = memory.clone();
    let mut socket = Socket::connect(&path, soon())?;
    socket.write("/a/b/c", "ü", soon())?;
    socket.write("/a/d", "", soon())?;
    memory.write("/ab", "no", soon())?;
    for path in ["/a/b/c", "/a/d", "/a", "/none"] {
        assert_eq!(socket.read(path, soon())?, memory.read(path, soon())?, "{path}");
        assert_eq!(socket.list(path, soon())?, memory.list(path, soon())?, "{path}");
    }
    assert_eq!(socket.list("/a", soon())?, ["b", "d"]);
    socket.give("/a", 7, soon())?;
    assert_eq!(memory.owner("/a"), Some(7));
    let error = socket.write("/a", &"x".repeat(5000), soon()).unwrap_err();
    assert_eq!(error.message, "5003 bytes are too many for XenStore");
    socket.watch("/a", soon())?;
    // As of a real store: the first event comes at once.
    socket.changed(soon())?;
    memory.watch("/a", soon())?;
    socket.remove("/a/b", soon())?;
    socket.changed(soon())?;
    memory.changed(soon())?;
    assert_eq!(socket.read("/a/b/c", soon())?, None);
    drop(folder);
    Ok(())
}
