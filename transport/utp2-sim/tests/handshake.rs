//! Connecting over paths that lose much: neither a burst of dozens of packets nor half of all lost ends a handshake
//! before its time (PROTOCOL.md §5.6, §5.7).

use std::time::Duration;

use timebase::Instant;
use utp2::Config;
use utp2_sim::flow::FlowNode;
use utp2_sim::network::{Network, address_of};
use utp2_sim::progress::Load;
use utp2_sim::{LinkConfig, Loss};

const RTT: Duration = Duration::from_millis(100);

/// When both ends were connected, and how many packets the initiator sent until then; `None` if they never were.
fn connect(loss: Loss, seed: u64) -> Option<(Duration, u64)> {
    let mut net = Network::new();
    let mut config = LinkConfig::new(1_000_000_000, RTT / 2);
    config.loss = loss;
    let bytes = |salt: u8| {
        let mut b = [salt; 32];
        b[..8].copy_from_slice(&seed.to_be_bytes());
        b
    };
    let forward = net.add_link(config.clone(), bytes(1), RTT);
    let reverse = net.add_link(config, bytes(2), RTT);
    let load = Load { bytes: 1, block_len: 1, start: Instant::ZERO, step: RTT };
    let secret = [7; 32];
    net.add_node(FlowNode::sender(Config::default(), &secret, bytes(3), address_of(1), load));
    net.add_node(FlowNode::receiver(Config::default(), &secret, bytes(4), load));
    net.add_route(0, 1, &[forward]);
    net.add_route(1, 0, &[reverse]);
    let both = |nodes: &[FlowNode]| nodes.iter().all(|n| n.connected_at().is_some());
    net.run(Instant::ZERO + Duration::from_secs(60), |_, n| {
        both(n) || n.iter().any(|n| n.closed().is_some())
    });
    both(net.nodes()).then(|| (net.now().saturating_since(Instant::ZERO), net.links()[0].stats().datagrams))
}

/// Connects with a hundred seeds; tells the median, the 9th decile and the longest time, and the most packets.
fn hundred(what: &str, loss: Loss) -> [Duration; 3] {
    let all: Vec<_> = (1..=100).map(|seed| (seed, connect(loss, seed))).collect();
    let failed: Vec<_> = all.iter().filter(|a| a.1.is_none()).map(|a| a.0).collect();
    assert!(failed.is_empty(), "{what}: seeds that did not connect: {failed:?}");
    let mut times: Vec<_> = all.iter().flat_map(|a| a.1).map(|c| c.0).collect();
    times.sort();
    let packets = all.iter().flat_map(|a| a.1).map(|c| c.1).max().unwrap_or(0);
    println!(
        "{what}: median {:?}, nine of ten {:?}, all {:?}, packets {packets}",
        times[49], times[89], times[99]
    );
    [times[49], times[89], times[99]]
}

#[test]
fn bursts_of_twenty_packets_end_no_handshake() {
    let [median, _, longest] = hundred("bursts of 20, mean 2 %", Loss::bursts(0.02, 20.0));
    assert!(median < RTT * 3 && longest < Duration::from_secs(15), "{median:?} {longest:?}");
    // A handshake seldom meets one, so the same bursts far closer together as well.
    let [_, _, longest] = hundred("bursts of 20, mean 40 %", Loss::bursts(0.4, 20.0));
    assert!(longest > Duration::from_secs(3), "no burst was met: {longest:?}");
}

#[test]
fn half_of_all_lost_ends_no_handshake() {
    let [median, most, longest] = hundred("30 % lost", Loss::Bernoulli(0.3));
    assert!(median < Duration::from_secs(1), "{median:?}");
    assert!(most < Duration::from_secs(2), "{most:?}");
    assert!(longest < Duration::from_secs(5), "{longest:?}");
    let [median, _, longest] = hundred("50 % lost", Loss::Bernoulli(0.5));
    assert!(median < Duration::from_secs(3), "{median:?}");
    assert!(longest < Duration::from_secs(10), "{longest:?}");
}
