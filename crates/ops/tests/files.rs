//! File actions on real directories.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use castor_llb::op::{Copy, Mkdir, Mkfile, Rm, Symlink};
use castor_ops::files::{self, CopyOptions, FileError, Tree};
use castor_task::CancellationToken;
use tempfile::TempDir;

/// What COPY sends.
fn copy_of(src: &str, dest: &str) -> Copy {
    Copy {
        src: src.into(),
        dest: dest.into(),
        mode: -1,
        follow_symlink: true,
        dir_copy_contents: true,
        create_dest_path: true,
        allow_wildcard: true,
        allow_empty_wildcard: true,
        timestamp: -1,
        ..Copy::default()
    }
}

struct Dirs {
    src: TempDir,
    dst: TempDir,
}

impl Dirs {
    /// Files by path; a path with a slash at its end is a directory.
    fn new(src: &[&str], dst: &[&str]) -> Self {
        let make = |paths: &[&str]| {
            let dir = tempfile::tempdir().unwrap();
            for path in paths {
                let full = dir.path().join(path);
                if path.ends_with('/') {
                    fs::create_dir_all(full).unwrap();
                } else {
                    fs::create_dir_all(full.parent().unwrap()).unwrap();
                    fs::write(full, path).unwrap();
                }
            }
            dir
        };
        Self { src: make(src), dst: make(dst) }
    }

    fn copy(&self, action: &Copy) -> Result<(), FileError> {
        let (src, dst) = (Tree::open(self.src.path()).unwrap(), Tree::open(self.dst.path()).unwrap());
        let token = CancellationToken::new();
        files::copy(&src, &dst, &CopyOptions { action, owner: None, token: &token })
    }

    fn dst(&self) -> Vec<String> {
        list(self.dst.path())
    }
}

fn list(root: &Path) -> Vec<String> {
    fn walk(root: &Path, dir: &Path, out: &mut Vec<String>) {
        let mut entries: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
        entries.sort();
        for path in entries {
            let kind = fs::symlink_metadata(&path).unwrap().file_type();
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            if kind.is_dir() {
                out.push(format!("{name}/"));
                walk(root, &path, out);
            } else if kind.is_symlink() {
                out.push(format!("{name} -> {}", fs::read_link(&path).unwrap().display()));
            } else {
                out.push(name);
            }
        }
    }
    let mut out = Vec::new();
    walk(root, root, &mut out);
    out
}

