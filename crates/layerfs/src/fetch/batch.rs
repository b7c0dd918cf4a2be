//! From a body to batches: members of which all bytes have come, worked on together.

use bytes::{Bytes, BytesMut};
use tokio::sync::{OwnedSemaphorePermit, SemaphorePermit};

use super::members::{Member, Members};
use super::{BATCH, SPAN};
use crate::source::FetchError;

/// A body that is being read: what of it is held, from byte `at` of the blob on, and the members that are still to come.
pub(super) struct Reading<'a> {
    pub at: u64,
    pub held: BytesMut,
    pub left: &'a [u32],
}

impl Reading<'_> {
    /// Adds the next bytes of the body.
    pub(super) fn take(&mut self, piece: &[u8], members: &Members) {
        if self.held.capacity() - self.held.len() < piece.len() {
            // All of a large member at once, or it would be copied again and again.
            let wanted = self.left.first().map_or(0, |next| members.get(*next).end.saturating_sub(self.at));
            let more = wanted.min(SPAN).saturating_sub(self.held.len() as u64) as usize;
            self.held.reserve(more.max(piece.len()));
        }
        self.held.extend_from_slice(piece);
    }

    /// The next members of which all bytes are held, with what lies between them, or bytes that belong to none.
    pub(super) fn batch(&mut self, members: &Members) -> Result<Option<Batch>, FetchError> {
        let held = self.at + self.held.len() as u64;
        let (mut end, mut count) = (self.at, 0);
        for &number in self.left {
            let member = members.get(number);
            if member.start < end {
                return Err(FetchError::new("members of the layer overlap"));
            }
            if member.end > held || (count > 0 && member.end - self.at > BATCH as u64) {
                break;
            }
            (end, count) = (member.end, count + 1);
        }
        if count == 0 {
            // What lies before the next member is of no use to it.
            let next = self.left.first().map_or(u64::MAX, |next| members.get(*next).start);
            end = next.min(held).max(self.at);
            if end == self.at {
                return Ok(None);
            }
        }
        let (batch, left) = self.left.split_at(count);
        let bytes = self.held.split_to((end - self.at) as usize).freeze();
        let batch = Batch { start: self.at, bytes, members: batch.to_vec() };
        (self.at, self.left) = (end, left);
        Ok(Some(batch))
    }
}

/// What working on a batch takes; given back when that is done, however it ends.
pub(super) struct Means {
    /// Of what nobody waits for.
    #[expect(dead_code, reason = "held")]
    pub turn: Option<SemaphorePermit<'static>>,
    #[expect(dead_code, reason = "held")]
    pub memory: OwnedSemaphorePermit,
}

/// Members, and bytes of the blob from `start` on that they lie in.
pub(super) struct Batch {
    pub start: u64,
    pub bytes: Bytes,
    pub members: Vec<u32>,
}

impl Batch {
    /// The bytes of a member of it.
    pub(super) fn of(&self, member: Member) -> &[u8] {
        &self.bytes[(member.start - self.start) as usize..(member.end - self.start) as usize]
    }
}
