//! Serves a disk and changes it while it is used, as its standard input says:
//!
//! ```text
//! live SOCKET raw|vhd IMAGE
//! mirror URI    copies the disk there; answered when it can be switched
//! switch        has the target complete, with the disk paused, and goes on with the disk
//! cancel        ends the mirror
//! snapshot FILE makes a new image over the leaf, and writes to that
//! merge         merges the leaf into its parent
//! converge      has the parent take the leaf's place
//! ```
//!
//! Each line is answered with `done`, or with why not. For measuring: who wants a disk served runs
//! `sm-datapath`.

use std::error::Error;
use std::io::{BufRead, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use datapath::disk::{Drive, Format, Layer, Options as DriveOptions, Plan};
use datapath::export::{Export, Exports};
use datapath::nbd::client::Options as ClientOptions;
use datapath::nbd::{Limits, Listener, Server};
use datapath::sync::{LeafMerge, Mirror, NbdTarget, Options};
use uuid::Uuid;
use vhd::image::{NewImage, ParentLink, create, probe};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// For whatever must not take for ever.
const PATIENCE: Duration = Duration::from_secs(60);

/// One disk, whatever it is called.
struct Only(Arc<Drive>);

impl Exports for Only {
    fn names(&self) -> Vec<String> {
        vec![String::new()]
    }

    fn find(&self, _name: &str) -> Option<Arc<dyn Export>> {
        Some(self.0.clone())
    }
}

/// What goes on.
enum Work {
    Nothing,
    Mirror(Mirror),
    Merge(Box<LeafMerge>),
}

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [socket, format, image] = words.as_slice() else {
        return Err("live SOCKET raw|vhd IMAGE".into());
    };
    let pending = PathBuf::from(format!("{socket}.pending"));
    let options = DriveOptions { pending: Some(pending), ..DriveOptions::default() };
    let drive = Drive::open(&plan(Path::new(image), format == "raw")?, options.clone())?;
    let server = Server::new(Arc::new(Only(drive.clone())), Limits::default());
    server.serve(Listener::Unix(UnixListener::bind(socket)?))?;
    let mut work = Work::Nothing;
    for line in std::io::stdin().lock().lines() {
        let answer = match told(&line?, &drive, &options, &mut work) {
            Ok(()) => "done".to_owned(),
            Err(error) => error.to_string().replace('\n', " "),
        };
        println!("{answer}");
        std::io::stdout().flush()?;
    }
    drop(work);
    server.stop(PATIENCE);
    Ok(drive.close(Instant::now() + PATIENCE)?)
}

fn told(line: &str, drive: &Arc<Drive>, options: &DriveOptions, work: &mut Work) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    match (line.split_once(' ').unwrap_or((line, "")), &*work) {
        (("mirror", uri), Work::Nothing) => {
            let target = NbdTarget::connect(uri.parse()?, ClientOptions::default(), true);
            let target = Arc::new(target.map_err(|failure| failure.what)?);
            let mirror = Mirror::start(drive, target, Options::default(), end)?;
            mirror.wait_ready(end)?;
            *work = Work::Mirror(mirror);
        }
        (("switch", _), Work::Mirror(mirror)) => mirror.switch(end)?.back(),
        (("cancel", _), Work::Mirror(mirror)) => {
            mirror.cancel(end)?;
            *work = Work::Nothing;
        }
        (("snapshot", path), Work::Nothing) => snapshot(drive, Path::new(path), end)?,
        (("merge", _), Work::Nothing) => {
            let merge = LeafMerge::start(drive, options, Options::default(), end)?;
            merge.wait_ready(end)?;
            *work = Work::Merge(Box::new(merge));
        }
        (("converge", _), Work::Merge(merge)) => {
            converge(merge, drive.plan(), end)?;
            *work = Work::Nothing;
        }
        _ => return Err(format!("{line:?} is not possible now").into()),
    }
    Ok(())
}

/// The images of a disk; those it is based on lie beside it.
fn plan(image: &Path, raw: bool) -> Result<Plan> {
    if raw {
        let leaf = Layer { path: image.to_owned(), format: Format::Raw };
        return Ok(Plan { leaf, backing: Vec::new(), read_only: false });
    }
    let (links, _) = vhd::folder::chain(image, vhd::folder::Parents::default())?;
    let mut layers = links.into_iter().map(|link| Layer { path: link.path, format: Format::Vhd });
    let leaf = layers.next().ok_or("no image")?;
    Ok(Plan { leaf, backing: layers.collect(), read_only: false })
}

fn snapshot(drive: &Arc<Drive>, path: &Path, end: Instant) -> Result<()> {
    let mut plan = drive.plan();
    let uuid = probe(&plan.leaf.path)?.uuid;
    let name = plan.leaf.path.file_name().and_then(|name| name.to_str()).ok_or("no name")?;
    let parent = Some(ParentLink { uuid, name: name.to_owned() });
    create(path, &NewImage { uuid: Uuid::new_v4(), size: drive.size(), parent })?;
    let leaf = Layer { path: path.to_owned(), format: Format::Vhd };
    plan.backing.insert(0, std::mem::replace(&mut plan.leaf, leaf));
    drive.flush_until_short(end)?;
    let paused = drive.pause(end)?;
    Ok(paused.replace(drive.prepare(&plan)?)?)
}

fn converge(merge: &LeafMerge, mut plan: Plan, end: Instant) -> Result<()> {
    let mut converged = merge.converge(end)?;
    let parent = plan.backing.remove(0);
    std::fs::rename(&parent.path, &plan.leaf.path)?;
    plan.leaf.format = parent.format;
    Ok(converged.switch(&plan)?)
}
