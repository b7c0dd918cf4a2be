//! What is written is read back, and is what others write.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read as _};
use std::path::PathBuf;

use castor_archive::tar::{Header, Kind, Reader, Writer};
use castor_estargz::{
    BuildError, Builder, Built, Landmark, Options, annotation, chunk, footer, open, prioritize, tar_of, toc,
};
use castor_oci::Digest;
use serde_json::Value;

fn sample(name: &str) -> Vec<u8> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata/good");
    fs::read(dir.join(name).join("blob")).unwrap()
}

fn parts(blob: &[u8]) -> (Vec<u8>, Value, Vec<u8>) {
    let footer = footer::parse(&blob[blob.len() - footer::MAX_SIZE..], blob.len() as u64).unwrap();
    let location = footer.toc.unwrap();
    let compressed = &blob[location.offset as usize..][..location.compressed_size as usize];
    let json = toc::decode(&location, compressed, &Default::default()).unwrap();
    let mut tar = Vec::new();
    tar_of(blob, &footer).unwrap().read_to_end(&mut tar).unwrap();
    (tar, serde_json::from_slice(&json).unwrap(), json)
}

fn build(tar: &[u8], options: Options) -> (Vec<u8>, Built) {
    let mut blob = Vec::new();
    let built = Builder::new(options).build(tar, &mut blob).unwrap();
    (blob, built)
}

/// Opens a blob as the annotations say and reads every file of it.
fn read_all(blob: &[u8], built: &Built) -> (BTreeMap<Vec<u8>, Vec<u8>>, Landmark) {
    assert_eq!((built.digest, built.size), (Digest::of(blob), blob.len() as u64));
    let annotations = BTreeMap::from([(annotation::TOC_DIGEST.to_owned(), built.toc_digest.to_string())]);
    let toc = open(&blob, &annotations, None).unwrap().toc;
    let mut files = BTreeMap::new();
    for name in toc.listing.names() {
        let inode = toc.listing.inode_of(name);
        let Some(file) = toc.file(inode) else { continue };
        let mut content = Vec::new();
        for piece in toc.chunks_of(file) {
            let compressed = &blob[piece.offset as usize..piece.end as usize];
            content.extend(chunk::decode(toc.codec, piece, compressed).unwrap());
        }
        assert_eq!(file.digest, Some(Digest::of(&content)));
        files.insert(toc.listing.path(name), content);
    }
    let mut whole = Vec::new();
    castor_archive::decompress(blob).unwrap().1.read_to_end(&mut whole).unwrap();
    assert_eq!((built.diff_id, built.uncompressed_size), (Digest::of(&whole), whole.len() as u64));
    (files, toc.landmark)
}

/// The TOC without what depends on the compressor.
fn without_offsets(toc: &Value) -> Value {
    let mut toc = toc.clone();
    for entry in toc["entries"].as_array_mut().into_iter().flatten() {
        entry.as_object_mut().unwrap().remove("offset");
    }
    toc
}

