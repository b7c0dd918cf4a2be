//! The fetcher over a source in memory: no mounts, no registry.

use std::io::{BufWriter, Write as _};
use std::sync::atomic::AtomicUsize;

use async_trait::async_trait;
use bytes::Bytes;
use castor_archive::tar::{Header, Writer};
use futures::StreamExt as _;

use super::*;
use crate::source::{BlobOpener, Priority, RangeBody};
use crate::tree::from_toc;

/// A blob that counts who asks for what.
struct Source {
    blob: Vec<u8>,
    log: Mutex<Vec<Range<u64>>>,
    /// Answers wait for this many permits.
    gate: Semaphore,
    asked: Notify,
    /// Answers that are wrong, from the next one on.
    wrong: AtomicUsize,
    whole: bool,
}

#[async_trait]
impl BlobOpener for Source {
    async fn range(&self, range: Range<u64>, _: Priority) -> Result<RangeBody, FetchError> {
        self.log.lock().push(range.clone());
        self.asked.notify_one();
        self.gate.acquire().await.unwrap().forget();
        let range = if self.whole { 0..self.blob.len() as u64 } else { range };
        let mut bytes = self.blob[range.start as usize..range.end as usize].to_vec();
        let wrong = |left: usize| left.checked_sub(1);
        if self.wrong.fetch_update(Ordering::SeqCst, Ordering::SeqCst, wrong).is_ok() {
            bytes.iter_mut().for_each(|byte| *byte ^= 0x11);
        }
        let pieces: Vec<_> = bytes.chunks(5000).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        Ok(RangeBody { range, full: self.whole, stream: futures::stream::iter(pieces).boxed() })
    }

    fn describe(&self) -> String {
        "memory".into()
    }
}

struct Bench {
    source: Arc<Source>,
    fetcher: Fetcher,
    tree: Arc<Tree>,
    _dir: tempfile::TempDir,
}

impl Bench {
    /// A layer of `files` files of `size` bytes each, in chunks of 1 MiB.
    fn new(files: usize, size: usize, permits: usize, whole: bool) -> Self {
        let paths = (0..files).map(|number| format!("d{}/f{number}", number / 10));
        Self::of(paths, size, permits, whole)
    }

    /// The same with files at these paths.
    fn of(paths: impl Iterator<Item = String>, size: usize, permits: usize, whole: bool) -> Self {
        let mut writer = Writer::new(Vec::new());
        let mut state = 1u64;
        for path in paths {
            let content: Vec<u8> = std::iter::repeat_with(|| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 33) as u8
            })
            .take(size)
            .collect();
            let is_program = path.starts_with("bin/");
            let header = Header {
                path: path.into(),
                mode: if is_program { 0o755 } else { 0o644 },
                size: size as u64,
                ..Header::default()
            };
            writer.append(&header, &mut content.as_slice()).unwrap();
        }
        let tar = writer.finish().unwrap();
        let options = castor_estargz::Options { chunk_size: 1 << 20, ..castor_estargz::Options::default() };
        let mut blob = Vec::new();
        castor_estargz::Builder::new(options).build(tar.as_slice(), &mut blob).unwrap();
        let opened = castor_estargz::open(&blob, &annotations(&blob), None).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let plan = from_toc(&opened.toc, blob.len() as u64, opened.footer.unwrap().payload_end).unwrap();
        let path = dir.path().join("tree");
        let mut out = BufWriter::new(File::create_new(&path).unwrap());
        plan.write(&mut out).unwrap();
        out.flush().unwrap();
        let tree = Arc::new(Tree::open(&path).unwrap());
        let data = File::options().read(true).write(true).create_new(true).open(dir.path().join("data")).unwrap();
        let openers = Arc::new(Openers::default());
        let source = Arc::new(Source {
            blob,
            log: Mutex::default(),
            gate: Semaphore::new(permits),
            asked: Notify::new(),
            wrong: AtomicUsize::new(0),
            whole,
        });
        openers.attach(source.clone());
        let setup = Setup {
            layer: Digest::of("layer"),
            image: "image".into(),
            presence: Presence::empty(u64::from(tree.chunks())),
            tree: tree.clone(),
            data: Arc::new(data),
            ingest: None,
            openers,
            scope: Scope::root("test"),
            memory: Arc::new(Semaphore::new(crate::engine::MEMORY_KIB as usize)),
            deadline: Duration::from_secs(20),
            background: true,
        };
        let fetcher = Fetcher::new(setup, Arc::default(), Arc::default()).unwrap();
        Self { source, fetcher, tree, _dir: dir }
    }

    /// Where a chunk lies in `data`.
    fn chunk(&self, number: u32) -> Range<u64> {
        let chunk = self.tree.chunk(number);
        chunk.data..chunk.data + chunk.size
    }

    fn log(&self) -> Vec<Range<u64>> {
        self.source.log.lock().clone()
    }
}

