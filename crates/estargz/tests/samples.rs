//! Layers made by real tools, and layers broken by hand.
//!
//! `testdata/good/NAME`: a blob, its descriptor, and what a reader must show. `testdata/broken`: blobs made from
//! them, and in `index.json` what is wrong with each and where a reader should notice.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use castor_archive::listing::{InodeId, Kind, NameId};
use castor_estargz::annotation::{self, TocDigests};
use castor_estargz::open::OpenError;
use castor_estargz::{Codec, Landmark, Toc, chunk, footer, open, tar_of, toc};
use castor_oci::Digest;
use serde_json::Value;

type Annotations = BTreeMap<String, String>;

fn testdata(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(name)
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn annotations(descriptor: &Value) -> Annotations {
    serde_json::from_value(descriptor.get("annotations").cloned().unwrap_or_default()).unwrap_or_default()
}

struct Sample {
    name: String,
    blob: Vec<u8>,
    external: Option<Vec<u8>>,
    annotations: Annotations,
    info: Value,
    tree: Vec<Value>,
}

fn good() -> Vec<Sample> {
    let mut names: Vec<_> = fs::read_dir(testdata("good")).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.sort();
    assert!(names.len() > 40);
    let load = |dir: PathBuf| Sample {
        name: dir.file_name().unwrap().to_str().unwrap().to_owned(),
        blob: fs::read(dir.join("blob")).unwrap(),
        external: fs::read(dir.join("toc")).ok(),
        annotations: annotations(&json(&dir.join("descriptor.json"))),
        info: json(&dir.join("info.json")),
        tree: serde_json::from_value(json(&dir.join("tree.json"))).unwrap(),
    };
    names.into_iter().map(load).collect()
}

/// Opens a layer that nothing verifies, as only tests do.
fn open_unverified(sample: &Sample) -> Toc {
    let tail = &sample.blob[sample.blob.len().saturating_sub(footer::MAX_SIZE)..];
    let footer = footer::parse(tail, sample.blob.len() as u64).unwrap();
    let location = footer.toc.unwrap();
    let compressed = &sample.blob[location.offset as usize..][..location.compressed_size as usize];
    let bytes = toc::decode(&location, compressed, &TocDigests::default()).unwrap();
    Toc::parse(&bytes, location.codec, location.payload_end).unwrap()
}

/// The content of a file, each chunk decoded from its own bytes alone.
fn content(toc: &Toc, blob: &[u8], inode: InodeId) -> Result<Vec<u8>, chunk::ChunkError> {
    let mut content = Vec::new();
    for chunk in toc.chunks_of(toc.file(inode).unwrap()) {
        let compressed = if chunk.zeros { &[][..] } else { &blob[chunk.offset as usize..chunk.end as usize] };
        assert_eq!(content.len() as u64, chunk.file_offset);
        content.extend(chunk::decode(toc.codec, chunk, compressed)?);
    }
    Ok(content)
}

/// One line for an inode, in the words of tree.json; hard links have nothing of their own.
fn show(toc: &Toc, blob: &[u8], name: NameId, sources: &BTreeMap<InodeId, Vec<u8>>) -> String {
    let listing = &toc.listing;
    let id = listing.inode_of(name);
    let inode = listing.inode(id);
    let kind = match inode.kind {
        Kind::File => "reg",
        Kind::Directory => "dir",
        Kind::Symlink => "symlink",
        Kind::CharDevice => "char",
        Kind::BlockDevice => "block",
        Kind::Fifo => "fifo",
    };
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let time = (!inode.implied).then_some((inode.mtime.seconds, inode.mtime.nanoseconds));
    let mut line =
        format!("{:?} {kind} {:o} {} {} {time:?}", text(&listing.path(name)), inode.mode, inode.uid, inode.gid);
    if inode.kind == Kind::File {
        let content = content(toc, blob, id).unwrap();
        assert_eq!(content.len() as u64, inode.size);
        line += &format!(" {} {}", inode.size, Digest::of(content));
    }
    line += &format!(" {:?} {:?} {:?}", text(listing.target(id)), inode.rdev, text(&sources[&id]));
    for (name, value) in listing.xattrs(id) {
        line += &format!(" {}={}", text(name), value.escape_ascii());
    }
    line
}

/// The same from tree.json.
fn wanted(entry: &Value) -> Option<String> {
    let number = |key: &str| entry.get(key).and_then(Value::as_u64).unwrap_or(0);
    let text = |key: &str| entry.get(key).and_then(Value::as_str).unwrap_or("").to_owned();
    let path = text("path");
    let implicit = entry.get("implicit").is_some();
    let time = (!implicit).then(|| {
        let mtime = entry["mtime"].to_string();
        let (seconds, fraction) = mtime.split_once('.').unwrap_or((&mtime, "0"));
        let nanoseconds: u32 = format!("{fraction:0<9}").parse().unwrap();
        let seconds: i64 = seconds.parse().unwrap();
        if mtime.starts_with('-') && nanoseconds > 0 {
            (seconds - 1, 1_000_000_000 - nanoseconds)
        } else {
            (seconds, nanoseconds)
        }
    });
    let mut kind = text("type");
    let source = if kind == "hardlink" { text("source") } else { path.clone() };
    let mut link = text("linkname");
    if kind == "hardlink" {
        kind = text("sourceType");
        link = String::new();
    }
    let mut line = format!("{path:?} {kind} {:o} {} {} {time:?}", number("mode"), number("uid"), number("gid"));
    if kind == "reg" {
        line += &format!(" {} sha256:{}", number("size"), text("sha256"));
    }
    line += &format!(" {link:?} {:?} {source:?}", (number("devMajor"), number("devMinor")));
    for (name, value) in entry.get("xattrs").and_then(Value::as_object).into_iter().flatten() {
        use base64::Engine as _;
        let value = base64::engine::general_purpose::STANDARD.decode(value.as_str().unwrap()).unwrap();
        line += &format!(" {name}={}", value.escape_ascii());
    }
    Some(line)
}

fn compare(sample: &Sample, toc: &Toc) {
    let kinds: BTreeMap<&str, &Value> =
        sample.tree.iter().map(|entry| (entry["path"].as_str().unwrap(), &entry["type"])).collect();
    let mut want = Vec::new();
    for entry in &sample.tree {
        let mut entry = entry.clone();
        if let Some(source) = entry.get("source").and_then(Value::as_str) {
            entry["sourceType"] = kinds[source].clone();
        }
        want.extend(wanted(&entry));
    }
    // Of the names of one inode, tree.json tells which the chain of links ends at.
    let listing = &toc.listing;
    let links: BTreeMap<&str, &str> = sample
        .tree
        .iter()
        .filter_map(|entry| Some((entry["path"].as_str()?, entry.get("source")?.as_str()?)))
        .collect();
    let mut sources = BTreeMap::new();
    for name in listing.names() {
        let path = listing.path(name);
        if !links.contains_key(std::str::from_utf8(&path).unwrap()) {
            assert!(
                sources.insert(listing.inode_of(name), path).is_none(),
                "{}: an inode under two names",
                sample.name
            );
        }
    }
    let mut have: Vec<_> =
        listing.names().map(|name| (listing.path(name), show(toc, &sample.blob, name, &sources))).collect();
    have.sort();
    for ((_, have), want) in have.iter().zip(&want) {
        assert_eq!(have, want, "{}", sample.name);
    }
    assert_eq!(have.len(), want.len(), "{}", sample.name);
}

#[test]
fn every_good_layer_reads_to_its_tree() {
    for sample in good() {
        let opened = open(&sample.blob, &sample.annotations, sample.external.as_deref());
        let toc = if sample.info["format"] == "legacy stargz" {
            assert!(matches!(opened, Err(OpenError::Unverifiable)));
            open_unverified(&sample)
        } else {
            opened.unwrap_or_else(|error| panic!("{}: {error}", sample.name)).toc
        };
        assert_eq!(toc.digest.to_string(), sample.info["tocDigest"].as_str().unwrap());
        compare(&sample, &toc);
        let chunks: usize = toc.files.iter().map(|file| file.chunks.len()).sum();
        assert_eq!(chunks as u64, sample.info["chunks"].as_u64().unwrap(), "{}", sample.name);
        let landmark = match toc.landmark {
            Landmark::None => ("none", 0),
            Landmark::NoPrefetch => ("no-prefetch", 0),
            Landmark::Prefetch { end } => ("prefetch", end),
        };
        let said = sample.info["landmark"].as_str().unwrap_or("none");
        assert_eq!(landmark, (said, sample.info["prefetchSize"].as_u64().unwrap_or(0)), "{}", sample.name);
    }
}

#[test]
fn a_layer_is_the_tar_it_was_made_of_and_a_toc() {
    for sample in good() {
        let mut whole = Vec::new();
        castor_archive::decompress(&sample.blob[..]).unwrap().1.read_to_end(&mut whole).unwrap();
        assert_eq!(Digest::of(&whole).to_string(), sample.info["diffID"].as_str().unwrap(), "{}", sample.name);
        let tail = &sample.blob[sample.blob.len().saturating_sub(footer::MAX_SIZE)..];
        let footer = footer::parse(tail, sample.blob.len() as u64).unwrap();
        assert_eq!(
            footer.size,
            sample.info["footerSize"].as_u64().unwrap()
                + if footer.toc.is_some_and(|toc| toc.codec == Codec::Zstd) { 8 } else { 0 }
        );
        let mut tar = Vec::new();
        tar_of(&sample.blob[..], &footer).unwrap().read_to_end(&mut tar).unwrap();
        assert!(whole.starts_with(&tar));
        match footer.toc {
            Some(toc) if toc.codec == Codec::Gzip => assert!(tar.len() < whole.len()),
            _ => assert_eq!(tar.len(), whole.len()),
        }
    }
}

#[test]
fn chunks_that_share_a_member_are_decoded_in_one_pass() {
    for sample in good().iter().filter(|sample| sample.info["innerOffsetUsed"] == true) {
        let toc = open(&sample.blob, &sample.annotations, sample.external.as_deref()).unwrap().toc;
        let mut chunks = toc.chunks.clone();
        chunks.sort_by_key(|chunk| (chunk.offset, chunk.inner_offset));
        let mut shared = 0;
        for group in chunks.chunk_by(|a, b| a.offset == b.offset) {
            let compressed = &sample.blob[group[0].offset as usize..group[0].end as usize];
            let mut seen = 0;
            chunk::decode_group(toc.codec, group, compressed, &mut |index, data| {
                assert_eq!((index, data.len() as u64), (seen, group[index].size));
                assert_eq!(group[index].digest, Some(Digest::of(data)));
                seen += 1;
                Ok(())
            })
            .unwrap();
            assert_eq!(seen, group.len());
            shared = shared.max(seen);
        }
        assert!(shared > 1);
    }
}

/// Where a broken layer was noticed; `Nowhere` if all of it could be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Noticed {
    Descriptor,
    Footer,
    Toc,
    Policy,
    Chunk,
    Nowhere,
}

