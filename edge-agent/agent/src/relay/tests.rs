use std::net::SocketAddr;
use std::sync::Arc;

use agent_proto::relay::{EndReason, Ended, Joined, Meeting, Open, RelayMessage, place_name};
use ed25519_dalek::SigningKey;
use event_schema::AgentId;
use timebase::Instant;
use tokio::time::timeout;
use utp2::{ContextId, Identity};
use utp2_tokio::{BlockSink, BlockSource, Connection, Endpoint, EndpointConfig, Handle, Incoming};

use super::table::{Session, Table, Told, Verdict};
use super::*;

pub(crate) const MEETING: Meeting = [7; 16];

fn at(ms: u64) -> Instant {
    Instant::ZERO + Duration::from_millis(ms)
}

fn agent(n: u8) -> AgentId {
    AgentId([n; 16])
}

fn addr(n: u8) -> SocketAddr {
    ([192, 0, 2, n], 1000).into()
}

fn ended(session: Session, reason: EndReason) -> Told {
    (session, Ended { meeting: MEETING, reason }.into())
}

/// A request to meet agent `with`.
fn wish(meeting: Meeting, with: u8) -> Open {
    Open { meeting, peer: place_name(&meeting, &agent(with)) }
}

/// Agent `n` in session `n` at address `n` with channel `n` wants to meet `with`.
fn open(table: &mut Table, ms: u64, n: u8, with: u8, meeting: Meeting) -> Vec<Told> {
    table.open(at(ms), n.into(), (agent(n), Some(addr(n))), wish(meeting, with), [n; 8])
}

fn joined(limits: RelayLimits) -> Table {
    let mut table = Table::new(limits);
    open(&mut table, 0, 1, 2, MEETING);
    let told = open(&mut table, 0, 2, 1, MEETING);
    let both: Vec<_> =
        told.iter().filter(|(_, m)| *m == Joined { meeting: MEETING }.into()).map(|(s, _)| *s).collect();
    assert_eq!(both, [1, 2]);
    table
}

#[test]
fn two_meet_and_their_datagrams_pass() {
    let mut table = joined(RelayLimits::default());
    assert_eq!(table.forward(at(1), addr(1), &[1; 8], 1212), Verdict::Pass(addr(2), [2; 8]));
    assert_eq!(table.forward(at(1), addr(2), &[2; 8], 1212), Verdict::Pass(addr(1), [1; 8]));
    assert_eq!(table.forward(at(1), addr(1), &[9; 8], 1212), Verdict::Drop, "nobody's channel");
    assert_eq!(table.forward(at(1), addr(3), &[1; 8], 1212), Verdict::Elsewhere(1), "read on the way");
    table.is_at(1, addr(3));
    assert_eq!(table.forward(at(1), addr(3), &[1; 8], 1212), Verdict::Pass(addr(2), [2; 8]), "it moved");
    assert_eq!(table.forward(at(1), addr(2), &[2; 8], 1212), Verdict::Pass(addr(3), [1; 8]));
    assert_eq!(table.close(1, MEETING), [ended(2, EndReason::Gone)]);
    assert_eq!(table.forward(at(3), addr(2), &[2; 8], 1212), Verdict::Drop);
    assert!(!table.is_used(1) && !table.is_used(2));
}

#[test]
fn nothing_passes_before_both_are_there_and_nobody_waits_for_ever() {
    let mut table = Table::new(RelayLimits::default());
    open(&mut table, 0, 1, 2, MEETING);
    assert_eq!(table.forward(at(1), addr(1), &[1; 8], 1212), Verdict::Drop);
    assert_eq!(table.expire(at(59_999)), []);
    assert_eq!(table.expire(at(60_000)), [ended(1, EndReason::Late)]);
    assert_eq!(table.stats().meetings, 0);
}

#[test]
fn who_comes_back_takes_his_place_again() {
    let mut table = joined(RelayLimits::default());
    let told = table.open(at(5), 11, (agent(1), Some(addr(9))), wish(MEETING, 2), [9; 8]);
    assert!(told.contains(&ended(2, EndReason::Gone)), "{told:?}");
    let told = open(&mut table, 6, 2, 1, MEETING);
    assert!(told.contains(&(11, Joined { meeting: MEETING }.into())), "{told:?}");
    assert_eq!(table.ended(2), [ended(11, EndReason::Gone)]);
}

