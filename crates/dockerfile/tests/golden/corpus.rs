//! Test data, and a resolver that answers from it.

use std::collections::BTreeMap;
use std::path::Path;

use async_trait::async_trait;
use castor_dockerfile::{
    DockerfileError, IgnoreFile, IgnoreLookup, ImageLookup, LookupError, MetaResolver, Options, Request, ResolvedImage,
    Target, TimeLookup, convert, dockerfile_source,
};
use castor_llb::CapSet;
use castor_oci::Platform;
use futures::executor::block_on;
use serde::de::DeserializeOwned;

pub fn read<T: DeserializeOwned>(name: &str) -> T {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(name);
    serde_json::from_slice(&std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))).unwrap()
}

/// Answers with the images of `testdata/base` and the `.dockerignore`s of a case, by name of the directory.
#[derive(Default)]
pub struct Resolver {
    pub ignore: BTreeMap<String, String>,
}

#[async_trait]
impl MetaResolver for Resolver {
    async fn image_config(&self, image: &ImageLookup) -> Result<ResolvedImage, LookupError> {
        let digests: BTreeMap<String, String> = read("base/digests.json");
        let missing = || {
            let name = &image.reference;
            LookupError::from(format!("failed to resolve source metadata for {name}: {name}: not found"))
        };
        let short = image.reference.strip_prefix("golden.test/").ok_or_else(missing)?;
        let (name, pinned) = short.split_once('@').map_or((short, None), |(name, digest)| (name, Some(digest)));
        let by_digest = pinned
            .and_then(|pinned| digests.iter().find(|(_, digest)| *digest == pinned).map(|(name, _)| name.clone()));
        let name = match pinned {
            Some(_) => by_digest.ok_or_else(missing)?,
            None => name.to_owned(),
        };
        let digest = digests.get(&name).ok_or_else(missing)?.parse().unwrap();
        let (repository, tag) = name.split_once(':').unwrap();
        let platform = image.platform.clone().unwrap_or_else(amd64);
        let file = match repository {
            "multi" => format!("multi-{}-{tag}.config.json", platform.architecture),
            _ => format!("{repository}-{tag}.config.json"),
        };
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/base").join(file);
        let config = std::fs::read(path).map_err(|_| missing())?;
        Ok(ResolvedImage { reference: image.reference.clone(), digest: Some(digest), config })
    }

    async fn source_time(&self, _: &TimeLookup) -> Result<Option<i64>, LookupError> {
        Ok(None)
    }

    async fn ignore_file(&self, context: &IgnoreLookup) -> Result<Option<IgnoreFile>, LookupError> {
        let (IgnoreLookup::Main { source } | IgnoreLookup::Named { source }) = context;
        let raw = String::from_utf8_lossy(&source.ops[0]).into_owned();
        let named = |name: &String| raw.contains(&format!("local://{name}\u{12}"));
        Ok(self
            .ignore
            .iter()
            .find(|(name, _)| named(name))
            .map(|(_, text)| IgnoreFile { name: ".dockerignore".into(), data: text.clone().into_bytes() }))
    }
}

pub fn amd64() -> Platform {
    Platform::new("linux", "amd64", "")
}

/// Converts as BuildKit would, on a worker for amd64.
pub fn run(
    dockerfile: &str,
    options: &Options,
    resolver: &Resolver,
    target_platform: Option<Platform>,
) -> Result<Target, DockerfileError> {
    let request = Request {
        dockerfile: dockerfile.as_bytes(),
        options,
        dockerfile_definition: Some(dockerfile_source(options)?),
        build_platform: amd64(),
        target_platform,
        caps: CapSet::buildkit(),
        lint: true,
    };
    block_on(convert(&request, resolver))
}

/// Fails with all differences, if there are any.
pub fn report(total: usize, failures: &[String]) {
    assert!(total > 0, "no cases");
    assert!(failures.is_empty(), "{} of {total} cases differ:\n{}", failures.len(), failures.join("\n"));
}
