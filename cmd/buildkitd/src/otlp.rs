//! Traces leave for a collector, where OpenTelemetry's environment variables name one.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use castor_task::Scope;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use prost::Message as _;
use tokio::sync::mpsc;
use tonic::metadata::{MetadataKey, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

/// Messages that wait for a slow collector; later ones are dropped.
const WAITING: usize = 256;
/// How long one message may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Where collectors listen that nobody named.
const DEFAULT_GRPC: &str = "http://localhost:4317";
const DEFAULT_HTTP: &str = "http://localhost:4318/v1/traces";

/// A collector, as the environment describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collector {
    protocol: Protocol,
    endpoint: String,
    headers: Vec<(String, String)>,
    timeout: Duration,
    /// PEM file of the authority of its certificate.
    authority: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Grpc,
    Http,
}

impl Collector {
    /// The collector that the environment names, if it does.
    pub fn from_env() -> Result<Option<Self>> {
        Self::new(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    fn new(get: impl Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        // What is said of traces counts before what is said of everything.
        let either = |name: &str| {
            get(&format!("OTEL_EXPORTER_OTLP_TRACES_{name}")).or_else(|| get(&format!("OTEL_EXPORTER_OTLP_{name}")))
        };
        let exporter = get("OTEL_TRACES_EXPORTER");
        let off = get("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"));
        if off || exporter.as_deref() == Some("none") {
            return Ok(None);
        }
        if exporter.as_deref() != Some("otlp") && either("ENDPOINT").is_none() {
            return Ok(None);
        }
        let protocol = match either("PROTOCOL").as_deref() {
            None | Some("grpc") => Protocol::Grpc,
            Some("http/protobuf") => Protocol::Http,
            Some(other) => bail!("unsupported otlp protocol {other}: want grpc or http/protobuf"),
        };
        let endpoint = match protocol {
            Protocol::Grpc => either("ENDPOINT").unwrap_or_else(|| DEFAULT_GRPC.into()),
            // The address of traces is taken as it is; that of everything is extended.
            Protocol::Http => get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
                .or_else(|| Some(format!("{}/v1/traces", get("OTEL_EXPORTER_OTLP_ENDPOINT")?.trim_end_matches('/'))))
                .unwrap_or_else(|| DEFAULT_HTTP.into()),
        };
        let endpoint = if endpoint.contains("://") { endpoint } else { format!("http://{endpoint}") };
        let timeout = match either("TIMEOUT") {
            Some(text) => {
                let millis = text.parse().with_context(|| format!("OTEL_EXPORTER_OTLP_TIMEOUT {text:?}"))?;
                Duration::from_millis(millis)
            }
            None => TIMEOUT,
        };
        let headers = either("HEADERS").map(|text| headers(&text)).transpose()?.unwrap_or_default();
        Ok(Some(Self { protocol, endpoint, headers, timeout, authority: either("CERTIFICATE") }))
    }

    /// Sends what comes through the channel, until `scope` ends.
    pub fn start(self, scope: &Scope) -> Result<mpsc::Sender<ExportTraceServiceRequest>> {
        let sender = self.sender()?;
        let (channel, mut messages) = mpsc::channel::<ExportTraceServiceRequest>(WAITING);
        let (timeout, endpoint, token) = (self.timeout, self.endpoint, scope.token().clone());
        tracing::info!("traces leave for {endpoint}");
        scope.spawn_named("traces", async move {
            loop {
                let message = tokio::select! {
                    () = token.cancelled() => return,
                    message = messages.recv() => message,
                };
                let Some(message) = message else { return };
                let sent = tokio::select! {
                    () = token.cancelled() => return,
                    sent = tokio::time::timeout(timeout, sender.send(message)) => sent,
                };
                match sent {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => tracing::warn!(endpoint, "send traces: {error:#}"),
                    Err(_) => tracing::warn!(endpoint, "send traces: no answer in {timeout:?}"),
                }
            }
        });
        Ok(channel)
    }

    fn sender(&self) -> Result<Sender> {
        let authority = self.authority.as_deref();
        let authority = authority.map(|path| std::fs::read(path).with_context(|| format!("read certificate {path}")));
        let authority = authority.transpose()?;
        Ok(match self.protocol {
            Protocol::Grpc => {
                let mut endpoint = Endpoint::from_shared(self.endpoint.clone())
                    .with_context(|| format!("OTLP endpoint {:?}", self.endpoint))?;
                if self.endpoint.starts_with("https://") {
                    let mut tls = ClientTlsConfig::new();
                    if let Some(pem) = authority {
                        tls = tls.ca_certificate(Certificate::from_pem(pem));
                    }
                    endpoint = endpoint.tls_config(tls).context("TLS for the OTLP endpoint")?;
                }
                Sender::Grpc(endpoint.connect_lazy(), self.headers.clone())
            }
            Protocol::Http => {
                let mut client = reqwest::Client::builder();
                if let Some(pem) = authority {
                    client =
                        client.tls_certs_merge([reqwest::Certificate::from_pem(&pem).context("OTLP certificate")?]);
                }
                let client = client.build().context("client for the OTLP endpoint")?;
                Sender::Http(client, self.endpoint.clone(), self.headers.clone())
            }
        })
    }
}

enum Sender {
    Grpc(Channel, Vec<(String, String)>),
    Http(reqwest::Client, String, Vec<(String, String)>),
}

impl Sender {
    async fn send(&self, message: ExportTraceServiceRequest) -> Result<()> {
        match self {
            Self::Grpc(channel, headers) => {
                let mut request = tonic::Request::new(message);
                for (name, value) in headers {
                    let name: MetadataKey<_> = name.parse().with_context(|| format!("header {name:?}"))?;
                    let value: MetadataValue<_> = value.parse().with_context(|| format!("value of header {name}"))?;
                    request.metadata_mut().insert(name, value);
                }
                TraceServiceClient::new(channel.clone()).export(request).await?;
            }
            Self::Http(client, url, headers) => {
                let mut request = client.post(url).header("content-type", "application/x-protobuf");
                for (name, value) in headers {
                    request = request.header(name, value);
                }
                request.body(message.encode_to_vec()).send().await?.error_for_status()?;
            }
        }
        Ok(())
    }
}

/// `key=value` pairs between commas, values percent-encoded.
fn headers(text: &str) -> Result<Vec<(String, String)>> {
    let pairs = text.split(',').filter(|pair| !pair.trim().is_empty());
    pairs
        .map(|pair| {
            let (key, value) =
                pair.split_once('=').with_context(|| format!("OTEL_EXPORTER_OTLP_HEADERS {pair:?}: want KEY=VALUE"))?;
            Ok((key.trim().to_ascii_lowercase(), decoded(value.trim())))
        })
        .collect()
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let escape = (*first == b'%').then(|| tail.get(..2)).flatten();
        let byte = escape.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
        bytes.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn collector(variables: &[(&str, &str)]) -> Result<Option<Collector>> {
        let get = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        Collector::new(get)
    }

    #[test]
    fn the_environment_names_a_collector() {
        assert_eq!(collector(&[]).unwrap(), None);
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://host:4317");
        assert_eq!(collector(&[endpoint, ("OTEL_SDK_DISABLED", "true")]).unwrap(), None);
        let found = collector(&[endpoint, ("OTEL_EXPORTER_OTLP_HEADERS", "a=b%20c,X-Y=1")]).unwrap().unwrap();
        assert_eq!((found.protocol, found.endpoint.as_str()), (Protocol::Grpc, "http://host:4317"));
        assert_eq!(found.headers, [("a".into(), "b c".into()), ("x-y".into(), "1".into())]);
        let http = ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf");
        assert_eq!(collector(&[endpoint, http]).unwrap().unwrap().endpoint, "http://host:4317/v1/traces");
        let traces = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://other/x");
        assert_eq!(collector(&[endpoint, traces, http]).unwrap().unwrap().endpoint, "http://other/x");
        assert_eq!(collector(&[("OTEL_TRACES_EXPORTER", "otlp")]).unwrap().unwrap().endpoint, DEFAULT_GRPC);
        for (name, value) in [("PROTOCOL", "http/json"), ("TIMEOUT", "soon"), ("HEADERS", "novalue")] {
            let name = format!("OTEL_EXPORTER_OTLP_{name}");
            let error = format!("{:#}", collector(&[endpoint, (&name, value)]).unwrap_err());
            assert!(error.contains(value), "{error}");
        }
    }
}
