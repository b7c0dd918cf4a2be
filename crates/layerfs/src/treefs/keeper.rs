//! What answers when the server of trees has ended.
//!
//! The kernel ends a FUSE file system when nobody has its device open any more: whoever reads gets ENOTCONN or
//! ECONNABORTED, and nobody can say why. So a second process, the *keeper*, has every device open too, and does not touch
//! it while the server lives. When the server has ended, the keeper answers in its place: all that is asked fails with EIO,
//! and the daemon is told of it first, so that a build can name the file. What the server had taken and not answered is
//! asked for again.
//!
//! The daemon itself must not have the devices. Its threads read trees, and one that waits for an answer cannot be killed;
//! as long as it waits, what the daemon has open stays open. Killed together with the server, it would wait for ever.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;

use rustix::io::Errno;

use super::wire::{Lost, Report, Socket, short};
use crate::serve::MAX_READ;

/// The longest that an answer waits for the daemon to take note. One that is dying may never, and its death may wait for
/// the answer.
const NOTE: Duration = Duration::from_secs(1);
/// Room for the longest request: the kernel wants to be able to send what it might.
const LONGEST: usize = MAX_READ as usize + 4096;
/// Length of a request's head.
const HEAD: usize = 40;
/// Length of an answer without content.
const ANSWER: usize = 16;

/// The devices that are kept.
pub(super) struct Keeper {
    socket: Arc<Socket>,
    kept: HashMap<u64, OwnedFd>,
    /// The server has ended: the trees that are answered for, with who waits for the daemon's notes.
    mourned: Option<HashMap<u64, Sender<()>>>,
}

impl Keeper {
    pub(super) fn new(socket: Arc<Socket>) -> Self {
        Self { socket, kept: HashMap::new(), mourned: None }
    }

    /// Keeps the device of a tree.
    pub(super) fn keep(&mut self, tree: u64, device: OwnedFd) -> io::Result<()> {
        self.kept.insert(tree, device);
        self.socket.send(&Report::Kept { tree }, &[])?;
        if self.mourned.is_some() { self.mourn() } else { Ok(()) }
    }

    /// A tree is not mounted any more.
    pub(super) fn forget(&mut self, tree: u64) {
        self.kept.remove(&tree);
        if let Some(mourned) = &mut self.mourned {
            mourned.remove(&tree);
        }
    }

    /// The daemon has taken note of what was lost of a tree.
    pub(super) fn noted(&self, tree: u64) {
        if let Some(waiting) = self.mourned.as_ref().and_then(|mourned| mourned.get(&tree)) {
            // Who has waited too long is gone.
            let _ = waiting.send(());
        }
    }

    /// Answers for all trees from now on, each by a thread of its own until it is unmounted.
    pub(super) fn mourn(&mut self) -> io::Result<()> {
        let mourned = self.mourned.get_or_insert_default();
        for (tree, device) in self.kept.drain() {
            let (note, noted) = mpsc::channel();
            mourned.insert(tree, note);
            let socket = self.socket.clone();
            let work = move || answer_all(tree, &device, &socket, &noted);
            std::thread::Builder::new().name(format!("mourn-{tree}")).spawn(work)?;
        }
        Ok(())
    }
}

/// Answers requests until the tree is unmounted.
fn answer_all(tree: u64, device: &OwnedFd, socket: &Socket, noted: &Receiver<()>) {
    if again(device).is_err() {
        // A kernel before Linux 6.9 forgets nothing and repeats nothing. Whoever waits for the server gets an error when the
        // device is closed, which it is now.
        return;
    }
    let mut request = vec![0; LONGEST];
    loop {
        let length = match rustix::io::read(device, &mut request) {
            Ok(length) => length,
            // The one who asked has given up meanwhile.
            Err(Errno::INTR | Errno::NOENT | Errno::AGAIN) => continue,
            Err(_) => return,
        };
        let Some(asked) = Asked::of(&request[..length]) else { return };
        let Some(error) = asked.error() else { continue };
        if let Some(what) = asked.lost() {
            // A note that came too late is not for this one.
            while noted.try_recv().is_ok() {}
            if socket.send(&Report::Lost { tree, what }, &[]).is_ok() {
                let _ = noted.recv_timeout(NOTE);
            }
        }
        // That nobody waits for it any more is no failure.
        let _ = rustix::io::write(device, &answer(asked.unique, error));
    }
}

/// Has the kernel ask again for what was taken from the device and not answered.
fn again(device: &OwnedFd) -> rustix::io::Result<()> {
    /// `FUSE_NOTIFY_RESEND`, in the place of an error in an answer to nothing.
    const RESEND: i32 = 7;
    rustix::io::write(device, &answer(0, RESEND)).map(drop)
}

