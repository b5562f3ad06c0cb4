//! Who uses a disk: `<vdi>.<host>.use` while it is attached there, `<vdi>.writer` while a host writes
//! it, with the host's name in it. Both outlive the process.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use plugin_sdk::model::host::{DatapathPause, DatapathPaused, DatapathRefresh};
use plugin_sdk::prelude::*;
use plugin_sdk::tokio::sync::MutexGuard;

use crate::store::Store;

/// Long enough for another one to come between.
const MOMENT: Duration = Duration::from_millis(10);

impl Store {
    fn use_here(&self, vdi: VdiUuid) -> Utf8PathBuf {
        self.folder.join(format!("{vdi}.{}.use", self.host))
    }

    /// The hosts that a disk is attached on.
    pub(crate) fn uses(&self, vdi: VdiUuid) -> Result<Vec<String>> {
        let start = format!("{vdi}.");
        let entries = self.folder.read_dir_utf8()?.collect::<io::Result<Vec<_>>>()?;
        let hosts = entries
            .iter()
            .filter_map(|entry| entry.file_name().strip_prefix(&start)?.strip_suffix(".use"));
        Ok(hosts.map(str::to_owned).collect())
    }

    /// The host that writes a disk.
    fn writer(&self, vdi: VdiUuid) -> Option<String> {
        fs::read_to_string(self.path(vdi, "writer")).ok()
    }

    /// What it is called in a lock.
    fn me(&self) -> String {
        if self.is("lock-of-a-process") {
            return format!("{}/{}", self.host, std::process::id());
        }
        self.host.clone()
    }

    /// Error kind `in_use` for a disk that another host writes: it cannot be stopped from here.
    pub(crate) fn refuse_elsewhere(&self, vdi: VdiUuid) -> Result<()> {
        self.writer(vdi).map_or(Ok(()), |writer| self.refuse_another(vdi, &writer))
    }

    /// Has the data path of this host stop, if it writes a disk. It goes on when it is told, and at the
    /// end of the call.
    pub(crate) async fn stop_writing(&self, cx: &Cx, vdi: VdiUuid) -> Result<()> {
        if self.writer(vdi) != Some(self.me()) {
            return Ok(());
        }
        let operation = Some(cx.operation_id());
        let request = DatapathPause { vdis: vec![vdi], lock: None, close: false, operation };
        cx.request::<DatapathPaused>("datapath.pause", &request).await.map(drop)
    }

    /// Has it go on with the image, which is the same.
    pub(crate) async fn go_on(&self, cx: &Cx, vdi: VdiUuid) -> Result<()> {
        if self.writer(vdi) != Some(self.me()) {
            return Ok(());
        }
        let request = DatapathRefresh { vdi, access: vec![self.access(vdi)] };
        cx.request::<serde_json::Value>("datapath.refresh", &request).await.map(drop)
    }

    fn refuse_another(&self, vdi: VdiUuid, writer: &str) -> Result<()> {
        if writer == self.me() {
            return Ok(());
        }
        let text = format!("VDI {vdi} is being written by host {writer}");
        Err(Error::new(Kind::InUse, text).context("vdi", vdi))
    }

    /// Whether a note of a use is about a disk that is gone.
    pub(crate) fn is_idle(&self, name: &str) -> bool {
        let ours = matches!(Utf8Path::new(name).extension(), Some("use" | "writer"));
        let vdi = name.split('.').next().and_then(|uuid| uuid.parse::<VdiUuid>().ok());
        ours && vdi.is_some_and(|vdi| !self.path(vdi, "json").exists())
    }

    pub(crate) fn forget_uses(&self, vdi: VdiUuid) -> Result<()> {
        for host in self.uses(vdi)? {
            files::remove(&self.folder.join(format!("{vdi}.{host}.use")))?;
        }
        files::remove(&self.path(vdi, "writer"))?;
        Ok(())
    }

