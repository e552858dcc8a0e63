//! Real sockets on the loopback. Each test has its own port and group, so that tests that run at the
//! same time do not meet.

use std::net::UdpSocket as StdUdpSocket;
use std::sync::atomic::{AtomicU8, Ordering};

use tokio::net::UdpSocket;
use tracker_proto::message::{CookieReply, PeersReply};
use tracker_proto::{Announce, ListedPeer};

use super::*;

const PATIENCE: Duration = Duration::from_secs(15);

fn key(run: u8) -> SwarmKey {
    SwarmKey::from_run_secret(&[run; 32])
}

fn addr(port: u16) -> SocketAddr {
    SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)
}

/// A group and a port that no other test uses.
fn lan() -> LanConfig {
    static GROUPS: AtomicU8 = AtomicU8::new(1);
    let port = StdUdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let process = std::process::id() as u8;
    let group = Ipv4Addr::new(239, 255, process, GROUPS.fetch_add(1, Ordering::Relaxed));
    LanConfig { group, port, ..LanConfig::default() }
}

fn no_lan() -> LanConfig {
    LanConfig { enabled: false, ..LanConfig::default() }
}

/// An agent whose µTP2 socket would listen on 127.0.0.1:`port`; nothing has to answer there.
fn agent(port: u16, lan: &LanConfig, trackers: &[SocketAddr]) -> Discovery {
    Discovery::start(DiscoveryConfig {
        listen: addr(port),
        advertise: vec![],
        trackers: trackers.to_vec(),
        lan: lan.clone(),
        relay: false,
        socket: None,
        seed: [port as u8; 32],
    })
    .unwrap()
}

async fn next(found: &mut mpsc::Receiver<Found>) -> Found {
    time::timeout(PATIENCE, found.recv()).await.expect("found in time").expect("still joined")
}

/// Waits for a state that comes about soon.
async fn until(what: &str, mut is: impl FnMut() -> bool) {
    let waiting = async {
        while !is() {
            time::sleep(Duration::from_millis(20)).await;
        }
    };
    time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("not in time: {what}"));
}

#[tokio::test]
async fn agents_on_one_network_find_each_other_without_a_tracker() {
    let lan = lan();
    let agents = [agent(4001, &lan, &[]), agent(4002, &lan, &[]), agent(4003, &lan, &[])];
    let mut found: Vec<_> = agents.iter().enumerate().map(|(i, a)| a.join(key(1), [i as u8; 16])).collect();
    let mut stranger = agents[2].join(key(2), [2; 16]);
    for (i, receiver) in found.iter_mut().enumerate() {
        let mut ports = std::collections::BTreeSet::new();
        while ports.len() < 2 {
            let hint = next(receiver).await;
            assert_eq!(hint.via, Via::Lan);
            assert_eq!(hint.peer, key(1).peer_id(&[(hint.addr.port() - 4001) as u8; 16]));
            ports.insert(hint.addr.port());
        }
        assert!(!ports.contains(&(4001 + i as u16)), "nobody finds himself");
    }
    assert!(stranger.try_recv().is_err(), "alone in its swarm");
    assert_eq!(agents[0].status().lan_interfaces, 1);
}

#[tokio::test]
async fn a_newcomer_is_answered_at_once() {
    let lan = lan();
    let first = agent(4001, &lan, &[]);
    let mut first_found = first.join(key(1), [1; 16]);
    until("announced", || first.status().lan.sent > 0).await;
    let second = agent(4002, &lan, &[]);
    let mut second_found = second.join(key(1), [2; 16]);
    assert_eq!(next(&mut second_found).await.addr, addr(4001));
    assert_eq!(next(&mut first_found).await.addr, addr(4002));
}

#[tokio::test]
async fn malformed_and_foreign_multicast_is_ignored() {
    let lan = lan();
    let first = agent(4001, &lan, &[]);
    let mut found = first.join(key(1), [1; 16]);
    let junk = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None).unwrap();
    junk.bind(&addr(0).into()).unwrap();
    junk.set_multicast_if_v4(&Ipv4Addr::LOCALHOST).unwrap();
    let group = SocketAddr::new(lan.group.into(), lan.port);
    for bytes in [&b"junk"[..], b"FT\x01\x10", &[0; 1201], &[0xff; 9000], b""] {
        junk.send_to(bytes, &group.into()).unwrap();
    }
    let mut foreign = LanAnnouncer::new([1; 32], 1);
    foreign.join(Instant::ZERO, key(9), &[9; 16]);
    junk.send_to(&foreign.poll_transmit(Instant::ZERO).unwrap(), &group.into()).unwrap();
    until("all six counted", || first.status().lan.ignored == 6).await;
    assert!(found.try_recv().is_err());
    let second = agent(4002, &lan, &[]);
    let _second_found = second.join(key(1), [2; 16]);
    assert_eq!(next(&mut found).await.addr, addr(4002), "still at work");
}

