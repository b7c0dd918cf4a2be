//! What is known of a tree's content: digests by path, in the order in which they are hashed.
//!
//! Keys are paths whose components each have a NUL before them; the root's is empty. So a directory's entries come
//! before its siblings, whatever characters names have.

use std::collections::BTreeMap;
use std::ops::Bound;

use castor_oci::Digest;

/// A path as a key.
pub(super) type Key = Vec<u8>;

/// What is known of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Entry {
    /// A directory, by its header, and whether its entries are known.
    Directory { header: Digest, listed: bool },
    /// A link, by all there is to it.
    Link { digest: Digest, target: Vec<u8> },
    /// Anything else, by header and contents, if those have been read.
    File { digest: Option<Digest> },
}

/// Digests by path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tree {
    entries: BTreeMap<Key, Entry>,
    /// Whether the root's header is that of a directory on disk yet to be looked at.
    unknown_root: bool,
}

impl Default for Tree {
    /// Nothing is known.
    fn default() -> Self {
        Self { entries: BTreeMap::from([(Key::new(), root(false))]), unknown_root: true }
    }
}

/// The root of what was sent has no header: whoever sent the tree did not choose one. That of a tree on disk has.
fn root(listed: bool) -> Entry {
    Entry::Directory { header: Digest::of(""), listed }
}

/// The key of a cleaned, absolute path.
pub(super) fn key_of(path: &[u8]) -> Key {
    let mut key = Key::with_capacity(path.len());
    for component in path.split(|byte| *byte == b'/').filter(|component| !component.is_empty()) {
        key.push(0);
        key.extend_from_slice(component);
    }
    key
}

/// The path of a key, absolute; the root's is empty.
pub(super) fn path_of(key: &[u8]) -> Vec<u8> {
    key.iter().map(|byte| if *byte == 0 { b'/' } else { *byte }).collect()
}

/// The key of what `key` is in.
pub(super) fn parent_of(key: &[u8]) -> &[u8] {
    &key[..key.iter().rposition(|byte| *byte == 0).unwrap_or(0)]
}

impl Tree {
    /// A tree that is known to be empty, and will be filled by a peer.
    pub(super) fn empty() -> Self {
        Self { entries: BTreeMap::from([(Key::new(), root(true))]), unknown_root: false }
    }

    /// Whether the root's header has yet to be looked at.
    pub(super) fn wants_root(&self) -> bool {
        self.unknown_root
    }

    /// Takes in the root's header.
    pub(super) fn set_root(&mut self, header: Digest) {
        self.unknown_root = false;
        let listed = matches!(self.entries.get(&[][..]), Some(Entry::Directory { listed: true, .. }));
        self.entries.insert(Key::new(), Entry::Directory { header, listed });
    }

    pub(super) fn get(&self, key: &[u8]) -> Option<&Entry> {
        self.entries.get(key)
    }

    pub(super) fn insert(&mut self, key: Key, entry: Entry) {
        self.entries.insert(key, entry);
    }

    pub(super) fn set_listed(&mut self, key: &[u8]) {
        if let Some(Entry::Directory { listed, .. }) = self.entries.get_mut(key) {
            *listed = true;
        }
    }

    /// Removes an entry and all below it.
    pub(super) fn remove(&mut self, key: &[u8]) {
        let below: Vec<_> = self.below(key).map(|(key, _)| key.clone()).collect();
        below.iter().for_each(|key| drop(self.entries.remove(key)));
        if !key.is_empty() {
            self.entries.remove(key);
        }
    }

