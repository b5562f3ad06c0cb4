//! Space for snapshots, thick and thin, access by CHAP, and full pools.

use array_matrix::host::IQN;
use array_sim::core::{Depletion, Volume};
use plugin_sdk::prelude::*;
use plugin_sdk::testing::TestHost;

use crate::support::{
    CHAP, Fixture, MIB, PASSWORD, Ps, Sr, counts, create, name, run, snapshot, vdi,
};

fn with(n: u32, keys: &[(&str, &str)]) -> VdiCreate {
    let keys = keys.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    VdiCreate { keys, ..create(n, 30 * MIB) }
}

#[test]
fn a_volume_is_as_its_sr_or_its_own_keys_say() {
    run(async {
        let mut fixture = Fixture::new();
        fixture.extra.push(("snap-reserve-percentage", "50".into()));
        let mut sr = fixture.sr().await?;
        sr.until_done(SrCreate::default()).await?;
        sr.until_done(create(1, 30 * MIB)).await?;
        let own = [
            ("allocation", "thick"),
            ("snap-reserve-percentage", "200"),
            ("snap-depletion", "delete-oldest"),
        ];
        sr.until_done(with(2, &own)).await?;
        let view = sr.simulated.array.current();
        let volume = |n| view.get::<Volume>(&name(n)).unwrap();
        let half = Some((15 * MIB, Depletion::VolumeOffline));
        assert_eq!((volume(1).thick, volume(1).snapshot_reserve), (false, half));
        let twice = Some((60 * MIB, Depletion::DeleteOldest));
        assert_eq!((volume(2).thick, volume(2).snapshot_reserve), (true, twice));
        for (key, value, number) in
            [("snap-reserve-percentage", "ten", 165), ("snap-depletion", "hope", 166)]
        {
            counts(&sr.simulated);
            let error = sr.driver.call(with(3, &[(key, value)])).await.unwrap_err();
            assert_eq!(error.legacy_code(), number, "{error}");
            assert!(!error.to_string().contains(value));
            assert!(counts(&sr.simulated).is_empty(), "nothing was asked");
        }
        Ok(())
    })
    .unwrap();
}

/// `volume-offline` keeps every snapshot; `delete-oldest` keeps the volume.
#[test]
fn what_happens_when_the_reserve_is_used_up_is_chosen() {
    run(async {
        let mut sr = Fixture::new().sr().await?;
        sr.until_done(SrCreate::default()).await?;
        for (n, depletion) in [(1, "volume-offline"), (2, "delete-oldest")] {
            let keys = [("snap-reserve-percentage", "5"), ("snap-depletion", depletion)];
            sr.until_done(with(n, &keys)).await?;
            let (name, array) = (name(n), sr.simulated.array.clone());
            let write = |content: u8| array.write(&name, 0, &vec![content; 4 * MIB as usize]);
            write(1).unwrap();
            sr.until_done(snapshot(n, 4 + n)).await?;
            // More than 5 % of 30 MiB is written anew.
            let written = write(2);
            assert_eq!(written.is_ok(), n == 2, "{depletion}");
        }
        let listed = sr.listed().await?;
        assert!(listed.contains_key(&vdi(5)) && !listed.contains_key(&vdi(6)));
        // Without a reserve there is no snapshot: SMAPI's 167.
        sr.until_done(with(3, &[("snap-reserve-percentage", "0")])).await?;
        let error = sr.driver.call(snapshot(3, 9)).await.unwrap_err();
        assert_eq!((error.kind.clone(), error.legacy_code()), (Kind::NoSpace, 167), "{error}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_full_pool_is_said_to_be_full() {
    run(async {
        let mut sr = Fixture::with(&[], 300 * MIB).sr().await?;
        sr.until_done(SrCreate::default()).await?;
        let error = sr
            .driver
            .call(with(1, &[("allocation", "thick")]))
            .await
            .map(drop)
            .map_or_else(Some, |()| None);
        assert!(error.is_none(), "{error:?}");
        let large =
            VdiCreate { virtual_size: Bytes(600 * MIB), ..with(2, &[("allocation", "thick")]) };
        let error = sr.driver.call(large).await.unwrap_err();
        assert_eq!((error.kind.clone(), error.legacy_code()), (Kind::NoSpace, 44), "{error}");
        let stat = sr.driver.call(SrStat {}).await?;
        assert_eq!((stat.physical_size, stat.vdis), (Bytes(300 * MIB), 1));
        Ok(())
    })
    .unwrap();
}

/// A record names the initiator and the CHAP account; a second host gets one of its own, and a third
/// one's stays what it is.
#[test]
fn access_is_for_the_hosts_that_attach() {
    run(async {
        let mut fixture = Fixture::new();
        let chap = [("chapuser", "vms".to_owned()), ("chappassword", CHAP.to_owned())];
        fixture.extra.extend(chap);
        let mut sr = fixture.sr().await?;
        sr.until_done(SrCreate::default()).await?;
        sr.until_done(create(1, 30 * MIB)).await?;
        let attach = VdiAttach { vdi: vdi(1), mode: AttachMode::ReadWrite };
        let exports = |sr: &Sr| {
            use array_sim::core::Vendor as _;
            array_sim::equallogic::PsGroup.exports(&sr.simulated.array.current())
        };
        sr.until_done(attach.clone()).await?;
        let one = exports(&sr).remove(0);
        assert_eq!(one.chap, Some(("vms".to_owned(), CHAP.to_owned())));
        assert!(one.who.lets(IQN) && !one.who.lets("iqn.2004-01.example:h2"));
        // Twice is once.
        sr.until_done(attach.clone()).await?;
        // Another host of the pool, with a name that the array shows on two lines.
        let long = "iqn.1993-08.org.debian:01:a-very-long-name-of-a-host";
        let mut config = sr.simulated.config.clone();
        config.push(("initiator", long.to_owned()));
        let second = array_matrix::sr::open::<Ps, false>(&TestHost::new(), &config).await?;
        second.call(attach).await?;
        let both = exports(&sr).remove(0);
        assert!(both.who.lets(IQN) && both.who.lets(long));
        let error = sr.driver.call(VdiDestroy { vdi: vdi(1) }).await.unwrap_err();
        assert_eq!((error.kind.clone(), error.legacy_code()), (Kind::InUse, 24));
        // A destroy detaches from this host first, and the other one's access stays.
        assert!(error.message.ends_with(&format!("hosts: {long}")), "{error}");
        sr.until_done(VdiDetach { vdi: vdi(1) }).await?;
        let other = exports(&sr).remove(0);
        assert!(other.who.lets(long) && !other.who.lets(IQN));
        second.call(VdiDetach { vdi: vdi(1) }).await?;
        assert_eq!(exports(&sr), []);
        let everything = format!("{:?} {:?}", sr.host.logs(), sr.simulated.array.requests().all());
        assert!(!everything.contains(CHAP) && !everything.contains(PASSWORD));
        Ok(())
    })
    .unwrap();
}
