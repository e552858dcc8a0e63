use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng;
use tracker_proto::{Address, EntryFlags, PeerId, SwarmKey};

use super::*;

fn swarm(i: u32) -> SwarmId {
    let mut id = [0; 32];
    id[..4].copy_from_slice(&i.to_be_bytes());
    SwarmId(id)
}

fn from(host: u32, port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4((0x0a00_0000 + host).into()), port)
}

fn entry(addresses: usize) -> Entry {
    let addresses: Vec<_> = (1..=addresses).filter_map(|p| Address::reflexive(p as u16)).collect();
    Entry::sign(&SwarmKey::from_run_secret(&[7; 32]), PeerId([1; 16]), 1, EntryFlags::default(), &addresses)
}

fn at(s: u64) -> Instant {
    Instant::ZERO + Duration::from_secs(s)
}

fn small() -> Limits {
    Limits {
        max_swarms: 10,
        max_peers_per_swarm: 50,
        max_entries: 200,
        max_entries_per_source: 20,
        ..Limits::default()
    }
}

fn rng() -> ChaCha8Rng {
    ChaCha8Rng::from_seed([3; 32])
}

#[test]
fn bounded_under_a_flood_that_pushes_nobody_out() {
    let mut r = Registry::new(small());
    r.announce(at(0), swarm(0), from(0, 1), entry(1)).unwrap();
    let mut full = 0;
    for i in 0..20_000 {
        full += u32::from(
            r.announce(at(0), swarm(i % 31), from(i % 997, 1 + (i % 61) as u16), entry(1)).is_err(),
        );
        assert!(r.swarms() <= 10 && r.entries() <= 200);
        assert!(r.swarms.values().all(|s| s.peers.len() <= 50));
        assert!(r.per_source.values().all(|c| *c <= 20));
    }
    assert!(full > 10_000);
    assert!(r.announce(at(0), swarm(0), from(0, 1), entry(1)).is_ok(), "still listed, so it can refresh");
    assert!(r.sample(swarm(0), from(0, 1), 1200, &mut rng()).len() > 10);
}

#[test]
fn one_source_is_limited_and_an_ipv6_site_is_one_source() {
    let mut r = Registry::new(small());
    let host = |i: u16| format!("[2001:db8::{i:x}]:{}", 1000 + i).parse().unwrap();
    for i in 0..20 {
        r.announce(at(0), swarm(0), host(i), entry(1)).unwrap();
    }
    assert_eq!(r.announce(at(0), swarm(1), host(20), entry(1)), Err(Full));
    assert_eq!(r.announce(at(0), swarm(1), from(1, 1), entry(1)), Ok(()));
    r.remove(swarm(0), host(3));
    assert_eq!(r.announce(at(0), swarm(1), host(20), entry(1)), Ok(()));
}

#[test]
fn entries_live_three_intervals_after_their_last_announcement() {
    let mut r = Registry::new(small());
    r.announce(at(0), swarm(0), from(0, 1), entry(1)).unwrap();
    r.announce(at(0), swarm(0), from(0, 2), entry(1)).unwrap();
    r.announce(at(50), swarm(0), from(0, 2), entry(1)).unwrap();
    assert_eq!(r.next_end(), Some(at(90)));
    assert_eq!(r.expire(at(89)), 0);
    assert_eq!(r.expire(at(90)), 1);
    assert_eq!((r.entries(), r.next_end()), (1, Some(at(140))));
    assert_eq!(r.expire(at(1000)), 1);
    assert_eq!((r.entries(), r.swarms(), r.per_source.len(), r.next_end()), (0, 0, 0, None));
}

#[test]
fn removal_keeps_places_right() {
    let mut r = Registry::new(small());
    for port in 1..=10 {
        r.announce(at(port.into()), swarm(0), from(0, port), entry(1)).unwrap();
    }
    for port in [1, 10, 5, 5, 99] {
        r.remove(swarm(0), from(0, port));
    }
    let state = &r.swarms[&swarm(0)];
    assert_eq!((state.peers.len(), state.places.len(), r.entries()), (7, 7, 7));
    assert!(state.places.iter().all(|(a, i)| state.peers[*i].listed.observed == *a));
    r.remove(swarm(9), from(0, 1));
}

#[test]
fn small_swarms_are_told_whole_and_without_the_asker() {
    let mut r = Registry::new(small());
    for port in 1..=12 {
        r.announce(at(0), swarm(0), from(0, port), entry(1)).unwrap();
    }
    let mut ports: Vec<_> =
        r.sample(swarm(0), from(0, 4), 1200, &mut rng()).iter().map(|p| p.observed.port()).collect();
    ports.sort();
    assert_eq!(ports, [1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12]);
    assert!(r.sample(swarm(1), from(0, 4), 1200, &mut rng()).is_empty());
}

#[test]
fn large_swarms_are_sampled_evenly_and_within_the_room() {
    let mut r = Registry::new(Limits::default());
    for host in 0..200 {
        r.announce(at(0), swarm(0), from(host, 1), entry(3)).unwrap();
    }
    let mut rng = rng();
    let mut told = BTreeMap::new();
    for _ in 0..2000 {
        let sample = r.sample(swarm(0), from(0, 1), 600, &mut rng);
        assert!(sample.iter().map(ListedPeer::encoded_len).sum::<usize>() <= 600);
        sample.iter().for_each(|p| *told.entry(p.observed).or_insert(0) += 1);
    }
    // 600 bytes hold 10 entries of 58; 2000 draws of 10 out of 200 name each 100 times on average.
    assert_eq!(told.len(), 199);
    assert!(told.values().all(|n| (50..160).contains(n)), "{told:?}");
    assert!(r.sample(swarm(0), from(0, 1), 57, &mut rng).is_empty());
}
