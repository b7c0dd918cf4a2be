//! Layers made in memory, a source with faults, and an engine over them.
#![allow(dead_code, missing_docs)]

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::ops::Range;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use castor_archive::Timestamp;
use castor_archive::tar::{Header, Kind, Writer};
use castor_content::ContentStore;
use castor_layerfs::{BlobOpener, Config, FetchError, ImageTree, LayerEngine, LayerSource, Lazy, Priority, RangeBody};
use castor_metadb::Memory;
use castor_oci::{ANNOTATION_TOC_DIGEST, Descriptor, Digest, media_type};
use castor_task::Scope;
use futures::StreamExt as _;
use parking_lot::Mutex;

/// A small generator, so that layers do not compress away and tests repeat.
pub mod rand_like {
    pub struct Random(u64);

    impl Random {
        pub fn new(seed: u64) -> Self {
            Self(seed | 1)
        }

        pub fn next(&mut self) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0
        }

        pub fn bytes(&mut self, length: usize) -> Vec<u8> {
            let mut bytes = Vec::with_capacity(length + 8);
            while bytes.len() < length {
                bytes.extend_from_slice(&self.next().to_le_bytes());
            }
            bytes.truncate(length);
            bytes
        }
    }
}

/// A tar in the making.
#[derive(Default)]
pub struct Tar(Vec<(Header, Vec<u8>)>);

impl Tar {
    pub fn put(mut self, header: Header, data: &[u8]) -> Self {
        self.0.push((Header { size: data.len() as u64, ..header }, data.to_vec()));
        self
    }

    pub fn file(self, path: &str, data: &[u8]) -> Self {
        self.put(header(path, Kind::File, 0o644), data)
    }

    pub fn dir(self, path: &str, mode: u32) -> Self {
        self.put(header(&format!("{path}/"), Kind::Directory, mode), b"")
    }

    pub fn link(self, path: &str, target: &str) -> Self {
        self.put(Header { link: target.into(), ..header(path, Kind::Hardlink, 0o644) }, b"")
    }

    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.put(Header { link: target.into(), ..header(path, Kind::Symlink, 0o777) }, b"")
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut writer = Writer::new(Vec::new());
        for (header, data) in &self.0 {
            writer.append(header, &mut data.as_slice()).unwrap();
        }
        writer.finish().unwrap()
    }
}

pub fn header(path: &str, kind: Kind, mode: u32) -> Header {
    Header { path: path.into(), kind, mode, mtime: Timestamp::from_seconds(1_600_000_000), ..Header::default() }
}

/// A layer as a registry has it.
#[derive(Clone)]
pub struct Blob {
    pub bytes: Arc<Vec<u8>>,
    pub descriptor: Descriptor,
    pub diff_id: Digest,
}

pub fn gzip(tar: &[u8]) -> Blob {
    let mut encoder =
        castor_archive::Encoder::new(Vec::new(), castor_archive::Compression::Gzip { level: Some(1) }).unwrap();
    encoder.write_all(tar).unwrap();
    let bytes = encoder.finish().unwrap();
    let descriptor = Descriptor::new(media_type::OCI_LAYER_GZIP, Digest::of(&bytes), bytes.len() as u64);
    Blob { bytes: Arc::new(bytes), descriptor, diff_id: Digest::of(tar) }
}

pub fn estargz(tar: &[u8], chunk_size: u64) -> Blob {
    let options = castor_estargz::Options { chunk_size, level: Some(1), ..castor_estargz::Options::default() };
    let mut bytes = Vec::new();
    let built = castor_estargz::Builder::new(options).build(tar, &mut bytes).unwrap();
    let mut descriptor = Descriptor::new(media_type::OCI_LAYER_GZIP, built.digest, built.size);
    descriptor.annotations.insert(ANNOTATION_TOC_DIGEST.into(), built.toc_digest.to_string());
    Blob { bytes: Arc::new(bytes), descriptor, diff_id: built.diff_id }
}

/// The same layer with another table of contents, which its descriptor vouches for.
pub fn with_toc(blob: &Blob, change: impl FnOnce(&mut serde_json::Value)) -> Blob {
    let opened = castor_estargz::open(&*blob.bytes, &blob.descriptor.annotations, None).unwrap();
    let end = opened.footer.unwrap().payload_end as usize;
    let location = opened.footer.unwrap().toc.unwrap();
    let compressed = &blob.bytes[end..][..location.compressed_size as usize];
    let digests = castor_estargz::TocDigests::default();
    let json = castor_estargz::toc::decode(&location, compressed, &digests).unwrap();
    let mut toc = serde_json::from_slice(&json).unwrap();
    change(&mut toc);
    assemble(&blob.bytes[..end], &serde_json::to_vec(&toc).unwrap())
}

