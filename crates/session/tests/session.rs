//! Both halves of the session against each other, in one process.

#![allow(clippy::unwrap_used)]

mod world;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use castor_fsutil::{Directory, FilterOptions, ReceiveOptions, Tree};
use castor_proto::control::*;
use castor_registry::{Credentials as _, TokenRequest};
use castor_session::auth::SessionCredentials;
use castor_session::client::{
    Agents, Destination, Exports, Forwarded, Key, Keychain, KeychainOptions, Secret, Secrets, SharedDirectories,
};
use castor_session::filesend::Outcome;
use castor_session::{SessionError, filesend, filesync, secrets, ssh};
use castor_task::CancellationToken;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::{Code, Request};
use world::World;

fn write(root: &Path, files: &[(&str, &str)]) {
    for (path, contents) in files {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, contents).unwrap();
    }
}

#[tokio::test]
async fn a_directory_is_received_as_it_was_chosen() {
    let world = World::new().await;
    let (context, dest) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write(context.path(), &[("a", "1"), ("dir/b", "2"), ("dir/c.md", "3"), ("ünï", "4"), ("dropped", "5")]);
    let mut shared = SharedDirectories::default();
    shared.insert("context", context.path().into());
    let (caller, _stop) = world.open(world.session().share(shared)).await;
    assert_eq!(caller.shared_key(), "shared");
    assert!(caller.supports("/moby.filesync.v1.FILESYNC/diffcopy"));

    let choice =
        FilterOptions { exclude: vec!["dropped".into(), "**/*.md".into(), "ün*".into()], ..FilterOptions::default() };
    filesync::receive(&caller, "context", &choice, dest.path(), ReceiveOptions::default()).await.unwrap();
    let mut names: Vec<_> = std::fs::read_dir(dest.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["a", "dir"]);
    assert_eq!(std::fs::read_to_string(dest.path().join("dir/b")).unwrap(), "2");
    assert!(!dest.path().join("dir/c.md").exists());

    let nothing = FilterOptions { follow: vec!["missing".into()], ..FilterOptions::default() };
    filesync::receive(&caller, "context", &nothing, dest.path(), ReceiveOptions::default()).await.unwrap();
    assert_eq!(std::fs::read_dir(dest.path()).unwrap().count(), 0, "what is not chosen is removed");

    let error = filesync::receive(&caller, "other", &choice, dest.path(), ReceiveOptions::default()).await.unwrap_err();
    let failure = error.to_failure();
    assert_eq!(
        failure.message,
        "rpc error: code = NotFound desc = rpc error: code = NotFound desc = no access allowed to dir \"other\""
    );
    assert_eq!(failure.code, Code::NotFound);
    let bad = FilterOptions { include: vec!["[a.txt,".into(), "b".into()], ..FilterOptions::default() };
    let error = filesync::receive(&caller, "context", &bad, dest.path(), ReceiveOptions::default()).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "rpc error: code = Unknown desc = invalid includepatterns: [[a.txt, b]: syntax error in pattern"
    );

    let (plain, _stop) = world.open(world.session()).await;
    let error =
        filesync::receive(&plain, "context", &choice, dest.path(), ReceiveOptions::default()).await.unwrap_err();
    assert_eq!(error.to_string(), "no local sources enabled");
    world.end().await;
}

