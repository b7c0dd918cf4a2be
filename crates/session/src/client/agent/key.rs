//! Private keys: read in the forms in which `ssh-keygen` and `openssl` write them, and used to sign.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::rand::SystemRandom;
use ring::rsa::{KeyPair as RsaKeyPair, KeyPairComponents, PublicKeyComponents};
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm,
    Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256, RSA_PKCS1_SHA512,
};

use super::der;
use super::wire::{Reader, Writer};

/// How the private part of OpenSSH's own form begins.
const MAGIC: &[u8] = b"openssh-key-v1\0";

/// The flags of a request to sign.
const RSA_SHA2_256: u32 = 2;
const RSA_SHA2_512: u32 = 4;

/// The curves' identifiers, encoded.
const P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const P384: &[u8] = &[0x2b, 0x81, 0x04, 0x00, 0x22];

/// A key that cannot be used. The messages are those that BuildKit's clients give, where they give one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// There is none in the text.
    #[error("ssh: no key found")]
    NoKey,
    /// It needs a passphrase.
    #[error("ssh: this private key is passphrase protected; give it to an agent")]
    Encrypted,
    /// It is of a kind that is not there.
    #[error("ssh: unsupported key type {0:?}")]
    Unsupported(String),
    /// It is malformed, or too weak.
    #[error("ssh: {kind} key: {reason}")]
    Malformed {
        /// Its kind.
        kind: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

/// A private key with its public half.
pub struct Key {
    pair: Pair,
    public: Vec<u8>,
    comment: String,
}

enum Pair {
    Ed25519(Ed25519KeyPair),
    Curve(EcdsaKeyPair, &'static Curve),
    Rsa(Box<RsaKeyPair>),
}

struct Curve {
    name: &'static str,
    algorithm: &'static str,
    signing: &'static EcdsaSigningAlgorithm,
}

static CURVES: [(&[u8], Curve); 2] = [
    (P256, Curve { name: "nistp256", algorithm: "ecdsa-sha2-nistp256", signing: &ECDSA_P256_SHA256_FIXED_SIGNING }),
    (P384, Curve { name: "nistp384", algorithm: "ecdsa-sha2-nistp384", signing: &ECDSA_P384_SHA384_FIXED_SIGNING }),
];

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Key").field("comment", &self.comment).finish_non_exhaustive()
    }
}

impl Key {
    /// Reads a private key that no passphrase protects.
    pub fn parse(text: &[u8]) -> Result<Self, KeyError> {
        let (label, bytes) = pem(text)?;
        let malformed = |kind| move |error: ring::error::KeyRejected| malformed(kind, &error);
        match label.as_str() {
            "OPENSSH PRIVATE KEY" => openssh(&bytes),
            "RSA PRIVATE KEY" => Ok(Self::rsa(RsaKeyPair::from_der(&bytes).map_err(malformed("RSA"))?, "")),
            "EC PRIVATE KEY" => {
                let key = der::curve_key(&bytes).ok_or_else(|| broken("elliptic curve"))?;
                let curve = CURVES.iter().find(|(id, _)| *id == key.curve).map(|(_, curve)| curve);
                let curve = curve.ok_or_else(|| KeyError::Unsupported("an elliptic curve of another kind".into()))?;
                Self::curve(curve, key.private, key.public, "")
            }
            "PRIVATE KEY" => pkcs8(&bytes),
            "ENCRYPTED PRIVATE KEY" => Err(KeyError::Encrypted),
            other => Err(KeyError::Unsupported(other.to_owned())),
        }
    }

    /// The public key, as the SSH protocol has it.
    pub fn public(&self) -> &[u8] {
        &self.public
    }

    /// What its owner calls it.
    pub fn comment(&self) -> &str {
        &self.comment
    }

    fn ed25519(pair: Ed25519KeyPair, comment: &str) -> Self {
        let mut public = Writer::default();
        public.text(b"ssh-ed25519");
        public.text(pair.public_key().as_ref());
        Self { pair: Pair::Ed25519(pair), public: public.into_bytes(), comment: comment.to_owned() }
    }

