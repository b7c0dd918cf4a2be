//! Chain IDs: names of lists of uncompressed layers.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::Digest;

/// OCI's chain ID: names the content of a list of layers by their diff IDs.
///
/// A chain ID that an image merely *claims* in its config says nothing about the bytes until the layers were verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ChainId(pub Digest);

impl ChainId {
    /// The chain of `parent` and one more layer with diff ID `diff_id`.
    pub fn extend(parent: Option<Self>, diff_id: Digest) -> Self {
        match parent {
            None => Self(diff_id),
            Some(parent) => Self(Digest::of(format!("{} {diff_id}", parent.0))),
        }
    }
}

impl fmt::Display for ChainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The chain ID at each of `diff_ids`, lowest layer first.
pub fn chain_ids(diff_ids: &[Digest]) -> Vec<ChainId> {
    let mut parent = None;
    diff_ids
        .iter()
        .map(|&diff_id| {
            let chain = ChainId::extend(parent, diff_id);
            parent = Some(chain);
            chain
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_as_the_image_specification_says() {
        let (a, b) = (Digest::of("a"), Digest::of("b"));
        let chain = chain_ids(&[a, b]);
        assert_eq!(chain[0].0, a);
        assert_eq!(chain[1].0, Digest::of(format!("{a} {b}")));
        assert!(chain_ids(&[]).is_empty());
    }
}
