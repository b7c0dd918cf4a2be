//! Reading ahead: how much is fetched on a guess, and where.
//!
//! A *run* is a place in the blob where readers go forward. A new run guesses little; each time a good part of what a run
//! guessed was used, it guesses twice as much. It stays in the directory that is being read, until readers have gone from
//! one directory into the next a few times and left little out. What was guessed and never used is bounded: in sum it may
//! not exceed a small share of the layer ([`Ahead::new`]) and a fifth of what was used. So wrong guesses cost at most that
//! share of the bytes, and right ones nothing.

/// Bytes that may be guessed wrongly before anything was used: this part of the layer, within bounds.
const FREE_SHARE: u64 = 50;
const FREE: std::ops::Range<u64> = 512 << 10..8 << 20;
/// What may be guessed wrongly, as a share of what was used.
const SHARE: u64 = 5;
/// The same while a file is read front to back, which makes its next chunk a good guess.
const SHARE_SEQUENTIAL: u64 = 2;
/// First guess of a run.
const FIRST: u64 = 256 << 10;
/// Largest guess.
const LARGEST: u64 = 4 << 20;
/// Runs that are remembered.
const RUNS: usize = 32;
/// Members that a reader may skip and still be in the run.
const SKIP: u32 = 16;
/// Directories that readers must have gone through in a row before a guess goes on into the next.
const CROSSINGS: u32 = 3;
/// Members that a run's way is judged by.
const MEMORY: u32 = 512;

/// Where readers go forward.
#[derive(Debug, Clone, Copy)]
struct Run {
    /// First member of what was guessed last.
    start: u32,
    /// Behind the last.
    end: u32,
    /// Bytes guessed at a time.
    window: u64,
    /// Members of `start..end` that were guessed, and of these used.
    guessed: u32,
    hits: u32,
    /// The directory it is in, and how many it has come through.
    group: u32,
    crossings: u32,
    /// The last member that was used; members it has gone past, and of these passed over.
    last: u32,
    past: u32,
    skipped: u32,
}

/// What a run wants next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Guess {
    /// From this member on.
    pub from: u32,
    /// This many bytes.
    pub bytes: u64,
    /// Beyond the end of the directory.
    pub cross: bool,
    /// Nothing was read here before.
    pub new: bool,
}

/// The guesses of a layer.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    runs: Vec<Run>,
    /// Bytes of members that readers used.
    used: u64,
    /// Bytes of members that were guessed and are not used yet.
    open: u64,
    free: u64,
}

impl Ahead {
    /// The guesses of a layer of `size` bytes.
    pub(super) fn new(size: u64) -> Self {
        Self { free: (size / FREE_SHARE).clamp(FREE.start, FREE.end), ..Self::default() }
    }

    /// Bytes used so far.
    pub(super) fn used(&self) -> u64 {
        self.used
    }

    /// Bytes that may be guessed now.
    pub(super) fn allowance(&self, sequential: bool) -> u64 {
        let share = if sequential { SHARE_SEQUENTIAL } else { SHARE };
        (self.free + self.used / share).saturating_sub(self.open)
    }

    /// A reader wants `member` of `size` bytes, of the directory `group`, which is not here.
    pub(super) fn missed(&mut self, member: u32, size: u64, group: u32) -> Guess {
        self.used += size;
        let place = self.runs.iter().position(|run| (run.start..run.end.saturating_add(SKIP)).contains(&member));
        let mut run = match place {
            Some(place) => {
                let mut run = self.runs.remove(place);
                run.window = match run.hits * 4 >= run.guessed {
                    true => (run.window * 2).min(LARGEST),
                    false => (run.window / 2).max(FIRST),
                };
                run
            }
            None => Run::new(member, group),
        };
        run.enter(member, group);
        let from = member + 1;
        (run.start, run.end, run.guessed, run.hits) = (member, from, 0, 0);
        let guess = run.guess();
        self.remember(run);
        guess
    }

    /// A reader uses `member`, which had been guessed. Says what to guess next if most of the run's guess was right.
    pub(super) fn hit(&mut self, member: u32, size: u64, group: u32) -> Option<Guess> {
        self.used += size;
        self.open = self.open.saturating_sub(size);
        let place = self.runs.iter().position(|run| (run.start..run.end).contains(&member))?;
        let mut run = self.runs.remove(place);
        run.hits += 1;
        run.enter(member, group);
        // Half of it is used up: fetch on, so that the reader need not wait at the end.
        let next = (run.hits * 2 >= run.guessed).then(|| {
            run.window = (run.window * 2).min(LARGEST);
            run.guess()
        });
        if next.is_some() {
            // More may have been right than this run guessed: others guess in its range too.
            (run.start, run.guessed, run.hits) = (member, run.guessed.saturating_sub(run.hits), 0);
        }
        self.remember(run);
        next
    }

    /// Notes that members up to `end`, `count` of them with `bytes` in sum, are being fetched for the run that asked at
    /// `from`.
    pub(super) fn guessed(&mut self, from: u32, end: u32, count: u32, bytes: u64) {
        self.open += bytes;
        if let Some(run) = self.runs.iter_mut().rev().find(|run| (run.start..=run.end).contains(&from)) {
            run.end = run.end.max(end);
            run.guessed += count;
        }
    }