/// An eStargz blob of members of a tar and a table of contents. Its diff ID is what all of it decompresses to.
pub fn assemble(members: &[u8], toc: &[u8]) -> Blob {
    let mut writer = Writer::new(Vec::new());
    let header = Header { size: toc.len() as u64, ..header(castor_estargz::TOC_NAME, Kind::File, 0) };
    writer.append(&header, &mut &toc[..]).unwrap();
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&writer.finish().unwrap()).unwrap();
    let mut bytes = members.to_vec();
    let offset = bytes.len();
    bytes.extend(encoder.finish().unwrap());
    bytes.extend([0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff, 26, 0, b'S', b'G', 22, 0]);
    bytes.extend(format!("{offset:016x}STARGZ").bytes());
    bytes.extend([1, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0]);
    let mut descriptor = Descriptor::new(media_type::OCI_LAYER_GZIP, Digest::of(&bytes), bytes.len() as u64);
    descriptor.annotations.insert(ANNOTATION_TOC_DIGEST.into(), Digest::of(toc).to_string());
    let mut stream = Vec::new();
    castor_archive::decompress(&bytes[..]).unwrap().1.read_to_end(&mut stream).unwrap();
    Blob { bytes: Arc::new(bytes), descriptor, diff_id: Digest::of(stream) }
}

/// What a source does wrong.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// Answers every range with the whole blob.
    pub no_ranges: bool,
    /// Bytes that are wrong, as often as said.
    pub corrupt: Vec<(u64, usize)>,
    /// Requests for these bytes are never answered.
    pub stall: Option<Range<u64>>,
    /// No request is answered.
    pub down: bool,
    /// Answers break off after so many bytes, as often as said.
    pub cut: Option<(usize, usize)>,
}

/// A blob with faults, that counts.
pub struct Source {
    pub blob: Blob,
    pub faults: Mutex<Faults>,
    pub log: Mutex<Vec<Range<u64>>>,
    pub sent: AtomicU64,
    /// Rung when a request is left without an answer.
    pub stalled: tokio::sync::Notify,
}

impl Source {
    pub fn new(blob: &Blob) -> Arc<Self> {
        Arc::new(Self {
            blob: blob.clone(),
            faults: Mutex::default(),
            log: Mutex::default(),
            sent: AtomicU64::new(0),
            stalled: tokio::sync::Notify::new(),
        })
    }

    pub fn requests(&self) -> usize {
        self.log.lock().len()
    }

    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    pub fn layer(self: &Arc<Self>, want: Lazy) -> LayerSource {
        LayerSource {
            descriptor: self.blob.descriptor.clone(),
            origins: vec!["registry.test/image".into()],
            image: "registry.test/image:1".into(),
            opener: self.clone(),
            diff_id: Some(self.blob.diff_id),
            want,
        }
    }
}

#[async_trait]
impl BlobOpener for Source {
    async fn range(&self, range: Range<u64>, _: Priority) -> Result<RangeBody, FetchError> {
        self.log.lock().push(range.clone());
        let faults = self.faults.lock().clone();
        if faults.down {
            return Err(FetchError::new("connection refused"));
        }
        if faults.stall.is_some_and(|stall| stall.start < range.end && range.start < stall.end) {
            self.stalled.notify_one();
            std::future::pending::<()>().await;
        }
        let size = self.blob.bytes.len() as u64;
        let (range, full) = if faults.no_ranges { (0..size, true) } else { (range, false) };
        let mut bytes = self.blob.bytes[range.start as usize..range.end as usize].to_vec();
        for (at, left) in &mut self.faults.lock().corrupt {
            if range.contains(at) && *left > 0 {
                *left -= 1;
                bytes[(*at - range.start) as usize] ^= 0x55;
            }
        }
        let mut transient = None;
        if let Some((after, left)) = &mut self.faults.lock().cut
            && *left > 0
            && bytes.len() > *after
        {
            *left -= 1;
            bytes.truncate(*after);
            transient = Some(Err(FetchError::transient("connection reset")));
        }
        self.sent.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        let pieces: Vec<Result<Bytes, FetchError>> =
            bytes.chunks(16 << 10).map(|piece| Ok(Bytes::copy_from_slice(piece))).chain(transient).collect();
        Ok(RangeBody { range, full, stream: futures::stream::iter(pieces).boxed() })
    }

    fn describe(&self) -> String {
        "registry.test".into()
    }
}

/// An engine with its state.
pub struct Bench {
    pub engine: Arc<LayerEngine>,
    pub content: Arc<dyn ContentStore>,
    pub scope: Scope,
    pub root: PathBuf,
    db: Arc<Memory>,
    _dir: Option<tempfile::TempDir>,
}

