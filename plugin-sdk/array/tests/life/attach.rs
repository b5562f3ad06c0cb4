//! Disks are attached, and that is cut.

use crate::*;

fn attach(n: u32) -> VdiAttach {
    VdiAttach { vdi: vdi(n), mode: AttachMode::ReadWrite }
}

/// A LUN that cannot be reached is not left mapped; one that somebody may be using is.
#[test]
fn an_attach_that_fails_ends_what_it_began_and_no_more() {
    run(async {
        let mut sr = Sr::new(Habits::truenas(), false).await?;
        sr.until_done(1, SrCreate::default()).await?;
        sr.until_done(11, create(1, 64 * MIB)).await?;
        let (before, kept) = (sr.array.inventory(), sr.host.kv());
        sr.array.unreachable(true);
        let error = sr.driver.call(attach(1)).await.unwrap_err();
        assert_eq!(
            (error.kind.clone(), error.message.as_str()),
            (Kind::Unreachable, "no path leads to the LUN")
        );
        assert_eq!((sr.array.inventory(), sr.host.kv()), (before, kept));
        sr.array.unreachable(false);
        sr.driver.call(attach(1)).await?;
        let mapped = sr.array.inventory();
        sr.array.unreachable(true);
        sr.driver.call(attach(1)).await.unwrap_err();
        assert_eq!((sr.array.inventory(), sr.array.connected()), (mapped, vec![64 * MIB]));
        assert_eq!(sr.array.violations(), Vec::<String>::new());
        Ok(())
    })
    .unwrap();
}

/// The device of an attached disk follows its volume, also if the one who resized it died between.
#[test]
fn an_attached_disk_grows_with_its_volume() {
    run(async {
        let mut sr = Sr::new(Habits::equallogic(), false).await?;
        sr.until_done(1, SrCreate::default()).await?;
        sr.until_done(11, create(1, 60 * MIB)).await?;
        sr.driver.call(attach(1)).await?;
        let resize = VdiResize { vdi: vdi(1), virtual_size: Bytes(120 * MIB) };
        sr.array.unreachable(true);
        sr.driver.call(resize.clone()).await.unwrap_err();
        assert_eq!(sr.array.connected(), [60 * MIB]);
        sr.array.unreachable(false);
        assert_eq!(sr.driver.call(resize).await?.changed, Changed::Already);
        assert_eq!(sr.array.connected(), [120 * MIB]);
        sr.driver.call(VdiDetach { vdi: vdi(1) }).await?;
        assert_eq!(sr.array.connected(), Vec::<u64>::new());
        Ok(())
    })
    .unwrap();
}

/// Whoever attached has died before it was told anything, and nobody repeats it.
#[test]
fn what_a_cut_attach_left_goes_with_the_disk_or_with_the_sr() {
    for trouble in [Trouble::DiesBefore, Trouble::DiesAfter] {
        for destroys in [false, true] {
            run(async {
                let mut sr = Sr::new(Habits::powerstore(), true).await?;
                sr.until_done(1, SrCreate::default()).await?;
                sr.until_done(2, SrAttach {}).await?;
                sr.until_done(11, create(1, 64 * MIB)).await?;
                let before = sr.array.inventory();
                sr.array.trouble(1, trouble);
                tokio::select! {
                    outcome = sr.driver.call(attach(1)) => panic!("{outcome:?}"),
                    () = sr.array.died() => {}
                }
                assert_eq!(sr.array.inventory() == before, matches!(trouble, Trouble::DiesBefore));
                sr.driver = sr.host.open::<Driver>(sr.uuid, &[("target", &sr.target)]).await?;
                if destroys {
                    sr.driver.call(VdiDestroy { vdi: vdi(1) }).await?;
                } else {
                    sr.driver.call(SrDetach {}).await?;
                    assert_eq!(sr.array.inventory(), before);
                }
                let kept = sr.host.kv().into_keys().filter(|key| key.starts_with("attached"));
                assert_eq!(kept.collect::<Vec<_>>(), Vec::<String>::new());
                assert_eq!(sr.array.violations(), Vec::<String>::new());
                Ok(())
            })
            .unwrap();
        }
    }
}
