//! Directories that the client shares.

use std::path::Path;

use castor_fsutil::{FilterOptions, Link, ReceiveOptions, receive as receive_tree};
use castor_proto::filesync::file_sync_client::FileSyncClient;
use castor_wire::{headers, limited};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Request;

use super::lazily;
use crate::{Caller, SessionError, key};

const METHOD: &str = "/moby.filesync.v1.FileSync/DiffCopy";

/// Packets on their way to the client.
const IN_FLIGHT: usize = 64;

/// Makes the directory `dest` equal to what the client shares as `name`, as far
/// as `choice` lets it be seen; the client does the choosing.
pub async fn receive(
    caller: &Caller,
    name: &str,
    choice: &FilterOptions,
    dest: &Path,
    options: ReceiveOptions,
) -> Result<(), SessionError> {
    if !caller.supports(METHOD) {
        return Err(SessionError::NoLocalSources);
    }
    let (outgoing, packets) = mpsc::channel(IN_FLIGHT);
    let mut request = Request::new(ReceiverStream::new(packets));
    let metadata = request.metadata_mut();
    headers::insert(metadata, key::DIR_NAME, &[name]);
    headers::insert(metadata, key::INCLUDE, &choice.include);
    headers::insert(metadata, key::EXCLUDE, &choice.exclude);
    headers::insert(metadata, key::FOLLOW, &choice.follow);
    let mut client = limited!(FileSyncClient::new(caller.channel()));
    let incoming = lazily(async move { client.diff_copy(request).await });
    caller.call(receive_tree(Link { incoming, outgoing }, dest, options)).await
}
