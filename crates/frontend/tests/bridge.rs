//! LLBBridge over a real connection to a fake build.
#![allow(clippy::unwrap_used)]

#[allow(dead_code)]
mod fake;

use castor_frontend::{BUILD_ID_HEADER, BridgeService, Gateway, Gateways};
use castor_llb::State;
use castor_llb::state::{Constraints, LocalOptions};
use castor_ops::Refs;
use castor_proto::errdefs::Vertex;
use castor_proto::gateway::llb_bridge_client::LlbBridgeClient;
use castor_proto::gateway::{self as wire, result::Result as WireRefs};
use castor_proto::rpc;
use castor_wire::Failure;
use fake::FakeBuild;
use hyper_util::rt::TokioIo;
use prost::Message as _;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Code, Request};

struct Served {
    client: LlbBridgeClient<Channel>,
    gateways: Gateways,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn serve() -> Served {
    let gateways = Gateways::default();
    let (near, far) = tokio::io::duplex(1 << 20);
    let router = Server::builder().add_service(BridgeService::server(gateways.clone()));
    let server = tokio::spawn(async move {
        let incoming = tokio_stream::once(Ok::<_, std::io::Error>(far));
        router.serve_with_incoming(incoming).await.unwrap();
    });
    let mut near = Some(near);
    let channel = Endpoint::from_static("http://fake")
        .connect_with_connector(tower::service_fn(move |_| {
            let near = near.take().map(TokioIo::new);
            async move { near.ok_or_else(|| std::io::Error::other("connected before")) }
        }))
        .await
        .unwrap();
    Served { client: castor_wire::limited!(LlbBridgeClient::new(channel)), gateways, server }
}

fn of<T>(build: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(BUILD_ID_HEADER, build.parse().unwrap());
    request
}

async fn definition() -> castor_proto::pb::Definition {
    let state = State::local("dockerfile", &LocalOptions::default(), Constraints::default());
    state.marshal(&castor_llb::MarshalOptions::default()).unwrap().to_pb()
}

#[tokio::test]
async fn a_build_from_ping_to_return() {
    let mut served = serve().await;
    let fake = FakeBuild::with(&[("dockerfile", "a", "hello")]);
    let gateway = Gateway::new(fake.clone());
    let _registered = served.gateways.register("b", gateway.clone());
    let client = &mut served.client;

    let pong = client.ping(of("b", wire::PingRequest {})).await.unwrap().into_inner();
    let has = |list: &[castor_proto::apicaps::ApiCap], id: &str| list.iter().any(|cap| cap.id == id && cap.enabled);
    assert!(has(&pong.frontend_api_caps, "return") && !has(&pong.frontend_api_caps, "gateway.exec.filesystem"));
    assert!(has(&pong.llb_caps, "mergeop") && !has(&pong.llb_caps, "source.git.bundle"));
    assert_eq!(pong.workers[0].platforms[0].architecture, "amd64");

    let request = wire::SolveRequest {
        definition: Some(definition().await),
        allow_result_return: true,
        allow_result_array_ref: true,
        ..wire::SolveRequest::default()
    };
    let solved = client.solve(of("b", request)).await.unwrap().into_inner();
    let Some(WireRefs::Ref(reference)) = solved.result.unwrap().result else { panic!("no ref") };
    assert!(!reference.id.is_empty() && reference.def.is_some());
    let read = wire::ReadFileRequest {
        r#ref: reference.id.clone(),
        file_path: "a".into(),
        ..wire::ReadFileRequest::default()
    };
    assert_eq!(client.read_file(of("b", read)).await.unwrap().into_inner().data, "hello");
    let unknown = wire::ReadFileRequest { r#ref: "x".into(), ..wire::ReadFileRequest::default() };
    assert!(client.read_file(of("b", unknown)).await.unwrap_err().message().starts_with("no such ref: x"));
    client.evaluate(of("b", wire::EvaluateRequest { r#ref: reference.id.clone() })).await.unwrap();

    let result = wire::Result {
        metadata: [("k".to_owned(), "v".into())].into(),
        result: Some(WireRefs::Refs(wire::RefMap {
            refs: [("p".to_owned(), reference), ("empty".to_owned(), wire::Ref::default())].into(),
        })),
        ..wire::Result::default()
    };
    let done = wire::ReturnRequest { result: Some(result), error: None };
    client.r#return(of("b", done.clone())).await.unwrap();
    let again = client.r#return(of("b", done)).await.unwrap_err();
    assert_eq!(again.message(), "gateway result is already set");
    let outcome = gateway.outcome().await.unwrap();
    let Refs::Map(refs) = outcome.refs else { panic!("no map") };
    assert!(refs["p"].is_some() && refs["empty"].is_none());
    assert_eq!(outcome.metadata["k"], "v");
}

#[tokio::test]
async fn an_error_comes_back_with_its_details() {
    let mut served = serve().await;
    let gateway = Gateway::new(FakeBuild::with(&[]));
    let _registered = served.gateways.register("b", gateway.clone());
    let status: rpc::Status =
        Failure::new(Code::NotFound, "gone").with(&Vertex { digest: "sha256:aa".into() }).to_rpc();
    let request = wire::ReturnRequest { result: None, error: Some(status) };
    served.client.r#return(of("b", request)).await.unwrap();
    let error = gateway.outcome().await.unwrap_err();
    assert_eq!((error.code, error.message.as_str(), error.details.len()), (5, "gone", 1));
    let wire = castor_frontend::to_failure(&error);
    assert_eq!(wire.details::<Vertex>()[0].digest, "sha256:aa");
}

#[tokio::test]
async fn an_empty_request_has_an_empty_result() {
    let mut served = serve().await;
    let _registered = served.gateways.register("b", Gateway::new(FakeBuild::with(&[])));
    let request = wire::SolveRequest { allow_result_return: true, ..wire::SolveRequest::default() };
    let solved = served.client.solve(of("b", request)).await.unwrap().into_inner();
    assert_eq!(solved.result.unwrap().result, Some(WireRefs::RefDeprecated(String::new())));
}

#[tokio::test(start_paused = true)]
async fn a_call_waits_for_its_build() {
    let served = serve().await;
    let (mut client, gateways) = (served.client.clone(), served.gateways.clone());
    let call = tokio::spawn(async move { client.ping(of("late", wire::PingRequest {})).await });
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    let _registered = gateways.register("late", Gateway::new(FakeBuild::with(&[])));
    call.await.unwrap().unwrap();

    let unknown = served.client.clone().ping(of("never", wire::PingRequest {})).await.unwrap_err();
    assert_eq!((unknown.code(), unknown.message()), (Code::NotFound, "forwarding Ping: no such job never"));
    let nameless = served.client.clone().ping(Request::new(wire::PingRequest {})).await.unwrap_err();
    assert_eq!(nameless.message(), "forwarding Ping: no buildid found in context");
}

#[tokio::test]
async fn what_is_not_there_is_said_by_name() {
    let mut served = serve().await;
    let _registered = served.gateways.register("b", Gateway::new(FakeBuild::with(&[])));
    let status = served.client.stat_file_container(of("b", wire::StatFileRequest::default())).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
    let unknown = wire::ReleaseContainerRequest { container_id: "c".into() };
    let status = served.client.release_container(of("b", unknown)).await.unwrap_err();
    assert_eq!(status.message(), "container details for c not found");
    let policies = vec![castor_proto::sourcepolicy::Policy::default()];
    let request = wire::SolveRequest { source_policies: policies, ..wire::SolveRequest::default() };
    let status = served.client.solve(of("b", request)).await.unwrap_err();
    assert!(status.message().contains("source policies"), "{status}");
    assert!(rpc::Status::decode(status.details()).unwrap_or_default().details.is_empty());
}
