//! COPY and ADD.

use castor_llb::state::{Action, Constraints, CopyOptions, HttpOptions, Owner, join};
use castor_llb::{ProgressGroup, State};
use castor_oci::Digest;

use super::dispatch::{Step, absolute};
use super::image::commit;
use super::{Converter, show, windows};
use crate::error::{DockerfileError, Result};
use crate::git::{GitRef, is_git};
use crate::gofmt::quote;
use crate::instruction::CopyFiles;
use crate::lint::Rule;

/// Sources of an instruction times its length.
const MAX_COPY: usize = 64 << 20;

fn is_http(source: &str) -> bool {
    (source.starts_with("http://") || source.starts_with("https://")) && !is_git(source)
}

fn refuse<T>(message: impl Into<String>) -> Result<T> {
    Err(DockerfileError::new(message))
}

/// Whether a pattern matches more than itself.
fn has_wildcards(pattern: &str) -> bool {
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        match c {
            '*' | '?' | '[' => return true,
            '\\' => drop(chars.next()),
            _ => {}
        }
    }
    false
}

/// Sets the mode that `--chmod` asks for, a number or a symbolic one.
fn set_mode(options: &mut CopyOptions, text: &str) -> Result<()> {
    if text.is_empty() {
        return Ok(());
    }
    let not_octal = || {
        DockerfileError::new(format!(
            "invalid chmod parameter: '{text}'. it should be octal string and between 0 and 07777"
        ))
    };
    let digits = text.bytes().all(|b| (b'0'..=b'7').contains(&b));
    match u32::from_str_radix(text, 8) {
        Ok(mode) if digits && mode <= 0o7777 => {
            options.mode = i32::try_from(mode).ok();
            return Ok(());
        }
        Ok(_) if digits => return Err(not_octal()),
        _ => {}
    }
    if text.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(not_octal());
    }
    if !is_symbolic_mode(text) {
        return refuse("invalid syntax");
    }
    text.clone_into(&mut options.mode_str);
    Ok(())
}

/// `[ugoa…][+-=][rwxXstugo…]…,…`
fn is_symbolic_mode(text: &str) -> bool {
    text.split(',').all(|clause| {
        let rest = clause.trim_start_matches(['a', 'u', 'g', 'o']);
        rest.starts_with(['+', '-', '=']) && rest.chars().all(|c| "+-=rwxXstugo".contains(c))
    })
}

/// The last part of a URL's path, for the file's name.
pub(super) fn file_name(url: &str) -> String {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    if !crate::git::is_legal_url(rest) {
        return "__unnamed__".into();
    }
    let rest = rest.split(['?', '#']).next().unwrap_or(rest);
    let path = rest.find('/').map_or("", |at| &rest[at..]);
    let name = path.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    if name.is_empty() || name == "." { "__unnamed__".into() } else { crate::git::unescape(name, false) }
}

