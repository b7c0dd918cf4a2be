//! Layers made by real tools, and layers broken by hand, mounted and read as a step reads them. The files are those of
//! `castor-estargz`: its tests say what they are.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::Range;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use castor_layerfs::{
    BlobOpener, FetchError, ImageTree, Layer, LayerSource, LayerState, Lazy, Priority, RangeBody, Verification,
};
use castor_oci::{Descriptor, Digest};
use castor_progress::Reporter;
use futures::StreamExt as _;
use serde_json::Value;
use support::{Bench, path};

/// No layer here takes a moment: what takes this long hangs.
const HANG: Duration = Duration::from_secs(300);

fn testdata(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../estargz/testdata").join(name)
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// A blob as a registry has it, whatever the descriptor says.
struct Sample {
    name: String,
    blob: Bytes,
    external: Option<Bytes>,
    descriptor: Descriptor,
    diff_id: Option<Digest>,
    info: Value,
    requests: AtomicUsize,
}

#[async_trait]
impl BlobOpener for Sample {
    async fn range(&self, range: Range<u64>, _: Priority) -> Result<RangeBody, FetchError> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let here = |at: u64| usize::try_from(at).unwrap().min(self.blob.len());
        let bytes = self.blob.slice(here(range.start)..here(range.end));
        let pieces: Vec<_> = bytes.chunks(1000).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        Ok(RangeBody { range, full: false, stream: futures::stream::iter(pieces).boxed() })
    }

    fn describe(&self) -> String {
        self.name.clone()
    }

    async fn external_toc(&self) -> Result<Bytes, FetchError> {
        self.external.clone().ok_or_else(|| FetchError::new("there is none"))
    }
}

impl Sample {
    fn good(dir: &Path) -> Arc<Self> {
        let info = json(&dir.join("info.json"));
        Arc::new(Self {
            name: dir.file_name().unwrap().to_str().unwrap().to_owned(),
            blob: fs::read(dir.join("blob")).unwrap().into(),
            external: fs::read(dir.join("toc")).ok().map(Bytes::from),
            descriptor: serde_json::from_value(json(&dir.join("descriptor.json"))).unwrap(),
            diff_id: Some(info["diffID"].as_str().unwrap().parse().unwrap()),
            info,
            requests: AtomicUsize::new(0),
        })
    }

    fn broken(case: &Value) -> Option<Arc<Self>> {
        let read = |key: &str| Some(Bytes::from(fs::read(testdata("broken").join(case[key].as_str()?)).unwrap()));
        Some(Arc::new(Self {
            name: case["name"].as_str().unwrap().to_owned(),
            blob: read("blob").unwrap(),
            external: read("toc"),
            descriptor: serde_json::from_value(case["descriptor"].clone()).ok()?,
            diff_id: None,
            info: case.clone(),
            requests: AtomicUsize::new(0),
        }))
    }

    fn source(self: &Arc<Self>, want: Lazy) -> LayerSource {
        LayerSource {
            descriptor: self.descriptor.clone(),
            origins: vec!["registry.test/image".into()],
            image: format!("registry.test/image:{}", self.name),
            opener: self.clone(),
            diff_id: self.diff_id,
            want,
        }
    }

    fn is_legacy(&self) -> bool {
        self.info["format"] == "legacy stargz"
    }
}

fn good() -> Vec<Arc<Sample>> {
    let mut dirs: Vec<_> = fs::read_dir(testdata("good")).unwrap().map(|entry| entry.unwrap().path()).collect();
    dirs.sort();
    assert_eq!(dirs.len(), 46);
    dirs.iter().map(|dir| Sample::good(dir)).collect()
}

fn broken() -> Vec<Arc<Sample>> {
    let index: Vec<Value> = serde_json::from_value(json(&testdata("broken/index.json"))).unwrap();
    assert_eq!(index.len(), 143);
    // A descriptor that is none does not come this far: the manifest that has it is refused.
    index.iter().filter_map(Sample::broken).collect()
}

/// All names below the root, and the root itself, as bytes.
fn walk(root: &Path) -> BTreeMap<Vec<u8>, fs::Metadata> {
    let mut found = BTreeMap::from([(Vec::new(), fs::symlink_metadata(root).unwrap())]);
    let mut todo = vec![Vec::new()];
    while let Some(below) = todo.pop() {
        let dir = root.join(std::ffi::OsStr::from_bytes(&below));
        for entry in fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", below.escape_ascii())) {
            let entry = entry.unwrap();
            let name = entry.file_name().into_vec();
            let whole = if below.is_empty() { name } else { [&below[..], b"/", &name].concat() };
            let metadata = fs::symlink_metadata(entry.path()).unwrap();
            if metadata.is_dir() {
                todo.push(whole.clone());
            }
            found.insert(whole, metadata);
        }
    }
    found
}

