//! The file `presence` of a layer object: which chunks of `data` are here.
//!
//! | | | |
//! |---|---|---|
//! | 0 | 8 | magic `CASTORPR` |
//! | 8 | u32 | version, 1 |
//! | 12 | u32 | bit 0: complete, all of `data` is here and right; the map below is then not looked at |
//! | 16 | u64 | chunks |
//! | 24 | | one bit a chunk, lowest bit first, padded to whole bytes |
//! | end | 32 | SHA-256 of all before |
//!
//! It is replaced by renaming, and only after `fdatasync` of `data`: what it says survives a crash of the machine.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use castor_oci::Digest;

const MAGIC: &[u8; 8] = b"CASTORPR";
const VERSION: u32 = 1;
const HEADER: usize = 24;

/// A set of chunks that grows.
#[derive(Debug)]
pub(crate) struct Presence {
    bits: Vec<AtomicU64>,
    chunks: u64,
    here: AtomicU64,
}

impl Presence {
    /// No chunk is here.
    pub(crate) fn empty(chunks: u64) -> Self {
        let words = usize::try_from(chunks.div_ceil(64)).unwrap_or(0);
        Self { bits: (0..words).map(|_| AtomicU64::new(0)).collect(), chunks, here: AtomicU64::new(0) }
    }

    /// Whether a chunk is here. What it says was written to `data` before.
    pub(crate) fn contains(&self, chunk: u32) -> bool {
        let word = self.bits.get(chunk as usize / 64).map_or(0, |word| word.load(Ordering::Acquire));
        word & (1 << (chunk % 64)) != 0
    }

    /// Notes that a chunk is here; false if it was already.
    pub(crate) fn insert(&self, chunk: u32) -> bool {
        let Some(word) = self.bits.get(chunk as usize / 64) else { return false };
        let bit = 1 << (chunk % 64);
        let new = word.fetch_or(bit, Ordering::AcqRel) & bit == 0;
        if new {
            self.here.fetch_add(1, Ordering::Relaxed);
        }
        new
    }

    /// Chunks that are here, of all.
    pub(crate) fn count(&self) -> (u64, u64) {
        (self.here.load(Ordering::Relaxed), self.chunks)
    }

    /// Whether all are.
    pub(crate) fn all(&self) -> bool {
        let (here, chunks) = self.count();
        here >= chunks
    }

    /// The map as bytes, as of some moment during the call.
    pub(crate) fn snapshot(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = self.bits.iter().flat_map(|word| word.load(Ordering::Acquire).to_le_bytes()).collect();
        bytes.truncate(usize::try_from(self.chunks.div_ceil(8)).unwrap_or(0));
        bytes
    }

    fn restore(chunks: u64, map: &[u8]) -> Self {
        let presence = Self::empty(chunks);
        for chunk in 0..u32::try_from(chunks).unwrap_or(0) {
            if map.get(chunk as usize / 8).is_some_and(|byte| byte & (1 << (chunk % 8)) != 0) {
                presence.insert(chunk);
            }
        }
        presence
    }
}

/// What a `presence` file said.
#[derive(Debug)]
pub(crate) enum Stored {
    /// All is here.
    Complete,
    /// Some chunks are.
    Chunks(Presence),
}

/// Reads the file at `path` for a layer of `chunks` chunks. One that is absent or damaged says that nothing is here.
pub(crate) fn read(path: &Path, chunks: u64) -> io::Result<Stored> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Stored::Chunks(Presence::empty(chunks))),
        Err(error) => return Err(error),
    };
    match parse(&bytes, chunks) {
        Some(stored) => Ok(stored),
        None => {
            tracing::warn!(path = %path.display(), "presence file is damaged: all chunks are fetched again");
            Ok(Stored::Chunks(Presence::empty(chunks)))
        }
    }
}

/// Chunks that are here, of all, as the file at `path` says; the second is 0 if it says nothing.
pub(crate) fn counts(path: &Path) -> (u64, u64) {
    let Ok(bytes) = std::fs::read(path) else { return (0, 0) };
    let count = bytes.get(16..24).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes);
    match parse(&bytes, count) {
        Some(Stored::Complete) => (count, count),
        Some(Stored::Chunks(presence)) => presence.count(),
        None => (0, 0),
    }
}

fn parse(bytes: &[u8], chunks: u64) -> Option<Stored> {
    let (body, digest) = bytes.split_at_checked(bytes.len().checked_sub(32)?)?;
    if Digest::of(body).as_bytes() != digest || body.len() < HEADER || &body[..8] != MAGIC {
        return None;
    }
    let flags = u32::from_le_bytes(body[12..16].try_into().ok()?);
    let version = u32::from_le_bytes(body[8..12].try_into().ok()?);
    let count = u64::from_le_bytes(body[16..24].try_into().ok()?);
    if version != VERSION || count != chunks {
        return None;
    }
    if flags & 1 != 0 {
        return Some(Stored::Complete);
    }
    let map = &body[HEADER..];
    (map.len() as u64 == chunks.div_ceil(8)).then(|| Stored::Chunks(Presence::restore(chunks, map)))
}

/// Replaces the file at `path`. `data` was synced after the chunks in `map` were written.
pub(crate) fn write(path: &Path, chunks: u64, complete: bool, map: &[u8]) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(HEADER + map.len() + 32);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&u32::from(complete).to_le_bytes());
    bytes.extend_from_slice(&chunks.to_le_bytes());
    if !complete {
        bytes.extend_from_slice(map);
    }
    let digest = Digest::of(&bytes);
    bytes.extend_from_slice(digest.as_bytes());
    replace(path, &bytes)
}

/// Writes `bytes` to the file at `path` so that it has either its old or its new content, whatever happens.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    let mut file = File::create(&new)?;
    file.write_all(bytes)?;
    file.sync_data()?;
    castor_task::crash_point("presence checkpoint");
    std::fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_comes_back() {
        let dir = std::env::temp_dir().join(format!("castor-presence-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("presence");
        let presence = Presence::empty(131);
        for chunk in [0, 1, 64, 130] {
            assert!(presence.insert(chunk));
            assert!(!presence.insert(chunk));
        }
        write(&path, 131, false, &presence.snapshot()).unwrap();
        let Stored::Chunks(back) = read(&path, 131).unwrap() else { panic!("complete") };
        assert_eq!(back.count(), (4, 131));
        assert!([0, 1, 64, 130].iter().all(|c| back.contains(*c)) && !back.contains(2) && !back.contains(4000));
        // Damage, another layer's file and no file at all all mean: nothing is here.
        let Stored::Chunks(other) = read(&path, 132).unwrap() else { panic!("complete") };
        assert_eq!(other.count().0, 0);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[HEADER] ^= 4;
        std::fs::write(&path, bytes).unwrap();
        let Stored::Chunks(damaged) = read(&path, 131).unwrap() else { panic!("complete") };
        assert_eq!(damaged.count().0, 0);
        assert_eq!(counts(&path), (0, 0));
        write(&path, 131, false, &presence.snapshot()).unwrap();
        assert_eq!(counts(&path), (4, 131));
        write(&path, 131, true, &[]).unwrap();
        assert_eq!(counts(&path), (131, 131));
        assert!(matches!(read(&path, 131).unwrap(), Stored::Complete));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