    fn curve(curve: &'static Curve, private: &[u8], public: &[u8], comment: &str) -> Result<Self, KeyError> {
        // The number is as long as the curve's order.
        let length = (public.len().max(1) - 1) / 2;
        let mut scalar = vec![0; length.saturating_sub(private.len())];
        scalar.extend(private);
        let pair = EcdsaKeyPair::from_private_key_and_public_key(curve.signing, &scalar, public, &SystemRandom::new())
            .map_err(|error| malformed(curve.name, &error))?;
        Ok(Self::of_curve(pair, curve, comment))
    }

    fn of_curve(pair: EcdsaKeyPair, curve: &'static Curve, comment: &str) -> Self {
        let mut public = Writer::default();
        public.text(curve.algorithm.as_bytes());
        public.text(curve.name.as_bytes());
        public.text(pair.public_key().as_ref());
        Self { pair: Pair::Curve(pair, curve), public: public.into_bytes(), comment: comment.to_owned() }
    }

    fn rsa(pair: RsaKeyPair, comment: &str) -> Self {
        let components = PublicKeyComponents::<Vec<u8>>::from(pair.public());
        let mut public = Writer::default();
        public.text(b"ssh-rsa");
        public.integer(&components.e);
        public.integer(&components.n);
        Self { pair: Pair::Rsa(Box::new(pair)), public: public.into_bytes(), comment: comment.to_owned() }
    }

    /// A signature with the name of its algorithm; `None` where the key cannot make what is asked for: RSA signs with
    /// SHA-2 only, as every server of today takes it.
    pub fn sign(&self, data: &[u8], flags: u32) -> Option<Vec<u8>> {
        let random = SystemRandom::new();
        let (algorithm, signature) = match &self.pair {
            Pair::Ed25519(pair) => ("ssh-ed25519", pair.sign(data).as_ref().to_vec()),
            Pair::Curve(pair, curve) => {
                let signature = pair.sign(&random, data).ok()?;
                let (r, s) = signature.as_ref().split_at(signature.as_ref().len() / 2);
                let mut numbers = Writer::default();
                numbers.integer(r);
                numbers.integer(s);
                (curve.algorithm, numbers.into_bytes())
            }
            Pair::Rsa(pair) => {
                let (name, padding): (_, &dyn ring::signature::RsaEncoding) = match flags {
                    flags if flags & RSA_SHA2_512 != 0 => ("rsa-sha2-512", &RSA_PKCS1_SHA512),
                    flags if flags & RSA_SHA2_256 != 0 => ("rsa-sha2-256", &RSA_PKCS1_SHA256),
                    _ => return None,
                };
                let mut signature = vec![0; pair.public().modulus_len()];
                pair.sign(padding, &random, data, &mut signature).ok()?;
                (name, signature)
            }
        };
        let mut writer = Writer::default();
        writer.text(algorithm.as_bytes());
        writer.text(&signature);
        Some(writer.into_bytes())
    }
}

fn malformed(kind: &'static str, reason: &dyn std::fmt::Display) -> KeyError {
    KeyError::Malformed { kind, reason: reason.to_string() }
}

fn broken(kind: &'static str) -> KeyError {
    malformed(kind, &"it is malformed")
}

/// The label and the bytes of the first block of a PEM text.
fn pem(text: &[u8]) -> Result<(String, Vec<u8>), KeyError> {
    let text = String::from_utf8_lossy(text);
    let mut lines = text.lines().map(str::trim);
    let begin = lines.by_ref().find_map(|line| line.strip_prefix("-----BEGIN ")?.strip_suffix("-----"));
    let label = begin.ok_or(KeyError::NoKey)?;
    let end = format!("-----END {label}-----");
    let mut encoded = String::new();
    for line in lines {
        if line == end {
            let bytes = STANDARD.decode(&encoded).map_err(|_| KeyError::NoKey)?;
            return Ok((label.to_owned(), bytes));
        }
        match line.split_once(':') {
            Some(("Proc-Type", value)) if value.contains("ENCRYPTED") => return Err(KeyError::Encrypted),
            Some(_) => {}
            None => encoded.push_str(line),
        }
    }
    Err(KeyError::NoKey)
}

