//! Tables of contents: 8 bytes for the end of the members, then JSON.

use castor_archive::Listing;
use castor_archive::listing::Kind;
use castor_estargz::footer::{self, MAX_SIZE};
use castor_estargz::toc::{self, Landmark, Toc};
use castor_estargz::{Codec, TocDigests, annotation};
use serde_json::Value;

use super::{Sample, Target, hash, kind_of_error, magnitude, samples};
use crate::{Random, mutate};

pub(super) const TARGET: Target = Target { name: "toc", seeds, mutate, run };

/// The JSON of a sample's table, and the end of the members.
fn table(sample: &Sample) -> Option<(Vec<u8>, u64)> {
    let size = sample.blob.len() as u64;
    let footer = footer::parse(&sample.blob[sample.blob.len().saturating_sub(MAX_SIZE)..], size);
    let location = footer.as_ref().ok().and_then(|footer| footer.toc);
    let location = location.or_else(|| annotation::toc_location(&sample.annotations, size).ok().flatten());
    match (location, &sample.external) {
        (Some(at), _) => {
            let compressed = sample.blob.get(at.offset as usize..(at.offset + at.compressed_size) as usize)?;
            Some((toc::decode(&at, compressed, &TocDigests::default()).ok()?, at.payload_end))
        }
        (None, Some(external)) => {
            let end = footer.map_or(size, |footer| footer.payload_end);
            Some((toc::decode_external(external, &TocDigests::default()).ok()?, end))
        }
        _ => None,
    }
}

/// The JSON of a sample's table, if it has one.
pub(super) fn json_of(sample: &Sample) -> Option<Vec<u8>> {
    table(sample).map(|(json, _)| json)
}

fn seeds() -> Vec<Vec<u8>> {
    samples().iter().filter_map(table).map(|(json, end)| input(&json, end)).collect()
}

fn input(json: &[u8], end: u64) -> Vec<u8> {
    [&end.to_le_bytes(), json].concat()
}

fn parts(input: &[u8]) -> (u64, &[u8]) {
    input.split_first_chunk::<8>().map_or((0, input), |(end, json)| (u64::from_le_bytes(*end), json))
}

fn mutate(random: &mut Random, seed: &[u8], other: &[u8]) -> Vec<u8> {
    let ((mut end, json), (_, other)) = (parts(seed), parts(other));
    if random.once_in(10) {
        end = random.number();
    }
    if let Ok(mut table) = serde_json::from_slice::<Value>(json)
        && !random.once_in(10)
    {
        mutate::toc(random, &mut table, &serde_json::from_slice(other).unwrap_or_default());
        return input(&serde_json::to_vec(&table).unwrap_or_default(), end);
    }
    let mut json = json.to_vec();
    mutate::bytes(random, &mut json, other);
    input(&json, end)
}

fn run(input: &[u8]) -> u64 {
    let (end, json) = parts(input);
    let toc = match Toc::parse(json, Codec::Gzip, end) {
        Ok(toc) => toc,
        Err(error) => return kind_of_error(&error),
    };
    check(&toc, end);
    let landmark = match toc.landmark {
        Landmark::None => 0,
        Landmark::NoPrefetch => 1,
        Landmark::Prefetch { .. } => 2,
    };
    let verifiable = toc.check_verifiable().is_ok();
    hash((magnitude(toc.listing.len()), magnitude(toc.chunks.len()), magnitude(toc.files.len()), landmark, verifiable))
}

/// What a table that was accepted promises.
pub(super) fn check(toc: &Toc, end: u64) {
    check_listing(&toc.listing);
    for name in toc.listing.names() {
        let inode = toc.listing.inode_of(name);
        let Some(file) = toc.file(inode) else {
            assert_ne!(toc.listing.inode(inode).kind, Kind::File, "a file without data or emptiness");
            continue;
        };
        let mut position = 0;
        for chunk in toc.chunks_of(file) {
            assert_eq!(chunk.file_offset, position, "chunks leave a gap or overlap");
            assert!(chunk.size > 0, "a chunk of nothing");
            assert!(chunk.zeros || (chunk.offset < chunk.end && chunk.end <= end), "a chunk out of the blob");
            position += chunk.size;
        }
        assert_eq!(position, toc.listing.inode(inode).size, "chunks do not cover the file");
    }
}

/// What any tree that was accepted promises.
pub(super) fn check_listing(listing: &Listing) {
    for name in listing.names() {
        let (parent, bytes) = (listing.parent(name), listing.name(name));
        assert_eq!(listing.inode(listing.inode_of(parent)).kind, Kind::Directory, "something below no directory");
        let inode = listing.inode_of(name);
        if name.0 > 0 {
            assert!(parent < name, "a directory after what it contains");
            assert!(!bytes.is_empty() && bytes.len() <= 255, "a name of {} bytes", bytes.len());
            assert!(!bytes.contains(&b'/') && !bytes.contains(&0), "a name that is none");
            assert!(bytes != b"." && bytes != b"..", "a name that leads elsewhere");
        }
        for (attribute, _) in listing.xattrs(inode) {
            let steers = attribute.starts_with(b"trusted.overlay.") || attribute.starts_with(b"user.overlay.");
            assert!(!steers, "an attribute that steers overlayfs");
        }
        let is_link = listing.inode(inode).kind == Kind::Symlink;
        assert_eq!(is_link, !listing.target(inode).is_empty(), "a target without a symlink, or none with one");
    }
}
