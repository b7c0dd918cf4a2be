//! Results that the daemon sends.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use castor_fsutil::{Differ, Link, Packet, ReceiveOptions, receive};
use castor_proto::filesync::BytesMessage;
use castor_task::Scope;
use castor_wire::{MAX_MESSAGE, RawCodec, headers};
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use prost::Message as _;
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{mpsc, oneshot};
use tonic::codegen::{Body, Service as TowerService, StdError, http};
use tonic::metadata::{KeyAndValueRef, MetadataMap};
use tonic::server::NamedService;
use tonic::{Request, Response, Status, Streaming};

use super::filesync::packets_then_outcome;
use crate::key;

const NAME: &str = "moby.filesync.v1.FileSend";

/// Packets on their way to the daemon.
const IN_FLIGHT: usize = 64;

/// Opens where a stream goes to, knowing what it is; `None` if it is there
/// already.
pub type OpenStream =
    Arc<dyn Fn(&BTreeMap<String, String>) -> std::io::Result<Option<Box<dyn AsyncWrite + Send + Unpin>>> + Send + Sync>;

/// Where a result goes.
#[derive(Clone)]
pub enum Destination {
    /// Into a directory, which is made if need be. What is in it stays, unless
    /// it is to `mirror` the result.
    Directory {
        /// The directory.
        path: PathBuf,
        /// Remove all that is not in the result.
        mirror: bool,
    },
    /// To a file, or wherever.
    Stream(OpenStream),
}

/// Where the results of a build go, by the place of the exporter in the
/// build's request.
#[derive(Clone, Default)]
pub struct Exports {
    destinations: BTreeMap<usize, Destination>,
}

impl Exports {
    /// Says where the result of exporter `index` goes.
    pub fn insert(&mut self, index: usize, destination: Destination) {
        self.destinations.insert(index, destination);
    }

    pub(super) fn service(self, scope: &Scope) -> Service {
        Service { inner: Arc::new(Inner { exports: self, scope: scope.clone() }) }
    }
}

/// The service. Its frames are packets for a directory and pieces for a stream,
/// whatever the method declares, so they are not decoded by the transport.
#[derive(Clone)]
pub struct Service {
    inner: Arc<Inner>,
}

struct Inner {
    exports: Exports,
    scope: Scope,
}

type Frames = BoxStream<'static, Result<Bytes, Status>>;

impl NamedService for Service {
    const NAME: &'static str = NAME;
}

impl<B> TowerService<http::Request<B>> for Service
where
    B: Body + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let inner = Arc::clone(&self.inner);
        Box::pin(async move {
            if request.uri().path() != "/moby.filesync.v1.FileSend/DiffCopy" {
                return Ok(Status::unimplemented("no such method").into_http());
            }
            let mut grpc = tonic::server::Grpc::new(RawCodec)
                .max_decoding_message_size(MAX_MESSAGE)
                .max_encoding_message_size(MAX_MESSAGE);
            Ok(grpc.streaming(Method(inner), request).await)
        })
    }
}

struct Method(Arc<Inner>);

impl tonic::server::StreamingService<Bytes> for Method {
    type Response = Bytes;
    type ResponseStream = Frames;
    type Future = BoxFuture<'static, Result<Response<Frames>, Status>>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        let inner = Arc::clone(&self.0);
        Box::pin(async move { inner.receive(request).await })
    }
}

impl Inner {
    async fn receive(&self, request: Request<Streaming<Bytes>>) -> Result<Response<Frames>, Status> {
        let index =
            headers::first(request.metadata(), key::EXPORTER_ID).and_then(|text| text.parse().ok()).unwrap_or_default();
        let combined = headers::get(request.metadata(), key::MULTI_PLATFORM).iter().any(|value| value == "1");
        let metadata = exporter_metadata(request.metadata());
        match self.exports.destinations.get(&index) {
            None => Err(Status::unknown(format!("exporter {index} not found"))),
            Some(Destination::Directory { mirror: true, .. }) if !combined => Err(Status::unknown(
                "local exporter mode=delete requires a BuildKit daemon with multi-platform local export support",
            )),
            Some(Destination::Directory { path, mirror }) => {
                self.receive_directory(path, *mirror, request.into_inner()).await
            }
            Some(Destination::Stream(open)) => {
                let (open, frames) = (Arc::clone(open), request.into_inner());
                // The answer begins at once, so that the daemon may begin too.
                let done = futures::stream::once(async move { receive_stream(&open, &metadata, frames).await });
                let done = done.filter_map(|result| futures::future::ready(result.err().map(Err)));
                Ok(Response::new(done.boxed()))
            }
        }
    }

    async fn receive_directory(
        &self,
        path: &Path,
        mirror: bool,
        frames: Streaming<Bytes>,
    ) -> Result<Response<Frames>, Status> {
        let made = tokio::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).await;
        made.map_err(|error| Status::unknown(format!("create directory {}: {error}", path.display())))?;
        let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        let options = ReceiveOptions {
            merge: !mirror,
            differ: if mirror { Differ::None } else { Differ::Metadata },
            map: Some(Arc::new(move |_, stat| {
                (stat.uid, stat.gid) = (uid, gid);
                true
            })),
            ..ReceiveOptions::default()
        };
        let incoming = frames
            .and_then(|frame| {
                futures::future::ready(Packet::decode(frame).map_err(|error| Status::internal(error.to_string())))
            })
            .boxed();
        let (outgoing, packets) = mpsc::channel(IN_FLIGHT);
        let (done, outcome) = oneshot::channel();
        let path = path.to_owned();
        self.scope.spawn_named(format!("receive into {}", path.display()), async move {
            let result = receive(Link { incoming, outgoing }, &path, options).await;
            // Nobody asks for it if the call was given up.
            let _ = done.send(result);
        });
        let packets = packets_then_outcome(packets, outcome);
        Ok(Response::new(packets.map_ok(|packet| packet.encode_to_vec().into()).boxed()))
    }
}

async fn receive_stream(
    open: &OpenStream,
    metadata: &BTreeMap<String, String>,
    mut frames: Streaming<Bytes>,
) -> Result<(), Status> {
    let failed = |error: std::io::Error| Status::unknown(format!("write the exported stream: {error}"));
    let Some(mut output) = open(metadata).map_err(failed)? else {
        return Err(Status::already_exists("target already exists"));
    };
    while let Some(frame) = frames.try_next().await? {
        let piece = BytesMessage::decode(frame).map_err(|error| Status::internal(error.to_string()))?;
        output.write_all(&piece.data).await.map_err(failed)?;
    }
    output.shutdown().await.map_err(failed)
}

fn exporter_metadata(metadata: &MetadataMap) -> BTreeMap<String, String> {
    let mut found: BTreeMap<String, String> = BTreeMap::new();
    for entry in metadata.iter() {
        let KeyAndValueRef::Ascii(name, value) = entry else { continue };
        if let (Some(name), Ok(value)) = (name.as_str().strip_prefix(key::EXPORTER_METADATA), value.to_str()) {
            let values = found.entry(name.to_owned()).or_default();
            if !values.is_empty() {
                values.push(',');
            }
            values.push_str(value);
        }
    }
    found
}
