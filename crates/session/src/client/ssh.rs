//! SSH agents, or other sockets, for build steps.

use std::collections::BTreeMap;
use std::path::PathBuf;

use bytes::Bytes;
use castor_proto::sshforward::ssh_server::{Ssh, SshServer};
use castor_proto::sshforward::{BytesMessage, CheckAgentRequest, CheckAgentResponse};
use castor_wire::headers;
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tonic::{Request, Response, Status, Streaming};

use crate::key;
use crate::ssh::DEFAULT_ID;

/// The largest piece that is forwarded at once.
const PIECE: usize = 32 << 10;

/// Sockets by id.
#[derive(Debug, Clone, Default)]
pub struct Agents {
    sockets: BTreeMap<String, PathBuf>,
}

impl Agents {
    /// Offers the socket as `id`; an empty one is `default`.
    pub fn insert(&mut self, id: impl Into<String>, socket: PathBuf) {
        let id = id.into();
        self.sockets.insert(if id.is_empty() { DEFAULT_ID.to_owned() } else { id }, socket);
    }

    pub(super) fn service(self) -> SshServer<Self> {
        SshServer::new(self)
    }

    fn find(&self, id: &str) -> Result<&PathBuf, Status> {
        let id = if id.is_empty() { DEFAULT_ID } else { id };
        self.sockets.get(id).ok_or_else(|| Status::not_found(format!("unset ssh forward key {id}")))
    }
}

#[tonic::async_trait]
impl Ssh for Agents {
    type ForwardAgentStream = BoxStream<'static, Result<BytesMessage, Status>>;

    async fn check_agent(&self, request: Request<CheckAgentRequest>) -> Result<Response<CheckAgentResponse>, Status> {
        self.find(&request.into_inner().id)?;
        Ok(Response::new(CheckAgentResponse {}))
    }

    async fn forward_agent(
        &self,
        request: Request<Streaming<BytesMessage>>,
    ) -> Result<Response<Self::ForwardAgentStream>, Status> {
        let id = headers::first(request.metadata(), key::SSH_ID).unwrap_or_default();
        let path = self.find(&id)?;
        let failed = |error| Status::unknown(format!("connect to {}: {error}", path.display()));
        let (read, mut write) = UnixStream::connect(path).await.map_err(failed)?.into_split();
        let broken = |error: std::io::Error| Status::unknown(format!("forward an SSH agent: {error}"));
        let mut incoming = request.into_inner();
        // Drives the other direction; its end is the end of the socket's input,
        // its error that of the call.
        let up = async move {
            while let Some(message) = incoming.try_next().await? {
                write.write_all(&message.data).await.map_err(broken)?;
            }
            write.shutdown().await.map_err(broken)
        };
        let up = futures::stream::once(up)
            .filter_map(|result: Result<(), Status>| futures::future::ready(result.err().map(Err)));
        let down = futures::stream::try_unfold(read, move |mut read| async move {
            let mut buffer = vec![0; PIECE];
            let count = read.read(&mut buffer).await.map_err(broken)?;
            buffer.truncate(count);
            Ok((count > 0).then(|| (BytesMessage { data: Bytes::from(buffer) }, read)))
        });
        Ok(Response::new(futures::stream::select(down, up).boxed()))
    }
}
