//! The kit itself: what it promises, other crates' tests rely on.
#![allow(clippy::unwrap_used)]

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use castor_oci::{ANNOTATION_TOC_DIGEST, Digest, ImageConfig, Manifest};
use castor_testkit::{File, FileKind, Form, ImageBuilder, Layer, LeakCheck, Registry, Relay, RelayOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Sends back what it gets.
async fn echo() -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    addr
}

#[tokio::test]
async fn the_relay_adds_round_trips_also_on_connect() {
    let round_trip = Duration::from_millis(60);
    let relay = Relay::start(echo().await, RelayOptions { round_trip, bandwidth: None }).await;
    let begun = Instant::now();
    let mut stream = TcpStream::connect(relay.addr()).await.unwrap();
    let mut byte = [0; 1];
    for trips in 2..5_u32 {
        stream.write_all(b"x").await.unwrap();
        stream.read_exact(&mut byte).await.unwrap();
        assert!(begun.elapsed() >= round_trip * trips, "one to connect, one for each exchange");
    }
    assert_eq!((relay.bytes_up(), relay.bytes_down(), relay.connections()), (3, 3, 1));
    relay.reset();
    assert_eq!(relay.bytes_down(), 0);
}

#[tokio::test]
async fn the_relay_has_one_bandwidth_for_all_connections() {
    let options = RelayOptions { round_trip: Duration::ZERO, bandwidth: Some(2_000_000) };
    let relay = Relay::start(echo().await, options).await;
    let begun = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let addr = relay.addr();
        tasks.spawn(async move {
            let mut stream = TcpStream::connect(addr).await.unwrap();
            let (mut read, mut write) = stream.split();
            let mut back = vec![0; 150_000];
            let sent = async { write.write_all(&[7; 150_000]).await.unwrap() };
            let (_, got) = tokio::join!(sent, read.read_exact(&mut back));
            got.unwrap();
        });
    }
    tasks.join_all().await;
    assert!(begun.elapsed() >= Duration::from_millis(280), "600 kB at 2 MB/s: {:?}", begun.elapsed());
    assert_eq!(relay.bytes_down(), 600_000);
}

#[tokio::test]
async fn a_cut_relay_drops_everybody_until_it_is_mended() {
    let relay = Relay::start(echo().await, RelayOptions::default()).await;
    let mut byte = [0; 1];
    let mut stream = TcpStream::connect(relay.addr()).await.unwrap();
    stream.write_all(b"x").await.unwrap();
    stream.read_exact(&mut byte).await.unwrap();
    relay.cut();
    assert!(matches!(stream.read(&mut byte).await, Ok(0) | Err(_)));
    let mut refused = TcpStream::connect(relay.addr()).await.unwrap();
    assert!(matches!(refused.read(&mut byte).await, Ok(0) | Err(_)));
    relay.mend();
    let mut stream = TcpStream::connect(relay.addr()).await.unwrap();
    stream.write_all(b"x").await.unwrap();
    stream.read_exact(&mut byte).await.unwrap();
}

#[test]
fn the_leak_check_sees_processes() {
    let check = LeakCheck::new();
    let mut child = Command::new("/bin/sleep").arg("60").stdin(Stdio::null()).spawn().unwrap();
    let leaked = check.leaked_now();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(leaked.iter().any(|what| what == &format!("process {} sleep", child.id())), "{leaked:?}");
    assert!(!check.leaked().iter().any(|what| what.contains(" sleep")));
    std::mem::forget(check);
}

fn files() -> Vec<File> {
    vec![
        File::dir("etc"),
        File::new("etc/hello", "hello").mode(0o600).owner(70_000, 5).xattr("user.castor", [0, 1, 2]),
        File::symlink("etc/link", "hello"),
        File::hardlink("etc/hard", "etc/hello"),
        File::special("etc/null", FileKind::Char(1, 3)),
        File::special("etc/pipe", FileKind::Fifo),
        File::new(&format!("etc/{}", "long".repeat(40)), vec![7; 200_000]),
        File::whiteout("etc/gone"),
    ]
}

#[test]
fn a_layer_is_the_same_tar_in_every_form() {
    let tar = Layer::new(&files(), Form::Tar);
    assert_eq!(tar.diff_id, tar.descriptor.digest);
    let gzip = Layer::new(&files(), Form::Gzip);
    assert_eq!((gzip.diff_id, &gzip.tar), (tar.diff_id, &tar.tar));
    assert_eq!(gzip.blob[..2], [0x1f, 0x8b]);
    let estargz = Layer::new(&files(), Form::Estargz);
    assert_eq!(estargz.tar, tar.tar);
    assert_ne!(estargz.diff_id, tar.diff_id, "the TOC is part of it");
    assert!(estargz.descriptor.toc_digest().is_some());
    assert!(estargz.blob.ends_with(b"STARGZ\x01\0\0\xff\xff\0\0\0\0\0\0\0\0") || estargz.blob.len() > 51);

    let mut archive = tar::Archive::new(&tar.tar[..]);
    let names: Vec<String> =
        archive.entries().unwrap().map(|e| e.unwrap().path().unwrap().to_string_lossy().into_owned()).collect();
    assert_eq!(names.len(), 8);
    assert_eq!(names[7], "etc/.wh.gone");
    assert_eq!(names[6].len(), 164);
}

#[tokio::test]
async fn an_image_names_its_parts() {
    let registry = Registry::start().await;
    let image =
        ImageBuilder::new().layer(&files(), Form::Estargz).layer(&[File::new("b", "c")], Form::Gzip).env("A=b").build();
    let reference = image.put(&registry, "library/app:1");
    let (_, bytes) = registry.get_manifest("library/app", reference.tag().unwrap()).unwrap();
    assert_eq!(Digest::of(&bytes), image.descriptor.digest);
    let manifest: Manifest = serde_json::from_slice(&bytes).unwrap();
    assert!(manifest.layers[0].annotations.contains_key(ANNOTATION_TOC_DIGEST));
    let config: ImageConfig =
        serde_json::from_slice(&registry.get_blob("library/app", &manifest.config.digest).unwrap()).unwrap();
    assert_eq!(config.rootfs.diff_ids, [image.layers[0].diff_id, image.layers[1].diff_id]);
    assert_eq!(config.config.env, ["A=b"]);
    for layer in &image.layers {
        assert_eq!(registry.get_blob("library/app", &layer.descriptor.digest).unwrap(), layer.blob);
    }
}
