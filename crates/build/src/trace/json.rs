//! Spans as JSON, in the form of Go's OpenTelemetry library, which is what clients of BuildKit read: one object after the
//! other.

use bytes::Bytes;
use castor_progress::Timestamp;
use opentelemetry_proto::tonic::common::v1::any_value::Value as AnyOf;
use opentelemetry_proto::tonic::common::v1::{InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, Span, span, status};
use serde_json::{Value, json};

/// The daemon's spans and those of clients.
pub(crate) fn stubs(own: &ResourceSpans, clients: &[(ResourceSpans, Span)]) -> Bytes {
    let scopes = own.scope_spans.iter();
    let own = scopes.flat_map(|scope| scope.spans.iter().map(move |span| stub(own, scope.scope.as_ref(), span)));
    let clients = clients.iter().map(|(origin, span)| stub(origin, None, span));
    own.chain(clients).map(|stub| format!("{stub:#}\n")).collect::<String>().into()
}

fn stub(origin: &ResourceSpans, scope: Option<&InstrumentationScope>, span: &Span) -> Value {
    let (name, version) = scope.map_or(("", ""), |scope| (scope.name.as_str(), scope.version.as_str()));
    let parent = match span.parent_span_id.is_empty() {
        true => context(&[], &[]),
        false => context(&span.trace_id, &span.parent_span_id),
    };
    let events = span.events.iter().map(|event| {
        json!({
            "Name": event.name,
            "Attributes": attributes(&event.attributes),
            "DroppedAttributeCount": event.dropped_attributes_count,
            "Time": time(event.time_unix_nano),
        })
    });
    json!({
        "Name": span.name,
        "SpanContext": context(&span.trace_id, &span.span_id),
        "Parent": parent,
        "SpanKind": kind(span),
        "StartTime": time(span.start_time_unix_nano),
        "EndTime": time(span.end_time_unix_nano),
        "Attributes": attributes(&span.attributes),
        "Events": events.collect::<Vec<_>>(),
        "Links": null,
        "Status": status(span),
        "DroppedAttributes": span.dropped_attributes_count,
        "DroppedEvents": span.dropped_events_count,
        "DroppedLinks": span.dropped_links_count,
        "ChildSpanCount": 0,
        "Resource": origin.resource.as_ref().map(|resource| attributes(&resource.attributes)),
        "InstrumentationLibrary": {"Name": name, "Version": version, "SchemaURL": "", "Attributes": null},
    })
}

fn context(trace: &[u8], span: &[u8]) -> Value {
    let flags = if trace.is_empty() { "00" } else { "01" };
    json!({
        "TraceID": hex(trace, 16),
        "SpanID": hex(span, 8),
        "TraceFlags": flags,
        "TraceState": "",
        "Remote": false,
    })
}

/// Zeros where there is nothing, or something of another length.
fn hex(bytes: &[u8], length: usize) -> String {
    if bytes.len() != length {
        return "0".repeat(2 * length);
    }
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Go counts kinds from the unspecified on, as the wire does.
fn kind(span: &Span) -> i32 {
    span::SpanKind::try_from(span.kind).unwrap_or_default().into()
}

fn status(span: &Span) -> Value {
    let status = span.status.clone().unwrap_or_default();
    let code = match status::StatusCode::try_from(status.code).unwrap_or_default() {
        status::StatusCode::Unset => "Unset",
        status::StatusCode::Ok => "Ok",
        status::StatusCode::Error => "Error",
    };
    json!({"Code": code, "Description": status.message})
}

fn time(nanos: u64) -> String {
    Timestamp::from_nanosecond(i128::from(nanos)).unwrap_or_default().to_string()
}

/// What Go's library has no type for is left out.
fn attributes(all: &[KeyValue]) -> Vec<Value> {
    let one = |attribute: &KeyValue| {
        let (kind, value) = match attribute.value.as_ref()?.value.as_ref()? {
            AnyOf::StringValue(text) => ("STRING", json!(text)),
            AnyOf::BoolValue(flag) => ("BOOL", json!(flag)),
            AnyOf::IntValue(number) => ("INT64", json!(number)),
            AnyOf::DoubleValue(number) => ("FLOAT64", json!(number)),
            AnyOf::ArrayValue(array) => {
                let texts: Vec<&String> = array
                    .values
                    .iter()
                    .filter_map(|value| match &value.value {
                        Some(AnyOf::StringValue(text)) => Some(text),
                        _ => None,
                    })
                    .collect();
                (texts.len() == array.values.len()).then_some(("STRINGSLICE", json!(texts)))?
            }
            _ => return None,
        };
        Some(json!({"Key": attribute.key, "Value": {"Type": kind, "Value": value}}))
    };
    all.iter().filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use castor_oci::Digest;
    use castor_progress::{Event, Vertex};

    use crate::trace::{TraceContext, of_build};

    #[test]
    fn a_build_and_its_steps_are_spans_of_one_trace() {
        let now = Timestamp::UNIX_EPOCH;
        let vertex = |name: &str, completed: bool| {
            Event::Vertex(Vertex {
                digest: Some(Digest::of(name)),
                name: name.into(),
                cached: true,
                started: Some(now),
                completed: completed.then_some(now),
                error: "boom".into(),
                ..Vertex::default()
            })
        };
        let context = TraceContext::parse("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01").unwrap();
        let events = [vertex("RUN a", false), vertex("RUN a", true), vertex("never done", false)];
        let own = of_build(&context, "id", (now, now), None, &events);
        let text = String::from_utf8(stubs(&own, &[]).to_vec()).unwrap();
        let stubs: Vec<Value> =
            serde_json::Deserializer::from_str(&text).into_iter().map(|stub| stub.unwrap()).collect();
        assert_eq!(stubs.len(), 2);
        assert_eq!(stubs[0]["Parent"]["SpanID"], "00f067aa0ba902b7");
        assert_eq!(stubs[0]["SpanContext"]["TraceID"], "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(stubs[1]["Parent"]["SpanID"], stubs[0]["SpanContext"]["SpanID"]);
        assert_eq!(stubs[1]["Status"], json!({"Code": "Error", "Description": "boom"}));
        assert_eq!(stubs[1]["Attributes"][1], json!({"Key": "cached", "Value": {"Type": "BOOL", "Value": true}}));
        assert_eq!(stubs[1]["StartTime"], "1970-01-01T00:00:00Z");
    }
}
