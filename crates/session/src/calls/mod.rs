//! The daemon's calls.

pub mod auth;
pub mod content;
pub mod exporters;
pub mod filesend;
pub mod filesync;
pub mod policy;
pub mod secrets;
pub mod ssh;
pub mod upload;

use futures::stream::BoxStream;
use futures::{StreamExt as _, TryFutureExt as _};
use tonic::{Response, Status, Streaming};

/// The messages of a call whose answer may begin only after something was sent:
/// waiting for its headers first could wait forever.
fn lazily<T: Send + 'static>(
    call: impl Future<Output = Result<Response<Streaming<T>>, Status>> + Send + 'static,
) -> BoxStream<'static, Result<T, Status>> {
    call.map_ok(Response::into_inner).try_flatten_stream().boxed()
}
