//! What makes an array one of a vendor's.

use super::array::Array;
use super::model::{Export, Trouble};
use super::objects::View;

/// A vendor's personality, as far as the data path and the admin port need it. How it is managed is
/// its own: over HTTP, or a command line.
pub trait Vendor: Send + Sync + 'static {
    /// Its name in commands: `truenas`.
    fn name(&self) -> &'static str;

    /// Makes what a new array of this vendor has. Called at each start.
    fn prepare(&self, array: &Array) -> Result<(), Trouble> {
        let _ = array;
        Ok(())
    }

    /// The LUNs that hosts can reach, as its objects have it.
    fn exports(&self, view: &View) -> Vec<Export>;
}
