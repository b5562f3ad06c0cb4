//! A guest: whoever holds an attached disk and writes to it.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use serde_json::Value;
use vhd::{Chain, Disk as _, Layer, Mode};

use super::member;
use crate::failure::{Doing, Failure, Result};

/// What a guest writes at a time: it touches what changed and leaves the rest alone.
const PIECE: usize = 64 << 10;

/// Writes into the disk that `smctl vdi attach` answered whatever is different in `wanted`. The
/// files and formats are those of the answer, nothing is looked for. Says how much was written.
pub(super) fn write(attached: &Value, wanted: &Path) -> Result<String> {
    let access = member(attached, "/access/0")?;
    let way = member(access, "/type")?;
    if way != "file" {
        return Err(Failure::new(format!("the disk is reached by {way}, and this guest by files")));
    }
    let mut images = vec![image(access)?];
    for backing in access.get("backing").and_then(Value::as_array).into_iter().flatten() {
        images.push(image(backing)?);
    }
    let layers: Vec<Layer<'_>> = images
        .iter()
        .map(|(path, format)| if format == "vhd" { Layer::Vhd(path) } else { Layer::Raw(path) })
        .collect();
    let doing = || "open the attached disk".to_owned();
    let disk = Chain::open(&layers, Mode::Write).doing(doing)?;
    let source = File::open(wanted).doing(|| format!("open {}", wanted.display()))?;

    let (mut old, mut new) = (vec![0; PIECE], vec![0; PIECE]);
    let mut written = 0;
    for at in (0..disk.size()).step_by(PIECE) {
        let length = (disk.size() - at).min(PIECE as u64) as usize;
        let (old, new) = (&mut old[..length], &mut new[..length]);
        source.read_exact_at(new, at).doing(|| format!("read {}", wanted.display()))?;
        disk.read_at(at, old).doing(|| "read the attached disk".to_owned())?;
        if old != new {
            disk.write_at(at, new).doing(|| "write to the attached disk".to_owned())?;
            written += length;
        }
    }
    disk.flush().doing(|| "flush the attached disk".to_owned())?;
    Ok(format!("{} KiB, through a chain of {}", written >> 10, images.len()))
}

/// Path and format of an image of the answer.
fn image(document: &Value) -> Result<(PathBuf, String)> {
    let text = |pointer| {
        let text = member(document, pointer)?.as_str();
        text.ok_or_else(|| Failure::new(format!("{pointer} is no text")).cause(document))
    };
    Ok((text("/path")?.into(), text("/format")?.to_owned()))
}
