//! Identity of a file op.

use std::collections::{BTreeMap, BTreeSet};

use castor_oci::Digest;
use castor_proto::pb;
use castor_proto::pb::file_action::Action;

use super::json::{Object, array, base64};
use super::{InputKey, Selector, input_index, joined, outermost};
use crate::OpError;
use crate::path;

/// Digest of a file op with so many inputs.
pub fn file(op: &pb::FileOp, inputs: usize) -> Digest {
    let actions: Vec<String> = op.actions.iter().map(|action| base64(action_json(action, inputs).as_bytes())).collect();
    let indexes: Vec<[i64; 3]> =
        op.actions.iter().map(|action| [action.input, action.secondary_input, action.output]).collect();
    let mut object = Object::default().text("Type", "buildkit.file.v0").raw("Actions", &array(&actions));
    if !is_default(&indexes) {
        let index = |[input, secondary, output]: &[i64; 3]| format!("[{input},{secondary},{output}]");
        object = object.list("indexes", indexes.iter().map(index));
    }
    Digest::of(object.finish())
}

/// The usual chain of actions. Its indexes are left out of the identity, because early versions of BuildKit did so.
fn is_default(indexes: &[[i64; 3]]) -> bool {
    let count = indexes.len();
    !indexes.is_empty()
        && indexes.iter().enumerate().all(|(i, &[input, secondary, output])| {
            let previous = if i == 0 { 0 } else { (count + i - 1) as i64 };
            let result = if i + 1 == count { 0 } else { -1 };
            input == previous && (secondary == -1 || secondary == 1) && output == result
        })
}

fn action_json(action: &pb::FileAction, inputs: usize) -> String {
    match &action.action {
        Some(Action::Copy(copy)) => copy_json(copy, is_input(action.secondary_input, inputs)),
        Some(Action::Mkfile(file)) => Object::default()
            .text("path", &file.path)
            .number("mode", file.mode)
            .bytes("data", &file.data)
            .optional("owner", file.owner.as_ref().map(owner))
            .number("timestamp", file.timestamp)
            .finish(),
        Some(Action::Mkdir(dir)) => Object::default()
            .text("path", &dir.path)
            .number("mode", dir.mode)
            .flag("makeParents", dir.make_parents)
            .optional("owner", dir.owner.as_ref().map(owner))
            .number("timestamp", dir.timestamp)
            .finish(),
        Some(Action::Rm(rm)) => Object::default()
            .text("path", &rm.path)
            .flag("allowNotFound", rm.allow_not_found)
            .flag("allowWildcard", rm.allow_wildcard)
            .finish(),
        Some(Action::Symlink(link)) => Object::default()
            .text("oldpath", &link.oldpath)
            .text("newpath", &link.newpath)
            .optional("owner", link.owner.as_ref().map(owner))
            .number("timestamp", link.timestamp)
            .finish(),
        None => String::new(),
    }
}

fn is_input(index: i64, inputs: usize) -> bool {
    usize::try_from(index).is_ok_and(|index| index < inputs)
}

fn copy_json(copy: &pb::FileActionCopy, from_input: bool) -> String {
    // Where something lies in an input does not matter, what it is and is called does.
    let base = path::base(&copy.src);
    Object::default()
        .text("src", if from_input { base } else { &copy.src })
        .text("dest", &copy.dest)
        .optional("owner", copy.owner.as_ref().map(owner))
        .number("mode", copy.mode)
        .flag("followSymlink", copy.follow_symlink)
        .flag("dirCopyContents", copy.dir_copy_contents)
        .flag("attemptUnpackDockerCompatibility", copy.attempt_unpack_docker_compatibility)
        .flag("createDestPath", copy.create_dest_path)
        .flag("allowWildcard", copy.allow_wildcard)
        .flag("allowEmptyWildcard", copy.allow_empty_wildcard)
        .number("timestamp", copy.timestamp)
        .texts("include_patterns", &copy.include_patterns)
        .texts("exclude_patterns", &copy.exclude_patterns)
        .flag("alwaysReplaceExistingDestPaths", copy.always_replace_existing_dest_paths)
        .text("modeStr", &copy.mode_str)
        .texts("required_paths", &copy.required_paths)
        .finish()
}

