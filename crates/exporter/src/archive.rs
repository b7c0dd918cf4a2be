//! `type=oci` and `type=docker`: an image as files at the client, in one tar or as blobs in a directory.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use bytes::Bytes;
use castor_archive::tar::{Header, Kind};
use castor_blobs::{Blobs, LayerBlob};
use castor_oci::{Descriptor, Digest, Index, Reference, media_type};
use castor_progress::Tally;
use castor_registry::Client;
use castor_session::content::RemoteStore;
use castor_session::{Caller, SessionError, Sessions, filesend};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use jiff::Timestamp;
use serde::Serialize;

use crate::image::Assembled;
use crate::options::parse_bool;
use crate::{BuildResult, ExportCx, ExportError, Exporter, ImageExporter, ImageOptions, Response};

/// How long an exporter waits for its client's session.
const WAIT: Duration = Duration::from_secs(5);
/// Annotation with the full name of an image in an index.
const IMAGE_NAME: &str = "io.containerd.image.name";
/// Annotation with the tag alone.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Annotation with the time at which the image was exported.
const CREATED: &str = "org.opencontainers.image.created";
/// The client's store that takes an image in a directory.
const STORE: &str = "export";
/// Tar's blocks.
const BLOCK: usize = 512;

/// For whom an archive is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArchiveKind {
    /// Whoever reads an OCI image layout.
    Oci,
    /// `docker load`: one image, and the file that it looks for.
    Docker,
}

/// Exports images as archives.
pub struct ArchiveExporter {
    image: ImageExporter,
    sessions: Sessions,
    kind: ArchiveKind,
    /// One tar, rather than blobs in a directory.
    tar: bool,
}

impl std::fmt::Debug for ArchiveExporter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ArchiveExporter").field("kind", &self.kind).field("image", &self.image).finish_non_exhaustive()
    }
}

impl ArchiveExporter {
    /// An exporter with these attributes.
    pub fn new(
        kind: ArchiveKind,
        blobs: Blobs,
        registry: Client,
        sessions: Sessions,
        attrs: &BTreeMap<String, String>,
    ) -> Result<Self, ExportError> {
        let mut attrs = attrs.clone();
        let tar = attrs.remove("tar").map(|value| parse_bool("tar", &value)).transpose()?.unwrap_or(true);
        let options = ImageOptions { push: false, ..ImageOptions::parse(&attrs)? };
        Ok(Self { image: ImageExporter::with_options(blobs, registry, options), sessions, kind, tar })
    }

    async fn send_tar(
        &self,
        cx: &ExportCx,
        caller: &Caller,
        files: Vec<Entry<'_>>,
        response: &Response,
        tally: &Tally,
    ) -> Result<(), ExportError> {
        let mut stream = filesend::open(caller, cx.index, response).map_err(client)?;
        for file in files {
            stream.write(file.header()?).await.map_err(client)?;
            let size = file.size;
            let Some(content) = file.content else { continue };
            let mut pieces = self.open(cx, content).await?;
            let mut written = 0;
            while let Some(piece) = pieces.next().await.transpose()? {
                let length = piece.len();
                written += length as u64;
                stream.write(piece).await.map_err(client)?;
                tally.add(length as i64);
            }
            if written != size {
                return Err(ExportError::Client(format!("{} has {written} bytes instead of {size}", file.path)));
            }
            let padding = size.next_multiple_of(BLOCK as u64) - size;
            stream.write(Bytes::from(vec![0; usize::try_from(padding).unwrap_or_default()])).await.map_err(client)?;
        }
        stream.write(Bytes::from_static(&[0; 2 * BLOCK])).await.map_err(client)?;
        // A client that has it already says so; that is a success.
        stream.finish().await.map_err(client)?;
        Ok(())
    }

    async fn send_blobs(&self, cx: &ExportCx, caller: &Caller, image: &Assembled) -> Result<(), ExportError> {
        let store = RemoteStore::new(caller.clone(), STORE);
        for (descriptor, content) in blobs(image).into_values() {
            let pieces = self.open(cx, content).await?;
            let pieces =
                pieces.map(|piece| piece.map_err(|source| SessionError::Io { doing: "read blob".to_owned(), source }));
            store.write(descriptor, BTreeMap::new(), pieces).await.map_err(client)?;
        }
        Ok(())
    }

    async fn open(
        &self,
        cx: &ExportCx,
        content: Content<'_>,
    ) -> Result<BoxStream<'static, std::io::Result<Bytes>>, ExportError> {
        match content {
            Content::Bytes(bytes) => Ok(futures::stream::once(async move { Ok(bytes) }).boxed()),
            Content::Layer(layer) => {
                let blob = self.image.blobs().open(&cx.cx, layer).await.map_err(std::sync::Arc::new)?;
                Ok(blob.stream(0))
            }
        }
    }
}

