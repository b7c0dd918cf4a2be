//! Go's file modes, as [`Stat`](crate::Stat) carries them.
//!
//! Only the nine permission bits agree with the kernel's.

use rustix::fs::FileType;

/// A directory.
pub const DIR: u32 = 1 << 31;
/// A symbolic link.
pub const SYMLINK: u32 = 1 << 27;
/// A block device, or with [`CHAR_DEVICE`] a character device.
pub const DEVICE: u32 = 1 << 26;
/// A named pipe.
pub const NAMED_PIPE: u32 = 1 << 25;
/// A socket. It is never announced: a socket travels as an empty file.
pub const SOCKET: u32 = 1 << 24;
/// Set user id.
pub const SETUID: u32 = 1 << 23;
/// Set group id.
pub const SETGID: u32 = 1 << 22;
/// A character device, beside [`DEVICE`].
pub const CHAR_DEVICE: u32 = 1 << 21;
/// The sticky bit.
pub const STICKY: u32 = 1 << 20;
/// None of the kinds above and no regular file.
pub const IRREGULAR: u32 = 1 << 19;
/// The permission bits.
pub const PERM: u32 = 0o777;
/// All bits that say what kind of file it is; none is set for a regular one.
pub const TYPE: u32 = DIR | SYMLINK | DEVICE | NAMED_PIPE | SOCKET | CHAR_DEVICE | IRREGULAR;

/// Whether `mode` is a directory's.
pub fn is_dir(mode: u32) -> bool {
    mode & DIR != 0
}

/// Whether `mode` is a symbolic link's.
pub fn is_symlink(mode: u32) -> bool {
    mode & SYMLINK != 0
}

/// Whether `mode` is a regular file's. Only these have contents that can be
/// requested; a hard link's mode is one too.
pub fn is_regular(mode: u32) -> bool {
    mode & TYPE == 0
}

/// Translates the kernel's `st_mode`.
pub fn from_unix(st_mode: u32) -> u32 {
    let mut mode = st_mode & PERM;
    mode |= match FileType::from_raw_mode(st_mode) {
        FileType::RegularFile => 0,
        FileType::Directory => DIR,
        FileType::Symlink => SYMLINK,
        FileType::Fifo => NAMED_PIPE,
        FileType::Socket => SOCKET,
        FileType::CharacterDevice => DEVICE | CHAR_DEVICE,
        FileType::BlockDevice => DEVICE,
        FileType::Unknown => IRREGULAR,
    };
    for (unix, go) in SPECIAL {
        if st_mode & unix != 0 {
            mode |= go;
        }
    }
    mode
}

/// The kernel's `st_mode` for `mode`.
pub fn to_unix(mode: u32) -> u32 {
    let kind = if mode & DIR != 0 {
        FileType::Directory
    } else if mode & SYMLINK != 0 {
        FileType::Symlink
    } else if mode & NAMED_PIPE != 0 {
        FileType::Fifo
    } else if mode & SOCKET != 0 {
        FileType::Socket
    } else if mode & CHAR_DEVICE != 0 {
        FileType::CharacterDevice
    } else if mode & DEVICE != 0 {
        FileType::BlockDevice
    } else {
        FileType::RegularFile
    };
    kind.as_raw_mode() | permissions(mode)
}

/// The twelve bits that `chmod` takes.
pub fn permissions(mode: u32) -> u32 {
    SPECIAL.iter().filter(|(_, go)| mode & go != 0).fold(mode & PERM, |bits, (unix, _)| bits | unix)
}

/// Bits beside the permissions: the kernel's, Go's.
const SPECIAL: [(u32, u32); 3] = [(0o4000, SETUID), (0o2000, SETGID), (0o1000, STICKY)];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_and_bit_survives_both_ways() {
        for unix in [0o100644, 0o040755, 0o120777, 0o010600, 0o140755, 0o020666, 0o060660, 0o104755, 0o102755, 0o041777]
        {
            assert_eq!(to_unix(from_unix(unix)), unix, "{unix:o}");
        }
        assert_eq!(from_unix(0o040755), 0x8000_01ed);
        assert_eq!(from_unix(0o020600), DEVICE | CHAR_DEVICE | 0o600);
        assert_eq!(from_unix(0o104755), SETUID | 0o755);
        assert_eq!(permissions(from_unix(0o107777)), 0o7777);
    }

    #[test]
    fn only_files_without_a_kind_can_be_requested() {
        assert!(is_regular(from_unix(0o100644)));
        assert!(is_regular(from_unix(0o104755)));
        assert!(!is_regular(from_unix(0o010644)));
    }
}
