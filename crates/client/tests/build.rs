//! Builds with a daemon that is nothing but a script: what the client says to it, in which order, and what it makes of
//! the answers.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use castor_client::status::SolveStatus;
use castor_client::{BuildOptions, CancellationToken, Client, ClientError, Target, new_id};
use castor_proto::control::control_server::{Control, ControlServer};
use castor_proto::gateway::llb_bridge_server::{LlbBridge, LlbBridgeServer};
use castor_proto::{apicaps, control, gateway, types};
use castor_wire::{Address, BindOptions, Failure, Listener};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};
use tonic::{Code, Request, Response, Status, Streaming};

type Answer<T> = Result<Response<T>, Status>;
type Answers<T> = BoxStream<'static, Result<T, Status>>;
type Later<'a, T> = Pin<Box<dyn Future<Output = Answer<T>> + Send + 'a>>;

/// How the build goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Plot {
    Succeeds,
    FrontendFails,
    /// The request itself is refused.
    Refused,
    NeverEnds,
    /// The daemon says nothing at all.
    Silent,
}

struct Daemon {
    plot: Plot,
    /// What was asked, in order.
    asked: Mutex<Vec<String>>,
    solve: Mutex<Option<control::SolveRequest>>,
    gateway: Mutex<Option<gateway::SolveRequest>>,
    returned: Mutex<Option<gateway::ReturnRequest>>,
    /// The result was returned.
    done: Notify,
    /// The client's session was opened.
    session: Notify,
    ended: CancellationToken,
}

impl Daemon {
    fn note(&self, what: &str) {
        self.asked.lock().push(what.to_owned());
    }

    fn has(&self, what: &str) -> bool {
        self.asked.lock().iter().any(|asked| asked == what)
    }

    fn check_build<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let id = request.metadata().get("buildkit-controlapi-buildid").and_then(|value| value.to_str().ok());
        if id == Some("the-build") { Ok(()) } else { Err(Status::invalid_argument(format!("build {id:?}"))) }
    }
}

