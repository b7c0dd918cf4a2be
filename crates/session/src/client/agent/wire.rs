//! Numbers and texts in the form of the SSH protocol.

/// Reads them from bytes.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// What was not read.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(count)?;
        self.rest = rest;
        Some(taken)
    }

    pub fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|byte| byte[0])
    }

    pub fn number(&mut self) -> Option<u32> {
        self.take(4)?.try_into().ok().map(u32::from_be_bytes)
    }

    /// Bytes with their length before them.
    pub fn text(&mut self) -> Option<&'a [u8]> {
        let length = self.number()?;
        self.take(usize::try_from(length).ok()?)
    }

    /// A number of any size that is not negative, without leading zeros.
    pub fn integer(&mut self) -> Option<&'a [u8]> {
        let bytes = self.text()?;
        let zeros = bytes.iter().take_while(|&&byte| byte == 0).count();
        (bytes.first().is_none_or(|first| first & 0x80 == 0)).then_some(&bytes[zeros..])
    }
}

/// Makes bytes of them.
#[derive(Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    pub fn byte(&mut self, byte: u8) {
        self.bytes.push(byte);
    }

    pub fn number(&mut self, number: u32) {
        self.bytes.extend(number.to_be_bytes());
    }

    /// Bytes with their length before them.
    pub fn text(&mut self, text: &[u8]) {
        self.number(u32::try_from(text.len()).unwrap_or(u32::MAX));
        self.bytes.extend(text);
    }

    /// A number that is not negative, from its digits to the base 256.
    pub fn integer(&mut self, digits: &[u8]) {
        let zeros = digits.iter().take_while(|&&digit| digit == 0).count();
        let digits = &digits[zeros..];
        let mut bytes = Vec::with_capacity(digits.len() + 1);
        if digits.first().is_some_and(|first| first & 0x80 != 0) {
            bytes.push(0);
        }
        bytes.extend(digits);
        self.text(&bytes);
    }

    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_directions() {
        let mut writer = Writer::default();
        writer.byte(7);
        writer.text(b"abc");
        writer.integer(&[0, 0, 0x80, 1]);
        writer.integer(&[]);
        let bytes = writer.into_bytes();
        assert_eq!(bytes, [7, 0, 0, 0, 3, b'a', b'b', b'c', 0, 0, 0, 3, 0, 0x80, 1, 0, 0, 0, 0]);
        let mut reader = Reader::new(&bytes);
        assert_eq!((reader.byte(), reader.text()), (Some(7), Some(&b"abc"[..])));
        assert_eq!((reader.integer(), reader.integer()), (Some(&[0x80, 1][..]), Some(&[][..])));
        assert_eq!((reader.rest(), reader.byte()), (&[][..], None));
    }

    #[test]
    fn what_is_cut_short_is_nothing() {
        assert_eq!(Reader::new(&[0, 0, 0, 4, 1]).text(), None);
        assert_eq!(Reader::new(&[0, 0, 0]).number(), None);
        assert_eq!(Reader::new(&[0xff; 8]).text(), None);
        assert_eq!(Reader::new(&[0, 0, 0, 1, 0x80]).integer(), None);
    }
}
