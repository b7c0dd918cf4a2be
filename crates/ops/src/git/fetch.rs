//! Bringing commits into the bare repository of a remote.

use castor_store::RecordOptions;
use castor_task::blocking;

use super::error::redacted;
use super::remote::is_commit;
use super::{GitError, Objects, Repository, Resolved, Work};
use crate::OpError;

/// The name by which git is asked for the source.
pub(super) fn wanted(work: &Work<'_>, resolved: &Resolved) -> String {
    let source = work.source;
    if source.fetch_by_commit {
        return resolved.reference.clone();
    }
    match source.reference.as_str() {
        "" => resolved.reference.strip_prefix("refs/heads/").unwrap_or(&resolved.reference).to_owned(),
        reference => reference.to_owned(),
    }
}

/// What is looked at in the bare repository: a reference that was not fetched under its name is not in it.
pub(super) fn in_repository(work: &Work<'_>, resolved: &Resolved) -> String {
    if work.source.fetch_by_commit && !work.source.checksum.is_empty() {
        return work.source.checksum.clone();
    }
    wanted(work, resolved)
}

/// The remote's repository, with the commit in it. The caller holds the remote's lock.
pub(super) async fn fetch<'a>(work: &Work<'a>, resolved: &Resolved) -> Result<Repository<'a>, OpError> {
    let repository = match fetch_into(work, resolved, false).await {
        Err(OpError::Git(error)) if is_stale(error.stderr()) => fetch_into(work, resolved, true).await?,
        result => result?,
    };
    let (program, expected) = (&repository.program, work.source.checksum.as_str());
    if expected.is_empty() {
        return Ok(repository);
    }
    let name = in_repository(work, resolved);
    let during = || format!("failed to rev-parse {name} for {}", redacted(&work.source.remote));
    let object = program.line(&["rev-parse", &name]).await.map_err(|error| error.during(during()))?;
    if object.starts_with(expected) {
        return Ok(repository);
    }
    let commit = program.line(&["rev-parse", &format!("{name}^{{}}")]).await.unwrap_or_else(|_| object.clone());
    if commit.starts_with(expected) {
        return Ok(repository);
    }
    let found = if commit == object { object } else { format!("{object} or {commit}") };
    Err(GitError::Checksum { expected: expected.to_owned(), found }.into())
}

/// Whether what is here contradicts the remote: a tag that moved, a branch that is a directory of branches now.
fn is_stale(stderr: &str) -> bool {
    stderr.contains("rejected") && stderr.contains("(would clobber existing tag)")
        || stderr.contains("some local refs could not be updated;")
            && (stderr.contains("(unable to update local ref)") || stderr.contains("refname conflict"))
}

/// The repository that is kept of the remote, or an empty one; `anew` always makes one.
async fn open<'a>(work: &Work<'a>, resolved: &Resolved, anew: bool) -> Result<Repository<'a>, OpError> {
    let (store, remote) = (work.worker.store(), work.source.remote.as_str());
    let key = format!("git-remote:{remote}");
    let kept = match store.retained(&key).await {
        Some(kept) if anew => {
            kept.abandon().await;
            None
        }
        kept => kept,
    };
    let is_new = kept.is_none();
    let record = match kept {
        Some(kept) => kept,
        None => {
            let description = format!("shared git repo for {}", redacted(remote));
            store.new_mutable(work.cx, None, RecordOptions::described(description)).await?
        }
    };
    let mounting = record.mount(work.cx).await?;
    let dir = mounting.path().to_owned();
    let program = work.program.on(&dir);
    if is_new {
        let mut init = vec!["-c", "init.defaultBranch=master", "init", "--bare"];
        if resolved.checksum.len() == 64 {
            init.push("--object-format=sha256");
        }
        let at = |what: &str| format!("{what} at {}", dir.display());
        program.run(&init).await.map_err(|error| error.during(at("failed to init repo")))?;
        let add = program.run(&["remote", "add", "origin", remote]).await;
        add.map_err(|error| error.during(at("failed add origin repo")))?;
        record.retain_as(&key).await?;
    }
    Ok(Repository { program, dir, _mounting: mounting, _record: record })
}