/// What the kernel shows of a path, in the words of tree.json.
fn show(root: &Path, below: &[u8], metadata: &fs::Metadata, implied: bool) -> String {
    let path = root.join(std::ffi::OsStr::from_bytes(below));
    let kind = match metadata.mode() & 0o170_000 {
        0o100_000 => "reg",
        0o040_000 => "dir",
        0o120_000 => "symlink",
        0o020_000 => "char",
        0o060_000 => "block",
        0o010_000 => "fifo",
        other => panic!("type {other:o}"),
    };
    let mut line = format!("{kind} {:o} {} {}", metadata.mode() & 0o7777, metadata.uid(), metadata.gid());
    if !implied {
        line += &format!(" {}.{:09}", metadata.mtime(), metadata.mtime_nsec());
    }
    match kind {
        "reg" => {
            let content = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", below.escape_ascii()));
            assert_eq!(content.len() as u64, metadata.len());
            line += &format!(" {} {}", metadata.len(), Digest::of(content));
        }
        "symlink" => line += &format!(" {:?}", fs::read_link(&path).unwrap().into_os_string().into_string().unwrap()),
        "char" | "block" => {
            line += &format!(" {}:{}", rustix::fs::major(metadata.rdev()), rustix::fs::minor(metadata.rdev()));
        }
        _ => {}
    }
    let mut names = vec![0; 64 << 10];
    let length = rustix::fs::llistxattr(&path, &mut names).unwrap();
    for name in names[..length].split(|byte| *byte == 0).filter(|name| shown_xattr(name, kind)) {
        let name = std::str::from_utf8(name).unwrap();
        let mut value = vec![0; 64 << 10];
        let length = rustix::fs::lgetxattr(&path, name, &mut value).unwrap();
        line += &format!(" {name}={}", BASE64.encode(&value[..length]));
    }
    line
}

/// The kernel gives attributes of users for files and directories alone.
fn shown_xattr(name: &[u8], kind: &str) -> bool {
    !name.is_empty() && (!name.starts_with(b"user.") || matches!(kind, "reg" | "dir"))
}

/// The same from tree.json.
fn expect(entry: &Value) -> String {
    let number = |key: &str| entry.get(key).and_then(Value::as_u64).unwrap_or(0);
    let text = |key: &str| entry.get(key).and_then(Value::as_str).unwrap_or_default();
    let kind = text("type");
    let mut line = format!("{kind} {:o} {} {}", number("mode"), number("uid"), number("gid"));
    if entry.get("implicit").is_none() {
        let mtime = entry["mtime"].to_string();
        let (seconds, fraction) = mtime.split_once('.').unwrap_or((&mtime, "0"));
        let nanoseconds: u32 = format!("{fraction:0<9}").parse().unwrap();
        let seconds: i64 = seconds.parse().unwrap();
        // A negative time goes down to whole seconds and up by the fraction.
        line += &match mtime.starts_with('-') && nanoseconds > 0 {
            true => format!(" {}.{:09}", seconds - 1, 1_000_000_000 - nanoseconds),
            false => format!(" {seconds}.{nanoseconds:09}"),
        };
    }
    match kind {
        "reg" => line += &format!(" {} sha256:{}", number("size"), text("sha256")),
        "symlink" => line += &format!(" {:?}", text("linkname")),
        "char" | "block" => line += &format!(" {}:{}", number("devMajor"), number("devMinor")),
        _ => {}
    }
    let mut xattrs: Vec<_> = entry.get("xattrs").and_then(Value::as_object).into_iter().flatten().collect();
    xattrs.sort_by_key(|(name, _)| *name);
    for (name, value) in xattrs {
        let is_overlay = name.starts_with("trusted.overlay.") || name.starts_with("user.overlay.");
        if shown_xattr(name.as_bytes(), kind) && !is_overlay {
            line += &format!(" {name}={}", value.as_str().unwrap());
        }
    }
    line
}

