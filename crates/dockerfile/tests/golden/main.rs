//! What the frontend makes of Dockerfiles, compared with what BuildKit 73ed6825 makes of them.
//!
//! `testdata` holds Dockerfiles and options with the definitions, configs, errors and warnings that BuildKit
//! answered; `base` are the configs of the images that they use. Every case of a file is run, and all that differ
//! are shown.

#![allow(clippy::unwrap_used, missing_docs)]

mod corpus;
mod definitions;
mod errors;
mod expand;
mod frontend;
mod ignored;
