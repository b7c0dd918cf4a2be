//! Showing what lazy layers fetch while a step runs on them.

use std::sync::Arc;
use std::time::Duration;

use castor_progress::{Reporter, Task};
use tokio_util::sync::CancellationToken;

use crate::layer::{Layer, LayerState};

/// How often it is looked at.
const PERIOD: Duration = Duration::from_millis(250);

/// Shows, as statuses of `reporter`'s vertex, what each of `layers` fetches until `until` is cancelled: lazy, or eager and
/// why, and the bytes fetched of its size. Layers that are complete from the start are not shown.
pub async fn report(layers: Vec<Arc<Layer>>, reporter: Reporter, until: CancellationToken) {
    let mut shown: Vec<(Arc<Layer>, u64, Option<Task>)> = layers
        .into_iter()
        .filter(|layer| layer.state() != LayerState::Complete)
        .map(|layer| (layer, u64::MAX, None))
        .collect();
    shown.dedup_by_key(|(layer, ..)| layer.id());
    loop {
        let ended = tokio::time::timeout(PERIOD, until.cancelled()).await.is_ok();
        for (layer, last, task) in &mut shown {
            let progress = layer.progress();
            if progress.fetched == *last {
                continue;
            }
            *last = progress.fetched;
            let total = progress.size.cast_signed();
            let task = task.get_or_insert_with(|| reporter.start(label(layer), "", total));
            task.update(progress.fetched.min(progress.size).cast_signed());
        }
        if ended {
            return;
        }
    }
}

/// What the status of a layer is called.
fn label(layer: &Layer) -> String {
    let blob = layer.id().blob;
    match layer.eager_reason() {
        Some(reason) => format!("layer {blob} eager ({reason})"),
        None => format!("layer {blob} lazy"),
    }
}
