//! The small grid against the table that is kept: what the transport reaches must not change unnoticed.

use std::sync::atomic::{AtomicUsize, Ordering};

use utp2_sim::Protocol;
use utp2_sim::sweep::{Grid, difference};

const KEPT: &str = include_str!("../snapshots/ci.tsv");

#[test]
fn the_small_grid_is_as_it_was() {
    let cases = Grid::Ci.cases(Protocol::Utp2);
    let next = AtomicUsize::new(0);
    let work = || {
        let next = || cases.get(next.fetch_add(1, Ordering::Relaxed));
        std::iter::from_fn(next).flat_map(|c| c.lines(&c.run())).collect::<Vec<String>>()
    };
    let lines: Vec<String> = std::thread::scope(|scope| {
        let workers = [scope.spawn(work), scope.spawn(work)];
        workers.into_iter().flat_map(|w| w.join().expect("no case panics")).collect()
    });
    let all: Vec<String> = std::iter::once(Grid::Ci.header().to_owned()).chain(lines).collect();
    let differences = difference(KEPT, &all);
    assert!(
        differences.is_empty(),
        "the table differs from the one kept:\n{}\nIf that is meant: utp2 sim sweep --grid ci --again --out \
         transport/utp2-sim/snapshots/ci.tsv",
        differences.join("\n")
    );
}
