//! Looking into results and at sources, as frontends ask for it.

use std::io::{Read, Seek as _, SeekFrom};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use castor_archive::tar;
use castor_fsutil::{Patterns, Stat, Walk};
use castor_llb::{GitSource, HttpSource, OciLayoutSource, Source};
use castor_oci::{Platform, Reference};
use castor_progress::{Event, Reporter, Sink, Timestamp, Vertex};
use castor_solver::Cx;
use castor_store::ImmutableRef;
use castor_task::{CancellationToken, reading};

use crate::bridge::{GitMeta, HttpMeta, ImageMeta, ReadDir, ReadFile, SourceMeta, SourceMetaRequest};
use crate::files::Tree;
use crate::git::Objects;
use crate::layout::Layout;
use crate::openers::{access, group};
use crate::web::file_name;
use crate::worker::{Worker, vertex_digest};
use crate::{BridgeError, OpError};

/// A file that a frontend reads is not larger: it travels in one message.
const MAX_FILE: u64 = 16 << 20;

impl Worker {
    /// Reads a file of a result, or a part of it.
    pub async fn read_file(&self, cx: &Cx, result: &ImmutableRef, request: ReadFile) -> Result<Bytes, BridgeError> {
        let mounting = result.mount(cx).await.map_err(OpError::from)?;
        reading(move || read_file(mounting.path(), &request)).await
    }

    /// Lists a directory of a result.
    pub async fn read_dir(&self, cx: &Cx, result: &ImmutableRef, request: ReadDir) -> Result<Vec<Stat>, BridgeError> {
        let mounting = result.mount(cx).await.map_err(OpError::from)?;
        reading(move || read_dir(mounting.path(), &request)).await
    }

    /// What is at a path of a result.
    pub async fn stat_file(&self, cx: &Cx, result: &ImmutableRef, path: &str) -> Result<Stat, BridgeError> {
        let (mounting, path) = (result.mount(cx).await.map_err(OpError::from)?, path.to_owned());
        reading(move || stat_file(mounting.path(), &path)).await
    }

    /// The latest time of a file in an archive; `None` if it is none.
    pub async fn archive_time(&self, cx: &Cx, result: &ImmutableRef, path: &str) -> Result<Option<i64>, BridgeError> {
        let (mounting, path) = (result.mount(cx).await.map_err(OpError::from)?, path.to_owned());
        reading(move || {
            let tree = Tree::open(mounting.path()).map_err(|error| failed(&error))?;
            Ok(latest(tree.open_regular(&path).map_err(|error| failed(&error))?))
        })
        .await
    }

    /// What is known of a source; shown as a vertex in `sink`.
    pub async fn resolve_source(
        &self,
        request: SourceMetaRequest,
        sessions: Vec<String>,
        sink: Arc<dyn Sink>,
        token: CancellationToken,
    ) -> Result<SourceMeta, BridgeError> {
        let platform = request.platform.clone().unwrap_or_else(Platform::host);
        let id = format!("{}{platform}", request.identifier);
        let name = match request.log_name.as_str() {
            "" => format!("resolve image config for {}", request.identifier),
            name => name.to_owned(),
        };
        let mut vertex =
            Vertex { digest: Some(vertex_digest(&id)), name, started: Some(Timestamp::now()), ..Vertex::default() };
        sink.send(Event::Vertex(vertex.clone()));
        let reporter = Reporter::new(vertex_digest(&id), sink.clone());
        let cx = Cx::standalone(token, reporter, sessions);
        let result = self.source_meta(&cx, request, &platform).await;
        vertex.completed = Some(Timestamp::now());
        if let Err(error) = &result {
            vertex.error = error.to_string();
        }
        sink.send(Event::Vertex(vertex));
        result
    }

    async fn source_meta(
        &self,
        cx: &Cx,
        request: SourceMetaRequest,
        platform: &Platform,
    ) -> Result<SourceMeta, BridgeError> {
        let invalid = |error: &dyn std::fmt::Display| BridgeError::unknown(error.to_string());
        let source = Source::parse(&request.identifier, &request.attrs).map_err(|error| invalid(&error))?;
        let none = SourceMeta {
            identifier: request.identifier.clone(),
            attrs: request.attrs.clone(),
            ..SourceMeta::default()
        };
        let source = match source {
            Source::Image(source) => source,
            // Nothing can be known of these before they are here.
            Source::Local(_) => return Ok(none),
            Source::Git(source) => {
                let git = Some(self.git_meta(cx, &source, request.git_objects).await?);
                return Ok(SourceMeta { git, ..none });
            }
            Source::OciLayout(source) => {
                let image = self.layout_meta(cx, &source, platform, request.no_config).await?;
                return Ok(SourceMeta { image: Some(image), ..none });
            }
            Source::Http(source) => return Ok(SourceMeta { http: Some(self.http_meta(cx, &source).await?), ..none }),
            _ => {
                let scheme = request.identifier.split("://").next().unwrap_or_default();
                return Err(OpError::Unsupported(format!("source {scheme}")).into());
            }
        };
        let reference: Reference = source.reference.parse().map_err(|error| invalid(&error))?;
        let who = cx.sessions().join(",");
        let access = access(self.sessions(), cx);
        let image = self.images().resolve(&reference, platform, request.resolve_mode, access, &who, cx.token()).await;
        let image = image.map_err(|error| BridgeError::from(OpError::Shared(error)))?;
        if image.stale {
            cx.reporter()
                .warn(format!("registry of {reference} cannot be reached: using the image as it was known before"));
        }
        let config = if request.no_config { Bytes::new() } else { image.config_bytes.clone() };
        Ok(SourceMeta { image: Some(ImageMeta { digest: image.root.digest, config }), ..none })
    }

