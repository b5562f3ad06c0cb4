//! One disk made of a chain of images.
