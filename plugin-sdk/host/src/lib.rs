//! What drivers do on the host that they run on, so that none of them writes it again.
//!
//! | module | what |
//! |---|---|
//! | [`lvm`] | LVM by its JSON reports; SRs whose VDIs are logical volumes |
//!
//! Programs are run by argument vector, with the deadline of the call; waiting is for a condition,
//! never for a time. Errors are those of the model, with SMAPI's numbers.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod lvm;
