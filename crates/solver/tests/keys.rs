//! Cache keys: what is found, what is stored, and what never is.

#![allow(clippy::unwrap_used)]

mod fake;

use castor_oci::Digest;
use castor_solver::{CacheStore as _, KeyId, Private, export};
use fake::{World, build, graph};

#[tokio::test]
async fn what_was_built_is_not_built_again() {
    let world = World::new();
    let (a, b) = (world.op("a"), world.op("b"));
    let b = b.on(&[&a]);
    assert_eq!(world.text(&[&a, &b]).await, "b(a())");
    assert_eq!(world.diary.executed(), ["a", "b"]);

    let later = world.restarted();
    let (a, b) = (later.op("a"), later.op("b"));
    let b = b.on(&[&a]);
    let c = later.op("c").on(&[&b]);
    assert_eq!(later.text(&[&a, &b, &c]).await, "c(b(a()))");
    assert_eq!(later.diary.executed(), ["c"], "only what is new runs");
}

#[tokio::test]
async fn equal_content_is_found_where_definitions_differ() {
    let world = World::new();
    let build = async |context: &str, files: &str| {
        let source = world.op(context).volatile().says(files);
        let mut copy = world.op(&format!("copy {context}")).op("copy").on(&[&source]).content();
        copy.says = Some(format!("copied {files}"));
        let run = world.op(&format!("run {context}")).op("run").on(&[&copy]);
        world.build(&[&source, &copy, &run]).await.unwrap();
    };
    build("one", "files").await;
    build("two", "files").await;
    build("three", "other files").await;
    let executed = ["copy one", "copy three", "one", "run one", "run three", "three", "two"];
    assert_eq!(world.diary.executed(), executed);
}

#[tokio::test]
async fn a_match_by_content_is_found_by_definition_next_time() {
    let world = World::new();
    let stage = |name: &str| world.op(name).says("same bytes");
    let user = |name: &str, source: &fake::Fake| world.op(name).op("user").on(&[source]).content();
    let (first, second) = (stage("first"), stage("second"));
    world.build(&[&first, &user("u1", &first)]).await.unwrap();
    world.build(&[&second, &user("u2", &second)]).await.unwrap();
    assert_eq!(world.diary.executed(), ["first", "second", "u1"]);
    assert_eq!(*world.diary.hashed.lock(), ["u1", "u2"]);

    let later = world.restarted();
    let second = later.op("second").says("same bytes");
    let user = later.op("u2").op("user").on(&[&second]).content();
    later.build(&[&second, &user]).await.unwrap();
    assert_eq!(later.diary.executed(), [""; 0]);
    assert_eq!(*later.diary.hashed.lock(), [""; 0], "no content was looked at");
}

#[tokio::test]
async fn all_inputs_have_to_match() {
    let world = World::new();
    let run = async |world: &World, left: &str, right: &str| {
        let (a, b) = (world.op(left), world.op(right));
        let join = world.op(&format!("{left}+{right}")).op("join").on(&[&a, &b]);
        world.build(&[&a, &b, &join]).await.unwrap();
    };
    for (left, right) in [("a", "b"), ("c", "d"), ("a", "d"), ("a", "b")] {
        run(&world, left, right).await;
    }
    assert_eq!(world.diary.runs("a+b"), 1);
    assert_eq!(world.diary.runs("a+d"), 1);
    // Order matters.
    run(&world, "b", "a").await;
    assert_eq!(world.diary.runs("b+a"), 1);
}

#[tokio::test]
async fn volatile_keys_are_neither_stored_nor_found() {
    let world = World::new();
    let source = world.op("clock").volatile();
    let run = world.op("run").on(&[&source]);
    for _ in 0..2 {
        world.build(&[&source, &run]).await.unwrap();
    }
    assert_eq!(world.diary.executed(), ["clock", "clock", "run", "run"]);
    assert_eq!(world.keys.links(), []);
}

