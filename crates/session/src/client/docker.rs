//! Docker's configuration file, as far as it says who the user is.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

/// Docker Hub, as the file names it.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";
/// What a helper says if it has nothing.
const NOT_FOUND: &str = "credentials not found in native keychain";
/// The user name by which a helper says that the secret is an identity token.
const TOKEN_USER: &str = "<token>";
/// How long a helper may take; it may ask a person.
const PATIENCE: Duration = Duration::from_secs(60);

/// Who the user is at a registry. All empty for nobody.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Login {
    /// User name.
    pub user: String,
    /// Password.
    pub password: String,
    /// A token to get tokens with, instead of user and password.
    pub identity_token: String,
    /// A token for the registry itself.
    pub registry_token: String,
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Login").field("user", &self.user).finish_non_exhaustive()
    }
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DockerConfigError {
    /// The file could not be read.
    #[error("read {path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file is malformed.
    #[error("parse {path}: {source}", path = path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// A helper could not be run.
    #[error("run {program}: {source}")]
    Run {
        /// The helper.
        program: String,
        /// Why not.
        source: io::Error,
    },
    /// A helper failed.
    #[error("{program} failed: {message}")]
    Helper {
        /// The helper.
        program: String,
        /// What it said.
        message: String,
    },
    /// An entry of the file is malformed.
    #[error("credentials of {host} are malformed")]
    Malformed {
        /// The registry.
        host: String,
    },
}

/// The parts of `config.json` that matter here.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct DockerConfig {
    auths: BTreeMap<String, Entry>,
    #[serde(rename = "credsStore")]
    store: String,
    #[serde(rename = "credHelpers")]
    helpers: BTreeMap<String, String>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
    registrytoken: String,
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entry").finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
#[serde(default, rename_all = "PascalCase")]
#[derive(Default)]
struct HelperAnswer {
    username: String,
    secret: String,
}

impl DockerConfig {
    /// Reads the file. One that is not there is empty.
    pub fn read(path: &Path) -> Result<Self, DockerConfigError> {
        match std::fs::read(path) {
            Ok(bytes) => {
                serde_json::from_slice(&bytes).map_err(|source| DockerConfigError::Parse { path: path.into(), source })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(source) => Err(DockerConfigError::Read { path: path.into(), source }),
        }
    }

    /// Who the user is at `host`.
    pub async fn login(&self, host: &str) -> Result<Login, DockerConfigError> {
        let server = match host {
            "docker.io" | "registry-1.docker.io" | "index.docker.io" => DOCKER_HUB,
            host => host,
        };
        let helper = self.helpers.get(server).or_else(|| self.helpers.get(host)).cloned();
        let helper = helper.or_else(|| (!self.store.is_empty()).then(|| self.store.clone()));
        if let Some(helper) = helper
            && let Some(login) = ask_helper(&helper, server).await?
        {
            return Ok(login);
        }
        // A helper keeps the secrets, but what is written in the file
        // counts where it has none.
        match self.entry(server) {
            Some(entry) => entry.login(host),
            None => Ok(Login::default()),
        }
    }

    /// The entry of a registry; keys may be URLs.
    fn entry(&self, server: &str) -> Option<&Entry> {
        let host = host_of(server);
        self.auths
            .get(server)
            .or_else(|| self.auths.iter().find(|(key, _)| host_of(key) == host).map(|(_, entry)| entry))
    }
}

fn host_of(server: &str) -> &str {
    let rest = server.strip_prefix("https://").or_else(|| server.strip_prefix("http://")).unwrap_or(server);
    rest.split('/').next().unwrap_or(rest)
}

impl Entry {
    fn login(&self, host: &str) -> Result<Login, DockerConfigError> {
        let malformed = || DockerConfigError::Malformed { host: host.to_owned() };
        let (mut user, mut password) = (self.username.clone(), self.password.clone());
        if !self.auth.is_empty() {
            let decoded = STANDARD.decode(&self.auth).map_err(|_| malformed())?;
            let text = String::from_utf8(decoded).map_err(|_| malformed())?;
            let (before, after) = text.split_once(':').ok_or_else(malformed)?;
            user = before.to_owned();
            // Old files pad it.
            password = after.trim_end_matches('\0').to_owned();
        }
        Ok(Login {
            user,
            password,
            identity_token: self.identitytoken.clone(),
            registry_token: self.registrytoken.clone(),
        })
    }
}

/// Asks a program that keeps secrets; `None` if it has none.
async fn ask_helper(helper: &str, server: &str) -> Result<Option<Login>, DockerConfigError> {
    let program = format!("docker-credential-{helper}");
    let run = |source| DockerConfigError::Run { program: program.clone(), source };
    let mut child = Command::new(&program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(run)?;
    let stdin = child.stdin.take();
    let asked = async {
        if let Some(mut stdin) = stdin {
            // A helper that does not read its input has its own say.
            let _ = stdin.write_all(server.as_bytes()).await;
        }
        child.wait_with_output().await
    };
    let output = match tokio::time::timeout(PATIENCE, asked).await {
        Ok(output) => output.map_err(run)?,
        Err(_) => return Err(run(io::ErrorKind::TimedOut.into())),
    };
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        let message = text.trim();
        if message == NOT_FOUND || message.is_empty() {
            return Ok(None);
        }
        return Err(DockerConfigError::Helper { program, message: message.to_owned() });
    }
    let answer: HelperAnswer = serde_json::from_slice(&output.stdout)
        .map_err(|error| DockerConfigError::Helper { program, message: format!("answer: {error}") })?;
    Ok(Some(if answer.username == TOKEN_USER {
        Login { identity_token: answer.secret, ..Login::default() }
    } else {
        Login { user: answer.username, password: answer.secret, ..Login::default() }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: serde_json::Value) -> DockerConfig {
        serde_json::from_value(json).unwrap()
    }

    #[tokio::test]
    async fn entries_are_found_by_host() {
        let config = config(serde_json::json!({
            "auths": {
                "https://index.docker.io/v1/": {"auth": STANDARD.encode("me:secret:with:colons")},
                "https://ghcr.io/v2/": {"username": "u", "password": "p"},
                "quay.io": {"identitytoken": "idt"},
                "bad.io": {"auth": "%%%"},
            },
            "HttpHeaders": {"ignored": "yes"},
        }));
        for host in ["registry-1.docker.io", "docker.io"] {
            let login = config.login(host).await.unwrap();
            assert_eq!((login.user.as_str(), login.password.as_str()), ("me", "secret:with:colons"));
        }
        assert_eq!(config.login("ghcr.io").await.unwrap().user, "u");
        assert_eq!(config.login("quay.io").await.unwrap().identity_token, "idt");
        assert_eq!(config.login("other.io").await.unwrap(), Login::default());
        assert!(config.login("bad.io").await.is_err());
        assert_eq!(DockerConfig::read(Path::new("/nonexistent/x.json")).unwrap().auths.len(), 0);
    }

    #[tokio::test]
    async fn a_helper_that_is_missing_is_named() {
        let config = config(serde_json::json!({"credHelpers": {"a.io": "surely-not-there"}}));
        let error = config.login("a.io").await.unwrap_err().to_string();
        assert!(error.starts_with("run docker-credential-surely-not-there: "), "{error}");
        assert_eq!(config.login("b.io").await.unwrap(), Login::default());
    }
}
