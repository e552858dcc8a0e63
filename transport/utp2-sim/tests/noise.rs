//! Both ends run on busy machines: stalls of 1–40 ms several times a second and late timers must neither end the start
//! early nor wear the rate down (PROTOCOL.md §8.7, §9.3, §9.5).

use std::time::Duration;

use timebase::Instant;
use utp2::Config;
use utp2_sim::flow::FlowNode;
use utp2_sim::network::{Network, address_of};
use utp2_sim::pattern::ENDLESS;
use utp2_sim::progress::Load;
use utp2_sim::{Host, LinkConfig, Noise};

/// What passed in each round trip of `seconds`, as a share of what the link carries; and wire bytes per byte.
fn run(
    mbit: u64,
    rtt: Duration,
    loss: f64,
    noise: Option<Noise>,
    seed: u64,
    seconds: u64,
) -> (Vec<f64>, f64) {
    let mut net = Network::new();
    let config = LinkConfig::new(mbit * 1_000_000, rtt / 2).with_queue(rtt).with_loss(loss);
    let forward = net.add_link(config.clone(), [seed as u8; 32], rtt);
    let reverse = net.add_link(config, [seed as u8 ^ 0x80; 32], rtt);
    let load = Load { bytes: ENDLESS, block_len: 32 * 1024, start: Instant::ZERO, step: rtt };
    let secret = [7; 32];
    let config = Config { receive_window: 128 << 20, ..Config::default() };
    let sender = FlowNode::sender(config.clone(), &secret, [seed as u8 + 1; 32], address_of(1), load);
    let receiver = FlowNode::receiver(config, &secret, [seed as u8 + 2; 32], load);
    net.add_node(Host::new(sender, noise, 2 * seed));
    net.add_node(Host::new(receiver, noise, 2 * seed + 1));
    net.add_route(0, 1, &[forward]);
    net.add_route(1, 0, &[reverse]);
    net.run(Instant::ZERO + Duration::from_secs(seconds), |_, _| false);
    let line = net.nodes()[1].node().progress().expect("receives").timeline().to_vec();
    let ceiling = mbit as f64 * 125_000.0 * rtt.as_secs_f64() * (1.0 - loss);
    let got: u64 = line.iter().sum();
    let wire = net.links()[0].stats().bytes as f64 / got as f64;
    (line.iter().map(|&b| b as f64 / ceiling).collect(), wire)
}

fn mean(x: &[f64]) -> f64 {
    x.iter().sum::<f64>() / x.len().max(1) as f64
}

#[test]
fn the_start_on_a_fast_path_is_not_left_early() {
    let rtt = Duration::from_millis(200);
    let mut worst = f64::INFINITY;
    for seed in 1..=8 {
        let (line, wire) = run(1000, rtt, 0.01, Some(Noise::default()), seed, 5);
        let (to, from) = (mean(&line[..15]), mean(&line[15..]));
        println!("fast {seed}: to 3 s {to:.3}, 3–5 s {from:.3}, wire bytes per byte {wire:.3}");
        worst = worst.min(from);
    }
    assert!(worst > 0.6, "the start was left early: {worst}");
}

#[test]
fn a_busy_machine_neither_ends_the_start_early_nor_wears_the_rate_down() {
    let rtt = Duration::from_millis(200);
    let mut worst = [f64::INFINITY; 2];
    for seed in 1..=8 {
        let (line, wire) = run(100, rtt, 0.01, Some(Noise::default()), seed, 14);
        let (early, late) = (mean(&line[15..35]), mean(&line[35..]));
        println!("seed {seed}: 3–7 s {early:.3}, 7–14 s {late:.3}, wire bytes per byte {wire:.3}");
        worst = [worst[0].min(early), worst[1].min(late)];
    }
    assert!(worst[0] > 0.6, "the start was left early: {}", worst[0]);
    assert!(worst[1] > 0.75, "the rate was worn down: {}", worst[1]);
}

/// A network in a house: what its machines do weighs more than its millisecond.
#[test]
fn a_near_host_is_not_given_up_for_its_stalls() {
    for (mbit, loss) in [(100, 0.0), (1000, 0.0), (1000, 0.001)] {
        let (mut got, mut sent) = (Vec::new(), Vec::new());
        for seed in 1..=8 {
            let (line, wire) = run(mbit, Duration::from_millis(1), loss, Some(Noise::default()), seed, 3);
            let share = mean(&line[1000..]);
            let what = format!(
                "{mbit} Mbit/s, 1 ms, {loss}, seed {seed}: {share:.3}, wire bytes per byte {wire:.3}"
            );
            println!("{what}");
            assert!(share > 0.33 && wire < 1.3, "{what}");
            got.push(share);
            sent.push(wire);
        }
        assert!(mean(&got) > 0.42 && mean(&sent) < 1.2, "{mbit} Mbit/s: {got:?}, {sent:?}");
    }
}
