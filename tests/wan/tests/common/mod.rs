//! What the tests over the emulated link share: the link or a loud reason why there is none, and the programs.
#![allow(dead_code)] // Each test file uses its part.

use std::path::{Path, PathBuf};
use std::process::Command;
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

/// The `utp2` program: in the folder that `FLOTILLA_BINARIES` names, otherwise built now if it is missing or old.
pub(crate) fn utp2() -> PathBuf {
    if let Some(folder) = std::env::var_os("FLOTILLA_BINARIES") {
        return Path::new(&folder).join("utp2");
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["build", "--quiet", "--package", "utp2-tool", "--bins"]);
    // What cargo tells this test about its own package would make build scripts run again.
    let ours = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_"];
    for (name, _) in std::env::vars_os() {
        if ours.iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
            command.env_remove(name);
        }
    }
    assert!(command.status().is_ok_and(|status| status.success()), "utp2 does not build");
    Path::new(env!("CARGO_BIN_EXE_wan")).with_file_name("utp2")
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
