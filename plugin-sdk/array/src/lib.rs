//! What the drivers of storage arrays share.

#![forbid(unsafe_code)]
#![deny(missing_docs)]
