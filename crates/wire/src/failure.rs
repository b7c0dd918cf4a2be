//! Errors as they cross the wire.

use std::fmt;

use bytes::Bytes;
use castor_proto::errdefs::Detail;
use castor_proto::{Any, rpc};
use prost::Message as _;
use tonic::{Code, Status};

/// An error with its details.
///
/// A detail is kept as it came, whether it is understood here or not, so that
/// an error passes through a daemon without loss.
#[derive(Clone)]
pub struct Failure {
    /// What kind of error.
    pub code: Code,
    /// What the user reads.
    pub message: String,
    details: Vec<Any>,
}

impl Failure {
    /// An error without details.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), details: Vec::new() }
    }

    /// Adds a detail. The first that is added is the innermost.
    #[must_use]
    pub fn with<D: Detail>(mut self, detail: &D) -> Self {
        self.push(detail);
        self
    }

    /// Adds a detail.
    pub fn push<D: Detail>(&mut self, detail: &D) {
        match serde_json::to_vec(detail) {
            Ok(value) => self.details.push(Any { type_url: D::TYPE_URL.to_owned(), value }),
            // None of the details has a key that is not text; an error must not
            // fail for its trimmings.
            Err(error) => tracing::warn!(url = D::TYPE_URL, %error, "encode an error detail"),
        }
    }

    /// Puts words in front of the message.
    #[must_use]
    pub fn context(mut self, words: impl fmt::Display) -> Self {
        self.message = format!("{words}: {}", self.message);
        self
    }

    /// The details of one type that can be read, in their order.
    pub fn details<D: Detail>(&self) -> Vec<D> {
        self.details
            .iter()
            .filter(|any| any.type_url == D::TYPE_URL)
            .filter_map(|any| serde_json::from_slice(&any.value).ok())
            .collect()
    }

    /// Whether there is a detail of a type.
    pub fn has<D: Detail>(&self) -> bool {
        self.details.iter().any(|any| any.type_url == D::TYPE_URL)
    }

    /// The wire form.
    pub fn to_rpc(&self) -> rpc::Status {
        rpc::Status { code: self.code as i32, message: self.message.clone(), details: self.details.clone() }
    }

    /// From the wire form.
    pub fn from_rpc(status: rpc::Status) -> Self {
        Self { code: Code::from_i32(status.code), message: status.message, details: status.details }
    }

    /// As the outcome of a call.
    pub fn to_status(&self) -> Status {
        if self.details.is_empty() {
            return Status::new(self.code, self.message.clone());
        }
        Status::with_details(self.code, self.message.clone(), Bytes::from(self.to_rpc().encode_to_vec()))
    }

    /// From the outcome of a call.
    pub fn from_status(status: &Status) -> Self {
        let details = match rpc::Status::decode(status.details()) {
            Ok(decoded) => decoded.details,
            Err(_) => Vec::new(),
        };
        Self { code: status.code(), message: status.message().to_owned(), details }
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let details: Vec<&str> = self.details.iter().map(|any| any.type_url.as_str()).collect();
        f.debug_struct("Failure")
            .field("code", &self.code)
            .field("message", &self.message)
            .field("details", &details)
            .finish()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        failure.to_status()
    }
}

impl From<&Status> for Failure {
    fn from(status: &Status) -> Self {
        Self::from_status(status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use castor_proto::errdefs::{Frontend, Vertex};

    #[test]
    fn details_survive_every_way_untouched() {
        let unknown = Any { type_url: "example.com/x".into(), value: b"\x00\xffnot json".to_vec() };
        let mut failure = Failure::new(Code::Unimplemented, "no").with(&Vertex { digest: "sha256:aa".into() });
        failure.details.push(unknown.clone());
        failure.push(&Vertex { digest: "sha256:bb".into() });

        let back = Failure::from_status(&failure.to_status());
        let back = Failure::from_rpc(back.to_rpc());
        assert_eq!(back.code, Code::Unimplemented);
        assert_eq!(back.message, "no");
        assert_eq!(back.details, failure.details);
        assert_eq!(back.details[1], unknown);
        let digests: Vec<String> = back.details::<Vertex>().into_iter().map(|vertex| vertex.digest).collect();
        assert_eq!(digests, ["sha256:aa", "sha256:bb"]);
        assert!(!back.has::<Frontend>());
        assert_eq!(&back.details[0].value[..], br#"{"digest":"sha256:aa"}"#);
    }

    #[test]
    fn an_error_without_details_has_none_on_the_wire() {
        let status = Failure::new(Code::NotFound, "gone").context("look up").to_status();
        assert_eq!(status.message(), "look up: gone");
        assert!(status.details().is_empty());
    }
}
