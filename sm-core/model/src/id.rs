//! Identifiers.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

macro_rules! uuid_newtype {
    ($(#[doc = $doc:literal])* $name:ident) => {
        $(#[doc = $doc])*
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
            JsonSchema,
        )]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// A new random identifier (UUID version 4).
            pub fn random() -> Self {
                Self(Uuid::new_v4())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self)
            }
        }
    };
}

uuid_newtype! {
    /// A storage repository.
    SrUuid
}
uuid_newtype! {
    /// A virtual disk image. The storage keeps it: it survives forget and introduce.
    VdiUuid
}
uuid_newtype! {
    /// One wish of a caller. The same id always gets the same answer, also after a crash between
    /// doing and answering: it is the idempotency key of a mutating operation.
    OperationId
}

/// Name space of the identifiers that are derived from an operation id.
const DERIVED: Uuid = Uuid::from_u128(0x7d0e_55c4_9f3a_4f0e_8f0c_61f3_5c0b_52a1);

impl OperationId {
    /// The `n`-th VDI this operation makes. It follows from the operation id alone (UUID version
    /// 5), so a retry names the same disk even if every record of the first try was lost.
    pub fn vdi(self, n: u32) -> VdiUuid {
        self.derived("vdi", n).into()
    }

    /// The `n`-th identifier with the given `role` that follows from this operation id.
    pub fn derived(self, role: &str, n: u32) -> Uuid {
        let space = Uuid::new_v5(&DERIVED, self.0.as_bytes());
        Uuid::new_v5(&space, format!("{role}-{n}").as_bytes())
    }

    /// The two halves, most significant first, as they cross the binary interface.
    pub fn halves(self) -> [u64; 2] {
        let (high, low) = self.0.as_u64_pair();
        [high, low]
    }

    /// The reverse of [`Self::halves`].
    pub fn from_halves([high, low]: [u64; 2]) -> Self {
        Self(Uuid::from_u64_pair(high, low))
    }
}

impl From<Uuid> for VdiUuid {
    fn from(uuid: Uuid) -> Self {
        Self(uuid)
    }
}

impl From<Uuid> for SrUuid {
    fn from(uuid: Uuid) -> Self {
        Self(uuid)
    }
}

/// A machine that attaches VDIs, by the name or UUID its toolstack gives it.
#[derive(
    Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(transparent)]
pub struct HostId(pub String);

impl fmt::Display for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derived_ids_are_stable_and_differ() {
        let op = OperationId(Uuid::from_u128(1));
        assert_eq!(op.vdi(0), op.vdi(0));
        assert_ne!(op.vdi(0), op.vdi(1));
        assert_ne!(op.vdi(0).0, op.derived("base", 0));
        // Frozen: another value would make a retry after an upgrade create a second disk.
        assert_eq!(op.vdi(0).to_string(), "619372c4-f8f4-544a-9121-5566407a9574");
    }

    #[test]
    fn halves_round_trip() {
        let op = OperationId::random();
        assert_eq!(OperationId::from_halves(op.halves()), op);
    }
}
