//! A driver on the SDK that does what a driver must not, when it is asked to: the name of a new
//! VDI is the command. It keeps nothing and needs nothing.
//!
//! | name | what happens |
//! |---|---|
//! | `panic` | a panic in the operation |
//! | `panic-blocking` | a panic in `Cx::blocking` |
//! | `abort`, `segfault`, `overflow`, `exit` | the process dies |
//! | `hang` | never answers, deaf to its cancel |
//! | `sleep` | needs the runtime's timer, then answers |
//! | `no-space` | an error with context, backend's words and hint |
//! | anything else | a VDI of that name |

use std::time::Duration;

use plugin_sdk::model::sr::{SrScan, SrScanned};
use plugin_sdk::model::vdi::{Health, Qos, VdiCreate, VdiDone, VdiInfo};
use plugin_sdk::model::{Bytes, Changed, ImageFormat, Kind, SrUuid};
use plugin_sdk::{Cx, Driver, Error, Manifest, Result, manifest, tokio};

/// The driver.
pub struct Hostile;

impl Driver for Hostile {
    type Config = ();
    const MANIFEST: Manifest = manifest! {
        name: "hostile",
        title: "Misbehaves on command",
        operations: [sr_scan, vdi_create],
    };

    async fn open((): (), _: SrUuid, _: &Cx) -> Result<Self> {
        Ok(Self)
    }

    async fn sr_scan(&self, _: &Cx, _: SrScan) -> Result<SrScanned> {
        Ok(SrScanned { vdis: Vec::new(), next: None })
    }

    async fn vdi_create(&self, cx: &Cx, request: VdiCreate) -> Result<VdiDone> {
        match request.name.as_str() {
            "panic" => panic_with("the hostile driver panics"),
            "panic-blocking" => {
                cx.blocking(|_| -> Result<()> { panic_with("the hostile driver panics aside") })
                    .await?;
            }
            "abort" => std::process::abort(),
            "exit" => std::process::exit(3),
            "segfault" => segfault(),
            "overflow" => {
                let _ = overflow(1);
            }
            "hang" => std::future::pending().await,
            "sleep" => tokio::time::sleep(Duration::from_millis(10)).await,
            "no-space" => {
                return Err(Error::new(Kind::NoSpace, "the hostile driver is full")
                    .context("free", 0)
                    .backend("ENOSPC")
                    .hint("ask for something else")
                    .legacy(44));
            }
            _ => {}
        }
        let vdi = VdiInfo {
            uuid: request.uuid,
            name: request.name,
            description: request.description,
            virtual_size: request.virtual_size,
            physical_utilisation: Bytes(0),
            exclusive: None,
            reclaimable: None,
            format: request.format.unwrap_or(ImageFormat::Raw),
            vdi_type: request.vdi_type,
            read_only: false,
            sharable: request.sharable,
            is_a_snapshot: false,
            cbt_enabled: false,
            snapshot_of: None,
            snapshot_time: None,
            qos: Qos::default(),
            keys: request.keys,
            incomplete: request.incomplete,
            health: Health::Ok,
        };
        Ok(VdiDone { changed: Changed::Created, vdi })
    }
}

plugin_sdk::export_driver!(Hostile);

#[expect(clippy::panic, reason = "that is what is asked for")]
fn panic_with(text: &str) -> ! {
    panic!("{text}")
}

fn segfault() {
    // SAFETY: none; the crash is what is asked for.
    unsafe { std::ptr::null_mut::<u8>().write_volatile(1) };
}

#[expect(unconditional_recursion, reason = "that is what is asked for")]
fn overflow(depth: u64) -> u64 {
    let frame = [depth; 512];
    overflow(depth + 1) + std::hint::black_box(&frame)[3]
}
