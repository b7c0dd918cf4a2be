//! Resolving and reading manifests.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;

use castor_oci::{Descriptor, Digest, Platform, media_type};
use castor_registry::{Access, Client, Config, Error, HostConfig};
use castor_testkit::{Fault, File, Form, ImageBuilder, On, Registry};
use http::Method;
use support::{client, config};

fn image(content: &str) -> castor_testkit::Image {
    ImageBuilder::new().env("A=b").layer(&[File::new("file", content)], Form::Gzip).build()
}

#[tokio::test]
async fn an_image_is_resolved_and_read_without_its_layers() {
    let registry = Registry::start().await;
    let image = image("x");
    let reference = image.put(&registry, "library/app:1");
    let client = client();
    let access = Access::anonymous();

    let root = client.resolve(&reference, &access).await.unwrap();
    assert_eq!((root.digest, root.size), (image.descriptor.digest, image.descriptor.size));
    assert_eq!(root.media_type, media_type::OCI_MANIFEST);

    let found = client.image(&reference, &Platform::host(), &access).await.unwrap();
    assert_eq!(found.manifest_bytes, image.manifest);
    assert_eq!(found.manifest.layers[0], image.layers[0].descriptor);
    assert!(found.index.is_none());

    let pinned = reference.with_digest(root.digest);
    assert_eq!(client.resolve(&pinned, &access).await.unwrap().digest, root.digest);
    assert!(registry.log_of("/blobs/").is_empty(), "no blob was asked for");
}

#[tokio::test]
async fn of_an_index_the_platform_is_chosen() {
    let registry = Registry::start().await;
    let arm: Platform = "linux/arm64".parse().unwrap();
    let images = [
        ImageBuilder::new().platform("linux/amd64".parse().unwrap()).build(),
        ImageBuilder::new().platform(arm.clone()).env("ARM=1").build(),
    ];
    for image in &images {
        image.put(&registry, "app:part");
    }
    let index = serde_json::json!({
        "schemaVersion": 2, "mediaType": media_type::OCI_INDEX,
        "manifests": images.iter().map(|image| &image.descriptor).collect::<Vec<_>>(),
    });
    let root = registry.put_manifest("app", "multi", media_type::OCI_INDEX, index.to_string());
    let (client, access) = (client(), Access::anonymous());
    let reference = registry.reference("app:multi");
    let found = client.image(&reference, &arm, &access).await.unwrap();
    assert_eq!(found.root.digest, root.digest);
    assert_eq!(found.descriptor.digest, images[1].descriptor.digest);
    assert_eq!(found.index.unwrap(), index.to_string());

    let error = client.image(&reference, &"linux/riscv64".parse().unwrap(), &access).await.unwrap_err();
    assert_eq!(error.to_string(), format!("no match for platform in manifest {}: not found", root.digest));
    assert!(error.is_not_found());
}

#[tokio::test]
async fn what_is_not_there_is_named() {
    let registry = Registry::start().await;
    let reference = registry.reference("library/nothing:1");
    let error = client().resolve(&reference, &Access::anonymous()).await.unwrap_err();
    assert_eq!(error.to_string(), format!("{}/library/nothing:1: not found", registry.host()));
    assert!(error.is_not_found() && !error.is_transient());
    assert_eq!(registry.log().len(), 1, "not found is not tried again");
}

#[tokio::test]
async fn nobody_there_is_an_error_of_the_network() {
    let registry = Registry::start().await;
    let reference = registry.reference("app:1");
    drop(registry);
    let error = client().resolve(&reference, &Access::anonymous()).await.unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, Error::Network { .. }), "{text}");
    assert!(text.starts_with("failed to do request: HEAD \"http://127.0.0.1:"), "{text}");
    assert!(text.contains("/v2/app/manifests/1") && text.contains("Connection refused"), "{text}");
}

#[tokio::test]
async fn a_wrong_manifest_is_read_once_more_and_then_refused() {
    let registry = Registry::start().await;
    let reference = image("x").put(&registry, "app:1");
    let (client, access) = (client(), Access::anonymous());
    let root = client.resolve(&reference, &access).await.unwrap();
    registry.fault(On::new(Method::GET, "/manifests/").times(1), Fault::Corrupt(10));
    client.manifest(&reference, &root, &access).await.unwrap();
    registry.fault(On::new(Method::GET, "/manifests/"), Fault::Corrupt(10));
    let error = client.manifest(&reference, &root, &access).await.unwrap_err();
    assert!(matches!(error, Error::DigestMismatch { wanted, .. } if wanted == root.digest), "{error}");
}

