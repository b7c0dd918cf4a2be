//! Small images from lists of files.

use std::io::Write;

use bytes::Bytes;
use castor_estargz::{Builder, Options};
use castor_oci::{
    ANNOTATION_TOC_DIGEST, ANNOTATION_UNCOMPRESSED_SIZE, Annotations, ContainerConfig, Descriptor, Digest, ImageConfig,
    Manifest, Platform, Reference, RootFs, media_type,
};
use flate2::Compression;
use flate2::write::GzEncoder;
use http::{Method, StatusCode};

use crate::http1::send;

/// One entry of a layer.
#[derive(Debug, Clone)]
pub struct File {
    /// Path without a leading slash; of a directory with a trailing one.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u64,
    /// Group.
    pub gid: u64,
    /// Time of change, seconds since the epoch.
    pub mtime: u64,
    /// Content, or link target.
    pub data: Vec<u8>,
    /// What it is.
    pub kind: FileKind,
    /// Extended attributes.
    pub xattrs: Vec<(String, Vec<u8>)>,
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
    /// A character device, major and minor.
    Char(u32, u32),
    /// A block device, major and minor.
    Block(u32, u32),
    /// A named pipe.
    Fifo,
}

/// How a layer is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// A plain tar.
    Tar,
    /// A gzip-compressed tar.
    Gzip,
    /// eStargz, files cut into chunks of 64 KiB.
    Estargz,
}

/// A layer, built.
#[derive(Debug, Clone)]
pub struct Layer {
    /// Type, digest, size, annotations.
    pub descriptor: Descriptor,
    /// Digest of the tar, for eStargz with the TOC in it.
    pub diff_id: Digest,
    /// The blob.
    pub blob: Bytes,
    /// The tar that it was made from.
    pub tar: Bytes,
}

/// Collects layers and config for an image.
#[derive(Debug, Clone)]
pub struct ImageBuilder {
    layers: Vec<Layer>,
    config: ContainerConfig,
    platform: Platform,
}

/// An image, built and not pushed yet.
#[derive(Debug, Clone)]
pub struct Image {
    /// The layers, lowest first.
    pub layers: Vec<Layer>,
    /// The config's bytes.
    pub config: Bytes,
    /// The manifest's bytes.
    pub manifest: Bytes,
    /// The manifest's descriptor, with the platform.
    pub descriptor: Descriptor,
}

impl File {
    /// A regular file with mode 0644.
    pub fn new(path: &str, data: impl Into<Vec<u8>>) -> Self {
        Self {
            path: path.into(),
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: 1_700_000_000,
            data: data.into(),
            kind: FileKind::Regular,
            xattrs: Vec::new(),
        }
    }

    /// A directory with mode 0755.
    pub fn dir(path: &str) -> Self {
        let path = format!("{}/", path.trim_end_matches('/'));
        Self { mode: 0o755, kind: FileKind::Directory, ..Self::new(&path, "") }
    }

    /// A symbolic link.
    pub fn symlink(path: &str, target: &str) -> Self {
        Self { mode: 0o777, kind: FileKind::Symlink, ..Self::new(path, target) }
    }

    /// A hard link to an entry before it.
    pub fn hardlink(path: &str, target: &str) -> Self {
        Self { kind: FileKind::Hardlink, ..Self::new(path, target) }
    }

    /// A device or pipe.
    pub fn special(path: &str, kind: FileKind) -> Self {
        Self { kind, ..Self::new(path, "") }
    }

    /// A file that hides `path` of the layers below.
    pub fn whiteout(path: &str) -> Self {
        let (dir, name) = path.rsplit_once('/').map_or(("", path), |(dir, name)| (dir, name));
        let sep = if dir.is_empty() { "" } else { "/" };
        Self::new(&format!("{dir}{sep}.wh.{name}"), "")
    }

