//! Listeners and dialers against each other, and the tunnel in both roles.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use castor_proto::control::BytesMessage;
use castor_proto::health::HealthCheckRequest;
use castor_proto::health::health_client::HealthClient;
use castor_task::CancellationToken;
use castor_wire::{
    Address, BindError, BindOptions, ClientTls, DialError, Listener, ServerTls, channel_over, dial, serve_over, server,
    tunnel,
};
use futures::StreamExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::oneshot;
use tonic::service::Routes;
use tonic::transport::Channel;

const SOON: Duration = Duration::from_secs(300);

fn health() -> Routes {
    Routes::new(tonic_health::server::health_reporter().1)
}

async fn is_healthy(channel: Channel) -> Result<(), tonic::Status> {
    HealthClient::new(channel).check(HealthCheckRequest::default()).await.map(|_| ())
}

/// A server that is up until the sender is dropped.
async fn serve(listener: Listener) -> oneshot::Sender<()> {
    let (stop, stopped) = oneshot::channel::<()>();
    let incoming = listener.incoming();
    tokio::spawn(async move {
        let stopped = async {
            let _ = stopped.await;
        };
        server().add_routes(health()).serve_with_incoming_shutdown(incoming, stopped).await.unwrap();
    });
    stop
}

#[tokio::test]
async fn a_unix_socket_is_taken_over_from_the_dead_only() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sub/daemon.sock");
    let address = Address::Unix(path.clone());
    std::fs::create_dir(dir.path().join("sub")).unwrap();
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());

    let stop = serve(Listener::bind(&address, &BindOptions::default()).unwrap()).await;
    is_healthy(dial(&address, None, SOON).await.unwrap()).await.unwrap();
    assert!(matches!(Listener::bind(&address, &BindOptions::default()), Err(BindError::InUse(_))));
    drop(stop);

    let file = Address::Unix(dir.path().join("file"));
    std::fs::write(dir.path().join("file"), "precious").unwrap();
    assert!(Listener::bind(&file, &BindOptions::default()).is_err());
    assert_eq!(std::fs::read(dir.path().join("file")).unwrap(), b"precious");
    let error = dial(&Address::Unix(dir.path().join("none")), None, SOON).await.unwrap_err().to_string();
    assert!(error.contains("none: No such file"), "{error}");
}

fn pem(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/tls").join(name)
}

#[tokio::test]
async fn tls_checks_both_sides() {
    let tls = ServerTls {
        certificate: pem("server.pem"),
        key: pem("server-key.pem"),
        client_authorities: Some(pem("ca.pem")),
    };
    let options = BindOptions { tls: Some(tls), ..BindOptions::default() };
    let listener = Listener::bind(&"tcp://127.0.0.1:0".parse().unwrap(), &options).unwrap();
    let address = listener.address();
    let _stop = serve(listener).await;

    let good = ClientTls {
        authorities: Some(pem("ca.pem")),
        identity: Some((pem("client.pem"), pem("client-key.pem"))),
        server_name: None,
    };
    is_healthy(dial(&address, Some(&good), SOON).await.unwrap()).await.unwrap();
    let named = ClientTls { server_name: Some("localhost".into()), ..good.clone() };
    is_healthy(dial(&address, Some(&named), SOON).await.unwrap()).await.unwrap();

    let other_name = ClientTls { server_name: Some("example.com".into()), ..good.clone() };
    assert!(matches!(dial(&address, Some(&other_name), SOON).await, Err(DialError::Tls { .. })));
    let untrusting = ClientTls { authorities: None, ..good.clone() };
    assert!(matches!(dial(&address, Some(&untrusting), SOON).await, Err(DialError::Tls { .. })));
    // A client learns that its certificate is missing after the handshake.
    let anonymous = ClientTls { identity: None, ..good };
    match dial(&address, Some(&anonymous), SOON).await {
        Ok(channel) => assert!(is_healthy(channel).await.is_err()),
        Err(error) => assert!(matches!(error, DialError::Tls { .. } | DialError::Transport { .. })),
    }
    // A peer that speaks no TLS does not hold up the others.
    let mut plain = tokio::net::TcpStream::connect(address.to_string().trim_start_matches("tcp://")).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    is_healthy(dial(&address, Some(&named), SOON).await.unwrap()).await.unwrap();
}

/// Two tunnels, each reading what the other writes.
fn tunnels() -> (castor_wire::Tunnel, castor_wire::Tunnel, CancellationToken, CancellationToken) {
    let (closed_a, closed_b) = (CancellationToken::new(), CancellationToken::new());
    let (give, take) = oneshot::channel::<castor_wire::Outgoing>();
    let from_b = futures::stream::once(take).filter_map(|outgoing| async { outgoing.ok() }).flatten();
    let (a, a_out) = tunnel(from_b.map(Ok), closed_a.clone());
    let (b, b_out) = tunnel(a_out.map(Ok), closed_b.clone());
    assert!(give.send(b_out).is_ok());
    (a, b, closed_a, closed_b)
}

#[tokio::test]
async fn a_tunnel_carries_bytes_whatever_the_messages() {
    let messages = [&b"ab"[..], b"", b"cdef", b"g"].map(|data| Ok(BytesMessage { data: Bytes::from_static(data) }));
    let closed = CancellationToken::new();
    let (mut reading, _out) = tunnel(futures::stream::iter(messages), closed.clone());
    let mut three = [0; 3];
    reading.read_exact(&mut three).await.unwrap();
    assert_eq!(&three, b"abc");
    let mut rest = String::new();
    reading.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, "defg");
    assert!(closed.is_cancelled(), "the end of the peer's stream is told");

    let (mut a, mut b, _, closed_b) = tunnels();
    let sent: Vec<u8> = (0..3_000_000u32).map(|n| n as u8).collect();
    let expected = sent.clone();
    let write = async move {
        a.write_all(&sent).await.unwrap();
        a.shutdown().await.unwrap();
        a
    };
    let mut received = Vec::new();
    let (_a, read) = tokio::join!(write, b.read_to_end(&mut received));
    read.unwrap();
    assert!(received == expected);
    assert!(closed_b.is_cancelled());
}

#[tokio::test]
async fn whoever_opened_the_outer_stream_serves_on_the_inner() {
    let (daemon, client, daemon_closed, _) = tunnels();
    let stop = CancellationToken::new();
    let serving = tokio::spawn({
        let stop = stop.clone();
        async move { serve_over(client, health(), &stop).await }
    });
    let channel = channel_over(daemon).await.unwrap();
    is_healthy(channel.clone()).await.unwrap();
    is_healthy(channel.clone()).await.unwrap();
    stop.cancel();
    serving.await.unwrap().unwrap();
    daemon_closed.cancelled().await;
    assert!(is_healthy(channel).await.is_err(), "there is no second connection");
}

#[tokio::test]
async fn closing_a_tunnel_ends_both_directions() {
    let (mut daemon, mut client, daemon_closed, client_closed) = tunnels();
    daemon_closed.cancel();
    let mut nothing = Vec::new();
    daemon.read_to_end(&mut nothing).await.unwrap();
    client.read_to_end(&mut nothing).await.unwrap();
    assert!(nothing.is_empty());
    assert!(client_closed.is_cancelled());
}