impl Converter<'_> {
    pub(super) fn copy(&mut self, step: &Step<'_>, copy: &CopyFiles) -> Result<()> {
        // Each source becomes an action that repeats the flags.
        let count = copy.sources.len() + copy.contents.len();
        if count.saturating_mul(step.instruction.code.len()) > MAX_COPY {
            return Err(Self::too_much(MAX_COPY, "bytes of one copy"));
        }
        let source = self.copy_source(step, copy)?;
        let position = step.stage;
        let state = self.stages[position].state.clone();
        let windows = windows::is(self.stages[position].platform.as_ref());
        let dest = if windows { windows::path(&copy.dest, true)? } else { copy.dest.clone() };
        let dest = match dest.as_str() {
            "" | "." => "./",
            dest => dest,
        };
        let dest = absolute(state.get_dir(), dest, true);
        let mut options = CopyOptions {
            owner: (!copy.chown.is_empty()).then(|| Owner::parse(&copy.chown)),
            exclude_patterns: copy.exclude.clone(),
            create_dest_path: true,
            ..CopyOptions::default()
        };
        set_mode(&mut options, &copy.chmod)?;
        check_checksum(copy)?;

        let platform = self.stages[position].platform.clone();
        let env = state.get_env();
        let text = show::uppercase_first(&show::expanded(self.lexer, &step.instruction.code, env));
        let first_step = self.stages[position].step;
        let name = self.prefixed(position, &text, platform.as_ref(), Some(env));

        let mut actions = Vec::new();
        for path in &copy.sources {
            actions.push(self.source(step, copy, path, &source, &dest, &options, &name)?);
        }
        for file in &copy.contents {
            let constraints =
                Constraints::new().name("[internal] preparing inline document").platform(platform.as_ref());
            let mkfile = Action::Mkfile {
                path: file.name.clone(),
                mode: 0o644,
                data: file.data.clone().into(),
                owner: None,
                timestamp: None,
            };
            let from = State::scratch().file(vec![mkfile], constraints);
            let options = Box::new(options.clone());
            actions.push(Action::Copy { from, src: file.name.clone(), dest: dest.clone(), options });
        }

        let constraints = self
            .location(Constraints::new().name(name.clone()), step.location())
            .ignore_cache(self.stages[position].no_cache);
        let link = copy.link && copy.chmod.is_empty() && self.request.caps.contains("mergeop");
        let after = if link {
            let group = ProgressGroup { id: self.group_id(position), name, weak: false };
            // The step has two vertices and one number.
            self.stages[position].step = first_step;
            let shown = self.prefixed(position, &format!("LINK {text}"), platform.as_ref(), Some(env));
            let weak = ProgressGroup { weak: true, ..group.clone() };
            let layer = constraints.clone().platform(platform.as_ref()).group(Some(weak));
            let layer = State::scratch().file(actions, layer);
            let merge = constraints.group(Some(group)).name(shown);
            state.with_files_of(&State::merge(&[state.clone(), layer], merge))
        } else {
            state.file(actions, constraints)
        };
        let stage = &mut self.stages[position];
        stage.state = after;
        commit(&mut stage.image, &history(copy), true, self.epoch);
        self.use_paths(step, copy);
        Ok(())
    }

    /// What is copied from: a stage, or the build context.
    fn copy_source(&self, step: &Step<'_>, copy: &CopyFiles) -> Result<State> {
        let Some(&source) = step.sources.first() else { return Ok(self.build_context.clone()) };
        if !self.stages[source].dispatched {
            return refuse(format!(
                "cannot copy from stage {}, it needs to be defined before current stage {}",
                quote(&copy.from),
                quote(&self.stages[step.stage].label)
            ));
        }
        Ok(self.stages[source].state.clone())
    }

    /// Notes which paths are needed of what was copied from.
    fn use_paths(&mut self, step: &Step<'_>, copy: &CopyFiles) {
        let paths = copy.sources.iter().filter(|path| !(copy.add && is_url(path))).map(|path| join(&["/", path]));
        match step.sources.first() {
            None => self.stages[step.stage].context_paths.extend(paths),
            Some(&source) => {
                let set = self.stages[source].paths;
                self.paths[set].extend(paths);
            }
        }
    }

    /// The action for one source.
    #[allow(clippy::too_many_arguments)] // all of one instruction, in one place
    fn source(
        &self,
        step: &Step<'_>,
        copy: &CopyFiles,
        path: &str,
        source: &State,
        dest: &str,
        options: &CopyOptions,
        name: &str,
    ) -> Result<Action> {
        let copied = |from: State, src: String, options: CopyOptions| {
            Ok(Action::Copy { from, src, dest: dest.to_owned(), options: Box::new(options) })
        };
        match GitRef::parse(path) {
            Some(Err(error)) => return refuse(error),
            Some(Ok(git)) if !git.maybe_local => {
                if !copy.add {
                    return refuse("source can't be a git ref for COPY");
                }
                let from = git_source(copy, git, Constraints::new().name(name))?;
                return copied(from, "/".into(), options.clone());
            }
            _ => {}
        }
        if is_http(path) {
            if !copy.add {
                return refuse("source can't be a URL for COPY");
            }
            let file = file_name(path);
            let checksum = match copy.checksum.as_str() {
                "" => None,
                text => Some(parse_checksum(text)?),
            };
            let http = HttpOptions { checksum, filename: file.clone(), ..HttpOptions::default() };
            let constraints = Constraints::new().name(name).describe("com.docker.dockerfile.v1.command", "");
            let from = State::http(path, &http, constraints);
            let unpack = copy.unpack == Some(true);
            return copied(from, file, CopyOptions { attempt_unpack: unpack, ..options.clone() });
        }
        if step.sources.is_empty() && self.ignore.ignores(path) {
            let verb = if copy.add { "Add" } else { "Copy" };
            let shown = quote(&castor_llb::state::clean(path));
            let text = format!("Attempting to {verb} file {shown} that is excluded by .dockerignore");
            step.linter.report(Rule::CopyIgnoredFile, step.location(), text);
        }
        let mut options = CopyOptions {
            follow_symlinks: true,
            dir_contents_only: true,
            attempt_unpack: copy.unpack.unwrap_or(copy.add),
            allow_wildcard: true,
            allow_empty_wildcard: true,
            ..options.clone()
        };
        let windows = windows::is(self.stages[step.stage].platform.as_ref());
        let path = &if windows { windows::path(path, false)? } else { path.to_owned() };
        let mut src = path.clone();
        if copy.parents {
            // What is before `/./` is not kept.
            let (base, pattern) = path.split_once("/./").unwrap_or(("/", path));
            base.clone_into(&mut src);
            let pattern = absolute("/", pattern, false);
            options.include_patterns = vec![pattern.strip_prefix('/').unwrap_or(&pattern).to_owned()];
            if !has_wildcards(&src) && !has_wildcards(&pattern) {
                options.required_paths = vec![absolute("/", &join(&[&src, &pattern]), false)];
            }
        }
        copied(source.clone(), absolute("/", &src, false), options)
    }

    /// A name for the group of vertices that one step is: the same for the same build, and no other step's.
    fn group_id(&mut self, position: usize) -> String {
        self.groups += 1;
        let key = format!(
            "{}\0{}\0{}\0{position}\0{}",
            self.options.session,
            crate::platform::format_all(&self.target_platform),
            Digest::of(self.request.dockerfile),
            self.groups
        );
        // 25 characters of base 36, as BuildKit's own.
        let digest = Digest::of(key);
        let number = digest.as_bytes()[..16].iter().fold(0_u128, |number, &byte| number << 8 | u128::from(byte));
        let mut rest = number;
        let mut id: Vec<char> = Vec::with_capacity(25);
        for _ in 0..25 {
            let digit = u32::try_from(rest % 36).unwrap_or(0);
            id.push(char::from_digit(digit, 36).unwrap_or('0'));
            rest /= 36;
        }
        id.into_iter().rev().collect()
    }
}