#[tokio::test]
async fn selectors_tell_parts_of_an_input_apart() {
    let world = World::new();
    let a = world.op("a");
    let mut one = world.op("one").op("copy").on(&[&a]);
    one.selector = Some(Digest::of("/one"));
    let mut two = world.op("two").op("copy").on(&[&a]);
    two.selector = Some(Digest::of("/two"));
    world.build(&[&a, &one]).await.unwrap();
    world.build(&[&a, &two]).await.unwrap();
    assert_eq!(world.diary.executed(), ["a", "one", "two"]);
}

#[tokio::test]
async fn ignoring_the_cache_runs_again_and_hides_what_was_made_of_the_old_result() {
    let world = World::new();
    let (a, b) = (world.op("a").says("old"), world.op("b"));
    let b = b.on(&[&a]);
    world.build(&[&a, &b]).await.unwrap();
    let c = world.op("c").on(&[&b]);
    world.build(&[&a, &b, &c]).await.unwrap();
    let fresh = world.op("b").on(&[&a]).says("new b").ignoring_cache();
    assert_eq!(world.text(&[&a, &fresh, &c]).await, "c(new b)");
    assert_eq!((world.diary.runs("a"), world.diary.runs("b"), world.diary.runs("c")), (1, 2, 2));
    // The newest is what is found from now on.
    assert_eq!(world.restarted().text(&[&a, &b, &c]).await, "c(new b)");
    assert_eq!(world.diary.runs("c"), 2);
}

#[tokio::test]
async fn later_cache_maps_are_asked_where_the_first_found_nothing() {
    let world = World::new();
    let image = |manifest: &str| {
        let mut image = world.op(manifest).says("files");
        image.extra_maps = vec![Digest::of("config")];
        image
    };
    let run = |name: &str, image: &fake::Fake| world.op(name).op("run").on(&[image]);
    let (one, two) = (image("manifest 1"), image("manifest 2"));
    world.build(&[&one, &run("run 1", &one)]).await.unwrap();
    world.build(&[&two, &run("run 2", &two)]).await.unwrap();
    assert_eq!(world.diary.executed(), ["manifest 1", "run 1"]);
}

#[tokio::test]
async fn results_out_of_reach_are_not_forgotten() {
    let world = World::new();
    let a = world.op("a");
    world.build(&[&a]).await.unwrap();
    *world.results.out_of_reach.lock() = true;
    world.build(&[&a]).await.unwrap();
    assert_eq!(world.diary.runs("a"), 2, "cannot be loaded: runs");
    *world.results.out_of_reach.lock() = false;
    world.build(&[&a]).await.unwrap();
    assert_eq!(world.diary.runs("a"), 2, "it was not forgotten");
}

#[tokio::test]
async fn a_lost_result_is_made_again_though_its_key_leads_on() {
    let world = World::new();
    let (a, b) = (world.op("a"), world.op("b"));
    let b = b.on(&[&a]);
    world.build(&[&a, &b]).await.unwrap();
    let id = Digest::of("b(a())").to_string();
    world.results.kept.lock().remove(&id);
    world.keys.release(&id).await.unwrap();
    assert_eq!(world.text(&[&a, &b]).await, "b(a())");
    assert_eq!((world.diary.runs("a"), world.diary.runs("b")), (1, 2));
}

#[tokio::test]
async fn imports_are_looked_into_and_what_they_have_is_kept() {
    let other = World::new();
    let (a, b) = (other.op("a"), other.op("b"));
    let b = b.on(&[&a]);
    other.build(&[&a, &b]).await.unwrap();

    let world = World::new();
    let (a, b) = (world.op("a"), world.op("b"));
    let b = b.on(&[&a]);
    let c = world.op("c").on(&[&b]);
    let (job, _) = world.job();
    let mut import = other.cache();
    import.keys = std::sync::Arc::new(renamed(&other).await);
    let built = job.build(&graph(&[&a, &b, &c]).with_caches(vec![import]), c.edge(0)).await.unwrap();
    assert_eq!(&*built.result, "c(b(a()))");
    job.close().await;
    assert_eq!(world.diary.executed(), ["c"]);
    // Without the import, all is found here now.
    assert_eq!(world.text(&[&a, &b, &c]).await, "c(b(a()))");
    assert_eq!(world.text(&[&a, &b]).await, "b(a())");
    assert_eq!(world.diary.executed(), ["c"]);
}

