//! Digests that BuildKit computed, for the trees that it computed them for.
//!
//! Each file of `testdata/contenthash` has a tree and the `COPY` instructions that were run on it as a build context,
//! each with the digest that BuildKit gave the instruction's sources. `stage` has no tree: its files were made in a stage.
//! `patterns` is about excludes, parents, wildcards and links in all combinations that matter.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use castor_fsutil::{Stat, mode};
use serde::Deserialize;

use super::header::Header;
use super::tree::{key_of, parent_of};
use super::*;

#[derive(Deserialize)]
struct Golden {
    tree: Option<Vec<Item>>,
    cases: Vec<Case>,
}

#[derive(Deserialize, Clone, Default)]
#[serde(default)]
struct Item {
    path: String,
    r#type: String,
    content: String,
    content_b64: Option<String>,
    size: Option<u64>,
    mode: Option<String>,
    uid: u32,
    gid: u32,
    link: String,
    major: i64,
    minor: i64,
    xattrs: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Case {
    id: String,
    dockerfile: String,
    #[serde(default)]
    content: Vec<Digest>,
    /// Where the daemon did not show the digest itself: that of its cache record.
    record: Option<Digest>,
    error: Option<String>,
}

impl Item {
    fn bytes(&self) -> Vec<u8> {
        use base64::Engine as _;
        let mut bytes = match &self.content_b64 {
            Some(text) => base64::engine::general_purpose::STANDARD.decode(text).unwrap(),
            None => self.content.clone().into_bytes(),
        };
        if let Some(size) = self.size {
            bytes.resize(size as usize, 0);
        }
        bytes
    }

    fn permissions(&self) -> u32 {
        let default = if self.r#type == "dir" { "0755" } else { "0644" };
        u32::from_str_radix(self.mode.as_deref().unwrap_or(default), 8).unwrap()
    }

