//! A header: what an entry says of itself, and its bytes as Go's `archive/tar` writes them.
//!
//! Go picks, for an entry that asks for PAX, the plainest format that loses nothing: USTAR if all fits, a PAX
//! header in front of it if not. Layers are named by their bytes, so which field goes where is not free to choose.

use super::BLOCK;
use crate::Timestamp;

/// Prefix of the PAX records that carry extended attributes.
pub const XATTR_RECORD_PREFIX: &str = "SCHILY.xattr.";

/// Most bytes of PAX records that are written before an entry; what Go reads at most.
const RECORDS_MAX: usize = 1 << 20;

/// Records that the fields of a header decide.
pub(super) const FIELD_RECORDS: [&str; 10] =
    ["path", "linkpath", "size", "uid", "gid", "uname", "gname", "mtime", "atime", "ctime"];

/// Places in a header block.
pub(super) mod field {
    use std::ops::Range;

    pub const NAME: Range<usize> = 0..100;
    pub const MODE: Range<usize> = 100..108;
    pub const UID: Range<usize> = 108..116;
    pub const GID: Range<usize> = 116..124;
    pub const SIZE: Range<usize> = 124..136;
    pub const MTIME: Range<usize> = 136..148;
    pub const CHECKSUM: Range<usize> = 148..156;
    pub const TYPE: usize = 156;
    pub const LINK: Range<usize> = 157..257;
    pub const MAGIC: Range<usize> = 257..265;
    pub const UNAME: Range<usize> = 265..297;
    pub const GNAME: Range<usize> = 297..329;
    pub const DEV_MAJOR: Range<usize> = 329..337;
    pub const DEV_MINOR: Range<usize> = 337..345;
    pub const PREFIX: Range<usize> = 345..500;
    /// The prefix of star's format, which has times after it.
    pub const STAR_PREFIX: Range<usize> = 345..476;
    pub const STAR_TRAILER: Range<usize> = 508..512;
    /// Of sparse files of old GNU form: pieces, whether more blocks of them follow, length of the file.
    pub const SPARSE: usize = 386;
    pub const SPARSE_MORE: usize = 482;
    pub const SPARSE_SIZE: Range<usize> = 483..495;
}

pub(super) const USTAR_MAGIC: &[u8; 8] = b"ustar\x0000";
pub(super) const GNU_MAGIC: &[u8; 8] = b"ustar  \0";

/// The type of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Kind {
    /// A regular file.
    #[default]
    File,
    /// Another name of an earlier entry.
    Hardlink,
    /// A symbolic link.
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A directory; written names end in `/`.
    Directory,
    /// A named pipe.
    Fifo,
}

/// A PAX record: key and value.
pub type Record = (Vec<u8>, Vec<u8>);

/// What an entry says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Header {
    /// Name as stored (`a/`, `./a` and `/a` are possible when read).
    pub path: Vec<u8>,
    /// Type.
    pub kind: Kind,
    /// Permission bits; some writers put the file type there too, so mask what was read (`0o7777`).
    pub mode: u32,
    /// Owner.
    pub uid: u64,
    /// Group.
    pub gid: u64,
    /// Bytes of data that follow; 0 for all but files.
    pub size: u64,
    /// Time of last modification. A fraction is written as a PAX record.
    pub mtime: Timestamp,
    /// Target of a hard link or symlink.
    pub link: Vec<u8>,
    /// Name of the owner.
    pub uname: Vec<u8>,
    /// Name of the group.
    pub gname: Vec<u8>,
    /// Major device number.
    pub dev_major: u32,
    /// Minor device number.
    pub dev_minor: u32,
    /// PAX records beside those that the fields above need, e.g. extended attributes (`SCHILY.xattr.NAME`);
    /// in any order, no key twice. Records of fields in it are ignored.
    pub records: Vec<Record>,
}

/// Why a header cannot be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// No format can hold this value.
    #[error("cannot write tar header of {path:?}: {what}")]
    Unwritable {
        /// The entry's name.
        path: String,
        /// What does not fit.
        what: &'static str,
    },
}

