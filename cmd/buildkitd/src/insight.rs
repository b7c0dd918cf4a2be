//! What the debug address shows.

use std::sync::Arc;

use castor_build::Daemon;
use castor_control::Insight;
use castor_layerfs::{LayerEngine, LayerState};
use serde_json::{Value, json};

use crate::assemble::Assembled;

/// Asks the parts of the daemon.
pub struct DaemonInsight {
    daemon: Arc<Daemon>,
    engine: Arc<LayerEngine>,
}

impl DaemonInsight {
    /// Insight into what was assembled.
    pub fn new(assembled: &Assembled) -> Arc<Self> {
        Arc::new(Self { daemon: assembled.daemon.clone(), engine: assembled.engine.clone() })
    }
}

fn state(state: &LayerState) -> Value {
    match state {
        LayerState::Lazy => json!({"state": "lazy"}),
        LayerState::Eager { reason } => json!({"state": "eager", "reason": reason}),
        LayerState::Complete => json!({"state": "complete"}),
    }
}

impl Insight for DaemonInsight {
    fn metrics(&self) -> String {
        let layers = self.engine.open_layers();
        let registries = self.daemon.registry().counts();
        let requests_sent = registries.values().map(|counts| counts.requests).sum();
        let bytes_received = registries.values().map(|counts| counts.bytes_received).sum();
        let (mut fetched, mut requests, mut size) = (0u64, 0u64, 0u64);
        let (mut lazy, mut eager, mut complete) = (0, 0, 0);
        for layer in &layers {
            let progress = layer.progress();
            fetched += progress.fetched;
            requests += progress.requests;
            size += progress.size;
            match layer.state() {
                LayerState::Lazy => lazy += 1,
                LayerState::Eager { .. } => eager += 1,
                LayerState::Complete => complete += 1,
            }
        }
        let mut text = String::new();
        let mut metric = |name: &str, kind: &str, help: &str, samples: &[(&str, u64)]| {
            let sample = if kind == "counter" { format!("{name}_total") } else { name.to_owned() };
            text.push_str(&format!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
            for (labels, value) in samples {
                text.push_str(&format!("{sample}{labels} {value}\n"));
            }
        };
        metric(
            "castor_builds_active",
            "gauge",
            "Builds under way.",
            &[("", self.daemon.builds().active().len() as u64)],
        );
        metric(
            "castor_vertices_active",
            "gauge",
            "Vertices that some build wants.",
            &[("", self.daemon.solver().report().len() as u64)],
        );
        metric(
            "castor_executions_active",
            "gauge",
            "Vertices that are being executed.",
            &[("", self.daemon.solver().executions() as u64)],
        );
        metric(
            "castor_layers_open",
            "gauge",
            "Layers in use, by state.",
            &[("{state=\"lazy\"}", lazy), ("{state=\"eager\"}", eager), ("{state=\"complete\"}", complete)],
        );
        metric("castor_layer_bytes_size", "gauge", "Compressed size of the layers in use, in bytes.", &[("", size)]);
        metric("castor_layer_bytes_fetched", "gauge", "Bytes fetched of the layers in use.", &[("", fetched)]);
        metric("castor_layer_requests", "gauge", "Requests made for the layers in use.", &[("", requests)]);
        metric("castor_registry_requests", "counter", "Requests sent to registries.", &[("", requests_sent)]);
        metric(
            "castor_registry_bytes_received",
            "counter",
            "Bytes received in bodies from registries.",
            &[("", bytes_received)],
        );
        text.push_str("# EOF\n");
        text
    }

    fn in_flight(&self) -> Value {
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
        json!({"builds": builds, "vertices": vertices, "layers": self.layers()})
    }

    fn layers(&self) -> Value {
        let layers = self.engine.open_layers();
        let shown = layers.iter().map(|layer| {
            let progress = layer.progress();
            let mut shown = state(&layer.state());
            shown["digest"] = json!(layer.descriptor().digest.to_string());
            shown["origins"] = json!(layer.origins());
            shown["bytes"] = json!(progress.size);
            shown["fetched"] = json!(progress.fetched);
            shown["requests"] = json!(progress.requests);
            shown["waitedMilliseconds"] = json!(u64::try_from(progress.waiting.as_millis()).unwrap_or(u64::MAX));
            shown["verified"] = json!(layer.verified().map(|diff_id| diff_id.to_string()));
            shown
        });
        Value::Array(shown.collect())
    }
}
