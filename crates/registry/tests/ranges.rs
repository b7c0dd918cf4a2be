//! Reading blobs, in part and in full, from registries that misbehave.
#![allow(clippy::unwrap_used, clippy::single_range_in_vec_init)]

mod support;

use std::time::Duration;

use castor_oci::{Descriptor, Digest};
use castor_registry::{Access, BlobReader, Client, Config, Error, Priority};
use castor_testkit::{Auth, Fault, On, Registry, Relay, RelayOptions};
use http::Method;
use support::{client, config, impatient, noise, repository};

const SIZE: usize = 700_000;

struct Blob {
    registry: Registry,
    client: Client,
    bytes: Vec<u8>,
    descriptor: Descriptor,
}

impl Blob {
    async fn new() -> Self {
        Self::at(Registry::start().await)
    }

    fn at(registry: Registry) -> Self {
        let bytes = noise(SIZE, 1);
        let descriptor = registry.put_blob("app", "x/y", bytes.clone());
        Self { registry, client: client(), bytes, descriptor }
    }

    fn reader(&self) -> BlobReader {
        self.client.blob(&repository(&self.registry, "app"), &self.descriptor, &Access::anonymous())
    }

    fn on(&self) -> On {
        On::new(Method::GET, "/blobs/")
    }

    async fn range(&self, range: std::ops::Range<u64>) -> Result<Vec<u8>, Error> {
        let body = self.reader().range(range.clone(), Priority::OnDemand).await?;
        assert!(!body.is_full());
        Ok(body.collect().await?.to_vec())
    }

    async fn check(&self, range: std::ops::Range<u64>) {
        let want = &self.bytes[range.start as usize..range.end as usize];
        assert!(self.range(range).await.unwrap() == want);
    }
}

#[tokio::test]
async fn a_range_is_one_request_and_nothing_more() {
    let blob = Blob::new().await;
    let reader = blob.reader();
    let body = reader.range(1000..5000, Priority::OnDemand).await.unwrap();
    assert_eq!((body.range(), body.is_full()), (1000..5000, false));
    assert_eq!(body.collect().await.unwrap(), blob.bytes[1000..5000]);
    assert_eq!((reader.bytes_fetched(), reader.requests()), (4000, 1));
    assert_eq!(blob.registry.ranges_of(&blob.descriptor.digest), [1000..5000]);
    assert!(blob.registry.log().iter().all(|logged| logged.method == Method::GET), "no HEAD for a blob");
    // The end of the blob is known: nothing is asked for behind it.
    blob.check(SIZE as u64 - 10..SIZE as u64).await;
    let body = reader.range(SIZE as u64..SIZE as u64 + 5, Priority::OnDemand).await.unwrap();
    assert!(body.collect().await.unwrap().is_empty());
    let counts = blob.client.counts()[&blob.registry.host()];
    assert_eq!((counts.requests, counts.range_requests, counts.bytes_received), (2, 2, 4010));
    assert!(blob.client.in_flight().is_empty());
}

#[tokio::test]
async fn connections_are_used_again() {
    let auth = Auth::Bearer { user: None, lifetime: Duration::from_secs(60) };
    let registry = Registry::builder().auth(auth).start().await;
    let relay = Relay::start(registry.addr(), RelayOptions::default()).await;
    let bytes = noise(SIZE, 1);
    let descriptor = registry.put_blob("app", "x/y", bytes.clone());
    let repository = format!("{}/app", relay.host()).parse().unwrap();
    let reader = client().blob(&repository, &descriptor, &Access::anonymous());
    registry.fault(On::new(Method::GET, "/blobs/").skip(1).times(1), Fault::Status(503, None));
    for at in 0..8 {
        let body = reader.range(at * 1000..at * 1000 + 70_000, Priority::OnDemand).await.unwrap();
        assert!(body.collect().await.unwrap() == bytes[at as usize * 1000..at as usize * 1000 + 70_000]);
    }
    // One each for the 401 and the 503 would be three. One is allowed: an answer whose end is late is not waited for.
    assert!(relay.connections() <= 2, "{} connections for ten answers", relay.connections());
}

