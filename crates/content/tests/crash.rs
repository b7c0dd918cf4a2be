//! Killed with SIGKILL at any moment, the store has no wrong byte: what is a blob is whole, what was committed is there with
//! its labels and lease, and what an ingest says is here is right.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use castor_content::{Commit, ContentStore, Labels, Leases, Local, Resource};
use castor_metadb::{Db, KeyValue};
use castor_oci::{Descriptor, Digest};

const CHILD: &str = "CASTOR_CONTENT_CRASH_CHILD";

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The content number `n`: no byte is zero but some of the first eight, which tell the number.
fn content(n: u64) -> Vec<u8> {
    let rest = (0..120_000 + n % 7 * 1000).map(|at| ((at * 31 + at / 255 + n * 17) % 255 + 1) as u8);
    n.to_le_bytes().into_iter().chain(rest).collect()
}

fn describe(bytes: &[u8]) -> Descriptor {
    Descriptor::new("x/y", Digest::of(bytes), bytes.len() as u64)
}

async fn open(root: &Path) -> Local {
    let db: Arc<dyn KeyValue> = Arc::new(Db::open(root.join("meta.db"), 1).unwrap());
    Local::open(&root.join("content"), db).await.unwrap()
}

/// Ingests in random order with checkpoints, every third is only begun, every fifth comes from a writer.
async fn work_until_killed(root: &Path, first: u64) {
    let store = open(root).await;
    let _ = store.create_lease("held", Labels::new(), None).await;
    let mut out = std::io::stdout().lock();
    for n in first.. {
        let bytes = content(n);
        let labels = Labels::from([("number".to_owned(), n.to_string())]);
        let commit = Commit { labels, lease: Some("held".into()) };
        if n % 5 == 4 {
            let mut writer = store.writer().await.unwrap();
            writer.write_all(&bytes).unwrap();
            writer.commit(None, commit).await.unwrap();
        } else {
            let ingest = store.ingest(&format!("n{n}"), &describe(&bytes)).await.unwrap();
            let step = 10_007;
            let pieces = bytes.len().div_ceil(step);
            for piece in (0..pieces).map(|piece| (piece * 5 + 3) % pieces).chain(0..pieces) {
                let start = piece * step;
                let end = (start + step).min(bytes.len());
                ingest.write_at(start as u64, &bytes[start..end]).unwrap();
                if piece % 4 == 0 {
                    ingest.checkpoint().unwrap();
                }
                if n % 3 == 1 && piece == 7 {
                    break;
                }
            }
            if n % 3 == 1 {
                ingest.punch(5000..40_000).unwrap();
                continue;
            }
            ingest.commit(commit).await.unwrap();
        }
        writeln!(out, "committed {n}").unwrap();
        out.flush().unwrap();
    }
}

/// Not a test by itself: the process that the test below starts and kills.
#[tokio::test]
async fn crash_child() {
    if let Some(value) = std::env::var_os(CHILD) {
        let text = value.into_string().unwrap();
        let (first, root) = text.split_once(':').unwrap();
        work_until_killed(Path::new(root), first.parse().unwrap()).await;
    }
}

#[tokio::test]
async fn kill_9_leaves_no_wrong_byte() {
    let dir = tempfile::tempdir().unwrap();
    let mut next = 0;
    let mut promised = Vec::new();
    for round in 0..6_usize {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "crash_child", "--nocapture", "--test-threads=1"])
            .env(CHILD, format!("{next}:{}", dir.path().display()))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut child = Killed(child);
        let lines = BufReader::new(child.0.stdout.take().unwrap()).lines().map_while(Result::ok);
        let numbers = lines.filter_map(|line| Some(line.split_once("committed ")?.1.parse::<u64>().unwrap()));
        let before = promised.len();
        promised.extend(numbers.take(2 + 3 * round));
        drop(child);
        assert!(promised.len() > before, "the child did nothing in round {round}");
        next = promised.last().unwrap() + 100;

        let store = open(dir.path()).await;
        let held = store.resources("held").await.unwrap();
        for info in store.walk().await.unwrap() {
            let mut bytes = vec![0; usize::try_from(info.size).unwrap()];
            store.open(&info.digest).await.unwrap().read_at(&mut bytes, 0).unwrap();
            assert_eq!(Digest::of(&bytes), info.digest, "a wrong byte in a blob");
            assert!(info.labels.contains_key("number"), "a blob without its labels");
            assert!(held.contains(&Resource::Blob(info.digest)), "a blob without its lease");
        }
        for n in &promised {
            let digest = Digest::of(content(*n));
            let info = store.info(&digest).await.unwrap().unwrap_or_else(|| panic!("{n} was committed and is gone"));
            assert_eq!(info.labels["number"], n.to_string());
        }
        for found in store.ingests().await.unwrap() {
            let n: u64 = found.reference[1..].parse().unwrap();
            let bytes = content(n);
            let ingest = store.ingest(&found.reference, &describe(&bytes)).await.unwrap();
            for range in ingest.ranges().iter() {
                let want = &bytes[range.start as usize..range.end as usize];
                let mut here = vec![0; want.len()];
                ingest.read_at(&mut here, range.start).unwrap();
                assert!(here == want, "a wrong byte in an ingest");
            }
            ingest.discard().await.unwrap();
        }
        store.collect(&[]).await.unwrap();
        for n in &promised {
            assert!(store.info(&Digest::of(content(*n))).await.unwrap().is_some(), "held and collected");
        }
    }
}
