//! How image trees are mounted on this machine: probed once, by trying in place.

use std::fmt;
use std::str::FromStr;

/// A way of mounting an image tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// EROFS over the data files themselves: all layers complete, no server.
    Erofs,
    /// EROFS over files that castor's own FUSE file system serves.
    ErofsFuse,
    /// As [`Mode::Erofs`], over loop devices.
    ErofsLoop,
    /// As [`Mode::ErofsFuse`], over loop devices.
    ErofsFuseLoop,
    /// A whole file system in user space.
    Fuse,
}

impl Mode {
    /// Its name in configuration, log and `debug workers`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Erofs => "erofs",
            Self::ErofsFuse => "erofs+fuse",
            Self::ErofsLoop => "erofs+loop",
            Self::ErofsFuseLoop => "erofs+fuse+loop",
            Self::Fuse => "fuse",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Erofs, Self::ErofsFuse, Self::ErofsLoop, Self::ErofsFuseLoop, Self::Fuse]
            .into_iter()
            .find(|mode| mode.name() == text)
            .ok_or_else(|| format!("unknown mode {text:?}: want erofs, erofs+fuse, erofs+loop, erofs+fuse+loop or fuse"))
    }
}

/// What the probe found.
#[derive(Debug, Clone)]
pub struct Modes {
    /// How complete layers are mounted; or why they cannot be.
    pub complete: Result<Mode, String>,
    /// How lazy layers are mounted; or why they cannot be (all layers are then eager, and say so).
    pub lazy: Result<Mode, String>,
}
