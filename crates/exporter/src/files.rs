//! `type=local` and `type=tar`: the files of a result, at the client.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use castor_archive::Timestamp as TarTime;
use castor_archive::tar::{Header, Kind, Writer};
use castor_fsutil::{Directory, Files, MapResult, Overlaid, Stat, Subdirectories, Tree, Visit, WalkError, mode};
use castor_oci::Hasher;
use castor_progress::Tally;
use castor_session::{Caller, Sessions, filesend};
use castor_store::Mounting;
use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::attest::Subject;
use crate::epoch::Epoch;
use crate::options::parse_bool;
use crate::{BuildResult, ExportCx, ExportError, Exporter, OptionError, PlatformResult, Response};

/// How long an exporter waits for its client's session.
const WAIT: Duration = Duration::from_secs(5);

/// Attributes of both exporters.
#[derive(Debug, Clone, PartialEq, Eq)]
struct FileOptions {
    /// A directory for each platform; by default if the result is one for several.
    split: Option<bool>,
    /// Remove at the client what is not in the result.
    delete: bool,
    /// The time that all files get.
    epoch: Epoch,
    /// What the names of statements' files begin with.
    prefix: String,
}

impl FileOptions {
    fn parse(kind: &str, attrs: &BTreeMap<String, String>) -> Result<Self, OptionError> {
        let mut options = Self { split: None, delete: false, epoch: Epoch::default(), prefix: String::new() };
        for (key, value) in attrs {
            match (key.as_str(), value.as_str()) {
                ("platform-split", _) => options.split = Some(parse_bool(key, value)?),
                ("mode", "" | "copy") => {}
                ("mode", "delete") if kind == "local" => options.delete = true,
                ("mode", _) => {
                    return Err(OptionError::Unsupported(format!("{kind} exporter option mode={value}")));
                }
                ("source-date-epoch", _) => options.epoch = Epoch::parse(value)?,
                ("attestation-prefix", _) => options.prefix.clone_from(value),
                // The client's own business, or metadata for the result.
                _ => {}
            }
        }
        Ok(options)
    }

    /// How files of `result` are written.
    fn layout(&self, result: &BuildResult) -> Result<Layout, OptionError> {
        let epoch = |platform: &PlatformResult| Ok((platform.id.clone(), self.epoch.of(result, &platform.id)?));
        let epochs = result.platforms.iter().map(epoch).collect::<Result<_, OptionError>>()?;
        let split = self.split.unwrap_or(result.multi_platform);
        Ok(Layout { epochs, prefix: self.prefix.clone(), by_platform: result.multi_platform && !split })
    }
}

/// A mounted ref as a tree; unmounted when the last reader is gone.
struct MountedTree {
    directory: Directory,
    _mounting: Arc<Mounting>,
}

impl Tree for MountedTree {
    fn walk(&self, visit: Visit<'_>) -> Result<(), WalkError> {
        self.directory.walk(visit)
    }

    fn open(&self, path: &[u8]) -> io::Result<Box<dyn Read + Send>> {
        self.directory.open(path)
    }
}

/// How files are written.
struct Layout {
    /// The time that all files of a platform get, by its id.
    epochs: BTreeMap<String, Option<Timestamp>>,
    /// What the names of statements' files begin with.
    prefix: String,
    /// The platform is part of these names.
    by_platform: bool,
}

impl Layout {
    fn epoch(&self, platform: &PlatformResult) -> Option<Timestamp> {
        self.epochs.get(&platform.id).copied().flatten()
    }

    /// The name of a statement's file.
    fn name(&self, path: &str, platform: &str) -> String {
        let base = path.rsplit('/').next().unwrap_or(path);
        let name = format!("{}{base}", self.prefix);
        if !self.by_platform {
            return name;
        }
        let platform = platform.replace('/', "_");
        match name.rfind('.') {
            Some(dot) => format!("{}.{platform}{}", &name[..dot], &name[dot..]),
            None => format!("{name}.{platform}"),
        }
    }
}