fn pkcs8(bytes: &[u8]) -> Result<Key, KeyError> {
    if let Ok(pair) = Ed25519KeyPair::from_pkcs8_maybe_unchecked(bytes) {
        return Ok(Key::ed25519(pair, ""));
    }
    for (_, curve) in &CURVES {
        if let Ok(pair) = EcdsaKeyPair::from_pkcs8(curve.signing, bytes, &SystemRandom::new()) {
            return Ok(Key::of_curve(pair, curve, ""));
        }
    }
    RsaKeyPair::from_pkcs8(bytes).map(|pair| Key::rsa(pair, "")).map_err(|error| malformed("PKCS#8", &error))
}

/// OpenSSH's own form.
fn openssh(bytes: &[u8]) -> Result<Key, KeyError> {
    let malformed = || broken("OpenSSH");
    let mut reader = Reader::new(bytes.strip_prefix(MAGIC).ok_or_else(malformed)?);
    let cipher = reader.text().ok_or_else(malformed)?;
    let derivation = reader.text().ok_or_else(malformed)?;
    if cipher != b"none" || derivation != b"none" {
        return Err(KeyError::Encrypted);
    }
    let (options, count) = (reader.text().ok_or_else(malformed)?, reader.number().ok_or_else(malformed)?);
    if !options.is_empty() || count != 1 {
        return Err(malformed());
    }
    reader.text().ok_or_else(malformed)?;
    let mut reader = Reader::new(reader.text().ok_or_else(malformed)?);
    if reader.number().ok_or_else(malformed)? != reader.number().ok_or_else(malformed)? {
        return Err(malformed());
    }
    let kind = reader.text().ok_or_else(malformed)?;
    private(kind, &mut reader).ok_or_else(malformed)?
}

/// The fields of a private key of this kind, and its comment; `None` if they are malformed.
fn private(kind: &[u8], reader: &mut Reader<'_>) -> Option<Result<Key, KeyError>> {
    let comment = |reader: &mut Reader<'_>| {
        let comment = String::from_utf8_lossy(reader.text()?).into_owned();
        // What fills the block up counts from one.
        reader.rest().iter().zip(1..).all(|(&byte, number)| byte == number).then_some(comment)
    };
    if kind == b"ssh-ed25519" {
        let (public, private) = (reader.text()?, reader.text()?);
        let comment = comment(reader)?;
        let pair = Ed25519KeyPair::from_seed_and_public_key(private.get(..32)?, public);
        return Some(match pair {
            Ok(pair) => Ok(Key::ed25519(pair, &comment)),
            Err(error) => Err(malformed("Ed25519", &error)),
        });
    }
    if let Some((_, curve)) = CURVES.iter().find(|(_, curve)| curve.algorithm.as_bytes() == kind) {
        let (name, public, private) = (reader.text()?, reader.text()?, reader.integer()?);
        let comment = comment(reader)?;
        return (name == curve.name.as_bytes()).then(|| Key::curve(curve, private, public, &comment));
    }
    if kind == b"ssh-rsa" {
        let (n, e, d) = (reader.integer()?, reader.integer()?, reader.integer()?);
        let (inverse, p, q) = (reader.integer()?, reader.integer()?, reader.integer()?);
        let comment = comment(reader)?;
        let (first, second) = (remainder(d, &predecessor(p)?)?, remainder(d, &predecessor(q)?)?);
        let components = KeyPairComponents {
            public_key: PublicKeyComponents { n, e },
            d,
            p,
            q,
            dP: &first[..],
            dQ: &second[..],
            qInv: inverse,
        };
        return Some(match RsaKeyPair::from_components(&components) {
            Ok(pair) => Ok(Key::rsa(pair, &comment)),
            Err(error) => Err(malformed("RSA", &error)),
        });
    }
    Some(Err(KeyError::Unsupported(String::from_utf8_lossy(kind).into_owned())))
}