macro_rules! unused {
    ($($name:ident: $request:ty => $response:ty;)*) => {
        $(fn $name<'life, 'later>(&'life self, _: Request<$request>) -> Later<'later, $response>
        where
            'life: 'later,
            Self: 'later,
        {
            Box::pin(async { Err(Status::unimplemented(stringify!($name))) })
        })*
    };
}

#[tonic::async_trait]
impl Control for Daemon {
    type PruneStream = Answers<control::UsageRecord>;
    type StatusStream = Answers<control::StatusResponse>;
    type SessionStream = Answers<control::BytesMessage>;
    type ListenBuildHistoryStream = Answers<control::BuildHistoryEvent>;

    async fn solve(&self, request: Request<control::SolveRequest>) -> Answer<control::SolveResponse> {
        self.note("solve");
        *self.solve.lock() = Some(request.into_inner());
        match self.plot {
            Plot::Refused => {
                self.ended.cancel();
                return Err(Status::unknown("exporter \"x\" could not be found"));
            }
            Plot::NeverEnds | Plot::Silent => {
                let _told = self.ended.clone().drop_guard();
                std::future::pending::<()>().await;
            }
            Plot::Succeeds | Plot::FrontendFails => self.done.notified().await,
        }
        self.ended.cancel();
        let returned = self.returned.lock().clone().unwrap();
        match returned.error {
            Some(error) => Err(Failure::from_rpc(error).to_status()),
            None => Ok(Response::new(control::SolveResponse {
                exporter_response: [("key".to_owned(), "value".to_owned())].into(),
            })),
        }
    }

    async fn status(&self, request: Request<control::StatusRequest>) -> Answer<Self::StatusStream> {
        assert_eq!(request.into_inner().r#ref, "the-build");
        let vertex = control::Vertex { digest: "sha256:a".into(), name: "a step".into(), ..Default::default() };
        let news = control::StatusResponse { vertexes: vec![vertex], ..Default::default() };
        let ended = self.ended.clone();
        let stream = futures::stream::once(async move { Ok(news) });
        Ok(Response::new(stream.chain(end_with(ended)).boxed()))
    }

    async fn session(&self, request: Request<Streaming<control::BytesMessage>>) -> Answer<Self::SessionStream> {
        let methods = request.metadata().get_all("x-docker-expose-session-grpc-method");
        assert!(methods.iter().any(|method| method == "/grpc.health.v1.Health/Check"));
        let id = request.metadata().get("x-docker-expose-session-uuid").unwrap().to_str().unwrap().to_owned();
        self.note(&format!("session {id}"));
        self.session.notify_one();
        let mut incoming = request.into_inner();
        let ended = self.ended.clone();
        tokio::spawn(async move { while incoming.next().await.is_some() {} });
        Ok(Response::new(end_with(ended).boxed()))
    }

    async fn list_workers(&self, _: Request<control::ListWorkersRequest>) -> Answer<control::ListWorkersResponse> {
        self.note("workers");
        if self.plot == Plot::Silent {
            self.session.notify_one();
            std::future::pending::<()>().await;
        }
        Ok(Response::new(control::ListWorkersResponse { record: vec![types::WorkerRecord::default()] }))
    }

    unused! {
        disk_usage: control::DiskUsageRequest => control::DiskUsageResponse;
        prune: control::PruneRequest => Self::PruneStream;
        info: control::InfoRequest => control::InfoResponse;
        listen_build_history: control::BuildHistoryRequest => Self::ListenBuildHistoryStream;
        update_build_history: control::UpdateBuildHistoryRequest => control::UpdateBuildHistoryResponse;
    }
}

/// An empty stream that lasts until the token is cancelled.
fn end_with<T: Send + 'static>(ended: CancellationToken) -> Answers<T> {
    futures::stream::once(async move { ended.cancelled().await }).filter_map(|()| async { None }).boxed()
}

#[tonic::async_trait]
impl LlbBridge for Daemon {
    type ExecProcessStream = Answers<gateway::ExecMessage>;

    async fn ping(&self, request: Request<gateway::PingRequest>) -> Answer<gateway::PongResponse> {
        self.check_build(&request)?;
        self.note("ping");
        let cap = apicaps::ApiCap { id: "return".into(), enabled: true, ..Default::default() };
        Ok(Response::new(gateway::PongResponse { frontend_api_caps: vec![cap], ..Default::default() }))
    }

    async fn solve(&self, request: Request<gateway::SolveRequest>) -> Answer<gateway::SolveResponse> {
        self.check_build(&request)?;
        assert!(self.has("ping"));
        *self.gateway.lock() = Some(request.into_inner());
        if self.plot == Plot::FrontendFails {
            let source = castor_client::Source::default();
            return Err(Failure::new(Code::Unknown, "bad Dockerfile").with(&source).to_status());
        }
        let result = gateway::Result {
            metadata: [("said".to_owned(), bytes::Bytes::from_static(b"so"))].into(),
            ..Default::default()
        };
        Ok(Response::new(gateway::SolveResponse { result: Some(result), ..Default::default() }))
    }

    async fn r#return(&self, request: Request<gateway::ReturnRequest>) -> Answer<gateway::ReturnResponse> {
        self.check_build(&request)?;
        *self.returned.lock() = Some(request.into_inner());
        self.done.notify_one();
        Ok(Response::new(gateway::ReturnResponse::default()))
    }

    unused! {
        inputs: gateway::InputsRequest => gateway::InputsResponse;
        evaluate: gateway::EvaluateRequest => gateway::EvaluateResponse;
        warn: gateway::WarnRequest => gateway::WarnResponse;
        resolve_image_config: gateway::ResolveImageConfigRequest => gateway::ResolveImageConfigResponse;
        resolve_source_meta: gateway::ResolveSourceMetaRequest => gateway::ResolveSourceMetaResponse;
        read_file: gateway::ReadFileRequest => gateway::ReadFileResponse;
        read_dir: gateway::ReadDirRequest => gateway::ReadDirResponse;
        stat_file: gateway::StatFileRequest => gateway::StatFileResponse;
        new_container: gateway::NewContainerRequest => gateway::NewContainerResponse;
        release_container: gateway::ReleaseContainerRequest => gateway::ReleaseContainerResponse;
        exec_process: Streaming<gateway::ExecMessage> => Self::ExecProcessStream;
        read_file_container: gateway::ReadFileRequest => gateway::ReadFileResponse;
        read_dir_container: gateway::ReadDirRequest => gateway::ReadDirResponse;
        stat_file_container: gateway::StatFileRequest => gateway::StatFileResponse;
    }
}

/// A client of a daemon that plays `plot`.
async fn stage(plot: Plot) -> (Arc<Daemon>, Client, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let address = Address::Unix(dir.path().join("d.sock"));
    let daemon = Arc::new(Daemon {
        plot,
        asked: Mutex::default(),
        solve: Mutex::default(),
        gateway: Mutex::default(),
        returned: Mutex::default(),
        done: Notify::new(),
        session: Notify::new(),
        ended: CancellationToken::new(),
    });
    let listener = Listener::bind(&address, &BindOptions::default()).unwrap();
    let server = castor_wire::server()
        .add_service(ControlServer::from_arc(daemon.clone()))
        .add_service(LlbBridgeServer::from_arc(daemon.clone()));
    tokio::spawn(server.serve_with_incoming(listener.incoming()));
    let target = Target { address: address.to_string(), tls: None, timeout: Duration::from_secs(300), wait: false };
    let client = Client::connect(&target, "test").await.unwrap();
    (daemon, client, dir)
}

fn options() -> BuildOptions {
    BuildOptions {
        reference: "the-build".to_owned(),
        frontend: "dockerfile.v0".to_owned(),
        attrs: BTreeMap::from([("target".to_owned(), "x".to_owned())]),
        ..BuildOptions::default()
    }
}

