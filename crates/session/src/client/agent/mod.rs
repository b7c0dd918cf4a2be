//! An SSH agent for build steps: it lists keys and signs with them, and does nothing else.
//!
//! Behind it are keys of its own, or the user's agent. A step that could reach that one as it is could also remove its
//! keys, lock it or add to it.

mod der;
mod key;
mod wire;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::UnixStream;

pub use key::{Key, KeyError};
use wire::{Reader, Writer};

/// The largest message, as OpenSSH has it.
const LARGEST: usize = 256 << 10;

/// Kinds of messages.
mod kind {
    pub const FAILURE: u8 = 5;
    pub const REQUEST_IDENTITIES: u8 = 11;
    pub const IDENTITIES_ANSWER: u8 = 12;
    pub const SIGN_REQUEST: u8 = 13;
    pub const SIGN_RESPONSE: u8 = 14;
}

/// Who answers.
#[derive(Debug, Clone)]
pub(super) enum Backend {
    /// These keys.
    Keys(Arc<Vec<Key>>),
    /// The agent behind this socket.
    Agent(PathBuf),
}

/// Answers what comes from `io` until its end.
pub(super) async fn serve(mut io: impl AsyncRead + AsyncWrite + Unpin, backend: Backend) -> std::io::Result<()> {
    let mut agent = match &backend {
        Backend::Agent(path) => Some(connect(path).await?),
        Backend::Keys(_) => None,
    };
    while let Some(request) = receive(&mut io).await? {
        let answer = match (request.first(), &backend, &mut agent) {
            (Some(&(kind::REQUEST_IDENTITIES | kind::SIGN_REQUEST)), _, Some(agent)) => {
                send(agent, &request).await?;
                let closed = || std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
                receive(agent).await?.ok_or_else(closed)?
            }
            (Some(_), Backend::Keys(keys), _) => answer(&request, keys),
            _ => vec![kind::FAILURE],
        };
        send(&mut io, &answer).await?;
    }
    Ok(())
}

async fn connect(path: &Path) -> std::io::Result<UnixStream> {
    let named = |error: std::io::Error| {
        std::io::Error::new(error.kind(), format!("failed to connect to {}: {error}", path.display()))
    };
    UnixStream::connect(path).await.map_err(named)
}

