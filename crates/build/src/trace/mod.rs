//! The trace of a build: one span for the build, one for each of its steps, and those that its client sent.
//!
//! Spans are made of the journal when a build has ended; nothing is measured twice. They become a blob of the build's
//! record, and leave for a collector where one is configured.

mod json;
mod spans;

use std::collections::HashMap;
use std::sync::Arc;

use castor_oci::Digest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, Span};
use parking_lot::Mutex;
use tokio::sync::mpsc;

pub(crate) use json::stubs;
pub(crate) use spans::of_build;

/// Spans of clients that are kept for one trace.
const MAX_SPANS: usize = 4096;
/// Bytes of them.
const MAX_BYTES: usize = 8 << 20;

/// The place of a build in a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    /// The trace.
    pub trace: [u8; 16],
    /// The span that asked for the build; zeros if none did.
    pub parent: [u8; 8],
}

impl TraceContext {
    /// Reads the header `traceparent`: version, trace, span and flags in hexadecimal.
    pub fn parse(header: &str) -> Option<Self> {
        let mut parts = header.split('-');
        let (version, trace, parent, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        if version.len() != 2 || version == "ff" || flags.len() != 2 {
            return None;
        }
        let context = Self { trace: from_hex(trace)?, parent: from_hex(parent)? };
        (context.trace != [0; 16] && context.parent != [0; 8]).then_some(context)
    }

    /// A trace of its own, named after something that happens once.
    pub fn new(unique: &str) -> Self {
        let mut trace = [0; 16];
        trace.copy_from_slice(&hash(unique)[..16]);
        Self { trace, parent: [0; 8] }
    }

    /// The name of a span of this trace, which `what` tells from others.
    fn span(&self, what: &str) -> [u8; 8] {
        let mut id = [0; 8];
        id.copy_from_slice(&hash(&format!("{:?} {what}", self.trace))[..8]);
        id
    }
}

fn hash(text: &str) -> [u8; 32] {
    // Hexadecimal text of a digest that is one.
    let digest = Digest::of(text).to_string();
    digest.split_once(':').and_then(|(_, hex)| from_hex(hex)).unwrap_or_default()
}

fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() != 2 * N || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let mut out = [0; N];
    for (byte, at) in out.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(text.get(at..at + 2)?, 16).ok()?;
    }
    Some(out)
}

/// Takes the spans that clients send, for the traces of builds under way, and passes all of them on to the collector.
#[derive(Debug, Clone)]
pub struct Traces(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    under_way: Mutex<HashMap<[u8; 16], Kept>>,
    collector: Option<mpsc::Sender<ExportTraceServiceRequest>>,
}

#[derive(Debug, Default)]
struct Kept {
    /// Builds of this trace.
    builds: usize,
    spans: Vec<(ResourceSpans, Span)>,
    bytes: usize,
}

impl Traces {
    /// Traces that leave through `collector`, if there is one.
    pub fn new(collector: Option<mpsc::Sender<ExportTraceServiceRequest>>) -> Self {
        Self(Arc::new(Inner { under_way: Mutex::default(), collector }))
    }

    /// A build of `trace` begins.
    pub(crate) fn begin(&self, trace: [u8; 16]) {
        self.0.under_way.lock().entry(trace).or_default().builds += 1;
    }

    /// The last that a build of `trace` wants to know: what its clients sent.
    pub(crate) fn end(&self, trace: [u8; 16]) -> Vec<(ResourceSpans, Span)> {
        let mut under_way = self.0.under_way.lock();
        let Some(kept) = under_way.get_mut(&trace) else { return Vec::new() };
        if kept.builds > 1 {
            kept.builds -= 1;
            return kept.spans.clone();
        }
        under_way.remove(&trace).map(|kept| kept.spans).unwrap_or_default()
    }

    /// Takes what a client sends.
    pub fn receive(&self, request: ExportTraceServiceRequest) {
        self.keep(&request);
        self.pass_on(request);
    }

    fn keep(&self, request: &ExportTraceServiceRequest) {
        use prost::Message as _;
        let mut under_way = self.0.under_way.lock();
        for resource in &request.resource_spans {
            // What made the spans, without them.
            let origin = ResourceSpans { scope_spans: Vec::new(), ..resource.clone() };
            for span in resource.scope_spans.iter().flat_map(|scope| &scope.spans) {
                let trace = <[u8; 16]>::try_from(span.trace_id.as_slice()).ok();
                let Some(kept) = trace.and_then(|trace| under_way.get_mut(&trace)) else { continue };
                let size = span.encoded_len() + origin.encoded_len();
                if kept.spans.len() < MAX_SPANS && kept.bytes + size <= MAX_BYTES {
                    kept.bytes += size;
                    kept.spans.push((origin.clone(), span.clone()));
                }
            }
        }
    }

    /// Sends spans to the collector. They are dropped where it does not keep up.
    pub(crate) fn pass_on(&self, request: ExportTraceServiceRequest) {
        if let Some(collector) = &self.0.collector
            && collector.try_send(request).is_err()
        {
            tracing::debug!("spans are dropped: the collector does not take them");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use opentelemetry_proto::tonic::trace::v1::ScopeSpans;

    const HEADER: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn sent(trace: [u8; 16]) -> ExportTraceServiceRequest {
        let span = Span { trace_id: trace.to_vec(), name: "client".into(), ..Span::default() };
        let scope = ScopeSpans { spans: vec![span], ..ScopeSpans::default() };
        ExportTraceServiceRequest {
            resource_spans: vec![ResourceSpans { scope_spans: vec![scope], ..ResourceSpans::default() }],
        }
    }

    #[test]
    fn a_parent_is_read_from_its_header() {
        let context = TraceContext::parse(HEADER).unwrap();
        assert_eq!((context.trace[0], context.parent[7]), (0x4b, 0xb7));
        for bad in
            ["", "00-0-0-01", "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", &HEADER.replace('4', "g")]
        {
            assert_eq!(TraceContext::parse(bad), None, "{bad}");
        }
        let zeros = format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32));
        assert_eq!(TraceContext::parse(&zeros), None);
    }

    #[tokio::test]
    async fn spans_are_kept_for_builds_under_way_and_all_are_passed_on() {
        let (sender, mut collector) = mpsc::channel(8);
        let traces = Traces::new(Some(sender));
        let (own, other) = (TraceContext::new("a").trace, TraceContext::new("b").trace);
        traces.begin(own);
        traces.receive(sent(own));
        traces.receive(sent(other));
        let kept = traces.end(own);
        assert_eq!((kept.len(), kept[0].1.name.as_str()), (1, "client"));
        assert!(traces.end(own).is_empty() && traces.0.under_way.lock().is_empty());
        assert!(collector.try_recv().is_ok() && collector.try_recv().is_ok());
    }

    #[test]
    fn a_client_cannot_fill_the_memory() {
        let traces = Traces::new(None);
        let trace = TraceContext::new("a").trace;
        traces.begin(trace);
        for _ in 0..MAX_SPANS + 10 {
            traces.receive(sent(trace));
        }
        assert_eq!(traces.end(trace).len(), MAX_SPANS);
    }
}