fn is_url(path: &str) -> bool {
    path.starts_with("http://") || path.starts_with("https://")
}

fn check_checksum(copy: &CopyFiles) -> Result<()> {
    if copy.checksum.is_empty() {
        return Ok(());
    }
    match copy.sources.as_slice() {
        [source] if is_http(source) || is_git(source) => Ok(()),
        [_] => refuse("checksum requires HTTP(S) or Git sources"),
        _ => refuse("checksum can't be specified for multiple sources"),
    }
}

/// A digest, of any algorithm that BuildKit knows.
pub(super) fn parse_checksum(text: &str) -> Result<String> {
    let (algorithm, value) = text.split_once(':').unwrap_or(("", ""));
    if algorithm.is_empty() || value.is_empty() {
        return refuse("invalid checksum digest format");
    }
    let length = match algorithm {
        "sha256" => 64,
        "sha384" => 96,
        "sha512" => 128,
        _ => {
            let lower = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
            let mut parts = algorithm.split(['.', '+', '_', '-']);
            let named = parts.all(|part| !part.is_empty() && part.bytes().all(lower));
            let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'=' | b'_' | b'-');
            return refuse(if named && value.bytes().all(legal) {
                "unsupported digest algorithm"
            } else {
                "invalid checksum digest format"
            });
        }
    };
    if value.len() != length {
        return refuse("invalid checksum digest length");
    }
    if !value.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return refuse("invalid checksum digest format");
    }
    Ok(text.to_owned())
}

pub(super) fn git_source(copy: &CopyFiles, mut git: GitRef, constraints: Constraints) -> Result<State> {
    if let (Some(flag), Some(url)) = (copy.keep_git_dir, git.keep_git_dir)
        && flag != url
    {
        return refuse("inconsistent keep-git-dir configuration");
    }
    git.keep_git_dir = git.keep_git_dir.or(copy.keep_git_dir);
    if !copy.checksum.is_empty() {
        if !git.checksum.is_empty() && git.checksum != copy.checksum {
            return refuse(format!("checksum mismatch {} != {}", quote(&copy.checksum), quote(&git.checksum)));
        }
        git.checksum.clone_from(&copy.checksum);
    }
    let mut options = git.options();
    // Times of files are what the checkout makes them here.
    options.mtime.clear();
    Ok(State::git(&options, constraints))
}

/// The instruction as the history has it.
fn history(copy: &CopyFiles) -> String {
    let mut message = String::from(if copy.add { "ADD" } else { "COPY" });
    if copy.parents {
        message.push_str(" --parents");
    }
    if !copy.chown.is_empty() {
        message.push_str(&format!(" --chown={}", copy.chown));
    }
    if !copy.chmod.is_empty() {
        message.push_str(&format!(" --chmod={}", copy.chmod));
    }
    for source in &copy.sources {
        message.push_str(&format!(" {source}"));
    }
    for file in &copy.contents {
        message.push_str(&format!(" <<{}", file.name));
    }
    message.push_str(&format!(" {} # buildkit", copy.dest));
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_numbers_or_symbols() {
        let mode = |text: &str| {
            let mut options = CopyOptions::default();
            set_mode(&mut options, text).map(|()| (options.mode, options.mode_str)).map_err(|e| e.to_string())
        };
        assert_eq!(mode("0644"), Ok((Some(0o644), String::new())));
        assert_eq!(mode("u+rwX,go-w"), Ok((None, "u+rwX,go-w".into())));
        assert_eq!(mode("zzz").unwrap_err(), "invalid syntax");
        assert!(mode("99999").unwrap_err().starts_with("invalid chmod parameter: '99999'"));
        assert!(mode("10000").is_err());
        assert!(mode("u+x,").is_err());
    }

    #[test]
    fn files_of_urls_are_named_after_their_path() {
        for (url, want) in
            [("http://h/a/b.tgz?x=1", "b.tgz"), ("http://h/", "__unnamed__"), ("http://h", "__unnamed__")]
        {
            assert_eq!(file_name(url), want);
        }
    }
}
