//! Parts for tests: a registry with faults, a slow relay, the real docker-registry, image fixtures, a leak check, a cgroup, a
//! terminal.
//!
//! Everything here ends with its value: listeners, processes and directories do not outlive the test. Functions panic when
//! they fail, which is what a test wants.

#![allow(clippy::unwrap_used, clippy::missing_panics_doc, clippy::result_large_err)]

mod fixture;
mod http1;
mod leak;
mod memory;
mod real;
mod registry;
mod relay;
mod terminal;

pub use fixture::{File, FileKind, Form, Image, ImageBuilder, Layer, tar_of};
pub use leak::LeakCheck;
pub use memory::MemoryLimit;
pub use real::RealRegistry;
pub use registry::{Auth, Fault, Logged, On, Registry, RegistryBuilder};
pub use relay::{Relay, RelayOptions};
pub use terminal::{Color, Terminal};
