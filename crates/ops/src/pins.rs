//! What sources turned out to be, for those who must say afterwards what a result was made of.

use std::collections::{HashMap, VecDeque};

use castor_oci::Digest;
use parking_lot::Mutex;

/// How many are remembered. A build has few sources, and asks about them right after it used them.
const REMEMBERED: usize = 8192;

/// By the vertex of a source, what it turned out to be: the digest of an image's manifest or index, of a file, or the name
/// of a commit.
#[derive(Debug, Default)]
pub struct Pins(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    pins: HashMap<Digest, String>,
    order: VecDeque<Digest>,
}

impl Pins {
    /// Remembers what the source at `vertex` is now.
    pub fn set(&self, vertex: Digest, pin: impl Into<String>) {
        let mut table = self.0.lock();
        if table.pins.insert(vertex, pin.into()).is_some() {
            return;
        }
        table.order.push_back(vertex);
        if table.order.len() > REMEMBERED
            && let Some(eldest) = table.order.pop_front()
        {
            table.pins.remove(&eldest);
        }
    }

    /// What the source at `vertex` was when it was last looked at.
    pub fn get(&self, vertex: &Digest) -> Option<String> {
        self.0.lock().pins.get(vertex).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_is_remembered_and_the_eldest_goes() {
        let pins = Pins::default();
        for number in 0..=REMEMBERED {
            pins.set(Digest::of(number.to_string()), "a");
        }
        let last = Digest::of(REMEMBERED.to_string());
        pins.set(last, "b");
        assert_eq!(pins.get(&last).as_deref(), Some("b"));
        assert_eq!((pins.get(&Digest::of("0")), pins.0.lock().pins.len()), (None, REMEMBERED));
    }
}