impl Bench {
    pub async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let db = Arc::new(Memory::new());
        let root = dir.path().to_owned();
        Self::open(root, db, Some(dir), |_| {}).await
    }

    pub async fn with_deadline(deadline: Duration) -> Self {
        Self::with(|config| config.read_deadline = deadline).await
    }

    /// With settings of one's own.
    pub async fn with(settings: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().to_owned();
        Self::open(root, Arc::new(Memory::new()), Some(dir), settings).await
    }

    /// In a directory of one's own, which stays.
    pub async fn at(root: &Path) -> Self {
        Self::at_with(root, |_| {}).await
    }

    /// The same with settings of one's own.
    pub async fn at_with(root: &Path, settings: impl FnOnce(&mut Config)) -> Self {
        Self::open(root.to_owned(), Arc::new(Memory::new()), None, settings).await
    }

    async fn open(
        root: PathBuf,
        db: Arc<Memory>,
        dir: Option<tempfile::TempDir>,
        settings: impl FnOnce(&mut Config),
    ) -> Self {
        let scope = Scope::root("test");
        let content: Arc<dyn ContentStore> =
            Arc::new(castor_content::Local::open(&root.join("content"), db.clone()).await.unwrap());
        let mut config = Config { read_deadline: PATIENCE, quiet: Duration::ZERO, ..Config::new(root.join("layers")) };
        settings(&mut config);
        let engine = LayerEngine::open(config, content.clone(), &scope).await.unwrap();
        Self { engine, content, scope, root, db, _dir: dir }
    }

    /// Waits until nothing is fetched or kept of `blob` any more: what is read ahead goes on after the reader has its bytes.
    pub async fn settled(&self, blob: &Blob) {
        let digest = blob.descriptor.digest.to_string();
        let works = |name: &String| name.contains(&digest) && !name.ends_with("keep presence");
        let settled = async {
            while self.scope.running().iter().any(works) {
                tokio::task::yield_now().await;
            }
        };
        let settled = tokio::time::timeout(PATIENCE, settled).await;
        assert!(settled.is_ok(), "{:?}", self.scope.running());
    }

    /// Ends the engine and opens another on the same state.
    pub async fn restart(self) -> Self {
        self.restart_with(|_| {}).await
    }

    /// The same with other settings.
    pub async fn restart_with(mut self, settings: impl FnOnce(&mut Config)) -> Self {
        self.engine.shutdown().await;
        let (root, db, dir) = (self.root.clone(), self.db.clone(), self._dir.take());
        drop(self);
        Self::open(root, db, dir, settings).await
    }
}

/// Longer than anything takes on a machine that is well, however busy: for what must end at all.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// A path in a mounted tree.
pub fn path(tree: &ImageTree, below: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{below}", tree.mount().as_fd().as_raw_fd()))
}

/// Reads a file of a tree off the runtime: it may be served by this very process.
pub async fn read(tree: &Arc<ImageTree>, below: &str) -> std::io::Result<Vec<u8>> {
    let (tree, below) = (tree.clone(), below.to_owned());
    castor_task::reading(move || std::fs::read(path(&tree, &below))).await
}

/// Reads a file of a tree of which, or of the layer of which, reads have failed: until it has its bytes. What was asked for in
/// vain is waited for by whoever comes next, and not for long.
pub async fn read_when_well(tree: &Arc<ImageTree>, below: &str) -> Vec<u8> {
    let well = async {
        loop {
            match read(tree, below).await {
                Ok(bytes) => break bytes,
                Err(error) => assert_eq!(error.raw_os_error(), Some(5), "{below}: {error}"),
            }
        }
    };
    tokio::time::timeout(PATIENCE, well).await.unwrap_or_else(|_| panic!("{below} is never read"))
}

/// Names and types below a directory.
pub fn list(dir: &Path) -> BTreeMap<String, String> {
    use std::os::unix::fs::MetadataExt as _;
    let mut found = BTreeMap::new();
    let mut todo = vec![(dir.to_owned(), String::new())];
    while let Some((dir, name)) = todo.pop() {
        for entry in std::fs::read_dir(&dir).unwrap() {
            let entry = entry.unwrap();
            let name = format!("{name}{}", entry.file_name().to_string_lossy());
            let meta = std::fs::symlink_metadata(entry.path()).unwrap();
            let what = format!("{:o} {}:{}", meta.mode(), meta.uid(), meta.gid());
            if meta.is_dir() {
                todo.push((entry.path(), format!("{name}/")));
            }
            found.insert(name, what);
        }
    }
    found
}