    fn xattrs(&self) -> BTreeMap<String, Vec<u8>> {
        self.xattrs.iter().map(|(name, value)| (name.clone(), hex::decode(value).unwrap())).collect()
    }
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/contenthash")
}

fn golden(name: &str) -> Golden {
    serde_json::from_slice(&std::fs::read(directory().join(format!("{name}.json"))).unwrap()).unwrap()
}

/// The stage of `stage.json`, as its `RUN` made it.
fn stage() -> Vec<Item> {
    let item = |path: &str, kind: &str| Item { path: path.into(), r#type: kind.into(), ..Item::default() };
    let file = |path: &str, content: &str| Item { content: content.into(), ..item(path, "file") };
    let link = |path: &str, kind: &str, target: &str| Item { link: target.into(), ..item(path, kind) };
    vec![
        item("w/d/e", "dir"),
        file("w/b", "b\n"),
        file("w/d/k", "k\n"),
        link("w/l", "symlink", "b"),
        link("w/lw", "symlink", "d"),
        link("w/h", "hardlink", "w/b"),
        Item { major: 5, minor: 1, ..item("w/dev", "char") },
        item("w/ff", "fifo"),
        Item { xattrs: BTreeMap::from([("user.n".into(), "6e".into())]), ..file("w/x", "x\n") },
        Item {
            xattrs: BTreeMap::from([("security.capability".into(), "0100000200040000000000000000000000000000".into())]),
            ..file("w/caps", "c\n")
        },
        Item { uid: 1000, gid: 50, mode: Some("4750".into()), ..file("w/own", "o\n") },
    ]
}

/// What of a context the COPY of a case copies, as the file op asks for it.
fn sources(dockerfile: &str) -> Vec<(String, ChecksumOptions)> {
    let line = dockerfile.lines().last().unwrap();
    let mut options = ChecksumOptions { follow_links: true, ..ChecksumOptions::default() };
    let mut parents = false;
    let mut words: Vec<&str> = line.split(' ').skip(1).collect();
    words.pop();
    let mut sources = Vec::new();
    for word in words {
        if let Some(pattern) = word.strip_prefix("--exclude=") {
            options.exclude_patterns.push(pattern.to_owned());
        } else if word == "--parents" {
            parents = true;
        } else if !word.starts_with("--") {
            sources.push(word.to_owned());
        }
    }
    let wild = |source: &str| source.contains(['*', '?', '[']);
    let source = |source: String| {
        if parents {
            let (above, source) = match source.split_once("/./") {
                Some((above, source)) => (format!("/{above}"), source.to_owned()),
                None => ("/".to_owned(), source),
            };
            let whole = format!("{above}/{source}");
            let required = if wild(&source) { vec![] } else { vec![whole] };
            let options =
                ChecksumOptions { include_patterns: vec![source], required_paths: required, ..options.clone() };
            return (above, options);
        }
        let options = ChecksumOptions { wildcard: wild(&source), ..options.clone() };
        (format!("/{}", source.trim_matches('/')), options)
    };
    let mut sources: Vec<_> = sources.into_iter().map(source).collect();
    sources.sort_by(|a, b| a.0.cmp(&b.0));
    sources
}

fn stat(item: &Item) -> Stat {
    let kind = match item.r#type.as_str() {
        "dir" => mode::DIR,
        "symlink" => mode::SYMLINK,
        "fifo" => mode::NAMED_PIPE,
        "char" => mode::DEVICE | mode::CHAR_DEVICE,
        "block" => mode::DEVICE,
        _ => 0,
    };
    let permissions = if item.r#type == "symlink" { 0o777 } else { mode::from_unix(item.permissions()) };
    Stat {
        path: item.path.clone().into(),
        mode: kind | permissions,
        uid: item.uid,
        gid: item.gid,
        size: if item.r#type == "file" { item.bytes().len() as i64 } else { 0 },
        linkname: item.link.clone().into(),
        devmajor: item.major,
        devminor: item.minor,
        xattrs: item.xattrs().into_iter().map(|(name, value)| (name, value.into())).collect(),
        ..Stat::default()
    }
}

/// The tree as a client that sent it would have announced it: owned by root unless it is not a context.
fn received(items: &[Item], context: bool) -> Tree {
    let mut tree = Tree::empty();
    let directory = |tree: &mut Tree, key: Key, stat: &Stat| {
        tree.insert(key, Entry::Directory { header: Header::of_stat(stat).hasher().finish(), listed: true });
    };
    for item in items {
        let mut item = item.clone();
        if context {
            (item.uid, item.gid) = (0, 0);
        } else {
            // What is found on disk has no device numbers.
            (item.major, item.minor) = (0, 0);
        }
        let key = key_of(item.path.as_bytes());
        let mut above = parent_of(&key).to_vec();
        while !above.is_empty() && tree.get(&above).is_none() {
            directory(&mut tree, above.clone(), &stat(&Item { r#type: "dir".into(), ..Item::default() }));
            above = parent_of(&above).to_vec();
        }
        let mut hasher = Header::of_stat(&stat(&item)).hasher();
        match item.r#type.as_str() {
            "dir" => directory(&mut tree, key, &stat(&item)),
            "hardlink" => {
                let target = tree.get(&key_of(item.link.as_bytes())).unwrap().clone();
                tree.insert(key, target);
            }
            "symlink" => {
                tree.insert(key, Entry::Link { digest: hasher.finish(), target: item.link.clone().into_bytes() });
            }
            _ => {
                if item.r#type == "file" {
                    hasher.update(item.bytes());
                }
                tree.insert(key, Entry::File { digest: Some(hasher.finish()) });
            }
        }
    }
    tree
}

fn digest(tree: &mut Tree, scan: Option<&Path>, dockerfile: &str) -> Result<Digest, String> {
    let token = CancellationToken::new();
    let mut digests = Vec::new();
    for (path, options) in sources(dockerfile) {
        let scan = scan.map(|root| Scan { root, token: &token });
        let mut selection = Selection { tree, scan, missing: Vec::new(), changed: Vec::new() };
        match selection.checksum(&path, &options) {
            Ok(digest) => digests.push(digest.to_string()),
            Err(Failure::NotFound(path)) => return Err(format!("{path:?}: not found")),
            Err(other) => return Err(format!("{other:?}")),
        }
    }
    Ok(Digest::of(digests.join("\0")))
}

fn check(name: &str, case: &Case, tree: &mut Tree, scan: Option<&Path>) {
    let found = digest(tree, scan, &case.dockerfile);
    let what = format!("{name} {} {:?}", case.id, case.dockerfile.lines().last());
    match &case.error {
        Some(error) => {
            let found = found.expect_err(&what);
            assert!(error.ends_with(&found), "{what}: {found}");
        }
        None if case.record.is_some() => {
            let record = found.map(|digest| Digest::of(format!("{digest}@-1")));
            assert_eq!(record.ok(), case.record, "{what}");
        }
        None => assert_eq!(found.map(|digest| vec![digest]), Ok(case.content.clone()), "{what}"),
    }
}

/// Files of the base image, which is not here.
fn needs_base(case: &Case) -> bool {
    case.dockerfile.lines().last().is_some_and(|line| line.contains("--from=s /bin") || line.contains("--from=s /etc"))
}

fn areas() -> Vec<(String, Golden, Vec<Item>)> {
    let mut names: Vec<_> = std::fs::read_dir(directory())
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    names.sort();
    let area = |name: String| {
        let golden = golden(&name);
        let items = golden.tree.clone().unwrap_or_else(stage);
        (name, golden, items)
    };
    names.into_iter().map(area).collect()
}

#[test]
fn trees_that_were_received_have_buildkits_digests() {
    let mut count = 0;
    for (name, golden, items) in areas() {
        if items.is_empty() {
            continue;
        }
        let mut tree = received(&items, golden.tree.is_some());
        for case in golden.cases.iter().filter(|case| !needs_base(case)) {
            check(&name, case, &mut tree, None);
            count += 1;
        }
    }
    assert!(count > 160, "{count}");
}

/// Makes the tree on disk.
fn make(root: &Path, items: &[Item], context: bool) {
    use std::os::unix::fs::PermissionsExt as _;
    let chmod = |path: &Path, mode: u32| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    for item in items {
        let path = root.join(&item.path);
        let mut above = Vec::new();
        let mut parent = path.parent().unwrap();
        while !parent.exists() {
            above.push(parent);
            parent = parent.parent().unwrap();
        }
        for parent in above.into_iter().rev() {
            std::fs::create_dir(parent).unwrap();
            chmod(parent, 0o755);
        }
        let node = |kind| {
            let device = rustix::fs::makedev(item.major as u32, item.minor as u32);
            rustix::fs::mknodat(rustix::fs::CWD, &path, kind, 0o644.into(), device).unwrap();
        };
        match item.r#type.as_str() {
            "file" => std::fs::write(&path, item.bytes()).unwrap(),
            "dir" => std::fs::create_dir_all(&path).unwrap(),
            "symlink" => std::os::unix::fs::symlink(&item.link, &path).unwrap(),
            "hardlink" => {
                std::fs::hard_link(root.join(&item.link), &path).unwrap();
                continue;
            }
            "fifo" => node(rustix::fs::FileType::Fifo),
            "char" => node(rustix::fs::FileType::CharacterDevice),
            "block" => node(rustix::fs::FileType::BlockDevice),
            other => panic!("type {other}"),
        }
        let (uid, gid) = if context { (0, 0) } else { (item.uid, item.gid) };
        std::os::unix::fs::lchown(&path, Some(uid), Some(gid)).unwrap();
        if item.r#type != "symlink" {
            chmod(&path, item.permissions());
        }
        for (name, value) in item.xattrs() {
            rustix::fs::lsetxattr(&path, name, &value, rustix::fs::XattrFlags::empty()).unwrap();
        }
    }
}

