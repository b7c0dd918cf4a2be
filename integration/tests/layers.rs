//! The order of the crates: `layers.toml` says who may import whom, and nobody imports anything else.

#![allow(clippy::unwrap_used, reason = "a test says by panicking that it failed")]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use serde::Deserialize;

#[derive(Deserialize)]
struct Layers {
    /// All crates, each importing only crates before it.
    order: Vec<String>,
    /// The exact edges of each.
    edges: BTreeMap<String, Vec<String>>,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    kind: Option<String>,
    path: Option<String>,
}

/// `castor-llb` is `llb` in layers.toml.
fn short(package: &str) -> String {
    package.strip_prefix("castor-").unwrap_or(package).to_owned()
}

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn imports() -> BTreeMap<String, Vec<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .current_dir(workspace())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Metadata = serde_json::from_slice(&output.stdout).unwrap();
    let edges = |package: &Package| {
        let mut names: Vec<String> = package
            .dependencies
            .iter()
            .filter(|dependency| dependency.path.is_some() && dependency.kind.as_deref() != Some("dev"))
            .map(|dependency| short(&dependency.name))
            .collect();
        names.sort();
        names
    };
    metadata.packages.iter().map(|package| (short(&package.name), edges(package))).collect()
}

#[test]
fn every_crate_imports_what_layers_toml_says() {
    let text = std::fs::read_to_string(workspace().join("layers.toml")).unwrap();
    let layers: Layers = toml::from_str(&text).unwrap();
    let imports = imports();
    for (name, imported) in &imports {
        let listed = layers.edges.get(name).unwrap_or_else(|| panic!("{name} is missing in layers.toml"));
        assert_eq!(imported, listed, "imports of {name}: cargo's on the left, layers.toml's on the right");
    }
    let gone: Vec<&String> = layers.edges.keys().filter(|name| !imports.contains_key(*name)).collect();
    assert!(gone.is_empty(), "layers.toml lists crates that do not exist: {gone:?}");
}

#[test]
fn the_order_is_total() {
    let text = std::fs::read_to_string(workspace().join("layers.toml")).unwrap();
    let layers: Layers = toml::from_str(&text).unwrap();
    let place = |name: &str| {
        layers
            .order
            .iter()
            .position(|other| other == name)
            .unwrap_or_else(|| panic!("{name} has no place in the order"))
    };
    for (name, imported) in &layers.edges {
        for other in imported {
            assert!(place(other) < place(name), "{name} imports {other}, which comes after it");
        }
    }
}