    /// Sets the permission bits.
    #[must_use]
    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = mode;
        self
    }

    /// Sets the owner.
    #[must_use]
    pub fn owner(mut self, uid: u64, gid: u64) -> Self {
        (self.uid, self.gid) = (uid, gid);
        self
    }

    /// Adds an extended attribute.
    #[must_use]
    pub fn xattr(mut self, name: &str, value: impl Into<Vec<u8>>) -> Self {
        self.xattrs.push((name.into(), value.into()));
        self
    }
}

/// A tar of `files`.
pub fn tar_of(files: &[File]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    builder.mode(tar::HeaderMode::Complete);
    for file in files {
        let mut header = tar::Header::new_ustar();
        header.set_mode(file.mode);
        header.set_uid(file.uid);
        header.set_gid(file.gid);
        header.set_mtime(file.mtime);
        header.set_size(0);
        let target = String::from_utf8_lossy(&file.data).into_owned();
        if !file.xattrs.is_empty() {
            let names: Vec<String> = file.xattrs.iter().map(|(name, _)| format!("SCHILY.xattr.{name}")).collect();
            let values = file.xattrs.iter().map(|(_, value)| value.as_slice());
            builder.append_pax_extensions(names.iter().map(String::as_str).zip(values)).unwrap();
        }
        match file.kind {
            FileKind::Regular => {
                header.set_entry_type(tar::EntryType::Regular);
                header.set_size(file.data.len() as u64);
                builder.append_data(&mut header, &file.path, file.data.as_slice()).unwrap();
            }
            FileKind::Directory => {
                header.set_entry_type(tar::EntryType::Directory);
                builder.append_data(&mut header, &file.path, std::io::empty()).unwrap();
            }
            FileKind::Symlink | FileKind::Hardlink => {
                let hard = file.kind == FileKind::Hardlink;
                header.set_entry_type(if hard { tar::EntryType::Link } else { tar::EntryType::Symlink });
                builder.append_link(&mut header, &file.path, target).unwrap();
            }
            FileKind::Char(major, minor) | FileKind::Block(major, minor) => {
                let block = matches!(file.kind, FileKind::Block(..));
                header.set_entry_type(if block { tar::EntryType::Block } else { tar::EntryType::Char });
                header.set_device_major(major).unwrap();
                header.set_device_minor(minor).unwrap();
                builder.append_data(&mut header, &file.path, std::io::empty()).unwrap();
            }
            FileKind::Fifo => {
                header.set_entry_type(tar::EntryType::Fifo);
                builder.append_data(&mut header, &file.path, std::io::empty()).unwrap();
            }
        }
    }
    builder.into_inner().unwrap()
}

impl Layer {
    /// Builds a layer of `files`.
    pub fn new(files: &[File], form: Form) -> Self {
        Self::of_tar(tar_of(files), form)
    }

    /// Builds a layer of a tar.
    pub fn of_tar(tar: Vec<u8>, form: Form) -> Self {
        let tar = Bytes::from(tar);
        let mut annotations = Annotations::new();
        let (kind, blob, diff_id) = match form {
            Form::Tar => (media_type::OCI_LAYER, tar.clone(), Digest::of(&tar)),
            Form::Gzip => {
                let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
                encoder.write_all(&tar).unwrap();
                (media_type::OCI_LAYER_GZIP, encoder.finish().unwrap().into(), Digest::of(&tar))
            }
            Form::Estargz => {
                let mut blob = Vec::new();
                let options = Options { chunk_size: 64 << 10, ..Options::default() };
                let built = Builder::new(options).build(&tar[..], &mut blob).unwrap();
                annotations.insert(ANNOTATION_TOC_DIGEST.into(), built.toc_digest.to_string());
                annotations.insert(ANNOTATION_UNCOMPRESSED_SIZE.into(), built.uncompressed_size.to_string());
                (media_type::OCI_LAYER_GZIP, blob.into(), built.diff_id)
            }
        };
        let mut descriptor = Descriptor::new(kind, Digest::of(&blob), blob.len() as u64);
        descriptor.annotations = annotations;
        Self { descriptor, diff_id, blob, tar }
    }
}

