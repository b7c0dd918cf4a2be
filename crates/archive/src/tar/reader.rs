//! A streaming reader.
//!
//! What a header means is decided in one place and once: a size in a PAX record counts for the entry that it
//! precedes and for nothing in between, and the size that was shown is the size that is skipped. Readers that
//! disagree with others, or with themselves, on that have been made to see different files in one archive.

use std::io::{self, Read};

use super::BLOCK;
use super::header::{self, FIELD_RECORDS, Header, Kind, Record, field};
use super::sparse::{self, SparseMap, SparseRecords};
use crate::Timestamp;

/// Bounds of what a reader accepts.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of PAX records, and of GNU long names, before one entry.
    pub extension: u64,
    /// Entries.
    pub entries: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { extension: 1 << 20, entries: 20_000_000 }
    }
}

/// Why a tar cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// A header that is no header, or contradicts itself.
    #[error("invalid tar header at offset {offset}: {what}")]
    Malformed {
        /// Where the header starts in the stream.
        offset: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// Something that this reader refuses by name.
    #[error("unsupported tar entry {path:?}: {what}")]
    Unsupported {
        /// Its name.
        path: String,
        /// What it is.
        what: String,
    },
    /// A limit was passed.
    #[error("tar exceeds the limit of {limit} {what}")]
    Limit {
        /// The limit.
        limit: u64,
        /// Of what.
        what: &'static str,
    },
    /// The stream failed or ended early.
    #[error("read tar at offset {offset}: {source}")]
    Io {
        /// Where.
        offset: u64,
        /// Why.
        source: io::Error,
    },
}

/// Reads a tar entry by entry: [`next`](Self::next) gives a header, and until it is called again the reader
/// itself (`Read`) gives that entry's data.
#[derive(Debug)]
pub struct Reader<R> {
    input: R,
    limits: Limits,
    /// Bytes of `input` that were read.
    position: u64,
    /// Data of the current entry that was not read.
    left: u64,
    /// Zeros after it.
    padding: u64,
    entries: u64,
    header_offset: u64,
    data_offset: u64,
    ended: bool,
    allow_sparse: bool,
    sparse: Option<Sparse>,
}

/// A sparse file that is being read.
#[derive(Debug)]
struct Sparse {
    map: SparseMap,
    /// The piece at or after `position`.
    next: usize,
    /// Offset in the file.
    position: u64,
}

/// What comes before a header and is part of it.
#[derive(Default)]
struct Extensions {
    records: Vec<Record>,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    bytes: u64,
}

impl<R: Read> Reader<R> {
    /// Reads from `input`, which should be buffered.
    pub fn new(input: R) -> Self {
        Self::with_limits(input, Limits::default())
    }

    /// The same with bounds of one's own.
    pub fn with_limits(input: R, limits: Limits) -> Self {
        Self {
            input,
            limits,
            position: 0,
            left: 0,
            padding: 0,
            entries: 0,
            header_offset: 0,
            data_offset: 0,
            ended: false,
            allow_sparse: false,
            sparse: None,
        }
    }

    /// Reads sparse files too, with zeros for what is not there. Otherwise they are refused: a few bytes of archive may
    /// stand for any size, and layers have none.
    #[must_use]
    pub fn allow_sparse(mut self) -> Self {
        self.allow_sparse = true;
        self
    }

    /// Whether the current entry is a sparse file: what is read is then longer than what the archive has of it.
    pub fn is_sparse(&self) -> bool {
        self.sparse.is_some()
    }

