//! What plugins are run with: CNI's configuration files.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::error::ExecError;

/// The plugin that brings the loopback interface up.
pub(super) const LOOPBACK: &str = "loopback";
/// Configuration files are not larger.
const MAX_FILE: u64 = 1 << 20;
/// The form of what castor itself configures.
const VERSION: &str = "1.0.0";

/// The plugins of a network, in the order in which they furnish it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct NetworkList {
    version: String,
    name: String,
    pub(super) plugins: Vec<Plugin>,
}

/// One plugin.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Plugin {
    /// Its program.
    pub(super) kind: String,
    config: Map<String, Value>,
}

impl NetworkList {
    /// Reads a file: a list of plugins if it is called `.conflist`, or one plugin.
    pub(super) fn read(path: &Path) -> Result<Self, ExecError> {
        let failed = |error| ExecError::setup(format!("failed to read cni config {path:?}"), error);
        let size = std::fs::metadata(path).map_err(failed)?.len();
        if size > MAX_FILE {
            return Err(ExecError::Network(format!("cni config {path:?} has {size} bytes")));
        }
        let bytes = std::fs::read(path).map_err(failed)?;
        let list = path.extension() == Some(OsStr::new("conflist"));
        Self::parse(&bytes, list).map_err(|reason| ExecError::Network(format!("cni config {path:?}: {reason}")))
    }

    fn parse(bytes: &[u8], list: bool) -> Result<Self, String> {
        let mut file: Map<String, Value> = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        let text =
            |file: &Map<String, Value>, key: &str| file.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (version, name) = (text(&file, "cniVersion"), text(&file, "name"));
        if name.is_empty() {
            return Err("no name".to_owned());
        }
        let plugins = match list {
            true => match file.remove("plugins") {
                Some(Value::Array(plugins)) if !plugins.is_empty() => plugins,
                _ => return Err("no plugins".to_owned()),
            },
            false => vec![Value::Object(file)],
        };
        let plugins = plugins.into_iter().map(|plugin| match plugin {
            Value::Object(config) => {
                let kind = text(&config, "type");
                if kind.is_empty() { Err("a plugin without type".to_owned()) } else { Ok(Plugin { kind, config }) }
            }
            _ => Err("a plugin that is no object".to_owned()),
        });
        Ok(Self { version, name, plugins: plugins.collect::<Result<_, _>>()? })
    }

    /// The programs that are needed.
    pub(super) fn programs(&self) -> impl Iterator<Item = &str> {
        std::iter::once(LOOPBACK).chain(self.plugins.iter().map(|plugin| plugin.kind.as_str()))
    }

    /// What a plugin is told, with what those before it said.
    pub(super) fn config(&self, plugin: &Plugin, previous: Option<&Value>) -> Value {
        let mut config = plugin.config.clone();
        config.insert("cniVersion".into(), json!(self.version));
        config.insert("name".into(), json!(self.name));
        if let Some(previous) = previous {
            config.insert("prevResult".into(), previous.clone());
        }
        Value::Object(config)
    }

    /// What the loopback plugin is told.
    pub(super) fn loopback(&self) -> Value {
        json!({"cniVersion": "0.3.1", "name": "cni-loopback", "type": LOOPBACK})
    }
}

/// A bridge with a subnet of its own, masqueraded; and where its plugins are.
pub(super) fn bridge(name: &str, subnet: &str, binaries: &Path) -> Result<(NetworkList, Vec<PathBuf>), ExecError> {
    if !binaries.join("bridge").is_file() {
        return Err(ExecError::Network(format!("failed to find CNI bridge {:?}", binaries.join("bridge"))));
    }
    let plugin = |config: Value| match config {
        Value::Object(config) => {
            let kind = config.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
            Plugin { kind, config }
        }
        _ => Plugin { kind: String::new(), config: Map::new() },
    };
    let mut plugins = vec![plugin(json!({
        "type": "bridge",
        "bridge": name,
        "isDefaultGateway": true,
        "ipMasq": true,
        "ipam": {"type": "host-local", "ranges": [[{"subnet": subnet}]]},
    }))];
    if binaries.join("firewall").is_file() {
        // Containers do not reach those of other bridges.
        plugins.push(plugin(json!({"type": "firewall", "ingressPolicy": "same-bridge"})));
    }
    let list = NetworkList { version: VERSION.into(), name: "buildkit".into(), plugins };
    Ok((list, vec![binaries.to_path_buf()]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_one_plugin_or_a_list() {
        let one = NetworkList::parse(br#"{"cniVersion":"0.4.0","name":"n","type":"bridge","mtu":1}"#, false).unwrap();
        assert_eq!((one.plugins.len(), one.plugins[0].kind.as_str()), (1, "bridge"));
        let config = one.config(&one.plugins[0], Some(&json!({"ips": []})));
        assert_eq!(config, json!({"cniVersion":"0.4.0","name":"n","type":"bridge","mtu":1,"prevResult":{"ips":[]}}));
        assert_eq!(one.programs().collect::<Vec<_>>(), ["loopback", "bridge"]);
        for (bytes, list, word) in [
            (&b"x"[..], false, "expected"),
            (br#"{"type":"a"}"#, false, "no name"),
            (br#"{"name":"a"}"#, false, "without type"),
            (br#"{"name":"a","plugins":[]}"#, true, "no plugins"),
            (br#"{"name":"a","plugins":[1]}"#, true, "no object"),
        ] {
            let error = NetworkList::parse(bytes, list).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn a_bridge_needs_its_plugin() {
        let dir = tempfile::tempdir().unwrap();
        assert!(bridge("b0", "10.0.0.0/24", dir.path()).unwrap_err().to_string().contains("bridge"));
        std::fs::write(dir.path().join("bridge"), "").unwrap();
        let (list, _) = bridge("b0", "10.0.0.0/24", dir.path()).unwrap();
        assert_eq!(list.programs().collect::<Vec<_>>(), ["loopback", "bridge"]);
    }
}
