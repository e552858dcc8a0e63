//! What must hold of any bytes: for the fuzz targets (`tests/fuzz`), and for the test that replays their corpora.

use std::net::SocketAddr;
use std::time::Duration;

use timebase::Instant;
use tracker_proto::limits::{ANSWERS, PROBES_AT, QUESTIONS_PER_ADDRESS};
use tracker_proto::{FromTracker, LanAnnounce, Probe, Prober, SwarmKey, ToTracker};

/// Every parser of datagrams: what parses has one encoding only.
pub(crate) fn datagrams(bytes: &[u8]) {
    let same = |emit: &dyn Fn(&mut Vec<u8>)| {
        let mut out = Vec::new();
        emit(&mut out);
        assert_eq!(out, bytes);
    };
    match ToTracker::parse(bytes) {
        Ok(ToTracker::Announce(m)) => same(&|out| m.emit(out, bytes.len())),
        Ok(ToTracker::Call(m)) => same(&|out| m.emit(out, bytes.len())),
        Err(_) => {}
    }
    match FromTracker::parse(bytes) {
        Ok(FromTracker::Cookie(m)) => same(&|out| m.emit(out)),
        Ok(FromTracker::Peers(m)) => same(&|out| m.emit(out)),
        Ok(FromTracker::Ring(m)) => same(&|out| m.emit(out)),
        Err(_) => {}
    }
    if let Ok(m) = LanAnnounce::parse(bytes) {
        same(&|out| m.emit(out));
    }
    if let Ok(m) = Probe::parse(bytes) {
        same(&|out| m.emit(out));
    }
}

/// A prober among others, by decisions of two bytes each: whom to ask where, what comes from where, how time passes. What
/// comes is made by a member, as a stranger's is dropped unseen; or is a copy of what was sent before.
pub(crate) fn prober(decisions: &[u8]) {
    let key = SwarmKey::from_run_secret(&[7; 32]);
    let swarm = key.swarm();
    let member = |n: u8| key.peer_id(&[n; 16]);
    let place = |n: u8| SocketAddr::from(([192, 0, 2, n % 8], 1 + u16::from(n / 8 % 4)));
    let mut prober = Prober::new([1; 32]);
    assert!(prober.join(key.clone(), &[0; 16]));
    let mut now = Instant::ZERO;
    let mut copies: Vec<Vec<u8>> = Vec::new();
    let (mut asked, mut reached) = (0u64, 0u64);
    let mut last = None;
    for decision in decisions.chunks_exact(2) {
        let (what, n) = (decision[0], decision[1]);
        match what % 8 {
            0 => now += Duration::from_millis(u64::from(n) * 4),
            1 => prober.probe(now, swarm, member(n % 40), &[place(n), place(n.wrapping_add(1))]),
            2 => prober.stop(swarm, member(n % 40)),
            3 => now += Duration::from_secs(u64::from(n)),
            kind => {
                let yours: Option<[u8; 8]> = match kind {
                    4 => Some([0; 8]),
                    5 => Some([n; 8]),
                    // To what it sent last.
                    6 => last,
                    _ => None,
                };
                let bytes = match yours {
                    Some(yours) => {
                        let probe = Probe::sign(&key, member(1 + what / 8 % 32), member(0), [n; 8], yours);
                        let mut bytes = Vec::new();
                        probe.emit(&mut bytes);
                        bytes
                    }
                    None => copies.get(usize::from(n)).cloned().unwrap_or_default(),
                };
                prober.handle_datagram(now, place(n), &bytes);
                copies.push(bytes);
                copies.truncate(256);
            }
        }
        while let Some((_, bytes)) = prober.poll_transmit(now) {
            let sent = Probe::parse(&bytes).expect("its own");
            assert!(sent.verify(&key) && sent.from == member(0) && sent.to != member(0));
            last = Some(sent.mine);
            asked += 1;
            copies.push(bytes);
            copies.truncate(256);
        }
        while let Some(one) = prober.poll_event() {
            assert_eq!(one.swarm, swarm);
            reached += 1;
        }
    }
    let stats = prober.stats();
    assert_eq!(stats.questions + stats.answers, asked);
    assert!(reached <= stats.reached);
    let seconds = (now - Instant::ZERO).as_secs() + 1;
    let places = 32;
    assert!(
        stats.questions
            <= places * (u64::from(QUESTIONS_PER_ADDRESS.1) + seconds * u64::from(QUESTIONS_PER_ADDRESS.0))
    );
    assert!(stats.answers <= u64::from(ANSWERS.1) + seconds * u64::from(ANSWERS.0));
    assert!(stats.questions <= decisions.len() as u64 * 2 * PROBES_AT.len() as u64);
}
