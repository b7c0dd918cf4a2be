//! Killed with SIGKILL between and within batches, the database holds a prefix of what was written, and all of what was
//! acknowledged as durable.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use castor_metadb::{Batch, Db, KeyValue};

const CHILD: &str = "CASTOR_METADB_CRASH_CHILD";

/// Kills the child when a test fails, too.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The child's part: numbered batches of two keys, every fifth awaited and then told to the parent.
fn write_until_killed(path: &Path) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let db = Db::open(path, 1).unwrap();
    let first = db.scan_prefix("n", b"").unwrap().len() as u64;
    let mut out = std::io::stdout().lock();
    for n in first.. {
        let mut batch = Batch::new();
        batch.put("n", n.to_be_bytes(), vec![0x5a; 512]).put("last", "n", n.to_be_bytes());
        if n % 5 == 0 {
            runtime.block_on(db.write(batch)).unwrap();
            writeln!(out, "durable {n}").unwrap();
            out.flush().unwrap();
        } else {
            db.write_soon(batch);
        }
    }
}

/// Not a test by itself: the process that the test below starts and kills.
#[test]
fn crash_child() {
    if let Some(path) = std::env::var_os(CHILD) {
        write_until_killed(Path::new(&path));
    }
}

#[test]
fn kill_9_leaves_a_prefix_with_all_that_was_durable() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("meta.db");
    let mut before = 0;
    for round in 0..6_usize {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "crash_child", "--nocapture", "--test-threads=1"])
            .env(CHILD, &path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut child = Killed(child);
        let lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
        let mut durable = 0;
        for n in lines
            .map(|line| line.unwrap())
            .filter_map(|line| line.strip_prefix("durable ").map(|n| n.parse::<u64>().unwrap()))
            .take(3 + 4 * round)
        {
            durable = n;
        }
        drop(child);

        let db = Db::open(&path, 1).unwrap();
        let numbers = db.scan_prefix("n", b"").unwrap();
        for (want, (key, value)) in numbers.iter().enumerate() {
            assert_eq!(key[..], (want as u64).to_be_bytes(), "a gap in what was written in order");
            assert_eq!(value.len(), 512);
        }
        let count = numbers.len() as u64;
        assert!(durable > before, "the child wrote nothing in round {round}");
        assert!(count > durable, "batch {durable} was acknowledged, {count} batches are here");
        assert_eq!(db.get("last", b"n").unwrap().unwrap(), (count - 1).to_be_bytes(), "half a batch");
        before = durable;
    }
}