    /// Notes that `bytes` are being fetched that are as good as used.
    pub(super) fn wanted(&mut self, bytes: u64) {
        self.used += bytes;
    }

    /// Notes that `bytes` are being fetched on a guess that belongs to no run.
    pub(super) fn open(&mut self, bytes: u64) {
        self.open += bytes;
    }

    /// A member of `size` bytes that was guessed did not come.
    pub(super) fn failed(&mut self, size: u64) {
        self.open = self.open.saturating_sub(size);
    }

    fn remember(&mut self, run: Run) {
        if self.runs.len() >= RUNS {
            self.runs.remove(0);
        }
        self.runs.push(run);
    }
}

impl Run {
    fn new(member: u32, group: u32) -> Self {
        let (start, end, last) = (member, member, member);
        Self { start, end, window: FIRST, guessed: 0, hits: 0, group, crossings: 0, last, past: 0, skipped: 0 }
    }

    fn enter(&mut self, member: u32, group: u32) {
        if self.group != group {
            self.group = group;
            self.crossings += 1;
        }
        match member.checked_sub(self.last) {
            Some(step) => {
                self.past += step;
                self.skipped += step.saturating_sub(1);
            }
            // Back and forth is no way through.
            None => (self.past, self.skipped) = (self.past + 1, self.skipped + 1),
        }
        self.last = member;
        if self.past > MEMORY {
            (self.past, self.skipped) = (self.past / 2, self.skipped / 2);
        }
    }

    /// Whether nearly all that lies on the way is read, in order.
    fn is_thorough(&self) -> bool {
        self.skipped * 4 <= self.past
    }

    fn guess(&self) -> Guess {
        let cross = self.crossings >= CROSSINGS && self.is_thorough();
        Guess { from: self.end, bytes: self.window, cross, new: self.past == 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads members of `size` bytes by `order`, guessing as told, where `per` members are a directory; returns how many
    /// were fetched and how many misses there were.
    fn read(order: &[u32], total: u32, per: u32, size: u64) -> (usize, usize) {
        let mut ahead = Ahead::new(u64::from(total) * size);
        let (mut here, mut used) = (vec![false; total as usize], vec![false; total as usize]);
        let mut misses = 0;
        for &member in order {
            let group = member / per;
            let guess = if here[member as usize] {
                let first = !std::mem::replace(&mut used[member as usize], true);
                if first { ahead.hit(member, size, group) } else { None }
            } else {
                misses += 1;
                here[member as usize] = true;
                used[member as usize] = true;
                Some(ahead.missed(member, size, group))
            };
            let Some(guess) = guess else { continue };
            let (mut bytes, mut count, mut end) = (0, 0, guess.from);
            while end < total
                && bytes + size <= guess.bytes.min(ahead.allowance(false))
                && (guess.cross || end / per == group)
            {
                if !std::mem::replace(&mut here[end as usize], true) {
                    bytes += size;
                    count += 1;
                }
                end += 1;
            }
            ahead.guessed(guess.from, end, count, bytes);
        }
        (here.iter().filter(|h| **h).count(), misses)
    }

    #[test]
    fn a_scan_is_fetched_in_few_requests() {
        let order: Vec<u32> = (0..4000).collect();
        let (fetched, misses) = read(&order, 4000, 50, 8 << 10);
        assert_eq!(fetched, 4000);
        assert!(misses < 16, "{misses} misses");
    }

    #[test]
    fn scattered_reads_fetch_little_more_than_they_use() {
        // Every 40th member: no guess is ever right.
        let order: Vec<u32> = (0..2500).map(|i| i * 40).collect();
        let (fetched, _) = read(&order, 100_000, 1000, 8 << 10);
        let free = 100_000 / FREE_SHARE as usize;
        let bound = 2500 + 2500 / SHARE as usize + free + 1;
        assert!(fetched <= bound, "{fetched} fetched, at most {bound} wanted");
    }

    #[test]
    fn a_run_may_be_right_more_often_than_it_guessed() {
        // What a landmark asks for is guessed without a run, and lies in the range of the one that comes by.
        let mut ahead = Ahead::new(1 << 30);
        let guess = ahead.missed(0, 1, 0);
        ahead.open(8);
        ahead.guessed(guess.from, 10, 1, 1);
        for member in 1..10 {
            ahead.hit(member, 1, 0);
        }
        assert_eq!(ahead.used(), 10);
    }

    #[test]
    fn directories_read_one_after_the_other_need_few_waits() {
        // 100 directories of 60 files, each read in order but for every eighth file, at scattered places.
        let order: Vec<u32> =
            (0..100u32).flat_map(|d| (0..60).filter(|f| f % 8 != 3).map(move |f| (d * 37 % 100) * 600 + f)).collect();
        let (fetched, misses) = read(&order, 60_000, 60, 6 << 10);
        let used = order.len();
        assert!(misses < used / 10, "{misses} misses of {used}");
        assert!(fetched < used * 120 / 100, "{fetched} fetched for {used}");
    }
}
