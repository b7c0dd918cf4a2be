//! All services on all listeners.

use std::sync::Arc;
use std::time::Duration;

use castor_build::{Daemon, Traces};
use castor_frontend::BridgeService;
use castor_task::Scope;
use castor_wire::Listener;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use tonic::{Request, Response, Status};

use crate::content::ContentService;
use crate::service::ControlService;

/// How long builds may take to end when the daemon stops.
const DRAIN: Duration = Duration::from_secs(10);
/// How long clients may take afterwards to hear of it and to leave: one that is frozen or cut off never does.
const LINGER: Duration = Duration::from_secs(1);

/// Takes the traces that every client sends.
#[derive(Debug)]
struct ClientTraces(Traces);

#[tonic::async_trait]
impl TraceService for ClientTraces {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.receive(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

/// Serves `daemon` on `listeners` until `scope` is cancelled and the calls under way have ended, or were given up.
/// Builds run in a child of `scope`.
pub async fn serve(daemon: Arc<Daemon>, listeners: Vec<Listener>, scope: &Scope) {
    let builds = scope.child("calls");
    let control = ControlService::new(daemon.clone(), builds.clone());
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_service_status("", tonic_health::ServingStatus::Serving).await;
    let servers = listeners.into_iter().map(|listener| {
        let address = listener.address();
        let router = castor_wire::server()
            .add_service(control.clone().server())
            .add_service(BridgeService::server(daemon.gateways().clone()))
            .add_service(ContentService::server(daemon.store().content().clone()))
            .add_service(TraceServiceServer::new(ClientTraces(daemon.traces().clone())))
            .add_service(health_service.clone());
        let stopped = scope.token().clone();
        async move {
            let stop = stopped.clone().cancelled_owned();
            if let Err(error) = router.serve_with_incoming_shutdown(listener.incoming(), stop).await {
                tracing::error!(%address, %error, "serve");
                // One listener that is lost is a daemon that somebody cannot reach: end it rather than limp.
                stopped.cancel();
            }
        }
    });
    let mut serving = std::pin::pin!(futures::future::join_all(servers));
    tokio::select! {
        _ = &mut serving => return,
        () = scope.token().cancelled() => {}
    }
    // Builds are cancelled with the scope; their calls end with errors, and then the servers do.
    let ended = async {
        if let Err(still) = builds.close(DRAIN).await {
            tracing::warn!("{still}");
        }
        tokio::time::sleep(LINGER).await;
    };
    tokio::select! {
        _ = serving => {}
        () = ended => tracing::warn!("clients that have not left are not waited for"),
    }
}