    pub(crate) fn attach(&self, vdi: VdiUuid, writes: bool) -> Result<VdiAttached> {
        let path = self.path(vdi, "raw");
        if self.is("descriptors") && writes {
            let file = File::open(&path)?;
            self.memory().open.push(file);
        }
        let begun = self.path(vdi, "attaching");
        if self.is("attach-half") && File::create_new(&begun).is_err() {
            return Err(Error::new(Kind::InUse, format!("VDI {vdi} is being attached")));
        }
        let here = self.use_here(vdi);
        let before = if self.is("attach-counts") { fs::read(&here).ok() } else { None };
        fs::write(&here, [before.unwrap_or_default().as_slice(), b"1"].concat())?;
        step!("vdi_attach.noted");
        if self.is("attach-half") {
            files::remove(&begun)?;
        }
        Ok(VdiAttached { access: vec![self.access(vdi)] })
    }

    fn access(&self, vdi: VdiUuid) -> Access {
        Access::File {
            path: self.path(vdi, "raw"),
            format: ImageFormat::Raw,
            backing: vec![],
            changes: None,
            shut_out: None,
        }
    }

    pub(crate) async fn activate(&self, request: &VdiActivate) -> Result<()> {
        let vdi = request.vdi;
        let info = self.read(vdi)?;
        let reads = request.mode == AttachMode::ReadOnly && !self.is("readers-lock");
        if reads {
            return Ok(());
        }
        if info.sharable {
            return self.unshare(vdi);
        }
        let writer = self.path(vdi, "writer");
        if self.is("lock-looked-at-first") {
            self.refuse_elsewhere(vdi)?;
            plugin_sdk::tokio::time::sleep(MOMENT).await;
            return Ok(fs::write(&writer, self.me())?);
        }
        // A link is made once, whoever else tries. One that was there and is gone when it is read was
        // given back in between: nobody has the disk then, this host neither.
        let mine = self.folder.join(format!("{vdi}.{}.new", self.host));
        fs::write(&mine, self.me())?;
        let locked = loop {
            match fs::hard_link(&mine, &writer) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    if let Some(writer) = self.writer(vdi) {
                        break self.refuse_another(vdi, &writer);
                    }
                }
                other => break Ok(other?),
            }
        };
        files::remove(&mine)?;
        step!("vdi_activate.locked");
        locked?;
        self.unshare(vdi)
    }

    pub(crate) fn deactivate(&self, vdi: VdiUuid) -> Result<()> {
        if self.is("deactivate-wipes")
            && let Ok(file) = OpenOptions::new().write(true).open(self.path(vdi, "raw"))
        {
            file.write_all_at(&[0; 4096], 0)?;
        }
        let writer = self.path(vdi, "writer");
        if self.writer(vdi) != Some(self.me()) && !self.is("anyone-unlocks") {
            return Ok(());
        }
        let ending = self.path(vdi, "ending");
        if self.is("detach-half") {
            fs::write(&ending, "")?;
        }
        let next = self.uses(vdi)?.into_iter().find(|host| *host != self.host);
        match next {
            Some(next) if self.is("handover-sticks") => fs::write(&writer, next)?,
            _ => drop(files::remove(&writer)?),
        }
        step!("vdi_deactivate.unlocked");
        if self.is("detach-half") {
            files::remove(&ending)?;
        }
        Ok(())
    }

    pub(crate) fn detach(&self, vdi: VdiUuid) -> Result<()> {
        let here = self.use_here(vdi);
        if self.is("detach-unlocks") {
            files::remove(&self.path(vdi, "writer"))?;
        }
        if self.is("attach-counts")
            && let Ok(uses) = fs::read(&here)
            && uses.len() > 1
        {
            return Ok(fs::write(&here, vec![b'1'; uses.len() - 1])?);
        }
        let gone = files::remove(&here)? == Changed::Already;
        if gone && self.is("detach-once") {
            return Err(Error::not_found(format!("VDI {vdi} is not attached")));
        }
        step!("vdi_detach.forgotten");
        Ok(())
    }

    /// Both locks, in an order that only one defect has; whoever comes from the other side waits for
    /// ever.
    pub(crate) async fn crosswise(&self, first: usize) -> Vec<MutexGuard<'_, ()>> {
        let mut held = Vec::new();
        if self.is("hang-by-order") {
            for lock in self.locks.iter().cycle().skip(first).take(2) {
                held.push(lock.lock().await);
                plugin_sdk::tokio::time::sleep(MOMENT).await;
            }
        }
        held
    }
}
