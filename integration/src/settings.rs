//! Where packages come from, as this machine's own settings say: read from its files and environment, and given to steps
//! as secrets. Nothing of it is ever in a project, an image or a cache.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::programs::run_command;

/// The release of Debian that base images are made of.
pub const RELEASE: &str = "bookworm";

/// Where steps find the authorities' certificates: the place of the secret `ca`.
const AUTHORITIES: &str = "/run/secrets/ca";

/// The host's own bundle of authorities, in which a company's may be.
const BUNDLES: &[&str] = &["/etc/ssl/certs/ca-certificates.crt", "/etc/ssl/cert.pem"];

/// A place of Debian packages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Archive {
    /// Its address.
    pub site: String,
    /// The suite: the release itself, its updates.
    pub suite: String,
    /// Parts of the suite.
    pub components: Vec<String>,
}

/// The archives of [`RELEASE`] that this machine's apt knows; the release itself is the first.
pub fn archives() -> Result<Vec<Archive>> {
    let mut command = Command::new("apt-get");
    command.args(["indextargets", "--format", "$(SITE) $(RELEASE) $(COMPONENT)"]);
    command.args(["Identifier: Packages", "Origin: Debian"]);
    let text = run_command(command).context("ask apt for its sources (run apt-get update first?)")?;
    let archives = parse_targets(&text);
    if archives.first().is_none_or(|archive| archive.suite != RELEASE) {
        bail!("apt has no source of {RELEASE}: {text:?}");
    }
    Ok(archives)
}

fn parse_targets(text: &str) -> Vec<Archive> {
    let mut archives: Vec<Archive> = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (Some(site), Some(suite), Some(component)) = (words.next(), words.next(), words.next()) else { continue };
        if !suite.starts_with(RELEASE) {
            continue;
        }
        let known = archives.iter_mut().find(|archive| archive.site == site && archive.suite == suite);
        match known {
            Some(archive) if archive.components.iter().any(|known| known == component) => {}
            Some(archive) => archive.components.push(component.to_owned()),
            None => archives.push(Archive {
                site: site.to_owned(),
                suite: suite.to_owned(),
                components: vec![component.to_owned()],
            }),
        }
    }
    archives.sort_by_key(|archive| archive.suite != RELEASE);
    archives
}

/// Settings of package managers as files, each the value of a secret.
#[derive(Debug)]
pub struct Settings {
    files: BTreeMap<&'static str, PathBuf>,
}

impl Settings {
    /// Reads this machine's, and writes what steps need of them into `directory`.
    pub fn gather(directory: &Path) -> Result<Self> {
        fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
        let home = PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/root".into()));
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let bundle = variable("SSL_CERT_FILE")
            .map(PathBuf::from)
            .into_iter()
            .chain(BUNDLES.iter().map(PathBuf::from))
            .find(|path| path.is_file())
            .context("no certificates of authorities: apt-get install ca-certificates")?;
        let read = |path: PathBuf| fs::read_to_string(path).unwrap_or_default();
        let pip: Vec<String> =
            ["/etc/pip.conf".into(), home.join(".pip/pip.conf"), home.join(".config/pip/pip.conf")].map(read).into();
        let npm = [PathBuf::from("/etc/npmrc"), home.join(".npmrc")].map(read).concat();
        let cargo = ["config.toml", "config"].map(|name| read(home.join(".cargo").join(name)));
        let mut settings = Self { files: BTreeMap::new() };
        for (name, text) in [
            ("apt", apt_sources(&archives()?)),
            ("apt-conf", apt_conf()?),
            ("pip", pip_conf(&pip, variable)),
            ("npm", npmrc(&npm)),
            ("cargo", cargo_config(cargo.iter().find(|text| !text.is_empty()).map_or("", String::as_str))?),
        ] {
            let path = directory.join(name);
            fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
            settings.files.insert(name, path);
        }
        settings.files.insert("ca", bundle);
        Ok(settings)
    }

    /// The values of `--secret` for all of them.
    pub fn secrets(&self) -> impl Iterator<Item = String> {
        self.files.iter().map(|(name, path)| format!("id={name},src={}", path.display()))
    }
}

fn apt_sources(archives: &[Archive]) -> String {
    let line = |archive: &Archive| {
        let Archive { site, suite, components } = archive;
        let keys = "/usr/share/keyrings/debian-archive-keyring.gpg";
        format!("deb [signed-by={keys}] {site} {suite} {}\n", components.join(" "))
    };
    archives.iter().map(line).collect()
}

