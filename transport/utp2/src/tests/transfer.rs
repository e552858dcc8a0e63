//! Blocks and messages arrive exactly, whatever the link does.

use core::time::Duration;
use std::vec;
use std::vec::Vec;

use super::pair::{Link, Pair};
use crate::{CloseReason, Config, Event, SendError};

const SECONDS: fn(u64) -> Duration = Duration::from_secs;
const BLOCK: u32 = 32 * 1024;

/// Both nodes send `n` blocks and messages; returns the pair afterwards.
#[track_caller]
fn exchange(config: &Config, link: &Link, n: u64, seed: u64) -> Pair {
    let mut pair = Pair::connected(config, link, seed);
    let length = |tag: u64| if tag.is_multiple_of(5) { 1 + tag as u32 } else { BLOCK };
    let tag = |i: u64| if i.is_multiple_of(2) { i } else { i | 1 << 63 };
    let mut messages = [vec![], vec![]];
    for (node, messages) in pair.nodes.iter_mut().zip(&mut messages) {
        let c = node.connection();
        for i in 0..n {
            c.send_block(tag(i), length(tag(i)), (i % 3) as u8).unwrap();
            let m = vec![i as u8; (i * 37 % 3000) as usize];
            c.send_message(&m).unwrap();
            messages.push(m);
        }
    }
    let (m0, m1) = (messages[0].clone(), messages[1].clone());
    pair.run_until(SECONDS(120), |p| {
        let sent = |i: usize| p.nodes[i].count(|e| matches!(e, Event::BlockSent { .. })) as u64 == n;
        sent(0)
            && sent(1)
            && p.nodes[1].messages().len() == m0.len()
            && p.nodes[0].messages().len() == m1.len()
    });
    for (i, node) in pair.nodes.iter_mut().enumerate() {
        assert!((0..n).all(|t| node.blocks.is_whole(tag(t), length(tag(t)))));
        assert_eq!(node.messages(), messages[1 - i]);
        assert_eq!(node.connection().queued_blocks(), 0);
        assert_eq!(node.connection().unacknowledged_message_bytes(), 0);
    }
    pair
}

#[test]
#[cfg_attr(not(feature = "control"), ignore = "as fast as that is only the control of §9")]
fn a_clean_link_needs_no_retransmission() {
    let mut pair = exchange(&Config::default(), &Link::default(), 100, 1);
    let stats = pair.nodes[0].connection().stats();
    assert_eq!((stats.lost_packets, stats.retransmitted_bytes, stats.probe_timeouts), (0, 0, 0));
    assert!(stats.rtt_min.abs_diff(Duration::from_millis(20)) < Duration::from_millis(1), "{stats:?}");
    assert!(stats.acks_sent * 5 < stats.received_packets, "{stats:?}");
}

#[test]
fn loss_reordering_repetition_and_corruption_change_nothing() {
    let bad = Link {
        loss: 0.1,
        duplicate: 0.05,
        corrupt: 0.03,
        jitter: Duration::from_millis(8),
        ..Link::default()
    };
    for (seed, link) in [
        Link { loss: 0.3, ..Link::default() },
        Link { jitter: Duration::from_millis(30), ..Link::default() },
        Link { duplicate: 0.5, corrupt: 0.1, ..Link::default() },
        bad.clone(),
        Link { delay: Duration::from_micros(50), ..bad },
    ]
    .into_iter()
    .enumerate()
    {
        exchange(&Config::default(), &link, 60, seed as u64);
    }
}

#[test]
fn datagrams_of_every_size_work() {
    for max_datagram in [1200, 1201, 1453, 9000, 65_000] {
        let config = Config { max_datagram, ..Config::default() };
        let mut pair = exchange(&config, &Link { loss: 0.02, ..Link::default() }, 40, 1);
        assert!(pair.nodes[0].connection().stats().sent_bytes > 0);
    }
    // The smaller of both sides' counts.
    let mut pair = Pair::with(&Config::default(), &Link::default(), 1);
    pair.nodes[1] =
        super::pair::node(Config { max_datagram: 1200, ..Config::default() }, 2, super::pair::everybody());
    pair.connect();
    pair.run_until(SECONDS(3), |p| p.nodes.iter().all(|n| !n.events.is_empty()));
    pair.nodes[0].captured = Some(Vec::new());
    pair.nodes[0].connection().send_block(1, BLOCK, 0).unwrap();
    pair.run_until(SECONDS(3), |p| p.nodes[1].blocks.is_whole(1, BLOCK));
    assert!(pair.nodes[0].captured.as_ref().unwrap().iter().all(|d| d.len() <= 1200));
}

