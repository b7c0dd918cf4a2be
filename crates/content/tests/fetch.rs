//! From a registry into the store.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use castor_content::{Commit, ContentStore, FetchError, Local, fetch};
use castor_metadb::Memory;
use castor_oci::Descriptor;
use castor_registry::{Access, BlobReader, Client, Config, Priority, Repository};
use castor_testkit::{Fault, On, Registry};
use http::Method;

struct Fixture {
    _dir: tempfile::TempDir,
    store: Local,
    registry: Registry,
    reader: BlobReader,
    descriptor: Descriptor,
}

impl Fixture {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Local::open(dir.path(), Arc::new(Memory::new())).await.unwrap();
        let registry = Registry::start().await;
        let bytes: Vec<u8> = (0..800_000_u32).map(|n| (n * 7 + n / 255) as u8).collect();
        let descriptor = registry.put_blob("app", "x/y", bytes);
        let config = Config {
            backoff: Duration::from_millis(2),
            stall_timeout: Duration::from_secs(20),
            max_attempts: 3,
            ..Config::default()
        };
        let client = Client::new(config).unwrap();
        let repository = Repository::from(&registry.reference("app"));
        let reader = client.blob(&repository, &descriptor, &Access::anonymous());
        Self { _dir: dir, store, registry, reader, descriptor }
    }

    async fn fetch(&self) -> Result<u64, FetchError> {
        let mut seen = 0;
        let progress = &mut |here| seen = here;
        fetch(&self.store, &self.reader, Priority::Bulk, Commit::default(), progress).await?;
        Ok(seen)
    }
}

#[tokio::test]
async fn a_blob_is_fetched_once() {
    let f = Fixture::new().await;
    assert_eq!(f.fetch().await.unwrap(), 800_000);
    assert_eq!(f.fetch().await.unwrap(), 800_000);
    assert_eq!(f.registry.log().len(), 1);
    assert!(f.store.info(&f.descriptor.digest).await.unwrap().is_some());
}

#[tokio::test]
async fn what_came_before_a_failure_is_not_fetched_again() {
    let f = Fixture::new().await;
    let on = On::new(Method::GET, "/blobs/");
    f.registry.fault(on.clone().times(1), Fault::Cut(500_000));
    f.registry.fault(on, Fault::Status(500, None));
    assert!(matches!(f.fetch().await.unwrap_err(), FetchError::Registry(_)));
    f.registry.heal();
    f.registry.clear_log();
    f.fetch().await.unwrap();
    assert!(f.registry.blob_bytes() < 400_000, "{}", f.registry.blob_bytes());
}

#[tokio::test]
async fn wrong_bytes_are_fetched_once_more_and_then_refused() {
    let f = Fixture::new().await;
    f.registry.fault(On::new(Method::GET, "/blobs/").times(1), Fault::Corrupt(9));
    f.fetch().await.unwrap();

    let f = Fixture::new().await;
    f.registry.fault(On::new(Method::GET, "/blobs/"), Fault::Corrupt(9));
    let error = f.fetch().await.unwrap_err();
    assert!(error.to_string().contains(&f.descriptor.digest.to_string()), "{error}");
    assert!(f.store.info(&f.descriptor.digest).await.unwrap().is_none());
    assert_eq!(f.registry.log().len(), 2);
}
