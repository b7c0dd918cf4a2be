//! A daemon that has nothing but sessions, and clients of it, in one process.

use std::time::Duration;

use castor_proto::control::control_server::{Control, ControlServer};
use castor_proto::control::*;
use castor_session::client::Session;
use castor_session::{Caller, Sessions};
use castor_task::{CancellationToken, Scope};
use castor_wire::{channel_over, serve_over};
use futures::stream::BoxStream;
use tonic::service::Routes;
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

/// A daemon that does nothing but sessions.
struct Daemon(Sessions);

#[tonic::async_trait]
impl Control for Daemon {
    type PruneStream = BoxStream<'static, Result<UsageRecord, Status>>;
    type StatusStream = BoxStream<'static, Result<StatusResponse, Status>>;
    type SessionStream = castor_session::SessionStream;
    type ListenBuildHistoryStream = BoxStream<'static, Result<BuildHistoryEvent, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<BytesMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (metadata, _, incoming) = request.into_parts();
        let opened = self.0.open(&metadata, incoming).await;
        opened.map(Response::new).map_err(|error| error.to_failure().to_status())
    }
    async fn disk_usage(&self, _: Request<DiskUsageRequest>) -> Result<Response<DiskUsageResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn prune(&self, _: Request<PruneRequest>) -> Result<Response<Self::PruneStream>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn solve(&self, _: Request<SolveRequest>) -> Result<Response<SolveResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<Self::StatusStream>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn list_workers(&self, _: Request<ListWorkersRequest>) -> Result<Response<ListWorkersResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn info(&self, _: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn listen_build_history(
        &self,
        _: Request<BuildHistoryRequest>,
    ) -> Result<Response<Self::ListenBuildHistoryStream>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn update_build_history(
        &self,
        _: Request<UpdateBuildHistoryRequest>,
    ) -> Result<Response<UpdateBuildHistoryResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

/// A daemon and a connection to it.
pub struct World {
    pub scope: Scope,
    pub sessions: Sessions,
    pub channel: Channel,
}

impl World {
    pub async fn new() -> Self {
        let scope = Scope::root("test");
        let sessions = Sessions::new(scope.child("daemon"));
        let (server, client) = tokio::io::duplex(1 << 16);
        let routes = Routes::new(ControlServer::new(Daemon(sessions.clone())));
        let stop = scope.token().clone();
        tokio::spawn(async move { serve_over(server, routes, &stop).await });
        let channel = channel_over(client).await.unwrap();
        Self { scope, sessions, channel }
    }

    pub fn session(&self) -> Session {
        Session::new("shared", self.scope.child("client"))
    }

    /// Opens a session; it ends when the token is cancelled.
    pub async fn open(&self, session: Session) -> (Caller, CancellationToken) {
        let (id, stop) = (session.id().to_owned(), CancellationToken::new());
        tokio::spawn(session.run(self.channel.clone(), stop.clone()));
        (self.sessions.get(&id, Duration::from_secs(300)).await.unwrap(), stop)
    }

    pub async fn end(self) {
        self.scope.close(Duration::from_secs(300)).await.unwrap();
    }
}
