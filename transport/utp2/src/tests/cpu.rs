//! What the core costs: both sides in one thread, datagrams handed over in memory, real time.

use core::time::Duration;
use std::println;
use std::time;
use std::vec::Vec;

use timebase::Instant;

use super::pair::{Link, Pair};
use crate::{Arrival, Config, Ecn, Event};

#[test]
#[ignore = "measures; for people"]
fn bytes_per_second() {
    for (max_datagram, seconds) in [(1452, 4), (9000, 2), (65_000, 2)] {
        let config = Config { max_datagram, max_queued_blocks: 1 << 16, ..Config::default() };
        let mut pair = Pair::connected(&config, &Link::with_delay(0), 1);
        let base = pair.now;
        let began = time::Instant::now();
        pair.nodes.iter_mut().for_each(|n| n.blocks.count_only = true);
        let (mut tag, mut buf, mut rounds) = (0, Vec::new(), 0u64);
        while began.elapsed() < Duration::from_secs(seconds) {
            rounds += 1;
            let c = pair.nodes[0].connection();
            while c.queued_blocks() < 512 {
                c.send_block(tag, 32 * 1024, 0).unwrap();
                tag += 1;
            }
            let now = base + began.elapsed();
            for from in [0, 1] {
                let (a, b) = pair.nodes.split_at_mut(1);
                let (a, b) = if from == 0 { (&mut a[0], &mut b[0]) } else { (&mut b[0], &mut a[0]) };
                a.endpoint.handle_timeout(now);
                while let Some(t) = a.endpoint.poll_transmit(now, 16, &mut buf, &mut a.blocks) {
                    for p in buf[..t.len].chunks_mut(t.segment_size.unwrap_or(t.len)) {
                        let arrival = Arrival { remote: a.address, at: now, ecn: Ecn::NotEct };
                        b.endpoint.handle_datagram(now, arrival, p, &mut b.blocks);
                    }
                }
                while let Some((_, e)) = a.endpoint.poll_event() {
                    assert!(matches!(e, Event::BlockSent { .. }));
                }
                a.endpoint.poll_timeout();
            }
        }
        let s = pair.nodes[0].connection().stats();
        let mb = pair.nodes[1].blocks.fresh as f64 / 1e6 / began.elapsed().as_secs_f64();
        println!("{max_datagram} B: {mb:.0} MB/s, {rounds} rounds, {s:?}");
        assert!(pair.now >= Instant::ZERO);
    }
}
