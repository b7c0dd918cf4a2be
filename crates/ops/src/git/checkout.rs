//! Making files of a commit.

use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Component, Path, PathBuf};

use castor_store::{ImmutableRef, RecordOptions, RecordType};
use castor_task::blocking;
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};

use super::error::redacted;
use super::fetch::{in_repository, wanted};
use super::program::Program;
use super::remote::is_commit;
use super::{GitError, Repository, Resolved, Work};
use crate::OpError;

/// A record with the files of the source.
pub(super) async fn check_out(
    work: &Work<'_>,
    repository: &Repository<'_>,
    resolved: &Resolved,
) -> Result<ImmutableRef, OpError> {
    let source = work.source;
    let shown = redacted(&source.remote);
    let reference = wanted(work, resolved);
    let options = RecordOptions {
        record_type: RecordType::GitCheckout,
        ..RecordOptions::described(format!("git snapshot for {shown}#{reference}"))
    };
    let record = work.worker.store().new_mutable(work.cx, None, options).await?;
    let mounting = record.mount(work.cx).await?;
    let dir = mounting.path().to_owned();

    let object = in_repository(work, resolved);
    let subdir = Some(source.subdir.as_str()).filter(|subdir| !subdir.is_empty());
    let (tree, git_dir) = match subdir {
        None if source.keep_git_dir => {
            let git_dir = clone(work, repository, resolved, &dir).await?;
            (dir.clone(), git_dir)
        }
        subdir => {
            let tree = match subdir {
                None => dir.clone(),
                Some(_) => private_dir(&dir).await?,
            };
            let program = repository.program.in_tree(&tree);
            let checkout = program.run(&["checkout", "--no-overlay", &object, "--", "."]).await;
            checkout.map_err(|error| error.during(format!("failed to checkout remote {shown}")))?;
            (tree, repository.dir.clone())
        }
    };
    let program = repository.program.on(&git_dir).in_tree(&tree);
    if !source.skip_submodules {
        let update = program.run(&["submodule", "update", "--init", "--recursive", "--depth=1"]).await;
        update.map_err(|error| error.during(format!("failed to update submodules for {shown}")))?;
    }
    if let Some(subdir) = subdir {
        let (subdir, tree, dir) = (subdir.to_owned(), tree.clone(), dir.clone());
        blocking(move || raise(&tree, &subdir, &dir)).await?;
    }
    if source.mtime == "commit" {
        let seconds = commit_time(&repository.program, &object).await;
        let seconds = seconds.map_err(|error| error.during(format!("failed to get commit time for {shown}")))?;
        let dir = dir.clone();
        blocking(move || set_times(&dir, seconds))
            .await
            .map_err(|source| GitError::Io { doing: format!("failed to normalize mtimes for {shown}"), source })?;
    }
    drop(mounting);
    Ok(record.commit().await?)
}

/// Makes a repository of its own in `dir`, with the files checked out: it can be used like a clone of the remote.
async fn clone(
    work: &Work<'_>,
    repository: &Repository<'_>,
    resolved: &Resolved,
    dir: &Path,
) -> Result<PathBuf, OpError> {
    let (bare, source) = (&repository.program, work.source);
    let (reference, object) = (wanted(work, resolved), in_repository(work, resolved));
    let git_dir = dir.join(".git");
    let program = bare.on(&git_dir).in_tree(dir);
    let mut init = vec!["-c", "init.defaultBranch=master", "init"];
    if resolved.checksum.len() == 64 {
        init.push("--object-format=sha256");
    }
    program.run(&init).await?;
    // By its protocol, even though it is a directory: copies of object files could bring in other files of this machine.
    let origin = format!("file://{}", repository.dir.display());
    program.run(&["remote", "add", "origin", &origin]).await?;
    let is_tag = bare.line(&["cat-file", "-t", &object]).await? == "tag";
    let pulled = if is_tag {
        let tag = reference.strip_prefix("refs/tags/").unwrap_or(&reference);
        format!("{reference}:refs/tags/{tag}")
    } else if source.fetch_by_commit && reference != object {
        format!("{object}:{reference}")
    } else if is_commit(&reference) {
        // A commit is given by the bare repository only under a name.
        let name = format!("refs/buildkit/{}", crate::random_id());
        bare.run(&["update-ref", &name, &reference]).await?;
        name
    } else {
        format!("{reference}:{reference}")
    };
    program.run(&["fetch", "-u", "--depth=1", "--", "origin", &pulled]).await?;
    let shown = redacted(&source.remote);
    let checkout = program.run(&["checkout", "FETCH_HEAD"]).await;
    checkout.map_err(|error| error.during(format!("failed to checkout remote {shown}")))?;
    let renamed = program.run(&["remote", "set-url", "origin", &shown]).await;
    renamed.map_err(|error| error.during(format!("failed to set remote origin to {shown}")))?;
    // What says when and whence it was fetched would make equal checkouts differ.
    program.run(&["reflog", "expire", "--all", "--expire=now"]).await?;
    let fetched = git_dir.join("FETCH_HEAD");
    blocking(move || drop(std::fs::remove_file(fetched))).await;
    Ok(git_dir)
}

