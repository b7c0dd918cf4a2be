//! The TOC in the making, and its JSON as Go's `encoding/json` writes it: the digest of those bytes names the TOC, and
//! equal layers should have equal TOCs whoever made them.

use std::collections::{BTreeMap, HashMap};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use castor_archive::Timestamp;
use castor_archive::tar::{Header, Kind};
use castor_oci::Digest;

/// An entry; texts are as in the tar, so any bytes.
#[derive(Debug, Default)]
struct Entry {
    name: Vec<u8>,
    kind: &'static str,
    size: u64,
    modtime: String,
    link_name: Vec<u8>,
    mode: u64,
    uid: u64,
    gid: u64,
    user_name: Vec<u8>,
    group_name: Vec<u8>,
    /// Number of the member it starts, until the offsets are known.
    member: Option<usize>,
    dev_major: u64,
    dev_minor: u64,
    xattrs: BTreeMap<Vec<u8>, String>,
    digest: Option<Digest>,
    chunk_offset: u64,
    chunk_size: u64,
    chunk_digest: Option<Digest>,
}

/// Collects entries.
#[derive(Default)]
pub(super) struct TocWriter {
    entries: Vec<Entry>,
    /// The entry of the file whose chunks come.
    file: usize,
    users: HashMap<u64, Vec<u8>>,
    groups: HashMap<u64, Vec<u8>>,
}

impl TocWriter {
    pub(super) fn entry(&mut self, header: &Header) {
        let is_device = matches!(header.kind, Kind::CharDevice | Kind::BlockDevice);
        self.file = self.entries.len();
        self.entries.push(Entry {
            name: header.path.clone(),
            kind: match header.kind {
                Kind::File => "reg",
                Kind::Hardlink => "hardlink",
                Kind::Symlink => "symlink",
                Kind::CharDevice => "char",
                Kind::BlockDevice => "block",
                Kind::Directory => "dir",
                Kind::Fifo => "fifo",
            },
            size: header.size,
            modtime: format_time(header.mtime),
            link_name: header.link.clone(),
            mode: header.mode.into(),
            uid: header.uid,
            gid: header.gid,
            user_name: first_of(&mut self.users, header.uid, &header.uname),
            group_name: first_of(&mut self.groups, header.gid, &header.gname),
            dev_major: if is_device { header.dev_major.into() } else { 0 },
            dev_minor: if is_device { header.dev_minor.into() } else { 0 },
            xattrs: header.xattrs().map(|(name, value)| (name.to_vec(), BASE64.encode(value))).collect(),
            ..Entry::default()
        });
    }

    /// A chunk of the file of the last entry, which starts a member. A size of 0: to the end of the file.
    pub(super) fn chunk(&mut self, member: usize, position: u64, size: u64, digest: Digest) {
        if position > 0 {
            let name = self.entries[self.file].name.clone();
            self.entries.push(Entry { name, kind: "chunk", ..Entry::default() });
        }
        if let Some(entry) = self.entries.last_mut() {
            entry.member = Some(member);
            entry.chunk_offset = position;
            entry.chunk_size = size;
            entry.chunk_digest = Some(digest);
        }
    }

    pub(super) fn file_digest(&mut self, digest: Digest) {
        self.entries[self.file].digest = Some(digest);
    }

    /// The JSON; `offsets` are those of the members.
    pub(super) fn finish(self, offsets: &[u64]) -> Vec<u8> {
        let mut out = b"{\n\t\"version\": 1,\n\t\"entries\": ".to_vec();
        if self.entries.is_empty() {
            // Go's writer starts with no list at all.
            out.extend_from_slice(b"null\n}");
            return out;
        }
        out.push(b'[');
        for (index, entry) in self.entries.iter().enumerate() {
            out.extend_from_slice(if index == 0 { b"\n\t\t{" } else { b",\n\t\t{" });
            let offset = entry.member.map_or(0, |member| offsets[member]);
            write_entry(&mut out, entry, offset);
            out.extend_from_slice(b"\n\t\t}");
        }
        out.extend_from_slice(b"\n\t]\n}");
        out
    }
}

/// The name of an owner, where it is not the one that the TOC gave for the same number before.
fn first_of(known: &mut HashMap<u64, Vec<u8>>, id: u64, name: &[u8]) -> Vec<u8> {
    if name.is_empty() || known.get(&id).map_or(&b""[..], Vec::as_slice) == name {
        return Vec::new();
    }
    known.insert(id, name.to_vec());
    name.to_vec()
}

/// RFC 3339 in whole seconds, half up; nothing for the time 0.
fn format_time(time: Timestamp) -> String {
    let seconds = time.seconds.saturating_add(i64::from(time.nanoseconds >= 500_000_000));
    if seconds == 0 {
        return String::new();
    }
    jiff::Timestamp::from_second(seconds).map_or_else(|_| String::new(), |time| time.to_string())
}

