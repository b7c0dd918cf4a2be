//! Image trees, read back without mounting them, against a plain model of what stacking layers means.

use std::collections::BTreeMap;
use std::io::BufWriter;

use castor_archive::Timestamp;
use castor_archive::listing::Rules;
use castor_archive::tar::{Header, Kind as TarKind, Writer};
use castor_erofs::read::{Image as Read, Nid};

use super::*;
use crate::tree::from_tar;
use crate::unpack::unpack;

fn header(path: &str, kind: TarKind, mode: u32) -> Header {
    Header { path: path.into(), kind, mode, mtime: Timestamp::from_seconds(1), ..Header::default() }
}

/// The tree of a layer with these entries.
fn layer(entries: &[Header]) -> Tree {
    let mut writer = Writer::new(Vec::new());
    for entry in entries {
        writer.append(entry, &mut std::io::repeat(7).take(entry.size)).unwrap();
    }
    let tar = writer.finish().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let data = File::create_new(dir.path().join("data")).unwrap();
    let unpacked = unpack(tar.as_slice(), Some(&data), Rules::TAR).unwrap();
    let path = dir.path().join("tree");
    let mut out = BufWriter::new(File::create_new(&path).unwrap());
    from_tar(&unpacked.listing, &unpacked.places, unpacked.data_size, 0).write(&mut out).unwrap();
    out.flush().unwrap();
    // It is mapped, so it may be deleted.
    Tree::open(&path).unwrap()
}

use std::io::Read as _;

/// All entries of an image, as text.
fn entries(layers: &[&Tree], base: Base) -> BTreeMap<String, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.erofs");
    build(layers, Digest::of("test"), base, &path).unwrap();
    let image = Read::open(File::open(&path).unwrap()).unwrap();
    let mut found = BTreeMap::new();
    let mut todo: Vec<(String, Nid)> = vec![(String::new(), image.superblock().root)];
    while let Some((name, nid)) = todo.pop() {
        let inode = image.inode(nid).unwrap();
        let opaque = image.xattrs(&inode).unwrap().iter().any(|(name, _)| name == b"trusted.overlay.opaque");
        let mut what = format!("{:?} {:o} {}", inode.kind, inode.mode & 0o7777, inode.uid);
        if opaque {
            what.push_str(" opaque");
        }
        if inode.kind == NodeKind::Directory {
            let entries = image.read_dir(&inode, 0).unwrap();
            for entry in entries {
                let entry = entry.unwrap();
                if entry.name != b"." && entry.name != b".." {
                    todo.push((format!("{name}/{}", String::from_utf8_lossy(&entry.name)), entry.nid));
                }
            }
        }
        found.insert(name, what);
    }
    found.remove("");
    found
}

#[test]
fn whiteouts_that_hide_nothing_here_are_kept_only_for_layers_below() {
    let lower = layer(&[header("d/", TarKind::Directory, 0o755), header("d/f", TarKind::File, 0o644)]);
    let upper = layer(&[
        header("d/.wh.f", TarKind::File, 0),
        header("d/.wh.elsewhere", TarKind::File, 0),
        header("o/", TarKind::Directory, 0o700),
        header("o/.wh..wh..opq", TarKind::File, 0),
        header("null", TarKind::CharDevice, 0o600),
    ]);
    let ground = entries(&[&lower, &upper], Base::Ground);
    assert_eq!(ground.keys().collect::<Vec<_>>(), ["/d", "/o"]);
    let stacked = entries(&[&lower, &upper], Base::Stacked);
    assert_eq!(stacked.keys().collect::<Vec<_>>(), ["/d", "/d/elsewhere", "/d/f", "/null", "/o"]);
    assert_eq!(stacked["/d/f"], "CharDevice 0 0");
    assert_eq!(stacked["/o"], "Directory 700 0 opaque");

    // A directory that takes the place of a whiteout goes on hiding what is below.
    let again = layer(&[header("d/f/", TarKind::Directory, 0o755), header("d/f/in", TarKind::File, 0o644)]);
    assert_eq!(entries(&[&lower, &upper, &again], Base::Stacked)["/d/f"], "Directory 755 0 opaque");
    assert_eq!(entries(&[&lower, &upper, &again], Base::Ground)["/d/f"], "Directory 755 0");
}