/// A message; `None` at the end.
async fn receive(io: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Option<Vec<u8>>> {
    let length = match io.read_u32().await {
        Ok(length) => length as usize,
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    if length > LARGEST {
        return Err(std::io::Error::other(format!("a message to an SSH agent has {length} bytes")));
    }
    let mut message = vec![0; length];
    io.read_exact(&mut message).await?;
    Ok(Some(message))
}

async fn send(io: &mut (impl AsyncWrite + Unpin), message: &[u8]) -> std::io::Result<()> {
    let mut framed = Writer::default();
    framed.text(message);
    io.write_all(&framed.into_bytes()).await
}

/// What the keys answer.
fn answer(request: &[u8], keys: &[Key]) -> Vec<u8> {
    let mut reader = Reader::new(request);
    let made = match reader.byte() {
        Some(kind::REQUEST_IDENTITIES) => Some(identities(keys)),
        Some(kind::SIGN_REQUEST) => sign(&mut reader, keys),
        _ => None,
    };
    made.unwrap_or_else(|| vec![kind::FAILURE])
}

fn identities(keys: &[Key]) -> Vec<u8> {
    let mut writer = Writer::default();
    writer.byte(kind::IDENTITIES_ANSWER);
    writer.number(u32::try_from(keys.len()).unwrap_or(u32::MAX));
    for key in keys {
        writer.text(key.public());
        writer.text(key.comment().as_bytes());
    }
    writer.into_bytes()
}

fn sign(reader: &mut Reader<'_>, keys: &[Key]) -> Option<Vec<u8>> {
    let (public, data, flags) = (reader.text()?, reader.text()?, reader.number()?);
    let signature = keys.iter().find(|key| key.public() == public)?.sign(data, flags)?;
    let mut writer = Writer::default();
    writer.byte(kind::SIGN_RESPONSE);
    writer.text(&signature);
    Some(writer.into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ring::signature::{ED25519, UnparsedPublicKey};

    const ED25519_KEY: &[u8] = include_bytes!("../../../testdata/keys/ed25519");

    async fn ask(io: &mut (impl AsyncRead + AsyncWrite + Unpin), message: &[u8]) -> Vec<u8> {
        send(io, message).await.unwrap();
        receive(io).await.unwrap().unwrap()
    }

    fn sign_request(public: &[u8], data: &[u8]) -> Vec<u8> {
        let mut writer = Writer::default();
        writer.byte(kind::SIGN_REQUEST);
        writer.text(public);
        writer.text(data);
        writer.number(0);
        writer.into_bytes()
    }

    #[tokio::test]
    async fn keys_are_listed_and_sign() {
        let key = Key::parse(ED25519_KEY).unwrap();
        let public = key.public().to_vec();
        let (mut near, far) = tokio::io::duplex(1024);
        let serving = tokio::spawn(serve(far, Backend::Keys(Arc::new(vec![key]))));
        let listed = ask(&mut near, &[kind::REQUEST_IDENTITIES]).await;
        let mut reader = Reader::new(&listed);
        assert_eq!((reader.byte(), reader.number()), (Some(kind::IDENTITIES_ANSWER), Some(1)));
        assert_eq!(reader.text(), Some(&public[..]));
        let signed = ask(&mut near, &sign_request(&public, b"data")).await;
        let mut reader = Reader::new(&signed);
        assert_eq!(reader.byte(), Some(kind::SIGN_RESPONSE));
        let mut signature = Reader::new(reader.text().unwrap());
        assert_eq!(signature.text(), Some(&b"ssh-ed25519"[..]));
        let mut raw = Reader::new(&public);
        raw.text();
        UnparsedPublicKey::new(&ED25519, raw.text().unwrap()).verify(b"data", signature.text().unwrap()).unwrap();
        // Nothing else is done, and nothing that is malformed ends it.
        for refused in [&[17][..], &[19], &[22], &[27], &[25, 1, 2], &[], &[13], &sign_request(b"other", b"data")] {
            assert_eq!(ask(&mut near, refused).await, [kind::FAILURE], "{refused:?}");
        }
        drop(near);
        serving.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn another_agent_is_asked_for_no_more_than_that() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent");
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let agent = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = Vec::new();
            while let Some(message) = receive(&mut stream).await.unwrap() {
                asked.push(message[0]);
                send(&mut stream, &[kind::IDENTITIES_ANSWER, 0, 0, 0, 0]).await.unwrap();
            }
            asked
        });
        let (mut near, far) = tokio::io::duplex(1024);
        let serving = tokio::spawn(serve(far, Backend::Agent(path)));
        assert_eq!(ask(&mut near, &[19]).await, [kind::FAILURE]);
        assert_eq!(ask(&mut near, &[kind::REQUEST_IDENTITIES]).await[0], kind::IDENTITIES_ANSWER);
        assert_eq!(ask(&mut near, &[22]).await, [kind::FAILURE]);
        drop(near);
        serving.await.unwrap().unwrap();
        assert_eq!(agent.await.unwrap(), [kind::REQUEST_IDENTITIES]);
    }

    #[tokio::test]
    async fn too_much_is_refused() {
        let (mut near, far) = tokio::io::duplex(1024);
        let serving = tokio::spawn(serve(far, Backend::Keys(Arc::default())));
        near.write_all(&u32::MAX.to_be_bytes()).await.unwrap();
        assert!(serving.await.unwrap().unwrap_err().to_string().contains("4294967295 bytes"));
        let missing = serve(tokio::io::duplex(8).0, Backend::Agent("/nonexistent/agent".into())).await.unwrap_err();
        assert!(missing.to_string().starts_with("failed to connect to /nonexistent/agent: "), "{missing}");
    }
}
