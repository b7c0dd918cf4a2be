//! The directories of blobs that a build reads from and writes to: caches of type `local`, OCI layouts, images that are
//! exported as directories.

use std::path::PathBuf;

use castor_oci::Descriptor;
use castor_session::client::{Layout, LayoutError, Name, Stores};

use crate::build::{BuildOptions, BuildResult, CacheOption};
use crate::connection::ClientError;

/// Where exporters write images.
const EXPORT: &str = "export";

/// The key under which the daemon tells what cache it wrote.
const CACHE: &str = "cache.manifest";

/// The keys under which exporters tell what image they made, and its names.
const IMAGE: &str = "containerimage.descriptor";
const NAMES: &str = "image.name";

/// What is done with directories once a build has succeeded.
#[derive(Debug, Default)]
pub struct Directories {
    /// What the daemon may use meanwhile.
    pub stores: Stores,
    /// Where cache goes, and its tag.
    caches: Vec<Cache>,
    /// Where an image goes.
    images: Vec<Layout>,
}

#[derive(Debug)]
struct Cache {
    layout: Layout,
    tag: String,
    /// What the new cache does not need is removed.
    reset: bool,
}

impl Directories {
    /// Opens the directories that the options name. Imports that are not there are taken out of the options, with a
    /// warning: a build without cache is a slower build.
    pub fn open(options: &mut BuildOptions) -> Result<Self, ClientError> {
        let mut all = Self::default();
        for export in options.cache_exports.iter().filter(|export| export.kind == "local") {
            all.export_cache(export)?;
        }
        let mut kept = Vec::new();
        for mut import in std::mem::take(&mut options.cache_imports) {
            if import.kind == "local" {
                match find(&mut import)? {
                    Ok(layout) => all.stores.insert(format!("local:{}", layout.path().display()), layout),
                    Err(reason) => {
                        let dir = import.attrs.get("src").cloned().unwrap_or_default();
                        tracing::warn!("local cache import at {dir} {reason}");
                        continue;
                    }
                };
            }
            kept.push(import);
        }
        options.cache_imports = kept;
        for (name, path) in &options.layouts {
            all.stores.insert(format!("oci:{name}"), Layout::at(path.clone()));
        }
        for path in options.exports.iter().filter_map(|export| export.layout.as_ref()) {
            let layout = Layout::create(path.clone()).map_err(broken)?;
            if all.stores.insert(EXPORT, layout.clone()).is_some() {
                return Err(ClientError::Invalid(format!("oci store key {EXPORT:?} already exists")));
            }
            all.images.push(layout);
        }
        Ok(all)
    }

    fn export_cache(&mut self, export: &CacheOption) -> Result<(), ClientError> {
        let dir = export.attrs.get("dest").filter(|dir| !dir.is_empty());
        let dir = dir.ok_or_else(|| ClientError::Invalid("local cache exporter requires dest".to_owned()))?;
        let layout = Layout::create(dir).map_err(broken)?;
        let reset = match export.attrs.get("reset").map(String::as_str) {
            None | Some("0" | "f" | "F" | "false" | "FALSE" | "False") => false,
            Some("1" | "t" | "T" | "true" | "TRUE" | "True") => true,
            Some(other) => {
                let why =
                    format!("failed to parse reset attribute: strconv.ParseBool: parsing {other:?}: invalid syntax");
                return Err(ClientError::Invalid(why));
            }
        };
        let tag = export.attrs.get("tag").cloned().unwrap_or_else(|| "latest".to_owned());
        self.stores.insert(format!("local:{dir}"), layout.clone());
        self.caches.push(Cache { layout, tag, reset });
        Ok(())
    }

    /// Enters what the build made into the indexes.
    pub fn finish(&self, result: &BuildResult) -> Result<(), ClientError> {
        let response = &result.exporter_response;
        if let Some(text) = response.get(CACHE).filter(|text| !text.is_empty()) {
            let descriptor = descriptor(CACHE, text.as_bytes())?;
            for cache in &self.caches {
                cache.layout.enter(&descriptor, &[Name::Tag(cache.tag.clone())]).map_err(broken)?;
            }
        }
        if let Some(text) = response.get(IMAGE).filter(|text| !text.is_empty()) {
            let bytes =
                crate::base64(text).ok_or_else(|| ClientError::Invalid(format!("{IMAGE}: it is not base64")))?;
            let descriptor = descriptor(IMAGE, &bytes)?;
            let names: Vec<Name> = match response.get(NAMES) {
                Some(names) => names.split(',').map(|name| Name::Image(name.to_owned())).collect(),
                None => vec![Name::Tag("latest".to_owned())],
            };
            for layout in &self.images {
                layout.enter(&descriptor, &names).map_err(broken)?;
            }
        }
        for cache in self.caches.iter().filter(|cache| cache.reset) {
            if let Err(error) = cache.layout.sweep() {
                tracing::warn!(%error, "failed to reset cache store");
            }
        }
        Ok(())
    }
}

fn broken(error: LayoutError) -> ClientError {
    ClientError::Invalid(error.to_string())
}

fn descriptor(key: &str, json: &[u8]) -> Result<Descriptor, ClientError> {
    serde_json::from_slice(json).map_err(|error| ClientError::Invalid(format!("{key}: {error}")))
}

