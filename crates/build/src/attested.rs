//! What is attested of a result: by its frontend, and by a scanner where a bill of materials is wanted and the frontend made
//! none.

use std::collections::BTreeMap;
use std::sync::Arc;

use castor_exporter::{BuildResult, Claim, StatementSubject, read_claims};
use castor_frontend::{SBOM_PREDICATE, SbomOptions, ScanTarget, Scanner};
use castor_llb::ResolveMode;
use castor_ops::bridge::AttestedSubject;
use castor_ops::{Attested, BridgeError, Refs, SolveResult};
use castor_progress::Reporter;
use futures::future::try_join_all;

use crate::Build;
use crate::bridge::BuildBridge;

impl Build {
    /// Has the result scanned, unless its frontend brings a bill of materials. Nothing runs yet.
    pub(crate) async fn scan(
        &self,
        bridge: &Arc<BuildBridge>,
        result: &mut SolveResult,
        wanted: &SbomOptions,
    ) -> Result<(), BridgeError> {
        if result.attestations.values().flatten().any(|attested| attested.predicate_type == SBOM_PREDICATE) {
            return Ok(());
        }
        let options = &self.request().options;
        let mode = options.get("image-resolve-mode").map_or("", String::as_str);
        let mode = ResolveMode::parse(mode)
            .ok_or_else(|| BridgeError::unknown(format!("invalid image-resolve-mode: {mode}")))?;
        let scanner = Scanner::find(bridge.apart(), wanted, mode).await?;
        let ignore_cache = options.get("no-cache").is_some_and(String::is_empty);
        for platform in self.outline(result)?.platforms {
            let reference = match &result.refs {
                Refs::Single(reference) => reference.as_ref(),
                Refs::Map(refs) => refs.get(&platform.id).and_then(Option::as_ref),
            };
            // Nothing is said of an empty result.
            let Some(reference) = reference else { continue };
            let core = reference.definition().clone();
            let target = ScanTarget { core, extras: BTreeMap::new(), ignore_cache };
            let attested = scanner.scan(&platform.id, &target).await?;
            result.attestations.entry(platform.id).or_default().push(attested);
        }
        Ok(())
    }

    /// Computes what is attested and, where it is to leave, reads it into `computed`.
    pub(crate) async fn attest(
        &self,
        bridge: &BuildBridge,
        result: &SolveResult,
        computed: &mut BuildResult,
        leaves: bool,
    ) -> Result<(), BridgeError> {
        for (id, attested) in &result.attestations {
            let claims = try_join_all(attested.iter().map(|attested| claim(bridge, attested))).await?;
            if !leaves {
                continue;
            }
            for platform in computed.platforms.iter_mut().filter(|platform| platform.id == *id) {
                let read = read_claims(&bridge.cx(Reporter::discard()), claims.clone()).await;
                platform.attestations = read.map_err(|error| BridgeError::unknown(error.to_string()))?;
            }
        }
        Ok(())
    }
}

async fn claim(bridge: &BuildBridge, attested: &Attested) -> Result<Claim, BridgeError> {
    let reference = match &attested.reference {
        Some(reference) => Some(bridge.compute(reference).await?),
        None => None,
    };
    let said = |key: &str| attested.metadata.get(key).map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    Ok(Claim {
        bundle: attested.bundle,
        reference,
        path: attested.path.clone(),
        predicate_type: attested.predicate_type.clone(),
        subjects: attested.subjects.iter().map(subject).collect(),
        inline_only: said("inline-only").is_some_and(|value| value == "true"),
        core: said("sbom-core"),
    })
}

fn subject(subject: &AttestedSubject) -> StatementSubject {
    if subject.is_result {
        return StatementSubject::Result(subject.name.clone());
    }
    // Digests name their algorithm.
    let digests = subject.digests.iter().filter_map(|digest| digest.split_once(':'));
    let digests = digests.map(|(algorithm, hex)| (algorithm.to_owned(), hex.to_owned())).collect();
    StatementSubject::Other(subject.name.clone(), digests)
}