pub(crate) fn annotations(blob: &[u8]) -> std::collections::BTreeMap<String, String> {
    let footer = castor_estargz::footer::parse(&blob[blob.len() - 72..], blob.len() as u64).unwrap();
    let location = footer.toc.unwrap();
    let end = location.offset + location.compressed_size;
    let compressed = &blob[location.offset as usize..end as usize];
    let nothing = castor_estargz::annotation::TocDigests { uncompressed: None, compressed: None };
    let json = castor_estargz::toc::decode(&location, compressed, &nothing).unwrap();
    [(castor_oci::ANNOTATION_TOC_DIGEST.to_owned(), Digest::of(json).to_string())].into()
}

#[tokio::test(flavor = "multi_thread")]
async fn many_readers_of_a_chunk_are_one_request() {
    let bench = Bench::new(40, 300_000, 0, false);
    let wanted = bench.chunk(20);
    let readers: Vec<_> = (0..50)
        .map(|_| {
            tokio::spawn({
                let (fetcher, wanted) = (bench.fetcher.clone(), wanted.clone());
                async move { fetcher.need(wanted).await }
            })
        })
        .collect();
    bench.source.asked.notified().await;
    bench.source.gate.add_permits(100);
    for reader in readers {
        reader.await.unwrap().unwrap();
    }
    assert_eq!(bench.log().len(), 1, "{:?}", bench.log());
    assert!(bench.fetcher.here(&wanted));
    // What is here is asked for no more, what is not is.
    bench.fetcher.need(wanted).await.unwrap();
    assert_eq!(bench.log().len(), 1);
    assert!(!bench.fetcher.here(&bench.chunk(39)));
}

