//! What tests of other protocols on simulated paths share.

use utp2_sim::{Outcome, Scenario};

/// Runs it, tells what came of it, and wants every byte.
pub(crate) fn run(what: &str, scenario: &Scenario) -> Outcome {
    let started = std::time::Instant::now();
    let outcome = scenario.run();
    println!("{what}: {outcome} [{:.2} s of real time]", started.elapsed().as_secs_f64());
    assert!(outcome.intact, "{outcome}");
    outcome
}
