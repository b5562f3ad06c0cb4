//! An array with two networks, and a host.

use std::net::Ipv4Addr;
use std::time::Duration;

use array_kit::http::basic;
use array_sim::truenas::{PASSWORD, USER};
use conformance::built::artefact;
use lab::kit::iscsi::Initiator;
use lab::kit::smctl::Smctl;
use lab::{Guest, Lab, Result, Running};
use plugin_sdk::Secret;
use serde_json::{Value, json};

pub(crate) const MIB: u64 = 1 << 20;
/// Where the array is managed, and where the simulator is.
const WEB: u16 = 8080;
const ADMIN: u16 = 8081;
/// Says what it is told, on a connection of its own, and what it hears.
const TALK: &str = r#"exec 3<>"/dev/tcp/$0/$1" && cat >&3 && cat <&3"#;

/// Both guests, up, the array with somebody else's LUN.
pub(crate) struct Place {
    pub(crate) nas: Guest,
    pub(crate) host: Guest,
    pub(crate) addresses: [Ipv4Addr; 2],
    /// Name of the host's initiator.
    pub(crate) initiator: String,
    _array: Running,
}

impl Place {
    pub(crate) fn new(lab: &Lab) -> Result<Self> {
        // Built before any guest runs, which could read it half written.
        let programs = ["array-sim", "smctl", "libsm_driver_truenas.so"].map(artefact);
        let networks = [lab.network()?, lab.network()?];
        let guest = |name| lab.guest(name).network(&networks[0]).network(&networks[1]);
        let [nas, host] = lab.boot([guest("nas"), guest("host")])?;
        let addresses = [nas.address(&networks[0])?, nas.address(&networks[1])?];
        let program = programs[0].display().to_string();
        let listen = format!("{}:{WEB}", addresses[0]);
        let admin = format!("127.0.0.1:{ADMIN}");
        let words = [&program, "truenas", "--state", "/srv/array", "--pool", "tank=1073741824"];
        let places = ["--listen", &listen, "--iscsi", "0.0.0.0:3260", "--admin", &admin];
        let array = nas.command(words.into_iter().chain(places)).start()?;
        Initiator::start(&host)?;
        nas.wait_for("the array", Duration::from_secs(20), |_| {
            Ok(if array.so_far().contains('\n') { Ok(()) } else { Err(array.so_far()) })
        })?;
        let initiator = Initiator::name_of(&host);
        let place = Self { nas, host, addresses, initiator, _array: array };
        place.furnish()?;
        Ok(place)
    }

    /// A dataset for SRs, a LUN of somebody else's, and a portal for each of two ways to reach this:
    /// 1 at any address, 2 at both of them.
    fn furnish(&self) -> Result<()> {
        let theirs = json!({ "name": "tank/theirs", "type": "VOLUME", "volsize": MIB,
            "sparse": true, "volblocksize": "16K" });
        let listen: Vec<Value> =
            self.addresses.iter().map(|ip| json!({ "ip": ip.to_string() })).collect();
        for (path, body) in [
            ("pool/dataset", json!({ "name": "tank/vms", "type": "FILESYSTEM" })),
            ("pool/dataset", theirs),
            ("iscsi/portal", json!({ "listen": listen })),
            ("iscsi/initiator", json!({ "initiators": ["iqn.2000-01.com.example:them"] })),
            (
                "iscsi/target",
                json!({ "name": "theirs", "alias": null, "mode": "ISCSI", "groups": [
                    { "portal": 1, "initiator": 1, "authmethod": "NONE", "auth": null }] }),
            ),
            ("iscsi/extent", json!({ "name": "theirs", "disk": "zvol/tank/theirs" })),
            ("iscsi/targetextent", json!({ "target": 1, "extent": 1, "lunid": 0 })),
        ] {
            self.managed("POST", path, &body)?;
        }
        let content = [b"precious".as_slice(); 512].concat();
        self.talk(ADMIN, "PUT", "/content?volume=tank/theirs&offset=65536", &content)?;
        Ok(())
    }

    /// What an administrator of the array does.
    pub(crate) fn managed(&self, method: &str, path: &str, body: &Value) -> Result<Value> {
        let body = body.to_string();
        let answer = self.talk(WEB, method, &format!("/api/v2.0/{path}"), body.as_bytes())?;
        Ok(serde_json::from_slice(&answer).unwrap())
    }

    /// What an operator of the simulator sees and does.
    pub(crate) fn simulator(&self, method: &str, path: &str, body: &Value) -> Result<Value> {
        let answer = self.talk(ADMIN, method, path, body.to_string().as_bytes())?;
        Ok(serde_json::from_slice(&answer).unwrap())
    }