/// The files of a platform's result, and what is attested of them.
async fn tree(cx: &ExportCx, platform: &PlatformResult, layout: &Layout) -> Result<Arc<dyn Tree>, ExportError> {
    let epoch = layout.epoch(platform);
    let plain = plain_tree(cx, platform, epoch).await?;
    let attestations: Vec<_> = platform.attestations.iter().filter(|one| !one.inline_only).cloned().collect();
    if attestations.is_empty() {
        return Ok(plain);
    }
    let hashed = plain.clone();
    let subjects = castor_task::reading(move || subjects(hashed.as_ref())).await?;
    let time = epoch.unwrap_or_else(|| Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default());
    let mut statements = Files::default();
    let mut names = std::collections::HashSet::new();
    for attestation in &attestations {
        let name = layout.name(&attestation.path, &platform.id);
        let bytes = crate::attest::file(attestation, &subjects).map_err(ExportError::Attestation)?;
        let stat = Stat {
            path: name.clone().into(),
            mode: 0o600,
            mod_time: i64::try_from(time.as_nanosecond()).unwrap_or(i64::MAX),
            ..Stat::default()
        };
        if !names.insert(name.clone()) {
            return Err(ExportError::SameAttestation(name));
        }
        statements.insert(stat, bytes);
    }
    Ok(Arc::new(Overlaid { lower: plain, upper: statements }))
}

/// The files of a tree, by what is in them. Blocks.
fn subjects(tree: &dyn Tree) -> Result<Vec<Subject>, ExportError> {
    let mut subjects = Vec::new();
    let walked = tree.walk(&mut |stat| {
        if mode::is_regular(stat.mode) {
            let failed = |source| WalkError::entry("hash", &stat.path, source);
            let mut hasher = Hasher::new();
            let mut file = tree.open(&stat.path).map_err(failed)?;
            let mut buffer = vec![0; 128 << 10];
            loop {
                match file.read(&mut buffer).map_err(failed)? {
                    0 => break,
                    length => hasher.update(&buffer[..length]),
                }
            }
            subjects.push(Subject::new(String::from_utf8_lossy(&stat.path), hasher.finish()));
        }
        Ok(())
    });
    walked.map_err(|error| io::Error::other(error.to_string()))?;
    Ok(subjects)
}

async fn plain_tree(
    cx: &ExportCx,
    platform: &PlatformResult,
    epoch: Option<Timestamp>,
) -> Result<Arc<dyn Tree>, ExportError> {
    let Some(reference) = platform.reference.as_ref().filter(|reference| !reference.is_scratch()) else {
        return Ok(Arc::new(Files::default()));
    };
    let mounting = reference.mount(&cx.cx).await?;
    let mut directory = Directory::open(mounting.path()).map_err(|error| io::Error::other(error.to_string()))?;
    if let Some(epoch) = epoch {
        let time = i64::try_from(epoch.as_nanosecond()).unwrap_or(i64::MAX);
        directory = directory.with_map(Arc::new(move |stat: &mut Stat| {
            stat.mod_time = time;
            MapResult::Keep
        }));
    }
    Ok(Arc::new(MountedTree { directory, _mounting: mounting }))
}

/// The result as one tree: of one platform as it is, of several with a directory for each if `split`.
async fn whole(
    cx: &ExportCx,
    result: &BuildResult,
    split: bool,
    layout: &Layout,
) -> Result<Arc<dyn Tree>, ExportError> {
    if !split {
        return match result.platforms.as_slice() {
            [] => Ok(Arc::new(Files::default())),
            [only] => tree(cx, only, layout).await,
            _ => Err(ExportError::Client("several platforms need platform-split=true".into())),
        };
    }
    let mut trees = Subdirectories::default();
    for platform in &result.platforms {
        // BuildKit's directories have no time but this one.
        let time = layout.epoch(platform).unwrap_or(Timestamp::UNIX_EPOCH);
        let stat = Stat {
            path: platform.id.replace('/', "_").into(),
            mode: mode::DIR | 0o755,
            mod_time: i64::try_from(time.as_nanosecond()).unwrap_or(i64::MAX),
            ..Stat::default()
        };
        trees.insert(stat, tree(cx, platform, layout).await?)?;
    }
    Ok(Arc::new(trees))
}