    async fn layout_meta(
        &self,
        cx: &Cx,
        source: &OciLayoutSource,
        platform: &Platform,
        no_config: bool,
    ) -> Result<ImageMeta, OpError> {
        let reference: Reference = source
            .reference
            .parse()
            .map_err(|error| OpError::Invalid(format!("invalid image reference {}: {error}", source.reference)))?;
        let layout = Layout::new(self.sessions(), group(self.sessions(), cx), &source.session, &source.store);
        let image = layout.resolve(&reference, platform).await?;
        let config = if no_config { Bytes::new() } else { image.config_bytes.clone() };
        Ok(ImageMeta { digest: image.root.digest, config })
    }

    async fn git_meta(&self, cx: &Cx, source: &GitSource, objects: bool) -> Result<GitMeta, OpError> {
        let mut resolved = self.git().resolve(self, cx, source).await?;
        let objects = match objects {
            true => self.git().objects(self, cx, source, &mut resolved).await?,
            false => Objects::default(),
        };
        Ok(GitMeta {
            checksum: resolved.checksum,
            reference: resolved.reference,
            commit_checksum: resolved.commit_of_tag.unwrap_or_default(),
            commit_object: objects.commit.into(),
            tag_object: objects.tag.into(),
        })
    }

    async fn http_meta(&self, cx: &Cx, source: &HttpSource) -> Result<HttpMeta, OpError> {
        if !source.checksum.is_empty() {
            let (checksum, filename) = (source.checksum.clone(), file_name(source)?);
            return Ok(HttpMeta { checksum, filename, last_modified: None });
        }
        let found = self.web().find(self, cx, source).await?;
        let (checksum, last_modified) = (found.checksum.to_string(), found.modified);
        Ok(HttpMeta { checksum, filename: found.name, last_modified })
    }
}

fn read_file(root: &Path, request: &ReadFile) -> Result<Bytes, BridgeError> {
    let path = &request.path;
    let tree = Tree::open(root).map_err(|error| failed(&error))?;
    let mut file = tree.open_regular(path).map_err(|error| failed(&error))?;
    let io = |error: std::io::Error| BridgeError::unknown(format!("read {path}: {error}"));
    if request.offset > 0 {
        file.seek(SeekFrom::Start(request.offset)).map_err(io)?;
    }
    let limit = request.length.unwrap_or(u64::MAX).min(MAX_FILE + 1);
    let mut data = Vec::new();
    file.take(limit).read_to_end(&mut data).map_err(io)?;
    if data.len() as u64 > MAX_FILE {
        return Err(BridgeError::unknown(format!("{path} exceeds {MAX_FILE} bytes")));
    }
    Ok(data.into())
}

fn read_dir(root: &Path, request: &ReadDir) -> Result<Vec<Stat>, BridgeError> {
    let tree = Tree::open(root).map_err(|error| failed(&error))?;
    let dir = tree.open_dir(&tree.lookup(&request.path).map_err(|error| failed(&error))?);
    let dir = dir.map_err(|error| failed(&error))?;
    let include = Some(&request.include_pattern).filter(|pattern| !pattern.is_empty());
    let include = include.map(|pattern| Patterns::new([pattern])).transpose().map_err(|error| failed(&error))?;
    let mut walk = Walk::from_fd(dir).map_err(|error| failed(&error))?;
    let mut entries = Vec::new();
    while let Some(step) = walk.step() {
        let step = step.map_err(|error| failed(&error))?;
        walk.skip();
        if let Some(include) = &include
            && !include.matches(&step.path).map_err(|error| failed(&error))?
        {
            continue;
        }
        entries.extend(walk.stat(&step).map_err(|error| failed(&error))?);
    }
    Ok(entries)
}

/// The latest time of a file in a tar, compressed or not.
fn latest(input: impl Read + Send) -> Option<i64> {
    let (_, stream) = castor_archive::decompress(input).ok()?;
    let mut reader = tar::Reader::new(stream).allow_sparse();
    let mut latest = None;
    // A tar that is cut off is none.
    while let Some(entry) = reader.next().ok()? {
        if matches!(entry.kind, tar::Kind::File | tar::Kind::Hardlink) {
            latest = latest.max(Some(entry.mtime.seconds));
        }
    }
    latest
}

fn stat_file(root: &Path, path: &str) -> Result<Stat, BridgeError> {
    let tree = Tree::open(root).map_err(|error| failed(&error))?;
    tree.details(path).map_err(|error| failed(&error))
}

fn failed(error: &dyn std::fmt::Display) -> BridgeError {
    BridgeError::unknown(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use castor_archive::Timestamp;
    use castor_archive::tar::{Header, Kind, Writer};

    #[test]
    fn an_archive_is_as_old_as_its_youngest_file() {
        let mut writer = Writer::new(Vec::new());
        for (path, kind, seconds) in
            [("a", Kind::File, 5), ("b", Kind::File, 7), ("c", Kind::File, 6), ("d/", Kind::Directory, 99)]
        {
            let mtime = Timestamp::from_seconds(seconds);
            writer
                .append(&Header { path: path.into(), kind, mtime, ..Header::default() }, &mut std::io::empty())
                .unwrap();
        }
        let tar = writer.finish().unwrap();
        assert_eq!(latest(tar.as_slice()), Some(7));
        assert_eq!(latest(&tar[..tar.len() / 2 - 100]), None);
        assert_eq!(latest(&b"FROM scratch\n"[..]), None);
        assert_eq!(latest(&[][..]), None);
    }
}
