//! NFS: the kernel's server in one guest, its client in another.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use crate::error::Result;
use crate::guest::Guest;
use crate::wire::Step;

/// A server, for NFS 3, 4.0, 4.1 and 4.2.
pub struct Server {
    guest: Guest,
    folder: String,
}

impl Server {
    /// Exports a folder, which must be a file system of its own (see [`super::xfs`]): the guest's
    /// root is an overlay, which cannot be exported. With NFS 4 it is mounted as `/`, with NFS 3
    /// by its own path.
    pub fn start(guest: &Guest, folder: &str) -> Result<Self> {
        // Opens wait until the time for clients to reclaim theirs is over: 90 s by default. The
        // lock manager's own, five times the first number, holds up locks of NFS 4 as well.
        let times = [
            ("/proc/sys/fs/nfs/nlm_timeout", "3"),
            ("/proc/sys/fs/nfs/nlm_grace_period", "1"),
            ("/proc/fs/nfsd/nfsv4gracetime", "10"),
            ("/proc/fs/nfsd/nfsv4leasetime", "10"),
        ];
        let mut steps = vec![Step::Module("nfsd".into()), mounted("/proc/fs/nfsd", "nfsd")];
        steps.extend(times.map(|(file, seconds)| Step::Write(file.into(), seconds.into())));
        lock_manager(guest)?;
        guest.steps(steps)?;
        guest.check(["rpc.mountd"])?;
        let server = Self { guest: guest.clone(), folder: folder.to_owned() };
        server.resume()?;
        Ok(server)
    }

    /// Stops answering: the port is closed. Clients see a server that is being restarted.
    pub fn stop(&self) -> Result<()> {
        self.guest.check(["rpc.nfsd", "0"])?;
        self.guest.check(["exportfs", "-ua"]).map(drop)
    }

    /// Answers again after [`Server::stop`], at once for everybody: clients cannot take back what
    /// they had locked, and what they do under such a lock fails.
    pub fn resume(&self) -> Result<()> {
        self.restart()?;
        self.guest.write("/proc/fs/nfsd/v4_end_grace", "Y")
    }

    /// Answers again after [`Server::stop`]. As long as clients have to take back what they had open
    /// and locked, up to 10 s, others wait: what a server does that is started again.
    pub fn restart(&self) -> Result<()> {
        let options = "rw,no_root_squash,insecure,no_subtree_check,fsid=0";
        let clients = format!("10.9.0.0/16:{}", self.folder);
        self.guest.check(["exportfs", "-o", options, &clients])?;
        self.guest.check(["rpc.nfsd", "4"]).map(drop)
    }
}

fn mounted(target: &str, kind: &str) -> Step {
    Step::Mount {
        source: kind.into(),
        target: target.into(),
        kind: kind.into(),
        options: String::new(),
    }
}

/// What servers, and clients of NFS 3 that want locks, need: the port mapper and the monitor of
/// hosts.
fn lock_manager(guest: &Guest) -> Result<()> {
    let mut steps = vec![
        Step::Module("nfsv4".into()),
        Step::Module("nfsv3".into()),
        mounted("/var/lib/nfs", "tmpfs"),
        Step::Directory("/run/rpcbind".into()),
    ];
    let folders = ["v4recovery", "rpc_pipefs", "sm", "sm.bak"];
    let folders = folders.map(|name| PathBuf::from("/var/lib/nfs").join(name));
    steps.extend(folders.map(Step::Directory));
    for file in ["/var/lib/nfs/etab", "/var/lib/nfs/rmtab", "/etc/exports"] {
        steps.push(Step::Write(file.into(), String::new()));
    }
    // Packages are only unpacked, so nobody made the users of these services.
    let users = String::from_utf8_lossy(&guest.read("/etc/passwd")?).into_owned();
    for (user, number) in [("_rpc", 901), ("statd", 902)] {
        if !users.lines().any(|line| line.starts_with(&format!("{user}:"))) {
            let line = format!("{user}:x:{number}:65534::/run/rpcbind:/usr/sbin/nologin\n");
            steps.push(Step::Append("/etc/passwd".into(), line));
        }
    }
    guest.steps(steps)?;
    guest.check(["rpcbind", "-w"])?;
    guest.check(["rpc.statd", "--no-notify"]).map(drop)
}

/// Mounts `export` of a server; `options` as for `mount -t nfs -o`. With NFS 3, say `nolock` or
/// call [`client_locks`] before.
pub fn mount(
    guest: &Guest,
    server: Ipv4Addr,
    export: &str,
    folder: &str,
    options: &str,
) -> Result<()> {
    guest.load(&["nfsv4", "nfsv3"])?;
    guest.steps(vec![Step::Directory(folder.into())])?;
    let from = format!("{server}:{export}");
    guest.check(["mount", "-t", "nfs", "-o", options, &from, folder]).map(drop)
}

/// Lets a guest hold locks through NFS 3. NFS 4 needs nothing.
pub fn client_locks(guest: &Guest) -> Result<()> {
    lock_manager(guest)
}
