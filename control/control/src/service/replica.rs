//! What a replica does besides its work: it says that it lives, listens to the others, and, if it holds the
//! lease, sees to what no other does (`docs/decisions/0010-replicas-and-their-lease.md`).
//!
//! Beats go over a [`Bus`] that keeps nothing; the log only hears of changes. A beat, or its absence, only
//! ever makes somebody *ask*: what follows is decided in `control_core::replica` on the state at the log's
//! end and appended behind that end, so clocks and lost beats can cost time, never correctness.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use control_core::replica::{self, Session};
use event_log::BoxFuture;
use event_schema::{ReplicaId, decode_exact, encode};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::writer::Ask;
use super::{Origin, Ousted, Service, SubmitError};

/// How often a replica says that it lives.
const BEAT: Duration = Duration::from_secs(1);

/// Without its own beat for so long a replica asks its bus for another way.
const RENEW: Duration = Duration::from_millis(2_500);

/// Without its own beat for so long a replica is cut off from the others: it sends its agents away. Below
/// [`SILENT`], so that it knows before the others give it up.
const CUT_OFF: Duration = Duration::from_millis(4_000);

/// Without a beat for so long a replica is given up by the lease's holder, and a holder loses the lease.
const SILENT: Duration = Duration::from_secs(5);

/// How often the holder looks after things.
const DUTY: Duration = Duration::from_millis(500);

/// A gateway not heard of for so long is not told to agents any more.
const GATEWAY_KEPT: Duration = Duration::from_secs(3_600);

/// Replicas that are listened to, gateways of one, and bytes of a beat: whoever may use the bus could send
/// anything.
const REPLICAS_MAX: usize = 64;
const GATEWAYS_MAX: usize = 16;
const BEAT_BYTES_MAX: usize = 8 * 1024;

/// Seconds between the pings of agents that know several gateways: they leave a dead one within 5 s
/// (`edge-agent/PROTOCOL.md` §2.5).
pub const KEEP_ALIVE_S: u16 = 2;

/// Where replicas hear each other: messages to all, at most once, kept by nobody.
pub trait Bus: Send + Sync + 'static {
    /// Sends to all who listen, the sender included; whatever fails is lost.
    fn send(&self, message: Vec<u8>) -> BoxFuture<'_, ()>;

    /// Nothing comes back: looks for another way, if there can be one.
    fn renew(&self) -> BoxFuture<'_, ()>;

    /// What is sent from now on. The channel ends with the bus.
    fn listen(&self) -> BoxFuture<'_, mpsc::Receiver<Vec<u8>>>;
}

impl Bus for event_log_nats::NatsBus {
    fn send(&self, message: Vec<u8>) -> BoxFuture<'_, ()> {
        Box::pin(self.send(message))
    }

    fn renew(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.renew())
    }

    fn listen(&self) -> BoxFuture<'_, mpsc::Receiver<Vec<u8>>> {
        Box::pin(self.listen())
    }
}

/// A sign of life.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Beat {
    /// 1.
    version: u8,
    replica: ReplicaId,
    epoch: u64,
    /// `HOST:PORT` under which agents reach it.
    gateways: Vec<String>,
}

impl Beat {
    fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.len() > BEAT_BYTES_MAX {
            return None;
        }
        let beat: Self = decode_exact("Beat", bytes).ok()?;
        let places = beat.gateways.iter().all(|place| crate::config::host_and_port(place).is_some());
        (beat.version == 1 && beat.gateways.len() <= GATEWAYS_MAX && places).then_some(beat)
    }
}

/// Who was heard when.
#[derive(Debug, Default)]
struct Presence {
    /// When our own beat last came back, and since when it has done so without a gap.
    own: Option<(Instant, Instant)>,
    others: BTreeMap<ReplicaId, Heard>,
}

#[derive(Debug)]
struct Heard {
    epoch: u64,
    at: Instant,
    gateways: Vec<String>,
}

