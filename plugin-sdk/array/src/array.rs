//! What an array can do: the trait that a vendor implements.
//!
//! The primitives are small and say what became of them ([`Outcome`]); what must be done in which
//! order, looked at before, compared and repeated is the [driver's](crate::driver). A primitive
//! sends the fewest requests that its API allows.

mod capabilities;

use std::collections::BTreeMap;
use std::future::ready;

use plugin_sdk::model::vdi::Qos;
use plugin_sdk::model::{Bytes, SrUuid};
use plugin_sdk::{Cx, Secret};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

pub use capabilities::{
    Capabilities, CloneKind, DeleteKind, GroupNaming, LunAddressing, MetadataPlace, SnapshotScope,
};

use crate::names::Role;
use crate::outcome::{Class, Failure, Outcome};
use crate::qos::QosRule;

/// Volumes to be caught at one instant.
#[derive(Clone, Copy, Debug)]
pub struct Group<'a> {
    /// Name of an object of the array's own, if it needs one: ours, and the same for a repetition.
    pub name: &'a str,
    /// The volumes, two at least.
    pub parts: &'a [Part],
}

/// One volume of a [`Group`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// The volume.
    pub volume: Volume,
    /// What its snapshot is called, see [`GroupNaming`].
    pub name: String,
    /// The snapshot's metadata, for arrays that take it along; the driver sets it otherwise.
    #[serde(skip)]
    pub metadata: String,
}

/// Which array this is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Who made it.
    pub vendor: String,
    /// Its model.
    pub model: String,
    /// Its serial number.
    pub serial: String,
    /// Version of firmware or API.
    pub version: String,
}

/// A place for volumes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pool {
    /// Its name, as the device configuration has it.
    pub name: String,
    /// Its size.
    pub size: Bytes,
    /// Bytes in use, by anybody.
    pub used: Bytes,
}

/// A place for a new SR, as a probe shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Where its volumes lie.
    pub pool: Pool,
    /// What else tells it from others, for people.
    pub more: Vec<(&'static str, String)>,
}

impl From<Pool> for Place {
    fn from(pool: Pool) -> Self {
        Self { pool, more: Vec::new() }
    }
}

/// A volume or a snapshot, as the array describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// The vendor's handle: whatever its requests need.
    pub id: String,
    /// Its name; of a snapshot within a volume the name there.
    pub name: String,
    /// Size that a host sees.
    pub size: Bytes,
    /// Bytes it takes by itself, if the array says so.
    #[serde(default)]
    pub used: Option<Bytes>,
    /// Of a snapshot: name of its volume.
    #[serde(default)]
    pub snapshot_of: Option<String>,
    /// Of a dependent clone: the [`id`](Self::id) of the snapshot it hangs on.
    #[serde(default)]
    pub origin: Option<String>,
    /// The text kept with it, if that comes with the volume.
    #[serde(default)]
    pub metadata: Option<String>,
    /// A number that grows from one snapshot of a volume to the next, such as its time.
    #[serde(default)]
    pub order: u64,
    /// What may be asked of it in a second, if the array tells that with the volume.
    #[serde(default)]
    pub qos: Qos,
    /// What is wrong with it, by the array.
    #[serde(default)]
    pub trouble: Option<String>,
}

/// A volume or snapshot to make.
#[derive(Clone, Debug)]
pub struct New<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its size; of a clone or snapshot that of its source.
    pub size: Bytes,
    /// The pool of the device configuration; none for a snapshot.
    pub pool: Option<&'a str>,
    /// Its metadata, for [`MetadataPlace::AtCreate`].
    pub metadata: &'a str,
}

/// Who reaches volumes: this host.
#[derive(Clone, Debug)]
pub struct Initiator {
    /// A name for people.
    pub host: String,
    /// The iSCSI qualified name.
    pub iqn: String,
    /// CHAP user and secret, where they are used.
    pub chap: Option<(String, Secret)>,
}

impl Initiator {
    /// A number that follows from the qualified name, for the name of its entry on an array.
    pub fn tag(&self) -> u64 {
        let digest = Sha256::digest(self.iqn.to_ascii_lowercase().as_bytes());
        digest.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes))
    }
}

