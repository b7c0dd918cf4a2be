//! Against the real docker-registry.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use castor_oci::{Descriptor, Digest, Platform, media_type};
use castor_registry::{Access, Basic, Client, Config, Fixed, HostConfig, Priority, Pushed};
use castor_testkit::{File, Form, ImageBuilder, RealRegistry, Relay, RelayOptions};
use support::{client, config, noise};

fn image() -> castor_testkit::Image {
    ImageBuilder::new().layer(&[File::new("big", noise(2_000_000, 5))], Form::Gzip).build()
}

async fn push(client: &Client, host: &str, name: &str, access: &Access) -> castor_testkit::Image {
    let image = image();
    let reference: castor_oci::Reference = format!("{host}/{name}").parse().unwrap();
    for blob in [&image.layers[0].blob, &image.config] {
        let descriptor = Descriptor::new("x/y", Digest::of(blob), blob.len() as u64);
        let pushed = client.push_blob(&(&reference).into(), &descriptor, &[], blob, access).await.unwrap();
        assert_eq!(pushed, Pushed::Uploaded);
    }
    let digest =
        client.push_manifest(&reference, media_type::OCI_MANIFEST, image.manifest.clone(), access).await.unwrap();
    assert_eq!(digest, image.descriptor.digest);
    image
}

async fn pull(client: &Client, host: &str, name: &str, access: &Access, image: &castor_testkit::Image) {
    let reference = format!("{host}/{name}").parse().unwrap();
    let found = client.image(&reference, &Platform::host(), access).await.unwrap();
    assert_eq!(found.manifest_bytes, image.manifest);
    let layer = &image.layers[0];
    let reader = client.blob(&(&reference).into(), &found.manifest.layers[0], access);
    let body = reader.range(100_000..900_000, Priority::OnDemand).await.unwrap();
    assert!(!body.is_full());
    assert!(body.collect().await.unwrap() == layer.blob.slice(100_000..900_000));
    assert!(reader.bytes(8 << 20).await.unwrap() == layer.blob);
}

#[tokio::test]
async fn push_pull_and_mount() {
    let registry = RealRegistry::start();
    let (client, access) = (client(), Access::anonymous());
    let image = push(&client, registry.host(), "library/app:1", &access).await;
    pull(&client, registry.host(), "library/app:1", &access, &image).await;

    let layer = &image.layers[0].descriptor;
    let target = format!("{}/other/app", registry.host()).parse().unwrap();
    let from = [format!("{}/library/app", registry.host()).parse().unwrap()];
    let nothing = bytes::Bytes::new();
    let pushed = client.push_blob(&target, layer, &from, &nothing, &access).await.unwrap();
    assert_eq!(pushed, Pushed::Mounted);

    let missing = format!("{}/library/app:2", registry.host()).parse().unwrap();
    let error = client.resolve(&missing, &access).await.unwrap_err();
    assert_eq!(error.to_string(), format!("{missing}: not found"));
}

#[tokio::test]
async fn fixtures_can_be_pushed_and_are_read_through_a_relay() {
    let registry = RealRegistry::start();
    let relay = Relay::start(registry.addr(), RelayOptions::default()).await;
    let image = image();
    image.push(registry.host(), "app:1").await;
    let client = client();
    pull(&client, &relay.host(), "app:1", &Access::anonymous(), &image).await;
    let size = image.layers[0].descriptor.size;
    assert!(relay.bytes_down() > size + 800_000, "{}", relay.bytes_down());
    assert_eq!(relay.requests(), client.counts()[&relay.host()].requests, "the relay counts as the client does");
}

/// bcrypt of "secret".
const HTPASSWD: &str = "me:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";

#[tokio::test]
async fn basic_authorization_of_the_real_one() {
    let dir = tempfile::tempdir().unwrap();
    let passwords = dir.path().join("htpasswd");
    std::fs::write(&passwords, HTPASSWD).unwrap();
    let auth = format!("auth:\n  htpasswd:\n    realm: castor\n    path: {}", passwords.display());
    let registry = RealRegistry::start_with(&auth);
    let client = client();
    let access = Access::new(Arc::new(Fixed(Basic { user: "me".into(), secret: "secret".into() })));
    let image = push(&client, registry.host(), "private/app:1", &access).await;
    pull(&client, registry.host(), "private/app:1", &access, &image).await;
    let reference = format!("{}/private/app:1", registry.host()).parse().unwrap();
    let error = client.resolve(&reference, &Access::anonymous()).await.unwrap_err();
    assert!(error.to_string().starts_with("pull access denied"), "{error}");
}

fn testdata(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata").join(name)
}

/// A registry with a certificate of a private authority, for `localhost` and `127.0.0.1`.
fn with_tls() -> (RealRegistry, String) {
    let (cert, key) = (testdata("server.pem"), testdata("server.key"));
    let tls = format!("  tls:\n    certificate: {}\n    key: {}", cert.display(), key.display());
    let registry = RealRegistry::start_with(&tls);
    let host = format!("localhost:{}", registry.addr().port());
    (registry, host)
}

fn client_for(host: &str, settings: HostConfig) -> Client {
    Client::new(Config { hosts: BTreeMap::from([(host.to_owned(), settings)]), ..config() }).unwrap()
}

#[tokio::test]
async fn tls_with_a_private_authority() {
    let (_registry, host) = with_tls();
    let access = Access::anonymous();
    let trusting = HostConfig { http: Some(false), ca: vec![testdata("ca.pem")], ..HostConfig::default() };
    let client = client_for(&host, trusting);
    let image = push(&client, &host, "app:1", &access).await;
    pull(&client, &host, "app:1", &access, &image).await;

    // Without its authority it is not trusted.
    let reference = format!("{host}/app:1").parse().unwrap();
    let wary = client_for(&host, HostConfig { http: Some(false), ..HostConfig::default() });
    let error = wary.resolve(&reference, &access).await.unwrap_err().to_string();
    assert!(error.to_lowercase().contains("certificate"), "{error}");

    // Unless nothing is to be checked.
    let settings = HostConfig { http: Some(false), insecure: Some(true), ..HostConfig::default() };
    client_for(&host, settings).resolve(&reference, &access).await.unwrap();
    // With `registry.insecure` of an exporter: HTTPS first, then HTTP.
    wary.resolve(&reference, &access.clone().with_insecure(true)).await.unwrap();
}

#[tokio::test]
async fn insecure_and_http_fall_back_to_http() {
    let registry = RealRegistry::start();
    let settings = HostConfig { http: Some(true), insecure: Some(true), ..HostConfig::default() };
    let client = client_for(registry.host(), settings);
    let access = Access::anonymous();
    let image = push(&client, registry.host(), "app:1", &access).await;
    pull(&client, registry.host(), "app:1", &access, &image).await;
}
