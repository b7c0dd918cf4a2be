//! Results that become inputs of other builds: by their definition, who asked for them.
//!
//! A client that builds several targets at once gives the definition of one to the build of the next; the daemon knows it
//! again.

use std::collections::{BTreeMap, HashMap, VecDeque};

use castor_llb::Definition;
use castor_oci::Digest;
use parking_lot::Mutex;

use super::predicate::RequestProvenance;

/// How many results are remembered.
const REMEMBERED: usize = 1024;

/// Requests by the head of the definition that came of them.
#[derive(Debug, Default)]
pub(crate) struct MadeBefore(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    requests: HashMap<Digest, RequestProvenance>,
    order: VecDeque<Digest>,
}

impl MadeBefore {
    /// Remembers what `definition` came of.
    pub(crate) fn remember(&self, definition: &Definition, request: RequestProvenance) {
        let Ok(Some(head)) = definition.head() else { return };
        let mut table = self.0.lock();
        if table.requests.insert(head, request).is_some() {
            return;
        }
        table.order.push_back(head);
        if table.order.len() > REMEMBERED
            && let Some(eldest) = table.order.pop_front()
        {
            table.requests.remove(&eldest);
        }
    }

    /// What these inputs came of, as far as it is known.
    pub(crate) fn inputs(&self, inputs: &BTreeMap<String, Definition>) -> BTreeMap<String, RequestProvenance> {
        let table = self.0.lock();
        let known = |definition: &Definition| table.requests.get(&definition.head().ok()??).cloned();
        inputs.iter().filter_map(|(name, definition)| Some((name.clone(), known(definition)?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use castor_proto::pb;
    use prost::Message as _;

    fn definition(name: &str) -> Definition {
        let input = pb::Input { digest: Digest::of(name).to_string(), index: 0 };
        let last = pb::Op { inputs: vec![input], ..pb::Op::default() };
        Definition { ops: vec![last.encode_to_vec().into()], ..Definition::default() }
    }

    #[test]
    fn an_input_is_known_again_by_its_definition() {
        let made = MadeBefore::default();
        for number in 0..=REMEMBERED {
            made.remember(&definition(&number.to_string()), RequestProvenance::default());
        }
        let inputs = [("first", "0"), ("last", "1024"), ("other", "x")];
        let inputs = inputs.map(|(name, of)| (name.to_owned(), definition(of))).into();
        assert_eq!(made.inputs(&inputs).into_keys().collect::<Vec<_>>(), ["last"]);
    }
}
