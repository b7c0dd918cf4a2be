//! The life of an output of a vertex, as a straight line.

use std::sync::Arc;

use castor_oci::Digest;
use futures::future::try_join_all;
use tokio::sync::watch;

use crate::execution::{Entered, Identity, Outcome, content_keys};
use crate::lookup::{Alternative, Hit, KeyRef, Place, Query, find_keys, find_results, log};
use crate::state::{EdgeState, Level, VertexState, View, Work, Yield};
use crate::{CacheMap, CacheUpdate, KeyId, KeyInfo, Record, SolveError, SolveErrorKind, Stage};

/// Solves an output as far as somebody wants it. Ends when it is solved or its vertex is cancelled.
pub(crate) async fn run<R: Clone + Send + Sync + 'static>(
    state: Arc<VertexState<R>>,
    edge: Arc<EdgeState<R>>,
    publish: watch::Sender<View<R>>,
) {
    let token = state.scope.token().clone();
    let mut solving = Solving::new(state.clone(), edge, publish);
    let outcome = tokio::select! {
        biased;
        () = token.cancelled() => Err(SolveError::cancelled()),
        outcome = solving.solve() => outcome,
    };
    if let Err(error) = outcome {
        state.mark_failed();
        solving.publish.send_modify(|view| view.result = Some(Err(error)));
    }
}

/// An input: its vertex and the output of it.
type Input<R> = (Arc<VertexState<R>>, Arc<EdgeState<R>>);

struct Solving<R> {
    state: Arc<VertexState<R>>,
    edge: Arc<EdgeState<R>>,
    publish: watch::Sender<View<R>>,
    inputs: Vec<Input<R>>,
    maps: Vec<Arc<CacheMap<R>>>,
    last_map: bool,
    /// The keys of the inputs, as far as known.
    input_keys: Vec<Arc<[KeyRef]>>,
    contents: Vec<Option<Digest>>,
    contents_known: bool,
    /// What the last look-up was for: the same is not looked up twice.
    looked_up: Option<Vec<Vec<Vec<Alternative>>>>,
    keys: Vec<KeyRef>,
    hits: Vec<Hit>,
    /// Results that could not be loaded.
    unusable: Vec<Record>,
}

