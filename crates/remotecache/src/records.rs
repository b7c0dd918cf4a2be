//! The records of an imported cache, to be looked up in.

use std::collections::{HashMap, HashSet};

use castor_oci::{Descriptor, Digest};
use castor_progress::Timestamp;
use castor_solver::{KeyId, Record};

use crate::config::{CacheConfig, ConfigError};

/// A result of more layers is none: no image has as many.
const MAX_LAYERS: usize = 1024;

/// A record.
struct Item {
    /// Its name.
    digest: Digest,
    /// Per input of the operation, the selectors and records that may stand there.
    inputs: Vec<Vec<(Option<Digest>, KeyId)>>,
    /// Where links lead: by the name of the target, the place among its inputs, and the selector.
    links: HashMap<(Digest, usize, Option<Digest>), Vec<usize>>,
    /// The results, newest first.
    results: Vec<Record>,
}

/// What a result is.
enum Stack {
    /// A layer with all below it.
    Upon(usize),
    /// Layers, lowest first.
    Of(Vec<usize>),
}

/// The records of a cache.
///
/// All of it comes from outside, so nothing here takes more memory than the config did, however its parts refer to each
/// other.
pub(crate) struct Records {
    items: Vec<Item>,
    ids: HashMap<KeyId, usize>,
    /// Per layer, its descriptor and the layer below.
    layers: Vec<(Option<Descriptor>, Option<usize>)>,
    /// Results by their ids.
    stacks: HashMap<String, Stack>,
}

impl Records {
    /// The records of `config`. Layers that are not among `described` are not to be had, and results that need them are no
    /// results.
    pub(crate) fn new(config: &CacheConfig, described: &HashMap<Digest, Descriptor>) -> Result<Self, ConfigError> {
        config.check()?;
        let usable = usable(config, described)?;
        let layers =
            config.layers.iter().map(|layer| (described.get(&layer.blob).cloned(), usize::try_from(layer.parent).ok()));
        let mut records =
            Self { items: Vec::new(), ids: HashMap::new(), layers: layers.collect(), stacks: HashMap::new() };
        // Of several records without inputs that have the same name, the first stands for all.
        let mut places: Vec<usize> = Vec::with_capacity(config.records.len());
        for (index, record) in config.records.iter().enumerate() {
            let id = match record.inputs.is_empty() {
                true => KeyId::new(record.digest.to_string()),
                false => KeyId::new(index.to_string()),
            };
            places.push(*records.ids.entry(id).or_insert(index));
        }
        let id = |index: usize| match config.records[index].inputs.is_empty() {
            true => KeyId::new(config.records[index].digest.to_string()),
            false => KeyId::new(index.to_string()),
        };
        for record in &config.records {
            let named = record.inputs.iter().map(|alternatives| {
                alternatives.iter().map(|alternative| (alternative.selector, id(alternative.link))).collect()
            });
            records.items.push(Item {
                digest: record.digest,
                inputs: named.collect(),
                links: HashMap::new(),
                results: Vec::new(),
            });
        }
        for (index, record) in config.records.iter().enumerate() {
            for (input, alternatives) in record.inputs.iter().enumerate() {
                let mut seen = HashSet::new();
                for alternative in alternatives.iter().filter(|one| seen.insert((one.link, one.selector))) {
                    let key = (record.digest, input, alternative.selector);
                    records.items[places[alternative.link]].links.entry(key).or_default().push(index);
                }
            }
            let mut found = Vec::new();
            for result in record.results.iter().filter(|result| usable[result.layer]) {
                let id = result.layer.to_string();
                records.stacks.entry(id.clone()).or_insert(Stack::Upon(result.layer));
                found.push(Record { id, created: result.created });
            }
            for (number, chain) in record.chains.iter().enumerate() {
                let here = |layer: &usize| records.layers[*layer].0.is_some();
                if chain.layers.is_empty() || chain.layers.len() > MAX_LAYERS || !chain.layers.iter().all(here) {
                    continue;
                }
                let id = format!("{index}/{number}");
                records.stacks.insert(id.clone(), Stack::Of(chain.layers.clone()));
                found.push(Record { id, created: chain.created });
            }
            let results = &mut records.items[places[index]].results;
            results.append(&mut found);
            results.sort_by_key(|result| std::cmp::Reverse(result.created));
        }
        Ok(records)
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.items.len()
    }

    /// The record without inputs of this name.
    pub(crate) fn root(&self, digest: Digest) -> Option<KeyId> {
        let id = KeyId::new(digest.to_string());
        self.ids.contains_key(&id).then_some(id)
    }

