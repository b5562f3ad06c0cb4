//! A guest: whoever holds an attached disk and writes to it.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use datapath::nbd::client::{Client, Options};
use datapath::nbd::uri::Uri;
use serde_json::Value;

use super::member;
use crate::failure::{Doing, Failure, Result};

/// What a guest writes at a time: it touches what changed and leaves the rest alone.
const PIECE: usize = 64 << 10;

/// Writes into the disk that `smctl vdi attach` answered whatever is different in `wanted`, as a virtual
/// machine does: through the data path that serves it. Says how much was written.
pub(super) fn write(attached: &Value, wanted: &Path) -> Result<String> {
    let access = member(attached, "/access/0")?;
    let way = member(access, "/type")?;
    if way != "nbd" {
        return Err(Failure::new(format!("the disk is reached by {way}, and this guest by NBD")));
    }
    let uri = member(access, "/uri")?;
    let text = uri.as_str().unwrap_or_default();
    let uri: Uri = text.parse().doing(|| format!("read the address {text:?}"))?;
    let disk = Client::connect(&uri, &Options::default()).doing(|| format!("connect to {text}"))?;
    let source = File::open(wanted).doing(|| format!("open {}", wanted.display()))?;

    let (mut old, mut new) = (vec![0; PIECE], vec![0; PIECE]);
    let mut written = 0;
    for at in (0..disk.size()).step_by(PIECE) {
        let length = (disk.size() - at).min(PIECE as u64) as usize;
        let (old, new) = (&mut old[..length], &mut new[..length]);
        source.read_exact_at(new, at).doing(|| format!("read {}", wanted.display()))?;
        disk.read(at, old).doing(|| "read the attached disk".to_owned())?;
        if old != new {
            disk.write(at, new, false).doing(|| "write to the attached disk".to_owned())?;
            written += length;
        }
    }
    disk.flush().doing(|| "flush the attached disk".to_owned())?;
    disk.close();
    Ok(format!("{} KiB, over NBD", written >> 10))
}
