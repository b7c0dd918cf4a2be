//! Capabilities: names of LLB features, those that castor has, and what happens with others.

use std::collections::BTreeSet;

/// The capabilities that castor's daemon has; exactly these are advertised.
///
/// Left out because nothing implements them yet: image blobs as sources; bundles and signatures of git,
/// signatures of http; CDI devices; the proxy network; content cache mounts; policies that the client judges; caches of
/// clouds.
pub const SUPPORTED: &[&str] = &[
    "constraints",
    "diffop",
    "exec.meta.base",
    "exec.meta.cgroup.parent",
    "exec.meta.linux.resources",
    "exec.meta.network",
    "exec.meta.proxyenv",
    "exec.meta.security",
    "exec.meta.setsdefaultpath",
    "exec.meta.ulimit",
    "exec.mount.bind",
    "exec.mount.bind.readwrite-nooutput",
    "exec.mount.cache",
    "exec.mount.cache.sharing",
    "exec.mount.secret",
    "exec.mount.selector",
    "exec.mount.ssh",
    "exec.mount.tmpfs",
    "exec.mount.tmpfs.size",
    "exec.secretenv",
    "exec.validexitcode",
    "exporter.image.annotations",
    "exporter.image.attestations",
    "exporter.multiple",
    "exporter.sourcedateepoch",
    "file.base",
    "file.copy.alwaysreplaceexistingdestpaths",
    "file.copy.includeexcludepatterns",
    "file.copy.requiredpaths",
    "file.rm.nofollowsymlink",
    "file.rm.wildcard",
    "file.symlink.create",
    "history.filter",
    "mergeop",
    "meta.description",
    "meta.exportcache",
    "meta.ignorecache",
    "passthroughop",
    "platform",
    // BuildKit's spelling.
    "soruce.http.uidgid",
    "source.git",
    "source.git.checksum",
    "source.git.fetchbycommit",
    "source.git.fullurl",
    "source.git.httpauth",
    "source.git.keepgitdir",
    "source.git.knownsshhosts",
    "source.git.mountsshsock",
    "source.git.mtime",
    "source.git.skipsubmodules",
    "source.git.subdir",
    "source.http",
    "source.http.auth",
    "source.http.checksum",
    "source.http.header",
    "source.http.perm",
    "source.image",
    "source.image.checksum",
    "source.image.layerlimit",
    "source.image.resolvemode",
    "source.local",
    "source.local.differ",
    "source.local.excludepatterns",
    "source.local.followpaths",
    "source.local.includepatterns",
    "source.local.sessionid",
    "source.local.sharedkeyhint",
    "source.local.unique",
    "source.ocilayout",
    "source.policy",
];

/// Capabilities that clients put on ops though no BuildKit ever advertised them; accepted, not advertised.
const TOLERATED: &[&str] = &["exec.meta.removemountstubs.recursive", "file.copy.modestring"];

/// Capabilities of BuildKit that castor does not have.
const ABSENT: &[&str] = &[
    "cache.azblob",
    "cache.gha",
    "cache.s3",
    "exec.cgroup",
    "exec.meta.cdi",
    "exec.meta.network.proxy",
    "exec.meta.security.devices.v1",
    "exec.mount.cache.content",
    "exporter.session",
    "gc.freespacefilter",
    "source.buildop.llbfilename",
    "source.git.bundle",
    "source.git.checkoutbundle",
    "source.git.signatureverify",
    "source.http.signatureverify",
    "source.imageblob",
    "source.local.metadatatransfer",
    "source.policy.session",
];

/// Why an op cannot be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CapError {
    /// A name that castor never heard of.
    #[error("unknown API capability {0}")]
    Unknown(String),
    /// A feature of BuildKit that castor lacks.
    #[error("requested feature {0} is not supported by build server")]
    Unsupported(String),
}

/// A set of capabilities.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CapSet(BTreeSet<String>);

impl CapSet {
    /// What castor's daemon supports.
    pub fn supported() -> Self {
        SUPPORTED.iter().copied().collect()
    }

    /// All that a current BuildKit has. For reproducing its definitions.
    pub fn buildkit() -> Self {
        SUPPORTED.iter().chain(ABSENT).copied().collect()
    }

    /// Whether `id` is in the set.
    pub fn contains(&self, id: &str) -> bool {
        self.0.contains(id)
    }

    /// The names, sorted.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// Checks one capability that an op carries.
    pub fn check(&self, id: &str) -> Result<(), CapError> {
        if self.contains(id) || TOLERATED.contains(&id) {
            Ok(())
        } else if SUPPORTED.contains(&id) || ABSENT.contains(&id) {
            Err(CapError::Unsupported(id.to_owned()))
        } else {
            Err(CapError::Unknown(id.to_owned()))
        }
    }
}

impl<S: Into<String>> FromIterator<S> for CapSet {
    fn from_iter<I: IntoIterator<Item = S>>(names: I) -> Self {
        Self(names.into_iter().map(Into::into).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_what_is_unknown_from_what_is_missing() {
        let caps = CapSet::supported();
        assert_eq!(caps.check("file.base"), Ok(()));
        assert_eq!(caps.check("file.copy.modestring"), Ok(()));
        assert_eq!(caps.check("source.git.bundle"), Err(CapError::Unsupported("source.git.bundle".into())));
        assert_eq!(caps.check("x").unwrap_err().to_string(), "unknown API capability x");
        assert!(!caps.contains("file.copy.modestring"), "tolerated is not advertised");
        assert!(CapSet::buildkit().contains("source.git.bundle"));
    }
}