#[test]
fn the_owner_s_limits_hold() {
    let limits = RelayLimits { rate: 1_000_000, sessions: 2, session_bytes: 5_000_000 };
    let mut table = joined(limits);
    // Ten times what is allowed, for two seconds.
    let mut passed = 0;
    for ms in 0..2000 {
        for _ in 0..10 {
            if let Verdict::Pass(..) = table.forward(at(ms), addr(1), &[1; 8], 1000) {
                passed += 1000;
            }
        }
    }
    assert!((2_000_000..=2_300_000).contains(&passed), "{passed}");
    let mut ms = 2000;
    let quota = loop {
        ms += 1;
        match table.forward(at(ms), addr(1), &[1; 8], 1000) {
            Verdict::Pass(..) => passed += 1000,
            Verdict::Drop => {}
            end => break end,
        }
    };
    let Verdict::Quota(key) = quota else { panic!("{quota:?}") };
    assert_eq!(passed, 5_000_000);
    let told = table.end(key, EndReason::Quota);
    assert_eq!(told, [ended(1, EndReason::Quota), ended(2, EndReason::Quota)]);
    // Not by a meeting of another name either, until the day is over.
    let other = [8; 16];
    open(&mut table, ms, 1, 2, other);
    let told = open(&mut table, ms, 2, 1, other);
    let quota = |session| -> Told { (session, Ended { meeting: other, reason: EndReason::Quota }.into()) };
    assert_eq!(told, [quota(2), quota(1)]);
    let next_day = 86_400_000;
    open(&mut table, next_day, 1, 2, other);
    let told = open(&mut table, next_day, 2, 1, other);
    assert!(told.contains(&(1, Joined { meeting: other }.into())), "{told:?}");
    // As many meetings as there may be: those that come are told.
    for (n, with) in [(3, 4), (4, 3), (5, 6)] {
        open(&mut table, next_day, n, with, [n.min(with); 16]);
    }
    let told = open(&mut table, next_day, 6, 5, [5; 16]);
    let full = |session| -> Told { (session, Ended { meeting: [5; 16], reason: EndReason::Full }.into()) };
    assert_eq!(told, [full(6), full(5)]);
}

#[test]
fn meetings_opened_again_and_beside_each_other_give_no_more() {
    let mut table = Table::new(RelayLimits { rate: 1_000_000, ..RelayLimits::default() });
    let mut passed = 0;
    for ms in 0..4000 {
        // Another meeting each time, four of them at a time.
        let meeting = [(ms % 4) as u8; 16];
        let (channel, other) = ([100 + (ms % 4) as u8; 8], [200 + (ms % 4) as u8; 8]);
        table.open(at(ms), 1, (agent(1), Some(addr(1))), wish(meeting, 2), channel);
        table.open(at(ms), 2, (agent(2), Some(addr(2))), wish(meeting, 1), other);
        for _ in 0..300 {
            let verdict = table.forward(at(ms), addr(1), &channel, 1000);
            passed += usize::from(matches!(verdict, Verdict::Pass(..))) * 1000;
        }
    }
    assert!((4_000_000..=4_300_000).contains(&passed), "{passed}");
    // Nor do others, who come and go two by two, bring the relay over its rate.
    let before = table.stats().bytes;
    for ms in 4000..8000 {
        let (n, with) = (10 + 2 * (ms % 50) as u8, 11 + 2 * (ms % 50) as u8);
        open(&mut table, ms, n, with, [n; 16]);
        open(&mut table, ms, with, n, [n; 16]);
        for _ in 0..300 {
            table.forward(at(ms), addr(n), &[n; 8], 1000);
        }
        table.close(n.into(), [n; 16]);
    }
    let passed = table.stats().bytes - before;
    assert!(passed <= 4_300_000, "{passed}");
}

#[test]
fn nobody_takes_the_place_of_a_member_that_is_expected() {
    let mut table = Table::new(RelayLimits::default());
    // A member knows the name of the meeting of two others, and comes first, in either's place.
    for with in [1, 2] {
        open(&mut table, 0, 3, with, MEETING);
    }
    let told = open(&mut table, 1, 1, 2, MEETING);
    assert!(!told.iter().any(|(_, m)| *m == Joined { meeting: MEETING }.into()), "{told:?}");
    let told = open(&mut table, 2, 2, 1, MEETING);
    let both: Vec<Session> =
        told.iter().filter(|(_, m)| *m == Joined { meeting: MEETING }.into()).map(|(s, _)| *s).collect();
    assert_eq!(both, [1, 2]);
    assert_eq!(table.forward(at(3), addr(1), &[1; 8], 1212), Verdict::Pass(addr(2), [2; 8]));
    // Nor does it end what stands.
    assert_eq!(open(&mut table, 4, 3, 1, MEETING).len(), 1);
    table.close(3, MEETING);
    assert_eq!(table.forward(at(5), addr(1), &[1; 8], 1212), Verdict::Pass(addr(2), [2; 8]));
    assert_eq!(open(&mut table, 6, 4, 4, MEETING), [ended(4, EndReason::Refused)], "with itself");
}

