//! Where the network of steps comes from: the host, or CNI.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use castor_executor::{CniConfig, CniNetwork};

use crate::config::OciWorker;
use crate::flags::Flags;

/// The configuration that is taken where it is there and no mode is set.
const CONFIG: &str = "/etc/buildkit/cni.json";
/// Where plugins are; the second is Debian's place.
const BINARIES: [&str; 2] = ["/opt/cni/bin", "/usr/lib/cni"];
/// The bridge of castor's own.
const BRIDGE: &str = "buildkit0";
const SUBNET: &str = "10.10.0.0/16";
/// Makes `auto` a bridge, as in BuildKit.
const BRIDGE_AUTO: &str = "BUILDKIT_NETWORK_BRIDGE_AUTO";

/// What steps get that ask for no particular network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Network {
    /// The host's.
    Host {
        /// Nobody asked for it: there is nothing else.
        fallback: bool,
    },
    /// What CNI's plugins make.
    Cni(CniConfig),
}

impl Network {
    /// The name by which workers tell of it.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Host { .. } => "host",
            Self::Cni(_) => "cni",
        }
    }

    /// Decides by flags, file and what is there.
    pub fn new(flags: &Flags, file: &OciWorker) -> Result<Self> {
        let bridge_auto = std::env::var(BRIDGE_AUTO).is_ok_and(|value| matches!(value.as_str(), "1" | "t" | "true"));
        Self::decide(flags, file, bridge_auto, Path::new(CONFIG))
    }

    fn decide(flags: &Flags, file: &OciWorker, bridge_auto: bool, default: &Path) -> Result<Self> {
        let config = flags.oci_cni_config_path.clone().or_else(|| file.cni_config_path.clone());
        let config = config.unwrap_or_else(|| default.to_owned());
        let binaries = flags.oci_cni_binary_dir.clone().or_else(|| file.cni_binary_path.clone());
        let cni = |network| {
            let binaries = binaries.clone().unwrap_or_else(binaries_here);
            let pool = flags.oci_cni_pool_size.or(file.cni_pool_size).unwrap_or(0);
            Self::Cni(CniConfig { network, binaries, pool })
        };
        let bridge = || CniNetwork::Bridge {
            name: file.bridge_name.clone().unwrap_or_else(|| BRIDGE.into()),
            subnet: file.bridge_subnet.clone().unwrap_or_else(|| SUBNET.into()),
        };
        let mode = flags.oci_worker_net.as_deref().or(file.network_mode.as_deref()).unwrap_or("auto");
        Ok(match mode {
            "host" => Self::Host { fallback: false },
            "cni" => cni(CniNetwork::File(config)),
            "bridge" => cni(bridge()),
            "auto" | "" if bridge_auto => cni(bridge()),
            "auto" | "" if config.exists() => cni(CniNetwork::File(config)),
            "auto" | "" => Self::Host { fallback: true },
            other => bail!("invalid network mode: {other:?}: want auto, cni, bridge or host"),
        })
    }
}

/// The first place of plugins that is there.
fn binaries_here() -> PathBuf {
    let here = BINARIES.iter().find(|dir| Path::new(dir).is_dir());
    here.unwrap_or(&BINARIES[0]).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn decided(arguments: &[&str], file: &OciWorker, auto: bool, default: &str) -> Result<Network> {
        let arguments = ["buildkitd"].into_iter().chain(arguments.iter().copied());
        Network::decide(&Flags::try_parse_from(arguments).unwrap(), file, auto, Path::new(default))
    }

    #[test]
    fn the_mode_is_what_was_asked_for_or_what_is_there() {
        let file = OciWorker::default();
        let nowhere = "/nonexistent/cni.json";
        assert_eq!(decided(&[], &file, false, nowhere).unwrap(), Network::Host { fallback: true });
        assert_eq!(decided(&["--oci-worker-net=host"], &file, true, "/").unwrap(), Network::Host { fallback: false });
        // A configuration that is there is used.
        assert_eq!(decided(&[], &file, false, "/").unwrap().label(), "cni");
        let flags = ["--oci-worker-net=cni", "--oci-cni-config-path=/a.conflist", "--oci-cni-binary-dir=/b"];
        let Network::Cni(cni) = decided(&flags, &file, false, nowhere).unwrap() else { panic!("not cni") };
        assert_eq!(cni.network, CniNetwork::File("/a.conflist".into()));
        assert_eq!(cni.binaries, Path::new("/b"));
        let file = OciWorker { bridge_name: Some("b0".into()), cni_pool_size: Some(3), ..OciWorker::default() };
        let Network::Cni(cni) = decided(&[], &file, true, nowhere).unwrap() else { panic!("no bridge") };
        assert_eq!(cni.network, CniNetwork::Bridge { name: "b0".into(), subnet: SUBNET.into() });
        assert_eq!(cni.pool, 3);
        assert!(decided(&["--oci-worker-net=vpn"], &file, false, nowhere).unwrap_err().to_string().contains("vpn"));
    }
}
