//! The same scenarios over every mode of mounting: real mounts, so these tests need root.
#![allow(clippy::unwrap_used, missing_docs)]

mod modes;
mod support;

use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use castor_archive::Timestamp;
use castor_archive::tar::{Header, Kind};
use castor_layerfs::{ImageTree, Layer, LayerState, Lazy, Mode};
use castor_mount::{Lower, Overlay, Upper};
use castor_progress::Reporter;
use modes::{PATIENCE, comes_true, ends, in_mode, kill, loops, overlay, walk, within};
use support::rand_like::Random;
use support::{Bench, Blob, Source, Tar, estargz, gzip, header, path, read, read_when_well};

#[test]
fn the_server_of_image_trees() {
    modes::serve_if_asked();
}

/// The filter, of no test, that says that this program runs in a user namespace.
const CONFINED: &str = "in-a-user-namespace";

/// A daemon in a user namespace can mount no EROFS: it takes mode `fuse` by itself.
#[tokio::test(flavor = "multi_thread")]
async fn the_confined_daemon() {
    if !std::env::args().any(|argument| argument == CONFINED) {
        return;
    }
    let bench = Bench::with(|config| config.server = Some(modes::server())).await;
    let modes = bench.engine.modes();
    assert_eq!((&modes.complete, &modes.lazy), (&Ok(Mode::Fuse), &Ok(Mode::Fuse)), "{:?}", modes.passed_over);
    let (blob, contents) = many(100, 40_000);
    let source = Source::new(&blob);
    let layer = open(&bench, &source).await;
    let tree = tree_of(&bench, std::slice::from_ref(&layer)).await;
    assert_eq!(read(&tree, &name(70)).await.unwrap(), contents[70]);
    layer.complete().await.unwrap();
    source.faults.lock().down = true;
    for (number, content) in contents.iter().enumerate() {
        assert_eq!(&read(&tree, &name(number)).await.unwrap(), content, "{number}");
    }
    drop((tree, layer));
    bench.engine.shutdown().await;
}

#[test]
fn privileged_a_user_namespace_is_enough_for_mode_fuse() {
    // Root only to open the device of FUSE, which on this machine may be nobody else's.
    let output = std::process::Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "the_confined_daemon", CONFINED])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    if errors.contains("unshare failed: Operation not permitted") {
        // In a chroot the kernel gives nobody a namespace of users, root or not: no daemon is confined like this there.
        let most = std::fs::read_to_string("/proc/sys/user/max_user_namespaces").unwrap();
        assert_ne!(most.trim(), "0", "this machine has no namespaces of users");
        return;
    }
    assert!(output.status.success() && text.contains("1 passed"), "{text}{errors}");
}

/// Runs scenarios in every mode that serves lazy layers.
macro_rules! over_lazy_modes {
    ($($scenario:ident),* $(,)?) => {
        over_lazy_modes!(@ privileged_erofs_fuse, Mode::ErofsFuse, $($scenario),*);
        over_lazy_modes!(@ privileged_erofs_fuse_loop, Mode::ErofsFuseLoop, $($scenario),*);
        over_lazy_modes!(@ privileged_fuse, Mode::Fuse, $($scenario),*);
    };
    (@ $name:ident, $mode:expr, $($scenario:ident),*) => {
        mod $name {
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $scenario() {
                    super::$scenario($mode).await;
                }
            )*
        }
    };
}

over_lazy_modes!(
    trees_equal_those_of_layers_that_came_first,
    only_what_is_read_is_fetched,
    wrong_chunks_are_errors_until_they_are_right,
    a_fetch_without_answer_is_an_error_in_time,
    what_is_here_outlives_a_restart,
    readers_can_be_killed_and_trees_unmounted,
    steps_write_above_it,
    whiteouts_reach_what_is_below,
);

