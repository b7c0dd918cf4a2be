use std::sync::Arc;

use castor_content::Local;
use castor_metadb::Memory;
use castor_progress::{Event, Log, Sink};
use castor_proto::rpc;

use super::*;
use crate::{Journal, Request};

struct World {
    history: History,
    content: Arc<Local>,
    db: Arc<dyn KeyValue>,
    _root: tempfile::TempDir,
}

async fn world(limits: HistoryLimits) -> World {
    let root = tempfile::tempdir().unwrap();
    let db: Arc<dyn KeyValue> = Arc::new(Memory::default());
    let content = Arc::new(Local::open(root.path(), db.clone()).await.unwrap());
    let history = History::new(db.clone(), content.clone(), content.clone(), limits);
    World { history, content, db, _root: root }
}

fn ended(id: &str) -> Ended {
    let journal = Arc::new(Journal::default());
    let data = bytes::Bytes::from(id.to_owned());
    journal.send(Event::Log(Log { vertex: Digest::of("v"), stream: 1, data, timestamp: Timestamp::now() }));
    journal.end();
    let request = Request { id: id.into(), frontend: "dockerfile.v0".into(), ..Request::default() };
    let provenance = vec![(Some("linux/amd64".to_owned()), "https://slsa.dev/provenance/v1", id.to_owned().into())];
    Ended {
        record: begun(&request, Timestamp::now()),
        journal,
        error: Some(rpc::Status { code: 2, message: "boom".into(), ..rpc::Status::default() }),
        results: Some(Results { provenance, ..Results::default() }),
    }
}

async fn blobs(world: &World) -> usize {
    world.content.walk().await.unwrap().len()
}

#[tokio::test]
async fn a_build_is_recorded_with_its_blobs_and_all_of_it_goes_with_it() {
    let world = world(HistoryLimits::default()).await;
    let mut events = world.history.events();
    world.history.save(ended("a")).await.unwrap();
    world.history.save(ended("b")).await.unwrap();
    assert_eq!(events.recv().await.unwrap().record.unwrap().r#ref, "a");
    let record = world.history.record("a").unwrap().unwrap();
    assert_eq!((record.error.as_ref().unwrap().message.as_str(), record.frontend.as_str()), ("boom", "dockerfile.v0"));
    let mut log = world.history.log(&record).await.unwrap();
    assert_eq!(log.next().await.unwrap().unwrap().logs[0].msg, "a");
    assert!(log.next().await.unwrap().is_none());
    let statement = &record.results["linux/amd64"].attestations[0];
    assert_eq!(statement.annotations["in-toto.io/predicate-type"], "https://slsa.dev/provenance/v1");
    world.history.save_trace("a", "spans".into()).await.unwrap();
    // Two logs, two statements, a trace, and one error that both ended with.
    assert_eq!(blobs(&world).await, 6);
    world.content.collect(&[]).await.unwrap();
    assert_eq!(blobs(&world).await, 6);
    world.history.delete("a").await.unwrap();
    assert_eq!(blobs(&world).await, 3);
    assert!(
        world.history.open(world.history.record("b").unwrap().unwrap().external_error.as_ref().unwrap()).await.is_ok()
    );
    world.history.delete("b").await.unwrap();
    assert_eq!((blobs(&world).await, world.content.leases().await.unwrap().len()), (0, 0));
    let error = world.history.delete("b").await.unwrap_err();
    assert_eq!(error.to_string(), "failed to retrieve ref b: file does not exist");
}

#[tokio::test]
async fn a_record_that_is_listened_to_is_hidden_and_goes_with_the_last_listener() {
    let world = world(HistoryLimits::default()).await;
    world.history.save(ended("a")).await.unwrap();
    let (first, second) = (world.history.listen("a").unwrap(), world.history.listen("a").unwrap());
    world.history.delete("a").await.unwrap();
    assert!(world.history.record("a").unwrap().is_none() && world.history.records().unwrap().is_empty());
    assert!(world.history.listen("a").is_none());
    first.leave().await.unwrap();
    assert_ne!(blobs(&world).await, 0);
    second.leave().await.unwrap();
    assert_eq!(blobs(&world).await, 0);
    world.history.save(ended("a")).await.unwrap();
    assert!(world.history.record("a").unwrap().is_some());
}

#[tokio::test]
async fn the_collector_takes_what_is_beyond_both_limits_and_not_pinned() {
    let limits = HistoryLimits { max_age: Duration::from_secs(3600), max_entries: 1 };
    let world = world(limits).await;
    for id in ["a", "b", "c"] {
        world.history.save(ended(id)).await.unwrap();
    }
    world.history.pin("a", true).await.unwrap();
    assert_eq!(world.history.record("a").unwrap().unwrap().generation, 1);
    assert_eq!(world.history.collect(Timestamp::now()).await.unwrap(), 0);
    let later = Timestamp::now() + Duration::from_secs(7200);
    assert_eq!(world.history.collect(later).await.unwrap(), 1);
    let mut left: Vec<_> = world.history.records().unwrap().into_iter().map(|record| record.r#ref).collect();
    left.sort();
    assert_eq!(left, ["a", "c"]);
    assert!(matches!(world.history.pin("x", true).await, Err(HistoryError::NotFound(_))));
}

#[tokio::test]
async fn what_a_crash_leaves_by_halves_is_removed() {
    let world = world(HistoryLimits::default()).await;
    world.history.save(ended("whole")).await.unwrap();
    let whole = blobs(&world).await;
    // Died before the row was written.
    world.history.leased("blobs").await.unwrap();
    world.history.blob("blobs", "x", "only here".into()).await.unwrap();
    // Died after the lease was ended.
    let mut batch = Batch::new();
    let row = BuildHistoryRecord { r#ref: "row".into(), ..BuildHistoryRecord::default() };
    batch.put(TABLE, b"row", row.encode_to_vec());
    world.db.write(batch).await.unwrap();
    world.history.recover().await.unwrap();
    assert_eq!(blobs(&world).await, whole);
    let left: Vec<_> = world.history.records().unwrap().into_iter().map(|record| record.r#ref).collect();
    assert_eq!(left, ["whole"]);
}