/// Reads all of a layer. Every file that can be read must have the digest that the TOC names.
fn examine(blob: &[u8], descriptor: &Value, external: Option<&[u8]>) -> Noticed {
    if descriptor["size"].as_u64() != Some(blob.len() as u64)
        || descriptor["digest"].as_str() != Some(&Digest::of(blob).to_string())
    {
        return Noticed::Descriptor;
    }
    let toc = match open(&blob, &annotations(descriptor), external) {
        Ok(opened) => opened.toc,
        Err(OpenError::Footer(_)) => return Noticed::Footer,
        Err(OpenError::Toc(toc::TocError::Unverifiable(_)) | OpenError::Unverifiable) => return Noticed::Policy,
        Err(_) => return Noticed::Toc,
    };
    let mut noticed = Noticed::Nowhere;
    for name in toc.listing.names() {
        let inode = toc.listing.inode_of(name);
        assert!(toc.listing.xattrs(inode).all(|(name, _)| !name.starts_with(b"trusted.overlay.")));
        let Some(file) = toc.file(inode) else { continue };
        match content(&toc, blob, inode) {
            Ok(content) => assert!(file.digest.is_none_or(|digest| digest == Digest::of(&content))),
            Err(_) => noticed = Noticed::Chunk,
        }
    }
    noticed
}

