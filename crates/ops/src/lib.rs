//! What each LLB op means: its identity for the cache, and its execution.
//!
//! - [`identity`]: op digests and the selectors of inputs, byte-equal to BuildKit's;
//! - [`Worker`]: makes [`castor_solver`] operations of vertices (sources, processes, file ops, merges, diffs) and looks
//!   into their results;
//! - [`files`]: what file ops do to directories;
//! - [`bridge`]: what a frontend may ask of its build.
//!
//! Everything blocking runs off the runtime's threads, and whatever may read a lazy layer runs where it may wait for a
//! registry.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod agent;
pub mod bridge;
mod container;
mod error;
mod failure;
pub mod files;
mod git;
pub mod identity;
mod images;
mod layout;
mod look;
mod openers;
mod operation;
mod passing;
pub mod path;
mod pins;
mod program;
mod web;
mod worker;

pub use bridge::{Attested, Bridge, BridgeError, LazyRef, Refs, SolveRequest, SolveResult};
pub use castor_executor::{Input, Output, Stdio, WindowSize};
pub use container::{Container, ContainerParts, ContainerProcess, ProcessFailure};
pub use error::OpError;
pub use failure::failure;
pub use git::GitError;
pub use images::{Images, ResolvedImage};
pub use openers::RegistryOpeners;
pub use passing::Passing;
pub use pins::Pins;
pub use web::WebError;
pub use worker::{Entitlements, Worker, WorkerConfig};

/// An id that nobody can guess: 25 characters, as BuildKit's ids have.
pub fn random_id() -> String {
    const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    let mut number = u128::from_ne_bytes(rand::random());
    let mut id = String::with_capacity(25);
    for _ in 0..25 {
        let digit = usize::try_from(number % 36).unwrap_or_default();
        id.push(char::from(DIGITS[digit]));
        number /= 36;
    }
    id
}