/// An answer without content.
fn answer(unique: u64, error: i32) -> [u8; ANSWER] {
    let mut bytes = [0; ANSWER];
    bytes[..4].copy_from_slice(&(ANSWER as u32).to_ne_bytes());
    bytes[4..8].copy_from_slice(&error.to_ne_bytes());
    bytes[8..].copy_from_slice(&unique.to_ne_bytes());
    bytes
}

mod opcode {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const READ: u32 = 15;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FLUSH: u32 = 25;
    pub const RELEASE_DIRECTORY: u32 = 29;
    pub const INTERRUPT: u32 = 36;
    pub const DESTROY: u32 = 38;
    pub const NOTIFY_REPLY: u32 = 41;
    pub const FORGET_MANY: u32 = 42;
}

/// A request of the kernel.
struct Asked<'a> {
    code: u32,
    unique: u64,
    node: u64,
    body: &'a [u8],
}

impl<'a> Asked<'a> {
    fn of(bytes: &'a [u8]) -> Option<Self> {
        let (code, unique, node) = (number(bytes, 4)?, wide(bytes, 8)?, wide(bytes, 16)?);
        Some(Self { code, unique, node, body: bytes.get(HEAD..)? })
    }

    /// What it is answered with; `None` if no answer is wanted.
    fn error(&self) -> Option<i32> {
        match self.code {
            opcode::FORGET | opcode::FORGET_MANY | opcode::INTERRUPT | opcode::NOTIFY_REPLY => None,
            opcode::RELEASE | opcode::RELEASE_DIRECTORY | opcode::FLUSH | opcode::DESTROY => Some(0),
            _ => Some(-Errno::IO.raw_os_error()),
        }
    }

    /// What whoever asks does not get; `None` if nobody misses it.
    fn lost(&self) -> Option<Lost> {
        let node = self.node;
        match self.code {
            opcode::RELEASE | opcode::RELEASE_DIRECTORY | opcode::FLUSH | opcode::DESTROY | opcode::STATFS => None,
            opcode::LOOKUP => {
                let name = self.body.split(|byte| *byte == 0).next().unwrap_or_default();
                Some(Lost::Name { directory: node, name: short(String::from_utf8_lossy(name).into_owned()) })
            }
            opcode::READ => Some(Lost::Bytes { node, offset: wide(self.body, 8)?, size: number(self.body, 16)? }),
            _ => Some(Lost::Inode { node }),
        }
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn wide(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(code: u32, node: u64, body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; HEAD];
        bytes[..4].copy_from_slice(&((HEAD + body.len()) as u32).to_ne_bytes());
        bytes[4..8].copy_from_slice(&code.to_ne_bytes());
        bytes[8..16].copy_from_slice(&7u64.to_ne_bytes());
        bytes[16..24].copy_from_slice(&node.to_ne_bytes());
        bytes.extend(body);
        bytes
    }

    #[test]
    fn what_is_asked_is_an_error_that_can_be_named() {
        let eio = Some(-5);
        let bytes = request(opcode::LOOKUP, 3, b"name\0");
        let asked = Asked::of(&bytes).unwrap();
        assert_eq!((asked.unique, asked.error()), (7, eio));
        assert_eq!(asked.lost(), Some(Lost::Name { directory: 3, name: "name".into() }));
        let body = [&[0; 8][..], &4096u64.to_ne_bytes(), &512u32.to_ne_bytes(), &[0; 20]].concat();
        let bytes = request(opcode::READ, 4, &body);
        let asked = Asked::of(&bytes).unwrap();
        assert_eq!((asked.error(), asked.lost()), (eio, Some(Lost::Bytes { node: 4, offset: 4096, size: 512 })));
        // Cut short: an error all the same.
        let asked = Asked::of(&bytes[..HEAD + 3]).unwrap();
        assert_eq!((asked.error(), asked.lost()), (eio, None));
        let bytes = request(3, 5, &[0; 16]);
        let asked = Asked::of(&bytes).unwrap();
        assert_eq!((asked.error(), asked.lost()), (eio, Some(Lost::Inode { node: 5 })));
    }

    #[test]
    fn what_only_ends_something_fails_nobody() {
        for (code, error) in [(opcode::FORGET, None), (opcode::INTERRUPT, None), (opcode::DESTROY, Some(0))] {
            let bytes = request(code, 1, &[0; 8]);
            let asked = Asked::of(&bytes).unwrap();
            assert_eq!(asked.error(), error, "{code}");
            assert!(error.is_none() || asked.lost().is_none());
        }
        assert!(Asked::of(&[0; HEAD - 1]).is_none());
        assert_eq!(answer(0x0102, -5).len(), 16);
    }
}
