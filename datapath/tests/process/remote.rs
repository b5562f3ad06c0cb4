//! A disk for other hosts, over TCP and TLS, with clients that others have written.

use std::net::{SocketAddr, TcpListener};
use std::process::{Command, Stdio};

use datapath::control::protocol::{FailureKind, Listen, MirrorPhase, MirrorStart, MirrorSwitch};
use datapath::nbd::client::{Client, Kind, Options};

use super::certificates::Authority;
use super::place::{LONG, SIZE, Site, until};

const ANY: &str = "127.0.0.1:0";

fn at(address: &str) -> SocketAddr {
    address.parse().unwrap()
}

/// Runs a program for a minute at most. Whether it succeeded, and all it said.
fn run(program: &str, arguments: &[&str]) -> (bool, String) {
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", "60", program]).args(arguments);
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert_ne!(output.status.code(), Some(127), "{program} is missing: see `cargo xtask setup`");
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    (output.status.success(), text.into_owned())
}

/// What must succeed.
fn good(program: &str, arguments: &[&str]) -> String {
    let (good, text) = run(program, arguments);
    assert!(good, "{program} {arguments:?}: {text}");
    text
}

/// `qemu-io` as a client with a certificate; it must succeed.
fn qemu_io(authority: &Authority, port: u16, name: &str, commands: &[&str]) {
    let creds = format!(
        "tls-creds-x509,id=tls,endpoint=client,dir={}",
        authority.folder().to_str().unwrap()
    );
    let image = format!(
        "driver=nbd,server.type=inet,server.host=localhost,server.port={port},export={name},\
         tls-creds=tls"
    );
    let mut arguments = vec!["--object", creds.as_str(), "--image-opts"];
    for command in commands {
        arguments.extend(["-c", command]);
    }
    arguments.push(&image);
    let text = good("qemu-io", &arguments);
    assert!(!text.contains("failed"), "{commands:?}: {text}");
}

