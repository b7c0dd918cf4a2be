//! What starts with a process.
//!
//! The daemon looks up the user of a step in `/etc/passwd`; then the step's shell is started, its loader and the C library.
//! Each is known only from the one before, so each would wait for a round trip. Who reads the first is about to read the
//! others: they are fetched along with it.

use super::members::Members;
use crate::tree::{Kind, Tree};

/// What is read first.
const FIRST: &str = "etc/passwd";
/// What follows, under the names that distributions use.
const REST: [&str; 9] = [
    "etc/group",
    "bin/sh",
    "lib64/ld-linux-x86-64.so.2",
    "lib/ld-linux-aarch64.so.1",
    "lib/x86_64-linux-gnu/libc.so.6",
    "lib/aarch64-linux-gnu/libc.so.6",
    "lib64/libc.so.6",
    "lib/ld-musl-x86_64.so.1",
    "lib/ld-musl-aarch64.so.1",
];
/// Symbolic links that are followed for one of them.
const LINKS: u32 = 16;

/// The members of a layer that a process begins with.
#[derive(Debug, Default)]
pub(super) struct Start {
    /// The member that is wanted first; none in a layer without it.
    pub first: Option<u32>,
    /// The others, ascending.
    pub rest: Vec<u32>,
}

impl Start {
    pub(super) fn of(tree: &Tree, members: &Members) -> Self {
        let of = |path: &str| -> Vec<u32> {
            let (start, count) = file(tree, path).map_or((0, 0), |inode| tree.inode(inode).chunks);
            (start..start + count).map(|chunk| members.of_chunk(chunk)).collect()
        };
        let Some(first) = of(FIRST).first().copied() else { return Self::default() };
        let mut rest: Vec<u32> = REST.iter().flat_map(|path| of(path)).filter(|member| *member != first).collect();
        rest.sort_unstable();
        rest.dedup();
        Self { first: Some(first), rest }
    }
}

/// The file at `path`, with the links that this layer has followed.
fn file(tree: &Tree, path: &str) -> Option<u32> {
    let mut rest: Vec<Vec<u8>> = components(path.as_bytes());
    let (mut at, mut links) = (0, 0);
    while let Some(part) = rest.pop() {
        if part == b".." {
            at = tree.name(at).parent;
            continue;
        }
        let name = (1..tree.names()).find(|number| {
            let name = tree.name(*number);
            name.parent == at && name.bytes == part
        })?;
        let inode = tree.inode(tree.name(name).inode);
        match inode.kind {
            Kind::Symlink if links < LINKS => {
                links += 1;
                let target = tree.target(&inode);
                if target.first() == Some(&b'/') {
                    at = 0;
                }
                rest.extend(components(target));
            }
            Kind::Directory => at = name,
            Kind::File if rest.is_empty() => return Some(tree.name(name).inode),
            _ => return None,
        }
    }
    None
}

/// The components of a path, last first.
fn components(path: &[u8]) -> Vec<Vec<u8>> {
    let parts = path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".");
    parts.rev().map(<[u8]>::to_vec).collect()
}
