//! Writing what comes into a directory.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, fchown};
use std::path::{Path, PathBuf};

use bytes::{Buf as _, Bytes};
use castor_oci::{Digest, Hasher};
use castor_solver::Cx;
use castor_task::reading;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use rustix::fs::{Timespec, Timestamps};
use tokio::sync::mpsc;

use super::WebError;
use crate::OpError;

/// Pieces on their way to the disk.
const QUEUE: usize = 8;
const BUFFER: usize = 64 << 10;

/// What a file gets beside its content.
#[derive(Debug, Clone, Copy)]
pub(super) struct Owned {
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Seconds since 1970.
    pub(super) modified: i64,
}

/// Writes a new file `name` in `dir`; `gzip` says that the stream is compressed and the file is not to be. Gives the
/// file's digest.
pub(super) async fn receive(
    cx: &Cx,
    mut body: BoxStream<'static, Result<Bytes, String>>,
    gzip: bool,
    dir: PathBuf,
    name: String,
    owned: Owned,
) -> Result<Digest, OpError> {
    let (sender, receiver) = mpsc::channel::<Result<Bytes, io::Error>>(QUEUE);
    let writing = reading(move || {
        let pieces = Pieces { receiver, rest: Bytes::new() };
        let written = match gzip {
            false => write(pieces, &dir, &name, owned),
            true => {
                let buffered = io::BufReader::with_capacity(BUFFER, pieces);
                castor_archive::codec::decoder(castor_archive::Codec::Gzip, buffered)
                    .and_then(|plain| write(plain, &dir, &name, owned))
            }
        };
        written.map_err(|source| WebError::Io { name, source })
    });
    // The sender goes with it, and the writer sees the end.
    let pumping = async move {
        loop {
            let piece = tokio::select! {
                () = cx.token().cancelled() => Some(Err(OpError::Cancelled)),
                piece = body.next() => piece.map(|piece| piece.map_err(|error| WebError::Body(error).into())),
            };
            match piece {
                None => return Ok(()),
                Some(Ok(piece)) => {
                    if sender.send(Ok(piece)).await.is_err() {
                        // The writer has failed and says why itself.
                        return Ok(());
                    }
                }
                Some(Err(error)) => {
                    let _ = sender.send(Err(io::Error::other("the answer broke off"))).await;
                    return Err(error);
                }
            }
        }
    };
    let (pumped, written) = tokio::join!(pumping, writing);
    pumped?;
    Ok(written?)
}

fn write(mut from: impl Read, dir: &Path, name: &str, owned: Owned) -> io::Result<Digest> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(owned.mode).open(dir.join(name))?;
    let mut hasher = Hasher::new();
    let mut buffer = vec![0; BUFFER];
    loop {
        let count = from.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        file.write_all(&buffer[..count])?;
        hasher.update(&buffer[..count]);
    }
    if (owned.uid, owned.gid) != (0, 0) {
        fchown(&file, Some(owned.uid), Some(owned.gid))?;
    }
    set_modified(&file, owned.modified)?;
    Ok(hasher.finish())
}

fn set_modified(file: &File, seconds: i64) -> io::Result<()> {
    let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
    Ok(rustix::fs::futimens(file, &Timestamps { last_access: time, last_modification: time })?)
}

/// A stream of pieces, read by a thread that may wait.
struct Pieces {
    receiver: mpsc::Receiver<Result<Bytes, io::Error>>,
    rest: Bytes,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.receiver.blocking_recv() {
                Some(piece) => self.rest = piece?,
                None => return Ok(0),
            }
        }
        let count = buffer.len().min(self.rest.len());
        self.rest.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}