/// The layout of an import, whose digest is looked up by its tag; or why it cannot be used.
fn find(import: &mut CacheOption) -> Result<Result<Layout, String>, ClientError> {
    let dir = import.attrs.get("src").filter(|dir| !dir.is_empty());
    let dir = dir.ok_or_else(|| ClientError::Invalid("local cache importer requires src".to_owned()))?;
    let layout = Layout::at(PathBuf::from(dir));
    let digest = match import.attrs.get("digest").filter(|digest| !digest.is_empty()) {
        Some(digest) => digest.clone(),
        None => {
            let tag = import.attrs.get("tag").map_or("latest", String::as_str);
            if tag.is_empty() {
                let why =
                    "local cache importer requires either explicit digest, \"latest\" tag or custom tag on index.json";
                return Err(ClientError::Invalid(why.to_owned()));
            }
            match layout.index() {
                Ok(Some(_)) => {}
                Ok(None) => {
                    let path = layout.path().join("index.json");
                    return Ok(Err(format!(
                        "skipped due to err: could not read {0}: open {0}: no such file or directory",
                        path.display()
                    )));
                }
                Err(error) => return Ok(Err(format!("skipped due to err: {error}"))),
            }
            match layout.find(tag).map_err(broken)? {
                Some(found) => found.digest.to_string(),
                None => return Ok(Err(format!("skipped: no digest found for tag {tag}"))),
            }
        }
    };
    let here = digest.parse().is_ok_and(|digest| layout.blob(&digest).is_file());
    if !here {
        return Ok(Err(format!("skipped: digest {digest} unavailable: content {digest}: not found")));
    }
    import.attrs.insert("digest".to_owned(), digest);
    Ok(Ok(layout))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::Export;
    use castor_oci::Digest;
    use std::collections::BTreeMap;

    fn option(attrs: &[(&str, &str)]) -> CacheOption {
        let attrs = attrs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        CacheOption { kind: "local".into(), attrs }
    }

    fn put(dir: &std::path::Path, text: &str) -> Descriptor {
        let blob = Layout::at(dir).blob(&Digest::of(text));
        std::fs::create_dir_all(blob.parent().unwrap()).unwrap();
        std::fs::write(blob, text).unwrap();
        Descriptor::new("application/x", Digest::of(text), text.len() as u64)
    }

    #[test]
    fn a_cache_is_written_and_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cache");
        let dest = path.to_str().unwrap();
        let export = || option(&[("dest", dest), ("mode", "max"), ("reset", "true")]);
        let mut options = BuildOptions { cache_exports: vec![export()], ..BuildOptions::default() };
        let opened = Directories::open(&mut options).unwrap();
        assert!(path.is_dir());
        let descriptor = put(&path, "manifest");
        let old = put(&path, "old");
        let response = [(CACHE.to_owned(), serde_json::to_string(&descriptor).unwrap())].into();
        opened.finish(&BuildResult { exporter_response: response, ..BuildResult::default() }).unwrap();
        assert!(!Layout::at(&path).blob(&old.digest).exists(), "it was reset");

        let imports = [
            option(&[("src", dest)]),
            option(&[("src", dest), ("tag", "other")]),
            option(&[("src", "/nonexistent")]),
            option(&[("src", dest), ("digest", &old.digest.to_string())]),
            CacheOption { kind: "registry".into(), attrs: BTreeMap::new() },
        ];
        let mut options = BuildOptions { cache_imports: imports.to_vec(), ..BuildOptions::default() };
        let opened = Directories::open(&mut options).unwrap();
        assert!(!opened.stores.is_empty());
        let kept: Vec<_> = options.cache_imports.iter().map(|import| import.attrs.get("digest")).collect();
        assert_eq!(kept, [Some(&descriptor.digest.to_string()), None]);
    }

    #[test]
    fn an_image_is_entered_under_its_names() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let export =
            Export { kind: "oci".into(), attrs: BTreeMap::new(), destination: None, layout: Some(path.clone()) };
        let mut options = BuildOptions { exports: vec![export.clone()], ..BuildOptions::default() };
        let opened = Directories::open(&mut options).unwrap();
        let descriptor = put(&path, "manifest");
        let mut response: BTreeMap<String, String> =
            [(IMAGE.to_owned(), crate::base64_of(&serde_json::to_vec(&descriptor).unwrap()))].into();
        opened.finish(&BuildResult { exporter_response: response.clone(), ..BuildResult::default() }).unwrap();
        response.insert(NAMES.to_owned(), "example.com/a:1,example.com/b:2".to_owned());
        opened.finish(&BuildResult { exporter_response: response, ..BuildResult::default() }).unwrap();
        for name in ["latest", "example.com/a:1", "example.com/b:2", "2"] {
            assert_eq!(Layout::at(&path).find(name).unwrap().unwrap().digest, descriptor.digest, "{name}");
        }
        let mut twice = BuildOptions { exports: vec![export.clone(), export], ..BuildOptions::default() };
        assert_eq!(Directories::open(&mut twice).unwrap_err().to_string(), "oci store key \"export\" already exists");
    }

    #[test]
    fn mistakes() {
        let error = |exports: Vec<CacheOption>, imports: Vec<CacheOption>| {
            let mut options =
                BuildOptions { cache_exports: exports, cache_imports: imports, ..BuildOptions::default() };
            Directories::open(&mut options).unwrap_err().to_string()
        };
        assert_eq!(error(vec![option(&[])], vec![]), "local cache exporter requires dest");
        assert_eq!(error(vec![], vec![option(&[])]), "local cache importer requires src");
        assert!(error(vec![], vec![option(&[("src", "x"), ("tag", "")])]).contains("requires either explicit digest"));
        let dir = tempfile::tempdir().unwrap();
        let reset = option(&[("dest", dir.path().to_str().unwrap()), ("reset", "perhaps")]);
        assert!(error(vec![reset], vec![]).starts_with("failed to parse reset attribute"));
    }
}
