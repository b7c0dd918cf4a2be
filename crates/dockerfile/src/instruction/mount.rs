//! `RUN --mount=…`.

use crate::error::{DockerfileError, Result};
use crate::gofmt::{csv, parse_bool, quote};
use crate::{quantity, suggest};

/// What is mounted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs)] // each is the type of its name
pub enum MountType {
    #[default]
    Bind,
    Cache,
    Tmpfs,
    Secret,
    Ssh,
}

impl MountType {
    const NAMES: [(&'static str, Self); 5] = [
        ("bind", Self::Bind),
        ("cache", Self::Cache),
        ("tmpfs", Self::Tmpfs),
        ("secret", Self::Secret),
        ("ssh", Self::Ssh),
    ];

    fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, kind)| *kind == self).map_or("", |(name, _)| name)
    }
}

/// Who may use a cache mount at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // each is the mode of its name
pub enum Sharing {
    Shared,
    Private,
    Locked,
}

impl Sharing {
    const NAMES: [(&'static str, Self); 3] =
        [("shared", Self::Shared), ("private", Self::Private), ("locked", Self::Locked)];
}

/// A mount.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mount {
    /// What is mounted.
    pub kind: MountType,
    /// From which stage, image or context.
    pub from: String,
    /// Path in it, or the name of a secret.
    pub source: String,
    /// Where.
    pub target: String,
    /// Read-only.
    pub readonly: bool,
    /// Size of memory, bytes; 0 is the default.
    pub size: i64,
    /// Name of a cache, secret or agent.
    pub id: String,
    /// Who may use a cache at once.
    pub sharing: Option<Sharing>,
    /// Its absence is an error.
    pub required: bool,
    /// Variable for a secret.
    pub env: Option<String>,
    /// Mode.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
}

/// In the order in which BuildKit compares them.
const KEYS: [&str; 19] = [
    "type",
    "from",
    "source",
    "target",
    "readonly",
    "id",
    "sharing",
    "required",
    "size",
    "mode",
    "uid",
    "gid",
    "src",
    "dst",
    "destination",
    "ro",
    "rw",
    "readwrite",
    "env",
];

fn refuse<T>(message: impl Into<String>) -> Result<T> {
    Err(DockerfileError::new(message))
}

/// How variables are expanded.
pub(super) type Expand<'a> = &'a mut dyn FnMut(&str) -> Result<String>;

impl Mount {
    /// Reads the value of a `--mount`. Without `expand` only `from` is read: the rest may have variables, and is
    /// looked at once they are known.
    pub(super) fn parse(text: &str, mut expand: Option<Expand<'_>>) -> Result<Self> {
        let fields = csv(text).map_err(|error| DockerfileError::new(format!("failed to parse csv mounts: {error}")))?;
        let mut mount = Self::default();
        let mut readonly = None;
        for field in &fields {
            let (key, value) = field.split_once('=').map_or((field.as_str(), None), |(k, v)| (k, Some(v)));
            let key = key.to_lowercase();
            let Some(value) = value else {
                if expand.is_some() {
                    mount.bare(&key, field, &mut readonly)?;
                }
                continue;
            };
            let value = match &mut expand {
                Some(expand) => expand(value)?,
                None if key != "from" => continue,
                None => {
                    if value.find('$').is_some_and(|at| at + 1 != value.len()) {
                        return refuse(format!(
                            "'{key}' doesn't support variable expansion, define alias stage instead"
                        ));
                    }
                    value.to_owned()
                }
            };
            mount.set(&key, &value, field, &mut readonly)?;
        }
        let default = !matches!(mount.kind, MountType::Cache | MountType::Tmpfs);
        mount.readonly = readonly.unwrap_or(default);
        mount.check()?;
        Ok(mount)
    }

    /// A key without value.
    fn bare(&mut self, key: &str, field: &str, readonly: &mut Option<bool>) -> Result<()> {
        match key {
            "readonly" | "ro" => *readonly = Some(true),
            "readwrite" | "rw" => *readonly = Some(false),
            "required" => {
                self.only_for_secrets(key)?;
                self.required = true;
            }
            _ => return refuse(format!("invalid field '{field}' must be a key=value pair")),
        }
        Ok(())
    }

    fn only_for_secrets(&self, key: &str) -> Result<()> {
        if matches!(self.kind, MountType::Secret | MountType::Ssh) {
            return Ok(());
        }
        refuse(format!("unexpected key '{key}' for mount type '{}'", self.kind.name()))
    }

