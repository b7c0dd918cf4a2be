//! The client's SSH agent.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use castor_proto::sshforward::ssh_client::SshClient;
use castor_proto::sshforward::{BytesMessage, CheckAgentRequest};
use castor_task::{CancellationToken, Scope};
use castor_wire::headers;
use futures::TryStreamExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status};

use super::lazily;
use crate::{Caller, Group, SessionError, key};

/// The agent that is meant if none is named.
pub const DEFAULT_ID: &str = "default";

/// The client of the group that has the agent `id`; `None` if no client forwards any. One that forwards others says so.
pub async fn find(group: &Group, id: &str) -> Result<Option<Caller>, SessionError> {
    let found = group.any(|caller| async move {
        let mut client = SshClient::new(caller.channel());
        caller.call(client.check_agent(CheckAgentRequest { id: id.to_owned() })).await?;
        Ok(caller)
    });
    match found.await {
        Ok(caller) => Ok(Some(caller)),
        Err(error) if error.code() == Code::Unimplemented => Ok(None),
        Err(error) => Err(error),
    }
}

/// Who may use the socket of an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Its permissions.
    pub mode: u32,
}

/// A socket behind which is a client's agent. Dropping it closes the socket.
#[derive(Debug)]
pub struct AgentSocket {
    path: PathBuf,
    stop: CancellationToken,
}

impl AgentSocket {
    /// Listens on `path` for the agent `id` of `caller`.
    pub fn bind(caller: &Caller, id: &str, path: &Path, access: Access, scope: &Scope) -> Result<Self, SessionError> {
        let failed = |doing: &str, source| SessionError::Io { doing: format!("{doing} {}", path.display()), source };
        let listener = UnixListener::bind(path).map_err(|source| failed("listen on", source))?;
        let stop = scope.token().child_token();
        let socket = Self { path: path.to_owned(), stop: stop.clone() };
        std::os::unix::fs::chown(path, Some(access.uid), Some(access.gid))
            .map_err(|source| failed("set owner of", source))?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(access.mode))
            .map_err(|source| failed("set mode of", source))?;
        let (caller, id, tasks) = (caller.clone(), id.to_owned(), scope.clone());
        scope.spawn_named(format!("ssh agent {id}"), async move {
            loop {
                let stream = tokio::select! {
                    () = stop.cancelled() => return,
                    () = caller.closed().cancelled() => return,
                    accepted = listener.accept() => match accepted {
                        Ok((stream, _)) => stream,
                        Err(error) => {
                            tracing::warn!(%error, "accept a connection to an SSH agent");
                            return;
                        }
                    },
                };
                let (caller, id, stop) = (caller.clone(), id.clone(), stop.clone());
                tasks.spawn_named(format!("ssh agent {id} connection"), async move {
                    tokio::select! {
                        () = stop.cancelled() => {}
                        result = forward(&caller, &id, stream) => if let Err(error) = result {
                            tracing::debug!(%error, "forward an SSH agent");
                        }
                    }
                });
            }
        });
        Ok(socket)
    }

    /// Where the socket is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for AgentSocket {
    fn drop(&mut self) {
        self.stop.cancel();
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Connects `stream` with the client's agent until both have said all.
pub async fn forward(caller: &Caller, id: &str, stream: UnixStream) -> Result<(), SessionError> {
    const PIECE: usize = 32 << 10;
    let (sender, pieces) = mpsc::channel(8);
    let mut request = Request::new(ReceiverStream::new(pieces));
    headers::insert(request.metadata_mut(), key::SSH_ID, &[id]);
    let mut client = SshClient::new(caller.channel());
    let mut answer = lazily(async move { client.forward_agent(request).await });
    let (mut read, mut write) = stream.into_split();
    let io = |source| SessionError::Io { doing: "forward an SSH agent".into(), source };
    let up = async move {
        let mut buffer = vec![0; PIECE];
        loop {
            let count = read.read(&mut buffer).await.map_err(io)?;
            let data = Bytes::copy_from_slice(&buffer[..count]);
            // Dropping the sender at the end closes this direction alone.
            if count == 0 || sender.send(BytesMessage { data }).await.is_err() {
                return Ok::<_, SessionError>(());
            }
        }
    };
    let down = async move {
        while let Some(message) = answer.try_next().await.map_err(|status: Status| SessionError::from(status))? {
            write.write_all(&message.data).await.map_err(io)?;
        }
        write.shutdown().await.map_err(io)
    };
    caller.call(async { tokio::try_join!(up, down).map(|_| ()) }).await
}
