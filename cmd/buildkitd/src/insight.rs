//! What the debug address shows.

use std::fmt::Write as _;
use std::sync::Arc;

use async_trait::async_trait;
use castor_build::Daemon;
use castor_control::Insight;
use castor_layerfs::{LayerReport, LayerState};
use castor_store::LayerUsage;
use serde_json::{Value, json};

use crate::assemble::Assembled;

/// Asks the parts of the daemon.
pub struct DaemonInsight {
    daemon: Arc<Daemon>,
    /// Whether metrics tell of single layers.
    layers: bool,
}

impl DaemonInsight {
    /// Insight into what was assembled; metrics tell of single layers with `layers`.
    pub fn new(assembled: &Assembled, layers: bool) -> Arc<Self> {
        Arc::new(Self { daemon: assembled.daemon.clone(), layers })
    }
}

/// One layer, in the schema of docs/lazy.md. Fields are added, never changed or removed.
fn layer(usage: &LayerUsage) -> Value {
    let LayerReport { id, descriptor, state, eager, chunks, .. } = &usage.layer;
    let layer = &usage.layer;
    let (state, reason) = match state {
        LayerState::Lazy => ("lazy", None),
        LayerState::Eager { reason } => ("eager", Some(reason.clone())),
        LayerState::Complete => ("complete", eager.clone()),
    };
    let text = |value: Option<&dyn ToString>| value.map(|value| value.to_string());
    json!({
        "id": id.to_string(),
        "digest": descriptor.digest.to_string(),
        "toc": text(id.toc.as_ref().map(|toc| toc as _)),
        "mediaType": descriptor.media_type,
        "image": layer.image,
        "origins": layer.origins,
        "state": state,
        "mode": if eager.is_some() || state == "eager" { "eager" } else { "lazy" },
        "reason": reason,
        "open": layer.open,
        "inUse": usage.in_use,
        "bytes": descriptor.size,
        "fetched": layer.fetched,
        "requests": layer.requests,
        "waitedMilliseconds": u64::try_from(layer.waiting.as_millis()).unwrap_or(u64::MAX),
        "chunks": {"here": chunks.0, "all": chunks.1},
        "diskBytes": layer.disk,
        "compressedBytes": layer.compressed,
        "claimed": text(layer.claimed.as_ref().map(|digest| digest as _)),
        "verified": text(layer.verified.as_ref().map(|digest| digest as _)),
        "refuted": layer.refuted,
        "records": usage.records,
        "lastUsed": text(usage.last_used.as_ref().map(|time| time as _)),
    })
}

/// Metrics in the text format of OpenMetrics.
#[derive(Default)]
struct Metrics(String);

impl Metrics {
    fn family(&mut self, name: &str, kind: &str, help: &str, samples: impl IntoIterator<Item = (String, f64)>) {
        let sample = if kind == "counter" { format!("{name}_total") } else { name.to_owned() };
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        for (labels, value) in samples {
            let _ = writeln!(self.0, "{sample}{labels} {value}");
        }
    }

    fn gauge(&mut self, name: &str, help: &str, value: usize) {
        self.family(name, "gauge", help, [(String::new(), value as f64)]);
    }