    fn set(&mut self, key: &str, value: &str, field: &str, readonly: &mut Option<bool>) -> Result<()> {
        let truth =
            || parse_bool(value).ok_or_else(|| DockerfileError::new(format!("invalid value for {key}: {value}")));
        let number = |radix: u32| match u32::from_str_radix(value, radix) {
            Ok(number) if !value.starts_with('+') => Ok(Some(number)),
            _ => refuse(format!("invalid value {value} for {key}")),
        };
        match key {
            "type" => {
                let lower = value.to_lowercase();
                let names = MountType::NAMES;
                let Some((_, kind)) = names.iter().find(|(name, _)| *name == lower) else {
                    let hint = suggest::hint(value, names.iter().map(|(name, _)| *name), true);
                    return refuse(format!("unsupported mount type {}{hint}", quote(value)));
                };
                self.kind = *kind;
            }
            "from" => value.clone_into(&mut self.from),
            "source" | "src" => value.clone_into(&mut self.source),
            "target" | "dst" | "destination" => value.clone_into(&mut self.target),
            "readonly" | "ro" => *readonly = Some(truth()?),
            "readwrite" | "rw" => *readonly = Some(!truth()?),
            "required" => {
                self.only_for_secrets(key)?;
                self.required = truth()?;
            }
            "size" => {
                if self.kind != MountType::Tmpfs {
                    return refuse(format!("unexpected key '{key}' for mount type '{}'", self.kind.name()));
                }
                self.size = quantity::bytes(value)
                    .ok_or_else(|| DockerfileError::new(format!("invalid value for {key}: {value}")))?;
            }
            "id" => value.clone_into(&mut self.id),
            "sharing" => {
                let lower = value.to_lowercase();
                let names = Sharing::NAMES;
                let Some((_, sharing)) = names.iter().find(|(name, _)| *name == lower) else {
                    let hint = suggest::hint(value, names.iter().map(|(name, _)| *name), true);
                    return refuse(format!("unsupported sharing value {}{hint}", quote(value)));
                };
                self.sharing = Some(*sharing);
            }
            "mode" => self.mode = number(8)?,
            "uid" => self.uid = number(10)?,
            "gid" => self.gid = number(10)?,
            "env" => self.env = Some(value.to_owned()),
            _ => {
                let hint = suggest::hint(key, KEYS, true);
                return refuse(format!("unexpected key '{key}' in '{field}'{hint}"));
            }
        }
        Ok(())
    }

    /// What does not go together.
    fn check(&self) -> Result<()> {
        let name = self.kind.name();
        if matches!(self.kind, MountType::Bind | MountType::Tmpfs) {
            for (key, set) in [("mode", self.mode.is_some()), ("uid", self.uid.is_some()), ("gid", self.gid.is_some())]
            {
                if set {
                    return refuse(format!("{key} not allowed for {} type mounts", quote(name)));
                }
            }
        }
        if self.kind == MountType::Secret {
            if !self.from.is_empty() {
                return refuse("secret mount should not have a from");
            }
            if self.sharing.is_some() {
                return refuse("secret mount should not define sharing");
            }
            if self.source.is_empty() && self.target.is_empty() && self.id.is_empty() {
                return refuse("invalid secret mount. one of source, target required");
            }
            if !self.source.is_empty() && !self.id.is_empty() {
                return refuse("both source and id can't be set");
            }
        }
        if self.sharing.is_some() && self.kind != MountType::Cache {
            return refuse(format!("invalid cache sharing set for {name} mount"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Mount> {
        Mount::parse(text, Some(&mut |word: &str| Ok(word.replace("$X", "x"))))
    }

    #[test]
    fn reads_mounts() {
        let mount = parse("type=cache,target=/$X,id=a,sharing=locked,mode=0750,uid=1,ro").unwrap();
        assert_eq!(
            mount,
            Mount {
                kind: MountType::Cache,
                target: "/x".into(),
                id: "a".into(),
                sharing: Some(Sharing::Locked),
                mode: Some(0o750),
                uid: Some(1),
                readonly: true,
                ..Mount::default()
            }
        );
        assert!(parse("target=/x").unwrap().readonly);
        assert!(!parse("target=/x,rw").unwrap().readonly);
        assert_eq!(Mount::parse("type=$T,from=a", None).unwrap().from, "a");
    }

    #[test]
    fn refuses_with_buildkits_words() {
        for (text, want) in [
            ("type=cache,foo=bar", "unexpected key 'foo' in 'foo=bar' (did you mean from?)"),
            ("type=foo", "unsupported mount type \"foo\""),
            ("rw=perhaps", "invalid value for rw: perhaps"),
            ("type=cache,uid=me", "invalid value me for uid"),
            ("type=secret", "invalid secret mount. one of source, target required"),
            ("size=5", "unexpected key 'size' for mount type 'bind'"),
            ("nothing", "invalid field 'nothing' must be a key=value pair"),
            ("", "failed to parse csv mounts: EOF"),
        ] {
            assert_eq!(parse(text).unwrap_err().message(), want);
        }
        assert!(Mount::parse("from=$a", None).is_err());
    }
}
