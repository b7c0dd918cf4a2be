//! Why a repository could not be had.

/// Why a repository could not be had.
#[derive(Debug, thiserror::Error)]
pub enum GitError {
    /// The request makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// Git could not be started.
    #[error("failed to start git: {0}")]
    Start(String),
    /// Git failed, and said why.
    #[error("git stderr:\n{stderr}: {status}")]
    Failed {
        /// What it wrote.
        stderr: String,
        /// How it ended.
        status: String,
    },
    /// Git said more than anybody needs.
    #[error("output of git exceeds {0} bytes")]
    TooMuch(usize),
    /// Something failed on the way.
    #[error("{doing}: {source}")]
    While {
        /// What was done.
        doing: String,
        /// Why it failed.
        source: Box<GitError>,
    },
    /// The remote does not have it.
    #[error("repository does not contain ref {reference}, output: {output:?}")]
    NoReference {
        /// What was asked for.
        reference: String,
        /// What there is.
        output: String,
    },
    /// It is another commit.
    #[error("expected checksum to match {expected}, got {found}")]
    Checksum {
        /// What was asked for.
        expected: String,
        /// What there is.
        found: String,
    },
    /// A file or directory of this side failed.
    #[error("{doing}: {source}")]
    Io {
        /// What was done.
        doing: String,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// Nobody wants it any more.
    #[error("context canceled")]
    Cancelled,
}

impl GitError {
    /// With what was done when it happened.
    pub(super) fn during(self, doing: impl Into<String>) -> Self {
        match self {
            Self::Cancelled => Self::Cancelled,
            other => Self::While { doing: doing.into(), source: Box::new(other) },
        }
    }

    /// What git wrote, if it was git that failed.
    pub(super) fn stderr(&self) -> &str {
        match self {
            Self::Failed { stderr, .. } => stderr,
            Self::While { source, .. } => source.stderr(),
            _ => "",
        }
    }

    /// Whether nobody wants it any more.
    pub(crate) fn is_cancelled(&self) -> bool {
        matches!(self, Self::Cancelled)
    }
}

/// A URL without user and password.
pub(super) fn redacted(remote: &str) -> String {
    const MASK: &str = "xxxxx";
    let Ok(mut url) = remote.parse::<reqwest::Url>() else { return remote.to_owned() };
    if url.username().is_empty() && url.password().is_none() {
        return remote.to_owned();
    }
    // Only URLs without a host refuse, and they have no user.
    if !url.username().is_empty() {
        let _ = url.set_username(MASK);
    }
    if url.password().is_some() {
        let _ = url.set_password(Some(MASK));
    }
    url.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_not_shown() {
        assert_eq!(redacted("https://me:secret@h/r.git"), "https://xxxxx:xxxxx@h/r.git");
        assert_eq!(redacted("https://token@h/r.git"), "https://xxxxx@h/r.git");
        assert_eq!(redacted("git@h:r.git"), "git@h:r.git");
        assert_eq!(redacted("https://h/r.git"), "https://h/r.git");
    }

    #[test]
    fn what_git_wrote_is_found_below_what_was_done() {
        let failed = GitError::Failed { stderr: "fatal: no".into(), status: "exit status 128".into() };
        let error = failed.during("failed to fetch remote x");
        assert_eq!(error.stderr(), "fatal: no");
        assert_eq!(error.to_string(), "failed to fetch remote x: git stderr:\nfatal: no: exit status 128");
        assert!(GitError::Cancelled.during("x").is_cancelled());
    }
}
