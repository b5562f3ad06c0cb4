//! This process, from its first line to its last.
