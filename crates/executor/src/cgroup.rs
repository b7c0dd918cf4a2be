//! Where a container's cgroup is, under each of Linux' three arrangements.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};

/// Where cgroup file systems are mounted.
const MOUNT_POINT: &str = "/sys/fs/cgroup";

/// Where the second version is mounted in a hybrid arrangement.
pub const UNIFIED: &std::ffi::CStr = c"/sys/fs/cgroup/unified";

/// Whether a hybrid arrangement has controllers in both versions.
pub fn unified_has_controllers() -> bool {
    let controllers = Path::new(MOUNT_POINT).join("unified/cgroup.controllers");
    fs::read_to_string(controllers).is_ok_and(|text| !text.trim().is_empty())
}

/// How the host arranges cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hierarchy {
    /// One hierarchy with all controllers (version 2).
    Unified,
    /// A hierarchy per controller, and a second version without controllers beside them.
    Hybrid,
    /// A hierarchy per controller (version 1).
    Legacy,
    /// None is mounted.
    Absent,
}

impl Hierarchy {
    /// What this host has.
    pub fn detect() -> Self {
        Self::at(Path::new(MOUNT_POINT))
    }

    fn at(root: &Path) -> Self {
        if root.join("cgroup.controllers").exists() {
            Self::Unified
        } else if root.join("unified/cgroup.procs").exists() {
            Self::Hybrid
        } else if root.join("memory").exists() || root.join("cpu").exists() || root.join("pids").exists() {
            Self::Legacy
        } else {
            Self::Absent
        }
    }
}

/// Makes the host's cgroups ready for containers, and says in the log what stands against it. Blocks.
///
/// Inside of a container with a cgroup namespace of its own the daemon sits in the root of what it sees, and the second
/// version's rule that processes and controllers do not go together would leave containers without limits: it moves aside.
pub fn prepare() {
    let root = Path::new(MOUNT_POINT);
    // The host's own root has no type; that of a namespace has.
    if Hierarchy::detect() == Hierarchy::Unified && root.join("cgroup.type").exists() {
        match move_aside(root) {
            Ok(controllers) => tracing::info!(?controllers, "processes moved to a cgroup of their own"),
            Err(error) => tracing::warn!(%error, "move processes to a cgroup of their own: {HINT}"),
        }
    }
    let tops = match Hierarchy::detect() {
        Hierarchy::Unified => vec![root.to_path_buf()],
        Hierarchy::Hybrid | Hierarchy::Legacy => {
            ["memory", "pids"].map(|name| root.join(name)).into_iter().filter(|top| top.exists()).collect()
        }
        Hierarchy::Absent => {
            tracing::warn!("no cgroups are mounted on {MOUNT_POINT}: steps cannot be limited, and may not run");
            return;
        }
    };
    for top in tops {
        let probe = top.join(format!("castor-probe-{}", std::process::id()));
        if let Err(error) = fs::create_dir(&probe).and_then(|()| fs::remove_dir(&probe)) {
            tracing::warn!(%error, "cgroups cannot be made in {}: {HINT}", top.display());
        }
    }
}

/// What to do about a cgroup file system that cannot be written.
const HINT: &str = "a daemon in a container needs a writable /sys/fs/cgroup, such as with --privileged";

/// Moves all processes of the cgroup `root` to one below it, and lets controllers pass to others below. The controllers
/// that do.
fn move_aside(root: &Path) -> io::Result<Vec<String>> {
    let aside = root.join("init");
    match fs::create_dir(&aside) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let write = |path: PathBuf, text: &str| {
        use io::Write as _;
        fs::OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes())
    };
    for pid in fs::read_to_string(root.join("cgroup.procs"))?.lines() {
        match write(aside.join("cgroup.procs"), pid) {
            // It ended meanwhile.
            Err(error) if error.raw_os_error() == Some(Errno::SRCH.raw_os_error()) => {}
            other => other?,
        }
    }
    let controllers = fs::read_to_string(root.join("cgroup.controllers"))?;
    // One by one: one that cannot pass does not keep the others.
    let pass = |name: &&str| write(root.join("cgroup.subtree_control"), &format!("+{name}")).is_ok();
    Ok(controllers.split_whitespace().filter(pass).map(str::to_owned).collect())
}

/// The cgroup of container `id` below `parent`, as the runtime takes it.
pub fn path(parent: &str, id: &str) -> PathBuf {
    // systemd's form: slice:prefix:name
    if parent.contains(".slice") && parent.ends_with(':') {
        return PathBuf::from(format!("{parent}{id}"));
    }
    let parent = parent.trim_start_matches('/');
    Path::new("/").join(parent).join("buildkit").join(id)
}