/// The fields in the order of Go's struct; what is empty or zero is left out, but for name and type.
fn write_entry(out: &mut Vec<u8>, entry: &Entry, offset: u64) {
    let digest = |digest: Option<Digest>| digest.map(|digest| digest.to_string()).unwrap_or_default();
    let mut fields = Fields { out, any: false };
    fields.text("name", &entry.name, true);
    fields.text("type", entry.kind.as_bytes(), true);
    fields.number("size", entry.size);
    fields.text("modtime", entry.modtime.as_bytes(), false);
    fields.text("linkName", &entry.link_name, false);
    fields.number("mode", entry.mode);
    fields.number("uid", entry.uid);
    fields.number("gid", entry.gid);
    fields.text("userName", &entry.user_name, false);
    fields.text("groupName", &entry.group_name, false);
    fields.number("offset", offset);
    fields.number("devMajor", entry.dev_major);
    fields.number("devMinor", entry.dev_minor);
    if !entry.xattrs.is_empty() {
        fields.key("xattrs");
        for (index, (name, value)) in entry.xattrs.iter().enumerate() {
            fields.out.extend_from_slice(if index == 0 { b"{\n\t\t\t\t" } else { b",\n\t\t\t\t" });
            write_string(fields.out, name);
            fields.out.extend_from_slice(b": ");
            write_string(fields.out, value.as_bytes());
        }
        fields.out.extend_from_slice(b"\n\t\t\t}");
    }
    fields.text("digest", digest(entry.digest).as_bytes(), false);
    fields.number("chunkOffset", entry.chunk_offset);
    fields.number("chunkSize", entry.chunk_size);
    fields.text("chunkDigest", digest(entry.chunk_digest).as_bytes(), false);
}

struct Fields<'o> {
    out: &'o mut Vec<u8>,
    any: bool,
}

impl Fields<'_> {
    fn key(&mut self, key: &str) {
        self.out.extend_from_slice(if self.any { b",\n\t\t\t\"" } else { b"\n\t\t\t\"" });
        self.any = true;
        self.out.extend_from_slice(key.as_bytes());
        self.out.extend_from_slice(b"\": ");
    }

    fn text(&mut self, key: &str, value: &[u8], always: bool) {
        if always || !value.is_empty() {
            self.key(key);
            write_string(self.out, value);
        }
    }

    fn number(&mut self, key: &str, value: u64) {
        if value != 0 {
            self.key(key);
            self.out.extend_from_slice(value.to_string().as_bytes());
        }
    }
}

/// A string with the escapes that Go writes, those for HTML included. What is not UTF-8 becomes U+FFFD, a byte each,
/// as in every TOC: JSON has no other bytes.
fn write_string(out: &mut Vec<u8>, text: &[u8]) {
    out.push(b'"');
    for chunk in text.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '"' => out.extend_from_slice(b"\\\""),
                '\\' => out.extend_from_slice(b"\\\\"),
                '\n' => out.extend_from_slice(b"\\n"),
                '\r' => out.extend_from_slice(b"\\r"),
                '\t' => out.extend_from_slice(b"\\t"),
                '\u{8}' => out.extend_from_slice(b"\\b"),
                '\u{c}' => out.extend_from_slice(b"\\f"),
                '\0'..='\u{1f}' | '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                    out.extend_from_slice(format!("\\u{:04x}", u32::from(c)).as_bytes());
                }
                _ => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        for _ in chunk.invalid() {
            out.extend_from_slice(b"\\ufffd");
        }
    }
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_as_go_does() {
        let mut out = Vec::new();
        write_string(&mut out, "a\"\\\n\r\t\u{8}\u{c}\u{1}\u{1f}\u{7f}<>&\u{2028}é\u{fffd}".as_bytes());
        write_string(&mut out, b"\xff\xe2\x82x");
        let want = "\"a\\\"\\\\\\n\\r\\t\\b\\f\\u0001\\u001f\u{7f}\\u003c\\u003e\\u0026\\u2028é\u{fffd}\"";
        assert_eq!(String::from_utf8(out).unwrap(), want.to_owned() + "\"\\ufffd\\ufffd\\ufffdx\"");
    }

    #[test]
    fn times_are_rounded() {
        for (seconds, nanoseconds, want) in [
            (0, 0, ""),
            (0, 499_999_999, ""),
            (0, 500_000_000, "1970-01-01T00:00:01Z"),
            (-1, 500_000_000, ""),
            (-5, 0, "1969-12-31T23:59:55Z"),
            (1_600_000_000, 1, "2020-09-13T12:26:40Z"),
        ] {
            assert_eq!(format_time(Timestamp::new(seconds, nanoseconds)), want);
        }
    }
}