#[test]
fn keys_are_updated_on_the_way() {
    let config = Config { key_update_after: 200, max_datagram: 1452, ..Config::default() };
    let link = Link { loss: 0.05, jitter: Duration::from_millis(5), ..Link::default() };
    let mut pair = exchange(&config, &link, 200, 1);
    let stats = pair.nodes[0].connection().stats();
    assert!(stats.sent_packets > 2000 && stats.rejected_packets < 20, "{stats:?}");
}

#[test]
fn lost_pieces_are_sent_again_about_once() {
    let link = Link { loss: 0.05, ..Link::with_delay(50) };
    let mut pair = exchange(&Config::default(), &link, 300, 1);
    let s = pair.nodes[0].connection().stats();
    let ratio = s.retransmitted_bytes as f64 / s.data_bytes_sent as f64;
    assert!((0.03..0.08).contains(&ratio), "{ratio} {s:?}");
    assert!(s.spurious_losses < 10, "{s:?}");
}

#[test]
fn messages_wait_for_room_and_bounds_hold() {
    let config = Config { max_message: 1000, message_buffer: 5000, ..Config::default() };
    let mut pair = Pair::connected(&config, &Link::default(), 1);
    let c = pair.nodes[0].connection();
    assert_eq!(c.send_message(&[0; 1001]), Err(SendError::TooLarge));
    assert_eq!(c.send_block(1, 0, 0), Err(SendError::TooLarge));
    let mut sent = 0;
    while c.send_message(&[1; 1000]).is_ok() {
        sent += 1;
    }
    assert_eq!(sent, 4);
    pair.run_until(SECONDS(3), |p| p.nodes[0].events.iter().any(|e| e.1 == Event::MessagesWritable));
    for round in 1..50 {
        while pair.nodes[0].connection().send_message(&[1; 1000]).is_ok() {
            sent += 1;
        }
        let expect = sent;
        pair.run_until(SECONDS(3 * round), |p| p.nodes[1].messages().len() == expect);
        assert!(pair.nodes[0].connection().unacknowledged_message_bytes() <= 5000);
    }
    assert!(sent > 100);
}

#[test]
fn queued_blocks_are_limited_and_cancelled_ones_are_not_sent() {
    let config = Config { max_queued_blocks: 10, ..Config::default() };
    let mut pair = Pair::connected(&config, &Link::default(), 1);
    let c = pair.nodes[0].connection();
    for tag in 0..10 {
        c.send_block(tag, BLOCK, 0).unwrap();
    }
    assert_eq!(c.send_block(10, BLOCK, 0), Err(SendError::Blocked));
    assert_eq!(c.send_block(9, BLOCK, 0), Ok(()), "it is queued");
    (3..9).for_each(|tag| c.cancel_block(tag));
    assert_eq!(c.queued_blocks(), 4);
    pair.run_until(SECONDS(3), |p| p.nodes[0].count(|e| matches!(e, Event::BlockSent { .. })) == 4);
    let got: Vec<u64> = pair.nodes[1].blocks.got.keys().copied().collect();
    assert_eq!(got, [0, 1, 2, 9]);
}

#[test]
fn a_block_that_cannot_be_read_is_reported_and_the_rest_goes_on() {
    let mut pair = Pair::connected(&Config::default(), &Link::default(), 1);
    pair.nodes[0].blocks.failing = vec![1];
    for tag in 0..3 {
        pair.nodes[0].connection().send_block(tag, BLOCK, 0).unwrap();
    }
    pair.run_until(SECONDS(3), |p| p.nodes[0].count(|e| matches!(e, Event::BlockSent { .. })) == 2);
    assert!(pair.nodes[0].events.iter().any(|e| e.1 == Event::BlockFailed { tag: 1 }));
    assert!(pair.nodes[1].blocks.is_whole(2, BLOCK) && !pair.nodes[1].blocks.got.contains_key(&1));
}