/// What is in the source and in the destination, source and destination of the copy, what the destination has then.
type CopyCase<'a> = (&'a [&'a str], &'a [&'a str], &'a str, &'a str, &'a [&'a str]);

#[test]
fn copies_end_up_where_docker_puts_them() {
    let cases: &[CopyCase<'_>] = &[
        (&["a"], &[], "a", "/x", &["x"]),
        (&["a"], &[], "a", "/x/", &["x/", "x/a"]),
        (&["a"], &["x/"], "a", "/x", &["x/", "x/a"]),
        (&["a"], &["x"], "a", "/x", &["x"]),
        (&["a"], &[], "a", "/x/y/z", &["x/", "x/y/", "x/y/z"]),
        (&["d/f", "d/e/"], &[], "d", "/x", &["x/", "x/e/", "x/f"]),
        (&["d/f"], &["x/g"], "d", "/x", &["x/", "x/f", "x/g"]),
        (&["d/f"], &["x/g"], "d", "/x/", &["x/", "x/f", "x/g"]),
        (&["a1", "a2", "b"], &[], "a*", "/x/", &["x/", "x/a1", "x/a2"]),
        (&["d/f", "e/f"], &[], "*", "/x/", &["x/", "x/f"]),
        (&["d/1.txt", "e/2.txt", "e/3.md"], &[], "*/*.txt", "/x/", &["x/", "x/1.txt", "x/2.txt"]),
        (&["d/f"], &[], "/", "/", &["d/", "d/f"]),
        (&["a"], &[], "nothing*", "/x", &[]),
    ];
    for (src, dst, from, to, want) in cases {
        let dirs = Dirs::new(src, dst);
        dirs.copy(&copy_of(from, to)).unwrap_or_else(|error| panic!("{from} {to}: {error}"));
        assert_eq!(dirs.dst(), *want, "{from} {to}");
    }
}

#[test]
fn a_directory_itself_is_copied_if_asked_for() {
    let dirs = Dirs::new(&["d/f"], &["x/"]);
    dirs.copy(&Copy { dir_copy_contents: false, ..copy_of("d", "/x") }).unwrap();
    assert_eq!(dirs.dst(), ["x/", "x/d/", "x/d/f"]);
}

#[test]
fn patterns_choose_and_parents_come_only_when_needed() {
    let dirs = Dirs::new(&["a/b/c.txt", "a/b/d.md", "a/e/f.md", "g.txt"], &[]);
    let include = Copy { include_patterns: vec!["a/*/c.txt".into()], ..copy_of("/", "/x/") };
    dirs.copy(&include).unwrap();
    assert_eq!(dirs.dst(), ["x/", "x/a/", "x/a/b/", "x/a/b/c.txt"]);

    let dirs = Dirs::new(&["a/b/c.txt", "a/b/d.md", "a/e/f.md", "g.txt"], &[]);
    let exclude = Copy { exclude_patterns: vec!["**/*.md".into(), "!a/e/f.md".into()], ..copy_of("/", "/") };
    dirs.copy(&exclude).unwrap();
    assert_eq!(dirs.dst(), ["a/", "a/b/", "a/b/c.txt", "a/e/", "a/e/f.md", "g.txt"]);
}

#[test]
fn keeps_modes_times_links_and_attributes() {
    let dirs = Dirs::new(&["d/f"], &[]);
    let at = |path: &str| dirs.src.path().join(path);
    fs::hard_link(at("d/f"), at("d/g")).unwrap();
    symlink("f", at("d/l")).unwrap();
    fs::set_permissions(at("d/f"), fs::Permissions::from_mode(0o4711)).unwrap();
    fs::set_permissions(at("d"), fs::Permissions::from_mode(0o1750)).unwrap();
    let time = std::time::UNIX_EPOCH + std::time::Duration::new(1_600_000_000, 123_456_789);
    let times = fs::FileTimes::new().set_modified(time).set_accessed(time);
    fs::File::open(at("d/f")).unwrap().set_times(times).unwrap();
    fs::File::open(at("d")).unwrap().set_times(times).unwrap();
    dirs.copy(&copy_of("d", "/x")).unwrap();

    let stat = |path: &str| fs::symlink_metadata(dirs.dst.path().join(path)).unwrap();
    assert_eq!(stat("x/f").mode() & 0o7777, 0o4711);
    assert_eq!(stat("x/f").ino(), stat("x/g").ino());
    assert_eq!((stat("x/f").mtime(), stat("x/f").mtime_nsec()), (1_600_000_000, 123_456_789));
    // The directory was made for the copy, so it keeps its own mode, and gets the time of the original.
    assert_eq!(stat("x").mode() & 0o7777, 0o755);
    assert_eq!(stat("x").mtime(), 1_600_000_000);
    assert!(stat("x/l").file_type().is_symlink());
}

#[test]
fn sets_mode_and_time() {
    let dirs = Dirs::new(&["d/f"], &[]);
    let action = Copy { mode: 0o2640, timestamp: 1_500_000_000_000_000_001, ..copy_of("d/f", "/x/y") };
    dirs.copy(&action).unwrap();
    let stat = |path: &str| fs::metadata(dirs.dst.path().join(path)).unwrap();
    assert_eq!(stat("x/y").mode() & 0o7777, 0o2640);
    assert_eq!((stat("x/y").mtime(), stat("x/y").mtime_nsec()), (1_500_000_000, 1));
    assert_eq!((stat("x").mode() & 0o7777, stat("x").mtime()), (0o640, 1_500_000_000));

    let dirs = Dirs::new(&["d/f", "d/e/"], &[]);
    dirs.copy(&Copy { mode_str: "u=rwX,go=".into(), ..copy_of("d", "/x/y") }).unwrap();
    let mode = |path: &str| fs::metadata(dirs.dst.path().join(path)).unwrap().mode() & 0o7777;
    assert_eq!([mode("x/y/e"), mode("x/y/f")], [0o700, 0o600]);
}

#[test]
fn links_never_lead_out() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "s").unwrap();
    let dirs = Dirs::new(&["a"], &["in/"]);
    symlink(outside.path(), dirs.dst.path().join("out")).unwrap();
    symlink("/in", dirs.dst.path().join("abs")).unwrap();
    symlink("../../../../../../in", dirs.dst.path().join("up")).unwrap();
    symlink(outside.path().join("secret"), dirs.src.path().join("leak")).unwrap();

    dirs.copy(&copy_of("a", "/abs/1")).unwrap();
    dirs.copy(&copy_of("a", "/up/2")).unwrap();
    dirs.copy(&copy_of("a", "/out/3")).unwrap();
    assert!(list(outside.path()) == ["secret"], "{:?}", list(outside.path()));
    let inside = format!("{}/3", outside.path().strip_prefix("/").unwrap().display());
    assert!(dirs.dst().contains(&"in/1".to_owned()) && dirs.dst().contains(&"in/2".to_owned()));
    assert!(dirs.dst().contains(&inside), "{:?}", dirs.dst());

    let error = dirs.copy(&copy_of("leak", "/x")).unwrap_err().to_string();
    assert!(error.starts_with("lstat /") && error.ends_with("no such file or directory"), "{error}");
}

#[test]
fn errors_name_paths_in_the_root() {
    let dirs = Dirs::new(&["a", "d/"], &["x/f", "y"]);
    let error = |action: &Copy| dirs.copy(action).unwrap_err().to_string();
    assert_eq!(error(&copy_of("a", "/x/f/y")), "mkdir /x/f: not a directory");
    assert_eq!(error(&copy_of("d", "/y")), "cannot copy to non-directory: /y");
    assert_eq!(error(&copy_of("none", "/z")), "lstat /none: no such file or directory");
    let no_parents = Copy { create_dest_path: false, ..copy_of("a", "/p/q") };
    assert_eq!(error(&no_parents), "failed to stat /p/q: lstat /p: no such file or directory");
    let strict = Copy { allow_empty_wildcard: false, ..copy_of("q*", "/z") };
    assert_eq!(error(&strict), "/q* not found");
}

#[test]
fn replaces_what_is_in_the_way_if_told_to() {
    let dirs = Dirs::new(&["d/f", "g"], &["x/f/old", "g/old"]);
    let replace = |from: &str, to: &str| Copy { always_replace_existing_dest_paths: true, ..copy_of(from, to) };
    dirs.copy(&replace("d", "/x")).unwrap();
    assert_eq!(dirs.dst(), ["g/", "g/old", "x/", "x/f"]);
}

#[test]
fn a_cancelled_copy_ends() {
    let dirs = Dirs::new(&["a"], &[]);
    let (src, dst) = (Tree::open(dirs.src.path()).unwrap(), Tree::open(dirs.dst.path()).unwrap());
    let token = CancellationToken::new();
    token.cancel();
    let action = copy_of("a", "/x");
    let result = files::copy(&src, &dst, &CopyOptions { action: &action, owner: None, token: &token });
    assert!(matches!(result, Err(FileError::Cancelled)));
}

#[test]
fn makes_writes_links_and_removes() {
    let dirs = Dirs::new(&[], &["old"]);
    let tree = Tree::open(dirs.dst.path()).unwrap();
    let dir = |path: &str, parents: bool| Mkdir {
        path: path.into(),
        mode: 0o1750,
        make_parents: parents,
        timestamp: 1_000_000_000,
        ..Mkdir::default()
    };
    let file = |path: &str, data: &'static str| Mkfile {
        path: path.into(),
        mode: 0o4640,
        data: data.into(),
        timestamp: -1,
        ..Mkfile::default()
    };
    files::mkdir(&tree, &dir("/a/b", true), None).unwrap();
    files::mkdir(&tree, &dir("/a/b", false), None).unwrap();
    assert_eq!(fs::metadata(dirs.dst.path().join("a/b")).unwrap().mtime(), 1);
    let error = files::mkdir(&tree, &dir("/n/m", false), None).unwrap_err();
    assert_eq!(error.to_string(), "mkdir /n/m: no such file or directory");
    let error = files::mkdir(&tree, &dir("/old/m", true), None).unwrap_err();
    assert_eq!(error.to_string(), "mkdir /old: not a directory");
    files::mkfile(&tree, &file("a/b/f", "hello"), None).unwrap();
    fs::set_permissions(dirs.dst.path().join("old"), fs::Permissions::from_mode(0o600)).unwrap();
    files::mkfile(&tree, &file("/old", "new"), None).unwrap();
    let error = files::mkfile(&tree, &file("/a", "x"), None).unwrap_err();
    assert_eq!(error.to_string(), "open /a: is a directory");
    let link = Symlink { oldpath: "b".into(), newpath: "/a/l".into(), timestamp: -1, ..Symlink::default() };
    files::symlink(&tree, &link, None).unwrap();
    assert!(files::symlink(&tree, &link, None).is_err());

    let stat = |path: &str| fs::metadata(dirs.dst.path().join(path)).unwrap();
    assert_eq!((stat("a/b").mode() & 0o7777, stat("a/b/f").mode() & 0o7777), (0o750, 0o640));
    assert_eq!(stat("old").mode() & 0o7777, 0o600);
    assert_eq!(fs::read_to_string(dirs.dst.path().join("old")).unwrap(), "new");

    let rm = |path: &str, missing: bool, wildcard: bool| {
        files::rm(&tree, &Rm { path: path.into(), allow_not_found: missing, allow_wildcard: wildcard })
    };
    assert_eq!(rm("/none", false, false).unwrap_err().to_string(), "stat /none: no such file or directory");
    rm("/none", true, false).unwrap();
    rm("/a/l", false, false).unwrap();
    assert_eq!(dirs.dst(), ["a/", "a/b/", "a/b/f", "old"]);
    rm("/a/*", false, true).unwrap();
    assert_eq!(dirs.dst(), ["a/", "old"]);
    assert_eq!(rm("/", false, false).unwrap_err().to_string(), "rmPath: invalid empty path");
}

