//! The word that snapshots hold what they are to hold, and marks that have no room.

use crate::*;

/// A guest goes on when the host is told that the snapshots hold what they are to hold. What it writes
/// from then on is in none of them, whatever becomes of the rest of the call.
#[test]
fn what_a_guest_writes_after_the_word_is_in_no_snapshot() {
    for (name, habits) in habits() {
        for trouble in Trouble::ALL {
            if matches!(trouble, Trouble::DiesBefore | Trouble::DiesAfter) {
                continue; // Then nobody waits for the word any more, and nothing is kept.
            }
            for change in 1..=8 {
                let what = format!("{name}, change {change}, {trouble:?}");
                run(caught(&what, habits.clone(), trouble, change)).unwrap();
            }
        }
    }
}

async fn caught(what: &str, habits: Habits, trouble: Trouble, change: usize) -> Result<()> {
    let mut sr = Sr::new(habits, false).await?;
    sr.until_done(1, SrCreate::default()).await?;
    let mut wish = snapshot(1, 11);
    if sr.array.capabilities().group_snapshots {
        wish.snapshots.extend(snapshot(2, 12).snapshots);
    }
    for n in [1, 2] {
        sr.until_done(10 + n, create(n, 64 * MIB)).await?;
        sr.array.write(&volume_name(&sr, n), 50);
    }
    let words = Arc::new(AtomicU32::new(0));
    let (array, names, told) =
        (sr.array.clone(), [1, 2].map(|n| volume_name(&sr, n)), words.clone());
    let host = sr.host.clone().service("snapshot.caught", move |_| {
        told.fetch_add(1, Ordering::Relaxed);
        for name in &names {
            array.write(name, 99);
        }
        Ok(serde_json::json!({}))
    });
    sr.driver = host.open::<Driver>(sr.uuid, &[("target", sr.target.as_str())]).await?;
    sr.array.trouble(sr.array.changes() + change, trouble);
    let specs = wish.snapshots.clone();
    let outcome = sr.driver.call(wish).operation_id(op(20)).budget(Duration::from_secs(20)).await;
    sr.array.trouble(usize::MAX, Trouble::Refused);
    let words = words.load(Ordering::Relaxed);
    assert!(words <= 1, "{what}: {words} words");
    if let Err(error) = outcome {
        println!("{what}: {error}");
        return Ok(());
    }
    for (spec, n) in specs.iter().zip(31..) {
        let copy = VdiClone {
            vdi: spec.uuid,
            uuid: vdi(n),
            name: "copy".into(),
            description: String::new(),
        };
        sr.until_done(n, copy).await?;
        let content = sr.array.content(&volume_name(&sr, n));
        assert_eq!(content, [50], "{what}, told {words} times");
    }
    Ok(())
}

/// An array whose descriptions are short says before anything is taken that a set's marks have no room.
#[test]
fn a_snapshot_whose_marks_have_no_room_is_refused_before_it_is_taken() {
    for (habits, room) in [(Habits::ontap(), 254), (Habits::powerstore(), 250)] {
        run(async {
            let mut sr = Sr::new(habits, false).await?;
            sr.until_done(1, SrCreate::default()).await?;
            sr.until_done(2, create(1, 64 * MIB)).await?;
            let mark = ("sm:set".to_owned(), "XyLg8A5NT1ydC2uPax96EQqRb4/wf8".to_owned());
            let mut wish = VdiSnapshotPrepare {
                snapshots: snapshot(1, 2).snapshots,
                keys: [mark.clone()].into(),
                abandon: false,
            };
            wish.snapshots[0].name = "x".repeat(100);
            let changes = sr.array.changes();
            let error = sr.driver.call(wish.clone()).operation_id(op(3)).await.unwrap_err();
            assert_eq!(error.kind, Kind::Limit);
            let has = format!(" bytes on the array, which has room for {room}");
            assert!(error.message.starts_with("name, description and keys take "), "{error}");
            assert!(error.message.ends_with(&has), "{error}");
            assert_eq!(error.context["vdi"], vdi(1).to_string());
            assert_eq!(sr.array.changes(), changes, "nothing was asked of the array");

            // With a name that people give there is room, and the marks are kept.
            wish.snapshots[0].name = "nightly, 2026-11-22 02:00".into();
            let take = VdiSnapshot { snapshots: wish.snapshots.clone(), time: 1_700_000_000 };
            sr.until_done(4, wish).await?;
            sr.until_done(4, take).await?;
            let marked = VdiUpdate {
                vdi: vdi(2),
                name: None,
                description: None,
                vdi_type: None,
                read_only: None,
                keys: [(mark.0.clone(), Some(mark.1.clone()))].into(),
                incomplete: None,
            };
            sr.until_done(5, marked).await?;
            assert_eq!(sr.holds(&[1, 2], "marked").await?[&vdi(2)].keys[&mark.0], mark.1);
            Ok(())
        })
        .unwrap();
    }
}