#[tokio::test]
async fn what_is_made_of_an_import_that_was_found_by_a_claim_is_kept() {
    let other = World::new();
    let verified = image(&other, "image", "good", true);
    let (a, b) = (other.op("a"), other.op("b"));
    let a = a.on(&[&verified]);
    let b = b.on(&[&a]);
    other.build(&[&verified, &a, &b]).await.unwrap();

    // Here nobody has verified the image; what the import has is what was claimed, and so is what is made of it.
    let world = World::new();
    let ops = |world: &World, name: &str, bytes: &str, verified: bool| {
        let image = image(world, name, bytes, verified);
        let a = world.op(&format!("{name} a")).op("a").on(&[&image]);
        let b = world.op(&format!("{name} b")).op("b").on(&[&a]);
        let c = world.op(&format!("{name} c")).op("c").on(&[&b]);
        [image, a, b, c]
    };
    let [i, a, b, c] = ops(&world, "lazy", "evil", false);
    let (job, _) = world.job();
    let mut import = other.cache();
    import.keys = std::sync::Arc::new(renamed(&other).await);
    let built = job.build(&graph(&[&i, &a, &b, &c]).with_caches(vec![import]), c.edge(0)).await.unwrap();
    assert_eq!(&*built.result, "lazy c(b(a(good)))");
    job.close().await;
    assert_eq!(world.diary.executed(), ["lazy c"]);
    // Without the import, it is found here: by the same claim, and by whoever has proved it.
    let later = world.restarted();
    assert_eq!(later.text(&[&i, &a, &b, &c]).await, "lazy c(b(a(good)))");
    let [i, a, b, c] = ops(&later, "honest", "good", true);
    assert_eq!(later.text(&[&i, &a, &b, &c]).await, "lazy c(b(a(good)))");
    assert_eq!(later.diary.executed(), [""; 0]);
    // What was seen of the image itself leads nowhere.
    let private = KeyId::root(Digest::of("private lazy"), 0);
    assert!(!world.keys.links().iter().any(|(from, _, _)| *from == private));
}

#[tokio::test]
async fn an_import_without_the_roots_own_facts_is_exported_again() {
    let other = World::new();
    let (a, b) = (other.op("a"), other.op("b"));
    let b = b.on(&[&a]);
    other.build(&[&a, &b]).await.unwrap();
    let world = World::new();
    let (a, b) = (world.op("a"), world.op("b"));
    let b = b.on(&[&a]);
    let (job, _) = world.job();
    let mut import = other.cache();
    import.keys = std::sync::Arc::new(renamed(&other).await);
    let built = job.build(&graph(&[&a, &b]).with_caches(vec![import]), b.edge(0)).await.unwrap();
    job.close().await;
    let digests = |records: Vec<castor_solver::ExportRecord>| {
        records.into_iter().map(|record| (record.digest, record.inputs.len())).collect::<Vec<_>>()
    };
    let again = digests(export(world.keys.as_ref(), &built.keys).await.unwrap());
    let name = |op: &str| Digest::of(format!("{}@0", Digest::of(op)));
    assert_eq!(again, [(name("b"), 1), (name("a"), 0)]);
}

/// The same cache under another name, as an import has.
async fn renamed(world: &World) -> castor_solver::MemoryCache {
    use castor_solver::{CacheSource as _, CacheUpdate};
    let import = castor_solver::MemoryCache::new("import");
    let mut update = CacheUpdate { links: world.keys.links(), ..CacheUpdate::default() };
    let mut ids: Vec<KeyId> = update.links.iter().flat_map(|(from, _, to)| [from.clone(), to.clone()]).collect();
    ids.dedup();
    for id in ids {
        if let Some(info) = world.keys.info(&id).await.unwrap() {
            update.keys.push((id.clone(), info));
        }
        for record in world.keys.records(std::slice::from_ref(&id)).await.unwrap().remove(0) {
            update.results.push((id.clone(), record));
        }
    }
    import.update(update).await.unwrap();
    import
}

