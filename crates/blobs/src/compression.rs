//! The forms that blobs of layers have.

use castor_archive::Compression as Codec;
use castor_oci::{Descriptor, media_type};
use serde::{Deserialize, Serialize};

/// The form of a layer's blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// A plain tar.
    Uncompressed,
    /// gzip.
    #[default]
    Gzip,
    /// gzip that can be mounted lazily.
    Estargz,
    /// Zstandard.
    Zstd,
}

impl Form {
    /// All forms.
    pub const ALL: [Self; 4] = [Self::Uncompressed, Self::Gzip, Self::Estargz, Self::Zstd];

    /// BuildKit's name of it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Uncompressed => "uncompressed",
            Self::Gzip => "gzip",
            Self::Estargz => "estargz",
            Self::Zstd => "zstd",
        }
    }

    /// The form with this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|form| form.name() == name)
    }

    /// Its OCI media type.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Uncompressed => media_type::OCI_LAYER,
            Self::Gzip | Self::Estargz => media_type::OCI_LAYER_GZIP,
            Self::Zstd => media_type::OCI_LAYER_ZSTD,
        }
    }

    /// The form of an image's layer, as far as its descriptor tells; `None` for media types that are no layer's.
    pub fn of(descriptor: &Descriptor) -> Option<Self> {
        match media_type::distributable(media_type::to_oci(&descriptor.media_type)) {
            media_type::OCI_LAYER => Some(Self::Uncompressed),
            media_type::OCI_LAYER_GZIP if descriptor.toc_digest().is_some() => Some(Self::Estargz),
            media_type::OCI_LAYER_GZIP => Some(Self::Gzip),
            media_type::OCI_LAYER_ZSTD => Some(Self::Zstd),
            _ => None,
        }
    }
}

/// What blobs are to be like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Compression {
    /// The form of blobs that have to be made.
    pub form: Form,
    /// The level, for forms that have one; their default without.
    pub level: Option<u32>,
    /// Convert blobs of other forms too.
    pub force: bool,
}

impl Compression {
    /// Whether an image's layer is of the form asked for already. eStargz is gzip to whoever asks for gzip.
    pub fn fits(&self, descriptor: &Descriptor) -> bool {
        match (Form::of(descriptor), self.form) {
            (Some(Form::Estargz), Form::Gzip) => true,
            (have, want) => have == Some(want),
        }
    }

    /// The codec of the form; eStargz is none, it is written by members.
    pub(crate) fn codec(&self) -> Option<Codec> {
        match self.form {
            Form::Uncompressed => Some(Codec::Uncompressed),
            Form::Gzip => Some(Codec::Gzip { level: self.level }),
            Form::Zstd => Some(Codec::Zstd { level: self.level.and_then(|level| i32::try_from(level).ok()) }),
            Form::Estargz => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use castor_oci::{ANNOTATION_TOC_DIGEST, Digest};

    #[test]
    fn knows_the_form_of_foreign_layers() {
        let mut descriptor = Descriptor::new(media_type::DOCKER_LAYER_GZIP, Digest::of("x"), 1);
        assert_eq!(Form::of(&descriptor), Some(Form::Gzip));
        descriptor.annotations.insert(ANNOTATION_TOC_DIGEST.into(), Digest::of("toc").to_string());
        assert_eq!(Form::of(&descriptor), Some(Form::Estargz));
        let forced = |form| Compression { form, level: None, force: true };
        assert!(forced(Form::Gzip).fits(&descriptor) && forced(Form::Estargz).fits(&descriptor));
        assert!(!forced(Form::Zstd).fits(&descriptor));
        assert_eq!(Form::of(&Descriptor::new("application/json", Digest::of("x"), 1)), None);
    }
}
