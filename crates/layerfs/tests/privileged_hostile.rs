//! Registries that misbehave, under real mounts: whoever reads gets right bytes, or EIO and the build the cause.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use castor_layerfs::{BlobOpener, ImageTree, Layer, LayerSource, LayerState, Lazy, RegistryOpener};
use castor_oci::Digest;
use castor_progress::Reporter;
use castor_registry::{Access, Client, Config};
use castor_testkit::{Auth, Fault, On, Registry};
use http::Method;
use support::rand_like::Random;
use support::{Bench, Blob, PATIENCE, Tar, estargz, read, read_when_well};

/// Bytes of the file that is read. The layer's end is fetched when it is opened; this lies before it.
const SIZE: usize = 400_000;

/// A client that tries again soon, and takes whoever sends nothing for so long for one that stalls.
fn client(stall_timeout: Duration) -> Client {
    Client::new(Config { backoff: Duration::from_millis(2), stall_timeout, max_attempts: 3, ..Config::default() })
        .unwrap()
}

struct Lab {
    bench: Bench,
    registry: Registry,
    client: Client,
}

/// A layer of the registry, and what is in its file `f`.
struct Case {
    blob: Blob,
    content: Vec<u8>,
    source: LayerSource,
}

impl Lab {
    /// For registries that stall.
    async fn new(registry: Registry, deadline: Duration) -> Self {
        let client = client(Duration::from_millis(1500));
        Self { bench: Bench::with_deadline(deadline).await, registry, client }
    }

    /// For registries that are only slow, as everything is on a busy machine.
    async fn patient(registry: Registry) -> Self {
        Self { bench: Bench::new().await, registry, client: client(PATIENCE) }
    }

    /// A layer like no other.
    fn case(&self, seed: u64) -> Case {
        let mut random = Random::new(seed * 2 + 1);
        let content = random.bytes(SIZE);
        let tar = Tar::default().file("f", &content).file("g", &random.bytes(200_000)).bytes();
        let blob = estargz(&tar, 4 << 20);
        let descriptor = blob.descriptor.clone();
        self.registry.put_blob("app", &descriptor.media_type, blob.bytes.to_vec());
        let repository = format!("{}/app", self.registry.host()).parse().unwrap();
        let reader = self.client.blob(&repository, &descriptor, &Access::anonymous());
        let opener: Arc<dyn BlobOpener> = Arc::new(RegistryOpener::new(reader, "registry.test/app"));
        let source = LayerSource {
            descriptor,
            origins: vec!["registry.test/app".into()],
            image: "registry.test/app:1".into(),
            opener,
            diff_id: Some(blob.diff_id),
            want: Lazy::Require,
        };
        Case { blob, content, source }
    }

    async fn mount(&self, case: &Case) -> (Arc<Layer>, Arc<ImageTree>) {
        let layer = self.bench.engine.layer(case.source.clone(), &Reporter::discard()).await.unwrap();
        assert_eq!(layer.state(), LayerState::Lazy);
        let tree = self.bench.engine.image_tree(&[layer.id()]).await.unwrap();
        (layer, tree)
    }

    /// Requests for the layer.
    fn requests(&self, case: &Case) -> usize {
        self.registry.log_of(&case.blob.descriptor.digest.to_string()).len()
    }
}

fn on() -> On {
    On::new(Method::GET, "/blobs/")
}