    /// The next entry, or `None` at the end of the archive. Data of the entry before that was not read is skipped.
    #[expect(clippy::should_implement_trait, reason = "entries borrow the reader, which no Iterator can")]
    pub fn next(&mut self) -> Result<Option<Header>, TarError> {
        if self.ended {
            return Ok(None);
        }
        let skip = self.left + self.padding;
        self.skip(skip)?;
        (self.left, self.padding, self.sparse) = (0, 0, None);
        self.header_offset = self.position;
        let mut extensions = Extensions::default();
        loop {
            let Some(block) = self.block()? else {
                if extensions.bytes > 0 {
                    return Err(self.malformed("the archive ends after an extension header"));
                }
                self.ended = true;
                return Ok(None);
            };
            match block[field::TYPE] {
                b'x' => {
                    let data = self.extension(&block, &mut extensions)?;
                    let records = parse_records(&data).map_err(|what| self.malformed(what))?;
                    extensions.records.extend(records);
                }
                // Global records are of no use in layers, and others ignore them too.
                b'g' => drop(self.extension(&block, &mut extensions)?),
                b'L' => extensions.long_name = Some(until_nul(&self.extension(&block, &mut extensions)?).to_vec()),
                b'K' => extensions.long_link = Some(until_nul(&self.extension(&block, &mut extensions)?).to_vec()),
                _ => {
                    self.entries += 1;
                    if self.entries > self.limits.entries {
                        return Err(TarError::Limit { limit: self.limits.entries, what: "entries" });
                    }
                    let (mut header, sparse_records) = self.entry(&block, extensions)?;
                    self.left = header.size;
                    self.padding = padding(header.size);
                    if block[field::TYPE] == b'S' || !sparse_records.is_empty() {
                        self.start_sparse(&block, &mut header, &sparse_records)?;
                    }
                    self.data_offset = self.position;
                    return Ok(Some(header));
                }
            }
        }
    }

    /// Offset in the stream of the entry's first header block (PAX and GNU headers belong to the entry).
    pub fn header_offset(&self) -> u64 {
        self.header_offset
    }

    /// Offset in the stream of the entry's data.
    pub fn data_offset(&self) -> u64 {
        self.data_offset
    }

    /// The input.
    pub fn get_mut(&mut self) -> &mut R {
        &mut self.input
    }

    /// The input, positioned after the blocks that ended the archive.
    pub fn into_inner(self) -> R {
        self.input
    }

    fn malformed(&self, what: &'static str) -> TarError {
        TarError::Malformed { offset: self.header_offset, what }
    }

    fn fill(&mut self, buf: &mut [u8]) -> Result<(), TarError> {
        self.input.read_exact(buf).map_err(|source| TarError::Io { offset: self.position, source })?;
        self.position += buf.len() as u64;
        Ok(())
    }

    fn skip(&mut self, mut count: u64) -> Result<(), TarError> {
        let mut scratch = [0; 8 << 10];
        while count > 0 {
            let n = count.min(scratch.len() as u64) as usize;
            self.fill(&mut scratch[..n])?;
            count -= n as u64;
        }
        Ok(())
    }

