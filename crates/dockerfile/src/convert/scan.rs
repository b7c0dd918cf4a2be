//! What a scanner is to look at besides the result: the build context, and stages that are no part of it.

use std::collections::{BTreeMap, BTreeSet};

use castor_llb::{Definition, MarshalOptions};

use super::{Converter, args};
use crate::error::{DockerfileError, Result};

/// What a scanner is to look at besides the result.
#[derive(Debug, Clone, Default)]
pub struct ScanTargets {
    /// The build context and stages, by name.
    pub extras: BTreeMap<String, Definition>,
    /// The client wants none of it from the cache.
    pub ignore_cache: bool,
}

impl Converter<'_> {
    /// What is to be scanned with the stage `target`. Contexts are known by now.
    pub(super) fn scan_targets(&self, target: usize, marshal: &MarshalOptions) -> Result<ScanTargets> {
        let [context, stage] = args::NOT_IN_ENV;
        let marshalled = |state: &castor_llb::State| {
            let marshalled = state.marshal(marshal);
            marshalled.map_err(|error| DockerfileError::new(format!("failed to marshal LLB definition: {error}")))
        };
        let mut targets = ScanTargets { ignore_cache: self.stages[target].no_cache, ..ScanTargets::default() };
        if self.is_scanned(target, context) {
            targets.extras.insert("context".to_owned(), marshalled(&self.build_context)?);
        }
        for position in self.needed_by(target) {
            if position != target && self.is_scanned(position, stage) {
                let stage = &self.stages[position];
                targets.extras.insert(stage.stage.name.clone(), marshalled(&stage.state)?);
                targets.ignore_cache |= stage.no_cache;
            }
        }
        Ok(targets)
    }

    /// Whether the argument `name`, as the stage sees it, says yes or names the stage.
    fn is_scanned(&self, position: usize, name: &str) -> bool {
        let stage = &self.stages[position];
        let own = stage.build_args.iter().rev().find(|argument| argument.key == name && argument.value.is_some());
        let value = own.and_then(|argument| argument.value.as_deref()).or_else(|| self.global_args.get(name));
        match value {
            Some("1" | "t" | "T" | "true" | "TRUE" | "True") => true,
            Some("0" | "f" | "F" | "false" | "FALSE" | "False") | None => false,
            Some(names) => names.split(',').any(|name| name == stage.stage.name),
        }
    }

    /// The stages that go into `target`, itself included.
    fn needed_by(&self, target: usize) -> BTreeSet<usize> {
        let mut needed = BTreeSet::new();
        let mut ahead = vec![target];
        while let Some(position) = ahead.pop() {
            if needed.insert(position) {
                let stage = &self.stages[position];
                ahead.extend(stage.base);
                ahead.extend(stage.deps.iter().map(|(stage, _)| *stage));
            }
        }
        needed
    }
}
