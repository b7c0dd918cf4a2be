//! Bounded pools for work that blocks.
//!
//! There are two, because work in one may wait for work in the other and never the other way round: a read of a lazy
//! mount ([`reading`]) ends only when its chunk was inflated and verified ([`blocking`]).

use std::sync::LazyLock;

use tokio::sync::Semaphore;

/// Disk and processor work: a little more than there are cores keeps both busy.
static WORK: LazyLock<Semaphore> =
    LazyLock::new(|| Semaphore::new(4 * std::thread::available_parallelism().map_or(4, usize::from).max(4)));

/// Reads that may wait for the network; they hold a thread and little else.
static READS: LazyLock<Semaphore> = LazyLock::new(|| Semaphore::new(128));

/// Runs `work` (hashing, inflating, database, disk) off the runtime's threads; waits for a free place first.
///
/// `work` must not wait for other blocking work, nor read from a mount that castor itself serves: use [`reading`].
///
/// # Panics
/// Panics if `work` does, with its message.
pub async fn blocking<T, F>(work: F) -> T
where
    T: Send + 'static,
    F: FnOnce() -> T + Send + 'static,
{
    run(&WORK, work).await
}

/// Like [`blocking`], for work that may read from a lazy mount and so may wait for a registry.
///
/// # Panics
/// Panics if `work` does, with its message.
pub async fn reading<T, F>(work: F) -> T
where
    T: Send + 'static,
    F: FnOnce() -> T + Send + 'static,
{
    run(&READS, work).await
}

async fn run<T, F>(pool: &'static Semaphore, work: F) -> T
where
    T: Send + 'static,
    F: FnOnce() -> T + Send + 'static,
{
    // The semaphores are never closed, so there is always a permit in the end.
    let permit = pool.acquire().await.ok();
    let result = tokio::task::spawn_blocking(move || {
        let _permit = permit;
        work()
    })
    .await;
    match result {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(payload) => std::panic::resume_unwind(payload),
            // Blocking tasks are only cancelled when the runtime shuts down under us; then nobody waits any more.
            Err(_) => std::future::pending().await,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn returns_what_the_work_returns() {
        assert_eq!(blocking(|| 7).await, 7);
        assert_eq!(reading(|| 8).await, 8);
    }

    #[tokio::test]
    #[should_panic(expected = "boom")]
    async fn a_panic_is_passed_on() {
        blocking(|| panic!("boom")).await
    }
}
