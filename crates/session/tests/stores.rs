//! The calls to services that clients have of their own: a store of blobs, uploads, exporters; and the stores of
//! `buildctl`.

#![allow(clippy::unwrap_used)]

mod world;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use castor_oci::{Descriptor, Digest};
use castor_proto::content::content_server::{Content, ContentServer};
use castor_proto::content::*;
use castor_proto::session_exporter::exporter_server::{Exporter, ExporterServer};
use castor_proto::session_exporter::*;
use castor_proto::upload;
use castor_proto::upload::upload_server::{Upload, UploadServer};
use castor_session::client::{Layout, Stores};
use castor_session::content::RemoteStore;
use castor_session::{exporters, upload as upload_call};
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use tonic::{Request, Response, Status, Streaming};
use world::World;

type Blob = (Bytes, BTreeMap<String, String>);

/// One store, as containerd's clients have it.
#[derive(Clone, Default)]
struct Store {
    blobs: Arc<Mutex<HashMap<String, Blob>>>,
}

fn check<T>(request: &Request<T>) -> Result<(), Status> {
    let id = request.metadata().get("buildkit-attachable-store-id").map(|id| id.to_str().unwrap());
    if id == Some("export") { Ok(()) } else { Err(Status::not_found(format!("unknown store {id:?}"))) }
}

impl Store {
    fn info(&self, digest: &str) -> Result<Info, Status> {
        let blobs = self.blobs.lock().unwrap();
        let (bytes, labels) = blobs.get(digest).ok_or_else(|| Status::not_found(digest))?;
        let (digest, labels) = (digest.to_owned(), labels.clone());
        Ok(Info { digest, size: bytes.len() as i64, labels, ..Info::default() })
    }
}

#[tonic::async_trait]
impl Content for Store {
    type ListStream = BoxStream<'static, Result<ListContentResponse, Status>>;
    type ReadStream = BoxStream<'static, Result<ReadContentResponse, Status>>;
    type WriteStream = BoxStream<'static, Result<WriteContentResponse, Status>>;

    async fn info(&self, request: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        check(&request)?;
        Ok(Response::new(InfoResponse { info: Some(Store::info(self, &request.into_inner().digest)?) }))
    }

    async fn update(&self, request: Request<UpdateRequest>) -> Result<Response<UpdateResponse>, Status> {
        check(&request)?;
        let UpdateRequest { info, update_mask } = request.into_inner();
        let info = info.unwrap();
        assert_eq!(update_mask.unwrap().paths, ["labels.color"]);
        self.blobs.lock().unwrap().get_mut(&info.digest).unwrap().1.extend(info.labels);
        Ok(Response::new(UpdateResponse { info: Some(Store::info(self, &info.digest)?) }))
    }

    async fn list(&self, request: Request<ListContentRequest>) -> Result<Response<Self::ListStream>, Status> {
        check(&request)?;
        let digests: Vec<String> = self.blobs.lock().unwrap().keys().cloned().collect();
        let store = self.clone();
        let pages = digests
            .into_iter()
            .map(move |digest| Ok(ListContentResponse { info: vec![Store::info(&store, &digest)?] }));
        Ok(Response::new(futures::stream::iter(pages).boxed()))
    }

    async fn read(&self, request: Request<ReadContentRequest>) -> Result<Response<Self::ReadStream>, Status> {
        check(&request)?;
        let request = request.into_inner();
        let blob = self.blobs.lock().unwrap().get(&request.digest).cloned();
        let blob = blob.ok_or_else(|| Status::not_found("no blob"))?.0;
        let start = request.offset as usize;
        let end = if request.size == 0 { blob.len() } else { start + request.size as usize };
        let pieces: Vec<_> = blob.slice(start..end).chunks(1000).map(Bytes::copy_from_slice).collect();
        let pieces = pieces.into_iter().map(|data| Ok(ReadContentResponse { offset: 0, data }));
        Ok(Response::new(futures::stream::iter(pieces).boxed()))
    }

