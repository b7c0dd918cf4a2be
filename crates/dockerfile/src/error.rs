//! Errors, with the places in the file that they are about.

use std::fmt;

use castor_llb::Range;

use crate::lint::Warning;

/// Places that an error is about, innermost first. Each becomes one source of BuildKit's error details.
pub type Locations = Vec<Vec<Range>>;

/// Why a Dockerfile cannot be built.
#[derive(Debug)]
pub struct DockerfileError {
    message: String,
    locations: Locations,
    cause: Option<crate::LookupError>,
    warnings: Vec<Warning>,
}

impl DockerfileError {
    /// An error with BuildKit's words.
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), locations: Vec::new(), cause: None, warnings: Vec::new() }
    }

    /// A look-up that failed.
    pub(crate) fn lookup(cause: crate::LookupError) -> Self {
        Self { message: cause.to_string(), locations: Vec::new(), cause: Some(cause), warnings: Vec::new() }
    }

    /// Puts words before the message.
    #[must_use]
    pub(crate) fn context(mut self, context: impl fmt::Display) -> Self {
        self.message = format!("{context}: {}", self.message);
        self
    }

    /// Puts words behind the message.
    #[must_use]
    pub(crate) fn suffix(mut self, suffix: &str) -> Self {
        self.message.push_str(suffix);
        self
    }

    /// Adds a place.
    #[must_use]
    pub(crate) fn at(mut self, location: &[Range]) -> Self {
        self.locations.push(location.to_vec());
        self
    }

    /// Says that the error is about this place and no other.
    #[must_use]
    pub(crate) fn only_at(mut self, location: &[Range]) -> Self {
        self.locations = vec![location.to_vec()];
        self
    }

    /// Adds what was found before it came to the error.
    #[must_use]
    pub(crate) fn warned(mut self, warnings: Vec<Warning>) -> Self {
        self.warnings = warnings;
        self
    }

    /// What is legal but unwise, found before it came to the error.
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    /// What users read.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Places in the Dockerfile, innermost first.
    pub fn locations(&self) -> &Locations {
        &self.locations
    }

    /// The look-up that failed, if that is the reason.
    pub fn cause(&self) -> Option<&crate::LookupError> {
        self.cause.as_ref()
    }
}

impl fmt::Display for DockerfileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for DockerfileError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.cause.as_ref().map(|cause| &**cause as &(dyn std::error::Error + 'static))
    }
}

impl From<crate::OptionsError> for DockerfileError {
    fn from(error: crate::OptionsError) -> Self {
        Self::new(error.to_string())
    }
}

/// The result of everything here.
pub(crate) type Result<T, E = DockerfileError> = std::result::Result<T, E>;
