//! The local store: blobs, ingests, leases, the collector, and what survives.
#![allow(clippy::unwrap_used, clippy::single_range_in_vec_init)]

use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use castor_content::{Commit, ContentStore, Error, LABEL_GC_REF, Labels, Leases, Local, Resource};
use castor_metadb::{Db, KeyValue, Memory};
use castor_oci::{Descriptor, Digest};
use futures::TryStreamExt;
use proptest::prelude::*;

struct Fixture {
    dir: tempfile::TempDir,
    store: Local,
}

impl Fixture {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Local::open(dir.path(), Arc::new(Memory::new())).await.unwrap();
        Self { dir, store }
    }

    async fn put(&self, bytes: &'static str) -> Digest {
        self.put_with(bytes, Commit::default()).await
    }

    async fn put_with(&self, bytes: &'static str, commit: Commit) -> Digest {
        let mut writer = self.store.writer().await.unwrap();
        writer.append(Bytes::from_static(bytes.as_bytes())).await.unwrap();
        writer.commit(None, commit).await.unwrap().digest
    }

    fn files(&self, dir: &str) -> usize {
        count(&self.dir.path().join(dir))
    }
}

fn count(dir: &Path) -> usize {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| if path.is_dir() { count(&path) } else { 1 }).sum()
}

fn describe(bytes: &[u8]) -> Descriptor {
    Descriptor::new("x/y", Digest::of(bytes), bytes.len() as u64)
}

fn noise(length: usize) -> Vec<u8> {
    (0..length).map(|n| (n * 31 + n / 251) as u8).collect()
}

fn label(key: &str, value: impl ToString) -> Labels {
    Labels::from([(key.to_owned(), value.to_string())])
}

#[tokio::test]
async fn a_blob_is_written_read_labelled_and_deleted() {
    let f = Fixture::new().await;
    let bytes = noise(700_000);
    let mut writer = f.store.writer().await.unwrap();
    for chunk in bytes.chunks(100_000) {
        writer.append(Bytes::copy_from_slice(chunk)).await.unwrap();
    }
    assert_eq!(writer.size(), 700_000);
    let expected = (Digest::of(&bytes), 700_000);
    let info = writer.commit(Some(expected), Commit { labels: label("a", 1), lease: None }).await.unwrap();
    assert_eq!((info.digest, info.size, &info.labels), (expected.0, 700_000, &label("a", 1)));
    assert_eq!(f.store.info(&info.digest).await.unwrap().as_ref(), Some(&info));
    assert_eq!(f.store.walk().await.unwrap(), std::slice::from_ref(&info));
    assert_eq!(f.files("ingest"), 0);

    let blob = f.store.open(&info.digest).await.unwrap();
    let mut part = vec![0; 1000];
    assert_eq!(blob.read_at(&mut part, 699_500).unwrap(), 500);
    assert_eq!(part[..500], bytes[699_500..]);
    let streamed: Vec<Bytes> = blob.stream(5).try_collect().await.unwrap();
    assert!(streamed.concat() == bytes[5..]);
    let mut read = Vec::new();
    blob.reader(3).read_to_end(&mut read).unwrap();
    assert!(read == bytes[3..]);

    let change = Labels::from([("a".into(), "".into()), ("b".into(), "2".into())]);
    assert_eq!(f.store.set_labels(&info.digest, &change).await.unwrap().labels, label("b", 2));

    f.store.delete(&info.digest).await.unwrap();
    assert_eq!(f.store.info(&info.digest).await.unwrap(), None);
    let error = f.store.open(&info.digest).await.unwrap_err();
    assert!(error.is_not_found());
    assert_eq!(error.to_string(), format!("content {}: not found", info.digest));
    assert!(f.store.delete(&info.digest).await.unwrap_err().is_not_found());
    // Who has it open still reads it.
    assert_eq!(blob.read_at(&mut part, 0).unwrap(), 1000);
}

