//! Looking for what a configuration leaves open: exports, then SRs.

use std::collections::BTreeMap;

use host_kit::mount::{self, nfs};
use plugin_sdk::config::RawConfig;
use plugin_sdk::model::Changed;
use plugin_sdk::model::candidate::Candidate;
use plugin_sdk::model::sr::{ProbeItem, SrProbed};
use plugin_sdk::{Cx, Error, Result, Utf8Path};

use crate::config::{Config, Path, Server};
use crate::place::{Place, base};

/// Begins the names of mounts that last as long as a probe; the process's number follows.
const PREFIX: &str = "probe-";

pub(crate) async fn probe(raw: &RawConfig, cx: &Cx) -> Result<SrProbed> {
    let server = Server::of_probe(raw)?;
    let Some(path) = raw.get::<Path>("serverpath")? else {
        return exports(&server, cx).await;
    };
    raw.complete::<Config>()?;
    sweep(cx).await;
    let number = cx.operation_id().0.simple().to_string();
    let target = base().join(format!("{PREFIX}{}-{number}", std::process::id()));
    let place = Place::new(server, &path.0, target.clone());
    place.answers(cx).await?;
    if place.reach(cx).await? != Changed::Created {
        return Err(Error::busy(format!("{target} is mounted already")));
    }
    let version =
        mount::at(target.as_std_path())?.and_then(|mount| mount.option("vers").map(str::to_owned));
    let result = place.run(cx, move |_| vhd_folder::found(&target)).await;
    if let Err(error) = place.let_go(cx).await {
        plugin_sdk::tracing::warn!(%error, target = %place.target(), "a probe stays mounted");
    }
    let info: BTreeMap<String, String> =
        version.map(|version| ("NFS version".to_owned(), version)).into_iter().collect();
    let room = ProbeItem { complete: true, extra_info: info, ..ProbeItem::default() };
    let found = result?.into_iter();
    let found = found.map(|sr| ProbeItem { complete: true, sr: Some(sr), ..ProbeItem::default() });
    Ok(SrProbed { items: std::iter::once(room).chain(found).collect() })
}

/// What the server exports, each with the key that names it.
async fn exports(server: &Server, cx: &Cx) -> Result<SrProbed> {
    let exports = nfs::exports(cx, &server.name).await?;
    let item = |export: nfs::Export| {
        // As XenServer shows an export to everybody.
        let everybody = export.clients.is_empty();
        let access = if everybody { "*".to_owned() } else { export.clients.join(",") };
        ProbeItem {
            configuration: [("serverpath".to_owned(), export.path.clone())].into(),
            extra_info: [("clients".to_owned(), access.clone())].into(),
            candidate: Some(Candidate::NfsExport {
                target: server.name.clone(),
                path: export.path,
                access,
            }),
            ..ProbeItem::default()
        }
    };
    Ok(SrProbed { items: exports.into_iter().map(item).collect() })
}

/// Ends the mounts of probes whose process is gone.
async fn sweep(cx: &Cx) {
    let Ok(mounts) = mount::below(base().as_std_path()) else { return };
    for mount in mounts {
        let Some(target) = Utf8Path::from_path(&mount.target) else { continue };
        let process = target
            .file_name()
            .and_then(|name| name.strip_prefix(PREFIX)?.split('-').next()?.parse::<u32>().ok());
        let Some(process) = process else { continue };
        if Utf8Path::new(&format!("/proc/{process}")).exists() {
            continue;
        }
        let threads = mount::Threads::new(2);
        if let Err(error) = mount::detach(cx, &threads, target).await {
            plugin_sdk::tracing::warn!(%error, %target, "what a probe left stays mounted");
        }
    }
}
