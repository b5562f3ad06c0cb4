//! Which parts of a disk changed since a point in time.
