//! Media types of manifests, configs and layers.

/// OCI image index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// OCI image manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// OCI image config.
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Uncompressed OCI layer.
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// OCI layer compressed with gzip; also eStargz.
pub const OCI_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// OCI layer compressed with zstd; also zstd:chunked.
pub const OCI_LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
/// Docker manifest list.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Docker image manifest, schema 2.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker image config.
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// Uncompressed Docker layer.
pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
/// Docker layer compressed with gzip.
pub const DOCKER_LAYER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
/// Docker layer compressed with zstd.
pub const DOCKER_LAYER_ZSTD: &str = "application/vnd.docker.image.rootfs.diff.tar.zstd";

/// OCI layer of which registries have no copy.
pub const OCI_FOREIGN_LAYER: &str = "application/vnd.oci.image.layer.nondistributable.v1.tar";
/// The same, compressed with gzip.
pub const OCI_FOREIGN_LAYER_GZIP: &str = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip";
/// The same, compressed with zstd.
pub const OCI_FOREIGN_LAYER_ZSTD: &str = "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd";
/// Docker layer of which registries have no copy.
pub const DOCKER_FOREIGN_LAYER: &str = "application/vnd.docker.image.rootfs.foreign.diff.tar";
/// The same, compressed with gzip.
pub const DOCKER_FOREIGN_LAYER_GZIP: &str = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";

/// The type of a layer that registries have, whatever they have of this one; others stay as they are.
pub fn distributable(media_type: &str) -> &str {
    match media_type {
        OCI_FOREIGN_LAYER => OCI_LAYER,
        OCI_FOREIGN_LAYER_GZIP => OCI_LAYER_GZIP,
        OCI_FOREIGN_LAYER_ZSTD => OCI_LAYER_ZSTD,
        DOCKER_FOREIGN_LAYER => DOCKER_LAYER,
        DOCKER_FOREIGN_LAYER_GZIP => DOCKER_LAYER_GZIP,
        other => other,
    }
}

/// The type of a layer of which registries have no copy; others stay as they are.
pub fn non_distributable(media_type: &str) -> &str {
    match media_type {
        OCI_LAYER => OCI_FOREIGN_LAYER,
        OCI_LAYER_GZIP => OCI_FOREIGN_LAYER_GZIP,
        OCI_LAYER_ZSTD => OCI_FOREIGN_LAYER_ZSTD,
        DOCKER_LAYER => DOCKER_FOREIGN_LAYER,
        DOCKER_LAYER_GZIP => DOCKER_FOREIGN_LAYER_GZIP,
        other => other,
    }
}

/// Whether `media_type` names an index of manifests.
pub fn is_index(media_type: &str) -> bool {
    matches!(media_type, OCI_INDEX | DOCKER_LIST)
}

/// Whether `media_type` names an image manifest.
pub fn is_manifest(media_type: &str) -> bool {
    matches!(media_type, OCI_MANIFEST | DOCKER_MANIFEST)
}

/// The OCI spelling of a layer, config, manifest or index media type; others stay as they are.
pub fn to_oci(media_type: &str) -> &str {
    match media_type {
        DOCKER_LIST => OCI_INDEX,
        DOCKER_MANIFEST => OCI_MANIFEST,
        DOCKER_CONFIG => OCI_CONFIG,
        DOCKER_LAYER => OCI_LAYER,
        DOCKER_LAYER_GZIP => OCI_LAYER_GZIP,
        DOCKER_LAYER_ZSTD => OCI_LAYER_ZSTD,
        DOCKER_FOREIGN_LAYER => OCI_FOREIGN_LAYER,
        DOCKER_FOREIGN_LAYER_GZIP => OCI_FOREIGN_LAYER_GZIP,
        other => other,
    }
}

/// The Docker spelling of a layer, config, manifest or index media type; others stay as they are.
pub fn to_docker(media_type: &str) -> &str {
    match media_type {
        OCI_INDEX => DOCKER_LIST,
        OCI_MANIFEST => DOCKER_MANIFEST,
        OCI_CONFIG => DOCKER_CONFIG,
        OCI_LAYER => DOCKER_LAYER,
        OCI_LAYER_GZIP => DOCKER_LAYER_GZIP,
        OCI_LAYER_ZSTD => DOCKER_LAYER_ZSTD,
        OCI_FOREIGN_LAYER => DOCKER_FOREIGN_LAYER,
        OCI_FOREIGN_LAYER_GZIP => DOCKER_FOREIGN_LAYER_GZIP,
        other => other,
    }
}
