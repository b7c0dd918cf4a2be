//! The directory of one container: what the runtime reads, and the mounts made for it.
//!
//! ```text
//! <root>/bundles/<id>/config.json    the specification: a link into our memory, for secrets may be in it
//!                     hosts          generated, mounted into the container
//!                     resolv.conf    the same
//!                     cgroup         where its cgroup is
//!                     mounts/<n>     sources that had to be mounted by us
//!                     log.json, pid  written by the runtime
//! <root>/runtime/<id>/               the runtime's own state
//! ```

use std::fs;
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::MemfdFlags;
use rustix::mount::UnmountFlags;

use crate::error::ExecError;
use crate::mounts::{self, Mounts};
use crate::process::{ExecMount, Meta, Network, Process, RootMount};
use crate::rooted::Root;
use crate::runc::{Config, SandboxNetwork};
use crate::spec::{self, Container, Net};
use crate::stubs::Stubs;
use crate::{cgroup, resolver, user};

/// Where its cgroup is, for the daemon after this one.
const CGROUP: &str = "cgroup";

/// Everything but the streams that a container is made of, on disk.
pub struct Bundle {
    pub dir: PathBuf,
    /// Its cgroup.
    pub cgroup: PathBuf,
    root: Root,
    stubs: Stubs,
    /// Dropped before the directory is removed.
    mounts: Option<Mounts>,
    /// What `config.json` leads to.
    spec: Option<InMemory>,
}

impl Bundle {
    /// Makes the bundle of `process`. Blocks, and reads the root file system.
    pub fn prepare(id: &str, config: &Config, plan: &Plan) -> Result<Self, ExecError> {
        let root_path = &plan.root.path;
        let root =
            Root::open(root_path).map_err(|err| ExecError::setup(format!("open the root {root_path:?}"), err))?;
        let user = user::lookup(&root, &plan.meta.user)?;
        let dir = bundles(&config.root).join(id);
        // Not made where it is there already: an id is used once at a time.
        fs::DirBuilder::new()
            .mode(0o711)
            .create(&dir)
            .map_err(|err| ExecError::setup(format!("create {dir:?}"), err))?;
        // From here on the directory is removed with the value.
        let mut bundle = Self { dir, cgroup: PathBuf::new(), root, stubs: Stubs::default(), mounts: None, spec: None };
        bundle.fill(id, config, plan, &user)?;
        Ok(bundle)
    }

    fn fill(&mut self, id: &str, config: &Config, plan: &Plan, user: &user::User) -> Result<(), ExecError> {
        let meta = &plan.meta;
        let parent = if meta.cgroup_parent.is_empty() { &config.cgroup_parent } else { &meta.cgroup_parent };
        self.cgroup = cgroup::path(parent, id);
        // Before the runtime makes it, so that it is found after a crash at any moment.
        self.write(CGROUP, &self.cgroup.to_string_lossy())?;
        let network = match (meta.network, config.sandbox_network, &plan.network) {
            (Network::Host, _, _) | (Network::Sandbox, SandboxNetwork::Host, _) => Net::Host,
            (Network::Sandbox, SandboxNetwork::Cni, Some(path)) => Net::At(path),
            (Network::None, _, _) | (Network::Sandbox, SandboxNetwork::None | SandboxNetwork::Cni, _) => Net::New,
        };
        let hosts = self.write("hosts", &resolver::hosts(&meta.hostname, &meta.extra_hosts))?;
        let resolv_conf = self.write("resolv.conf", &resolver::resolv_conf(&config.dns, network == Net::Host)?)?;
        let mount_dir = self.dir.join("mounts");
        make_dir(&mount_dir)?;
        self.mounts = Some(Mounts::prepare(&plan.mounts, &mount_dir)?);
        let mut points = vec![PathBuf::from("/etc/resolv.conf"), PathBuf::from("/etc/hosts")];
        points.extend(mounts::sorted(&plan.mounts).iter().map(|mount| mounts::absolute(&mount.destination)));
        self.stubs = Stubs::before(&self.root, points.iter().map(PathBuf::as_path), meta.remove_mount_stubs_recursive);
        self.make_cwd(&meta.cwd, user)?;
        let container = Container {
            id,
            meta,
            user,
            root: &plan.root.path,
            readonly: plan.root.readonly,
            resolv_conf: &resolv_conf,
            hosts: &hosts,
            mounts: self.mounts.as_ref().map_or(&[], |mounts| &mounts.ready),
            network,
            cgroup_parent: parent,
            apparmor_profile: &config.apparmor_profile,
        };
        let json = serde_json::to_vec(&spec::spec(&container)?)
            .map_err(|err| ExecError::setup("encode the container's specification", err))?;
        let spec = InMemory::new(&json)?;
        let path = self.dir.join("config.json");
        symlink(spec.path(), &path).map_err(|err| ExecError::setup(format!("create {path:?}"), err))?;
        self.spec = Some(spec);
        Ok(())
    }

    fn write(&self, name: &str, text: &str) -> Result<PathBuf, ExecError> {
        let path = self.dir.join(name);
        resolver::write(&path, text).map_err(|err| ExecError::setup(format!("write {path:?}"), err))?;
        Ok(path)
    }

    /// A working directory that is missing belongs to the process.
    fn make_cwd(&self, cwd: &str, user: &user::User) -> Result<(), ExecError> {
        let failed = |err| ExecError::setup(format!("failed to create working directory {cwd}"), err);
        let path = mounts::absolute(cwd);
        let resolved = self.root.resolve(&path).map_err(failed)?;
        if self.root.stat(&resolved).is_ok() {
            return Ok(());
        }
        self.root.create_dirs(&path, 0o755, user.uid, user.gid).map_err(failed)
    }

