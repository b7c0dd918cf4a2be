//! What file ops do to directories: copy, write, make, remove, link. Everything stays inside the roots it is given.
//!
//! The results are those of BuildKit down to owners, modes and times, because layers are compared by their bytes.
//! All functions block; they run on threads of their own.

mod actions;
mod archive;
mod copy;
mod error;
mod owner;
mod symbolic;
mod tree;

pub use actions::{mkdir, mkfile, rm, symlink};
pub use copy::{CopyOptions, copy};
pub use error::FileError;
pub use owner::{Owner, group_by_name, user_by_name};
pub use tree::{Time, Tree};