impl Header {
    /// The header's blocks: a PAX header with its records if the entry needs one, then the header itself.
    pub fn encode(&self) -> Result<Vec<u8>, HeaderError> {
        let fail = |what| {
            let path = String::from_utf8_lossy(&self.path[..self.path.len().min(512)]).into_owned();
            Err(HeaderError::Unwritable { path, what })
        };
        if self.path.is_empty()
            || [&self.path, &self.link, &self.uname, &self.gname].iter().any(|text| text.contains(&0))
        {
            return fail("empty name, or NUL in a name");
        }
        if self.path.ends_with(b"/") && !matches!(self.kind, Kind::Directory | Kind::Hardlink | Kind::Symlink) {
            return fail("a name with a trailing slash is a directory's");
        }
        if self.kind != Kind::File && self.size != 0 {
            return fail("data of something that is not a file");
        }
        if !fits_octal(field::MODE.len(), self.mode.into()) || self.mtime.nanoseconds >= 1_000_000_000 {
            return fail("mode or time out of range");
        }
        if self.dev_major >= 1 << 21 || self.dev_minor >= 1 << 21 {
            return fail("device number out of range");
        }
        let split = split_ustar(&self.path);
        let records = self.needed_records();
        if records.iter().any(|(key, _)| key.is_empty() || key.contains(&b'=') || key.contains(&0)) {
            return fail("malformed key of a PAX record");
        }
        let mut out = Vec::with_capacity(3 * BLOCK);
        let plain = records.is_empty() || (records.iter().all(|(key, _)| key == b"path") && split.is_some());
        if plain {
            let (prefix, name) = split.unwrap_or((b"", &self.path));
            out.extend_from_slice(&self.block(name, prefix, <[u8]>::to_vec));
            return Ok(out);
        }
        let data: Vec<u8> = records.iter().flat_map(|(key, value)| encode_record(key, value)).collect();
        if data.len() > RECORDS_MAX {
            return fail("more than 1 MiB of PAX records");
        }
        out.extend_from_slice(&pax_block(&self.path, data.len() as u64));
        out.extend_from_slice(&data);
        out.resize(out.len().next_multiple_of(BLOCK), 0);
        out.extend_from_slice(&self.block(&self.path, b"", ascii));
        Ok(out)
    }

    /// Names (without the record prefix) and values of the extended attributes.
    pub fn xattrs(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.records
            .iter()
            .filter_map(|(key, value)| Some((key.strip_prefix(XATTR_RECORD_PREFIX.as_bytes())?, value.as_slice())))
    }

    /// Adds an extended attribute.
    pub fn push_xattr(&mut self, name: &[u8], value: &[u8]) {
        self.records.push(([XATTR_RECORD_PREFIX.as_bytes(), name].concat(), value.to_vec()));
    }

    /// The PAX records that the entry needs, or would need if its name could not be split, sorted by key.
    fn needed_records(&self) -> Vec<Record> {
        let mut records: Vec<Record> = self
            .records
            .iter()
            .filter(|(key, _)| !FIELD_RECORDS.iter().any(|field| field.as_bytes() == key))
            .cloned()
            .collect();
        for (key, text, size) in [
            ("path", &self.path, field::NAME.len()),
            ("linkpath", &self.link, field::LINK.len()),
            ("uname", &self.uname, field::UNAME.len()),
            ("gname", &self.gname, field::GNAME.len()),
        ] {
            if text.len() > size || !text.is_ascii() {
                records.push((key.into(), text.clone()));
            }
        }
        for (key, number, size) in [
            ("uid", self.uid, field::UID.len()),
            ("gid", self.gid, field::GID.len()),
            ("size", self.size, field::SIZE.len()),
        ] {
            if !fits_octal(size, number) {
                records.push((key.into(), number.to_string().into_bytes()));
            }
        }
        let seconds = u64::try_from(self.mtime.seconds).ok().filter(|seconds| fits_octal(field::MTIME.len(), *seconds));
        if seconds.is_none() || self.mtime.nanoseconds != 0 {
            records.push(("mtime".into(), format_time(self.mtime).into_bytes()));
        }
        records.sort();
        records
    }

    /// The header block; values that do not fit are cut or zero, for a record has them.
    fn block(&self, name: &[u8], prefix: &[u8], text: fn(&[u8]) -> Vec<u8>) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        block[field::TYPE] = match self.kind {
            Kind::File => b'0',
            Kind::Hardlink => b'1',
            Kind::Symlink => b'2',
            Kind::CharDevice => b'3',
            Kind::BlockDevice => b'4',
            Kind::Directory => b'5',
            Kind::Fifo => b'6',
        };
        put_text(&mut block[field::NAME], &text(name));
        put_text(&mut block[field::LINK], &text(&self.link));
        put_octal(&mut block[field::MODE], self.mode.into());
        put_octal(&mut block[field::UID], self.uid);
        put_octal(&mut block[field::GID], self.gid);
        put_octal(&mut block[field::SIZE], self.size);
        put_octal(&mut block[field::MTIME], self.mtime.seconds.try_into().unwrap_or(u64::MAX));
        put_text(&mut block[field::UNAME], &text(&self.uname));
        put_text(&mut block[field::GNAME], &text(&self.gname));
        put_octal(&mut block[field::DEV_MAJOR], self.dev_major.into());
        put_octal(&mut block[field::DEV_MINOR], self.dev_minor.into());
        put_text(&mut block[field::PREFIX], prefix);
        finish_block(&mut block);
        block
    }
}

