//! A volume of 40 GB, 7 of them used, is cloned.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use sm_core::Op;

use crate::table::{Bar, Row, Table, amount};
use crate::world::{Vendor, World};
use crate::{LATENCY, Result, Setting};

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;

pub(crate) async fn measure(setting: &Setting, vendor: Vendor, table: &mut Table) -> Result<()> {
    let world = World::new(setting, vendor, "clone").await?;
    // Where a clone shares its pages, how many there are changes nothing: one array shows that.
    let whole = matches!(vendor, Vendor::TrueNas | Vendor::EqualLogic) && !setting.quick;
    let used = if whole { 7 * GIB } else { 256 * MIB };
    let disk = world.create("server", 40 * GIB).await?;
    let (array, volume) = (world.array.clone(), world.volume(&disk)?);
    let target = volume.clone();
    tokio::task::spawn_blocking(move || {
        let piece = vec![7; MIB as usize];
        // All over the volume, as a guest's files are.
        let pieces = used / MIB;
        let stride = 40 * GIB / pieces / MIB * MIB;
        (0..pieces).try_for_each(|n| array.write(&target, n * stride, &piece))
    })
    .await??;
    world.latency(LATENCY)?;
    let space = || Ok::<_, Box<dyn std::error::Error>>(world.array.space(vendor.pool())?.used);
    let before = space()?;
    let (steps, seen) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let (count, last) = (Arc::clone(&steps), Arc::clone(&seen));
    let op = Op::new().with_budget(Duration::from_secs(600)).with_progress(Arc::new(
        move |permille, _: &str| {
            // Two places with the same figure are one for a user.
            if last.swap(permille, Ordering::Relaxed) != permille {
                count.fetch_add(1, Ordering::Relaxed);
            }
        },
    ));
    let start = Instant::now();
    let clone = world.sr.vdi_clone(&op, disk.uuid, "second", "").await?.vdi;
    let took = start.elapsed().as_secs_f64();
    if clone.virtual_size.0 < 40 * GIB || !world.array.logins(None).is_empty() {
        return Err("the clone is not whole, or this host has read or written a LUN".into());
    }
    let what = format!("{}: clone of 40 GiB, {} MiB used", vendor.name(), used / MIB);
    let row = |name: &str, unit, ours: f64, bar, note: &str| Row {
        name: format!("{what}{name}"),
        unit,
        ours: vec![ours],
        peer: None,
        bar,
        note: note.to_owned(),
    };
    let copied = amount(space()?.saturating_sub(before)) / amount(MIB);
    if vendor == Vendor::EqualLogic {
        let most = amount(used) / amount(MIB) + 1.0;
        let note = "0 bytes through this host; the simulator's own copying";
        table.push(row("", "s", took, None, note));
        table.push(row(
            ", copied by the array",
            "MiB",
            copied,
            Some(Bar::Most(most)),
            "used pages",
        ));
        let shown = f64::from(steps.load(Ordering::Relaxed));
        let bar = (!setting.quick).then_some(Bar::Least(3.0));
        table.push(row(", steps of progress shown", "", shown, bar, ""));
    } else {
        table.push(row("", "s", took, Some(Bar::Most(1.0)), "0 bytes through this host"));
        table.push(row(", new pages", "MiB", copied, Some(Bar::Most(0.0)), "copy-on-write"));
    }
    world.close().await;
    Ok(())
}