#[test]
fn the_receive_window_bounds_what_is_in_flight_and_zero_halts() {
    let config = Config { receive_window: 50_000, ..Config::default() };
    let mut pair = Pair::connected(&config, &Link::with_delay(100), 1);
    for tag in 0..20 {
        pair.nodes[0].connection().send_block(tag, BLOCK, 0).unwrap();
    }
    for _ in 0..10 {
        pair.run(Duration::from_millis(77), |_| false);
        assert!(pair.nodes[0].connection().stats().bytes_in_flight <= 50_000);
    }
    pair.nodes[1].connection().set_receive_window(0);
    pair.run(SECONDS(2), |_| false);
    let before = pair.nodes[1].blocks.fresh;
    pair.run(SECONDS(40), |_| false);
    assert_eq!(pair.nodes[1].blocks.fresh, before, "halted, and alive by its keep-alive");
    pair.nodes[1].link.loss = 0.5;
    pair.nodes[1].connection().set_receive_window(1 << 20);
    pair.run_until(SECONDS(60), |p| p.nodes[0].count(|e| matches!(e, Event::BlockSent { .. })) == 20);
}

#[test]
fn who_often_has_nothing_else_to_send_does_not_send_all_repairs_twice() {
    let link = Link { loss: 0.2, ..Link::default() };
    let mut pair = Pair::connected(&Config::default(), &link, 1);
    pair.nodes.iter_mut().for_each(|n| n.blocks.count_only = true);
    pair.nodes[1].link.loss = 0.0;
    // One after the other, each with an end of its own.
    for tag in 0..600 {
        pair.nodes[0].connection().send_block(tag, BLOCK, 0).unwrap();
        pair.run_until(SECONDS(60), |p| {
            p.nodes[0].events.last().is_some_and(|e| e.1 == Event::BlockSent { tag })
        });
    }
    let stats = pair.nodes[0].connection().stats();
    let lost = stats.lost_packets as f64 / stats.sent_packets as f64;
    let again = stats.retransmitted_bytes as f64 / stats.data_bytes_sent as f64;
    assert!(lost > 0.15 && again < lost + 0.1, "{lost} {again}");
}

#[test]
fn close_tells_the_peer_and_silence_ends_in_a_timeout() {
    let mut pair = Pair::connected(&Config::default(), &Link::default(), 1);
    pair.nodes[0].connection().close(7, "so long");
    assert_eq!(pair.nodes[0].connection().send_message(b"x"), Err(SendError::Closed));
    pair.run_until(SECONDS(1), |p| p.nodes[1].events.len() == 2);
    assert_eq!(
        pair.nodes[1].events[1].1,
        Event::Closed(CloseReason::Peer { code: 7, reason: "so long".into() })
    );
    assert_eq!(pair.nodes[0].events[1].1, Event::Closed(CloseReason::Local));
    pair.run(SECONDS(2), |_| false);
    assert_eq!(pair.nodes.each_ref().map(|n| n.endpoint.connection_count()), [0, 0]);

    let config = Config { idle_timeout: SECONDS(30), ..Config::default() };
    let mut pair = Pair::connected(&config, &Link::default(), 1);
    pair.run(SECONDS(100), |_| false);
    assert!(pair.nodes.iter().all(|n| n.count(|e| matches!(e, Event::Closed(_))) == 0), "kept alive");
    pair.nodes.iter_mut().for_each(|n| n.link.loss = 1.0);
    pair.run(SECONDS(50), |_| false);
    assert!(pair.nodes.iter().all(|n| n.events.last().unwrap().1 == Event::Closed(CloseReason::IdleTimeout)));
}