#[test]
fn writes_what_buildkit_writes() {
    for name in [
        "buildkit-conv-base",
        "buildkit-conv-latin1",
        "buildkit-conv-level0",
        "buildkit-conv-v7",
        "buildkit-copy",
        "buildkit-emptyfile",
        "buildkit-replace",
        "buildkit-unpack",
        "buildkit-workdir",
        "lib-lossless",
        "lib-lossless-odd",
    ] {
        let theirs = sample(name);
        let (tar, their_toc, their_json) = parts(&theirs);
        let (ours, built) = build(&tar, Options::default());
        let (our_tar, our_toc, our_json) = parts(&ours);
        assert!(our_tar == tar, "{name}: the tar is not kept");
        assert!(without_offsets(&our_toc) == without_offsets(&their_toc), "{name}");
        // Field order, indent and escapes: equal but for the numbers after "offset".
        let blank = |json: &[u8]| {
            let text = String::from_utf8(json.to_vec()).unwrap();
            text.lines()
                .map(|line| if line.starts_with("\t\t\t\"offset\": ") { "offset" } else { line }.to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(blank(&our_json), blank(&their_json), "{name}");
        read_all(&ours, &built);
    }
}

#[test]
fn the_bytes_do_not_depend_on_the_threads() {
    let (tar, ..) = parts(&sample("buildkit-conv-base"));
    for level in [Some(1), None] {
        let options = |threads| Options { level, threads, chunk_size: 100_000 };
        let (one, built) = build(&tar, options(1));
        let (four, again) = build(&tar, options(4));
        assert!(one == four && built == again);
        read_all(&one, &built);
    }
}

#[test]
fn files_are_cut_into_chunks() {
    let mut writer = Writer::new(Vec::new());
    for (name, size) in [("a", 10), ("b", 9), ("c", 11), ("d", 0), ("e", 35)] {
        let header = Header { path: name.into(), size, mode: 0o644, ..Header::default() };
        writer.append(&header, &mut io::repeat(name.as_bytes()[0]).take(size)).unwrap();
    }
    let tar = writer.finish().unwrap();
    let (blob, built) = build(&tar, Options { chunk_size: 10, ..Options::default() });
    let (files, _) = read_all(&blob, &built);
    assert_eq!(files[&b"e"[..]], [b'e'; 35]);
    let (_, toc, _) = parts(&blob);
    let entries = toc["entries"].as_array().unwrap();
    let of = |name: &str| entries.iter().filter(|entry| entry["name"] == name).count();
    assert_eq!(["a", "b", "c", "d", "e"].map(of), [1, 1, 2, 1, 4]);
}

#[test]
fn odd_tars_are_kept() {
    // No end of archive, and one with much after it.
    let mut tar = Writer::new(Vec::new());
    tar.append(&Header { path: b"a".to_vec(), size: 3, ..Header::default() }, &mut &b"abc"[..]).unwrap();
    let tar = tar.finish().unwrap();
    for tar in [&tar[..tar.len() - 1024], &tar, &[&tar[..], &[0; 9000], b"junk"].concat(), &[][..], &[0; 1024]] {
        let (blob, built) = build(tar, Options::default());
        assert!(parts(&blob).0 == tar);
        read_all(&blob, &built);
    }
}

#[test]
fn what_cannot_be_converted_is_refused() {
    for path in ["stargz.index.json", "./stargz.index.json", "/stargz.index.json"] {
        let mut tar = Writer::new(Vec::new());
        tar.append(&Header { path: path.into(), ..Header::default() }, &mut io::empty()).unwrap();
        let result = Builder::default().build(&tar.finish().unwrap()[..], &mut io::sink());
        assert!(matches!(result, Err(BuildError::Reserved(_))));
    }
    assert!(matches!(Builder::default().build(&b"no tar"[..], &mut io::sink()), Err(BuildError::Tar(_))));
    let level = Options { level: Some(10), ..Options::default() };
    assert!(matches!(Builder::new(level).build(io::empty(), &mut io::sink()), Err(BuildError::Level(10))));
    let cut = &parts(&sample("lib-mini")).0[..20_000];
    assert!(Builder::default().build(cut, &mut io::sink()).is_err());
}

#[test]
fn many_headers_do_not_make_one_member() {
    let mut tar = Writer::new(Vec::new());
    tar.append(&Header { path: b"first".to_vec(), size: 1, ..Header::default() }, &mut &b"x"[..]).unwrap();
    for number in 0..70_000 {
        let header = Header { path: format!("d{number}/").into(), kind: Kind::Directory, ..Header::default() };
        tar.append(&header, &mut io::empty()).unwrap();
    }
    tar.append(&Header { path: b"last".to_vec(), size: 1, ..Header::default() }, &mut &b"y"[..]).unwrap();
    let tar = tar.finish().unwrap();
    let (blob, built) = build(&tar, Options { level: Some(1), threads: 2, ..Options::default() });
    let (files, _) = read_all(&blob, &built);
    assert_eq!((files[&b"first"[..]].as_slice(), files[&b"last"[..]].as_slice()), (&b"x"[..], &b"y"[..]));
    assert!(parts(&blob).0 == tar);
}

fn names(tar: &[u8]) -> Vec<String> {
    let mut reader = Reader::new(tar);
    let mut names = Vec::new();
    while let Some(header) = reader.next().unwrap() {
        names.push(String::from_utf8(header.path).unwrap());
    }
    names
}

#[test]
fn what_is_wanted_first_comes_first() {
    let mut tar = Writer::new(Vec::new());
    let mut add = |path: &str, kind: Kind, link: &str| {
        let size = if kind == Kind::File { 5 } else { 0 };
        let header = Header { path: path.into(), kind, link: link.into(), size, ..Header::default() };
        tar.append(&header, &mut &b"hello"[..size as usize]).unwrap();
    };
    add("d/", Kind::Directory, "");
    add("d/x", Kind::File, "");
    add("d/e/", Kind::Directory, "");
    add("d/e/f", Kind::File, "");
    add(".no.prefetch.landmark", Kind::File, "");
    add("link", Kind::Hardlink, "d/e/f");
    add("twice", Kind::File, "");
    add("to-twice", Kind::Hardlink, "twice");
    add("twice", Kind::File, "");
    add("z", Kind::File, "");
    let tar = tar.finish().unwrap();
    let paths = ["z", "link", "./d/x", "none", "twice", "to-twice"].map(|path| path.as_bytes().to_vec());
    let mut reordered = Vec::new();
    let mut prioritized = prioritize(&tar, &paths).unwrap();
    assert_eq!(prioritized.moved(), 3);
    prioritized.read_to_end(&mut reordered).unwrap();
    assert_eq!(
        names(&reordered),
        ["z", "d/", "d/e/", "d/e/f", "link", "d/x", ".prefetch.landmark", "twice", "to-twice", "twice"]
    );
    let (blob, built) = build(&reordered, Options::default());
    let (files, landmark) = read_all(&blob, &built);
    assert_eq!(files.len(), 6);
    let Landmark::Prefetch { end } = landmark else { panic!("no landmark") };
    assert!(end > 0 && end < blob.len() as u64);

    let mut plain = Vec::new();
    prioritize(&tar, &[]).unwrap().read_to_end(&mut plain).unwrap();
    assert_eq!(names(&plain)[..2], [".no.prefetch.landmark", "d/"]);
    let (blob, built) = build(&plain, Options::default());
    assert_eq!(read_all(&blob, &built).1, Landmark::NoPrefetch);
}
