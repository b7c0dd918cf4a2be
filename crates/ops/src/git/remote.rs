//! What a reference means at the remote.

use castor_llb::GitSource;

use super::error::redacted;
use super::{GitError, Work};
use crate::OpError;

/// What a source was found to mean.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Resolved {
    /// The reference in full, or the commit where that was asked for.
    pub(crate) reference: String,
    /// What it names: a commit, or a tag.
    pub(crate) checksum: String,
    /// The commit, if the reference is a tag with a text of its own.
    pub(crate) commit_of_tag: Option<String>,
}

/// Whether it is the complete name of an object.
pub(super) fn is_commit(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

fn mismatch(source: &GitSource, found: impl Into<String>) -> GitError {
    GitError::Checksum { expected: source.checksum.clone(), found: found.into() }
}

/// What can be said without asking the remote.
pub(super) fn known(source: &GitSource) -> Result<Option<Resolved>, GitError> {
    let GitSource { reference, checksum, .. } = source;
    if !checksum.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(GitError::Invalid(format!("invalid checksum {checksum} for Git URL, expected hex commit hash")));
    }
    if is_commit(reference) {
        if !reference.starts_with(checksum.as_str()) {
            return Err(mismatch(source, reference));
        }
        return Ok(Some(Resolved { reference: reference.clone(), checksum: reference.clone(), commit_of_tag: None }));
    }
    if !source.fetch_by_commit {
        return Ok(None);
    }
    if checksum.is_empty() {
        let message = "fetch-by-commit requires a checksum or a commit SHA ref";
        return Err(GitError::Invalid(message.to_owned()));
    }
    if !is_commit(checksum) {
        return Err(GitError::Invalid(format!(
            "fetch-by-commit requires a full commit SHA checksum, got {checksum:?}"
        )));
    }
    // As if the remote had been asked, which prefers branches.
    let reference = match reference.as_str() {
        "" => checksum.clone(),
        full if full.starts_with("refs/") => full.to_owned(),
        branch => format!("refs/heads/{branch}"),
    };
    Ok(Some(Resolved { reference, checksum: checksum.clone(), commit_of_tag: None }))
}

/// Asks the remote.
pub(super) async fn ask(work: &Work<'_>) -> Result<Resolved, OpError> {
    let source = work.source;
    let reference = match source.reference.as_str() {
        "" => default_branch(work).await?,
        reference => reference.to_owned(),
    };
    let peeled = format!("{reference}^{{}}");
    let listed = work
        .program
        .run(&["ls-remote", "--", &source.remote, &reference, &peeled])
        .await
        .map_err(|error| error.during(format!("failed to fetch remote {}", redacted(&source.remote))))?;
    Ok(choose(source, &reference, &String::from_utf8_lossy(&listed))?)
}

/// The branch that a clone of the remote has checked out.
pub(super) async fn default_branch(work: &Work<'_>) -> Result<String, GitError> {
    let remote = &work.source.remote;
    let listed =
        work.program.run(&["ls-remote", "--symref", remote, "HEAD"]).await.map_err(|error| {
            error.during(format!("error fetching default branch for repository {}", redacted(remote)))
        })?;
    let listed = String::from_utf8_lossy(&listed);
    let branch = listed.split_once("refs/heads/").and_then(|(_, rest)| rest.split_whitespace().next());
    match branch {
        Some(branch) if branch.starts_with('-') => Err(GitError::Invalid(format!("invalid git ref {branch:?}"))),
        Some(branch) => Ok(branch.to_owned()),
        None => {
            let remote = redacted(remote);
            Err(GitError::Invalid(format!("could not find default branch for repository: {remote}")))
        }
    }
}

