//! Hosts that are shut out of an SR: what the LUN and the store are told, and the way back.
//!
//! Each host that has the SR attached is registered on the LUN, which keeps nobody from anything. To
//! shut one out, its registration is taken, and the LUN reserved for those who have one
//! ([`host_kit::reservation`]). The reservation ends when nobody is shut out any more.

use host_kit::reservation::{Key, Lun, Support};
use plugin_sdk::model::sr::{SrFence, SrFenced};
use plugin_sdk::model::{Kind, SrUuid};
use plugin_sdk::{Cx, Error, Result, step, tracing};
use vhd_lvm::{Disks, Fence, Hosts};

use crate::LvmOIscsiDriver;

/// The driver's own note of why no host can be shut out.
const TROUBLE: &str = "no_reservations";

impl LvmOIscsiDriver {
    /// Lets this host write: registers it, and lets it in again if it was shut out. Whether the SR has
    /// its store. Error kind `fenced` if something of the SR is in use here, of before.
    pub(crate) async fn join(&self, cx: &Cx, device: &str) -> Result<bool> {
        let fences = self.images_on(cx, device.to_owned(), |disks, _| disks.fences()).await?;
        let own = &cx.host().0;
        let (ours, others): (Vec<Fence>, Vec<Fence>) =
            fences.iter().flatten().cloned().partition(|fence| fence.host == *own);
        if let Some(fence) = ours.first()
            && let Some(volume) = self.on(device.to_owned()).active_volumes().first()
        {
            return Err(fence.error().context("volume", volume));
        }
        let lun = Lun::new(cx, &self.lun.id)?;
        let support = lun.support().await;
        let registered = match &support {
            Ok(Support::Full { lasting }) => {
                cx.kv().remove(TROUBLE).await?;
                lun.register(Key::of_host(own), *lasting).await
            }
            Ok(Support::None(why)) => cx.kv().put(TROUBLE, why).await,
            Err(error) => Err(error.clone()),
        };
        if let Err(error) = registered {
            // It can be written as long as nobody is shut out.
            tracing::warn!(%error, "this host is not registered on the LUN");
        }
        if !ours.is_empty() {
            self.images_on(cx, device.to_owned(), Disks::let_in).await?;
            if matches!(support, Ok(Support::Full { .. })) && others.is_empty() {
                lun.release(Key::of_host(own)).await?;
            }
        }
        Ok(fences.is_some())
    }

    /// Ends what [`Self::join`] began. While somebody is shut out, this host stays registered: the
    /// reservation goes with the last one. A LUN that does not answer is told nothing.
    pub(crate) async fn leave(&self, cx: &Cx) {
        let left = async {
            let Ok(lun) = Lun::new(cx, &self.lun.id) else { return Ok(()) };
            if !lun.keys().await?.contains(&Key::of_host(&cx.host().0)) {
                return Ok(());
            }
            if lun.is_reserved().await? {
                match self.images(cx, |disks, _| disks.fences()).await {
                    Ok(Some(fences)) if !fences.is_empty() => return Ok(()),
                    // The SR is destroyed.
                    Err(error) if error.kind != Kind::NotFound => return Err(error),
                    _ => {}
                }
            }
            lun.unregister().await
        };
        let left: Result<()> = left.await;
        if let Err(error) = left {
            tracing::warn!(%error, "this host stays registered on the LUN, which is no harm");
        }
    }

    /// Shuts another host out.
    pub(crate) async fn shut_out(&self, cx: &Cx, request: SrFence) -> Result<SrFenced> {
        let (own, other) = (cx.host().0.clone(), request.host.0);
        Fence::refuse_itself(cx, &other)?;
        let look = self.images(cx, |disks, _| Ok((disks.hosts()?, disks.fences()?)));
        let (hosts, fences) = look.await?;
        if let Some(fence) = fences.iter().flatten().find(|fence| fence.host == own) {
            // It would be registered again by what follows, with all that it has in use.
            return Err(fence.error());
        }
        if !hosts.known.contains(&other) {
            return Err(Fence::unknown(self.sr, &other, &hosts.known));
        }
        let lun = Lun::new(cx, &self.lun.id)?;
        let mut reason = None;
        match lun.support().await? {
            Support::None(why) => reason = Some(why),
            Support::Full { lasting } => {
                lun.register(Key::of_host(&own), lasting).await?;
                self.take_key(&lun, &hosts, &own, &other).await?;
            }
        }
        let enforced = reason.is_none();
        let done = self.images(cx, move |disks, cx| disks.fence(cx, &other, enforced)).await?;
        let (changed, epoch, vdis) = (done.changed, done.fence.epoch, done.vdis);
        Ok(SrFenced { changed, epoch, vdis, enforced, reason })
    }

    /// Takes a host's key from it, unless that would hit a third one.
    async fn take_key(&self, lun: &Lun<'_>, hosts: &Hosts, own: &str, other: &str) -> Result<()> {
        let keys = lun.keys().await?;
        let is_left_out = |host: &&String| **host != other && !keys.contains(&Key::of_host(host));
        if let Some(third) = hosts.open.iter().find(is_left_out) {
            return Err(not_registered(self.sr, third));
        }
        lun.shut_out(Key::of_host(own), Key::of_host(other)).await?;
        step!("sr_fence.reserved");
        Ok(())
    }

    /// What `sr stat` warns of where no host can be shut out: what the last attach found, since a
    /// path that dies would hold a question up.
    pub(crate) async fn fence_warning(&self, cx: &Cx) -> Result<Option<String>> {
        let trouble: Option<String> = cx.kv().get(TROUBLE).await?;
        Ok(trouble.map(|why| {
            format!("the storage cannot refuse what a host writes that is shut out: {why}")
        }))
    }
}

/// Its writes would be refused as well.
fn not_registered(sr: SrUuid, host: &str) -> Error {
    Error::new(
        Kind::InUse,
        format!("host {host} has disks of SR {sr} open and is not registered on its LUN"),
    )
    .hint(format!(
        "install sg3-utils there and run smctl sr attach on it; or shut {host} out first, if it is gone, too"
    ))
}
