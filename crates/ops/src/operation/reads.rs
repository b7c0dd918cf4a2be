//! Watching the layers that a step works on: shown while it runs, and asked for failed reads when it is done.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use castor_layerfs::{Layer, LayerError, LayerState, Lazy, NOT_ASKED, ReadError};
use castor_progress::{Reporter, Task};
use castor_solver::Cx;
use castor_store::{ImmutableRef, StoreError};
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
        if worker.wants_lazy(cx) == Lazy::Require {
            insist(&layers)?;
        }
        let stop = CancellationToken::new();
        let shown: Vec<Arc<Layer>> = layers.iter().filter(|layer| is_shown(layer)).cloned().collect();
        let watcher = (!shown.is_empty()).then(|| {
            let lines = shown.into_iter().map(|layer| Line::new(cx.reporter(), layer)).collect();
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

/// One layer's status line. Clients show a status by its id alone, so that has to tell it all.
struct Line {
    layer: Arc<Layer>,
    reporter: Reporter,
    task: Task,
    label: String,
    shown: u64,
}

impl Line {
    fn new(reporter: &Reporter, layer: Arc<Layer>) -> Self {
        let label = label(&layer);
        let task = reporter.start(label.clone(), String::new(), number(layer.progress().size));
        let mut line = Self { layer, reporter: reporter.clone(), task, label, shown: u64::MAX };
        line.update();
        line
    }

    fn update(&mut self) {
        let progress = self.layer.progress();
        let label = label(&self.layer);
        if label != self.label {
            // It began lazily, and its registry answered with all of it.
            self.task = self.reporter.start(label.clone(), String::new(), number(progress.size));
            self.label = label;
            self.shown = u64::MAX;
        }
        if progress.fetched != self.shown {
            self.shown = progress.fetched;
            self.task.update(number(progress.fetched.min(progress.size)));
        }
    }
}

fn label(layer: &Layer) -> String {
    let blob = layer.id().blob;
    match layer.eager_reason() {
        Some(reason) => format!("layer {blob} eager: {reason}"),
        None => format!("layer {blob} lazy"),
    }
}

/// Refuses layers that fell back, also those that did so for a build that did not mind.
fn insist(layers: &[Arc<Layer>]) -> Result<(), StoreError> {
    for layer in layers {
        if let Some(reason) = layer.eager_reason()
            && reason != NOT_ASKED
        {
            return Err(LayerError::NotLazy { layer: layer.id().blob, image: layer.image(), reason }.into());
        }
    }
    Ok(())
}

fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// A layer that is lazy, or should have been: what an eager daemon fetches is shown where it is fetched, as BuildKit
/// does, and a lazy layer that is here by now needs no word.
fn is_shown(layer: &Layer) -> bool {
    match layer.eager_reason() {
        Some(reason) => reason != NOT_ASKED,
        None => layer.state() != LayerState::Complete,
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