    /// Where a link leads from a record, the target by its name.
    pub(crate) fn follow(&self, from: &KeyId, to: Digest, input: usize, selector: Option<Digest>) -> Vec<KeyId> {
        let Some(item) = self.ids.get(from).map(|index| &self.items[*index]) else { return Vec::new() };
        let targets = item.links.get(&(to, input, selector)).into_iter().flatten();
        targets.map(|index| KeyId::new(index.to_string())).collect()
    }

    /// A record's name.
    pub(crate) fn digest(&self, key: &KeyId) -> Option<Digest> {
        Some(self.items[*self.ids.get(key)?].digest)
    }

    /// Per input of a record's operation, the selectors and records that may stand there.
    pub(crate) fn inputs(&self, key: &KeyId) -> &[Vec<(Option<Digest>, KeyId)>] {
        self.ids.get(key).map(|index| self.items[*index].inputs.as_slice()).unwrap_or_default()
    }

    /// The results of a record, newest first.
    pub(crate) fn results(&self, key: &KeyId) -> &[Record] {
        self.ids.get(key).map(|index| self.items[*index].results.as_slice()).unwrap_or_default()
    }

    /// The layers of a result, lowest first.
    pub(crate) fn layers(&self, result: &str) -> Option<Vec<&Descriptor>> {
        let indexes = match self.stacks.get(result)? {
            Stack::Of(layers) => layers.clone(),
            Stack::Upon(top) => {
                let mut stack: Vec<usize> = std::iter::successors(Some(*top), |layer| self.layers[*layer].1).collect();
                stack.reverse();
                stack
            }
        };
        indexes.iter().map(|layer| self.layers[*layer].0.as_ref()).collect()
    }

    /// The newest result of a record, with its layers.
    pub(crate) fn newest(&self, key: &KeyId) -> Option<(Timestamp, Vec<&Descriptor>)> {
        let record = self.results(key).first()?;
        Some((record.created, self.layers(&record.id)?))
    }
}

