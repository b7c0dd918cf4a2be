//! The gRPC service.

use castor_ops::BridgeError;
use castor_proto::gateway as wire;
use castor_proto::gateway::llb_bridge_server::{LlbBridge, LlbBridgeServer};
use futures::stream::BoxStream;
use tonic::{Request, Response, Status, Streaming};

use super::build::Gateway;
use super::containers;
use super::registry::Locate;
use crate::failure::to_failure;

/// LLBBridge over whatever finds builds.
#[derive(Debug)]
pub struct BridgeService<L>(L);

impl<L: Locate> BridgeService<L> {
    /// A server to add to a router.
    pub fn server(locate: L) -> LlbBridgeServer<Self> {
        castor_wire::limited!(LlbBridgeServer::new(Self(locate)))
    }

    async fn build<T>(&self, method: &str, request: &Request<T>) -> Result<std::sync::Arc<Gateway>, Status> {
        let located = self.0.locate(request.metadata()).await;
        located.map_err(|error| status(error.context(format!("forwarding {method}"))))
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn status(error: BridgeError) -> Status {
    to_failure(&error).to_status()
}

fn no_files(method: &str) -> Status {
    Status::unimplemented(format!("{method}: files of containers are not supported by castor yet"))
}

#[tonic::async_trait]
impl<L: Locate> LlbBridge for BridgeService<L> {
    async fn ping(&self, request: Request<wire::PingRequest>) -> Result<Response<wire::PongResponse>, Status> {
        Ok(Response::new(self.build("Ping", &request).await?.ping()))
    }

    async fn solve(&self, request: Request<wire::SolveRequest>) -> Result<Response<wire::SolveResponse>, Status> {
        let build = self.build("Solve", &request).await?;
        build.solve(request.into_inner()).await.map(Response::new).map_err(status)
    }

    async fn inputs(&self, request: Request<wire::InputsRequest>) -> Result<Response<wire::InputsResponse>, Status> {
        Ok(Response::new(self.build("Inputs", &request).await?.inputs()))
    }

    async fn r#return(&self, request: Request<wire::ReturnRequest>) -> Result<Response<wire::ReturnResponse>, Status> {
        let build = self.build("Return", &request).await?;
        build.finish(request.into_inner()).map_err(status)?;
        Ok(Response::new(wire::ReturnResponse {}))
    }

    async fn evaluate(
        &self,
        request: Request<wire::EvaluateRequest>,
    ) -> Result<Response<wire::EvaluateResponse>, Status> {
        let build = self.build("Evaluate", &request).await?;
        build.evaluate(&request.into_inner().r#ref).await.map_err(status)?;
        Ok(Response::new(wire::EvaluateResponse {}))
    }

    async fn warn(&self, request: Request<wire::WarnRequest>) -> Result<Response<wire::WarnResponse>, Status> {
        let build = self.build("Warn", &request).await?;
        build.warn(request.into_inner()).map_err(status)?;
        Ok(Response::new(wire::WarnResponse {}))
    }

    async fn resolve_image_config(
        &self,
        request: Request<wire::ResolveImageConfigRequest>,
    ) -> Result<Response<wire::ResolveImageConfigResponse>, Status> {
        let build = self.build("ResolveImageConfig", &request).await?;
        build.resolve_image_config(request.into_inner()).await.map(Response::new).map_err(status)
    }

    async fn resolve_source_meta(
        &self,
        request: Request<wire::ResolveSourceMetaRequest>,
    ) -> Result<Response<wire::ResolveSourceMetaResponse>, Status> {
        let build = self.build("ResolveSourceMeta", &request).await?;
        build.resolve_source_meta(request.into_inner()).await.map(Response::new).map_err(status)
    }

    async fn read_file(
        &self,
        request: Request<wire::ReadFileRequest>,
    ) -> Result<Response<wire::ReadFileResponse>, Status> {
        let build = self.build("ReadFile", &request).await?;
        let data = build.read_file(request.into_inner()).await.map_err(status)?;
        Ok(Response::new(wire::ReadFileResponse { data }))
    }

    async fn read_dir(
        &self,
        request: Request<wire::ReadDirRequest>,
    ) -> Result<Response<wire::ReadDirResponse>, Status> {
        let build = self.build("ReadDir", &request).await?;
        build.read_dir(request.into_inner()).await.map(Response::new).map_err(status)
    }

    async fn stat_file(
        &self,
        request: Request<wire::StatFileRequest>,
    ) -> Result<Response<wire::StatFileResponse>, Status> {
        let build = self.build("StatFile", &request).await?;
        build.stat_file(request.into_inner()).await.map(Response::new).map_err(status)
    }

    async fn new_container(
        &self,
        request: Request<wire::NewContainerRequest>,
    ) -> Result<Response<wire::NewContainerResponse>, Status> {
        let build = self.build("NewContainer", &request).await?;
        build.new_container(request.into_inner()).await.map_err(status)?;
        Ok(Response::new(wire::NewContainerResponse {}))
    }

    async fn release_container(
        &self,
        request: Request<wire::ReleaseContainerRequest>,
    ) -> Result<Response<wire::ReleaseContainerResponse>, Status> {
        let build = self.build("ReleaseContainer", &request).await?;
        build.release_container(&request.into_inner().container_id).await.map_err(status)?;
        Ok(Response::new(wire::ReleaseContainerResponse {}))
    }

    type ExecProcessStream = BoxStream<'static, Result<wire::ExecMessage, Status>>;

    async fn exec_process(
        &self,
        request: Request<Streaming<wire::ExecMessage>>,
    ) -> Result<Response<Self::ExecProcessStream>, Status> {
        let build = self.build("ExecProcess", &request).await?;
        Ok(Response::new(containers::exec(build, request.into_inner())))
    }

    async fn read_file_container(
        &self,
        _: Request<wire::ReadFileRequest>,
    ) -> Result<Response<wire::ReadFileResponse>, Status> {
        Err(no_files("ReadFileContainer"))
    }

    async fn read_dir_container(
        &self,
        _: Request<wire::ReadDirRequest>,
    ) -> Result<Response<wire::ReadDirResponse>, Status> {
        Err(no_files("ReadDirContainer"))
    }

    async fn stat_file_container(
        &self,
        _: Request<wire::StatFileRequest>,
    ) -> Result<Response<wire::StatFileResponse>, Status> {
        Err(no_files("StatFileContainer"))
    }
}
