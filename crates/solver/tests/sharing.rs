//! Jobs that want the same, come, go and fail.

#![allow(clippy::unwrap_used)]

mod fake;

use std::time::Duration;

use castor_progress::Event;
use fake::{Gate, Preparing, World, build, graph};

#[tokio::test]
async fn a_diamond_runs_everything_once() {
    let world = World::new();
    let top = world.op("top");
    let (left, right) = (world.op("left").on(&[&top]), world.op("right").on(&[&top]));
    let bottom = world.op("bottom").on(&[&left, &right]);
    assert_eq!(world.text(&[&top, &left, &right, &bottom]).await, "bottom(left(top()),right(top()))");
    assert_eq!(world.diary.executed(), ["bottom", "left", "right", "top"]);
}

#[tokio::test]
async fn a_chain_of_ten_thousand_is_built_found_and_dropped() {
    let world = World::new();
    let chain = |world: &World| {
        let mut ops = vec![world.op("0").says("x")];
        for index in 1..10_000 {
            let next = world.op(&index.to_string()).says("x").on(&[&ops[index - 1]]);
            ops.push(next);
        }
        ops
    };
    let ops = chain(&world);
    let ops: Vec<_> = ops.iter().collect();
    world.build(&ops).await.unwrap();
    assert_eq!(world.diary.executed.lock().len(), 10_000);
    let later = world.restarted();
    let ops = chain(&later);
    let ops: Vec<_> = ops.iter().collect();
    later.build(&ops).await.unwrap();
    assert_eq!(later.diary.executed.lock().len(), 0);
}

#[tokio::test]
async fn a_long_chain_is_cancelled_in_the_middle() {
    let world = World::new();
    let gate = Gate::new();
    let mut ops = vec![world.op("0").gated(&gate)];
    for index in 1..5_000 {
        let next = world.op(&index.to_string()).on(&[&ops[index - 1]]);
        ops.push(next);
    }
    let (job, _) = world.job();
    let refs: Vec<_> = ops.iter().collect();
    tokio::select! {
        _ = build(&job, &refs) => panic!("not cancelled"),
        () = ops[0].started.notified() => {}
    }
    job.close().await;
    assert_eq!(world.diary.running(), 0);
    assert_eq!(world.solver.report(), []);
}

#[tokio::test]
async fn two_jobs_share_a_vertex_and_both_see_what_it_says() {
    let world = World::new();
    let gate = Gate::new();
    let op = world.op("op").gated(&gate);
    let (first, seen_first) = world.job();
    let (second, seen_second) = world.job();
    let graph = graph(&[&op]);
    let (a, b, ()) = tokio::join!(first.build(&graph, op.edge(0)), second.build(&graph, op.edge(0)), async {
        op.started.notified().await;
        gate.open();
    });
    assert_eq!((&*a.unwrap().result, &*b.unwrap().result), ("op()", "op()"));
    assert_eq!(world.diary.runs("op"), 1);
    for seen in [&seen_first, &seen_second] {
        assert_eq!(seen.logs(), [(op.vertex, "op runs".to_owned())]);
        assert!(seen.vertex("op").unwrap().completed.is_some());
    }
    // Who comes later gets the replay.
    let (third, seen_third) = world.job();
    third.build(&graph, op.edge(0)).await.unwrap();
    assert_eq!(seen_third.logs().len(), 1);
    assert_eq!(world.diary.runs("op"), 1);
}

#[tokio::test]
async fn equal_content_meets_while_it_runs() {
    let world = World::new();
    let gate = Gate::new();
    let client = |name: &str| {
        let context = world.op(&format!("context {name}")).volatile().says("files");
        let copy = world.op(&format!("copy {name}")).op("copy").on(&[&context]).content().gated(&gate).says("copied");
        (context, copy)
    };
    let ((c1, copy1), (c2, copy2)) = (client("1"), client("2"));
    let (first, _) = world.job();
    let (second, seen) = world.job();
    let (graph1, graph2) = (graph(&[&c1, &copy1]), graph(&[&c2, &copy2]));
    let edge = copy1.edge(0);
    let first = std::sync::Arc::new(first);
    let building = tokio::spawn({
        let first = first.clone();
        async move { first.build(&graph1, edge).await }
    });
    copy1.started.notified().await;
    // The second joins; then the first leaves, and the work goes on for the second.
    let (built, ()) = tokio::join!(second.build(&graph2, copy2.edge(0)), async {
        while seen.logs().iter().all(|(vertex, _)| *vertex != copy2.vertex) {
            tokio::task::yield_now().await;
        }
        first.cancel();
        assert!(building.await.unwrap().unwrap_err().is_cancelled());
        std::sync::Arc::into_inner(first).unwrap().close().await;
        gate.open();
    });
    assert_eq!(&*built.unwrap().result, "copied");
    assert_eq!(world.diary.runs("copy 1") + world.diary.runs("copy 2"), 1);
    assert_eq!(seen.vertex("copy 2").unwrap().error, "");
    second.close().await;
    // And it is found under both.
    let later = world.restarted();
    let context = later.op("context 3").volatile().says("files");
    let copy = later.op("copy 3").op("copy").on(&[&context]).content();
    assert_eq!(later.text(&[&context, &copy]).await, "copied");
}