impl Presence {
    fn hear(&mut self, own: ReplicaId, beat: Beat, now: Instant) {
        if beat.replica == own {
            let since = match self.own {
                Some((last, since)) if now.duration_since(last) < CUT_OFF => since,
                _ => now,
            };
            self.own = Some((now, since));
        } else if self.others.len() < REPLICAS_MAX || self.others.contains_key(&beat.replica) {
            let heard = Heard { epoch: beat.epoch, at: now, gateways: beat.gateways };
            self.others.insert(beat.replica, heard);
        }
    }

    /// How long nothing of ours has come back.
    fn unheard(&self, started: Instant, now: Instant) -> Duration {
        now.duration_since(self.own.map_or(started, |(last, _)| last))
    }

    /// Whether a replica that the log has shown alive since `seen` says nothing, as far as we could have
    /// heard it.
    fn is_silent(&self, session: Session, seen: Instant, now: Instant) -> bool {
        let Some((_, listening)) = self.own else { return false };
        let heard = self.others.get(&session.replica).filter(|heard| heard.epoch >= session.epoch);
        let last = heard.map_or(seen, |heard| heard.at.max(seen)).max(listening);
        now.duration_since(last) >= SILENT
    }

    /// Where agents may go, ours first.
    fn gateways(&self, own: &[String], now: Instant) -> Vec<String> {
        let others = self.others.values().filter(|heard| now.duration_since(heard.at) < GATEWAY_KEPT);
        let mut seen = BTreeSet::new();
        let all = own.iter().chain(others.flat_map(|heard| &heard.gateways));
        all.filter(|place| seen.insert(place.as_str())).take(GATEWAYS_MAX).cloned().collect()
    }
}

/// Keeps a replica among the others as long as it lives. Dropping it stops it without a word.
#[derive(Debug)]
pub struct Keeper {
    tasks: JoinSet<()>,
}

impl Keeper {
    /// Begins to speak and to listen. `gateways` are the `HOST:PORT` under which agents reach this replica.
    pub async fn start(service: Service, bus: Arc<dyn Bus>, gateways: Vec<String>) -> Self {
        let presence = Arc::new(Mutex::new(Presence::default()));
        let own = service.session().replica;
        let mut tasks = JoinSet::new();
        let heard = bus.listen().await;
        tasks.spawn(listen(Arc::clone(&presence), own, heard));
        tasks.spawn(beat(service.clone(), Arc::clone(&presence), bus, gateways.clone()));
        let duties = Duties { service, presence, gateways, started: Instant::now(), seen: HashMap::new() };
        tasks.spawn(duties.run());
        Self { tasks }
    }

    /// Stops, and lets the service go.
    pub async fn stop(mut self) {
        self.tasks.shutdown().await;
    }
}

async fn listen(presence: Arc<Mutex<Presence>>, own: ReplicaId, mut heard: mpsc::Receiver<Vec<u8>>) {
    while let Some(message) = heard.recv().await {
        match Beat::decode(&message) {
            Some(beat) => lock(&presence).hear(own, beat, Instant::now()),
            None => tracing::debug!(bytes = message.len(), "no beat of a replica"),
        }
    }
}

async fn beat(service: Service, presence: Arc<Mutex<Presence>>, bus: Arc<dyn Bus>, gateways: Vec<String>) {
    let mut quiet_since = Instant::now();
    let mut ticks = interval(BEAT);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Session { replica, epoch } = service.session();
        let beat = Beat { version: 1, replica, epoch, gateways: gateways.clone() };
        bus.send(encode(&beat)).await;
        let now = Instant::now();
        if lock(&presence).unheard(quiet_since, now).min(now.duration_since(quiet_since)) >= RENEW {
            // Once; then it has as long again.
            quiet_since = now;
            bus.renew().await;
        }
    }
}

fn lock(presence: &Mutex<Presence>) -> MutexGuard<'_, Presence> {
    // One value is replaced at a time.
    presence.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Duties {
    service: Service,
    presence: Arc<Mutex<Presence>>,
    gateways: Vec<String>,
    started: Instant,
    /// Since when the log has shown a life, for those that were never heard.
    seen: HashMap<Session, Instant>,
}

