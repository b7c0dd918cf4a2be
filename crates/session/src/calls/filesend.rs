//! Results that go to the client.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use castor_fsutil::{Link, Packet, Progress, Tree, send as send_tree};
use castor_proto::filesync::BytesMessage;
use castor_proto::filesync::file_send_client::FileSendClient;
use castor_wire::{MAX_MESSAGE, RawCodec, headers, limited};
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use http::uri::PathAndQuery;
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::{Ascii, MetadataKey, MetadataMap, MetadataValue};
use tonic::{Code, Request, Status};

use super::lazily;
use crate::{Caller, SessionError, key};

const METHOD: &str = "/moby.filesync.v1.FileSend/DiffCopy";

/// The largest piece of a stream. Clients with gRPC's usual limit of 4 MiB take
/// it.
const LARGEST: usize = 3 << 20;

/// Packets, or pieces of a stream, on their way to the client.
const IN_FLIGHT: usize = 16;

/// What became of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The client has it all.
    Received,
    /// The client has it already and did not want it.
    AlreadyThere,
}

/// Sends a tree to the client's exporter `exporter`.
///
/// `combined` says that the tree is all there is to it, for all platforms; a
/// client that removes what is not in it needs to know.
pub async fn send_dir(
    caller: &Caller,
    exporter: usize,
    combined: bool,
    tree: Arc<dyn Tree>,
    progress: Option<Progress>,
) -> Result<(), SessionError> {
    supported(caller)?;
    let (outgoing, packets) = mpsc::channel::<Packet>(IN_FLIGHT * 4);
    // The frames of this method are declared as another type.
    let mut request = Request::new(ReceiverStream::new(packets).map(|packet| Bytes::from(packet.encode_to_vec())));
    set_exporter(request.metadata_mut(), exporter);
    if combined {
        request.metadata_mut().insert(key::MULTI_PLATFORM, MetadataValue::from_static("1"));
    }
    let mut client = tonic::client::Grpc::new(caller.channel())
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let incoming = lazily(async move {
        client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        client.streaming(request, PathAndQuery::from_static(METHOD), RawCodec).await
    });
    let incoming = incoming
        .and_then(|frame| {
            futures::future::ready(Packet::decode(frame).map_err(|error| Status::internal(error.to_string())))
        })
        .boxed();
    caller
        .call(async {
            let Link { mut incoming, outgoing } = send_tree(Link { incoming, outgoing }, tree, progress).await?;
            // The client has said that it has everything; whether it could
            // make use of it, its status tells.
            drop(outgoing);
            while incoming.try_next().await.map_err(stream)?.is_some() {}
            Ok::<_, SessionError>(())
        })
        .await
}

/// A stream to the client, such as a tar archive.
pub struct Writer {
    caller: Caller,
    pieces: mpsc::Sender<BytesMessage>,
    answer: BoxStream<'static, Result<BytesMessage, Status>>,
    outcome: Option<Outcome>,
}

/// Opens a stream to the client's exporter `exporter`. `metadata` tells the
/// client what it gets: the exporter's response.
pub fn open(caller: &Caller, exporter: usize, metadata: &BTreeMap<String, String>) -> Result<Writer, SessionError> {
    supported(caller)?;
    let (sender, pieces) = mpsc::channel(IN_FLIGHT);
    let mut request = Request::new(ReceiverStream::new(pieces));
    set_exporter(request.metadata_mut(), exporter);
    for (name, value) in metadata {
        let name = MetadataKey::<Ascii>::from_bytes(format!("{}{name}", key::EXPORTER_METADATA).as_bytes());
        match (name, MetadataValue::try_from(value.as_str())) {
            (Ok(name), Ok(value)) => {
                request.metadata_mut().insert(name, value);
            }
            _ => tracing::debug!(name = ?metadata.keys(), "exporter metadata that is no header is not sent"),
        }
    }
    let mut client = limited!(FileSendClient::new(caller.channel()));
    let answer = lazily(async move { client.diff_copy(request).await });
    Ok(Writer { caller: caller.clone(), pieces: sender, answer, outcome: None })
}

impl Writer {
    /// Sends bytes. Waits for as long as the client is slower.
    ///
    /// Does nothing once the client has said that it has the result already;
    /// [`finish`](Self::finish) tells.
    pub async fn write(&mut self, mut bytes: Bytes) -> Result<(), SessionError> {
        while !bytes.is_empty() && self.outcome.is_none() {
            let data = bytes.split_to(bytes.len().min(LARGEST));
            let (pieces, answer) = (&self.pieces, &mut self.answer);
            // The answer is watched too: it is what tells that the client has
            // stopped reading, and until it is polled nothing is sent.
            let sent = self.caller.call(async {
                loop {
                    tokio::select! {
                        biased;
                        message = answer.next() => match message {
                            Some(Ok(_)) => {}
                            Some(Err(status)) => return Err(stream(status)),
                            None => return Err(SessionError::Invalid {
                                what: "answer",
                                why: "the client stopped before the end of the stream".into(),
                            }),
                        },
                        permit = pieces.reserve() => {
                            // A closed channel has its reason in the answer.
                            if let Ok(permit) = permit {
                                permit.send(BytesMessage { data });
                                return Ok(());
                            }
                        }
                    }
                }
            });
            match sent.await {
                Ok(()) => {}
                Err(error) if error.code() == Code::AlreadyExists => self.outcome = Some(Outcome::AlreadyThere),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Ends the stream and waits until the client has put it where it belongs.
    pub async fn finish(self) -> Result<Outcome, SessionError> {
        if let Some(outcome) = self.outcome {
            return Ok(outcome);
        }
        let Self { caller, pieces, mut answer, .. } = self;
        drop(pieces);
        let end = caller.call(async {
            while answer.try_next().await.map_err(stream)?.is_some() {}
            Ok::<_, SessionError>(())
        });
        match end.await {
            Ok(()) => Ok(Outcome::Received),
            Err(error) if error.code() == Code::AlreadyExists => Ok(Outcome::AlreadyThere),
            Err(error) => Err(error),
        }
    }
}

fn stream(status: Status) -> SessionError {
    SessionError::Stream(Box::new(status))
}

fn supported(caller: &Caller) -> Result<(), SessionError> {
    if caller.supports(METHOD) { Ok(()) } else { Err(SessionError::Unsupported { method: METHOD }) }
}

fn set_exporter(metadata: &mut MetadataMap, exporter: usize) {
    headers::insert(metadata, key::EXPORTER_ID, &[exporter.to_string()]);
}