#[tokio::test]
async fn what_was_written_must_be_what_was_expected() {
    let f = Fixture::new().await;
    let wanted = Digest::of("right");
    let mut writer = f.store.writer().await.unwrap();
    writer.write_all(b"wrong").unwrap();
    let error = writer.commit(Some((wanted, 5)), Commit::default()).await.unwrap_err().to_string();
    assert!(error.contains(&wanted.to_string()) && error.contains(&Digest::of("wrong").to_string()), "{error}");
    let mut writer = f.store.writer().await.unwrap();
    writer.write_all(b"righ").unwrap();
    let error = writer.commit(Some((wanted, 5)), Commit::default()).await.unwrap_err();
    assert!(matches!(error, Error::SizeMismatch { found: 4, wanted: 5, .. }), "{error}");
    drop(f.store.writer().await.unwrap());
    assert_eq!((f.files("ingest"), f.files("blobs")), (0, 0), "nothing is left of what was not committed");
}

#[tokio::test]
async fn the_same_blob_twice_keeps_its_labels() {
    let f = Fixture::new().await;
    let first = f.put_with("x", Commit { labels: label("k", "first"), lease: None }).await;
    let labels = Labels::from([("k".into(), "second".into()), ("l".into(), "new".into())]);
    let second = f.put_with("x", Commit { labels, lease: None }).await;
    assert_eq!(first, second);
    let labels = f.store.info(&first).await.unwrap().unwrap().labels;
    assert_eq!(labels, Labels::from([("k".into(), "first".into()), ("l".into(), "new".into())]));
}

#[tokio::test]
async fn an_ingest_is_filled_in_any_order() {
    let f = Fixture::new().await;
    let bytes = noise(300_000);
    let ingest = f.store.ingest("layer", &describe(&bytes)).await.unwrap();
    assert_eq!(ingest.missing(0..u64::MAX), [0..300_000]);
    ingest.write(200_000, Bytes::copy_from_slice(&bytes[200_000..])).await.unwrap();
    ingest.write_at(0, &bytes[..100_000]).unwrap();
    assert_eq!(ingest.missing(50_000..250_000), [100_000..200_000]);
    assert_eq!(ingest.present(), 200_000);
    let mut part = vec![0; 10];
    ingest.read_at(&mut part, 299_990).unwrap();
    assert_eq!(part, bytes[299_990..]);
    let error = ingest.read_at(&mut part, 99_995).unwrap_err().to_string();
    assert_eq!(error, "ingest layer: bytes 99995..100005 are not here");
    let error = ingest.write_at(299_999, b"ab").unwrap_err().to_string();
    assert_eq!(error, "ingest layer: bytes 299999..300001 are outside of it");
    let error = ingest.commit(Commit::default()).await.unwrap_err();
    assert!(matches!(error, Error::Incomplete { missing: 100_000, size: 300_000, .. }), "{error}");

    ingest.write_at(100_000, &bytes[100_000..200_000]).unwrap();
    let info = ingest.commit(Commit::default()).await.unwrap();
    assert_eq!(info.digest, Digest::of(&bytes));
    assert_eq!(f.files("ingest"), 0);
    assert!(f.store.ingests().await.unwrap().is_empty());
    assert_eq!(ingest.write_at(0, b"x").unwrap_err().to_string(), "ingest layer is committed");
    assert!(matches!(ingest.commit(Commit::default()).await, Err(Error::Ended { .. })));
}

#[tokio::test]
async fn an_ingest_with_wrong_bytes_begins_anew() {
    let f = Fixture::new().await;
    let bytes = noise(10_000);
    let ingest = f.store.ingest("layer", &describe(&bytes)).await.unwrap();
    let mut wrong = bytes.clone();
    wrong[77] ^= 1;
    ingest.write_at(0, &wrong).unwrap();
    let error = ingest.commit(Commit::default()).await.unwrap_err();
    assert!(matches!(error, Error::DigestMismatch { wanted, .. } if wanted == Digest::of(&bytes)), "{error}");
    assert_eq!(ingest.present(), 0);
    assert_eq!(f.store.info(&Digest::of(&wrong)).await.unwrap(), None);
    ingest.write_at(0, &bytes).unwrap();
    ingest.commit(Commit::default()).await.unwrap();
}

