//! A process.

use async_trait::async_trait;
use castor_executor::{DEFAULT_PATH, HostIp, Meta, Network, Process, Resources, Security, Stdio, Ulimit, step_outputs};
use castor_llb::LinuxResources;
use castor_llb::op::{ExecOp, NetMode, ProxyEnv, SecretEnv, SecurityMode};
use castor_oci::{Digest, Platform};
use castor_session::secrets;
use castor_solver::{BoxError, CacheMap, Cx, Operation, Outputs, Permit};
use castor_store::ImmutableRef;

use super::inputs::looked_into;
use super::mounts::Preparation;
use super::reads::{Reads, judge};
use crate::OpError;
use crate::bridge::code;
use crate::identity::InputKey;
use crate::openers::group;
use crate::worker::Worker;

pub(crate) struct Exec {
    pub(crate) worker: Worker,
    pub(crate) op: ExecOp,
    pub(crate) platform: Platform,
    pub(crate) digest: Digest,
    pub(crate) inputs: Vec<InputKey>,
    pub(crate) resources: Option<LinuxResources>,
}

impl Exec {
    async fn run(&self, cx: &Cx, inputs: &[ImmutableRef]) -> Result<Outputs<ImmutableRef>, OpError> {
        let op = &self.op;
        if let Some(device) = op.cdi_devices.iter().find(|device| !device.optional) {
            return Err(OpError::Unsupported(format!("CDI device {}", device.name)));
        }
        let mut meta = self.meta()?;
        meta.env.extend(secret_env(&self.worker, cx, &op.secret_env).await?);

        let reads = Reads::watch(&self.worker, cx, inputs).await?;
        let result = match self.run_with(cx, inputs, meta).await {
            Err(error) if error.code() != code::CANCELLED => Err(self.explained(error).await),
            result => result,
        };
        judge(result, reads.finish().await)
    }

    /// Says of a step that failed whether this machine runs programs of its platform at all. Before that it is not asked:
    /// what an image says of its platform need not be so.
    async fn explained(&self, error: OpError) -> OpError {
        if self.worker.can_run(&self.platform) {
            return error;
        }
        let (wanted, host) = (self.platform.to_string(), Platform::host());
        let reason = if self.platform.os == host.os {
            let architecture = self.platform.architecture.clone();
            match castor_task::blocking(move || castor_executor::emulation::can_run(&architecture)).await {
                Ok(()) => return error,
                Err(cannot) => cannot.to_string(),
            }
        } else {
            "it is another operating system".to_owned()
        };
        OpError::Platform { source: Box::new(error), wanted, host: host.to_string(), reason }
    }

    async fn run_with(&self, cx: &Cx, inputs: &[ImmutableRef], meta: Meta) -> Result<Outputs<ImmutableRef>, OpError> {
        let op = &self.op;
        let preparation = Preparation::new(&self.worker, cx, &op.meta.args, &op.meta.cwd, inputs);
        let mounts = preparation.prepare(&op.mounts).await?;
        let (stdout, stderr) = step_outputs(cx.reporter());
        let process = Process {
            id: crate::random_id(),
            root: mounts.root.clone(),
            mounts: mounts.mounts.clone(),
            meta,
            stdio: Stdio { stdout: Some(stdout), stderr: Some(stderr), ..Stdio::default() },
        };
        self.worker.executor().run(process, None, cx.token()).await?;
        mounts.commit().await
    }

