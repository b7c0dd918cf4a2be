//! Where vertices come from in source files.

use std::collections::BTreeMap;

use bytes::Bytes;
use castor_oci::Digest;
use castor_proto::pb;

/// A place in a file; lines count from 1, characters from 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The line.
    pub line: i32,
    /// The character in it.
    pub character: i32,
}

/// A range of a file; both ends belong to it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Range {
    /// Where it starts.
    pub start: Position,
    /// Where it ends.
    pub end: Position,
}

impl Range {
    /// Whole lines, `first` to `last`.
    pub fn lines(first: i32, last: i32) -> Self {
        Self { start: Position { line: first, character: 0 }, end: Position { line: last, character: 0 } }
    }

    /// To the wire.
    pub fn to_pb(self) -> pb::Range {
        let position = |p: Position| Some(pb::Position { line: p.line, character: p.character });
        pb::Range { start: position(self.start), end: position(self.end) }
    }

    pub(crate) fn from_pb(wire: &pb::Range) -> Self {
        let position = |p: Option<pb::Position>| {
            p.map_or_else(Position::default, |p| Position { line: p.line, character: p.character })
        };
        Self { start: position(wire.start), end: position(wire.end) }
    }
}

/// A source file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SourceFile {
    /// Its name.
    pub filename: String,
    /// Its language, in GitHub Linguist's words.
    pub language: String,
    /// Its text.
    pub data: Bytes,
}

/// Ranges in one file that an op comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Location {
    /// Which of the [`SourceMap::files`].
    pub file: usize,
    /// The ranges.
    pub ranges: Vec<Range>,
}

/// The source map of a definition.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SourceMap {
    /// The files.
    pub files: Vec<SourceFile>,
    /// Locations by digest of the op, as it was sent.
    pub locations: BTreeMap<Digest, Vec<Location>>,
}

impl SourceMap {
    /// From the wire; what points nowhere is dropped.
    pub fn from_pb(wire: &pb::Source) -> Self {
        let files: Vec<SourceFile> = wire
            .infos
            .iter()
            .map(|info| SourceFile {
                filename: info.filename.clone(),
                language: info.language.clone(),
                data: info.data.clone(),
            })
            .collect();
        let location = |wire: &pb::Location| {
            let file = usize::try_from(wire.source_index).ok().filter(|&index| index < files.len())?;
            Some(Location { file, ranges: wire.ranges.iter().map(Range::from_pb).collect() })
        };
        let locations = wire
            .locations
            .iter()
            .filter_map(|(digest, list)| {
                Some((digest.parse().ok()?, list.locations.iter().filter_map(location).collect()))
            })
            .collect();
        Self { files, locations }
    }

    /// The files and ranges that the op with `digest` comes from.
    pub fn ranges(&self, digest: &Digest) -> Vec<(&SourceFile, &[Range])> {
        let Some(locations) = self.locations.get(digest) else { return Vec::new() };
        locations
            .iter()
            .filter_map(|location| Some((self.files.get(location.file)?, location.ranges.as_slice())))
            .collect()
    }
}
