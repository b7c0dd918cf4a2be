//! From a tar stream to a blob: hash, compress, hash, store; on threads of the bounded pools, in bounded memory.

use std::io::{self, BufReader, Read, Write};
use std::sync::{Arc, LazyLock};

use castor_archive::tar::{Reader, Writer as TarWriter};
use castor_archive::{Encoder, HashingReader, HashingWriter, Timestamp, decompress};
use castor_content::{Blob, Commit, ContentStore, Writer};
use castor_estargz::{Builder, Options};
use castor_oci::{ANNOTATION_TOC_DIGEST, ANNOTATION_UNCOMPRESSED_SIZE, Descriptor, Digest};
use castor_progress::Tally;
use castor_snapshot::{Differ, SnapshotId};
use tokio::sync::Semaphore;

use crate::{BlobError, Compression, Form, variants::Variant};

/// Buffer between the one who makes the tar and the one who compresses it.
const BUFFER: usize = 256 << 10;

/// How many tars are made at once. One who compresses holds a place of [`castor_task::blocking`] until its tar is made, and
/// making it needs such places too: far fewer than there are may be held.
static MAKING: LazyLock<Semaphore> =
    LazyLock::new(|| Semaphore::new(std::thread::available_parallelism().map_or(4, usize::from).max(4)));

/// A blob that is to be made.
pub(crate) struct Wanted {
    /// Where it goes.
    pub(crate) content: Arc<dyn ContentStore>,
    pub(crate) compression: Compression,
    /// Holds it.
    pub(crate) lease: Option<String>,
    /// Counts the bytes of the tar.
    pub(crate) tally: Option<Arc<Tally>>,
}

/// A tar whose bytes are counted.
struct Counted<R> {
    tar: R,
    tally: Option<Arc<Tally>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.tar.read(buffer)?;
        if let Some(tally) = &self.tally {
            tally.add(count as i64);
        }
        Ok(count)
    }
}

/// A blob that is written but not yet named.
struct Written {
    writer: Writer,
    diff_id: Digest,
    /// Annotations of eStargz: digest of the TOC, uncompressed size.
    toc: Option<(Digest, u64)>,
}

/// The changes from `lower` to `upper` as a blob.
pub(crate) async fn compare(
    wanted: Wanted,
    differ: &Arc<dyn Differ>,
    lower: Option<SnapshotId>,
    upper: Option<SnapshotId>,
) -> Result<Variant, BlobError> {
    let made = |pipe: io::PipeWriter| async move {
        let mut out: Box<dyn Write + Send> = Box::new(io::BufWriter::with_capacity(BUFFER, pipe));
        if let Some(upper) = &upper {
            out = differ.diff(lower.as_ref(), upper, out).await?.0;
        } else {
            out.write_all(&[0; 1024])?;
        }
        out.flush()?;
        Ok(())
    };
    let written = piped(&wanted, made).await?;
    name(wanted, written).await
}

/// Compresses the tar that `make` writes into a pipe, as it is made.
async fn piped<F>(wanted: &Wanted, make: impl FnOnce(io::PipeWriter) -> F) -> Result<Written, BlobError>
where
    F: Future<Output = Result<(), BlobError>>,
{
    // The semaphore is never closed.
    let _making = MAKING.acquire().await.ok();
    let writer = wanted.content.writer().await?;
    let (reader, pipe) = io::pipe()?;
    let (compression, tally) = (wanted.compression, wanted.tally.clone());
    let tar = Counted { tar: BufReader::with_capacity(BUFFER, reader), tally };
    // The two ends run on pools of their own: the one that makes the tar may wait for a registry.
    let compressing = castor_task::blocking(move || compress(tar, writer, compression));
    let (made, written) = tokio::join!(make(pipe), compressing);
    // The maker's error first: what the other says of a pipe that broke is a consequence.
    made?;
    written
}

/// `blob` in another form.
pub(crate) async fn convert(wanted: Wanted, blob: Blob) -> Result<Variant, BlobError> {
    let writer = wanted.content.writer().await?;
    let (compression, tally) = (wanted.compression, wanted.tally.clone());
    let written = castor_task::blocking(move || {
        let layer = blob.digest();
        let decompressing = |source| BlobError::Decompress { layer, source };
        let tar = plain_tar(&blob).map_err(decompressing)?;
        compress(Counted { tar, tally }, writer, compression)
    });
    let written = written.await?;
    name(wanted, written).await
}

/// `blob` with no time later than `epoch`.
pub(crate) async fn rewrite(wanted: Wanted, blob: Blob, epoch: i64) -> Result<Variant, BlobError> {
    let cut = |pipe: io::PipeWriter| {
        castor_task::reading(move || {
            let layer = blob.digest();
            let failed = |source| BlobError::Decompress { layer, source };
            let tar = plain_tar(&blob).map_err(failed)?;
            cut_times(tar, epoch, io::BufWriter::with_capacity(BUFFER, pipe)).map_err(failed)
        })
    };
    let written = piped(&wanted, cut).await?;
    name(wanted, written).await
}

/// Copies a tar, with `epoch` for every later time.
fn cut_times(tar: impl Read, epoch: i64, out: impl Write) -> io::Result<()> {
    let mut reader = Reader::new(tar);
    let mut out = TarWriter::new(out);
    while let Some(mut header) = reader.next().map_err(io::Error::other)? {
        if (header.mtime.seconds, header.mtime.nanoseconds) > (epoch, 0) {
            header.mtime = Timestamp::from_seconds(epoch);
        }
        out.append(&header, &mut reader)?;
    }
    out.finish()?.flush()
}

