//! An image in a layout directory, unpacked by umoci and run by runc: programs that know nothing of castor.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::daemon::Outcome;
use crate::programs::{self, run_command};
use crate::scene;

/// An image in an OCI layout with one manifest.
#[derive(Debug)]
pub struct Layout {
    directory: PathBuf,
    /// The image's configuration.
    pub config: Value,
}

impl Layout {
    /// Reads the layout in `directory`.
    pub fn open(directory: &Path) -> Result<Self> {
        let index = read_json(&directory.join("index.json"))?;
        let manifest = blob(directory, &index["manifests"][0])?;
        let config = blob(directory, &manifest["config"])?;
        Ok(Self { directory: directory.to_owned(), config })
    }

    /// The command of the image's health check.
    pub fn health_check(&self) -> Option<Vec<String>> {
        let test: Vec<String> = serde_json::from_value(self.config["config"]["Healthcheck"]["Test"].clone()).ok()?;
        match test.split_first()? {
            (kind, rest) if kind == "CMD" => Some(rest.to_vec()),
            (kind, rest) if kind == "CMD-SHELL" => Some([&["/bin/sh".to_owned(), "-c".to_owned()], rest].concat()),
            _ => None,
        }
    }

    /// The signal that ends a container of the image.
    pub fn stop_signal(&self) -> &str {
        self.config["config"]["StopSignal"].as_str().unwrap_or("SIGTERM")
    }

    /// Unpacks the image `tag` of it into the new directory `bundle`.
    pub fn unpack(&self, tag: &str, bundle: &Path) -> Result<Bundle> {
        let mut umoci = Command::new(programs::installed("umoci", "umoci")?);
        umoci.arg("unpack").arg("--image").arg(format!("{}:{tag}", self.directory.display())).arg(bundle);
        run_command(umoci)?;
        Ok(Bundle { directory: bundle.to_owned() })
    }
}

fn blob(directory: &Path, descriptor: &Value) -> Result<Value> {
    let digest = descriptor["digest"].as_str().with_context(|| format!("no digest in {descriptor}"))?;
    read_json(&directory.join("blobs").join(digest.replace(':', "/")))
}

fn read_json(path: &Path) -> Result<Value> {
    let text = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("decode {}", path.display()))
}

/// What containers may do where nobody says otherwise.
const CAPABILITIES: &[&str] = &[
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// A root file system and how it is run.
#[derive(Debug)]
pub struct Bundle {
    directory: PathBuf,
}

impl Bundle {
    /// The root file system.
    pub fn root(&self) -> PathBuf {
        self.directory.join("rootfs")
    }

    /// Changes the container's specification.
    pub fn edit(&self, change: impl FnOnce(&mut Value)) -> Result<()> {
        let path = self.directory.join("config.json");
        let mut config = read_json(&path)?;
        change(&mut config);
        fs::write(&path, serde_json::to_vec(&config)?).with_context(|| format!("write {}", path.display()))
    }

    /// Starts what the image starts, with `arguments` in the place of its own if there are any.
    pub fn start(&self, image: &Layout, arguments: &[&str]) -> Result<Container> {
        self.edit(|config| {
            config["process"]["terminal"] = json!(false);
            // umoci grants three.
            for set in ["bounding", "effective", "permitted"] {
                config["process"]["capabilities"][set] = json!(CAPABILITIES);
            }
            if !arguments.is_empty() {
                let entrypoint = image.config["config"]["Entrypoint"].as_array().cloned().unwrap_or_default();
                config["process"]["args"] =
                    entrypoint.into_iter().chain(arguments.iter().map(|argument| json!(argument))).collect();
            }
        })?;
        let name = self.directory.file_name().unwrap_or_default().to_string_lossy();
        let id = format!("castor-{name}-{}", std::process::id());
        let runtime = programs::installed("runc", "runc")?;
        let state = self.directory.join("runtime");
        let file = |name: &str| File::create(self.directory.join(name)).with_context(|| format!("create {name}"));
        let child = Command::new(&runtime)
            .arg("--root")
            .arg(&state)
            .args(["run", "--bundle"])
            .arg(&self.directory)
            .arg(&id)
            .stdin(Stdio::null())
            .stdout(file("stdout")?)
            .stderr(file("stderr")?)
            .spawn()
            .with_context(|| format!("run {}", runtime.display()))?;
        Ok(Container { child, ended: None, runtime, state, id, directory: self.directory.clone() })
    }
}

/// A running container; killed and removed when dropped.
#[derive(Debug)]
pub struct Container {
    child: Child,
    ended: Option<std::process::ExitStatus>,
    runtime: PathBuf,
    state: PathBuf,
    id: String,
    directory: PathBuf,
}

impl Container {
    /// What it has printed so far, and its exit code if it has ended.
    pub fn outcome(&self) -> Outcome {
        let read = |name: &str| fs::read_to_string(self.directory.join(name)).unwrap_or_default();
        Outcome { code: self.ended.and_then(|status| status.code()), stdout: read("stdout"), stderr: read("stderr") }
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> Result<Outcome> {
        if self.ended.is_none() {
            self.ended = Some(self.child.wait()?);
        }
        Ok(self.outcome())
    }

    /// Runs a command in it, as its user.
    pub fn exec<S: AsRef<std::ffi::OsStr>>(&self, command: &[S]) -> Result<Outcome> {
        let output = self.runc().arg("exec").arg(&self.id).args(command).stdin(Stdio::null()).output()?;
        Ok(Outcome::of(&output))
    }

    /// Waits until `command` succeeds in it; an error once it has ended, or it takes too long.
    pub fn becomes<S: AsRef<std::ffi::OsStr>>(&mut self, command: &[S]) -> Result<()> {
        let mut last = None;
        let good = scene::comes_true(|| {
            // An error leaves it unknown whether it runs: the wait below says.
            self.ended = self.child.try_wait().unwrap_or_default();
            last = Some(self.exec(command));
            self.ended.is_some() || matches!(&last, Some(Ok(outcome)) if outcome.code == Some(0))
        });
        if !good || self.ended.is_some() {
            bail!("it never became healthy: {last:?}\n{:?}", self.outcome());
        }
        Ok(())
    }

    /// Sends its first process a signal.
    pub fn signal(&self, signal: &str) -> Result<()> {
        let mut kill = self.runc();
        kill.arg("kill").arg(&self.id).arg(signal);
        run_command(kill).map(drop)
    }

    fn runc(&self) -> Command {
        let mut command = Command::new(&self.runtime);
        command.arg("--root").arg(&self.state);
        command
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if self.ended.is_none() {
            // It may have ended by itself.
            let _ = self.runc().args(["delete", "--force"]).arg(&self.id).stderr(Stdio::null()).status();
            let _ = self.child.wait();
        }
    }
}
