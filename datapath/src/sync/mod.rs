//! Brings another disk to the same content while the first is written.