/// The kernel's own list of who has joined what on which interface.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_loopback_agent_joins_on_the_loopback_alone() {
    let lan = lan();
    let first = agent(4001, &lan, &[]);
    assert_eq!(first.status().lan_error, None);
    let wanted = format!("{:08X}", u32::from_le_bytes(lan.group.octets()));
    let mut interface = "";
    let mut joined_on = vec![];
    let list = std::fs::read_to_string("/proc/net/igmp").unwrap();
    for line in list.lines().skip(1) {
        let mut words = line.split_whitespace();
        if line.starts_with(char::is_whitespace) {
            if words.next() == Some(&wanted) {
                joined_on.push(interface);
            }
        } else {
            interface = words.nth(1).unwrap();
        }
    }
    assert_eq!(joined_on, ["lo"]);
}

/// Answers like a tracker until dropped.
struct FakeTracker(JoinHandle<()>);

impl FakeTracker {
    async fn start(listen: SocketAddr) -> (Self, SocketAddr) {
        let socket = UdpSocket::bind(listen).await.unwrap();
        let listen = socket.local_addr().unwrap();
        (Self(tokio::spawn(Self::serve(socket))), listen)
    }

    async fn serve(socket: UdpSocket) {
        let mut listed = BTreeMap::new();
        // Another one in each life, as after a restart.
        static LIVES: AtomicU8 = AtomicU8::new(1);
        let cookie = [LIVES.fetch_add(1, Ordering::Relaxed); 16];
        let mut buffer = [0; 2000];
        loop {
            let (len, from) = socket.recv_from(&mut buffer).await.unwrap();
            let announce = Announce::parse(&buffer[..len]).unwrap();
            let (transaction, mut out) = (announce.transaction, vec![]);
            if announce.cookie != cookie {
                CookieReply { transaction, cookie }.emit(&mut out);
            } else {
                let leaving = announce.entry.flags().leaving;
                listed.insert((announce.swarm, from), announce.entry);
                if leaving {
                    listed.remove(&(announce.swarm, from));
                }
                let others = listed.iter().filter(|((s, a), _)| *s == announce.swarm && *a != from);
                let peers = others.map(|((_, a), e)| ListedPeer { observed: *a, entry: e.clone() });
                PeersReply {
                    transaction,
                    cookie,
                    interval: Duration::from_secs(1),
                    full: false,
                    observed: from,
                    peers: peers.collect(),
                }
                .emit(&mut out);
            }
            socket.send_to(&out, from).await.unwrap();
        }
    }
}

