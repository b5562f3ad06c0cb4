//! How much one execution may hold in memory.

use std::alloc::System;
use std::sync::Once;

use cap::Cap;

/// Refuses what goes beyond the limit; the fuzzer sees the abort.
#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, usize::MAX);

/// Ends the process when one execution holds more than `bytes` at a time.
pub fn limit_memory(bytes: usize) {
    // A panic is told, with its backtrace, which takes more than an execution may.
    static TELLING: Once = Once::new();
    TELLING.call_once(|| {
        let tell = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let _ = ALLOCATOR.set_limit(usize::MAX);
            tell(panic);
        }));
    });
    // Raised before it is lowered: what the last execution has left may be more.
    let _ = ALLOCATOR.set_limit(usize::MAX);
    ALLOCATOR.set_limit(ALLOCATOR.allocated() + bytes).expect("less was allocated a moment ago");
}
