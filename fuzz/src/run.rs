//! Running a target.

use std::collections::HashSet;

use crate::{Random, Target};

/// Most seeds of a pool: new ones replace old ones that were found, never those it began with.
const SEEDS: usize = 1000;

/// The inputs that others are made of.
#[derive(Debug)]
pub struct Pool {
    seeds: Vec<Vec<u8>>,
    given: usize,
    seen: HashSet<u64>,
}

/// A run of a target.
#[derive(Debug)]
pub struct Session {
    target: Target,
    random: Random,
    pool: Pool,
}

impl Session {
    /// A run that `seed` determines. Begins with the target's corpus, which is run once.
    pub fn new(target: Target, seed: u64, before: &mut dyn FnMut(&[u8])) -> Self {
        let seeds = target.corpus();
        let mut seen = HashSet::new();
        for input in &seeds {
            before(input);
            seen.insert(target.run(input));
        }
        let pool = Pool { given: seeds.len(), seeds, seen };
        Self { target, random: Random::new(seed), pool }
    }

    /// Makes one more input and runs it; `before` is told of it first.
    pub fn step(&mut self, before: &mut dyn FnMut(&[u8])) {
        let empty = Vec::new();
        let seed = self.random.pick(&self.pool.seeds).unwrap_or(&empty).clone();
        let other = self.random.pick(&self.pool.seeds).unwrap_or(&empty);
        let input = self.target.mutate(&mut self.random, &seed, other);
        before(&input);
        if self.pool.seen.insert(self.target.run(&input)) {
            self.pool.add(input, &mut self.random);
        }
    }

    /// What was seen so far: kinds of outcomes.
    pub fn outcomes(&self) -> usize {
        self.pool.seen.len()
    }
}

impl Pool {
    fn add(&mut self, input: Vec<u8>, random: &mut Random) {
        if self.seeds.len() < SEEDS.max(self.given + 1) {
            self.seeds.push(input);
        } else {
            let at = self.given + random.below(self.seeds.len() - self.given);
            self.seeds[at] = input;
        }
    }
}
