//! Provenance: what a result was made from, by whom, and how, in SLSA's form.
//!
//! [`Trail`] remembers while the build runs what its frontends asked for; a [`capture::Capture`] is what is known of one
//! result afterwards; a [`predicate::Predicate`] is the statement that leaves.

mod attest;
mod capture;
mod made;
mod predicate;
mod purl;
mod statements;
mod steps;
mod trail;

pub(crate) use attest::{Wishes, csv_fields};
pub(crate) use capture::Capture;
pub(crate) use made::MadeBefore;
pub(crate) use predicate::Facts;
pub(crate) use statements::Known;
pub(crate) use trail::{Asked, ImageSource, Trail};
