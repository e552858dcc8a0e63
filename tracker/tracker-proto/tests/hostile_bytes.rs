//! Parsing is total and strict: any bytes give a message or an error, and whatever parses has exactly
//! one encoding.

use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use tracker_proto::limits::{ADDRESSES_PER_ENTRY, DATAGRAM_MAX, PEERS_PER_REPLY};
use tracker_proto::{
    Address, Announce, Call, CookieReply, Entry, EntryFlags, FromTracker, LanAnnounce, ListedPeer,
    ParseError, PeersReply, Probe, Ring, SwarmKey, ToTracker,
};

fn key() -> SwarmKey {
    SwarmKey::from_run_secret(&[7; 32])
}

fn entry(addresses: usize) -> Entry {
    let addresses: Vec<_> = (0..addresses)
        .map(|i| Address::socket(format!("[2001:db8::{i}]:4000").parse().unwrap()).unwrap())
        .collect();
    Entry::sign(&key(), key().peer_id(&[1; 16]), 1, EntryFlags::default(), &addresses)
}

fn samples() -> Vec<Vec<u8>> {
    let mut out = vec![vec![]; 7];
    let announce = Announce { transaction: [3; 8], cookie: [4; 16], swarm: key().swarm(), entry: entry(2) };
    announce.emit(&mut out[0], 200);
    CookieReply { transaction: [3; 8], cookie: [4; 16] }.emit(&mut out[1]);
    PeersReply {
        transaction: [3; 8],
        cookie: [4; 16],
        interval: Duration::from_secs(30),
        full: false,
        observed: "192.0.2.1:1".parse().unwrap(),
        peers: (0..3)
            .map(|i| ListedPeer { observed: "192.0.2.2:2".parse().unwrap(), entry: entry(i) })
            .collect(),
    }
    .emit(&mut out[2]);
    LanAnnounce { swarm: key().swarm(), entry: entry(3) }.emit(&mut out[3]);
    let (swarm, callee) = (key().swarm(), key().peer_id(&[2; 16]));
    Call { transaction: [3; 8], cookie: [4; 16], swarm, callee, entry: entry(2) }.emit(&mut out[4], 300);
    Ring { swarm, observed: "192.0.2.1:1".parse().unwrap(), entry: entry(2) }.emit(&mut out[5]);
    Probe::sign(&key(), callee, key().peer_id(&[1; 16]), [1; 8], [2; 8]).emit(&mut out[6]);
    out
}

/// Feeds bytes to every parser; what parses must encode to the same bytes again. Returns how many took
/// them.
fn feed(bytes: &[u8]) -> usize {
    let mut encodings = Vec::new();
    let mut again = |emit: &dyn Fn(&mut Vec<u8>)| {
        let mut out = Vec::new();
        emit(&mut out);
        encodings.push(out);
    };
    match ToTracker::parse(bytes) {
        Ok(ToTracker::Announce(m)) => again(&|out| m.emit(out, bytes.len())),
        Ok(ToTracker::Call(m)) => again(&|out| m.emit(out, bytes.len())),
        Err(_) => {}
    }
    match FromTracker::parse(bytes) {
        Ok(FromTracker::Cookie(m)) => again(&|out| m.emit(out)),
        Ok(FromTracker::Peers(m)) => again(&|out| m.emit(out)),
        Ok(FromTracker::Ring(m)) => {
            assert_eq!(m.encoded_len(), bytes.len());
            again(&|out| m.emit(out));
        }
        Err(_) => {}
    }
    if let Ok(m) = LanAnnounce::parse(bytes) {
        again(&|out| m.emit(out));
    }
    if let Ok(m) = Probe::parse(bytes) {
        again(&|out| m.emit(out));
    }
    encodings.iter().for_each(|e| assert_eq!(e, bytes));
    encodings.len()
}

#[test]
fn random_bytes() {
    let mut rng = ChaCha8Rng::from_seed([1; 32]);
    for round in 0..100_000 {
        let mut bytes = vec![0; rng.next_u32() as usize % (DATAGRAM_MAX + 100)];
        rng.fill_bytes(&mut bytes);
        if round % 2 == 0 && bytes.len() > 4 {
            bytes[..3].copy_from_slice(b"FT\x01");
            bytes[3] = [1, 2, 3, 4, 5, 16, 17][rng.next_u32() as usize % 7];
        }
        feed(&bytes);
    }
}

