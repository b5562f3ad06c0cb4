//! A guest boots, runs commands, is killed and booted again; nothing of it stays.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails so")]

use std::time::{Duration, Instant};

use lab::{Error, Lab, Result};

#[test]
fn a_command_runs_and_its_status_and_outputs_come_back() -> Result<()> {
    let t = Instant::now();
    let lab = Lab::new()?;
    let guest = lab.guest("alone").boot()?;
    eprintln!("boot {:?}", t.elapsed());
    let output = guest.run(["sh", "-c", "echo out; echo err >&2; exit 3"])?;
    assert_eq!((output.status, output.text().as_str(), output.errors().as_str()), (3, "out", "err"));
    for _ in 0..5 { let t = Instant::now(); guest.check(["true"])?; eprintln!("true {:?}", t.elapsed()); }
    let t = Instant::now(); eprintln!("{}", guest.check(["lvm", "version"])?); eprintln!("{:?}", t.elapsed());
    Ok(())
}