async fn news(mut updates: mpsc::Receiver<SolveStatus>) -> Vec<String> {
    let mut names = Vec::new();
    while let Some(update) = updates.recv().await {
        names.extend(update.vertexes.into_iter().map(|vertex| vertex.name));
    }
    names
}

#[tokio::test]
async fn a_build_goes_through_the_gateway() {
    let (daemon, client, _dir) = stage(Plot::Succeeds).await;
    let (updates, receiver) = mpsc::channel(4);
    let never = CancellationToken::new();
    let (built, names) = tokio::join!(client.build(options(), updates, &never), news(receiver));
    let built = built.unwrap();
    assert_eq!(built.exporter_response["key"], "value");
    assert_eq!(&built.metadata["said"][..], b"so");
    assert_eq!(names, ["a step"]);

    let solve = daemon.solve.lock().clone().unwrap();
    assert_eq!((solve.r#ref.as_str(), solve.frontend.as_str()), ("the-build", ""));
    assert!(solve.definition.is_none());
    assert_eq!(solve.frontend_attrs["target"], "x");
    let gateway = daemon.gateway.lock().clone().unwrap();
    assert_eq!((gateway.frontend.as_str(), gateway.frontend_opt["target"].as_str()), ("dockerfile.v0", "x"));
    assert!(gateway.allow_result_return && gateway.allow_result_array_ref);
    // A result without a reference is returned as an empty one.
    let returned = daemon.returned.lock().clone().unwrap().result.unwrap();
    assert_eq!(returned.result, Some(gateway::result::Result::Ref(gateway::Ref::default())));
    assert_eq!(daemon.asked.lock()[0], "workers");
    assert!(daemon.has(&format!("session {}", solve.session)));
}

#[tokio::test]
async fn a_failed_frontend_is_the_builds_error_with_its_details() {
    let (daemon, client, _dir) = stage(Plot::FrontendFails).await;
    let (updates, receiver) = mpsc::channel(4);
    let never = CancellationToken::new();
    let (built, _) = tokio::join!(client.build(options(), updates, &never), news(receiver));
    let err = built.unwrap_err();
    assert_eq!(err.to_string(), "failed to solve: bad Dockerfile");
    assert_eq!(err.failure().unwrap().details::<castor_client::Source>().len(), 1);
    assert!(daemon.returned.lock().clone().unwrap().error.is_some());
}

#[tokio::test]
async fn a_refused_request_ends_the_build() {
    let (_daemon, client, _dir) = stage(Plot::Refused).await;
    let (updates, receiver) = mpsc::channel(4);
    let never = CancellationToken::new();
    let (built, _) = tokio::join!(client.build(options(), updates, &never), news(receiver));
    assert_eq!(built.unwrap_err().to_string(), "failed to solve: exporter \"x\" could not be found");
}

#[tokio::test]
async fn a_cancelled_build_is_cancelled_at_the_daemon() {
    let (daemon, client, _dir) = stage(Plot::NeverEnds).await;
    let (updates, receiver) = mpsc::channel(4);
    let cancel = CancellationToken::new();
    let (built, _, ()) = tokio::join!(client.build(options(), updates, &cancel), news(receiver), async {
        daemon.session.notified().await;
        // The gateway has nothing more to say.
        daemon.done.notified().await;
        cancel.cancel();
    });
    assert_eq!(built.unwrap_err().to_string(), "failed to solve: Canceled: context canceled");
    // The daemon's call was dropped, and with it whatever it was doing.
    tokio::time::timeout(Duration::from_secs(300), daemon.ended.cancelled()).await.unwrap();
}

#[tokio::test]
async fn a_build_on_a_silent_daemon_can_be_cancelled() {
    let (daemon, client, _dir) = stage(Plot::Silent).await;
    let (updates, receiver) = mpsc::channel(4);
    let cancel = CancellationToken::new();
    let (built, _, ()) = tokio::join!(client.build(options(), updates, &cancel), news(receiver), async {
        daemon.session.notified().await;
        cancel.cancel();
    });
    let message = "listing workers for Build: failed to list workers: Canceled: context canceled";
    assert_eq!(built.unwrap_err().to_string(), message);
}

#[tokio::test]
async fn a_daemon_that_is_not_there() {
    let target = Target {
        address: "unix:///nonexistent/d.sock".to_owned(),
        tls: None,
        timeout: Duration::from_secs(1),
        wait: false,
    };
    let err = Client::connect(&target, "failed to call info").await.unwrap_err();
    assert_eq!(
        err.to_string(),
        "failed to call info: Unavailable: connection error: desc = \"transport: Error while dialing: dial unix /nonexistent/d.sock: connect: no such file or directory\""
    );
    assert!(matches!(
        Client::connect(&Target { address: "x".into(), ..target }, "").await,
        Err(ClientError::Address(_))
    ));
    assert_eq!(new_id().len(), 25);
}
