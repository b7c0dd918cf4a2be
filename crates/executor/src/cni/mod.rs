//! Networks of containers by CNI: each container gets a network namespace, and the configured plugins furnish it.
//!
//! ```text
//! <root>/net/<id>    the namespace of one container, mounted on an empty file
//! <root>/bridge      the name of the bridge, if it is the daemon's own
//! ```
//!
//! Namespaces are made by the daemon and live in its mount namespace, so that none outlives it; what plugins remember of
//! one (addresses) is given back when it is released, or by the daemon after this one.

mod link;
mod list;
mod namespace;
mod plugin;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use castor_task::Scope;
use tokio::sync::Mutex;

use crate::error::ExecError;
use list::NetworkList;
use plugin::{Call, Command};

/// The name of a container's interface.
const INTERFACE: &str = "eth0";

/// How containers are networked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CniConfig {
    /// What is made.
    pub network: CniNetwork,
    /// Where plugins are.
    pub binaries: PathBuf,
    /// Namespaces that are kept ready.
    pub pool: usize,
}

/// What network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CniNetwork {
    /// The one that a file describes: a plugin's configuration, or a list of them (`.conflist`).
    File(PathBuf),
    /// A bridge of castor's own, with addresses from a subnet, behind the host's.
    Bridge {
        /// The interface.
        name: String,
        /// Its addresses, `10.10.0.0/16`.
        subnet: String,
    },
}

/// Makes networks.
#[derive(Debug)]
pub struct Cni {
    list: NetworkList,
    /// Where plugins are looked for.
    binaries: Vec<PathBuf>,
    /// Where namespaces are mounted.
    dir: PathBuf,
    ready: Mutex<Vec<Network>>,
    pool: usize,
    /// The bridge, if there was none before.
    bridge: Option<Arc<link::OwnBridge>>,
}

/// The network of one container.
#[derive(Debug)]
pub struct Network {
    id: String,
    path: PathBuf,
    /// What the plugins said, for when it is taken down.
    result: Option<serde_json::Value>,
    /// Its namespace went with the daemon that made it.
    gone: bool,
}

impl Network {
    /// Where its namespace is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Cni {
    /// Reads the configuration. Namespaces are made in `dir`.
    pub fn open(config: &CniConfig, dir: PathBuf) -> Result<Self, ExecError> {
        let (list, binaries) = match &config.network {
            CniNetwork::File(path) => (NetworkList::read(path)?, vec![config.binaries.clone()]),
            CniNetwork::Bridge { name, subnet } => list::bridge(name, subnet, &config.binaries)?,
        };
        crate::bundle::make_dir(&dir)?;
        let bridge = match &config.network {
            CniNetwork::Bridge { name, .. } => link::OwnBridge::claim(name, dir.with_file_name("bridge"))
                .map_err(|error| ExecError::setup(format!("look for the bridge {name:?}"), error))?,
            CniNetwork::File(_) => None,
        };
        let bridge = bridge.map(Arc::new);
        let cni = Self { list, binaries, dir, ready: Mutex::default(), pool: config.pool, bridge };
        cni.list.programs().try_for_each(|name| cni.program(name).map(drop))?;
        Ok(cni)
    }

    /// Gives back what a daemon before this one left, and tries whether a network can be made at all.
    pub async fn begin(&self) -> Result<(), ExecError> {
        let dir = self.dir.clone();
        let left = castor_task::blocking(move || namespace::left_in(&dir)).await;
        for id in left.map_err(|error| ExecError::setup(format!("read {:?}", self.dir), error))? {
            tracing::info!(namespace = id, "removing a network that was left behind");
            self.release(Network { path: self.dir.join(&id), id, result: None, gone: true }).await;
        }
        let network = self.make().await?;
        self.release(network).await;
        Ok(())
    }

    /// A network for one container: one that is ready, or a new one.
    pub async fn acquire(self: &Arc<Self>, scope: &Scope) -> Result<Network, ExecError> {
        let ready = self.ready.lock().await.pop();
        if self.pool > 0 {
            let cni = self.clone();
            scope.spawn_named("networks", async move {
                if let Err(error) = cni.fill().await {
                    tracing::warn!(%error, "make a network in advance");
                }
            });
        }
        match ready {
            Some(network) => Ok(network),
            None => self.make().await,
        }
    }

    /// Makes as many networks in advance as are wanted.
    async fn fill(&self) -> Result<(), ExecError> {
        while self.ready.lock().await.len() < self.pool {
            let network = self.make().await?;
            self.ready.lock().await.push(network);
        }
        Ok(())
    }

    /// Takes down what is ready, before the daemon ends.
    pub async fn end(&self) {
        let ready = std::mem::take(&mut *self.ready.lock().await);
        for network in ready {
            self.release(network).await;
        }
        if let Some(bridge) = self.bridge.clone()
            && let Err(error) = castor_task::blocking(move || bridge.remove()).await
        {
            tracing::warn!(%error, "remove the bridge");
        }
    }

