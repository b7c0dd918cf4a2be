//! A store of blobs at the client.

use std::collections::BTreeMap;

use bytes::Bytes;
use castor_oci::{Descriptor, Digest};
use castor_proto::FieldMask;
use castor_proto::content::content_client::ContentClient;
use castor_proto::content::{
    Info, InfoRequest, ListContentRequest, ReadContentRequest, UpdateRequest, WriteAction, WriteContentRequest,
    WriteContentResponse,
};
use castor_wire::{headers, limited};
use futures::stream::BoxStream;
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use super::lazily;
use crate::{Caller, SessionError, key};

/// The largest piece of a blob that is written at once.
const LARGEST: usize = 1 << 20;

/// One of the client's stores: `local:<dir>` for a cache, `oci:<name>` for a
/// layout, `export` for what it gets.
#[derive(Debug, Clone)]
pub struct RemoteStore {
    caller: Caller,
    store: String,
}

impl RemoteStore {
    /// The store `store` of the client.
    pub fn new(caller: Caller, store: impl Into<String>) -> Self {
        Self { caller, store: store.into() }
    }

    /// The store is named with every call.
    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        headers::insert(request.metadata_mut(), key::STORE_ID, &[&self.store]);
        request
    }

    fn client(&self) -> ContentClient<Channel> {
        limited!(ContentClient::new(self.caller.channel()))
    }

    /// What is known of the blob; `None` if it is not there.
    pub async fn info(&self, digest: &Digest) -> Result<Option<Info>, SessionError> {
        let request = self.request(InfoRequest { digest: digest.to_string() });
        match self.caller.call(self.client().info(request)).await {
            Ok(response) => Ok(response.into_inner().info),
            Err(error) if error.code() == Code::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All blobs.
    pub async fn list(&self) -> Result<Vec<Info>, SessionError> {
        let request = self.request(ListContentRequest::default());
        let mut client = self.client();
        self.caller
            .call(async move {
                let mut stream = client.list(request).await?.into_inner();
                let mut found = Vec::new();
                while let Some(response) = stream.try_next().await? {
                    found.extend(response.info);
                }
                Ok::<_, Status>(found)
            })
            .await
    }

    /// The blob's bytes from `offset`, `size` of them; 0 is all the rest. They
    /// are not verified.
    pub fn read(&self, digest: &Digest, offset: u64, size: u64) -> BoxStream<'static, Result<Bytes, SessionError>> {
        let number = |number| i64::try_from(number).unwrap_or(i64::MAX);
        let request = ReadContentRequest { digest: digest.to_string(), offset: number(offset), size: number(size) };
        let request = self.request(request);
        let mut client = self.client();
        lazily(async move { client.read(request).await })
            .map_ok(|response| response.data)
            .map_err(SessionError::from)
            .boxed()
    }

    /// Sets labels of a blob; others stay.
    pub async fn set_labels(&self, digest: &Digest, labels: BTreeMap<String, String>) -> Result<(), SessionError> {
        let paths = labels.keys().map(|name| format!("labels.{name}")).collect();
        let info = Info { digest: digest.to_string(), labels, ..Info::default() };
        let request = self.request(UpdateRequest { info: Some(info), update_mask: Some(FieldMask { paths }) });
        self.caller.call(self.client().update(request)).await.map(|_| ())
    }

    /// Writes a blob. One that is there already is not written again.
    pub async fn write(
        &self,
        descriptor: &Descriptor,
        labels: BTreeMap<String, String>,
        bytes: impl Stream<Item = Result<Bytes, SessionError>> + Send,
    ) -> Result<(), SessionError> {
        match self.caller.call(self.write_new(descriptor, labels, bytes)).await {
            Err(error) if error.code() == Code::AlreadyExists => Ok(()),
            result => result,
        }
    }

    async fn write_new(
        &self,
        descriptor: &Descriptor,
        labels: BTreeMap<String, String>,
        bytes: impl Stream<Item = Result<Bytes, SessionError>> + Send,
    ) -> Result<(), SessionError> {
        let (sender, messages) = mpsc::channel(1);
        let mut client = self.client();
        let request = self.request(ReceiverStream::new(messages));
        let mut exchange = Exchange { sender, answers: lazily(async move { client.write(request).await }) };
        let digest = descriptor.digest.to_string();
        let total = i64::try_from(descriptor.size).unwrap_or(i64::MAX);
        // Names the unfinished blob. Nobody else writes to it, and nothing is
        // left in it from an earlier try.
        let reference = format!("castor-{digest}-{:016x}", rand::random::<u64>());
        let start = WriteContentRequest {
            action: WriteAction::Stat as i32,
            r#ref: reference,
            total,
            expected: digest.clone(),
            ..WriteContentRequest::default()
        };
        let mut offset = exchange.ask(start).await?.offset;
        let mut bytes = std::pin::pin!(bytes);
        while let Some(mut piece) = bytes.try_next().await? {
            while !piece.is_empty() {
                let data = piece.split_to(piece.len().min(LARGEST));
                let end = offset + i64::try_from(data.len()).unwrap_or(0);
                let write = WriteContentRequest {
                    action: WriteAction::Write as i32,
                    offset,
                    data,
                    ..WriteContentRequest::default()
                };
                offset = exchange.ask(write).await?.offset;
                if offset != end {
                    return Err(SessionError::Invalid { what: "write", why: format!("{offset} of {end} bytes taken") });
                }
            }
        }
        let commit = WriteContentRequest {
            action: WriteAction::Commit as i32,
            total,
            offset,
            expected: digest,
            labels,
            ..WriteContentRequest::default()
        };
        exchange.ask(commit).await.map(|_| ())
    }
}

/// Questions and answers in turn.
struct Exchange {
    sender: mpsc::Sender<WriteContentRequest>,
    answers: BoxStream<'static, Result<WriteContentResponse, Status>>,
}

impl Exchange {
    async fn ask(&mut self, request: WriteContentRequest) -> Result<WriteContentResponse, SessionError> {
        // A stream that is closed tells why in its answer.
        let _ = self.sender.send(request).await;
        match self.answers.next().await {
            Some(answer) => Ok(answer?),
            None => Err(SessionError::Invalid { what: "write", why: "the client ended the stream".into() }),
        }
    }
}