#[test]
fn changed_bytes_cuts_and_growth() {
    let mut rng = ChaCha8Rng::from_seed([2; 32]);
    let mut parsed = 0;
    for sample in samples() {
        assert_eq!(feed(&sample), 1);
        for cut in 0..sample.len() {
            feed(&sample[..cut]);
        }
        for _ in 0..50_000 {
            let mut bytes = sample.clone();
            for _ in 0..=rng.next_u32() % 3 {
                let i = rng.next_u32() as usize % bytes.len();
                bytes[i] = rng.next_u32() as u8;
            }
            parsed += feed(&bytes);
        }
    }
    assert!(parsed > 10_000, "the mutations reach past the header: {parsed}");
}

#[test]
fn each_rule_has_its_error() {
    let [announce, cookie, peers, lan, call, ring, probe] = samples().try_into().unwrap();
    let with = |sample: &Vec<u8>, at: usize, byte: u8| {
        let mut bytes = sample.clone();
        bytes[at] = byte;
        bytes
    };
    let announce_error = |bytes: &[u8]| Announce::parse(bytes).unwrap_err();
    assert_eq!(announce_error(&[]), ParseError::Truncated);
    assert_eq!(announce_error(&[0; DATAGRAM_MAX + 1]), ParseError::TooLong);
    assert_eq!(announce_error(&with(&announce, 0, b'X')), ParseError::Magic);
    assert_eq!(announce_error(&with(&announce, 2, 2)), ParseError::Version(2));
    assert_eq!(announce_error(&lan), ParseError::Kind(16));
    assert_eq!(announce_error(&with(&announce, 84, 0x80)), ParseError::Flags(0x80));
    assert_eq!(announce_error(&with(&announce, 85, 9)), ParseError::Count(9));
    assert_eq!(announce_error(&with(&announce, 86, 5)), ParseError::Family(5));
    assert_eq!(announce_error(&with(&announce, 199, 1)), ParseError::Trailing);
    assert_eq!(announce_error(&with(&announce, 87, 0xff)), ParseError::Address, "multicast");

    let tracker_error = |bytes: &[u8]| FromTracker::parse(bytes).unwrap_err();
    assert_eq!(tracker_error(&announce), ParseError::Kind(1));
    assert_eq!(tracker_error(&[&cookie[..], &[0]].concat()), ParseError::Trailing);
    assert_eq!(tracker_error(&with(&with(&peers, 28, 0), 29, 0)), ParseError::Interval(0));
    assert_eq!(tracker_error(&with(&peers, 28, 0xff)), ParseError::Interval(0xff1e));
    assert_eq!(tracker_error(&with(&peers, 30, 2)), ParseError::Flags(2));
    assert_eq!(tracker_error(&with(&peers, 31, 0)), ParseError::Family(0), "reflexive");
    assert_eq!(tracker_error(&with(&peers, 38, 24)), ParseError::Count(24));
    assert_eq!(tracker_error(&peers[..peers.len() - 1]), ParseError::Truncated);
    assert_eq!(LanAnnounce::parse(&[&lan[..], &[0]].concat()), Err(ParseError::Trailing));
    assert_eq!(ToTracker::parse(&with(&call, 299, 1)), Err(ParseError::Trailing));
    assert_eq!(ToTracker::parse(&ring), Err(ParseError::Kind(5)));
    assert_eq!(tracker_error(&[&ring[..], &[0]].concat()), ParseError::Trailing);
    assert_eq!(tracker_error(&with(&ring, 36, 0)), ParseError::Family(0), "reflexive");
    assert_eq!(Probe::parse(&[&probe[..], &[0]].concat()), Err(ParseError::Trailing));
    assert_eq!(Probe::parse(&probe[..99]), Err(ParseError::Truncated));
}

#[test]
fn the_largest_messages_fit() {
    let mut announce = Vec::new();
    Announce {
        transaction: [3; 8],
        cookie: [4; 16],
        swarm: key().swarm(),
        entry: entry(ADDRESSES_PER_ENTRY),
    }
    .emit(&mut announce, usize::MAX);
    assert_eq!(announce.len(), DATAGRAM_MAX);
    let smallest = ListedPeer { observed: "192.0.2.2:2".parse().unwrap(), entry: entry(0) };
    let reply = PeersReply {
        transaction: [3; 8],
        cookie: [4; 16],
        interval: Duration::MAX,
        full: false,
        observed: "[2001:db8::1]:1".parse().unwrap(),
        peers: vec![smallest; PEERS_PER_REPLY + 5],
    };
    let mut bytes = Vec::new();
    reply.emit(&mut bytes);
    assert!(bytes.len() <= DATAGRAM_MAX);
    assert!(FromTracker::parse(&bytes).is_ok(), "the interval is clamped");
}
