//! Daemons that are reached through a program: in a container, in a pod, on another machine.
//!
//! The program runs `buildctl dial-stdio` there, and what it reads and writes is the connection.

use std::pin::Pin;
use std::process::Stdio;
use std::task::{Context, Poll};

use castor_wire::{Failure, channel_over};
use tokio::io::{AsyncRead, AsyncWrite, Join, ReadBuf};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tonic::Code;
use tonic::transport::Channel;

use crate::connection::{ClientError, system_words};

/// What is run at the other end.
const DIAL: [&str; 2] = ["buildctl", "dial-stdio"];

/// A program and its arguments.
#[derive(Debug, PartialEq, Eq)]
pub struct Way {
    program: &'static str,
    arguments: Vec<String>,
}

/// The parts of an address: `scheme://user@host:port/path?key=value`
struct Parts<'a> {
    user: Option<&'a str>,
    host: &'a str,
    port: Option<&'a str>,
    path: &'a str,
    query: &'a str,
}

impl<'a> Parts<'a> {
    fn of(rest: &'a str) -> Self {
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (user, place) = match authority.rsplit_once('@') {
            Some((user, place)) => (Some(user), place),
            None => (None, authority),
        };
        // The address of an IPv6 host is in brackets.
        let (host, port) = match place.strip_prefix('[').and_then(|place| place.split_once(']')) {
            Some((host, rest)) => (host, rest.strip_prefix(':')),
            None => place.rsplit_once(':').map_or((place, None), |(host, port)| (host, Some(port))),
        };
        Self { user, host, port, path, query }
    }

    fn value(&self, key: &str) -> Option<&'a str> {
        let pairs = self.query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.filter(|(name, value)| *name == key && !value.is_empty()).map(|(_, value)| value).next()
    }
}

impl Way {
    /// The way to an address; `None` if it is one that is connected to as it is.
    pub fn to(address: &str) -> Option<Result<Self, ClientError>> {
        let (scheme, rest) = address.split_once("://")?;
        let parts = Parts::of(rest);
        let way = match scheme {
            "docker-container" => container("docker", &parts),
            "podman-container" => container("podman", &parts),
            "nerdctl-container" => container("nerdctl", &parts),
            "kube-pod" => pod(&parts),
            "ssh" => machine(&parts),
            _ => return None,
        };
        Some(way.map_err(|reason| ClientError::Invalid(format!("{address}: {reason}"))))
    }

    /// Starts the program and speaks with the daemon at its other end.
    pub async fn connect(&self, context: &'static str) -> Result<Channel, ClientError> {
        let refused = |words: String| {
            let message = format!("connection error: desc = \"transport: Error while dialing: {words}\"");
            ClientError::Call { context, failure: Failure::new(Code::Unavailable, message) }
        };
        let child = Command::new(self.program)
            .args(&self.arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn();
        let mut child = child.map_err(|error| refused(format!("run {}: {}", self.program, system_words(&error))))?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(refused(format!("run {}: it has no pipes", self.program)));
        };
        let piped = Piped { io: tokio::io::join(stdout, stdin), _child: child };
        channel_over(piped).await.map_err(|error| refused(format!("{}: {}", self.program, deepest(&error))))
    }
}

