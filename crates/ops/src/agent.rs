//! Sockets behind which are clients' SSH agents.

use std::path::Path;

use castor_session::ssh::{self, Access, AgentSocket};
use castor_solver::Cx;

use crate::openers::group;
use crate::passing::PassingDirectory;
use crate::{OpError, Worker};

/// The name of a socket in its directory.
const NAME: &str = "ssh_auth_sock";

/// For a program of the daemon's own.
pub(crate) const OWN: Access = Access { uid: 0, gid: 0, mode: 0o700 };

/// A socket in a directory of its own; both go when it is dropped.
pub(crate) struct Agent {
    // Dropped first: it removes its file.
    socket: AgentSocket,
    _dir: PassingDirectory,
}

impl Agent {
    /// A socket for the agent `id` of whoever wants the work of `cx`; fails if nobody has it.
    pub(crate) async fn open(worker: &Worker, cx: &Cx, id: &str, access: Access) -> Result<Self, OpError> {
        let caller = ssh::find(&group(worker.sessions(), cx), id).await?;
        let caller = caller.ok_or_else(|| OpError::NoAgent(id.to_owned()))?;
        let passing = worker.passing().clone();
        let dir = castor_task::blocking(move || passing.directory(NAME))
            .await
            .map_err(|error| OpError::Invalid(format!("failed to make a directory for an SSH agent: {error}")))?;
        let id = if id.is_empty() { ssh::DEFAULT_ID } else { id };
        let socket = AgentSocket::bind(&caller, id, &dir.path().join(NAME), access, worker.scope())?;
        Ok(Self { socket, _dir: dir })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        self.socket.path()
    }
}
