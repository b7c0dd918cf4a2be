//! What the flags of `build` mean.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, IsTerminal as _, Read as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use anyhow::{Context as _, Result, bail};
use castor_client::{Agents, CacheOption, Destination, Export, Forwarded, Key, Secret, Secrets, TlsFiles};

use crate::csv;

/// Variables of this process that become build arguments.
const PASSED_ON: &[&str] = &["SOURCE_DATE_EPOCH"];

const BUILD_ARG: &str = "build-arg:";

/// No private key has more bytes.
const LARGEST_KEY: u64 = 100 << 10;

/// `--output type=local,dest=out`
pub fn outputs(values: &[String]) -> Result<Vec<Export>> {
    values.iter().map(|value| output(value)).collect()
}

fn output(value: &str) -> Result<Export> {
    let mut attrs = csv::pairs(value)?;
    let Some(kind) = attrs.remove("type").filter(|kind| !kind.is_empty()) else {
        bail!("--output requires type=<type>");
    };
    if let Some(path) = attrs.get("output") {
        bail!("output={path} not supported for --output, you meant dest={path}?");
    }
    let layout = layout(&kind, &attrs).context("invalid output option: output")?;
    let destination = match layout {
        Some(_) => None,
        None => destination(&kind, &attrs).context("invalid output option: output")?,
    };
    if destination.is_some() || layout.is_some() {
        attrs.remove("dest");
    }
    Ok(Export { kind, attrs, destination, layout })
}

/// The directory of an image that is not to be a tar.
fn layout(kind: &str, attrs: &BTreeMap<String, String>) -> Result<Option<PathBuf>> {
    let is_tar = attrs.get("tar").and_then(|tar| parse_bool(tar).ok()).unwrap_or(true);
    if is_tar || !matches!(kind, "oci" | "docker") {
        return Ok(None);
    }
    match attrs.get("dest").map(String::as_str) {
        None | Some("") => bail!("output directory is required for {kind} exporter"),
        Some(dest) => Ok(Some(dest.into())),
    }
}

fn destination(kind: &str, attrs: &BTreeMap<String, String>) -> Result<Option<Destination>> {
    let dest = attrs.get("dest").map(String::as_str).unwrap_or_default();
    match kind {
        "local" if dest.is_empty() => bail!("output directory is required for local exporter"),
        "local" => {
            let mirror = match attrs.get("mode").map(String::as_str) {
                None | Some("" | "copy") => false,
                Some("delete") => true,
                Some(mode) => bail!("invalid local exporter mode {mode:?}"),
            };
            Ok(Some(Destination::Directory { path: dest.into(), mirror }))
        }
        "tar" | "oci" | "docker" if dest.is_empty() || dest == "-" => {
            if io::stdout().is_terminal() {
                bail!("output file is required for {kind} exporter. refusing to write to console");
            }
            let stdout = io::stdout().as_fd().try_clone_to_owned().context("duplicate standard output")?;
            Ok(Some(stream(File::from(stdout))))
        }
        "tar" | "oci" | "docker" => {
            let path = Path::new(dest);
            match std::fs::metadata(path) {
                Ok(metadata) if metadata.is_dir() => bail!("destination file is a directory"),
                Err(err) if err.kind() != io::ErrorKind::NotFound => {
                    return Err(err).context(format!("invalid destination file: {dest}"));
                }
                _ => {}
            }
            let file = File::create(path).with_context(|| format!("open {dest}"))?;
            Ok(Some(stream(file)))
        }
        _ if !dest.is_empty() => bail!("output {dest} is not supported by {kind} exporter"),
        _ => Ok(None),
    }
}

/// A stream into an open file, for the first who asks.
fn stream(file: File) -> Destination {
    let file = Mutex::new(Some(file));
    Destination::Stream(Arc::new(move |_| {
        let file = file.lock().map_err(|_| io::Error::other("the output is broken"))?.take();
        match file {
            Some(file) => Ok(Some(Box::new(tokio::fs::File::from_std(file)))),
            None => Err(io::Error::other("the output was written already")),
        }
    }))
}

