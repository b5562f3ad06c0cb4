//! An array with two networks, and a host.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

use ::lab::kit::iscsi::Initiator;
use ::lab::kit::smctl::Smctl;
use ::lab::{Guest, Lab, Result, Running};
use conformance::built::artefact;
use serde_json::Value;

use super::Station;
use crate::wishes::MIB;

/// Where the array is managed, and where the simulator is.
const MANAGEMENT: u16 = 8080;
const ADMIN: u16 = 8081;
/// Says what it is told, on a connection of its own, and what it hears.
const TALK: &str = r#"exec 3<>"/dev/tcp/$0/$1" && cat >&3 && cat <&3"#;

/// Both guests, up, the array with somebody else's volume.
pub struct Place {
    /// Where the array is.
    pub nas: Guest,
    /// Where the driver is.
    pub host: Guest,
    /// The array's addresses.
    pub addresses: [Ipv4Addr; 2],
    /// What the simulator said of itself when it had started.
    pub said: Value,
    /// Name of the host's initiator.
    pub initiator: String,
    driver: &'static str,
    theirs: &'static str,
    _array: Running,
}

impl Place {
    /// Boots both, and starts the array.
    pub fn new<S: Station>(lab: &Lab) -> Result<Self> {
        // Built before any guest runs, which could read it half written.
        let library = format!("libsm_driver_{}.so", S::DRIVER);
        let [array, _, _] = ["array-sim", "smctl", &library].map(artefact);
        Self::of::<S>(lab, &array, 384)
    }

    /// As [`Place::new`], of a program that is there, and a host with so many mebibytes.
    pub fn of<S: Station>(lab: &Lab, array: &Path, memory: u64) -> Result<Self> {
        let networks = [lab.network()?, lab.network()?];
        let guest = |name| lab.guest(name).network(&networks[0]).network(&networks[1]);
        let [nas, host] = lab.boot([guest("nas"), guest("host").memory(memory)])?;
        let addresses = [nas.address(&networks[0])?, nas.address(&networks[1])?];
        let program = array.display().to_string();
        let listen = format!("{}:{MANAGEMENT}", addresses[0]);
        let luns = if S::BOTH_NETWORKS { Ipv4Addr::UNSPECIFIED } else { addresses[0] };
        let (luns, admin) = (format!("{luns}:3260"), format!("{}:{ADMIN}", addresses[0]));
        let words = std::iter::once(program.as_str()).chain(S::ARRAY.iter().copied());
        let places = ["--state", "/srv/array", "--listen", &listen, "--iscsi", &luns];
        let array = nas.command(words.chain(places).chain(["--admin", &admin])).start()?;
        Initiator::start(&host)?;
        nas.wait_for("the array", Duration::from_secs(20), |_| {
            Ok(if array.so_far().contains('\n') { Ok(()) } else { Err(array.so_far()) })
        })?;
        let said = serde_json::from_str(&array.so_far()).unwrap();
        let initiator = Initiator::name_of(&host);
        let (driver, theirs) = (S::DRIVER, S::THEIRS);
        let place = Self { nas, host, addresses, said, initiator, driver, theirs, _array: array };
        S::furnish(&place)?;
        let content = [b"precious".as_slice(); 512].concat();
        let path = format!("/content?volume={theirs}&offset=65536");
        place.talk(ADMIN, &[], "PUT", &path, &content)?;
        Ok(place)
    }

    /// Where the array is managed.
    pub fn management(&self) -> (Ipv4Addr, u16) {
        (self.addresses[0], MANAGEMENT)
    }

    /// Where the simulator is, beside what it simulates.
    pub fn admin(&self) -> (Ipv4Addr, u16) {
        (self.addresses[0], ADMIN)
    }

    /// What an administrator of the array does over HTTP; `headers` are whole lines.
    pub fn managed(
        &self,
        headers: &[&str],
        method: &str,
        path: &str,
        body: &Value,
    ) -> Result<Value> {
        let body = body.to_string();
        let answer = self.talk(MANAGEMENT, headers, method, path, body.as_bytes())?;
        Ok(serde_json::from_slice(&answer).unwrap_or_default())
    }

    /// What an operator of the simulator sees and does.
    pub fn simulator(&self, method: &str, path: &str, body: &Value) -> Result<Value> {
        let answer = self.talk(ADMIN, &[], method, path, body.to_string().as_bytes())?;
        Ok(serde_json::from_slice(&answer).unwrap())
    }

