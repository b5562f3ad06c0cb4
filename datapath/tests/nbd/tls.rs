//! Encrypted connections, and those that are refused.

use std::fs;
use std::path::Path;

use datapath::nbd::client::{Client, Kind, Options};
use datapath::nbd::protocol::{
    Fields, InfoRequest, OPTION_REPLY_MAGIC, encode_option, option, option_reply,
};
use datapath::nbd::tls::{Identity, TlsClient, TlsServer};
use datapath::nbd::uri::{Address, Uri};

use super::certificates::authority;
use super::disks::{Disks, Memory, noise};
use super::place::{Place, good, run};

const MIB: u64 = 1 << 20;

fn paths(folder: &Path, who: &str) -> [std::path::PathBuf; 3] {
    [format!("{who}-cert.pem"), format!("{who}-key.pem"), "ca-cert.pem".to_owned()]
        .map(|name| folder.join(name))
}

struct Secure {
    place: Place,
    disks: Disks,
    port: u16,
}

impl Secure {
    fn new() -> Self {
        let disks = Disks::default().add("disk", Memory::new(16 * MIB));
        disks.get("disk").fill(&noise(8, 16 << 20));
        let place = Place::new(disks.clone());
        authority(&place.path("ours"), &["localhost"]);
        authority(&place.path("theirs"), &["localhost"]);
        let [certificates, key, authorities] = paths(&place.path("ours"), "server");
        let identity =
            Identity { certificates: &certificates, key: &key, authorities: &authorities };
        let port = place.tcp(Some(TlsServer::load(identity).unwrap()));
        Self { place, disks, port }
    }

    fn options(&self, folder: &str) -> Options {
        let [certificates, key, authorities] = paths(&self.place.path(folder), "client");
        let identity =
            Identity { certificates: &certificates, key: &key, authorities: &authorities };
        Options { tls: Some(TlsClient::load(identity).unwrap()), ..Options::default() }
    }

    fn uri(&self, tls: bool) -> Uri {
        Uri {
            address: Address::Tcp("localhost".to_owned(), self.port),
            name: "disk".to_owned(),
            tls,
        }
    }

    /// For programs that use libnbd; the folder of certificates is in the address.
    fn libnbd(&self, folder: &str) -> String {
        let folder = self.place.path(folder);
        format!("nbds://localhost:{}/disk?tls-certificates={}", self.port, folder.display())
    }
}

#[test]
fn our_client_reads_and_writes_from_many_threads() {
    let secure = Secure::new();
    let client = Client::connect(&secure.uri(true), &secure.options("ours")).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let client = &client;
            scope.spawn(move || {
                for round in 0..8_u64 {
                    let at = thread * 4 * MIB + round * 300_001;
                    let bytes = noise(at, 300_001);
                    client.write(at, &bytes, round == 3).unwrap();
                    let mut back = vec![0; bytes.len()];
                    client.read(at, &mut back).unwrap();
                    assert!(back == bytes);
                }
            });
        }
    });
    client.flush().unwrap();
}

#[test]
fn libnbd_and_qemu_copy_over_it() {
    let secure = Secure::new();
    let uri = secure.libnbd("ours");
    let file = secure.place.path("file");
    let file = file.to_str().unwrap();
    good("nbdcopy", &[&uri, file]);
    assert!(fs::read(file).unwrap() == secure.disks.get("disk").bytes());
    let info = good("nbdinfo", &["--json", &uri]);
    assert!(info.contains("\"TLS\": true"), "{info}");

    let creds = format!(
        "tls-creds-x509,id=tls,endpoint=client,dir={}",
        secure.place.path("ours").display()
    );
    let image = format!(
        "driver=nbd,server.type=inet,server.host=localhost,server.port={},export=disk,tls-creds=tls",
        secure.port
    );
    good(
        "qemu-img",
        &[
            "info",
            "--object",
            &creds,
            "--image-opts",
            &format!(
                "driver=raw,{}",
                image.split(',').map(|pair| format!("file.{pair}")).collect::<Vec<_>>().join(",")
            ),
        ],
    );
    let back = secure.place.path("back");
    let back = back.to_str().unwrap();
    good("qemu-img", &["convert", "--object", &creds, "--image-opts", "-O", "raw", &image, back]);
    assert!(fs::read(back).unwrap() == secure.disks.get("disk").bytes());
}

