//! `containerd.services.content.v1` over the daemon's blobs, read-only: clients read what build records and exporters
//! name by digest.

use std::sync::Arc;

use castor_content::ContentStore;
use castor_oci::Digest;
use castor_proto::content as wire;
use castor_proto::content::content_server::{Content, ContentServer};
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use tonic::{Request, Response, Status, Streaming};

/// Blobs named in one message of a list.
const AT_ONCE: usize = 100;

/// The service over a store.
#[derive(Clone)]
pub(crate) struct ContentService {
    store: Arc<dyn ContentStore>,
}

impl ContentService {
    pub(crate) fn server(store: Arc<dyn ContentStore>) -> ContentServer<Self> {
        castor_wire::limited!(ContentServer::new(Self { store }))
    }
}

fn digest(text: &str) -> Result<Digest, Status> {
    text.parse().map_err(|error| Status::invalid_argument(format!("{text:?} is no digest: {error}")))
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn failed(error: castor_content::Error) -> Status {
    match error.is_not_found() {
        true => Status::not_found(error.to_string()),
        false => Status::unknown(error.to_string()),
    }
}

fn read_only() -> Status {
    Status::unknown("read-only content store")
}

fn info(info: castor_content::Info) -> wire::Info {
    const SECOND: i128 = 1_000_000_000;
    let created = prost_types::Timestamp {
        seconds: i64::try_from(info.created.div_euclid(SECOND)).unwrap_or_default(),
        nanos: i32::try_from(info.created.rem_euclid(SECOND)).unwrap_or_default(),
    };
    wire::Info {
        digest: info.digest.to_string(),
        size: i64::try_from(info.size).unwrap_or(i64::MAX),
        created_at: Some(created),
        updated_at: Some(created),
        labels: info.labels,
    }
}

/// The part of `size` bytes at `offset` of a blob of `total` bytes; a size of 0 is the rest.
fn part(total: u64, offset: i64, size: i64) -> Result<(u64, u64), Status> {
    let outside = || Status::out_of_range(format!("bytes {offset}+{size} of a blob of {total} bytes"));
    let (offset, size) = (u64::try_from(offset).map_err(|_| outside())?, u64::try_from(size).map_err(|_| outside())?);
    let rest = total.checked_sub(offset).ok_or_else(outside)?;
    match size {
        0 => Ok((offset, rest)),
        size if size <= rest => Ok((offset, size)),
        _ => Err(outside()),
    }
}

#[tonic::async_trait]
impl Content for ContentService {
    async fn info(&self, request: Request<wire::InfoRequest>) -> Result<Response<wire::InfoResponse>, Status> {
        let digest = digest(&request.into_inner().digest)?;
        match self.store.info(&digest).await.map_err(failed)? {
            Some(found) => Ok(Response::new(wire::InfoResponse { info: Some(info(found)) })),
            None => Err(Status::not_found(format!("content digest {digest}: not found"))),
        }
    }

    type ListStream = BoxStream<'static, Result<wire::ListContentResponse, Status>>;

    async fn list(&self, request: Request<wire::ListContentRequest>) -> Result<Response<Self::ListStream>, Status> {
        if let Some(filter) = request.into_inner().filters.first() {
            return Err(Status::unimplemented(format!("content filter {filter:?} is not supported by castor yet")));
        }
        // Build records keep their blobs apart: they can be read by digest, and are no content of images.
        let all = self.store.walk().await.map_err(failed)?.into_iter();
        let all = all.filter(|info| !info.labels.contains_key(castor_build::HISTORY_LABEL));
        let messages = futures::stream::iter(all.map(info).collect::<Vec<_>>()).chunks(AT_ONCE);
        Ok(Response::new(messages.map(|info| Ok(wire::ListContentResponse { info })).boxed()))
    }

    type ReadStream = BoxStream<'static, Result<wire::ReadContentResponse, Status>>;

    async fn read(&self, request: Request<wire::ReadContentRequest>) -> Result<Response<Self::ReadStream>, Status> {
        let request = request.into_inner();
        let blob = self.store.open(&digest(&request.digest)?).await.map_err(failed)?;
        let (start, size) = part(blob.size(), request.offset, request.size)?;
        let end = start + size;
        let pieces = blob.stream(start).map_err(|error| Status::unknown(format!("read blob: {error}")));
        let pieces = pieces.scan(start, move |at, piece| {
            let message = piece.map(|mut data| {
                data.truncate(usize::try_from(end - *at).unwrap_or(usize::MAX));
                let offset = i64::try_from(*at).unwrap_or(i64::MAX);
                *at += data.len() as u64;
                wire::ReadContentResponse { offset, data }
            });
            // The stream goes on to the blob's end; what was asked for may end before.
            let over = message.as_ref().is_ok_and(|message| message.data.is_empty());
            std::future::ready((!over).then_some(message))
        });
        Ok(Response::new(pieces.boxed()))
    }

    async fn status(&self, request: Request<wire::StatusRequest>) -> Result<Response<wire::StatusResponse>, Status> {
        Err(Status::not_found(format!("ingest {}: not found", request.into_inner().r#ref)))
    }

    async fn list_statuses(
        &self,
        _: Request<wire::ListStatusesRequest>,
    ) -> Result<Response<wire::ListStatusesResponse>, Status> {
        Ok(Response::new(wire::ListStatusesResponse::default()))
    }

    async fn update(&self, _: Request<wire::UpdateRequest>) -> Result<Response<wire::UpdateResponse>, Status> {
        Err(read_only())
    }

    async fn delete(&self, _: Request<wire::DeleteContentRequest>) -> Result<Response<()>, Status> {
        Err(read_only())
    }

    type WriteStream = BoxStream<'static, Result<wire::WriteContentResponse, Status>>;

    async fn write(
        &self,
        _: Request<Streaming<wire::WriteContentRequest>>,
    ) -> Result<Response<Self::WriteStream>, Status> {
        Err(read_only())
    }

    async fn abort(&self, _: Request<wire::AbortRequest>) -> Result<Response<()>, Status> {
        Err(read_only())
    }
}

#[cfg(test)]
mod tests {
    use super::part;

    #[test]
    fn a_part_lies_within_its_blob() {
        assert_eq!(part(10, 0, 0).unwrap(), (0, 10));
        assert_eq!(part(10, 4, 0).unwrap(), (4, 6));
        assert_eq!(part(10, 4, 6).unwrap(), (4, 6));
        assert_eq!(part(0, 0, 0).unwrap(), (0, 0));
        for (offset, size) in [(11, 0), (4, 7), (-1, 1), (0, -1), (i64::MAX, i64::MAX)] {
            assert!(part(10, offset, size).is_err(), "{offset} {size}");
        }
    }
}