#[test]
fn other_hosts_reach_a_disk_with_a_certificate_and_only_with_one() {
    let site = Site::new();
    let mut client = site.serve();
    let ours = Authority::new(&site.folder.path().join("ours"));
    let theirs = Authority::new(&site.folder.path().join("theirs"));
    assert_eq!(site.status().remote, None, "off unless it is asked for");
    let asked = Listen { address: at(ANY), credentials: Some(ours.credentials("server")) };
    let remote = client.listen(asked.clone(), LONG).unwrap();
    let (port, name) = (remote.address.port(), site.place.name());
    assert_eq!(remote.uri, format!("nbds://127.0.0.1:{port}/{name}"));
    assert_eq!(client.listen(asked.clone(), LONG).unwrap(), remote, "done already");
    let error = client.listen(Listen { address: at("127.0.0.1:1"), ..asked }, LONG).unwrap_err();
    assert_eq!(error.to_string(), format!("the disk is served at 127.0.0.1:{port} already"));
    assert_eq!(error.kind(), Some(FailureKind::InUse));

    // The guest of this host and clients of others see one disk.
    qemu_io(&ours, port, &name, &["write -P 7 1M 64k", "flush"]);
    let mut seen = [0; 512];
    site.connect().read(1 << 20, &mut seen).unwrap();
    assert_eq!(seen, [7; 512]);
    let folder = |name: &str| site.folder.path().join(name).to_str().unwrap().to_owned();
    let libnbd = |certificates: &str| {
        format!("nbds://localhost:{port}/{name}?tls-certificates={}", folder(certificates))
    };
    let info = good("nbdinfo", &["--json", &libnbd("ours")]);
    assert!(info.contains("\"TLS\": true") && info.contains("\"export-size\": 16777216"), "{info}");
    let copy = folder("copy");
    good("nbdcopy", &[&libnbd("ours"), &copy]);
    let content = std::fs::read(&copy).unwrap();
    assert_eq!(content.len() as u64, SIZE);
    assert!(content[1 << 20..][..64 << 10].iter().all(|byte| *byte == 7));

    // Without a certificate, with one of somebody else, without TLS.
    let uri = remote.uri.parse().unwrap();
    let refused = |options: Options| Client::connect(&uri, &options).err().unwrap();
    let none = refused(Options::default());
    assert_eq!(
        (none.kind, none.what),
        (Kind::Refused, format!("{}: no certificate is given", remote.uri))
    );
    let wrong = refused(Options { tls: Some(theirs.client()), ..Options::default() });
    assert_eq!(wrong.kind, Kind::Disconnected);
    let words = format!("{}: invalid peer certificate: certificate not valid for name", remote.uri);
    assert!(
        wrong.what.starts_with(&format!("{}: invalid peer certificate", remote.uri)),
        "{wrong}"
    );
    assert!(!wrong.what.starts_with(&words), "its name is right: {wrong}");
    let plain = remote.uri.replace("nbds:", "nbd:");
    let error = Client::connect(&plain.parse().unwrap(), &Options::default()).err().unwrap();
    assert_eq!(error.kind, Kind::Refused);
    assert!(error.what.contains("the server wants TLS"), "{error}");
    let (good, text) = run("nbdinfo", &["--size", &format!("nbd://localhost:{port}/{name}")]);
    assert!(!good && text.contains("TLS"), "{text}");
    std::fs::create_dir(folder("authority-only")).unwrap();
    std::fs::copy(
        ours.folder().join("ca-cert.pem"),
        site.folder.path().join("authority-only/ca-cert.pem"),
    )
    .unwrap();
    let (good, text) = run("nbdinfo", &["--size", &libnbd("authority-only")]);
    assert!(!good && text.contains("A TLS fatal alert has been received"), "{text}");

    // They are sent away with the end of it, and those of this host are not.
    let guest = site.connect();
    let options = Options { tls: Some(ours.client()), ..Options::default() };
    let far = Client::connect(&uri, &options).unwrap();
    far.write(0, &[5; 512], true).unwrap();
    assert_eq!(site.status().remote.unwrap().connections, 1);
    assert_eq!(site.status().connections, 2);
    client.unlisten(LONG).unwrap();
    client.unlisten(LONG).unwrap();
    assert!(far.read(0, &mut [0; 512]).is_err());
    assert!(Client::connect(&uri, &options).is_err());
    guest.read(0, &mut [0; 512]).unwrap();
    assert_eq!(site.status().remote, None);

    // A deactivation sends all away, and the address stays.
    let asked = Listen { address: remote.address, credentials: Some(ours.credentials("server")) };
    client.listen(asked, LONG).unwrap();
    let far = Client::connect(&uri, &options).unwrap();
    client.deactivate(LONG).unwrap();
    assert!(far.read(0, &mut [0; 512]).is_err());
    assert_eq!(Client::connect(&uri, &options).err().unwrap().kind, Kind::Refused);
    client.activate(site.plan(), 8, LONG).unwrap();
    Client::connect(&uri, &options).unwrap().read(0, &mut [0; 512]).unwrap();
    client.end(LONG).unwrap();
    assert!(Client::connect(&uri, &options).is_err());
}

