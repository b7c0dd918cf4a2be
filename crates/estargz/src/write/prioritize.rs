//! Putting first what will be read first.
//!
//! A reader that knows of it fetches all that lies before the prefetch landmark at once. So the files that are wanted
//! early are moved to the front of the tar, each after the directories it is in and the entry it is a link to; then
//! comes the landmark, then the rest as it was.

use std::collections::{HashMap, HashSet};
use std::io::{self, Cursor, Read};

use castor_archive::ReadAt;
use castor_archive::read_at::SliceReader;
use castor_archive::tar::{self, BLOCK, Header, Kind, TarError};

use crate::{NO_PREFETCH_LANDMARK, PREFETCH_LANDMARK};

/// The one byte of a landmark.
const LANDMARK: u8 = 0x0f;

/// An entry's place in the tar.
struct Part {
    start: u64,
    end: u64,
    path: Vec<Vec<u8>>,
    kind: Kind,
    link: Vec<Vec<u8>>,
}

/// The tar that [`prioritize`] makes.
pub struct Prioritized<'a> {
    tar: &'a dyn ReadAt,
    /// What comes, the next part last.
    parts: Vec<Piece>,
    current: Option<Box<dyn Read + 'a>>,
    /// Paths that were moved to the front.
    moved: usize,
}

enum Piece {
    Range(u64, u64),
    Bytes(Vec<u8>),
}

impl std::fmt::Debug for Prioritized<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Prioritized").field("moved", &self.moved).finish_non_exhaustive()
    }
}

impl Prioritized<'_> {
    /// How many of the wanted paths were found and moved.
    pub fn moved(&self) -> usize {
        self.moved
    }
}

/// Reorders a tar so that `paths` come first, in their order, and adds the landmark; without paths, the landmark that
/// says so. Landmarks that the tar has are dropped. Paths that it does not have are ignored, and so are those whose
/// place matters: names that occur more than once, or that lead through one that does.
pub fn prioritize<'a>(tar: &'a dyn ReadAt, paths: &[Vec<u8>]) -> Result<Prioritized<'a>, TarError> {
    let parts = index(tar)?;
    let mut by_path: HashMap<&[Vec<u8>], Vec<usize>> = HashMap::new();
    for (at, part) in parts.iter().enumerate() {
        by_path.entry(&part.path).or_default().push(at);
    }
    let mut order = Order { parts: &parts, by_path, taken: HashSet::new(), front: Vec::new() };
    let moved = paths.iter().filter(|path| order.pull(&components(path))).count();
    let Order { taken, front, .. } = order;
    let mut pieces: Vec<Piece> = front.iter().map(|at| Piece::Range(parts[*at].start, parts[*at].end)).collect();
    let landmark = if paths.is_empty() { NO_PREFETCH_LANDMARK } else { PREFETCH_LANDMARK };
    pieces.push(Piece::Bytes(landmark_entry(landmark)?));
    for (at, part) in parts.iter().enumerate() {
        let is_landmark = matches!(part.path.as_slice(), [name] if *name == PREFETCH_LANDMARK.as_bytes() || *name == NO_PREFETCH_LANDMARK.as_bytes());
        if !taken.contains(&at) && !is_landmark {
            pieces.push(Piece::Range(part.start, part.end));
        }
    }
    pieces.push(Piece::Bytes(vec![0; 2 * BLOCK]));
    pieces.reverse();
    Ok(Prioritized { tar, parts: pieces, current: None, moved })
}

/// Decides what is moved.
struct Order<'p> {
    parts: &'p [Part],
    by_path: HashMap<&'p [Vec<u8>], Vec<usize>>,
    taken: HashSet<usize>,
    front: Vec<usize>,
}

impl Order<'_> {
    /// Moves a path to the front, after what it needs; `false` if it is not there or has to stay.
    fn pull(&mut self, path: &[Vec<u8>]) -> bool {
        // Chains of links may be long: first what is needed is listed, then it is taken in reverse.
        let mut chain = vec![path.to_vec()];
        let mut seen = HashSet::new();
        loop {
            let Some(last) = chain.last() else { return false };
            if !seen.insert(last.clone()) || !self.may_move(last) {
                return false;
            }
            match self.by_path.get(last.as_slice()).map(Vec::as_slice) {
                Some([at, ..]) if self.parts[*at].kind == Kind::Hardlink => chain.push(self.parts[*at].link.clone()),
                Some(_) => break,
                None => return false,
            }
        }
        for path in chain.iter().rev() {
            for length in 1..=path.len() {
                for at in self.by_path.get(&path[..length]).into_iter().flatten() {
                    if self.taken.insert(*at) {
                        self.front.push(*at);
                    }
                }
            }
        }
        true
    }

    /// Whether an entry means the same at another place: all on the way to it, and itself, have one entry, or none, or
    /// are directories throughout.
    fn may_move(&self, path: &[Vec<u8>]) -> bool {
        (1..=path.len()).all(|length| match self.by_path.get(&path[..length]).map(Vec::as_slice) {
            None | Some([_]) => true,
            Some(all) => all.iter().all(|at| self.parts[*at].kind == Kind::Directory),
        })
    }
}

/// Where each entry is, with all its headers and padding.
fn index(tar: &dyn ReadAt) -> Result<Vec<Part>, TarError> {
    let size = tar.size().map_err(|source| TarError::Io { offset: 0, source })?;
    let mut reader = tar::Reader::new(io::BufReader::with_capacity(64 << 10, SliceReader::new(tar, 0, size)));
    let mut parts = Vec::new();
    while let Some(header) = reader.next()? {
        parts.push(Part {
            start: reader.header_offset(),
            end: reader.data_offset() + header.size.next_multiple_of(BLOCK as u64),
            path: components(&header.path),
            kind: header.kind,
            link: if header.kind == Kind::Hardlink { components(&header.link) } else { Vec::new() },
        });
    }
    Ok(parts)
}

fn landmark_entry(name: &str) -> Result<Vec<u8>, TarError> {
    let header = Header { path: name.into(), size: 1, ..Header::default() };
    let mut bytes = Vec::new();
    tar::Writer::new(&mut bytes)
        .append(&header, &mut &[LANDMARK][..])
        .map_err(|source| TarError::Io { offset: 0, source })?;
    Ok(bytes)
}

fn components(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".").map(<[u8]>::to_vec).collect()
}

impl Read for Prioritized<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(current) = &mut self.current {
                match current.read(buf)? {
                    0 if !buf.is_empty() => self.current = None,
                    n => return Ok(n),
                }
            }
            self.current = match self.parts.pop() {
                None => return Ok(0),
                Some(Piece::Bytes(bytes)) => Some(Box::new(Cursor::new(bytes))),
                Some(Piece::Range(start, end)) => Some(Box::new(SliceReader::new(self.tar, start, end))),
            };
        }
    }
}
