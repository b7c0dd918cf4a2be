//! What every [`KeyValue`] promises, and what the file keeps.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use castor_metadb::{Batch, Db, Error, KeyValue, Memory};
use proptest::prelude::*;

struct Dir(tempfile::TempDir);

impl Dir {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn db(&self) -> PathBuf {
        self.0.path().join("meta.db")
    }
}

fn put(table: &str, key: &str, value: &str) -> Batch {
    let mut batch = Batch::new();
    batch.put(table, key, value);
    batch
}

async fn promises(db: &dyn KeyValue) {
    assert_eq!(db.get("nowhere", b"x").unwrap(), None);
    assert!(db.scan_prefix("nowhere", b"").unwrap().is_empty());

    db.write_soon(put("t", "a/1", "one"));
    assert_eq!(db.get("t", b"a/1").unwrap().as_deref(), Some(&b"one"[..]), "a queued write is visible at once");

    let mut batch = Batch::new();
    batch.put("t", "a/2", "two").put("t", "b/1", "three").put("u", "a/3", "other table").delete("t", "a/1");
    db.write(batch).await.unwrap();
    assert_eq!(db.get("t", b"a/1").unwrap(), None);
    db.write_soon(put("t", "a/0", "zero"));
    let scan = db.scan_prefix("t", b"a/").unwrap();
    assert_eq!(scan, [(b"a/0".to_vec(), b"zero".to_vec()), (b"a/2".to_vec(), b"two".to_vec())]);
    db.flush().await.unwrap();
    assert_eq!(db.scan_prefix("t", b"a/").unwrap(), scan);

    let mut batch = Batch::new();
    batch.put("t", "k", "first").put("t", "k", "last");
    db.write_soon(batch);
    assert_eq!(db.get("t", b"k").unwrap().as_deref(), Some(&b"last"[..]), "the last change in a batch wins");
}

#[tokio::test]
async fn memory_keeps_the_promises() {
    promises(&Memory::new()).await;
}

#[tokio::test]
async fn the_file_keeps_the_promises_and_its_content() {
    let dir = Dir::new();
    let db = Db::open(dir.db(), 1).unwrap();
    promises(&db).await;
    db.write_soon(put("t", "late", "written by drop"));
    drop(db);
    let db = Db::open(dir.db(), 1).unwrap();
    assert_eq!(db.get("t", b"late").unwrap().as_deref(), Some(&b"written by drop"[..]));
    assert_eq!(db.get("t", b"k").unwrap().as_deref(), Some(&b"last"[..]));
    assert_eq!(db.scan_prefix("t", b"").unwrap().len(), 5);
}

#[tokio::test]
async fn a_closed_database_reads_but_does_not_write() {
    let dir = Dir::new();
    let db = Db::open(dir.db(), 1).unwrap();
    db.write_soon(put("t", "a", "1"));
    db.close().unwrap();
    assert_eq!(db.get("t", b"a").unwrap().as_deref(), Some(&b"1"[..]));
    let error = db.write(put("t", "a", "2")).await.unwrap_err();
    assert!(error.to_string().contains("takes no more writes: it was closed"), "{error}");
    assert!(matches!(db.flush().await, Err(Error::Closed { .. })));
}

#[tokio::test]
async fn a_dropped_write_is_not_taken_back() {
    let dir = Dir::new();
    let db = Db::open(dir.db(), 1).unwrap();
    let mut write = Box::pin(db.write(put("t", "a", "1")));
    let _ = futures_poll_once(write.as_mut());
    drop(write);
    db.flush().await.unwrap();
    assert_eq!(db.get("t", b"a").unwrap().as_deref(), Some(&b"1"[..]));
}

fn futures_poll_once<F: Future>(future: std::pin::Pin<&mut F>) -> std::task::Poll<F::Output> {
    future.poll(&mut std::task::Context::from_waker(std::task::Waker::noop()))
}