    async fn write(
        &self,
        request: Request<Streaming<WriteContentRequest>>,
    ) -> Result<Response<Self::WriteStream>, Status> {
        check(&request)?;
        let (mut incoming, store) = (request.into_inner(), self.clone());
        let answers = async_stream(move |answers| async move {
            let mut bytes: Vec<u8> = Vec::new();
            while let Some(message) = incoming.try_next().await? {
                let digest = message.expected.clone();
                match WriteAction::try_from(message.action).unwrap() {
                    WriteAction::Stat if store.blobs.lock().unwrap().contains_key(&digest) => {
                        return Err(Status::already_exists(digest));
                    }
                    WriteAction::Stat => assert!(message.r#ref.contains(&digest)),
                    WriteAction::Write => {
                        assert_eq!(message.offset as usize, bytes.len());
                        bytes.extend_from_slice(&message.data);
                    }
                    WriteAction::Commit => {
                        if Digest::of(&bytes).to_string() != digest || message.total as usize != bytes.len() {
                            return Err(Status::failed_precondition("unexpected digest"));
                        }
                        let blob = (bytes.clone().into(), message.labels);
                        store.blobs.lock().unwrap().insert(digest.clone(), blob);
                    }
                }
                let answer = WriteContentResponse { offset: bytes.len() as i64, digest, ..Default::default() };
                answers.send(Ok(answer)).await.unwrap();
            }
            Ok(())
        });
        Ok(Response::new(answers))
    }

    async fn delete(&self, _: Request<DeleteContentRequest>) -> Result<Response<()>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn list_statuses(&self, _: Request<ListStatusesRequest>) -> Result<Response<ListStatusesResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn abort(&self, _: Request<AbortRequest>) -> Result<Response<()>, Status> {
        Err(Status::unimplemented(""))
    }
}

/// What a task sends, and at its end its error.
fn async_stream<T, F>(
    task: impl FnOnce(tokio::sync::mpsc::Sender<Result<T, Status>>) -> F,
) -> BoxStream<'static, Result<T, Status>>
where
    T: Send + 'static,
    F: Future<Output = Result<(), Status>> + Send + 'static,
{
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    let task = task(sender.clone());
    tokio::spawn(async move {
        if let Err(status) = task.await {
            let _ = sender.send(Err(status)).await;
        }
    });
    tokio_stream::wrappers::ReceiverStream::new(receiver).boxed()
}

fn pieces(bytes: &Bytes) -> impl futures::Stream<Item = Result<Bytes, castor_session::SessionError>> + use<> {
    let pieces: Vec<_> = bytes.chunks(1_500_000).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    futures::stream::iter(pieces)
}

#[tokio::test]
async fn blobs_go_to_a_client_and_come_back() {
    let world = World::new().await;
    let store = Store::default();
    let session = world.session().serve(ContentServer::new(store.clone()).max_decoding_message_size(16 << 20), &[]);
    let (caller, _stop) = world.open(session).await;
    let remote = RemoteStore::new(caller.clone(), "export");

    let bytes = Bytes::from((0..4_000_000u32).map(|n| (n / 7) as u8).collect::<Vec<u8>>());
    let descriptor = Descriptor::new("", Digest::of(&bytes), bytes.len() as u64);
    assert!(remote.info(&descriptor.digest).await.unwrap().is_none());
    let labels = BTreeMap::from([("a".to_owned(), "b".to_owned())]);
    remote.write(&descriptor, labels, pieces(&bytes)).await.unwrap();
    remote.write(&descriptor, BTreeMap::new(), pieces(&bytes)).await.unwrap();
    remote.set_labels(&descriptor.digest, BTreeMap::from([("color".into(), "red".into())])).await.unwrap();

    let info = remote.info(&descriptor.digest).await.unwrap().unwrap();
    assert_eq!(info.size, 4_000_000);
    assert_eq!(info.labels.len(), 2);
    assert_eq!(remote.list().await.unwrap(), [info]);
    let read: Vec<Bytes> = remote.read(&descriptor.digest, 0, 0).try_collect().await.unwrap();
    assert!(read.concat() == bytes);
    let read: Vec<Bytes> = remote.read(&descriptor.digest, 10, 2_500).try_collect().await.unwrap();
    assert!(read.concat() == bytes.slice(10..2_510));

    let wrong = Descriptor::new("", Digest::of("other"), bytes.len() as u64);
    let error = remote.write(&wrong, BTreeMap::new(), pieces(&bytes)).await.unwrap_err();
    assert!(error.to_string().contains("unexpected digest"), "{error}");
    let other = RemoteStore::new(caller, "local:/x");
    assert!(other.list().await.is_err(), "each call names the store");
    world.end().await;
}

#[tokio::test]
async fn directories_are_stores() {
    let world = World::new().await;
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::create(dir.path().join("layout")).unwrap();
    let mut stores = Stores::default();
    stores.insert("export", layout.clone());
    let (caller, _stop) = world.open(world.session().stores(stores)).await;
    let remote = RemoteStore::new(caller.clone(), "export");
    assert!(remote.list().await.unwrap().is_empty());

    let bytes = Bytes::from((0..4_000_000u32).map(|n| (n / 7) as u8).collect::<Vec<u8>>());
    let descriptor = Descriptor::new("", Digest::of(&bytes), bytes.len() as u64);
    assert!(remote.info(&descriptor.digest).await.unwrap().is_none());
    remote.write(&descriptor, BTreeMap::new(), pieces(&bytes)).await.unwrap();
    remote.write(&descriptor, BTreeMap::new(), pieces(&bytes)).await.unwrap();
    assert!(std::fs::read(layout.blob(&descriptor.digest)).unwrap() == bytes);
    assert_eq!(remote.list().await.unwrap().len(), 1);
    let read: Vec<Bytes> = remote.read(&descriptor.digest, 0, 0).try_collect().await.unwrap();
    assert!(read.concat() == bytes);
    let read: Vec<Bytes> = remote.read(&descriptor.digest, 10, 2_500).try_collect().await.unwrap();
    assert!(read.concat() == bytes.slice(10..2_510));
    assert!(remote.read(&descriptor.digest, 10, 4_000_000).try_collect::<Vec<_>>().await.is_err());

    // What is not what it was said to be leaves nothing behind; nor does what ends half way.
    let wrong = Descriptor::new("", Digest::of("other"), bytes.len() as u64);
    let error = remote.write(&wrong, BTreeMap::new(), pieces(&bytes)).await.unwrap_err();
    assert!(error.to_string().contains("unexpected commit digest"), "{error}");
    let half = pieces(&bytes).take(1).chain(futures::stream::iter([Err(castor_session::SessionError::Invalid {
        what: "blob",
        why: "it ends here".into(),
    })]));
    assert!(remote.write(&wrong, BTreeMap::new(), half).await.is_err());
    // Calls end at both sides, here first.
    while layout.path().join("ingest").exists() {
        tokio::task::yield_now().await;
    }
    assert_eq!(remote.list().await.unwrap().len(), 1);
    let other = RemoteStore::new(caller, "local:/x").list().await.unwrap_err();
    assert!(other.to_string().contains("unknown store local:/x"), "{other}");
    world.end().await;
}

struct Uploads;

#[tonic::async_trait]
impl Upload for Uploads {
    type PullStream = BoxStream<'static, Result<upload::BytesMessage, Status>>;