#[tokio::test]
async fn a_registry_without_ranges_sends_the_whole_blob_and_it_is_told() {
    let blob = Blob::new().await;
    blob.registry.fault(blob.on(), Fault::IgnoreRange);
    let body = blob.reader().range(1000..5000, Priority::OnDemand).await.unwrap();
    assert!(body.is_full());
    assert_eq!(body.range(), 0..SIZE as u64);
    assert!(body.collect().await.unwrap() == blob.bytes);
}

#[tokio::test]
async fn cuts_are_resumed_where_they_happened() {
    let blob = Blob::new().await;
    blob.registry.fault(blob.on().times(2), Fault::Cut(200_000));
    blob.check(100..600_000).await;
    let ranges = blob.registry.ranges_of(&blob.descriptor.digest);
    assert_eq!(ranges[0], 100..600_000);
    assert_eq!(ranges.len(), 3);
    assert!(ranges.windows(2).all(|pair| pair[1].start > pair[0].start && pair[1].end == 600_000), "{ranges:?}");
}

#[tokio::test]
async fn a_full_body_is_resumed_by_range_or_by_skipping() {
    let blob = Blob::new().await;
    blob.registry.fault(blob.on().times(1), Fault::Cut(200_000));
    let full = blob.reader().full(Priority::Bulk).await.unwrap().collect().await.unwrap();
    assert!(full == blob.bytes);
    assert_eq!(blob.registry.ranges_of(&blob.descriptor.digest).len(), 1);

    blob.registry.heal();
    blob.registry.fault(blob.on().times(1), Fault::Cut(200_000));
    blob.registry.fault(blob.on(), Fault::IgnoreRange);
    let full = blob.reader().full(Priority::Bulk).await.unwrap().collect().await.unwrap();
    assert!(full == blob.bytes);
}

#[tokio::test]
async fn stalls_are_noticed_and_resumed() {
    let blob = Blob { client: Client::new(impatient()).unwrap(), ..Blob::new().await };
    blob.registry.fault(blob.on().times(1), Fault::Stall(100_000));
    blob.check(0..500_000).await;
    blob.registry.fault(blob.on().times(1), Fault::Silence);
    blob.check(0..500_000).await;
    blob.registry.fault(blob.on().times(1), Fault::Hangup);
    blob.check(0..500_000).await;
}

#[tokio::test]
async fn a_registry_that_always_stalls_is_an_error_not_a_hang() {
    let hasty = Config { max_attempts: 2, ..impatient() };
    let blob = Blob { client: Client::new(hasty).unwrap(), ..Blob::new().await };
    blob.registry.fault(blob.on(), Fault::Stall(0));
    let error = blob.range(0..10).await.unwrap_err();
    assert!(matches!(error, Error::Stalled { .. }), "{error}");
    assert!(error.to_string().contains("no data for 1 s"), "{error}");
    blob.registry.heal();
    blob.registry.fault(blob.on(), Fault::Silence);
    assert!(matches!(blob.range(0..10).await.unwrap_err(), Error::Stalled { .. }));
    // Each attempt that brings bytes counts anew: slow progress is progress.
    let blob = Blob::new().await;
    blob.registry.fault(blob.on(), Fault::Cut(70_000));
    blob.check(0..SIZE as u64).await;
}

