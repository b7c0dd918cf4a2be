//! What the daemon and the process that serves trees say to each other: one JSON value a packet, with descriptors.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, Shutdown, SocketFlags, SocketType,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The longest message.
const LONGEST: usize = 16 << 10;
/// The most descriptors that come with one.
const DESCRIPTORS: usize = 2;
/// The longest text in a message, in bytes.
const TEXT: usize = 4 << 10;

/// What the daemon says.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Order {
    /// A tree is going to be served: its device and its image come along, its layers follow.
    Tree {
        /// Names it from now on.
        tree: u64,
        /// The longest that a read of it may wait, in milliseconds.
        patience: u64,
    },
    /// The next layer of a tree, in the order of the image's devices: its data comes along.
    Layer {
        tree: u64,
        /// What the daemon calls it.
        layer: u64,
        /// Whether all its bytes are here.
        complete: bool,
    },
    /// All of the tree was said.
    Serve { tree: u64 },
    /// The answer to a [`Report::Need`].
    Answer {
        read: u64,
        /// Whether what was needed is here.
        here: bool,
        /// Whether all of the layer is.
        complete: bool,
    },
    /// To the keeper: a tree is mounted, and its device comes along.
    Keep { tree: u64 },
    /// To the keeper: a tree is not mounted any more.
    Forget { tree: u64 },
    /// To the keeper: the server has ended, and what is asked of it is to be answered.
    Mourn,
    /// To the keeper: note was taken of a [`Report::Lost`].
    Noted { tree: u64 },
}

/// What the process says.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Report {
    /// A tree is served.
    Serving { tree: u64 },
    /// A tree cannot be served.
    Refused { tree: u64, reason: String },
    /// A reader waits for bytes `start` to `end` of a layer.
    Need { read: u64, layer: u64, start: u64, end: u64 },
    /// A reader got EIO although the daemon said that the bytes are here, or said nothing.
    Failed { layer: u64, start: u64, end: u64, cause: String },
    /// The device of a tree is kept.
    Kept { tree: u64 },
    /// Somebody gets EIO because the server has ended; told once note was taken.
    Lost { tree: u64, what: Lost },
}

/// What somebody did not get.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Lost {
    /// Bytes of a file.
    Bytes { node: u64, offset: u64, size: u32 },
    /// What a name stands for.
    Name { directory: u64, name: String },
    /// Something else of an inode.
    Inode { node: u64 },
}

/// `text`, short enough for a message.
pub(super) fn short(mut text: String) -> String {
    if text.len() > TEXT {
        let end = (0..=TEXT).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
    }
    text
}

/// One end of the connection.
#[derive(Debug)]
pub(super) struct Socket(OwnedFd);

impl Socket {
    /// Both ends; they are closed where another program is started.
    pub(super) fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok((Self(ours), theirs))
    }

    pub(super) fn of(end: OwnedFd) -> Self {
        Self(end)
    }

    /// Sends a message; waits for room.
    pub(super) fn send(&self, message: &impl Serialize, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.send_with(message, descriptors, SendFlags::NOSIGNAL)
    }

    /// Sends a message if there is room now: `WouldBlock` if not.
    pub(super) fn try_send(&self, message: &impl Serialize) -> io::Result<()> {
        self.send_with(message, &[], SendFlags::NOSIGNAL | SendFlags::DONTWAIT)
    }

    fn send_with(&self, message: &impl Serialize, descriptors: &[BorrowedFd<'_>], flags: SendFlags) -> io::Result<()> {
        let bytes = serde_json::to_vec(message)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors for one message"));
        }
        loop {
            match rustix::net::sendmsg(&self.0, &[IoSlice::new(&bytes)], &mut control, flags) {
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Waits for the next message; `None` when the other end has closed.
    pub(super) fn receive<T: DeserializeOwned>(&self) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        let mut bytes = [0; LONGEST];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let got = loop {
            let mut parts = [IoSliceMut::new(&mut bytes)];
            match rustix::net::recvmsg(&self.0, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::CONNRESET) => return Ok(None),
                outcome => break outcome?,
            }
        };
        let mut descriptors = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = message {
                descriptors.extend(received);
            }
        }
        if got.bytes == 0 {
            return Ok(None);
        }
        if got.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a message was cut"));
        }
        Ok(Some((serde_json::from_slice(&bytes[..got.bytes])?, descriptors)))
    }

    /// Ends the connection for both ends, also where one of them waits.
    pub(super) fn close(&self) {
        // That it has ended already is as well.
        let _ = rustix::net::shutdown(self.0.as_fd(), Shutdown::Both);
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read as _, Seek as _, Write as _};

    use super::*;

    #[test]
    fn messages_come_as_they_were_sent_with_their_descriptors() {
        let (ours, theirs) = Socket::pair().unwrap();
        let theirs = Socket::of(theirs);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"content").unwrap();
        ours.send(&Order::Tree { tree: 7, patience: 1 }, &[file.as_fd(), file.as_fd()]).unwrap();
        ours.try_send(&Order::Serve { tree: u64::MAX }).unwrap();
        let (order, descriptors) = theirs.receive::<Order>().unwrap().unwrap();
        assert!(matches!(order, Order::Tree { tree: 7, patience: 1 }));
        let mut files = descriptors.into_iter().map(File::from);
        let (mut first, second) = (files.next().unwrap(), files.next());
        assert!(second.is_some());
        first.rewind().unwrap();
        let mut content = String::new();
        first.read_to_string(&mut content).unwrap();
        assert_eq!(content, "content");
        let (order, descriptors) = theirs.receive::<Order>().unwrap().unwrap();
        assert!(matches!(order, Order::Serve { tree: u64::MAX }) && descriptors.is_empty());
        let text = short("ä".repeat(TEXT));
        assert_eq!(text.len(), TEXT);
        theirs.send(&Report::Refused { tree: 1, reason: text.clone() }, &[]).unwrap();
        let Some((Report::Refused { reason, .. }, _)) = ours.receive().unwrap() else { panic!("another message") };
        assert_eq!(reason, text);
        // A full socket does not hold up who must not wait.
        let error = (0..100_000).find_map(|tree| theirs.try_send(&Report::Serving { tree }).err()).unwrap();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        theirs.close();
        while ours.receive::<Report>().unwrap().is_some() {}
        assert!(ours.send(&Order::Serve { tree: 1 }, &[]).is_err());
    }
}
