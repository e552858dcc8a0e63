//! What the tests over the emulated link share: the link or a loud reason why there is none, and waiting.
#![allow(dead_code)] // Each test file uses its part.

use std::time::{Duration, Instant};

use wan::{Config, Link, Loss, NotPermitted, Program, Shape};

/// Longest wait for anything here; a loaded machine takes a while.
pub(crate) const WAIT: Duration = Duration::from_secs(60);

/// The link, or `None` where this user or machine can't have one: said aloud, and a failure where nothing may be
/// skipped.
pub(crate) fn link(test: &str, config: &Config) -> Option<Link> {
    match Link::start(config) {
        Ok(link) => Some(link),
        Err(error) => {
            assert!(error.is::<NotPermitted>(), "{error:#}");
            assert!(std::env::var_os("FLOTILLA_REQUIRE_ALL").is_none(), "{test} can't run: {error:#}");
            eprintln!("SKIPPED {test}: {error:#}");
            None
        }
    }
}

/// A link that is alike both ways.
pub(crate) fn config(mbit: u64, rtt_ms: u64, loss: f64) -> Config {
    let mut shape = Shape::new(mbit * 1_000_000, Duration::from_micros(rtt_ms * 500));
    shape.loss = if loss > 0.0 { Loss::Independent(loss) } else { Loss::None };
    Config::new(shape)
}

/// Waits until the sender has done so or `reached` is true, whichever is first; true for the latter.
pub(crate) fn until(sender: &mut Program, mut reached: impl FnMut() -> bool) -> bool {
    let began = Instant::now();
    while sender.ended().unwrap().is_none() {
        if reached() {
            return true;
        }
        assert!(began.elapsed() < WAIT, "waited {WAIT:?}; the sender said\n{}", sender.tail());
        std::thread::sleep(Duration::from_millis(5));
    }
    false
}