#[tokio::test]
async fn an_ingest_is_one_for_all_who_open_it_and_of_one_content() {
    let f = Fixture::new().await;
    let a = f.store.ingest("layer", &describe(b"abc")).await.unwrap();
    let b = f.store.ingest("layer", &describe(b"abc")).await.unwrap();
    a.write_at(0, b"ab").unwrap();
    assert_eq!(b.present(), 2);
    let error = f.store.ingest("layer", &describe(b"other")).await.unwrap_err();
    assert!(matches!(error, Error::OtherContent { .. }), "{error}");
    b.discard().await.unwrap();
    assert_eq!(a.write_at(0, b"a").unwrap_err().to_string(), "ingest layer is discarded");
    assert_eq!(f.files("ingest"), 0);
    let other = f.store.ingest("layer", &describe(b"other")).await.unwrap();
    assert_eq!(other.present(), 0);
}

#[tokio::test]
async fn punched_bytes_are_missing() {
    let f = Fixture::new().await;
    let bytes = noise(1 << 20);
    let ingest = f.store.ingest("layer", &describe(&bytes)).await.unwrap();
    ingest.write_at(0, &bytes).unwrap();
    ingest.checkpoint().unwrap();
    ingest.punch(4096..1 << 19).unwrap();
    assert_eq!(ingest.missing(0..1 << 20), [4096..1 << 19]);
    assert!(ingest.read_at(&mut [0; 2], 4095).is_err());
    ingest.write_at(4096, &bytes[4096..1 << 19]).unwrap();
    ingest.commit(Commit::default()).await.unwrap();
}

#[tokio::test]
async fn a_restart_finds_what_was_checkpointed_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = noise(100_000);
    let open = || async {
        let db: Arc<dyn KeyValue> = Arc::new(Db::open(dir.path().join("meta.db"), 1).unwrap());
        (Local::open(&dir.path().join("content"), Arc::clone(&db)).await.unwrap(), db)
    };
    let committed = {
        let (store, db) = open().await;
        let ingest = store.ingest("layer", &describe(&bytes)).await.unwrap();
        ingest.write_at(0, &bytes[..30_000]).unwrap();
        ingest.write_at(50_000, &bytes[50_000..60_000]).unwrap();
        ingest.checkpoint().unwrap();
        ingest.write_at(60_000, &bytes[60_000..]).unwrap();
        for left in ["w-7", "stray"] {
            std::fs::write(dir.path().join("content/ingest").join(left), "x").unwrap();
        }
        let mut writer = store.writer().await.unwrap();
        writer.write_all(b"blob").unwrap();
        let info = writer.commit(None, Commit { labels: label("k", "v"), lease: None }).await.unwrap();
        db.flush().await.unwrap();
        info
    };
    let (store, _db) = open().await;
    assert_eq!(store.info(&committed.digest).await.unwrap(), Some(committed));
    assert_eq!(count(&dir.path().join("content/ingest")), 1, "what writers left is gone");
    let ingests = store.ingests().await.unwrap();
    assert_eq!((ingests.len(), ingests[0].present, ingests[0].size), (1, 40_000, 100_000));
    let ingest = store.ingest("layer", &describe(&bytes)).await.unwrap();
    assert_eq!(ingest.missing(0..100_000), [30_000..50_000, 60_000..100_000]);
    ingest.write_at(30_000, &bytes[30_000..50_000]).unwrap();
    ingest.write_at(60_000, &bytes[60_000..]).unwrap();
    ingest.commit(Commit::default()).await.unwrap();
}

#[tokio::test]
async fn a_file_that_shrank_is_not_trusted() {
    let dir = tempfile::tempdir().unwrap();
    let db: Arc<dyn KeyValue> = Arc::new(Memory::new());
    let bytes = noise(10_000);
    {
        let store = Local::open(dir.path(), Arc::clone(&db)).await.unwrap();
        let ingest = store.ingest("layer", &describe(&bytes)).await.unwrap();
        ingest.write_at(0, &bytes).unwrap();
        ingest.checkpoint().unwrap();
    }
    let file = std::fs::read_dir(dir.path().join("ingest")).unwrap().next().unwrap().unwrap().path();
    std::fs::OpenOptions::new().write(true).open(file).unwrap().set_len(100).unwrap();
    let store = Local::open(dir.path(), db).await.unwrap();
    let ingest = store.ingest("layer", &describe(&bytes)).await.unwrap();
    assert_eq!(ingest.present(), 0);
}

