//! `moby.buildkit.v1.Control`.

use std::pin::Pin;
use std::sync::Arc;

use castor_build::{Build, Daemon};
use castor_proto::control::control_server::{Control, ControlServer};
use castor_proto::{control as wire, types};
use castor_session::{SessionStream, Sessions};
use castor_task::Scope;
use futures::{Stream, StreamExt as _};
use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Request, Response, Status, Streaming};

use crate::{convert, status};

/// The header by which clients learn how far their clock is off.
const CLOCK_HEADER: &str = "buildkit-current-timestamp";
/// Messages of a stream that wait for a slow client.
const IN_FLIGHT: usize = 16;

/// The service over a daemon.
#[derive(Clone)]
pub struct ControlService {
    daemon: Arc<Daemon>,
    sessions: Sessions,
    scope: Scope,
}

type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send + 'static>>;

impl ControlService {
    /// A service whose builds run in `scope`.
    pub fn new(daemon: Arc<Daemon>, scope: Scope) -> Self {
        let sessions = daemon.sessions().clone();
        Self { daemon, sessions, scope }
    }

    /// A server to add to a router.
    pub fn server(self) -> ControlServer<Self> {
        castor_wire::limited!(ControlServer::new(self))
    }

    fn version() -> types::BuildkitVersion {
        types::BuildkitVersion {
            package: "castor".into(),
            version: format!("castor-{}", env!("CARGO_PKG_VERSION")),
            revision: String::new(),
            ..types::BuildkitVersion::default()
        }
    }
}

/// Adds the daemon's time, which must leave before the first message.
fn with_clock<T>(mut response: Response<T>) -> Response<T> {
    if let Ok(now) = MetadataValue::try_from(Timestamp::now().to_string()) {
        response.metadata_mut().insert(CLOCK_HEADER, now);
    }
    response
}

fn failed(error: impl std::fmt::Display) -> Status {
    Status::unknown(error.to_string())
}

#[tonic::async_trait]
impl Control for ControlService {
    async fn solve(&self, request: Request<wire::SolveRequest>) -> Result<Response<wire::SolveResponse>, Status> {
        let request = convert::request(request.into_inner())?;
        if request.id.is_empty() {
            return Err(Status::invalid_argument("a build needs a ref"));
        }
        // The build is a task of its own: when the client leaves, this future is dropped, and the guard tells it.
        let scope = self.scope.child(format!("build {}", request.id));
        let token = scope.token().clone();
        let _guard = token.clone().drop_guard();
        let build = scope.spawn(Build::new(self.daemon.clone(), request, token).run());
        let response = build.await.map_err(|error| Status::internal(format!("the build was lost: {error}")))?;
        match response {
            Ok(exporter_response) => Ok(Response::new(wire::SolveResponse { exporter_response })),
            Err(error) => Err(castor_frontend::to_failure(&error).to_status()),
        }
    }

    type StatusStream = Streamed<wire::StatusResponse>;

    async fn status(&self, request: Request<wire::StatusRequest>) -> Result<Response<Self::StatusStream>, Status> {
        let id = request.into_inner().r#ref;
        let Some(journal) = self.daemon.builds().journal(&id).await else {
            return Err(Status::not_found(format!("no such job {id}")));
        };
        let watcher = journal.watch();
        let messages = futures::stream::unfold(watcher, |mut watcher| async move {
            let events = watcher.next().await?;
            Some((futures::stream::iter(status::messages(events)), watcher))
        });
        Ok(with_clock(Response::new(Box::pin(messages.flatten().map(Ok)))))
    }

    type SessionStream = SessionStream;

    async fn session(
        &self,
        request: Request<Streaming<wire::BytesMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (metadata, _, incoming): (MetadataMap, _, _) = request.into_parts();
        let stream = self.sessions.open(&metadata, incoming).await.map_err(|error| error.to_failure().to_status())?;
        Ok(Response::new(stream))
    }

    async fn list_workers(
        &self,
        request: Request<wire::ListWorkersRequest>,
    ) -> Result<Response<wire::ListWorkersResponse>, Status> {
        let filters = request.into_inner().filter;
        let worker = self.daemon.worker();
        let shown =
            filters.is_empty() || filters.iter().any(|filter| worker_matches(filter, &worker.id, &worker.labels));
        let record =
            shown.then(|| convert::worker(worker, self.daemon.policies(), Self::version())).into_iter().collect();
        Ok(Response::new(wire::ListWorkersResponse { record }))
    }

    async fn info(&self, _: Request<wire::InfoRequest>) -> Result<Response<wire::InfoResponse>, Status> {
        Ok(Response::new(wire::InfoResponse { buildkit_version: Some(Self::version()) }))
    }

    async fn disk_usage(
        &self,
        request: Request<wire::DiskUsageRequest>,
    ) -> Result<Response<wire::DiskUsageResponse>, Status> {
        let request = request.into_inner();
        let filters = convert::filters(&request.filter)?;
        let records = self.daemon.store().disk_usage(&filters).await.map_err(failed)?;
        let now = Timestamp::now();
        let old_enough = |record: &castor_store::RecordInfo| {
            let used = record.last_used.unwrap_or(record.created);
            request.age_limit <= 0 || now.duration_since(used).as_nanos() >= i128::from(request.age_limit)
        };
        let record = records.into_iter().filter(old_enough).map(convert::usage_record).collect();
        Ok(Response::new(wire::DiskUsageResponse { record }))
    }