#[test]
fn who_has_no_certificate_or_that_of_another_authority_stays_outside() {
    let secure = Secure::new();
    let before = secure.disks.get("disk").bytes();
    let refused = Client::connect(&secure.uri(true), &secure.options("theirs"));
    assert_eq!(refused.err().unwrap().kind, Kind::Disconnected, "the server is not known");
    let none = Client::connect(&secure.uri(true), &Options::default()).err().unwrap();
    assert_eq!(none.kind, Kind::Refused, "{none}");
    let plain = Client::connect(&secure.uri(false), &Options::default()).err().unwrap();
    assert_eq!(plain.kind, Kind::Refused, "{plain}");
    assert!(plain.what.contains("the server wants TLS"), "{plain}");

    // libnbd without a certificate of its own, or with a wrong one, and a right authority.
    let only = secure.place.path("only-authority");
    fs::create_dir(&only).unwrap();
    fs::copy(secure.place.path("ours/ca-cert.pem"), only.join("ca-cert.pem")).unwrap();
    assert!(!run("nbdinfo", &["--size", &secure.libnbd("only-authority")]).good);
    for name in ["client-cert.pem", "client-key.pem"] {
        fs::copy(secure.place.path("theirs").join(name), only.join(name)).unwrap();
    }
    let said = run("nbdinfo", &["--size", &secure.libnbd("only-authority")]);
    assert!(!said.good, "{said:?}");
    let plain = format!("nbd://localhost:{}/disk", secure.port);
    let said = run("nbdinfo", &["--size", &plain]);
    assert!(!said.good && said.err.to_lowercase().contains("tls"), "{said:?}");
    assert!(secure.disks.get("disk").bytes() == before);
    assert_eq!(good("nbdinfo", &["--size", &secure.libnbd("ours")]).trim(), "16777216");
}

#[test]
fn before_tls_nothing_is_told_and_nothing_is_kept() {
    use std::io::{Read as _, Write as _};
    let secure = Secure::new();
    let mut socket = std::net::TcpStream::connect(("localhost", secure.port)).unwrap();
    socket.set_read_timeout(Some(super::place::PATIENCE)).unwrap();
    socket.read_exact(&mut [0; 18]).unwrap();
    socket.write_all(&3_u32.to_be_bytes()).unwrap();
    let go = InfoRequest { name: "disk".to_owned(), wanted: vec![] }.encode();
    for (option, data) in [
        (option::LIST, &[][..]),
        (option::STRUCTURED_REPLY, &[]),
        (option::INFO, &go),
        (option::GO, &go),
        (77, &[]),
    ] {
        socket.write_all(&encode_option(option, data)).unwrap();
        let mut head = [0; 20];
        socket.read_exact(&mut head).unwrap();
        let mut fields = Fields(&head);
        let words = (fields.u64(), fields.u32(), fields.u32(), fields.u32());
        let refusal = option_reply::ERR_TLS_REQD;
        assert_eq!(words, (Some(OPTION_REPLY_MAGIC), Some(option), Some(refusal), Some(0)));
    }
    // Options in the clear behind the start are no TLS: the connection ends, they are not obeyed.
    let start = encode_option(option::STARTTLS, &[]);
    socket.write_all(&[start, encode_option(option::GO, &go)].concat()).unwrap();
    let mut rest = Vec::new();
    let _ = socket.read_to_end(&mut rest);
    let acks = rest.windows(8).filter(|window| *window == OPTION_REPLY_MAGIC.to_be_bytes());
    assert_eq!(acks.count(), 1, "only the start was answered");
    secure.place.client("disk").flush().unwrap();
}

#[test]
fn files_that_are_no_certificates_are_named() {
    let secure = Secure::new();
    let [certificates, key, authorities] = paths(&secure.place.path("ours"), "client");
    let none = secure.place.path("none");
    let identity = Identity { certificates: &none, key: &key, authorities: &authorities };
    let error = TlsServer::load(identity).unwrap_err().to_string();
    assert!(error.contains("none"), "{error}");
    let identity = Identity { certificates: &key, key: &key, authorities: &authorities };
    let error = TlsServer::load(identity).unwrap_err().to_string();
    assert!(error.contains("no certificate is in it"), "{error}");
    let identity =
        Identity { certificates: &certificates, key: &certificates, authorities: &authorities };
    assert!(TlsClient::load(identity).is_err());
}
