//! Listing an SR of many volumes.

use std::time::Instant;

use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use sm_core::Op;

use crate::table::{Bar, Row, Table};
use crate::world::{Vendor, World, milliseconds, number};
use crate::{LATENCY, Result, Setting};

/// Objects that one answer brings to the driver; a PS group's listing is one, whatever it has.
const PAGE: usize = 1000;

pub(crate) async fn measure(setting: &Setting, vendor: Vendor, table: &mut Table) -> Result<()> {
    let volumes: usize = if setting.quick { 250 } else { 2500 };
    let world = World::new(setting, vendor, "list").await?;
    let names = (0..volumes).map(|n| format!("disk {n}"));
    stream::iter(names)
        .map(|name| {
            let world = &world;
            async move { world.create(&name, 1 << 30).await }
        })
        .buffer_unordered(16)
        .try_for_each(|_| async { Ok(()) })
        .await?;
    let pages = match vendor {
        Vendor::EqualLogic => 1,
        // Its texts are tags, which are listed by themselves.
        Vendor::PureStorage => 2 * volumes.div_ceil(PAGE),
        _ => volumes.div_ceil(PAGE),
    };
    world.latency(LATENCY)?;
    world.sr.detach(&Op::new()).await?;
    world.sr.attach(&Op::new()).await?;
    for first in [true, false] {
        let (mut requests, mut times) = (Vec::new(), Vec::new());
        for _ in 0..if first { 1 } else { 5 } {
            world.asked();
            let start = Instant::now();
            let found = world.sr.vdis(&Op::new()).await?.len();
            times.push(milliseconds(start.elapsed()));
            requests.push(number(world.asked().len()));
            if found != volumes {
                return Err(format!("{found} disks are listed, there are {volumes}").into());
            }
        }
        let when = if first { "first after an attach of the SR" } else { "any other" };
        // A group lists no descriptions: its first listing asks for each.
        let has_bar = !first || vendor != Vendor::EqualLogic;
        table.push(Row {
            name: format!("{}: list of {volumes} volumes, {when}, requests", vendor.name()),
            unit: "",
            ours: requests,
            peer: None,
            bar: has_bar.then(|| Bar::Most(3.0 + number(pages))),
            note: format!("3 and {pages} pages"),
        });
        table.push(Row {
            name: format!("{}: list of {volumes} volumes, {when}", vendor.name()),
            unit: "ms",
            ours: times,
            peer: None,
            bar: None,
            note: String::new(),
        });
    }
    world.close().await;
    Ok(())
}
