//! All names that a driver usually needs: `use plugin_sdk::prelude::*;`.

pub use camino::{Utf8Path, Utf8PathBuf};
pub use sm_model::access::*;
pub use sm_model::error::{Error, Kind, Result, Retry};
pub use sm_model::id::*;
pub use sm_model::manifest::{Isolation, feature};
pub use sm_model::size::Bytes;
pub use sm_model::sr::*;
pub use sm_model::vdi::*;
pub use sm_model::{Changed, Operation};
pub use sm_step::step;

pub use crate::config::RawConfig;
pub use crate::cx::Cx;
pub use crate::driver::{Driver, SessionHealth};
pub use crate::info::{new_vdi, quarantined_vdi};
pub use crate::manifest::{Feature, Manifest};
pub use crate::secret::Secret;
pub use crate::{device_config, export_driver, files, manifest};
