//! All names that a vendor's crate usually needs: `use array_kit::prelude::*;`.

pub use plugin_sdk::config::{ConfigValue, RawConfig};
pub use plugin_sdk::model::sr::SrProbed;
pub use plugin_sdk::model::vdi::{Qos, Rate};
pub use plugin_sdk::model::{Bytes, SrUuid, VdiUuid};
pub use plugin_sdk::{Cx, Error, Manifest, Result, Secret, device_config, export_driver};
pub use serde_json::{Value, json};

pub use crate::answer::Answer;
pub use crate::array::*;
pub use crate::array_manifest;
pub use crate::classify::{Fault, Row, Table};
pub use crate::config::{Address, trust, with_default};
pub use crate::driver::{Offload, Product, probe};
pub use crate::hosts::{Entry, HostEntries, Known, Portal, Shown};
pub use crate::http::{Reply, Request, Trust, basic};
pub use crate::iscsi::IscsiHost;
pub use crate::ledger::{Ledger, ResizeKind, Settle};
pub use crate::metadata::Document;
pub use crate::names::{Codec, NameRule, Role};
pub use crate::outcome::{Class, Failure, OrAbsent, Outcome};
pub use crate::qos::{self, QosRule};
pub use crate::rest::{Door, Rest, Vendor};
pub use crate::retry::{Pace, wait};
pub use crate::size::SizeRule;
