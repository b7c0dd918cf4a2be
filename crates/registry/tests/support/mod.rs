//! What the tests of this crate share.
#![allow(dead_code, clippy::unwrap_used, missing_docs)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use castor_registry::{Access, Basic, Client, Config, Credentials, CredentialsError, Repository, Token, TokenRequest};
use castor_testkit::Registry;

/// A configuration that tries again soon, and waits long enough for a busy machine.
pub fn config() -> Config {
    Config {
        backoff: Duration::from_millis(2),
        stall_timeout: Duration::from_secs(20),
        auth_timeout: Duration::from_secs(20),
        max_attempts: 4,
        ..Config::default()
    }
}

/// A configuration that does not wait for those who stall, and no less than a busy machine may.
pub fn impatient() -> Config {
    Config {
        stall_timeout: Duration::from_secs(1),
        connect_timeout: Duration::from_secs(1),
        auth_timeout: Duration::from_secs(1),
        ..config()
    }
}

pub fn client() -> Client {
    Client::new(config()).unwrap()
}

pub fn repository(registry: &Registry, path: &str) -> Repository {
    Repository::from(&registry.reference(path))
}

/// Bytes that differ everywhere.
pub fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        })
        .collect()
}

/// A session: has a name, may end, counts how often it was asked.
#[derive(Debug)]
pub struct Session {
    pub name: String,
    pub basic: Option<Basic>,
    pub alive: AtomicBool,
    pub asked: AtomicU32,
    pub hangs: bool,
    /// Handed out by `fetch_token` instead of asking for credentials.
    pub delegated: Option<Token>,
}

impl Session {
    pub fn new(name: &str, user: &str, secret: &str) -> Arc<Self> {
        let basic = (!secret.is_empty()).then(|| Basic { user: user.into(), secret: secret.into() });
        Arc::new(Self {
            name: name.into(),
            basic,
            alive: AtomicBool::new(true),
            asked: AtomicU32::new(0),
            hangs: false,
            delegated: None,
        })
    }

    pub fn access(self: &Arc<Self>) -> Access {
        Access::new(Arc::<Self>::clone(self))
    }

    pub fn end(&self) {
        self.alive.store(false, Ordering::SeqCst);
    }

    pub fn asked(&self) -> u32 {
        self.asked.load(Ordering::SeqCst)
    }
}

#[async_trait]
impl Credentials for Session {
    /// As a group of sessions does: once it ended, it has no name.
    fn identity(&self) -> String {
        if self.is_alive() { self.name.clone() } else { String::new() }
    }

    fn is_alive(&self) -> bool {
        self.alive.load(Ordering::SeqCst)
    }

    async fn credentials(&self, _host: &str) -> Result<Option<Basic>, CredentialsError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        if self.hangs {
            std::future::pending::<()>().await;
        }
        if !self.is_alive() {
            return Err(CredentialsError::Gone);
        }
        Ok(self.basic.clone())
    }

    async fn fetch_token(&self, _request: &TokenRequest) -> Result<Option<Token>, CredentialsError> {
        Ok(self.delegated.clone())
    }
}
