//! Tests that run in a guest.

use std::time::Duration;

use crate::error::{Error, Result};
use crate::guest::Builder;
use crate::lab::Lab;

/// Time for the body of such a test.
const TEST: Duration = Duration::from_secs(180);

/// Runs the body of a test in a guest of its own: the test program starts there once more, with
/// this test alone. The body must be a closure that stands directly in the test function, because
/// the test's name is taken from it.
///
/// ```no_run
/// #[test]
/// fn a_volume_group_is_made() -> lab::Result<()> {
///     let describe = |lab: &lab::Lab| Ok(lab.guest("host").disk(&lab.disk("a", 1 << 30)?));
///     lab::in_guest(describe, || {
///         // This is root on a kernel of its own, and /dev/ubda is its disk.
///     })
/// }
/// ```
pub fn in_guest<B: FnOnce()>(
    describe: impl FnOnce(&Lab) -> Result<Builder>,
    body: B,
) -> Result<()> {
    if inside() {
        body();
        return Ok(());
    }
    let name = std::any::type_name::<B>();
    let test = name.split_once("::").and_then(|(_, rest)| rest.strip_suffix("::{{closure}}"));
    let test = test.ok_or_else(|| {
        Error::Wrong(format!("{name} is no closure in a test, so the test has no name"))
    })?;
    let program = std::env::current_exe()
        .map_err(|cause| Error::Machine { doing: "find this program".into(), cause })?;
    let lab = Lab::new()?;
    let guest = describe(&lab)?.boot()?;
    let program = program.display().to_string();
    let words = [&program, "--exact", test, "--nocapture", "--test-threads=1"];
    let mut call = guest.command(words).deadline(TEST);
    for variable in ["RUST_BACKTRACE", "RUST_LOG"] {
        if let Ok(value) = std::env::var(variable) {
            call = call.env(variable, value);
        }
    }
    let output = call.run()?.success()?;
    if output.text().contains("test result: ok. 1 passed") {
        return Ok(());
    }
    Err(Error::Wrong(format!("{program} has no test {test}:\n{}", output.text())))
}

/// Whether this program runs in a guest. What changes disks of its machine must ask.
pub fn inside() -> bool {
    std::env::var_os("LAB_GUEST").is_some()
}
