//! Pushing blobs and manifests.
#![allow(clippy::unwrap_used)]

mod support;

use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use castor_oci::{Descriptor, Digest, media_type};
use castor_registry::{Access, BlobSource, Error, Pushed};
use castor_testkit::{Auth, Fault, File, Form, ImageBuilder, On, Registry};
use futures::stream::{self, BoxStream, StreamExt};
use http::Method;
use support::{Session, client, noise, repository};

/// Counts how often it is opened and how far it was sent.
struct Source {
    bytes: Bytes,
    opened: AtomicU32,
    sent: AtomicU64,
    fails: bool,
}

impl Source {
    fn new(length: usize) -> (Self, Descriptor) {
        let bytes = Bytes::from(noise(length, 9));
        let descriptor = Descriptor::new("x/y", Digest::of(&bytes), bytes.len() as u64);
        (Self { bytes, opened: AtomicU32::new(0), sent: AtomicU64::new(0), fails: false }, descriptor)
    }

    fn opened(&self) -> u32 {
        self.opened.load(Ordering::SeqCst)
    }
}

#[async_trait]
impl BlobSource for Source {
    async fn open(&self) -> io::Result<BoxStream<'static, io::Result<Bytes>>> {
        self.opened.fetch_add(1, Ordering::SeqCst);
        let mut chunks: Vec<io::Result<Bytes>> =
            self.bytes.chunks(10_000).map(|c| Ok(Bytes::copy_from_slice(c))).collect();
        if self.fails {
            chunks.truncate(2);
            chunks.push(Err(io::Error::other("disk on fire")));
        }
        Ok(stream::iter(chunks).boxed())
    }

    fn progress(&self, sent: u64) {
        self.sent.store(sent, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn a_blob_is_uploaded_once() {
    let registry = Registry::start().await;
    let (source, descriptor) = Source::new(300_000);
    let (client, access, target) = (client(), Access::anonymous(), repository(&registry, "app"));
    let pushed = client.push_blob(&target, &descriptor, &[], &source, &access).await.unwrap();
    assert_eq!(pushed, Pushed::Uploaded);
    assert_eq!(registry.get_blob("app", &descriptor.digest).unwrap(), source.bytes);
    assert_eq!(source.sent.load(Ordering::SeqCst), 300_000);
    let pushed = client.push_blob(&target, &descriptor, &[], &source, &access).await.unwrap();
    assert_eq!((pushed, source.opened()), (Pushed::Existed, 1));
    assert_eq!(client.counts()[&registry.host()].bytes_sent, 300_000);
}

#[tokio::test]
async fn a_blob_of_the_same_host_is_mounted_without_reading_it() {
    let (registry, elsewhere) = (Registry::start().await, Registry::start().await);
    let (source, descriptor) = Source::new(1000);
    registry.put_blob("base", "x/y", source.bytes.clone());
    let (client, access, target) = (client(), Access::anonymous(), repository(&registry, "app"));
    let from = [repository(&elsewhere, "base"), repository(&registry, "none"), repository(&registry, "base")];
    let pushed = client.push_blob(&target, &descriptor, &from, &source, &access).await.unwrap();
    assert_eq!((pushed, source.opened()), (Pushed::Mounted, 0));
    assert!(registry.get_blob("app", &descriptor.digest).is_some());
    assert!(elsewhere.log().is_empty());
    // Where a mount is not possible, the place that the registry offered is used.
    registry.remove_blob("base", &descriptor.digest);
    registry.remove_blob("app", &descriptor.digest);
    registry.clear_log();
    let pushed = client.push_blob(&target, &descriptor, &from, &source, &access).await.unwrap();
    assert_eq!(pushed, Pushed::Uploaded);
    let posts = registry.log().iter().filter(|logged| logged.method == Method::POST).count();
    assert_eq!(posts, 2, "one for each repository to mount from, none more");
}

#[tokio::test]
async fn a_mount_asks_for_the_scope_of_its_source() {
    let auth = Auth::Bearer { user: Some(("me".into(), "secret".into())), lifetime: Duration::from_secs(60) };
    let registry = Registry::builder().auth(auth).start().await;
    let (source, descriptor) = Source::new(1000);
    registry.put_blob("base", "x/y", source.bytes.clone());
    let access = Session::new("s", "me", "secret").access();
    let target = repository(&registry, "app");
    let from = [repository(&registry, "base")];
    let pushed = client().push_blob(&target, &descriptor, &from, &source, &access).await.unwrap();
    assert_eq!(pushed, Pushed::Mounted);
}

#[tokio::test]
async fn an_upload_that_fails_is_begun_anew_with_the_source_opened_anew() {
    let registry = Registry::start().await;
    let (source, descriptor) = Source::new(300_000);
    let (client, access, target) = (client(), Access::anonymous(), repository(&registry, "app"));
    registry.fault(On::new(Method::PUT, "/blobs/uploads/").times(1), Fault::Status(503, None));
    registry.fault(On::new(Method::PUT, "/blobs/uploads/").times(1), Fault::Hangup);
    registry.fault(On::new(Method::POST, "/blobs/uploads/").times(1), Fault::Status(500, None));
    client.push_blob(&target, &descriptor, &[], &source, &access).await.unwrap();
    assert_eq!(registry.get_blob("app", &descriptor.digest).unwrap(), source.bytes);
    assert!(source.opened() >= 2, "{}", source.opened());
}

#[tokio::test]
async fn an_upload_that_never_ends_well_is_an_error() {
    let registry = Registry::start().await;
    let (source, descriptor) = Source::new(1000);
    let (client, access, target) = (client(), Access::anonymous(), repository(&registry, "app"));
    registry.fault(On::new(Method::PUT, "/blobs/uploads/"), Fault::Status(500, None));
    let error = client.push_blob(&target, &descriptor, &[], &source, &access).await.unwrap_err();
    assert!(error.to_string().starts_with("unexpected status from PUT request to http://"), "{error}");
    assert_eq!(source.opened(), 4);
    registry.heal();
    registry.fault(On::new(Method::PUT, "/blobs/uploads/"), Fault::Status(403, None));
    let error = client.push_blob(&target, &descriptor, &[], &source, &access).await.unwrap_err();
    assert!(matches!(error, Error::Denied { .. }) && source.opened() == 5, "a refusal is final: {error}");
}

#[tokio::test]
async fn a_source_that_fails_is_named() {
    let registry = Registry::start().await;
    let (source, descriptor) = Source::new(300_000);
    let source = Source { fails: true, ..source };
    let target = repository(&registry, "app");
    let error = client().push_blob(&target, &descriptor, &[], &source, &Access::anonymous()).await.unwrap_err();
    let want = format!("{target}@{}: read blob to push: disk on fire", descriptor.digest);
    assert_eq!(error.to_string(), want);
    assert_eq!(source.opened(), 1);
    assert!(registry.get_blob("app", &descriptor.digest).is_none());
}

#[tokio::test]
async fn manifests_by_tag_and_by_digest() {
    let registry = Registry::start().await;
    let image = ImageBuilder::new().layer(&[File::new("a", "b")], Form::Gzip).build();
    let (client, access) = (client(), Access::anonymous());
    let reference = registry.reference("app:1");
    let push = |reference: castor_oci::Reference| {
        let (client, access, bytes) = (client.clone(), access.clone(), image.manifest.clone());
        async move { client.push_manifest(&reference, media_type::OCI_MANIFEST, bytes, &access).await }
    };
    // Its blobs are not there: the registry's reason is passed on.
    let error = push(reference.clone()).await.unwrap_err().to_string();
    assert!(error.contains("400 Bad Request: MANIFEST_BLOB_UNKNOWN"), "{error}");
    for blob in [&image.layers[0].blob, &image.config] {
        let descriptor = Descriptor::new("x/y", Digest::of(blob), blob.len() as u64);
        client.push_blob(&(&reference).into(), &descriptor, &[], blob, &access).await.unwrap();
    }
    registry.fault(On::new(Method::PUT, "/manifests/").times(1), Fault::Status(503, Some("0".into())));
    assert_eq!(push(reference.clone()).await.unwrap(), image.descriptor.digest);
    assert_eq!(registry.get_manifest("app", "1").unwrap().1, image.manifest);
    assert_eq!(client.resolve(&reference, &access).await.unwrap().digest, image.descriptor.digest);

    let by_digest = format!("{}/other@{}", registry.host(), image.descriptor.digest).parse().unwrap();
    image.put(&registry, "other:x");
    assert_eq!(push(by_digest).await.unwrap(), image.descriptor.digest);
    let wrong = format!("{}/other@{}", registry.host(), Digest::of("no")).parse().unwrap();
    assert!(matches!(push(wrong).await, Err(Error::DigestMismatch { .. })));
}

#[tokio::test]
async fn pushing_without_being_allowed_says_so() {
    let registry = Registry::builder().auth(Auth::Basic { user: "a".into(), password: "b".into() }).start().await;
    let (source, descriptor) = Source::new(10);
    let target = repository(&registry, "app");
    let error = client().push_blob(&target, &descriptor, &[], &source, &Access::anonymous()).await.unwrap_err();
    assert!(error.to_string().starts_with("push access denied, repository does not exist"), "{error}");
}
