//! Walking, filtering, sending and receiving directory trees the way
//! BuildKit's clients and daemon do it between them.
//!
//! - [`mode`] translates between Go's file modes, which travel on the wire, and
//!   the kernel's.
//! - [`Patterns`] are the rules of `.dockerignore`: later rules win, `!` takes
//!   back, `**` crosses directories, and a rule that holds for a directory holds
//!   for what is below it.
//! - [`Filter`] joins rules to include and to exclude with paths whose links
//!   are followed; [`Directory`] is a tree on disk seen through one.
//! - [`send`] announces a [`Tree`] and serves its contents; [`receive`] makes a
//!   directory equal to what is announced and asks only for what changed.
//!
//! Both halves of the transfer speak over a [`Link`] and never wait for the
//! peer in a way that could make the peer wait for them: whoever reads the link
//! is only ever held up by the local disk.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod directory;
mod error;
mod filter;
mod follow;
mod glob;
pub mod mode;
mod order;
pub mod path;
mod pattern;
mod receive;
mod send;
mod tree;
mod walk;
mod write;

pub use castor_proto::fsutil::{Packet, Stat, packet::PacketType};
pub use directory::Directory;
pub use error::{TransferError, WalkError, code_name};
pub use filter::{Filter, FilterError, FilterOptions, MapResult, Mapper};
pub use follow::follow_links;
pub use glob::{BadPattern, glob_match, has_wildcards};
pub use order::{Validator, compare_paths};
pub use pattern::{ParentMatches, PatternError, Patterns};
pub use receive::{Change, ContentHash, Differ, Observer, ReceiveOptions, StatFilter, StatMap, receive};
pub use send::{Link, Progress, send};
pub use tree::{Files, Overlaid, Subdirectories, Tree, Visit};
pub use walk::{Step, Walk};
