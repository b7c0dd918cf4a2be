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

/// A variable of the environment that holds no credentials.
#[derive(Debug, thiserror::Error)]
pub enum EnvironmentError {
    /// It is malformed.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// An entry has no user and password.
    #[error("missing key `auth` for {host}")]
    Missing {
        /// The registry.
        host: String,
    },
    /// What it has instead is malformed.
    #[error(transparent)]
    Entry(#[from] DockerConfigError),
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

    /// Reads `auths` as a variable of the environment holds them: each has a user and a password, and nothing else is there.
    pub fn from_environment(text: &str) -> Result<Self, EnvironmentError> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Environment {
            #[serde(default)]
            auths: BTreeMap<String, Auth>,
        }
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Auth {
            #[serde(default)]
            auth: String,
        }
        let read: Environment = serde_json::from_str(text)?;
        let mut auths = BTreeMap::new();
        for (host, Auth { auth }) in read.auths {
            if auth.is_empty() {
                return Err(EnvironmentError::Missing { host });
            }
            let entry = Entry { auth, ..Entry::default() };
            entry.login(&host)?;
            auths.insert(host, entry);
        }
        Ok(Self { auths, ..Self::default() })
    }

    /// Who the user is at `host`, if an entry of this configuration says so.
    pub fn entry_login(&self, host: &str) -> Result<Option<Login>, DockerConfigError> {
        self.entry(server_of(host)).map(|entry| entry.login(host)).transpose()
    }

    /// Who the user is at `host`.
    pub async fn login(&self, host: &str) -> Result<Login, DockerConfigError> {
        let server = server_of(host);
        // A registry whose helper has no name has none, whatever keeps the others.
        let helper = self.helpers.get(server).or_else(|| self.helpers.get(host)).unwrap_or(&self.store);
        if !helper.is_empty()
            && let Some(login) = ask_helper(helper, server).await?
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

/// The name of a registry in the file.
fn server_of(host: &str) -> &str {
    match host {
        "docker.io" | "registry-1.docker.io" | "index.docker.io" => DOCKER_HUB,
        host => host,
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
    ask(Command::new(&program), program, server).await
}

async fn ask(mut command: Command, program: String, server: &str) -> Result<Option<Login>, DockerConfigError> {
    let run = |source| DockerConfigError::Run { program: program.clone(), source };
    let mut child = command
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

    #[tokio::test]
    async fn a_registry_may_have_no_helper() {
        let config = config(serde_json::json!({
            "credsStore": "surely-not-there",
            "credHelpers": {"a.io": ""},
            "auths": {"a.io": {"auth": STANDARD.encode("u:p")}},
        }));
        assert_eq!(config.login("a.io").await.unwrap().user, "u");
        assert!(config.login("b.io").await.is_err());
    }

    #[tokio::test]
    async fn helpers_are_asked() {
        const SCRIPT: &str = r#"
            test "$0" = get || exit 9
            read -r host
            case $host in
            token.io) echo '{"ServerURL":"token.io","Username":"<token>","Secret":"idt"}' ;;
            user.io) echo '{"Username":"u","Secret":"p"}' ;;
            broken.io) echo 'no json' ;;
            silent.io) exit 1 ;;
            locked.io) echo 'the keychain is locked'; exit 1 ;;
            *) echo 'credentials not found in native keychain'; exit 1 ;;
            esac"#;
        let asked = async |server: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", SCRIPT]);
            ask(command, "helper".to_owned(), server).await
        };
        let token = Login { identity_token: "idt".into(), ..Login::default() };
        assert_eq!(asked("token.io").await.unwrap(), Some(token));
        let user = asked("user.io").await.unwrap().unwrap();
        assert_eq!((user.user.as_str(), user.password.as_str()), ("u", "p"));
        assert_eq!(asked("other.io").await.unwrap(), None);
        assert_eq!(asked("silent.io").await.unwrap(), None);
        assert_eq!(asked("locked.io").await.unwrap_err().to_string(), "helper failed: the keychain is locked");
        assert!(asked("broken.io").await.unwrap_err().to_string().starts_with("helper failed: answer: "));
    }

    #[test]
    fn the_environment_has_users_and_passwords() {
        let read = |text: &str| DockerConfig::from_environment(text);
        let auth = STANDARD.encode("u:p");
        let found = read(&format!(r#"{{"auths":{{"https://index.docker.io/v1/":{{"auth":"{auth}"}}}}}}"#)).unwrap();
        assert_eq!(found.entry_login("docker.io").unwrap().unwrap().user, "u");
        assert_eq!(found.entry_login("a.io").unwrap(), None);
        let wrong = |text: &str| read(text).unwrap_err().to_string();
        assert_eq!(wrong(r#"{"auths":{"a.io":{}}}"#), "missing key `auth` for a.io");
        assert!(wrong(r#"{"auths":{"a.io":{"auth":"x","token":"y"}}}"#).contains("unknown field `token`"));
        assert!(wrong(r#"{"auths":{"a.io":{"auth":"%"}}}"#).contains("a.io"));
        assert!(wrong("{").contains("EOF"));
    }
}
