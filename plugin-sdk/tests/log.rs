//! Events of the driver in the host's log. One test: the level is the process's.
#![allow(clippy::unwrap_used, reason = "tests")]

use plugin_sdk::prelude::*;
use plugin_sdk::testing::{self, Log};
use plugin_sdk::tracing::{self, Instrument as _, Level, debug, info, info_span, trace, warn};
use serde_json::json;

struct Chatty;

device_config! {
    struct Config {
        password: Secret,
    }
}

impl Driver for Chatty {
    type Config = Config;
    const MANIFEST: Manifest = manifest! {
        name: "chatty",
        title: "",
        operations: [vdi_stat, sr_scan],
    };

    async fn open(config: Config, _: SrUuid, _: &Cx) -> Result<Self> {
        info!(?config, "opened");
        Ok(Self)
    }

    async fn vdi_stat(&self, cx: &Cx, request: VdiStat) -> Result<VdiInfo> {
        info!(
            target: "acme::rest",
            size = 5,
            ok = true,
            ratio = 0.5,
            user_password = "rosebud",
            Authorization = "Basic cm9zZWJ1ZA==",
            "asked {}",
            "twice"
        );
        let spawned = async {
            warn!(api_token = "rosebud", "inside");
        };
        tokio::spawn(spawned.instrument(info_span!("login", user = "joe", cookie = "rosebud")))
            .await
            .unwrap();
        cx.blocking(|_| {
            info!("on a thread");
            Ok(())
        })
        .await?;
        debug!("fine");
        trace!(detail = expensive(), "finest");
        Ok(quarantined_vdi(request.vdi, ImageFormat::Raw, "test"))
    }

    async fn sr_scan(&self, _: &Cx, _: SrScan) -> Result<SrScanned> {
        assert!(!tracing::enabled!(Level::TRACE), "filtered in the library, not in the host");
        Ok(SrScanned::default())
    }
}

fn expensive() -> u32 {
    1
}

#[test]
fn events_arrive_under_their_call_filtered_and_without_secrets() -> Result<()> {
    testing::run(async {
        testing::set_log_level::<Chatty>(Some(Level::INFO));
        let sr = SrUuid::random();
        let driver = testing::open::<Chatty>(sr, &[("password", "rosebud")]).await?;
        let host = driver.host().clone();
        // Another host of the same library gets nothing of this one's calls.
        let other = testing::open::<Chatty>(SrUuid::random(), &[("password", "rosebud")]).await?;

        let vdi = VdiUuid::random();
        let call = driver.call(VdiStat::of(vdi)).start();
        let number = call.id();
        call.await?;

        let logs = host.logs();
        let find = |text: &str| -> Log {
            logs.iter()
                .find(|log| log.message == text)
                .unwrap_or_else(|| panic!("{logs:?}"))
                .clone()
        };
        assert_eq!(find("opened").call, 0);
        let asked = find("asked twice");
        assert_eq!((asked.call, asked.level, asked.target.as_str()), (number, 3, "acme::rest"));
        assert_eq!(
            asked.fields,
            json!({
                "op": "vdi_stat", "sr": sr.to_string(), "vdi": vdi.to_string(),
                "size": 5, "ok": true, "ratio": 0.5,
                "user_password": "***", "Authorization": "***",
            })
        );
        let inside = find("inside");
        assert_eq!((inside.call, inside.level), (number, 2));
        assert_eq!(inside.fields["user"], "joe");
        assert_eq!(
            (&inside.fields["cookie"], &inside.fields["api_token"]),
            (&json!("***"), &json!("***"))
        );
        assert_eq!(find("on a thread").call, number);
        assert!(logs.iter().all(|log| log.level <= 3));
        assert_eq!(other.host().logs().iter().filter(|log| log.call != 0).count(), 0);

        driver.call(SrScan::default()).await?;
        testing::set_log_level::<Chatty>(Some(Level::TRACE));
        driver.call(VdiStat::of(vdi)).await?;
        let finest = host.logs().into_iter().find(|log| log.message == "finest").unwrap();
        assert_eq!((finest.level, &finest.fields["detail"]), (5, &json!(1)));

        testing::set_log_level::<Chatty>(None);
        let before = host.logs().len();
        driver.call(VdiStat::of(vdi)).await?;
        assert_eq!(host.logs().len(), before);
        assert!(!format!("{logs:?}").contains("rosebud"));
        Ok(())
    })
}
