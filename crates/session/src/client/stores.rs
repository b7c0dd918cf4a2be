//! Stores of blobs at the client: where caches and images in directories are read from and written to.

use std::collections::BTreeMap;
use std::io::SeekFrom;
use std::path::PathBuf;

use bytes::Bytes;
use castor_oci::{Digest, Hasher};
use castor_proto::content::content_server::{Content, ContentServer};
use castor_proto::content::{
    AbortRequest, DeleteContentRequest, Info, InfoRequest, InfoResponse, ListContentRequest, ListContentResponse,
    ListStatusesRequest, ListStatusesResponse, ReadContentRequest, ReadContentResponse, StatusRequest, StatusResponse,
    UpdateRequest, UpdateResponse, WriteAction, WriteContentRequest, WriteContentResponse,
};
use castor_wire::{headers, limited};
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _, AsyncWriteExt as _};
use tonic::{Request, Response, Status, Streaming};

use super::layout::Layout;
use crate::key;

/// The largest piece of a blob in one message.
const PIECE: u64 = 1 << 20;

/// Layouts by the names under which the daemon asks for them: `local:<dir>`, `oci:<name>`, `export`.
#[derive(Debug, Clone, Default)]
pub struct Stores {
    layouts: BTreeMap<String, Layout>,
}

impl Stores {
    /// Offers a layout under a name. What was there under that name before is returned.
    pub fn insert(&mut self, name: impl Into<String>, layout: Layout) -> Option<Layout> {
        self.layouts.insert(name.into(), layout)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.layouts.is_empty()
    }

    pub(super) fn service(self) -> ContentServer<Self> {
        limited!(ContentServer::new(self))
    }

    /// The layout that a call is about.
    fn choose<T>(&self, request: &Request<T>) -> Result<Layout, Status> {
        let name = headers::first(request.metadata(), key::STORE_ID)
            .ok_or_else(|| Status::invalid_argument(format!("request lacks metadata {:?}", key::STORE_ID)))?;
        let layout = self.layouts.get(&name).cloned();
        layout.ok_or_else(|| Status::not_found(format!("unknown store {name}: not found")))
    }
}

fn parse(digest: &str) -> Result<Digest, Status> {
    digest.parse().map_err(|error| Status::invalid_argument(format!("{digest:?}: {error}")))
}

fn not_found(digest: &Digest) -> Status {
    Status::not_found(format!("content {digest}: not found"))
}

fn broken(doing: &str, path: &std::path::Path) -> impl Fn(std::io::Error) -> Status {
    let words = format!("{doing} {}", path.display());
    move |error| Status::unknown(format!("{words}: {error}"))
}

fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

