//! Many wishes at once.

use std::time::Instant;

use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;

use crate::table::{Bar, Row, Table};
use crate::world::{Vendor, World, milliseconds, number};
use crate::{LATENCY, Result, Setting};

const AT_ONCE: usize = 16;

pub(crate) async fn measure(setting: &Setting, vendor: Vendor, table: &mut Table) -> Result<()> {
    let creates = if setting.quick { 48 } else { 200 };
    let (mut ratios, mut spent, mut processor) = (Vec::new(), (0.0, 0.0), 0.0);
    for round in 0..if setting.quick { 1 } else { 3 } {
        // An array of its own, because a simulated one is slower the more it has.
        let world = World::new(setting, vendor, &format!("parallel-{round}")).await?;
        world.latency(LATENCY)?;
        let one = create(&world, creates, 1).await?;
        // The sessions that so many need are open: those of a group end when nobody uses them.
        create(&world, AT_ONCE, AT_ONCE).await?;
        let before = processor_time()?;
        let many = create(&world, creates, AT_ONCE).await?;
        processor = (processor_time()? - before) / number(creates);
        ratios.push(one / many);
        spent = (one, many);
        world.close().await;
    }
    let (bar, cap) = match vendor {
        // A group allows seven sessions, each with one command at a time.
        Vendor::EqualLogic => (5.6, "; 80 % of the seven sessions that a group allows"),
        // Ten calls of a connection are carried out at the same time; ten is the driver's own limit.
        Vendor::TrueNas | Vendor::PureStorage => (8.0, "; ten at the same time at most"),
        Vendor::PowerStore | Vendor::Ontap => (8.0, ""),
    };
    table.push(Row {
        name: format!(
            "{}: {creates} creates, {AT_ONCE} at once instead of one after the other",
            vendor.name()
        ),
        unit: "times",
        ours: ratios,
        peer: None,
        bar: Some(Bar::Least(bar)),
        note: format!(
            "{:.0} ms, {:.0} ms{cap}; {processor:.2} ms of processor time for each, the array's too",
            spent.0, spent.1
        ),
    });
    Ok(())
}

/// Creates disks, so many at once, and answers how many milliseconds that took.
async fn create(world: &World, disks: usize, at_once: usize) -> Result<f64> {
    let start = Instant::now();
    stream::iter(0..disks)
        .map(|n| async move { world.create(&format!("{at_once} {n}"), 1 << 30).await })
        .buffer_unordered(at_once)
        .try_for_each(|_| async { Ok(()) })
        .await?;
    Ok(milliseconds(start.elapsed()))
}

/// Milliseconds of processor time that this process has had.
fn processor_time() -> Result<f64> {
    let used = getrusage(UsageWho::RUSAGE_SELF)?;
    let all = used.user_time() + used.system_time();
    Ok(u32::try_from(all.num_microseconds()).map_or(f64::MAX, f64::from) / 1e3)
}
