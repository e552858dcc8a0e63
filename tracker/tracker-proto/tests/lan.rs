//! The LAN announcer in virtual time: everybody hears everybody.

use std::net::SocketAddr;
use std::time::Duration;

use timebase::Instant;
use tracker_proto::{Address, LanAnnounce, LanAnnouncer, SwarmKey};

fn key(run: u8) -> SwarmKey {
    SwarmKey::from_run_secret(&[run; 32])
}

fn addr_of(i: usize) -> SocketAddr {
    format!("192.168.7.{}:4000", i + 1).parse().unwrap()
}

struct Lan {
    now: Instant,
    members: Vec<LanAnnouncer>,
    found: Vec<Vec<SocketAddr>>,
    sent: Vec<(Instant, usize, Vec<u8>)>,
}

impl Lan {
    fn new(members: usize) -> Self {
        let member = |i: usize| {
            let mut m = LanAnnouncer::new([i as u8; 32], 1);
            m.set_addresses(Instant::ZERO, vec![Address::reflexive(4000).unwrap()]);
            m
        };
        let members: Vec<_> = (0..members).map(member).collect();
        Self { now: Instant::ZERO, found: vec![vec![]; members.len()], members, sent: vec![] }
    }

    fn join(&mut self, i: usize, run: u8) {
        assert!(self.members[i].join(self.now, key(run), &[i as u8; 16]));
    }

    fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            for i in 0..self.members.len() {
                while let Some(bytes) = self.members[i].poll_transmit(self.now) {
                    self.sent.push((self.now, i, bytes.clone()));
                    // The group hears its own sender too.
                    for m in &mut self.members {
                        m.handle_datagram(self.now, addr_of(i), &bytes);
                    }
                }
            }
            for (m, found) in self.members.iter_mut().zip(&mut self.found) {
                while let Some((_, peer)) = m.poll_event() {
                    for addr in peer.addrs {
                        if !found.contains(&addr) {
                            found.push(addr);
                        }
                    }
                }
            }
            match self.members.iter().filter_map(LanAnnouncer::poll_timeout).min() {
                Some(next) if next <= end => self.now = self.now.max(next),
                _ => break,
            }
        }
        self.now = end;
    }
}

fn millis(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[test]
fn a_newcomer_hears_everybody_at_once_and_is_heard() {
    let mut lan = Lan::new(3);
    lan.join(0, 1);
    lan.join(1, 1);
    lan.run_for(Duration::from_secs(300));
    lan.join(2, 1);
    lan.run_for(millis(100));
    assert_eq!(lan.found[2].len(), 2);
    assert!(lan.found[0].contains(&addr_of(2)) && lan.found[1].contains(&addr_of(2)));
    assert!(!lan.found[0].contains(&addr_of(0)), "nobody finds himself");
}

#[test]
fn swarms_do_not_hear_each_other() {
    let mut lan = Lan::new(2);
    lan.join(0, 1);
    lan.join(1, 2);
    lan.run_for(Duration::from_secs(60));
    assert!(lan.found.iter().all(Vec::is_empty));
}

#[test]
fn announcements_slow_down() {
    let mut lan = Lan::new(1);
    lan.join(0, 1);
    lan.run_for(Duration::from_secs(3600));
    let sent = lan.sent.len();
    assert!((110..160).contains(&sent), "{sent} in an hour");
    let asks = lan.sent.iter().filter(|s| LanAnnounce::parse(&s.2).unwrap().entry.flags().answer_me).count();
    assert_eq!(asks, 3);
}

#[test]
fn a_crowd_of_newcomers_is_answered_once_a_second() {
    let mut lan = Lan::new(1);
    lan.join(0, 1);
    lan.run_for(Duration::from_secs(600));
    let before = lan.sent.len();
    // The same member asks 1000 times in ten seconds, as a replay would.
    let mut newcomer = LanAnnouncer::new([99; 32], 1);
    newcomer.join(lan.now, key(1), &[99; 16]);
    let ask = newcomer.poll_transmit(lan.now).unwrap();
    for _ in 0..1000 {
        lan.members[0].handle_datagram(lan.now, addr_of(50), &ask);
        lan.run_for(millis(10));
    }
    let answers = lan.sent.len() - before;
    assert!((9..=12).contains(&answers), "{answers}");
}

#[test]
fn malformed_and_forged_are_counted_and_ignored() {
    let mut lan = Lan::new(1);
    lan.join(0, 1);
    let mut foreign = LanAnnouncer::new([9; 32], 1);
    foreign.join(lan.now, key(2), &[9; 16]);
    let other_swarm = foreign.poll_transmit(lan.now).unwrap();
    // An announcement of swarm 2 that claims to be of swarm 1.
    let entry = LanAnnounce::parse(&other_swarm).unwrap().entry;
    let mut forged = Vec::new();
    LanAnnounce { swarm: key(1).swarm(), entry }.emit(&mut forged);
    for bytes in [&b"junk"[..], &[0; 2000], &other_swarm, &forged] {
        lan.members[0].handle_datagram(lan.now, addr_of(9), bytes);
    }
    let stats = lan.members[0].stats();
    assert_eq!((stats.ignored, stats.forged, stats.heard), (3, 1, 0));
    assert_eq!(lan.members[0].poll_event(), None);
}

#[test]
fn leaving_is_said_once() {
    let mut lan = Lan::new(1);
    lan.join(0, 1);
    lan.run_for(millis(10));
    lan.members[0].leave(key(1).swarm());
    lan.run_for(Duration::from_secs(60));
    let last = LanAnnounce::parse(&lan.sent.last().unwrap().2).unwrap();
    assert!(last.entry.flags().leaving);
    assert_eq!((lan.sent.len(), lan.members[0].poll_timeout()), (2, None));
}
