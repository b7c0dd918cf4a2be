//! Random graphs, random jobs, random cancellations, in random order: nothing hangs, runs twice at once, or is wrong.

#![allow(clippy::unwrap_used)]

mod fake;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use castor_solver::{CacheStore as _, Private};
use fake::{Fake, World, graph};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

/// In the text of everything that was made of something hostile.
const HOSTILE: &str = "hostile";

fn ops(world: &World, random: &mut StdRng, client: usize) -> Vec<Fake> {
    let count = random.random_range(2..14);
    let mut ops: Vec<Fake> = Vec::new();
    for index in 0..count {
        let inputs: Vec<usize> = (0..index).filter(|_| random.random_bool(0.35)).take(3).collect();
        let own_vertex = random.random_bool(0.3);
        let name = if own_vertex { format!("{index} of {client}") } else { index.to_string() };
        let mut op = world.op(&name).op(&format!("{index} of {} inputs", inputs.len()));
        op = op.on(&inputs.iter().map(|input| &ops[*input]).collect::<Vec<_>>());
        for by_content in &mut op.by_content {
            *by_content = random.random_bool(0.4);
        }
        op.volatile = inputs.is_empty() && random.random_bool(0.3);
        let claims = inputs.is_empty() && !op.volatile && random.random_bool(0.5);
        op.ignore_cache = random.random_bool(0.05);
        op.delay = Duration::from_millis(random.random_range(0..20));
        // What it should say: it depends on what is below, not on who asks.
        let below: Vec<_> = inputs.iter().map(|input| ops[*input].says.clone().unwrap_or_default()).collect();
        op.says = Some(format!("{index}[{}]", below.join(",")));
        op.label = Some(index.to_string());
        if claims {
            // An image that says that it has the content of the honest one, and nobody has verified that.
            let hostile = random.random_bool(0.5);
            let seen = if hostile { format!("{HOSTILE} {client} {index}") } else { format!("honest {index}") };
            op.private = Some(Private { digest: castor_oci::Digest::of(&seen), verified: !hostile });
            if hostile {
                op.says = Some(seen);
                op.label = None;
            }
        }
        op.vertex = original(&op);
        ops.push(op);
    }
    ops
}

async fn round(seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut world = World::new();
    // Again and again over what is stored, of which some gets lost in between.
    for _ in 0..4 {
        let next = world.restarted();
        jobs(seed, &mut random, Arc::new(world)).await;
        world = next;
        let kept: Vec<_> = world.results.kept.lock().keys().cloned().collect();
        for id in kept.into_iter().filter(|_| random.random_bool(0.4)) {
            world.results.kept.lock().remove(&id);
            world.keys.release(&id).await.unwrap();
        }
    }
}

async fn jobs(seed: u64, random: &mut StdRng, world: Arc<World>) {
    let mut tasks = Vec::new();
    for client in 0..random.random_range(2..7) {
        let mut ops = ops(&world, random, client);
        if random.random_bool(0.3) {
            let victim = random.random_range(0..ops.len());
            ops[victim].fails = Some("made to fail".into());
            ops[victim].vertex = castor_oci::Digest::of(format!("failing {seed} {client}"));
            // Everything above gets new digests too, as it would in a definition.
            let mut renamed = HashMap::from([(original(&ops[victim]), ops[victim].vertex)]);
            for (index, op) in ops.iter_mut().enumerate().skip(victim + 1) {
                renamed.insert(op.vertex, castor_oci::Digest::of(format!("above failing {seed} {client} {index}")));
                op.vertex = renamed[&op.vertex];
                for input in &mut op.inputs {
                    input.vertex = *renamed.get(&input.vertex).unwrap_or(&input.vertex);
                }
            }
        }
        let world = world.clone();
        let (wait, leave) = (random.random_range(0..30), random.random_bool(0.4).then(|| random.random_range(0..60)));
        let close = random.random_bool(0.5);
        tasks.push(tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(wait)).await;
            let (job, _) = world.job();
            let graph = graph(&ops.iter().collect::<Vec<_>>());
            let target = &ops[ops.len() - 1];
            let built = async {
                match leave {
                    None => Some(job.build(&graph, target.edge(0)).await),
                    Some(after) => {
                        let limit = Duration::from_millis(after);
                        tokio::time::timeout(limit, job.build(&graph, target.edge(0))).await.ok()
                    }
                }
            };
            let built = built.await;
            match built {
                // What stands on a claim may be served what others made of what is claimed.
                Some(Ok(_)) if target.says.as_ref().is_some_and(|says| says.contains(HOSTILE)) => {}
                Some(Ok(built)) => assert_eq!(Some(built.result.to_string()), target.says, "seed {seed}"),
                Some(Err(error)) => assert_eq!(error.to_string(), "made to fail", "seed {seed}"),
                None => {}
            }
            if close {
                job.close().await;
            }
        }));
    }
    for task in tasks {
        tokio::time::timeout(Duration::from_secs(600), task)
            .await
            .unwrap_or_else(|_| panic!("seed {seed} hangs"))
            .unwrap();
    }
    world.scope.close(Duration::from_secs(60)).await.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    assert_eq!(world.diary.overlaps.load(Ordering::SeqCst), 0, "seed {seed}: a vertex ran twice at once");
    assert_eq!(world.diary.running(), 0, "seed {seed}");
    assert_eq!(world.solver.report(), [], "seed {seed}: vertices left");
    assert_eq!(world.solver.executions(), 0, "seed {seed}: executions left");
}

/// The digest that [`ops`] gave it.
fn original(op: &Fake) -> castor_oci::Digest {
    let looks = (&op.inputs, &op.by_content, op.volatile, op.ignore_cache, op.private);
    castor_oci::Digest::of(format!("{} {looks:?}", op.name))
}

fn seeds() -> Vec<u64> {
    match std::env::var("CASTOR_SEED").ok().and_then(|seed| seed.parse().ok()) {
        Some(seed) => vec![seed],
        None => {
            let first = rand::random::<u32>() as u64;
            (0..150).chain(first..first + 50).collect()
        }
    }
}

#[test]
fn random_jobs_on_one_thread() {
    for seed in seeds() {
        println!("seed {seed}: CASTOR_SEED={seed}");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(round(seed));
    }
}

#[test]
fn random_jobs_on_several_threads() {
    for seed in seeds().into_iter().take(40) {
        println!("seed {seed}: CASTOR_SEED={seed}");
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_time().build().unwrap();
        runtime.block_on(round(seed));
    }
}