/// Without a directory for each, no platform may replace a file of another.
async fn check_overlap(cx: &ExportCx, result: &BuildResult, layout: &Layout) -> Result<(), ExportError> {
    let mut seen = std::collections::HashMap::<Bytes, String>::new();
    for platform in &result.platforms {
        let (tree, id) = (tree(cx, platform, layout).await?, platform.id.clone());
        let checked = castor_task::reading(move || {
            let mut overlap = None;
            let walked = tree.walk(&mut |stat| {
                if stat.mode & mode::DIR == 0
                    && let Some(other) = seen.insert(stat.path.clone(), id.clone())
                {
                    overlap.get_or_insert((stat.path, other));
                }
                Ok(())
            });
            walked.map_err(|error| io::Error::other(error.to_string()))?;
            Ok::<_, ExportError>((overlap, seen))
        });
        let (overlap, so_far) = checked.await?;
        if let Some((path, other)) = overlap {
            let id = &platform.id;
            let path = castor_fsutil::path::display(&path);
            let message = format!("cannot overwrite {path} from {other} with {id} when split option is disabled");
            return Err(ExportError::Client(message));
        }
        seen = so_far;
    }
    Ok(())
}

async fn caller(sessions: &Sessions, cx: &ExportCx) -> Result<Caller, ExportError> {
    sessions.get(&cx.session, WAIT).await.map_err(client)
}

fn client(error: impl std::fmt::Display) -> ExportError {
    ExportError::Client(error.to_string())
}

/// Sends the files of a result to a directory of the client.
pub struct LocalExporter {
    sessions: Sessions,
    options: FileOptions,
}

impl std::fmt::Debug for LocalExporter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("LocalExporter").field(&self.options).finish()
    }
}

impl LocalExporter {
    /// An exporter with these attributes.
    pub fn new(sessions: Sessions, attrs: &BTreeMap<String, String>) -> Result<Self, ExportError> {
        Ok(Self { sessions, options: FileOptions::parse("local", attrs)? })
    }

    async fn send(&self, cx: &ExportCx, tree: Arc<dyn Tree>, label: &str) -> Result<(), ExportError> {
        let caller = caller(&self.sessions, cx).await?;
        let copying = Arc::new(Mutex::new(cx.cx.reporter().start(label, "", 0)));
        let progress: castor_fsutil::Progress = {
            let copying = copying.clone();
            Arc::new(move |bytes| copying.lock().update(i64::try_from(bytes).unwrap_or(i64::MAX)))
        };
        let sending = filesend::send_dir(&caller, cx.index, self.options.delete, tree, Some(progress));
        tokio::select! {
            () = cx.cx.token().cancelled() => Err(ExportError::Cancelled),
            sent = sending => sent.map_err(client),
        }
    }
}

#[async_trait]
impl Exporter for LocalExporter {
    fn name(&self) -> &'static str {
        "exporting to client directory"
    }

    async fn export(&self, cx: &ExportCx, result: &BuildResult) -> Result<Response, ExportError> {
        let split = self.options.split.unwrap_or(result.multi_platform);
        let layout = self.options.layout(result)?;
        if !split && result.platforms.len() > 1 {
            check_overlap(cx, result, &layout).await?;
            for platform in &result.platforms {
                let tree = tree(cx, platform, &layout).await?;
                self.send(cx, tree, "copying files").await?;
            }
            return Ok(Response::new());
        }
        if self.options.delete || result.platforms.len() < 2 {
            let tree = whole(cx, result, split, &layout).await?;
            let label = match result.platforms.as_slice() {
                [only] if split => format!("copying files {}", only.id),
                _ => "copying files".to_owned(),
            };
            self.send(cx, tree, &label).await?;
            return Ok(Response::new());
        }
        for platform in &result.platforms {
            let one = BuildResult { platforms: vec![platform.clone()], ..result.clone() };
            let tree = whole(cx, &one, true, &layout).await?;
            self.send(cx, tree, &format!("copying files {}", platform.id)).await?;
        }
        Ok(Response::new())
    }
}