/// Where a mapped volume is found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mapping {
    /// The number of the LUN.
    pub lun: u16,
    /// What `scsi_id` prints for it. The device is found by this, never by the LUN number alone.
    pub scsi_id: String,
    /// The targets, best first.
    pub targets: Vec<Target>,
}

/// An iSCSI target at a portal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// Address and port.
    pub portal: String,
    /// The iSCSI qualified name.
    pub iqn: String,
}

impl Target {
    /// At a port of an address, which may be one of IPv6.
    pub fn at(address: &str, port: u16, iqn: &str) -> Self {
        let portal = if address.contains(':') {
            format!("[{address}]:{port}")
        } else {
            format!("{address}:{port}")
        };
        Self { portal, iqn: iqn.to_owned() }
    }
}

/// The texts of volumes and snapshots, by [`Volume::id`].
pub type Texts = BTreeMap<String, String>;

/// An array, logged in at need.
///
/// Rules: a primitive does not retry a change whose answer was lost, and does not compare: the
/// [ledger](crate::ledger) does. An object that is not there is [`Class::NotFound`]. What asks for
/// something that holds already is success in [`map`](Masking::map), [`unmap`](Masking::unmap),
/// [`grant`](Masking::grant), [`revoke`](Masking::revoke), [`describe`](Self::describe). A listing is
/// whole or fails. A removed volume that the array keeps for a while is not there.
pub trait Array: Masking {
    /// What it can do. Known before the first request.
    fn capabilities(&self) -> &Capabilities;

    /// How many bytes a text takes in its [place](MetadataPlace): another number than it has, where
    /// the array does not take all characters.
    fn text_size(&self, text: &str) -> usize {
        text.len()
    }

    /// Says which SR it is opened for, before the first primitive: for arrays where volumes lie in a
    /// place of their SR.
    fn assign(&mut self, sr: SrUuid) {
        let _ = sr;
    }

    /// Logs in, and says which array it is.
    fn identity(&self, cx: &Cx) -> impl Future<Output = Outcome<Identity>> + Send;

    /// The pools.
    fn pools(&self, cx: &Cx) -> impl Future<Output = Outcome<Vec<Pool>>> + Send;

    /// The places for a new SR: all of them, unless one is configured.
    fn places(&self, cx: &Cx) -> impl Future<Output = Outcome<Vec<Place>>> + Send {
        async move { Ok(self.pools(cx).await?.into_iter().map(Place::from).collect()) }
    }

    /// The records of all SRs, each with its pool if the configuration has to name it.
    fn records(
        &self,
        cx: &Cx,
    ) -> impl Future<Output = Outcome<Vec<(Option<String>, Volume)>>> + Send {
        async move {
            let all = self.list(cx, &self.capabilities().names.prefix(Role::Record)).await?;
            Ok(all.into_iter().map(|record| (None, record)).collect())
        }
    }