    fn meta(&self) -> Result<Meta, OpError> {
        let op = &self.op;
        let mut env = op.meta.env.clone();
        if let Some(proxy) = &op.meta.proxy_env {
            env.extend(proxy_env(proxy));
        }
        if !env.iter().any(|variable| variable.starts_with("PATH=")) {
            env.push(format!("PATH={DEFAULT_PATH}"));
        }
        let host = |host: &castor_llb::op::HostIp| match host.ip.parse() {
            Ok(ip) => Ok(HostIp { host: host.host.clone(), ip }),
            Err(_) => Err(OpError::Invalid(format!("failed to parse IP {} of extra host {}", host.ip, host.host))),
        };
        Ok(Meta {
            args: op.meta.args.clone(),
            env,
            user: op.meta.user.clone(),
            cwd: op.meta.cwd.clone(),
            hostname: op.meta.hostname.clone(),
            tty: false,
            extra_hosts: op.meta.extra_hosts.iter().map(host).collect::<Result<_, _>>()?,
            ulimits: op
                .meta
                .ulimits
                .iter()
                .map(|limit| Ulimit { name: limit.name.clone(), soft: limit.soft, hard: limit.hard })
                .collect(),
            cgroup_parent: op.meta.cgroup_parent.clone(),
            resources: self.resources.as_ref().map(resources).unwrap_or_default(),
            network: match op.network {
                NetMode::Unset => Network::Sandbox,
                NetMode::Host => Network::Host,
                NetMode::None => Network::None,
            },
            security: match op.security {
                SecurityMode::Sandbox => Security::Sandbox,
                SecurityMode::Insecure => Security::Insecure,
            },
            valid_exit_codes: op.meta.valid_exit_codes.clone(),
            remove_mount_stubs_recursive: op.meta.remove_mount_stubs_recursive,
        })
    }
}

/// The variables whose values are secrets of the client.
pub(crate) async fn secret_env(worker: &Worker, cx: &Cx, wishes: &[SecretEnv]) -> Result<Vec<String>, OpError> {
    let group = group(worker.sessions(), cx);
    let mut env = Vec::new();
    for wanted in wishes {
        if wanted.id.is_empty() {
            return Err(OpError::Invalid(format!("secret ID missing for {:?} environment variable", wanted.name)));
        }
        let value = match secrets::get(&group, &wanted.id).await? {
            Some(value) => value,
            None if wanted.optional => bytes::Bytes::new(),
            None => return Err(OpError::NoSecret(wanted.id.clone())),
        };
        let text = String::from_utf8_lossy(&value);
        env.push(format!("{}={text}", wanted.name));
    }
    Ok(env)
}

fn proxy_env(proxy: &ProxyEnv) -> Vec<String> {
    let pairs = [
        ("HTTP_PROXY", &proxy.http_proxy),
        ("HTTPS_PROXY", &proxy.https_proxy),
        ("FTP_PROXY", &proxy.ftp_proxy),
        ("NO_PROXY", &proxy.no_proxy),
        ("ALL_PROXY", &proxy.all_proxy),
    ];
    let set = pairs.into_iter().filter(|(_, value)| !value.is_empty());
    set.flat_map(|(name, value)| [format!("{name}={value}"), format!("{}={value}", name.to_lowercase())]).collect()
}

fn resources(limits: &LinuxResources) -> Resources {
    Resources {
        memory: limits.memory,
        memory_swap: limits.memory_swap,
        cpu_shares: limits.cpu_shares,
        cpu_period: limits.cpu_period,
        cpu_quota: limits.cpu_quota,
        cpuset_cpus: limits.cpuset_cpus.clone(),
        cpuset_mems: limits.cpuset_mems.clone(),
    }
}

#[async_trait]
impl Operation<ImmutableRef> for Exec {
    async fn cache_map(&self, _: &Cx, _: usize) -> Result<(CacheMap<ImmutableRef>, bool), BoxError> {
        Ok((CacheMap::with_deps(self.digest, looked_into(self.inputs.clone())), true))
    }

    async fn execute(&self, cx: &Cx, inputs: &[ImmutableRef]) -> Result<Outputs<ImmutableRef>, BoxError> {
        Ok(self.run(cx, inputs).await?)
    }

    async fn acquire(&self, cx: &Cx) -> Result<Permit, BoxError> {
        Ok(self.worker.acquire(cx).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies_are_given_in_both_cases() {
        let proxy = ProxyEnv { http_proxy: "a".into(), all_proxy: "b".into(), ..ProxyEnv::default() };
        assert_eq!(proxy_env(&proxy), ["HTTP_PROXY=a", "http_proxy=a", "ALL_PROXY=b", "all_proxy=b"]);
    }
}