    /// Takes everything down, once the container is gone.
    pub fn close(mut self) {
        self.mounts = None;
        self.stubs.remove(&self.root);
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        self.mounts = None;
        if let Err(err) = remove(&self.dir) {
            tracing::warn!(bundle = %self.dir.display(), %err, "remove a bundle");
        }
    }
}

/// A file without a place on any disk, which the runtime reads by a path.
pub struct InMemory {
    fd: OwnedFd,
}

impl InMemory {
    /// A file with this content.
    pub fn new(content: &[u8]) -> Result<Self, ExecError> {
        let failed = |err: io::Error| ExecError::setup("write a specification in memory", err);
        let fd = rustix::fs::memfd_create("castor-spec", MemfdFlags::CLOEXEC).map_err(|err| failed(err.into()))?;
        let mut file = fs::File::from(fd);
        file.write_all(content).map_err(failed)?;
        Ok(Self { fd: file.into() })
    }

    /// The path by which other processes of ours can open it.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), self.fd.as_raw_fd()))
    }
}

/// What of a process a bundle is made from.
pub struct Plan {
    pub root: RootMount,
    pub mounts: Vec<ExecMount>,
    pub meta: Meta,
    /// Where its network namespace is, if it has one of its own that somebody furnished.
    pub network: Option<PathBuf>,
}

impl Plan {
    /// Splits a process into what is written down and its streams.
    pub fn of(process: Process) -> (Self, crate::Stdio) {
        let Process { id: _, root, mounts, meta, stdio } = process;
        (Self { root, mounts, meta, network: None }, stdio)
    }
}

/// Where bundles are.
pub fn bundles(root: &Path) -> PathBuf {
    root.join("bundles")
}

/// Makes a directory, and what is missing above it. Others may pass through (a container's user follows the mounts), but
/// nobody lists or changes what is in it.
pub fn make_dir(path: &Path) -> Result<(), ExecError> {
    fs::DirBuilder::new()
        .mode(0o711)
        .recursive(true)
        .create(path)
        .map_err(|err| ExecError::setup(format!("create {path:?}"), err))
}

/// Removes a bundle's directory. Nothing in it is followed, and nothing that is still mounted is touched: only the files
/// that belong there go, and directories that are empty.
fn remove(dir: &Path) -> io::Result<()> {
    for name in ["config.json", "hosts", "resolv.conf", "log.json", "pid", ".pid"] {
        ignore_missing(fs::remove_file(dir.join(name)))?;
    }
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name() == "mounts" {
            for point in fs::read_dir(entry.path())? {
                let point = point?.path();
                if fs::remove_dir(&point).is_err() {
                    mounts::remove_empty_file(&point);
                }
            }
            fs::remove_dir(entry.path())?;
        } else if entry.file_type()?.is_file() {
            // Of a process that ran in the container (`exec-*`).
            fs::remove_file(entry.path())?;
        }
    }
    fs::remove_dir(dir)
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Unmounts what a killed daemon left below `root`, and removes its bundles and their cgroups.
pub fn recover(root: &Path) -> io::Result<()> {
    let bundles = bundles(root);
    let mounted = fs::read("/proc/self/mountinfo")?;
    for point in mount_points(&mounted).into_iter().filter(|point| point.starts_with(&bundles)).rev() {
        rustix::mount::unmount(&point, UnmountFlags::DETACH)?;
    }
    let entries = match fs::read_dir(&bundles) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let bundle = entry?.path();
        match fs::read_to_string(bundle.join(CGROUP)) {
            Ok(cgroup) => {
                if let Err(error) = cgroup::remove(Path::new(&cgroup)) {
                    tracing::warn!(cgroup, %error, "remove a cgroup that was left behind");
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        remove(&bundle)?;
    }
    Ok(())
}

/// Where file systems are mounted, in the order in which they were.
fn mount_points(mountinfo: &[u8]) -> Vec<PathBuf> {
    use std::os::unix::ffi::OsStringExt as _;
    let point = |line: &[u8]| {
        let field = line.split(|&byte| byte == b' ').nth(4)?;
        let mut path = Vec::with_capacity(field.len());
        let mut rest = field;
        // Blanks and the like are written as three octal digits.
        while let [first, tail @ ..] = rest {
            let octal = (*first == b'\\').then(|| tail.get(..3)).flatten();
            let byte = octal.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
            path.push(byte.unwrap_or(*first));
            rest = if byte.is_some() { &tail[3..] } else { tail };
        }
        Some(PathBuf::from(std::ffi::OsString::from_vec(path)))
    };
    mountinfo.split(|&byte| byte == b'\n').filter_map(point).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo() {
        let text = b"21 1 0:5 / / rw - ext4 /dev/vda rw\n22 21 0:6 / /a\\040b\\134c rw shared:1 - tmpfs tmpfs rw\n";
        assert_eq!(mount_points(text), [Path::new("/"), Path::new("/a b\\c")]);
    }

    #[test]
    fn foreign_content_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let bundle = dir.path().join("b");
        fs::create_dir_all(bundle.join("mounts/0")).unwrap();
        fs::write(bundle.join("config.json"), "{}").unwrap();
        fs::write(bundle.join("mounts/0/precious"), "x").unwrap();
        fs::write(bundle.join("mounts/1"), "precious").unwrap();
        assert!(remove(&bundle).is_err());
        assert!(bundle.join("mounts/0/precious").exists() && bundle.join("mounts/1").exists());
        fs::remove_file(bundle.join("mounts/0/precious")).unwrap();
        fs::write(bundle.join("mounts/1"), "").unwrap();
        remove(&bundle).unwrap();
        assert!(!bundle.exists());
    }
}