#[tokio::test(start_paused = true)]
async fn the_last_to_leave_cancels_and_waits() {
    let world = World::new();
    let gate = Gate::new();
    let mut op = world.op("op").gated(&gate);
    op.stubborn = Duration::from_secs(5);
    let graph = graph(&[&op]);
    let (first, _) = world.job();
    let (second, _) = world.job();
    tokio::select! {
        _ = async { tokio::join!(first.build(&graph, op.edge(0)), second.build(&graph, op.edge(0))) } => panic!(),
        () = op.started.notified() => {}
    }
    let before = tokio::time::Instant::now();
    first.close().await;
    assert_eq!(before.elapsed(), Duration::ZERO, "the second still wants it");
    assert_eq!(world.diary.running(), 1);
    second.close().await;
    assert_eq!(before.elapsed(), Duration::from_secs(5), "close waits for the end");
    assert_eq!(world.diary.running(), 0);
}

#[tokio::test(start_paused = true)]
async fn who_comes_back_waits_for_the_end_of_the_cancelled() {
    let world = World::new();
    let gate = Gate::new();
    let mut op = world.op("op").gated(&gate);
    op.stubborn = Duration::from_secs(5);
    let graph = graph(&[&op]);
    let (first, _) = world.job();
    tokio::select! {
        _ = first.build(&graph, op.edge(0)) => panic!(),
        () = op.started.notified() => {}
    }
    drop(first);
    let (second, _) = world.job();
    gate.open();
    let built = second.build(&graph, op.edge(0)).await.unwrap();
    assert_eq!(&*built.result, "op()");
    assert_eq!(world.diary.overlaps.load(std::sync::atomic::Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_cancelled_job_says_so_and_others_do_not_notice() {
    let world = World::new();
    let gate = Gate::new();
    let op = world.op("op").gated(&gate);
    let graph = graph(&[&op]);
    let (first, seen) = world.job();
    let (second, _) = world.job();
    let (a, b, ()) = tokio::join!(first.build(&graph, op.edge(0)), second.build(&graph, op.edge(0)), async {
        op.started.notified().await;
        first.cancel();
        tokio::task::yield_now().await;
        gate.open();
    });
    assert!(a.unwrap_err().is_cancelled());
    assert_eq!(&*b.unwrap().result, "op()");
    let again = first.build(&graph, op.edge(0)).await.unwrap_err();
    assert!(again.is_cancelled());
    first.close().await;
    assert_eq!(seen.vertex("op").unwrap().name, "op");
}

#[tokio::test]
async fn a_failure_because_somebody_left_is_tried_again_for_the_others() {
    let world = World::new();
    let gate = Gate::new();
    let mut op = world.op("op").gated(&gate);
    // It needs the session of the second job, and the first that runs it has seen that of the first leave.
    op.fails_without = Some("session 0".into());
    let graph = graph(&[&op]);
    let (first, _) = world.job();
    let (second, seen) = world.job();
    let (_, b, ()) = tokio::join!(first.build(&graph, op.edge(0)), second.build(&graph, op.edge(0)), async {
        op.started.notified().await;
        first.cancel();
        gate.open();
    });
    assert!(b.is_ok(), "the first had not left yet");
    first.close().await;
    second.close().await;
    assert_eq!(seen.vertex("op").unwrap().error, "");

    let gate = Gate::new();
    let mut op = world.op("other").gated(&gate);
    op.fails_without = Some("session 2".into());
    let mut fallback = op.clone();
    fallback.fails_without = None;
    let graph = fake::graph(&[&op]);
    let (first, _) = world.job();
    let (second, _) = world.job();
    let mut first = Some(first);
    let build_first = async {
        tokio::select! {
            _ = first.as_ref().unwrap().build(&graph, op.edge(0)) => panic!(),
            () = op.started.notified() => {}
        }
    };
    build_first.await;
    let (b, ()) = tokio::join!(second.build(&graph, op.edge(0)), async {
        tokio::task::yield_now().await;
        drop(first.take());
        gate.open();
    });
    // Tried again, and it failed again, now by its own fault.
    assert_eq!(b.unwrap_err().to_string(), "no active session");
    assert_eq!(world.diary.runs("other"), 2);
}

#[tokio::test]
async fn failures_are_shared_by_all_who_wait_and_tried_anew_by_who_comes_later() {
    let world = World::new();
    let op = world.op("op").fails("exit code: 1");
    let user = world.op("user").on(&[&op]);
    let graph = graph(&[&op, &user]);
    let (first, seen) = world.job();
    let (second, _) = world.job();
    let (a, b) = tokio::join!(first.build(&graph, user.edge(0)), second.build(&graph, user.edge(0)));
    for error in [a.unwrap_err(), b.unwrap_err()] {
        assert_eq!((error.vertex(), error.to_string().as_str()), (Some(op.vertex), "exit code: 1"));
    }
    assert_eq!(world.diary.runs("op"), 1);
    assert_eq!(seen.vertex("op").unwrap().error, "exit code: 1");
    assert!(first.build(&graph, user.edge(0)).await.is_err());
    assert_eq!(world.diary.runs("op"), 1, "the same job gets the same answer");
    let (third, _) = world.job();
    assert!(third.build(&graph, user.edge(0)).await.is_err());
    assert_eq!(world.diary.runs("op"), 2);
}

#[tokio::test]
async fn a_panic_is_an_error_of_the_vertex() {
    let world = World::new();
    let mut op = world.op("op");
    op.panics = true;
    let error = world.build(&[&op]).await.unwrap_err();
    assert_eq!(error.vertex(), Some(op.vertex));
    assert!(error.to_string().contains("op panics"), "{error}");
}

#[tokio::test]
async fn inputs_that_were_not_needed_are_reported_as_cached() {
    let world = World::new();
    let a = world.op("a");
    let b = world.op("b").on(&[&a]);
    let c = world.op("c").on(&[&b]);
    world.build(&[&a, &b, &c]).await.unwrap();
    let d = world.op("d").on(&[&c]);
    let (job, seen) = world.job();
    build(&job, &[&a, &b, &c, &d]).await.unwrap();
    job.close().await;
    assert!(seen.vertex("c").unwrap().cached, "loaded");
    assert!(seen.vertex("b").unwrap().cached, "not needed");
    assert!(!seen.vertex("d").unwrap().cached);
    // A source shows that it was resolved.
    let a = seen.vertex("a").unwrap();
    assert!(a.completed.is_some());
}

#[tokio::test]
async fn what_came_from_the_cache_says_so_unless_it_is_seen_to_be_made_ready() {
    let quiet = Preparing::default();
    let cases = [
        (quiet, true, ""),
        (Preparing { reports: true, ..quiet }, false, ""),
        (Preparing { waits: true, ..quiet }, false, ""),
        (Preparing { fails: true, ..quiet }, false, "it is gone"),
    ];
    for (preparing, cached, error) in cases {
        let world = World::new();
        let source = world.op("source");
        let below = world.op("below").on(&[&source]);
        world.build(&[&source, &below]).await.unwrap();
        let above = world.op("above").on(&[&below]).preparing(preparing);
        let (job, seen) = world.job();
        assert_eq!(build(&job, &[&source, &below, &above]).await.is_ok(), error.is_empty(), "{preparing:?}");
        job.close().await;
        let last = seen.vertex("below").unwrap();
        assert_eq!((last.cached, last.error.as_str()), (cached, error), "{preparing:?}");
        assert!(last.completed.is_some());
        if preparing.reports {
            let events = seen.0.lock();
            let place = events.iter().position(|event| matches!(event, Event::Status(_))).unwrap();
            let before = events[..place].iter().rev().find_map(|event| match event {
                Event::Vertex(vertex) if vertex.name == "below" => Some(vertex),
                _ => None,
            });
            assert!(before.is_some_and(|vertex| vertex.started.is_some() && vertex.completed.is_none()));
        }
    }
}

#[tokio::test]
async fn job_names_are_unique_while_they_last() {
    let world = World::new();
    let options = || castor_solver::JobOptions {
        id: "x".into(),
        sessions: vec![],
        sink: std::sync::Arc::new(castor_progress::Discard),
        attributes: Default::default(),
    };
    let job = world.solver.job(options()).unwrap();
    assert_eq!(world.solver.job(options()).unwrap_err().to_string(), "job ID x exists");
    job.close().await;
    assert!(world.solver.job(options()).is_ok());
}

#[tokio::test]
async fn a_closed_job_keeps_no_result() {
    let world = World::new();
    let a = world.op("a");
    let b = world.op("b").on(&[&a]);
    let (job, _) = world.job();
    let built = build(&job, &[&a, &b]).await.unwrap();
    job.close().await;
    world.results.kept.lock().clear();
    assert_eq!(std::sync::Arc::strong_count(&built.result), 1, "only ours is left");
}
