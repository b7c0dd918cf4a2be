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

impl Request {
    /// The same, with the builtin frontend called by its own name where it is asked for as if it were an image.
    pub(crate) fn direct(mut self) -> Self {
        const BUILTIN: &str = "dockerfile.v0";
        let replaced = |key: &String| {
            key.strip_prefix("context:").and_then(|name| name.split("::").next()).is_some_and(|name| name == BUILTIN)
        };
        let builtin = self.options.get("source").is_some_and(|source| source == BUILTIN);
        if self.frontend == "gateway.v0" && builtin && !self.options.keys().any(replaced) {
            self.options.remove("source");
            BUILTIN.clone_into(&mut self.frontend);
        }
        self
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_builtin_frontend_has_its_own_name() {
        let asked = |options: &[(&str, &str)]| {
            let options = options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            Request { frontend: "gateway.v0".into(), options, ..Request::default() }.direct()
        };
        let direct = asked(&[("source", "dockerfile.v0"), ("cmdline", "x")]);
        assert_eq!(direct.frontend, "dockerfile.v0");
        assert_eq!(direct.options.keys().collect::<Vec<_>>(), ["cmdline"]);
        for context in ["context:dockerfile.v0", "context:dockerfile.v0::linux/amd64"] {
            assert_eq!(asked(&[("source", "dockerfile.v0"), (context, "local:x")]).frontend, "gateway.v0");
        }
        let image = asked(&[("source", "docker/dockerfile:1")]);
        assert_eq!((image.frontend.as_str(), image.options.len()), ("gateway.v0", 1));
    }
}