#[test]
fn a_peer_that_took_the_close_ends_the_closing() {
    let mut pair = Pair::connected(&Config::default(), &Link::default(), 1);
    pair.run(SECONDS(5), |_| false);
    pair.nodes[0].captured = Some(Vec::new());
    pair.nodes[0].connection().close(7, "so long");
    // Half a round trip for the CLOSE, a wait of 3/4 PTO until the next, which is answered.
    let took = pair.run_until(SECONDS(1), |p| p.nodes[0].endpoint.connection_count() == 0);
    let sent = pair.nodes[0].captured.as_ref().map(Vec::len);
    assert!(took < Duration::from_millis(100) && sent == Some(2), "{took:?}, {sent:?} CLOSE packets");
}

#[test]
fn a_lost_close_is_followed_by_another() {
    let mut pair = Pair::connected(&Config::default(), &Link::default(), 1);
    // Nothing under way that would be answered with another CLOSE.
    pair.run(SECONDS(5), |_| false);
    pair.nodes[0].link.loss = 1.0;
    pair.nodes[0].connection().close(7, "so long");
    pair.run(Duration::from_millis(1), |_| false);
    pair.nodes[0].link.loss = 0.0;
    pair.run_until(SECONDS(1), |p| p.nodes[1].events.len() == 2);
}

#[test]
fn who_ends_in_haste_tells_four_times_and_is_gone() {
    let mut pair = Pair::connected(&Config::default(), &Link::with_delay(100), 1);
    pair.run(SECONDS(5), |_| false);
    pair.nodes[0].link.loss = 1.0;
    pair.nodes[0].captured = Some(Vec::new());
    pair.nodes[0].connection().close(7, "so long");
    let now = pair.now;
    pair.nodes[0].endpoint.hasten_end(now);
    let ms = Duration::from_millis;
    pair.run(ms(5), |_| false);
    // Three of four are lost.
    pair.nodes[0].link.loss = 0.0;
    let took = pair.run_until(SECONDS(1), |p| p.nodes[0].endpoint.connection_count() == 0);
    assert!(took <= ms(5), "{took:?}");
    assert_eq!(pair.nodes[0].captured.as_ref().unwrap().len(), 4);
    pair.run_until(SECONDS(1), |p| p.nodes[1].events.len() == 2);
    // Also in the middle of the usual end.
    let mut pair = Pair::connected(&Config::default(), &Link::with_delay(100), 1);
    pair.nodes[0].link.loss = 1.0;
    pair.nodes[0].connection().close(7, "so long");
    pair.run(ms(50), |_| false);
    let now = pair.now;
    pair.nodes[0].endpoint.hasten_end(now);
    pair.nodes[0].captured = Some(Vec::new());
    pair.run(ms(8), |_| false);
    assert_eq!(pair.nodes[0].endpoint.connection_count(), 0);
    assert_eq!(pair.nodes[0].captured.as_ref().unwrap().len(), 3);
}

#[test]
fn the_connection_follows_the_peer_to_a_new_address() {
    let mut pair = Pair::connected(&Config::default(), &Link::default(), 1);
    for tag in 0..300 {
        pair.nodes[0].connection().send_block(tag, BLOCK, 0).unwrap();
    }
    for i in 0..10u8 {
        pair.run(Duration::from_millis(50), |_| false);
        pair.nodes[0].address = (
            ["10.0.0.1", "10.0.1.1"][usize::from(i % 2)].parse::<core::net::IpAddr>().unwrap(),
            2000 + u16::from(i),
        )
            .into();
    }
    pair.nodes[0].connection().send_block(300, BLOCK, 0).unwrap();
    pair.run_until(SECONDS(30), |p| p.nodes[0].count(|e| matches!(e, Event::BlockSent { .. })) == 301);
    let address = pair.nodes[0].address;
    assert_eq!(pair.nodes[1].connection().remote(), address);
}

#[test]
fn removing_a_context_closes_its_connections() {
    let mut pair = Pair::connected(&Config::default(), &Link::default(), 1);
    pair.nodes[0].endpoint.remove_context(super::pair::CONTEXT);
    pair.run_until(SECONDS(1), |p| p.nodes.iter().all(|n| n.events.len() == 2));
    assert_eq!(pair.nodes[0].events[1].1, Event::Closed(CloseReason::ContextRemoved));
    assert!(matches!(pair.nodes[1].events[1].1, Event::Closed(CloseReason::Peer { code: 0xff00, .. })));
}