/// Sends the files of a result to the client as one tar.
pub struct TarExporter {
    sessions: Sessions,
    options: FileOptions,
}

impl std::fmt::Debug for TarExporter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("TarExporter").field(&self.options).finish()
    }
}

impl TarExporter {
    /// An exporter with these attributes.
    pub fn new(sessions: Sessions, attrs: &BTreeMap<String, String>) -> Result<Self, ExportError> {
        Ok(Self { sessions, options: FileOptions::parse("tar", attrs)? })
    }
}

#[async_trait]
impl Exporter for TarExporter {
    fn name(&self) -> &'static str {
        "exporting to client tarball"
    }

    async fn export(&self, cx: &ExportCx, result: &BuildResult) -> Result<Response, ExportError> {
        let tree = whole(cx, result, result.multi_platform, &self.options.layout(result)?).await?;
        let caller = caller(&self.sessions, cx).await?;
        let sending = Tally::start(cx.cx.reporter(), "sending tarball", "", 0);
        let mut stream = filesend::open(&caller, cx.index, &BTreeMap::new()).map_err(client)?;
        let (sender, mut pieces) = mpsc::channel(4);
        let writing = castor_task::reading(move || write_tar(tree.as_ref(), Pieces::new(sender)));
        let forwarding = async {
            while let Some(piece) = pieces.recv().await {
                let length = piece.len();
                stream.write(piece).await.map_err(client)?;
                sending.add(length as i64);
            }
            Ok::<_, ExportError>(stream)
        };
        let (written, stream) = tokio::select! {
            () = cx.cx.token().cancelled() => return Err(ExportError::Cancelled),
            both = async { tokio::join!(writing, forwarding) } => both,
        };
        // The client's refusal first: that nobody takes the pieces any more is a consequence.
        let stream = stream?;
        written?;
        stream.finish().await.map_err(client)?;
        sending.finish();
        Ok(Response::new())
    }
}

/// Bytes on their way to the client, in pieces of a useful size.
struct Pieces {
    sender: mpsc::Sender<Bytes>,
    buffer: BytesMut,
}

impl Pieces {
    const SIZE: usize = 256 << 10;

