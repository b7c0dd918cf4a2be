//! Directories that lie side by side.
//!
//! A compiler that follows imports, an interpreter that loads its modules: each goes from directory to directory in an
//! order of its own, reads a few small files in each, and would wait for a round trip every time. Who has read in some
//! directories of a *collection*, the children of one directory, is likely to read in others. So their files are fetched
//! together: the smallest directories first, because each saves one wait, whatever its size.

use std::collections::{HashMap, HashSet};

/// Directories of a collection that readers have entered when the others are guessed for the first time, and the second.
const ENTERED: [usize; 2] = [2, 6];
/// Bytes that are guessed each time.
const WINDOW: [u64; 2] = [1 << 20, 2 << 20];
/// Directories with more than this are left out: they are worth a request of their own.
pub(super) const LARGEST_DIRECTORY: u64 = 320 << 10;
/// Collections that are remembered: a guess in each looks at all members of the layer, and a reader of more of them goes
/// through all there is.
const COLLECTIONS: usize = 64;

/// Which directories were entered, by collection.
#[derive(Debug, Default)]
pub(super) struct Siblings {
    collections: HashMap<u32, Collection>,
}

#[derive(Debug, Default)]
struct Collection {
    entered: HashSet<u32>,
    guesses: usize,
}

impl Siblings {
    /// A reader uses a file in `directory`, a child of `collection`. Says how many bytes of the other directories to
    /// guess, if any.
    pub(super) fn entered(&mut self, directory: u32, collection: u32) -> Option<u64> {
        if self.collections.len() >= COLLECTIONS && !self.collections.contains_key(&collection) {
            return None;
        }
        let known = self.collections.entry(collection).or_default();
        let due = *ENTERED.get(known.guesses)?;
        known.entered.insert(directory);
        if known.entered.len() < due {
            return None;
        }
        let window = WINDOW[known.guesses];
        known.guesses += 1;
        Some(window)
    }
}
