//! The floor: the base's tree freshly unpacked on the local file system, under overlayfs, nothing lazy.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use castor_integration::programs::run_command;

/// A copy of the base's tree that scripts run in.
#[derive(Debug)]
pub struct Floor {
    lower: PathBuf,
    place: PathBuf,
}

/// Mounts the overlay in a mount namespace of its own, which ends with the shell, and runs the script in it.
const ENTER: &str = "\
set -e
mount -t overlay overlay -o lowerdir=\"$1\",upperdir=\"$2/upper\",workdir=\"$2/work\" \"$2/merged\"
mkdir -p \"$2/merged/dev\" \"$2/merged/proc\"
mount --bind /dev \"$2/merged/dev\"
mount -t proc proc \"$2/merged/proc\"
exec chroot \"$2/merged\" /bin/sh -c \"$3\"
";

impl Floor {
    /// Copies the tree `root` to `place`.
    pub fn new(root: &Path, place: PathBuf) -> Result<Self> {
        let lower = place.join("lower");
        fs::create_dir_all(&place).with_context(|| format!("create {}", place.display()))?;
        let mut copy = Command::new("cp");
        copy.arg("-a").arg(root).arg(&lower);
        run_command(copy).context("unpack the floor")?;
        Ok(Self { lower, place })
    }

    /// Runs `script` with `variables` on an empty upper directory; what it prints.
    pub fn run(&self, script: &str, variables: &[(&str, &str)]) -> Result<String> {
        let over = self.place.join("over");
        for name in ["upper", "work", "merged"] {
            fs::create_dir_all(over.join(name)).with_context(|| format!("create {name}"))?;
        }
        let mut shell = Command::new("unshare");
        shell.args(["--mount", "--propagation", "private", "sh", "-c", ENTER, "sh"]);
        shell.arg(&self.lower).arg(&over).arg(script).env_clear().envs(variables.iter().copied());
        let printed = run_command(shell);
        fs::remove_dir_all(&over).context("remove the floor's changes")?;
        printed
    }
}