    /// Makes a thin volume. [`Class::AlreadyExists`] if the name is taken.
    fn create(&self, cx: &Cx, new: &New<'_>) -> impl Future<Output = Outcome<Volume>> + Send;

    /// The volume of that name.
    fn get(&self, cx: &Cx, name: &str) -> impl Future<Output = Outcome<Volume>> + Send;

    /// All volumes, other people's too, without snapshots. `prefix` is what ours begin with, for
    /// arrays that can ask for it.
    fn list(&self, cx: &Cx, prefix: &str) -> impl Future<Output = Outcome<Vec<Volume>>> + Send;

    /// Makes a volume larger, from [its size](Volume::size) to another one, and answers the size that it
    /// got if the array says it.
    fn resize(
        &self,
        cx: &Cx,
        volume: &Volume,
        to: Bytes,
    ) -> impl Future<Output = Outcome<Option<Bytes>>> + Send;

    /// Removes a volume for good, in all steps that are still needed. [`Class::InUse`] while it is
    /// mapped, or has clones or snapshots that keep it.
    fn delete(&self, cx: &Cx, volume: &Volume) -> impl Future<Output = Outcome<()>> + Send;

    /// Takes a snapshot under a name. Not used with [`SnapshotScope::Unnamed`].
    fn snapshot(
        &self,
        cx: &Cx,
        volume: &Volume,
        new: &New<'_>,
    ) -> impl Future<Output = Outcome<Volume>> + Send;

    /// Takes a snapshot under a name that the array chooses, and answers that. It has the text of `new`
    /// from its first moment, and gets the name there afterwards.
    fn snapshot_unnamed(
        &self,
        cx: &Cx,
        volume: &Volume,
        new: &New<'_>,
    ) -> impl Future<Output = Outcome<String>> + Send {
        let _ = (cx, volume, new);
        unsupported("a snapshot under a name of its own")
    }

    /// Which of these snapshots of a volume is the one that [`snapshot_unnamed`](Self::snapshot_unnamed)
    /// took for this wish: its answer was lost, or it was on another host, or in a life that is forgotten.
    /// By its text, never by a guess: others take snapshots too.
    fn taken_for(
        &self,
        cx: &Cx,
        volume: &Volume,
        new: &New<'_>,
        names: Vec<String>,
    ) -> impl Future<Output = Outcome<Option<String>>> + Send {
        let _ = (cx, volume, new, names);
        unsupported("telling a snapshot by its text")
    }

    /// Removes those of a volume's snapshots without a name of ours that were made for us all the same,
    /// and that nobody knows any more: never named, or the backup of a [`restore`](Self::restore) that
    /// was cut. Only what is proven to be ours. Answers the others. Nothing else is asked of the volume
    /// meanwhile.
    fn remove_forgotten(
        &self,
        cx: &Cx,
        volume: &Volume,
        unnamed: Vec<Volume>,
    ) -> impl Future<Output = Outcome<Vec<Volume>>> + Send {
        let _ = (cx, volume);
        ready(Ok(unnamed))
    }

    /// Gives a snapshot another name.
    fn rename_snapshot(
        &self,
        cx: &Cx,
        volume: &Volume,
        from: &str,
        to: &str,
    ) -> impl Future<Output = Outcome<()>> + Send {
        let _ = (cx, volume, from, to);
        unsupported("a new name for a snapshot")
    }

    /// What the snapshots of a group are called.
    fn group_naming(&self) -> GroupNaming {
        GroupNaming::Each
    }

    /// Makes what the array needs for a group snapshot and can have ahead: its own object that the
    /// volumes are members of. There already: success. Nothing is caught yet.
    fn prepare_group(
        &self,
        cx: &Cx,
        group: &Group<'_>,
    ) -> impl Future<Output = Outcome<()>> + Send {
        let _ = (cx, group);
        ready(Ok(()))
    }

    /// Takes snapshots of several volumes at one instant, all or none, in the order of the parts and
    /// named as they say. Guests may be waiting for it: one request, and whatever can follow, such as
    /// new names, after it. [`prepare_group`](Self::prepare_group) was called before, perhaps in an
    /// earlier life. [`Class::AlreadyExists`] if one of the snapshots is there; a failure after the
    /// instant is marked as [partly](Failure::partly) done.
    fn snapshot_group(
        &self,
        cx: &Cx,
        group: &Group<'_>,
    ) -> impl Future<Output = Outcome<Vec<Volume>>> + Send {
        let _ = (cx, group);
        unsupported("snapshots of several volumes at one instant")
    }

    /// Removes what [`prepare_group`](Self::prepare_group) and
    /// [`snapshot_group`](Self::snapshot_group) made beside the snapshots of the parts, which stay.
    /// Gone already: success. Without parts the group was never taken.
    fn release_group(
        &self,
        cx: &Cx,
        group: &Group<'_>,
    ) -> impl Future<Output = Outcome<()>> + Send {
        let _ = (cx, group);
        ready(Ok(()))
    }

    /// What may be said in [`set_qos`](Self::set_qos); none if the array has no limits. Known before
    /// the first request.
    fn qos_rule(&self) -> Option<QosRule> {
        None
    }

    /// Limits a volume; none at all lifts the limits. They are as the [rule](Self::qos_rule) wants
    /// them, and are shown in [`Volume::qos`] afterwards. Twice is the same as once.
    fn set_qos(
        &self,
        cx: &Cx,
        volume: &Volume,
        qos: &Qos,
    ) -> impl Future<Output = Outcome<()>> + Send {
        let _ = (cx, volume, qos);
        unsupported("limits of what is asked of a volume")
    }

    /// The snapshot of that name, of a volume or of whichever volume has it.
    fn get_snapshot(
        &self,
        cx: &Cx,
        name: &str,
        of: Option<&Volume>,
    ) -> impl Future<Output = Outcome<Volume>> + Send;

    /// All snapshots, of one volume or of all volumes.
    fn snapshots(
        &self,
        cx: &Cx,
        of: Option<&Volume>,
    ) -> impl Future<Output = Outcome<Vec<Volume>>> + Send;

    /// Removes a snapshot for good. [`Class::InUse`] while a clone hangs on it.
    fn delete_snapshot(
        &self,
        cx: &Cx,
        snapshot: &Volume,
    ) -> impl Future<Output = Outcome<()>> + Send;

    /// Puts a volume back to a snapshot of it. Twice is the same as once; leaves no backup behind.
    fn restore(
        &self,
        cx: &Cx,
        volume: &Volume,
        snapshot: &Volume,
    ) -> impl Future<Output = Outcome<()>> + Send;

    /// Makes volumes whole whose [`restore`](Self::restore) by this host was cut: they can be reached, with
    /// the old content or the new one, and no backup is left. Answers their names.
    fn settle_restores(&self, cx: &Cx) -> impl Future<Output = Outcome<Vec<String>>> + Send {
        let _ = cx;
        ready(Ok(Vec::new()))
    }

    /// Makes a volume from a volume or snapshot; from a snapshot only with
    /// [`CloneKind::Dependent`].
    fn clone_of(
        &self,
        cx: &Cx,
        source: &Volume,
        new: &New<'_>,
    ) -> impl Future<Output = Outcome<Volume>> + Send;

    /// Turns a clone around: what it hung on hangs on it.
    fn promote(&self, cx: &Cx, clone: &Volume) -> impl Future<Output = Outcome<()>> + Send {
        let _ = (cx, clone);
        unsupported("a promotion")
    }

    /// Keeps a text with a volume or snapshot.
    fn describe(
        &self,
        cx: &Cx,
        volume: &Volume,
        metadata: &str,
    ) -> impl Future<Output = Outcome<()>> + Send;

    /// All texts by the [`id`](Volume::id) of what they are kept with, for
    /// [`MetadataPlace::Apart`]. `of` asks for those of one object.
    fn descriptions(
        &self,
        cx: &Cx,
        of: Option<&Volume>,
    ) -> impl Future<Output = Outcome<Texts>> + Send {
        let _ = (cx, of);
        unsupported("texts apart from volumes")
    }

    /// Whether our credentials were refused: then the driver must be opened anew.
    fn is_denied(&self) -> bool {
        false
    }

    /// Logs out.
    fn close(&self, cx: &Cx) -> impl Future<Output = ()> + Send {
        let _ = cx;
        ready(())
    }
}

/// Who reaches which volume: LUN masking. Of arrays that have entries for hosts it comes with
/// [`HostEntries`](crate::hosts::HostEntries).
pub trait Masking: Send + Sync + 'static {
    /// Makes this host known to the array, where that is apart from mappings.
    fn grant(&self, cx: &Cx, to: &Initiator) -> impl Future<Output = Outcome<()>> + Send {
        let _ = (cx, to);
        ready(Ok(()))
    }

    /// Removes what [`grant`](Self::grant) made, unless it is in use.
    fn revoke(&self, cx: &Cx, from: &Initiator) -> impl Future<Output = Outcome<()>> + Send {
        let _ = (cx, from);
        ready(Ok(()))
    }

    /// Lets this host, and nobody who was not let before, reach a volume or snapshot. Any prefix of
    /// the objects that this takes may be there from an earlier try.
    fn map(
        &self,
        cx: &Cx,
        volume: &Volume,
        to: &Initiator,
    ) -> impl Future<Output = Outcome<Mapping>> + Send;

    /// Ends that, and removes what only it needed.
    fn unmap(
        &self,
        cx: &Cx,
        volume: &Volume,
        from: &Initiator,
    ) -> impl Future<Output = Outcome<()>> + Send;

    /// The qualified names of those who can reach it.
    fn mappings(
        &self,
        cx: &Cx,
        volume: &Volume,
    ) -> impl Future<Output = Outcome<Vec<String>>> + Send;
}

fn unsupported<T: Send>(what: &str) -> impl Future<Output = Outcome<T>> + Send + use<T> {
    ready(Err(Failure::new(Class::Unsupported).fact(format!("the array cannot do {what}"))))
}