impl Duties {
    async fn run(mut self) {
        let mut ticks = interval(DUTY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if let Err(error) = self.look_after().await {
                tracing::warn!(%error, "a replica's duty is done later");
            }
        }
    }

    async fn look_after(&mut self) -> Result<(), SubmitError> {
        let now = Instant::now();
        let (cut_off, gateways, alone) = {
            let presence = lock(&self.presence);
            let cut_off = presence.unheard(self.started, now) >= CUT_OFF;
            (cut_off, presence.gateways(&self.gateways, now), presence.others.is_empty())
        };
        self.service.tell_gateways(gateways);
        // Agents of the only replica have nowhere to go.
        let serve = !cut_off || alone;
        if self.service.set_serving(serve) != serve {
            if serve {
                tracing::info!("heard by the other replicas again");
            } else {
                tracing::warn!("cut off from the other replicas: agents are sent to them");
                self.service.oust(Ousted::All);
            }
        }
        if cut_off {
            return Ok(());
        }
        let me = self.service.session();
        let (live, lease, term, dead) = {
            let views = self.service.views();
            let known = &views.replicas;
            let live: Vec<Session> = known
                .replicas
                .iter()
                .filter(|(_, view)| view.live)
                .map(|(replica, view)| Session { replica: *replica, epoch: view.epoch })
                .collect();
            (live, known.lease(), known.lease.map_or(0, |lease| lease.term), !known.is_live(me))
        };
        if dead {
            tracing::warn!("the other replicas gave this one up: it begins anew");
            self.service.oust(Ousted::All);
            return self.service.begin_life().await;
        }
        self.seen.retain(|session, _| live.contains(session));
        for session in &live {
            self.seen.entry(*session).or_insert(now);
        }
        let is_silent = |session: &Session| {
            lock(&self.presence).is_silent(*session, self.seen.get(session).copied().unwrap_or(now), now)
        };
        match lease {
            Some(lease) if lease.holder == me => {}
            Some(lease) if !is_silent(&lease.holder) => return Ok(()),
            _ => {
                let origin = Origin::service("fleet".into());
                let taken = self.service.submit(origin, move |state, _| {
                    let events = replica::take_lease(state, me, term);
                    let holds = !events.is_empty() || state.lease().is_some_and(|lease| lease.holder == me);
                    Ok((events, holds))
                });
                if !taken.await? {
                    return Ok(());
                }
                tracing::info!(term = term + 1, "this replica holds the lease");
            }
        }
        for session in live.iter().filter(|session| **session != me && is_silent(session)) {
            let session = *session;
            tracing::warn!(replica = %session.replica, epoch = session.epoch, "silent for too long: given up");
            let origin = Origin::service("fleet".into());
            let given_up = self.service.decide(origin, move |state, _| {
                Ok(replica::give_up(state, me, session, "not heard of for too long"))
            });
            given_up.await?;
        }
        self.service.bury(me, false).await?;
        self.service.sweep().await;
        Ok(())
    }
}

