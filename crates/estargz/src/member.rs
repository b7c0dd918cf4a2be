//! One gzip member in memory (RFC 1952), inflated a piece at a time.
//!
//! A layer has as many members as it has files: here none costs more than it must. The decompressor's state is used again by
//! the next member of the same thread, and its output goes where it is wanted, without a buffer in between. The member's CRC
//! is not looked at: chunks have digests.

use std::cell::Cell;
use std::io;

use flate2::{Decompress, FlushDecompress, Status};

const MAGIC: [u8; 3] = [0x1f, 0x8b, 8];
/// Magic, flags, time, extra flags, system.
const HEADER: usize = 10;
const HEADER_CRC: u8 = 1 << 1;
const EXTRA: u8 = 1 << 2;
const NAME: u8 = 1 << 3;
const COMMENT: u8 = 1 << 4;
/// Least room that is made for output.
const ROOM: usize = 32 << 10;

thread_local! {
    /// A state that nobody uses.
    static SPARE: Cell<Option<Decompress>> = const { Cell::new(None) };
}

/// A member that is being inflated.
pub(crate) struct GzipMember<'a> {
    /// What is left of the input.
    input: &'a [u8],
    state: Option<Decompress>,
    ended: bool,
}

impl<'a> GzipMember<'a> {
    /// Reads the header of the member that `input` begins with.
    pub(crate) fn open(input: &'a [u8]) -> io::Result<Self> {
        let input = body(input)?;
        let state = match SPARE.take() {
            Some(mut state) => {
                state.reset(false);
                state
            }
            None => Decompress::new(false),
        };
        Ok(Self { input, state: Some(state), ended: false })
    }

    /// Appends up to `count` bytes to `out`: fewer only if the member or the input ends.
    pub(crate) fn read(&mut self, count: u64, out: &mut Vec<u8>) -> io::Result<()> {
        let Some(state) = &mut self.state else { return Ok(()) };
        let mut left = count;
        while left > 0 && !self.ended {
            let free = out.capacity() - out.len();
            if free == 0 {
                // As much again, but not all of a size that only a table of contents claims.
                let more = out.len().max(ROOM);
                out.reserve_exact(usize::try_from(left).unwrap_or(usize::MAX).min(more));
                continue;
            }
            let (taken, made) = (state.total_in(), state.total_out());
            let status = if free as u64 <= left {
                state.decompress_vec(self.input, out, FlushDecompress::None)
            } else {
                // There is more room than may be used.
                let begin = out.len();
                out.resize(begin + left as usize, 0);
                let status = state.decompress(self.input, &mut out[begin..], FlushDecompress::None);
                out.truncate(begin + (state.total_out() - made) as usize);
                status
            };
            let status = status.map_err(|_| corrupt("corrupt deflate stream"))?;
            let (taken, made) = (state.total_in() - taken, state.total_out() - made);
            self.input = &self.input[taken as usize..];
            left -= made;
            match status {
                Status::StreamEnd => self.ended = true,
                // Nothing moves any more: the input has ended.
                _ if taken == 0 && made == 0 => return Ok(()),
                Status::Ok | Status::BufError => {}
            }
        }
        Ok(())
    }
}

impl Drop for GzipMember<'_> {
    fn drop(&mut self) {
        SPARE.set(self.state.take());
    }
}

/// What follows the header that `input` begins with.
fn body(input: &[u8]) -> io::Result<&[u8]> {
    let (header, mut rest) = input.split_at_checked(HEADER).ok_or(io::ErrorKind::UnexpectedEof)?;
    if header[..3] != MAGIC {
        return Err(corrupt("invalid gzip header"));
    }
    let flags = header[3];
    if flags & EXTRA != 0 {
        let (length, after) = rest.split_first_chunk::<2>().ok_or(io::ErrorKind::UnexpectedEof)?;
        rest = after.get(usize::from(u16::from_le_bytes(*length))..).ok_or(io::ErrorKind::UnexpectedEof)?;
    }
    for text in [NAME, COMMENT] {
        if flags & text != 0 {
            let end = rest.iter().position(|byte| *byte == 0).ok_or(io::ErrorKind::UnexpectedEof)?;
            rest = &rest[end + 1..];
        }
    }
    if flags & HEADER_CRC != 0 {
        rest = rest.get(2..).ok_or(io::ErrorKind::UnexpectedEof)?;
    }
    Ok(rest)
}

fn corrupt(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::{Compression, GzBuilder};

    use super::*;

    fn member(data: &[u8], builder: GzBuilder) -> Vec<u8> {
        let mut writer = builder.write(Vec::new(), Compression::default());
        writer.write_all(data).unwrap();
        writer.finish().unwrap()
    }

    fn data() -> Vec<u8> {
        (0..200_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 25) as u8).collect()
    }

    fn read(input: &[u8], count: u64) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        GzipMember::open(input)?.read(count, &mut out)?;
        Ok(out)
    }

    #[test]
    fn headers_of_every_kind_are_passed_over() {
        let data = data();
        let builders =
            [GzBuilder::new(), GzBuilder::new().extra(vec![7; 300]).filename("name").comment("comment").mtime(1)];
        for builder in builders {
            let mut input = member(&data, builder);
            // What follows belongs to the next member.
            input.extend_from_slice(b"\x1f\x8b\x08 and so on");
            assert_eq!(read(&input, data.len() as u64).unwrap(), data);
            assert_eq!(read(&input, data.len() as u64 + 1).unwrap(), data, "a member's end is an end");
        }
        // With a CRC of the header, which is not looked at.
        let plain = member(&data, GzBuilder::new());
        let mut input = plain[..HEADER].to_vec();
        input[3] |= HEADER_CRC;
        input.extend_from_slice(&[1, 2]);
        input.extend_from_slice(&plain[HEADER..]);
        assert_eq!(read(&input, data.len() as u64).unwrap(), data);
    }

    #[test]
    fn pieces_of_any_size_make_the_whole() {
        let data = data();
        let input = member(&data, GzBuilder::new());
        for piece in [1, 7, 4096, 70_000] {
            let mut member = GzipMember::open(&input).unwrap();
            let mut out = Vec::with_capacity(9000);
            while out.len() < data.len() {
                let before = out.len();
                member.read(piece, &mut out).unwrap();
                assert_eq!(out.len() - before, (data.len() - before).min(piece as usize));
            }
            assert_eq!(out, data);
        }
    }

    #[test]
    fn a_member_that_is_cut_short_or_wrong_is_no_member() {
        let data = data();
        let input = member(&data, GzBuilder::new());
        for end in 0..HEADER {
            assert_eq!(read(&input[..end], 1).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        }
        let half = read(&input[..input.len() / 2], data.len() as u64).unwrap();
        assert!(!half.is_empty() && half.len() < data.len() && data.starts_with(&half));
        assert_eq!(read(b"not a gzip member", 1).unwrap_err().to_string(), "invalid gzip header");
        let mut wrong = input.clone();
        wrong[HEADER..].fill(0xff);
        assert_eq!(read(&wrong, 1).unwrap_err().to_string(), "corrupt deflate stream");
        // The state that failed does not show in the next member of the thread.
        assert_eq!(read(&input, data.len() as u64).unwrap(), data);
    }
}
