//! The command line: BuildKit's flags under BuildKit's names.

use std::path::PathBuf;

use clap::{ArgAction, Parser};

/// castor: a build daemon that starts building before the base image has arrived.
#[derive(Debug, Parser)]
#[command(name = "buildkitd", disable_version_flag = true)]
pub struct Flags {
    /// Path to the configuration file
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Enable debug output in logs
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub debug: Option<bool>,
    /// Path to the state directory
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// Listening address (unix:// or tcp://), repeatable
    #[arg(long, value_name = "ADDRESS", action = ArgAction::Append)]
    pub addr: Vec<String>,
    /// Log format: text or json
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<String>,
    /// Log level: trace, debug, info, warn or error
    #[arg(long, value_name = "LEVEL", env = "BUILDKITD_LOG_LEVEL")]
    pub log_level: Option<String>,
    /// Group (name or gid) that owns unix sockets
    #[arg(long)]
    pub group: Option<String>,
    /// Address of metrics and of the dump of what is in flight
    #[arg(long, value_name = "ADDRESS", env = "BUILDKITD_DEBUGADDR")]
    pub debugaddr: Option<String>,
    /// Certificate to serve with
    #[arg(long, value_name = "FILE")]
    pub tlscert: Option<PathBuf>,
    /// Key of the certificate
    #[arg(long, value_name = "FILE")]
    pub tlskey: Option<PathBuf>,
    /// CA that clients' certificates must be signed by
    #[arg(long, value_name = "FILE")]
    pub tlscacert: Option<PathBuf>,
    /// Entitlement that builds may ask for: network.host, security.insecure or device; repeatable
    #[arg(long, value_name = "ENTITLEMENT", action = ArgAction::Append)]
    pub allow_insecure_entitlement: Vec<String>,
    /// Print name, version and revision
    #[arg(long, short = 'v', action = ArgAction::SetTrue)]
    pub version: bool,

    /// Enable the OCI worker: auto, true or false
    #[arg(long, value_name = "WHEN")]
    pub oci_worker: Option<String>,
    /// Label of the worker, KEY=VALUE, repeatable
    #[arg(long, value_name = "KEY=VALUE", action = ArgAction::Append)]
    pub oci_worker_labels: Vec<String>,
    /// How image layers are had: stargz (lazily where possible), or eagerly: auto, overlayfs, native
    #[arg(long, value_name = "NAME")]
    pub oci_worker_snapshotter: Option<String>,
    /// Platform that the worker builds for, repeatable
    #[arg(long, value_name = "PLATFORM", action = ArgAction::Append)]
    pub oci_worker_platform: Vec<String>,
    /// Network of RUN steps: auto, cni, bridge or host
    #[arg(long, value_name = "MODE")]
    pub oci_worker_net: Option<String>,
    /// CNI's configuration: one plugin, or a list (.conflist)
    #[arg(long, value_name = "FILE")]
    pub oci_cni_config_path: Option<PathBuf>,
    /// Where CNI's plugins are
    #[arg(long, value_name = "DIR")]
    pub oci_cni_binary_dir: Option<PathBuf>,
    /// How many networks are made in advance
    #[arg(long, value_name = "N")]
    pub oci_cni_pool_size: Option<usize>,
    /// AppArmor profile of RUN steps
    #[arg(long, value_name = "PROFILE")]
    pub oci_worker_apparmor_profile: Option<String>,
    /// Program that runs containers: runc or crun
    #[arg(long, value_name = "PROGRAM")]
    pub oci_worker_binary: Option<String>,
    /// How many steps run at once
    #[arg(long, value_name = "N")]
    pub oci_max_parallelism: Option<usize>,
    /// Collect garbage by the policy
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub oci_worker_gc: Option<bool>,
    /// Space the collector leaves to the cache, on the disk, and at most to the cache, in MB
    #[arg(long, value_name = "RESERVED[,FREE[,MAXIMUM]]")]
    pub oci_worker_gc_keepstorage: Option<String>,

    #[command(flatten)]
    pub without_effect: WithoutEffect,
}

/// Flags of BuildKit that castor reads, and warns about where they are set, because nothing here heeds them.
#[derive(Debug, clap::Args)]
pub struct WithoutEffect {
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    trace: Option<String>,
    #[arg(long, hide = true)]
    otel_socket_path: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    cdi_disabled: Option<String>,
    #[arg(long, hide = true, action = ArgAction::Append)]
    cdi_spec_dir: Vec<String>,
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    save_cache_debug: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    proxy_network: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    rootless: Option<String>,
    #[arg(long, hide = true)]
    oci_worker_proxy_snapshotter_path: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    oci_worker_selinux: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    oci_worker_rootless: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    oci_worker_no_process_sandbox: Option<String>,
    /// Read by [`Flags::containerd_worker`]: the one value that asks for something castor cannot give is an error.
    #[arg(long, hide = true)]
    containerd_worker: Option<String>,
    #[arg(long, hide = true)]
    containerd_worker_addr: Option<String>,
    #[arg(long, hide = true, action = ArgAction::Append)]
    containerd_worker_labels: Vec<String>,
    #[arg(long, hide = true, action = ArgAction::Append)]
    containerd_worker_platform: Vec<String>,
    #[arg(long, hide = true)]
    containerd_worker_namespace: Option<String>,
    #[arg(long, hide = true)]
    containerd_worker_runtime: Option<String>,
    #[arg(long, hide = true)]
    containerd_worker_net: Option<String>,
    #[arg(long, hide = true)]
    containerd_cni_config_path: Option<String>,
    #[arg(long, hide = true)]
    containerd_cni_binary_dir: Option<String>,
    #[arg(long, hide = true)]
    containerd_cni_pool_size: Option<String>,
    #[arg(long, hide = true)]
    containerd_worker_snapshotter: Option<String>,
    #[arg(long, hide = true)]
    containerd_worker_apparmor_profile: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    containerd_worker_selinux: Option<String>,
    #[arg(long, hide = true)]
    containerd_max_parallelism: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    containerd_worker_rootless: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    containerd_worker_gc: Option<String>,
    #[arg(long, hide = true)]
    containerd_worker_gc_keepstorage: Option<String>,
}

