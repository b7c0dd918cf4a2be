//! What the frontends of a build asked for: a tree, as frontends run frontends.

use std::collections::BTreeMap;
use std::sync::Arc;

use castor_llb::Definition;
use castor_oci::{Digest, Platform};
use castor_ops::LazyRef;
use parking_lot::Mutex;

/// What a frontend was asked.
#[derive(Debug, Clone, Default)]
pub(crate) struct Asked {
    /// Its name.
    pub(crate) frontend: String,
    /// Its options.
    pub(crate) options: BTreeMap<String, String>,
    /// Its inputs.
    pub(crate) inputs: BTreeMap<String, Definition>,
}

impl Asked {
    /// Whether it says anything.
    pub(crate) fn says_something(&self) -> bool {
        !self.frontend.is_empty() || !self.options.is_empty() || !self.inputs.is_empty()
    }
}

/// An image that went into a result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ImageSource {
    /// How it was named.
    pub(crate) reference: String,
    /// For what platform.
    pub(crate) platform: Option<Platform>,
    /// What the name meant.
    pub(crate) digest: Option<Digest>,
    /// It came from a layout at the client rather than from a registry.
    pub(crate) local: bool,
}

impl ImageSource {
    /// The image that `identifier`, scheme and all, was found to mean.
    pub(crate) fn looked_up(identifier: &str, platform: Option<Platform>, digest: Digest) -> Self {
        let (scheme, reference) = identifier.split_once("://").unwrap_or(("docker-image", identifier));
        let local = scheme != "docker-image";
        Self { reference: reference.to_owned(), platform, digest: Some(digest), local }
    }
}

/// One frontend's requests, and those of the frontends it ran.
#[derive(Debug, Default)]
pub(crate) struct Trail {
    /// What it was asked; nothing for the client itself.
    asked: Option<Asked>,
    /// What the client asked in the first place.
    root: Asked,
    made: Mutex<Made>,
}

#[derive(Debug, Default, Clone)]
struct Made {
    images: Vec<ImageSource>,
    /// Refs, and whether they were computed.
    refs: Vec<(LazyRef, bool)>,
    below: Vec<Arc<Trail>>,
}

impl Trail {
    /// The client's own.
    pub(crate) fn root(root: Asked) -> Arc<Self> {
        Arc::new(Self { asked: None, root, made: Mutex::default() })
    }

    /// That of a frontend that this one runs. It counts once it is [adopted](Self::adopt).
    pub(crate) fn below(&self, asked: Asked) -> Arc<Self> {
        let root = match (self.root.says_something(), &self.asked) {
            (true, _) | (false, None) => self.root.clone(),
            (false, Some(own)) => own.clone(),
        };
        Arc::new(Self { asked: Some(asked), root, made: Mutex::default() })
    }

    /// Takes in the requests of a frontend that did its work.
    pub(crate) fn adopt(&self, trail: Arc<Self>) {
        self.made.lock().below.push(trail);
    }

    /// What it was asked.
    pub(crate) fn asked(&self) -> Option<&Asked> {
        self.asked.as_ref()
    }

    /// What the client asked in the first place.
    pub(crate) fn asked_first(&self) -> &Asked {
        &self.root
    }

    /// It looked an image up.
    pub(crate) fn saw_image(&self, image: ImageSource) {
        self.made.lock().images.push(image);
    }

    /// It made a ref, or returned one.
    pub(crate) fn made_ref(&self, reference: &LazyRef) {
        let mut made = self.made.lock();
        if !made.refs.iter().any(|(known, _)| known.id() == reference.id()) {
            made.refs.push((reference.clone(), false));
        }
    }

    /// A ref of this trail, or of one below, was computed.
    pub(crate) fn computed(&self, id: &str) {
        let below = {
            let mut made = self.made.lock();
            made.refs.iter_mut().filter(|(known, _)| known.id() == id).for_each(|(_, computed)| *computed = true);
            made.below.clone()
        };
        below.iter().for_each(|trail| trail.computed(id));
    }

    /// The trail that made the ref `id`: the innermost one.
    pub(crate) fn maker(self: &Arc<Self>, id: &str) -> Option<Arc<Self>> {
        let made = self.made.lock().clone();
        let below = made.below.iter().find_map(|trail| trail.maker(id));
        below.or_else(|| made.refs.iter().any(|(known, _)| known.id() == id).then(|| self.clone()))
    }

    /// All refs that were computed here and below.
    pub(crate) fn computed_refs(&self) -> Vec<LazyRef> {
        let made = self.made.lock().clone();
        let own = made.refs.into_iter().filter(|(_, computed)| *computed).map(|(reference, _)| reference);
        own.chain(made.below.iter().flat_map(|trail| trail.computed_refs())).collect()
    }

    /// All images that were looked up here and below.
    pub(crate) fn images(&self) -> Vec<ImageSource> {
        let made = self.made.lock().clone();
        made.images.into_iter().chain(made.below.iter().flat_map(|trail| trail.images())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use castor_llb::Graph;

    fn reference(id: &str) -> LazyRef {
        LazyRef::new(id.into(), Definition::default(), Arc::new(Graph::default()))
    }

    #[test]
    fn the_innermost_frontend_made_a_ref_and_all_is_found_from_above() {
        let root = Trail::root(Asked::default());
        let asked = Asked { frontend: "dockerfile.v0".into(), ..Asked::default() };
        let inner = root.below(asked);
        inner.made_ref(&reference("a"));
        inner.made_ref(&reference("b"));
        let image = ImageSource { reference: "x".into(), platform: None, digest: None, local: false };
        inner.saw_image(image.clone());
        root.adopt(inner);
        root.made_ref(&reference("a"));
        root.computed("b");
        assert_eq!(root.maker("a").unwrap().asked().unwrap().frontend, "dockerfile.v0");
        assert!(root.maker("c").is_none());
        let computed: Vec<_> = root.computed_refs().iter().map(|known| known.id().to_owned()).collect();
        assert_eq!((computed, root.images()), (vec!["b".to_owned()], vec![image]));
    }
}
