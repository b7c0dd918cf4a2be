//! Watching the layers that a step works on: shown while it runs, and asked for failed reads when it is done.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use castor_layerfs::{Layer, LayerState, ReadError};
use castor_progress::{Reporter, Task};
use castor_solver::Cx;
use castor_store::ImmutableRef;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::OpError;
use crate::worker::Worker;

/// Between two looks at layers that are being fetched.
const LOOK: Duration = Duration::from_millis(500);

/// The layers of a step's inputs.
pub(super) struct Reads {
    layers: Vec<Arc<Layer>>,
    /// Failed reads before this are another's.
    mark: u64,
    stop: CancellationToken,
    watcher: Option<JoinHandle<()>>,
}

impl Reads {
    /// Begins to watch the layers of `inputs`.
    pub(super) async fn watch(worker: &Worker, cx: &Cx, inputs: &[ImmutableRef]) -> Result<Self, OpError> {
        let mark = worker.store().engine().error_mark();
        let mut layers: Vec<Arc<Layer>> = Vec::new();
        let mut seen = HashSet::new();
        for input in inputs.iter().filter(|input| !input.is_scratch()) {
            for layer in input.layers(cx).await? {
                if seen.insert(layer.id()) {
                    layers.push(layer);
                }
            }
        }
        let stop = CancellationToken::new();
        let lazy: Vec<Arc<Layer>> =
            layers.iter().filter(|layer| layer.state() != LayerState::Complete).cloned().collect();
        let watcher = (!lazy.is_empty()).then(|| {
            let lines = lazy.into_iter().map(|layer| Line::new(cx.reporter(), layer)).collect();
            worker.scope().spawn(show(lines, stop.clone()))
        });
        Ok(Self { layers, mark, stop, watcher })
    }

    /// Ends watching. Gives the reads that failed meanwhile.
    pub(super) async fn finish(self) -> Vec<ReadError> {
        self.stop.cancel();
        if let Some(watcher) = self.watcher {
            // It ends at once, and its panic would be a panic of the step.
            let _ = watcher.await;
        }
        self.layers.iter().flat_map(|layer| layer.errors(self.mark)).collect()
    }
}

/// One layer's status line.
struct Line {
    layer: Arc<Layer>,
    task: Task,
    shown: u64,
}

impl Line {
    fn new(reporter: &Reporter, layer: Arc<Layer>) -> Self {
        let progress = layer.progress();
        let size = i64::try_from(progress.size).unwrap_or(i64::MAX);
        let task = reporter.start(format!("layer {}", layer.id().blob), how(&progress.state), size);
        let mut line = Self { layer, task, shown: u64::MAX };
        line.update();
        line
    }

    fn update(&mut self) {
        let progress = self.layer.progress();
        if progress.fetched != self.shown {
            self.shown = progress.fetched;
            let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
            self.task.set(&how(&progress.state), number(progress.fetched), number(progress.size));
        }
    }
}

fn how(state: &LayerState) -> String {
    match state {
        LayerState::Lazy => "lazy".to_owned(),
        LayerState::Eager { reason } => format!("eager: {reason}"),
        LayerState::Complete => "complete".to_owned(),
    }
}

async fn show(mut lines: Vec<Line>, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(LOOK);
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            _ = ticks.tick() => lines.iter_mut().for_each(Line::update),
        }
    }
    lines.iter_mut().for_each(Line::update);
}

/// Joins what a step ended with and what its layers say.
pub(super) fn judge<T>(result: Result<T, OpError>, reads: Vec<ReadError>) -> Result<T, OpError> {
    match result {
        Err(error) => Err(error.with_reads(reads)),
        // What a process made of files that it could not read is not what it should be.
        Ok(_) if !reads.is_empty() => Err(OpError::Unnoticed(reads)),
        Ok(value) => Ok(value),
    }
}