/// Where the bytes of a file are.
enum Content<'a> {
    Bytes(Bytes),
    Layer(&'a LayerBlob),
}

/// A file or directory of an archive.
struct Entry<'a> {
    path: String,
    mode: u32,
    size: u64,
    /// `None` is a directory.
    content: Option<Content<'a>>,
}

impl<'a> Entry<'a> {
    fn directory(path: &str) -> Self {
        Self { path: path.to_owned(), mode: 0o755, size: 0, content: None }
    }

    fn bytes(path: &str, mode: u32, bytes: Vec<u8>) -> Self {
        Self { path: path.to_owned(), mode, size: bytes.len() as u64, content: Some(Content::Bytes(bytes.into())) }
    }

    fn blob(descriptor: &Descriptor, content: Content<'a>) -> Self {
        Self { path: blob_path(&descriptor.digest), mode: 0o444, size: descriptor.size, content: Some(content) }
    }

    fn header(&self) -> Result<Bytes, ExportError> {
        let header = Header {
            path: self.path.clone().into_bytes(),
            kind: if self.content.is_some() { Kind::File } else { Kind::Directory },
            mode: self.mode,
            size: self.size,
            ..Header::default()
        };
        let blocks = header.encode().map_err(|error| ExportError::Client(error.to_string()))?;
        Ok(blocks.into())
    }
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/{}", digest.to_string().replacen(':', "/", 1))
}

/// Everything that an image is made of, each blob once.
fn blobs(image: &Assembled) -> BTreeMap<Digest, (&Descriptor, Content<'_>)> {
    let layers = image.layers.iter().map(|layer| (&layer.descriptor, Content::Layer(layer)));
    let documents = image.configs.iter().chain(&image.extras).chain(&image.manifests).chain([&image.root]);
    let documents = documents.map(|one| (&one.descriptor, Content::Bytes(one.bytes.clone().into())));
    layers.chain(documents).map(|(descriptor, content)| (descriptor.digest, (descriptor, content))).collect()
}

/// The entries of an archive, sorted by name as containerd's are.
fn entries<'a>(
    kind: ArchiveKind,
    image: &'a Assembled,
    root: &Descriptor,
    names: &[Reference],
) -> Result<Vec<Entry<'a>>, ExportError> {
    let mut entries = vec![
        Entry::directory("blobs/"),
        Entry::directory("blobs/sha256/"),
        Entry::bytes("index.json", 0o644, index(root, names)?),
        Entry::bytes("oci-layout", 0o444, br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
    ];
    if kind == ArchiveKind::Docker {
        entries.push(Entry::bytes("manifest.json", 0o644, docker_manifest(image, names)?));
    }
    entries.extend(blobs(image).into_values().map(|(descriptor, content)| Entry::blob(descriptor, content)));
    entries.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(entries)
}

/// The layout's index: the image under each of its names.
fn index(root: &Descriptor, names: &[Reference]) -> Result<Vec<u8>, ExportError> {
    let named = |name: &Reference| {
        let mut named = root.clone();
        named.annotations.insert(IMAGE_NAME.into(), name.to_string());
        named.annotations.insert(REF_NAME.into(), name.tag().map_or_else(|| name.to_string(), str::to_owned));
        named
    };
    let manifests = match names {
        [] => vec![root.clone()],
        names => names.iter().map(named).collect(),
    };
    let index =
        Index { schema_version: 2, media_type: media_type::OCI_INDEX.into(), manifests, annotations: BTreeMap::new() };
    json(&index)
}

/// The list of images that `docker load` reads.
fn docker_manifest(image: &Assembled, names: &[Reference]) -> Result<Vec<u8>, ExportError> {
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct One {
        config: String,
        // Go's nil where there is nothing.
        repo_tags: Option<Vec<String>>,
        layers: Option<Vec<String>>,
    }
    fn list(list: Vec<String>) -> Option<Vec<String>> {
        (!list.is_empty()).then_some(list)
    }
    let one = One {
        config: image.configs.first().map(|config| blob_path(&config.descriptor.digest)).unwrap_or_default(),
        repo_tags: list(names.iter().map(Reference::familiar).collect()),
        layers: list(image.layers.iter().map(|layer| blob_path(&layer.descriptor.digest)).collect()),
    };
    json(&[one])
}

fn json(value: &impl Serialize) -> Result<Vec<u8>, ExportError> {
    serde_json::to_vec(value).map_err(|error| ExportError::Client(format!("write JSON: {error}")))
}

