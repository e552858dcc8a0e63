//! Jobs for a few threads, taken many at a time: with small files waking a thread costs more than the work on one block.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Jobs that wait.
pub(super) struct Queue<T> {
    state: Mutex<State<T>>,
    news: Condvar,
    /// How many threads share the work.
    threads: usize,
}

struct State<T> {
    jobs: VecDeque<T>,
    /// Threads that wait for jobs.
    idle: usize,
    closed: bool,
}

impl<T> Queue<T> {
    /// A queue for so many threads.
    pub(super) fn new(threads: usize) -> Arc<Self> {
        let state = Mutex::new(State { jobs: VecDeque::new(), idle: 0, closed: false });
        Arc::new(Self { state, news: Condvar::new(), threads })
    }

    /// Adds a job; after [`Self::close`] it is forgotten.
    pub(super) fn push(&self, job: T) {
        let mut state = self.lock();
        if state.closed {
            return;
        }
        state.jobs.push_back(job);
        if state.idle > 0 {
            self.news.notify_one();
        }
    }

    /// Waits for jobs and takes a thread's share of them, `max` at most; `None` once the queue is closed and empty.
    pub(super) fn take(&self, max: usize) -> Option<Vec<T>> {
        let mut state = self.lock();
        while state.jobs.is_empty() {
            if state.closed {
                return None;
            }
            state.idle += 1;
            state = self.news.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
        let share = state.jobs.len().div_ceil(self.threads).min(max);
        Some(state.jobs.drain(..share).collect())
    }

    /// Takes no more jobs; threads end when those that wait are done.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.news.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_job_is_taken_once_in_shares_and_none_is_lost_at_the_end() {
        let queue = Queue::new(2);
        (0..10).for_each(|job| queue.push(job));
        assert_eq!(queue.take(3), Some(vec![0, 1, 2]));
        assert_eq!(queue.take(64), Some(vec![3, 4, 5, 6]), "half of what waits");
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let queue = queue.clone();
                std::thread::spawn(move || {
                    std::iter::from_fn(|| queue.take(64)).flatten().collect::<Vec<i32>>()
                })
            })
            .collect();
        (10..1000).for_each(|job| queue.push(job));
        queue.close();
        queue.push(-1);
        let mut taken: Vec<i32> = threads.into_iter().flat_map(|t| t.join().expect("no panic")).collect();
        taken.sort_unstable();
        assert_eq!(taken, (7..1000).collect::<Vec<_>>());
    }
}
