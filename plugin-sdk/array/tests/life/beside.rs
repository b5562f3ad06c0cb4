//! Two sessions of one SR, as of two hosts, within the time in which reads may be stale.

use super::*;

fn named(name: Option<&str>, description: Option<&str>) -> VdiUpdate {
    VdiUpdate {
        vdi: vdi(1),
        name: name.map(str::to_owned),
        description: description.map(str::to_owned),
        vdi_type: None,
        read_only: None,
        keys: BTreeMap::new(),
        incomplete: None,
    }
}

/// Waits until a session that has written nothing is told so.
async fn shown(sr: &Sr, as_it_is: impl Fn(&VdiInfo) -> bool) -> Result<VdiInfo> {
    let reader = sr.host.open::<Driver>(sr.uuid, &[("target", sr.target.as_str())]).await?;
    let end = std::time::Instant::now() + Duration::from_secs(5);
    loop {
        match reader.call(VdiStat::of(vdi(1))).await {
            Ok(found) if as_it_is(&found) => return Ok(found),
            other => assert!(std::time::Instant::now() < end, "it is never shown: {other:?}"),
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[test]
fn what_another_session_has_written_since_is_seen_and_not_undone() {
    for (name, habits) in habits() {
        let done = run(async {
            let sr = Sr::new(habits, false).await?;
            sr.driver.call(SrCreate { name: "sr".into(), description: String::new() }).await?;
            sr.driver.call(SrAttach {}).await?;
            sr.driver.call(create(1, MIB)).await?;
            sr.driver.call(named(Some("first"), None)).await?;
            shown(&sr, |found| found.name == "first").await?;
            let other = sr.host.open::<Driver>(sr.uuid, &[("target", sr.target.as_str())]).await?;
            other.call(named(Some("theirs"), None)).await?;
            shown(&sr, |found| found.name == "theirs").await?;
            assert_eq!(sr.listed().await?[&vdi(1)].name, "theirs", "{name}");
            sr.driver.call(named(None, Some("ours"))).await?;
            let found = shown(&sr, |found| found.description == "ours").await?;
            assert_eq!(found.name, "theirs", "{name}");
            Ok(())
        });
        done.unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}
