//! Whether the client is still there.

use std::time::Duration;

use castor_proto::health::HealthCheckRequest;
use castor_proto::health::health_client::HealthClient;
use tokio::time::Instant;
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;

use crate::key;

/// How a session is watched. A client that is busy sending a context may be
/// slow to answer, so one failure means nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Health {
    /// Between two questions.
    interval: Duration,
    /// How long an answer may take.
    timeout: Duration,
    /// After so many failures in a row the client is gone.
    failures: u32,
}

impl Default for Health {
    fn default() -> Self {
        Self { interval: Duration::from_secs(5), timeout: Duration::from_secs(15), failures: 2 }
    }
}

impl Health {
    /// As the client asked for; tests of clients do.
    pub(crate) fn from_metadata(metadata: &MetadataMap) -> Self {
        let asked = metadata.get(key::HEALTH_TIMEOUT).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        match asked {
            Some(millis) if millis > 0 => {
                let time = Duration::from_millis(millis).max(Duration::from_secs(1));
                Self { interval: time, timeout: time, failures: 1 }
            }
            _ => Self::default(),
        }
    }

    /// Asks until the client is gone; the reason.
    pub(crate) async fn watch(self, channel: &Channel) -> String {
        let mut client = HealthClient::new(channel.clone());
        let mut failed = 0;
        let mut last = Duration::ZERO;
        loop {
            tokio::time::sleep(self.interval).await;
            let start = Instant::now();
            // A link that was slow is given more time.
            let timeout = self.timeout.max(last.mul_f32(1.5));
            let check = tokio::time::timeout(timeout, client.check(HealthCheckRequest::default()));
            let error = match check.await {
                Ok(Ok(_)) => None,
                Ok(Err(status)) => Some(status.message().to_owned()),
                Err(_) => Some(format!("no answer within {timeout:?}")),
            };
            last = start.elapsed();
            let Some(error) = error else {
                failed = 0;
                continue;
            };
            failed += 1;
            if failed >= self.failures {
                return format!("session healthcheck failed fatally: {error}");
            }
            tracing::warn!(error, took = ?last, "session health check failed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_may_ask_for_less_patience() {
        let mut metadata = MetadataMap::new();
        assert_eq!(Health::from_metadata(&metadata), Health::default());
        metadata.insert(key::HEALTH_TIMEOUT, "10".parse().unwrap());
        let second = Duration::from_secs(1);
        assert_eq!(Health::from_metadata(&metadata), Health { interval: second, timeout: second, failures: 1 });
        metadata.insert(key::HEALTH_TIMEOUT, "-3".parse().unwrap());
        assert_eq!(Health::from_metadata(&metadata), Health::default());
    }
}