#[tokio::test]
async fn manifests_that_castor_does_not_take() {
    let registry = Registry::start().await;
    let (client, access) = (client(), Access::anonymous());
    let old = "application/vnd.docker.distribution.manifest.v1+prettyjws";
    registry.put_manifest("app", "old", old, r#"{"schemaVersion":1,"fsLayers":[]}"#);
    let error = client.resolve(&registry.reference("app:old"), &access).await.unwrap_err();
    assert!(error.to_string().contains("Docker schema 1"), "{error}");

    let large = Descriptor::new(media_type::OCI_MANIFEST, Digest::of("x"), 1 << 30);
    let error = client.manifest(&registry.reference("app:x"), &large, &access).await.unwrap_err();
    assert!(matches!(error, Error::TooLarge { .. }), "{error}");

    // The size in the descriptor is a claim; the bytes that come are bounded as well.
    let body = format!("{{\"config\":{{}},\"pad\":\"{}\"}}", "x".repeat(9 << 20));
    let lying = registry.put_manifest("app", "big", media_type::OCI_MANIFEST, body);
    let lying = Descriptor { size: 100, ..lying };
    let error = client.manifest(&registry.reference("app:big"), &lying, &access).await.unwrap_err();
    assert!(matches!(error, Error::TooLarge { .. }), "{error}");
}

#[tokio::test]
async fn a_registry_whose_head_fails_is_asked_with_get() {
    let registry = Registry::start().await;
    let image = image("x");
    let reference = image.put(&registry, "app:1");
    registry.fault(On::new(Method::HEAD, "/manifests/"), Fault::Status(405, None));
    let root = client().resolve(&reference, &Access::anonymous()).await.unwrap();
    assert_eq!((root.digest, root.size), (image.descriptor.digest, image.descriptor.size));
}

fn with_mirrors(host: &str, mirrors: Vec<String>) -> Client {
    let settings = HostConfig { mirrors, ..HostConfig::default() };
    Client::new(Config { hosts: BTreeMap::from([(host.to_owned(), settings)]), ..config() }).unwrap()
}

#[tokio::test]
async fn mirrors_are_tried_in_order_before_the_registry() {
    let (first, second, origin) = (Registry::start().await, Registry::start().await, Registry::start().await);
    let image = image("x");
    image.put(&second, "proxy/app:1");
    let reference = image.put(&origin, "app:1");
    let client = with_mirrors(&origin.host(), vec![first.host(), format!("{}/proxy", second.host())]);
    let access = Access::anonymous();

    let found = client.image(&reference, &Platform::host(), &access).await.unwrap();
    assert_eq!(found.descriptor.digest, image.descriptor.digest);
    let ns = format!("ns={}", origin.host().replace(':', "%3A"));
    assert!(first.log().iter().all(|logged| logged.query == ns && logged.status == 404), "{:?}", first.log());
    assert_eq!(second.log()[0].path, "/v2/proxy/app/manifests/1");
    assert_eq!(second.log()[0].query, ns);
    assert!(origin.log().is_empty());

    // Blobs come from where they are.
    let layer = &image.layers[0];
    let reader = client.blob(&(&reference).into(), &layer.descriptor, &access);
    assert_eq!(reader.bytes(1 << 20).await.unwrap(), layer.blob);
    assert_eq!(reader.last_host(), Some(second.host()));

    // Wrong bytes of a mirror are fetched elsewhere.
    second.fault(On::new(Method::GET, "/blobs/"), Fault::Corrupt(5));
    let reader = client.blob(&(&reference).into(), &layer.descriptor, &access);
    assert_eq!(reader.bytes(1 << 20).await.unwrap(), layer.blob);
    assert_eq!(reader.last_host(), Some(origin.host()));

    // Without any mirror left, the registry answers.
    drop((first, second));
    assert_eq!(client.resolve(&reference, &access).await.unwrap().digest, image.descriptor.digest);
}

#[tokio::test]
async fn not_found_at_a_mirror_says_more_than_an_unreachable_registry() {
    let (mirror, gone) = (Registry::start().await, Registry::start().await);
    let reference = gone.reference("nothing:1");
    let client = with_mirrors(&gone.host(), vec![mirror.host()]);
    drop(gone);
    let error = client.resolve(&reference, &Access::anonymous()).await.unwrap_err();
    assert_eq!(error.to_string(), format!("{reference}: not found"));
}