/// What a mounted tree of the sample alone must show: by path, its line and the path of the inode's first name.
fn expected(sample: &Sample) -> BTreeMap<Vec<u8>, (String, Vec<u8>)> {
    let tree: Vec<Value> =
        serde_json::from_value(json(&testdata("good").join(&sample.name).join("tree.json"))).unwrap();
    let by_path: BTreeMap<&str, &Value> = tree.iter().map(|entry| (entry["path"].as_str().unwrap(), entry)).collect();
    let overlay = &sample.info["overlay"];
    let listed = |key: &str| overlay[key].as_array().cloned().unwrap_or_default();
    let mut hidden: BTreeSet<String> = BTreeSet::new();
    for name in listed("whiteouts").iter().chain(&listed("aufsMetadata")) {
        hidden.insert(name.as_str().unwrap().to_owned());
    }
    for dir in listed("opaqueDirs") {
        let dir = dir.as_str().unwrap();
        hidden.insert(if dir.is_empty() { ".wh..wh..opq".into() } else { format!("{dir}/.wh..wh..opq") });
    }
    let mut shown = BTreeMap::new();
    for entry in &tree {
        let path = entry["path"].as_str().unwrap();
        let source = entry.get("source").and_then(Value::as_str).unwrap_or(path);
        let mut entry = entry.clone();
        if source != path {
            // Of a link everything is its source's.
            entry["type"] = by_path[source]["type"].clone();
            entry["linkname"] = by_path[source].get("linkname").cloned().unwrap_or_default();
        }
        // What overlayfs takes for a whiteout is one.
        let is_whiteout = entry["type"] == "char"
            && ["devMajor", "devMinor"].iter().all(|key| entry.get(*key).and_then(Value::as_u64).unwrap_or(0) == 0);
        let below_hidden = hidden.iter().any(|name| path == name || path.starts_with(&format!("{name}/")));
        if !is_whiteout && !below_hidden {
            shown.insert(path.as_bytes().to_vec(), (expect(&entry), source.as_bytes().to_vec()));
        }
    }
    shown.entry(Vec::new()).or_insert_with(|| ("dir 755 0 0".into(), Vec::new()));
    shown
}

/// Compares a mounted tree with what it must show.
fn compare(tree: &ImageTree, sample: &Sample) {
    let root = path(tree, "");
    let (wanted, found) = (expected(sample), walk(&root));
    let names = |keys: Vec<&Vec<u8>>| keys.iter().map(|key| key.escape_ascii().to_string()).collect::<Vec<_>>();
    assert_eq!(names(found.keys().collect()), names(wanted.keys().collect()), "{}", sample.name);
    let mut inodes: BTreeMap<&[u8], u64> = BTreeMap::new();
    for (below, (line, source)) in &wanted {
        let metadata = &found[below];
        // Of a directory that nobody described the time says nothing.
        let implied = line.split(' ').nth(4).is_none_or(|time| !time.contains('.'));
        let name = format!("{}: {}", sample.name, below.escape_ascii());
        assert_eq!(&show(&root, below, metadata, implied), line, "{name}");
        let inode = *inodes.entry(source).or_insert(metadata.ino());
        assert_eq!(inode, metadata.ino(), "{name}: not one file with {}", source.escape_ascii());
    }
    let distinct: BTreeSet<u64> = inodes.values().copied().collect();
    assert_eq!(distinct.len(), inodes.len(), "{}: names share an inode", sample.name);
}

async fn check(bench: &Bench, sample: &Arc<Sample>) -> Arc<Layer> {
    let layer = bench.engine.layer(sample.source(Lazy::Require), &Reporter::discard()).await;
    let layer = layer.unwrap_or_else(|error| panic!("{}: {error}", sample.name));
    assert_eq!(layer.eager_reason(), None, "{}", sample.name);
    let tree = bench.engine.image_tree(&[layer.id()]).await.unwrap();
    let (mounted, this) = (tree.clone(), sample.clone());
    castor_task::reading(move || compare(&mounted, &this)).await;
    drop(tree);
    layer.complete().await.unwrap_or_else(|error| panic!("{}: {error}", sample.name));
    assert_eq!(layer.verified(), sample.diff_id, "{}", sample.name);
    // The same without a server; the largest are of one tree, and one of them will do.
    let tree = bench.engine.image_tree(&[layer.id()]).await.unwrap();
    assert!(!tree.is_served(), "{}", sample.name);
    if sample.info["input"] != "base" || sample.name == "storage-base" {
        let this = sample.clone();
        castor_task::reading(move || compare(&tree, &this)).await;
    }
    layer
}

