//! A client of the OCI distribution protocol: resolve, fetch, read ranges, push, mount across repositories.
//!
//! [`Client`] is one for the daemon; who asks is said by [`Access`] with each call. Failures are retried here and no
//! request hangs: connecting, waiting for a token, waiting for the next byte are all bounded.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod access;
mod auth;
mod blob;
mod client;
mod config;
mod counters;
mod error;
mod hosts;
mod platform;
mod push;
mod transport;

pub use access::{Access, Anonymous, Basic, Credentials, CredentialsError, Fixed, Token, TokenRequest};
pub use blob::{BlobReader, Body, Priority};
pub use client::{Client, Image, Repository};
pub use config::{Config, HostConfig, KeyPair};
pub use counters::{Counts, InFlight};
pub use error::Error;
pub use platform::choose_platform;
pub use push::{BlobSource, Pushed};
