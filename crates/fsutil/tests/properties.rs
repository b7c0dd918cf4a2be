//! What holds for every tree and every list of rules.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use castor_fsutil::{
    Directory, FilterOptions, Link, ParentMatches, Patterns, ReceiveOptions, Stat, Tree as _, mode, receive, send,
};
use futures::StreamExt as _;
use proptest::prelude::*;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

#[derive(Debug, Clone)]
enum Step {
    File(PathBuf, u16, u8),
    Directory(PathBuf),
    Symlink(PathBuf, &'static str),
    HardLink(PathBuf, PathBuf),
    Pipe(PathBuf),
    Mode(PathBuf, u32),
    Remove(PathBuf),
}

/// Few names, some of which sort around the slash, so that steps meet.
fn paths() -> impl Strategy<Value = PathBuf> {
    let names: Vec<&[u8]> = vec![b"a", b"a-b", b"a.b", b"b", b"c", b"a\xe9"];
    let names = prop::sample::select(names);
    prop::collection::vec(names, 1..4).prop_map(|names| names.into_iter().map(OsStr::from_bytes).collect())
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (paths(), 0..40_000u16, any::<u8>()).prop_map(|(path, size, byte)| Step::File(path, size, byte)),
        2 => paths().prop_map(Step::Directory),
        1 => (paths(), prop::sample::select(vec!["a", "../b", "/c"])).prop_map(|(path, to)| Step::Symlink(path, to)),
        2 => (paths(), paths()).prop_map(|(from, to)| Step::HardLink(from, to)),
        1 => paths().prop_map(Step::Pipe),
        1 => (paths(), prop::sample::select(vec![0o600, 0o755, 0o4711, 0o1777])).prop_map(|(path, mode)| Step::Mode(path, mode)),
        2 => paths().prop_map(Step::Remove),
    ];
    prop::collection::vec(step, 0..25)
}

fn clear(path: &Path) {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path).unwrap(),
        Ok(_) => fs::remove_file(path).unwrap(),
        Err(_) => {}
    }
}

/// Makes room for an entry: no link or file above it, nothing at it.
fn make_room(root: &Path, path: &Path) -> PathBuf {
    let mut parent = root.to_owned();
    let mut names = path.iter().peekable();
    while let Some(name) = names.next() {
        parent.push(name);
        if names.peek().is_some() && !fs::symlink_metadata(&parent).is_ok_and(|metadata| metadata.is_dir()) {
            clear(&parent);
            fs::create_dir(&parent).unwrap();
        }
    }
    clear(&parent);
    parent
}

fn apply(root: &Path, step: &Step) {
    match step {
        Step::File(path, size, byte) => fs::write(make_room(root, path), vec![*byte; *size as usize]).unwrap(),
        Step::Directory(path) => fs::create_dir(make_room(root, path)).unwrap(),
        Step::Symlink(path, to) => symlink(to, make_room(root, path)).unwrap(),
        Step::HardLink(from, to) => {
            // Only what is a file by its own name, and not below the new one.
            let regular = |path: &Path| {
                path.ancestors().skip(1).all(|dir| !fs::symlink_metadata(root.join(dir)).is_ok_and(|m| m.is_symlink()))
                    && fs::symlink_metadata(root.join(path)).is_ok_and(|metadata| metadata.is_file())
            };
            if regular(from) && !from.starts_with(to) && !to.starts_with(from) {
                let bytes = fs::read(root.join(from)).unwrap();
                let new = make_room(root, to);
                // Making room may have removed it.
                if !regular(from) {
                    fs::write(make_room(root, from), bytes).unwrap();
                }
                fs::hard_link(root.join(from), new).unwrap();
            }
        }
        Step::Pipe(path) => {
            let path = make_room(root, path);
            let mode = rustix::fs::Mode::from_raw_mode(0o600);
            rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        }
        Step::Mode(path, mode) => {
            let path = root.join(path);
            if fs::symlink_metadata(&path).is_ok_and(|metadata| !metadata.is_symlink()) {
                fs::set_permissions(path, fs::Permissions::from_mode(*mode)).unwrap();
            }
        }
        Step::Remove(path) => {
            if path.ancestors().skip(1).all(|dir| !fs::symlink_metadata(root.join(dir)).is_ok_and(|m| m.is_symlink())) {
                clear(&root.join(path));
            }
        }
    }
}

