//! Graphs of vertices.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use castor_oci::Digest;
use castor_progress::Group;

use crate::{Cache, Operation};

/// An output of a vertex.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Edge {
    /// The vertex.
    pub vertex: Digest,
    /// Which of its outputs.
    pub output: usize,
}

/// One step of a build.
pub struct Vertex<R> {
    /// Names it: the digest of its definition. Equal digests mean equal vertices, across jobs too.
    pub digest: Digest,
    /// What users read.
    pub name: String,
    /// What it does. Where two jobs bring the same vertex, the operation of the first is used for both, so an
    /// operation takes sessions and such from [`crate::Cx`] and does not hold those of its job.
    pub op: Arc<dyn Operation<R>>,
    /// What it needs.
    pub inputs: Vec<Edge>,
    /// Runs even if its result is known.
    pub ignore_cache: bool,
    /// The group it is shown in.
    pub group: Option<Group>,
}

impl<R> fmt::Debug for Vertex<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vertex").field("digest", &self.digest).field("name", &self.name).finish_non_exhaustive()
    }
}

/// Why vertices are not a graph.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GraphError {
    /// An input that is not among the vertices.
    #[error("vertex {vertex} has an unknown input {input}")]
    UnknownInput {
        /// The vertex with the input.
        vertex: Digest,
        /// The input that is missing.
        input: Digest,
    },
    /// A vertex that needs itself.
    #[error("vertex {0} depends on itself")]
    Cycle(Digest),
}

/// A checked, acyclic set of vertices, and where results may come from besides the local cache.
#[derive(Debug)]
pub struct Graph<R> {
    vertices: HashMap<Digest, Arc<Vertex<R>>>,
    pub(crate) caches: Vec<Cache<R>>,
}

impl<R> Graph<R> {
    /// Checks `vertices`; of equal digests the first is kept.
    pub fn new(vertices: impl IntoIterator<Item = Vertex<R>>) -> Result<Self, GraphError> {
        let mut table = HashMap::new();
        for vertex in vertices {
            table.entry(vertex.digest).or_insert_with(|| Arc::new(vertex));
        }
        for vertex in table.values() {
            if let Some(input) = vertex.inputs.iter().find(|input| !table.contains_key(&input.vertex)) {
                return Err(GraphError::UnknownInput { vertex: vertex.digest, input: input.vertex });
            }
        }
        let graph = Self { vertices: table, caches: Vec::new() };
        let order = graph.order(graph.vertices.keys().copied());
        if order.len() < graph.vertices.len() {
            let placed: std::collections::HashSet<_> = order.iter().map(|vertex| vertex.digest).collect();
            if let Some(digest) = graph.vertices.keys().filter(|digest| !placed.contains(*digest)).min() {
                return Err(GraphError::Cycle(*digest));
            }
        }
        Ok(graph)
    }

    /// Adds caches that are looked into after the local one: imports.
    #[must_use]
    pub fn with_caches(mut self, caches: Vec<Cache<R>>) -> Self {
        self.caches = caches;
        self
    }

    /// The vertex named `digest`.
    pub fn vertex(&self, digest: &Digest) -> Option<&Arc<Vertex<R>>> {
        self.vertices.get(digest)
    }

    /// How many vertices there are.
    pub fn len(&self) -> usize {
        self.vertices.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.vertices.is_empty()
    }

    /// What `roots` need, themselves included, inputs first. Vertices on a cycle are left out.
    pub(crate) fn order(&self, roots: impl IntoIterator<Item = Digest>) -> Vec<&Arc<Vertex<R>>> {
        let mut wanted = HashMap::<Digest, usize>::new();
        let mut users = HashMap::<Digest, Vec<Digest>>::new();
        let mut pending: Vec<_> = roots.into_iter().collect();
        let mut ready = Vec::new();
        while let Some(digest) = pending.pop() {
            let Some(vertex) = self.vertices.get(&digest) else { continue };
            if wanted.contains_key(&digest) {
                continue;
            }
            wanted.insert(digest, vertex.inputs.len());
            if vertex.inputs.is_empty() {
                ready.push(digest);
            }
            for input in &vertex.inputs {
                users.entry(input.vertex).or_default().push(digest);
                pending.push(input.vertex);
            }
        }
        let mut order = Vec::with_capacity(wanted.len());
        while let Some(digest) = ready.pop() {
            order.extend(self.vertices.get(&digest));
            for user in users.get(&digest).into_iter().flatten() {
                if let Some(missing) = wanted.get_mut(user) {
                    *missing -= 1;
                    if *missing == 0 {
                        ready.push(*user);
                    }
                }
            }
        }
        order
    }
}