    /// A header block with the right checksum; `None` at the end: two blocks of zeros, or of the stream.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, TarError> {
        let mut block = [0; BLOCK];
        for attempt in 0..2 {
            let mut filled = 0;
            while filled < BLOCK {
                match self.input.read(&mut block[filled..]) {
                    Ok(0) if filled == 0 => return Ok(None),
                    Ok(0) => {
                        let source = io::ErrorKind::UnexpectedEof.into();
                        return Err(TarError::Io { offset: self.position, source });
                    }
                    Ok(n) => filled += n,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(source) => return Err(TarError::Io { offset: self.position, source }),
                }
            }
            self.position += BLOCK as u64;
            if block.iter().any(|byte| *byte != 0) {
                if attempt == 1 {
                    return Err(self.malformed("a block of zeros before it"));
                }
                break;
            }
            if attempt == 1 {
                return Ok(None);
            }
        }
        let said = parse_octal(&block[field::CHECKSUM]);
        // Some old writers summed signed bytes.
        let unsigned = header::checksum(&block);
        let signed = block
            .iter()
            .enumerate()
            .map(|(at, byte)| if field::CHECKSUM.contains(&at) { 32 } else { i64::from(byte.cast_signed()) })
            .sum::<i64>();
        if said.is_none_or(|said| said != u64::from(unsigned) && i64::try_from(said) != Ok(signed)) {
            return Err(self.malformed("wrong checksum"));
        }
        Ok(Some(block))
    }

    /// The data of an extension header, within the limit.
    fn extension(&mut self, block: &[u8; BLOCK], extensions: &mut Extensions) -> Result<Vec<u8>, TarError> {
        let size = parse_size(&block[field::SIZE]).ok_or_else(|| self.malformed("size out of range"))?;
        // Counted with its header, so that empty ones end too.
        extensions.bytes = extensions.bytes.saturating_add(size).saturating_add(BLOCK as u64);
        if extensions.bytes > self.limits.extension + 8 * BLOCK as u64 {
            return Err(TarError::Limit { limit: self.limits.extension, what: "bytes of extension headers" });
        }
        let mut data = vec![0; size as usize];
        self.fill(&mut data)?;
        self.skip(padding(size))?;
        Ok(data)
    }

    /// Puts together what a header and its extensions say; the records of sparse files are given apart.
    fn entry(&self, block: &[u8; BLOCK], extensions: Extensions) -> Result<(Header, Vec<Record>), TarError> {
        let mut header = parse_block(block).map_err(|what| self.malformed(what))?;
        let (sparse, records) =
            extensions.records.into_iter().partition(|(key, _)| key.starts_with(sparse::RECORD_PREFIX));
        apply_records(&mut header, records).map_err(|what| self.malformed(what))?;
        // As in Go, where both are given.
        if let Some(name) = extensions.long_name {
            header.path = name;
        }
        if let Some(link) = extensions.long_link {
            header.link = link;
        }
        header.kind = match block[field::TYPE] {
            // Before USTAR a slash made the directory.
            0 if header.path.ends_with(b"/") => Kind::Directory,
            0 | b'0' | b'7' | b'S' => Kind::File,
            b'1' => Kind::Hardlink,
            b'2' => Kind::Symlink,
            b'3' => Kind::CharDevice,
            b'4' => Kind::BlockDevice,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => return Err(unsupported(&header, format!("type {:?}", char::from(other)))),
        };
        // Only files have data, whatever the header says.
        if header.kind != Kind::File {
            header.size = 0;
        }
        Ok((header, sparse))
    }

    /// Reads the map of a sparse file, whose data comes next.
    fn start_sparse(&mut self, block: &[u8; BLOCK], header: &mut Header, records: &[Record]) -> Result<(), TarError> {
        if !self.allow_sparse || header.kind != Kind::File {
            return Err(unsupported(header, "GNU sparse file".to_owned()));
        }
        let (fragments, size) = if block[field::TYPE] == b'S' {
            self.old_map(block)?
        } else {
            let records = SparseRecords::parse(records).map_err(|what| self.malformed(what))?;
            if let Some(name) = records.name {
                header.path = name;
            }
            let fragments = match records.fragments {
                Some(fragments) => fragments,
                None => self.leading_map()?,
            };
            (fragments, records.size.ok_or_else(|| self.malformed("sparse file without a size"))?)
        };
        header.size = size;
        let map = SparseMap::new(fragments, size, self.left).map_err(|what| self.malformed(what))?;
        self.sparse = Some(Sparse { map, next: 0, position: 0 });
        Ok(())
    }

    /// The map in the header block and in those that continue it.
    fn old_map(&mut self, block: &[u8; BLOCK]) -> Result<(Vec<(u64, u64)>, u64), TarError> {
        let mut fragments = Vec::new();
        let size = parse_size(&block[field::SPARSE_SIZE]).ok_or_else(|| self.malformed("size out of range"))?;
        sparse::old_fragments(block, field::SPARSE, 4, parse_size, &mut fragments)
            .map_err(|what| self.malformed(what))?;
        let mut more = block[field::SPARSE_MORE] != 0;
        let mut blocks = 0;
        while more {
            blocks += 1;
            if blocks * BLOCK as u64 > self.limits.extension {
                return Err(TarError::Limit { limit: self.limits.extension, what: "bytes of a sparse file's map" });
            }
            let mut block = [0; BLOCK];
            self.fill(&mut block)?;
            sparse::old_fragments(&block, 0, 21, parse_size, &mut fragments).map_err(|what| self.malformed(what))?;
            more = block[504] != 0;
        }
        Ok((fragments, size))
    }

    /// The map that the data starts with.
    fn leading_map(&mut self) -> Result<Vec<(u64, u64)>, TarError> {
        let (mut text, mut lines) = (Vec::new(), 0);
        loop {
            if self.left < BLOCK as u64 {
                return Err(self.malformed("map of a sparse file cut off"));
            }
            if text.len() as u64 >= self.limits.extension {
                return Err(TarError::Limit { limit: self.limits.extension, what: "bytes of a sparse file's map" });
            }
            let mut block = [0; BLOCK];
            self.fill(&mut block)?;
            self.left -= BLOCK as u64;
            text.extend_from_slice(&block);
            lines += block.iter().filter(|byte| **byte == b'\n').count() as u64;
            let wanted = sparse::lines_of_map(&text).map_err(|what| self.malformed(what))?;
            if lines >= wanted {
                return sparse::leading_map(&text).map_err(|what| self.malformed(what));
            }
        }
    }

    /// Reads what the archive has of an entry's data.
    fn read_data(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.left).unwrap_or(usize::MAX).min(buf.len());
        if want == 0 {
            return Ok(0);
        }
        let n = self.input.read(&mut buf[..want])?;
        if n == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "tar ends within an entry's data"));
        }
        self.position += n as u64;
        self.left -= n as u64;
        Ok(n)
    }
}

