//! As much of DER as a private key of an elliptic curve in the form of SEC 1 needs.

const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
const OBJECT: u8 = 0x06;
const SEQUENCE: u8 = 0x30;
/// Parameters and public key, of which each is in one of its own.
const PARAMETERS: u8 = 0xa0;
const PUBLIC: u8 = 0xa1;

/// A private key of an elliptic curve.
#[derive(Debug, PartialEq, Eq)]
pub struct CurveKey<'a> {
    /// The identifier of its curve, encoded.
    pub curve: &'a [u8],
    /// The private number.
    pub private: &'a [u8],
    /// The public point.
    pub public: &'a [u8],
}

/// Reads such a key; all its parts must be there.
pub fn curve_key(bytes: &[u8]) -> Option<CurveKey<'_>> {
    let (content, rest) = element(bytes, SEQUENCE)?;
    let (version, content) = element(content, INTEGER)?;
    let (private, content) = element(content, OCTET_STRING)?;
    let (parameters, content) = element(content, PARAMETERS)?;
    let (curve, _) = element(parameters, OBJECT)?;
    let (public, _) = element(content, PUBLIC)?;
    let (public, _) = element(public, BIT_STRING)?;
    // All bits of the last byte count.
    let (&unused, public) = public.split_first()?;
    (rest.is_empty() && version == [1] && unused == 0).then_some(CurveKey { curve, private, public })
}

/// The content of the element with this tag, and what follows it.
fn element(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&found, rest) = bytes.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81 | 0x82 => {
            let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (digits.iter().fold(0, |length, &digit| length << 8 | usize::from(digit)), rest)
        }
        _ => return None,
    };
    (found == tag).then(|| rest.split_at_checked(length)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements() {
        assert_eq!(element(&[2, 1, 5, 9], INTEGER), Some((&[5][..], &[9][..])));
        assert_eq!(element(&[2, 0x81, 1, 5], INTEGER), Some((&[5][..], &[][..])));
        for malformed in [&[][..], &[2], &[2, 2, 1], &[2, 0x80], &[2, 0x83, 0, 0, 1, 5], &[2, 0x82, 1], &[3, 1, 5]] {
            assert_eq!(element(malformed, INTEGER), None, "{malformed:?}");
        }
    }

    #[test]
    fn keys() {
        let mut bytes = vec![0x30, 16, 2, 1, 1, 4, 1, 7, 0xa0, 3, 6, 1, 42, 0xa1, 4, 3, 2, 0, 9];
        assert_eq!(curve_key(&bytes), None, "the length is wrong");
        bytes[1] = 17;
        assert_eq!(curve_key(&bytes), Some(CurveKey { curve: &[42], private: &[7], public: &[9] }));
        bytes[17] = 3;
        assert_eq!(curve_key(&bytes), None, "bits that do not count");
    }
}