    fn new(sender: mpsc::Sender<Bytes>) -> Self {
        Self { sender, buffer: BytesMut::with_capacity(Self::SIZE) }
    }
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= Self::SIZE {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let piece = std::mem::replace(&mut self.buffer, BytesMut::with_capacity(Self::SIZE)).freeze();
        self.sender.blocking_send(piece).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// Writes a tree as a tar, as Go's library would: times of whole seconds, directories with a slash at their end.
fn write_tar(tree: &dyn Tree, out: impl Write) -> Result<(), ExportError> {
    let mut writer = Writer::new(out);
    tree.walk(&mut |stat| {
        let header = header(&stat);
        let data = if header.kind == Kind::File && header.size > 0 {
            tree.open(&stat.path).map_err(|source| WalkError::entry("open", &stat.path, source))?
        } else {
            Box::new(io::empty())
        };
        // A file that grew or shrank under us must not shift the entries behind it.
        let mut data = data.take(header.size);
        writer.append(&header, &mut data).map_err(|source| WalkError::entry("archive", &stat.path, source))
    })
    .map_err(|error| io::Error::other(error.to_string()))?;
    writer.finish()?.flush()?;
    Ok(())
}

fn header(stat: &Stat) -> Header {
    let kind = match stat.mode & mode::TYPE {
        m if m & mode::DIR != 0 => Kind::Directory,
        m if m & mode::SYMLINK != 0 => Kind::Symlink,
        m if m & mode::CHAR_DEVICE != 0 => Kind::CharDevice,
        m if m & mode::DEVICE != 0 => Kind::BlockDevice,
        m if m & mode::NAMED_PIPE != 0 => Kind::Fifo,
        _ if !stat.linkname.is_empty() => Kind::Hardlink,
        _ => Kind::File,
    };
    let mut path = stat.path.to_vec();
    if kind == Kind::Directory {
        path.push(b'/');
    }
    let mut header = Header {
        path,
        kind,
        mode: mode::permissions(stat.mode),
        uid: stat.uid.into(),
        gid: stat.gid.into(),
        size: if kind == Kind::File { u64::try_from(stat.size).unwrap_or_default() } else { 0 },
        mtime: TarTime::from_seconds((stat.mod_time + 500_000_000).div_euclid(1_000_000_000)),
        link: stat.linkname.to_vec(),
        dev_major: u32::try_from(stat.devmajor).unwrap_or_default(),
        dev_minor: u32::try_from(stat.devminor).unwrap_or_default(),
        ..Header::default()
    };
    for (name, value) in &stat.xattrs {
        header.push_xattr(name.as_bytes(), value);
    }
    header
}

#[cfg(test)]
mod tests {
    use super::*;
    use castor_archive::tar::Reader;

    #[test]
    fn statements_name_files_and_their_own_file_tells_platforms_apart() {
        let mut files = Files::default();
        let stat = |path: &'static [u8], mode: u32| Stat { path: path.into(), mode, ..Stat::default() };
        files.insert(stat(b"d", mode::DIR | 0o755), "");
        files.insert(stat(b"d/f", 0o644), "hello");
        files.insert(stat(b"l", mode::SYMLINK | 0o777), "");
        let found = subjects(&files).unwrap();
        assert_eq!(found, [Subject::new("d/f", castor_oci::Digest::of("hello"))]);
        let mut layout = Layout { epochs: BTreeMap::new(), prefix: "x-".into(), by_platform: false };
        assert_eq!(layout.name("a/provenance.json", "linux/amd64"), "x-provenance.json");
        layout.by_platform = true;
        assert_eq!(layout.name("sbom.spdx.json", "linux/arm64"), "x-sbom.spdx.linux_arm64.json");
    }

    #[test]
    fn a_tree_becomes_a_tar() {
        let mut files = Files::default();
        let entry = |path: &'static [u8], mode: u32, linkname: &'static [u8]| Stat {
            path: path.into(),
            mode,
            linkname: linkname.into(),
            mod_time: 1_700_000_000_600_000_000,
            uid: 7,
            ..Stat::default()
        };
        files.insert(entry(b"d", mode::DIR | 0o755, b""), "");
        files.insert(entry(b"d/caf\xe9", 0o644, b""), "hello");
        files.insert(entry(b"d/l", mode::SYMLINK | 0o777, b"caf\xe9"), "");
        let mut bytes = Vec::new();
        write_tar(&files, &mut bytes).unwrap();
        let mut reader = Reader::new(bytes.as_slice());
        let mut seen = Vec::new();
        while let Some(header) = reader.next().unwrap() {
            seen.push((header.path, header.kind, header.size, header.mtime.seconds, header.link));
        }
        let time = 1_700_000_001;
        assert_eq!(
            seen,
            [
                (b"d/".to_vec(), Kind::Directory, 0, time, Vec::new()),
                (b"d/caf\xe9".to_vec(), Kind::File, 5, time, Vec::new()),
                (b"d/l".to_vec(), Kind::Symlink, 0, time, b"caf\xe9".to_vec())
            ]
        );
    }

    #[test]
    fn an_unknown_mode_is_refused() {
        let attrs = [("mode".to_owned(), "move".to_owned())].into();
        assert!(FileOptions::parse("local", &attrs).unwrap_err().to_string().contains("mode=move"));
        let attrs = [("mode".to_owned(), "delete".to_owned())].into();
        assert!(FileOptions::parse("local", &attrs).unwrap().delete);
        assert!(FileOptions::parse("tar", &attrs).is_err());
    }
}