    type PruneStream = ReceiverStream<Result<wire::UsageRecord, Status>>;

    async fn prune(&self, request: Request<wire::PruneRequest>) -> Result<Response<Self::PruneStream>, Status> {
        let options = convert::prune(&request.into_inner())?;
        let (records, mut pruned) = mpsc::unbounded_channel();
        let (sender, receiver) = mpsc::channel(IN_FLIGHT);
        let store = self.daemon.store().clone();
        self.scope.spawn_named("prune", async move {
            let report = move |record: castor_store::RecordInfo| {
                // A client that left does not stop the pruning.
                let _ = records.send(convert::usage_record(record));
            };
            let pruning = async {
                let outcome = store.prune(&options, &report).await;
                // The channel ends with the last reporter.
                drop(report);
                outcome
            };
            let forwarding = async {
                while let Some(record) = pruned.recv().await {
                    if sender.send(Ok(record)).await.is_err() {
                        break;
                    }
                }
            };
            let (outcome, ()) = tokio::join!(pruning, forwarding);
            if let Err(error) = outcome {
                let _ = sender.send(Err(failed(error))).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    type ListenBuildHistoryStream = Streamed<wire::BuildHistoryEvent>;

    async fn listen_build_history(
        &self,
        request: Request<wire::BuildHistoryRequest>,
    ) -> Result<Response<Self::ListenBuildHistoryStream>, Status> {
        let request = request.into_inner();
        if let Some(filter) = request.filter.first() {
            let message = format!("filter {filter:?} of the build history is not supported by castor yet");
            return Err(Status::unimplemented(message));
        }
        let wanted = {
            let id = request.r#ref.clone();
            move |record: &castor_build::BuildRecord| id.is_empty() || record.id == id
        };
        let mut events = self.daemon.builds().events();
        let (active, ended) = self.daemon.builds().list();
        let mut first: Vec<wire::BuildHistoryEvent> = Vec::new();
        for record in active.into_iter().filter(&wanted) {
            first.push(convert::history_event(&castor_build::BuildEvent::Started(record)));
        }
        if !request.active_only {
            let mut ended: Vec<_> = ended.into_iter().filter(&wanted).collect();
            if let Ok(limit @ 1..) = usize::try_from(request.limit) {
                ended.reverse();
                ended.truncate(limit);
            }
            let events = ended.into_iter().map(castor_build::BuildEvent::Completed);
            first.extend(events.map(|event| convert::history_event(&event)));
        }
        let first = futures::stream::iter(first.into_iter().map(Ok));
        if request.early_exit {
            return Ok(with_clock(Response::new(Box::pin(first))));
        }
        let stopped = self.scope.token().clone();
        let (sender, receiver) = mpsc::channel(IN_FLIGHT);
        self.scope.spawn_named("build history", async move {
            use tokio::sync::broadcast::error::RecvError;
            loop {
                let event = tokio::select! {
                    () = stopped.cancelled() => return,
                    () = sender.closed() => return,
                    event = events.recv() => event,
                };
                let event = match event {
                    Ok(event) => event,
                    Err(RecvError::Lagged(_)) => continue,
                    Err(RecvError::Closed) => return,
                };
                let (castor_build::BuildEvent::Started(record)
                | castor_build::BuildEvent::Completed(record)
                | castor_build::BuildEvent::Deleted(record)) = &event;
                if wanted(record) && sender.send(Ok(convert::history_event(&event))).await.is_err() {
                    return;
                }
            }
        });
        Ok(with_clock(Response::new(Box::pin(first.chain(ReceiverStream::new(receiver))))))
    }

    async fn update_build_history(
        &self,
        request: Request<wire::UpdateBuildHistoryRequest>,
    ) -> Result<Response<wire::UpdateBuildHistoryResponse>, Status> {
        let request = request.into_inner();
        if request.delete {
            if !self.daemon.builds().delete(&request.r#ref) {
                return Err(Status::not_found(format!("failed to retrieve bucket for {}", request.r#ref)));
            }
        } else if request.pinned {
            return Err(Status::unimplemented("pinned build records are not supported by castor yet"));
        }
        // Nothing is left to finalise: castor records no traces yet.
        Ok(Response::new(wire::UpdateBuildHistoryResponse {}))
    }
}

/// `id==X`, `label.KEY==VALUE`, or the beginning of an id, as clients write them.
fn worker_matches(filter: &str, id: &str, labels: &std::collections::BTreeMap<String, String>) -> bool {
    filter.split(',').all(|term| {
        let Some((field, value)) = term.split_once("==") else { return id.starts_with(term) };
        match field.split_once('.') {
            None if field == "id" => id == value,
            Some(("labels" | "label", key)) => labels.get(key.trim_matches('"')).is_some_and(|label| label == value),
            _ => false,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_are_chosen_by_id_or_label() {
        let labels = [("a".to_owned(), "1".to_owned())].into();
        assert!(worker_matches("id==abc", "abc", &labels));
        assert!(worker_matches("label.a==1,id==abc", "abc", &labels));
        assert!(worker_matches("ab", "abc", &labels));
        assert!(!worker_matches("label.a==2", "abc", &labels));
    }
}