#[tokio::test]
async fn a_directory_is_sent() {
    let world = World::new().await;
    let (result, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write(result.path(), &[("bin/tool", "#!"), ("big", &"x".repeat(2_000_000))]);
    write(out.path(), &[("merged/kept", ""), ("mirrored/removed", "")]);
    let mut exports = Exports::default();
    let target = |name: &str, mirror| Destination::Directory { path: out.path().join(name), mirror };
    exports.insert(0, target("merged", false));
    exports.insert(3, target("mirrored", true));
    let (caller, _stop) = world.open(world.session().export(exports)).await;
    let tree: Arc<dyn Tree> = Arc::new(Directory::open(result.path()).unwrap());

    filesend::send_dir(&caller, 0, false, Arc::clone(&tree), None).await.unwrap();
    assert_eq!(std::fs::read_to_string(out.path().join("merged/bin/tool")).unwrap(), "#!");
    assert_eq!(std::fs::metadata(out.path().join("merged/big")).unwrap().len(), 2_000_000);
    assert!(out.path().join("merged/kept").exists());

    let error = filesend::send_dir(&caller, 3, false, Arc::clone(&tree), None).await.unwrap_err();
    assert!(error.to_string().contains("mode=delete requires"), "{error}");
    filesend::send_dir(&caller, 3, true, Arc::clone(&tree), None).await.unwrap();
    assert!(out.path().join("mirrored/big").exists());
    assert!(!out.path().join("mirrored/removed").exists());

    let error = filesend::send_dir(&caller, 1, false, Arc::clone(&tree), None).await.unwrap_err();
    assert_eq!(error.to_string(), "rpc error: code = Unknown desc = exporter 1 not found");
    std::fs::write(out.path().join("blocked"), "a file").unwrap();
    let mut exports = Exports::default();
    exports.insert(0, Destination::Directory { path: out.path().join("blocked/dir"), mirror: false });
    let (blocked, _stop) = world.open(world.session().export(exports)).await;
    let error = filesend::send_dir(&blocked, 0, false, tree, None).await.unwrap_err();
    assert!(error.to_string().starts_with("rpc error: code = Unknown desc = create directory "), "{error}");
    let (plain, _stop) = world.open(world.session()).await;
    assert!(matches!(filesend::open(&plain, 0, &BTreeMap::new()), Err(SessionError::Unsupported { .. })));
    world.end().await;
}

#[tokio::test]
async fn a_stream_is_sent_and_its_end_is_waited_for() {
    let world = World::new().await;
    let out = tempfile::tempdir().unwrap();
    let path = out.path().join("image.tar");
    let seen: Arc<Mutex<BTreeMap<String, String>>> = Arc::default();
    let mut exports = Exports::default();
    let (note, target) = (Arc::clone(&seen), path.clone());
    exports.insert(
        0,
        Destination::Stream(Arc::new(move |metadata| {
            *note.lock().unwrap() = metadata.clone();
            let file = std::fs::File::create(&target)?;
            Ok(Some(Box::new(tokio::fs::File::from_std(file))))
        })),
    );
    exports.insert(1, Destination::Stream(Arc::new(|_| Ok(None))));
    exports.insert(2, Destination::Stream(Arc::new(|_| Err(std::io::Error::other("disk full")))));
    let (caller, _stop) = world.open(world.session().export(exports)).await;

    let metadata = BTreeMap::from([("containerimage.digest".to_owned(), "sha256:aa".to_owned())]);
    let mut writer = filesend::open(&caller, 0, &metadata).unwrap();
    let big = Bytes::from((0..10_000_000u32).map(|n| n as u8).collect::<Vec<u8>>());
    writer.write(Bytes::from_static(b"head")).await.unwrap();
    writer.write(big.clone()).await.unwrap();
    assert_eq!(writer.finish().await.unwrap(), Outcome::Received);
    let got = std::fs::read(&path).unwrap();
    assert!(&got[..4] == b"head" && got[4..] == big);
    assert_eq!(*seen.lock().unwrap(), metadata);

    let mut writer = filesend::open(&caller, 1, &metadata).unwrap();
    for _ in 0..100 {
        writer.write(big.slice(..100_000)).await.unwrap();
    }
    assert_eq!(writer.finish().await.unwrap(), Outcome::AlreadyThere);
    let error = filesend::open(&caller, 2, &metadata).unwrap().finish().await.unwrap_err();
    assert_eq!(error.to_string(), "rpc error: code = Unknown desc = write the exported stream: disk full");
    world.end().await;
}

#[tokio::test]
async fn any_session_of_a_group_may_answer() {
    let world = World::new().await;
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &[("file", "from a file")]);
    let mut some = Secrets::default();
    some.insert("a", Secret::Value("value".into()));
    some.insert("f", Secret::File(dir.path().join("file")));
    some.insert("big", Secret::Value(vec![0; 500 * 1024 + 1].into()));
    let (plain, _stop) = world.open(world.session()).await;
    let (other, _stop) = world.open(world.session().secrets(Secrets::default())).await;
    let (keeper, _stop) = world.open(world.session().secrets(some)).await;
    let group = world.sessions.group([plain.id(), other.id(), keeper.id()].map(str::to_owned));
    assert_eq!(secrets::get(&group, "a").await.unwrap().unwrap(), "value");
    assert_eq!(secrets::get(&group, "f").await.unwrap().unwrap(), "from a file");
    assert_eq!(secrets::get(&group, "none").await.unwrap(), None);
    assert!(secrets::get(&group, "big").await.is_err());
    let failing_first = world.sessions.group([keeper.id(), plain.id()].map(str::to_owned));
    let error = secrets::get(&failing_first, "big").await.unwrap_err();
    assert_eq!(error.to_string(), "secret big is larger than 512000 bytes", "no other client hides the failure");

    let nobody = world.sessions.group([]);
    let error = secrets::get(&nobody, "a").await.unwrap_err();
    assert_eq!(error.to_string(), "no active sessions");
    assert!(!nobody.is_alive() && group.is_alive());
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_session_is_waited_for() {
    let world = World::new().await;
    let session = world.session();
    let id = format!("prefix:{}", session.id());
    assert!(world.sessions.now(&id).is_none());
    let (found, _) = tokio::join!(world.sessions.get(&id, Duration::from_secs(5)), world.open(session));
    assert_eq!(Some(found.unwrap().id()), id.strip_prefix("prefix:"));

    let start = tokio::time::Instant::now();
    let error = secrets::get(&world.sessions.group(["missing".into()]), "a").await.unwrap_err();
    assert_eq!(error.to_string(), "no active session for missing: context deadline exceeded");
    assert_eq!(start.elapsed().as_secs(), 5);
    world.end().await;
}

#[tokio::test]
async fn a_session_ends_with_its_client_and_what_waits_for_it_too() {
    let world = World::new().await;
    let (caller, stop) = world.open(world.session()).await;
    let waiting = tokio::spawn({
        let caller = caller.clone();
        async move { caller.call(futures::future::pending::<Result<(), SessionError>>()).await }
    });
    assert_eq!(world.sessions.count(), 1);
    stop.cancel();
    caller.closed().cancelled().await;
    let error = waiting.await.unwrap().unwrap_err();
    assert!(matches!(error, SessionError::Closed { .. }), "{error}");
    assert_eq!(error.code(), Code::Unavailable);
    while world.sessions.count() > 0 {
        tokio::task::yield_now().await;
    }
    world.end().await;
}

#[tokio::test]
async fn a_daemon_may_end_a_session_and_an_id_is_taken_once() {
    let world = World::new().await;
    let session = world.session();
    let id = session.id().to_owned();
    let stop = CancellationToken::new();
    let running = tokio::spawn(session.run(world.channel.clone(), stop.clone()));
    let caller = world.sessions.get(&id, Duration::from_secs(5)).await.unwrap();

    let mut request = Request::new(futures::stream::pending::<BytesMessage>());
    request.metadata_mut().insert("x-docker-expose-session-uuid", id.parse().unwrap());
    let mut control = control_client::ControlClient::new(world.channel.clone());
    let error = control.session(request).await.unwrap_err();
    assert_eq!(error.code(), Code::AlreadyExists);

    caller.close("no more");
    running.await.unwrap().unwrap();
    let error = caller.call(futures::future::pending::<Result<(), SessionError>>()).await.unwrap_err();
    assert_eq!(error.to_string(), format!("session {id} is closed: no more"));
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_answer_is_given_up() {
    let world = World::new().await;
    let mut request = Request::new(futures::stream::pending::<BytesMessage>());
    request.metadata_mut().insert("x-docker-expose-session-uuid", "silent".parse().unwrap());
    let mut control = control_client::ControlClient::new(world.channel.clone());
    let start = tokio::time::Instant::now();
    let mut answer = control.session(request).await.unwrap().into_inner();
    let caller = world.sessions.get("silent", Duration::from_secs(1)).await.unwrap();
    while answer.message().await.unwrap().is_some() {}
    // Two questions, 5 s apart, the second with half as much patience again.
    assert_eq!(start.elapsed().as_secs(), 5 + 15 + 5 + 22);
    let error = caller.call(futures::future::pending::<Result<(), SessionError>>()).await.unwrap_err();
    assert!(error.to_string().contains("session healthcheck failed fatally: no answer"), "{error}");
    world.end().await;
}

/// Answers each request by its first line and body, as told.
async fn token_server(answer: fn(&str) -> (u16, &'static str)) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let seen: Arc<Mutex<Vec<String>>> = Arc::default();
    let log = Arc::clone(&seen);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = String::new();
            let mut buffer = [0; 4096];
            let complete = |text: &str| {
                text.split_once("\r\n\r\n").is_some_and(|(head, body)| {
                    let length = head
                        .lines()
                        .find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
                    body.len() >= length.unwrap_or(0)
                })
            };
            while !complete(&request) {
                let count = stream.read(&mut buffer).await.unwrap();
                request.push_str(std::str::from_utf8(&buffer[..count]).unwrap());
            }
            let (status, body) = answer(&request);
            log.lock().unwrap().push(request);
            let head =
                format!("HTTP/1.1 {status} x\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
            stream.write_all(head.as_bytes()).await.unwrap();
        }
    });
    (format!("http://{address}/token"), seen)
}

fn token_request(host: &str, realm: &str) -> TokenRequest {
    TokenRequest {
        host: host.into(),
        realm: realm.into(),
        service: "registry".into(),
        scopes: vec!["repository:a/b:pull".into(), "repository:c:pull,push".into()],
        client_id: "buildkit-client".into(),
    }
}

#[tokio::test]
async fn tokens_are_fetched_by_the_client() {
    let world = World::new().await;
    let dir = tempfile::tempdir().unwrap();
    let auth = base64::engine::general_purpose::STANDARD.encode("me:p&ss");
    let config = serde_json::json!({"auths": {
        "a.io": {"auth": auth},
        "b.io": {"identitytoken": "refresh"},
        "c.io": {"registrytoken": "static"},
    }});
    write(dir.path(), &[("config.json", &config.to_string())]);
    let options = KeychainOptions { config: Some(dir.path().join("config.json")), ..KeychainOptions::default() };
    let (keeper, _stop) = world.open(world.session().authenticate(Keychain::new(options.clone()))).await;
    let credentials = SessionCredentials::new(world.sessions.group([keeper.id().to_owned()]));
    assert_eq!(credentials.identity(), keeper.id());

    let found = credentials.credentials("a.io").await.unwrap().unwrap();
    assert_eq!((found.user.as_str(), found.secret.as_str()), ("me", "p&ss"));
    let found = credentials.credentials("b.io").await.unwrap().unwrap();
    assert_eq!((found.user.as_str(), found.secret.as_str()), ("", "refresh"));
    assert!(credentials.credentials("none.io").await.unwrap().is_none());

    // A server without the OAuth way is asked the old way.
    let (realm, seen) = token_server(|request| match request.starts_with("POST") {
        true => (404, ""),
        false => (200, r#"{"token":"old","expires_in":300,"issued_at":"2024-01-02T03:04:05Z"}"#),
    })
    .await;
    let token = credentials.fetch_token(&token_request("a.io", &realm)).await.unwrap().unwrap();
    assert_eq!((token.token.as_str(), token.expires_in), ("old", Some(Duration::from_secs(300))));
    {
        let seen = seen.lock().unwrap();
        assert!(seen[0].ends_with("client_id=buildkit-client&grant_type=password&username=me&password=p%26ss&service=registry&scope=repository%3Aa%2Fb%3Apull+repository%3Ac%3Apull%2Cpush"), "{}", seen[0]);
        assert!(seen[1].starts_with("GET /token?service=registry&scope=repository%3Aa%2Fb%3Apull&scope=repository%3Ac%3Apull%2Cpush HTTP/1.1"), "{}", seen[1]);
        assert!(seen[1].contains(&format!("authorization: Basic {auth}")), "{}", seen[1]);
    }

    let (realm, seen) = token_server(|request| match request.starts_with("POST") {
        true => (200, r#"{"access_token":"new"}"#),
        false => (200, r#"{"token":"anonymous"}"#),
    })
    .await;
    let token = credentials.fetch_token(&token_request("b.io", &realm)).await.unwrap().unwrap();
    assert_eq!((token.token.as_str(), token.expires_in), ("new", Some(Duration::from_secs(60))));
    assert!(seen.lock().unwrap()[0].contains("grant_type=refresh_token&refresh_token=refresh"));
    let token = credentials.fetch_token(&token_request("none.io", &realm)).await.unwrap().unwrap();
    assert_eq!(token.token, "anonymous");
    let token = credentials.fetch_token(&token_request("c.io", &realm)).await.unwrap().unwrap();
    assert_eq!(token.token, "static");

    let (realm, _) = token_server(|_| (403, "")).await;
    let error = credentials.fetch_token(&token_request("a.io", &realm)).await.unwrap_err().to_string();
    assert!(error.contains("unexpected status from POST request to"), "{error}");

    // Clients that leave it to the daemon, by choice or by age.
    let options = KeychainOptions { no_tokens: true, ..options };
    let (caller, _stop) = world.open(world.session().authenticate(Keychain::new(options))).await;
    let credentials = SessionCredentials::new(world.sessions.group([caller.id().to_owned()]));
    assert!(credentials.fetch_token(&token_request("a.io", &realm)).await.unwrap().is_none());
    let (plain, stop) = world.open(world.session()).await;
    let credentials = SessionCredentials::new(world.sessions.group([plain.id().to_owned()]));
    assert!(credentials.fetch_token(&token_request("a.io", &realm)).await.unwrap().is_none());
    assert!(credentials.credentials("a.io").await.unwrap().is_none());
    assert!(credentials.is_alive());
    let both = SessionCredentials::new(world.sessions.group([plain.id(), keeper.id()].map(str::to_owned)));
    assert_eq!(both.credentials("a.io").await.unwrap().unwrap().user, "me", "whoever can answer does");
    stop.cancel();
    plain.closed().cancelled().await;
    assert!(!credentials.is_alive());
    world.end().await;
}

#[tokio::test]
async fn an_authority_proves_itself() {
    use castor_proto::filesync::auth_client::AuthClient;
    use castor_proto::filesync::{GetTokenAuthorityRequest, VerifyTokenAuthorityRequest};
    let world = World::new().await;
    let (caller, _stop) = world.open(world.session().authenticate(Keychain::new(KeychainOptions::default()))).await;
    let mut client = AuthClient::new(caller.channel());
    let (host, salt) = ("a.io".to_owned(), Bytes::from_static(b"salt"));
    let request = GetTokenAuthorityRequest { host: host.clone(), salt: salt.clone() };
    let key = client.get_token_authority(request).await.unwrap().into_inner().public_key;
    assert_eq!(key.len(), 32);
    let request = VerifyTokenAuthorityRequest { host, salt, payload: Bytes::from_static(b"payload") };
    let signed = client.verify_token_authority(request).await.unwrap().into_inner().signed;
    let (signature, payload) = signed.split_at(64);
    assert_eq!(payload, b"payload");
    ring::signature::UnparsedPublicKey::new(&ring::signature::ED25519, &key).verify(payload, signature).unwrap();
    world.end().await;
}

#[tokio::test]
async fn an_agent_is_reached_through_a_socket() {
    let world = World::new().await;
    let dir = tempfile::tempdir().unwrap();
    let agent = tokio::net::UnixListener::bind(dir.path().join("agent")).unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = agent.accept().await {
            let mut question = String::new();
            stream.read_to_string(&mut question).await.unwrap();
            stream.write_all(format!("answer to {question}").as_bytes()).await.unwrap();
        }
    });
    let mut agents = Agents::default();
    agents.insert("", Forwarded::Raw(dir.path().join("agent")));
    let key = Key::parse(include_bytes!("../testdata/keys/ed25519")).unwrap();
    let public = key.public().to_vec();
    agents.insert("keys", Forwarded::Keys(Arc::new(vec![key])));
    let (plain, _stop) = world.open(world.session()).await;
    let (keeper, _stop) = world.open(world.session().agents(agents)).await;
    let group = world.sessions.group([plain.id().to_owned(), keeper.id().to_owned()]);
    let error = ssh::find(&group, "unknown").await.unwrap_err();
    assert!(error.to_string().contains("unset ssh forward key unknown"), "{error}");
    let caller = ssh::find(&group, ssh::DEFAULT_ID).await.unwrap().unwrap();
    assert_eq!(caller.id(), keeper.id());

    let access =
        ssh::Access { uid: rustix::process::getuid().as_raw(), gid: rustix::process::getgid().as_raw(), mode: 0o600 };
    let path = dir.path().join("socket");
    let socket = ssh::AgentSocket::bind(&caller, ssh::DEFAULT_ID, &path, access, &world.scope.child("agent")).unwrap();
    for question in ["one", "two"] {
        let mut stream = tokio::net::UnixStream::connect(socket.path()).await.unwrap();
        stream.write_all(question.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, format!("answer to {question}"));
    }
    drop(socket);
    assert!(!path.exists());

    // Keys are behind an agent, which lists them: their number, each with its comment.
    let keys = ssh::AgentSocket::bind(&caller, "keys", &path, access, &world.scope.child("keys")).unwrap();
    let mut stream = tokio::net::UnixStream::connect(keys.path()).await.unwrap();
    stream.write_all(&[0, 0, 0, 1, 11]).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer[4..9], [12, 0, 0, 0, 1]);
    assert_eq!(answer[13..13 + public.len()], public);
    assert!(answer.ends_with(b"user@example.com"));
    world.end().await;
}