#[test]
fn who_waits_for_nobody_makes_room() {
    let mut table = Table::new(RelayLimits::default());
    for n in 0..=255u8 {
        // Sixteen agents, of which each wants to meet sixteen that never come.
        table.open(
            at(0),
            u64::from(n / 16),
            (agent(n / 16), None),
            wish([n; 16], 200),
            [n, 1, 1, 1, 1, 1, 1, 1],
        );
    }
    assert_eq!(table.stats().meetings, 256);
    let told = open(&mut table, 1, 100, 101, MEETING);
    assert!(
        told.iter().any(|(session, m)| *session != 100 && matches!(m, RelayMessage::Ended(_))),
        "{told:?}"
    );
    let told = open(&mut table, 2, 101, 100, MEETING);
    assert!(told.contains(&(100, Joined { meeting: MEETING }.into())), "{told:?}");
}

#[test]
fn nothing_goes_where_nobody_has_proved_to_be() {
    let mut table = Table::new(RelayLimits::default());
    open(&mut table, 0, 1, 2, MEETING);
    table.open(at(0), 2, (agent(2), None), wish(MEETING, 1), [2; 8]);
    assert_eq!(table.forward(at(1), addr(1), &[1; 8], 1212), Verdict::Drop);
    assert_eq!(table.forward(at(1), addr(2), &[2; 8], 1212), Verdict::Elsewhere(2));
    table.is_at(2, addr(2));
    assert_eq!(table.forward(at(2), addr(1), &[1; 8], 1212), Verdict::Pass(addr(2), [2; 8]));
}

#[test]
fn one_agent_does_not_take_all_places_and_two_pairs_share_the_rate() {
    let mut table = joined(RelayLimits { rate: 2_000_000, ..RelayLimits::default() });
    for n in 0..40u8 {
        table.open(at(0), 1, (agent(1), Some(addr(1))), wish([100 + n; 16], 9), [100 + n; 8]);
    }
    assert_eq!(table.stats().meetings, 16);
    open(&mut table, 0, 3, 4, [3; 16]);
    open(&mut table, 0, 4, 3, [3; 16]);
    let mut passed = [0; 2];
    for ms in 0..4000 {
        for _ in 0..20 {
            for (i, n) in [1u8, 3].into_iter().enumerate() {
                let verdict = table.forward(at(ms), addr(n), &[n; 8], 1000);
                passed[i] += usize::from(matches!(verdict, Verdict::Pass(..))) * 1000;
            }
        }
    }
    assert!(passed.iter().all(|p| (4_000_000..4_600_000).contains(p)), "{passed:?}");
}

#[test]
fn a_clock_that_stands_still_or_leaps_lets_no_more_pass() {
    let mut table = joined(RelayLimits { rate: 1_000_000, ..RelayLimits::default() });
    let mut burst = |ms: u64| {
        (0..10_000)
            .filter(|_| matches!(table.forward(at(ms), addr(1), &[1; 8], 1000), Verdict::Pass(..)))
            .count()
    };
    assert!(burst(0) <= 263);
    assert_eq!(burst(0), 0);
    assert!(burst(1_000_000_000) <= 263, "months later");
    assert!(burst(5) <= 263, "and back");
}

// --- with sessions ---

const LIMIT: Duration = Duration::from_secs(30);
pub(crate) const RELAY: ContextId = ContextId(*b"the relay's name");
const RUN: ContextId = ContextId(*b"the run's name..");

struct NoBlocks;

impl BlockSource for NoBlocks {
    fn read(&self, _: Handle, _: u64, _: u32, _: &mut [u8]) -> std::io::Result<()> {
        Err(std::io::ErrorKind::Unsupported.into())
    }
}

impl BlockSink for NoBlocks {
    fn write(&self, _: Handle, _: u64, _: u32, _: bool, _: &[u8]) {}
}

pub(crate) fn endpoint(n: u8) -> (Endpoint, Incoming) {
    let config = EndpointConfig::new(Identity::new([n; 32], vec![n]), |_, _| true);
    let (endpoint, incoming) = Endpoint::bind(([127, 0, 0, 1], 0).into(), config).expect("bound");
    for context in [RELAY, RUN] {
        endpoint.add_context(context, [5; 32], Arc::new(NoBlocks), Arc::new(NoBlocks));
    }
    (endpoint, incoming)
}

pub(crate) fn relay(limits: RelayLimits) -> (Endpoint, Arc<Forwarder>) {
    let (endpoint, mut incoming) = endpoint(9);
    let forwarder = Forwarder::start(endpoint.clone(), limits);
    let _ = crate::beside::sort(endpoint.beside(), Some(forwarder.clone()));
    let accepting = forwarder.clone();
    tokio::spawn(async move {
        while let Some(conn) = incoming.accept().await {
            accepting.accept(conn);
        }
    });
    (endpoint, forwarder)
}

