//! Which files of a context arrive, for the rules that the golden corpus has.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use castor_fsutil::{Directory, FilterOptions, Patterns, Tree as _, mode};
use serde::Deserialize;

#[derive(Deserialize)]
struct Tree {
    entries: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    path: String,
    r#type: String,
    #[serde(default)]
    content: String,
    #[serde(default)]
    link: String,
}

#[derive(Deserialize)]
struct Table {
    entries: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    id: String,
    dockerfile: String,
    dockerignore: String,
    dockerfile_dockerignore: Option<String>,
    #[serde(default)]
    local_attrs: std::collections::BTreeMap<String, String>,
    removed: Option<BTreeSet<String>>,
    paths: Option<BTreeSet<String>>,
    error: Option<String>,
}

impl Case {
    fn list(&self, attribute: &str) -> Vec<String> {
        self.local_attrs.get(attribute).map(|json| serde_json::from_str(json).unwrap()).unwrap_or_default()
    }
}

fn testdata(name: &str) -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/ignore").join(name)).unwrap()
}

fn make_tree(root: &Path) {
    let tree: Tree = serde_json::from_slice(&testdata("tree.json")).unwrap();
    for entry in tree.entries {
        let path = root.join(&entry.path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        match entry.r#type.as_str() {
            "dir" => fs::create_dir_all(path).unwrap(),
            "symlink" => symlink(entry.link, path).unwrap(),
            "file" => fs::write(path, entry.content).unwrap(),
            other => panic!("{other}"),
        }
    }
}

/// What a walk shows, directories with a slash at the end.
fn shown(root: PathBuf, options: &FilterOptions) -> BTreeSet<String> {
    let mut paths = BTreeSet::new();
    Directory::filtered(root, options)
        .unwrap()
        .walk(&mut |stat| {
            let slash = if mode::is_dir(stat.mode) { "/" } else { "" };
            let path = String::from_utf8(stat.path.to_vec()).unwrap();
            assert!(paths.insert(format!("{path}{slash}")), "{path} shown twice");
            Ok(())
        })
        .unwrap();
    paths
}

/// Where `COPY <source> <dest>` puts what was shown.
fn copied(shown: &BTreeSet<String>, source: &str, dest: &str) -> BTreeSet<String> {
    let dest = dest.trim_matches('/');
    let under = |path: &str| if dest.is_empty() { path.to_owned() } else { format!("{dest}/{path}") };
    let mut arrived: BTreeSet<String> = match source {
        "." => shown.clone(),
        pattern if pattern.contains('*') => shown
            .iter()
            .filter(|path| castor_fsutil::glob_match(pattern, path.trim_end_matches('/')).unwrap())
            .map(|path| under(path.rsplit('/').next().unwrap()))
            .collect(),
        dir => shown
            .iter()
            .filter_map(|path| path.strip_prefix(&format!("{dir}/")))
            .filter(|path| !path.is_empty())
            .map(under)
            .collect(),
    };
    if !dest.is_empty() {
        arrived.insert(format!("{dest}/"));
    }
    arrived
}

#[test]
fn the_files_that_arrive_are_the_golden_ones() {
    let all: BTreeSet<String> = serde_json::from_slice(&testdata("all-paths.json")).unwrap();
    let mut checked = 0;
    for table in ["one.json", "src.json", "neg.json", "misc.json"] {
        let table: Table = serde_json::from_slice(&testdata(table)).unwrap();
        for case in table.entries {
            if let Some(error) = &case.error {
                if error.contains("syntax error in pattern") {
                    let error = Patterns::new([case.dockerignore.trim()]).unwrap_err().to_string();
                    assert_eq!(error, "syntax error in pattern", "{}", case.id);
                    checked += 1;
                }
                continue;
            }
            // Cases of flags and of mounts are about more than the context.
            let copy: Vec<&str> = case.dockerfile.lines().nth(1).unwrap().split(' ').collect();
            let ["COPY" | "ADD", source, dest] = copy[..] else { continue };
            let dir = tempfile::tempdir().unwrap();
            let root = dir.path().to_owned();
            make_tree(&root);
            fs::write(root.join("Dockerfile"), &case.dockerfile).unwrap();
            fs::write(root.join(".dockerignore"), &case.dockerignore).unwrap();
            if let Some(own) = &case.dockerfile_dockerignore {
                fs::write(root.join("Dockerfile.dockerignore"), own).unwrap();
            }
            let options = FilterOptions {
                exclude: case.list("local.excludepatterns"),
                follow: case.list("local.followpaths"),
                ..FilterOptions::default()
            };
            let shown = shown(root, &options);
            let arrived = copied(&shown, source, dest);
            let want = match (&case.paths, &case.removed) {
                (Some(paths), _) => paths.clone(),
                (None, Some(removed)) => {
                    let mut all = all.clone();
                    all.insert(".dockerignore".into());
                    if case.dockerfile_dockerignore.is_some() {
                        all.insert("Dockerfile.dockerignore".into());
                    }
                    all.difference(removed).cloned().collect()
                }
                (None, None) => panic!("{} wants nothing", case.id),
            };
            assert_eq!(arrived, want, "{}: {:?}", case.id, case.dockerignore);
            checked += 1;
        }
    }
    assert!(checked >= 115, "only {checked} cases");
}