#[tokio::test]
async fn export_follows_links_to_the_roots() {
    let world = World::new();
    let context = world.op("context").volatile().says("files");
    let base = world.op("base");
    let mut copy = world.op("copy").on(&[&base, &context]);
    copy.by_content[1] = true;
    let built = world.build(&[&base, &context, &copy]).await.unwrap();
    let records = export(world.keys.as_ref(), &built.keys).await.unwrap();
    let copy_record = &records[0];
    assert_eq!(copy_record.digest, Digest::of(format!("{}@0", Digest::of("copy"))));
    let input = |index: usize| records[copy_record.inputs[index][0].link].digest;
    assert_eq!(input(0), Digest::of(format!("{}@0", Digest::of("base"))));
    assert_eq!(input(1), Digest::of(format!("{}@-1", Digest::of("content files"))));
    assert_eq!(records.len(), 3, "the context itself is not exported");
    assert_eq!(copy_record.results.len(), 1);
}

fn image(world: &World, name: &str, bytes: &str, verified: bool) -> fake::Fake {
    let mut image = world.op(name).op("claimed diff IDs").says(bytes);
    image.private = Some(Private { digest: Digest::of(format!("private {name}")), verified });
    image
}

#[tokio::test]
async fn what_was_built_on_an_unverified_claim_is_never_served_to_the_honest() {
    let world = World::new();
    let run = |name: &str, image: &fake::Fake| {
        let first = world.op(&format!("{name} 1")).op("run 1").on(&[image]);
        let second = world.op(&format!("{name} 2")).op("run 2").on(&[&first]);
        (first, second)
    };
    let hostile = image(&world, "hostile", "evil", false);
    let (h1, h2) = run("hostile run", &hostile);
    assert_eq!(world.text(&[&hostile, &h1, &h2]).await, "hostile run 2(hostile run 1(evil))");

    let honest = image(&world, "honest", "good", true);
    let (g1, g2) = run("honest run", &honest);
    assert_eq!(world.text(&[&honest, &g1, &g2]).await, "honest run 2(honest run 1(good))");

    // Its own results serve the unverified one.
    let later = world.restarted();
    let hostile = image(&later, "hostile", "evil", false);
    let h1 = later.op("h1").op("run 1").on(&[&hostile]);
    let h2 = later.op("h2").op("run 2").on(&[&h1]);
    let served = later.text(&[&hostile, &h1, &h2]).await;
    assert_eq!(later.diary.executed(), [""; 0]);
    // It may get the honest one's, for reading under a claimed ID is harmless.
    assert!(served.contains("good") || served.contains("evil"));
}

#[tokio::test]
async fn a_step_that_starts_from_a_claimed_hit_is_stored_for_the_claimant_only() {
    let world = World::new();
    let honest = image(&world, "honest", "good", true);
    let run = world.op("run").op("run 1").on(&[&honest]);
    world.build(&[&honest, &run]).await.unwrap();

    let hostile = image(&world, "hostile", "evil", false);
    let first = world.op("h1").op("run 1").on(&[&hostile]);
    let second = world.op("h2").op("run 2").on(&[&first, &hostile]);
    world.build(&[&hostile, &first, &second]).await.unwrap();
    world.build(&[&hostile, &first, &second]).await.unwrap();
    assert_eq!(world.diary.runs("h2"), 1, "stored where the claimant finds it");

    let honest = image(&world, "honest", "good", true);
    let first = world.op("g1").op("run 1").on(&[&honest]);
    let second = world.op("g2").op("run 2").on(&[&first, &honest]);
    world.build(&[&honest, &first, &second]).await.unwrap();
    assert_eq!(world.diary.runs("g2"), 1, "and nobody else does");
}

