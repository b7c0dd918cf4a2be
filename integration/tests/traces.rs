//! Traces leave for a collector.

#![allow(clippy::unwrap_used)]

use std::sync::{Arc, Mutex};

use castor_integration::build::Build;
use castor_integration::scene::{Scene, base, comes_true};
use castor_testkit::Form;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use prost::Message as _;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

/// A header that the collector wants.
const HEADER: &str = "x-team";

/// A message, and the header that came with it.
type Received = (Option<String>, ExportTraceServiceRequest);

/// Takes what is sent to it.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Received>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let header = request.metadata().get(HEADER).map(|value| value.to_str().unwrap().to_owned());
        self.0.lock().unwrap().push((header, request.into_inner()));
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// Listens for gRPC; where.
    async fn grpc(&self) -> String {
        let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let endpoint = format!("http://{}", incoming.local_addr().unwrap());
        let service = TraceServiceServer::new(self.clone());
        tokio::spawn(Server::builder().add_service(service).serve_with_incoming(incoming));
        endpoint
    }

    /// Listens for HTTP; where.
    async fn http(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let collector = self.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(collector.clone().answer(stream));
            }
        });
        endpoint
    }

    /// Takes one message after the other.
    async fn answer(self, stream: TcpStream) {
        let mut stream = BufReader::new(stream);
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).await.unwrap() == 0 {
                return;
            }
            assert_eq!(line.trim_end(), "POST /v1/traces HTTP/1.1");
            let (mut length, mut header) = (0, None);
            loop {
                line.clear();
                stream.read_line(&mut line).await.unwrap();
                match line.trim_end().split_once(": ") {
                    Some(("content-length", value)) => length = value.parse().unwrap(),
                    Some(("content-type", value)) => assert_eq!(value, "application/x-protobuf"),
                    Some((HEADER, value)) => header = Some(value.to_owned()),
                    Some(_) => {}
                    None => break,
                }
            }
            let mut body = vec![0; length];
            stream.read_exact(&mut body).await.unwrap();
            let message = ExportTraceServiceRequest::decode(body.as_slice()).unwrap();
            self.0.lock().unwrap().push((header, message));
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        }
    }

    /// The message that has a span whose name contains `part`.
    fn message(&self, part: &str) -> Option<Received> {
        let has = |(_, message): &&Received| {
            let spans = message.resource_spans.iter().flat_map(|of| &of.scope_spans).flat_map(|of| &of.spans);
            spans.into_iter().any(|span| span.name.contains(part))
        };
        self.0.lock().unwrap().iter().find(has).cloned()
    }
}

#[test]
fn privileged_traces_leave_by_grpc_and_by_http() {
    for protocol in [None, Some("grpc"), Some("http/protobuf")] {
        let scene = Scene::new().unwrap();
        let collector = Collector::default();
        let endpoint = scene.wait(async {
            if protocol == Some("http/protobuf") { collector.http().await } else { collector.grpc().await }
        });
        let registry = scene.registry();
        let reference = base(Form::Gzip, &[]).unwrap().put(&registry, "base:1");
        let mut options = scene.daemon("daemon", [registry.host().as_str()]);
        options =
            options.env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint).env("OTEL_EXPORTER_OTLP_HEADERS", "x-team=a%20b");
        if let Some(protocol) = protocol {
            options = options.env("OTEL_EXPORTER_OTLP_PROTOCOL", protocol);
        }
        let daemon = options.start().unwrap();
        let project = scene.project("project", &format!("FROM {reference}\nRUN echo traced\n")).unwrap();
        Build::new(&daemon, &project).run().unwrap().success().unwrap();
        // They leave after the build has ended.
        assert!(comes_true(|| collector.message("RUN echo traced").is_some()), "{protocol:?}: {}", daemon.log());
        let (header, message) = collector.message("RUN echo traced").unwrap();
        assert_eq!(header.as_deref(), Some("a b"), "{protocol:?}");
        let of = &message.resource_spans[0];
        let service = &of.resource.as_ref().unwrap().attributes[0];
        assert_eq!(service.key, "service.name");
        let spans = &of.scope_spans[0].spans;
        assert_eq!(spans[0].name, "moby.buildkit.v1.Control/Solve");
        let step = spans.iter().find(|span| span.name.contains("RUN echo traced")).unwrap();
        assert_eq!((&step.trace_id, &step.parent_span_id), (&spans[0].trace_id, &spans[0].span_id));
        assert!(step.end_time_unix_nano >= step.start_time_unix_nano && step.start_time_unix_nano > 0);
        daemon.stop().unwrap();
    }
}

#[test]
fn privileged_a_collector_that_is_not_there_delays_nothing_and_is_named() {
    let scene = Scene::new().unwrap();
    let options = scene.daemon("daemon", []).env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1");
    let daemon = options.start().unwrap();
    let project = scene.project("project", "FROM scratch\nCOPY Dockerfile /\n").unwrap();
    Build::new(&daemon, &project).run().unwrap().success().unwrap();
    assert!(comes_true(|| daemon.log().contains("send traces")), "{}", daemon.log());
    assert!(daemon.log().contains("127.0.0.1:1"));
    daemon.stop().unwrap();

    let options = scene.daemon("refused", []).env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1");
    let error = options.env("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json").start().unwrap_err().to_string();
    assert!(error.contains("unsupported otlp protocol http/json"), "{error}");
}