async fn fetch_into<'a>(work: &Work<'a>, resolved: &Resolved, anew: bool) -> Result<Repository<'a>, OpError> {
    let repository = open(work, resolved, anew).await?;
    let (program, source) = (&repository.program, work.source);
    let reference = wanted(work, resolved);
    let asked = in_repository(work, resolved);
    if is_commit(&asked) && program.run(&["cat-file", "-e", "--", &format!("{asked}^{{commit}}")]).await.is_ok() {
        return Ok(repository);
    }
    // What a git that was killed left behind.
    let lock = repository.dir.join("shallow.lock");
    blocking(move || drop(std::fs::remove_file(lock))).await;
    let shallow = repository.dir.join("shallow");
    let is_shallow = || {
        let shallow = shallow.clone();
        blocking(move || shallow.symlink_metadata().is_ok())
    };
    // As a tag of the repository's own, so that the next fetch can tell the remote what is here already.
    let target = match reference.starts_with("refs/tags/") {
        true => reference.clone(),
        false => format!("tags/{reference}"),
    };
    let mut args = vec!["fetch"];
    if source.fetch_by_commit || !is_commit(&asked) {
        args.extend(["--depth=1", "--no-tags"]);
    } else {
        args.push("--tags");
        if is_shallow().await {
            args.push("--unshallow");
        }
    }
    args.push("origin");
    let refspec = format!("{asked}:{target}");
    match is_commit(&reference) {
        true => args.push(&reference),
        false => args.extend(["--force", "--", &refspec]),
    }
    let failed = |error: GitError| error.during(format!("failed to fetch remote {}", redacted(&source.remote)));
    program.run(&args).await.map_err(failed)?;
    if program.line(&["rev-parse", &asked]).await? == resolved.checksum {
        return Ok(repository);
    }
    // The remote moved on since it was asked; the commit that it had then is wanted, if it has it still.
    let target = if target.starts_with("refs/") { target } else { format!("refs/{target}") };
    let commit = resolved.checksum.as_str();
    if program.run(&["cat-file", "-e", commit]).await.is_err() {
        let mut args = vec!["fetch", "--tags"];
        if is_shallow().await {
            args.push("--unshallow");
        }
        args.extend(["origin", commit]);
        program.run(&args).await.map_err(failed)?;
        program.run(&["reflog", "expire", "--all", "--expire=now"]).await?;
        if program.run(&["cat-file", "-e", commit]).await.is_err() {
            let message = format!(
                "fetched ref {reference} does not match expected commit {commit} and commit can not be found in the \
                 repository"
            );
            return Err(GitError::Invalid(message).into());
        }
    }
    program.run(&["update-ref", &target, commit, "--no-deref"]).await?;
    Ok(repository)
}

/// The commit and the tag as they are stored; `resolved` learns which commit a tag names.
pub(super) async fn objects(repository: &Repository<'_>, resolved: &mut Resolved) -> Result<Objects, OpError> {
    let program = &repository.program;
    let object = resolved.checksum.clone();
    let kind = program.line(&["cat-file", "-t", &object]).await?;
    let mut objects = Objects::default();
    match kind.as_str() {
        "commit" => resolved.commit_of_tag = None,
        "tag" => {
            let commit = format!("{object}^{{commit}}");
            resolved.commit_of_tag = Some(program.line(&["rev-parse", &commit]).await?);
            objects.tag = program.run(&["cat-file", "tag", &object]).await?;
        }
        kind => {
            let message = format!("expected commit or tag object, got {kind}");
            return Err(GitError::Invalid(message).into());
        }
    }
    let commit = resolved.commit_of_tag.as_deref().unwrap_or(&object);
    objects.commit = program.run(&["cat-file", "commit", commit]).await?;
    Ok(objects)
}
