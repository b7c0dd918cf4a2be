//! What is fuzzed.

mod chunks;
mod erofs;
mod footer;
mod tar;
mod toc;

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher as _};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::{Random, mutate};

/// Something that reads untrusted bytes.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name.
    pub name: &'static str,
    /// Inputs that others are made of.
    seeds: fn() -> Vec<Vec<u8>>,
    /// Another input, made of one that is known and perhaps a second.
    mutate: fn(&mut Random, &[u8], &[u8]) -> Vec<u8>,
    /// Reads an input, and panics if a promise is broken. Answers what kind of outcome it was.
    run: fn(&[u8]) -> u64,
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Target").field(&self.name).finish()
    }
}

/// All targets.
pub fn all() -> [Target; 5] {
    [toc::TARGET, footer::TARGET, chunks::TARGET, erofs::TARGET, tar::TARGET]
}

/// The target of a name.
pub fn by_name(name: &str) -> Option<Target> {
    all().into_iter().find(|target| target.name == name)
}

impl Target {
    /// Made and kept inputs: those of real tools, those that were broken by hand, and what failed once.
    pub fn corpus(&self) -> Vec<Vec<u8>> {
        let mut corpus = (self.seeds)();
        for path in files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(self.name)) {
            corpus.extend(fs::read(path));
        }
        corpus.retain(|input| input.len() <= mutate::LARGEST);
        corpus
    }

    /// Another input, made of `seed` and perhaps of `other`.
    pub fn mutate(&self, random: &mut Random, seed: &[u8], other: &[u8]) -> Vec<u8> {
        let mut input = (self.mutate)(random, seed, other);
        input.truncate(mutate::LARGEST);
        input
    }

    /// Reads an input, and panics if a promise is broken. Answers what kind of outcome it was.
    pub fn run(&self, input: &[u8]) -> u64 {
        (self.run)(input)
    }
}

/// The files of a directory, in order.
fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten();
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    paths
}

/// A layer of castor-estargz's test data.
struct Sample {
    blob: Vec<u8>,
    annotations: castor_oci::Annotations,
    external: Option<Vec<u8>>,
}

/// Layers of real tools, and layers that were broken by hand.
fn samples() -> Vec<Sample> {
    let testdata = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/estargz/testdata");
    let annotations = |descriptor: &Value| {
        serde_json::from_value(descriptor.get("annotations").cloned().unwrap_or_default()).unwrap_or_default()
    };
    let mut samples = Vec::new();
    for dir in files(&testdata.join("good")) {
        let descriptor = fs::read(dir.join("descriptor.json")).unwrap_or_default();
        let descriptor: Value = serde_json::from_slice(&descriptor).unwrap_or_default();
        let Ok(blob) = fs::read(dir.join("blob")) else { continue };
        samples.push(Sample { blob, annotations: annotations(&descriptor), external: fs::read(dir.join("toc")).ok() });
    }
    let index = fs::read(testdata.join("broken/index.json")).unwrap_or_default();
    for case in serde_json::from_slice::<Vec<Value>>(&index).unwrap_or_default() {
        let read = |key: &str| fs::read(testdata.join("broken").join(case.get(key)?.as_str()?)).ok();
        let Some(blob) = read("blob") else { continue };
        samples.push(Sample { blob, annotations: annotations(&case["descriptor"]), external: read("toc") });
    }
    assert!(samples.len() > 100, "the corpus is not at {}", testdata.display());
    samples
}

/// A number for a kind of outcome: an error by its words, numbers and names aside.
fn kind_of_error(error: &dyn std::fmt::Display) -> u64 {
    let text: String = error.to_string().chars().filter(|c| c.is_ascii_alphabetic() || *c == ' ').take(60).collect();
    hash(&text)
}

/// A number for what has these properties.
fn hash(what: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    hasher.finish()
}

/// The magnitude of a number.
fn magnitude(number: usize) -> u32 {
    number.checked_ilog2().map_or(0, |log| log + 1)
}