/// What `reference` means among what the remote listed: an exact name first, then a branch, then a tag.
fn choose(source: &GitSource, reference: &str, listed: &str) -> Result<Resolved, GitError> {
    let full = |prefix: &str| format!("{prefix}{}", reference.strip_prefix(prefix).unwrap_or(reference));
    let find = |name: &str| {
        let mut lines = listed.lines().filter_map(|line| line.split_once('\t'));
        lines.rfind(|(_, listed)| *listed == name).map(|(object, _)| object.to_owned())
    };
    let (exact, branch, tag) = (full("refs/"), full("refs/heads/"), full("refs/tags/"));
    // A branch or a tag by its full name is found as such.
    let other = (exact != branch && exact != tag).then(|| find(&exact)).flatten();
    let direct = other.map(|object| (object, exact)).or_else(|| find(&branch).map(|object| (object, branch)));
    let (checksum, reference, commit_of_tag) = match (direct, find(&tag)) {
        (Some((object, name)), _) => (object, name, None),
        (None, Some(object)) => {
            let peeled = find(&format!("{tag}^{{}}"));
            (object, tag, peeled)
        }
        (None, None) => {
            let (reference, output) = (reference.to_owned(), listed.to_owned());
            return Err(GitError::NoReference { reference, output });
        }
    };
    if !is_commit(&checksum) {
        return Err(GitError::Invalid(format!("invalid commit sha {checksum:?}")));
    }
    let wanted = source.checksum.as_str();
    let peeled = commit_of_tag.as_deref().unwrap_or_default();
    if !wanted.is_empty() && !checksum.starts_with(wanted) && !peeled.starts_with(wanted) {
        let found = if peeled.is_empty() { checksum } else { format!("{checksum} or {peeled}") };
        return Err(mismatch(source, found));
    }
    Ok(Resolved { reference, checksum, commit_of_tag: commit_of_tag.filter(|_| !source.keep_git_dir) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
    const C: &str = "cccccccccccccccccccccccccccccccccccccccc";

    fn source(checksum: &str) -> GitSource {
        GitSource { checksum: checksum.to_owned(), ..GitSource::default() }
    }

    #[test]
    fn branches_come_before_tags() {
        let listed = format!("{A}\trefs/heads/v1\n{B}\trefs/tags/v1\n{C}\trefs/tags/v1^{{}}\n");
        let found = choose(&source(""), "v1", &listed).unwrap();
        assert_eq!((found.reference.as_str(), found.checksum.as_str()), ("refs/heads/v1", A));
        assert_eq!(found.commit_of_tag, None);
        let found = choose(&source(""), "refs/tags/v1", &listed).unwrap();
        assert_eq!((found.reference.as_str(), found.checksum.as_str()), ("refs/tags/v1", B));
        assert_eq!(found.commit_of_tag.as_deref(), Some(C));
        let found = choose(&source(""), "pull/1/head", &format!("{C}\trefs/pull/1/head\n")).unwrap();
        assert_eq!(found.reference, "refs/pull/1/head");
    }

    #[test]
    fn tags_with_a_text_lead_to_their_commit() {
        let listed = format!("{B}\trefs/tags/v1\n{C}\trefs/tags/v1^{{}}\n");
        let found = choose(&source("cccc"), "v1", &listed).unwrap();
        assert_eq!((found.checksum.as_str(), found.commit_of_tag.as_deref()), (B, Some(C)));
        let kept = GitSource { keep_git_dir: true, ..source("") };
        assert_eq!(choose(&kept, "v1", &listed).unwrap().commit_of_tag, None);
        let error = choose(&source("dd"), "v1", &listed).unwrap_err();
        assert_eq!(error.to_string(), format!("expected checksum to match dd, got {B} or {C}"));
    }

    #[test]
    fn what_is_not_there_is_told() {
        let error = choose(&source(""), "v2", &format!("{A}\trefs/heads/x/v2\n")).unwrap_err();
        assert!(error.to_string().starts_with("repository does not contain ref v2, output: "), "{error}");
        assert!(choose(&source(""), "v2", "ext\trefs/heads/v2\n").is_err());
    }

    #[test]
    fn commits_are_known_without_asking() {
        let commit =
            |reference: &str, checksum: &str| known(&GitSource { reference: reference.to_owned(), ..source(checksum) });
        assert_eq!(commit(A, "aa").unwrap().unwrap().checksum, A);
        assert_eq!(commit("v1", "").unwrap(), None);
        assert!(commit(A, "bb").is_err());
        let error = commit("v1", "xyz").unwrap_err().to_string();
        assert_eq!(error, "invalid checksum xyz for Git URL, expected hex commit hash");
        let by_commit = |reference: &str, checksum: &str| {
            known(&GitSource { reference: reference.to_owned(), fetch_by_commit: true, ..source(checksum) })
        };
        assert_eq!(by_commit("main", A).unwrap().unwrap().reference, "refs/heads/main");
        assert!(by_commit("main", "aa").is_err() && by_commit("main", "").is_err());
    }
}