#[tokio::test(start_paused = true)]
async fn who_reads_on_while_nothing_answers_waits_briefly() {
    let bench = Bench::new(10, 300_000, 0, false);
    let deadline = Duration::from_secs(60);
    let served = crate::serve::Served::new(
        bench.tree.data_size(),
        bench.fetcher.data().clone(),
        Some(bench.fetcher.clone()),
        deadline,
        Box::new(|_, _| {}),
    );
    let read = async |chunk| {
        let begun = tokio::time::Instant::now();
        (served.fetch(&bench.fetcher, bench.chunk(chunk)).await, begun.elapsed())
    };
    let (outcome, took) = read(0).await;
    assert!(outcome.is_err() && took >= Duration::from_secs(20), "{outcome:?} {took:?}");
    for chunk in 1..5 {
        let (outcome, took) = read(chunk).await;
        // The clock is the test's own: the next tick behind the shortest wait is the latest.
        assert!(outcome.is_err() && took < crate::serve::SHORTEST * 2, "{outcome:?} {took:?}");
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    let (outcome, took) = read(4).await;
    assert!(outcome.is_err() && took > Duration::from_secs(8), "{outcome:?} {took:?}");
    bench.source.gate.add_permits(100);
    // Other tests of this program may have the places where blocking work is done. While that is waited for nothing holds the
    // clock, which goes on to the end of the shortest wait.
    let begun = Instant::now();
    while let Err(error) = read(5).await.0 {
        assert!(begun.elapsed() < Duration::from_secs(300), "{error}");
    }
    // Answered, so the next one is waited for as long as the first.
    bench.source.gate.forget_permits(100);
    let (outcome, took) = read(9).await;
    assert!(outcome.is_ok() || took >= Duration::from_secs(20), "{outcome:?} {took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_are_asked_for_once_more() {
    let bench = Bench::new(10, 300_000, usize::MAX >> 4, false);
    bench.source.wrong.store(1, Ordering::SeqCst);
    bench.fetcher.need(bench.chunk(5)).await.unwrap();
    let member = bench.tree.chunk(5).blob_start;
    assert_eq!(bench.log().iter().filter(|range| range.contains(&member)).count(), 2);

    bench.source.wrong.store(usize::MAX, Ordering::SeqCst);
    let error = bench.fetcher.need(bench.chunk(0)).await.unwrap_err().to_string();
    assert!(error.contains("fetched twice"), "{error}");
    assert!(!bench.fetcher.here(&bench.chunk(0)));
    // A failure is not for ever.
    bench.source.wrong.store(0, Ordering::SeqCst);
    bench.fetcher.need(bench.chunk(0)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_asked_for_in_vain_is_asked_for_anew() {
    let bench = Bench::new(10, 300_000, 0, false);
    // Both answers to the first are wrong.
    bench.source.wrong.store(2, Ordering::SeqCst);
    let need = |chunk| {
        let (fetcher, wanted) = (bench.fetcher.clone(), bench.chunk(chunk));
        tokio::spawn(async move { fetcher.need(wanted).await })
    };
    let first = need(5);
    bench.source.asked.notified().await;
    let second = need(5);
    // Polled once, it waits for the first one's.
    while bench.fetcher.inner.state.lock().flights.get(&5).is_none_or(|flight| Arc::strong_count(flight) < 3) {
        tokio::task::yield_now().await;
    }
    bench.source.gate.add_permits(100);
    let error = first.await.unwrap().unwrap_err().to_string();
    assert!(error.contains("fetched twice"), "{error}");
    second.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_third_used_brings_the_rest() {
    let bench = Bench::new(60, 100_000, usize::MAX >> 4, false);
    for chunk in (0..60).step_by(2).take(24) {
        bench.fetcher.need(bench.chunk(chunk)).await.unwrap();
        bench.fetcher.here(&bench.chunk(chunk));
    }
    // Joins what is under way.
    bench.fetcher.all().await.unwrap();
    assert!(bench.fetcher.presence().all());
    let bytes: u64 = bench.log().iter().map(|range| range.end - range.start).sum();
    assert!(bytes <= bench.source.blob.len() as u64, "no byte twice: {bytes} of {}", bench.source.blob.len());
}

/// Small directories, in order, with files in between that nobody reads, in a tree of their own beside another.
fn trees() -> impl Iterator<Item = String> {
    ["a", "b", "c"].into_iter().flat_map(|top| (0..400).map(move |file| format!("{top}/d{:02}/f{file:03}", file / 10)))
}

#[tokio::test(flavor = "multi_thread")]
async fn who_reads_all_of_a_tree_gets_the_rest_of_that_tree() {
    let bench = Bench::of(trees(), 30_000, usize::MAX >> 4, false);
    // Half of the second tree, and every fifth file left out.
    for chunk in (400..600).filter(|chunk| chunk % 5 != 3) {
        bench.fetcher.need(bench.chunk(chunk)).await.unwrap();
        bench.fetcher.here(&bench.chunk(chunk));
    }
    let begun = bench.log().len();
    for chunk in 600..800 {
        // Joins what is under way.
        let flight = bench.fetcher.need(bench.chunk(chunk));
        flight.await.unwrap();
    }
    assert!(bench.log().len() <= begun + 4, "all of it is on its way: {:?}", &bench.log()[begun..]);
    assert!(!bench.fetcher.here(&bench.chunk(1199)), "the other tree is another matter");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_leaves_much_out_reads_no_tree() {
    let bench = Bench::of(trees(), 30_000, usize::MAX >> 4, false);
    let used: Vec<u32> = (0..1200).filter(|chunk| chunk % 3 == 0).take(260).collect();
    for &chunk in &used {
        bench.fetcher.need(bench.chunk(chunk)).await.unwrap();
        bench.fetcher.here(&bench.chunk(chunk));
    }
    let bytes: u64 = bench.log().iter().map(|range| range.end - range.start).sum();
    let share = bytes as f64 / bench.source.blob.len() as f64;
    assert!(share < 0.7, "{share} of the layer was fetched for a fifth of it");
    assert!(!bench.fetcher.here(&bench.chunk(1199)));
}

#[tokio::test(flavor = "multi_thread")]
async fn directories_beside_those_that_are_read_come_along() {
    let paths = (0..120).map(|number| format!("src/d{}/f{number}", number / 3));
    let bench = Bench::of(paths, 2000, usize::MAX >> 4, false);
    bench.fetcher.need(bench.chunk(0)).await.unwrap();
    assert!(!bench.fetcher.here(&bench.chunk(119)), "one directory says nothing of the others");
    bench.fetcher.need(bench.chunk(60)).await.unwrap();
    for chunk in 0..120 {
        // Joins what is under way.
        bench.fetcher.need(bench.chunk(chunk)).await.unwrap();
    }
    // The two that were asked for, and the rest around the second.
    assert!(bench.log().len() <= 5, "nobody had to ask for the rest: {:?}", bench.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_process_starts_with_comes_along() {
    let paths = ["bin/other", "bin/sh", "etc/group", "etc/passwd", "lib/x86_64-linux-gnu/libc.so.6", "opt/rest"];
    let more = (0..20).map(|number| format!("var/{number}"));
    let bench = Bench::of(paths.map(str::to_owned).into_iter().chain(more), 300_000, usize::MAX >> 4, false);
    bench.fetcher.need(bench.chunk(3)).await.unwrap();
    for chunk in [1, 2, 4] {
        // Joins what is under way.
        bench.fetcher.need(bench.chunk(chunk)).await.unwrap();
    }
    // What was asked for, the two that stand together, and the library.
    assert_eq!(bench.log().len(), 3, "{:?}", bench.log());
    assert!(!bench.fetcher.here(&bench.chunk(0)) && !bench.fetcher.here(&bench.chunk(5)), "nothing else");
}

#[tokio::test(flavor = "multi_thread")]
async fn all_of_a_program_comes_at_once() {
    // Three chunks each; one of five programs is too little for all of the rest to be fetched.
    let paths = (0..5).map(|number| format!("bin/{number}"));
    let bench = Bench::of(paths, 3 << 20, usize::MAX >> 4, false);
    bench.fetcher.need(bench.chunk(0)).await.unwrap();
    bench.fetcher.need(bench.chunk(2)).await.unwrap();
    assert_eq!(bench.log().len(), 1, "{:?}", bench.log());
    assert!(!bench.fetcher.here(&bench.chunk(3)), "the next program is another matter");
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_do_not_queue_behind_the_rest() {
    // 60 MiB: more than the spans that are fetched at a time.
    let bench = Bench::new(6, 10 << 20, 0, false);
    let all = tokio::spawn({
        let fetcher = bench.fetcher.clone();
        async move { fetcher.all().await }
    });
    while bench.log().len() < BULK {
        bench.source.asked.notified().await;
    }
    let last = bench.tree.chunks() - 1;
    let reader = tokio::spawn({
        let (fetcher, wanted) = (bench.fetcher.clone(), bench.chunk(last));
        async move { fetcher.need(wanted).await }
    });
    let wanted = bench.tree.chunk(last).blob_start;
    while !bench.log().iter().any(|range| range.contains(&wanted)) {
        bench.source.asked.notified().await;
    }
    assert_eq!(bench.log().len(), BULK + 1, "asked for although the others wait");
    bench.source.gate.add_permits(1000);
    reader.await.unwrap().unwrap();
    all.await.unwrap().unwrap();
    assert!(bench.log().iter().all(|range| range.end - range.start <= SPAN + (2 << 20)));
    assert!(bench.fetcher.presence().all());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_with_everything_is_taken() {
    let bench = Bench::new(60, 100_000, usize::MAX >> 4, true);
    let readers = (0..60).step_by(7).map(|chunk| bench.fetcher.need(bench.chunk(chunk)));
    futures::future::try_join_all(readers).await.unwrap();
    bench.fetcher.all().await.unwrap();
    assert!(bench.fetcher.presence().all());
    assert_eq!(bench.fetcher.adopted().unwrap(), "memory does not serve ranges");
    // Those that were under way when the first answer came may have been asked for as well.
    assert!(bench.log().len() < 10, "{:?}", bench.log());
    let before = bench.log().len();
    bench.fetcher.need(bench.chunk(59)).await.unwrap();
    assert_eq!(bench.log().len(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_come_along_are_kept() {
    let bench = Bench::new(20, 50_000, usize::MAX >> 4, false);
    let start = bench.tree.chunk(15).blob_start - 7;
    bench.fetcher.offer(start, &bench.source.blob[start as usize..]).await;
    assert_eq!(bench.fetcher.presence().count(), (5, 20));
    bench.fetcher.need(bench.chunk(15).start..bench.chunk(19).end).await.unwrap();
    assert!(bench.log().is_empty());
}
