//! Sparse files, in the four forms that GNU tar has had: the map of what is there in the header (old GNU), in PAX
//! records (0.0 and 0.1), or before the data (1.0).

use super::BLOCK;
use super::header::Record;

/// Prefix of the records of sparse files.
pub(super) const RECORD_PREFIX: &[u8] = b"GNU.sparse.";

const MALFORMED: &str = "malformed map of a sparse file";

/// What is there of a sparse file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SparseMap {
    /// Offset and length of each piece of data, in order.
    pub fragments: Vec<(u64, u64)>,
    /// Length of the file.
    pub size: u64,
}

impl SparseMap {
    /// Checks a map: pieces in order, within the file, and together as long as the data.
    pub fn new(fragments: Vec<(u64, u64)>, size: u64, data: u64) -> Result<Self, &'static str> {
        let (mut end, mut total) = (0u64, 0u64);
        for (offset, length) in &fragments {
            if *offset < end {
                return Err(MALFORMED);
            }
            end = offset.checked_add(*length).filter(|end| *end <= size).ok_or(MALFORMED)?;
            // Below `end`, so no overflow.
            total += length;
        }
        if total != data || i64::try_from(size).is_err() {
            return Err(MALFORMED);
        }
        Ok(Self { fragments, size })
    }
}

/// What PAX records say of a sparse file.
#[derive(Debug, Default)]
pub(super) struct SparseRecords {
    pub name: Option<Vec<u8>>,
    pub size: Option<u64>,
    /// The map, unless it lies before the data.
    pub fragments: Option<Vec<(u64, u64)>>,
}

impl SparseRecords {
    /// Reads the records of sparse files, in the order they were given: in form 0.0 the same keys come once a piece.
    pub fn parse(records: &[Record]) -> Result<Self, &'static str> {
        let mut found = Self::default();
        let (mut version, mut numbers) = ((0, 0), None);
        for (key, value) in records {
            let number = || parse_number(value).ok_or(MALFORMED);
            match &key[RECORD_PREFIX.len()..] {
                b"major" => version.0 = number()?,
                b"minor" => version.1 = number()?,
                b"name" => found.name = Some(value.clone()),
                b"size" | b"realsize" => found.size = Some(number()?),
                b"map" => {
                    let list = value.split(|byte| *byte == b',').map(parse_number).collect::<Option<Vec<_>>>();
                    numbers = Some(if value.is_empty() { Vec::new() } else { list.ok_or(MALFORMED)? });
                }
                b"offset" | b"numbytes" => {
                    let list = numbers.get_or_insert_with(Vec::new);
                    let expected: &[u8] = if list.len() % 2 == 0 { b"offset" } else { b"numbytes" };
                    if !key.ends_with(expected) {
                        return Err(MALFORMED);
                    }
                    list.push(number()?);
                }
                _ => {}
            }
        }
        match version {
            (0, 0 | 1) => found.fragments = Some(pairs(&numbers.ok_or(MALFORMED)?)?),
            (1, 0) => {}
            _ => return Err("unknown form of sparse file"),
        }
        Ok(found)
    }
}

/// The pieces in a header block of old GNU form, or in a block that continues it.
pub(super) fn old_fragments(
    block: &[u8; BLOCK],
    first: usize,
    count: usize,
    number: fn(&[u8]) -> Option<u64>,
    fragments: &mut Vec<(u64, u64)>,
) -> Result<(), &'static str> {
    for entry in block[first..first + 24 * count].chunks_exact(24) {
        if entry[0] == 0 {
            break;
        }
        let (offset, length) = entry.split_at(12);
        fragments.push((number(offset).ok_or(MALFORMED)?, number(length).ok_or(MALFORMED)?));
    }
    Ok(())
}

/// How many lines the map before the data has (form 1.0): its first one says.
pub(super) fn lines_of_map(text: &[u8]) -> Result<u64, &'static str> {
    let end = text.iter().position(|byte| *byte == b'\n').ok_or(MALFORMED)?;
    let pieces = parse_number(&text[..end]).ok_or(MALFORMED)?;
    pieces.checked_mul(2).and_then(|lines| lines.checked_add(1)).ok_or(MALFORMED)
}

/// The map before the data: a number on each line, the first telling how many pieces follow.
pub(super) fn leading_map(text: &[u8]) -> Result<Vec<(u64, u64)>, &'static str> {
    let lines = usize::try_from(lines_of_map(text)?).map_err(|_| MALFORMED)?;
    let numbers = text.split(|byte| *byte == b'\n').take(lines).skip(1).map(parse_number);
    let numbers = numbers.collect::<Option<Vec<_>>>().filter(|numbers| numbers.len() == lines - 1);
    pairs(&numbers.ok_or(MALFORMED)?)
}

fn pairs(numbers: &[u64]) -> Result<Vec<(u64, u64)>, &'static str> {
    let (pairs, rest) = numbers.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(MALFORMED);
    }
    Ok(pairs.iter().map(|[offset, length]| (*offset, *length)).collect())
}

fn parse_number(text: &[u8]) -> Option<u64> {
    // `parse` alone would take a sign.
    let digits = std::str::from_utf8(text).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?;
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_checked() {
        assert!(SparseMap::new(vec![(0, 1), (10, 5), (20, 0)], 20, 6).is_ok());
        for (fragments, size, data) in [
            (vec![(10, 5), (0, 1)], 20, 6),
            (vec![(0, 11), (10, 5)], 20, 16),
            (vec![(10, 11)], 20, 11),
            (vec![(u64::MAX, 2)], u64::MAX, 2),
            (vec![(0, 5)], 20, 6),
            (vec![], u64::MAX, 0),
        ] {
            assert!(SparseMap::new(fragments.clone(), size, data).is_err(), "{fragments:?}");
        }
    }

    #[test]
    fn a_leading_map_is_read() {
        let whole = b"2\n0\n512\n4096\n100\n\0\0";
        assert_eq!((lines_of_map(whole), leading_map(whole)), (Ok(5), Ok(vec![(0, 512), (4096, 100)])));
        assert_eq!(leading_map(b"0\n\0"), Ok(Vec::new()));
        for wrong in [
            &b"x\n"[..],
            b"-1\n",
            b"1\na\n1\n",
            b"1\n1\n",
            b"99999999999999999999\n",
            b"18446744073709551615\n",
            &[b'1'; 600],
        ] {
            assert!(leading_map(wrong).is_err(), "{}", wrong.escape_ascii());
        }
    }
}
