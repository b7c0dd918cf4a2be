//! A directory of blobs in the form of an OCI layout.

use std::io;
use std::path::{Path, PathBuf};

use castor_oci::{Descriptor, Digest, Index, Manifest, media_type};

/// The annotation that holds the name of an image.
const IMAGE_NAME: &str = "io.containerd.image.name";
/// The one that holds a tag.
const REFERENCE: &str = "org.opencontainers.image.ref.name";
/// What makes a directory a layout.
const MARK: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;
/// A longer index is none.
const LARGEST_INDEX: u64 = 64 << 20;

/// A layout that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// A file could not be read or written.
    #[error("{doing} {}: {source}", path.display())]
    File {
        /// What was being done.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The index makes no sense.
    #[error("could not unmarshal {}: {source}", path.display())]
    Index {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// Somebody else writes the index.
    #[error("could not lock {}", path.display())]
    Locked {
        /// The lock.
        path: PathBuf,
    },
}

/// What a descriptor is called in an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Name {
    /// A tag alone.
    Tag(String),
    /// The name of an image, with its tag.
    Image(String),
}

/// A layout.
#[derive(Debug, Clone)]
pub struct Layout {
    path: PathBuf,
}

impl Layout {
    /// The layout in a directory, which need not be there yet.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The same, and the directory is made.
    pub fn create(path: impl Into<PathBuf>) -> Result<Self, LayoutError> {
        let path = path.into();
        std::fs::create_dir_all(&path).map_err(|source| failed("create", &path, source))?;
        Ok(Self { path })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the blobs are.
    pub(super) fn blobs(&self) -> PathBuf {
        self.path.join("blobs/sha256")
    }

    /// Where a blob is, if it is there.
    pub fn blob(&self, digest: &Digest) -> PathBuf {
        self.blobs().join(digest.hex())
    }

    fn index_path(&self) -> PathBuf {
        self.path.join("index.json")
    }

    /// The index; `None` if there is no such file.
    pub fn index(&self) -> Result<Option<Index>, LayoutError> {
        let path = self.index_path();
        match std::fs::metadata(&path).map(|metadata| metadata.len()) {
            Ok(size) if size > LARGEST_INDEX => Err(failed("read", &path, io::Error::other("it is too large"))),
            Ok(_) => {
                let bytes = std::fs::read(&path).map_err(|source| failed("read", &path, source))?;
                serde_json::from_slice(&bytes).map(Some).map_err(|source| LayoutError::Index { path, source })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(failed("read", &path, source)),
        }
    }

    /// The descriptor of this name or tag.
    pub fn find(&self, tag: &str) -> Result<Option<Descriptor>, LayoutError> {
        let manifests = self.index()?.map(|index| index.manifests).unwrap_or_default();
        let called = |key: &str| {
            let is_it = |manifest: &&Descriptor| manifest.annotations.get(key).is_some_and(|value| value == tag);
            manifests.iter().find(is_it).cloned()
        };
        Ok(called(IMAGE_NAME).or_else(|| called(REFERENCE)))
    }

    /// Enters a descriptor into the index under names; others of the same names are forgotten.
    pub fn enter(&self, descriptor: &Descriptor, names: &[Name]) -> Result<(), LayoutError> {
        let _lock = Lock::take(self.path.join("index.json.lock"))?;
        let mark = self.path.join("oci-layout");
        std::fs::write(&mark, MARK).map_err(|source| failed("write", &mark, source))?;
        let mut index = self.index()?.unwrap_or_else(|| Index {
            schema_version: 2,
            media_type: media_type::OCI_INDEX.to_owned(),
            manifests: Vec::new(),
            annotations: Default::default(),
        });
        for name in names {
            let mut named = descriptor.clone();
            let (image, reference) = match name {
                Name::Tag(tag) => (None, tag.as_str()),
                Name::Image(name) => (Some(name.as_str()), object(name)),
            };
            if let Some(image) = image {
                named.annotations.insert(IMAGE_NAME.to_owned(), image.to_owned());
            }
            named.annotations.insert(REFERENCE.to_owned(), reference.to_owned());
            index.manifests.retain(|manifest| {
                let value = |key: &str| manifest.annotations.get(key).map(String::as_str);
                value(REFERENCE) != Some(reference) || value(IMAGE_NAME) != image
            });
            index.manifests.push(named);
        }
        let path = self.index_path();
        let bytes = serde_json::to_vec(&index).map_err(|source| LayoutError::Index { path: path.clone(), source })?;
        let temporary = self.path.join("index.json.tmp");
        // Whoever reads it sees all of it, or what was there before.
        std::fs::write(&temporary, bytes)
            .and_then(|()| std::fs::rename(&temporary, &path))
            .map_err(|source| failed("write", &path, source))
    }

    /// Removes the blobs that nothing in the index leads to. Gives how many.
    pub fn sweep(&self) -> Result<usize, LayoutError> {
        let mut kept = std::collections::BTreeSet::new();
        let mut open: Vec<Descriptor> = self.index()?.map(|index| index.manifests).unwrap_or_default();
        while let Some(descriptor) = open.pop() {
            if kept.insert(descriptor.digest.hex()) {
                open.extend(self.children(&descriptor));
            }
        }
        let dir = self.blobs();
        let entries = std::fs::read_dir(&dir).map_err(|source| failed("read", &dir, source))?;
        let mut removed = 0;
        for entry in entries {
            let entry = entry.map_err(|source| failed("read", &dir, source))?;
            if entry.file_name().to_str().is_some_and(|name| kept.contains(name)) {
                continue;
            }
            let path = entry.path();
            std::fs::remove_file(&path).map_err(|source| failed("remove", &path, source))?;
            removed += 1;
        }
        Ok(removed)
    }

    /// What a manifest or an index is made of; nothing for other blobs, and for those that are not here.
    fn children(&self, descriptor: &Descriptor) -> Vec<Descriptor> {
        let path = self.blob(&descriptor.digest);
        if descriptor.size > LARGEST_INDEX || !descriptor.media_type.ends_with("json") {
            return Vec::new();
        }
        let Ok(bytes) = std::fs::read(&path) else { return Vec::new() };
        if let Ok(manifest) = serde_json::from_slice::<Manifest>(&bytes) {
            return manifest.layers.into_iter().chain([manifest.config]).collect();
        }
        serde_json::from_slice::<Index>(&bytes).map(|index| index.manifests).unwrap_or_default()
    }
}

/// The part of an image's name that says which of its kind: a tag, a digest, or the whole name if there is neither.
fn object(name: &str) -> &str {
    let (path, digest) = match name.split_once('@') {
        Some((path, digest)) => (path, Some(digest)),
        None => (name, None),
    };
    let last = path.rfind('/').map_or(0, |slash| slash + 1);
    match (path[last..].find(':'), digest) {
        (Some(colon), _) => &name[last + colon + 1..],
        (None, Some(digest)) => &name[name.len() - digest.len()..],
        (None, None) => "",
    }
}

fn failed(doing: &'static str, path: &Path, source: io::Error) -> LayoutError {
    LayoutError::File { doing, path: path.to_owned(), source }
}

/// The file by which those who write an index keep out of each other's way.
struct Lock {
    path: PathBuf,
    _file: std::fs::File,
}

impl Lock {
    fn take(path: PathBuf) -> Result<Self, LayoutError> {
        let file = std::fs::File::options()
            .create(true)
            .write(true)
            .truncate(false)
            .open(&path)
            .map_err(|source| failed("open", &path, source))?;
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { path, _file: file }),
            Err(_) => Err(LayoutError::Locked { path }),
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Nobody waits for it: a lock that is left over is taken over.
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(text: &str) -> Descriptor {
        Descriptor::new(media_type::OCI_MANIFEST, Digest::of(text), text.len() as u64)
    }

    #[test]
    fn names_lead_to_descriptors() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::create(dir.path().join("new/layout")).unwrap();
        assert_eq!(layout.find("latest").unwrap(), None);
        layout.enter(&descriptor("a"), &[Name::Tag("latest".into())]).unwrap();
        layout.enter(&descriptor("b"), &[Name::Image("example.com/x:1".into()), Name::Image("y".into())]).unwrap();
        layout.enter(&descriptor("c"), &[Name::Tag("latest".into())]).unwrap();
        let digest = |tag: &str| layout.find(tag).unwrap().map(|found| found.digest);
        assert_eq!(digest("latest"), Some(Digest::of("c")));
        assert_eq!(digest("example.com/x:1"), Some(Digest::of("b")));
        assert_eq!(digest("1"), Some(Digest::of("b")));
        assert_eq!(digest("2"), None);
        assert_eq!(layout.index().unwrap().unwrap().manifests.len(), 3);
        assert_eq!(std::fs::read_to_string(layout.path().join("oci-layout")).unwrap(), MARK);
        let mut files: Vec<_> =
            std::fs::read_dir(layout.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        files.sort();
        assert_eq!(files, ["index.json", "oci-layout"]);
    }

    #[test]
    fn two_do_not_write_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::create(dir.path()).unwrap();
        let lock = Lock::take(dir.path().join("index.json.lock")).unwrap();
        let refused = layout.enter(&descriptor("a"), &[]).unwrap_err();
        assert!(matches!(refused, LayoutError::Locked { .. }), "{refused}");
        drop(lock);
        layout.enter(&descriptor("a"), &[]).unwrap();
    }

    #[test]
    fn an_index_that_is_none_is_told() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("index.json"), "{").unwrap();
        let error = Layout::at(dir.path()).find("x").unwrap_err();
        assert!(error.to_string().starts_with("could not unmarshal "), "{error}");
    }

    #[test]
    fn what_nothing_leads_to_is_swept() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::create(dir.path()).unwrap();
        std::fs::create_dir_all(layout.blobs()).unwrap();
        let put = |bytes: &[u8]| std::fs::write(layout.blob(&Digest::of(bytes)), bytes).unwrap();
        let manifest = format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"x","digest":"{}","size":6}},"layers":[{{"mediaType":"x","digest":"{}","size":5}}]}}"#,
            Digest::of("config"),
            Digest::of("layer")
        );
        for bytes in [manifest.as_bytes(), b"config", b"layer", b"other"] {
            put(bytes);
        }
        layout.enter(&descriptor(&manifest), &[Name::Tag("latest".into())]).unwrap();
        assert_eq!(layout.sweep().unwrap(), 1);
        assert!(layout.blob(&Digest::of("layer")).exists() && !layout.blob(&Digest::of("other")).exists());
    }

    #[test]
    fn objects_of_names() {
        for (name, part) in [
            ("example.com/x:1", "1"),
            ("example.com:5000/x", ""),
            ("example.com:5000/x:a@sha256:bb", "a@sha256:bb"),
            ("x@sha256:bb", "sha256:bb"),
        ] {
            assert_eq!(object(name), part, "{name}");
        }
    }
}