/// Kills what is in the cgroup `cgroup` and removes it from every hierarchy. For what a killed daemon left: a runtime that
/// died while it made a container knows nothing of it. Blocks.
pub fn remove(cgroup: &Path) -> io::Result<()> {
    let relative = cgroup.strip_prefix("/").unwrap_or(cgroup);
    // systemd's form is no path, and systemd removes those scopes itself.
    if relative.as_os_str().is_empty() || relative.to_string_lossy().contains(':') {
        return Ok(());
    }
    let root = Path::new(MOUNT_POINT);
    let mut tops = vec![root.to_path_buf()];
    if matches!(Hierarchy::detect(), Hierarchy::Hybrid | Hierarchy::Legacy) {
        tops = fs::read_dir(root)?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
        let own = root.join("memory").join(own_place().trim_start_matches('/'));
        tops.push(own);
    }
    tops.iter().map(|top| top.join(relative)).filter(|path| path.is_dir()).try_for_each(|path| remove_tree(&path))
}

/// How often a cgroup whose processes are dying is looked at, and how long in between.
const ATTEMPTS: u32 = 200;
const PAUSE: Duration = Duration::from_millis(10);

fn remove_tree(path: &Path) -> io::Result<()> {
    let absent = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    for attempt in 1.. {
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                remove_tree(&entry.path())?;
            }
        }
        for line in fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default().lines() {
            // 0 is a process of another process namespace, which this one cannot name.
            if let Some(pid) = line.parse().ok().and_then(Pid::from_raw) {
                kill_process(pid, Signal::KILL)
                    .or_else(|error| if error == Errno::SRCH { Ok(()) } else { Err(error) })?;
            }
        }
        match fs::remove_dir(path) {
            Err(error) if absent(&error) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && attempt < ATTEMPTS => {
                #[expect(clippy::disallowed_methods, reason = "version 1 tells nobody when a cgroup becomes empty")]
                std::thread::sleep(PAUSE);
            }
            other => return other,
        }
    }
    Ok(())
}

/// Whether the kernel killed something in the cgroup for want of memory. Only right while the cgroup exists.
pub fn out_of_memory(cgroup: &Path) -> bool {
    let relative = cgroup.strip_prefix("/").unwrap_or(cgroup);
    let root = Path::new(MOUNT_POINT);
    let files = match Hierarchy::detect() {
        Hierarchy::Unified => vec![root.join(relative).join("memory.events")],
        Hierarchy::Hybrid | Hierarchy::Legacy => {
            // Below the root, or below the daemon's own place: runtimes differ.
            let memory = root.join("memory");
            let own = memory.join(own_place().trim_start_matches('/'));
            [memory, own].map(|top| top.join(relative).join("memory.oom_control")).into()
        }
        Hierarchy::Absent => Vec::new(),
    };
    files.iter().filter_map(|file| fs::read_to_string(file).ok()).any(|text| counter(&text, "oom_kill") > 0)
}

/// The daemon's own place in the memory hierarchy of the first version.
fn own_place() -> String {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let place = own.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let controllers = fields.next()?;
        let path = fields.next()?;
        controllers.split(',').any(|name| name == "memory").then(|| path.to_owned())
    });
    place.unwrap_or_default()
}

fn counter(text: &str, key: &str) -> u64 {
    let value = |line: &str| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok();
    text.lines().find_map(value).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        assert_eq!(path("", "c"), Path::new("/buildkit/c"));
        assert_eq!(path("/a/b", "c"), Path::new("/a/b/buildkit/c"));
        assert_eq!(path("user.slice:x:", "c"), Path::new("user.slice:x:c"));
    }

    #[test]
    fn processes_move_aside_and_controllers_pass() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::create_dir(root.join("init")).unwrap();
        for (file, text) in [
            ("cgroup.procs", "1\n7\n"),
            ("cgroup.controllers", "cpu memory\n"),
            ("cgroup.subtree_control", ""),
            ("init/cgroup.procs", ""),
        ] {
            fs::write(root.join(file), text).unwrap();
        }
        assert_eq!(move_aside(root).unwrap(), ["cpu", "memory"]);
        // A real one takes a line at a time; a plain file keeps the last.
        assert_eq!(fs::read_to_string(root.join("init/cgroup.procs")).unwrap(), "7");
        fs::remove_file(root.join("cgroup.subtree_control")).unwrap();
        assert_eq!(move_aside(root).unwrap(), Vec::<String>::new());
        assert!(move_aside(&root.join("none")).is_err());
    }

    #[test]
    fn hierarchies() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Hierarchy::at(dir.path()), Hierarchy::Absent);
        fs::create_dir(dir.path().join("memory")).unwrap();
        assert_eq!(Hierarchy::at(dir.path()), Hierarchy::Legacy);
        fs::create_dir(dir.path().join("unified")).unwrap();
        fs::write(dir.path().join("unified/cgroup.procs"), "").unwrap();
        assert_eq!(Hierarchy::at(dir.path()), Hierarchy::Hybrid);
        fs::write(dir.path().join("cgroup.controllers"), "").unwrap();
        assert_eq!(Hierarchy::at(dir.path()), Hierarchy::Unified);
    }

    #[test]
    fn counters() {
        assert_eq!(counter("low 0\noom 2\noom_kill 3\n", "oom_kill"), 3);
        assert_eq!(counter("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n", "oom_kill"), 1);
        assert_eq!(counter("", "oom_kill"), 0);
    }
}
