//! Identity of a process.

use castor_oci::{Digest, Platform};
use castor_proto::pb;

use super::json::Object;
use super::{InputKey, Selector, input_index, joined, outermost, with_platform};
use crate::OpError;

/// Digest of a process that runs on `platform`.
pub fn exec(op: &pb::ExecOp, platform: &Platform) -> Digest {
    let object = Object::default().text("Type", "buildkit.exec.v0").raw("Exec", &exec_json(op));
    Digest::of(with_platform(object, platform, "Arch").finish())
}

fn exec_json(op: &pb::ExecOp) -> String {
    let mounts = if is_plain_root(&op.mounts) { &[] } else { op.mounts.as_slice() };
    let secret_env = |env: &pb::SecretEnv| {
        Object::default().text("ID", &env.id).text("name", &env.name).flag("optional", env.optional).finish()
    };
    let device = |device: &pb::CdiDevice| {
        Object::default().text("name", &device.name).flag("optional", device.optional).finish()
    };
    Object::default()
        .optional("meta", op.meta.as_ref().map(meta))
        .list("mounts", mounts.iter().map(mount))
        .number("network", op.network)
        .number("security", op.security)
        .list("secretenv", op.secretenv.iter().map(secret_env))
        .list("cdiDevices", op.cdi_devices.iter().map(device))
        .finish()
}

/// A single writable root. Such a mount is left out of the identity, because early versions of BuildKit forgot it.
fn is_plain_root(mounts: &[pb::Mount]) -> bool {
    let [mount] = mounts else { return false };
    mount.dest == "/"
        && !mount.readonly
        && mount.mount_type == i32::from(pb::MountType::Bind)
        && mount.cache_opt.is_none()
        && mount.ssh_opt.is_none()
        && mount.secret_opt.is_none()
        && mount.result_id.is_empty()
}

fn meta(meta: &pb::Meta) -> String {
    // Addresses and proxies may differ from machine to machine without a difference in the result.
    let host = |host: &pb::HostIp| Object::default().text("Host", &host.host).finish();
    let ulimit = |limit: &pb::Ulimit| {
        Object::default().text("Name", &limit.name).number("Soft", limit.soft).number("Hard", limit.hard).finish()
    };
    Object::default()
        .texts("args", &meta.args)
        .texts("env", &meta.env)
        .text("cwd", &meta.cwd)
        .text("user", &meta.user)
        .list("extraHosts", meta.extra_hosts.iter().map(host))
        .text("hostname", &meta.hostname)
        .list("ulimit", meta.ulimit.iter().map(ulimit))
        .text("cgroupParent", &meta.cgroup_parent)
        .flag("removeMountStubsRecursive", meta.remove_mount_stubs_recursive)
        .list("validExitCodes", meta.valid_exit_codes.iter().map(i32::to_string))
        .finish()
}

fn mount(mount: &pb::Mount) -> String {
    let keep_cache = mount.cache_opt.as_ref().is_some_and(|cache| is_default_cache(cache, &mount.dest));
    let cache = |cache: &pb::CacheOpt| match keep_cache {
        true => Object::default().text("ID", &cache.id).number("sharing", cache.sharing).finish(),
        false => Object::default().finish(),
    };
    let secret =
        |secret: &pb::SecretOpt| secret_json(&secret.id, [secret.uid, secret.gid, secret.mode], secret.optional);
    let ssh = |ssh: &pb::SshOpt| secret_json(&ssh.id, [ssh.uid, ssh.gid, ssh.mode], ssh.optional);
    Object::default()
        .number("input", mount.input)
        .text("dest", &mount.dest)
        .number("output", mount.output)
        .flag("readonly", mount.readonly)
        .number("mountType", mount.mount_type)
        .optional("TmpfsOpt", mount.tmpfs_opt.as_ref().map(|t| Object::default().number("size", t.size).finish()))
        .optional("cacheOpt", mount.cache_opt.as_ref().map(cache))
        .optional("secretOpt", mount.secret_opt.as_ref().map(secret))
        .optional("SSHOpt", mount.ssh_opt.as_ref().map(ssh))
        .text("resultID", &mount.result_id)
        .number("contentCache", mount.content_cache)
        .finish()
}

fn secret_json(id: &str, [uid, gid, mode]: [u32; 3], optional: bool) -> String {
    Object::default()
        .text("ID", id)
        .number("uid", uid)
        .number("gid", gid)
        .number("mode", mode)
        .flag("optional", optional)
        .finish()
}

/// Whether a cache mount has the name that Dockerfiles give by default, with or without a namespace before it. Other
/// names are a matter of the machine and are left out.
fn is_default_cache(cache: &pb::CacheOpt, dest: &str) -> bool {
    let named = cache.id == dest || cache.id.split_once('/').is_some_and(|(_, rest)| rest == dest);
    named && cache.sharing == i32::from(pb::CacheSharingOpt::Shared)
}

/// How the inputs of a process matter.
pub fn exec_inputs(op: &pb::ExecOp, count: usize) -> Result<Vec<InputKey>, OpError> {
    let mut selectors: Vec<Vec<String>> = vec![Vec::new(); count];
    let mut by_content = vec![false; count];
    for mount in &op.mounts {
        match mount.mount_type() {
            pb::MountType::Secret | pb::MountType::Ssh | pb::MountType::Tmpfs => continue,
            pb::MountType::Bind | pb::MountType::Cache => {}
        }
        if mount.input == -1 {
            continue;
        }
        let input = input_index(mount.input, count, "exec op")?;
        let selector = crate::path::absolute(&mount.selector);
        by_content[input] = counts_by_content(mount, &selector)?;
        selectors[input].push(selector);
    }
    let key = |(selectors, by_content): (Vec<String>, bool)| InputKey {
        selector: (!selectors.is_empty()).then(|| joined(selectors.clone())),
        content: by_content.then(|| content_selectors(&selectors)),
    };
    Ok(selectors.into_iter().zip(by_content).map(key).collect())
}

/// Whether the content of what is mounted may stand for its definition. It may not where the process sees a part of
/// the input and its changes become an output with the unseen rest in it.
fn counts_by_content(mount: &pb::Mount, selector: &str) -> Result<bool, OpError> {
    let safe = mount.output == -1 || mount.readonly || selector == "/";
    match mount.content_cache() {
        pb::MountContentCache::Off => Ok(false),
        pb::MountContentCache::On if !safe => {
            Err(OpError::Invalid(format!("invalid mount cache content of {}", mount.dest)))
        }
        pb::MountContentCache::On => Ok(true),
        // Hashing whole root file systems is dear and finds little.
        pb::MountContentCache::Default => Ok(safe && mount.dest != "/"),
    }
}

fn content_selectors(paths: &[String]) -> Vec<Selector> {
    let paths = outermost(paths);
    if paths.iter().any(|path| path == "/") {
        return Vec::new();
    }
    paths.into_iter().map(|path| Selector { path, follow_links: true, ..Selector::default() }).collect()
}
