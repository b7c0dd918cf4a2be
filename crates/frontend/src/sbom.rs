//! Bills of materials: a scanner, which is a program in an image, looks at a result and writes statements about it.
//!
//! Who runs the scanner does not matter: the Dockerfile frontend does, because it knows stages that are to be looked at too;
//! for all other results the daemon does.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use castor_llb::state::{Constraints, ImageOptions, MarshalError, MountOptions, Run};
use castor_llb::{Definition, MarshalOptions, ResolveMode, State};
use castor_oci::{ImageConfig, Platform, Reference};
use castor_ops::bridge::{Attested, SourceMetaRequest};
use castor_ops::{Bridge, BridgeError, Refs, SolveRequest};

/// The scanner of those who name none.
const DEFAULT_SCANNER: &str = "docker/buildkit-syft-scanner:stable-1";
/// The type of the statements.
pub const PREDICATE: &str = "https://spdx.dev/Document";
/// What the scan of the result itself is called, and its file up to the first dot.
const CORE: &str = "sbom";
/// Where the scanner finds what it looks at.
const SOURCES: &str = "/run/src";
/// Where it writes statements.
const OUT: &str = "/run/out/";

/// How a bill of materials is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SbomOptions {
    /// The scanner's image, by its full name.
    pub generator: String,
    /// What the scanner is told, as variables `BUILDKIT_SCAN_…`.
    pub parameters: BTreeMap<String, String>,
}

impl SbomOptions {
    /// Reads the attributes of the option `attest:sbom`.
    pub fn new<'a>(attributes: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self, BridgeError> {
        let mut generator = DEFAULT_SCANNER.to_owned();
        let mut parameters = BTreeMap::new();
        for (key, value) in attributes {
            match key {
                "generator" if value.is_empty() => return Err(BridgeError::unknown("sbom generator cannot be empty")),
                "generator" => value.clone_into(&mut generator),
                _ => drop(parameters.insert(key.to_owned(), value.to_owned())),
            }
        }
        let reference: Reference = generator
            .parse()
            .map_err(|error| BridgeError::unknown(format!("failed to parse sbom generator {generator}: {error}")))?;
        Ok(Self { generator: reference.to_string(), parameters })
    }
}

/// What a scanner looks at.
#[derive(Debug, Clone, Default)]
pub struct ScanTarget {
    /// The result.
    pub core: Definition,
    /// What else went into it, by name.
    pub extras: BTreeMap<String, Definition>,
    /// Scan even what was scanned before.
    pub ignore_cache: bool,
}

/// A scanner whose image was found.
pub struct Scanner {
    bridge: Arc<dyn Bridge>,
    reference: String,
    platform: Platform,
    config: ImageConfig,
    parameters: BTreeMap<String, String>,
}

impl std::fmt::Debug for Scanner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Scanner").field(&self.reference).finish()
    }
}

impl Scanner {
    /// Looks the scanner's image up. `mode` says when to ask its registry.
    pub async fn find(bridge: Arc<dyn Bridge>, options: &SbomOptions, mode: ResolveMode) -> Result<Self, BridgeError> {
        let workers = bridge.workers();
        let native = workers.first().and_then(|worker| worker.platforms.first().cloned());
        let platform = native.unwrap_or_else(Platform::host);
        let generator = &options.generator;
        let lookup = SourceMetaRequest {
            identifier: format!("docker-image://{generator}"),
            platform: Some(platform.clone()),
            resolve_mode: mode,
            ..SourceMetaRequest::default()
        };
        let context = |error: BridgeError| error.context(format!("failed to resolve source metadata for {generator}"));
        let meta = bridge.resolve_source(lookup).await.map_err(context)?;
        let reference = meta.identifier.strip_prefix("docker-image://").unwrap_or(generator).to_owned();
        let image = meta.image.ok_or_else(|| BridgeError::unknown(format!("{generator} is not an image")))?;
        let config: ImageConfig = serde_json::from_slice(&image.config)
            .map_err(|error| BridgeError::unknown(format!("invalid config of the image {reference}: {error}")))?;
        let scanner = Self { bridge, reference, platform, config, parameters: options.parameters.clone() };
        match scanner.args().is_empty() {
            true => Err(BridgeError::unknown(format!("scanner {} does not have cmd", scanner.reference))),
            false => Ok(scanner),
        }
    }