#[tokio::test]
async fn the_collector_keeps_what_is_held_and_what_that_refers_to() {
    let f = Fixture::new().await;
    f.store.create_lease("build", Labels::new(), None).await.unwrap();
    let config = f.put("config").await;
    let layer = f.put("layer").await;
    let labels = Labels::from([
        (format!("{LABEL_GC_REF}.config"), config.to_string()),
        (format!("{LABEL_GC_REF}.l/0"), layer.to_string()),
        // A cycle, and a reference to what is not here.
        (format!("{LABEL_GC_REF}.self"), Digest::of("manifest").to_string()),
        (format!("{LABEL_GC_REF}.gone"), Digest::of("gone").to_string()),
        (format!("{LABEL_GC_REF}ish"), Digest::of("loose").to_string()),
    ]);
    let manifest = f.put_with("manifest", Commit { labels, lease: Some("build".into()) }).await;
    let root = f.put("root").await;
    let loose = f.put("loose").await;
    let open = f.store.ingest("open", &describe(b"open")).await.unwrap();
    for name in ["leased", "loose"] {
        f.store.ingest(name, &describe(name.as_bytes())).await.unwrap();
    }
    f.store.add_resource("build", &Resource::Ingest("leased".into())).await.unwrap();

    let collected = f.store.collect(&[Resource::Blob(root)]).await.unwrap();
    assert_eq!((collected.blobs, collected.ingests), (vec![loose], vec!["loose".to_owned()]));
    for kept in [config, layer, manifest, root] {
        assert!(f.store.info(&kept).await.unwrap().is_some());
    }
    open.write_at(0, b"open").unwrap();
    let leased = f.store.ingests().await.unwrap();
    assert_eq!(leased.iter().map(|i| i.reference.as_str()).collect::<Vec<_>>(), ["leased", "open"]);

    f.store.delete_lease("build").await.unwrap();
    drop(open);
    let collected = f.store.collect(&[]).await.unwrap();
    assert_eq!((collected.blobs.len(), collected.ingests.len()), (4, 2));
    assert_eq!((f.files("blobs"), f.files("ingest")), (0, 0));
}

#[tokio::test]
async fn leases_hold_until_they_are_over() {
    let f = Fixture::new().await;
    let made = f.store.create_lease("a", label("k", "v"), None).await.unwrap();
    assert!(matches!(f.store.create_lease("a", Labels::new(), None).await, Err(Error::LeaseExists(_))));
    assert_eq!(f.store.leases().await.unwrap(), [made]);
    let blob = Resource::Blob(Digest::of("not here yet"));
    let other = Resource::Other { kind: "snapshots/local".into(), id: "7".into() };
    f.store.add_resource("a", &blob).await.unwrap();
    f.store.add_resource("a", &other).await.unwrap();
    assert_eq!(f.store.resources("a").await.unwrap(), [blob.clone(), other]);
    let digest = f.put("not here yet").await;
    f.store.collect(&[]).await.unwrap();
    assert!(f.store.info(&digest).await.unwrap().is_some(), "held before it came");
    f.store.remove_resource("a", &blob).await.unwrap();
    assert_eq!(f.store.collect(&[]).await.unwrap().blobs, [digest]);

    let error = f.store.add_resource("b", &blob).await.unwrap_err();
    assert_eq!(error.to_string(), "lease \"b\": not found");
    let mut writer = f.store.writer().await.unwrap();
    writer.write_all(b"x").unwrap();
    let commit = Commit { lease: Some("b".into()), ..Commit::default() };
    assert!(matches!(writer.commit(None, commit).await, Err(Error::NoLease(_))));
    assert_eq!(f.files("blobs"), 0, "what nobody would hold did not appear");
    f.store.delete_lease("b").await.unwrap();

    // Of a lease that is over nothing passes to its namesake.
    f.store.create_lease("short", Labels::new(), Some(Duration::ZERO)).await.unwrap();
    assert!(f.store.add_resource("short", &blob).await.unwrap_err().is_not_found());
    assert_eq!(f.store.leases().await.unwrap().len(), 1);
    f.store.create_lease("short", Labels::new(), Some(Duration::ZERO)).await.unwrap();
    assert_eq!(f.store.collect(&[]).await.unwrap().leases, ["short"]);
}

