//! Bytes that the client offers under a URL, such as a context from its input.

use bytes::Bytes;
use castor_proto::upload::BytesMessage;
use castor_proto::upload::upload_client::UploadClient;
use castor_wire::{headers, limited};
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use tonic::Request;

use super::lazily;
use crate::{Caller, SessionError, key};

/// What the client offers under `path` of `host`.
pub fn pull(caller: &Caller, host: &str, path: &str) -> BoxStream<'static, Result<Bytes, SessionError>> {
    let mut request = Request::new(futures::stream::empty::<BytesMessage>());
    headers::insert(request.metadata_mut(), key::URL_PATH, &[path]);
    headers::insert(request.metadata_mut(), key::URL_HOST, &[host]);
    let mut client = limited!(UploadClient::new(caller.channel()));
    let closed = caller.closed().clone();
    lazily(async move { client.pull(request).await })
        .map_ok(|message| message.data)
        .map_err(SessionError::from)
        .take_until(closed.cancelled_owned())
        .boxed()
}
