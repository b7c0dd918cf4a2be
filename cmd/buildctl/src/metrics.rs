//! `--debug-json-cache-metrics`: how much of a build came from the cache.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::time::Instant;

use anyhow::{Context as _, Result};
use castor_client::status::SolveStatus;
use serde::Serialize;

/// Steps that are not the user's.
const NOT_THE_USERS: [&str; 4] = ["[internal]", "[auth]", "importing cache", "exporting "];

/// Counts the steps of a build.
pub struct Metrics {
    out: Box<dyn Write + Send>,
    begun: Instant,
    steps: BTreeMap<String, Step>,
}

#[derive(Default)]
struct Step {
    name: String,
    cached: bool,
    completed: bool,
    from: bool,
}

#[derive(Default, Serialize)]
struct Totals {
    total: u64,
    completed: u64,
    user_total: u64,
    user_cached: u64,
    user_completed: u64,
    user_cacheable: u64,
    from: u64,
    miss: u64,
    client_duration_ms: u64,
}

impl Metrics {
    /// What `stdout`, `stderr` or a path stands for; nothing if it is empty.
    pub fn open(place: &str) -> Result<Option<Self>> {
        let (name, out): (_, Box<dyn Write + Send>) = match place {
            "" => return Ok(None),
            "stdout" => ("/dev/stdout", Box::new(io::stdout())),
            "stderr" => ("/dev/stderr", Box::new(io::stderr())),
            path => {
                let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(path);
                (path, Box::new(file.with_context(|| format!("open {path}"))?))
            }
        };
        tracing::info!("writing JSON cache metrics to {name}");
        Ok(Some(Self::new(out)))
    }

    fn new(out: Box<dyn Write + Send>) -> Self {
        Self { out, begun: Instant::now(), steps: BTreeMap::new() }
    }

    /// Takes in news.
    pub fn update(&mut self, status: &SolveStatus) {
        for vertex in &status.vertexes {
            let step = self.steps.entry(vertex.digest.clone()).or_default();
            if step.name.is_empty() {
                step.name.clone_from(&vertex.name);
            }
            // `[stage 1/3] FROM base`
            step.from |= vertex.name.starts_with('[') && vertex.name.contains("] FROM");
            step.cached |= vertex.cached;
            step.completed |= vertex.completed.is_some();
        }
    }

    /// Writes what was counted.
    pub fn finish(mut self) -> Result<()> {
        let mut totals = Totals {
            client_duration_ms: u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX),
            ..Totals::default()
        };
        for step in self.steps.values() {
            totals.total += 1;
            totals.completed += u64::from(step.completed);
            if NOT_THE_USERS.iter().any(|begin| step.name.starts_with(begin)) {
                continue;
            }
            totals.user_total += 1;
            totals.user_completed += u64::from(step.completed);
            totals.user_cacheable += u64::from(!step.from);
            totals.from += u64::from(step.from);
            if step.cached {
                totals.user_cached += 1;
            } else if !step.from {
                totals.miss += 1;
                writeln!(self.out, "cache miss: {}", step.name).context("write the metrics")?;
            }
        }
        let json = serde_json::to_string(&totals).context("encode the metrics")?;
        writeln!(self.out, "{json}").and_then(|()| self.out.flush()).context("write the metrics")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use castor_client::status::Vertex;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Paper(Arc<Mutex<Vec<u8>>>);

    impl Write for Paper {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn steps_are_counted() {
        let paper = Paper::default();
        let mut metrics = Metrics::new(Box::new(paper.clone()));
        let done = Some("2023-11-14T22:13:20Z".parse().unwrap());
        let step = |name: &str, cached, completed| Vertex {
            digest: name.into(),
            name: name.into(),
            cached,
            completed,
            ..Vertex::default()
        };
        metrics.update(&SolveStatus {
            vertexes: vec![
                step("[internal] load build definition", false, done),
                step("[a 1/2] FROM base", false, done),
                step("[a 2/2] RUN make", true, done),
                step("[b 1/1] COPY x", false, None),
                step("exporting to image", false, None),
            ],
            ..SolveStatus::default()
        });
        metrics.finish().unwrap();
        let text = String::from_utf8(paper.0.lock().unwrap().clone()).unwrap();
        let (miss, json) = text.split_once('\n').unwrap();
        assert_eq!(miss, "cache miss: [b 1/1] COPY x");
        let mut totals: serde_json::Value = serde_json::from_str(json).unwrap();
        assert!(totals["client_duration_ms"].take().is_u64());
        let expected = r#"{"total":5,"completed":3,"user_total":3,"user_cached":1,"user_completed":2,"user_cacheable":2,"from":1,"miss":1,"client_duration_ms":null}"#;
        assert_eq!(totals, serde_json::from_str::<serde_json::Value>(expected).unwrap());
    }
}
