//! A TCP relay that makes a near registry far.

use std::net::SocketAddr;
use std::time::Duration;

/// How slow the relay is.
#[derive(Debug, Clone, Copy, Default)]
pub struct RelayOptions {
    /// Added to each round trip, half a direction, and to connecting.
    pub round_trip: Duration,
    /// Bytes a second towards the client, for all connections together; `None` is unlimited.
    pub bandwidth: Option<u64>,
}

/// Passes connections on to a target, slower, and counts.
#[derive(Debug)]
pub struct Relay {}

impl Relay {
    /// Starts a relay to `target` on a free port of loopback.
    pub async fn start(target: SocketAddr, options: RelayOptions) -> Self {
        let _ = (target, options);
        todo!()
    }

    /// `127.0.0.1:port`.
    pub fn host(&self) -> String {
        self.addr().to_string()
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        todo!()
    }

    /// Bytes passed to clients so far.
    pub fn bytes_down(&self) -> u64 {
        todo!()
    }

    /// Bytes passed to the target so far.
    pub fn bytes_up(&self) -> u64 {
        todo!()
    }

    /// HTTP/1 requests seen so far.
    pub fn requests(&self) -> u64 {
        todo!()
    }

    /// Sets the counters to zero.
    pub fn reset(&self) {
        todo!()
    }

    /// Cuts all connections and refuses new ones until [`mend`](Self::mend).
    pub fn cut(&self) {
        todo!()
    }

    /// Takes connections again.
    pub fn mend(&self) {
        todo!()
    }
}