fn client(error: impl std::fmt::Display) -> ExportError {
    ExportError::Client(error.to_string())
}

#[async_trait]
impl Exporter for ArchiveExporter {
    fn name(&self) -> &'static str {
        match self.kind {
            ArchiveKind::Oci => "exporting to oci image format",
            ArchiveKind::Docker => "exporting to docker image format",
        }
    }

    async fn export(&self, cx: &ExportCx, result: &BuildResult) -> Result<Response, ExportError> {
        if self.kind == ArchiveKind::Docker && result.multi_platform {
            let message = "docker exporter does not currently support exporting manifest lists";
            return Err(ExportError::Client(message.to_owned()));
        }
        let image = self.image.for_result(result)?;
        let names = image.options().references(result.text("image.name"))?;
        let assembled = image.assemble(cx, result, &names, false).await?;
        let mut root = assembled.root.descriptor.clone();
        let created = image.options().epoch.of_all(result)?.unwrap_or_else(Timestamp::now);
        root.annotations.entry(CREATED.into()).or_insert_with(|| created.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());

        let mut response = image.response(&assembled, &names);
        let descriptor = base64::engine::general_purpose::STANDARD.encode(json(&root)?);
        response.insert("containerimage.descriptor".into(), descriptor);
        let caller = self.sessions.get(&cx.session, WAIT).await.map_err(client)?;
        let send = async {
            if !self.tar {
                return self.send_blobs(cx, &caller, &assembled).await;
            }
            let files = entries(self.kind, &assembled, &root, &names)?;
            let total: u64 = files.iter().map(|file| file.size).sum();
            let sending = Tally::start(cx.cx.reporter(), "sending tarball", "", total);
            self.send_tar(cx, &caller, files, &response, &sending).await?;
            sending.finish();
            Ok(())
        };
        tokio::select! {
            () = cx.cx.token().cancelled() => return Err(ExportError::Cancelled),
            sent = send => sent?,
        }
        Ok(response)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document;
    use castor_archive::tar::Reader;
    use castor_oci::Annotations;

    fn image() -> Assembled {
        let config =
            document::image_config(br#"{"os":"linux","architecture":"amd64"}"#, &[], None, None, true).unwrap();
        let root = document::manifest(config.descriptor.clone(), Vec::new(), Annotations::new(), true);
        Assembled { root, manifests: Vec::new(), configs: vec![config], layers: Vec::new(), extras: Vec::new() }
    }

    #[test]
    fn an_archive_is_a_layout_and_what_docker_looks_for() {
        let (image, names) = (image(), ["busybox".parse().unwrap(), "example.com/a/b:1".parse().unwrap()]);
        let entries = entries(ArchiveKind::Docker, &image, &image.root.descriptor, &names).unwrap();
        let mut tar = Vec::new();
        for entry in &entries {
            tar.extend_from_slice(&entry.header().unwrap());
            if let Some(Content::Bytes(bytes)) = &entry.content {
                tar.extend_from_slice(bytes);
                tar.resize(tar.len().next_multiple_of(BLOCK), 0);
            }
        }
        let mut reader = Reader::new(tar.as_slice());
        let mut seen = BTreeMap::new();
        while let Some(header) = reader.next().unwrap() {
            let mut data = Vec::new();
            std::io::Read::read_to_end(&mut reader, &mut data).unwrap();
            seen.insert(String::from_utf8(header.path).unwrap(), data);
        }
        let index: serde_json::Value = serde_json::from_slice(&seen["index.json"]).unwrap();
        let annotations = &index["manifests"][0]["annotations"];
        assert_eq!(annotations[IMAGE_NAME], "docker.io/library/busybox:latest");
        assert_eq!(annotations[REF_NAME], "latest");
        let manifest: serde_json::Value = serde_json::from_slice(&seen["manifest.json"]).unwrap();
        assert_eq!(manifest[0]["RepoTags"], serde_json::json!(["busybox:latest", "example.com/a/b:1"]));
        assert_eq!(manifest[0]["Layers"], serde_json::Value::Null);
        let config = manifest[0]["Config"].as_str().unwrap();
        assert_eq!(seen[config], image.configs[0].bytes);
        let paths: Vec<_> = entries.iter().map(|entry| entry.path.clone()).collect();
        assert!(paths.is_sorted() && paths[0] == "blobs/");
    }

    #[test]
    fn an_image_without_a_name_stands_in_the_index_once() {
        let image = image();
        let index: Index = serde_json::from_slice(&index(&image.root.descriptor, &[]).unwrap()).unwrap();
        assert_eq!(index.manifests.len(), 1);
        assert!(!index.manifests[0].annotations.contains_key(IMAGE_NAME));
    }
}
