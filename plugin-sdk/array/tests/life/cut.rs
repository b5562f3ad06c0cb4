//! Whoever works on a wish dies, and nobody asks again.

use crate::*;

/// Longer than the lists of any of these arrays lag.
const SHOWN: Duration = Duration::from_millis(70);

/// A wish, and the disks that are there when it was not carried out, and when it was.
struct Wish {
    name: &'static str,
    before: &'static [u32],
    after: &'static [u32],
}

const WISHES: [Wish; 4] = [
    Wish { name: "create", before: &[1], after: &[1, 2] },
    Wish { name: "snapshot", before: &[1], after: &[1, 2] },
    Wish { name: "clone", before: &[1], after: &[1, 2] },
    Wish { name: "destroy", before: &[1], after: &[] },
];

impl Wish {
    async fn call(&self, sr: &Sr) -> Result<()> {
        match self.name {
            "create" => sr.driver.call(create(2, 64 * MIB)).await.map(drop),
            "snapshot" => sr.driver.call(snapshot(1, 2)).await.map(drop),
            "clone" => sr.driver.call(clone(1, 2)).await.map(drop),
            _ => sr.driver.call(VdiDestroy { vdi: vdi(1) }).await.map(drop),
        }
    }
}

/// The next attach of the SR finishes what was begun or takes it back: each disk that is listed then is
/// whole, and when all are destroyed the array has what it had.
#[test]
fn what_nobody_asks_for_again_is_whole_or_gone_after_an_attach() {
    for (name, habits) in habits() {
        for wish in &WISHES {
            for trouble in [Trouble::DiesBefore, Trouble::DiesAfter] {
                let mut change = 1;
                while run(cut(name, habits.clone(), wish, trouble, change)).unwrap() {
                    change += 1;
                }
                assert!(change > 1, "{name}: {} makes no change", wish.name);
            }
        }
    }
}

/// Whether there was such a change.
async fn cut(
    name: &str,
    habits: Habits,
    wish: &Wish,
    trouble: Trouble,
    change: usize,
) -> Result<bool> {
    let what = format!("{name}, {}, change {change}, {trouble:?}", wish.name);
    let mut sr = Sr::new(habits, true).await?;
    sr.until_done(1, SrCreate::default()).await?;
    sr.until_done(2, SrAttach {}).await?;
    let empty = sr.array.inventory();
    sr.until_done(3, create(1, 64 * MIB)).await?;
    sr.array.trouble(change, trouble);
    let died = tokio::select! {
        outcome = wish.call(&sr) => { outcome?; false }
        () = sr.array.died() => true,
    };
    sr.array.trouble(usize::MAX, Trouble::Refused);
    if !died {
        return Ok(false);
    }
    sr.driver = sr.host.open::<Driver>(sr.uuid, &[("target", &sr.target)]).await?;
    // A host that comes back at once would only see what the array showed before.
    tokio::time::sleep(SHOWN).await;
    sr.until_done(4, SrAttach {}).await?;
    tokio::time::sleep(SHOWN).await;
    let listed = sr.listed().await?;
    let mut there: Vec<VdiUuid> = listed.keys().copied().collect();
    there.sort();
    let either = [wish.before, wish.after].map(|side| side.iter().map(|n| vdi(*n)).collect());
    assert!(either.contains(&there), "{what}: {listed:#?}");
    for disk in listed.values() {
        assert_eq!(disk.health, Health::Ok, "{what}: {disk:?}");
    }
    // Snapshots before their source.
    for (n, disk) in there.into_iter().rev().enumerate() {
        sr.until_done(10 + u32::try_from(n).unwrap(), VdiDestroy { vdi: disk }).await?;
    }
    tokio::time::sleep(SHOWN).await;
    sr.until_done(20, SrAttach {}).await?;
    assert_eq!(sr.array.inventory(), empty, "{what}");
    assert_eq!(sr.array.violations(), Vec::<String>::new(), "{what}");
    Ok(true)
}
