//! The real docker-registry on loopback.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// A running `docker-registry` (Debian's package) with its own directory; killed on drop.
#[derive(Debug)]
pub struct RealRegistry {
    child: Child,
    host: String,
    // Dropped last: the process writes into it.
    dir: tempfile::TempDir,
}

impl RealRegistry {
    /// Where Debian installs it.
    pub const BINARY: &str = "/usr/bin/docker-registry";

    /// Starts it on a free port and waits until it listens.
    pub fn start() -> Self {
        Self::start_with("")
    }

    /// Like [`start`](Self::start), with more lines of YAML at the end of its configuration file: indented ones go on
    /// with the block `http`, others begin their own.
    pub fn start_with(extra: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("config.yml");
        let data = dir.path().join("data");
        let text = format!(
            "version: 0.1\nlog:\n  level: info\nstorage:\n  filesystem:\n    rootdirectory: {}\n  delete:\n    enabled: true\n\
             http:\n  addr: 127.0.0.1:0\n{extra}\n",
            data.display()
        );
        std::fs::write(&config, text).unwrap();
        let mut child = Command::new(Self::BINARY)
            .arg("serve")
            .arg(&config)
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("start {}: {e} (install Debian's package docker-registry)", Self::BINARY));
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut seen = String::new();
        let host = loop {
            let Some(Ok(line)) = lines.next() else {
                let _ = child.kill();
                let _ = child.wait();
                panic!("docker-registry ended before it listened:\n{seen}");
            };
            if let Some((_, address)) = line.split_once("listening on ") {
                let end = address.find(|c: char| c != '.' && c != ':' && !c.is_ascii_digit()).unwrap_or(address.len());
                break address[..end].to_owned();
            }
            seen.push_str(&line);
            seen.push('\n');
        };
        // It blocks when nobody reads what it logs; the thread ends with the process.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, host, dir }
    }

    /// `127.0.0.1:port`.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Its address.
    pub fn addr(&self) -> std::net::SocketAddr {
        self.host.parse().unwrap()
    }

    /// The directory with its data.
    pub fn data(&self) -> std::path::PathBuf {
        self.dir.path().join("data")
    }

    /// Whether the binary is installed.
    pub fn installed() -> bool {
        Path::new(Self::BINARY).exists()
    }
}

impl Drop for RealRegistry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
