//! ECN on paths that keep the mark, use it, or erase it.

use core::time::Duration;

use super::pair::{Link, Pair};
use crate::{Config, Event, Stats};

fn transfer(link: &Link) -> (Stats, Stats) {
    let mut pair = Pair::with(&Config::default(), link, 2);
    pair.connect();
    pair.run_until(Duration::from_secs(20), |p| p.nodes.iter().all(|n| !n.events.is_empty()));
    for tag in 0..200 {
        pair.nodes[0].connection().send_block(tag, 32 * 1024, 0).unwrap();
    }
    let done = |p: &Pair| p.nodes[0].count(|e| matches!(e, Event::BlockSent { .. })) == 200;
    pair.run_until(Duration::from_secs(60), done);
    (pair.nodes[0].connection().stats(), pair.nodes[1].connection().stats())
}

fn link() -> Link {
    Link { bottleneck: Some((12.5e6, 2e6)), max_datagram: 1472, ..Link::with_delay(10) }
}

#[test]
fn a_path_that_keeps_marks_is_found_capable_and_its_congestion_is_counted() {
    let (a, b) = transfer(&link());
    assert!(a.ecn && b.ecn, "{a:?}");
    assert_eq!(a.marked_packets, 0);
    let (a, _) = transfer(&Link { mark: 0.02, loss: 0.02, ..link() });
    let share = a.marked_packets as f64 / a.sent_packets as f64;
    assert!(a.ecn && (0.01..0.03).contains(&share), "{share} of {a:?}");
    // Reordered and repeated packets do not confuse the count.
    let odd = Link { mark: 0.02, loss: 0.02, duplicate: 0.05, jitter: Duration::from_millis(8), ..link() };
    let (a, _) = transfer(&odd);
    assert!(a.ecn && a.marked_packets > 0, "{a:?}");
}

#[test]
fn a_path_that_erases_marks_or_sets_them_all_is_not_trusted() {
    for odd in [Link { bleach: true, ..link() }, Link { mark: 1.0, ..link() }] {
        let (a, _) = transfer(&odd);
        assert!(!a.ecn, "{a:?}");
        assert!(a.marked_packets <= 10, "{a:?}");
    }
}