/// Per layer, whether it can be had with all below it, and is no taller than is sensible.
fn usable(config: &CacheConfig, described: &HashMap<Digest, Descriptor>) -> Result<Vec<bool>, ConfigError> {
    let count = config.layers.len();
    // Heights by layer; zero is one that cannot be had.
    let mut heights: Vec<Option<usize>> = vec![None; count];
    for start in 0..count {
        let mut path = Vec::new();
        let mut at = start;
        let mut height = loop {
            if let Some(known) = heights[at] {
                break known;
            }
            path.push(at);
            if path.len() > count {
                return Err(ConfigError::LoopingLayer(start));
            }
            match config.layers[at].parent {
                -1 => break usize::MAX,
                parent => {
                    let below = usize::try_from(parent).ok().filter(|below| *below < count);
                    at = below.ok_or(ConfigError::NoLayer(parent))?;
                }
            }
        };
        for layer in path.into_iter().rev() {
            // What stands on nothing is one high; on what cannot be had, nothing stands.
            let below = height;
            height = match below {
                0 => 0,
                usize::MAX => 1,
                below => below + 1,
            };
            if height > MAX_LAYERS || !described.contains_key(&config.layers[layer].blob) {
                height = 0;
            }
            heights[layer] = Some(height);
        }
    }
    Ok(heights.into_iter().map(|height| height.is_some_and(|height| height > 0)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{CacheInput, CacheLayer, CacheRecord, CacheResult, ChainedResult};

    fn layer(name: &str, parent: i64) -> CacheLayer {
        CacheLayer { blob: Digest::of(name), parent }
    }

    fn record(name: &str, inputs: &[&[(usize, Option<&str>)]], results: &[(usize, i64)]) -> CacheRecord {
        let input =
            |(link, selector): &(usize, Option<&str>)| CacheInput { selector: selector.map(Digest::of), link: *link };
        let second = |second: i64| Timestamp::new(second, 0).unwrap();
        CacheRecord {
            results: results.iter().map(|(layer, at)| CacheResult { layer: *layer, created: second(*at) }).collect(),
            chains: Vec::new(),
            digest: Digest::of(name),
            inputs: inputs.iter().map(|alternatives| alternatives.iter().map(input).collect()).collect(),
        }
    }

    fn described(names: &[&str]) -> HashMap<Digest, Descriptor> {
        let one = |name: &&str| (Digest::of(*name), Descriptor::new("layer", Digest::of(*name), 1));
        names.iter().map(one).collect()
    }

    fn blobs(layers: Option<Vec<&Descriptor>>) -> Option<Vec<Digest>> {
        layers.map(|layers| layers.into_iter().map(|layer| layer.digest).collect())
    }

    #[test]
    fn links_lead_to_records_and_these_have_layers() {
        let config = CacheConfig {
            layers: vec![layer("x", -1), layer("y", 0)],
            records: vec![
                record("root", &[], &[]),
                record("run", &[&[(0, None)], &[(2, Some("s"))]], &[(0, 1), (1, 2)]),
                record("content", &[], &[]),
            ],
        };
        let records = Records::new(&config, &described(&["x", "y"])).unwrap();
        let root = records.root(Digest::of("root")).unwrap();
        let run = records.follow(&root, Digest::of("run"), 0, None);
        assert_eq!(run.len(), 1);
        let content = records.root(Digest::of("content")).unwrap();
        assert_eq!(records.follow(&content, Digest::of("run"), 1, Some(Digest::of("s"))), run);
        assert!(records.follow(&content, Digest::of("run"), 1, None).is_empty());
        assert!(records.follow(&root, Digest::of("run"), 1, None).is_empty());
        let (created, layers) = records.newest(&run[0]).unwrap();
        assert_eq!(created, Timestamp::new(2, 0).unwrap());
        assert_eq!(blobs(Some(layers)), Some(vec![Digest::of("x"), Digest::of("y")]));
        assert!(records.root(Digest::of("run")).is_none() && records.results(&root).is_empty());
    }

    #[test]
    fn records_of_one_name_without_inputs_are_one() {
        let config = CacheConfig {
            layers: vec![layer("x", -1)],
            records: vec![
                record("root", &[], &[]),
                record("root", &[], &[(0, 1)]),
                record("run", &[&[(1, None)]], &[]),
            ],
        };
        let records = Records::new(&config, &described(&["x"])).unwrap();
        let root = records.root(Digest::of("root")).unwrap();
        assert_eq!(records.follow(&root, Digest::of("run"), 0, None).len(), 1);
        assert_eq!(records.results(&root).len(), 1);
    }

    #[test]
    fn what_needs_a_layer_that_is_nowhere_is_no_result() {
        let mut with_chain = record("b", &[], &[]);
        with_chain.chains = vec![
            ChainedResult { layers: vec![1, 0], created: Timestamp::UNIX_EPOCH },
            ChainedResult { layers: vec![2, 0], created: Timestamp::UNIX_EPOCH },
        ];
        let config = CacheConfig {
            layers: vec![layer("x", -1), layer("gone", 0), layer("y", 1)],
            records: vec![record("a", &[], &[(2, 1), (0, 0)]), with_chain],
        };
        let records = Records::new(&config, &described(&["x", "y"])).unwrap();
        let a = records.root(Digest::of("a")).unwrap();
        assert_eq!(blobs(records.newest(&a).map(|(_, layers)| layers)), Some(vec![Digest::of("x")]));
        let b = records.root(Digest::of("b")).unwrap();
        assert_eq!(blobs(records.layers(&records.results(&b)[0].id)), Some(vec![Digest::of("y"), Digest::of("x")]));
        assert_eq!(records.results(&b).len(), 1);
    }

    #[test]
    fn towers_and_circles_of_layers_cost_nothing() {
        let circle = CacheConfig { layers: vec![layer("x", 1), layer("y", 0)], records: Vec::new() };
        assert!(matches!(Records::new(&circle, &described(&["x", "y"])), Err(ConfigError::LoopingLayer(_))));
        let beyond = CacheConfig { layers: vec![layer("x", 7)], records: Vec::new() };
        assert!(matches!(Records::new(&beyond, &described(&["x"])), Err(ConfigError::NoLayer(7))));

        // Each record on a layer of its own of a tower: all of them together would be quadratic.
        let count = 50_000_usize;
        let config = CacheConfig {
            layers: (0..count).map(|index| layer("x", i64::try_from(index).unwrap() - 1)).collect(),
            records: (0..count).map(|index| record(&index.to_string(), &[], &[(index, 0)])).collect(),
        };
        let records = Records::new(&config, &described(&["x"])).unwrap();
        let results = |index: usize| records.results(&records.root(Digest::of(index.to_string())).unwrap()).len();
        assert_eq!((results(MAX_LAYERS - 1), results(MAX_LAYERS), results(count - 1)), (1, 0, 0));
    }
}