fn retry_after(seconds: &str) -> Option<String> {
    Some(seconds.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_what_passes_is_not_seen_by_readers() {
    let lab = Lab::new(Registry::start().await, PATIENCE).await;
    let faults = [
        (2, Fault::Cut(1000)),
        (1, Fault::Stall(1000)),
        (1, Fault::Silence),
        (2, Fault::Hangup),
        // The kernel asks again, for less, before the reader gets an error.
        (1, Fault::Unsatisfiable),
        (2, Fault::Status(500, None)),
        (2, Fault::Status(503, retry_after("0"))),
        (1, Fault::Status(429, retry_after("1"))),
        (1, Fault::ShiftedRange(7)),
        (1, Fault::Encoded),
        (3, Fault::Short(1000)),
        (1, Fault::Corrupt(10_000)),
        (1, Fault::Delay(Duration::from_millis(300))),
    ];
    for (seed, (times, fault)) in faults.into_iter().enumerate() {
        let case = lab.case(seed as u64);
        let (layer, tree) = lab.mount(&case).await;
        let before = lab.requests(&case);
        lab.registry.fault(on().times(times), fault.clone());
        let content = read(&tree, "f").await;
        assert!(content.unwrap_or_else(|error| panic!("{fault:?}: {error}")) == case.content, "{fault:?}");
        assert!(lab.requests(&case) > before, "{fault:?}");
        assert!(layer.errors(0).is_empty(), "{fault:?}");
        lab.registry.heal();
    }
    lab.bench.engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_what_stays_is_an_error_in_time_that_says_why() {
    let lab = Lab::new(Registry::start().await, Duration::from_secs(4)).await;
    let faults = [
        (Fault::Cut(0), "reading a body"),
        (Fault::Stall(0), "no "),
        (Fault::Silence, "no "),
        (Fault::Hangup, "app/blobs/"),
        (Fault::Unsatisfiable, "416"),
        (Fault::Status(500, None), "500"),
        (Fault::Status(403, None), "403"),
        (Fault::Status(404, None), "not found"),
        (Fault::Status(429, retry_after("600")), "429"),
        (Fault::ShiftedRange(1), "is not what was asked for"),
        (Fault::Encoded, "Content-Encoding"),
        (Fault::Corrupt(10_000), "fetched twice"),
        (Fault::Redirect(307, "file:///etc/passwd".into()), "redirect to file"),
    ];
    for (seed, (fault, part)) in faults.into_iter().enumerate() {
        let case = lab.case(100 + seed as u64);
        let (layer, tree) = lab.mount(&case).await;
        lab.registry.fault(on(), fault.clone());
        let error = read(&tree, "f").await.map(|content| content.len()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(5), "{fault:?}: {error}");
        let errors = layer.errors(0);
        // The kernel asks again, page by page, and is told that there was no answer where that takes longer than a moment.
        let why = errors.iter().find(|error| error.cause.contains(part));
        let why = why.unwrap_or_else(|| panic!("{fault:?}: nobody says why: {errors:?}"));
        assert_eq!((why.file.as_str(), why.layer), ("/f", case.blob.descriptor.digest));
        lab.registry.heal();
        assert!(read_when_well(&tree, "f").await == case.content, "{fault:?}");
    }
    lab.bench.engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_five_redirects_are_followed_and_no_more() {
    let lab = Lab::patient(Registry::start().await).await;
    let case = lab.case(200);
    let (layer, tree) = lab.mount(&case).await;
    let path = format!("/v2/app/blobs/{}", case.blob.descriptor.digest);
    lab.registry.fault(on().times(5), Fault::Redirect(302, path.clone()));
    assert!(read(&tree, "f").await.unwrap() == case.content);
    let case = lab.case(201);
    let (endless, tree) = lab.mount(&case).await;
    lab.registry.fault(on(), Fault::Redirect(302, format!("/v2/app/blobs/{}", case.blob.descriptor.digest)));
    assert_eq!(read(&tree, "f").await.unwrap_err().raw_os_error(), Some(5));
    assert!(endless.errors(0)[0].cause.contains("more than 5 redirects"));
    drop((layer, tree, endless));
    lab.bench.engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_tokens_and_addresses_that_end_in_mid_read_are_renewed() {
    let auth = Auth::Bearer { user: None, lifetime: Duration::from_secs(3600) };
    let registry = Registry::builder().auth(auth).signed(Duration::from_secs(3600)).start().await;
    let lab = Lab::patient(registry).await;
    // Between two reads.
    let case = lab.case(300);
    let (layer, tree) = lab.mount(&case).await;
    lab.registry.expire();
    assert!(read(&tree, "f").await.unwrap() == case.content);
    assert!(layer.errors(0).is_empty());
    // In the middle of a body: it is cut, and what it came by is over when it is asked for again.
    let case = lab.case(301);
    let (layer, tree) = lab.mount(&case).await;
    lab.registry.fault(On::new(Method::GET, "/signed/").times(1), Fault::Cut(100_000));
    lab.registry.fault(On::new(Method::GET, "/signed/").times(1), Fault::Status(403, None));
    lab.registry.fault(On::new(Method::GET, "/v2/").times(1), Fault::Status(401, None));
    assert!(read(&tree, "f").await.unwrap() == case.content);
    assert!(layer.errors(0).is_empty());
    drop((layer, tree));
    lab.bench.engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_an_answer_with_all_is_used_to_its_end() {
    let lab = Lab::patient(Registry::start().await).await;
    let case = lab.case(400);
    let (layer, tree) = lab.mount(&case).await;
    lab.registry.fault(on(), Fault::IgnoreRange);
    assert!(read(&tree, "f").await.unwrap() == case.content);
    // Readers may have asked for several pieces of it before the first answer came.
    let asked = lab.requests(&case);
    assert_eq!(read(&tree, "g").await.unwrap().len(), 200_000);
    layer.complete().await.unwrap();
    assert_eq!(lab.requests(&case), asked);
    assert_eq!(layer.verified(), Some(case.blob.diff_id));

    // The same when the layer is opened: the answer to the first request becomes the download.
    let mut case = lab.case(401);
    let refused = lab.bench.engine.layer(case.source.clone(), &Reporter::discard()).await;
    let refused = refused.map(|layer| layer.id()).unwrap_err().to_string();
    assert!(refused.contains("does not serve ranges"), "{refused}");
    lab.registry.clear_log();
    case.source.want = Lazy::Prefer;
    let layer = lab.bench.engine.layer(case.source.clone(), &Reporter::discard()).await.unwrap();
    layer.ready().await.unwrap();
    assert_eq!(layer.eager_reason().unwrap(), "registry.test/app does not serve ranges");
    assert_eq!(lab.requests(&case), 1);
    drop((layer, tree));
    lab.bench.engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_layers_are_opened_in_spite_of_what_passes_and_refused_in_time_otherwise() {
    let lab = Lab::new(Registry::start().await, PATIENCE).await;
    let passing = [
        (2, Fault::Cut(1000)),
        (1, Fault::Stall(1000)),
        (1, Fault::Hangup),
        (2, Fault::Status(502, None)),
        (1, Fault::ShiftedRange(3)),
    ];
    for (seed, (times, fault)) in passing.into_iter().enumerate() {
        let case = lab.case(500 + seed as u64);
        lab.registry.fault(on().times(times), fault.clone());
        let (_layer, tree) = lab.mount(&case).await;
        assert!(read(&tree, "f").await.unwrap() == case.content, "{fault:?}");
        lab.registry.heal();
    }
    lab.bench.engine.shutdown().await;

    let lab = Lab::new(Registry::start().await, Duration::from_secs(4)).await;
    let staying =
        [Fault::Cut(0), Fault::Stall(0), Fault::Silence, Fault::Hangup, Fault::Status(500, None), Fault::Unsatisfiable];
    for (seed, fault) in staying.into_iter().enumerate() {
        let mut case = lab.case(600 + seed as u64);
        case.source.want = Lazy::Prefer;
        lab.registry.fault(on(), fault.clone());
        let outcome = lab.bench.engine.layer(case.source.clone(), &Reporter::discard()).await;
        let error = outcome.map(|layer| layer.state()).unwrap_err().to_string();
        let named = format!("fetch layer {} of registry.test/app:1: ", case.blob.descriptor.digest);
        assert!(error.starts_with(&named), "{fault:?}: {error}");
        lab.registry.heal();
    }
    lab.bench.engine.shutdown().await;

    // Bytes of the TOC that are wrong: fetched first, and right.
    let lab = Lab::patient(Registry::start().await).await;
    let mut case = lab.case(700);
    case.source.want = Lazy::Prefer;
    lab.registry.fault(on().times(1), Fault::Corrupt(case.blob.bytes.len() as u64 - 200));
    let layer = lab.bench.engine.layer(case.source.clone(), &Reporter::discard()).await.unwrap();
    layer.ready().await.unwrap();
    let reason = layer.eager_reason().unwrap();
    assert!(reason.contains("TOC"), "{reason}");
    let tree = lab.bench.engine.image_tree(&[layer.id()]).await.unwrap();
    assert!(Digest::of(read(&tree, "f").await.unwrap()) == Digest::of(&case.content));
    drop((layer, tree));
    lab.bench.engine.shutdown().await;
}
