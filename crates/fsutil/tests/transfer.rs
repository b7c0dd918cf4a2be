//! Both halves of the transfer against each other, and the receiving half
//! against peers that break the rules.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use castor_fsutil::{
    Change, ContentHash, Differ, Directory, Files, FilterOptions, Link, MapResult, Observer, Overlaid, Packet,
    PacketType, ReceiveOptions, Stat, Subdirectories, TransferError, Tree, compare_paths, mode, path, receive, send,
};
use castor_oci::{Digest, Hasher};
use futures::StreamExt as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// Two links connected with each other, with little room on the way.
fn connected() -> (Link, Link) {
    let (left, to_left) = mpsc::channel(2);
    let (right, to_right) = mpsc::channel(2);
    let link = |outgoing, incoming| Link { outgoing, incoming: ReceiverStream::new(incoming).map(Ok).boxed() };
    (link(left, to_right), link(right, to_left))
}

/// Transfers; gives the kinds of packets that the receiver sent.
async fn transfer(tree: Arc<dyn Tree>, dest: &Path, options: ReceiveOptions) -> Result<Vec<PacketType>, TransferError> {
    let (sender, receiver) = connected();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let Link { incoming, outgoing } = sender;
    let note = Arc::clone(&seen);
    let incoming = incoming.inspect(move |packet| note.lock().unwrap().push(packet.as_ref().unwrap().r#type())).boxed();
    let sending = async {
        let result = send(Link { incoming, outgoing }, tree, None).await;
        result.map(drop)
    };
    let (sent, received) = tokio::join!(sending, receive(receiver, dest, options));
    received?;
    sent?;
    let seen = seen.lock().unwrap().clone();
    Ok(seen)
}

fn requests(seen: &[PacketType]) -> usize {
    seen.iter().filter(|kind| **kind == PacketType::PacketReq).count()
}

fn directory(path: &Path) -> Arc<dyn Tree> {
    Arc::new(Directory::open(path).unwrap())
}

fn text(path: &[u8]) -> String {
    String::from_utf8(path.to_vec()).unwrap()
}

fn stats(path: &Path) -> BTreeMap<String, Stat> {
    let mut stats = BTreeMap::new();
    Directory::open(path)
        .unwrap()
        .walk(&mut |stat| {
            stats.insert(text(&stat.path), stat);
            Ok(())
        })
        .unwrap();
    stats
}

fn set_mtime(path: &Path, seconds: i64) {
    let time = rustix::fs::Timespec { tv_sec: seconds, tv_nsec: 123_456_789 };
    let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(rustix::fs::CWD, path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// A tree with every kind of entry that needs no privilege.
fn make_source(root: &Path) {
    fs::create_dir_all(root.join("dir/sub")).unwrap();
    fs::create_dir(root.join("empty")).unwrap();
    fs::write(root.join("dir/big"), vec![7u8; 300_000]).unwrap();
    fs::write(root.join("dir/sub/file"), "contents").unwrap();
    fs::write(root.join("nothing"), "").unwrap();
    fs::write(root.join("run"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(root.join("run"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::hard_link(root.join("dir/big"), root.join("dir/same")).unwrap();
    fs::hard_link(root.join("dir/big"), root.join("linked")).unwrap();
    symlink("dir/sub/file", root.join("link")).unwrap();
    symlink("/nowhere", root.join("dangling")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        root.join("pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o640),
        0,
    )
    .unwrap();
    drop(std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap());
    rustix::fs::setxattr(root.join("run"), "user.test", b"\0value", rustix::fs::XattrFlags::empty()).unwrap();
    for (path, time) in [
        ("dir/sub/file", 1_000_000_000),
        ("link", 1_100_000_000),
        ("dir/sub", 1_200_000_000),
        ("dir", 1_300_000_000),
        ("empty", -5),
    ] {
        set_mtime(&root.join(path), time);
    }
}

#[tokio::test]
async fn a_tree_arrives_as_it_is_and_the_second_time_only_stats_travel() {
    let (source, dest) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    make_source(source.path());
    let seen = transfer(directory(source.path()), dest.path(), ReceiveOptions::default()).await.unwrap();
    assert_eq!(requests(&seen), 5, "four files and a socket");

    let (want, got) = (stats(source.path()), stats(dest.path()));
    assert_eq!(want.keys().collect::<Vec<_>>(), got.keys().collect::<Vec<_>>());
    for (path, want) in &want {
        assert_eq!(want, &got[path], "{path}");
    }
    assert_eq!(fs::read(dest.path().join("dir/big")).unwrap(), vec![7u8; 300_000]);
    assert_eq!(fs::read_to_string(dest.path().join("dir/sub/file")).unwrap(), "contents");
    assert!(fs::metadata(dest.path().join("socket")).unwrap().is_file());
    assert!(fs::metadata(dest.path().join("pipe")).unwrap().file_type().is_fifo());
    let inode = |name: &str| fs::metadata(dest.path().join(name)).unwrap().ino();
    assert_eq!(inode("dir/big"), inode("linked"));
    assert_eq!(inode("dir/big"), inode("dir/same"));

    let seen = transfer(directory(source.path()), dest.path(), ReceiveOptions::default()).await.unwrap();
    assert_eq!(seen, [PacketType::PacketFin], "an unchanged tree is not asked for");
}

#[tokio::test]
async fn only_what_changed_is_asked_for_and_what_is_gone_is_removed() {
    let (source, dest) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (from, to) = (source.path(), dest.path());
    make_source(from);
    transfer(directory(from), to, ReceiveOptions::default()).await.unwrap();

    // A file that becomes a directory, a directory that becomes a link, one
    // that goes with what is below it, and a change of the mode alone.
    fs::write(from.join("dir/sub/file"), "other").unwrap();
    fs::remove_file(from.join("nothing")).unwrap();
    fs::create_dir(from.join("nothing")).unwrap();
    fs::write(from.join("nothing/inside"), "x").unwrap();
    fs::remove_dir(from.join("empty")).unwrap();
    symlink("dir", from.join("empty")).unwrap();
    fs::remove_file(from.join("linked")).unwrap();
    fs::set_permissions(from.join("dir"), fs::Permissions::from_mode(0o700)).unwrap();
    set_mtime(&from.join("dir/sub"), 1_400_000_000);
    set_mtime(&from.join("dir"), 1_400_000_000);
    fs::create_dir_all(to.join("aaa/deep/deeper")).unwrap();
    fs::write(to.join("aaa/deep/file"), "").unwrap();
    fs::write(to.join("zzz"), "").unwrap();

    let seen = transfer(directory(from), to, ReceiveOptions::default()).await.unwrap();
    assert_eq!(requests(&seen), 2);
    let (want, got) = (stats(from), stats(to));
    assert_eq!(want.keys().collect::<Vec<_>>(), got.keys().collect::<Vec<_>>());
    for (path, want) in &want {
        assert_eq!(want, &got[path], "{path}");
    }
    assert_eq!(fs::read_to_string(to.join("dir/sub/file")).unwrap(), "other");
}

#[tokio::test]
async fn names_that_are_no_text_arrive_change_and_go() {
    let (source, dest) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let name = |bytes: &'static [u8]| Path::new(OsStr::from_bytes(bytes));
    let (from, to) = (source.path(), dest.path());
    fs::create_dir(from.join(name(b"d\xff"))).unwrap();
    fs::write(from.join(name(b"d\xff/caf\xe9")), "one").unwrap();
    fs::write(from.join(name(b"d\xff/caf\xe8")), "two").unwrap();
    fs::hard_link(from.join(name(b"d\xff/caf\xe9")), from.join(name(b"d\xff/hard\xe9"))).unwrap();
    symlink(name(b"d\xff/caf\xe9"), from.join("link")).unwrap();
    let log = Arc::new(Log::default());
    let options = || ReceiveOptions { observer: Some(log.clone()), ..ReceiveOptions::default() };
    let seen = transfer(directory(from), to, options()).await.unwrap();
    assert_eq!(requests(&seen), 2);
    assert_eq!(fs::read(to.join("link")).unwrap(), b"one");
    assert_eq!(fs::read(to.join(name(b"d\xff/caf\xe8"))).unwrap(), b"two");
    let inode = |path| fs::metadata(to.join(path)).unwrap().ino();
    assert_eq!(inode(name(b"d\xff/caf\xe9")), inode(name(b"d\xff/hard\xe9")));
    let seen = transfer(directory(from), to, options()).await.unwrap();
    assert_eq!(requests(&seen), 0, "names that differ in such bytes only are told apart");

    // The link is followed to what it leads to, and the other file is no part of that.
    let follow = FilterOptions { follow: vec!["link".into()], ..FilterOptions::default() };
    let tree = Arc::new(Directory::filtered(from, &follow).unwrap());
    transfer(tree, to, ReceiveOptions::default()).await.unwrap();
    let left: Vec<_> = fs::read_dir(to.join(name(b"d\xff"))).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, [OsStr::from_bytes(b"caf\xe9")]);
    let exclude = FilterOptions { exclude: vec!["d?/caf*".into(), "link".into()], ..FilterOptions::default() };
    transfer(Arc::new(Directory::filtered(from, &exclude).unwrap()), to, ReceiveOptions::default()).await.unwrap();
    assert!(to.join(name(b"d\xff/hard\xe9")).exists() && !to.join(name(b"d\xff/caf\xe9")).exists());
}

#[tokio::test]
async fn merging_removes_nothing_and_replaces_links_instead_of_following_them() {
    let (source, dest, outside) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::create_dir(source.path().join("dir")).unwrap();
    fs::write(source.path().join("dir/new"), "new").unwrap();
    fs::write(source.path().join("file"), "theirs").unwrap();
    fs::write(dest.path().join("kept"), "mine").unwrap();
    symlink(outside.path(), dest.path().join("dir")).unwrap();
    symlink(outside.path().join("victim"), dest.path().join("file")).unwrap();

    let options = ReceiveOptions { merge: true, ..ReceiveOptions::default() };
    transfer(directory(source.path()), dest.path(), options).await.unwrap();
    assert_eq!(fs::read_to_string(dest.path().join("kept")).unwrap(), "mine");
    assert_eq!(fs::read_to_string(dest.path().join("dir/new")).unwrap(), "new");
    assert_eq!(fs::read_to_string(dest.path().join("file")).unwrap(), "theirs");
    assert!(fs::symlink_metadata(dest.path().join("dir")).unwrap().is_dir());
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn a_differ_that_finds_nothing_equal_asks_for_everything() {
    let (source, dest) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    make_source(source.path());
    let options = ReceiveOptions { differ: Differ::None, ..ReceiveOptions::default() };
    transfer(directory(source.path()), dest.path(), options.clone()).await.unwrap();
    let seen = transfer(directory(source.path()), dest.path(), options).await.unwrap();
    assert_eq!(requests(&seen), 5);
    assert_eq!(stats(source.path()), stats(dest.path()));
}

#[tokio::test]
async fn a_map_decides_what_is_compared_and_written() {
    let (source, dest) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    make_source(source.path());
    let options = ReceiveOptions {
        map: Some(Arc::new(|_, stat| {
            stat.mod_time = 5_000_000_000;
            true
        })),
        ..ReceiveOptions::default()
    };
    transfer(directory(source.path()), dest.path(), options.clone()).await.unwrap();
    for (path, stat) in stats(dest.path()) {
        assert_eq!(stat.mod_time, 5_000_000_000, "{path}");
    }
    let seen = transfer(directory(source.path()), dest.path(), options).await.unwrap();
    assert_eq!(requests(&seen), 0);
}

#[tokio::test]
async fn a_sender_shows_what_its_filter_lets_through() {
    let (source, dest) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    make_source(source.path());
    let options = FilterOptions {
        exclude: vec!["dir/big".into(), "**/same".into()],
        follow: vec!["link".into(), "dir".into()],
        ..FilterOptions::default()
    };
    let tree = Directory::filtered(source.path(), &options).unwrap().with_map(Arc::new(|stat| {
        stat.uid = 0;
        MapResult::Keep
    }));
    transfer(Arc::new(tree), dest.path(), ReceiveOptions::default()).await.unwrap();
    let got = stats(dest.path());
    assert_eq!(got.keys().collect::<Vec<_>>(), ["dir", "dir/sub", "dir/sub/file", "link"]);
}

#[derive(Default)]
struct Log(Mutex<BTreeMap<String, Option<Digest>>>);

struct Hash(Hasher);

impl ContentHash for Hash {
    fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(self: Box<Self>) -> Digest {
        self.0.finish()
    }
}

impl Observer for Log {
    fn hash(&self, stat: &Stat) -> Box<dyn ContentHash> {
        let mut hasher = Hasher::new();
        hasher.update([&stat.linkname[..], b":"].concat());
        Box::new(Hash(hasher))
    }

    fn changed(&self, change: Change<'_>) -> Result<(), String> {
        let mut log = self.0.lock().unwrap();
        match change {
            Change::Written { stat, .. } if stat.path == "refuse" => return Err("refused".into()),
            Change::Written { stat, digest } => log.insert(path::display(&stat.path).into_owned(), Some(digest)),
            Change::Removed { path } => log.insert(path::display(path).into_owned(), None),
        };
        Ok(())
    }
}

#[tokio::test]
async fn an_observer_sees_each_change_with_its_hash() {
    let (source, dest) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    make_source(source.path());
    let run = |log: &Arc<Log>| ReceiveOptions { observer: Some(log.clone()), ..ReceiveOptions::default() };
    let log = Arc::new(Log::default());
    transfer(directory(source.path()), dest.path(), run(&log)).await.unwrap();
    let seen = std::mem::take(&mut *log.0.lock().unwrap());
    assert_eq!(seen.keys().cloned().collect::<Vec<_>>(), stats(source.path()).into_keys().collect::<Vec<_>>());
    assert_eq!(seen["dir/sub/file"], Some(Digest::of(":contents")));
    assert_eq!(seen["link"], Some(Digest::of("dir/sub/file:")));
    let mut big = b":".to_vec();
    big.extend_from_slice(&vec![7u8; 300_000]);
    assert_eq!(seen["dir/big"], Some(Digest::of(&big)));

    fs::write(dest.path().join("extra"), "").unwrap();
    fs::write(source.path().join("run"), "changed").unwrap();
    transfer(directory(source.path()), dest.path(), run(&log)).await.unwrap();
    let seen = std::mem::take(&mut *log.0.lock().unwrap());
    assert_eq!(seen, BTreeMap::from([("extra".into(), None), ("run".into(), Some(Digest::of(":changed")))]));

    fs::write(source.path().join("refuse"), "").unwrap();
    let error = transfer(directory(source.path()), dest.path(), run(&log)).await.unwrap_err();
    assert_eq!(error.to_string(), "record change of refuse: refused");
}

#[tokio::test]
async fn only_details_travel_where_that_is_asked() {
    let (source, dest) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    make_source(source.path());
    fs::write(source.path().join(".fsutil-metadata"), "not from the peer").unwrap();
    let options = ReceiveOptions {
        metadata_only: Some(Arc::new(|path, _| path == b"dir/sub/file")),
        ..ReceiveOptions::default()
    };
    let seen = transfer(directory(source.path()), dest.path(), options).await.unwrap();
    assert_eq!(requests(&seen), 1);
    let got = stats(dest.path());
    assert_eq!(got.keys().collect::<Vec<_>>(), [".fsutil-metadata", "dir", "dir/sub", "dir/sub/file"]);

    let bytes = fs::read(dest.path().join(".fsutil-metadata")).unwrap();
    let mut rest = &bytes[..];
    let mut recorded = Vec::new();
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let (record, after) = after.split_at(u32::from_le_bytes(*length) as usize);
        recorded.push(<Stat as prost::Message>::decode(record).unwrap());
        rest = after;
    }
    let mut want = stats(source.path());
    want.remove(".fsutil-metadata");
    let mut want: Vec<Stat> = want.into_values().collect();
    want.sort_by(|a, b| compare_paths(&a.path, &b.path));
    assert_eq!(recorded, want);
}

#[tokio::test]
async fn many_files_pass_through_a_narrow_link() {
    let dest = tempfile::tempdir().unwrap();
    let mut files = Files::default();
    for dir in 0..20 {
        files.insert(Stat { path: format!("d{dir:02}").into(), mode: mode::DIR | 0o755, ..Stat::default() }, "");
        for file in 0..100 {
            let path = format!("d{dir:02}/f{file:02}");
            let size = if file % 10 == 0 { 100_000 } else { file };
            files.insert(Stat { path: path.into(), mode: 0o644, ..Stat::default() }, vec![file as u8; size]);
        }
    }
    let seen = transfer(Arc::new(files), dest.path(), ReceiveOptions::default()).await.unwrap();
    assert_eq!(requests(&seen), 2000);
    for dir in 0..20 {
        assert_eq!(fs::read(dest.path().join(format!("d{dir:02}/f50"))).unwrap(), vec![50u8; 100_000]);
        assert_eq!(fs::read(dest.path().join(format!("d{dir:02}/f99"))).unwrap(), vec![99u8; 99]);
    }
}

#[tokio::test]
async fn trees_side_by_side_and_over_each_other() {
    let (source, dest) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    make_source(source.path());
    let mut upper = Files::default();
    upper.insert(Stat { path: "dir".into(), mode: mode::DIR | 0o700, ..Stat::default() }, "");
    upper.insert(Stat { path: "dir/also".into(), mode: 0o600, ..Stat::default() }, "also");
    upper.insert(Stat { path: "run".into(), mode: 0o600, ..Stat::default() }, "instead");
    upper.insert(Stat { path: "zz".into(), mode: 0o600, ..Stat::default() }, "last");
    let overlaid: Arc<dyn Tree> = Arc::new(Overlaid { lower: directory(source.path()), upper });
    let mut both = Subdirectories::default();
    let dir = |name: &'static str| Stat { path: name.into(), mode: mode::DIR | 0o755, ..Stat::default() };
    both.insert(dir("linux_amd64"), overlaid).unwrap();
    both.insert(dir("linux_arm64"), directory(source.path())).unwrap();
    assert!(both.insert(dir("linux_arm64"), directory(source.path())).is_err());
    assert!(both.insert(dir("a/b"), directory(source.path())).is_err());

    transfer(Arc::new(both), dest.path(), ReceiveOptions::default()).await.unwrap();
    let read = |path: &str| fs::read_to_string(dest.path().join(path)).unwrap();
    assert_eq!(read("linux_amd64/dir/also"), "also");
    assert_eq!(read("linux_amd64/run"), "instead");
    assert_eq!(read("linux_amd64/zz"), "last");
    assert_eq!(read("linux_arm64/run"), "#!/bin/sh\n");
    let link = |path: &str| fs::read_link(dest.path().join(path)).unwrap();
    assert_eq!(link("linux_arm64/dangling").to_str(), Some("/linux_arm64/nowhere"));
    assert_eq!(link("linux_arm64/link").to_str(), Some("dir/sub/file"));
    let inode = |path: &str| fs::metadata(dest.path().join(path)).unwrap().ino();
    assert_eq!(inode("linux_arm64/dir/big"), inode("linux_arm64/linked"));
}

#[tokio::test]
async fn progress_counts_bytes() {
    let (source, dest) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    make_source(source.path());
    let total = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&total);
    let options = ReceiveOptions {
        progress: Some(Arc::new(move |bytes| count.store(bytes, Ordering::Relaxed))),
        ..ReceiveOptions::default()
    };
    transfer(directory(source.path()), dest.path(), options).await.unwrap();
    assert!((300_000..310_000).contains(&total.load(Ordering::Relaxed)), "{total:?}");
}

// ---- peers that break the rules

fn announce(path: &str, mode: u32, linkname: &str) -> Packet {
    let (path, linkname) = (path.to_owned().into(), linkname.to_owned().into());
    let stat = Stat { path, mode, linkname, ..Stat::default() };
    Packet { stat: Some(stat), ..Packet::default() }
}

fn data(id: u32, bytes: &'static [u8]) -> Packet {
    Packet { r#type: PacketType::PacketData as i32, id, data: bytes.into(), ..Packet::default() }
}

/// What a receiver makes of a peer that sends just this, and then ends: at once
/// or after it was told of an error.
async fn receive_from(packets: Vec<Packet>, patient: bool, dest: &Path) -> (TransferError, Vec<Packet>) {
    let (outgoing, mut answers) = mpsc::channel(64);
    let (told, tell) = tokio::sync::oneshot::channel::<()>();
    let packets = futures::stream::iter(packets.into_iter().map(Ok));
    let incoming = if patient {
        packets.chain(futures::stream::once(tell).filter_map(|_| futures::future::ready(None))).boxed()
    } else {
        packets.boxed()
    };
    let listen = async move {
        let mut said = Vec::new();
        while let Some(packet) = answers.recv().await {
            said.push(packet);
        }
        drop(told);
        said
    };
    let receiving = receive(Link { incoming, outgoing }, dest, ReceiveOptions::default());
    let (received, said) = tokio::join!(receiving, listen);
    (received.unwrap_err(), said)
}

#[tokio::test]
async fn a_hostile_peer_stays_inside() {
    let outer = tempfile::tempdir().unwrap();
    fs::write(outer.path().join("secret"), "secret").unwrap();
    let victim = outer.path().join("victim");
    fs::write(&victim, "untouched").unwrap();
    let cases: Vec<Vec<Packet>> = vec![
        vec![announce("../victim", 0o644, "")],
        vec![announce(victim.to_str().unwrap(), 0o644, "")],
        vec![announce("a/../../victim", 0o644, "")],
        vec![announce("up", mode::SYMLINK | 0o777, ".."), announce("up/victim", 0o644, "")],
        vec![announce("a", mode::DIR | 0o755, ""), announce("a/l", 0o644, "../secret")],
        vec![announce("l", 0o644, "../secret")],
        vec![announce("l", 0o644, "/etc/passwd")],
        vec![announce("nul\0", 0o644, "")],
    ];
    for (index, packets) in cases.into_iter().enumerate() {
        let dest = outer.path().join(format!("dest-{index}"));
        fs::create_dir(&dest).unwrap();
        let (error, said) = receive_from(packets, true, &dest).await;
        assert!(matches!(error, TransferError::Protocol { .. }), "{index}: {error}");
        let last = said.last().unwrap();
        assert_eq!((last.r#type(), &last.data), (PacketType::PacketErr, &error.to_string().into()));
    }
    assert_eq!(fs::read_to_string(&victim).unwrap(), "untouched");
    let names: Vec<String> = fs::read_dir(outer.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.starts_with("dest-"))
        .collect();
    assert_eq!(names.len(), 2, "{names:?}");
}

#[tokio::test]
async fn a_link_in_the_destination_leads_nowhere() {
    let (outside, dest) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    // The peer announces a directory; somebody else swaps it for a link while
    // the transfer runs. What was announced below it is not written.
    let (outgoing, mut answers) = mpsc::channel(64);
    let (packets, incoming) = mpsc::channel(8);
    let incoming = ReceiverStream::new(incoming).map(Ok).boxed();
    let path = dest.path().to_owned();
    let receiving =
        tokio::spawn(async move { receive(Link { incoming, outgoing }, &path, ReceiveOptions::default()).await });
    packets.send(announce("dir", mode::DIR | 0o755, "")).await.unwrap();
    packets.send(announce("dir/first", 0o644, "")).await.unwrap();
    let request = answers.recv().await.unwrap();
    assert_eq!((request.r#type(), request.id), (PacketType::PacketReq, 1));
    fs::rename(dest.path().join("dir"), dest.path().join("moved")).unwrap();
    symlink(outside.path(), dest.path().join("dir")).unwrap();
    fs::write(outside.path().join("first"), "untouched").unwrap();
    packets.send(data(1, b"evil")).await.unwrap();
    while answers.recv().await.unwrap().r#type() != PacketType::PacketErr {}
    drop(packets);
    let error = receiving.await.unwrap().unwrap_err();
    assert!(matches!(error, TransferError::Write { .. }), "{error}");
    assert_eq!(fs::read_to_string(outside.path().join("first")).unwrap(), "untouched");
}

#[tokio::test]
async fn contents_that_were_not_asked_for_are_refused() {
    let dest = tempfile::tempdir().unwrap();
    let packets = vec![announce("a", mode::DIR | 0o755, ""), data(0, b"x")];
    let (error, _) = receive_from(packets, true, dest.path()).await;
    assert_eq!(error.to_string(), "the sender broke the transfer protocol: invalid file request 0");
}

#[tokio::test]
async fn a_packet_of_an_unknown_kind_is_no_end() {
    let dest = tempfile::tempdir().unwrap();
    fs::write(dest.path().join("kept"), "").unwrap();
    let packets = vec![Packet { r#type: 9, ..Packet::default() }];
    let (error, _) = receive_from(packets, true, dest.path()).await;
    assert_eq!(error.to_string(), "the sender broke the transfer protocol: unknown packet type 9");
    assert!(dest.path().join("kept").exists());
}

#[tokio::test]
async fn a_peer_that_ends_early_removes_nothing() {
    let dest = tempfile::tempdir().unwrap();
    fs::write(dest.path().join("zzz"), "kept").unwrap();
    let (error, _) = receive_from(vec![announce("a", mode::DIR | 0o755, "")], false, dest.path()).await;
    assert!(matches!(error, TransferError::Closed { peer: "sender" }), "{error}");
    assert_eq!(fs::read_to_string(dest.path().join("zzz")).unwrap(), "kept");

    let packet = Packet { r#type: PacketType::PacketErr as i32, data: "no access".into(), ..Packet::default() };
    let (error, said) = receive_from(vec![packet], false, dest.path()).await;
    assert_eq!(error.to_string(), "error from sender: no access");
    assert!(said.is_empty(), "an error is not answered");
}

#[tokio::test]
async fn a_receiver_reads_on_while_nobody_reads_its_requests() {
    // More announcements than fit anywhere on the way, and not one request is
    // taken off the link before the last of them.
    const COUNT: u32 = 5_000;
    let dest = tempfile::tempdir().unwrap();
    let (outgoing, mut answers) = mpsc::channel(1);
    let (packets, incoming) = mpsc::channel(1);
    let incoming = ReceiverStream::new(incoming).map(Ok).boxed();
    let path = dest.path().to_owned();
    let receiving =
        tokio::spawn(async move { receive(Link { incoming, outgoing }, &path, ReceiveOptions::default()).await });
    for id in 0..COUNT {
        packets.send(announce(&format!("f{id:06}"), 0o644, "")).await.unwrap();
    }
    packets.send(Packet::default()).await.unwrap();
    for _ in 0..COUNT {
        let request = answers.recv().await.unwrap();
        packets.send(data(request.id, b"")).await.unwrap();
    }
    assert_eq!(answers.recv().await.unwrap().r#type(), PacketType::PacketFin);
    let fin = Packet { r#type: PacketType::PacketFin as i32, ..Packet::default() };
    packets.send(fin).await.unwrap();
    drop(packets);
    receiving.await.unwrap().unwrap();
    assert_eq!(fs::read_dir(dest.path()).unwrap().count(), COUNT as usize);
}

#[tokio::test]
async fn a_sender_refuses_numbers_that_mean_nothing() {
    let source = tempfile::tempdir().unwrap();
    fs::create_dir(source.path().join("dir")).unwrap();
    let (left, right) = connected();
    let sending = tokio::spawn(send(left, directory(source.path()), None));
    let Link { mut incoming, outgoing } = right;
    outgoing.send(Packet { r#type: PacketType::PacketReq as i32, id: 0, ..Packet::default() }).await.unwrap();
    let mut last = None;
    while let Some(Ok(packet)) = incoming.next().await {
        last = Some(packet);
    }
    let error = sending.await.unwrap().err().unwrap();
    assert_eq!(error.to_string(), "the receiver broke the transfer protocol: invalid file id 0");
    assert_eq!(last.unwrap().r#type(), PacketType::PacketErr);
}

#[tokio::test]
async fn a_file_that_cannot_be_read_is_an_error_on_both_sides() {
    struct Broken;
    impl Tree for Broken {
        fn walk(&self, visit: castor_fsutil::Visit<'_>) -> Result<(), castor_fsutil::WalkError> {
            visit(Stat { path: "file".into(), mode: 0o600, ..Stat::default() })
        }
        fn open(&self, _: &[u8]) -> std::io::Result<Box<dyn std::io::Read + Send>> {
            Err(std::io::ErrorKind::PermissionDenied.into())
        }
    }
    let dest = tempfile::tempdir().unwrap();
    let (sender, receiver) = connected();
    let (sent, received) =
        tokio::join!(send(sender, Arc::new(Broken), None), receive(receiver, dest.path(), ReceiveOptions::default()));
    assert_eq!(sent.err().unwrap().to_string(), "read file: permission denied");
    assert_eq!(received.unwrap_err().to_string(), "error from sender: read file: permission denied");
}
