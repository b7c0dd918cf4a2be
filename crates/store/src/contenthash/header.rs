//! What of an entry's metadata counts, and how it is hashed: the fields of a tar header without name and times.

use std::collections::BTreeMap;

use castor_fsutil::{Stat, mode};
use castor_oci::Hasher;

/// An entry's metadata as far as it counts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Header {
    /// Permissions with the set-id and sticky bits.
    pub(super) permissions: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) size: u64,
    /// Tar's letter for the type.
    pub(super) kind: u8,
    pub(super) link: Vec<u8>,
    pub(super) device: (u64, u64),
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

pub(super) const REGULAR: u8 = b'0';
pub(super) const SYMLINK: u8 = b'2';
pub(super) const CHAR_DEVICE: u8 = b'3';
pub(super) const BLOCK_DEVICE: u8 = b'4';
pub(super) const DIRECTORY: u8 = b'5';
pub(super) const FIFO: u8 = b'6';

impl Header {
    /// The header of an entry as a peer announced it.
    pub(super) fn of_stat(stat: &Stat) -> Self {
        let kind = match stat.mode & mode::TYPE {
            bits if bits & mode::DIR != 0 => DIRECTORY,
            bits if bits & mode::SYMLINK != 0 => SYMLINK,
            bits if bits & mode::CHAR_DEVICE != 0 => CHAR_DEVICE,
            bits if bits & mode::DEVICE != 0 => BLOCK_DEVICE,
            bits if bits & mode::NAMED_PIPE != 0 => FIFO,
            _ => REGULAR,
        };
        let link = if kind == SYMLINK { stat.linkname.to_vec() } else { Vec::new() };
        let xattrs = stat.xattrs.iter().map(|(name, value)| (name.clone().into_bytes(), value.to_vec()));
        Self {
            permissions: permissions(kind, mode::to_unix(stat.mode)),
            uid: stat.uid,
            gid: stat.gid,
            size: if kind == REGULAR { u64::try_from(stat.size).unwrap_or(0) } else { 0 },
            kind,
            link,
            device: (u64::try_from(stat.devmajor).unwrap_or(0), u64::try_from(stat.devminor).unwrap_or(0)),
            xattrs: xattrs.collect(),
        }
    }

    /// A hash that has seen the header; contents follow.
    pub(super) fn hasher(&self) -> Hasher {
        let mut hasher = Hasher::new();
        hasher.update(b"name");
        hasher.update(format!("mode{}uid{}gid{}size{}typeflag", self.permissions, self.uid, self.gid, self.size));
        hasher.update([self.kind]);
        hasher.update(b"linkname");
        hasher.update(&self.link);
        hasher.update(format!("unamegnamedevmajor{}devminor{}", self.device.0, self.device.1));
        for (name, value) in self.xattrs.iter().filter(|(name, _)| counts(name)) {
            hasher.update(name);
            hasher.update(value);
        }
        hasher
    }
}

/// The bits of a mode that count. A link's are not the file system's business.
pub(super) fn permissions(kind: u8, mode: u32) -> u32 {
    if kind == SYMLINK { 0o777 } else { mode & 0o7777 }
}

/// Whether an extended attribute counts: capabilities do, what else the kernel keeps for itself does not.
fn counts(name: &[u8]) -> bool {
    name == b"security.capability" || !(name.starts_with(b"security.") || name.starts_with(b"system."))
}
