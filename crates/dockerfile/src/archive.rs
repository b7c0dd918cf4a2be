//! Telling archives from Dockerfiles by how they begin.

/// How bzip2, gzip and xz begin.
const MAGIC: [&[u8]; 3] = [b"BZh", b"\x1f\x8b\x08", b"\xfd7zXZ\0"];
const BLOCK: usize = 512;
/// Where a tar header has the sum of its bytes.
const SUM: std::ops::Range<usize> = 148..156;

/// Whether a file that begins with `head` is an archive: compressed, or a tar.
pub fn is_archive(head: &[u8]) -> bool {
    MAGIC.iter().any(|magic| head.starts_with(magic)) || is_tar(head)
}

fn is_tar(head: &[u8]) -> bool {
    let Some(block) = head.get(..BLOCK) else { return false };
    let Ok(text) = std::str::from_utf8(&block[SUM]) else { return false };
    let Ok(said) = i64::from_str_radix(text.trim_matches([' ', '\0']), 8) else { return false };
    // The sum is taken as if it were spaces itself. Some writers took bytes as signed.
    let bytes = || block.iter().enumerate().map(|(at, &byte)| if SUM.contains(&at) { b' ' } else { byte });
    let unsigned: i64 = bytes().map(i64::from).sum();
    let signed: i64 = bytes().map(|byte| i64::from(byte.cast_signed())).sum();
    said == unsigned || said == signed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archives_are_known_by_their_beginning() {
        let mut tar = vec![0_u8; 1024];
        tar[..10].copy_from_slice(b"Dockerfile");
        let sum: i64 = tar.iter().map(|&byte| i64::from(byte)).sum::<i64>() + 8 * 32;
        tar[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        assert!(is_archive(&tar));
        tar[0] = b'E';
        assert!(!is_archive(&tar));
        assert!(is_archive(b"\x1f\x8b\x08rest") && is_archive(b"BZh9") && !is_archive(b"FROM scratch\n"));
        assert!(!is_archive(&[0; 1024]) && !is_archive(b""));
    }
}