/// The agent of endpoint `n`.
pub(crate) fn id(n: u8) -> AgentId {
    AgentId::of_key(&SigningKey::from_bytes(&[n; 32]).verifying_key().to_bytes())
}

pub(crate) async fn connected((a, b): (&Endpoint, &mut Incoming), met: &Met) -> (Connection, Connection) {
    timeout(LIMIT, async {
        tokio::join!(async { a.connect(met.place, RUN).await.expect("connected") }, async {
            b.accept().await.expect("accepted")
        })
    })
    .await
    .expect("in time")
}

#[tokio::test]
async fn two_that_meet_talk_end_to_end() {
    let (relay, forwarder) = relay(RelayLimits::default());
    let ((a, _ia), (b, mut incoming)) = (endpoint(1), endpoint(2));
    let (of_a, of_b) = (Relays::new(a.clone(), RELAY), Relays::new(b.clone(), RELAY));
    let at = relay.local_addr();
    let (at_a, at_b) =
        timeout(LIMIT, async { tokio::join!(of_a.meet(at, MEETING, id(2)), of_b.meet(at, MEETING, id(1))) })
            .await
            .expect("in time");
    let (at_a, at_b) = (at_a.expect("met"), at_b.expect("met"));
    assert_eq!((at_a.relay, at_a.via), (id(9), at));
    let (near, far) = connected((&a, &mut incoming), &at_a).await;
    assert_eq!((near.remote(), far.remote()), (at_a.place, at_b.place));
    assert_eq!(AgentId::of_key(&near.peer().public_key), id(2), "proved past the relay");
    near.send_message(b"to the other one alone").await.expect("sent");
    assert_eq!(
        timeout(LIMIT, far.recv_message()).await.expect("in time").expect("open"),
        b"to the other one alone"
    );
    assert!(forwarder.stats().bytes > 2400);
    // One leaves: the other one hears of it.
    drop(at_b);
    timeout(LIMIT, async {
        while !at_a.is_over() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("told");
    assert_eq!(forwarder.stats().meetings, 0);
}

#[tokio::test]
async fn a_full_relay_and_one_that_is_none_say_so() {
    let (relay, _forwarder) = relay(RelayLimits { sessions: 0, ..RelayLimits::default() });
    let ((a, _ia), (b, _ib), (c, _ic)) = (endpoint(1), endpoint(2), endpoint(3));
    let (of_a, of_b, of_c) =
        (Relays::new(a.clone(), RELAY), Relays::new(b.clone(), RELAY), Relays::new(c.clone(), RELAY));
    let at = relay.local_addr();
    let (at_a, at_b) =
        timeout(LIMIT, async { tokio::join!(of_a.meet(at, [1; 16], id(2)), of_b.meet(at, [1; 16], id(1))) })
            .await
            .expect("in time");
    for refused in [at_a, at_b] {
        assert_eq!(refused.expect_err("no room"), NotMet::Not("the relay is full".into()));
    }
    let waiting = tokio::spawn(async move { of_c.meet(at, [1; 16], id(2)).await.map(|_| ()) });
    timeout(LIMIT, async {
        while _forwarder.stats().meetings == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("the third waits");
    // Its end ends the waiting.
    relay.close().await;
    assert!(timeout(LIMIT, waiting).await.expect("in time").expect("no panic").is_err());
}

#[tokio::test]
async fn what_a_relay_does_not_understand_ends_the_session() {
    let (relay, forwarder) = relay(RelayLimits::default());
    let (a, _ia) = endpoint(1);
    for bad in [b"junk".to_vec(), vec![0; 500], RelayMessage::from(Joined { meeting: MEETING }).encode()] {
        let conn =
            timeout(LIMIT, a.connect(relay.local_addr(), RELAY)).await.expect("in time").expect("connected");
        conn.send_message(&bad).await.expect("sent");
        timeout(LIMIT, conn.closed()).await.expect("closed");
    }
    // Nor does it bear endless requests.
    let conn =
        timeout(LIMIT, a.connect(relay.local_addr(), RELAY)).await.expect("in time").expect("connected");
    for n in 0..200u8 {
        if conn.send_message(&RelayMessage::from(wish([n; 16], 200)).encode()).await.is_err() {
            break;
        }
    }
    timeout(LIMIT, conn.closed()).await.expect("closed");
    timeout(LIMIT, async {
        while forwarder.stats().meetings > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("and its meetings with it");
    // Datagrams of no meeting go nowhere.
    for bytes in [&b"FT\x01\x20"[..], b"FT\x01\x2012345678", b"FT\x01\x2012345678packet"] {
        a.send_beside(relay.local_addr(), bytes).expect("sent");
    }
    timeout(LIMIT, async {
        while forwarder.stats().strange == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("counted");
    assert_eq!(forwarder.stats().bytes, 0);
}