#[test]
fn a_newer_file_is_refused_and_an_older_one_migrated() {
    let dir = Dir::new();
    {
        let db = Db::open(dir.db(), 2).unwrap();
        db.write_soon(put("old", "k", "v"));
    }
    let error = Db::open(dir.db(), 1).unwrap_err();
    assert!(matches!(error, Error::TooNew { found: 2, known: 1, .. }), "{error}");
    assert!(error.to_string().contains("use a newer castor"), "{error}");
    let error = Db::open(dir.db(), 3).unwrap_err();
    assert!(matches!(error, Error::TooOld { found: 2, wanted: 3, .. }), "{error}");

    // A migration that fails leaves the file as it was.
    let failed = Db::open_migrating(dir.db(), 3, |_, migration| {
        migration.drop_table("old")?;
        Err(Error::Closed { path: "x".into(), cause: "no".into() })
    });
    assert!(failed.is_err());

    let db = Db::open_migrating(dir.db(), 3, |found, migration| {
        assert_eq!(found, 2);
        assert_eq!(migration.tables()?, ["old"]);
        let mut batch = Batch::new();
        for (key, value) in migration.scan("old")? {
            batch.put("new", key, [&value[..], b"!"].concat());
        }
        migration.drop_table("old")?;
        migration.apply(&batch)
    })
    .unwrap();
    assert_eq!(db.get("new", b"k").unwrap().as_deref(), Some(&b"v!"[..]));
    assert_eq!(db.get("old", b"k").unwrap(), None);
    drop(db);
    Db::open(dir.db(), 3).unwrap();
}

#[test]
fn a_file_that_is_open_is_locked() {
    let dir = Dir::new();
    let _db = Db::open(dir.db(), 1).unwrap();
    let error = Db::open(dir.db(), 1).unwrap_err();
    assert!(matches!(error, Error::Locked { .. }), "{error}");
    assert!(error.to_string().contains("meta.db"));
}

#[test]
fn a_file_that_is_no_database_is_an_error() {
    let dir = Dir::new();
    std::fs::write(dir.db(), vec![7; 8192]).unwrap();
    let error = Db::open(dir.db(), 1).unwrap_err();
    assert!(error.to_string().starts_with("open database "), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_writers_and_readers_see_whole_batches() {
    let dir = Dir::new();
    let db = Arc::new(Db::open(dir.db(), 1).unwrap());
    let mut tasks = Vec::new();
    for task in 0..4_u32 {
        let db = Arc::clone(&db);
        tasks.push(tokio::spawn(async move {
            for n in 0..40_u32 {
                let mut batch = Batch::new();
                batch.put("pair", format!("{task}/a"), n.to_le_bytes()).put(
                    "pair",
                    format!("{task}/b"),
                    n.to_le_bytes(),
                );
                if n % 8 == 0 {
                    db.write(batch).await.unwrap()
                } else {
                    db.write_soon(batch)
                }
                for other in 0..4_u32 {
                    let seen = db.scan_prefix("pair", format!("{other}/").as_bytes()).unwrap();
                    assert!(seen.len() == 2 && seen[0].1 == seen[1].1 || seen.is_empty(), "half a batch: {seen:?}");
                }
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    drop(Arc::into_inner(db).unwrap());
    let db = Db::open(dir.db(), 1).unwrap();
    assert!(db.scan_prefix("pair", b"").unwrap().iter().all(|(_, value)| value == &39_u32.to_le_bytes()));
}

#[derive(Debug, Clone)]
enum Step {
    Write(bool, Vec<(u8, Option<u8>)>),
    Scan(u8),
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let change = (0..24_u8, proptest::option::of(any::<u8>()));
    let step = prop_oneof![
        6 => (any::<bool>(), proptest::collection::vec(change, 0..5)).prop_map(|(wait, batch)| Step::Write(wait, batch)),
        3 => (0..3_u8).prop_map(Step::Scan),
        1 => Just(Step::Reopen),
    ];
    proptest::collection::vec(step, 1..24)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn the_file_behaves_as_a_map(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let dir = Dir::new();
        let mut db = Db::open(dir.db(), 1).unwrap();
        let mut model = BTreeMap::new();
        let key = |k: u8| vec![k / 8, k];
        for step in steps {
            match step {
                Step::Write(wait, changes) => {
                    let mut batch = Batch::new();
                    for (k, value) in changes {
                        match value {
                            Some(value) => { batch.put("t", key(k), [value]); model.insert(key(k), vec![value]); }
                            None => { batch.delete("t", key(k)); model.remove(&key(k)); }
                        }
                    }
                    if wait { runtime.block_on(db.write(batch)).unwrap() } else { db.write_soon(batch) }
                }
                Step::Scan(prefix) => {
                    let want: Vec<_> = model.iter().filter(|(k, _)| k[0] == prefix)
                        .map(|(k, v): (&Vec<u8>, &Vec<u8>)| (k.clone(), v.clone())).collect();
                    prop_assert_eq!(db.scan_prefix("t", &[prefix]).unwrap(), want);
                }
                Step::Reopen => {
                    drop(db);
                    db = Db::open(dir.db(), 1).unwrap();
                }
            }
            for k in 0..24 {
                prop_assert_eq!(db.get("t", &key(k)).unwrap(), model.get(&key(k)).cloned());
            }
        }
    }
}
