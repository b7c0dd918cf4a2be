//! The half that announces a tree and serves its contents.

use std::sync::Arc;

use futures::stream::BoxStream;
use tokio::sync::mpsc;

use crate::{Packet, TransferError, Tree};

/// A connection to the other half. Dropping it ends this side's stream.
pub struct Link {
    /// What the peer sends; its end is the end of the peer's stream.
    pub incoming: BoxStream<'static, Result<Packet, tonic::Status>>,
    /// What is sent to the peer.
    pub outgoing: mpsc::Sender<Packet>,
}

/// Is told the number of bytes transferred so far; from any thread.
pub type Progress = Arc<dyn Fn(u64) + Send + Sync>;

/// Sends `tree` over `link`.
///
/// Returns once the peer has all it wants. The link is given back with the
/// peer's stream still open, for what may follow on it: a status.
pub async fn send(link: Link, tree: Arc<dyn Tree>, progress: Option<Progress>) -> Result<Link, TransferError> {
    let _ = (link, tree, progress);
    todo!()
}