#[test]
fn no_broken_layer_shows_wrong_bytes() {
    let index: Vec<Value> = serde_json::from_value(json(&testdata("broken/index.json"))).unwrap();
    assert!(index.len() > 100);
    for case in &index {
        let name = case["name"].as_str().unwrap();
        let blob = fs::read(testdata("broken").join(case["blob"].as_str().unwrap())).unwrap();
        let external = case.get("toc").map(|toc| fs::read(testdata("broken").join(toc.as_str().unwrap())).unwrap());
        let noticed = examine(&blob, &case["descriptor"], external.as_deref());
        let said = case["detectedAt"].as_str().unwrap();
        if name.starts_with("zstd-") && name.contains("-footer-") {
            // The annotations tell all, and rightly; without them the broken footer is what there is.
            assert_eq!(noticed, Noticed::Nowhere, "{name}");
            let tail = &blob[blob.len() - footer::MAX_SIZE..];
            let from_footer = footer::parse(tail, blob.len() as u64).is_ok_and(|footer| {
                let location = footer.toc.unwrap();
                let compressed = &blob[location.offset as usize..][..location.compressed_size as usize];
                toc::decode(&location, compressed, &TocDigests::default()).is_ok()
            });
            assert!(!from_footer, "{name}");
            continue;
        }
        let fits = match noticed {
            Noticed::Footer => said.starts_with("footer"),
            Noticed::Toc => said.contains("toc") || said == "footer" || said == "policy" || name == "payload-cut-out",
            Noticed::Chunk => said.contains("chunk") || said == "file",
            Noticed::Policy => said.contains("policy"),
            Noticed::Descriptor => said == "descriptor",
            Noticed::Nowhere => {
                said.contains("accepted") || said.contains("pass") || said.contains("empty tree") || said == "tar-split"
                    || said == "policy" || said.contains("nowhere")
                    // Read right, though it looks wrong.
                    || ["hardlink-long-chain", "name-type-change", "chunk-digest-missing"].contains(&name)
            }
        };
        assert!(fits, "{name}: {noticed:?}, expected {said}: {}", case["what"]);
    }
}