impl<R: Clone + Send + Sync + 'static> Solving<R> {
    fn new(state: Arc<VertexState<R>>, edge: Arc<EdgeState<R>>, publish: watch::Sender<View<R>>) -> Self {
        Self {
            state,
            edge,
            publish,
            inputs: Vec::new(),
            maps: Vec::new(),
            last_map: false,
            input_keys: Vec::new(),
            contents: Vec::new(),
            contents_known: false,
            looked_up: None,
            keys: Vec::new(),
            hits: Vec::new(),
            unusable: Vec::new(),
        }
    }

    async fn solve(&mut self) -> Result<(), SolveError> {
        let edge = self.edge.clone();
        self.state.predecessor_ended().await;
        loop {
            edge.wanted(Level::Fast).await;
            if let Some(done) = edge.while_wanted(Level::Fast, self.fast()).await {
                done?;
                break;
            }
        }
        if self.hits.is_empty() {
            self.announce(Level::Fast);
            loop {
                edge.wanted(Level::Slow).await;
                if let Some(done) = edge.while_wanted(Level::Slow, self.slow()).await {
                    done?;
                    break;
                }
            }
        }
        self.announce(Level::Slow);
        loop {
            edge.wanted(Level::Complete).await;
            if let Some(done) = edge.while_wanted(Level::Complete, self.complete()).await {
                let (result, keys) = done?;
                self.publish.send_modify(|view| {
                    *view = View { level: Level::Complete, keys: keys.into(), result: Some(Ok(result)) };
                });
                return Ok(());
            }
        }
    }

    fn announce(&self, level: Level) {
        self.publish.send_modify(|view| {
            view.level = view.level.max(level);
            view.keys = self.keys.clone().into();
        });
    }

    fn ignores_cache(&self) -> bool {
        self.state.vertex.ignore_cache
    }

    /// Keys by definition, and what they lead to.
    async fn fast(&mut self) -> Result<(), SolveError> {
        if self.maps.is_empty() {
            self.next_map().await?;
        }
        if self.inputs.is_empty() {
            let inputs = self.state.inputs();
            self.inputs = inputs.into_iter().map(|(state, output)| (state.clone(), state.edge(output))).collect();
            self.contents = vec![None; self.inputs.len()];
        }
        self.reach_inputs(Level::Fast).await?;
        self.look_up().await;
        Ok(())
    }

    /// All keys that can be had without executing this vertex, and what they lead to.
    async fn slow(&mut self) -> Result<(), SolveError> {
        if self.ignores_cache() {
            return Ok(());
        }
        while !self.last_map {
            self.next_map().await?;
            self.look_up().await;
            if !self.hits.is_empty() {
                return Ok(());
            }
        }
        // An input with a content-based identity that means something only now will be needed: it may begin already.
        let certain: Vec<_> = (0..self.inputs.len()).filter(|input| self.is_volatile_source(*input)).collect();
        let _early: Vec<_> = certain.into_iter().map(|input| self.inputs[input].1.want(Level::Complete)).collect();
        self.reach_inputs(Level::Slow).await?;
        self.look_up().await;
        if self.hits.is_empty() && self.has_contents() {
            self.find_contents().await?;
            self.look_up().await;
        }
        Ok(())
    }

    /// The result, from the cache or by executing.
    async fn complete(&mut self) -> Result<(R, Vec<KeyRef>), SolveError> {
        loop {
            if let Some(loaded) = self.load().await? {
                return Ok(loaded);
            }
            // Hits by definition may have kept us from looking for hits by content.
            if !self.contents_known {
                self.slow().await?;
                if !self.hits.is_empty() {
                    continue;
                }
            }
            while !self.last_map {
                self.next_map().await?;
            }
            let results = self.reach_inputs(Level::Complete).await?;
            self.prepare_inputs(&results).await?;
            self.find_contents().await?;
            // The inputs' keys are final now, and with them this output's.
            self.look_up().await;
            if !self.hits.is_empty() {
                continue;
            }
            if let Some(executed) = self.execute(results).await? {
                return Ok(executed);
            }
        }
    }

    /// Gets the operation's next cache map.
    async fn next_map(&mut self) -> Result<(), SolveError> {
        let index = self.maps.len();
        let state = self.state.clone();
        let known = {
            let maps = state.maps.lock();
            maps.0.get(index).map(|map| (map.clone(), maps.1 && index + 1 == maps.0.len()))
        };
        let (map, last) = match known {
            Some(known) => known,
            None => {
                // Sources show that they are being resolved; what has inputs shows only that it runs.
                let shows = state.vertex.inputs.is_empty();
                if shows {
                    state.started();
                }
                let op = state.vertex.op.clone();
                let work = state.work(Work::Map(index), Stage::CacheMap, |cx| {
                    let op = op.clone();
                    async move { op.cache_map(&cx, index).await.map(|(map, last)| Yield::Map(Arc::new(map), last)) }
                });
                let found = work.await;
                if shows || found.is_err() {
                    state.completed(false, found.as_ref().err());
                }
                let Yield::Map(map, last) = found? else {
                    return Err(SolveError::internal(state.vertex.digest, "not a cache map"));
                };
                let mut maps = state.maps.lock();
                if maps.0.len() == index {
                    maps.0.push(map.clone());
                    maps.1 = last;
                }
                (map, last)
            }
        };
        let expected = state.vertex.inputs.len();
        if map.deps.len() != expected {
            let message = format!("cache map for {} inputs, vertex has {expected}", map.deps.len());
            return Err(SolveError::internal(state.vertex.digest, message));
        }
        self.maps.push(map);
        self.last_map = last;
        Ok(())
    }

    /// Brings all inputs to `level` and takes note of their keys; their results, if that is complete.
    async fn reach_inputs(&mut self, level: Level) -> Result<Vec<R>, SolveError> {
        let views = try_join_all(self.inputs.iter().map(|(_, edge)| edge.reach(level))).await?;
        self.input_keys = views.iter().map(|view| view.keys.clone()).collect();
        Ok(views.into_iter().filter_map(|view| view.result.and_then(Result::ok)).collect())
    }

    fn is_volatile_source(&self, input: usize) -> bool {
        let by_content = self.maps.iter().any(|map| map.deps[input].content.is_some());
        let keys = &self.input_keys[input];
        by_content
            && self.inputs[input].0.vertex.inputs.is_empty()
            && !keys.is_empty()
            && keys.iter().all(|key| key.place == Place::Nowhere)
    }

    fn has_contents(&self) -> bool {
        self.maps.iter().any(|map| map.deps.iter().any(|dep| dep.content.is_some()))
    }

    /// Computes the content-based keys of the inputs that have them.
    async fn find_contents(&mut self) -> Result<(), SolveError> {
        if self.contents_known {
            return Ok(());
        }
        let wanted = (0..self.inputs.len()).filter_map(|input| {
            let key = self.maps.iter().find_map(|map| map.deps[input].content.clone())?;
            Some((input, key))
        });
        let found = wanted.map(|(input, key)| {
            let (state, (input_state, edge)) = (&self.state, &self.inputs[input]);
            let prepare = self.maps.iter().find_map(|map| map.deps[input].prepare.clone());
            async move {
                let view = edge.reach(Level::Complete).await?;
                let Some(Ok(result)) = view.result else {
                    return Err(SolveError::internal(state.vertex.digest, "input completed without a result"));
                };
                if let Some(known) = state.contents.lock().get(&input) {
                    return Ok((input, view.keys, *known));
                }
                if let Some(prepare) = prepare {
                    input_state.prepare(edge.output, &result, prepare).await?;
                }
                let work = state.work(Work::Content(input), Stage::ContentKey(input), |cx| {
                    let (key, result) = (key.clone(), result.clone());
                    async move { key.content_key(&cx, &result).await.map(Yield::Content) }
                });
                match work.await? {
                    Yield::Content(digest) => {
                        state.contents.lock().insert(input, digest);
                        Ok((input, view.keys, digest))
                    }
                    _ => Err(SolveError::internal(state.vertex.digest, "not a content key")),
                }
            }
        });
        let found = match try_join_all(found).await {
            Ok(found) => found,
            Err(error) => {
                if error.vertex() == Some(self.state.vertex.digest) {
                    self.state.started();
                    self.state.completed(false, Some(&error));
                }
                return Err(error);
            }
        };
        for (input, keys, digest) in found {
            self.input_keys[input] = keys;
            self.contents[input] = digest;
        }
        self.contents_known = true;
        Ok(())
    }

    async fn prepare_inputs(&self, results: &[R]) -> Result<(), SolveError> {
        let wanted = self.inputs.iter().zip(results).enumerate().filter_map(|(input, ((state, edge), result))| {
            let prepare = self.maps.iter().find_map(|map| map.deps[input].prepare.clone())?;
            Some(state.prepare(edge.output, result, prepare))
        });
        try_join_all(wanted).await.map(|_| ())
    }

    /// Per cache map, per input: the keys that identify it.
    fn alternatives(&self) -> Vec<Vec<Vec<Alternative>>> {
        let of_input = |map: &CacheMap<R>, input: usize| {
            let selector = map.deps[input].selector;
            let keys = self.input_keys.get(input).into_iter().flat_map(|keys| keys.iter());
            let mut alternatives: Vec<_> =
                keys.map(|key| Alternative { key: key.clone(), selector, content: None }).collect();
            if let Some(digest) = self.contents[input].filter(|_| map.deps[input].content.is_some()) {
                let key = KeyRef { id: KeyId::content(digest), place: Place::Everywhere, own: true };
                alternatives.push(Alternative { key, selector: None, content: Some(digest) });
            }
            alternatives
        };
        self.maps.iter().map(|map| (0..map.deps.len()).map(|input| of_input(map, input)).collect()).collect()
    }

    /// Finds this output's keys from those of the inputs, and the results they have.
    async fn look_up(&mut self) {
        let inputs = self.alternatives();
        if self.looked_up.as_ref() == Some(&inputs) {
            return;
        }
        self.find(&inputs).await;
        self.looked_up = Some(inputs);
    }

    async fn find(&mut self, inputs: &[Vec<Vec<Alternative>>]) {
        let (state, output) = (self.state.clone(), self.edge.output as i64);
        let (main, imports) = (state.shared.keys.as_ref(), state.caches());
        let mut keys = Vec::new();
        for (map, inputs) in self.maps.iter().zip(inputs) {
            if inputs.is_empty() {
                keys.extend(map.roots(self.edge.output));
                continue;
            }
            if map.volatile || self.ignores_cache() {
                continue;
            }
            for (digest, own) in map.identities() {
                let query = Query { digest, output, inputs };
                let found = find_keys(main, &imports, &query).await;
                keys.extend(found.into_iter().map(|key| KeyRef { own: key.own && own, ..key }));
            }
        }
        let mut unique = Vec::<KeyRef>::new();
        for key in keys {
            match unique.iter_mut().find(|known| known.id == key.id && known.place == key.place) {
                Some(known) => known.own |= key.own,
                None => unique.push(key),
            }
        }
        self.keys = unique;
        self.adopt(inputs, true).await;
        self.adopt(inputs, false).await;
        self.hits.clear();
        if !self.ignores_cache() {
            self.hits = find_results(main, &imports, &self.keys).await;
            self.hits.retain(|hit| !self.unusable.contains(&hit.record));
            if state.vertex.inputs.is_empty() {
                // A source gives what it names itself. Another's result of the same claim would be as good, but who asks
                // may not be allowed to read where that comes from.
                self.hits.retain(|hit| hit.key.own);
            }
        }
    }

    /// Gives an output that only imports know a key in the store, so that what is made of it can be stored. One that they
    /// know by a claim (not `own`) gets a key for that: it serves look-ups, until a result of an import is had by it.
    async fn adopt(&mut self, inputs: &[Vec<Vec<Alternative>>], own: bool) {
        let main = self.state.shared.keys.clone();
        let usable = |key: &KeyRef| key.own == own && key.is_in(main.name());
        if self.keys.iter().any(usable) || !self.keys.iter().any(|key| key.own == own) {
            return;
        }
        let output = self.edge.output as i64;
        for (map, inputs) in self.maps.iter().zip(inputs).filter(|(map, inputs)| !map.volatile && !inputs.is_empty()) {
            let identities = map.identities();
            let Some((digest, _)) = identities.into_iter().find(|(_, true_one)| *true_one || !own) else { continue };
            let query = Query { digest, output, inputs };
            let id = KeyId::random();
            let links = match own {
                true => query.links_to(main.name(), &id),
                false => query.claimed_links_to(main.name(), &id),
            };
            let Some(links) = links else { continue };
            let mut keys = content_keys(&query);
            keys.push((id.clone(), KeyInfo { digest, output }));
            log(main.update(CacheUpdate { keys, links, results: Vec::new() }).await);
            self.keys.push(KeyRef { id, place: Place::Source(main.name().into()), own });
            return;
        }
    }

    /// Loads the best result there is; one that cannot be had now is passed over, not forgotten.
    async fn load(&mut self) -> Result<Option<(R, Vec<KeyRef>)>, SolveError> {
        while !self.hits.is_empty() {
            let hit = self.hits.remove(0);
            let state = self.state.clone();
            let imports = state.caches();
            let Some(store) = (match hit.import {
                None => Some(state.shared.results.clone()),
                Some(index) => imports.get(index).map(|cache| cache.results.clone()),
            }) else {
                continue;
            };
            let (id, number) = (hit.record.id.clone(), state.shared.number());
            let work = state.work(Work::Load(number), Stage::CacheMap, |cx| {
                let (store, id) = (store.clone(), id.clone());
                async move { store.load(&cx, &id).await.map(Yield::Loaded) }
            });
            match work.await {
                Ok(Yield::Loaded(Some(result))) => {
                    state.loaded();
                    if !hit.key.own {
                        self.become_claimed(&hit);
                    }
                    if hit.key.own || hit.import.is_some() {
                        self.keep(&hit, &result).await;
                    }
                    return Ok(Some((result, self.keys.clone())));
                }
                Err(error) if matches!(error.kind(), SolveErrorKind::Internal { .. }) => return Err(error),
                Err(error) => tracing::debug!(vertex = %state.vertex.name, %error, "cached result not usable now"),
                Ok(_) => {}
            }
            self.unusable.push(hit.record);
        }
        Ok(None)
    }

    /// After a result was found through a claim: it is what `key` names, for whoever stored it there had seen what is
    /// claimed. What the private keys name is something else, perhaps, so nothing made of this result may be found by
    /// them, nor the two be taken for equal. An import's result is kept here, under the key of the same claim.
    fn become_claimed(&mut self, hit: &Hit) {
        let main = self.state.shared.keys.clone();
        for other in &mut self.keys {
            let kept = hit.import.is_some() && !other.own && other.is_in(main.name());
            other.own = kept || other.id == hit.key.id && other.place == hit.key.place;
        }
    }

    /// Stores a result that was found under an import's key under this output's own keys too.
    async fn keep(&self, hit: &Hit, result: &R) {
        let shared = &self.state.shared;
        let main = shared.keys.name();
        let mut own: Vec<_> = self.keys.iter().filter(|key| key.own && key.is_in(main)).collect();
        if self.state.vertex.inputs.is_empty() {
            // Of several identities of a source each gets the result.
            let has = |key: &KeyRef| {
                let mut hits = self.hits.iter().chain([hit]);
                hits.any(|other| other.import.is_none() && other.key.id == key.id && other.record.id == hit.record.id)
            };
            own.retain(|key| !has(key));
        } else if hit.import.is_none() && hit.key.own {
            return;
        } else {
            own.truncate(1);
        }
        if own.is_empty() {
            return;
        }
        let id = match hit.import {
            None => Some(hit.record.id.clone()),
            Some(_) => shared.results.save(result).await.unwrap_or_else(|error| {
                tracing::warn!(%error, "imported result not kept");
                None
            }),
        };
        let Some(id) = id else { return };
        let record = Record { id, created: hit.record.created };
        let output = self.edge.output as i64;
        let mut update = CacheUpdate::default();
        for map in self.maps.iter().filter(|map| map.deps.is_empty() && !map.volatile) {
            let identities = map.identities().into_iter();
            update.keys.extend(identities.map(|(digest, _)| (KeyId::root(digest, output), KeyInfo { digest, output })));
        }
        update.keys.retain(|(id, _)| own.iter().any(|key| key.id == *id));
        update.results = own.into_iter().map(|key| (key.id.clone(), record.clone())).collect();
        log(shared.keys.update(update).await);
    }

    fn identity(&self) -> Identity<R> {
        Identity { maps: self.maps.clone(), inputs: self.alternatives(), ignore_cache: self.ignores_cache() }
    }

    /// Executes, or takes part in an execution by others. `None`: the result has turned up in the cache.
    async fn execute(&mut self, inputs: Vec<R>) -> Result<Option<(R, Vec<KeyRef>)>, SolveError> {
        let state = self.state.clone();
        let vertex = state.vertex.digest;
        // Held to the end: outputs of one vertex take the same execution.
        let mut executed = state.executed.lock().await;
        loop {
            if let Some(executed) = &*executed {
                let output = executed.outputs.get(self.edge.output).and_then(Option::as_ref);
                let output = output.ok_or(SolveErrorKind::NoOutput { vertex, output: self.edge.output })?;
                return Ok(Some((output.result.clone(), self.all_keys(&output.keys))));
            }
            // One of its own that was abandoned may not have ended.
            let previous = state.execution.lock().clone();
            if let Some(previous) = previous {
                previous.ended_if_abandoned().await;
            }
            let identity = self.identity();
            let (waiter, joined) = match state.shared.executions.enter(&state, &identity) {
                None => return Err(SolveError::internal(vertex, "operation without an identity")),
                Some(Entered::Ending(other)) => {
                    other.ended_if_abandoned().await;
                    continue;
                }
                Some(Entered::Joined(waiter)) => (waiter, true),
                Some(Entered::New(slot)) => {
                    // Another may have finished between our look-up and now.
                    self.find(&identity.inputs).await;
                    if !self.hits.is_empty() {
                        return Ok(None);
                    }
                    match slot.begin(&state, identity, inputs.clone()) {
                        Some(waiter) => (waiter, false),
                        None => return Err(SolveError::internal(vertex, "execution begun twice")),
                    }
                }
            };
            *state.execution.lock() = Some(waiter.execution.clone());
            waiter.started().await;
            state.started();
            match waiter.done().await {
                Outcome::Executed(done) => {
                    state.completed(false, None);
                    if joined {
                        self.link_joined(&done).await;
                    }
                    *executed = Some(done);
                }
                Outcome::Superseded => {
                    self.looked_up = None;
                    self.look_up().await;
                    if !self.hits.is_empty() {
                        return Ok(None);
                    }
                }
                // It may have failed because of whoever left.
                Outcome::Failed(_) if waiter.somebody_left() => {}
                Outcome::Failed(error) => {
                    let error = state.failure(Stage::Execute, error);
                    state.completed(false, Some(&error));
                    return Err(error);
                }
                Outcome::Aborted(aborted) => {
                    let error = state.aborted(aborted);
                    state.completed(false, Some(&error));
                    return Err(error);
                }
            }
        }
    }

    fn all_keys(&self, made: &[KeyRef]) -> Vec<KeyRef> {
        let mut keys = made.to_vec();
        keys.extend(self.keys.iter().filter(|key| made.iter().all(|other| other.id != key.id)).cloned());
        keys
    }

    /// After an execution for another vertex: our inputs' keys lead to its results as well.
    async fn link_joined(&self, done: &crate::execution::Executed<R>) {
        let main = self.state.shared.keys.clone();
        let alternatives = self.alternatives();
        let mut update = CacheUpdate::default();
        for (index, output) in done.outputs.iter().enumerate() {
            let Some(output) = output else { continue };
            for (map, inputs) in
                self.maps.iter().zip(&alternatives).filter(|(map, inputs)| !map.volatile && !inputs.is_empty())
            {
                let Some((digest, _)) = map.identities().into_iter().find(|(_, own)| *own) else { continue };
                let query = Query { digest, output: index as i64, inputs };
                for key in output.keys.iter().filter(|key| matches!(key.place, Place::Source(_))) {
                    update.links.extend(query.links_to(main.name(), &key.id).into_iter().flatten());
                }
            }
        }
        if !update.is_empty() {
            log(main.update(update).await);
        }
    }
}