    async fn make(&self) -> Result<Network, ExecError> {
        let id = crate::runc::new_id();
        let path = self.dir.join(&id);
        let place = path.clone();
        castor_task::blocking(move || namespace::create(&place))
            .await
            .map_err(|error| ExecError::setup(format!("create network namespace {path:?}"), error))?;
        let mut network = Network { id, path, result: None, gone: false };
        match self.furnish(&mut network).await {
            Ok(()) => Ok(network),
            Err(error) => {
                self.release(network).await;
                Err(error)
            }
        }
    }

    async fn furnish(&self, network: &mut Network) -> Result<(), ExecError> {
        self.run(Command::Add, list::LOOPBACK, &self.list.loopback(), "lo", network).await?;
        for plugin in &self.list.plugins {
            let config = self.list.config(plugin, network.result.as_ref());
            network.result = self.run(Command::Add, &plugin.kind, &config, INTERFACE, network).await?;
        }
        Ok(())
    }

    /// Takes a network down. What goes wrong is told to the log: nobody can do anything about it.
    pub async fn release(&self, network: Network) {
        for plugin in self.list.plugins.iter().rev() {
            let config = self.list.config(plugin, network.result.as_ref());
            if let Err(error) = self.run(Command::Del, &plugin.kind, &config, INTERFACE, &network).await {
                tracing::warn!(%error, "take a network down");
            }
        }
        let path = network.path;
        if let Err(error) = castor_task::blocking(move || namespace::remove(&path)).await {
            tracing::warn!(%error, "remove a network namespace");
        }
    }

    async fn run(
        &self,
        command: Command,
        kind: &str,
        config: &serde_json::Value,
        interface: &str,
        network: &Network,
    ) -> Result<Option<serde_json::Value>, ExecError> {
        let program = self.program(kind)?;
        // Plugins take a file that is no namespace for an error, and give nothing back.
        let namespace = if network.gone { Path::new("") } else { &network.path };
        let call = Call { command, program: &program, config, container: &network.id, namespace, interface };
        call.run(&self.binaries).await
    }

    fn program(&self, kind: &str) -> Result<PathBuf, ExecError> {
        // A plugin is a name in one of the directories, and nothing else.
        let plain = !kind.is_empty() && !kind.contains('/') && kind != "..";
        let found = self.binaries.iter().map(|dir| dir.join(kind)).find(|path| plain && path.is_file());
        found.ok_or_else(|| {
            let dirs: Vec<_> = self.binaries.iter().map(|dir| dir.display().to_string()).collect();
            ExecError::Network(format!("failed to find plugin {kind:?} in path [{}]", dirs.join(" ")))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    /// A plugin that writes down how it was called, and answers with what it was asked.
    const PLUGIN: &str =
        "#!/bin/sh\ncat > \"$0.$CNI_COMMAND.$CNI_IFNAME\"\necho '{\"cniVersion\":\"1.0.0\",\"ips\":[]}'\n";

    fn fake(dir: &Path, name: &str, text: &str) {
        let path = dir.join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn config(dir: &Path) -> CniConfig {
        let file = dir.join("net.conflist");
        let text = r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"first","a":1},{"type":"second"}]}"#;
        std::fs::write(&file, text).unwrap();
        CniConfig { network: CniNetwork::File(file), binaries: dir.to_path_buf(), pool: 0 }
    }

    #[test]
    fn plugins_that_are_missing_are_named() {
        let dir = tempfile::tempdir().unwrap();
        fake(dir.path(), "loopback", PLUGIN);
        fake(dir.path(), "first", PLUGIN);
        let error = Cni::open(&config(dir.path()), dir.path().join("net")).unwrap_err().to_string();
        assert!(error.contains("\"second\"") && error.contains(dir.path().to_str().unwrap()), "{error}");
    }

    #[tokio::test]
    async fn plugins_are_run_in_order_and_taken_down_with_what_they_said() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["loopback", "first", "second"] {
            fake(dir.path(), name, PLUGIN);
        }
        let cni = Cni::open(&config(dir.path()), dir.path().join("net")).unwrap();
        let mut network = Network { id: "x".into(), path: dir.path().join("net/x"), result: None, gone: false };
        cni.furnish(&mut network).await.unwrap();
        let asked = |name: &str| -> serde_json::Value {
            serde_json::from_slice(&std::fs::read(dir.path().join(name)).unwrap()).unwrap()
        };
        assert_eq!(
            asked("first.ADD.eth0"),
            serde_json::json!({"cniVersion": "1.0.0", "name": "n", "type": "first", "a": 1})
        );
        assert_eq!(asked("second.ADD.eth0")["prevResult"]["ips"], serde_json::json!([]));
        assert_eq!(asked("loopback.ADD.lo")["type"], "loopback");
        cni.release(network).await;
        assert_eq!(asked("first.DEL.eth0")["prevResult"]["cniVersion"], "1.0.0");
        fake(dir.path(), "second", "#!/bin/sh\necho '{\"code\":7,\"msg\":\"no subnet\",\"details\":\"x\"}'\nexit 1\n");
        let mut network = Network { id: "y".into(), path: dir.path().join("net/y"), result: None, gone: true };
        let error = cni.furnish(&mut network).await.unwrap_err().to_string();
        assert!(error.contains("\"second\"") && error.contains("no subnet; x"), "{error}");
    }
}
