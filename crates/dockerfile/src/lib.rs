//! The Dockerfile frontend: text → instructions → stages → LLB and an image config.
//!
//! # What
//! [`convert`] is the builtin `dockerfile.v0`. It is pure: all that it needs from outside (image configs, the
//! `.dockerignore` files of contexts) it asks for through [`MetaResolver`]. What a client can ask of it stands in
//! [`Options`].
//!
//! # Flow
//! [`parser`] splits the text into nodes (directives, continuations, heredocs, JSON forms), [`instruction`] types
//! them and checks flags, `convert` makes stages of them, resolves the images that the target needs, and dispatches
//! instruction by instruction into LLB ([`castor_llb::State`]) and config. [`shell`] expands variables on the way,
//! [`lint`] collects what is legal but unwise.
//!
//! # Invariants
//! The same text, options and answers give the same definition, byte for byte that of BuildKit. Nothing is ignored
//! silently: what castor cannot do is refused by name, here or by the daemon through the capability on the op.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod archive;
mod convert;
mod error;
mod git;
mod gofmt;
pub mod ignore;
pub mod instruction;
pub mod lint;
mod lookup;
mod options;
pub mod parser;
pub mod platform;
mod quantity;
pub mod shell;
mod suggest;

pub use archive::is_archive;
pub use convert::{
    HTTP_HEAD, HTTP_NAME, ListedTarget, Outline, OutlineArg, OutlineMount, Request, ScanTargets, Target, check,
    context_for_image, convert, dockerfile_source, http_context, outline, targets,
};
pub use error::{DockerfileError, Locations};
pub use git::commit_time;
pub use lookup::{
    IgnoreFile, IgnoreLookup, ImageLookup, LookupError, MetaResolver, OciLayoutLookup, ResolvedImage, TimeLookup,
};
pub use options::{CacheImport, HttpContext, Options, OptionsError, frontend_caps};