impl Default for ImageBuilder {
    fn default() -> Self {
        Self { layers: Vec::new(), config: ContainerConfig::default(), platform: Platform::host() }
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
        self.with(Layer::new(files, form))
    }

    /// Adds a layer that was built before on top.
    #[must_use]
    pub fn with(mut self, layer: Layer) -> Self {
        self.layers.push(layer);
        self
    }

    /// Adds a variable to the environment.
    #[must_use]
    pub fn env(mut self, variable: &str) -> Self {
        self.config.env.push(variable.into());
        self
    }

    /// Sets the platform.
    #[must_use]
    pub fn platform(mut self, platform: Platform) -> Self {
        self.platform = platform;
        self
    }

    /// Builds it.
    pub fn build(self) -> Image {
        let config = ImageConfig {
            platform: self.platform.clone(),
            config: self.config,
            rootfs: RootFs { kind: "layers".into(), diff_ids: self.layers.iter().map(|l| l.diff_id).collect() },
            ..ImageConfig::default()
        };
        let config = Bytes::from(serde_json::to_vec(&config).unwrap());
        let manifest = Manifest {
            schema_version: 2,
            media_type: media_type::OCI_MANIFEST.into(),
            artifact_type: None,
            config: Descriptor::new(media_type::OCI_CONFIG, Digest::of(&config), config.len() as u64),
            layers: self.layers.iter().map(|layer| layer.descriptor.clone()).collect(),
            subject: None,
            annotations: Annotations::new(),
        };
        let manifest = Bytes::from(serde_json::to_vec(&manifest).unwrap());
        let mut descriptor = Descriptor::new(media_type::OCI_MANIFEST, Digest::of(&manifest), manifest.len() as u64);
        descriptor.platform = Some(self.platform);
        Image { layers: self.layers, config, manifest, descriptor }
    }
}

impl Image {
    /// Puts it into `registry` as `name` (`path:tag`); returns the reference.
    pub fn put(&self, registry: &crate::Registry, name: &str) -> Reference {
        let reference = registry.reference(name);
        for layer in &self.layers {
            registry.put_blob(reference.path(), &layer.descriptor.media_type, layer.blob.clone());
        }
        registry.put_blob(reference.path(), media_type::OCI_CONFIG, self.config.clone());
        let tag = reference.tag().unwrap_or_default();
        registry.put_manifest(reference.path(), tag, media_type::OCI_MANIFEST, self.manifest.clone());
        reference
    }

    /// Pushes it to the registry at `host` (plain HTTP) as `name` (`path:tag`); returns the reference.
    pub async fn push(&self, host: &str, name: &str) -> Reference {
        let reference: Reference = format!("{host}/{name}").parse().unwrap();
        let path = reference.path();
        let blobs = self.layers.iter().map(|layer| &layer.blob).chain([&self.config]);
        for blob in blobs {
            let begun = send(host, Method::POST, &format!("/v2/{path}/blobs/uploads/"), "", Bytes::new()).await;
            assert_eq!(begun.status(), StatusCode::ACCEPTED, "{:?}", begun.body());
            let location = begun.headers()[http::header::LOCATION].to_str().unwrap().to_owned();
            let sep = if location.contains('?') { '&' } else { '?' };
            let target = format!("{location}{sep}digest={}", Digest::of(blob));
            let done = send(host, Method::PUT, &target, "application/octet-stream", blob.clone()).await;
            assert_eq!(done.status(), StatusCode::CREATED, "{:?}", done.body());
        }
        let target = format!("/v2/{path}/manifests/{}", reference.target());
        let done = send(host, Method::PUT, &target, media_type::OCI_MANIFEST, self.manifest.clone()).await;
        assert_eq!(done.status(), StatusCode::CREATED, "{:?}", done.body());
        reference
    }
}
