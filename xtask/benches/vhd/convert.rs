//! Raw to VHD and back, in memory.

use std::fs::File;
use std::ops::ControlFlow;

use uuid::Uuid;
use vhd::copy::{copy, flatten};
use vhd::store::Blob;
use vhd::{Chain, Layer, Mode, Raw};

use crate::images::{MIB, fill};
use crate::table::{Bar, Row, Table, amount};
use crate::{Result, Setting, qemu_img, seconds, utf8};

pub(crate) fn measure(setting: &Setting, table: &mut Table) -> Result<()> {
    let size = setting.bytes(4096 * MIB);
    let data = size / 4;
    let place = |name: &str| setting.memory.join(name);
    let (raw, image, back) = (place("raw"), place("image.vhd"), place("back"));
    let file = File::create_new(&raw)?;
    file.set_len(size)?;
    fill(size, MIB, 4 * MIB, |at, buf| Ok(Blob::write_at(&file, buf, at)?))?;
    let mut go = |_| ControlFlow::Continue(());
    let (mut ours, mut theirs) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    for _ in 0..setting.rounds(9) {
        let there = seconds(|| {
            let source = Raw::open(&raw, Mode::Read)?;
            Ok(flatten(&source, &image, Uuid::from_u128(1), &mut go)?)
        })?;
        let here = seconds(|| {
            let source = Chain::single(Layer::Vhd(&image), Mode::Read)?;
            let target = Raw::create(&back, size)?;
            Ok(copy(&source, &target, &mut go)?)
        })?;
        std::fs::remove_file(&image)?;
        std::fs::remove_file(&back)?;
        let convert = |from: (&str, &std::path::Path), to: (&str, &std::path::Path)| {
            let words = ["convert", "-f", from.0, "-O", to.0, utf8(from.1)?, utf8(to.1)?];
            qemu_img(&words)
        };
        let peer_there = seconds(|| convert(("raw", &raw), ("vpc", &image)))?;
        let peer_here = seconds(|| convert(("vpc", &image), ("raw", &back)))?;
        std::fs::remove_file(&image)?;
        std::fs::remove_file(&back)?;
        let rate = |time: f64| amount(data) / 1e9 / time;
        ours[0].push(rate(there));
        ours[1].push(rate(here));
        theirs[0].push(rate(peer_there));
        theirs[1].push(rate(peer_here));
    }
    std::fs::remove_file(&raw)?;
    let what = format!("{} of {} MiB in pieces of 1 MiB, memory", data / MIB, size / MIB);
    for ((ours, theirs), (name, bar)) in
        ours.into_iter().zip(theirs).zip([("raw to VHD", 1.0), ("VHD to raw", 1.2)])
    {
        table.push(Row {
            name: format!("convert {name}, {what}"),
            unit: "GB/s",
            ours,
            peer: Some((theirs, "qemu-img convert")),
            bar: Some(Bar::Ratio(bar)),
            note: String::new(),
        });
    }
    Ok(())
}
