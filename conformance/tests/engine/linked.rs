//! A driver that is linked into the program, with a secret in its configuration.

use std::sync::Mutex;

use plugin_sdk::model::sr::{
    SrAttach, SrCreate, SrCreated, SrInfo, SrMaintain, SrRecovered, SrStat,
};
use plugin_sdk::model::vdi::Health;
use plugin_sdk::model::{Bytes, Changed, SrUuid};
use plugin_sdk::{Cx, Driver, Manifest, Result, Secret, manifest};
use sm_core::{NewSr, Op, StaticDriver, StorageManager};

const CANARY: &str = "canary-5f0e91";

static SEEN: Mutex<Vec<String>> = Mutex::new(Vec::new());

plugin_sdk::device_config! {
    /// How to reach nothing.
    pub struct Config {
        /// Who.
        pub username: String,
        /// What nobody may see.
        pub password: Secret,
    }
}

struct Vault {
    sr: SrUuid,
}

impl Driver for Vault {
    type Config = Config;
    const MANIFEST: Manifest = manifest! {
        name: "vault",
        title: "Keeps a secret",
        operations: [sr_create, sr_attach, sr_stat],
        services: &["secret"],
    };

    async fn open(config: Config, sr: SrUuid, _: &Cx) -> Result<Self> {
        SEEN.lock().unwrap().push(config.password.reveal().to_owned());
        plugin_sdk::tracing::info!(password = CANARY, config = ?config, "opened");
        Ok(Self { sr })
    }

    async fn sr_create(&self, cx: &Cx, _: SrCreate) -> Result<SrCreated> {
        Ok(SrCreated { changed: Changed::Created, device_config: cx.device_config().clone() })
    }

    async fn sr_attach(&self, _: &Cx, _: SrAttach) -> Result<SrRecovered> {
        Ok(SrRecovered::default())
    }

    async fn sr_stat(&self, _: &Cx, _: SrStat) -> Result<SrInfo> {
        Ok(SrInfo {
            uuid: self.sr,
            name: "vault".into(),
            description: String::new(),
            physical_size: Bytes(0),
            physical_utilisation: Bytes(0),
            virtual_allocation: Bytes(0),
            vdis: 0,
            quarantined: vec![],
            health: Health::Ok,
            usage: None,
            warnings: vec![],
            paths: None,
        })
    }
}

#[tokio::test]
async fn the_driver_gets_the_secret_and_nothing_else_keeps_it() {
    let folder = tempfile::tempdir().unwrap();
    let state = camino::Utf8PathBuf::from_path_buf(folder.path().join("state")).unwrap();
    let module = plugin_sdk::export::root_module::<Vault>();
    let text = module.manifest()().as_str();
    let linked = StaticDriver { manifest: serde_json::from_str(text).unwrap(), module };
    let open = || async {
        StorageManager::builder(&state).static_driver(linked.clone()).open().await.unwrap()
    };
    let manager = open().await;
    let config = [("username", "root"), ("password", CANARY)]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into();
    let new = NewSr { driver: "vault".into(), device_config: config, ..NewSr::default() };
    let record = manager.sr_create(&Op::new(), new).await.unwrap();
    assert_eq!(record.device_config["password"], format!("secret://{}/password", record.uuid));
    manager.close().await;
    // In another process the driver gets it again, from where it is sealed.
    let manager = open().await;
    let sr = manager.sr(&record.uuid.to_string()).unwrap();
    sr.stat(&Op::new()).await.unwrap();
    // What it does not do is refused in a sentence, before a job is made for it.
    let error = sr.maintain(&Op::new(), SrMaintain::default()).await.unwrap_err();
    assert_eq!(error.kind, sm_core::model::Kind::Unsupported);
    assert_eq!(error.message, "the driver vault does not support sr_maintain");
    let error = sr.vdi_reclaim(&Op::new(), Op::new().id.vdi(0)).await.unwrap_err();
    assert_eq!(error.message, "the driver vault does not support vdi_reclaim");
    assert_eq!(manager.jobs().unwrap().len(), 0);
    assert_eq!(*SEEN.lock().unwrap(), [CANARY, CANARY]);

    let mut holders = Vec::new();
    for file in crate::files(&state) {
        let bytes = std::fs::read(state.join(&file)).unwrap();
        if bytes.windows(CANARY.len()).any(|window| window == CANARY.as_bytes()) {
            holders.push(file);
        }
    }
    assert_eq!(holders, [format!("secrets/{}.json", record.uuid)]);
    let shown = format!("{:?} {}", sr.record(), serde_json::to_string(sr.record()).unwrap());
    assert!(!shown.contains(CANARY));
}
