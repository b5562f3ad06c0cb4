//! A shared object that is no driver.

/// Something to export.
#[unsafe(no_mangle)]
pub extern "C" fn answer() -> u32 {
    42
}