impl Service {
    /// The life of this replica that goes on; [`Session::ALONE`] on a log of its own.
    pub fn session(&self) -> Session {
        *self.shared.session.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a life of this replica: its earlier ones end, with the sessions they had.
    pub(super) async fn begin_life(&self) -> Result<(), SubmitError> {
        let replica = self.session().replica;
        let origin = Origin::service("fleet".into());
        let begun = self
            .submit(origin, move |state, _| Ok(replica::started(state, replica, env!("CARGO_PKG_VERSION"))));
        let session = begun.await?;
        *self.shared.session.write().unwrap_or_else(PoisonError::into_inner) = session;
        self.bury(session, true).await
    }

    /// Ends this replica's life in order, if it has one.
    ///
    /// # Errors
    /// If the log does not take it; the others find out by themselves then.
    pub async fn end_life(&self) -> Result<(), SubmitError> {
        let session = self.session();
        let origin = Origin::service("fleet".into());
        self.decide(origin, move |state, _| Ok(replica::stopped(state, session, "stopped in order"))).await
    }

    /// Puts agents of lives that are over offline, our own (`own`) or everybody's.
    async fn bury(&self, session: Session, own: bool) -> Result<(), SubmitError> {
        loop {
            let origin = Origin::service("fleet".into());
            let buried = self.submit(origin, move |state, _| {
                let events = replica::orphans(state, session, own);
                let some = !events.is_empty();
                Ok((events, some))
            });
            if !buried.await? {
                return Ok(());
            }
        }
    }

    /// Orders what other replicas decided and did not come to order.
    async fn sweep(&self) {
        // An error: the service is stopping.
        let _ = self.wishes.send(Ask::Sweep).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beat(replica: u8, epoch: u64) -> Beat {
        let gateways = vec![format!("10.0.0.{replica}:7701")];
        Beat { version: 1, replica: ReplicaId([replica; 16]), epoch, gateways }
    }

    fn session(replica: u8, epoch: u64) -> Session {
        Session { replica: ReplicaId([replica; 16]), epoch }
    }

    #[tokio::test(start_paused = true)]
    async fn silence_counts_only_while_we_could_have_heard() {
        let (own, start) = (ReplicaId([1; 16]), Instant::now());
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut presence = Presence::default();
        assert!(!presence.is_silent(session(2, 1), start, at(60_000)), "we hear nothing, not even ourselves");
        assert_eq!(presence.unheard(start, at(3_000)), Duration::from_secs(3));
        for second in 0..=10 {
            presence.hear(own, beat(1, 1), at(second * 1_000));
            if second <= 3 {
                presence.hear(own, beat(2, 1), at(second * 1_000));
            }
        }
        assert_eq!(presence.unheard(start, at(10_500)), Duration::from_millis(500));
        assert!(!presence.is_silent(session(2, 1), start, at(7_900)));
        assert!(presence.is_silent(session(2, 1), start, at(8_000)));
        assert!(!presence.is_silent(session(2, 2), at(5_000), at(9_900)), "a new life has its own time");
        assert!(presence.is_silent(session(3, 1), start, at(7_000)), "never heard");
        // After a gap of our own everybody has the whole time again.
        presence.hear(own, beat(1, 1), at(20_000));
        assert!(!presence.is_silent(session(2, 1), start, at(24_900)));
        presence.hear(own, beat(1, 1), at(22_000));
        presence.hear(own, beat(1, 1), at(24_000));
        assert!(presence.is_silent(session(2, 1), start, at(25_000)));
    }

    #[test]
    fn gateways_are_told_once_each_ours_first() {
        let now = Instant::now();
        let mut presence = Presence::default();
        presence.hear(ReplicaId([9; 16]), beat(3, 1), now);
        presence.hear(ReplicaId([9; 16]), beat(2, 1), now);
        let own = ["10.0.0.9:1".to_owned(), "10.0.0.2:7701".to_owned()];
        assert_eq!(presence.gateways(&own, now), ["10.0.0.9:1", "10.0.0.2:7701", "10.0.0.3:7701"]);
        assert_eq!(presence.gateways(&own, now + GATEWAY_KEPT), own);
    }

    #[test]
    fn what_is_no_beat_is_passed_over() {
        let good = encode(&beat(1, 7));
        assert_eq!(Beat::decode(&good), Some(beat(1, 7)));
        for cut in 0..good.len() {
            assert_eq!(Beat::decode(&good[..cut]), None);
        }
        assert_eq!(Beat::decode(&[good.clone(), vec![0]].concat()), None);
        for bad in [
            Beat { version: 2, ..beat(1, 1) },
            Beat { gateways: vec!["nowhere".into()], ..beat(1, 1) },
            Beat { gateways: vec!["a:1".into(); GATEWAYS_MAX + 1], ..beat(1, 1) },
        ] {
            assert_eq!(Beat::decode(&encode(&bad)), None);
        }
    }
}