/// One less, of an odd number.
fn predecessor(number: &[u8]) -> Option<Vec<u8>> {
    let mut digits = number.to_vec();
    let last = digits.last_mut().filter(|last| **last & 1 == 1)?;
    *last -= 1;
    Some(digits)
}

/// What is left of a division of two numbers, given by their digits to the base 256; `None` if they are longer than keys
/// are, or there is no such thing. It is the key's owner who runs this, once: how long it takes tells nobody anything.
fn remainder(number: &[u8], divisor: &[u8]) -> Option<Vec<u8>> {
    const LONGEST: usize = 2048;
    if number.len() > LONGEST || divisor.len() > LONGEST || divisor.iter().all(|&digit| digit == 0) {
        return None;
    }
    // A digit more: the remainder is doubled before it is compared.
    let mut wide = vec![0];
    wide.extend(divisor);
    let mut left = vec![0u8; wide.len()];
    for bit in number.iter().flat_map(|byte| (0..8).rev().map(move |place| byte >> place & 1)) {
        let mut carry = bit;
        for digit in left.iter_mut().rev() {
            let high = *digit >> 7;
            *digit = *digit << 1 | carry;
            carry = high;
        }
        if left >= wide {
            let mut borrow = false;
            for (digit, &other) in left.iter_mut().zip(&wide).rev() {
                let (difference, first) = digit.overflowing_sub(other);
                let (difference, second) = difference.overflowing_sub(u8::from(borrow));
                *digit = difference;
                borrow = first || second;
            }
        }
    }
    let zeros = left.iter().take_while(|&&digit| digit == 0).count();
    Some(left[zeros..].to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ring::signature::{
        ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256,
        RSA_PKCS1_2048_8192_SHA512, RsaPublicKeyComponents, UnparsedPublicKey, VerificationAlgorithm,
    };

    macro_rules! key {
        ($name:literal) => {
            (
                $name,
                &include_bytes!(concat!("../../../testdata/keys/", $name))[..],
                include_str!(concat!("../../../testdata/keys/", $name, ".pub")),
            )
        };
    }

    /// Checks a signature with the public key as the protocol has it.
    fn verify(public: &[u8], data: &[u8], signature: &[u8]) {
        let (mut public, mut signature) = (Reader::new(public), Reader::new(signature));
        let (kind, algorithm) = (public.text().unwrap(), signature.text().unwrap());
        let raw = signature.text().unwrap();
        match kind {
            b"ssh-ed25519" => UnparsedPublicKey::new(&ED25519, public.text().unwrap()).verify(data, raw).unwrap(),
            b"ssh-rsa" => {
                let (e, n) = (public.integer().unwrap(), public.integer().unwrap());
                let with = match algorithm {
                    b"rsa-sha2-256" => &RSA_PKCS1_2048_8192_SHA256,
                    b"rsa-sha2-512" => &RSA_PKCS1_2048_8192_SHA512,
                    other => panic!("{other:?}"),
                };
                RsaPublicKeyComponents { n, e }.verify(with, data, raw).unwrap();
            }
            curve => {
                assert_eq!(curve, algorithm);
                public.text().unwrap();
                let point = public.text().unwrap();
                let mut numbers = Reader::new(raw);
                let mut fixed = Vec::new();
                for _ in 0..2 {
                    let number = numbers.integer().unwrap();
                    fixed.extend(std::iter::repeat_n(0, (point.len() - 1) / 2 - number.len()));
                    fixed.extend(number);
                }
                let with: &'static dyn VerificationAlgorithm = match curve {
                    b"ecdsa-sha2-nistp256" => &ECDSA_P256_SHA256_FIXED,
                    _ => &ECDSA_P384_SHA384_FIXED,
                };
                UnparsedPublicKey::new(with, point).verify(data, &fixed).unwrap();
            }
        }
    }

    #[test]
    fn keys_of_all_kinds_sign() {
        for (name, text, public) in [
            key!("ed25519"),
            key!("ecdsa256"),
            key!("ecdsa384"),
            key!("rsa"),
            key!("rsa-pkcs1"),
            key!("rsa-pkcs8"),
            key!("ecdsa256-sec1"),
            key!("ecdsa256-pkcs8"),
            key!("ed25519-pkcs8"),
        ] {
            let key = Key::parse(text).unwrap_or_else(|error| panic!("{name}: {error}"));
            let mut fields = public.split_whitespace().skip(1);
            assert_eq!(STANDARD.encode(key.public()), fields.next().unwrap(), "{name}");
            for flags in [RSA_SHA2_256, RSA_SHA2_512] {
                verify(key.public(), b"data", &key.sign(b"data", flags).unwrap());
            }
            // SHA-1 is not for signatures any more.
            assert_eq!(key.sign(b"data", 0).is_none(), name.starts_with("rsa"), "{name}");
        }
    }

    #[test]
    fn comments_are_kept() {
        let (_, text, _) = key!("rsa");
        assert_eq!(Key::parse(text).unwrap().comment(), "user@example.com");
    }

    #[test]
    fn what_is_no_key_is_told() {
        let wrong = |text: &[u8]| Key::parse(text).unwrap_err();
        assert_eq!(wrong(b"").to_string(), "ssh: no key found");
        assert_eq!(wrong(b"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n"), KeyError::NoKey);
        assert_eq!(wrong(include_bytes!("../../../testdata/keys/encrypted")), KeyError::Encrypted);
        let old = b"-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nAAAA\n-----END RSA PRIVATE KEY-----\n";
        assert_eq!(wrong(old), KeyError::Encrypted);
        assert_eq!(
            wrong(include_bytes!("../../../testdata/keys/ecdsa521")).to_string(),
            "ssh: unsupported key type \"ecdsa-sha2-nistp521\""
        );
        let weak = wrong(include_bytes!("../../../testdata/keys/rsa1024"));
        assert!(matches!(weak, KeyError::Malformed { kind: "RSA", .. }), "{weak}");
    }

    #[test]
    fn no_damage_ends_the_program() {
        for (_, text, _) in [key!("ed25519"), key!("ecdsa256"), key!("rsa"), key!("ecdsa256-sec1")] {
            let (label, bytes) = pem(text).unwrap();
            // Long keys are slow to read: a place here and there will do.
            for place in (0..bytes.len()).step_by(1 + bytes.len() / 200) {
                let mut damaged = bytes.clone();
                damaged[place] ^= 0x80;
                let wrap = |bytes: &[u8]| {
                    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", STANDARD.encode(bytes))
                };
                // Some of it is only a comment.
                let _ = Key::parse(wrap(&damaged).as_bytes());
                assert!(Key::parse(wrap(&bytes[..place]).as_bytes()).is_err());
            }
        }
    }

    #[test]
    fn remainders() {
        let of = |number: u64, divisor: u64| {
            let left = remainder(&number.to_be_bytes(), &divisor.to_be_bytes()).unwrap();
            left.iter().fold(0, |value, &digit| value << 8 | u64::from(digit))
        };
        for (number, divisor) in [(0, 1), (7, 7), (1 << 40, 255), (u64::MAX, 3 << 62), (u64::MAX, u64::MAX - 1), (5, 9)]
        {
            assert_eq!(of(number, divisor), number % divisor);
        }
        assert_eq!(remainder(&[1], &[0]), None);
        assert_eq!(predecessor(&[1, 1]), Some(vec![1, 0]));
        assert_eq!(predecessor(&[]), None);
    }
}
