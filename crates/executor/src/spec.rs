//! The OCI runtime specification of a container: BuildKit's defaults and what the process asks for.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::str::FromStr as _;

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Capabilities, Capability, LinuxBuilder, LinuxCapabilitiesBuilder, LinuxCpuBuilder, LinuxDevice, LinuxDeviceBuilder,
    LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType, LinuxMemoryBuilder, LinuxNamespace,
    LinuxNamespaceBuilder, LinuxNamespaceType, LinuxResources, LinuxResourcesBuilder, Mount, MountBuilder, PosixRlimit,
    PosixRlimitBuilder, PosixRlimitType, Process, ProcessBuilder, RootBuilder, Spec, SpecBuilder, UserBuilder,
};

use crate::error::ExecError;
use crate::process::{Meta, Resources, Security};
use crate::user::User;
use crate::{DEFAULT_HOSTNAME, DEFAULT_PATH, seccomp};

/// What a sandboxed process may do: the capabilities that Docker's containers have.
pub const DEFAULT_CAPABILITIES: &[&str] = &[
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// Linux' capabilities, by number.
const ALL_CAPABILITIES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

const MASKED_PATHS: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
    "/proc/scsi",
];

const READONLY_PATHS: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Destination, type, source, options.
const DEFAULT_MOUNTS: &[(&str, &str, &str, &[&str])] = &[
    ("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
    ("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
    ("/dev/pts", "devpts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
    ("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
    ("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
    ("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
];

/// Character devices that an insecure container finds: name, major, minor.
const INSECURE_DEVICES: &[(&str, i64, i64)] = &[
    ("/dev/kmsg", 1, 11),
    ("/dev/cuse", 10, 203),
    ("/dev/fuse", 10, 229),
    ("/dev/kvm", 10, 232),
    ("/dev/net/tun", 10, 200),
    ("/dev/loop-control", 10, 237),
];

/// How many loop devices it finds.
const LOOP_DEVICES: i64 = 8;

/// A mount whose source is ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadyMount {
    /// Absolute path in the container.
    pub destination: PathBuf,
    /// `bind`, `tmpfs`.
    pub kind: &'static str,
    /// What is mounted.
    pub source: PathBuf,
    /// Options as the runtime takes them.
    pub options: Vec<String>,
}

/// The network namespace of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Net<'a> {
    /// The host's.
    Host,
    /// A new one with nothing in it.
    New,
    /// One that is mounted there.
    At(&'a Path),
}

/// What a specification is made from.
pub struct Container<'a> {
    pub id: &'a str,
    pub meta: &'a Meta,
    pub user: &'a User,
    pub root: &'a Path,
    pub readonly: bool,
    /// Generated files.
    pub resolv_conf: &'a Path,
    pub hosts: &'a Path,
    /// Sorted: parents come first.
    pub mounts: &'a [ReadyMount],
    /// Its network.
    pub network: Net<'a>,
    pub cgroup_parent: &'a str,
    pub apparmor_profile: &'a str,
}

/// The specification of `container`.
pub fn spec(container: &Container<'_>) -> Result<Spec, ExecError> {
    build(container).map_err(|err| ExecError::Invalid(format!("container specification: {err}")))
}

fn build(container: &Container<'_>) -> Result<Spec, OciSpecError> {
    let meta = container.meta;
    let insecure = meta.security == Security::Insecure;
    let granted: Vec<&str> = if insecure { own_capabilities() } else { DEFAULT_CAPABILITIES.to_vec() };
    let mut namespaces =
        vec![LinuxNamespaceType::Pid, LinuxNamespaceType::Ipc, LinuxNamespaceType::Uts, LinuxNamespaceType::Mount];
    if crate::cgroup::Hierarchy::detect() == crate::cgroup::Hierarchy::Unified {
        // With the older hierarchies a cgroup namespace makes the mounts in the container fail (EINVAL).
        namespaces.push(LinuxNamespaceType::Cgroup);
    }
    let mut namespaces = namespaces.into_iter().map(namespace).collect::<Result<Vec<_>, _>>()?;
    match container.network {
        Net::Host => {}
        Net::New => namespaces.push(namespace(LinuxNamespaceType::Network)?),
        Net::At(path) => {
            let existing = LinuxNamespaceBuilder::default().typ(LinuxNamespaceType::Network).path(path);
            namespaces.push(existing.build()?);
        }
    }
    let paths = |list: &[&str]| -> Vec<String> {
        if insecure { Vec::new() } else { list.iter().map(|&path| path.to_owned()).collect() }
    };
    let mut linux = LinuxBuilder::default()
        .cgroups_path(crate::cgroup::path(
            if meta.cgroup_parent.is_empty() { container.cgroup_parent } else { &meta.cgroup_parent },
            container.id,
        ))
        .namespaces(namespaces)
        .masked_paths(paths(MASKED_PATHS))
        .readonly_paths(paths(READONLY_PATHS))
        .resources(resources(&meta.resources, insecure)?);
    if insecure {
        linux = linux.devices(insecure_devices()?);
    } else if seccomp::is_supported() {
        linux = linux.seccomp(seccomp::profile(&granted)?);
    }
    let hostname = if meta.hostname.is_empty() { DEFAULT_HOSTNAME } else { &meta.hostname };
    SpecBuilder::default()
        .version("1.0.2")
        .hostname(hostname)
        .root(RootBuilder::default().path(container.root).readonly(container.readonly).build()?)
        .mounts(mounts(container, insecure)?)
        .process(process(container, &granted, insecure)?)
        .linux(linux.build()?)
        .annotations(HashMap::new())
        .build()
}

fn process(container: &Container<'_>, granted: &[&str], insecure: bool) -> Result<Process, OciSpecError> {
    let meta = container.meta;
    let set: Capabilities = granted.iter().filter_map(|name| capability(name)).collect();
    let mut capabilities =
        LinuxCapabilitiesBuilder::default().bounding(set.clone()).permitted(set.clone()).effective(set.clone());
    capabilities = if insecure {
        capabilities.inheritable(set.clone()).ambient(set)
    } else {
        capabilities.inheritable(Capabilities::new()).ambient(Capabilities::new())
    };
    let cwd = if meta.cwd.is_empty() { "/" } else { &meta.cwd };
    let mut process = ProcessBuilder::default()
        .terminal(meta.tty)
        .user(user(container.user)?)
        .args(meta.args.clone())
        .env(environment(&meta.env))
        .cwd(Path::new("/").join(cwd))
        .capabilities(capabilities.build()?)
        .rlimits(rlimits(meta)?)
        // Set-user-ID programs work in a build, as in Docker's.
        .no_new_privileges(false);
    if !container.apparmor_profile.is_empty() && !insecure {
        process = process.apparmor_profile(container.apparmor_profile);
    }
    process.build()
}

/// The user as the specification has it; the primary group is among the others too.
pub fn user(user: &User) -> Result<oci_spec::runtime::User, OciSpecError> {
    let mut groups = user.groups.clone();
    if !groups.contains(&user.gid) {
        groups.insert(0, user.gid);
    }
    UserBuilder::default().uid(user.uid).gid(user.gid).additional_gids(groups).build()
}

/// Entries without `=` would unset a variable of an image; there is none to unset.
pub fn environment(env: &[String]) -> Vec<String> {
    let mut list: Vec<String> = env.iter().filter(|entry| entry.contains('=')).cloned().collect();
    if !list.iter().any(|entry| entry.starts_with("PATH=")) {
        list.push(format!("PATH={DEFAULT_PATH}"));
    }
    list
}

fn rlimits(meta: &Meta) -> Result<Vec<PosixRlimit>, OciSpecError> {
    let limit = |ulimit: &crate::Ulimit| {
        let name = format!("RLIMIT_{}", ulimit.name.to_ascii_uppercase());
        let kind =
            PosixRlimitType::from_str(&name).map_err(|_| OciSpecError::Other(format!("unknown limit {name}")))?;
        // -1, no limit, is the largest number there.
        PosixRlimitBuilder::default().typ(kind).hard(ulimit.hard as u64).soft(ulimit.soft as u64).build()
    };
    meta.ulimits.iter().map(limit).collect()
}

fn namespace(kind: LinuxNamespaceType) -> Result<LinuxNamespace, OciSpecError> {
    LinuxNamespaceBuilder::default().typ(kind).build()
}

fn resources(limits: &Resources, insecure: bool) -> Result<LinuxResources, OciSpecError> {
    let rule = |allow: bool, kind: Option<LinuxDeviceType>| -> Result<LinuxDeviceCgroup, OciSpecError> {
        let mut rule = LinuxDeviceCgroupBuilder::default().allow(allow).access("rwm");
        if let Some(kind) = kind {
            rule = rule.typ(kind);
        }
        rule.build()
    };
    let devices = if insecure {
        vec![rule(true, Some(LinuxDeviceType::C))?, rule(true, Some(LinuxDeviceType::B))?]
    } else {
        vec![rule(false, None)?]
    };
    let mut resources = LinuxResourcesBuilder::default().devices(devices);
    if limits.memory != 0 || limits.memory_swap != 0 {
        let mut memory = LinuxMemoryBuilder::default();
        if limits.memory != 0 {
            memory = memory.limit(limits.memory);
        }
        if limits.memory_swap != 0 {
            memory = memory.swap(limits.memory_swap);
        }
        resources = resources.memory(memory.build()?);
    }
    let cpu_limits = (limits.cpu_shares, limits.cpu_period, limits.cpu_quota) != (0, 0, 0);
    if cpu_limits || !limits.cpuset_cpus.is_empty() || !limits.cpuset_mems.is_empty() {
        let mut cpu = LinuxCpuBuilder::default();
        if limits.cpu_shares != 0 {
            cpu = cpu.shares(limits.cpu_shares);
        }
        if limits.cpu_period != 0 {
            cpu = cpu.period(limits.cpu_period);
        }
        if limits.cpu_quota != 0 {
            cpu = cpu.quota(limits.cpu_quota);
        }
        if !limits.cpuset_cpus.is_empty() {
            cpu = cpu.cpus(limits.cpuset_cpus.clone());
        }
        if !limits.cpuset_mems.is_empty() {
            cpu = cpu.mems(limits.cpuset_mems.clone());
        }
        resources = resources.cpu(cpu.build()?);
    }
    resources.build()
}

fn insecure_devices() -> Result<Vec<LinuxDevice>, OciSpecError> {
    let device = |path: &str, kind: LinuxDeviceType, major: i64, minor: i64| {
        LinuxDeviceBuilder::default().path(path).typ(kind).major(major).minor(minor).build()
    };
    let mut devices = INSECURE_DEVICES
        .iter()
        .map(|&(path, major, minor)| device(path, LinuxDeviceType::C, major, minor))
        .collect::<Result<Vec<_>, _>>()?;
    for minor in 0..LOOP_DEVICES {
        devices.push(device(&format!("/dev/loop{minor}"), LinuxDeviceType::B, 7, minor)?);
    }
    Ok(devices)
}

fn mounts(container: &Container<'_>, insecure: bool) -> Result<Vec<Mount>, OciSpecError> {
    let words = |options: &[&str]| -> Vec<String> { options.iter().map(|&word| word.to_owned()).collect() };
    let mut list: Vec<ReadyMount> = DEFAULT_MOUNTS
        .iter()
        .map(|&(destination, kind, source, options)| ReadyMount {
            destination: destination.into(),
            kind,
            source: source.into(),
            options: words(options),
        })
        .collect();
    for (source, destination) in [(container.resolv_conf, "/etc/resolv.conf"), (container.hosts, "/etc/hosts")] {
        list.push(ReadyMount {
            destination: destination.into(),
            kind: "bind",
            source: source.into(),
            options: words(&["nosuid", "noexec", "nodev", "rbind", "ro"]),
        });
    }
    list.push(ReadyMount {
        destination: "/sys/fs/cgroup".into(),
        kind: "cgroup",
        source: "cgroup".into(),
        options: words(&["ro", "nosuid", "noexec", "nodev"]),
    });
    if insecure {
        for mount in list.iter_mut().filter(|mount| mount.destination.starts_with("/sys")) {
            mount.options.iter_mut().filter(|option| *option == "ro").for_each(|option| "rw".clone_into(option));
        }
    }
    for mount in container.mounts {
        match list.iter_mut().find(|known| known.destination == mount.destination) {
            Some(known) => *known = mount.clone(),
            None => list.push(mount.clone()),
        }
    }
    let built = list.into_iter().map(|mount| {
        MountBuilder::default()
            .destination(mount.destination)
            .typ(mount.kind)
            .source(mount.source)
            .options(mount.options)
            .build()
    });
    built.collect()
}

fn capability(name: &str) -> Option<Capability> {
    Capability::from_str(name.strip_prefix("CAP_")?).ok()
}

/// The capabilities that the daemon itself has and can give away.
fn own_capabilities() -> Vec<&'static str> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0);
    ALL_CAPABILITIES.iter().enumerate().filter(|&(bit, _)| mask >> bit & 1 == 1).map(|(_, &name)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Ulimit;
    use serde_json::{Value, json};

    fn built(meta: &Meta, mounts: &[ReadyMount], network: Net<'_>) -> Value {
        let container = Container {
            id: "c1",
            meta,
            user: &User { uid: 7, gid: 8, groups: vec![9] },
            root: Path::new("/r"),
            readonly: true,
            resolv_conf: Path::new("/b/resolv.conf"),
            hosts: Path::new("/b/hosts"),
            mounts,
            network,
            cgroup_parent: "",
            apparmor_profile: "",
        };
        serde_json::to_value(spec(&container).unwrap()).unwrap()
    }

    #[test]
    fn sandboxed() {
        let meta = Meta {
            args: vec!["true".into()],
            env: vec!["A=1".into(), "B".into()],
            ulimits: vec![Ulimit { name: "nofile".into(), soft: 10, hard: -1 }],
            ..Meta::default()
        };
        let shm = ReadyMount { destination: "/dev/shm".into(), kind: "tmpfs", source: "tmpfs".into(), options: vec![] };
        let json = built(&meta, &[shm], Net::New);
        assert_eq!(json["hostname"], "buildkitsandbox");
        assert_eq!(json["root"], json!({"path": "/r", "readonly": true}));
        assert_eq!(json["process"]["env"], json!(["A=1", format!("PATH={DEFAULT_PATH}")]));
        assert_eq!(json["process"]["user"]["additionalGids"], json!([8, 9]));
        assert_eq!(json["process"]["noNewPrivileges"], false);
        assert_eq!(json["process"]["cwd"], "/");
        assert_eq!(json["process"]["rlimits"], json!([{"type": "RLIMIT_NOFILE", "hard": u64::MAX, "soft": 10}]));
        assert_eq!(json["process"]["capabilities"]["bounding"].as_array().unwrap().len(), 14);
        assert_eq!(json["linux"]["maskedPaths"].as_array().unwrap().len(), 11);
        assert_eq!(json["linux"]["cgroupsPath"], "/buildkit/c1");
        assert!(json["linux"]["seccomp"].is_object());
        let places: Vec<_> =
            json["mounts"].as_array().unwrap().iter().map(|m| m["destination"].as_str().unwrap()).collect();
        assert_eq!(
            places,
            [
                "/proc",
                "/dev",
                "/dev/pts",
                "/dev/shm",
                "/dev/mqueue",
                "/sys",
                "/etc/resolv.conf",
                "/etc/hosts",
                "/sys/fs/cgroup"
            ]
        );
        assert_eq!(json["mounts"][3]["source"], "tmpfs");
        let kinds: Vec<_> =
            json["linux"]["namespaces"].as_array().unwrap().iter().map(|n| n["type"].as_str().unwrap()).collect();
        assert!(kinds.contains(&"network"));
    }

    #[test]
    fn insecure_with_the_hosts_network() {
        let meta = Meta { args: vec!["true".into()], security: Security::Insecure, ..Meta::default() };
        let json = built(&meta, &[], Net::Host);
        assert!(json["linux"]["seccomp"].is_null());
        assert_eq!(json["linux"]["maskedPaths"], json!([]));
        assert!(json["linux"]["namespaces"].as_array().unwrap().iter().all(|n| n["type"] != "network"));
        assert_eq!(json["mounts"][5]["options"], json!(["nosuid", "noexec", "nodev", "rw"]));
        assert_eq!(json["linux"]["devices"].as_array().unwrap().len(), 14);
    }

    #[test]
    fn an_unknown_limit_is_refused() {
        let meta = Meta { ulimits: vec![Ulimit { name: "bogus".into(), soft: 1, hard: 1 }], ..Meta::default() };
        let container = Container {
            id: "c",
            meta: &meta,
            user: &User::default(),
            root: Path::new("/r"),
            readonly: false,
            resolv_conf: Path::new("/x"),
            hosts: Path::new("/y"),
            mounts: &[],
            network: Net::At(Path::new("/n")),
            cgroup_parent: "",
            apparmor_profile: "",
        };
        assert!(spec(&container).unwrap_err().to_string().contains("RLIMIT_BOGUS"));
    }
}
