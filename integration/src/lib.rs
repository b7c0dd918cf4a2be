//! castor's programs run for real: daemons started and stopped, base images made, what they leave behind checked.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod build;
pub mod bundle;
pub mod daemon;
pub mod debian;
pub mod go;
pub mod hello;
pub mod programs;
pub mod project;
pub mod scene;
pub mod settings;
pub mod transcript;
pub mod tree;