/// Devices, owners and trusted attributes need root.
#[test]
fn privileged_trees_on_disk_have_buildkits_digests() {
    for (name, golden, items) in areas() {
        let root = tempfile::tempdir().unwrap();
        make(root.path(), &items, golden.tree.is_some());
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(root.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let devices = |case: &Case| name == "special" && case.id != "0";
        for case in golden.cases.iter().filter(|case| !needs_base(case) && !devices(case)) {
            // From nothing each time, and then again with what is known.
            let mut tree = Tree::default();
            if golden.tree.is_some() && !items.is_empty() {
                tree.set_root(Digest::of(""));
            }
            check(&name, case, &mut tree, Some(root.path()));
            check(&name, case, &mut tree, Some(root.path()));
        }
    }
}

#[test]
fn only_what_is_selected_is_read() {
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(root.path().join("a/deep")).unwrap();
    std::fs::create_dir_all(root.path().join("b")).unwrap();
    std::fs::write(root.path().join("a/deep/f"), "f").unwrap();
    std::fs::write(root.path().join("a/other"), "o").unwrap();
    let mut tree = Tree::default();
    digest(&mut tree, Some(root.path()), "COPY a/deep/f /o/").unwrap();
    let known = |path: &str| tree.get(&key_of(path.as_bytes())).cloned();
    assert!(matches!(known("a/other"), Some(Entry::File { digest: None })));
    assert!(matches!(known("b"), Some(Entry::Directory { listed: false, .. })));
    assert!(matches!(known("a/deep/f"), Some(Entry::File { digest: Some(_) })));
}

#[test]
fn links_in_a_circle_and_deep_trees_end() {
    let mut tree = Tree::empty();
    for (link, target) in [("a", "b"), ("b", "a")] {
        tree.insert(key_of(link.as_bytes()), Entry::Link { digest: Digest::of(link), target: target.into() });
    }
    let error = digest(&mut tree, None, "COPY a /o/").unwrap_err();
    assert!(error.contains("too many links"), "{error}");
    let mut key = Key::new();
    for _ in 0..20_000 {
        key.extend_from_slice(b"\0d");
        tree.insert(key.clone(), Entry::Directory { header: Digest::of("d"), listed: true });
    }
}