    async fn pull(
        &self,
        request: Request<Streaming<upload::BytesMessage>>,
    ) -> Result<Response<Self::PullStream>, Status> {
        let text = |key| request.metadata().get(key).unwrap().to_str().unwrap();
        if (text("urlpath"), text("urlhost")) != ("/id", "buildkit-session") {
            return Err(Status::not_found("no upload"));
        }
        let pieces = ["one ", "two"].map(|data| Ok(upload::BytesMessage { data: data.into() }));
        Ok(Response::new(futures::stream::iter(pieces).boxed()))
    }
}

#[tokio::test]
async fn an_upload_is_pulled() {
    let world = World::new().await;
    let (caller, _stop) = world.open(world.session().serve(UploadServer::new(Uploads), &[])).await;
    let pieces: Vec<Bytes> = upload_call::pull(&caller, "buildkit-session", "/id").try_collect().await.unwrap();
    assert_eq!(pieces.concat(), b"one two");
    let error = upload_call::pull(&caller, "buildkit-session", "/x").try_collect::<Vec<_>>().await.unwrap_err();
    assert_eq!(error.to_string(), "NotFound: no upload");
    world.end().await;
}

#[derive(Default)]
struct OwnExporters(Arc<Mutex<Option<BTreeMap<String, String>>>>);

#[tonic::async_trait]
impl Exporter for OwnExporters {
    async fn find_exporters(
        &self,
        request: Request<FindExportersRequest>,
    ) -> Result<Response<FindExportersResponse>, Status> {
        let request = request.into_inner();
        assert_eq!(request.refs, ["ref"]);
        let exporter = ExporterRequest { r#type: "oci".into(), attrs: BTreeMap::new() };
        Ok(Response::new(FindExportersResponse { exporters: vec![exporter] }))
    }

    async fn finalize_export(
        &self,
        request: Request<FinalizeExportRequest>,
    ) -> Result<Response<FinalizeExportResponse>, Status> {
        *self.0.lock().unwrap() = Some(request.into_inner().exporter_response);
        Ok(Response::new(FinalizeExportResponse {}))
    }
}

#[tokio::test]
async fn a_client_may_add_exporters() {
    let world = World::new().await;
    let told = OwnExporters::default();
    let seen = Arc::clone(&told.0);
    let (caller, _stop) = world.open(world.session().serve(ExporterServer::new(told), &[])).await;
    let found = exporters::find(&caller, BTreeMap::new(), vec!["ref".into()]).await.unwrap();
    assert_eq!(found[0].r#type, "oci");
    let response = BTreeMap::from([("k".to_owned(), "v".to_owned())]);
    exporters::finalize(&caller, response.clone()).await.unwrap();
    assert_eq!(*seen.lock().unwrap(), Some(response));

    let (plain, _stop) = world.open(world.session()).await;
    assert!(exporters::find(&plain, BTreeMap::new(), Vec::new()).await.unwrap().is_empty());
    world.end().await;
}
