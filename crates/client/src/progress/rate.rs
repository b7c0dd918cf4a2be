//! How fast something grows.

use std::time::{Duration, Instant};

/// Changes longer ago than a few times this hardly count.
const MEMORY: f64 = 3.0;

/// What comes in shorter time is one change.
const STEP: Duration = Duration::from_millis(50);

/// For how long no news is not yet a standstill.
const SILENCE: Duration = Duration::from_secs(1);

/// Units per second, smoothed.
#[derive(Debug, Clone, Copy)]
pub struct Rate {
    value: Option<f64>,
    amount: i64,
    since: Instant,
}

impl Rate {
    /// That of an amount that is `amount` now.
    pub fn new(amount: i64, now: Instant) -> Self {
        Self { value: None, amount, since: now }
    }

    /// It is `amount` now.
    pub fn update(&mut self, amount: i64, now: Instant) {
        let elapsed = now.saturating_duration_since(self.since);
        if elapsed < STEP {
            return;
        }
        let seconds = elapsed.as_secs_f64();
        let momentary = (amount - self.amount).max(0) as f64 / seconds;
        self.value = Some(match self.value {
            None => momentary,
            Some(value) => momentary + (value - momentary) * (-seconds / MEMORY).exp(),
        });
        (self.amount, self.since) = (amount, now);
    }

    /// Units per second; less and less where there is no news.
    pub fn per_second(&self, now: Instant) -> Option<i64> {
        let silent = now.saturating_duration_since(self.since).saturating_sub(SILENCE).as_secs_f64();
        let value = self.value? * (-silent / MEMORY).exp();
        (value >= 1.0).then_some(value as i64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_stream_has_its_rate() {
        let begin = Instant::now();
        let at = |milliseconds| begin + Duration::from_millis(milliseconds);
        let mut rate = Rate::new(0, begin);
        assert_eq!(rate.per_second(at(10)), None);
        for step in 1..=50 {
            rate.update(step * 100, at(step.unsigned_abs() * 100));
        }
        assert!((999..=1001).contains(&rate.per_second(at(5000)).unwrap()), "{rate:?}");
        // Many news at once are no flood.
        for _ in 0..10 {
            rate.update(5000 + 10, at(5010));
        }
        assert!((999..=1001).contains(&rate.per_second(at(5010)).unwrap()), "{rate:?}");
    }

    #[test]
    fn it_follows_changes_and_dies_out() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut rate = Rate::new(0, begin);
        rate.update(1000, at(1));
        for second in 2..=20 {
            rate.update(1000 + (i64::try_from(second).unwrap() - 1) * 10, at(second));
        }
        assert!((10..30).contains(&rate.per_second(at(20)).unwrap()), "{rate:?}");
        assert_eq!(rate.per_second(at(60)), None);
        // An amount that shrinks is a new begin, not a negative rate.
        rate.update(0, at(61));
        assert_eq!(rate.per_second(at(61)), None);
    }
}
