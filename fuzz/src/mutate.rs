//! Changes of bytes, and of JSON.

use serde_json::{Value, json};

use crate::Random;

/// Inputs do not grow beyond this: what needs more is in the tests.
pub(crate) const LARGEST: usize = 96 << 10;

/// Changes a few bytes somewhere in `at` of `bytes`.
pub(crate) fn bytes(random: &mut Random, bytes: &mut Vec<u8>, other: &[u8]) {
    for _ in 0..=random.below(4) {
        let length = bytes.len();
        let at = random.below(length);
        match random.below(8) {
            0 if length > 0 => bytes[at] ^= 1 << random.below(8),
            1 if length > 0 => bytes[at] = random.draw() as u8,
            2 => number(random, bytes, at),
            3 => bytes.truncate(at),
            4 => {
                let end = (at + random.below(64)).min(length);
                bytes.drain(at..end);
            }
            5 => {
                let more: Vec<u8> = (0..random.below(64)).map(|_| random.draw() as u8).collect();
                bytes.splice(at..at, more);
            }
            6 => {
                // A piece again, or one of another input.
                let from = if random.once_in(2) { bytes.clone() } else { other.to_vec() };
                let start = random.below(from.len());
                let end = (start + random.below(1024)).min(from.len());
                bytes.splice(at..at, from[start..end].iter().copied());
            }
            _ => {
                let end = (at + random.below(16)).min(length);
                let fill = if random.once_in(2) { 0 } else { 0xff };
                bytes[at..end].fill(fill);
            }
        }
    }
    bytes.truncate(LARGEST);
}

/// Overwrites a number of 1, 2, 4 or 8 bytes at `at` with one at a limit.
pub(crate) fn number(random: &mut Random, bytes: &mut [u8], at: usize) {
    let width = 1 << random.below(4);
    let number = random.number().to_le_bytes();
    if let Some(place) = bytes.get_mut(at..at + width) {
        place.copy_from_slice(&number[..width]);
    }
}

/// Names that mean something to somebody.
const NAMES: [&str; 24] = [
    "",
    "/",
    ".",
    "..",
    "a",
    "a/b",
    "a//b",
    "./a",
    "/a",
    "a/../b",
    "../a",
    "a/..",
    "a/b/c/d/e/f/g/h",
    ".wh.a",
    ".wh..wh..opq",
    "a/.wh..wh..opq",
    ".wh.",
    ".wh...",
    "stargz.index.json",
    ".prefetch.landmark",
    ".no.prefetch.landmark",
    "a\u{0}b",
    "\u{fffd}",
    "caf\u{e9}",
];

/// A name that is likely to mean something.
pub(crate) fn name(random: &mut Random) -> String {
    match random.below(12) {
        0 => "n".repeat(random.below(600)),
        1 => "d/".repeat(random.below(3000)),
        2 => format!("{}/{}", name(random), name(random)).chars().take(9000).collect(),
        _ => (*random.pick(&NAMES).unwrap_or(&"a")).to_owned(),
    }
}

/// Changes the JSON of a table of contents in a few places.
pub(crate) fn toc(random: &mut Random, toc: &mut Value, other: &Value) {
    for _ in 0..=random.below(4) {
        if random.once_in(20) {
            change_value(random, toc);
            continue;
        }
        let Some(entries) = toc.get_mut("entries").and_then(Value::as_array_mut) else {
            *toc = json!({ "version": 1, "entries": other.get("entries").cloned().unwrap_or_default() });
            continue;
        };
        let at = random.below(entries.len());
        match random.below(8) {
            0 if !entries.is_empty() => drop(entries.remove(at)),
            1 if !entries.is_empty() => {
                let entry = entries[at].clone();
                let to = random.below(entries.len() + 1);
                entries.insert(to, entry);
            }
            2 if !entries.is_empty() => {
                let with = random.below(entries.len());
                entries.swap(at, with);
            }
            3 => {
                let others = other.get("entries").and_then(Value::as_array);
                let taken = others.and_then(|others| random.pick(others)).cloned();
                entries.insert(at, taken.unwrap_or_default());
            }
            _ => {
                if let Some(entry) = entries.get_mut(at) {
                    change_entry(random, entry);
                }
            }
        }
        entries.truncate(400);
    }
}

const NUMBERS: [&str; 12] = [
    "size",
    "offset",
    "innerOffset",
    "chunkOffset",
    "chunkSize",
    "endOffset",
    "mode",
    "uid",
    "gid",
    "devMajor",
    "devMinor",
    "NumLink",
];
const TEXTS: [&str; 7] = ["name", "linkName", "modtime", "digest", "chunkDigest", "chunkType", "userName"];
const TYPES: [&str; 10] = ["reg", "chunk", "dir", "symlink", "hardlink", "char", "block", "fifo", "", "x"];

fn change_entry(random: &mut Random, entry: &mut Value) {
    let Some(fields) = entry.as_object_mut() else {
        *entry = json!({ "name": name(random), "type": random.pick(&TYPES) });
        return;
    };
    match random.below(10) {
        0..=3 => {
            let key = random.pick(&NUMBERS).copied().unwrap_or_default();
            // Close to what it was, or anything.
            let old = fields.get(key).and_then(Value::as_i64).unwrap_or(0);
            let new = match random.below(3) {
                0 => json!(old.wrapping_add(random.below(5) as i64 - 2)),
                1 => json!(random.number()),
                _ => json!(random.number() as i64),
            };
            fields.insert(key.to_owned(), new);
        }
        4 | 5 => {
            let key = random.pick(&TEXTS).copied().unwrap_or_default();
            let text = match (key, random.below(4)) {
                ("modtime", 0..=2) => "1969-12-31T23:59:59.999999999Z".to_owned(),
                ("digest" | "chunkDigest", 0..=2) => format!("sha256:{:064x}", random.below(3)),
                ("chunkType", 0..=2) => "zeros".to_owned(),
                _ => name(random),
            };
            fields.insert(key.to_owned(), json!(text));
        }
        6 => drop(fields.insert("type".into(), json!(random.pick(&TYPES)))),
        7 => {
            let keys: Vec<String> = fields.keys().cloned().collect();
            if let Some(key) = random.pick(&keys) {
                fields.remove(key);
            }
        }
        8 => {
            let prefix = random.pick(&["user.", "trusted.overlay.", "security.", "system.", ""]).copied();
            let attribute = format!("{}{}", prefix.unwrap_or_default(), name(random));
            let value = random.pick(&["", "eQ==", "=", "AAECAw=="]).copied().unwrap_or_default();
            fields.insert("xattrs".into(), json!({ attribute: value }));
        }
        _ => {
            let keys: Vec<String> = fields.keys().cloned().collect();
            if let Some(value) = random.pick(&keys).and_then(|key| fields.get_mut(key)) {
                change_value(random, value);
            }
        }
    }
}

fn change_value(random: &mut Random, value: &mut Value) {
    *value = match random.below(7) {
        0 => Value::Null,
        1 => json!(random.number()),
        2 => json!(random.number() as i64),
        3 => json!([]),
        4 => json!({}),
        5 => json!(name(random)),
        _ => json!(true),
    };
}
