//! A toolstack in a hundred lines: loads drivers, makes an SR, gives two VMs their disks and
//! snapshots them.
//!
//! ```text
//! cargo build --workspace
//! cargo run -p sm-core --example toolstack
//! ```

use std::collections::BTreeMap;

use camino::{Utf8Path, Utf8PathBuf};
use sm_core::model::{Access, AttachMode, Bytes, Result, VdiUuid};
use sm_core::{NewSnapshot, NewSr, NewVdi, Op, Sr, StorageManager};

/// What a toolstack knows of a VM.
struct Vm {
    name: &'static str,
    disks: BTreeMap<&'static str, VdiUuid>,
}

impl Vm {
    /// The datapath of one of its disks: who holds it, in the storage manager's records.
    fn datapath(&self, device: &str) -> String {
        format!("{}/{device}", self.name)
    }

    async fn add_disk(&mut self, sr: &Sr, device: &'static str, size: Bytes) -> Result<()> {
        let new = NewVdi {
            name: format!("{} {device}", self.name),
            virtual_size: size,
            keys: [("vm".to_owned(), self.name.to_owned())].into(),
            ..NewVdi::default()
        };
        let made = sr.vdi_create(&Op::new(), new).await?;
        self.disks.insert(device, made.vdi.uuid);
        Ok(())
    }

    /// Attach makes a disk reachable, activate allows I/O: a live migration attaches on the
    /// target early and activates in the short moment when the source has let go.
    async fn start(&self, sr: &Sr) -> Result<()> {
        for (device, disk) in &self.disks {
            let dp = self.datapath(device);
            let ways = sr.vdi_attach(&Op::new(), *disk, &dp, AttachMode::ReadWrite).await?;
            sr.vdi_activate(&Op::new(), *disk, &dp).await?;
            println!("  {} {device}: {}", self.name, describe(&ways));
        }
        Ok(())
    }

    async fn stop(&self, sr: &Sr) -> Result<()> {
        for (device, disk) in &self.disks {
            let dp = self.datapath(device);
            sr.vdi_deactivate(&Op::new(), *disk, &dp).await?;
            sr.vdi_detach(&Op::new(), *disk, &dp).await?;
        }
        Ok(())
    }

    async fn snapshot(&self, sr: &Sr, label: &str) -> Result<()> {
        for (device, disk) in &self.disks {
            // The id is the toolstack's: if this process dies here, the next one repeats the
            // call with the same id and no second snapshot is taken.
            let op = Op::new();
            let new = NewSnapshot {
                vdi: *disk,
                name: format!("{} {device} {label}", self.name),
                description: String::new(),
            };
            let taken = sr.vdi_snapshot(&op, &[new]).await?;
            println!(
                "  {} {device}: snapshot {} ({:?})",
                self.name, taken.vdis[0].uuid, taken.changed
            );
        }
        Ok(())
    }
}

fn describe(ways: &[Access]) -> String {
    match ways.first() {
        Some(Access::File { path, format, .. }) => format!("{format} file {path}"),
        Some(Access::BlockDevice { path }) => format!("block device {path}"),
        Some(Access::Nbd { uri }) => uri.clone(),
        None => "nothing".to_owned(),
    }
}

#[tokio::main]
async fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::temp_dir().join(format!("toolstack-{}", std::process::id()));
    let folder =
        Utf8PathBuf::from_path_buf(folder).map_err(|_| "the temporary directory's name")?;
    std::fs::create_dir_all(folder.join("images"))?;
    let result = run(&folder).await;
    std::fs::remove_dir_all(&folder)?;
    Ok(result?)
}

async fn run(folder: &Utf8Path) -> Result<()> {
    let manager = StorageManager::builder(folder.join("state"))
        .driver_directory(beside_this_program()?)
        .open()
        .await?;
    let config = [("location".to_owned(), folder.join("images").into_string())].into();
    let new = NewSr {
        driver: "file".into(),
        name: "local".into(),
        device_config: config,
        ..NewSr::default()
    };
    let record = manager.sr_create(&Op::new(), new).await?;
    let sr = manager.sr(&record.uuid.to_string())?;
    println!("SR {} on {}", record.uuid, record.driver);

    let mut web = Vm { name: "web", disks: BTreeMap::new() };
    let mut mail = Vm { name: "mail", disks: BTreeMap::new() };
    web.add_disk(&sr, "xvda", Bytes::gib(10)).await?;
    mail.add_disk(&sr, "xvda", Bytes::gib(20)).await?;
    mail.add_disk(&sr, "xvdb", Bytes::gib(100)).await?;
    for vm in [&web, &mail] {
        vm.start(&sr).await?;
        vm.stop(&sr).await?;
        vm.snapshot(&sr, "before the upgrade").await?;
    }
    for vdi in sr.scan(&Op::new()).await?.vdis {
        let kind = if vdi.is_a_snapshot { "snapshot" } else { "disk" };
        println!(
            "  {:<9}{:<28}{:>8}  uses {}",
            kind, vdi.name, vdi.virtual_size, vdi.physical_utilisation
        );
    }
    manager.close().await;
    Ok(())
}

/// Cargo puts drivers and examples into neighbouring folders.
fn beside_this_program() -> std::io::Result<Utf8PathBuf> {
    let program = std::env::current_exe()?;
    let folder = program.parent().and_then(std::path::Path::parent).unwrap_or(&program);
    Ok(Utf8PathBuf::from_path_buf(folder.to_owned()).unwrap_or_default())
}
