//! Small images from lists of files.

use castor_oci::{Descriptor, Digest, Reference};

/// One entry of a layer.
#[derive(Debug, Clone)]
pub struct File {
    /// Path without a leading slash; of a directory with a trailing one.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Content, or link target.
    pub data: Vec<u8>,
    /// What it is.
    pub kind: FileKind,
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    Regular,
    /// A directory.
    Directory,
    /// A symbolic link to `data`.
    Symlink,
    /// A hard link to `data`.
    Hardlink,
}

/// How a layer is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// A plain tar.
    Tar,
    /// A gzip-compressed tar.
    Gzip,
    /// eStargz.
    Estargz,
}

/// A layer, built.
#[derive(Debug, Clone)]
pub struct Layer {
    /// Type, digest, size, annotations.
    pub descriptor: Descriptor,
    /// Digest of the tar.
    pub diff_id: Digest,
    /// The blob.
    pub blob: Vec<u8>,
    /// The tar within.
    pub tar: Vec<u8>,
}

/// Collects layers and config for an image.
#[derive(Debug, Clone, Default)]
pub struct ImageBuilder {}

/// An image, built and not pushed yet.
#[derive(Debug, Clone)]
pub struct Image {
    /// The layers, lowest first.
    pub layers: Vec<Layer>,
    /// The config's bytes.
    pub config: Vec<u8>,
    /// The manifest's bytes.
    pub manifest: Vec<u8>,
    /// The manifest's descriptor.
    pub descriptor: Descriptor,
}

impl File {
    /// A regular file with mode 0644.
    pub fn new(path: &str, data: impl Into<Vec<u8>>) -> Self {
        Self { path: path.into(), mode: 0o644, uid: 0, gid: 0, data: data.into(), kind: FileKind::Regular }
    }

    /// A directory with mode 0755.
    pub fn dir(path: &str) -> Self {
        let path = format!("{}/", path.trim_end_matches('/'));
        Self { path, mode: 0o755, uid: 0, gid: 0, data: Vec::new(), kind: FileKind::Directory }
    }

    /// A symbolic link.
    pub fn symlink(path: &str, target: &str) -> Self {
        Self { mode: 0o777, kind: FileKind::Symlink, ..Self::new(path, target) }
    }

    /// A hard link to an entry before it.
    pub fn hardlink(path: &str, target: &str) -> Self {
        Self { kind: FileKind::Hardlink, ..Self::new(path, target) }
    }

    /// Sets the permission bits.
    #[must_use]
    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = mode;
        self
    }
}

impl Layer {
    /// Builds a layer of `files`.
    pub fn new(files: &[File], form: Form) -> Self {
        let _ = (files, form);
        todo!()
    }
}

impl ImageBuilder {
    /// An image of the host's platform without layers.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a layer on top.
    #[must_use]
    pub fn layer(self, files: &[File], form: Form) -> Self {
        let _ = (files, form);
        todo!()
    }

    /// Adds a variable to the environment.
    #[must_use]
    pub fn env(self, variable: &str) -> Self {
        let _ = variable;
        todo!()
    }

    /// Builds it.
    pub fn build(self) -> Image {
        todo!()
    }
}

impl Image {
    /// Puts it into `registry` as `name` (`path:tag`); returns the reference.
    pub fn put(&self, registry: &crate::Registry, name: &str) -> Reference {
        let _ = (registry, name);
        todo!()
    }

    /// Pushes it to the registry at `host` (plain HTTP) as `name` (`path:tag`); returns the reference.
    pub async fn push(&self, host: &str, name: &str) -> Reference {
        let _ = (host, name);
        todo!()
    }
}