async fn info(layout: &Layout, digest: &Digest) -> Result<Info, Status> {
    let path = layout.blob(digest);
    match tokio::fs::metadata(&path).await {
        Ok(metadata) if metadata.is_file() => {
            Ok(Info { digest: digest.to_string(), size: number(metadata.len()), ..Info::default() })
        }
        Ok(_) => Err(not_found(digest)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(not_found(digest)),
        Err(error) => Err(broken("stat", &path)(error)),
    }
}

#[tonic::async_trait]
impl Content for Stores {
    type ListStream = BoxStream<'static, Result<ListContentResponse, Status>>;
    type ReadStream = BoxStream<'static, Result<ReadContentResponse, Status>>;
    type WriteStream = BoxStream<'static, Result<WriteContentResponse, Status>>;

    async fn info(&self, request: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        let layout = self.choose(&request)?;
        let found = info(&layout, &parse(&request.into_inner().digest)?).await?;
        Ok(Response::new(InfoResponse { info: Some(found) }))
    }

    async fn update(&self, request: Request<UpdateRequest>) -> Result<Response<UpdateResponse>, Status> {
        self.choose(&request)?;
        // A directory of blobs has no place for labels.
        Err(Status::failed_precondition("update not supported on immutable content store: failed precondition"))
    }

    async fn list(&self, request: Request<ListContentRequest>) -> Result<Response<Self::ListStream>, Status> {
        let layout = self.choose(&request)?;
        let dir = layout.blobs();
        let mut found = Vec::new();
        match tokio::fs::read_dir(&dir).await {
            Ok(mut entries) => {
                while let Some(entry) = entries.next_entry().await.map_err(broken("read", &dir))? {
                    let name = entry.file_name();
                    if let Ok(digest) = format!("sha256:{}", name.to_string_lossy()).parse() {
                        found.push(info(&layout, &digest).await?);
                    }
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(broken("read", &dir)(error)),
        }
        let pages: Vec<_> = found.chunks(100).map(|page| Ok(ListContentResponse { info: page.to_vec() })).collect();
        Ok(Response::new(futures::stream::iter(pages).boxed()))
    }

    async fn delete(&self, request: Request<DeleteContentRequest>) -> Result<Response<()>, Status> {
        let layout = self.choose(&request)?;
        let digest = parse(&request.into_inner().digest)?;
        let path = layout.blob(&digest);
        match tokio::fs::remove_file(&path).await {
            Ok(()) => Ok(Response::new(())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(not_found(&digest)),
            Err(error) => Err(broken("remove", &path)(error)),
        }
    }

    async fn read(&self, request: Request<ReadContentRequest>) -> Result<Response<Self::ReadStream>, Status> {
        let layout = self.choose(&request)?;
        let request = request.into_inner();
        let digest = parse(&request.digest)?;
        let size = u64::try_from(info(&layout, &digest).await?.size).unwrap_or(0);
        let outside = || Status::out_of_range(format!("read outside the {size} bytes of {digest}"));
        let offset = u64::try_from(request.offset).map_err(|_| outside())?;
        let end = match u64::try_from(request.size).map_err(|_| outside())? {
            0 => size,
            length => offset.checked_add(length).ok_or_else(outside)?,
        };
        if offset > size || end > size {
            return Err(outside());
        }
        let path = layout.blob(&digest);
        let mut file = tokio::fs::File::open(&path).await.map_err(broken("open", &path))?;
        file.seek(SeekFrom::Start(offset)).await.map_err(broken("seek in", &path))?;
        let pieces = futures::stream::try_unfold((file, offset), move |(mut file, at)| {
            let path = path.clone();
            async move {
                if at >= end {
                    return Ok(None);
                }
                let mut piece = vec![0; usize::try_from((end - at).min(PIECE)).unwrap_or_default()];
                file.read_exact(&mut piece).await.map_err(broken("read", &path))?;
                let next = at + piece.len() as u64;
                Ok(Some((ReadContentResponse { offset: number(at), data: Bytes::from(piece) }, (file, next))))
            }
        });
        Ok(Response::new(pieces.boxed()))
    }

    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        self.choose(&request)?;
        // What is not whole is not kept.
        Err(Status::not_found(format!("ingest {:?}: not found", request.into_inner().r#ref)))
    }

    async fn list_statuses(
        &self,
        request: Request<ListStatusesRequest>,
    ) -> Result<Response<ListStatusesResponse>, Status> {
        self.choose(&request)?;
        Ok(Response::new(ListStatusesResponse::default()))
    }

    async fn write(
        &self,
        request: Request<Streaming<WriteContentRequest>>,
    ) -> Result<Response<Self::WriteStream>, Status> {
        let layout = self.choose(&request)?;
        let state = (request.into_inner(), None::<Ingest>, layout, false);
        let answers = futures::stream::try_unfold(state, |(mut incoming, ingest, layout, done)| async move {
            let Some(message) = incoming.try_next().await?.filter(|_| !done) else { return Ok(None) };
            let mut ingest = match ingest {
                Some(ingest) => ingest,
                None => Ingest::begin(&layout, &message).await?,
            };
            let (answer, done) = ingest.take(&layout, message).await?;
            Ok(Some((answer, (incoming, Some(ingest), layout, done))))
        });
        Ok(Response::new(answers.boxed()))
    }

    async fn abort(&self, request: Request<AbortRequest>) -> Result<Response<()>, Status> {
        self.choose(&request)?;
        Err(Status::not_found(format!("ingest {:?}: not found", request.into_inner().r#ref)))
    }
}

/// A blob that is being written. Dropping it before it is whole leaves nothing behind.
struct Ingest {
    path: PathBuf,
    file: tokio::fs::File,
    hasher: Hasher,
    size: u64,
    whole: bool,
}

impl Ingest {
    async fn begin(layout: &Layout, first: &WriteContentRequest) -> Result<Self, Status> {
        if first.r#ref.is_empty() {
            return Err(Status::invalid_argument("first message must have a reference: invalid argument"));
        }
        if !first.expected.is_empty() {
            let digest = parse(&first.expected)?;
            if info(layout, &digest).await.is_ok() {
                return Err(Status::already_exists(format!("content {digest}: already exists")));
            }
        }
        let dir = layout.path().join("ingest");
        tokio::fs::create_dir_all(&dir).await.map_err(broken("create", &dir))?;
        let path = dir.join(format!("{:032x}", rand::random::<u128>()));
        let file = tokio::fs::File::create_new(&path).await.map_err(broken("create", &path))?;
        Ok(Self { path, file, hasher: Hasher::new(), size: 0, whole: false })
    }

    /// Does what a message says. Gives the answer, and whether it was the last one.
    async fn take(
        &mut self,
        layout: &Layout,
        message: WriteContentRequest,
    ) -> Result<(WriteContentResponse, bool), Status> {
        let action = WriteAction::try_from(message.action)
            .map_err(|_| Status::invalid_argument(format!("unknown action {}", message.action)))?;
        if action != WriteAction::Stat && !message.data.is_empty() {
            if message.offset != number(self.size) {
                let why = format!("write at {} of a blob of {} bytes", message.offset, self.size);
                return Err(Status::out_of_range(why));
            }
            self.file.write_all(&message.data).await.map_err(broken("write", &self.path))?;
            self.hasher.update(&message.data);
            self.size += message.data.len() as u64;
        }
        let mut answer = WriteContentResponse {
            action: message.action,
            offset: number(self.size),
            total: message.total,
            ..WriteContentResponse::default()
        };
        if action == WriteAction::Commit {
            answer.digest = self.commit(layout, &message).await?.to_string();
        }
        Ok((answer, action == WriteAction::Commit))
    }

    async fn commit(&mut self, layout: &Layout, message: &WriteContentRequest) -> Result<Digest, Status> {
        let digest = std::mem::take(&mut self.hasher).finish();
        if message.total > 0 && message.total != number(self.size) {
            let why = format!("unexpected commit size {}, expected {}", self.size, message.total);
            return Err(Status::failed_precondition(format!("{why}: failed precondition")));
        }
        if !message.expected.is_empty() && message.expected != digest.to_string() {
            let why = format!("unexpected commit digest {digest}, expected {}", message.expected);
            return Err(Status::failed_precondition(format!("{why}: failed precondition")));
        }
        let (dir, target) = (layout.blobs(), layout.blob(&digest));
        tokio::fs::create_dir_all(&dir).await.map_err(broken("create", &dir))?;
        self.file.flush().await.map_err(broken("write", &self.path))?;
        self.file.sync_data().await.map_err(broken("write", &self.path))?;
        tokio::fs::rename(&self.path, &target).await.map_err(broken("create", &target))?;
        self.whole = true;
        // The directory goes with the last of those that were written.
        let _ = tokio::fs::remove_dir(layout.path().join("ingest")).await;
        Ok(digest)
    }
}

impl Drop for Ingest {
    fn drop(&mut self) {
        if !self.whole {
            let _ = std::fs::remove_file(&self.path);
            if let Some(dir) = self.path.parent() {
                let _ = std::fs::remove_dir(dir);
            }
        }
    }
}