#[test]
fn finds_users_and_groups() {
    let dirs = Dirs::new(&[], &["etc/"]);
    let tree = Tree::open(dirs.dst.path()).unwrap();
    assert_eq!(files::user_by_name(&tree, "app").unwrap(), None);
    fs::write(dirs.dst.path().join("etc/passwd"), "root:x:0:0::/:\n# c\napp:x:12:34:App:/:/bin/sh\nshort:x\n").unwrap();
    fs::write(dirs.dst.path().join("etc/group"), "root:x:0:\nstaff:x:50:app\n").unwrap();
    let user = files::user_by_name(&tree, "app").unwrap().unwrap();
    assert_eq!((user.uid, user.gid), (12, 34));
    assert_eq!(files::user_by_name(&tree, "nobody").unwrap(), None);
    assert_eq!(files::group_by_name(&tree, "staff").unwrap(), Some(50));
}

#[test]
fn deep_trees_are_removed() {
    let dirs = Dirs::new(&[], &["top/"]);
    let mut dir = rustix::fs::open(
        dirs.dst.path().join("top"),
        rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::RDONLY,
        rustix::fs::Mode::empty(),
    )
    .unwrap();
    for _ in 0..300 {
        rustix::fs::mkdirat(&dir, "a-rather-long-directory-name", rustix::fs::Mode::from_raw_mode(0o755)).unwrap();
        let flags = rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::RDONLY;
        dir = rustix::fs::openat(&dir, "a-rather-long-directory-name", flags, rustix::fs::Mode::empty()).unwrap();
    }
    drop(dir);
    let tree = Tree::open(dirs.dst.path()).unwrap();
    files::rm(&tree, &Rm { path: "/top".into(), ..Rm::default() }).unwrap();
    assert!(dirs.dst().is_empty());
}
