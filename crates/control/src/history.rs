//! Progress and records of builds as streams.

use std::sync::Arc;

use castor_build::{Daemon, History, HistoryError, HistoryFilter, HistoryFilterError, Watcher, select, status};
use castor_proto::control as wire;
use castor_proto::control::BuildHistoryEventType as Kind;
use castor_task::Scope;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use jiff::Timestamp;
use tokio::sync::{broadcast, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

/// Events that wait for a slow client.
const IN_FLIGHT: usize = 16;

type Streamed<T> = BoxStream<'static, Result<T, Status>>;

/// An error of the history as clients see it: without a particular code, as from BuildKit.
pub(crate) fn failed(error: &HistoryError) -> Status {
    Status::unknown(error.to_string())
}

/// The progress of a build that is under way.
pub(crate) fn follow(watcher: Watcher) -> Streamed<wire::StatusResponse> {
    let messages = futures::stream::unfold(watcher, |mut watcher| async move {
        let events = watcher.next().await?;
        Some((futures::stream::iter(status::messages(events)), watcher))
    });
    messages.flatten().map(Ok).boxed()
}

/// The progress of a build that has ended.
pub(crate) async fn replay(
    history: &History,
    record: &wire::BuildHistoryRecord,
) -> Result<Streamed<wire::StatusResponse>, Status> {
    let log = history.log(record).await.map_err(|error| failed(&error))?;
    let messages = futures::stream::unfold(Some(log), |log| async move {
        let mut log = log?;
        match log.next().await {
            Ok(Some(message)) => Some((Ok(message), Some(log))),
            Ok(None) => None,
            Err(error) => Some((Err(Status::unknown(format!("read build log: {error}"))), None)),
        }
    });
    Ok(messages.boxed())
}

/// What there is of the history that `request` asks for, and what happens from now on unless it asks for an early end.
pub(crate) fn listen(
    daemon: &Arc<Daemon>,
    scope: &Scope,
    request: wire::BuildHistoryRequest,
) -> Result<Streamed<wire::BuildHistoryEvent>, Status> {
    let now = Timestamp::now();
    let invalid = |error: HistoryFilterError| Status::invalid_argument(error.to_string());
    let filters = request.filter.iter().map(|text| HistoryFilter::parse(text, now)).collect::<Result<Vec<_>, _>>();
    let filters = filters.map_err(invalid)?;
    let history = daemon.history();
    let id = request.r#ref.clone();
    let wanted = move |record: &wire::BuildHistoryRecord| id.is_empty() || record.r#ref == id;
    // From here on a record that is asked for by name stays until this listener leaves.
    let listening = match request.r#ref.as_str() {
        "" => None,
        id => match history.listen(id) {
            Some(listening) => Some(listening),
            None => return Err(Status::unknown(format!("ref {id} is deleted: file does not exist"))),
        },
    };
    let events = history.events();
    let event = |kind: Kind, record| wire::BuildHistoryEvent { r#type: kind.into(), record: Some(record) };
    let active = daemon.builds().list().into_iter().map(|build| build.record).filter(|record| wanted(record));
    let mut first: Vec<_> = active.map(|record| event(Kind::Started, record)).collect();
    if !request.active_only {
        let mut records = match request.r#ref.as_str() {
            "" => history.records().map_err(|error| failed(&error))?,
            id => history.record(id).map_err(|error| failed(&error))?.into_iter().collect(),
        };
        records = select(records, &filters, request.limit).map_err(invalid)?;
        first.extend(records.into_iter().map(|record| event(Kind::Complete, record)));
    }
    let first = futures::stream::iter(first.into_iter().map(Ok));
    let (sender, receiver) = mpsc::channel(IN_FLIGHT);
    let (stopped, early) = (scope.token().clone(), request.early_exit);
    scope.spawn_named("build history", async move {
        tokio::select! {
            () = stopped.cancelled() => {}
            () = sender.closed() => {}
            () = pass_on(events, &sender, wanted), if !early => {}
        }
        drop(sender);
        if let Some(listening) = listening
            && let Err(error) = listening.leave().await
        {
            tracing::warn!(%error, "remove a build record");
        }
    });
    let rest = ReceiverStream::new(receiver);
    Ok(if early { first.chain(rest.take(0)).boxed() } else { first.chain(rest).boxed() })
}

/// Passes events on until there are no more, or nobody takes them.
async fn pass_on(
    mut events: broadcast::Receiver<wire::BuildHistoryEvent>,
    sender: &mpsc::Sender<Result<wire::BuildHistoryEvent, Status>>,
    wanted: impl Fn(&wire::BuildHistoryRecord) -> bool,
) {
    use broadcast::error::RecvError;
    loop {
        match events.recv().await {
            Ok(event) => {
                let fits = event.record.as_ref().is_some_and(&wanted);
                if fits && sender.send(Ok(event)).await.is_err() {
                    return;
                }
            }
            Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return,
        }
    }
}
