//! SSH agents, or other sockets, for build steps.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use castor_proto::sshforward::ssh_server::{Ssh, SshServer};
use castor_proto::sshforward::{BytesMessage, CheckAgentRequest, CheckAgentResponse};
use castor_wire::headers;
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tonic::{Request, Response, Status, Streaming};

use super::agent::{self, Backend, Key};
use crate::key;
use crate::ssh::DEFAULT_ID;

/// The largest piece that is forwarded at once.
const PIECE: usize = 32 << 10;

/// What build steps may talk to.
#[derive(Debug, Clone)]
pub enum Forwarded {
    /// The agent behind this socket: its keys are listed and sign, nothing else.
    Agent(PathBuf),
    /// An agent that has these keys.
    Keys(Arc<Vec<Key>>),
    /// Whatever is behind this socket.
    Raw(PathBuf),
}

/// What build steps may talk to, by id.
#[derive(Debug, Clone, Default)]
pub struct Agents {
    forwarded: BTreeMap<String, Forwarded>,
}

impl Agents {
    /// Offers it as `id`; an empty one is `default`. What was offered under that id before is returned.
    pub fn insert(&mut self, id: impl Into<String>, forwarded: Forwarded) -> Option<Forwarded> {
        let id = id.into();
        self.forwarded.insert(if id.is_empty() { DEFAULT_ID.to_owned() } else { id }, forwarded)
    }

    pub(super) fn service(self) -> SshServer<Self> {
        SshServer::new(self)
    }

    fn find(&self, id: &str) -> Result<&Forwarded, Status> {
        let id = if id.is_empty() { DEFAULT_ID } else { id };
        self.forwarded.get(id).ok_or_else(|| Status::not_found(format!("unset ssh forward key {id}")))
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
        let backend = match self.find(&id)?.clone() {
            Forwarded::Raw(path) => {
                let failed = |error| Status::unknown(format!("connect to {}: {error}", path.display()));
                let stream = UnixStream::connect(&path).await.map_err(failed)?;
                return Ok(Response::new(exchange(stream, request.into_inner())));
            }
            Forwarded::Agent(path) => Backend::Agent(path),
            Forwarded::Keys(keys) => Backend::Keys(keys),
        };
        let (near, far) = tokio::io::duplex(PIECE);
        let serving = async move {
            agent::serve(far, backend).await.map_err(|error| Status::unknown(format!("ssh agent {id}: {error}")))
        };
        let failures =
            futures::stream::once(serving).filter_map(|result| futures::future::ready(result.err().map(Err)));
        // It is served as long as the exchange lasts; that ends when the step has no more to say.
        Ok(Response::new(futures::stream::select(exchange(near, request.into_inner()), failures).boxed()))
    }
}

/// What comes from `io`, while what is in `incoming` goes there.
fn exchange(
    io: impl AsyncRead + AsyncWrite + Send + 'static,
    mut incoming: Streaming<BytesMessage>,
) -> BoxStream<'static, Result<BytesMessage, Status>> {
    let (read, mut write) = tokio::io::split(io);
    let broken = |error: std::io::Error| Status::unknown(format!("forward an SSH agent: {error}"));
    // Drives the other direction; its end is the end of the socket's input, its error that of the call.
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
    futures::stream::select(down, up).boxed()
}
