//! From keys of inputs to keys and results of a vertex.

use std::collections::HashMap;
use std::sync::Arc;

use castor_oci::Digest;

use crate::{Cache, CacheError, CacheStore, CacheUpdate, KeyId, Link, Record};

/// Where an id means something.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Place {
    /// In all sources: keys without inputs.
    Everywhere,
    /// In none: keys of volatile operations and of what cannot be stored.
    Nowhere,
    /// In the source of this name.
    Source(Arc<str>),
}

/// One id of the key of a vertex's output.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct KeyRef {
    pub(crate) id: KeyId,
    pub(crate) place: Place,
    /// Whether results may be stored under it. Otherwise it was reached through a claim that nobody has verified, and
    /// serves look-ups only.
    ///
    /// Of an output that is complete, all own keys name its very result. This is what keeps a hostile image's results
    /// apart: a key that names what was seen is never linked with one that names what is claimed.
    pub(crate) own: bool,
}

impl KeyRef {
    pub(crate) fn is_in(&self, source: &str) -> bool {
        match &self.place {
            Place::Everywhere => true,
            Place::Nowhere => false,
            Place::Source(name) => &**name == source,
        }
    }
}

/// One of the keys that identify an input.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Alternative {
    pub(crate) key: KeyRef,
    pub(crate) selector: Option<Digest>,
    /// The content digest, if it is a content-based key.
    pub(crate) content: Option<Digest>,
}

/// What a vertex is asked for: an output of an operation on inputs, each of them identified in several ways.
pub(crate) struct Query<'a> {
    pub(crate) digest: Digest,
    pub(crate) output: i64,
    pub(crate) inputs: &'a [Vec<Alternative>],
}

impl Query<'_> {
    fn link(&self, input: usize, alternative: &Alternative) -> Link {
        Link { digest: self.digest, output: self.output, input, selector: alternative.selector }
    }

    /// The links that lead from the inputs to `id` in the store named `main`; `None` if some input has no key there, so
    /// nobody could ever find `id`.
    pub(crate) fn links_to(&self, main: &str, id: &KeyId) -> Option<Vec<(KeyId, Link, KeyId)>> {
        let mut links = Vec::new();
        for (input, alternatives) in self.inputs.iter().enumerate() {
            let before = links.len();
            let own = alternatives.iter().filter(|alternative| alternative.key.own && alternative.key.is_in(main));
            links.extend(own.map(|own| (own.key.id.clone(), self.link(input, own), id.clone())));
            if links.len() == before {
                return None;
            }
        }
        Some(links)
    }
}

impl Query<'_> {
    /// The links that lead to `id`, a key of what is claimed: from the keys of what is claimed of each input, and where
    /// nothing is, from its own. Never from a key that names what was seen of an input of which something is claimed.
    pub(crate) fn claimed_links_to(&self, main: &str, id: &KeyId) -> Option<Vec<(KeyId, Link, KeyId)>> {
        let mut links = Vec::new();
        for (input, alternatives) in self.inputs.iter().enumerate() {
            let here = || alternatives.iter().filter(|alternative| alternative.key.is_in(main));
            let claimed = here().any(|alternative| !alternative.key.own);
            let before = links.len();
            let from = here().filter(|alternative| alternative.key.own != claimed);
            links.extend(from.map(|one| (one.key.id.clone(), self.link(input, one), id.clone())));
            if links.len() == before {
                return None;
            }
        }
        Some(links)
    }
}

