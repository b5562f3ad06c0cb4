//! Who may reach a volume: access records, each of one initiator, and of a CHAP account if one is
//! configured.

use array_kit::array::{Initiator, Mapping, Target, Volume};
use array_kit::outcome::{Class, OrAbsent as _, Outcome};
use array_kit::retry::Effect;
use plugin_sdk::{Cx, step};

use super::{EqualLogic, is_offline, odd};
use crate::cli::command::{Object, word};
use crate::cli::parse::{self, AccessRecord};
use crate::cli::reply::Reply;
use crate::cli::verdict::garbled;
use crate::identity::scsi_id;

impl EqualLogic {
    pub(super) async fn access(&self, cx: &Cx, object: &Object) -> Outcome<Vec<AccessRecord>> {
        let command = object.command("access", Effect::Reads, "access show")?;
        let read =
            |reply: Reply| parse::access(&reply.lines).map_err(|line| odd("access records", &line));
        self.sessions.ask(cx, &command, read).await
    }

    pub(super) async fn forget_access(&self, cx: &Cx, object: &Object, id: u64) -> Outcome<()> {
        let rest = format!("access delete {id}");
        self.on(cx, object, "unmap", Effect::Changes, &rest).await.or_absent()?;
        Ok(())
    }

    /// See [`array_kit::array::Array::map`].
    pub(super) async fn let_in(
        &self,
        cx: &Cx,
        volume: &Volume,
        to: &Initiator,
    ) -> Outcome<Mapping> {
        let object = &Object::of(&volume.id);
        let records = self.access(cx, object).await?;
        if records.iter().all(|record| !record.initiator.eq_ignore_ascii_case(&to.iqn)) {
            if !records.is_empty() && object.snapshot.is_none() {
                // Else the array refuses the second host, as in a migration.
                self.on(cx, object, "share", Effect::Changes, "multihost-access enable").await?;
            }
            let mut rest = format!("access create initiator {}", word("initiator", &to.iqn)?);
            if let Some(user) = &self.chap {
                rest = format!("{rest} authmethod chap username {}", word("CHAP user", user)?);
            }
            match self.on(cx, object, "map", Effect::Changes, &rest).await {
                Err(failure) if failure.class == Class::AlreadyExists => {}
                other => drop(other?),
            }
            step!("equallogic.access_made");
        }
        let mut details = self.details(cx, object).await?;
        if is_offline(&details) {
            self.on(cx, object, "online", Effect::Changes, "online").await?;
            details = self.details(cx, object).await?;
        }
        let iqn = details.get("iscsi name").map(str::to_owned).unwrap_or_default();
        let scsi_id = scsi_id(&iqn).ok_or_else(|| {
            garbled(format!("the target's name of {} cannot be read", volume.name))
        })?;
        let target = Target { portal: self.portal.clone(), iqn };
        Ok(Mapping { lun: 0, scsi_id, targets: vec![target] })
    }

    /// See [`array_kit::array::Array::unmap`].
    pub(super) async fn shut_out(&self, cx: &Cx, volume: &Volume, from: &Initiator) -> Outcome<()> {
        let object = &Object::of(&volume.id);
        for record in self.access(cx, object).await? {
            if record.initiator.eq_ignore_ascii_case(&from.iqn) {
                self.forget_access(cx, object, record.id).await?;
            }
        }
        if object.snapshot.is_some() && self.access(cx, object).await?.is_empty() {
            // As the array keeps snapshots that nobody uses.
            self.on(cx, object, "offline", Effect::Changes, "offline").await?;
        }
        Ok(())
    }
}