/// Damage anywhere in a layer: an error, or the right bytes.
#[test]
fn damage_is_noticed() {
    for name in ["lib-mini", "lib-mini-min", "storage-mini", "lib-zstd-odd", "lib-external-upper"] {
        let sample = good().into_iter().find(|sample| sample.name == name).unwrap();
        let mut state = 7u32;
        for _ in 0..300 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let mut blob = sample.blob.clone();
            let at = (state >> 8) as usize % blob.len();
            blob[at] ^= 1 << (state & 7);
            let Ok(opened) = open(&blob, &sample.annotations, sample.external.as_deref()) else { continue };
            for name in opened.toc.listing.names() {
                let inode = opened.toc.listing.inode_of(name);
                let Some(file) = opened.toc.file(inode) else { continue };
                if let Ok(content) = content(&opened.toc, &blob, inode) {
                    assert_eq!(file.digest, Some(Digest::of(&content)));
                }
            }
        }
    }
}

#[test]
fn annotations_are_checked() {
    let with = |key: &str, value: &str| Annotations::from([(key.to_owned(), value.to_owned())]);
    for value in [
        "",
        "1:2:3",
        "1:2:3:1:5",
        "8:2:3:2",
        "7:2:3:1",
        "+8:2:3:1",
        "8:0:3:1",
        "999:2:3:1",
        "18446744073709551615:2:3:1",
        "8:2:99999999999:1",
    ] {
        assert!(annotation::toc_location(&with(annotation::ZSTD_POSITION, value), 1000).is_err(), "{value}");
    }
    let location =
        annotation::toc_location(&with(annotation::ZSTD_POSITION_CONTAINERS, "100:20:300:1"), 1000).unwrap().unwrap();
    assert_eq!((location.offset, location.payload_end, location.size), (100, 92, Some(300)));
    assert!(annotation::toc_digests(&with(annotation::TOC_DIGEST, "md5:00")).is_err());
    assert!(annotation::toc_digests(&Annotations::new()).unwrap().is_empty());
}
