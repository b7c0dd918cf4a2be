//! The form of extended attributes in an image.

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

/// Whether an index stands for a whole name, so that nothing follows it.
pub(crate) fn is_whole(index: u8) -> bool {
    WHOLE.iter().any(|(_, whole)| *whole == index)
}

/// The reverse of [`split_name`]; `None` for an index this crate does not know.
pub(crate) fn join_name(index: u8, rest: &[u8]) -> Option<Vec<u8>> {
    let known = WHOLE.iter().chain(PREFIXES.iter()).find(|(_, known)| *known == index)?;
    Some([known.0, rest].concat())
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