/// `--oci-layout name=directory`
pub fn layouts(values: &[String]) -> Result<BTreeMap<String, PathBuf>> {
    let parse = |value: &String| match value.split_once('=') {
        Some((name, path)) => Ok((name.to_owned(), PathBuf::from(path))),
        None => bail!("invalid oci-layout: oci-layout option must be 'id=path/to/layout', instead had invalid {value}"),
    };
    values.iter().map(parse).collect()
}

/// `--export-cache type=registry,ref=...`
pub fn cache_exports(values: &[String]) -> Result<Vec<CacheOption>> {
    let parse = |value: &String| {
        let mut option = cache(value, "export")?;
        option.attrs.entry("mode".to_owned()).or_insert_with(|| "min".to_owned());
        Ok(option)
    };
    let options = values.iter().map(parse).collect::<Result<Vec<_>>>()?;
    for option in &options {
        match option.kind.as_str() {
            "local" if !option.attrs.contains_key("dest") => bail!("local cache exporter requires dest"),
            "registry" if !option.attrs.contains_key("ref") => bail!("registry cache exporter requires ref"),
            _ => {}
        }
    }
    Ok(options)
}

/// `--import-cache type=registry,ref=...`
pub fn cache_imports(values: &[String]) -> Result<Vec<CacheOption>> {
    let options = values.iter().map(|value| cache(value, "import")).collect::<Result<Vec<_>>>()?;
    for option in &options {
        match option.kind.as_str() {
            "local" if !option.attrs.contains_key("src") => bail!("local cache importer requires src"),
            "registry" if !option.attrs.contains_key("ref") => bail!("registry cache importer requires ref"),
            _ => {}
        }
    }
    Ok(options)
}

fn cache(value: &str, direction: &str) -> Result<CacheOption> {
    if !value.contains("type=") {
        tracing::warn!(
            "--{direction}-cache <ref> is deprecated. Please use --{direction}-cache type=registry,ref=<ref>,<opt>=<optval>[,<opt>=<optval>] instead{}",
            if direction == "import" { "." } else { "" }
        );
        let attrs = BTreeMap::from([("ref".to_owned(), value.to_owned())]);
        return Ok(CacheOption { kind: "registry".to_owned(), attrs });
    }
    let mut attrs = csv::pairs(value)?;
    let Some(kind) = attrs.remove("type").filter(|kind| !kind.is_empty()) else {
        bail!("--{direction}-cache requires type=<type>");
    };
    if kind == "gha" {
        github(&mut attrs)?;
    }
    Ok(CacheOption { kind, attrs })
}

/// What GitHub's runners tell their processes.
fn github(attrs: &mut BTreeMap<String, String>) -> Result<()> {
    let env = |name: &str| std::env::var(name).ok();
    let second = match attrs.get("version") {
        Some(version) => version == "2",
        None => env("ACTIONS_CACHE_SERVICE_V2")
            .is_some_and(|value| matches!(value.as_str(), "1" | "t" | "T" | "true" | "TRUE" | "True")),
    };
    if second && let (None, Some(url)) = (attrs.get("url_v2"), env("ACTIONS_RESULTS_URL")) {
        attrs.insert("url_v2".to_owned(), url);
    }
    if !attrs.contains_key("url")
        && let Some(url) = env("ACTIONS_CACHE_URL").or_else(|| env("ACTIONS_RESULTS_URL"))
    {
        attrs.insert("url".to_owned(), url);
    }
    if !attrs.contains_key("url") && !attrs.contains_key("url_v2") {
        bail!("cache with type gha requires url parameter to be set");
    }
    if !attrs.contains_key("token") {
        let token = env("ACTIONS_RUNTIME_TOKEN")
            .context("cache with type gha requires token parameter or $ACTIONS_RUNTIME_TOKEN")?;
        attrs.insert("token".to_owned(), token);
    }
    Ok(())
}

/// `--secret id=name,src=file`
pub fn secrets(values: &[String]) -> Result<Option<Secrets>> {
    if values.is_empty() {
        return Ok(None);
    }
    let mut secrets = Secrets::default();
    for value in values {
        let (id, secret) = secret(value)?;
        secrets.insert(id, secret);
    }
    Ok(Some(secrets))
}