/// The tar that a blob was made of: an eStargz blob's without its TOC.
pub(crate) fn plain_tar(blob: &Blob) -> io::Result<Box<dyn Read + Send>> {
    const TAIL: u64 = 512;
    let start = blob.size().saturating_sub(TAIL);
    let mut tail = vec![0; usize::try_from(blob.size() - start).unwrap_or_default()];
    let read = blob.read_at(&mut tail, start)?;
    tail.truncate(read);
    match castor_estargz::footer::parse(&tail, blob.size()) {
        Ok(footer) => castor_estargz::tar_of(blob.file().clone(), &footer),
        Err(_) => Ok(decompress(blob.reader(0))?.1),
    }
}

fn compress(tar: impl Read + Send, writer: Writer, compression: Compression) -> Result<Written, BlobError> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let Some(codec) = compression.codec() else {
        let mut writer = writer;
        let options = Options { level: compression.level, threads, ..Options::default() };
        let built = Builder::new(options).build(tar, &mut writer)?;
        let toc = Some((built.toc_digest, built.uncompressed_size));
        return Ok(Written { writer, diff_id: built.diff_id, toc });
    };
    let mut tar = HashingReader::new(tar);
    let mut encoder = Encoder::parallel(HashingWriter::new(writer), codec, threads)?;
    io::copy(&mut tar, &mut encoder)?;
    let (writer, _, _) = encoder.finish()?.finish();
    let (diff_id, _) = tar.finish();
    Ok(Written { writer, diff_id, toc: None })
}

async fn name(wanted: Wanted, written: Written) -> Result<Variant, BlobError> {
    let Wanted { compression, lease, .. } = wanted;
    let commit = Commit { lease, ..Commit::default() };
    let info = written.writer.commit(None, commit).await?;
    let mut descriptor = Descriptor::new(compression.form.media_type(), info.digest, info.size);
    if let Some((toc, size)) = written.toc {
        debug_assert_eq!(compression.form, Form::Estargz);
        descriptor.annotations.insert(ANNOTATION_TOC_DIGEST.into(), toc.to_string());
        descriptor.annotations.insert(ANNOTATION_UNCOMPRESSED_SIZE.into(), size.to_string());
    }
    Ok(Variant { descriptor, diff_id: written.diff_id, level: compression.level })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use async_trait::async_trait;
    use castor_content::Local;
    use castor_metadb::Memory;
    use castor_snapshot::{DiffStats, SnapshotError};
    use futures::future::try_join_all;

    use super::*;

    #[test]
    fn times_are_cut_and_nothing_else_is_touched() {
        use castor_archive::tar::{Header, Kind};
        let entry = |path: &[u8], seconds: i64, nanoseconds: u32, data: &[u8]| {
            let kind = if path.ends_with(b"/") { Kind::Directory } else { Kind::File };
            let mtime = Timestamp { seconds, nanoseconds };
            let mut header = Header {
                path: path.into(),
                kind,
                mode: 0o640,
                uid: 7,
                size: data.len() as u64,
                mtime,
                ..Header::default()
            };
            header.push_xattr(b"user.x", b"1");
            (header, data.to_vec())
        };
        let tar = |entries: &[(Header, Vec<u8>)]| {
            let mut writer = TarWriter::new(Vec::new());
            for (header, data) in entries {
                writer.append(header, &mut data.as_slice()).unwrap();
            }
            writer.finish().unwrap()
        };
        let before = [
            entry(b"d/", 500, 0, b""),
            entry(b"d/old", 99, 999_999_999, b"old"),
            entry(b"d/at", 100, 0, b""),
            entry(b"d/just-later", 100, 1, b"later"),
            entry(b"d/caf\xe9", 2000, 5, &[7; 1000]),
        ];
        let after = [
            entry(b"d/", 100, 0, b""),
            entry(b"d/old", 99, 999_999_999, b"old"),
            entry(b"d/at", 100, 0, b""),
            entry(b"d/just-later", 100, 0, b"later"),
            entry(b"d/caf\xe9", 100, 0, &[7; 1000]),
        ];
        let mut out = Vec::new();
        cut_times(tar(&before).as_slice(), 100, &mut out).unwrap();
        assert!(out == tar(&after));
    }

    /// Mounts, as it were, before it writes.
    struct Slow;

    #[async_trait]
    impl Differ for Slow {
        async fn diff(
            &self,
            _: Option<&SnapshotId>,
            _: &SnapshotId,
            mut out: Box<dyn Write + Send>,
        ) -> Result<(Box<dyn Write + Send>, DiffStats), SnapshotError> {
            castor_task::blocking(std::thread::yield_now).await;
            out.write_all(&[0; 1024]).map_err(|e| SnapshotError::State(e.to_string()))?;
            Ok((out, DiffStats::default()))
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn as_many_layers_at_once_as_there_are_threads_do_not_wait_for_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let content: Arc<dyn ContentStore> = Arc::new(Local::open(dir.path(), Arc::new(Memory::new())).await.unwrap());
        let differ: Arc<dyn Differ> = Arc::new(Slow);
        let layers = (0..200).map(|number| {
            let upper = Some(SnapshotId::new(number.to_string()));
            let compression = Compression::default();
            let wanted = Wanted { content: content.clone(), compression, lease: None, tally: None };
            compare(wanted, &differ, None, upper)
        });
        let made = tokio::time::timeout(Duration::from_secs(60), try_join_all(layers)).await;
        assert_eq!(made.expect("all of them wait").unwrap().len(), 200);
    }
}