    fn args(&self) -> Vec<String> {
        let config = &self.config.config;
        config.entrypoint.iter().flatten().chain(config.cmd.iter().flatten()).cloned().collect()
    }

    /// The scan of `target`, which is called `name`. Nothing runs until the statements are wanted.
    pub async fn scan(&self, name: &str, target: &ScanTarget) -> Result<Attested, BridgeError> {
        let bad = |error: MarshalError| BridgeError::unknown(format!("failed to marshal the scan: {error}"));
        let definition = self.definition(name, target).map_err(bad)?;
        let solve = SolveRequest { definition: Some(definition), ..SolveRequest::default() };
        let Refs::Single(reference) = self.bridge.solve(solve).await?.refs else {
            return Err(BridgeError::unknown("failed to get single reference from result map"));
        };
        let text = |text: &'static str| Bytes::from_static(text.as_bytes());
        Ok(Attested {
            bundle: true,
            metadata: BTreeMap::from([("reason".into(), text("sbom")), ("sbom-core".into(), text(CORE))]),
            reference,
            predicate_type: PREDICATE.to_owned(),
            ..Attested::default()
        })
    }

    fn definition(&self, name: &str, target: &ScanTarget) -> Result<Definition, MarshalError> {
        let config = &self.config.config;
        let split = |entry: &String| {
            let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
            (name.to_owned(), value.to_owned())
        };
        let mut env: Vec<(String, String)> = config.env.iter().map(split).collect();
        env.push(("BUILDKIT_SCAN_DESTINATION".into(), OUT.into()));
        env.push(("BUILDKIT_SCAN_SOURCE".into(), format!("{SOURCES}/core/{CORE}")));
        if !target.extras.is_empty() {
            env.push(("BUILDKIT_SCAN_SOURCE_EXTRAS".into(), format!("{SOURCES}/extras")));
        }
        env.extend(self.parameters.iter().map(|(key, value)| (format!("BUILDKIT_SCAN_{key}"), value.clone())));

        let readonly = || MountOptions { readonly: true, ..MountOptions::default() };
        let tmpfs = MountOptions { tmpfs: Some(0), ..MountOptions::default() };
        let core = State::from_definition(&target.core)?;
        let mut mounts = vec![
            (OUT.to_owned(), State::scratch(), MountOptions::default()),
            ("/tmp".to_owned(), State::scratch(), tmpfs),
            (format!("{SOURCES}/core/{CORE}"), core, readonly()),
        ];
        for (name, definition) in &target.extras {
            let state = State::from_definition(definition)?;
            mounts.push((format!("{SOURCES}/extras/{CORE}-{name}"), state, readonly()));
        }
        let image = Constraints::new().platform(Some(&self.platform));
        let image = State::image(&self.reference, &ImageOptions::default(), image);
        let run = image.run(Run {
            args: self.args(),
            env,
            dir: Some(config.working_dir.clone()).filter(|dir| !dir.is_empty()),
            mounts,
            constraints: Constraints::new()
                .name(format!("[{name}] generating sbom using {}", self.reference))
                .ignore_cache(target.ignore_cache),
            ..Run::default()
        });
        let statements = run.mount(0).cloned().unwrap_or_else(State::scratch);
        statements.marshal(&MarshalOptions::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scanner_is_named_in_full() {
        let default = SbomOptions::new([]).unwrap();
        assert_eq!(default.generator, "docker.io/docker/buildkit-syft-scanner:stable-1");
        let own = SbomOptions::new([("generator", "x.io/a"), ("STAGES", "a,b")]).unwrap();
        assert_eq!(own.generator, "x.io/a:latest");
        assert_eq!(own.parameters["STAGES"], "a,b");
        let error = |name| SbomOptions::new([("generator", name)]).unwrap_err().message;
        assert_eq!(error(""), "sbom generator cannot be empty");
        assert!(error("A B").starts_with("failed to parse sbom generator A B: "));
    }
}
