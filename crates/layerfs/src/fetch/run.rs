//! Planning spans and running them.

use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::{Bytes, BytesMut};
use castor_estargz::chunk::decode_group;
use castor_estargz::toc;
use futures::{FutureExt as _, StreamExt as _};
use tokio::sync::OwnedSemaphorePermit;

use super::ahead::Guess;
use super::batch::{Batch, Means, Reading};
use super::scan::end_of;
use super::siblings::LARGEST_DIRECTORY;
use super::start::Start;
use super::{BATCH, BULK, BULK_SPAN, Flight, GAP, GAP_BESIDE, Inner, PREFETCH, SMALL, SPAN, State, TURNS};
use crate::source::{FetchError, Priority, RangeBody};

/// The most pieces of a program that are fetched for one of them: 256 MiB, where a piece is as large as is usual.
const PROGRAM: u32 = 64;
/// The root's name in a tree.
const ROOT: u32 = 0;

/// Members that one request brings, in the order of the blob.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Span {
    range: Range<u64>,
    members: Vec<u32>,
    priority: Priority,
}

impl Inner {
    fn is_here(&self, member: u32) -> bool {
        self.members.chunks(member).iter().all(|chunk| self.presence.contains(*chunk))
    }

    pub(super) async fn need(self: &Arc<Self>, chunks: Range<u32>) -> Result<(), FetchError> {
        match self.ask(chunks.clone()).await {
            // It was begun by others, perhaps on a guess and when the registry could not be reached: one of one's own may
            // be answered.
            Err((_, true)) => self.ask(chunks).await.map_err(|(error, _)| error),
            outcome => outcome.map_err(|(error, _)| error),
        }
    }