#[tokio::test]
async fn answers_that_lie_are_refused() {
    let blob = Blob::new().await;
    for (fault, part) in [
        (Fault::ShiftedRange(1), "is not what was asked for"),
        (Fault::Encoded, "Content-Encoding \"gzip\""),
        (Fault::Unsatisfiable, "416"),
    ] {
        blob.registry.heal();
        blob.registry.fault(blob.on(), fault.clone());
        let error = blob.range(100..500).await.unwrap_err().to_string();
        assert!(error.contains(part), "{fault:?}: {error}");
    }
    // A full answer of another length.
    blob.registry.heal();
    blob.registry.fault(blob.on(), Fault::Short(1));
    let error = blob.reader().full(Priority::Bulk).await.unwrap_err().to_string();
    assert!(error.contains(&format!("the blob has {} bytes, want {SIZE}", SIZE - 1)), "{error}");
    // Less than was asked for is legal: the rest is asked for.
    blob.check(100..500).await;
    // Of another blob: the descriptor says another size.
    blob.registry.heal();
    let liar = Descriptor { size: SIZE as u64 + 1, ..blob.descriptor.clone() };
    let reader = blob.client.blob(&repository(&blob.registry, "app"), &liar, &Access::anonymous());
    let error = reader.range(0..10, Priority::OnDemand).await.unwrap_err().to_string();
    assert!(error.contains("is of another blob"), "{error}");
    // Once is not always: the next answer is good.
    blob.registry.fault(blob.on().times(1), Fault::ShiftedRange(7));
    blob.check(100..500).await;
}

#[tokio::test]
async fn wrong_bytes_are_found_by_their_digest() {
    let blob = Blob::new().await;
    blob.registry.fault(blob.on().times(1), Fault::Corrupt(77));
    assert!(blob.reader().bytes(1 << 20).await.unwrap() == blob.bytes, "fetched once more");
    blob.registry.fault(blob.on(), Fault::Corrupt(77));
    let error = blob.reader().bytes(1 << 20).await.unwrap_err();
    assert!(matches!(error, Error::DigestMismatch { .. }));
    assert!(error.to_string().contains(&blob.descriptor.digest.to_string()), "{error}");
    assert!(error.to_string().contains(&format!("{}/app", blob.registry.host())), "{error}");
    assert!(matches!(blob.reader().bytes(10).await, Err(Error::TooLarge { .. })));
}

#[tokio::test]
async fn a_blob_that_is_not_there_is_named() {
    let blob = Blob::new().await;
    let missing = Descriptor::new("x/y", Digest::of("missing"), 5);
    let reader = blob.client.blob(&repository(&blob.registry, "app"), &missing, &Access::anonymous());
    let error = reader.range(0..5, Priority::OnDemand).await.unwrap_err();
    let want = format!("{}/app@{}: not found", blob.registry.host(), missing.digest);
    assert_eq!(error.to_string(), want);
}

#[tokio::test]
async fn statuses_that_pass_are_tried_again() {
    let blob = Blob::new().await;
    for (status, retry) in
        [(500, None), (503, Some("0")), (429, Some("1")), (502, Some("Wed, 21 Oct 2015 07:28:00 GMT"))]
    {
        blob.registry.heal();
        blob.registry.fault(blob.on().times(2), Fault::Status(status, retry.map(str::to_owned)));
        let begun = std::time::Instant::now();
        blob.check(5..15).await;
        if retry == Some("1") {
            assert!(begun.elapsed() >= Duration::from_secs(2), "Retry-After is waited for, twice");
        }
    }
    assert!(blob.client.counts()[&blob.registry.host()].retries >= 8);
}

#[tokio::test]
async fn statuses_that_stay_are_reported() {
    let blob = Blob::new().await;
    for (status, retry, requests) in [(501, None, 1), (400, None, 1), (503, None, 4), (429, Some("600"), 1)] {
        blob.registry.heal();
        blob.registry.clear_log();
        blob.registry.fault(blob.on(), Fault::Status(status, retry.map(str::to_owned)));
        let error = blob.range(5..15).await.unwrap_err();
        let want = format!("unexpected status from GET request to http://{}/v2/app/blobs/", blob.registry.host());
        assert!(error.to_string().starts_with(&want), "{error}");
        assert!(error.to_string().contains(&format!(": {status} ")), "{error}");
        assert_eq!(blob.registry.log().len(), requests, "{status}");
    }
    blob.registry.heal();
    blob.registry.fault(blob.on(), Fault::Status(403, None));
    assert!(matches!(blob.range(5..15).await.unwrap_err(), Error::Denied { .. }));
}

