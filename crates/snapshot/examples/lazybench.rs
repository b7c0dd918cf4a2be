#![allow(missing_docs, clippy::unwrap_used)]
#[path = "../tests/support/mod.rs"]
mod support;
use bytes::Bytes;
use castor_layerfs::*;
use castor_oci::*;
use castor_snapshot::Snapshotter as _;
use futures::StreamExt as _;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

struct Slow {
    bytes: Arc<Vec<u8>>,
    sent: AtomicU64,
    reqs: AtomicU64,
    link: Arc<tokio::sync::Mutex<()>>,
    log: parking_lot::Mutex<Vec<(f64, Range<u64>, Priority)>>,
    t0: Instant,
    rtt: u64,
    mbit: u64,
}
#[async_trait::async_trait]
impl BlobOpener for Slow {
    async fn range(&self, range: Range<u64>, p: Priority) -> Result<RangeBody, FetchError> {
        self.reqs.fetch_add(1, Ordering::Relaxed);
        self.log.lock().push((self.t0.elapsed().as_secs_f64(), range.clone(), p));
        tokio::time::sleep(Duration::from_millis(self.rtt)).await;
        let bytes = Bytes::copy_from_slice(&self.bytes[range.start as usize..range.end as usize]);
        self.sent.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        let pieces: Vec<Bytes> =
            (0..bytes.len()).step_by(16384).map(|i| bytes.slice(i..(i + 16384).min(bytes.len()))).collect();
        let (link, mbit) = (self.link.clone(), self.mbit);
        let stream = futures::stream::iter(pieces).then(move |piece| {
            let link = link.clone();
            async move {
                let _g = link.lock().await;
                let need = Duration::from_micros(piece.len() as u64 * 8 / mbit);
                // busy pacing: tokio timers are 1 ms
                static DEBT: AtomicU64 = AtomicU64::new(0);
                let debt = DEBT.fetch_add(need.as_micros() as u64, Ordering::Relaxed) + need.as_micros() as u64;
                if debt > 2000 {
                    DEBT.fetch_sub(debt, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_micros(debt)).await;
                }
                Ok(piece)
            }
        });
        Ok(RangeBody { range, full: false, stream: stream.boxed() })
    }
    fn describe(&self) -> String {
        "slow".into()
    }
}

#[tokio::main]
async fn main() {
    let blob_path = "/tmp/gob/blob";
    let meta_path = "/tmp/gob/blob.meta";
    if !std::path::Path::new(meta_path).exists() {
        let t = Instant::now();
        let tar = std::io::BufReader::new(std::fs::File::open("/tmp/gob/root.tar").unwrap());
        let mut out = std::io::BufWriter::new(std::fs::File::create(blob_path).unwrap());
        let built = castor_estargz::Builder::default().build(tar, &mut out).unwrap();
        use std::io::Write;
        out.flush().unwrap();
        std::fs::write(meta_path, format!("{}\n{}\n{}\n{}", built.digest, built.size, built.toc_digest, built.diff_id))
            .unwrap();
        println!("built in {:?} {:?}", t.elapsed(), built);
    }
    let meta = std::fs::read_to_string(meta_path).unwrap();
    let m: Vec<&str> = meta.lines().collect();
    let mut descriptor = Descriptor::new(media_type::OCI_LAYER_GZIP, m[0].parse().unwrap(), m[1].parse().unwrap());
    descriptor.annotations.insert(ANNOTATION_TOC_DIGEST.into(), m[2].into());
    let bytes = Arc::new(std::fs::read(blob_path).unwrap());
    let rtt = std::env::var("RTT").ok().and_then(|v| v.parse().ok()).unwrap_or(20);
    let mbit = std::env::var("MBIT").ok().and_then(|v| v.parse().ok()).unwrap_or(200);
    let bench = support::Bench::new().await;
    let t0 = Instant::now();
    let slow = Arc::new(Slow {
        bytes,
        sent: 0.into(),
        reqs: 0.into(),
        link: Arc::default(),
        log: Default::default(),
        t0,
        rtt,
        mbit,
    });
    let size = descriptor.size;
    let source = LayerSource {
        descriptor,
        origins: vec![],
        image: "go".into(),
        opener: slow.clone(),
        diff_id: Some(m[3].parse().unwrap()),
        want: Lazy::Require,
    };
    let layer = bench.engine.layer(source, &castor_progress::Reporter::discard()).await.unwrap();
    println!("{:?} layer open, {} sent of {size}", t0.elapsed(), slow.sent.load(Ordering::Relaxed));
    bench.snapshots.create(&support::id("base"), &[castor_snapshot::Element::Layer(layer.id())]).await.unwrap();
    for round in 0..2 {
        let name = format!("run{round}");
        let t = Instant::now();
        bench.snapshots.prepare(&support::id(&name), Some(&support::id("base"))).await.unwrap();
        let mounted = bench.mount(&name).await;
        println!("{:?} mounted", t0.elapsed());
        let l2 = layer.clone();
        let status = castor_task::reading(move || {
            let root = mounted.path().to_owned();
            std::fs::create_dir_all(root.join("src")).unwrap();
            std::fs::write(root.join("src/main.go"), "package main\nimport \"fmt\"\nfunc main() { fmt.Println(\"hello\") }\n").unwrap();
            let status = std::process::Command::new("chroot").arg(&root).args(["/bin/sh", "-c", "cd /src && mount -t devtmpfs d /dev 2>/dev/null; mount -t proc p /proc; export HOME=/root GOFLAGS=-mod=mod GO111MODULE=off CGO_ENABLED=0; /usr/bin/go build -o hello main.go && ./hello; umount /proc; umount /dev"]).env_clear().env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin").status().unwrap();
            let _ = l2;
            mounted.unmount().unwrap();
            status
        }).await;
        let p = layer.progress();
        println!(
            "round {round}: {status} {:?}, fetched {} = {:.1}% requests {} waiting {:?} chunks {:?}",
            t.elapsed(),
            p.fetched,
            p.fetched as f64 * 100.0 / size as f64,
            p.requests,
            p.waiting,
            p.chunks
        );
        bench.snapshots.commit(&support::id(&format!("done{round}")), &support::id(&name)).await.unwrap();
    }
    if std::env::var("LOG").is_ok() {
        for (t, r, p) in slow.log.lock().iter() {
            println!("{t:.3} {} +{} {p:?}", r.start, r.end - r.start);
        }
    }
    for e in layer.take_errors() {
        println!("ERR {e}");
    }
    drop(layer);
    bench.close().await;
}
