//! A client of the OCI distribution protocol: resolve, fetch, read ranges, push, mount across repositories.
//!
//! [`Client`] is one for the daemon; who asks is said by [`Access`] with each call. Failures are retried here and no
//! request hangs: connecting, waiting for a token, waiting for the next byte are all bounded.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod access;
mod blob;
mod client;
mod config;
mod error;

pub use access::{Access, Anonymous, Basic, Credentials, CredentialsError, Fixed, Token, TokenRequest};
pub use blob::{BlobReader, Body, Priority};
pub use client::{BlobSource, Client, Image, Pushed, Repository, choose_platform};
pub use config::{Config, HostConfig, KeyPair};
pub use error::Error;