#[tokio::test]
async fn what_is_made_of_a_claimed_hit_is_not_taken_for_what_is_made_of_the_claimant() {
    let world = World::new();
    let honest = |world: &World| {
        let image = image(world, "honest", "good", true);
        let first = world.op("g1").op("run 1").on(&[&image]);
        let second = world.op("g2").op("run 2").on(&[&first]).content();
        [image, first.says("files"), second]
    };
    let hostile = |world: &World| {
        let image = image(world, "hostile", "evil", false);
        let first = world.op("h1").op("run 1").on(&[&image]);
        let second = world.op("h2").op("run 2").on(&[&first]).content();
        [image, first.says("evil files"), second]
    };
    let build = async |world: &World, ops: [fake::Fake; 3]| world.text(&[&ops[0], &ops[1], &ops[2]]).await;
    world.build(&[&honest(&world)[0], &honest(&world)[1]]).await.unwrap();
    // Its first step is found through the claim, its second made of that and stored under the content's key too.
    assert_eq!(build(&world, hostile(&world)).await, "h2(files)");
    // Both get lost, so the claimant makes its own.
    for text in ["files", "h2(files)"] {
        let id = Digest::of(text).to_string();
        world.results.kept.lock().remove(&id);
        world.keys.release(&id).await.unwrap();
    }
    let later = world.restarted();
    assert_eq!(build(&later, hostile(&later)).await, "h2(evil files)");
    let last = later.restarted();
    assert_eq!(build(&last, honest(&last)).await, "g2(files)");
}

#[tokio::test]
async fn verification_links_results_under_the_claimed_key() {
    let world = World::new();
    let lazy = image(&world, "image", "bytes", false);
    let run = world.op("run").on(&[&lazy]);
    world.build(&[&lazy, &run]).await.unwrap();

    // Another image that claims the same and has been verified finds nothing yet.
    let other = image(&world, "other", "bytes", true);
    let plain = world.op("plain run").op("run").on(&[&other]);
    let before = world.restarted();
    let (o, p) = (image(&before, "other", "bytes", true), before.op("plain run").op("run"));
    let p = p.on(&[&o]);
    before.build(&[&o, &p]).await.unwrap();
    assert_eq!(before.diary.executed(), ["other", "plain run"]);
    let _ = (other, plain);

    // Once verified, what the lazy one made is everybody's.
    let world = World::new();
    let lazy = image(&world, "image", "bytes", false);
    let run = world.op("run").on(&[&lazy]);
    world.build(&[&lazy, &run]).await.unwrap();
    let verified = image(&world, "image", "bytes", true);
    let run = world.op("run").on(&[&verified]);
    world.build(&[&verified, &run]).await.unwrap();
    let other = image(&world, "other", "bytes", true);
    let plain = world.op("plain run").op("run").on(&[&other]);
    world.build(&[&other, &plain]).await.unwrap();
    assert_eq!(world.diary.executed(), ["image", "run"]);
}

#[tokio::test]
async fn an_alias_does_the_same_at_the_moment_of_verification() {
    let world = World::new();
    let lazy = image(&world, "image", "bytes", false);
    let run = world.op("run").on(&[&lazy]);
    world.build(&[&lazy, &run]).await.unwrap();
    let private = KeyId::root(Digest::of("private image"), 0);
    let claimed = KeyId::root(Digest::of("claimed diff IDs"), 0);
    world.keys.alias(&private, &claimed).await.unwrap();
    let other = image(&world, "other", "bytes", true);
    let plain = world.op("plain run").op("run").on(&[&other]);
    world.build(&[&other, &plain]).await.unwrap();
    assert_eq!(world.diary.executed(), ["image", "run"]);
}

#[tokio::test]
async fn outputs_of_one_vertex_have_keys_of_their_own() {
    let world = World::new();
    let mut two = world.op("two");
    two.outputs = 2;
    let (job, _) = world.job();
    let graph = graph(&[&two]);
    let first = job.build(&graph, two.edge(0)).await.unwrap();
    let second = job.build(&graph, two.edge(1)).await.unwrap();
    assert_eq!((&*first.result, &*second.result), ("two()", "two()#1"));
    let missing = job.build(&graph, two.edge(2)).await.unwrap_err();
    assert!(missing.to_string().ends_with("has no output 2"), "{missing}");
    job.close().await;
    assert_eq!(world.diary.runs("two"), 1);
    let (job, _) = world.job();
    let second = job.build(&graph, two.edge(1)).await.unwrap();
    assert_eq!(&*second.result, "two()#1");
    assert_eq!(world.diary.runs("two"), 1);
    let _ = build(&job, &[&two]).await;
}
