//! Fuzzing of what reads untrusted bytes, on stable Rust and with nothing installed.
//!
//! A [`Target`] makes inputs out of others, knowing their form: fields are changed and checksums mended, so that what lies
//! behind the first check is reached too. It runs each, and panics when a promise is broken: an answer or an error, in bounded
//! time and memory, and an answer that holds together. What shows something new (another error, another magnitude) becomes
//! a seed of further inputs. All of it follows from one number, so a run can be repeated.
//!
//! `make fuzz` runs all targets, each in a process of its own with bounds on memory and time; what fails is saved and named.

mod mutate;
mod random;
mod run;
mod targets;

pub use random::Random;
pub use run::{Pool, Session};
pub use targets::{Target, all, by_name};