/// Proxies, and certificates where the archives want TLS.
fn apt_conf() -> Result<String> {
    let mut text = format!("Acquire::Retries \"3\";\nAcquire::https::CAInfo \"{AUTHORITIES}\";\n");
    for option in ["Acquire::http::Proxy", "Acquire::https::Proxy"] {
        let mut command = Command::new("apt-config");
        command.args(["shell", "value", option]);
        // value='…'
        let answer = run_command(command)?;
        if let Some(value) = answer.trim().strip_prefix("value='").and_then(|rest| rest.strip_suffix('\'')) {
            text.push_str(&format!("{option} \"{value}\";\n"));
        }
    }
    Ok(text)
}

/// The last of the files that names a key wins, the environment over all.
fn pip_conf(files: &[String], variable: impl Fn(&str) -> Option<String>) -> String {
    let mut text = String::from("[global]\n");
    for key in ["index-url", "extra-index-url", "trusted-host", "proxy", "timeout"] {
        let named = |line: &str| {
            let (name, value) = line.split_once('=')?;
            (name.trim().replace('_', "-") == key).then(|| value.trim().to_owned())
        };
        let in_files = files.iter().flat_map(|file| file.lines()).filter_map(named).next_back();
        let in_environment = variable(&format!("PIP_{}", key.to_uppercase().replace('-', "_")));
        if let Some(value) = in_environment.or(in_files).filter(|value| !value.is_empty()) {
            text.push_str(&format!("{key} = {value}\n"));
        }
    }
    text.push_str(&format!("cert = {AUTHORITIES}\n"));
    text
}

/// Without what names files of this machine.
fn npmrc(text: &str) -> String {
    const LOCAL: &[&str] = &["cafile", "nodedir", "prefix", "cache", "globalconfig", "userconfig", "tmp"];
    let kept = text.lines().filter(|line| {
        let key = line.split('=').next().unwrap_or_default().trim();
        !LOCAL.contains(&key)
    });
    kept.chain([format!("cafile={AUTHORITIES}").as_str()]).map(|line| format!("{line}\n")).collect()
}

/// Of cargo's settings, those of registries and of the way to them.
fn cargo_config(text: &str) -> Result<String> {
    let all: toml::Table = text.parse().context("read cargo's configuration")?;
    let kept = ["registries", "registry", "source", "http", "net"];
    let mut config: toml::Table = all.into_iter().filter(|(key, _)| kept.contains(&key.as_str())).collect();
    let http = config.entry("http").or_insert_with(|| toml::Value::Table(toml::Table::new()));
    if let toml::Value::Table(http) = http {
        http.insert("cainfo".into(), AUTHORITIES.into());
    }
    Ok(config.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_become_archives() {
        let archives = parse_targets(
            "http://m/security bookworm-security main\nhttp://m/debian bookworm main\n\
             http://m/debian bookworm contrib\nhttp://m/debian bookworm main\nhttp://m/other trixie main\n",
        );
        assert_eq!(archives.len(), 2);
        assert_eq!(archives[0].suite, "bookworm");
        assert_eq!(archives[0].components, ["main", "contrib"]);
        assert!(apt_sources(&archives).ends_with("] http://m/security bookworm-security main\n"));
    }

    #[test]
    fn settings_of_pip() {
        let files = ["[global]\nindex_url = http://a\ntimeout=3\n".into(), "[global]\nindex-url=http://b\n".into()];
        let environment = |name: &str| (name == "PIP_TIMEOUT").then(|| "9".to_owned());
        assert_eq!(
            pip_conf(&files, environment),
            "[global]\nindex-url = http://b\ntimeout = 9\ncert = /run/secrets/ca\n"
        );
    }

    #[test]
    fn settings_of_npm_and_cargo() {
        assert_eq!(npmrc("registry=http://r\ncafile=/x\n"), "registry=http://r\ncafile=/run/secrets/ca\n");
        let config: toml::Table = cargo_config("[build]\njobs = 1\n[net]\nretry = 2\n").unwrap().parse().unwrap();
        assert_eq!(config["net"]["retry"].as_integer(), Some(2));
        assert_eq!(config["http"]["cainfo"].as_str(), Some(AUTHORITIES));
        assert!(!config.contains_key("build"));
        assert!(cargo_config("[").is_err());
    }
}
