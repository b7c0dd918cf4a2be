//! Mounts as values.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use crate::detached::{Detached, Mounted, bind};
use crate::error::MountError;
use crate::overlay::{Lower, Overlay, Upper};
use crate::root::Root;

/// A mount as containerd writes it down.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Mount {
    /// `overlay`, `bind`, `tmpfs`, `erofs`, ...
    pub kind: String,
    /// What is mounted.
    pub source: String,
    /// Where below the target, if not at it.
    pub target: Option<PathBuf>,
    /// Options as in fstab.
    pub options: Vec<String>,
}

impl Mount {
    /// A bind mount of `source`.
    pub fn bind(source: impl Into<String>, read_only: bool) -> Self {
        let access = if read_only { "ro" } else { "rw" };
        Self { kind: "bind".into(), source: source.into(), target: None, options: vec!["rbind".into(), access.into()] }
    }

    /// The value of option `key=value`.
    pub fn option(&self, key: &str) -> Option<&str> {
        self.options.iter().find_map(|o| o.strip_prefix(key)?.strip_prefix('='))
    }

    fn has(&self, option: &str) -> bool {
        self.options.iter().any(|o| o == option)
    }

    /// Mounts it, detached: kinds `bind` and `overlay`, those that snapshots are made of.
    pub fn mount(&self) -> Result<Detached, MountError> {
        match self.kind.as_str() {
            "bind" => bind(Path::new(&self.source), self.has("rbind"), self.has("ro")),
            "overlay" => {
                let lowers: Vec<&str> = self.option("lowerdir").unwrap_or_default().split(':').collect();
                let upper = match (self.option("upperdir"), self.option("workdir")) {
                    (Some(dir), Some(work)) => Some(Upper { dir: dir.into(), work: work.into() }),
                    _ => None,
                };
                Overlay {
                    lowers: lowers.into_iter().map(|path| Lower::Directory(Path::new(path))).collect(),
                    upper,
                    volatile: self.has("volatile"),
                    ..Overlay::default()
                }
                .mount()
            }
            other => {
                let reason =
                    std::io::Error::new(std::io::ErrorKind::Unsupported, "not a kind that can be mounted here");
                Err(MountError::new("mount", format!("{other} file system"), reason))
            }
        }
    }
}

/// Mounts `mounts` at `target`, in order; a mount with a target of its own goes to that path below, resolved inside.
pub fn apply(mounts: &[Mount], target: &Path) -> Result<Vec<Mounted>, MountError> {
    let mut mounted = Vec::with_capacity(mounts.len());
    for mount in mounts {
        let at = match &mount.target {
            None => target.to_owned(),
            Some(below) => {
                let failed = |e: crate::RootError| {
                    MountError::new("resolve", below.display().to_string(), std::io::Error::other(e))
                };
                Root::open(target).and_then(|root| root.resolve(below)).map_err(failed)?
            }
        };
        if CString::new(at.as_os_str().as_bytes()).is_err() {
            continue;
        }
        mounted.push(mount.mount()?.attach(&at)?);
    }
    // Dropped in order of the vector; the last mounted must go first.
    mounted.reverse();
    Ok(mounted)
}
