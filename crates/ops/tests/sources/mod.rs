//! A web server and a git server of a test's own.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use parking_lot::Mutex;
use tempfile::TempDir;

/// Accepts connections until it is dropped.
struct Listener {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    fn start(serve: impl Fn(TcpStream) + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, stop) = (listener.local_addr().unwrap(), Arc::new(AtomicBool::new(false)));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                serve(stream.unwrap());
            }
        });
        Self { address, stop, thread: Some(thread) }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes it up.
        let _ = TcpStream::connect(self.address);
        let _ = self.thread.take().unwrap().join();
    }
}

/// What a web server has under a path.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    pub body: Vec<u8>,
    pub headers: Vec<(&'static str, String)>,
}

impl Answer {
    pub fn new(body: &str) -> Self {
        Self { body: body.as_bytes().to_vec(), headers: Vec::new() }
    }

    pub fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }
}

/// A request, as it came: its first line and its headers, with names in lower case.
pub type Asked = (String, BTreeMap<String, String>);

#[derive(Default)]
struct Site {
    answers: Mutex<BTreeMap<String, Answer>>,
    asked: Mutex<Vec<Asked>>,
}

/// A web server that knows `ETag`.
pub struct WebServer {
    site: Arc<Site>,
    listener: Listener,
}

impl WebServer {
    pub fn start() -> Self {
        let site = Arc::new(Site::default());
        let served = site.clone();
        Self { listener: Listener::start(move |stream| serve(&served, stream)), site }
    }

    pub fn set(&self, path: &str, answer: Answer) {
        self.site.answers.lock().insert(path.to_owned(), answer);
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.listener.address)
    }

    /// What was asked since this was asked last.
    pub fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut *self.site.asked.lock())
    }
}

fn serve(site: &Site, mut stream: TcpStream) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let Some(first) = lines.next() else { return };
    let headers: BTreeMap<String, String> = lines
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned())))
        .collect();
    let mut words = first.split(' ');
    let (method, path) = (words.next().unwrap(), words.next().unwrap());
    let answer = site.answers.lock().get(path).cloned();
    site.asked.lock().push((format!("{method} {path}"), headers.clone()));
    let (mut status, mut answer) = match answer {
        Some(answer) => ("200 OK", answer),
        None => ("404 Not Found", Answer::default()),
    };
    let etag = answer.headers.iter().find(|(name, _)| *name == "ETag").map(|(_, value)| value.clone());
    let same = etag.is_some_and(|etag| headers.get("if-none-match").is_some_and(|sent| sent.contains(&etag)));
    if same {
        status = "304 Not Modified";
        answer.body.clear();
    }
    let mut head = format!("HTTP/1.1 {status}\r\nConnection: close\r\n");
    if !same {
        head.push_str(&format!("Content-Length: {}\r\n", answer.body.len()));
    }
    answer.headers.iter().for_each(|(name, value)| head.push_str(&format!("{name}: {value}\r\n")));
    head.push_str("\r\n");
    let mut bytes = head.into_bytes();
    if method != "HEAD" {
        bytes.extend(answer.body);
    }
    // The client may have gone.
    let _ = stream.write_all(&bytes);
}

/// Serves the repositories in a directory by git's own protocol.
pub struct GitServer {
    dir: Arc<TempDir>,
    listener: Listener,
}

impl GitServer {
    pub fn start() -> Self {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let base = dir.path().to_owned();
        let listener = Listener::start(move |stream| {
            let (input, output) = (OwnedFd::from(stream.try_clone().unwrap()), OwnedFd::from(stream));
            let daemon = git_command(&base)
                .args(["daemon", "--inetd", "--export-all", "--base-path=."])
                .stdin(input)
                .stdout(output)
                .stderr(Stdio::null())
                .status();
            assert!(daemon.is_ok(), "{daemon:?}");
        });
        Self { dir, listener }
    }

    pub fn url(&self, name: &str) -> String {
        format!("git://{}/{name}", self.listener.address)
    }

    /// A new repository with a work tree.
    pub fn repository(&self, name: &str) -> Repository {
        let dir = self.dir.path().join(name);
        std::fs::create_dir(&dir).unwrap();
        let repository = Repository { dir };
        repository.git(&["init", "-q", "-b", "main"]);
        repository.git(&["config", "uploadpack.allowAnySHA1InWant", "true"]);
        repository
    }
}

fn git_command(dir: &Path) -> Command {
    let mut command = Command::new("git");
    command.current_dir(dir).env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1");
    for role in ["AUTHOR", "COMMITTER"] {
        command.env(format!("GIT_{role}_NAME"), "a").env(format!("GIT_{role}_EMAIL"), "a@b");
        command.env(format!("GIT_{role}_DATE"), "1700000000 +0000");
    }
    command
}

pub struct Repository {
    dir: PathBuf,
}

impl Repository {
    /// Runs git in it and gives what it says.
    pub fn git(&self, args: &[&str]) -> String {
        let output = git_command(&self.dir).args(args).output().unwrap();
        assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Writes files and makes a commit of all; gives its name.
    pub fn commit(&self, files: &[(&str, &str)]) -> String {
        for (path, text) in files {
            let path = self.dir.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        self.git(&["add", "-A"]);
        self.git(&["commit", "-q", "--allow-empty", "-m", "change"]);
        self.git(&["rev-parse", "HEAD"])
    }
}