/// Makes a layer object forget that chunks are here.
fn forget_chunks(object: &Path) {
    let path = object.join("presence");
    let old = fs::read(&path).unwrap();
    let chunks = u64::from_le_bytes(old[16..24].try_into().unwrap());
    let mut new = [b"CASTORPR", &1u32.to_le_bytes()[..], &0u32.to_le_bytes(), &chunks.to_le_bytes()].concat();
    new.resize(24 + chunks.div_ceil(8) as usize, 0);
    let digest = Digest::of(&new);
    new.extend(digest.as_bytes());
    fs::write(path, new).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_layers_of_all_tools_are_lazy_and_read_right() {
    let samples: Vec<_> = good().into_iter().filter(|sample| !sample.is_legacy()).collect();
    let bench = Bench::new().await;
    for sample in &samples {
        let layer = bench.engine.layer(sample.source(Lazy::Require), &Reporter::discard()).await;
        layer.unwrap_or_else(|error| panic!("{}: {error}", sample.name));
    }
    let ids = bench.engine.list().unwrap();
    // Two tools made the same bytes of the same files.
    assert_eq!(ids.len(), samples.len() - 1);
    // All of a small blob came along: now each chunk is asked for by whoever reads it.
    let root = bench.root.clone();
    let bench = bench
        .restart_with(|_| ids.iter().for_each(|id| forget_chunks(&root.join("layers/layers").join(id.directory()))))
        .await;
    for sample in samples.iter().filter(|sample| sample.name != "skopeo-padding-lost") {
        let before = sample.requests.load(Ordering::Relaxed);
        let layer = bench.engine.layer(sample.source(Lazy::Require), &Reporter::discard()).await.unwrap();
        assert!(layer.state() == LayerState::Lazy || layer.progress().chunks.1 == 0, "{}", sample.name);
        tokio::time::timeout(HANG, check(&bench, sample)).await.unwrap_or_else(|_| panic!("{} hangs", sample.name));
        assert!(sample.requests.load(Ordering::Relaxed) > before, "{}", sample.name);
    }
    bench.engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_layers_without_digests_are_lazy_only_where_that_is_allowed() {
    let legacy: Vec<_> = good().into_iter().filter(|sample| sample.is_legacy()).collect();
    assert_eq!(legacy.len(), 2);
    let refused = async |bench: &Bench, sample: &Arc<Sample>| {
        let outcome = bench.engine.layer(sample.source(Lazy::Require), &Reporter::discard()).await;
        let error = outcome.map(|layer| layer.id()).unwrap_err().to_string();
        assert!(error.contains("it has no annotation of a TOC digest"), "{error}");
    };
    let bench = Bench::new().await;
    refused(&bench, &legacy[1]).await;
    let bench = bench.restart_with(|config| config.verification = Verification::Waivable).await;
    refused(&bench, &legacy[1]).await;

    // One that asks for it, where it may ask.
    let mut asking = Sample::good(&testdata("good").join(&legacy[1].name));
    let skip = "containerd.io/snapshot/remote/stargz.skipverify";
    Arc::get_mut(&mut asking).unwrap().descriptor.annotations.insert(skip.into(), "true".into());
    let layer = bench.engine.layer(asking.source(Lazy::Require), &Reporter::discard()).await.unwrap();
    let id = layer.id();
    drop(layer);
    // What was begun unverified is not taken up where that is no longer allowed.
    let bench = bench.restart().await;
    assert!(bench.engine.existing(id).await.unwrap().is_none());
    let bench = bench.restart_with(|config| config.verification = Verification::Waivable).await;
    assert_eq!(check(&bench, &asking).await.id(), id);
    // And once all of it was verified it is a layer like any other.
    let bench = bench.restart().await;
    assert_eq!(bench.engine.existing(id).await.unwrap().unwrap().verified(), asking.diff_id);

    let bench = bench.restart_with(|config| config.verification = Verification::Off).await;
    check(&bench, &legacy[0]).await;
    bench.engine.shutdown().await;
}

/// What became of a broken layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fate {
    /// It cannot be had at all, and the error says why.
    Refused,
    /// Fetched first, with a reason, and read.
    Eager,
    /// Mounted lazily, and some reads failed.
    Failing,
    /// Mounted lazily, and all was right.
    Right,
}

/// The digest that the TOC has for each file, by path, where it has one and there is a TOC.
fn by_toc(sample: &Sample) -> BTreeMap<Vec<u8>, Digest> {
    let blob = sample.blob.to_vec();
    let opened = castor_estargz::open(&blob, &sample.descriptor.annotations, sample.external.as_deref());
    let Ok(castor_estargz::Opened { toc, .. }) = opened else { return BTreeMap::new() };
    let names = toc.listing.names();
    names.filter_map(|name| Some((toc.listing.path(name), toc.file(toc.listing.inode_of(name))?.digest?))).collect()
}

/// Reads all of a mounted tree: the digest of each file, or the number of the error.
fn read_all(tree: &ImageTree) -> BTreeMap<Vec<u8>, Result<Digest, i32>> {
    let root = path(tree, "");
    let files = walk(&root).into_iter().filter(|(_, metadata)| metadata.is_file());
    let read = |below: Vec<u8>| {
        let content = fs::read(root.join(std::ffi::OsStr::from_bytes(&below)));
        (below, content.map(Digest::of).map_err(|error| error.raw_os_error().unwrap()))
    };
    files.map(|(below, _)| read(below)).collect()
}

async fn examine(bench: &Bench, sample: &Arc<Sample>) -> (Fate, String) {
    let layer = match bench.engine.layer(sample.source(Lazy::Prefer), &Reporter::discard()).await {
        Ok(layer) => layer,
        Err(error) => return (Fate::Refused, error.to_string()),
    };
    if let Err(error) = layer.ready().await {
        return (Fate::Refused, error.to_string());
    }
    let reason = layer.eager_reason();
    let tree = match bench.engine.image_tree(&[layer.id()]).await {
        Ok(tree) => tree,
        Err(error) => return (Fate::Refused, error.to_string()),
    };
    let read = castor_task::reading(move || read_all(&tree)).await;
    let errors: Vec<_> = read.values().filter_map(|read| read.as_ref().err()).collect();
    assert!(errors.iter().all(|error| **error == 5), "{}: errors other than EIO: {errors:?}", sample.name);
    if let Some(reason) = reason {
        assert!(errors.is_empty() && !reason.is_empty(), "{}", sample.name);
        return (Fate::Eager, reason);
    }
    let told = by_toc(sample);
    for (below, digest) in &read {
        let (Ok(digest), Some(told)) = (digest, told.get(below)) else { continue };
        assert_eq!(digest, told, "{}: wrong bytes in {}", sample.name, below.escape_ascii());
    }
    if errors.is_empty() {
        return (Fate::Right, String::new());
    }
    let causes = layer.errors(0);
    assert!(!causes.is_empty(), "{}: nobody says why", sample.name);
    (Fate::Failing, causes[0].to_string())
}

/// What may become of it, by where a reader should notice what is wrong.
fn allowed(sample: &Sample) -> &'static [Fate] {
    use Fate::{Eager, Failing, Refused, Right};
    let name = sample.name.as_str();
    let noticed = sample.info["detectedAt"].as_str().unwrap();
    // The annotations tell rightly what the footer does not, or the other way round.
    if name.contains("-footer-") && name.starts_with("zstd-") || name.contains("-position-") {
        return &[Right, Eager];
    }
    match noticed {
        "chunk" | "file" => &[Failing, Eager, Refused],
        "descriptor" => &[Right, Refused, Eager],
        "nowhere or policy" | "tar-split" => &[Right],
        _ if noticed.contains("accepted") || noticed.contains("pass") || noticed.contains("empty tree") => {
            &[Right, Eager, Refused]
        }
        "toc or chunk" => &[Failing, Eager, Refused],
        "policy" => &[Right, Eager],
        // Legal, and hard: or settled in a way that tar has.
        "toc" if matches!(name, "hardlink-long-chain" | "name-type-change") => &[Right],
        "toc (VerifyTOC)" => &[Right, Eager],
        _ => &[Eager, Refused],
    }
}