fn unsupported(header: &Header, what: String) -> TarError {
    let path = String::from_utf8_lossy(&header.path[..header.path.len().min(512)]).into_owned();
    TarError::Unsupported { path, what }
}

impl<R: Read> Read for Reader<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let Some(sparse) = &mut self.sparse else { return self.read_data(buf) };
        let piece = loop {
            match sparse.map.fragments.get(sparse.next) {
                Some((offset, length)) if sparse.position >= offset + length => sparse.next += 1,
                piece => break piece.copied(),
            }
        };
        // Up to where the data starts, or the file ends, there are zeros; then up to where the data ends.
        let (is_data, end) = match piece {
            Some((offset, length)) if sparse.position >= offset => (true, offset + length),
            Some((offset, _)) => (false, offset),
            None => (false, sparse.map.size),
        };
        let want = usize::try_from(end - sparse.position).unwrap_or(usize::MAX).min(buf.len());
        let n = if is_data {
            self.read_data(&mut buf[..want])?
        } else {
            buf[..want].fill(0);
            want
        };
        if let Some(sparse) = &mut self.sparse {
            sparse.position += n as u64;
        }
        Ok(n)
    }
}

const fn padding(size: u64) -> u64 {
    (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64
}

/// The fields of a header block; the type is not decided here.
fn parse_block(block: &[u8; BLOCK]) -> Result<Header, &'static str> {
    let magic = &block[field::MAGIC];
    let is_ustar = magic == header::USTAR_MAGIC;
    let unsigned = |range: std::ops::Range<usize>, what| parse_size(&block[range]).ok_or(what);
    let mut header = Header {
        path: until_nul(&block[field::NAME]).to_vec(),
        mode: unsigned(field::MODE, "mode out of range")?.try_into().map_err(|_| "mode out of range")?,
        uid: unsigned(field::UID, "user id out of range")?,
        gid: unsigned(field::GID, "group id out of range")?,
        size: unsigned(field::SIZE, "size out of range")?,
        mtime: Timestamp::from_seconds(parse_number(&block[field::MTIME]).ok_or("time out of range")?),
        link: until_nul(&block[field::LINK]).to_vec(),
        ..Header::default()
    };
    if is_ustar || magic == header::GNU_MAGIC {
        header.uname = until_nul(&block[field::UNAME]).to_vec();
        header.gname = until_nul(&block[field::GNAME]).to_vec();
        if matches!(block[field::TYPE], b'3' | b'4') {
            let number = |range| unsigned(range, "device number out of range");
            let out_of_range = |_| "device number out of range";
            header.dev_major = number(field::DEV_MAJOR)?.try_into().map_err(out_of_range)?;
            header.dev_minor = number(field::DEV_MINOR)?.try_into().map_err(out_of_range)?;
        }
    }
    if is_ustar {
        let is_star = &block[field::STAR_TRAILER] == b"tar\0";
        let prefix = until_nul(&block[if is_star { field::STAR_PREFIX } else { field::PREFIX }]);
        if !prefix.is_empty() {
            header.path = [prefix, b"/", &header.path].concat();
        }
    }
    Ok(header)
}

