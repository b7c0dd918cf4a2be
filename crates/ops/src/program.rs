//! Running frontends that are programs.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use castor_executor::{ExecMount, Meta, MountSource, Network, Process, RootMount, Secret, Stdio};
use castor_solver::Cx;
use castor_store::{ImmutableRef, RecordOptions, RecordType};
use parking_lot::Mutex;
use tokio::io::AsyncWrite;

use crate::bridge::Program;
use crate::{BridgeError, OpError, Worker};

/// Where a frontend finds what it is made of.
const DEFINITION: &str = "/run/config/buildkit/metadata/frontend.bin";
/// How much of what it wrote to people an error repeats.
const MAX_TAIL: usize = 4 << 10;

impl Worker {
    /// Runs a program on a copy of `root`, until it ends.
    pub async fn run_program(&self, cx: &Cx, root: &ImmutableRef, program: Program) -> Result<(), BridgeError> {
        let name = program.args.join(" ");
        let options =
            RecordOptions { record_type: RecordType::Internal, ..RecordOptions::described(format!("frontend {name}")) };
        let writable = self.store().new_mutable(cx, Some(root), options).await.map_err(OpError::from)?;
        let mounting = writable.mount(cx).await.map_err(OpError::from)?;
        let definition = Secret { data: program.definition, uid: 0, gid: 0, mode: 0o400 };
        let said = Tail::default();
        let process = Process {
            id: crate::random_id(),
            root: RootMount { path: mounting.path().to_owned(), readonly: false },
            mounts: vec![ExecMount {
                source: MountSource::Secret(definition),
                selector: String::new(),
                destination: DEFINITION.to_owned(),
                readonly: true,
            }],
            meta: Meta {
                args: program.args,
                env: program.env,
                cwd: program.cwd,
                network: if program.no_network { Network::None } else { Network::Sandbox },
                remove_mount_stubs_recursive: true,
                ..Meta::default()
            },
            stdio: Stdio {
                stdin: Some(program.stdin),
                stdout: Some(program.stdout),
                stderr: Some(Box::new(said.clone())),
                ..Stdio::default()
            },
        };
        let ended = self.executor().run(process, None, cx.token()).await;
        drop(mounting);
        ended.map_err(|error| {
            let mut failure = BridgeError::from(OpError::from(error));
            let said = said.text();
            if !said.is_empty() {
                failure.message.push_str(&format!(": {said}"));
            }
            failure
        })
    }
}

/// The end of what a program wrote.
#[derive(Clone, Default)]
struct Tail(Arc<Mutex<Vec<u8>>>);

impl Tail {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock()).trim().to_owned()
    }
}

impl AsyncWrite for Tail {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        let mut tail = self.0.lock();
        tail.extend_from_slice(bytes);
        let surplus = tail.len().saturating_sub(MAX_TAIL);
        tail.drain(..surplus);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt as _;

    #[tokio::test]
    async fn the_end_of_what_was_said_is_kept() {
        let tail = Tail::default();
        let mut writer = tail.clone();
        writer.write_all(&[b'x'; MAX_TAIL]).await.unwrap();
        writer.write_all(b"fatal: no\n").await.unwrap();
        assert_eq!(tail.0.lock().len(), MAX_TAIL);
        assert!(tail.text().ends_with("xfatal: no"));
    }
}
