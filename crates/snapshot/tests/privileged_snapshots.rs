//! Snapshots on real mounts: these tests need root.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::sync::atomic::Ordering;

use castor_layerfs::Lazy;
use castor_snapshot::{Element, Kind, SnapshotError, Snapshotter as _};
use support::{Bench, Source, id};

fn names(files: &[(String, String)]) -> Vec<&str> {
    files.iter().map(|(name, _)| name.as_str()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_steps_on_an_image() {
    let bench = Bench::new().await;
    let base =
        Source::new(&[("./", b""), ("etc/", b""), ("etc/conf", b"conf"), ("bin/", b""), ("bin/sh", b"sh")], false);
    bench.image("base", &[base], Lazy::Never).await;
    bench
        .step("one", Some("base"), |root| {
            fs::write(root.join("etc/new"), "new").unwrap();
            fs::remove_file(root.join("bin/sh")).unwrap();
            fs::set_permissions(root.join("etc/conf"), fs::Permissions::from_mode(0o600)).unwrap();
        })
        .await;
    bench
        .step("two", Some("one"), |root| {
            assert!(!root.join("bin/sh").exists());
            assert_eq!(fs::read_to_string(root.join("etc/conf")).unwrap(), "conf");
            assert_eq!(fs::metadata(root.join("etc/conf")).unwrap().mode() & 0o7777, 0o600);
            fs::rename(root.join("etc"), root.join("moved")).unwrap();
        })
        .await;
    let expected = ["bin", "moved", "moved/conf", "moved/new"];
    assert_eq!(names(&bench.files("two").await), expected);
    let info = bench.snapshots.info(&id("two")).await.unwrap().unwrap();
    assert_eq!((info.kind, info.elements.len(), info.parent), (Kind::Committed, 3, Some(id("one"))));
    assert!(bench.snapshots.usage(&id("one")).await.unwrap().inodes > 0);

    // The parent is not needed for the child; the files go with the last who needs them.
    bench.snapshots.remove(&id("one")).await.unwrap();
    let bench = bench.restart().await;
    assert_eq!(names(&bench.files("two").await), expected);
    assert_eq!(fs::read_dir(bench.root.join("snapshots/diffs")).unwrap().count(), 2);
    bench.snapshots.remove(&id("two")).await.unwrap();
    bench.snapshots.remove(&id("base")).await.unwrap();
    let bench = bench.restart().await;
    assert_eq!(fs::read_dir(bench.root.join("snapshots/diffs")).unwrap().count(), 0);
    assert!(bench.snapshots.list().await.unwrap().is_empty());
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_an_active_snapshot_is_shared_and_kept() {
    let bench = Bench::new().await;
    bench.snapshots.prepare(&id("cache"), None).await.unwrap();
    let (first, second) = (bench.mount("cache").await, bench.mount("cache").await);
    fs::write(first.path().join("a"), "a").unwrap();
    assert_eq!(fs::read_to_string(second.path().join("a")).unwrap(), "a");
    drop(first);
    fs::write(second.path().join("b"), "b").unwrap();
    drop(second);
    assert!(matches!(bench.snapshots.prepare(&id("cache"), None).await, Err(SnapshotError::Exists(_))));
    // Cache mounts outlive the daemon and are written to again.
    let bench = bench.restart().await;
    let again = bench.mount("cache").await;
    fs::write(again.path().join("c"), "c").unwrap();
    drop(again);
    assert_eq!(names(&bench.files("cache").await), ["a", "b", "c"]);
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_roots_keep_their_attributes() {
    let bench = Bench::new().await;
    bench
        .step("base", None, |root| {
            fs::set_permissions(root, fs::Permissions::from_mode(0o711)).unwrap();
            std::os::unix::fs::chown(root, Some(5), Some(6)).unwrap();
        })
        .await;
    bench.step("next", Some("base"), |root| fs::write(root.join("f"), "").unwrap()).await;
    let mounted = bench.mount("next").await;
    let meta = fs::metadata(mounted.path()).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid()), (0o711, 5, 6));
    drop(mounted);
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_lists_are_merged_and_sliced() {
    let bench = Bench::new().await;
    let base = Source::new(&[("d/", b""), ("d/f", b"base"), ("keep", b"k")], false);
    let other = Source::new(&[("d/", b""), ("d/other", b"o"), ("d/.wh.f", b""), ("link", b"l")], false);
    bench.image("base", &[base], Lazy::Never).await;
    bench.image("other", &[other], Lazy::Never).await;
    bench
        .step("changed", Some("base"), |root| {
            fs::write(root.join("d/new"), "n").unwrap();
            fs::remove_file(root.join("keep")).unwrap();
            // Only metadata in the upper: the data is below, and must come along when it is stacked elsewhere.
            fs::set_permissions(root.join("d/f"), fs::Permissions::from_mode(0o755)).unwrap();
        })
        .await;
    assert!(bench.snapshots.slice(&id("diff"), Some(&id("base")), &id("changed")).await.unwrap());
    assert!(!bench.snapshots.slice(&id("no"), Some(&id("other")), &id("changed")).await.unwrap());
    let diff = bench.files("diff").await;
    assert_eq!(names(&diff), ["d", "d/f", "d/new"]);
    assert_eq!(diff[1].1, "base");

    // On top of another image; below a layer with a whiteout, which names nothing that its own image has.
    bench.step("scratch", None, |root| fs::write(root.join("keep"), "mine").unwrap()).await;
    bench.snapshots.merge(&id("merged"), &[id("scratch"), id("diff"), id("other")]).await.unwrap();
    let merged = bench.files("merged").await;
    assert_eq!(names(&merged), ["d", "d/f", "d/new", "d/other", "link"]);

    // The same part twice: the last counts.
    bench.snapshots.merge(&id("twice"), &[id("changed"), id("base"), id("changed")]).await.unwrap();
    let twice = bench.files("twice").await;
    assert_eq!(names(&twice), ["d", "d/f", "d/new"]);
    assert_eq!(twice[1].1, "base");
    bench.close().await;
}

/// What BuildKit shows of the same.
#[tokio::test(flavor = "multi_thread")]
async fn privileged_layers_hide_only_what_their_own_image_has() {
    let bench = Bench::new().await;
    let layer = |names: &[&str]| {
        let files: Vec<_> = names.iter().map(|name| (*name, name.as_bytes())).collect();
        let files: Vec<(&str, &[u8])> =
            files.into_iter().map(|(name, data)| (name, if name.ends_with('/') { b"" } else { data })).collect();
        Source::new(&files, false)
    };
    let first = layer(&["d/", "d/old", "keep", "w", "sub/", "sub/deep/", "sub/deep/x"]);
    let second = layer(&[
        "d/",
        "d/.wh..wh..opq",
        "d/new",
        ".wh.w",
        "e/",
        "e/.wh..wh..opq",
        "e/new",
        ".wh.nothing",
        "sub/",
        "sub/.wh..wh..opq",
    ]);
    let third = layer(&["keep2", "sub/deep/y"]);
    let one = layer(&["d/", "d/.wh..wh..opq", "d/b", ".wh.first"]);
    bench.image("img", &[first.clone(), second.clone(), third], Lazy::Never).await;
    bench.image("two", &[first.clone(), second], Lazy::Never).await;
    bench.image("low", &[first], Lazy::Never).await;
    bench.image("one", &[one], Lazy::Never).await;
    bench
        .step("foreign", None, |root| {
            let names =
                ["d/old", "d/mine", "e/mine", "w", "nothing", "first", "sub/deep/x", "sub/deep/mine", "sub/mine"];
            for name in names {
                fs::create_dir_all(root.join(name).parent().unwrap()).unwrap();
                fs::write(root.join(name), "m").unwrap();
            }
        })
        .await;
    for (name, upper) in [("two-low", "two"), ("img-low", "img")] {
        assert!(bench.snapshots.slice(&id(name), Some(&id("low")), &id(upper)).await.unwrap());
    }
    bench.step("else", None, |root| fs::write(root.join("z"), "z").unwrap()).await;
    let cases: [(&[&str], &[&str]); 7] = [
        // What hides nothing there is not seen either.
        (&["else", "two-low"], &["d", "d/new", "e", "e/new", "sub", "z"]),
        (
            &["foreign", "img"],
            &[
                "d",
                "d/mine",
                "d/new",
                "e",
                "e/mine",
                "e/new",
                "first",
                "keep",
                "keep2",
                "nothing",
                "sub",
                "sub/deep",
                "sub/deep/y",
                "sub/mine",
            ],
        ),
        (
            &["foreign", "one"],
            &[
                "d",
                "d/b",
                "d/mine",
                "d/old",
                "e",
                "e/mine",
                "first",
                "nothing",
                "sub",
                "sub/deep",
                "sub/deep/mine",
                "sub/deep/x",
                "sub/mine",
                "w",
            ],
        ),
        (&["low", "one"], &["d", "d/b", "d/old", "keep", "sub", "sub/deep", "sub/deep/x", "w"]),
        (&["img-low"], &["d", "d/new", "e", "e/new", "keep2", "sub", "sub/deep", "sub/deep/y"]),
        (
            &["foreign", "two-low"],
            &["d", "d/mine", "d/new", "e", "e/mine", "e/new", "first", "nothing", "sub", "sub/mine"],
        ),
        (
            &["foreign", "img-low"],
            &[
                "d",
                "d/mine",
                "d/new",
                "e",
                "e/mine",
                "e/new",
                "first",
                "keep2",
                "nothing",
                "sub",
                "sub/deep",
                "sub/deep/y",
                "sub/mine",
            ],
        ),
    ];
    for (number, (parts, expected)) in cases.into_iter().enumerate() {
        let parts: Vec<_> = parts.iter().map(|part| id(part)).collect();
        let name = format!("case{number}");
        bench.snapshots.merge(&id(&name), &parts).await.unwrap();
        assert_eq!(names(&bench.files(&name).await), expected, "{parts:?}");
    }
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_directory_that_was_made_anew_hides_only_what_it_replaced() {
    let bench = Bench::new().await;
    let base = Source::new(&[("d/", b""), ("d/old", b"base")], false);
    bench.image("base", &[base], Lazy::Never).await;
    bench
        .step("changed", Some("base"), |root| {
            fs::remove_dir_all(root.join("d")).unwrap();
            fs::create_dir(root.join("d")).unwrap();
            fs::write(root.join("d/new"), "n").unwrap();
            fs::create_dir(root.join("fresh")).unwrap();
            fs::write(root.join("fresh/new"), "n").unwrap();
        })
        .await;
    bench
        .step("mine", None, |root| {
            for name in ["d/old", "d/mine", "fresh/mine"] {
                fs::create_dir_all(root.join(name).parent().unwrap()).unwrap();
                fs::write(root.join(name), "m").unwrap();
            }
        })
        .await;
    assert!(bench.snapshots.slice(&id("diff"), Some(&id("base")), &id("changed")).await.unwrap());
    bench.snapshots.merge(&id("part"), &[id("mine"), id("diff")]).await.unwrap();
    let expected = ["d", "d/mine", "d/new", "fresh", "fresh/mine", "fresh/new"];
    assert_eq!(names(&bench.files("part").await), expected);
    bench.snapshots.merge(&id("whole"), &[id("mine"), id("changed")]).await.unwrap();
    assert_eq!(names(&bench.files("whole").await), expected);

    // What was made on nothing hides nothing.
    bench.snapshots.merge(&id("on top"), &[id("changed"), id("mine")]).await.unwrap();
    let expected = ["d", "d/mine", "d/new", "d/old", "fresh", "fresh/mine", "fresh/new"];
    assert_eq!(names(&bench.files("on top").await), expected);

    // One that is as it was is no change.
    bench
        .step("nothing", Some("base"), |root| {
            fs::write(root.join("d/passing"), "p").unwrap();
            fs::remove_file(root.join("d/passing")).unwrap();
        })
        .await;
    assert!(bench.snapshots.slice(&id("none"), Some(&id("base")), &id("nothing")).await.unwrap());
    assert!(bench.files("none").await.is_empty());
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_long_chains_are_flattened() {
    let bench = Bench::new().await;
    let mut parent: Option<String> = None;
    for number in 0..410 {
        let name = format!("s{number}");
        let active = id("active");
        let below = parent.as_deref().map(id);
        bench.snapshots.prepare(&active, below.as_ref()).await.unwrap();
        // Written without a mount: what counts here is the length of the list.
        let info = bench.snapshots.info(&active).await.unwrap().unwrap();
        let Some(Element::Diff(diff)) = info.elements.last() else { panic!("no diff") };
        let fs_dir = bench.root.join("snapshots/diffs").join(diff.to_string()).join("fs");
        fs::write(fs_dir.join(format!("f{number:03}")), number.to_string()).unwrap();
        fs::write(fs_dir.join("last"), number.to_string()).unwrap();
        bench.snapshots.commit(&id(&name), &active).await.unwrap();
        parent = Some(name);
    }
    let files = bench.files("s409").await;
    assert_eq!(files.len(), 411);
    assert_eq!(files[410], ("last".to_owned(), "409".to_owned()));
    bench.step("more", Some("s409"), |root| fs::write(root.join("more"), "").unwrap()).await;
    assert_eq!(bench.files("more").await.len(), 412);
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_changing_owners_of_a_lazy_image_fetches_nothing() {
    let bench = Bench::new().await;
    let data: Vec<u8> = (0..600_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let source = Source::new(&[("d/", b""), ("d/big", &data), ("d/small", b"small")], true);
    bench.image("base", std::slice::from_ref(&source), Lazy::Require).await;
    let before = source.sent.load(Ordering::Relaxed);
    bench
        .step("owned", Some("base"), |root| {
            for name in ["d", "d/big", "d/small"] {
                std::os::unix::fs::lchown(root.join(name), Some(7), Some(8)).unwrap();
            }
        })
        .await;
    assert_eq!(source.sent.load(Ordering::Relaxed), before);
    // As a layer the files are whole: only now they are fetched.
    let layer = bench.layer_of(Some("base"), "owned").await;
    assert!(source.sent.load(Ordering::Relaxed) > before + 1_000_000);
    assert!(layer.len() > data.len());
    let mut reader = castor_archive::tar::Reader::new(layer.as_slice());
    let mut seen = Vec::new();
    while let Some(header) = reader.next().unwrap() {
        seen.push((String::from_utf8(header.path.clone()).unwrap(), header.uid, header.gid, header.size));
    }
    let size = data.len() as u64;
    assert_eq!(seen, [("d/".into(), 7, 8, 0), ("d/big".into(), 7, 8, size), ("d/small".into(), 7, 8, 5)]);
    bench.close().await;
}