fn secret(value: &str) -> Result<(String, Secret)> {
    let (mut kind, mut id, mut file, mut env) = ("".to_owned(), String::new(), String::new(), String::new());
    for field in csv::fields(value).context("failed to parse csv secret")? {
        let Some((key, value)) = field.split_once('=') else {
            bail!("invalid field '{field}' must be a key=value pair");
        };
        let place = match key.to_lowercase().as_str() {
            "type" if value != "file" && value != "env" => bail!("unsupported secret type {value:?}"),
            "type" => &mut kind,
            "id" => &mut id,
            "source" | "src" => &mut file,
            "env" => &mut env,
            key => bail!("unexpected key '{key}' in '{field}'"),
        };
        value.clone_into(place);
    }
    if kind == "env" && env.is_empty() {
        env = std::mem::take(&mut file);
    }
    if id.is_empty() {
        bail!("secret missing ID");
    }
    if env.is_empty() && file.is_empty() {
        // A variable of the secret's name comes before a file of that name.
        if std::env::var_os(&id).is_some() {
            env.clone_from(&id);
        } else {
            file.clone_from(&id);
        }
    }
    if !env.is_empty() {
        let value = std::env::var_os(&env).unwrap_or_default();
        return Ok((id, Secret::Value(std::os::unix::ffi::OsStringExt::into_vec(value).into())));
    }
    let metadata = std::fs::metadata(&file).with_context(|| format!("failed to stat {file}: stat {file}"))?;
    if metadata.len() > 500 << 10 {
        bail!("secret {id} too big. max size 500KB");
    }
    let path = std::path::absolute(&file).with_context(|| format!("resolve {file}"))?;
    Ok((id, Secret::File(path)))
}

/// `--opt key=value`; a build argument without a value takes this process's, if it has one.
pub fn attrs(values: &[String]) -> Result<BTreeMap<String, String>> {
    let mut attrs = BTreeMap::new();
    for name in PASSED_ON {
        if let Ok(value) = std::env::var(name) {
            attrs.insert(format!("{BUILD_ARG}{name}"), value);
        }
    }
    for value in values {
        let bare = value.strip_prefix(BUILD_ARG).filter(|name| !name.is_empty() && !name.contains('='));
        match (bare, value.split_once('=')) {
            (Some(name), _) => {
                if let Ok(set) = std::env::var(name) {
                    attrs.insert(value.clone(), set);
                }
            }
            (None, Some((key, value))) => {
                attrs.insert(key.to_owned(), value.to_owned());
            }
            (None, None) => bail!("invalid opt: invalid value {value}"),
        }
    }
    Ok(attrs)
}

/// `--local name=directory`
pub fn locals(values: &[String]) -> Result<BTreeMap<String, PathBuf>> {
    let mut locals = BTreeMap::new();
    for value in values {
        let Some((name, path)) = value.split_once('=') else { bail!("invalid local: invalid value {value}") };
        let path = Path::new(path);
        let resolved = std::fs::canonicalize(path);
        let resolved = match resolved {
            Ok(resolved) => resolved,
            Err(err) if err.kind() == io::ErrorKind::NotFound => {
                bail!("invalid local: resolve : lstat {}: no such file or directory", path.display())
            }
            Err(err) => return Err(err).context(format!("invalid local: resolve {}", path.display())),
        };
        if !resolved.is_dir() {
            bail!("invalid local: stat {}: not a directory", path.display());
        }
        locals.insert(name.to_owned(), resolved);
    }
    Ok(locals)
}

/// `--allow network.host`
pub fn check_entitlements(values: &[String]) -> Result<()> {
    for value in values {
        let (name, rest) = value.split_once('=').unwrap_or((value, ""));
        match name {
            "security.insecure" | "network.host" if !value.contains('=') => {}
            "device" => check_device(rest)?,
            _ => bail!("unknown entitlement {value}"),
        }
    }
    Ok(())
}

