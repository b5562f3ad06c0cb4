//! Removes what a run has made that was killed before it could.

use std::path::Path;

use sm_loader::{Loader, LoaderOptions, Placement, port};
use sm_model::host::OpenRequest;
use sm_model::sr::{SrAttach, SrDestroy, SrDetach};
use sm_model::vdi::VdiDestroy;
use sm_model::{HostId, OperationId, Request, SrUuid, VdiUuid};

use crate::Error;
use crate::bench::{JOURNAL, Owned};
use crate::config::Config;
use crate::services::Services;
use crate::world::HOST;

/// Removes what the journal in a run's folder says is that run's, and nothing else. Answers what
/// was removed and what could not be, a line each, and whether all is gone.
///
/// # Errors
/// If the journal or the configuration cannot be read.
pub fn cleanup(out: &Path) -> Result<(Vec<String>, bool), Error> {
    let path = out.join(JOURNAL);
    let text = std::fs::read_to_string(&path).map_err(|error| Error::file(&path, &error))?;
    let mut owned: Vec<Owned> = Vec::new();
    for line in text.lines() {
        // The last line may be cut: then what it names was not made.
        let Ok(entry) = serde_json::from_str(line) else { continue };
        if let Owned::Gone { sr } = entry {
            owned.retain(|other| !belongs(other, sr));
        } else {
            owned.push(entry);
        }
    }
    let mut said = Vec::new();
    let mut whole = true;
    let mut run = None;
    for entry in &owned {
        match entry {
            Owned::Run { driver, config } => run = Some((driver.clone(), config.clone())),
            Owned::Sr { sr, config } => {
                let vdis: Vec<VdiUuid> = owned
                    .iter()
                    .filter_map(|other| match other {
                        Owned::Vdi { sr: of, vdi } if of == sr => Some(*vdi),
                        _ => None,
                    })
                    .collect();
                let Some((driver, configured)) = &run else { continue };
                match remove(driver, configured, *sr, config, &vdis) {
                    Ok(()) => said.push(format!("removed SR {sr} with {} VDIs", vdis.len())),
                    Err(error) => {
                        whole = false;
                        said.push(format!("SR {sr} is not removed: {error}"));
                    }
                }
            }
            Owned::Folder { .. } | Owned::Vdi { .. } | Owned::Gone { .. } => {}
        }
    }
    for entry in &owned {
        let Owned::Folder { path } = entry else { continue };
        // Only what a run makes has such a name, whatever the journal says.
        let ours = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("smc-"));
        if ours && path.exists() {
            std::fs::remove_dir_all(path).map_err(|error| Error::file(path, &error))?;
            said.push(format!("removed {}", path.display()));
        }
    }
    Ok((said, whole))
}

fn belongs(owned: &Owned, gone: SrUuid) -> bool {
    matches!(owned, Owned::Sr { sr, .. } | Owned::Vdi { sr, .. } if *sr == gone)
}

/// Destroys the VDIs that are ours, and the SR when nobody else's are in it.
fn remove(
    driver: &Path,
    config: &Path,
    sr: SrUuid,
    device_config: &std::collections::BTreeMap<String, String>,
    vdis: &[VdiUuid],
) -> Result<(), String> {
    let said = |error: sm_model::Error| crate::verdict::said(&error);
    let config = if config.as_os_str().is_empty() {
        Config::default()
    } else {
        Config::read(config).map_err(|error| error.to_string())?
    };
    let secrets = config
        .secrets
        .iter()
        .filter_map(|(key, text)| Some((device_config.get(key)?.clone(), text.clone())))
        .collect();
    let state = tempfile::tempdir().map_err(|error| error.to_string())?;
    let loader = Loader::new(LoaderOptions::new(state.path()));
    let services = std::sync::Arc::new(Services::new(secrets, None));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    runtime.block_on(async {
        let request = OpenRequest {
            sr: Some(sr),
            device_config: device_config.clone(),
            host: HostId(HOST.into()),
            installation: String::new(),
        };
        let budget = config.call_budget();
        let open = loader.open(driver, Placement::Child, request, services, budget);
        let session = open.await.map_err(said)?;
        let can = |name: &str| session.manifest().can(name);
        let outcome = async {
            match ask(session.as_ref(), &SrAttach {}, budget).await {
                Err(error) if error.kind == sm_model::Kind::NotFound => return Ok(()),
                other => other.map(drop)?,
            }
            for vdi in vdis {
                ask(session.as_ref(), &VdiDestroy { vdi: *vdi }, budget).await?;
            }
            if can("sr_destroy") {
                ask(session.as_ref(), &SrDetach {}, budget).await?;
                ask(session.as_ref(), &SrDestroy {}, budget).await?;
            }
            Ok(())
        };
        let outcome: sm_model::Result<()> = outcome.await;
        session.close(budget).await;
        outcome.map_err(said)
    })
}

async fn ask<R: Request>(
    session: &dyn sm_loader::DriverPort,
    request: &R,
    budget: std::time::Duration,
) -> sm_model::Result<R::Reply> {
    let call = sm_loader::Call::new(R::OPERATION, OperationId::random(), budget);
    port::call(session, call, request).await
}
