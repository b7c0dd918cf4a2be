//! The spans of a build, made of what it reported.

use std::collections::BTreeMap;

use castor_oci::Digest;
use castor_progress::{Event, Timestamp, Vertex};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status, span, status};

use super::TraceContext;

/// Who makes the spans.
const SERVICE: &str = "buildkitd";

/// Spans of the build `id` that reported `events` from `started` to `ended`: of itself first.
pub(crate) fn of_build(
    context: &TraceContext,
    id: &str,
    (started, ended): (Timestamp, Timestamp),
    error: Option<&str>,
    events: &[Event],
) -> ResourceSpans {
    let root = Span {
        trace_id: context.trace.to_vec(),
        span_id: context.span(id).to_vec(),
        parent_span_id: if context.parent == [0; 8] { Vec::new() } else { context.parent.to_vec() },
        name: "moby.buildkit.v1.Control/Solve".into(),
        kind: span::SpanKind::Server.into(),
        start_time_unix_nano: nanos(started),
        end_time_unix_nano: nanos(ended),
        attributes: vec![text("build.ref", id)],
        status: Some(outcome(error.unwrap_or_default())),
        ..Span::default()
    };
    let parent = root.span_id.clone();
    let vertices = vertices(events);
    let spans = vertices.iter().map(|vertex| of_vertex(context, id, &parent, vertex));
    let spans = std::iter::once(root).chain(spans).collect();
    let scope = InstrumentationScope {
        name: "castor".into(),
        version: env!("CARGO_PKG_VERSION").into(),
        ..InstrumentationScope::default()
    };
    ResourceSpans {
        resource: Some(Resource { attributes: vec![text("service.name", SERVICE)], ..Resource::default() }),
        scope_spans: vec![ScopeSpans { scope: Some(scope), spans, ..ScopeSpans::default() }],
        ..ResourceSpans::default()
    }
}

/// The last state of each vertex that did something, in the order in which they began.
fn vertices(events: &[Event]) -> Vec<&Vertex> {
    let mut last: BTreeMap<Digest, &Vertex> = BTreeMap::new();
    for event in events {
        if let Event::Vertex(vertex) = event
            && let Some(digest) = vertex.digest
            && vertex.started.is_some()
            && vertex.completed.is_some()
        {
            last.insert(digest, vertex);
        }
    }
    let mut vertices: Vec<&Vertex> = last.into_values().collect();
    vertices.sort_by_key(|vertex| vertex.started);
    vertices
}

fn of_vertex(context: &TraceContext, build: &str, parent: &[u8], vertex: &Vertex) -> Span {
    let digest = vertex.digest.map(|digest| digest.to_string()).unwrap_or_default();
    let mut attributes = vec![text("vertex", &digest)];
    if vertex.cached {
        attributes.push(flag("cached"));
    }
    Span {
        trace_id: context.trace.to_vec(),
        span_id: context.span(&format!("{build} {digest}")).to_vec(),
        parent_span_id: parent.to_vec(),
        name: vertex.name.clone(),
        kind: span::SpanKind::Internal.into(),
        start_time_unix_nano: vertex.started.map(nanos).unwrap_or_default(),
        end_time_unix_nano: vertex.completed.map(nanos).unwrap_or_default(),
        attributes,
        status: Some(outcome(&vertex.error)),
        ..Span::default()
    }
}

fn outcome(error: &str) -> Status {
    match error {
        "" => Status::default(),
        error => Status { message: error.to_owned(), code: status::StatusCode::Error.into() },
    }
}

fn nanos(time: Timestamp) -> u64 {
    u64::try_from(time.as_nanosecond()).unwrap_or_default()
}

fn text(key: &str, value: &str) -> KeyValue {
    attribute(key, Value::StringValue(value.to_owned()))
}

fn flag(key: &str) -> KeyValue {
    attribute(key, Value::BoolValue(true))
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}