impl WithoutEffect {
    /// The names of the flags that were given.
    pub fn given(&self) -> Vec<&'static str> {
        let one = [
            ("trace", &self.trace),
            ("otel-socket-path", &self.otel_socket_path),
            ("cdi-disabled", &self.cdi_disabled),
            ("save-cache-debug", &self.save_cache_debug),
            ("proxy-network", &self.proxy_network),
            ("rootless", &self.rootless),
            ("oci-worker-proxy-snapshotter-path", &self.oci_worker_proxy_snapshotter_path),
            ("oci-worker-selinux", &self.oci_worker_selinux),
            ("oci-worker-rootless", &self.oci_worker_rootless),
            ("oci-worker-no-process-sandbox", &self.oci_worker_no_process_sandbox),
            ("containerd-worker-addr", &self.containerd_worker_addr),
            ("containerd-worker-namespace", &self.containerd_worker_namespace),
            ("containerd-worker-runtime", &self.containerd_worker_runtime),
            ("containerd-worker-net", &self.containerd_worker_net),
            ("containerd-cni-config-path", &self.containerd_cni_config_path),
            ("containerd-cni-binary-dir", &self.containerd_cni_binary_dir),
            ("containerd-cni-pool-size", &self.containerd_cni_pool_size),
            ("containerd-worker-snapshotter", &self.containerd_worker_snapshotter),
            ("containerd-worker-apparmor-profile", &self.containerd_worker_apparmor_profile),
            ("containerd-worker-selinux", &self.containerd_worker_selinux),
            ("containerd-max-parallelism", &self.containerd_max_parallelism),
            ("containerd-worker-rootless", &self.containerd_worker_rootless),
            ("containerd-worker-gc", &self.containerd_worker_gc),
            ("containerd-worker-gc-keepstorage", &self.containerd_worker_gc_keepstorage),
        ];
        let many = [
            ("cdi-spec-dir", &self.cdi_spec_dir),
            ("containerd-worker-labels", &self.containerd_worker_labels),
            ("containerd-worker-platform", &self.containerd_worker_platform),
        ];
        one.into_iter()
            .filter_map(|(name, value)| value.is_some().then_some(name))
            .chain(many.into_iter().filter_map(|(name, values)| (!values.is_empty()).then_some(name)))
            .collect()
    }
}

impl Flags {
    /// Parses the program's arguments; single-dash long flags (`-addr x`) are read as BuildKit reads them.
    pub fn from_env() -> Self {
        Self::parse_from(std::env::args().map(double_dash))
    }

    /// What `--containerd-worker` says: `Some(true)` asks for a worker that castor does not have.
    pub fn containerd_worker(&self) -> Option<bool> {
        match self.without_effect.containerd_worker.as_deref() {
            None | Some("auto") => None,
            Some(value) => Some(value == "true"),
        }
    }
}

/// `-addr` is `--addr`; `-v`, `-` and what does not begin with a dash stay.
fn double_dash(argument: String) -> String {
    let bytes = argument.as_bytes();
    if bytes.len() > 2 && bytes[0] == b'-' && bytes[1].is_ascii_lowercase() { format!("-{argument}") } else { argument }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Flags {
        Flags::try_parse_from(["buildkitd"].iter().chain(arguments).map(|a| double_dash((*a).to_owned()))).unwrap()
    }

    #[test]
    fn takes_the_flags_a_user_of_buildkit_has_in_scripts() {
        let flags = parse(&[
            "-addr",
            "unix:///a",
            "--addr=tcp://127.0.0.1:1",
            "--oci-worker-snapshotter=stargz",
            "--containerd-worker=false",
            "--debug",
            "--oci-worker-gc=false",
            "--root",
            "/x",
        ]);
        assert_eq!(flags.addr, ["unix:///a", "tcp://127.0.0.1:1"]);
        assert_eq!(flags.oci_worker_snapshotter.as_deref(), Some("stargz"));
        assert_eq!(flags.containerd_worker(), Some(false));
        assert_eq!((flags.debug, flags.oci_worker_gc), (Some(true), Some(false)));
        assert!(flags.without_effect.given().is_empty());
    }

    #[test]
    fn names_the_flags_that_do_nothing() {
        let flags = parse(&["--otel-socket-path=/b", "--cdi-spec-dir=/a", "--rootless"]);
        assert_eq!(flags.without_effect.given(), ["otel-socket-path", "rootless", "cdi-spec-dir"]);
    }
}