fn check_device(config: &str) -> Result<()> {
    if config.is_empty() {
        return Ok(());
    }
    for field in csv::fields(config)?.iter().skip(1) {
        match field.split_once('=') {
            Some(("alias", _)) => {}
            Some((key, _)) => bail!("unknown device config key {key:?}"),
            None => bail!("invalid device config {field:?}"),
        }
    }
    Ok(())
}

/// `--ssh default`, `--ssh id=socket`, `--ssh id=socket,raw=true`, `--ssh id=key,key`
pub fn agents(values: &[String]) -> Result<Option<Agents>> {
    if values.is_empty() {
        return Ok(None);
    }
    let mut agents = Agents::default();
    let configs = values.iter().map(|value| AgentConfig::parse(value)).collect::<Result<Vec<_>>>()?;
    for mut config in configs {
        if config.id.is_empty() {
            "default".clone_into(&mut config.id);
        }
        let what = config.to_string();
        let forwarded = config.forwarded().with_context(|| format!("failed to convert agent config {what}"))?;
        if agents.insert(&config.id, forwarded).is_some() {
            bail!("duplicate agent ID {:?}", config.id);
        }
    }
    Ok(Some(agents))
}

/// What `--ssh` says.
struct AgentConfig {
    id: String,
    paths: Vec<String>,
    raw: bool,
}

/// `{default [/a /b] false}`
impl std::fmt::Display for AgentConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{{{} [{}] {}}}", self.id, self.paths.join(" "), self.raw)
    }
}

impl AgentConfig {
    fn parse(value: &str) -> Result<Self> {
        let (id, rest) = value.split_once('=').map_or((value, None), |(id, rest)| (id, Some(rest)));
        let mut config = Self { id: id.to_owned(), paths: Vec::new(), raw: false };
        for field in rest.into_iter().flat_map(|rest| rest.split(',')) {
            match field.split_once('=') {
                Some(("raw", value)) => {
                    let parsed = parse_bool(value).with_context(|| format!("invalid value for 'raw': {value}"));
                    config.raw = parsed?;
                }
                _ => config.paths.push(field.to_owned()),
            }
        }
        if config.raw && config.paths.len() != 1 {
            bail!("raw mode must supply exactly one socket path for {:?}", config.id);
        }
        Ok(config)
    }

    /// Looks at what is at the paths; without any it is the user's agent.
    fn forwarded(&self) -> Result<Forwarded> {
        let mut paths = self.paths.clone();
        if paths.iter().all(String::is_empty) && paths.len() < 2 {
            let agent = std::env::var("SSH_AUTH_SOCK").ok().filter(|path| !path.is_empty());
            paths = vec![agent.context("invalid empty ssh agent socket: make sure SSH_AUTH_SOCK is set")?];
        }
        self.of(&paths).with_context(|| format!("failed to convert agent config for ID: {:?}", self.id))
    }

    fn of(&self, paths: &[String]) -> Result<Forwarded> {
        use std::os::unix::fs::FileTypeExt as _;
        let (mut socket, mut keys) = (None, Vec::new());
        for path in paths {
            if socket.is_some() {
                bail!("only single socket allowed");
            }
            if std::fs::metadata(path).with_context(|| format!("stat {path}"))?.file_type().is_socket() {
                socket = Some(PathBuf::from(path));
                continue;
            }
            if self.raw {
                bail!("raw mode only supported with socket paths");
            }
            let mut text = Vec::new();
            let file = File::open(path).with_context(|| format!("failed to open {path}: open {path}"))?;
            file.take(LARGEST_KEY).read_to_end(&mut text).with_context(|| format!("failed to read {path}"))?;
            keys.push(Key::parse(&text).with_context(|| format!("failed to parse {path}"))?);
        }
        match socket {
            Some(_) if !keys.is_empty() => bail!("invalid combination of keys and sockets"),
            Some(socket) if self.raw => Ok(Forwarded::Raw(socket)),
            Some(socket) => Ok(Forwarded::Agent(socket)),
            None => Ok(Forwarded::Keys(Arc::new(keys))),
        }
    }
}

/// A truth value as Go reads it.
fn parse_bool(text: &str) -> Result<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => bail!("strconv.ParseBool: parsing {text:?}: invalid syntax"),
    }
}

