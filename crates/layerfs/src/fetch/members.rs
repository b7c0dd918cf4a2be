//! The members (gzip) or frames (zstd) of a blob: what is fetched and verified as one.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::tree::Tree;

/// Chunks that begin at the same place of the blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Member {
    /// First byte in the blob.
    pub start: u64,
    /// Behind its last byte.
    pub end: u64,
    /// Its chunks: places in `Members::order`.
    first: u32,
    count: u32,
}

impl Member {
    pub(super) fn size(&self) -> u64 {
        self.end - self.start
    }
}

/// Below a directory more than this is left out.
const DEEP: u64 = 64 << 10;
/// How deep that is looked for.
const DEPTH: usize = 4;

/// The members of a directory, and of those below it if they are few.
#[derive(Debug, Default)]
pub(super) struct Directory {
    own: u64,
    deep: u64,
    pub members: Vec<u32>,
}

impl Directory {
    pub(super) fn bytes(&self) -> u64 {
        self.own + self.deep
    }
}

/// The child of `collection` that `directory` is or lies in.
fn child_above(tree: &Tree, directory: u32, collection: u32) -> Option<u32> {
    let mut at = directory;
    for _ in 0..DEPTH {
        let parent = tree.name(at).parent;
        if parent == at {
            return None;
        }
        if parent == collection {
            return Some(at);
        }
        at = parent;
    }
    None
}

/// All members of a layer, in the order of the blob.
#[derive(Debug)]
pub(super) struct Members {
    members: Vec<Member>,
    /// Chunks in the order of the blob.
    order: Vec<u32>,
    /// By chunk.
    owner: Vec<u32>,
    /// By member: the directory that its first file is in.
    groups: Vec<u32>,
}

impl Members {
    pub(super) fn of(tree: &Tree) -> Self {
        let mut order: Vec<u32> = (0..tree.chunks()).collect();
        let key = |chunk: &u32| {
            let chunk = tree.chunk(*chunk);
            (chunk.blob_start, chunk.inner)
        };
        // In all but odd layers it is in order already.
        if !order.is_sorted_by_key(key) {
            order.sort_by_key(key);
        }
        let mut members: Vec<Member> = Vec::new();
        let mut owner = vec![0; order.len()];
        for (place, number) in order.iter().enumerate() {
            let chunk = tree.chunk(*number);
            match members.last_mut() {
                Some(last) if last.start == chunk.blob_start => {
                    last.count += 1;
                    last.end = last.end.max(chunk.blob_end);
                }
                _ => members.push(Member {
                    start: chunk.blob_start,
                    end: chunk.blob_end.max(chunk.blob_start),
                    first: place as u32,
                    count: 1,
                }),
            }
            owner[*number as usize] = (members.len() - 1) as u32;
        }
        let mut directory = vec![0; tree.inodes() as usize];
        for number in (0..tree.names()).rev() {
            // Of several names of a file the first counts: its data lies there.
            let name = tree.name(number);
            if let Some(place) = directory.get_mut(name.inode as usize) {
                *place = name.parent;
            }
        }
        let group = |member: &Member| {
            let inode = tree.chunk(order[member.first as usize]).inode;
            directory.get(inode as usize).copied().unwrap_or_default()
        };
        let groups = members.iter().map(group).collect();
        Self { members, order, owner, groups }
    }

    /// The directory that a member belongs to.
    pub(super) fn group(&self, member: u32) -> u32 {
        self.groups.get(member as usize).copied().unwrap_or_default()
    }

    /// The members of each directory right below `collection`, but for those of `size` and more, smallest directory
    /// first. Looks at all members.
    pub(super) fn below(&self, tree: &Tree, collection: u32, size: u64) -> Vec<Directory> {
        let mut found: BTreeMap<u32, Directory> = BTreeMap::new();
        // The files of a directory stand together, mostly.
        let (mut group, mut place) = (u32::MAX, None);
        for number in 0..self.len() {
            if group != self.group(number) {
                group = self.group(number);
                place = child_above(tree, group, collection);
            }
            let bytes = self.get(number).size();
            if let (Some(child), true) = (place, bytes < size) {
                let directory = found.entry(child).or_default();
                match child == group {
                    true => directory.own += bytes,
                    false => directory.deep += bytes,
                }
                directory.members.push(number);
            }
        }
        for (child, directory) in &mut found {
            if directory.deep > DEEP {
                directory.members.retain(|member| self.group(*member) == *child);
                directory.deep = 0;
            }
        }
        let mut found: Vec<Directory> = found.into_values().collect();
        found.sort_by_key(Directory::bytes);
        found
    }

    pub(super) fn len(&self) -> u32 {
        self.members.len() as u32
    }

    pub(super) fn get(&self, member: u32) -> Member {
        self.members[member as usize]
    }

    /// The member that holds a chunk.
    pub(super) fn of_chunk(&self, chunk: u32) -> u32 {
        self.owner.get(chunk as usize).copied().unwrap_or(0)
    }

    /// The chunks of a member, by their place in it.
    pub(super) fn chunks(&self, member: u32) -> &[u32] {
        let member = self.get(member);
        &self.order[member.first as usize..(member.first + member.count) as usize]
    }

    /// Members that lie wholly in `range` of the blob.
    pub(super) fn within(&self, range: &Range<u64>) -> Range<u32> {
        let first = self.members.partition_point(|member| member.start < range.start);
        let mut end = first;
        while self.members.get(end).is_some_and(|member| member.end <= range.end) {
            end += 1;
        }
        first as u32..end as u32
    }
}

/// A set of members that grows.
#[derive(Debug)]
pub(super) struct Flags(Vec<AtomicU64>);

impl Flags {
    pub(super) fn new(count: u32) -> Self {
        Self((0..count.div_ceil(64)).map(|_| AtomicU64::new(0)).collect())
    }

    /// Adds one; false if it was in already.
    pub(super) fn insert(&self, member: u32) -> bool {
        let bit = 1 << (member % 64);
        self.0.get(member as usize / 64).is_some_and(|word| {
            // Mostly it is in: look before taking the cache line.
            word.load(Ordering::Relaxed) & bit == 0 && word.fetch_or(bit, Ordering::Relaxed) & bit == 0
        })
    }

    pub(super) fn contains(&self, member: u32) -> bool {
        self.0.get(member as usize / 64).is_some_and(|word| word.load(Ordering::Relaxed) & (1 << (member % 64)) != 0)
    }
}
