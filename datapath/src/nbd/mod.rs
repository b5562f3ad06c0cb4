//! The NBD protocol: server and client.