mod privileged_complete {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn erofs() {
        complete_layers_need_no_server(Mode::Erofs).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn erofs_loop() {
        complete_layers_need_no_server(Mode::ErofsLoop).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn fuse() {
        complete_layers_need_no_server(Mode::Fuse).await;
    }
}

const MIB: usize = 1 << 20;

/// A layer of `count` files of `size` random bytes.
fn many(count: usize, size: usize) -> (Blob, Vec<Vec<u8>>) {
    let mut random = Random::new(7);
    let mut tar = Tar::default();
    let mut contents = Vec::new();
    for number in 0..count {
        if number % 50 == 0 {
            tar = tar.dir(&format!("d{:03}", number / 50), 0o755);
        }
        contents.push(random.bytes(size));
        tar = tar.file(&name(number), &contents[number]);
    }
    (estargz(&tar.bytes(), 4 << 20), contents)
}

fn name(number: usize) -> String {
    format!("d{:03}/f{number:05}", number / 50)
}

/// Layers with all that a layer can have; with `toc` only what a table of contents can tell of.
fn layers(toc: bool) -> [Tar; 3] {
    let nanoseconds = if toc { 0 } else { 250_000_000 };
    let mut random = Random::new(11);
    let xattr = |name: &str, value: &[u8]| {
        let mut key = b"SCHILY.xattr.".to_vec();
        key.extend_from_slice(name.as_bytes());
        (key, value.to_vec())
    };
    let big = random.bytes(3 * MIB + 123);
    let mut lowest = Tar::default()
        .dir("bin", 0o755)
        .file("bin/big", &big)
        .link("bin/same", "bin/big")
        .put(Header { uid: 70_000, gid: 1_234_567, ..header("bin/set", Kind::File, 0o6755) }, b"set")
        .file("empty", b"")
        .symlink("link", "bin/big")
        .symlink("long", &"x/".repeat(1000))
        .put(Header { dev_major: 259, dev_minor: 70_000, ..header("block", Kind::BlockDevice, 0o660) }, b"")
        .put(Header { dev_major: 1, dev_minor: 3, ..header("null", Kind::CharDevice, 0o666) }, b"")
        .put(header("pipe", Kind::Fifo, 0o620), b"")
        .put(Header { mtime: Timestamp::new(-5, nanoseconds), ..header("old", Kind::File, 0o400) }, b"old")
        .put(
            Header { mtime: Timestamp::new(5_000_000_000, nanoseconds), ..header("late", Kind::File, 0o400) },
            b"late",
        );
    let records = vec![xattr("user.one", b"1"), xattr("user.empty", b""), xattr("trusted.two", &[0, 255, 7])];
    let capability = xattr("security.capability", &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    lowest = lowest.put(Header { records, ..header("attributes", Kind::File, 0o644) }, b"a");
    lowest = lowest.put(Header { records: vec![capability], ..header("capable", Kind::File, 0o755) }, b"c");
    let odd = Header {
        path: [if toc { b"odd-\xc3\xa4" } else { b"odd-\xff\xfe" }.as_slice(), &[b'n'; 200]].concat(),
        ..header("", Kind::File, 0o644)
    };
    lowest = lowest.put(odd, b"odd").dir("many", 0o1777);
    for number in 0..700 {
        lowest = lowest.file(&format!("many/a name that takes some room in its block {number}"), &random.bytes(number));
    }
    let middle = Tar::default()
        .dir("gone", 0o755)
        .file("gone/file", b"1")
        .dir("opaque", 0o755)
        .file("opaque/below", b"2")
        .file("bin/.wh.set", b"");
    let highest = Tar::default()
        .file(".wh.gone", b"")
        .dir("opaque", 0o700)
        .file("opaque/.wh..wh..opq", b"")
        .file("opaque/above", b"3")
        .file("bin/more", &random.bytes(70_000));
    [lowest, middle, highest]
}

async fn open(bench: &Bench, source: &Arc<Source>) -> Arc<Layer> {
    let layer = bench.engine.layer(source.layer(Lazy::Require), &Reporter::discard()).await.unwrap();
    // One that is small comes along with its table of contents.
    assert!(matches!(layer.state(), LayerState::Lazy | LayerState::Complete), "{:?}", layer.state());
    layer
}

async fn tree_of(bench: &Bench, layers: &[Arc<Layer>]) -> Arc<ImageTree> {
    let ids: Vec<_> = layers.iter().map(|layer| layer.id()).collect();
    bench.engine.image_tree(&ids).await.unwrap()
}

async fn walked(tree: &Arc<ImageTree>) -> std::collections::BTreeMap<std::path::PathBuf, modes::Seen> {
    let tree = tree.clone();
    castor_task::reading(move || walk(&path(&tree, ""))).await
}

async fn trees_equal_those_of_layers_that_came_first(mode: Mode) {
    let bench = Bench::with(in_mode(Mode::Erofs)).await;
    let mut eager = Vec::new();
    for tar in layers(true) {
        let source = Source::new(&gzip(&tar.bytes()));
        let layer = bench.engine.layer(source.layer(Lazy::Never), &Reporter::discard()).await.unwrap();
        layer.ready().await.unwrap();
        eager.push(layer);
    }
    let tree = tree_of(&bench, &eager).await;
    assert!(!tree.is_served());
    let expected = walked(&tree).await;
    assert!(expected.len() > 715 && !expected.contains_key(Path::new("gone")), "{}", expected.len());
    let attributes = &expected[Path::new("attributes")].xattrs;
    assert_eq!((attributes.len(), attributes[b"user.empty".as_slice()].len()), (3, 0));
    drop((tree, eager));
    bench.engine.shutdown().await;

    let bench = Bench::with(in_mode(mode)).await;
    assert_eq!(bench.engine.modes().lazy, Ok(mode));
    let mut lazy = Vec::new();
    for tar in layers(true) {
        lazy.push(open(&bench, &Source::new(&estargz(&tar.bytes(), MIB as u64))).await);
    }
    let tree = tree_of(&bench, &lazy).await;
    assert!(tree.is_served());
    let found = walked(&tree).await;
    for (name, seen) in &expected {
        assert_eq!(found.get(name), Some(seen), "{}", name.display());
    }
    assert_eq!(found.len(), expected.len());
    // Again, from what the kernel keeps, and as steps see it.
    assert_eq!(walked(&tree).await, expected);
    let empty = tempfile::tempdir().unwrap();
    let above = overlay(tree.mount().as_fd(), empty.path());
    let root = within(&above, "");
    let seen = castor_task::reading(move || walk(&root)).await;
    let names: Vec<_> = seen.keys().collect();
    assert_eq!(names, expected.keys().collect::<Vec<_>>());
    for (name, seen) in &seen {
        let expected = &expected[name];
        assert_eq!((&seen.content, seen.mode, seen.mtime), (&expected.content, expected.mode, expected.mtime));
        assert_eq!((seen.owner, seen.rdev, &seen.xattrs), (expected.owner, expected.rdev, &expected.xattrs));
    }
    drop((above, tree, lazy));
    bench.engine.shutdown().await;
}

async fn only_what_is_read_is_fetched(mode: Mode) {
    let bench = Bench::with(in_mode(mode)).await;
    let (blob, contents) = many(2000, 12_000);
    let source = Source::new(&blob);
    let layer = open(&bench, &source).await;
    let tail = source.sent();
    let tree = tree_of(&bench, std::slice::from_ref(&layer)).await;
    assert_eq!(support::list(&path(&tree, "")).len(), 2040);
    assert_eq!(source.requests(), 1, "names and attributes need no request");
    for number in [3, 900, 901, 902, 1500] {
        assert_eq!(read(&tree, &name(number)).await.unwrap(), contents[number], "{number}");
    }
    let fetched = source.sent() - tail;
    assert!(fetched < 5 * 12_000 * 6 / 5 + (560 << 10), "{fetched} bytes for five files");
    // Twice the same needs no request.
    source.faults.lock().down = true;
    assert_eq!(read(&tree, &name(900)).await.unwrap(), contents[900]);
    source.faults.lock().down = false;
    for (number, content) in contents.iter().enumerate() {
        assert_eq!(&read(&tree, &name(number)).await.unwrap(), content, "{number}");
    }
    assert!(source.sent() < blob.bytes.len() as u64 * 102 / 100 + tail, "{} of {}", source.sent(), blob.bytes.len());
    layer.complete().await.unwrap();

    // From the next mount on there is no server behind it, also while the first is in use.
    let next = tree_of(&bench, std::slice::from_ref(&layer)).await;
    let needs_server = mode == Mode::Fuse;
    assert_eq!(next.is_served(), needs_server);
    assert_eq!(Arc::ptr_eq(&tree, &next), needs_server);
    source.faults.lock().down = true;
    assert_eq!(read(&next, &name(77)).await.unwrap(), contents[77]);
    assert_eq!(read(&tree, &name(78)).await.unwrap(), contents[78]);
    drop((tree, next, layer));
    let root = bench.root.clone();
    bench.engine.shutdown().await;
    drop(bench);
    comes_true("loop devices go with the mounts", || loops(&root).is_empty());
}

async fn wrong_chunks_are_errors_until_they_are_right(mode: Mode) {
    let bench = Bench::with(in_mode(mode)).await;
    let (blob, contents) = many(600, 40_000);
    let source = Source::new(&blob);
    let layer = open(&bench, &source).await;
    let tree = tree_of(&bench, std::slice::from_ref(&layer)).await;
    let middle = blob.bytes.len() as u64 / 2;
    source.faults.lock().corrupt = vec![(middle, usize::MAX)];
    let mark = bench.engine.error_mark();
    let mut failed = Vec::new();
    for (number, content) in contents.iter().enumerate() {
        match read(&tree, &name(number)).await {
            Ok(bytes) => assert_eq!(&bytes, content, "{number}"),
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(5));
                failed.push(number);
            }
        }
    }
    assert_eq!(failed.len(), 1, "{failed:?}");
    let errors = layer.errors(mark);
    assert_eq!(errors[0].file, format!("/{}", name(failed[0])));
    source.faults.lock().corrupt = Vec::new();
    assert_eq!(read_when_well(&tree, &name(failed[0])).await, contents[failed[0]]);
    assert!(layer.errors(mark).is_empty(), "{:?}", layer.errors(mark));
    drop((tree, layer));
    bench.engine.shutdown().await;
}

async fn a_fetch_without_answer_is_an_error_in_time(mode: Mode) {
    let bench = Bench::with(|config| {
        in_mode(mode)(config);
        config.read_deadline = Duration::from_secs(2);
    })
    .await;
    let (blob, contents) = many(600, 40_000);
    let source = Source::new(&blob);
    let layer = open(&bench, &source).await;
    let tree = tree_of(&bench, std::slice::from_ref(&layer)).await;
    source.faults.lock().stall = Some(blob.bytes.len() as u64 / 2..u64::MAX);
    let error = tokio::time::timeout(PATIENCE, read(&tree, &name(500))).await.unwrap().unwrap_err();
    assert_eq!(error.raw_os_error(), Some(5));
    // The kernel asks again, page by page, and for that nobody waits as long.
    let errors = layer.errors(0);
    assert!(errors.iter().any(|error| error.cause.contains("no answer within 2s")), "{errors:?}");
    // Others are not held up.
    assert_eq!(read_when_well(&tree, &name(1)).await, contents[1]);
    drop((tree, layer));
    bench.engine.shutdown().await;
}

async fn what_is_here_outlives_a_restart(mode: Mode) {
    let bench = Bench::with(in_mode(mode)).await;
    let (blob, contents) = many(600, 40_000);
    let source = Source::new(&blob);
    let layer = open(&bench, &source).await;
    let id = layer.id();
    let tree = tree_of(&bench, std::slice::from_ref(&layer)).await;
    assert_eq!(read(&tree, &name(5)).await.unwrap(), contents[5]);
    drop((tree, layer));
    let bench = bench.restart_with(in_mode(mode)).await;
    let tree = bench.engine.image_tree(&[id]).await.unwrap();
    let before = source.requests();
    assert_eq!(read(&tree, &name(5)).await.unwrap(), contents[5]);
    assert_eq!(read(&tree, &name(400)).await.unwrap_err().raw_os_error(), Some(5), "there is no source");
    assert_eq!(source.requests(), before);
    drop(tree);
    bench.engine.shutdown().await;
}

async fn readers_can_be_killed_and_trees_unmounted(mode: Mode) {
    // Longer than any test runs: nobody gets away because a fetch was given up.
    let bench = Bench::with(|config| {
        in_mode(mode)(config);
        config.read_deadline = Duration::from_secs(3600);
    })
    .await;
    let (blob, _) = many(600, 40_000);
    let source = Source::new(&blob);
    let layer = open(&bench, &source).await;
    let tree = tree_of(&bench, std::slice::from_ref(&layer)).await;
    source.faults.lock().stall = Some(0..u64::MAX);
    let reading = |number: usize, direct: bool| {
        let file = std::fs::File::open(path(&tree, &name(number))).unwrap();
        let mut command = std::process::Command::new("dd");
        command.arg("status=none").stdin(file).stdout(std::process::Stdio::null());
        if direct { command.arg("iflag=direct") } else { &mut command }.spawn().unwrap()
    };
    let mut readers = vec![(500, false)];
    if mode == Mode::Fuse {
        // Past the page cache it is the server that is waited for, and who does so cannot be killed.
        readers.push((300, true));
    }
    for (number, direct) in readers {
        let mut reader = reading(number, direct);
        source.stalled.notified().await;
        reader.kill().unwrap();
        let ended = tokio::task::spawn_blocking(move || reader.wait().unwrap());
        tokio::time::timeout(PATIENCE, ended).await.expect("a reader can be killed").unwrap();
    }
    let unmounted = tokio::task::spawn_blocking(move || drop(tree));
    tokio::time::timeout(PATIENCE, unmounted).await.expect("a tree can be unmounted").unwrap();
    drop(layer);
    bench.engine.shutdown().await;
}

async fn steps_write_above_it(mode: Mode) {
    let bench = Bench::with(in_mode(mode)).await;
    let (blob, contents) = many(100, 40_000);
    let program = std::fs::read("/bin/true").unwrap();
    let tools = estargz(&Tar::default().put(header("true", Kind::File, 0o755), &program).bytes(), 4 << 20);
    let layers = [open(&bench, &Source::new(&blob)).await, open(&bench, &Source::new(&tools)).await];
    let tree = tree_of(&bench, &layers).await;
    let dir = tempfile::tempdir().unwrap();
    let [upper, work] = ["upper", "work"].map(|name| dir.path().join(name));
    for dir in [&upper, &work] {
        std::fs::create_dir(dir).unwrap();
    }
    let lowers = vec![Lower::Mount(tree.mount().as_fd())];
    let above =
        Overlay { lowers, upper: Some(Upper { dir: upper.clone(), work }), volatile: true, ..Overlay::default() };
    let above = above.mount().unwrap();
    let (appended, renamed, program) = (within(&above, &name(3)), within(&above, "moved"), within(&above, "true"));
    let (chmod, original) = (within(&above, &name(7)), within(&above, "d001"));
    castor_task::reading(move || {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::OpenOptions::new().append(true).open(&appended).unwrap().write_all(b"more").unwrap();
        let mut text = Vec::new();
        std::fs::File::open(&appended).unwrap().read_to_end(&mut text).unwrap();
        assert_eq!(text, [contents[3].as_slice(), b"more"].concat());
        std::fs::set_permissions(&chmod, std::fs::Permissions::from_mode(0o711)).unwrap();
        assert_eq!(std::fs::read(&chmod).unwrap(), contents[7]);
        std::fs::rename(&original, &renamed).unwrap();
        assert_eq!(std::fs::read(renamed.join("f00051")).unwrap(), contents[51]);
        assert!(std::process::Command::new(&program).status().unwrap().success(), "programs run from it");
    })
    .await;
    drop((above, tree, layers));
    bench.engine.shutdown().await;
}

async fn whiteouts_reach_what_is_below(mode: Mode) {
    let bench = Bench::with(in_mode(mode)).await;
    let [_, middle, highest] = layers(true);
    // So much that it does not come along with its table of contents.
    let highest = highest.file("random", &Random::new(3).bytes(MIB));
    let layers = [
        open(&bench, &Source::new(&estargz(&middle.bytes(), MIB as u64))).await,
        open(&bench, &Source::new(&estargz(&highest.bytes(), MIB as u64))).await,
    ];
    let ids = layers.each_ref().map(|layer| layer.id());
    let tree = bench.engine.stacked_tree(&ids).await.unwrap();
    assert!(tree.is_served());
    let below = tempfile::tempdir().unwrap();
    for name in ["gone/old", "opaque/hidden", "bin/set", "bin/kept"] {
        let file = below.path().join(name);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, b"below").unwrap();
    }
    let lowers = vec![Lower::Mount(tree.mount().as_fd()), Lower::Directory(below.path())];
    let above = Overlay { lowers, ..Overlay::default() }.mount().unwrap();
    let root = within(&above, "");
    let names = castor_task::reading(move || {
        assert_eq!(std::fs::read(root.join("bin/kept")).unwrap(), b"below");
        walk(&root).into_keys().collect::<Vec<_>>()
    });
    let expected = ["", "bin", "bin/kept", "bin/more", "opaque", "opaque/above", "random"];
    assert_eq!(names.await, expected.map(std::path::PathBuf::from));
    drop((above, tree, layers));
    bench.engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_killed_server_of_trees_is_replaced() {
    let bench = Bench::with(in_mode(Mode::Fuse)).await;
    let (blob, contents) = many(600, 40_000);
    let source = Source::new(&blob);
    let layer = open(&bench, &source).await;
    let tree = tree_of(&bench, std::slice::from_ref(&layer)).await;
    assert_eq!(read(&tree, &name(5)).await.unwrap(), contents[5]);
    source.faults.lock().stall = Some(0..u64::MAX);
    let waiting = tokio::spawn({
        let tree = tree.clone();
        async move { read(&tree, &name(300)).await }
    });
    source.stalled.notified().await;
    let server = bench.engine.tree_server().unwrap();
    let mark = bench.engine.error_mark();
    kill(server);
    let error = tokio::time::timeout(PATIENCE, waiting).await.unwrap().unwrap().unwrap_err();
    assert_eq!(error.raw_os_error(), Some(5), "{error}");
    source.faults.lock().stall = None;
    // What has to be looked up first fails as well, and all of it is told of.
    for file in [&name(400), "d001/f00050"] {
        let error = read(&tree, file).await.unwrap_err();
        assert_eq!(error.raw_os_error(), Some(5), "{error}");
    }
    let lost = |file: &str| {
        let errors = layer.errors(mark);
        let named = errors.iter().any(|error| error.file == file && error.cause == "the server of image trees ended");
        assert!(named, "{file}: {errors:?}");
    };
    lost(&format!("/{}", name(300)));
    lost("/d001");
    // The next mount is another one.
    let next = tokio::time::timeout(PATIENCE, async {
        loop {
            let next = bench.engine.image_tree(&[layer.id()]).await.unwrap();
            if !Arc::ptr_eq(&next, &tree) {
                break next;
            }
            // Nobody has noticed yet.
            tokio::task::yield_now().await;
        }
    });
    let next = next.await.unwrap();
    assert!(next.is_served() && bench.engine.tree_server().is_some_and(|new| new != server));
    // What was asked for before is still waited for; another file is not.
    for number in [5, 9, 401] {
        assert_eq!(read(&next, &name(number)).await.unwrap(), contents[number], "{number}");
    }
    // That others read the layer now does not help those who did not.
    lost(&format!("/{}", name(300)));
    drop((tree, next, layer));
    let server = bench.engine.tree_server().unwrap();
    bench.engine.shutdown().await;
    drop(bench);
    ends(server);
}

async fn complete_layers_need_no_server(mode: Mode) {
    let bench = Bench::with(in_mode(mode)).await;
    assert_eq!(bench.engine.modes().complete, Ok(mode));
    let mut sources = Vec::new();
    let mut eager = Vec::new();
    for tar in layers(false) {
        let source = Source::new(&gzip(&tar.bytes()));
        let layer = bench.engine.layer(source.layer(Lazy::Never), &Reporter::discard()).await.unwrap();
        layer.ready().await.unwrap();
        eager.push(layer);
        sources.push(source);
    }
    let tree = tree_of(&bench, &eager).await;
    assert_eq!(tree.is_served(), mode == Mode::Fuse);
    let found = walked(&tree).await;
    assert!(found.len() > 715);
    assert_eq!(found[Path::new("bin/same")].same_as.as_os_str().as_bytes(), b"bin/big");
    let alone = Bench::with(in_mode(Mode::Erofs)).await;
    let mut again = Vec::new();
    for source in &sources {
        let layer = alone.engine.layer(source.layer(Lazy::Never), &Reporter::discard()).await.unwrap();
        layer.ready().await.unwrap();
        again.push(layer);
    }
    let expected = tree_of(&alone, &again).await;
    assert_eq!(found, walked(&expected).await);
    drop((tree, eager, expected, again));
    alone.engine.shutdown().await;
    let root = bench.root.clone();
    bench.engine.shutdown().await;
    drop(bench);
    comes_true("loop devices go with the mounts", || loops(&root).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_without_erofs_over_files_loop_devices_are_used() {
    // A tmpfs of our own, mounted nowhere, cannot back EROFS.
    let context = rustix::mount::fsopen("tmpfs", rustix::mount::FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
    rustix::mount::fsconfig_create(&context).unwrap();
    let tmpfs = rustix::mount::fsmount(
        &context,
        rustix::mount::FsMountFlags::FSMOUNT_CLOEXEC,
        rustix::mount::MountAttrFlags::empty(),
    );
    let tmpfs = tmpfs.unwrap();
    let root = std::path::PathBuf::from(format!("/proc/self/fd/{}/state", std::os::fd::AsRawFd::as_raw_fd(&tmpfs)));
    std::fs::create_dir(&root).unwrap();
    let bench = Bench::at(&root).await;
    let modes = bench.engine.modes();
    assert_eq!((&modes.complete, &modes.lazy), (&Ok(Mode::ErofsLoop), &Ok(Mode::ErofsFuseLoop)));
    let passed: Vec<Mode> = modes.passed_over.iter().map(|(mode, _)| *mode).collect();
    assert_eq!(passed, [Mode::Erofs, Mode::ErofsFuse], "{:?}", modes.passed_over);
    let (blob, contents) = many(100, 40_000);
    let source = Source::new(&blob);
    let layer = open(&bench, &source).await;
    let tree = tree_of(&bench, std::slice::from_ref(&layer)).await;
    assert_eq!(read(&tree, &name(70)).await.unwrap(), contents[70]);
    layer.complete().await.unwrap();
    let next = tree_of(&bench, std::slice::from_ref(&layer)).await;
    assert!(tree.is_served() && !next.is_served());
    for (number, content) in contents.iter().enumerate() {
        assert_eq!(&read(&next, &name(number)).await.unwrap(), content, "{number}");
    }
    drop((tree, next, layer));
    bench.engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_mode_that_cannot_be_had_says_why() {
    let bench = Bench::with(|config| config.mode = Some(Mode::Fuse)).await;
    let reason = bench.engine.modes().lazy.clone().unwrap_err();
    assert!(reason.contains("fuse: no program is configured that could serve it"), "{reason}");
    assert_eq!(bench.engine.modes().lazy_text(), reason);
    bench.engine.shutdown().await;
    let bench = Bench::with(in_mode(Mode::ErofsLoop)).await;
    assert_eq!(bench.engine.modes().complete, Ok(Mode::ErofsLoop));
    let reason = bench.engine.modes().lazy.clone().unwrap_err();
    assert!(reason.contains("mode erofs+loop is configured"), "{reason}");
    bench.engine.shutdown().await;
    let bench = Bench::with(|config| {
        in_mode(Mode::Fuse)(config);
        config.server = config.server.take().map(|server| castor_layerfs::ServerProgram {
            path: "/bin/true".into(),
            arguments: Vec::new(),
            ..server
        });
    })
    .await;
    let reason = bench.engine.modes().lazy.clone().unwrap_err();
    assert!(reason.contains("its server ended at once"), "{reason}");
    bench.engine.shutdown().await;
}