/// Lets PAX records override the fields they are of, and keeps the others. Of a key given twice the last counts;
/// an empty value leaves the field as it is.
fn apply_records(header: &mut Header, records: Vec<Record>) -> Result<(), &'static str> {
    let mut kept: std::collections::HashMap<Vec<u8>, usize> = std::collections::HashMap::new();
    for (key, value) in records {
        let number = || {
            let text = std::str::from_utf8(&value).ok()?;
            let number: u64 = text.parse().ok()?;
            i64::try_from(number).is_ok().then_some(number)
        };
        match key.as_slice() {
            _ if value.is_empty() && FIELD_RECORDS.iter().any(|field| field.as_bytes() == key) => {}
            b"path" => header.path = value,
            b"linkpath" => header.link = value,
            b"uname" => header.uname = value,
            b"gname" => header.gname = value,
            b"uid" => header.uid = number().ok_or("malformed PAX uid")?,
            b"gid" => header.gid = number().ok_or("malformed PAX gid")?,
            b"size" => header.size = number().ok_or("malformed PAX size")?,
            b"mtime" => header.mtime = parse_time(&value).ok_or("malformed PAX mtime")?,
            b"atime" | b"ctime" => {}
            _ => match kept.get(&key) {
                Some(at) => header.records[*at].1 = value,
                None => {
                    kept.insert(key.clone(), header.records.len());
                    header.records.push((key, value));
                }
            },
        }
    }
    let texts = [&header.path, &header.link, &header.uname, &header.gname];
    if texts.iter().any(|text| text.contains(&0)) {
        return Err("NUL in a name");
    }
    Ok(())
}

/// Splits `LENGTH KEY=VALUE\n` records.
fn parse_records(mut data: &[u8]) -> Result<Vec<Record>, &'static str> {
    const MALFORMED: &str = "malformed PAX record";
    let mut records = Vec::new();
    while !data.is_empty() {
        let space = data.iter().take(8).position(|byte| *byte == b' ').ok_or(MALFORMED)?;
        let digits = std::str::from_utf8(&data[..space]).map_err(|_| MALFORMED)?;
        if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(MALFORMED);
        }
        let length: usize = digits.parse().map_err(|_| MALFORMED)?;
        let record = data.get(space + 1..length).ok_or(MALFORMED)?;
        let record = record.strip_suffix(b"\n").ok_or(MALFORMED)?;
        let equals = record.iter().position(|byte| *byte == b'=').ok_or(MALFORMED)?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        if key.is_empty() || key.contains(&0) {
            return Err(MALFORMED);
        }
        records.push((key.to_vec(), value.to_vec()));
        data = &data[length..];
    }
    Ok(records)
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len())]
}

/// Octal digits between blanks and NULs; nothing is 0.
fn parse_octal(field: &[u8]) -> Option<u64> {
    let blank = |byte: &u8| matches!(byte, b' ' | 0);
    let start = field.iter().position(|byte| !blank(byte)).unwrap_or(field.len());
    let end = field.iter().rposition(|byte| !blank(byte)).map_or(start, |last| last + 1);
    let digits = until_nul(&field[start..end]);
    digits.iter().try_fold(0u64, |number, digit| match digit {
        b'0'..=b'7' => number.checked_mul(8)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

/// A number in octal or, with the first bit set, in two's complement.
fn parse_number(field: &[u8]) -> Option<i64> {
    let first = *field.first()?;
    if first & 0x80 == 0 {
        return i64::try_from(parse_octal(field)?).ok();
    }
    // The second bit is the sign.
    let negative = first & 0x40 != 0;
    let mut number: i128 = if negative { -1 } else { 0 };
    for (at, byte) in field.iter().enumerate() {
        let byte = if at == 0 { (byte & 0x7f) | (byte & 0x40) << 1 } else { *byte };
        number = number << 8 | i128::from(byte);
        if at > 12 {
            return None;
        }
    }
    i64::try_from(number).ok()
}

fn parse_size(field: &[u8]) -> Option<u64> {
    u64::try_from(parse_number(field)?).ok()
}

/// Seconds with a fraction, whose digits after the ninth are cut.
fn parse_time(text: &[u8]) -> Option<Timestamp> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok().filter(|_| !whole.starts_with('+'))?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let digits: String = fraction.chars().chain(std::iter::repeat('0')).take(9).collect();
    let nanoseconds: u32 = digits.parse().ok()?;
    if whole.starts_with('-') && nanoseconds > 0 {
        return Some(Timestamp::new(seconds.checked_sub(1)?, 1_000_000_000 - nanoseconds));
    }
    Some(Timestamp::new(seconds, nanoseconds))
}

#[cfg(test)]
mod tests;
