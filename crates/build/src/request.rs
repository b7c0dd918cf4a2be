//! What a client asks for.

use std::collections::BTreeMap;

use castor_llb::Definition;

use crate::{Policy, TraceContext};

/// A build, as Control.Solve describes it.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// The client's name for it; no other build may have it at the same time.
    pub id: String,
    /// What to build; without it and without a frontend the client drives the build through LLBBridge.
    pub definition: Option<Definition>,
    /// The frontend that makes the definition.
    pub frontend: String,
    /// Its options.
    pub options: BTreeMap<String, String>,
    /// Its inputs.
    pub inputs: BTreeMap<String, Definition>,
    /// Where the result goes.
    pub exporters: Vec<ExporterRequest>,
    /// Caches to write.
    pub cache_exports: Vec<CacheRequest>,
    /// Caches to look into.
    pub cache_imports: Vec<CacheRequest>,
    /// What the build wants to be allowed.
    pub entitlements: Vec<String>,
    /// The client's session.
    pub session: String,
    /// What sources are allowed, and what they become.
    pub policy: Policy,
    /// Not for the history.
    pub internal: bool,
    /// The trace that the client follows it in.
    pub trace: Option<TraceContext>,
}

/// One place where the result goes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExporterRequest {
    /// `image`, `local`, `tar` and so on.
    pub kind: String,
    /// Its attributes.
    pub attrs: BTreeMap<String, String>,
}

/// A cache to write or to look into.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CacheRequest {
    /// `registry`, `local` and so on.
    pub kind: String,
    /// Its attributes.
    pub attrs: BTreeMap<String, String>,
}
