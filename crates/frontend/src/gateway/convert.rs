//! Between the bridge's types and those of the wire.

use std::collections::BTreeMap;

use castor_llb::{Definition, ResolveMode};
use castor_oci::{Digest, Platform};
use castor_ops::bridge::{AttestedSubject, CacheImport, SourceMetaRequest, WorkerInfo};
use castor_ops::{Attested, BridgeError, SolveRequest, bridge::code};
use castor_progress::{Range, SourceInfo, Warning};
use castor_proto::{gateway, pb, types};

pub(super) fn invalid(message: impl Into<String>) -> BridgeError {
    BridgeError::new(code::INVALID_ARGUMENT, message)
}

pub(super) fn platform(wire: &pb::Platform) -> Platform {
    Platform {
        architecture: wire.architecture.clone(),
        os: wire.os.clone(),
        os_version: wire.os_version.clone(),
        os_features: wire.os_features.clone(),
        variant: wire.variant.clone(),
    }
}

fn platform_to_pb(platform: &Platform) -> pb::Platform {
    pb::Platform {
        architecture: platform.architecture.clone(),
        os: platform.os.clone(),
        variant: platform.variant.clone(),
        os_version: platform.os_version.clone(),
        os_features: platform.os_features.clone(),
    }
}

pub(super) fn worker(worker: &WorkerInfo) -> types::WorkerRecord {
    types::WorkerRecord {
        id: worker.id.clone(),
        labels: worker.labels.clone(),
        platforms: worker.platforms.iter().map(platform_to_pb).collect(),
        ..types::WorkerRecord::default()
    }
}

fn resolve_mode(text: &str) -> Result<ResolveMode, BridgeError> {
    ResolveMode::parse(text).ok_or_else(|| BridgeError::unknown(format!("invalid resolveMode: {text}")))
}

pub(super) fn solve_request(wire: gateway::SolveRequest) -> Result<SolveRequest, BridgeError> {
    if !wire.source_policies.is_empty() {
        return Err(BridgeError::unimplemented("source policies are not supported by castor yet"));
    }
    Ok(SolveRequest {
        definition: wire.definition.map(Definition::from_pb).filter(|definition| !definition.is_empty()),
        frontend: wire.frontend,
        options: wire.frontend_opt,
        inputs: wire.frontend_inputs.into_iter().map(|(name, wire)| (name, Definition::from_pb(wire))).collect(),
        cache_imports: wire
            .cache_imports
            .into_iter()
            .map(|import| CacheImport { kind: import.r#type, attrs: import.attrs })
            .collect(),
        evaluate: wire.evaluate,
    })
}

/// What a frontend attests, but for its ref.
pub(super) fn attested(wire: gateway::Attestation) -> Result<Attested, BridgeError> {
    let subject = |subject: gateway::InTotoSubject| match gateway::InTotoSubjectKind::try_from(subject.kind) {
        Ok(kind) => {
            let is_result = kind == gateway::InTotoSubjectKind::Self_;
            Ok(AttestedSubject { is_result, name: subject.name, digests: subject.digest })
        }
        Err(_) => Err(invalid(format!("unknown attestation subject type {}", subject.kind))),
    };
    let bundle = match gateway::AttestationKind::try_from(wire.kind) {
        Ok(kind) => kind == gateway::AttestationKind::Bundle,
        Err(_) => return Err(invalid(format!("unknown attestation kind {}", wire.kind))),
    };
    Ok(Attested {
        bundle,
        metadata: wire.metadata,
        reference: None,
        path: wire.path,
        predicate_type: wire.in_toto_predicate_type,
        subjects: wire.in_toto_subjects.into_iter().map(subject).collect::<Result<_, _>>()?,
    })
}

/// The same in the other direction.
pub(super) fn attested_to_wire(attested: Attested) -> gateway::Attestation {
    let kind = match attested.bundle {
        true => gateway::AttestationKind::Bundle,
        false => gateway::AttestationKind::InToto,
    };
    let subject = |subject: AttestedSubject| {
        let kind = match subject.is_result {
            true => gateway::InTotoSubjectKind::Self_,
            false => gateway::InTotoSubjectKind::Raw,
        };
        gateway::InTotoSubject { kind: kind.into(), digest: subject.digests, name: subject.name }
    };
    gateway::Attestation {
        kind: kind.into(),
        metadata: attested.metadata,
        r#ref: None,
        path: attested.path,
        in_toto_predicate_type: attested.predicate_type,
        in_toto_subjects: attested.subjects.into_iter().map(subject).collect(),
    }
}

pub(super) fn source_meta_request(wire: gateway::ResolveSourceMetaRequest) -> Result<SourceMetaRequest, BridgeError> {
    if !wire.source_policies.is_empty() {
        return Err(BridgeError::unimplemented("source policies are not supported by castor yet"));
    }
    let Some(source) = wire.source else { return Err(invalid("source is required")) };
    if wire.http.is_some_and(|http| http.checksum_request.is_some()) {
        return Err(BridgeError::unimplemented("checksums of files with a suffix are not supported by castor yet"));
    }
    let image = wire.image.unwrap_or_default();
    if image.attestation_chain || !image.resolve_attestations.is_empty() {
        return Err(BridgeError::unimplemented("attestations of images are not supported by castor yet"));
    }
    Ok(SourceMetaRequest {
        identifier: source.identifier,
        attrs: source.attrs,
        platform: wire.platform.as_ref().map(platform),
        log_name: wire.log_name,
        resolve_mode: resolve_mode(&wire.resolve_mode)?,
        no_config: image.no_config,
        git_objects: wire.git.is_some_and(|git| git.return_object),
    })
}

/// The older request, for images alone.
pub(super) fn image_config_request(
    wire: &gateway::ResolveImageConfigRequest,
) -> Result<SourceMetaRequest, BridgeError> {
    if !wire.source_policies.is_empty() {
        return Err(BridgeError::unimplemented("source policies are not supported by castor yet"));
    }
    let (scheme, attrs) = match wire.resolver_type {
        0 => ("docker-image", BTreeMap::new()),
        // An OCI layout of the client.
        1 => {
            let attrs = [("oci.session", &wire.session_id), ("oci.store", &wire.store_id)];
            let attrs = attrs.into_iter().filter(|(_, value)| !value.is_empty());
            ("oci-layout", attrs.map(|(name, value)| (name.to_owned(), value.clone())).collect())
        }
        kind => return Err(invalid(format!("invalid resolver type {kind}"))),
    };
    Ok(SourceMetaRequest {
        identifier: format!("{scheme}://{}", wire.r#ref),
        attrs,
        platform: wire.platform.as_ref().map(platform),
        log_name: wire.log_name.clone(),
        resolve_mode: resolve_mode(&wire.resolve_mode)?,
        ..SourceMetaRequest::default()
    })
}

pub(super) fn warning(wire: gateway::WarnRequest) -> Result<Warning, BridgeError> {
    let vertex: Digest =
        wire.digest.parse().map_err(|error| invalid(format!("invalid digest of the warning's vertex: {error}")))?;
    let position = |at: &Option<pb::Position>| at.as_ref().map_or((0, 0), |at| (at.line, at.character));
    let range = |range: &pb::Range| Range { start: position(&range.start), end: position(&range.end) };
    Ok(Warning {
        vertex,
        level: wire.level,
        short: wire.short,
        detail: wire.detail,
        url: wire.url,
        source: wire.info.map(|info| SourceInfo { filename: info.filename, data: info.data, language: info.language }),
        ranges: wire.ranges.iter().map(range).collect(),
    })
}
