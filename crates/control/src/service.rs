//! `moby.buildkit.v1.Control`.

use std::pin::Pin;
use std::sync::Arc;

use castor_build::{Build, Daemon, Progress, TraceContext};
use castor_proto::control::control_server::{Control, ControlServer};
use castor_proto::{control as wire, types};
use castor_session::{SessionStream, Sessions};
use castor_task::Scope;
use futures::Stream;
use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Request, Response, Status, Streaming};

use crate::{convert, history};

/// The header by which clients learn how far their clock is off.
const CLOCK_HEADER: &str = "buildkit-current-timestamp";
/// The header by which clients say what trace they follow.
const TRACE_HEADER: &str = "traceparent";
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
            dockerfile_version: castor_frontend::DOCKERFILE_VERSION.into(),
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
        let trace = request.metadata().get(TRACE_HEADER).and_then(|value| TraceContext::parse(value.to_str().ok()?));
        let request = castor_build::Request { trace, ..convert::request(request.into_inner())? };
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
        let messages = match self.daemon.builds().progress(&id).await {
            Some(Progress::Live(journal)) => history::follow(journal.watch()),
            Some(Progress::Recorded(record)) => history::replay(self.daemon.history(), &record).await?,
            None => return Err(Status::not_found(format!("no such job {id}"))),
        };
        Ok(with_clock(Response::new(messages)))
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
        let mut record = Vec::new();
        if shown {
            let mut worker = convert::worker(worker, self.daemon.policies(), Self::version());
            worker.labels.extend(layer_labels(self.daemon.store()));
            record.push(worker);
        }
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
        let events = history::listen(&self.daemon, &self.scope, request.into_inner())?;
        Ok(with_clock(Response::new(events)))
    }

    async fn update_build_history(
        &self,
        request: Request<wire::UpdateBuildHistoryRequest>,
    ) -> Result<Response<wire::UpdateBuildHistoryResponse>, Status> {
        let wire::UpdateBuildHistoryRequest { r#ref: id, pinned, delete, finalize } = request.into_inner();
        let history = self.daemon.history();
        if delete || finalize {
            self.daemon.finalize(&id).await;
        }
        let done = match (delete, finalize) {
            (true, _) => history.delete(&id).await,
            (false, true) => Ok(()),
            (false, false) => history.pin(&id, pinned).await,
        };
        done.map_err(|error| history::failed(&error))?;
        Ok(Response::new(wire::UpdateBuildHistoryResponse {}))
    }
}

/// Layers that are told of among a worker's labels.
const SHOWN_LAYERS: usize = 32;

/// The layers that this daemon has open, those in use and used last first, as labels: clients show those, whatever they
/// are. Clients ask for workers before every build, so nothing is looked up on disk. The debug address has all layers.
fn layer_labels(store: &castor_store::Store) -> Vec<(String, String)> {
    let mut layers = store.open_layers();
    layers.sort_by_key(|usage| std::cmp::Reverse((usage.in_use, usage.last_used)));
    layers.truncate(SHOWN_LAYERS);
    let label =
        |usage: castor_store::LayerUsage| (format!("castor.layer.{}", usage.layer.descriptor.digest), usage.summary());
    layers.into_iter().map(label).collect()
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
