//! Requests and records between their wire forms and the daemon's.

use std::time::Duration;

use castor_build::status::timestamp;
use castor_build::{CacheRequest, ExporterRequest, Request};
use castor_llb::Definition;
use castor_ops::bridge::WorkerInfo;
use castor_proto::{control as wire, pb, types};
use castor_store::{Filter, GcPolicy, PruneOptions, RecordInfo};
use tonic::Status;

/// A request to build. Clients of any age are understood: what older ones say in other fields counts where the newer
/// ones are empty.
pub(crate) fn request(wire: wire::SolveRequest) -> Result<Request, Status> {
    match wire.compatibility_version {
        0 | 10 | 20 | 30 => {}
        version => return Err(Status::invalid_argument(format!("unsupported compatibility version {version}"))),
    }
    let policy = castor_build::Policy::new(wire.source_policy.unwrap_or_default())
        .map_err(|error| Status::invalid_argument(error.to_string()))?;
    if !wire.source_policy_session.is_empty() {
        return Err(Status::unimplemented("source policies that the client judges are not supported by castor yet"));
    }
    if wire.proxy_network {
        return Err(Status::unimplemented("the proxy network is not supported by castor yet"));
    }
    if wire.enable_session_exporter {
        return Err(Status::unimplemented("exporters of the client's session are not supported by castor yet"));
    }
    let mut exporters: Vec<ExporterRequest> = wire
        .exporters
        .into_iter()
        .map(|exporter| ExporterRequest { kind: exporter.r#type, attrs: exporter.attrs })
        .collect();
    if exporters.is_empty() && !wire.exporter_deprecated.is_empty() {
        let attrs = wire.exporter_attrs_deprecated;
        exporters.push(ExporterRequest { kind: wire.exporter_deprecated, attrs });
    }
    let cache = wire.cache.unwrap_or_default();
    let entry = |entry: wire::CacheOptionsEntry| CacheRequest { kind: entry.r#type, attrs: entry.attrs };
    let mut cache_exports: Vec<CacheRequest> = cache.exports.into_iter().map(entry).collect();
    let mut cache_imports: Vec<CacheRequest> = cache.imports.into_iter().map(entry).collect();
    let registry = |reference: &String| CacheRequest {
        kind: "registry".into(),
        attrs: [("ref".to_owned(), reference.clone())].into(),
    };
    if !cache.export_ref_deprecated.is_empty() {
        cache_exports.push(registry(&cache.export_ref_deprecated));
    }
    cache_imports.extend(cache.import_refs_deprecated.iter().map(registry));
    Ok(Request {
        id: wire.r#ref,
        definition: wire.definition.map(Definition::from_pb),
        frontend: wire.frontend,
        options: wire.frontend_attrs,
        inputs: wire.frontend_inputs.into_iter().map(|(name, input)| (name, Definition::from_pb(input))).collect(),
        exporters,
        cache_exports,
        cache_imports,
        entitlements: wire.entitlements,
        session: wire.session,
        internal: wire.internal,
        policy,
        trace: None,
    })
}

pub(crate) fn usage_record(info: RecordInfo) -> wire::UsageRecord {
    wire::UsageRecord {
        parents: info.parents,
        id: info.id,
        mutable: info.mutable,
        in_use: info.in_use,
        size: info.size,
        created_at: Some(timestamp(info.created)),
        last_used_at: info.last_used.map(timestamp),
        usage_count: info.usage_count,
        description: info.description,
        record_type: info.record_type.to_string(),
        shared: info.shared,
        ..wire::UsageRecord::default()
    }
}

/// Filters in containerd's syntax.
pub(crate) fn filters(texts: &[String]) -> Result<Vec<Filter>, Status> {
    texts
        .iter()
        .map(|text| {
            text.parse().map_err(|error: castor_store::FilterError| {
                Status::invalid_argument(format!("filter {text:?}: {error}"))
            })
        })
        .collect()
}

pub(crate) fn prune(wire: &wire::PruneRequest) -> Result<PruneOptions, Status> {
    let bytes = |value: i64| u64::try_from(value).unwrap_or_default();
    Ok(PruneOptions {
        filters: filters(&wire.filter)?,
        all: wire.all,
        keep_duration: (wire.keep_duration > 0).then(|| Duration::from_nanos(bytes(wire.keep_duration))),
        reserved_space: bytes(wire.reserved_space),
        max_used_space: bytes(wire.max_used_space),
        min_free_space: bytes(wire.min_free_space),
    })
}

pub(crate) fn worker(info: &WorkerInfo, policies: &[GcPolicy], version: types::BuildkitVersion) -> types::WorkerRecord {
    let bytes = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    types::WorkerRecord {
        id: info.id.clone(),
        labels: info.labels.clone(),
        platforms: info
            .platforms
            .iter()
            .map(|platform| pb::Platform {
                architecture: platform.architecture.clone(),
                os: platform.os.clone(),
                variant: platform.variant.clone(),
                os_version: platform.os_version.clone(),
                os_features: platform.os_features.clone(),
            })
            .collect(),
        gc_policy: policies
            .iter()
            .map(|policy| types::GcPolicy {
                all: policy.all,
                keep_duration: policy
                    .keep_duration
                    .map_or(0, |time| i64::try_from(time.as_nanos()).unwrap_or(i64::MAX)),
                reserved_space: bytes(policy.reserved_space),
                filters: policy.filters.iter().map(ToString::to_string).collect(),
                max_used_space: bytes(policy.max_used_space),
                min_free_space: bytes(policy.min_free_space),
            })
            .collect(),
        buildkit_version: Some(version),
        cdi_devices: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exporter_that_is_named_twice_runs_once() {
        let exporter = wire::Exporter { r#type: "local".into(), ..wire::Exporter::default() };
        let both = wire::SolveRequest {
            exporter_deprecated: "local".into(),
            exporters: vec![exporter],
            ..wire::SolveRequest::default()
        };
        assert_eq!(request(both).unwrap().exporters.len(), 1);
        let old = wire::SolveRequest { exporter_deprecated: "image".into(), ..wire::SolveRequest::default() };
        assert_eq!(request(old).unwrap().exporters[0].kind, "image");
    }

    #[test]
    fn versions_and_policies_that_are_not_known_are_refused() {
        let version = wire::SolveRequest { compatibility_version: 99, ..wire::SolveRequest::default() };
        assert!(request(version).unwrap_err().message().contains("99"));
        let proxy = wire::SolveRequest { proxy_network: true, ..wire::SolveRequest::default() };
        assert!(request(proxy).is_err());
        let exporter = wire::SolveRequest { enable_session_exporter: true, ..wire::SolveRequest::default() };
        assert!(request(exporter).unwrap_err().message().contains("session"));
    }
}
