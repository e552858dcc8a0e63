//! Being asked to stop: Ctrl-C, a closed terminal, `kill`.
//!
//! A signal only sets a number; everything that waits asks `Stop` and returns an error, and the destructors along
//! the way end the programs and remove the data. So one path cleans up after success, failure, panic and Ctrl-C.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// How soon a wait notices that it shall end, and how often it looks again.
const GLANCE: Duration = Duration::from_millis(20);

#[derive(Clone)]
pub(crate) struct Stop {
    signal: Arc<AtomicUsize>,
}

/// The error of everything that was cut short.
#[derive(Debug)]
pub(crate) struct Interrupted;

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

impl Stop {
    /// Takes over the signals that ask to stop.
    pub(crate) fn install() -> Result<Self> {
        let signal = Arc::new(AtomicUsize::new(0));
        for number in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register_usize(number, Arc::clone(&signal), number.unsigned_abs() as usize)
                .context("taking over the signals")?;
        }
        Ok(Self { signal })
    }

    /// An error once somebody asked to stop.
    pub(crate) fn check(&self) -> Result<()> {
        if self.signal.load(Ordering::Relaxed) == 0 { Ok(()) } else { Err(Interrupted.into()) }
    }

    /// Sleeps, but not past a wish to stop.
    pub(crate) fn pause(&self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        loop {
            self.check()?;
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(GLANCE));
        }
    }

    /// Asks again and again until there is an answer; fails after `limit` with what it waited for.
    pub(crate) fn until<T>(
        &self,
        what: &str,
        limit: Duration,
        mut ask: impl FnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        let end = Instant::now() + limit;
        loop {
            if let Some(answer) = ask()? {
                return Ok(answer);
            }
            if Instant::now() > end {
                bail!("waited {} s for {what}", limit.as_secs());
            }
            self.pause(GLANCE * 5)?;
        }
    }

    /// Waits for somebody to ask.
    pub(crate) fn wait(&self) {
        while self.check().is_ok() {
            std::thread::sleep(GLANCE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(signal: usize) -> Stop {
        Stop { signal: Arc::new(AtomicUsize::new(signal)) }
    }

    #[test]
    fn waits_end_when_asked() {
        let stop = asked(2);
        assert!(stop.pause(Duration::from_secs(60)).unwrap_err().is::<Interrupted>());
        let asking = stop.until("nothing", Duration::from_secs(60), || Ok(None::<()>));
        assert!(asking.unwrap_err().is::<Interrupted>());
        stop.wait();
    }

    #[test]
    fn a_wait_has_a_limit_and_says_what_for() {
        let error = asked(0).until("a miracle", Duration::ZERO, || Ok(None::<()>)).unwrap_err();
        assert_eq!(error.to_string(), "waited 0 s for a miracle");
        assert_eq!(asked(0).until("now", Duration::ZERO, || Ok(Some(7))).unwrap(), 7);
    }
}