/// A new directory in `dir` for files on their way.
async fn private_dir(dir: &Path) -> Result<PathBuf, GitError> {
    let path = dir.join(format!("checkout-{}", crate::random_id()));
    let made = path.clone();
    let made = blocking(move || std::fs::DirBuilder::new().mode(0o700).create(made)).await;
    made.map_err(|source| GitError::Io { doing: "failed to create temporary checkout dir".to_owned(), source })?;
    Ok(path)
}

/// Moves what is in `subdir` of `tree`, which lies in `dir`, up to `dir`, and removes the rest. The path must lead
/// through directories alone: a link could lead anywhere.
fn raise(tree: &Path, subdir: &str, dir: &Path) -> Result<(), GitError> {
    let io = |source: io::Error| GitError::Io { doing: format!("invalid subdir {subdir}"), source };
    let mut path = tree.to_owned();
    for part in Path::new(subdir).components() {
        let Component::Normal(part) = part else { continue };
        path.push(part);
        if !path.symlink_metadata().map_err(io)?.is_dir() {
            let below = path.strip_prefix(tree).unwrap_or(&path);
            let message = format!(
                "invalid subdir {subdir}: git subpath {subdir:?} contains non-directory {:?}",
                below.display().to_string()
            );
            return Err(GitError::Invalid(message));
        }
    }
    for entry in std::fs::read_dir(&path).map_err(io)? {
        let entry = entry.map_err(io)?;
        std::fs::rename(entry.path(), dir.join(entry.file_name())).map_err(io)?;
    }
    std::fs::remove_dir_all(tree).map_err(io)
}

/// When the commit was made, seconds since 1970.
async fn commit_time(program: &Program<'_>, object: &str) -> Result<i64, GitError> {
    let time = program.line(&["log", "-1", "--format=%ct", &format!("{object}^{{commit}}")]).await?;
    time.parse().map_err(|_| GitError::Invalid(format!("failed to parse commit timestamp {time:?}")))
}

/// Gives everything in `dir` the same time, what is in directories first.
fn set_times(dir: &Path, seconds: i64) -> io::Result<()> {
    let mut left = vec![dir.to_owned()];
    let mut dirs = Vec::new();
    while let Some(dir) = left.pop() {
        for entry in std::fs::read_dir(&dir)? {
            let entry = entry?;
            match entry.file_type()?.is_dir() {
                true => left.push(entry.path()),
                false => set_time(&entry.path(), seconds)?,
            }
        }
        dirs.push(dir);
    }
    dirs.iter().rev().try_for_each(|dir| set_time(dir, seconds))
}

fn set_time(path: &Path, seconds: i64) -> io::Result<()> {
    let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    Ok(utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_subdirectory_takes_the_place_of_all() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("checkout-x");
        fs::create_dir_all(tree.join("a/b/c")).unwrap();
        fs::write(tree.join("a/b/f"), "1").unwrap();
        fs::write(tree.join("other"), "2").unwrap();
        raise(&tree, "a/b", dir.path()).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("f")).unwrap(), "1");
        assert!(dir.path().join("c").is_dir() && !tree.exists() && !dir.path().join("other").exists());
    }

    #[test]
    fn a_subdirectory_is_reached_through_directories_alone() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("checkout-x");
        fs::create_dir_all(tree.join("real")).unwrap();
        std::os::unix::fs::symlink("/etc", tree.join("link")).unwrap();
        let error = raise(&tree, "link", dir.path()).unwrap_err().to_string();
        assert_eq!(error, "invalid subdir link: git subpath \"link\" contains non-directory \"link\"");
        assert!(raise(&tree, "absent", dir.path()).is_err());
    }

    #[test]
    fn times_reach_everything() {
        use std::os::unix::fs::MetadataExt as _;
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("a/b")).unwrap();
        fs::write(dir.path().join("a/b/f"), "1").unwrap();
        std::os::unix::fs::symlink("nowhere", dir.path().join("a/l")).unwrap();
        set_times(dir.path(), 1_700_000_000).unwrap();
        for path in ["", "a", "a/b", "a/b/f", "a/l"] {
            assert_eq!(dir.path().join(path).symlink_metadata().unwrap().mtime(), 1_700_000_000, "{path}");
        }
    }
}