    /// What somebody else has on the array.
    pub fn theirs(&self) -> Result<Vec<u8>> {
        let path = format!("/content?volume={}&offset=0&length={MIB}", self.theirs);
        self.talk(ADMIN, &[], "GET", &path, &[])
    }

    /// All objects of the array.
    pub fn objects(&self) -> Result<Value> {
        let mut objects = self.simulator("GET", "/inventory", &Value::Null)?["objects"].take();
        for passing in ["counter", "job", "settings"] {
            objects.as_object_mut().unwrap().remove(passing);
        }
        Ok(objects)
    }

    /// The LUNs that it serves.
    pub fn exports(&self) -> Result<Value> {
        Ok(self.simulator("GET", "/inventory", &Value::Null)?["exports"].take())
    }

    fn talk(
        &self,
        port: u16,
        headers: &[&str],
        method: &str,
        path: &str,
        body: &[u8],
    ) -> Result<Vec<u8>> {
        let address = self.addresses[0];
        let headers = [headers, &[""]].concat().join("\r\n");
        let mut request = format!(
            "{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\
             content-type: application/json\r\n{headers}content-length: {}\r\n\r\n",
            body.len()
        )
        .into_bytes();
        request.extend_from_slice(body);
        let words = ["bash", "-c", TALK, &address.to_string(), &port.to_string()];
        let heard = self.nas.command(words).input(request).run()?.success()?.stdout;
        let end = heard.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
        let (head, body) = (String::from_utf8_lossy(&heard[..end]), &heard[end + 4..]);
        assert!(
            head.starts_with("HTTP/1.1 2"),
            "{method} {path}: {head}\n{}",
            String::from_utf8_lossy(body)
        );
        Ok(body.to_vec())
    }

    /// `smctl` on the host.
    pub fn smctl(&self) -> Smctl<'_> {
        Smctl::new(&self.host, artefact("smctl").display().to_string())
    }

    /// Makes an SR, with more keys in its device configuration or others.
    pub fn create<S: Station>(&self, name: &str, more: &[&str]) -> Result<String> {
        let key = |pair: &str| pair.split('=').next().map(str::to_owned);
        let mut config = S::config(self);
        config.retain(|pair| more.iter().all(|other| key(other) != key(pair)));
        let mut words = vec!["sr", "create", "--driver", self.driver, "--name", name];
        words.extend(config.iter().map(String::as_str).chain(more.iter().copied()));
        self.smctl().check(&words)
    }

    /// The device of a VDI that is attached now.
    pub fn attach(&self, vdi: &str, more: &[&str]) -> Result<String> {
        let said = self.smctl().check(&[&["vdi", "attach", vdi], more].concat())?;
        Ok(said.strip_prefix("block device ").unwrap().to_owned())
    }

    /// What `scsi_id` prints for a device.
    pub fn scsi_id(&self, device: &str) -> Result<String> {
        self.host.check(["/lib/udev/scsi_id", "--whitelisted", &format!("--device={device}")])
    }

    /// What the host has of the array in the end: sessions, disks, maps, records of targets, notes of
    /// users. `multipathd` hears of a path that is gone a while after it is.
    pub fn left(&self) -> Result<String> {
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            let left = self.left_now()?;
            if left.is_empty() || Instant::now() >= end {
                return Ok(left);
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn left_now(&self) -> Result<String> {
        let script = "ls /sys/class/iscsi_session; ls /sys/block | grep '^sd\\|^dm-'; \
                      ls /etc/iscsi/nodes; find /run/sm-iscsi -type f ! -name '.*'; true";
        self.host.check(["sh", "-c", script])
    }

    /// Sessions of the host.
    pub fn sessions(&self) -> Result<usize> {
        Ok(self.host.check(["ls", "/sys/class/iscsi_session"])?.split_whitespace().count())
    }

    /// Bytes of the host's device.
    pub fn size(&self, device: &str) -> Result<u64> {
        Ok(self.host.check(["blockdev", "--getsize64", device])?.parse().unwrap())
    }

    /// Checksum of what a device holds, read from the array.
    pub fn sum(&self, device: &str, mebibytes: u64) -> Result<String> {
        let script = "dd if=$0 bs=1M count=$1 iflag=direct status=none | sha256sum";
        self.host.check(["sh", "-c", script, device, &mebibytes.to_string()])
    }

    /// Fills some of a device with chance.
    pub fn fill(&self, device: &str, mebibytes: u64) -> Result<()> {
        let of = format!("of={device}");
        let count = format!("count={mebibytes}");
        self.host
            .check(["dd", "if=/dev/urandom", &of, "bs=1M", &count, "oflag=direct", "status=none"])
            .map(drop)
    }
}