/// The header block of an entry's PAX records.
fn pax_block(path: &[u8], size: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    block[field::TYPE] = b'x';
    let (directory, file) = match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => path.split_at(slash + 1),
        None => (&b""[..], path),
    };
    // Go joins directory, PaxHeaders.0 and file, and cleans the result.
    let mut name = ascii(&clean(&[directory, b"/PaxHeaders.0/", file].concat(), path.first() == Some(&b'/')));
    name.truncate(field::NAME.len());
    while name.last() == Some(&b'/') {
        name.pop();
    }
    put_text(&mut block[field::NAME], &name);
    for number in [field::MODE, field::UID, field::GID, field::MTIME] {
        put_octal(&mut block[number], 0);
    }
    put_octal(&mut block[field::SIZE], size);
    finish_block(&mut block);
    block
}

/// Go's path.Clean.
fn clean(path: &[u8], absolute: bool) -> Vec<u8> {
    let mut components: Vec<&[u8]> = Vec::new();
    for component in path.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => match components.last() {
                Some(last) if *last != b".." => drop(components.pop()),
                _ if absolute => {}
                _ => components.push(component),
            },
            _ => components.push(component),
        }
    }
    let slash: &[u8] = if absolute { b"/" } else { b"" };
    [slash, &components.join(&b'/')].concat()
}

/// Magic and checksum.
fn finish_block(block: &mut [u8; BLOCK]) {
    block[field::MAGIC].copy_from_slice(USTAR_MAGIC);
    let sum = checksum(block);
    let start = field::CHECKSUM.start;
    put_octal(&mut block[start..start + 7], sum.into());
    block[start + 7] = b' ';
}

/// The sum of a block's bytes, those of the checksum taken for blanks.
pub(super) fn checksum(block: &[u8; BLOCK]) -> u32 {
    let sum = |bytes: &[u8]| bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>();
    sum(block) - sum(&block[field::CHECKSUM]) + 8 * u32::from(b' ')
}

/// Copies what fits; zeros follow, for the block was zero.
fn put_text(field: &mut [u8], text: &[u8]) {
    let n = text.len().min(field.len());
    field[..n].copy_from_slice(&text[..n]);
    // A cut name that ends in a slash would be a directory's to old readers.
    if text.len() > n && field[n - 1] == b'/' {
        let kept = text[..n - 1].iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1);
        field[kept] = 0;
    }
}

/// Octal digits and a NUL; zero if it does not fit.
fn put_octal(field: &mut [u8], number: u64) {
    let number = if fits_octal(field.len(), number) { number } else { 0 };
    let width = field.len() - 1;
    field[..width].copy_from_slice(format!("{number:0width$o}").as_bytes());
}

const fn fits_octal(size: usize, number: u64) -> bool {
    let bits = (size - 1) * 3;
    bits >= 64 || number < 1 << bits
}

/// ASCII alone, other characters left out.
fn ascii(text: &[u8]) -> Vec<u8> {
    text.iter().copied().filter(|byte| byte.is_ascii() && *byte != 0).collect()
}

/// Prefix and name, for a name too long for its field but not for both.
fn split_ustar(path: &[u8]) -> Option<(&[u8], &[u8])> {
    if path.len() <= field::NAME.len() || !path.is_ascii() {
        return None;
    }
    let mut end = path.len();
    if end > field::PREFIX.len() + 1 {
        end = field::PREFIX.len() + 1;
    } else if path.ends_with(b"/") {
        end -= 1;
    }
    let slash = path[..end].iter().rposition(|byte| *byte == b'/')?;
    let (prefix, name) = (&path[..slash], &path[slash + 1..]);
    let fits = slash > 0 && !name.is_empty() && name.len() <= field::NAME.len() && prefix.len() <= field::PREFIX.len();
    fits.then_some((prefix, name))
}

