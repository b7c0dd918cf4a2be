//! Refs and records over real snapshots and layers.
#![allow(clippy::unwrap_used)]

mod lab;

use std::sync::Arc;
use std::time::Duration;

use castor_fsutil::{Change, Observer as _, Stat};
use castor_layerfs::Lazy;
use castor_solver::ResultStore as _;
use castor_store::{ChecksumOptions, PartKind, PruneOptions, RecordOptions, RecordType, Sharing, StoreError};
use castor_testkit::{File, Form, Image, ImageBuilder, Registry};
use lab::{Lab, texts};

fn two_layers(form: Form) -> Image {
    ImageBuilder::new()
        .layer(&[File::new("a", "one"), File::dir("etc"), File::new("etc/hosts", "h")], form)
        .layer(&[File::new("b", "two"), File::whiteout("a")], form)
        .build()
}

fn whole() -> ChecksumOptions {
    ChecksumOptions { follow_links: true, ..ChecksumOptions::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_an_image_is_fetched_when_somebody_looks() {
    let registry = Registry::start().await;
    let lab = Lab::new().await;
    let image = lab.image(&registry, &two_layers(Form::Gzip), "base:1", Lazy::Never).await;
    let step = lab.store.merge(std::slice::from_ref(&image), RecordOptions::default()).await.unwrap();
    assert_eq!(step.id(), image.id(), "a merge of one is that one");
    assert!(image.is_lazy().await && !image.is_verified().await);
    let parts = image.parts();
    assert_eq!(parts.iter().map(|part| part.description.as_str()).collect::<Vec<_>>(), ["layer 0", "layer 1"]);
    assert!(parts.iter().all(|part| matches!(part.kind, PartKind::Image(_))));
    assert_eq!(registry.blob_bytes(), 0, "nothing was fetched");
    assert_eq!(lab.files(&image).await, texts(&[("b", "two"), ("etc/hosts", "h")]));
    assert!(!image.is_lazy().await && image.is_verified().await);

    // The same layers, from another name: the same records, and no second download.
    let bytes = registry.blob_bytes();
    let again = lab.image(&registry, &two_layers(Form::Gzip), "other:1", Lazy::Never).await;
    assert_eq!(again.id(), image.id());
    assert_eq!(lab.files(&again).await.len(), 2);
    assert_eq!(registry.blob_bytes(), bytes);
    drop((image, again, step, parts));
    lab.settled(0).await;
    lab.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_steps_stack_and_are_there_after_a_restart_without_a_registry() {
    let registry = Registry::start().await;
    let lab = Lab::new().await;
    let image = lab.image(&registry, &two_layers(Form::Gzip), "base:1", Lazy::Never).await;
    let one = lab.step(Some(&image), "first", &[("x", "1")]).await;
    let two = lab.step(Some(&one), "second", &[("x", "2"), ("b", "")]).await;
    two.retain().await.unwrap();
    let loose = lab.step(Some(&one), "loose", &[("y", "1")]).await;
    let (id, loose_id) = (two.id().to_owned(), loose.id().to_owned());
    let infos = lab.usage().await;
    assert_eq!(infos.len(), 5);
    assert!(infos.iter().all(|info| info.in_use));
    drop((image, one, two, loose));

    drop(registry);
    let lab = lab.restart().await;
    assert!(matches!(lab.store.get(&loose_id).await, Err(StoreError::NotFound(_))));
    let two = lab.store.get(&id).await.unwrap();
    assert_eq!(lab.files(&two).await, texts(&[("x", "2"), ("etc/hosts", "h")]));
    let three = lab.step(Some(&two), "third", &[("z", "3")]).await;
    assert_eq!(lab.files(&three).await["z"], "3");
    assert_eq!(three.parts().len(), 5);
    drop(three);
    assert_eq!(lab.content.usage().await.unwrap().blobs, 2);
    let infos = lab.settled(4).await;
    let info = infos.iter().find(|info| info.id == id).unwrap();
    assert!(info.in_use && info.size > 0 && !info.mutable);
    assert_eq!((info.description.as_str(), info.parents.len()), ("second", 1));
    drop(two);
    assert!(lab.settled(4).await.iter().all(|info| !info.in_use));
    lab.store.prune(&PruneOptions::default(), &|_| {}).await.unwrap();
    assert!(lab.usage().await.is_empty());
    assert_eq!(lab.content.usage().await.unwrap().blobs, 0, "blobs go with their records");
    assert_eq!(lab.store.engine().list().unwrap(), [], "and so do layers");
    lab.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_merges_and_diffs_move_lists_and_differences_keep_whiteouts() {
    let lab = Lab::new().await;
    let base = lab.step(None, "base", &[("keep", "k"), ("gone", "g"), ("changed", "1")]).await;
    let upper = lab.step(Some(&base), "upper", &[("gone", ""), ("changed", "2"), ("new", "n")]).await;
    let sliced = lab.store.diff(&base, &upper, RecordOptions::described("slice")).await.unwrap();
    assert_eq!(sliced.parts().len(), 1);
    assert_eq!(lab.files(&sliced).await, texts(&[("changed", "2"), ("new", "n")]));
    assert!(lab.store.diff(&upper, &upper, RecordOptions::default()).await.unwrap().is_scratch());
    let scratch = lab.store.scratch();
    assert_eq!(lab.store.diff(&scratch, &upper, RecordOptions::default()).await.unwrap().id(), upper.id());

    // Made apart, with the same content but for what the difference is.
    let other = lab.step(None, "other", &[("keep", "k"), ("changed", "2"), ("new", "n")]).await;
    let difference = lab.store.diff(&base, &other, RecordOptions::described("difference")).await.unwrap();
    assert_eq!(difference.parts()[0].kind, PartKind::Difference);
    let merged = lab.store.merge(&[base.clone(), difference.clone()], RecordOptions::default()).await.unwrap();
    assert_eq!(lab.files(&merged).await, lab.files(&other).await);
    let (lower, above) = difference.compared(&lab.cx()).await.unwrap();
    assert!(lower.is_some() && above.is_some());
    let again = lab.store.merge(&[merged.clone(), sliced.clone()], RecordOptions::default()).await.unwrap();
    assert_eq!(again.parts().len(), 3);
    assert!(!lab.files(&again).await.contains_key("gone"));

    // Down to nothing: all that was there goes, and nothing else.
    let nothing = lab.store.diff(&base, &scratch, RecordOptions::described("nothing")).await.unwrap();
    let left = lab.store.merge(&[other.clone(), nothing.clone()], RecordOptions::default()).await.unwrap();
    assert_eq!(lab.files(&left).await, texts(&[("new", "n")]));
    drop((base, upper, sliced, other, difference, merged, again, scratch, nothing, left));
    lab.settled(0).await;
    lab.close().await;
}

fn stat(path: &str, text: &str) -> Stat {
    Stat { path: path.to_owned().into(), mode: 0o644, size: text.len() as i64, ..Stat::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_context_is_kept_hashed_as_it_comes_and_written_to_again() {
    let lab = Lab::new().await;
    let cx = lab.cx();
    assert!(lab.store.retained("context").await.is_none());
    let send = async |files: &[(&str, &str)], removed: &[&str]| {
        let target = match lab.store.retained("context").await {
            Some(target) => target,
            None => {
                let options = RecordOptions { record_type: RecordType::LocalSource, ..RecordOptions::default() };
                lab.store.new_mutable(&cx, None, options).await.unwrap()
            }
        };
        let observer = target.observer().await.unwrap();
        lab.write(&target, files).await;
        lab.write(&target, &removed.iter().map(|path| (*path, "")).collect::<Vec<_>>()).await;
        for (path, text) in files {
            let stat = stat(path, text);
            let mut hash = observer.hash(&stat);
            hash.update(text.as_bytes());
            observer.changed(Change::Written { stat: &stat, digest: hash.finish() }).unwrap();
        }
        for path in removed {
            observer.changed(Change::Removed { path: path.as_bytes() }).unwrap();
        }
        target.retain_as("context").await.unwrap();
        target.freeze().await.unwrap()
    };
    let first = send(&[("x", "1"), ("y", "2")], &[]).await;
    assert!(lab.store.retained("context").await.is_none(), "it is in use");
    let digest = first.checksum(&cx, "/", &whole()).await.unwrap();
    assert_eq!(lab.files(&first).await, texts(&[("x", "1"), ("y", "2")]));
    let (record, size) = (first.id().to_owned(), lab.usage().await.len());
    assert_eq!(size, 1);
    assert_eq!(lab.store.results().save(&first).await.unwrap(), None, "it will change");
    drop(first);

    let second = send(&[("z", "3")], &["y"]).await;
    assert_eq!(second.id(), record, "the same files were written to");
    let changed = second.checksum(&cx, "/", &whole()).await.unwrap();
    assert_ne!(changed, digest);
    drop(second);
    let third = send(&[("y", "2")], &["z"]).await;
    assert_eq!(third.checksum(&cx, "/", &whole()).await.unwrap(), digest, "as at first");
    drop(third);

    // What is known survives; what was hashed as it came is what is on disk.
    let lab = lab.restart().await;
    let cx = lab.cx();
    let kept = lab.store.retained("context").await.unwrap().freeze().await.unwrap();
    assert_eq!(kept.checksum(&cx, "/", &whole()).await.unwrap(), digest);
    for file in ["x", "y"] {
        let path = format!("/{file}");
        let found = kept.checksum(&cx, &path, &whole()).await.unwrap();
        let mounting = kept.mount(&cx).await.unwrap();
        let copy =
            lab.step(None, "copy", &[(file, &std::fs::read_to_string(mounting.path().join(file)).unwrap())]).await;
        assert_eq!(copy.checksum(&cx, &path, &whole()).await.unwrap(), found);
    }
    // Something is made of it: it is no longer written to.
    let top = lab.step(Some(&kept), "top", &[("t", "t")]).await;
    assert_eq!(lab.files(&top).await.len(), 3);
    let kept_id = kept.id().to_owned();
    drop(kept);
    assert!(lab.store.retained("context").await.is_none());
    assert!(lab.store.get(&kept_id).await.is_ok());
    drop(top);
    lab.settled(0).await;
    lab.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_cache_mounts_are_shared_private_or_one_after_the_other() {
    let lab = Arc::new(Lab::new().await);
    let cx = lab.cx();
    let get = async |id: &str, sharing: Sharing| {
        let options = RecordOptions { record_type: RecordType::CacheMount, ..RecordOptions::default() };
        lab.store.cache_mount(&cx, id, None, sharing, options).await.unwrap()
    };
    let (a, b) = (get("s", Sharing::Shared).await, get("s", Sharing::Shared).await);
    assert_eq!(a.id(), b.id());
    lab.write(&a, &[("kept", "k")]).await;
    let private = get("s", Sharing::Private).await;
    assert_ne!(private.id(), a.id(), "the first is busy");
    let id = a.id().to_owned();
    drop((a, b));
    let again = get("s", Sharing::Private).await;
    assert_eq!(again.id(), id, "what is free is taken");
    let mounting = again.mount(&cx).await.unwrap();
    assert_eq!(std::fs::read_to_string(mounting.path().join("kept")).unwrap(), "k");
    drop((mounting, again, private));

    let first = get("l", Sharing::Locked).await;
    let waiting = tokio::spawn({
        let lab = lab.clone();
        async move {
            let cx = lab.cx();
            lab.store.cache_mount(&cx, "l", None, Sharing::Locked, RecordOptions::default()).await.unwrap()
        }
    });
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
    assert!(!waiting.is_finished());
    let locked = first.id().to_owned();
    drop(first);
    let second = tokio::time::timeout(lab::ground::PATIENCE, waiting).await.unwrap().unwrap();
    assert_eq!(second.id(), locked);

    // Whoever waits can be told to stop.
    let cancelled = lab.cx();
    cancelled.token().cancel();
    let refused = lab.store.cache_mount(&cancelled, "l", None, Sharing::Locked, RecordOptions::default()).await;
    assert!(matches!(refused, Err(StoreError::Cancelled)));
    drop(second);
    let infos = lab.settled(3).await;
    assert!(infos.iter().all(|info| info.mutable && !info.in_use));
    let base = lab.step(None, "base", &[("from", "base")]).await;
    let on_base =
        lab.store.cache_mount(&cx, "l", Some(&base), Sharing::Locked, RecordOptions::default()).await.unwrap();
    assert_ne!(on_base.id(), locked, "another base, another mount");
    drop((on_base, base));
    Arc::into_inner(lab).unwrap().close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_prune_takes_what_nobody_uses_and_says_what() {
    let lab = Lab::new().await;
    let mut kept = Vec::new();
    for index in 0..4 {
        let step = lab.step(None, &format!("step {index}"), &[("data", &"x".repeat(100_000 * (index + 1)))]).await;
        step.retain().await.unwrap();
        kept.push(step);
    }
    let child = lab.step(Some(&kept[0]), "child", &[("c", "c")]).await;
    child.retain().await.unwrap();
    let options =
        RecordOptions { record_type: RecordType::Internal, retain: true, ..RecordOptions::described("internal") };
    let internal = lab.store.new_mutable(&lab.cx(), None, options).await.unwrap().commit().await.unwrap();
    drop(internal);
    let in_use = kept.pop().unwrap();
    drop((kept, child));

    let filter = "description==\"step 1\"".parse().unwrap();
    let seen = parking_lot::Mutex::new(Vec::new());
    let report = |info: castor_store::RecordInfo| seen.lock().push(info.description);
    let options = PruneOptions { filters: vec![filter], ..PruneOptions::default() };
    let pruned = lab.store.prune(&options, &report).await.unwrap();
    assert_eq!((pruned.records, std::mem::take(&mut *seen.lock())), (1, vec!["step 1".to_owned()]));
    assert!(pruned.bytes >= 200_000);

    // Limited: the oldest of the least used goes until it fits, and no more.
    let used: i64 = lab.usage().await.iter().map(|info| info.size).sum();
    let options = PruneOptions { max_used_space: used as u64 - 1, ..PruneOptions::default() };
    let pruned = lab.store.prune(&options, &report).await.unwrap();
    assert_eq!(pruned.records, 1);
    let recent = PruneOptions { keep_duration: Some(Duration::from_secs(3600)), ..PruneOptions::default() };
    assert_eq!(lab.store.prune(&recent, &report).await.unwrap().records, 0);

    lab.store.prune(&PruneOptions::default(), &report).await.unwrap();
    let left: Vec<_> = lab.usage().await.into_iter().map(|info| info.description).collect();
    assert_eq!(left, ["step 3", "internal"]);
    lab.store.prune(&PruneOptions { all: true, ..PruneOptions::default() }, &report).await.unwrap();
    assert_eq!(lab.usage().await.len(), 1, "what is in use stays");
    assert_eq!(lab.files(&in_use).await.len(), 1);
    drop(in_use);
    lab.store.prune(&PruneOptions::default(), &report).await.unwrap();
    assert!(lab.usage().await.is_empty());
    lab.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_what_goes_with_a_pruned_record_is_told_too() {
    let lab = Lab::new().await;
    let below = lab.step(None, "below", &[("data", &"x".repeat(100_000))]).await;
    let above = lab.step(Some(&below), "above", &[("a", "a")]).await;
    above.retain().await.unwrap();
    drop((below, above));
    let seen = parking_lot::Mutex::new(Vec::new());
    let report = |info: castor_store::RecordInfo| seen.lock().push((info.description, info.size > 0));
    let pruned = lab.store.prune(&PruneOptions::default(), &report).await.unwrap();
    assert_eq!(*seen.lock(), [("above".to_owned(), true), ("below".to_owned(), true)]);
    assert!(pruned.records == 2 && pruned.bytes >= 100_000);
    lab.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_two_may_give_a_record_its_first_content_at_once() {
    let lab = Lab::new().await;
    let step = lab.step(None, "step", &[("a", "a")]).await;
    let hold = |text: &str| step.hold(castor_content::Resource::Blob(castor_oci::Digest::of(text)));
    let (one, other, lease) = tokio::join!(hold("one"), hold("other"), step.lease());
    one.unwrap();
    other.unwrap();
    let held = lab.store.leases().resources(&lease.unwrap().unwrap()).await.unwrap();
    assert_eq!(held.len(), 2);
    drop(step);
    lab.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_results_are_retained_and_pruning_forgets_them() {
    use castor_solver::{CacheSource as _, CacheStore as _, CacheUpdate, KeyId, Record};
    let lab = Lab::new().await;
    let step = lab.step(None, "step", &[("a", "a")]).await;
    let results = lab.store.results();
    let id = results.save(&step).await.unwrap().unwrap();
    let key = KeyId::new("key");
    let record = Record { id: id.clone(), created: castor_progress::Timestamp::now() };
    let update = CacheUpdate { results: vec![(key.clone(), record.clone())], ..CacheUpdate::default() };
    lab.store.keys().update(update).await.unwrap();
    drop(step);
    assert_eq!(results.load(&lab.cx(), &id).await.unwrap().unwrap().id(), id);
    assert_eq!(lab.store.keys().records(std::slice::from_ref(&key)).await.unwrap(), [vec![record]]);
    let scratch = results.save(&lab.store.scratch()).await.unwrap().unwrap();
    assert!(results.load(&lab.cx(), &scratch).await.unwrap().unwrap().is_scratch());

    lab.store.prune(&PruneOptions::default(), &|_| {}).await.unwrap();
    assert!(results.load(&lab.cx(), &id).await.unwrap().is_none());
    assert_eq!(lab.store.keys().records(&[key]).await.unwrap(), [vec![]]);
    lab.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_lazy_image_is_hashed_by_what_is_selected() {
    let registry = Registry::start().await;
    let noise: Vec<u8> = (0..1u64 << 20).map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u8).collect();
    let files = [File::new("small", "s"), File::new("big", noise)];
    let image = ImageBuilder::new().layer(&files, Form::Estargz).build();
    let lab = Lab::new().await;
    let image = lab.image(&registry, &image, "lazy:1", Lazy::Prefer).await;
    let cx = lab.cx();
    let digest = image.checksum(&cx, "/small", &whole()).await.unwrap();
    assert!(registry.blob_bytes() < 600_000, "{}", registry.blob_bytes());
    let copy = lab.step(None, "copy", &[("small", "s")]).await;
    assert_eq!(copy.checksum(&cx, "/small", &whole()).await.unwrap(), digest);
    let missing = image.checksum(&cx, "/none", &whole()).await.unwrap_err();
    let text = format!("failed to calculate checksum of ref {}: \"/none\": not found", image.id());
    assert_eq!(missing.to_string(), text);
    drop((image, copy));
    lab.settled(0).await;
    lab.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_what_a_crash_leaves_behind_is_swept_at_the_start() {
    use castor_metadb::Batch;
    use castor_solver::{CacheSource as _, CacheStore as _, CacheUpdate, KeyId, Record};
    let registry = Registry::start().await;
    let lab = Lab::new().await;
    let image = lab.image(&registry, &two_layers(Form::Gzip), "base:1", Lazy::Never).await;
    let lost = lab.step(Some(&image), "lost", &[("a", "a")]).await;
    let above = lab.step(Some(&lost), "above", &[("b", "b")]).await;
    let kept = lab.step(None, "kept", &[("c", "c")]).await;
    for step in [&above, &kept] {
        lab.store.results().save(step).await.unwrap();
    }
    let key = KeyId::new("key");
    let record = Record { id: above.id().to_owned(), created: castor_progress::Timestamp::now() };
    lab.store
        .keys()
        .update(CacheUpdate { results: vec![(key.clone(), record)], ..CacheUpdate::default() })
        .await
        .unwrap();
    let ids = [lost.id().to_owned(), above.id().to_owned(), kept.id().to_owned()];
    drop((image, lost, above, kept));
    let db = lab.db().clone();
    let row = db.get("store.records", ids[2].as_bytes()).unwrap().unwrap();
    assert!(lab.content.usage().await.unwrap().blobs > 0);
    // As if the records of two steps were written and their snapshots were not, and another way round.
    let mut batch = Batch::new();
    for (key, _) in db.scan_prefix("snapshots", &[]).unwrap_or_default() {
        if String::from_utf8_lossy(&key).contains(&ids[0]) {
            batch.delete("snapshots", key);
        }
    }
    batch.delete("store.records", &ids[2]);
    batch.put("store.records", "0000000000000000000000000", row);
    db.write(batch).await.unwrap();

    let lab = lab.restart().await;
    assert_eq!(lab.usage().await, [], "neither what lost its snapshot, nor what stood on it, nor what nobody named");
    assert!(matches!(lab.store.get(&ids[2]).await, Err(StoreError::NotFound(_))));
    assert_eq!(lab.store.keys().records(&[key]).await.unwrap(), [vec![]]);
    lab.close().await;
}
