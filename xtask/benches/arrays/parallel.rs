//! Many wishes at once.

use std::time::Instant;

use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};

use crate::table::{Bar, Row, Table};
use crate::world::{Vendor, World, milliseconds};
use crate::{LATENCY, Result, Setting};

const AT_ONCE: usize = 16;

pub(crate) async fn measure(setting: &Setting, vendor: Vendor, table: &mut Table) -> Result<()> {
    let creates = if setting.quick { 48 } else { 200 };
    let world = World::new(setting, vendor, "parallel").await?;
    world.latency(LATENCY)?;
    let work = |at_once: usize| {
        let world = &world;
        async move {
            let start = Instant::now();
            stream::iter(0..creates)
                .map(|n| async move { world.create(&format!("{at_once} {n}"), 1 << 30).await })
                .buffer_unordered(at_once)
                .try_for_each(|_| async { Ok(()) })
                .await?;
            Ok::<_, Box<dyn std::error::Error>>(milliseconds(start.elapsed()))
        }
    };
    work(1).await?; // Warms up.
    let (mut ratios, mut spent) = (Vec::new(), (0.0, 0.0));
    for _ in 0..if setting.quick { 1 } else { 3 } {
        let (one, many) = (work(1).await?, work(AT_ONCE).await?);
        ratios.push(one / many);
        spent = (one, many);
    }
    // A group allows seven sessions, each with one command at a time.
    let (bar, cap) = match vendor {
        Vendor::TrueNas => (8.0, ""),
        Vendor::EqualLogic => (5.6, "; 80 % of the seven sessions that a group allows"),
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
        note: format!("{:.0} ms, {:.0} ms{cap}", spent.0, spent.1),
    });
    world.close().await;
    Ok(())
}