#[test]
fn without_tls_a_disk_is_served_on_a_loopback_address_only() {
    let site = Site::new();
    let mut client = site.serve();
    let open = Listen { address: at("0.0.0.0:0"), credentials: None };
    let error = client.listen(open, LONG).unwrap_err();
    assert_eq!(error.kind(), Some(FailureKind::Invalid));
    let words = "0.0.0.0:0 is no loopback address: without TLS everybody there could write";
    assert_eq!(error.to_string(), words);
    let remote = client.listen(Listen { address: at(ANY), credentials: None }, LONG).unwrap();
    assert!(!remote.tls);
    good("qemu-io", &["-f", "raw", "-c", "write -P 3 0 64k", "-c", "flush", &remote.uri]);
    client.unlisten(LONG).unwrap();

    let taken = TcpListener::bind(ANY).unwrap();
    let address = taken.local_addr().unwrap();
    let error = client.listen(Listen { address, credentials: None }, LONG).unwrap_err();
    assert_eq!(error.kind(), Some(FailureKind::InUse));
    assert_eq!(error.to_string(), format!("{address}: Address already in use (os error 98)"));
    let none = Authority::new(&site.folder.path().join("a"));
    let mut credentials = none.credentials("server");
    credentials.key = site.folder.path().join("nothing");
    let asked = Listen { address: at(ANY), credentials: Some(credentials) };
    let error = client.listen(asked, LONG).unwrap_err();
    assert_eq!(error.kind(), Some(FailureKind::Invalid));
    assert!(error.to_string().contains("/nothing: "), "{error}");
    client.end(LONG).unwrap();
    assert_eq!(site.byte(site.disk, 0), 3);
}

/// Two processes as on two hosts: `qemu-io` writes while the disk moves, over TLS.
#[test]
fn a_disk_moves_to_another_host_over_tls() {
    let (source, target) = (Site::new(), Site::new());
    let (mut here, mut there) = (source.serve(), target.serve());
    let authority = Authority::new(&source.folder.path().join("ca"));
    let asked = Listen { address: at(ANY), credentials: Some(authority.credentials("server")) };
    let remote = there.listen(asked.clone(), LONG).unwrap();
    good("qemu-io", &["-f", "raw", "-c", "write -P 1 0 12M", &source.place.uri()]);

    let start = MirrorStart {
        target: remote.uri.clone(),
        credentials: Some(authority.credentials("client")),
        server_name: None,
        rate: None,
    };
    // A disk that listens is not copied to itself, by whatever name.
    let own = here.listen(Listen { address: at("0.0.0.0:0"), ..asked }, LONG).unwrap();
    for host in ["localhost", "127.0.0.1"] {
        let target = format!("nbds://{host}:{}/x", own.address.port());
        let error = here.mirror_start(MirrorStart { target, ..start.clone() }, LONG).unwrap_err();
        assert_eq!(error.kind(), Some(FailureKind::Refused), "{error}");
        assert!(error.to_string().ends_with(" is this disk itself"), "{error}");
    }
    let named = MirrorStart { server_name: Some("elsewhere".to_owned()), ..start.clone() };
    let error = here.mirror_start(named, LONG).unwrap_err();
    assert_eq!(error.kind(), Some(FailureKind::Unreachable));
    assert!(error.to_string().contains("not valid for name \"elsewhere\""), "{error}");

    here.mirror_start(start, LONG).unwrap();
    let writes: Vec<String> =
        (2..200_u32).map(|n| format!("write -P {n} {} 64k", (n % 97) * 65536 + 4096)).collect();
    let mut words = vec!["-f", "raw"];
    for write in &writes {
        words.extend(["-c", write.as_str()]);
    }
    let uri = source.place.uri();
    words.push(&uri);
    good("qemu-io", &words);
    until("the mirror to be ready", || {
        source.status().mirror.is_some_and(|mirror| mirror.phase == MirrorPhase::Ready)
    });
    let switch = MirrorSwitch { verify: true, milliseconds: 10_000 };
    let moved = here.mirror_switch(switch, LONG).unwrap();
    assert_eq!((moved.target.as_str(), moved.verified), (remote.uri.as_str(), true));
    here.end(LONG).unwrap();
    there.end(LONG).unwrap();
    let read = |site: &Site| {
        let disk = site.tree.open_disk(site.disk, vhd::Mode::Read).unwrap();
        let mut content = vec![0; SIZE as usize];
        vhd::Disk::read_at(&disk, 0, &mut content).unwrap();
        content
    };
    let content = read(&target);
    assert!(content == read(&source), "both hold the same");
    assert_eq!(content[4096 + 5 * 65536], 199);
    source.check();
    target.check();
}
