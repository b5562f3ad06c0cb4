//! One damaged disk never blocks an SR and never disappears from its listing.

use std::os::unix::fs::FileExt;

use sm_core::model::vdi::Health;
use sm_core::model::{AttachMode, Kind, VdiUuid};
use sm_core::{NewSnapshot, Op};

use crate::{PLACEMENTS, Site};

type Damage = (&'static str, fn(&Site, VdiUuid), &'static str);

/// What happens to a disk, and what the quarantine must say.
const DAMAGES: &[Damage] = &[
    ("zeroed", |site, vdi| rewrite(site, vdi, |bytes| bytes.fill(0)), "has no VHD footer"),
    ("truncated", |site, vdi| truncate(site, vdi, 3000), ""),
    ("emptied", |site, vdi| truncate(site, vdi, 0), ""),
    (
        "replaced by a symbolic link",
        |site, vdi| {
            let path = site.sr_folder().join(format!("{vdi}.vhd"));
            std::fs::remove_file(&path).unwrap();
            std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
        },
        "",
    ),
    (
        "without its parent",
        |site, _| {
            // The only file that is not named by a VDI is the base copy.
            let tree = vhd::Tree::open(site.sr_folder().as_std_path()).unwrap();
            let base =
                tree.list().unwrap().nodes.into_iter().find(|n| n.kind == vhd::tree::Kind::Base);
            std::fs::remove_file(site.sr_folder().join(format!("{}.vhd", base.unwrap().uuid)))
                .unwrap();
        },
        "parent",
    ),
];

fn truncate(site: &Site, vdi: VdiUuid, length: u64) {
    let path = site.sr_folder().join(format!("{vdi}.vhd"));
    std::fs::OpenOptions::new().write(true).open(path).unwrap().set_len(length).unwrap();
}

fn rewrite(site: &Site, vdi: VdiUuid, change: fn(&mut [u8])) {
    let path = site.sr_folder().join(format!("{vdi}.vhd"));
    let mut bytes = std::fs::read(&path).unwrap();
    change(&mut bytes);
    std::fs::OpenOptions::new().write(true).open(path).unwrap().write_all_at(&bytes, 0).unwrap();
}

#[tokio::test]
async fn it_is_listed_with_the_reason_and_the_others_work() {
    for placement in PLACEMENTS {
        for (name, damage, reason) in DAMAGES {
            let site = Site::new(placement).await;
            let sr = &site.sr;
            let victim = site.disk("victim").await;
            // Data makes the snapshot leave a base copy behind.
            let access =
                sr.vdi_attach(&Op::new(), victim, "t", AttachMode::ReadWrite).await.unwrap();
            drop(access);
            sr.vdi_detach(&Op::new(), victim, "t").await.unwrap();
            let tree = vhd::Tree::open(site.sr_folder().as_std_path()).unwrap();
            let disk = tree.open_disk(victim.0, vhd::Mode::Write).unwrap();
            vhd::Disk::write_at(&disk, 0, &[7; 4096]).unwrap();
            drop(disk);
            let spec = [NewSnapshot { vdi: victim, name: "s".into(), description: String::new() }];
            let snapshot = sr.vdi_snapshot(&Op::new(), &spec).await.unwrap().vdis[0].uuid;
            let healthy = site.disk("healthy").await;

            damage(&site, victim);

            let vdis = sr.scan(&Op::new()).await.unwrap().vdis;
            let find = |uuid| {
                vdis.iter()
                    .find(|vdi| vdi.uuid == uuid)
                    .unwrap_or_else(|| panic!("{name}: VDI {uuid} is missing from {vdis:#?}"))
            };
            assert_eq!(vdis.len(), 3, "{name}");
            let Health::Quarantined { reason: told } = &find(victim).health else {
                panic!("{name}: not quarantined: {:?}", find(victim));
            };
            assert!(told.contains(reason), "{name}: {told}");
            assert_eq!(find(victim).name, "victim", "{name}: its name is not lost");
            assert_eq!(find(healthy).health, Health::Ok, "{name}");
            let snapshot_is_lost = *name == "without its parent";
            assert_eq!(find(snapshot).health != Health::Ok, snapshot_is_lost, "{name}");

            // Nothing touches it; the error says why.
            let error =
                sr.vdi_attach(&Op::new(), victim, "vm", AttachMode::ReadWrite).await.unwrap_err();
            assert_eq!(error.kind, Kind::Corrupt, "{name}: {error}");
            let info = sr.stat(&Op::new()).await.unwrap();
            assert!(info.quarantined.contains(&victim), "{name}");
            let findings = sr.vdi_check(&Op::new(), victim).await.unwrap().findings;
            assert!(!findings.is_empty(), "{name}");
            // The others keep working.
            sr.vdi_clone(&Op::new(), healthy, "clone", "").await.unwrap();
            sr.vdi_destroy(&Op::new(), healthy).await.unwrap();
        }
    }
}

/// One of the two footers is enough to read; both are there before anything is written.
#[tokio::test]
async fn a_disk_without_its_footer_copy_is_degraded_until_it_is_attached_for_writing() {
    for placement in PLACEMENTS {
        let site = Site::new(placement).await;
        let disk = site.disk("d").await;
        let path = site.sr_folder().join(format!("{disk}.vhd"));
        let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
        file.write_all_at(&[0; 512], 0).unwrap();
        let vdi = site.sr.vdis(&Op::new()).await.unwrap().remove(0);
        let reason = "the footer copy at offset 0 is missing; an attach for writing restores it";
        assert_eq!(vdi.health, Health::Degraded { reason: reason.to_owned() });
        site.sr.vdi_attach(&Op::new(), disk, "vm", AttachMode::ReadOnly).await.unwrap();
        let findings = site.sr.vdi_check(&Op::new(), disk).await.unwrap().findings;
        assert!(findings.iter().any(|finding| finding.text.contains("footer")), "{findings:?}");
        site.sr.vdi_detach(&Op::new(), disk, "vm").await.unwrap();
        site.sr.vdi_attach(&Op::new(), disk, "vm", AttachMode::ReadWrite).await.unwrap();
        let findings = site.sr.vdi_check(&Op::new(), disk).await.unwrap().findings;
        assert_eq!(findings, []);
        assert_eq!(site.sr.vdis(&Op::new()).await.unwrap().remove(0).health, Health::Ok);
    }
}