    fn layers(&mut self, layers: &[LayerUsage], each: bool) {
        let count = |state: &dyn Fn(&LayerState) -> bool| {
            layers.iter().filter(|usage| usage.layer.open && state(&usage.layer.state)).count() as f64
        };
        let by_state = [
            ("{state=\"lazy\"}", count(&|state| matches!(state, LayerState::Lazy))),
            ("{state=\"eager\"}", count(&|state| matches!(state, LayerState::Eager { .. }))),
            ("{state=\"complete\"}", count(&|state| matches!(state, LayerState::Complete))),
        ];
        let by_state = by_state.map(|(labels, value)| (labels.to_owned(), value));
        self.family("castor_layers_open", "gauge", "Layers that are open, by state.", by_state);
        let total = |value: fn(&LayerReport) -> u64| {
            [(String::new(), layers.iter().map(|l| value(&l.layer)).sum::<u64>() as f64)]
        };
        self.family(
            "castor_layers_disk_bytes",
            "gauge",
            "Bytes on disk of all layer objects.",
            total(|layer| layer.disk),
        );
        self.family(
            "castor_layers_compressed_bytes",
            "gauge",
            "Bytes on disk that are kept of the layers' compressed form.",
            total(|layer| layer.compressed),
        );
        if !each {
            return;
        }
        let open: Vec<&LayerReport> = layers.iter().map(|usage| &usage.layer).filter(|layer| layer.open).collect();
        let mut each = |name: &str, help: &str, value: fn(&LayerReport) -> f64| {
            let samples = open.iter().map(|layer| {
                let mode = if layer.eager.is_some() { "eager" } else { "lazy" };
                let labels = format!(
                    "{{layer=\"{}\",image=\"{}\",mode=\"{mode}\"}}",
                    quoted(&layer.id.to_string()),
                    quoted(&layer.image)
                );
                (labels, value(layer))
            });
            self.family(name, "gauge", help, samples);
        };
        each("castor_layer_size_bytes", "Compressed size of an open layer.", |layer| layer.descriptor.size as f64);
        each("castor_layer_fetched_bytes", "Bytes fetched of an open layer since it was opened.", |layer| {
            layer.fetched as f64
        });
        each("castor_layer_requests", "Requests made for an open layer since it was opened.", |layer| {
            layer.requests as f64
        });
        each("castor_layer_waited_seconds", "Time that readers have waited for an open layer.", |layer| {
            layer.waiting.as_secs_f64()
        });
    }
}

/// The value of a label.
fn quoted(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[async_trait]
impl Insight for DaemonInsight {
    async fn metrics(&self) -> String {
        let registries = self.daemon.registry().counts();
        let requests_sent: u64 = registries.values().map(|counts| counts.requests).sum();
        let bytes_received: u64 = registries.values().map(|counts| counts.bytes_received).sum();
        let mut metrics = Metrics::default();
        metrics.gauge("castor_builds_active", "Builds under way.", self.daemon.builds().active().len());
        metrics.gauge("castor_vertices_active", "Vertices that some build wants.", self.daemon.solver().report().len());
        metrics.gauge(
            "castor_executions_active",
            "Vertices that are being executed.",
            self.daemon.solver().executions(),
        );
        match self.daemon.store().layers().await {
            Ok(layers) => metrics.layers(&layers, self.layers),
            Err(error) => tracing::warn!(%error, "list layers"),
        }
        let total = |value: u64| [(String::new(), value as f64)];
        let help = "Requests sent to registries.";
        metrics.family("castor_registry_requests", "counter", help, total(requests_sent));
        let help = "Bytes received in bodies from registries.";
        metrics.family("castor_registry_bytes_received", "counter", help, total(bytes_received));
        metrics.0.push_str("# EOF\n");
        metrics.0
    }

    async fn in_flight(&self) -> Value {
        let builds: Vec<Value> = self
            .daemon
            .builds()
            .active()
            .iter()
            .map(|build| {
                json!({"ref": build.record.r#ref, "since": build.started.to_string(), "running": build.journal.running()})
            })
            .collect();
        let vertices: Vec<Value> = self
            .daemon
            .solver()
            .report()
            .into_iter()
            .map(|vertex| {
                json!({
                    "digest": vertex.digest.to_string(),
                    "name": vertex.name,
                    "jobs": vertex.jobs,
                    "running": vertex.running,
                })
            })
            .collect();
        let layers = self.layers().await.unwrap_or_else(Value::String);
        json!({"builds": builds, "vertices": vertices, "layers": layers})
    }

    async fn layers(&self) -> Result<Value, String> {
        let layers = self.daemon.store().layers().await.map_err(|error| error.to_string())?;
        Ok(Value::Array(layers.iter().map(layer).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_in_the_form_that_prometheus_reads() {
        let mut metrics = Metrics::default();
        metrics.family("a_b", "counter", "What.", [(String::new(), 3.0), ("{x=\"1\"}".into(), 0.25)]);
        assert_eq!(metrics.0, "# HELP a_b What.\n# TYPE a_b counter\na_b_total 3\na_b_total{x=\"1\"} 0.25\n");
        assert_eq!(quoted("a\"b\\c\n"), "a\\\"b\\\\c\\n");
    }
}