#[tokio::test]
async fn a_signed_url_is_used_until_it_is_over() {
    let blob = Blob::at(Registry::builder().signed(Duration::from_secs(600)).start().await);
    let reader = blob.reader();
    for at in 0..5 {
        let body = reader.range(at * 100..at * 100 + 50, Priority::OnDemand).await.unwrap();
        assert_eq!(body.collect().await.unwrap(), blob.bytes[at as usize * 100..at as usize * 100 + 50]);
    }
    assert_eq!(blob.registry.log_of("/v2/").len(), 1, "asked the registry once");
    assert_eq!(blob.registry.log_of("/signed/").len(), 5);

    blob.registry.expire();
    let body = reader.range(0..50, Priority::OnDemand).await.unwrap();
    assert_eq!(body.collect().await.unwrap(), blob.bytes[..50]);
    assert_eq!(blob.registry.log_of("/v2/").len(), 2, "asked for another");
}

#[tokio::test]
async fn a_signed_url_that_ends_in_mid_read_is_renewed() {
    let blob = Blob::at(Registry::builder().signed(Duration::from_secs(600)).start().await);
    blob.registry.fault(On::new(Method::GET, "/signed/").times(1), Fault::Cut(100_000));
    let mut body = blob.reader().range(0..SIZE as u64, Priority::OnDemand).await.unwrap();
    let first = body.chunk().await.unwrap().unwrap();
    blob.registry.expire();
    let rest = body.collect().await.unwrap();
    assert!([&first[..], &rest[..]].concat() == blob.bytes);
}

#[tokio::test]
async fn redirects_end_after_five_hops() {
    let blob = Blob::new().await;
    let path = format!("/v2/app/blobs/{}", blob.descriptor.digest);
    blob.registry.fault(blob.on().times(5), Fault::Redirect(302, path.clone()));
    blob.check(0..10).await;
    assert_eq!(blob.registry.log().len(), 6);
    blob.registry.fault(blob.on(), Fault::Redirect(307, path));
    let error = blob.range(0..10).await.unwrap_err().to_string();
    assert!(error.contains("more than 5 redirects"), "{error}");
    blob.registry.heal();
    blob.registry.fault(blob.on(), Fault::Redirect(307, "file:///etc/passwd".into()));
    assert!(blob.range(0..10).await.unwrap_err().to_string().contains("redirect to file"));
}

#[tokio::test]
async fn bulk_reads_are_few_at_once_and_do_not_hold_up_who_waits() {
    let mut blob = Blob::new().await;
    blob.client = Client::new(Config { max_concurrency: 2, ..config() }).unwrap();
    // Two that are going on: their bodies are not read to the end.
    let reader = blob.reader();
    let first = reader.full(Priority::Bulk).await.unwrap();
    let second = reader.full(Priority::Bulk).await.unwrap();
    assert_eq!(blob.client.in_flight().len(), 2);
    let third = tokio::spawn({
        let reader = reader.clone();
        async move { reader.range(0..10, Priority::Bulk).await.unwrap().collect().await.unwrap() }
    });
    let on_demand = reader.range(0..10, Priority::OnDemand).await.unwrap();
    assert_eq!(on_demand.collect().await.unwrap().len(), 10);
    assert!(!third.is_finished());
    assert_eq!(blob.registry.log().len(), 3, "the third bulk read was not sent");
    drop(first);
    assert_eq!(third.await.unwrap().len(), 10);
    assert!(second.collect().await.unwrap() == blob.bytes);
}