/// `--registry-auth-tlscontext host=...,ca=...`
pub fn registry_tls(values: &[String]) -> Result<BTreeMap<String, TlsFiles>> {
    let mut hosts: BTreeMap<String, TlsFiles> = BTreeMap::new();
    for value in values {
        let (mut host, mut files) = (String::new(), TlsFiles::default());
        let (mut certificate, mut key) = (None, None);
        for field in csv::fields(value).context("failed to parse csv tlscontext")? {
            let Some((name, value)) = field.split_once('=') else {
                bail!("invalid field '{field}' must be a key=value pair");
            };
            match name.to_lowercase().as_str() {
                "host" => value.clone_into(&mut host),
                "ca" => files.authorities.push(value.into()),
                "cert" => certificate = Some(PathBuf::from(value)),
                "key" => key = Some(PathBuf::from(value)),
                "insecure" => files.insecure = matches!(value, "1" | "t" | "T" | "true" | "TRUE" | "True"),
                other => bail!("unexpected key '{other}' in '{field}'"),
            }
        }
        if host.is_empty() {
            bail!("--registry-auth-tlscontext requires host=<host>");
        }
        files.identity = match (certificate, key) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => bail!("--registry-auth-tlscontext requires cert and key together"),
        };
        let host = host.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/').to_owned();
        hosts.insert(host, files);
    }
    Ok(hosts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(values: &[&str]) -> Vec<String> {
        values.iter().map(|&value| value.to_owned()).collect()
    }

    #[test]
    fn outputs_are_checked() {
        let message = |value: &str| format!("{:#}", output(value).err().unwrap());
        assert_eq!(message("foo"), "invalid value foo");
        assert_eq!(message("name=a"), "--output requires type=<type>");
        assert_eq!(
            message("type=local"),
            "invalid output option: output: output directory is required for local exporter"
        );
        assert_eq!(message("type=image,output=x"), "output=x not supported for --output, you meant dest=x?");
        assert_eq!(
            message("type=image,dest=x"),
            "invalid output option: output: output x is not supported by image exporter"
        );
        let export = output("type=local,dest=out,mode=delete").unwrap();
        assert!(matches!(export.destination, Some(Destination::Directory { mirror: true, .. })));
        assert_eq!(export.attrs.keys().collect::<Vec<_>>(), ["mode"]);
    }

    #[test]
    fn caches() {
        let exports = cache_exports(&strings(&["type=registry,ref=a", "example.com/x"])).unwrap();
        assert_eq!(exports[0].attrs["mode"], "min");
        assert_eq!((exports[1].kind.as_str(), exports[1].attrs["ref"].as_str()), ("registry", "example.com/x"));
        assert!(cache_imports(&strings(&["type=local"])).is_err());
    }

    #[test]
    fn options_and_entitlements() {
        let parsed = attrs(&strings(&["target=x", "build-arg:A=b=c", "build-arg:NO_SUCH_VARIABLE_HERE"])).unwrap();
        assert_eq!(parsed["build-arg:A"], "b=c");
        assert!(!parsed.contains_key("build-arg:NO_SUCH_VARIABLE_HERE"));
        assert_eq!(attrs(&strings(&["foo"])).unwrap_err().to_string(), "invalid opt: invalid value foo");
        assert!(check_entitlements(&strings(&["network.host", "device", "device=x,alias=y"])).is_ok());
        assert_eq!(check_entitlements(&strings(&["foo"])).unwrap_err().to_string(), "unknown entitlement foo");
    }

    #[test]
    fn secrets_are_checked() {
        let message = |value: &str| format!("{:#}", secret(value).err().unwrap());
        assert_eq!(message("foo"), "invalid field 'foo' must be a key=value pair");
        assert_eq!(message("id=a,type=x"), "unsupported secret type \"x\"");
        assert_eq!(message("id=a,what=x"), "unexpected key 'what' in 'what=x'");
        assert!(matches!(secret("id=a,env=PATH").unwrap().1, Secret::Value(value) if !value.is_empty()));
    }
}
