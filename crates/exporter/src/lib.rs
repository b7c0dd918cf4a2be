//! Results leave the daemon: as images pushed to registries, as archives, as directories at the client.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod document;