    /// What somebody else has on the array.
    pub(crate) fn theirs(&self) -> Result<Vec<u8>> {
        let path = format!("/content?volume=tank/theirs&offset=0&length={MIB}");
        self.talk(ADMIN, "GET", &path, &[])
    }

    /// All objects of the array.
    pub(crate) fn objects(&self) -> Result<Value> {
        let mut objects = self.simulator("GET", "/inventory", &Value::Null)?["objects"].take();
        // Numbers are never given twice.
        objects.as_object_mut().unwrap().remove("counter");
        Ok(objects)
    }

    fn talk(&self, port: u16, method: &str, path: &str, body: &[u8]) -> Result<Vec<u8>> {
        let address = match port {
            ADMIN => Ipv4Addr::LOCALHOST,
            _ => self.addresses[0],
        };
        let authorization = basic(USER, &Secret::from(PASSWORD));
        let mut request = format!(
            "{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\
             content-type: application/json\r\nauthorization: {}\r\ncontent-length: {}\r\n\r\n",
            authorization.reveal(),
            body.len()
        )
        .into_bytes();
        request.extend_from_slice(body);
        let words = ["bash", "-c", TALK, &address.to_string(), &port.to_string()];
        let heard = self.nas.command(words).input(request).run()?.success()?.stdout;
        let end = heard.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
        let (head, body) = (String::from_utf8_lossy(&heard[..end]), &heard[end + 4..]);
        assert!(
            head.starts_with("HTTP/1.1 200 "),
            "{method} {path}: {head}\n{}",
            String::from_utf8_lossy(body)
        );
        Ok(body.to_vec())
    }

    pub(crate) fn smctl(&self) -> Smctl<'_> {
        Smctl::new(&self.host, artefact("smctl").display().to_string())
    }

    /// Makes an SR that is reached by a portal.
    pub(crate) fn create(&self, name: &str, more: &[&str]) -> Result<String> {
        let target = format!("target=http://{}:{WEB}", self.addresses[0]);
        let password = format!("password={PASSWORD}");
        let user = format!("username={USER}");
        let words = ["sr", "create", "--driver", "truenas", "--name", name, "pool=tank/vms"];
        let words = [&words, [target.as_str(), &user, &password].as_slice(), more].concat();
        self.smctl().check(&words)
    }

    /// The device of a VDI that is attached now.
    pub(crate) fn attach(&self, vdi: &str, more: &[&str]) -> Result<String> {
        let said = self.smctl().check(&[&["vdi", "attach", vdi], more].concat())?;
        Ok(said.strip_prefix("block device ").unwrap().to_owned())
    }

    /// What `scsi_id` prints for a device.
    pub(crate) fn scsi_id(&self, device: &str) -> Result<String> {
        self.host.check(["/lib/udev/scsi_id", "--whitelisted", &format!("--device={device}")])
    }

    /// What the host has of the array: sessions, disks, maps, records of targets, notes of users.
    pub(crate) fn left(&self) -> Result<String> {
        let script = "ls /sys/class/iscsi_session; ls /sys/block | grep '^sd\\|^dm-'; \
                      ls /etc/iscsi/nodes; find /run/sm-iscsi -type f ! -name '.*'; true";
        self.host.check(["sh", "-c", script])
    }

    /// Sessions of the host.
    pub(crate) fn sessions(&self) -> Result<usize> {
        Ok(self.host.check(["ls", "/sys/class/iscsi_session"])?.split_whitespace().count())
    }

    /// Bytes of the host's device.
    pub(crate) fn size(&self, device: &str) -> Result<u64> {
        Ok(self.host.check(["blockdev", "--getsize64", device])?.parse().unwrap())
    }

    /// Checksum of what a device holds, read from the array.
    pub(crate) fn sum(&self, device: &str, mebibytes: u64) -> Result<String> {
        let script = "dd if=$0 bs=1M count=$1 iflag=direct status=none | sha256sum";
        self.host.check(["sh", "-c", script, device, &mebibytes.to_string()])
    }

    /// Fills some of a device with chance.
    pub(crate) fn fill(&self, device: &str, mebibytes: u64) -> Result<()> {
        let of = format!("of={device}");
        let count = format!("count={mebibytes}");
        self.host
            .check(["dd", "if=/dev/urandom", &of, "bs=1M", &count, "oflag=direct", "status=none"])
            .map(drop)
    }
}