#[tokio::test]
async fn holding_a_blob_that_is_here() {
    let f = Fixture::new().await;
    f.store.create_lease("a", Labels::new(), None).await.unwrap();
    let digest = f.put("x").await;
    let commit = Commit { labels: label("k", "v"), lease: Some("a".into()) };
    let info = f.store.hold(&digest, &commit).await.unwrap().unwrap();
    assert_eq!(info.labels, label("k", "v"));
    assert!(f.store.collect(&[]).await.unwrap().blobs.is_empty());
    assert_eq!(f.store.hold(&Digest::of("y"), &commit).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn writers_collectors_and_ingests_do_not_wait_for_each_other_for_ever() {
    let f = Arc::new(Fixture::new().await);
    f.store.create_lease("a", Labels::new(), None).await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..6_u32 {
        let store = f.store.clone();
        tasks.spawn(async move {
            for n in 0..15_u32 {
                let bytes = format!("{task}/{n}").into_bytes();
                let name = format!("i{}", n % 3);
                match task % 3 {
                    0 => {
                        let ingest = store.ingest(&format!("{name}/{task}"), &describe(&bytes)).await.unwrap();
                        ingest.write_at(0, &bytes).unwrap();
                        let commit = Commit { lease: Some("a".into()), ..Commit::default() };
                        let info = ingest.commit(commit).await.unwrap();
                        assert!(store.info(&info.digest).await.unwrap().is_some(), "leased from its first moment");
                    }
                    1 => drop(store.collect(&[]).await.unwrap()),
                    _ => {
                        // Another task may have discarded it just before.
                        let ingest = store.ingest(&name, &describe(b"same")).await.unwrap();
                        let _ = ingest.write_at(0, b"same");
                        let _ = ingest.discard().await;
                    }
                }
            }
        });
    }
    tokio::time::timeout(Duration::from_secs(300), tasks.join_all()).await.unwrap();
    assert_eq!(f.store.collect(&[]).await.unwrap().blobs.len(), 0);
    assert_eq!(f.store.walk().await.unwrap().len(), 30);
}

proptest! {
    #[test]
    fn range_sets_behave_as_sets_of_numbers(
        steps in proptest::collection::vec((any::<bool>(), 0..60_u64, 0..20_u64), 0..40),
        asked in (0..60_u64, 0..30_u64),
    ) {
        let mut set = castor_content::RangeSet::new();
        let mut model = std::collections::BTreeSet::new();
        for (insert, start, length) in steps {
            let range = start..start + length;
            if insert {
                set.insert(range.clone());
                model.extend(range);
            } else {
                set.remove(range.clone());
                model.retain(|n| !range.contains(n));
            }
            prop_assert_eq!(set.iter().flatten().collect::<Vec<_>>(), model.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(set.len(), model.len() as u64);
            let ranges: Vec<_> = set.iter().collect();
            prop_assert!(ranges.windows(2).all(|pair| pair[0].end < pair[1].start), "touching: {:?}", ranges);
        }
        let asked = asked.0..asked.0 + asked.1;
        let missing: Vec<u64> = asked.clone().filter(|n| !model.contains(n)).collect();
        prop_assert_eq!(set.missing(asked.clone()).into_iter().flatten().collect::<Vec<_>>(), missing.clone());
        prop_assert_eq!(set.contains(asked), missing.is_empty());
    }
}

#[tokio::test]
async fn an_ingest_is_dropped_by_name_wherever_it_is() {
    let f = Fixture::new().await;
    let bytes = noise(200_000);
    assert_eq!((f.store.ingest_space("layer").await.unwrap(), f.store.discard("layer").await.unwrap()), (0, 0));

    let open = f.store.ingest("layer", &describe(&bytes)).await.unwrap();
    open.write_at(0, &bytes[..100_000]).unwrap();
    let space = f.store.ingest_space("layer").await.unwrap();
    assert!((100_000..200_000).contains(&space), "{space}");
    assert_eq!(f.store.discard("layer").await.unwrap(), space);
    assert!(matches!(open.write_at(0, b"x"), Err(Error::Ended { .. })), "whoever has it open learns of it");
    let again = f.store.ingest("layer", &describe(&bytes)).await.unwrap();
    assert_eq!(again.present(), 0);
    again.write_at(0, &bytes).unwrap();
    drop((open, again));
    assert!(f.store.discard("layer").await.unwrap() >= 200_000, "also where nobody has it open");
    assert_eq!((f.store.ingests().await.unwrap(), f.files("ingest")), (vec![], 0));
}