fn walk(root: &Path, options: &FilterOptions) -> BTreeMap<Vec<u8>, Stat> {
    let mut stats = BTreeMap::new();
    let directory = Directory::filtered(root, options).unwrap();
    directory
        .walk(&mut |stat| {
            assert!(stats.insert(stat.path.to_vec(), stat).is_none());
            Ok(())
        })
        .unwrap();
    stats
}

fn contents(root: &Path, stats: &BTreeMap<Vec<u8>, Stat>) -> BTreeMap<Vec<u8>, (Vec<u8>, u64)> {
    let regular = stats.values().filter(|stat| mode::is_regular(stat.mode));
    regular
        .map(|stat| {
            let path = root.join(OsStr::from_bytes(&stat.path));
            (stat.path.to_vec(), (fs::read(&path).unwrap(), fs::metadata(&path).unwrap().nlink()))
        })
        .collect()
}

fn transfer(from: &Path, to: &Path) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (left, to_left) = mpsc::channel(1);
        let (right, to_right) = mpsc::channel(1);
        let link = |outgoing, incoming| Link { outgoing, incoming: ReceiverStream::new(incoming).map(Ok).boxed() };
        let sending =
            async { send(link(left, to_right), Arc::new(Directory::open(from).unwrap()), None).await.map(drop) };
        let (sent, received) = tokio::join!(sending, receive(link(right, to_left), to, ReceiveOptions::default()));
        received.unwrap();
        sent.unwrap();
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_destination_becomes_the_source_whatever_it_was(before in steps(), after in steps(), other in steps()) {
        let (source, dest) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        before.iter().for_each(|step| apply(source.path(), step));
        transfer(source.path(), dest.path());
        // Both sides change, each in its way.
        after.iter().for_each(|step| apply(source.path(), step));
        other.iter().for_each(|step| apply(dest.path(), step));
        transfer(source.path(), dest.path());
        let everything = FilterOptions::default();
        let (want, got) = (walk(source.path(), &everything), walk(dest.path(), &everything));
        prop_assert_eq!(&want, &got);
        prop_assert_eq!(contents(source.path(), &want), contents(dest.path(), &got));
    }
}

const TREE: &[&str] = &["a/b/c", "a/b/d.md", "a/x", "a-b/c", "b/b/b", "c.md", "d/e/f/g", "x/a", "x/b.md"];

fn rules() -> impl Strategy<Value = Vec<String>> {
    let element = prop::sample::select(vec!["a", "b", "c", "d", "e", "x", "*", "**", "*.md", "?", "[a-c]", "a*", "f"]);
    let rule = (any::<bool>(), prop::collection::vec(element, 1..4))
        .prop_map(|(exception, elements)| format!("{}{}", if exception { "!" } else { "" }, elements.join("/")));
    prop::collection::vec(rule, 0..5)
}

/// What is shown if every directory is entered.
fn without_shortcuts(include: &[String], exclude: &[String]) -> BTreeSet<String> {
    let all: BTreeSet<&str> =
        TREE.iter().flat_map(|path| path.match_indices('/').map(|(at, _)| &path[..at]).chain([*path])).collect();
    let (includes, excludes) = (Patterns::new(include).unwrap(), Patterns::new(exclude).unwrap());
    let hit = |patterns: &Patterns, path: &str| {
        let mut parent: Option<ParentMatches> = None;
        let mut verdict = false;
        for end in path.match_indices('/').map(|(at, _)| at).chain([path.len()]) {
            let (hit, matches) = patterns.matches_below(&path[..end], parent.as_ref()).unwrap();
            (verdict, parent) = (hit, Some(matches));
        }
        verdict
    };
    let mut shown = BTreeSet::new();
    for path in all {
        let (included, excluded) = (hit(&includes, path), hit(&excludes, path));
        if (include.is_empty() || included) && (exclude.is_empty() || !excluded) {
            shown.insert(path.to_owned());
            let above = path.match_indices('/').map(|(at, _)| path[..at].to_owned());
            shown.extend(above);
        }
    }
    shown
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn directories_that_are_not_entered_have_nothing_to_show(include in rules(), exclude in rules()) {
        let dir = tempfile::tempdir().unwrap();
        for path in TREE {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let want = without_shortcuts(&include, &exclude);
        let options = FilterOptions { include, exclude, follow: Vec::new() };
        let got = walk(dir.path(), &options).into_keys().map(|path| String::from_utf8(path).unwrap());
        let got: BTreeSet<String> = got.collect();
        prop_assert_eq!(want, got);
    }
}
