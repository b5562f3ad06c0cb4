//! The part that runs in a guest: operations of the storage manager, and their commands bare.

use std::collections::BTreeMap;
use std::fmt::{Debug, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use camino::Utf8PathBuf;
use serde_json::{Value, json};
use sm_core::model::{AttachMode, Bytes, DeviceConfig, VdiUuid};
use sm_core::{NewSnapshot, NewSr, NewVdi, Op, Placement, Sr, StorageManager};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use uuid::Uuid;

use crate::Result;

/// First word of a command line that is for a guest.
pub(crate) const WORD: &str = "--inside";

/// After so long without a record there comes none.
const QUIET: Duration = Duration::from_millis(100);
/// Volumes of a large SR.
const VOLUMES: usize = 1000;

/// Whether a command changes anything, by its first word.
pub(crate) fn changes(command: &str) -> bool {
    command != "fullreport"
}

/// The commands that drivers have run, as the engine logs them.
#[derive(Clone, Default)]
struct Commands(Arc<Mutex<Vec<Vec<String>>>>);

impl Commands {
    /// Those that there are by now: a record comes beside the answer of its call.
    async fn take(&self) -> Vec<Vec<String>> {
        let all = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut before = usize::MAX;
        while before != all().len() {
            before = all().len();
            tokio::time::sleep(QUIET).await;
        }
        std::mem::take(&mut *all())
    }
}

impl<S: tracing::Subscriber> Layer<S> for Commands {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        struct Argv(Option<String>);
        impl tracing::field::Visit for Argv {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn Debug) {
                if field.name() == "argv" {
                    self.0 = Some(format!("{value:?}"));
                }
            }
        }
        let mut argv = Argv(None);
        event.record(&mut argv);
        // As the words are printed by Rust they are JSON, too, for the characters of commands.
        if let Some(words) = argv.0.and_then(|text| serde_json::from_str(&text).ok()) {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push(words);
        }
    }
}

/// What was measured of an operation.
#[derive(Default)]
struct Measured {
    ours: Vec<f64>,
    bare: Vec<f64>,
    commands: Vec<String>,
}

/// A driver's SR in this guest.
struct Inside {
    sr: Sr,
    rounds: usize,
    commands: Commands,
    measured: BTreeMap<&'static str, Measured>,
}

pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let [_, part, product, rounds, config @ ..] = arguments else {
        return Err("this is for guests: cargo xtask bench lab".into());
    };
    let commands = Commands::default();
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(commands.clone()))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let said = runtime.block_on(async {
        let pairs = config.iter().filter_map(|pair| pair.split_once('='));
        let config = pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        let rounds = rounds.parse()?;
        let inside = Inside::open(part, Path::new(product), config, rounds, commands).await?;
        Box::pin(inside.measure(part)).await
    })?;
    println!("{said}");
    Ok(())
}

impl Inside {
    async fn open(
        driver: &str,
        product: &Path,
        device_config: DeviceConfig,
        rounds: usize,
        commands: Commands,
    ) -> Result<Self> {
        let utf8 =
            |path: PathBuf| Utf8PathBuf::from_path_buf(path).map_err(|_| "a path is not UTF-8");
        let manager = StorageManager::builder(Utf8PathBuf::from("/var/tmp/sm-bench"))
            .driver(utf8(product.join(format!("libsm_driver_{driver}.so")))?)
            .placement(if driver == "nfs" { Placement::Child } else { Placement::InProcess })
            .driver_host(utf8(product.join("sm-driver-host"))?)
            .open()
            .await?;
        let name = "bench".to_owned();
        let new = NewSr { driver: driver.into(), name, device_config, ..NewSr::default() };
        let record = manager.sr_create(&Op::new(), new).await?;
        let sr = manager.sr(&record.uuid.to_string())?;
        Ok(Self { sr, rounds, commands, measured: BTreeMap::new() })
    }

    async fn measure(mut self, part: &str) -> Result<Value> {
        match part {
            "lvm" => self.lvm().await?,
            "nfs" => self.nfs().await?,
            _ => self.lvmoiscsi().await?,
        }
        let row = |measured: &Measured| json!({"ours": measured.ours, "bare": measured.bare, "commands": measured.commands});
        Ok(self.measured.iter().map(|(name, measured)| (*name, row(measured))).collect())
    }

    async fn create(&self, name: &str) -> Result<VdiUuid> {
        let new =
            NewVdi { name: name.to_owned(), virtual_size: Bytes::mib(8), ..NewVdi::default() };
        Ok(self.sr.vdi_create(&Op::new(), new).await?.vdi.uuid)
    }

    /// Notes what was done since `began`, and does it bare: with a name of its own for what is made.
    async fn note(
        &mut self,
        operation: &'static str,
        began: Instant,
        made: Option<VdiUuid>,
    ) -> Result<()> {
        let ours = began.elapsed();
        let commands = self.commands.take().await;
        let other = Uuid::new_v4().to_string();
        let mut bare = 0.0;
        for words in &commands {
            let named = |word: &String| match made {
                Some(made) => word.replace(&made.to_string(), &other),
                None => word.clone(),
            };
            let words: Vec<String> = words.iter().map(named).collect();
            let began = Instant::now();
            run_bare(&words)?;
            bare += began.elapsed().as_secs_f64() * 1e3;
        }
        let measured = self.measured.entry(operation).or_default();
        measured.ours.push(ours.as_secs_f64() * 1e3);
        measured.bare.push(bare);
        measured.commands = commands.iter().map(|words| name_of(words)).collect();
        Ok(())
    }

