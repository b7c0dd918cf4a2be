//! Any table of contents at all: an answer or an error, in bounded time and memory.
#![allow(clippy::unwrap_used, missing_docs)]

use castor_archive::listing::Kind;
use castor_estargz::{Codec, Toc, footer};
use proptest::prelude::*;
use serde_json::{Value, json};

fn any_number() -> impl Strategy<Value = Value> {
    prop_oneof![
        4 => (0i64..20).prop_map(Value::from),
        2 => (0i64..5000).prop_map(Value::from),
        1 => any::<i64>().prop_map(Value::from),
        1 => any::<u64>().prop_map(Value::from),
        1 => Just(Value::Null),
    ]
}

fn any_text() -> impl Strategy<Value = Value> {
    prop_oneof![
        4 => "[abd./]{0,6}".prop_map(Value::from),
        1 => "(\\.wh\\.)?[ab.]{0,3}".prop_map(Value::from),
        1 => any::<String>().prop_map(Value::from),
    ]
}

fn any_entry() -> impl Strategy<Value = Value> {
    let kind = prop::sample::select(vec!["reg", "reg", "chunk", "dir", "symlink", "hardlink", "char", "fifo", "x"]);
    let keys = prop::sample::select(vec![
        "size",
        "mode",
        "uid",
        "gid",
        "offset",
        "endOffset",
        "innerOffset",
        "chunkOffset",
        "chunkSize",
        "devMajor",
        "devMinor",
    ]);
    let texts = prop::sample::select(vec!["linkName", "modtime", "digest", "chunkDigest", "chunkType", "userName"]);
    (
        any_text(),
        kind,
        any_text(),
        prop::collection::vec((keys, any_number()), 0..6),
        prop::collection::vec((texts, any_text()), 0..2),
    )
        .prop_map(|(name, kind, link, numbers, texts)| {
            let mut entry = json!({"name": name, "type": kind});
            if kind == "symlink" || kind == "hardlink" {
                entry["linkName"] = link;
            }
            for (key, value) in numbers {
                entry[key] = value;
            }
            for (key, value) in texts {
                entry[key] = value;
            }
            entry
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn an_answer_or_an_error(entries in prop::collection::vec(any_entry(), 0..12), end in 0u64..10_000) {
        let json = serde_json::to_vec(&json!({"version": 1, "entries": entries})).unwrap();
        let Ok(toc) = Toc::parse(&json, Codec::Gzip, end) else { return Ok(()) };
        for name in toc.listing.names() {
            let inode = toc.listing.inode_of(name);
            let parent = toc.listing.parent(name);
            prop_assert_eq!(toc.listing.inode(toc.listing.inode_of(parent)).kind, Kind::Directory);
            prop_assert!(name.0 == 0 || parent < name);
            let Some(file) = toc.file(inode) else {
                prop_assert_ne!(toc.listing.inode(inode).kind, Kind::File);
                continue;
            };
            // Chunks cover the file, each once, and lie within the blob.
            let mut position = 0;
            for chunk in toc.chunks_of(file) {
                prop_assert_eq!(chunk.file_offset, position);
                prop_assert!(chunk.size > 0);
                prop_assert!(chunk.zeros || (chunk.offset < chunk.end && chunk.end <= end));
                position += chunk.size;
            }
            prop_assert_eq!(position, toc.listing.inode(inode).size);
        }
    }

    #[test]
    fn any_bytes_are_no_reason_to_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), size in any::<u64>()) {
        let _ = Toc::parse(&bytes, Codec::Zstd, size);
        let _ = footer::parse(&bytes, size);
        let mut framed = vec![0x50, 0x2a, 0x4d, 0x18, 40, 0, 0, 0];
        framed.extend(bytes.iter().chain(std::iter::repeat(&0)).take(32));
        framed.extend(b"GnUlInUx");
        if let Ok(footer) = footer::parse(&framed, size) {
            let toc = footer.toc.unwrap();
            prop_assert!(toc.offset + toc.compressed_size <= size);
        }
    }
}
