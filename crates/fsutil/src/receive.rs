//! The half that makes a directory equal to what is announced.

use std::any::Any;
use std::path::Path;
use std::sync::Arc;

use castor_oci::Digest;

use crate::{Link, Progress, Stat, TransferError};

/// When an entry that is already there counts as the announced one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Differ {
    /// If type, permissions, owner, device, link and, but for directories, size
    /// and time are equal.
    #[default]
    Metadata,
    /// Never.
    None,
}

/// Changes the details of an entry before they are compared and written; false
/// leaves the entry alone.
pub type StatMap = Arc<dyn Fn(&str, &mut Stat) -> bool + Send + Sync>;

/// Whether an entry is transferred with its contents.
pub type StatFilter = Arc<dyn Fn(&str, &Stat) -> bool + Send + Sync>;

/// A hash over an entry as it arrives. The entry's header is already in it.
pub trait ContentHash: Send {
    /// More of the contents.
    fn update(&mut self, bytes: &[u8]);
    /// The digest.
    fn finish(self: Box<Self>) -> Digest;
}

/// One thing that was done to the destination.
#[derive(Debug)]
pub enum Change<'a> {
    /// An entry is there as announced.
    Written {
        /// What was announced.
        stat: &'a Stat,
        /// The digest over its header and contents.
        digest: Digest,
    },
    /// A path and all below it is gone.
    Removed {
        /// The path.
        path: &'a str,
    },
}

/// Watches what is done to the destination. Called from several threads; a
/// file's change comes after its contents, so not in the order of the walk.
pub trait Observer: Send + Sync + 'static {
    /// A hash primed with the entry's header, as announced.
    fn hash(&self, stat: &Stat) -> Box<dyn ContentHash>;

    /// Something was done. An error fails the transfer.
    fn changed(&self, change: Change<'_>) -> Result<(), String>;
}

/// How to receive.
#[derive(Clone, Default)]
pub struct ReceiveOptions {
    /// Never remove, and replace all that is announced.
    pub merge: bool,
    /// When to leave an entry as it is.
    pub differ: Differ,
    /// Changes what is written.
    pub map: Option<StatMap>,
    /// Only entries that it lets through are written; the details of all are
    /// saved in a file of the destination.
    pub metadata_only: Option<StatFilter>,
    /// Is told of the packets' bytes.
    pub progress: Option<Progress>,
    /// Watches the changes.
    pub observer: Option<Arc<dyn Observer>>,
    /// Kept until no thread works on the destination any more, even if the
    /// transfer is dropped: what keeps the destination mounted.
    pub hold: Option<Arc<dyn Any + Send + Sync>>,
}

/// Receives a tree into the directory `dest`, which must exist.
///
/// Nothing the peer sends can touch anything outside of it. Returns after the
/// peer has ended its stream.
pub async fn receive(link: Link, dest: &Path, options: ReceiveOptions) -> Result<(), TransferError> {
    let _ = (link, dest, options);
    todo!()
}