async fn examine_all(verification: Verification) -> BTreeMap<Fate, usize> {
    let bench = Bench::with(|config| config.verification = verification).await;
    let mut fates = BTreeMap::new();
    let mut wrong = Vec::new();
    for sample in broken() {
        let outcome = tokio::time::timeout(HANG, examine(&bench, &sample)).await;
        let (fate, why) = outcome.unwrap_or_else(|_| panic!("{} hangs", sample.name));
        // Several share a blob: none may find what became of another.
        for id in bench.engine.list().unwrap() {
            bench.engine.remove(id).await.unwrap();
        }
        let _ = bench.content.delete(&sample.descriptor.digest).await;
        println!("{} {fate:?} {why}", sample.name);
        *fates.entry(fate).or_default() += 1;
        if verification == Verification::Required && !allowed(&sample).contains(&fate) {
            wrong.push(format!("{}: {fate:?} {why}; noticed at {}", sample.name, sample.info["detectedAt"]));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    bench.engine.shutdown().await;
    fates
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_no_broken_layer_shows_a_wrong_byte() {
    let fates = examine_all(Verification::Required).await;
    println!("{fates:?}");
    assert!(fates[&Fate::Failing] > 5 && fates[&Fate::Eager] > 50, "{fates:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_no_broken_layer_harms_who_waives_verification() {
    let fates = examine_all(Verification::Off).await;
    println!("{fates:?}");
    assert!(fates[&Fate::Failing] > 5 && fates[&Fate::Eager] > 30, "{fates:?}");
}
