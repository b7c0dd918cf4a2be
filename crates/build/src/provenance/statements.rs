//! What is said about the results of a build, to those who get them and to its record.

use std::collections::BTreeSet;
use std::sync::Arc;

use castor_exporter::{Attestation, BuildResult};
use castor_oci::Platform;
use castor_ops::{LazyRef, Refs, SolveResult};
use castor_progress::Timestamp;

use super::attest::{Provenance, Slsa, Wishes};
use super::capture::{Capture, Pins};
use super::made::MadeBefore;
use super::predicate::{Facts, Predicate};
use super::trail::Trail;

/// What is known of the results of a build.
#[derive(Debug, Clone)]
pub(crate) struct Known {
    facts: Facts,
    results: Vec<KnownResult>,
}

#[derive(Debug, Clone)]
struct KnownResult {
    /// The frontend's name for it; nothing for the only one.
    id: Option<String>,
    reference: LazyRef,
    capture: Capture,
}

/// Not everything that went in can be named, and the client insists on it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "provenance materials are incomplete\n\nThe build requested complete provenance materials, but not all \
     dependencies could be captured.{0}"
)]
pub(crate) struct Incomplete(String);

impl Known {
    /// What is known of `result`, which was computed to `computed`.
    pub(crate) fn of(
        trail: &Arc<Trail>,
        result: &SolveResult,
        computed: &BuildResult,
        facts: Facts,
        sources: (&Pins<'_>, &MadeBefore),
    ) -> Self {
        let refs: Vec<(Option<String>, LazyRef)> = match &result.refs {
            Refs::Single(reference) => reference.iter().map(|reference| (None, reference.clone())).collect(),
            Refs::Map(map) => {
                map.iter().filter_map(|(id, reference)| Some((Some(id.clone()), reference.clone()?))).collect()
            }
        };
        let ids: BTreeSet<String> = result.all_refs().map(|reference| reference.id().to_owned()).collect();
        let platforms: Vec<(String, Platform)> =
            computed.platforms.iter().map(|platform| (platform.id.clone(), platform.platform.clone())).collect();
        let results = refs
            .into_iter()
            .map(|(id, reference)| {
                let place = match &id {
                    Some(id) => (id.as_str(), platforms.as_slice()),
                    None => ("", [].as_slice()),
                };
                let capture = Capture::of(trail, &reference, place, &ids, sources);
                KnownResult { id, reference, capture }
            })
            .collect();
        Self { facts, results }
    }

    /// Attests of `computed` what is wanted.
    pub(crate) fn attest(&self, computed: &mut BuildResult, wanted: &Provenance) -> Result<(), Incomplete> {
        for platform in &mut computed.platforms {
            let known = self.results.iter().find(|known| known.id.as_ref().is_none_or(|id| *id == platform.id));
            // Nothing is said of an empty result.
            let Some(KnownResult { reference, capture, .. }) = known else { continue };
            let predicate = Predicate::new(capture, reference.definition(), wanted, &self.facts);
            if wanted.complete_materials && !predicate.names_all_materials() {
                return Err(Incomplete(uncaptured(capture)));
            }
            platform.attestations.push(Attestation {
                predicate_type: predicate.kind().to_owned(),
                predicate: predicate.to_json(Timestamp::now()),
                path: wanted.filename.clone(),
                inline_only: wanted.inline_only,
                subjects: Vec::new(),
                is_core: false,
            });
        }
        Ok(())
    }

    /// Everything there is to say, for the build's record.
    pub(crate) fn for_record(&self, wishes: &Wishes) -> Vec<(Option<String>, &'static str, bytes::Bytes)> {
        let wanted =
            Provenance { version: Slsa::V1, builder_id: wishes.builder_id().to_owned(), ..Provenance::default() };
        let statement = |known: &KnownResult| {
            let predicate = Predicate::new(&known.capture, known.reference.definition(), &wanted, &self.facts);
            (known.id.clone(), predicate.kind(), predicate.to_json(Timestamp::now()))
        };
        self.results.iter().map(statement).collect()
    }
}

/// The sources that nobody can say the content of.
fn uncaptured(capture: &Capture) -> String {
    if capture.local.is_empty() {
        return String::new();
    }
    let list = capture.local.iter().map(|name| {
        let name = if name.is_empty() { "<unnamed>" } else { name };
        format!("\n  - {name}\n    reason: local_source")
    });
    format!("\n\nUncaptured local sources:{}", list.collect::<String>())
}