    /// Waits for `chunks`, on their way already or not. An error says whether it is only of what had been on its way.
    async fn ask(self: &Arc<Self>, chunks: Range<u32>) -> Result<(), (FetchError, bool)> {
        let (begun, flights, spans) = {
            let mut state = self.state.lock();
            let mut wanted: Vec<u32> = chunks
                .filter(|chunk| !self.presence.contains(*chunk))
                .map(|chunk| self.members.of_chunk(chunk))
                .collect();
            wanted.sort_unstable();
            wanted.dedup();
            wanted.retain(|member| !self.is_here(*member));
            let begun: Vec<bool> = wanted.iter().map(|member| state.flights.contains_key(member)).collect();
            let (flights, spans) = self.plan(&mut state, &wanted);
            (begun, flights, spans)
        };
        self.start(spans);
        let mut failed = None;
        // To the last: what had been on its way is over then.
        for (flight, begun) in flights.into_iter().zip(begun) {
            match (flight.wait().await, begun) {
                (Ok(()), _) => {}
                (Err(error), true) => failed = failed.or(Some((error, true))),
                (Err(error), false) => return Err((error, false)),
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Decides what is fetched for `wanted`: joins what is on its way, adds guesses, makes spans.
    fn plan(self: &Arc<Self>, state: &mut State, wanted: &[u32]) -> (Vec<Arc<Flight>>, Vec<Span>) {
        let mut flights = Vec::with_capacity(wanted.len());
        let mut chosen = Vec::new();
        let mut beside = Vec::new();
        let (mut guess, mut scan) = (None, None);
        for &member in wanted {
            let first = self.used.insert(member);
            let (size, group) = (self.members.get(member).size(), self.members.group(member));
            let flight = match state.flights.get(&member) {
                Some(flight) => {
                    // It was guessed, and is wanted before it has come.
                    if first && self.guessed.contains(member) {
                        guess = state.ahead.hit(member, size, group).map(|guess| (member, guess)).or(guess);
                    }
                    flight.clone()
                }
                None => {
                    chosen.push(member);
                    let flight = Arc::new(Flight::default());
                    state.flights.insert(member, flight.clone());
                    guess = Some((member, state.ahead.missed(member, size, group)));
                    flight
                }
            };
            if first {
                scan = self.scan(state, member).or(scan);
                beside.extend(self.siblings(state, group));
                beside.extend(self.rest_of_start(state, member));
            }
            flights.push(flight);
        }
        if let Some((member, guess)) = guess {
            let program = self.rest_of_program(state, member);
            chosen.extend(self.guess(state, member, guess));
            chosen.extend(program);
        }
        let mut spans = self.spans(state, chosen, GAP, Priority::Demand);
        // What is waited for is asked for first.
        spans.sort_by_key(|span| !wanted.iter().any(|member| span.members.binary_search(member).is_ok()));
        spans.extend(self.spans(state, beside, GAP_BESIDE, Priority::Ahead));
        self.start_bulk(state, scan);
        (flights, spans)
    }

    /// Whether the chunk before is of the same file and was read: the file is read front to back.
    fn is_sequential(&self, member: u32) -> bool {
        member > 0 && self.inode_of(member) == self.inode_of(member - 1) && self.used.contains(member - 1)
    }

    /// The file that a member begins with.
    fn inode_of(&self, member: u32) -> Option<u32> {
        self.members.chunks(member).first().map(|chunk| self.tree.chunk(*chunk).inode)
    }

    /// The other members of a program of which a piece is wanted: a program that runs touches nearly all of its pieces, in
    /// no order, and each fault would wait for a round trip. They are on their way afterwards, and count as used: they are
    /// no guess that something else must be given up for.
    fn rest_of_program(&self, state: &mut State, member: u32) -> Vec<u32> {
        let Some(first) = self.members.chunks(member).first() else { return Vec::new() };
        let inode = self.tree.inode(self.tree.chunk(*first).inode);
        let (start, count) = inode.chunks;
        if inode.mode & 0o111 == 0 || !(2..=PROGRAM).contains(&count) {
            return Vec::new();
        }
        let mut members: Vec<u32> = (start..start + count).map(|chunk| self.members.of_chunk(chunk)).collect();
        members.dedup();
        members.retain(|member| self.is_missing(state, *member));
        for member in &members {
            state.flights.insert(*member, Arc::default());
        }
        state.ahead.wanted(self.size_of(&members));
        members
    }

    /// The members of the directories beside `group`, if that is where readers go; they are on their way afterwards.
    fn siblings(&self, state: &mut State, group: u32) -> Vec<u32> {
        let collection = self.tree.name(group).parent;
        // What stands at the top has nothing in common.
        if collection == ROOT {
            return Vec::new();
        }
        let Some(window) = state.siblings.entered(group, collection) else { return Vec::new() };
        let mut left = window.min(state.ahead.allowance(false));
        let mut members = Vec::new();
        // Looking for them takes time; with nothing to spend it would be for nothing.
        if left == 0 {
            return members;
        }
        for directory in self.members.below(&self.tree, collection, SMALL) {
            if directory.bytes() > LARGEST_DIRECTORY {
                break;
            }
            let missing: Vec<u32> =
                directory.members.into_iter().filter(|member| self.is_missing(state, *member)).collect();
            let bytes = self.size_of(&missing);
            if bytes > left {
                break;
            }
            left -= bytes;
            members.extend(missing);
        }
        self.mark_guessed(state, &members);
        state.ahead.open(self.size_of(&members));
        members
    }

    /// What a process needs to start, if `member` is what is read before; it is on its way afterwards.
    fn rest_of_start(&self, state: &mut State, member: u32) -> Vec<u32> {
        let start = self.start.get_or_init(|| Start::of(&self.tree, &self.members));
        if start.first != Some(member) {
            return Vec::new();
        }
        let members: Vec<u32> = start.rest.iter().copied().filter(|member| self.is_missing(state, *member)).collect();
        let bytes = self.size_of(&members);
        if bytes > PREFETCH {
            return Vec::new();
        }
        self.mark_guessed(state, &members);
        state.ahead.open(bytes);
        members
    }

    /// Whether a member is neither here nor on its way.
    fn is_missing(&self, state: &State, member: u32) -> bool {
        !state.flights.contains_key(&member) && !self.is_here(member)
    }

    fn size_of(&self, members: &[u32]) -> u64 {
        members.iter().map(|member| self.members.get(*member).size()).sum()
    }

    /// Notes that `members` are on their way on a guess.
    fn mark_guessed(&self, state: &mut State, members: &[u32]) {
        for member in members {
            self.guessed.insert(*member);
            state.flights.insert(*member, Arc::default());
        }
    }

    /// The members that a guess stands for; they are on their way afterwards.
    fn guess(&self, state: &mut State, cause: u32, guess: Guess) -> Vec<u32> {
        let (sequential, group) = (self.is_sequential(cause), self.members.group(cause));
        let allowance = state.ahead.allowance(sequential);
        let mut window = guess.bytes.min(allowance);
        // Who begins to read a program is not about to read those beside it.
        let alone = guess.new && self.inode_of(cause).is_some_and(|inode| self.tree.inode(inode).mode & 0o111 != 0);
        if sequential && guess.from < self.members.len() {
            // The next chunk of a big file is often larger than any window.
            window = window.max(self.members.get(guess.from).size().min(allowance));
        }
        let (mut bytes, mut end, mut seen) = (0, guess.from, 0);
        let mut members = Vec::new();
        // Do not look far over what is here already or belongs elsewhere: a guess is for the neighbourhood.
        while end < self.members.len() && seen <= 4 * window {
            let size = self.members.get(end).size();
            // Directories inside the one that is read lie between its files.
            let inside = guess.cross || self.members.group(end) == group;
            // A big member of another file is no neighbour: it is worth a request of its own.
            let inside = inside && (size < SMALL && !alone || self.inode_of(end) == self.inode_of(cause));
            if inside && self.is_missing(state, end) {
                if bytes + size > window {
                    break;
                }
                bytes += size;
                members.push(end);
            }
            seen += size;
            end += 1;
        }
        // The run ends behind the last that was guessed, not behind what was passed over.
        let end = members.last().map_or(guess.from, |last| last + 1);
        self.mark_guessed(state, &members);
        state.ahead.guessed(guess.from, end, members.len() as u32, bytes);
        members
    }

    /// Cuts members into spans: close ones together, none much larger than [`SPAN`].
    fn spans(&self, state: &State, mut members: Vec<u32>, gap: u64, priority: Priority) -> Vec<Span> {
        if state.adopted.is_some() {
            // The whole blob is on its way and will land them.
            return Vec::new();
        }
        members.sort_unstable();
        let mut spans: Vec<Span> = Vec::new();
        for number in members {
            let member = self.members.get(number);
            match spans.last_mut() {
                Some(span)
                    if member.start <= span.range.end + gap && member.end.saturating_sub(span.range.start) <= SPAN =>
                {
                    span.range.end = span.range.end.max(member.end);
                    span.members.push(number);
                }
                _ => spans.push(Span { range: member.start..member.end, members: vec![number], priority }),
            }
        }
        spans
    }

    fn start(self: &Arc<Self>, spans: Vec<Span>) {
        for span in spans {
            let inner = self.clone();
            let name = format!("fetch {} of {}", inner.layer, inner.image);
            self.scope.spawn_named(name, async move { inner.run(span).await });
        }
    }

    /// A guess was right.
    pub(super) fn hit(self: &Arc<Self>, member: u32) {
        let mut state = self.state.lock();
        let guess = state.ahead.hit(member, self.members.get(member).size(), self.members.group(member));
        let members = guess.map(|guess| self.guess(&mut state, member, guess)).unwrap_or_default();
        let beside = self.siblings(&mut state, self.members.group(member));
        let mut spans = self.spans(&state, members, GAP, Priority::Ahead);
        spans.extend(self.spans(&state, beside, GAP_BESIDE, Priority::Ahead));
        let scan = self.scan(&mut state, member);
        self.start_bulk(&mut state, scan);
        drop(state);
        self.start(spans);
    }

    /// The members that somebody is about to read one after the other, if `member`, used now for the first time, shows it.
    fn scan(&self, state: &mut State, member: u32) -> Option<Range<u32>> {
        if state.bulk {
            return None;
        }
        let size = self.members.get(member).size();
        let scope = state.scans.used(&self.tree, member, size, self.members.group(member))?;
        Some(member..end_of(&self.tree, &self.members, scope, member))
    }

    /// Fetches what of `scan` is missing, if that is wanted, or all of the layer, if so much was used that it is the fastest.
    fn start_bulk(self: &Arc<Self>, state: &mut State, scan: Option<Range<u32>>) {
        if state.bulk {
            return;
        }
        let third = state.ahead.used() >= self.tree.payload_end() / 3;
        let Some(members) = third.then(|| 0..self.members.len()).or(scan) else { return };
        state.bulk = third;
        let inner = self.clone();
        let name = format!("fetch the rest of {} of {}", inner.layer, inner.image);
        self.scope.spawn_named(name, async move {
            tracing::debug!(layer = %inner.layer, ?members, "fetch all of it");
            if let Err(error) = inner.bulk_of(members).await {
                tracing::warn!(layer = %inner.layer, %error, "fetch the rest of a layer");
                // Readers go on asking for what they need; another attempt is made when they have used more.
                let mut state = inner.state.lock();
                state.bulk &= !third;
                state.scans.forget();
            }
        });
    }

    pub(super) fn prefetch(self: &Arc<Self>) {
        let end = self.tree.landmark().min(PREFETCH);
        let mut state = self.state.lock();
        let mut members = Vec::new();
        for member in self.members.within(&(0..end)) {
            if self.is_missing(&state, member) {
                state.flights.insert(member, Arc::default());
                members.push(member);
            }
        }
        let spans = self.spans(&state, members, GAP, Priority::Ahead);
        drop(state);
        self.start(spans);
    }

    /// Fetches what is missing, a few spans at a time: what a reader asks for meanwhile is taken before its turn.
    pub(super) async fn all(self: &Arc<Self>) -> Result<(), FetchError> {
        self.state.lock().bulk = true;
        self.bulk_of(0..self.members.len()).await?;
        let others: Vec<_> = self.state.lock().flights.values().cloned().collect();
        for flight in others {
            flight.wait().await?;
        }
        match (0..self.members.len()).find(|member| !self.is_here(*member)) {
            // A reader's fetch of it failed in between: its error is the answer, or it succeeds now.
            Some(member) => {
                let chunks = self.members.chunks(member).to_vec();
                for chunk in chunks {
                    self.need(chunk..chunk + 1).await?;
                }
                if self.presence.all() { Ok(()) } else { Err(FetchError::new("chunks are missing")) }
            }
            None => Ok(()),
        }
    }

    async fn bulk_of(self: &Arc<Self>, members: Range<u32>) -> Result<(), FetchError> {
        let cursor = AtomicU32::new(members.start);
        let workers = (0..BULK).map(|_| self.bulk(&cursor, members.end));
        let results = futures::future::join_all(workers).await;
        results.into_iter().collect::<Result<Vec<()>, _>>().map(|_| ())
    }

    async fn bulk(self: &Arc<Self>, cursor: &AtomicU32, end: u32) -> Result<(), FetchError> {
        loop {
            // Of several bulk fetches of a layer one is as good as the other. The semaphore is never closed.
            let _line = self.lines.acquire().await;
            let Some((spans, flights)) = self.next_bulk(cursor, end) else { break };
            for span in spans {
                self.run(span).await;
            }
            for flight in flights {
                flight.wait().await?;
            }
        }
        Ok(())
    }

    /// The next missing members from `cursor` to `last`, about [`BULK_SPAN`] bytes of them.
    fn next_bulk(&self, cursor: &AtomicU32, last: u32) -> Option<(Vec<Span>, Vec<Arc<Flight>>)> {
        let mut state = self.state.lock();
        let (mut members, mut flights, mut bytes) = (Vec::new(), Vec::new(), 0);
        let mut at = cursor.load(Ordering::Relaxed);
        while at < last {
            if self.is_missing(&state, at) {
                let size = self.members.get(at).size();
                if !members.is_empty() && bytes + size > BULK_SPAN {
                    break;
                }
                bytes += size;
                let flight = Arc::new(Flight::default());
                state.flights.insert(at, flight.clone());
                flights.push(flight);
                members.push(at);
            }
            at += 1;
        }
        cursor.store(at, Ordering::Relaxed);
        let spans = self.spans(&state, members, GAP, Priority::Background);
        (!flights.is_empty()).then_some((spans, flights))
    }

    /// The file that a member belongs to, for the log.
    fn name_of(&self, member: u32) -> String {
        let chunk = self.members.chunks(member).first().map(|chunk| self.tree.chunk(*chunk));
        chunk.map(|chunk| self.tree.path_of(chunk.inode)).unwrap_or_default()
    }

    /// Fetches a span; afterwards all its flights have landed, or the whole blob is on its way and will land them.
    async fn run(self: &Arc<Self>, span: Span) {
        let Span { range, members, priority } = &span;
        tracing::trace!(
            layer = %self.layer, ?range, ?priority, members = members.len(), first = self.name_of(members[0]), "fetch"
        );
        let cancelled = self.scope.token().clone();
        let outcome = tokio::select! {
            () = cancelled.cancelled() => Err(FetchError::new("the daemon is shutting down")),
            outcome = self.fetch(&span) => outcome,
        };
        match outcome {
            Ok(Fetched::Span) => {}
            Ok(Fetched::Whole(body, from)) => self.adopt(body, &from).await,
            Err(error) => {
                for member in span.members {
                    self.land(member, Err(error.clone()));
                }
            }
        }
    }

    fn too_late(&self) -> FetchError {
        FetchError::transient(format!("no answer within {:?}", self.deadline))
    }

    async fn request(&self, range: Range<u64>, priority: Priority) -> Result<(RangeBody, String), FetchError> {
        self.openers.range(range, priority, &self.counters).await
    }

    async fn fetch(self: &Arc<Self>, span: &Span) -> Result<Fetched, FetchError> {
        let fetch = async {
            let request = tokio::time::timeout(self.deadline, self.request(span.range.clone(), span.priority));
            let (body, from) = request.await.unwrap_or_else(|_| Err(self.too_late()))?;
            if body.full && body.range != span.range {
                return Ok(Fetched::Whole(body, from));
            }
            self.consume(body, &span.members, span.priority).await?;
            Ok(Fetched::Span)
        };
        match span.priority {
            // It waits for its turn too, and loses nothing by that. Each of its pieces is waited for in bounded time.
            Priority::Background => fetch.await,
            Priority::Ahead | Priority::Demand => {
                tokio::time::timeout(self.deadline, fetch).await.unwrap_or_else(|_| Err(self.too_late()))
            }
        }
    }

    /// Reads a body, hands members on as soon as they are complete, and waits for them.
    async fn consume(
        self: &Arc<Self>,
        mut body: RangeBody,
        members: &[u32],
        priority: Priority,
    ) -> Result<(), FetchError> {
        let mut read = Reading { at: body.range.start, held: BytesMut::new(), left: members };
        let mut jobs = Vec::new();
        let result = loop {
            // What is here goes on before anybody waits for more.
            let piece = match body.stream.next().now_or_never() {
                Some(piece) if read.held.len() < BATCH => Ok(piece),
                ready => {
                    if let Err(error) = self.hand_on(&mut read, &mut jobs, priority).await {
                        break Err(error);
                    }
                    match ready {
                        Some(piece) => Ok(piece),
                        // Waits are bounded per piece, so that a body of any length may come as long as it comes.
                        None => tokio::time::timeout(self.deadline, body.stream.next()).await,
                    }
                }
            };
            match piece {
                Ok(Some(Ok(piece))) => {
                    self.counters.fetched.fetch_add(piece.len() as u64, Ordering::Relaxed);
                    read.take(&piece, &self.members);
                }
                Ok(Some(Err(error))) => break Err(error),
                Ok(None) => break self.hand_on(&mut read, &mut jobs, priority).await,
                Err(_) => break Err(self.too_late()),
            }
        };
        let result = match (result, read.left.first()) {
            (Ok(()), Some(next)) => {
                let end = self.members.get(*next).end;
                Err(FetchError::new(format!("the answer ended before byte {end}")))
            }
            // All that was asked for is here: what went wrong later concerns nobody.
            (Err(_), None) => Ok(()),
            (result, _) => result,
        };
        for job in jobs {
            let _ = job.await;
        }
        result
    }

    /// Hands on the members of which all bytes have come, in jobs of their own.
    async fn hand_on(
        self: &Arc<Self>,
        read: &mut Reading<'_>,
        jobs: &mut Vec<tokio::task::JoinHandle<()>>,
        priority: Priority,
    ) -> Result<(), FetchError> {
        while let Some(batch) = read.batch(&self.members)? {
            if batch.members.is_empty() {
                self.keep(batch.start, batch.bytes);
                continue;
            }
            // Waited for here, so that no more is read than can be worked on. The turn first: who waits for it must not hold
            // memory that a reader waits for. The semaphore is never closed.
            let turn = match priority {
                Priority::Background => TURNS.acquire().await.ok(),
                Priority::Ahead | Priority::Demand => None,
            };
            let means = Means { turn, memory: self.memory_for(&batch).await? };
            let inner = self.clone();
            jobs.push(self.scope.spawn_named("verify chunks", async move { inner.settle(batch, means).await }));
        }
        Ok(())
    }

    /// Reserves what working on `batch` takes.
    async fn memory_for(&self, batch: &Batch) -> Result<OwnedSemaphorePermit, FetchError> {
        let chunks = batch.members.iter().flat_map(|member| self.members.chunks(*member));
        let largest = chunks.map(|chunk| self.tree.chunk(*chunk).size).max().unwrap_or_default();
        let kib = u32::try_from((batch.bytes.len() as u64 + largest) >> 10).unwrap_or(u32::MAX);
        let permits = kib.clamp(1, super::super::engine::MEMORY_KIB / 2);
        self.memory.clone().acquire_many_owned(permits).await.map_err(|error| FetchError::new(error.to_string()))
    }

    /// Verifies the members of a batch and lands them; one that is wrong is fetched once more.
    async fn settle(self: &Arc<Self>, batch: Batch, means: Means) {
        for (number, first) in self.install(batch, means).await {
            tracing::warn!(layer = %self.layer, image = self.image, error = %first, "bytes are wrong: fetch them once more");
            self.openers.distrust();
            let outcome = match tokio::time::timeout(self.deadline, self.again(number)).await {
                Ok(outcome) => {
                    outcome.map_err(|error| FetchError::new(format!("{error} (fetched twice; first: {first})")))
                }
                Err(_) => Err(FetchError::new(first)),
            };
            self.land(number, outcome);
        }
    }

    /// Fetches one member and installs it; does not land it.
    async fn again(self: &Arc<Self>, number: u32) -> Result<(), FetchError> {
        let member = self.members.get(number);
        let (mut body, _) = self.request(member.start..member.end, Priority::Demand).await?;
        if body.range.start != member.start {
            return Err(FetchError::new("the registry does not serve ranges"));
        }
        let mut bytes = BytesMut::with_capacity(member.size() as usize);
        while (bytes.len() as u64) < member.size() {
            let piece = body.stream.next().await.ok_or_else(|| FetchError::new("the answer ended early"))??;
            self.counters.fetched.fetch_add(piece.len() as u64, Ordering::Relaxed);
            bytes.extend_from_slice(&piece);
        }
        bytes.truncate(member.size() as usize);
        let batch = Batch { start: member.start, bytes: bytes.freeze(), members: vec![number] };
        let means = Means { turn: None, memory: self.memory_for(&batch).await? };
        match self.install(batch, means).await.pop() {
            Some((_, error)) => Err(FetchError::new(error)),
            None => Ok(()),
        }
    }

    /// Inflates, verifies and writes members, says that their chunks are here, and lands those that are right. Returns the
    /// others, and what is wrong with each.
    async fn install(self: &Arc<Self>, batch: Batch, means: Means) -> Vec<(u32, String)> {
        let inner = self.clone();
        castor_task::blocking(move || {
            let _means = means;
            let (mut right, mut wrong) = (Vec::with_capacity(batch.members.len()), Vec::new());
            for &number in &batch.members {
                let here = inner.is_here(number);
                if !here && let Err(error) = inner.install_one(number, batch.of(inner.members.get(number))) {
                    wrong.push((number, error));
                    continue;
                }
                if !here {
                    right.push(number);
                }
                inner.land(number, Ok(()));
            }
            if right.len() == batch.members.len() {
                inner.keep_now(batch.start, &batch.bytes);
            } else {
                // What was verified before stays as it is: these bytes of it were not looked at.
                for number in right {
                    let member = inner.members.get(number);
                    inner.keep_now(member.start, batch.of(member));
                }
            }
            inner.arrived.notify_one();
            wrong
        })
        .await
    }

    /// Inflates, verifies and writes one member. Blocks.
    fn install_one(&self, number: u32, bytes: &[u8]) -> Result<(), String> {
        let chunks = self.members.chunks(number);
        let (mut wanted, mut places) = (Vec::with_capacity(chunks.len()), Vec::with_capacity(chunks.len()));
        for chunk in chunks {
            let chunk = self.tree.chunk(*chunk);
            places.push(chunk.data);
            wanted.push(toc::Chunk {
                offset: chunk.blob_start,
                end: chunk.blob_end,
                inner_offset: chunk.inner,
                file_offset: 0,
                size: chunk.size,
                digest: chunk.digest,
                zeros: false,
            });
        }
        decode_group(self.codec, &wanted, bytes, &mut |place, data| self.data.write_all_at(&data, places[place]))
            .map_err(|error| with_source(&error))?;
        for chunk in chunks {
            castor_task::crash_point("chunk write");
            self.presence.insert(*chunk);
        }
        Ok(())
    }

    /// Keeps compressed bytes that belong to no member.
    fn keep(self: &Arc<Self>, offset: u64, bytes: Bytes) {
        if self.ingest.is_none() || bytes.is_empty() {
            return;
        }
        let inner = self.clone();
        self.scope.spawn_named("keep compressed bytes", async move {
            castor_task::blocking(move || inner.keep_now(offset, &bytes)).await;
        });
    }

    fn keep_now(&self, offset: u64, bytes: &[u8]) {
        if let Some(ingest) = &self.ingest
            && let Err(error) = ingest.write_at(offset, bytes)
        {
            // They can be fetched again; what readers see does not depend on them.
            tracing::debug!(layer = %self.layer, %error, "keep compressed bytes");
        }
    }

    fn land(&self, member: u32, outcome: Result<(), FetchError>) {
        let flight = {
            let mut state = self.state.lock();
            if outcome.is_err() && self.guessed.contains(member) && !self.used.contains(member) {
                state.ahead.failed(self.members.get(member).size());
            }
            state.flights.remove(&member)
        };
        if let Some(flight) = flight {
            flight.land(outcome);
        }
    }

    /// The source sends the whole blob: reads it to the end and lands everything.
    async fn adopt(self: &Arc<Self>, body: RangeBody, from: &str) {
        let members: Vec<u32> = {
            let mut state = self.state.lock();
            if state.adopted.is_some() {
                // Another answer of this kind is being read; it lands these members as well.
                return;
            }
            state.adopted = Some(format!("{from} does not serve ranges"));
            let missing: Vec<u32> = (0..self.members.len()).filter(|member| !self.is_here(*member)).collect();
            for member in &missing {
                state.flights.entry(*member).or_default();
            }
            missing
        };
        tracing::info!(layer = %self.layer, image = self.image, from, "no ranges: the answer becomes the download");
        let cancelled = self.scope.token().clone();
        let outcome = tokio::select! {
            () = cancelled.cancelled() => Err(FetchError::new("the daemon is shutting down")),
            outcome = self.consume(body, &members, Priority::Background) => outcome,
        };
        let error = outcome.err().unwrap_or_else(|| FetchError::new("the answer ended early"));
        let left: Vec<u32> = {
            let mut state = self.state.lock();
            if !members.iter().all(|member| self.is_here(*member)) {
                // The next reader tries anew.
                state.adopted = None;
            }
            state.flights.keys().copied().filter(|member| members.contains(member)).collect()
        };
        for member in left {
            let outcome = if self.is_here(member) { Ok(()) } else { Err(error.clone()) };
            self.land(member, outcome);
        }
    }

    pub(super) async fn offer(self: &Arc<Self>, offset: u64, bytes: &[u8]) {
        let end = offset + bytes.len() as u64;
        let members: Vec<u32> = self.members.within(&(offset..end)).collect();
        let batch = Batch { start: offset, bytes: Bytes::copy_from_slice(bytes), members };
        let Ok(memory) = self.memory_for(&batch).await else { return };
        if let Some((_, error)) = self.install(batch, Means { turn: None, memory }).await.first() {
            tracing::warn!(layer = %self.layer, image = self.image, error, "bytes beside the TOC are wrong");
        }
    }
}

enum Fetched {
    Span,
    /// The source sends the whole blob instead.
    Whole(RangeBody, String),
}

fn with_source(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
