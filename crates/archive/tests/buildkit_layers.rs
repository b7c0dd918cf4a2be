//! Layer tars that BuildKit wrote: parsed and encoded again they are the same bytes.
#![allow(clippy::unwrap_used, missing_docs)]

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::path::PathBuf;

use castor_archive::tar::{Reader, Writer};
use castor_archive::{HashingReader, HashingWriter, decompress};

fn layers() -> Vec<(PathBuf, Vec<u8>)> {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/layers");
    let mut paths: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(paths.len() > 30);
    let read = |path: PathBuf| {
        let mut tar = Vec::new();
        decompress(fs::File::open(&path).unwrap()).unwrap().1.read_to_end(&mut tar).unwrap();
        (path, tar)
    };
    paths.into_iter().map(read).collect()
}

#[test]
fn encodes_what_buildkit_wrote() {
    for (path, tar) in layers() {
        let mut reader = Reader::new(HashingReader::new(tar.as_slice()));
        let mut writer = Writer::new(HashingWriter::new(Vec::new()));
        while let Some(header) = reader.next().unwrap() {
            let start = writer_position(&writer);
            assert_eq!(reader.header_offset(), start, "{}", path.display());
            let blocks = header.encode().unwrap();
            assert_eq!(reader.data_offset(), start + blocks.len() as u64);
            let there = &tar[start as usize..][..blocks.len()];
            assert!(
                there == blocks,
                "{}: {:?}\n{}\n{}",
                path.display(),
                header,
                there.escape_ascii(),
                blocks.escape_ascii()
            );
            writer.start(&header).unwrap();
            io::copy(&mut reader, &mut writer).unwrap();
            writer.flush().unwrap();
        }
        let (bytes, digest, size) = writer.finish().unwrap().finish();
        assert!(bytes == tar, "{}", path.display());
        let mut rest = reader.into_inner();
        io::copy(&mut rest, &mut io::sink()).unwrap();
        assert_eq!(rest.finish(), (digest, size));
    }
}

/// Where the next header goes: what was written, padded.
fn writer_position(writer: &Writer<HashingWriter<Vec<u8>>>) -> u64 {
    writer.get_ref().size().next_multiple_of(512)
}