fn owner(owner: &pb::ChownOpt) -> String {
    Object::default()
        .optional("user", owner.user.as_ref().map(user))
        .optional("group", owner.group.as_ref().map(user))
        .finish()
}

fn user(user: &pb::UserOpt) -> String {
    let inner = match &user.user {
        Some(pb::user_opt::User::ByName(name)) => {
            let name = Object::default().text("name", &name.name).number("input", name.input).finish();
            Object::default().raw("byName", &name)
        }
        Some(pb::user_opt::User::ById(id)) => Object::default().number("byId", *id),
        None => Object::default(),
    };
    Object::default().raw("User", &inner.finish()).finish()
}

/// How the inputs of a file op matter: those that are only copied from, by the content of what is copied.
pub fn file_inputs(op: &pb::FileOp, count: usize) -> Result<Vec<InputKey>, OpError> {
    let mut selectors: BTreeMap<usize, Vec<Selector>> = BTreeMap::new();
    let mut changed: BTreeSet<i64> = BTreeSet::new();
    for action in &op.actions {
        changed.insert(action.input);
        let owner = match &action.action {
            Some(Action::Copy(copy)) => {
                if is_input(action.secondary_input, count) {
                    let input = input_index(action.secondary_input, count, "file op")?;
                    selectors.entry(input).or_default().push(copied(copy));
                }
                &copy.owner
            }
            Some(Action::Mkfile(file)) => &file.owner,
            Some(Action::Mkdir(dir)) => &dir.owner,
            Some(Action::Symlink(_) | Action::Rm(_)) | None => &None,
        };
        for (input, file) in owner_files(owner.as_ref()) {
            let input = input_index(input, count, "file op")?;
            let selector = Selector { path: file.to_owned(), follow_links: true, ..Selector::default() };
            selectors.entry(input).or_default().push(selector);
        }
    }
    let mut keys = vec![InputKey::default(); count];
    for (input, selectors) in selectors {
        if changed.contains(&(input as i64)) {
            continue;
        }
        let mut paths: Vec<String> = selectors.iter().map(|selector| selector.path.clone()).collect();
        // Descending: BuildKit's order, for historical reasons.
        paths.sort_by(|a, b| b.cmp(a));
        keys[input] = InputKey { selector: Some(joined(paths)), content: Some(distinct(selectors)) };
    }
    Ok(keys)
}

fn copied(copy: &pb::FileActionCopy) -> Selector {
    Selector {
        path: copy.src.clone(),
        wildcard: copy.allow_wildcard && castor_fsutil::has_wildcards(&copy.src),
        follow_links: copy.follow_symlink,
        include_patterns: copy.include_patterns.clone(),
        exclude_patterns: copy.exclude_patterns.clone(),
        required_paths: copy.required_paths.clone(),
    }
}

/// The files that names of owners are looked up in, and the inputs they are in.
fn owner_files(owner: Option<&pb::ChownOpt>) -> Vec<(i64, &'static str)> {
    let input = |user: &Option<pb::UserOpt>| match user.as_ref()?.user.as_ref()? {
        pb::user_opt::User::ByName(name) if name.input >= 0 => Some(name.input),
        _ => None,
    };
    let Some(owner) = owner else { return Vec::new() };
    let user = input(&owner.user).map(|input| (input, "/etc/passwd"));
    let group = input(&owner.group).map(|input| (input, "/etc/group"));
    user.into_iter().chain(group).collect()
}

/// Each path once, those below others left out; ordered by path.
fn distinct(selectors: Vec<Selector>) -> Vec<Selector> {
    let (filtered, plain): (Vec<Selector>, Vec<Selector>) = selectors.into_iter().partition(Selector::filters);
    let paths = |follow: bool| {
        let paths: Vec<String> =
            plain.iter().filter(|selector| selector.follow_links == follow).map(|s| s.path.clone()).collect();
        outermost(&paths).into_iter().map(move |path| Selector { path, follow_links: follow, ..Selector::default() })
    };
    let mut all: Vec<Selector> = paths(false).chain(paths(true)).chain(filtered).collect();
    all.sort_by(|a, b| a.path.cmp(&b.path));
    all
}