/// What an error comes down to: those of the transport say nothing themselves.
fn deepest(error: &(dyn std::error::Error + 'static)) -> String {
    let mut last = error;
    while let Some(next) = last.source() {
        last = next;
    }
    last.to_string()
}

/// The program ends with the connection.
struct Piped {
    io: Join<ChildStdout, ChildStdin>,
    _child: Child,
}

impl AsyncRead for Piped {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Piped {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// A name that the program does not take for a flag.
fn name<'a>(text: &'a str, what: &str) -> Result<&'a str, String> {
    match text {
        "" => Err(format!("url lacks {what} name")),
        text if text.starts_with('-') => Err(format!("unsupported {what} name: {text:?}")),
        text => Ok(text),
    }
}

fn container(program: &'static str, parts: &Parts<'_>) -> Result<Way, String> {
    let name = name(parts.host, "container")?;
    let mut arguments: Vec<String> = Vec::new();
    if let Some(context) = parts.value("context").filter(|_| program == "docker") {
        arguments.push(format!("--context={context}"));
    }
    arguments.push("exec".to_owned());
    if let Some(namespace) = parts.value("namespace").filter(|_| program == "nerdctl") {
        arguments.extend(["--namespace".to_owned(), namespace.to_owned()]);
    }
    arguments.extend(["-i".to_owned(), name.to_owned()]);
    arguments.extend(DIAL.map(str::to_owned));
    Ok(Way { program, arguments })
}

fn pod(parts: &Parts<'_>) -> Result<Way, String> {
    let valid = |text: &str| text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.'));
    let checked = |text: &str, what: &str| {
        if valid(text) { Ok(text.to_owned()) } else { Err(format!("unsupported {what} name: {text:?}")) }
    };
    let pod = checked(name(parts.host, "pod")?, "pod")?;
    let value = |key: &str| parts.value(key).unwrap_or_default();
    let mut arguments = vec![
        format!("--context={}", value("context")),
        format!("--namespace={}", checked(value("namespace"), "namespace")?),
        "exec".to_owned(),
        format!("--container={}", checked(value("container"), "container")?),
        "-i".to_owned(),
        pod,
        "--".to_owned(),
    ];
    arguments.extend(DIAL.map(str::to_owned));
    Ok(Way { program: "kubectl", arguments })
}

fn machine(parts: &Parts<'_>) -> Result<Way, String> {
    if parts.host.is_empty() {
        return Err("no host specified".to_owned());
    }
    if !parts.query.is_empty() {
        return Err(format!("extra query after the host: {:?}", parts.query));
    }
    let mut arguments = Vec::new();
    if let Some(user) = parts.user {
        if user.contains(':') {
            return Err("plain-text password is not supported".to_owned());
        }
        arguments.extend(["-l".to_owned(), user.to_owned()]);
    }
    if let Some(port) = parts.port {
        arguments.extend(["-p".to_owned(), port.to_owned()]);
    }
    arguments.extend(["--".to_owned(), parts.host.to_owned(), DIAL[0].to_owned()]);
    if !parts.path.is_empty() {
        arguments.extend(["--addr".to_owned(), format!("unix://{}", parts.path)]);
    }
    arguments.push(DIAL[1].to_owned());
    Ok(Way { program: "ssh", arguments })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way(address: &str) -> String {
        let way = Way::to(address).unwrap().unwrap();
        format!("{} {}", way.program, way.arguments.join(" "))
    }

    #[test]
    fn ways() {
        assert_eq!(way("docker-container://bk"), "docker exec -i bk buildctl dial-stdio");
        assert_eq!(way("docker-container://bk?context=far"), "docker --context=far exec -i bk buildctl dial-stdio");
        assert_eq!(way("podman-container://bk"), "podman exec -i bk buildctl dial-stdio");
        assert_eq!(way("nerdctl-container://bk?namespace=n"), "nerdctl exec --namespace n -i bk buildctl dial-stdio");
        assert_eq!(
            way("kube-pod://bk-0?context=c&namespace=n&container=main"),
            "kubectl --context=c --namespace=n exec --container=main -i bk-0 -- buildctl dial-stdio"
        );
        assert_eq!(
            way("kube-pod://bk-0"),
            "kubectl --context= --namespace= exec --container= -i bk-0 -- buildctl dial-stdio"
        );
        assert_eq!(way("ssh://host"), "ssh -- host buildctl dial-stdio");
        assert_eq!(
            way("ssh://me@host:22/run/b.sock"),
            "ssh -l me -p 22 -- host buildctl --addr unix:///run/b.sock dial-stdio"
        );
        assert_eq!(way("ssh://[::1]:22"), "ssh -p 22 -- ::1 buildctl dial-stdio");
        for direct in ["unix:///x", "tcp://h:1", "x", "npipe:////./pipe/x"] {
            assert!(Way::to(direct).is_none(), "{direct}");
        }
    }

    #[test]
    fn mistakes() {
        let wrong = |address: &str| Way::to(address).unwrap().unwrap_err().to_string();
        assert_eq!(wrong("docker-container://"), "docker-container://: url lacks container name");
        assert_eq!(wrong("podman-container://-x"), "podman-container://-x: unsupported container name: \"-x\"");
        assert_eq!(wrong("kube-pod://A"), "kube-pod://A: unsupported pod name: \"A\"");
        assert_eq!(wrong("ssh://me:pw@host"), "ssh://me:pw@host: plain-text password is not supported");
        assert_eq!(wrong("ssh://"), "ssh://: no host specified");
        assert_eq!(wrong("ssh://host?x=y"), "ssh://host?x=y: extra query after the host: \"x=y\"");
    }
}