    /// Everything below `key`, in order.
    pub(super) fn below<'a>(&'a self, key: &[u8]) -> impl Iterator<Item = (&'a Key, &'a Entry)> + use<'a> {
        let mut start = key.to_vec();
        start.push(0);
        let prefix = start.clone();
        self.entries
            .range::<[u8], _>((Bound::Included(start.as_slice()), Bound::Unbounded))
            .take_while(move |(key, _)| key.starts_with(&prefix))
    }

    /// The entries of a directory, in order.
    pub(super) fn children<'a>(&'a self, key: &[u8]) -> impl Iterator<Item = (&'a Key, &'a Entry)> + use<'a> {
        let depth = key.len() + 1;
        self.below(key).filter(move |(key, _)| !key[depth..].contains(&0))
    }

    /// All entries, one directory after the other, for storing.
    pub(super) fn directories(&self) -> impl Iterator<Item = &Key> {
        let listed = |entry: &Entry| matches!(entry, Entry::Directory { listed: true, .. });
        self.entries.iter().filter(move |(_, entry)| listed(entry)).map(|(key, _)| key)
    }

    /// A directory's entries as they are stored.
    ///
    /// The root comes first among its own entries, without a name. Per entry: length of the name (u32 LE), name, type, then a digest (`d` directory; `f` file), a digest, the length of
    /// the target (u32 LE) and the target (`l` link), or nothing (`?` file not read).
    pub(super) fn encode(&self, directory: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let text = |out: &mut Vec<u8>, bytes: &[u8]| {
            // Names and targets are bounded by the kernel.
            out.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(0).to_le_bytes());
            out.extend_from_slice(bytes);
        };
        let own = self.entries.get_key_value(directory).filter(|(key, _)| key.is_empty());
        for (key, entry) in own.into_iter().chain(self.children(directory)) {
            text(&mut out, key.get(directory.len() + 1..).unwrap_or_default());
            match entry {
                Entry::Directory { header, .. } => {
                    out.push(b'd');
                    out.extend_from_slice(header.as_bytes());
                }
                Entry::File { digest: Some(digest) } => {
                    out.push(b'f');
                    out.extend_from_slice(digest.as_bytes());
                }
                Entry::File { digest: None } => out.push(b'?'),
                Entry::Link { digest, target } => {
                    out.push(b'l');
                    out.extend_from_slice(digest.as_bytes());
                    text(&mut out, target);
                }
            }
        }
        out
    }

    /// Takes in what [`encode`](Self::encode) wrote; `None` if it is damaged, and then part of it may have been taken in.
    pub(super) fn decode(&mut self, directory: &[u8], mut bytes: &[u8]) -> Option<()> {
        fn take<'a>(bytes: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
            let (head, tail) = bytes.split_at_checked(count)?;
            *bytes = tail;
            Some(head)
        }
        fn text<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
            let length = u32::from_le_bytes(take(bytes, 4)?.try_into().ok()?);
            take(bytes, usize::try_from(length).ok()?)
        }
        let digest = |bytes: &mut &[u8]| Some(Digest::from_bytes(take(bytes, 32)?.try_into().ok()?));
        while !bytes.is_empty() {
            let name = text(&mut bytes)?;
            if name.is_empty() {
                if take(&mut bytes, 1)? != b"d" || !directory.is_empty() {
                    return None;
                }
                self.set_root(digest(&mut bytes)?);
                continue;
            }
            let mut key = directory.to_vec();
            key.push(0);
            key.extend_from_slice(name);
            let entry = match take(&mut bytes, 1)?[0] {
                b'd' => Entry::Directory { header: digest(&mut bytes)?, listed: false },
                b'f' => Entry::File { digest: Some(digest(&mut bytes)?) },
                b'?' => Entry::File { digest: None },
                b'l' => Entry::Link { digest: digest(&mut bytes)?, target: text(&mut bytes)?.to_vec() },
                _ => return None,
            };
            self.entries.insert(key, entry);
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> Tree {
        let mut tree = Tree::empty();
        for path in ["/s", "/s/a", "/s/aa"] {
            tree.insert(key_of(path.as_bytes()), Entry::Directory { header: Digest::of(path), listed: true });
        }
        for path in ["/s/a/x", "/s/a-b", "/s.txt", "/s/a.b"] {
            tree.insert(key_of(path.as_bytes()), Entry::File { digest: Some(Digest::of(path)) });
        }
        tree.insert(key_of(b"/s/l"), Entry::Link { digest: Digest::of("l"), target: b"a/x".to_vec() });
        tree.insert(key_of(b"/unread"), Entry::File { digest: None });
        tree
    }

    #[test]
    fn entries_come_before_siblings() {
        let tree = tree();
        let order: Vec<_> = tree.below(b"").map(|(key, _)| String::from_utf8(path_of(key)).unwrap()).collect();
        assert_eq!(order, ["/s", "/s/a", "/s/a/x", "/s/a-b", "/s/a.b", "/s/aa", "/s/l", "/s.txt", "/unread"]);
        let children: Vec<_> = tree.children(&key_of(b"/s")).map(|(key, _)| path_of(key)).collect();
        assert_eq!(children.len(), 5);
        assert_eq!(parent_of(&key_of(b"/s/a")), key_of(b"/s"));
    }

    #[test]
    fn what_is_stored_is_read_back() {
        let tree = tree();
        let mut read = Tree::empty();
        for directory in tree.directories() {
            read.decode(directory, &tree.encode(directory)).unwrap();
        }
        for directory in tree.directories() {
            read.set_listed(directory);
        }
        assert_eq!(read, tree);
        let bytes = tree.encode(&key_of(b"/s"));
        for cut in 1..bytes.len() {
            // Whatever is cut off, nothing is invented and nothing panics.
            let _ = Tree::empty().decode(&key_of(b"/s"), &bytes[..cut]);
        }
    }

    #[test]
    fn removing_takes_all_below() {
        let mut tree = tree();
        tree.remove(&key_of(b"/s"));
        assert_eq!(tree.below(b"").count(), 2);
    }
}