    async fn lvm(&mut self) -> Result<()> {
        let disk = self.create("disk").await?;
        for round in 0..self.rounds {
            self.commands.take().await;
            let began = Instant::now();
            let made = self.create(&format!("disk {round}")).await?;
            self.note("create", began, Some(made)).await?;

            let name = format!("snapshot {round}");
            let new = NewSnapshot { vdi: disk, name, description: String::new() };
            let began = Instant::now();
            let done = self.sr.vdi_snapshot(&Op::new(), &[new]).await?;
            let made = done.vdis.first().map(|vdi| vdi.uuid);
            self.note("snapshot", began, made).await?;
        }
        self.multiply(disk)?;
        for _ in 0..self.rounds {
            self.commands.take().await;
            let began = Instant::now();
            let found = self.sr.vdis(&Op::new()).await?.len();
            if found < VOLUMES {
                return Err(format!("a scan told {found} VDIs of {VOLUMES}").into());
            }
            self.note("scan", began, None).await?;
        }
        Ok(())
    }

    /// Has the group hold many volumes that are like one that it has: LVM's text of it, written anew.
    fn multiply(&self, disk: VdiUuid) -> Result<()> {
        let (group, volume) = (format!("sm-{}", self.sr.uuid()), format!("vdi-{disk}"));
        let lvm = |words: &[&str]| {
            run_bare(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>())
        };
        lvm(&["vgchange", "--quiet", "--activate", "n", &group])?;
        lvm(&["vgcfgbackup", "--quiet", "--file", "/run/text", &group])?;
        let text = std::fs::read_to_string("/run/text")?;
        let (before, rest) = text.split_once(&format!("\t\t{volume} {{")).ok_or("no volume")?;
        let (block, after) = rest.split_once("\n\t\t}\n").ok_or("a volume without an end")?;
        let id =
            block.split("id = \"").nth(1).and_then(|id| id.split('"').next()).ok_or("no id")?;
        let mut all = format!("{before}\t\t{volume} {{{block}\n\t\t}}\n");
        for number in 0..VOLUMES {
            let other = id.get(..id.len() - 6).ok_or("an id without a number")?;
            let block = block
                .replace(id, &format!("{other}{number:06}"))
                .replace(&disk.to_string(), &Uuid::new_v4().to_string())
                .replace("device_id = 1\n", &format!("device_id = {}\n", 1000 + number));
            write!(all, "\t\tvdi-{} {{{block}\n\t\t}}\n", Uuid::new_v4())?;
        }
        std::fs::write("/run/text", format!("{all}{after}"))?;
        lvm(&["vgcfgrestore", "--quiet", "--yes", "--force", "--file", "/run/text", &group])
    }

    /// The driver of NFS has a process of its own, which begins with each attach.
    async fn nfs(&mut self) -> Result<()> {
        for _ in 0..self.rounds {
            self.sr.detach(&Op::new()).await?;
            self.commands.take().await;
            let began = Instant::now();
            self.sr.attach(&Op::new()).await?;
            let ours = began.elapsed();
            let commands = self.commands.take().await;
            // mount.nfs SOURCE TARGET -o OPTIONS
            let place = commands.first().and_then(|words| words.get(2)).cloned();
            let place = place.ok_or("no mount was run for an attach")?;
            // Once more bare, in the same place.
            self.sr.detach(&Op::new()).await?;
            self.commands.take().await;
            std::fs::create_dir_all(&place)?;
            let mut bare = 0.0;
            for words in &commands {
                let began = Instant::now();
                run_bare(words)?;
                bare += began.elapsed().as_secs_f64() * 1e3;
            }
            run_bare(&["umount".to_owned(), place])?;
            let measured = self.measured.entry("attach").or_default();
            measured.ours.push(ours.as_secs_f64() * 1e3);
            measured.bare.push(bare);
            measured.commands = commands.iter().map(|words| name_of(words)).collect();
            self.sr.attach(&Op::new()).await?;
        }
        Ok(())
    }

    async fn lvmoiscsi(&mut self) -> Result<()> {
        let disk = self.create("disk").await?;
        for _ in 0..self.rounds {
            self.commands.take().await;
            let began = Instant::now();
            self.sr.vdi_attach(&Op::new(), disk, "bench", AttachMode::ReadWrite).await?;
            self.sr.vdi_activate(&Op::new(), disk, "bench").await?;
            self.note("attach", began, None).await?;
            self.sr.vdi_deactivate(&Op::new(), disk, "bench").await?;
            self.sr.vdi_detach(&Op::new(), disk, "bench").await?;
        }
        Ok(())
    }
}

/// What a command is called: of LVM's its own word.
fn name_of(words: &[String]) -> String {
    let mut names = words.iter();
    match names.next().map(String::as_str) {
        Some("lvm") => names.next().cloned().unwrap_or_default(),
        other => other.unwrap_or_default().to_owned(),
    }
}

fn run_bare(words: &[String]) -> Result<()> {
    let (program, rest) = words.split_first().ok_or("a command without words")?;
    let output = Command::new(program)
        .args(rest)
        .env_clear()
        .env("LC_ALL", "C")
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{words:?}: {}", String::from_utf8_lossy(&output.stderr)).into())
}