impl Drop for FakeTracker {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[tokio::test]
async fn agents_find_each_other_through_a_tracker_and_again_after_its_restart() {
    let (tracker, listen) = FakeTracker::start(addr(0)).await;
    let (first, second) = (agent(4001, &no_lan(), &[listen]), agent(4002, &no_lan(), &[]));
    let mut first_found = first.join(key(1), [1; 16]);
    let mut second_found = second.join(key(1), [2; 16]);
    second.set_trackers(&[listen]);
    let hint = next(&mut first_found).await;
    let expected =
        Found { addr: addr(4002), peer: key(1).peer_id(&[2; 16]), via: Via::Tracker, relay: false };
    assert_eq!(hint, expected);
    assert_eq!(next(&mut second_found).await.addr, addr(4001));
    assert_eq!(first.status().trackers, [(listen, true)]);
    assert!(first.status().observed[&listen].ip().is_loopback());

    drop(tracker);
    until("its absence is noticed", || first.status().client.timeouts > 0).await;
    while first_found.try_recv().is_ok() {}
    let _tracker = FakeTracker::start(listen).await;
    assert_eq!(next(&mut first_found).await, expected);
}

#[tokio::test]
async fn leaving_and_shutting_down_are_told() {
    let (_tracker, listen) = FakeTracker::start(addr(0)).await;
    let (first, second) = (agent(4001, &no_lan(), &[listen]), agent(4002, &no_lan(), &[listen]));
    let _first_found = first.join(key(1), [1; 16]);
    let mut second_found = second.join(key(1), [2; 16]);
    assert_eq!(next(&mut second_found).await.addr, addr(4001));
    let answers = first.status().client.answers;
    first.leave(key(1).swarm());
    until("the tracker has confirmed", || first.status().client.answers > answers).await;
    assert_eq!(first.status().swarms, 0);
    second.shutdown().await;
    assert_eq!(second_found.try_recv().unwrap_err(), mpsc::error::TryRecvError::Disconnected);
    // Nobody is listed any more.
    let third = agent(4003, &no_lan(), &[listen]);
    let mut third_found = third.join(key(1), [3; 16]);
    until("listed itself", || third.status().client.answers >= 2).await;
    assert!(third_found.try_recv().is_err());
}

#[tokio::test]
async fn a_dropped_receiver_leaves_the_swarm() {
    let first = agent(4001, &no_lan(), &[]);
    drop(first.join(key(1), [1; 16]));
    until("left", || first.status().swarms == 0).await;
}

#[tokio::test]
async fn agents_on_the_ipv6_loopback_find_each_other() {
    let lan = lan();
    let agent = |port: u16| {
        Discovery::start(DiscoveryConfig {
            listen: SocketAddr::new(std::net::Ipv6Addr::LOCALHOST.into(), port),
            advertise: vec![],
            trackers: vec![],
            lan: lan.clone(),
            relay: true,
            socket: None,
            seed: [port as u8; 32],
        })
        .unwrap()
    };
    if StdUdpSocket::bind("[::1]:0").is_err() {
        eprintln!("SKIPPED agents_on_the_ipv6_loopback_find_each_other: no IPv6 here");
        return;
    }
    let (first, second) = (agent(4001), agent(4002));
    assert_eq!(first.status().lan_interfaces_v6, 0, "the loopback has multicast over IPv4 only");
    let mut found = first.join(key(1), [1; 16]);
    let _second_found = second.join(key(1), [2; 16]);
    let hint = next(&mut found).await;
    assert_eq!((hint.addr, hint.via, hint.relay), ("[::1]:4002".parse().unwrap(), Via::Lan, true));
}

/// The µTP2 socket asks the tracker and is what peers are told of; members probe each other there.
#[tokio::test]
async fn trackers_and_probes_use_the_utp2_socket() {
    let tracker = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let at = tracker.local_addr().unwrap();
    let mut agents = vec![];
    for id in [1u8, 2] {
        let config = utp2_tokio::EndpointConfig::new(utp2::Identity::new([id; 32], vec![]), |_, _| true);
        let (endpoint, incoming) = Endpoint::bind("127.0.0.1:0".parse().unwrap(), config).unwrap();
        let config = DiscoveryConfig {
            listen: endpoint.local_addr(),
            advertise: vec![],
            trackers: vec![at],
            lan: no_lan(),
            relay: false,
            socket: Some((endpoint.clone(), endpoint.beside())),
            seed: [id; 32],
        };
        let discovery = Discovery::start(config).unwrap();
        let found = discovery.join(key(1), [id; 16]);
        agents.push((endpoint, incoming, discovery, found));
    }
    let mut buffer = [0; 2000];
    let mut heard = std::collections::BTreeSet::new();
    while heard.len() < 2 {
        let received = time::timeout(PATIENCE, tracker.recv_from(&mut buffer)).await;
        let (len, from) = received.expect("in time").unwrap();
        let announce = Announce::parse(&buffer[..len]).unwrap();
        assert!(announce.entry.flags().observed_usable);
        heard.insert(from);
    }
    let own: std::collections::BTreeSet<_> = agents.iter().map(|a| a.0.local_addr()).collect();
    assert_eq!(heard, own);
    // Called without a tracker that answers, at an address where nobody is and the right one.
    let other = agents[1].0.local_addr();
    let asked = agents[0].2.call(key(1).swarm(), key(1).peer_id(&[2; 16]), &[addr(9), other]);
    assert_eq!(asked, 0, "no tracker has answered");
    let hint = next(&mut agents[0].3).await;
    assert_eq!((hint.addr, hint.via, hint.peer), (other, Via::Probe, key(1).peer_id(&[2; 16])));
    let hint = next(&mut agents[1].3).await;
    assert_eq!((hint.addr, hint.via), (agents[0].0.local_addr(), Via::Probe));
}
