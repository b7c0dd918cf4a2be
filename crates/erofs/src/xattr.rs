//! Extended attributes: the compact sets of a tree, and their form in an image.
//!
//! A set is one byte string, `name length u16, value length u32, name, value` for each attribute, sorted by
//! name; equal sets are equal strings, which is what lets a tree keep each once.

use crate::tree::{TreeError, lossy};

/// Longest value that Linux takes.
const VALUE_MAX: usize = 65535;

/// Name prefixes that EROFS stores as one byte.
const PREFIXES: [(&[u8], u8); 3] = [(b"user.", 1), (b"trusted.", 4), (b"security.", 6)];
/// Names that EROFS stores as one byte and nothing else.
const WHOLE: [(&[u8], u8); 2] = [(b"system.posix_acl_access", 2), (b"system.posix_acl_default", 3)];

/// Splits a full name into EROFS's index and the rest.
pub(crate) fn split_name(name: &[u8]) -> Option<(u8, &[u8])> {
    if let Some((_, index)) = WHOLE.iter().find(|(whole, _)| *whole == name) {
        return Some((*index, b""));
    }
    PREFIXES.iter().find_map(|(prefix, index)| Some((*index, name.strip_prefix(*prefix)?)))
}

/// The reverse of [`split_name`]; `None` for an index this crate does not know.
pub(crate) fn join_name(index: u8, rest: &[u8]) -> Option<Vec<u8>> {
    let known = WHOLE.iter().chain(PREFIXES.iter()).find(|(_, known)| *known == index)?;
    Some([known.0, rest].concat())
}

/// Sorts, checks and encodes a set.
pub(crate) fn encode_set<N: AsRef<[u8]>, V: AsRef<[u8]>>(
    xattrs: impl IntoIterator<Item = (N, V)>,
) -> Result<Box<[u8]>, TreeError> {
    let mut pairs: Vec<(N, V)> = xattrs.into_iter().collect();
    if pairs.is_empty() {
        return Ok(Box::default());
    }
    pairs.sort_by(|a, b| a.0.as_ref().cmp(b.0.as_ref()));
    let mut set = Vec::new();
    let mut last: Option<&[u8]> = None;
    for (name, value) in &pairs {
        let (name, value) = (name.as_ref(), value.as_ref());
        let fail = |reason| Err(TreeError::Xattr { name: lossy(name), reason });
        match split_name(name) {
            None => return fail("EROFS stores user., trusted., security. and POSIX ACLs only"),
            // The kernel finds `user.` alone by no name.
            Some((index, b"")) if index != 2 && index != 3 => return fail("nothing follows the namespace"),
            Some(_) if name.len() > 255 => return fail("the name is longer than 255 bytes"),
            Some(_) if name.contains(&0) => return fail("NUL in the name"),
            Some(_) if value.len() > VALUE_MAX => return fail("the value is longer than 65535 bytes"),
            Some(_) if last == Some(name) => return fail("given twice"),
            Some(_) => {}
        }
        last = Some(name);
        set.extend_from_slice(&(name.len() as u16).to_le_bytes());
        set.extend_from_slice(&(value.len() as u32).to_le_bytes());
        set.extend_from_slice(name);
        set.extend_from_slice(value);
    }
    Ok(set.into_boxed_slice())
}

/// Names and values of a set.
pub(crate) fn set_iter(mut set: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    std::iter::from_fn(move || {
        let (head, rest) = set.split_first_chunk::<6>()?;
        let name_len = usize::from(u16::from_le_bytes([head[0], head[1]]));
        let value_len = u32::from_le_bytes([head[2], head[3], head[4], head[5]]) as usize;
        let (name, rest) = rest.split_at(name_len);
        let (value, rest) = rest.split_at(value_len);
        set = rest;
        Some((name, value))
    })
}

/// An attribute as an image stores it: lengths and index, rest of the name, value, padded to 4 bytes.
pub(crate) fn encode_entry(name: &[u8], value: &[u8]) -> Vec<u8> {
    // Sets hold only names that can be split.
    let (index, rest) = split_name(name).unwrap_or((0, name));
    let mut entry = vec![rest.len() as u8, index];
    entry.extend_from_slice(&(value.len() as u16).to_le_bytes());
    entry.extend_from_slice(rest);
    entry.extend_from_slice(value);
    entry.resize(entry.len().next_multiple_of(4), 0);
    entry
}