/// The keys of the source `cache` that all inputs lead to, and the links that are missing between own keys.
async fn query_one(
    cache: &dyn crate::CacheSource,
    query: &Query<'_>,
) -> Result<(Vec<KeyRef>, CacheUpdate), CacheError> {
    let name = cache.name();
    let mut asked = Vec::new();
    for (input, alternatives) in query.inputs.iter().enumerate() {
        for (index, alternative) in alternatives.iter().enumerate().filter(|(_, one)| one.key.is_in(name)) {
            asked.push((input, index, (alternative.key.id.clone(), query.link(input, alternative))));
        }
    }
    let pairs: Vec<_> = asked.iter().map(|(_, _, pair)| pair.clone()).collect();
    if query.inputs.is_empty() || pairs.is_empty() {
        return Ok((Vec::new(), CacheUpdate::default()));
    }
    let answers = cache.targets(&pairs).await?;
    // Per key: for every input whether an own key led to it, and which alternatives did.
    let mut found = HashMap::<KeyId, Vec<(bool, Vec<usize>)>>::new();
    for ((input, index, _), targets) in asked.iter().zip(answers) {
        let own = query.inputs[*input][*index].key.own;
        for target in targets {
            let inputs = found.entry(target).or_insert_with(|| vec![(false, Vec::new()); query.inputs.len()]);
            inputs[*input].0 |= own;
            inputs[*input].1.push(*index);
        }
    }
    let place = Place::Source(name.into());
    let mut keys = Vec::new();
    let mut update = CacheUpdate::default();
    for (id, inputs) in found {
        if inputs.iter().any(|(_, alternatives)| alternatives.is_empty()) {
            continue;
        }
        let own = inputs.iter().all(|(own, _)| *own);
        if own {
            let reached = |input: usize, index: usize| inputs[input].1.contains(&index);
            let missing = asked
                .iter()
                .filter(|(input, index, _)| query.inputs[*input][*index].key.own && !reached(*input, *index));
            update.links.extend(missing.map(|(_, _, (from, link))| (from.clone(), *link, id.clone())));
        }
        keys.push(KeyRef { id, place: place.clone(), own });
    }
    keys.sort_by(|a, b| a.id.cmp(&b.id));
    Ok((keys, update))
}

/// The keys that `query` has in the store and in the imported caches. Keys of one input that turn out to be equal are
/// linked, so that later any of them leads there.
pub(crate) async fn find_keys<R>(main: &dyn CacheStore, imports: &[Cache<R>], query: &Query<'_>) -> Vec<KeyRef> {
    let mut keys = match query_one(main, query).await {
        Ok((keys, update)) => {
            if !update.is_empty() {
                log(main.update(update).await);
            }
            keys
        }
        Err(error) => {
            log::<()>(Err(error));
            Vec::new()
        }
    };
    for cache in imports {
        keys.extend(log(query_one(cache.keys.as_ref(), query).await).map(|(keys, _)| keys).unwrap_or_default());
    }
    keys
}

/// A result that may be loaded.
#[derive(Debug, Clone)]
pub(crate) struct Hit {
    /// `None`: the store itself; otherwise the index among the imported caches.
    pub(crate) import: Option<usize>,
    pub(crate) key: KeyRef,
    pub(crate) record: Record,
}

/// The results of `keys`, the newest first, and of equally new ones those of the store first.
pub(crate) async fn find_results<R>(main: &dyn CacheStore, imports: &[Cache<R>], keys: &[KeyRef]) -> Vec<Hit> {
    let mut hits = Vec::new();
    let sources = std::iter::once((None, main as &dyn crate::CacheSource))
        .chain(imports.iter().enumerate().map(|(index, cache)| (Some(index), cache.keys.as_ref())));
    for (import, source) in sources {
        let here: Vec<_> = keys.iter().filter(|key| key.is_in(source.name())).cloned().collect();
        if here.is_empty() {
            continue;
        }
        let ids: Vec<_> = here.iter().map(|key| key.id.clone()).collect();
        let records = log(source.records(&ids).await).unwrap_or_default();
        for (key, records) in here.into_iter().zip(records) {
            hits.extend(records.into_iter().map(|record| Hit { import, key: key.clone(), record }));
        }
    }
    hits.sort_by_key(|hit| (std::cmp::Reverse(hit.record.created), hit.import));
    hits
}

/// Logs a failure of a cache: builds go on without it.
pub(crate) fn log<T>(result: Result<T, CacheError>) -> Option<T> {
    result.map_err(|error| tracing::warn!(error = %error, "cache failed, going on without it")).ok()
}