/// Seconds with a fraction, no trailing zeros.
fn format_time(time: Timestamp) -> String {
    let Timestamp { seconds, nanoseconds } = time;
    if nanoseconds == 0 {
        return seconds.to_string();
    }
    // The fraction counts away from zero.
    let text = if seconds < 0 {
        format!("-{}.{:09}", (seconds + 1).unsigned_abs(), 1_000_000_000 - nanoseconds)
    } else {
        format!("{seconds}.{nanoseconds:09}")
    };
    text.trim_end_matches('0').to_owned()
}

/// `LENGTH KEY=VALUE\n`, where the length counts its own digits.
fn encode_record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + rest.to_string().len();
    length = rest + length.to_string().len();
    [length.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_count_their_own_digits() {
        assert_eq!(encode_record(b"k", b""), b"5 k=\n");
        for (length, want) in [(4, "9 k=1234\n"), (5, "11 k=12345\n"), (93, "99 k="), (94, "101 k=")] {
            let value = &b"12345".repeat(30)[..length];
            let record = encode_record(b"k", value);
            assert!(record.starts_with(want.as_bytes()), "{}", record.escape_ascii());
            let said: usize = want.split(' ').next().unwrap().parse().unwrap();
            assert_eq!(record.len(), said);
        }
    }

    #[test]
    fn times_count_away_from_zero() {
        for (seconds, nanoseconds, want) in [
            (1, 500_000_000, "1.5"),
            (-1, 500_000_000, "-0.5"),
            (-5, 999_999_999, "-4.000000001"),
            (-5, 0, "-5"),
            (0, 1, "0.000000001"),
        ] {
            assert_eq!(format_time(Timestamp::new(seconds, nanoseconds)), want);
        }
    }

    #[test]
    fn long_names_go_to_the_prefix_if_they_can() {
        let name = |text: &str| split_ustar(text.as_bytes()).map(|(prefix, name)| (prefix.len(), name.len()));
        assert_eq!(name(&"a".repeat(100)), None);
        assert_eq!(name(&"a".repeat(101)), None);
        assert_eq!(name(&format!("{}/{}", "d".repeat(10), "a".repeat(100))), Some((10, 100)));
        assert_eq!(name(&format!("{}/{}", "d".repeat(10), "a".repeat(101))), None);
        assert_eq!(name(&format!("{}/{}", "d".repeat(155), "a".repeat(100))), Some((155, 100)));
        assert_eq!(name(&format!("{}/{}", "d".repeat(156), "a".repeat(99))), None);
        assert_eq!(name(&format!("d/{}/", "a".repeat(99))), Some((1, 100)));
        assert_eq!(name(&format!("d/{}é", "a".repeat(99))), None);
    }

    #[test]
    fn what_does_not_fit_goes_to_records() {
        let header = Header {
            path: "d/ü".into(),
            uid: 1 << 21,
            mtime: Timestamp::new(1, 1),
            records: vec![(b"SCHILY.xattr.user.x".to_vec(), b"\0=\n".to_vec()), (b"size".to_vec(), b"99".to_vec())],
            ..Header::default()
        };
        let blocks = header.encode().unwrap();
        assert_eq!(blocks.len(), 3 * BLOCK);
        assert_eq!(&blocks[..16], b"d/PaxHeaders.0\0\0");
        let records = "27 SCHILY.xattr.user.x=\0=\n\n21 mtime=1.000000001\n13 path=d/ü\n15 uid=2097152\n".to_owned();
        assert_eq!(String::from_utf8_lossy(&blocks[BLOCK..BLOCK + records.len() + 1]), records + "\0");
        assert_eq!(&blocks[2 * BLOCK..2 * BLOCK + 3], b"d/\0");
        assert_eq!(&blocks[2 * BLOCK + 108..2 * BLOCK + 116], b"0000000\0");
    }

    #[test]
    fn refuses_what_no_format_holds() {
        let base = Header { path: b"a".to_vec(), ..Header::default() };
        for header in [
            Header { path: Vec::new(), ..base.clone() },
            Header { path: b"a\0".to_vec(), ..base.clone() },
            Header { path: b"a/".to_vec(), ..base.clone() },
            Header { mode: 1 << 21, ..base.clone() },
            Header { kind: Kind::Fifo, size: 1, ..base.clone() },
            Header { dev_major: 1 << 21, kind: Kind::CharDevice, ..base.clone() },
            Header { records: vec![(b"a=b".to_vec(), Vec::new())], ..base.clone() },
            Header { records: vec![(b"big".to_vec(), vec![b'x'; 1 << 20])], ..base.clone() },
        ] {
            assert!(header.encode().is_err(), "{:?}", header.path);
        }
        assert!(base.encode().is_ok());
    }
}
