//! The program against servers of this process.
#![allow(clippy::unwrap_used, missing_docs)]

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::process::{Command, Output};
use std::thread::JoinHandle;

/// Answers one request with `response`, and returns what was asked.
fn answer(response: &'static str) -> (String, JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let served = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = Vec::new();
        let mut byte = [0];
        while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() == 1 {
            request.push(byte[0]);
        }
        stream.write_all(response.as_bytes()).unwrap();
        String::from_utf8(request).unwrap()
    });
    (address, served)
}

fn castor(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_castor"));
    command.env_remove("BUILDKITD_DEBUGADDR").args(arguments).output().unwrap()
}

fn failure(arguments: &[&str]) -> String {
    let output = castor(arguments);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn layers_are_listed_from_the_debug_address() {
    let (address, served) = answer(
        "HTTP/1.1 200 OK\r\ncontent-length: 67\r\n\r\n[{\"digest\": \"sha256:abc\", \"state\": \"eager\", \"reason\": \"no ranges\"}]",
    );
    let output = castor(&["layer", "ls", "--debugaddr", &address]);
    assert!(served.join().unwrap().starts_with("GET /debug/layers HTTP/1.1\r\n"));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && text.contains("abc") && text.contains("no ranges"), "{text}");
}

#[test]
fn what_goes_wrong_is_said() {
    assert!(failure(&["layer", "ls"]).contains("--debugaddr"));
    assert!(failure(&["--debugaddr", "nowhere", "layer", "ls"]).contains("\"nowhere\""));
    let refused = failure(&["--debugaddr", "unix:///nonexistent/debug.sock", "layer", "ls"]);
    assert!(refused.contains("unix:///nonexistent/debug.sock") && refused.contains("No such file"), "{refused}");
    let (address, _served) = answer("HTTP/1.1 404 Not Found\r\ncontent-length: 5\r\n\r\ngone\n");
    let missing = failure(&["--debugaddr", &address, "layer", "ls"]);
    assert!(missing.contains("404") && missing.contains("gone"), "{missing}");
    let (address, _served) = answer("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi");
    assert!(failure(&["--debugaddr", &address, "layer", "ls"]).contains("no castor daemon"));
    let (address, _served) = answer("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]");
    assert!(failure(&["--debugaddr", &address, "layer", "inspect", "abc"]).contains("no layer \"abc\""));
    let unknown = castor(&["layer", "lsx"]);
    assert_eq!(unknown.status.code(), Some(2));
}