#[test]
fn implied_parents_follow_symlinks_and_inherit() {
    let link = |path: &str, target: &str| Header { link: target.into(), ..header(path, TarKind::Symlink, 0o777) };
    let lower = layer(&[
        Header { uid: 9, ..header("usr/", TarKind::Directory, 0o711) },
        header("usr/lib/", TarKind::Directory, 0o750),
        link("lib", "a"),
        link("a", "/usr/../usr/lib"),
        link("loop", "loop"),
        link("file", "usr/f"),
        header("usr/f", TarKind::File, 0o644),
    ]);
    let upper = layer(&[
        header("lib/x", TarKind::File, 0o644),
        header("usr/y", TarKind::File, 0o644),
        header("loop/z", TarKind::File, 0o644),
        header("file/z", TarKind::File, 0o644),
    ]);
    let found = entries(&[&lower, &upper], Base::Ground);
    assert_eq!(found["/usr"], "Directory 711 9");
    assert_eq!(found["/usr/lib"], "Directory 750 0");
    assert!(found.contains_key("/usr/lib/x") && found.contains_key("/usr/y"));
    assert_eq!(found["/lib"], "Symlink 777 0");
    // What leads to no directory gives way.
    assert_eq!(found["/loop"], "Directory 755 0");
    assert_eq!(found["/file"], "Directory 755 0");
    // Named by the layer itself, it replaces the link.
    let explicit = layer(&[header("lib/", TarKind::Directory, 0o755), header("lib/x", TarKind::File, 0o644)]);
    assert_eq!(entries(&[&lower, &explicit], Base::Ground)["/lib"], "Directory 755 0");
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// What a stack of layers shows, by path.
type Model = BTreeMap<String, String>;

fn remove(model: &mut Model, path: &str) {
    model.retain(|name, _| name != path && !name.starts_with(&format!("{path}/")));
}

/// One random layer, and the same done to the model.
fn random_layer(random: &mut Random, model: &mut Model) -> Tree {
    let names = ["a", "b", "c"];
    let mut headers: Vec<Header> = Vec::new();
    let mut mine: BTreeMap<String, (String, bool)> = BTreeMap::new();
    let mut hidden: Vec<String> = Vec::new();
    let mut emptied: Vec<String> = Vec::new();
    for _ in 0..random.below(12) {
        let mut path = String::new();
        for _ in 0..=random.below(3) {
            path.push('/');
            path.push_str(names[random.below(3) as usize]);
        }
        let parents: Vec<String> = path.match_indices('/').skip(1).map(|(at, _)| path[..at].to_owned()).collect();
        let blocked = parents.iter().any(|p| mine.get(p).is_some_and(|(what, _)| !what.starts_with("Directory")));
        let taken = mine.contains_key(&path) || mine.keys().any(|name| name.starts_with(&format!("{path}/")));
        let gone = |path: &String| hidden.contains(path);
        if blocked || taken || gone(&path) || parents.iter().any(gone) {
            continue;
        }
        let (dir, last) = path.rsplit_once('/').unwrap();
        for parent in &parents {
            mine.entry(parent.clone()).or_insert_with(|| ("Directory 755 0".into(), true));
        }
        let relative = path[1..].to_owned();
        match random.below(6) {
            0 => {
                headers.push(header(&format!("{dir}/.wh.{last}")[1..], TarKind::File, 0));
                hidden.push(path);
            }
            1 => {
                headers.push(header(&format!("{relative}/.wh..wh..opq"), TarKind::File, 0));
                emptied.push(path.clone());
                mine.insert(path, ("Directory 755 0".into(), true));
            }
            2 | 3 => {
                let mode = 0o700 + random.below(8) as u32;
                headers.push(header(&format!("{relative}/"), TarKind::Directory, mode));
                mine.insert(path, (format!("Directory {mode:o} 0"), false));
            }
            _ => {
                let mode = 0o600 + random.below(8) as u32;
                headers.push(Header { size: random.below(3), ..header(&relative, TarKind::File, mode) });
                mine.insert(path, (format!("File {mode:o} 0"), false));
            }
        }
    }
    for path in &hidden {
        remove(model, path);
    }
    for path in &emptied {
        model.retain(|name, _| !name.starts_with(&format!("{path}/")));
    }
    for (path, (what, implied)) in mine {
        let below = model.get(&path).cloned();
        let directories = below.as_ref().is_some_and(|b| b.starts_with("Directory")) && what.starts_with("Directory");
        if !directories {
            remove(model, &path);
        }
        match below.filter(|_| directories && implied) {
            Some(below) => model.insert(path, below),
            None => model.insert(path, what),
        };
    }
    layer(&headers)
}

#[test]
fn random_stacks_equal_the_model() {
    for seed in 0..300 {
        let mut random = Random(seed);
        let mut model = Model::new();
        let count = 1 + random.below(6);
        let layers: Vec<Tree> = (0..count).map(|_| random_layer(&mut random, &mut model)).collect();
        let found = entries(&layers.iter().collect::<Vec<_>>(), Base::Ground);
        assert_eq!(found, model, "seed {seed}");
    }
}
