//! Directories that the daemon may read.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use castor_fsutil::{Directory, FilterOptions, Link, MapResult, Packet, send};
use castor_proto::filesync::file_sync_server::{FileSync, FileSyncServer};
use castor_task::Scope;
use castor_wire::{headers, limited};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::key;

/// Packets on their way to the daemon.
const IN_FLIGHT: usize = 64;

/// Directories by the names the build knows them by.
#[derive(Debug, Clone, Default)]
pub struct SharedDirectories {
    paths: BTreeMap<String, PathBuf>,
}

impl SharedDirectories {
    /// Shares `path` as `name`.
    pub fn insert(&mut self, name: impl Into<String>, path: PathBuf) {
        self.paths.insert(name.into(), path);
    }

    pub(super) fn service(self, scope: &Scope) -> FileSyncServer<Service> {
        limited!(FileSyncServer::new(Service { directories: self, scope: scope.clone() }))
    }
}

pub struct Service {
    directories: SharedDirectories,
    scope: Scope,
}

#[tonic::async_trait]
impl FileSync for Service {
    type DiffCopyStream = BoxStream<'static, Result<Packet, Status>>;
    type TarStreamStream = BoxStream<'static, Result<Packet, Status>>;

    async fn diff_copy(&self, request: Request<Streaming<Packet>>) -> Result<Response<Self::DiffCopyStream>, Status> {
        let metadata = request.metadata();
        let name = headers::first(metadata, key::DIR_NAME).unwrap_or_default();
        let options = FilterOptions {
            include: headers::get(metadata, key::INCLUDE),
            exclude: headers::get(metadata, key::EXCLUDE),
            follow: headers::get(metadata, key::FOLLOW),
        };
        let path = self.directories.paths.get(&name).cloned();
        // The words of gRPC are part of the message in BuildKit's client.
        let denied =
            || Status::not_found(format!("rpc error: code = NotFound desc = no access allowed to dir {name:?}"));
        let path = path.ok_or_else(denied)?;
        let opened = tokio::task::spawn_blocking(move || Directory::filtered(path, &options)).await;
        let directory = opened
            .map_err(|error| Status::internal(error.to_string()))?
            .map_err(|error| Status::unknown(error.to_string()))?
            // Who owns a file here means nothing to the build.
            .with_map(Arc::new(|stat| {
                (stat.uid, stat.gid) = (0, 0);
                MapResult::Keep
            }));
        let (outgoing, packets) = mpsc::channel(IN_FLIGHT);
        let link = Link { incoming: request.into_inner().boxed(), outgoing };
        let (done, outcome) = oneshot::channel();
        self.scope.spawn_named(format!("send {name}"), async move {
            let result = send(link, Arc::new(directory), None).await;
            // Nobody asks for it if the call was given up.
            let _ = done.send(result.map(drop));
        });
        Ok(Response::new(packets_then_outcome(packets, outcome)))
    }

    async fn tar_stream(&self, _: Request<Streaming<Packet>>) -> Result<Response<Self::TarStreamStream>, Status> {
        Err(Status::unimplemented("tar streams are not supported"))
    }
}

/// The packets, and at their end the error that there was.
pub(super) fn packets_then_outcome(
    packets: mpsc::Receiver<Packet>,
    outcome: oneshot::Receiver<Result<(), castor_fsutil::TransferError>>,
) -> BoxStream<'static, Result<Packet, Status>> {
    let end = async move {
        match outcome.await {
            Ok(Ok(())) => None,
            Ok(Err(castor_fsutil::TransferError::Status(status))) => Some(Err(status)),
            Ok(Err(error)) => Some(Err(Status::unknown(error.to_string()))),
            Err(_) => Some(Err(Status::internal("the transfer ended without an outcome"))),
        }
    };
    ReceiverStream::new(packets).map(Ok).chain(futures::stream::once(end).filter_map(futures::future::ready)).boxed()
}
