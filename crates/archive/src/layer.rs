//! Conventions of layer tars: whiteouts, opaque directories, attributes that no layer may bring.

/// Prefix of a whiteout's last component.
pub const WHITEOUT_PREFIX: &[u8] = b".wh.";
/// Prefix of AUFS's own files, which are no whiteouts.
pub const WHITEOUT_META_PREFIX: &[u8] = b".wh..wh.";
/// The entry that makes its directory opaque.
pub const WHITEOUT_OPAQUE: &[u8] = b".wh..wh..opq";

/// What the last component of an entry's name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whiteout<'a> {
    /// An ordinary name.
    No,
    /// Hides this name of the layers below.
    Name(&'a [u8]),
    /// Hides all that the layers below have in this directory.
    Opaque,
    /// AUFS's bookkeeping (`.wh..wh.plnk` and the like): to be left out.
    Metadata,
    /// A whiteout of no possible name: `.wh.` alone, of `.` or of `..`.
    Malformed,
}

/// Says what the last component of an entry's name stands for.
pub fn whiteout(name: &[u8]) -> Whiteout<'_> {
    if name == WHITEOUT_OPAQUE {
        return Whiteout::Opaque;
    }
    if name.starts_with(WHITEOUT_META_PREFIX) {
        return Whiteout::Metadata;
    }
    match name.strip_prefix(WHITEOUT_PREFIX) {
        None => Whiteout::No,
        Some(b"" | b"." | b"..") => Whiteout::Malformed,
        Some(hidden) => Whiteout::Name(hidden),
    }
}

/// Whether an extended attribute steers overlayfs. One that a layer brings must never reach a lower: the
/// kernel obeys it, and a layer could so show files that are not its own.
pub fn is_overlay_xattr(name: &[u8]) -> bool {
    name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_whiteouts_apart() {
        for (name, want) in [
            (&b"a"[..], Whiteout::No),
            (b".wh", Whiteout::No),
            (b"x.wh.a", Whiteout::No),
            (b".wh.a", Whiteout::Name(b"a")),
            (b".wh..a", Whiteout::Name(b".a")),
            (b".wh..wh..opq", Whiteout::Opaque),
            (b".wh..wh.plnk", Whiteout::Metadata),
            (b".wh.", Whiteout::Malformed),
            (b".wh..", Whiteout::Malformed),
            (b".wh...", Whiteout::Malformed),
            (b".wh....", Whiteout::Name(b"...")),
        ] {
            assert_eq!(whiteout(name), want, "{}", name.escape_ascii());
        }
    }
}
