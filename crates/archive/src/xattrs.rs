//! Sets of extended attributes, each distinct set kept once.
//!
//! Nearly all files of an image have one of very few sets, so a number stands for a set. Within, a set is one
//! byte string, `name length u16, value length u32, name, value` for each attribute, sorted by name: equal sets
//! are equal strings.

use std::collections::HashMap;
use std::sync::Arc;

/// Longest name.
pub const NAME_MAX: usize = 255;
/// Longest value.
pub const VALUE_MAX: usize = 65535;

/// Number of a set; 0 is the empty one.
pub type SetId = u32;

/// An attribute that no set takes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid extended attribute {name:?}: {reason}")]
pub struct XattrError {
    /// Its name.
    pub name: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

/// All sets of a tree.
#[derive(Debug, Clone)]
pub struct XattrSets {
    sets: Vec<Arc<[u8]>>,
    ids: HashMap<Arc<[u8]>, SetId>,
}

impl Default for XattrSets {
    fn default() -> Self {
        let empty: Arc<[u8]> = Arc::default();
        Self { sets: vec![empty.clone()], ids: HashMap::from([(empty, 0)]) }
    }
}

impl XattrSets {
    /// Only the empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// The number of a set, made if it is new.
    pub fn intern<N: AsRef<[u8]>, V: AsRef<[u8]>>(
        &mut self,
        xattrs: impl IntoIterator<Item = (N, V)>,
    ) -> Result<SetId, XattrError> {
        let mut pairs: Vec<(N, V)> = xattrs.into_iter().collect();
        if pairs.is_empty() {
            return Ok(0);
        }
        pairs.sort_by(|a, b| a.0.as_ref().cmp(b.0.as_ref()));
        let mut set = Vec::new();
        let mut last: Option<&[u8]> = None;
        for (name, value) in &pairs {
            let (name, value) = (name.as_ref(), value.as_ref());
            let reason = match name.len() {
                0 => Some("empty name"),
                length if length > NAME_MAX => Some("the name is longer than 255 bytes"),
                _ if value.len() > VALUE_MAX => Some("the value is longer than 65535 bytes"),
                _ if name.contains(&0) => Some("NUL in the name"),
                _ if last == Some(name) => Some("given twice"),
                _ => None,
            };
            if let Some(reason) = reason {
                return Err(XattrError { name: String::from_utf8_lossy(name).into_owned(), reason });
            }
            last = Some(name);
            set.extend_from_slice(&(name.len() as u16).to_le_bytes());
            set.extend_from_slice(&(value.len() as u32).to_le_bytes());
            set.extend_from_slice(name);
            set.extend_from_slice(value);
        }
        if let Some(id) = self.ids.get(&*set) {
            return Ok(*id);
        }
        // A set takes at least 7 bytes, so memory ends before the numbers do.
        let id = self.sets.len() as SetId;
        let set: Arc<[u8]> = set.into();
        self.sets.push(set.clone());
        self.ids.insert(set, id);
        Ok(id)
    }

    /// Names and values of a set, sorted by name.
    ///
    /// # Panics
    /// If the set is not of these.
    pub fn get(&self, id: SetId) -> impl Iterator<Item = (&[u8], &[u8])> {
        let mut set = &*self.sets[id as usize];
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

    /// How many sets there are; their numbers are below.
    pub fn len(&self) -> usize {
        self.sets.len()
    }

    /// Never: there is the empty set.
    pub const fn is_empty(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_sets_have_one_number() {
        let mut sets = XattrSets::new();
        let ab = sets.intern([("user.b", "2"), ("user.a", "")]).unwrap();
        assert_eq!(sets.intern([("user.a", ""), ("user.b", "2")]).unwrap(), ab);
        assert_eq!(sets.intern([("", ""); 0]).unwrap(), 0);
        assert_ne!(sets.intern([("user.a", "2")]).unwrap(), ab);
        let pairs: Vec<_> = sets.get(ab).collect();
        assert_eq!(pairs, [(&b"user.a"[..], &b""[..]), (b"user.b", b"2")]);
        assert_eq!((sets.get(0).count(), sets.len()), (0, 3));
        assert!(sets.intern([("user.a", "1"), ("user.a", "2")]).is_err());
        assert!(sets.intern([("", "1")]).is_err());
        assert!(sets.intern([("user.a", vec![0; 65536])]).is_err());
    }
}
