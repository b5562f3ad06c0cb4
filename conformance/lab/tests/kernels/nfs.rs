//! NFS across guests: data, and what soft and hard mounts do when the server is not there.

use std::time::Duration;

use lab::kit::{self, nfs};
use lab::{Guest, Lab, Network, Result};

struct Site<const HOSTS: usize> {
    network: Network,
    nas: Guest,
    server: nfs::Server,
    hosts: [Guest; HOSTS],
}

fn site<const HOSTS: usize>(hosts: [&str; HOSTS]) -> Result<Site<HOSTS>> {
    let lab = Lab::new()?;
    let network = lab.network()?;
    let [nas] = lab.boot([lab.guest("nas").network(&network)])?;
    let hosts = lab.boot(hosts.map(|name| lab.guest(name).network(&network)))?;
    kit::xfs(&nas, "/srv/nfs.img", Some(512 << 20), "/srv/nfs")?;
    let server = nfs::Server::start(&nas, "/srv/nfs")?;
    Ok(Site { network, nas, server, hosts })
}

fn mount<const HOSTS: usize>(
    site: &Site<HOSTS>,
    host: usize,
    folder: &str,
    options: &str,
) -> Result<()> {
    let export = if options.contains("vers=3") { "/srv/nfs" } else { "/" };
    nfs::mount(&site.hosts[host], site.nas.address(&site.network)?, export, folder, options)
}

#[test]
fn two_hosts_share_files_and_locks() -> Result<()> {
    let site = site(["host-a", "host-b"])?;
    let (a, b) = (&site.hosts[0], &site.hosts[1]);
    mount(&site, 0, "/sr", "vers=4.2,soft,timeo=100")?;
    mount(&site, 1, "/sr", "vers=4.1,soft,timeo=100")?;
    nfs::client_locks(b)?;
    mount(&site, 1, "/old", "vers=3,soft,timeo=100")?;
    a.check(["dd", "if=/dev/urandom", "of=/sr/one", "bs=1M", "count=4", "conv=fsync"])?;
    let written = a.check(["sha256sum", "/sr/one"])?;
    assert_eq!(b.check(["sha256sum", "/sr/one"])?, written);
    assert_eq!(b.check(["sha256sum", "/old/one"])?, written.replace("/sr", "/old"));
    // Done by the server, which shares the blocks.
    a.check(["cp", "--reflink=always", "/sr/one", "/sr/two"])?;
    site.nas.check(["cmp", "/srv/nfs/one", "/srv/nfs/two"])?;

    let holder =
        a.command(["flock", "/sr/lock", "sh", "-c", "echo held; exec sleep 1000"]).start()?;
    a.wait_for("the lock", Duration::from_secs(30), |_| {
        Ok(if holder.so_far().contains("held") { Ok(()) } else { Err(holder.so_far()) })
    })?;
    assert_eq!(b.run(["flock", "-n", "/sr/lock", "true"])?.status, 1);
    Ok(())
}

#[test]
fn a_soft_mount_fails_and_a_hard_one_waits() -> Result<()> {
    let site = site(["host"])?;
    let host = &site.hosts[0];
    mount(&site, 0, "/soft", "vers=4.2,soft,timeo=5,retrans=1,nosharecache")?;
    mount(&site, 0, "/hard", "vers=4.2,hard,timeo=5,retrans=1,nosharecache")?;
    let write = |file: &str, bytes: &str| {
        let (file, bs) = (format!("of={file}"), format!("bs={bytes}"));
        host.command(["dd", "if=/dev/zero", &file, &bs, "count=1", "conv=fsync"])
    };
    write("/soft/before", "4k").check()?;

    site.network.unplug(&site.nas);
    let hard = write("/hard/file", "64k").start()?;
    let soft = write("/soft/file", "64k").deadline(Duration::from_secs(120)).run()?;
    assert_ne!(soft.status, 0);
    assert!(soft.errors().contains("Input/output error"), "{}", soft.errors());
    assert_eq!(hard.ended(), None);
    site.network.plug(&site.nas);
    assert_eq!(hard.wait(Duration::from_secs(120))?.status, 0);

    // A server that is stopped and started again: the same, with the port closed.
    site.server.stop()?;
    let hard = write("/hard/file", "128k").start()?;
    let late = host.wait_for("nothing", Duration::from_secs(2), |_| {
        Ok(hard.ended().ok_or_else(|| "it waits".to_owned()))
    });
    assert!(late.is_err(), "a write ended with {late:?} though the server was stopped");
    site.server.resume()?;
    assert_eq!(hard.wait(Duration::from_secs(120))?.status, 0);
    assert_eq!(site.nas.check(["stat", "-c", "%s", "/srv/nfs/file"])?, "131072");
    Ok(())
}
