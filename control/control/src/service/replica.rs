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
use control_core::schema;
use event_log::BoxFuture;
use event_schema::{ReplicaId, decode_exact, encode, level};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::writer::Ask;
use super::{Origin, Ousted, Service, SubmitError, now};

/// How often a replica says that it lives.
const BEAT: Duration = Duration::from_secs(1);

/// Without its own beat for so long a replica asks its bus for another way.
const RENEW: Duration = Duration::from_millis(2_500);

/// Without its own beat for so long a replica is cut off from the others: it sends its agents away. Below
/// [`SILENT`], so that it knows before the others give it up.
const CUT_OFF: Duration = Duration::from_millis(4_000);

/// Without a beat of any of the others for so long a replica asks its bus for another way, although it hears itself: a
/// server that is cut off from its cluster passes its own clients' messages on.
const RENEW_ALONE: Duration = Duration::from_millis(3_500);

/// Without a beat for so long a replica is given up by the lease's holder, and a holder loses the lease.
const SILENT: Duration = Duration::from_secs(5);

/// How often the holder looks after things.
const DUTY: Duration = Duration::from_millis(500);

/// How long a replica that was given up listens before it begins anew: whether it is there twice.
const LISTEN_FIRST: Duration = Duration::from_millis(2_500);

/// How long a replica keeps still after it heard another process that has its name and a newer life.
const NAMESAKE_KEPT: Duration = Duration::from_secs(15);

/// A replica of an older program that was given up, and did not stop in order, has so long to come back before the
/// log's schema level is raised to what it does not read.
const LEVEL_GRACE: Duration = Duration::from_secs(600);

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
    /// When another process was heard that has our name and a newer life.
    namesake: Option<Instant>,
    others: BTreeMap<ReplicaId, Heard>,
}

#[derive(Debug)]
struct Heard {
    epoch: u64,
    at: Instant,
    gateways: Vec<String>,
}

impl Presence {
    fn hear(&mut self, own: Session, beat: Beat, now: Instant) {
        if beat.replica == own.replica {
            if beat.epoch > own.epoch {
                self.namesake = Some(now);
            }
            if beat.epoch != own.epoch {
                return;
            }
            let since = match self.own {
                Some((last, since)) if now.duration_since(last) < CUT_OFF => since,
                _ => now,
            };
            self.own = Some((now, since));
        } else {
            if self.others.len() >= REPLICAS_MAX && !self.others.contains_key(&beat.replica) {
                // Replicas come and go with new names; one that speaks is worth more than one that does not.
                let oldest = self.others.iter().min_by_key(|(_, heard)| heard.at);
                let silent = oldest.filter(|(_, heard)| now.duration_since(heard.at) >= SILENT);
                let Some(silent) = silent.map(|(replica, _)| *replica) else { return };
                self.others.remove(&silent);
            }
            let heard = Heard { epoch: beat.epoch, at: now, gateways: beat.gateways };
            self.others.insert(beat.replica, heard);
        }
    }

    /// How long nothing of ours has come back.
    fn unheard(&self, started: Instant, now: Instant) -> Duration {
        now.duration_since(self.own.map_or(started, |(last, _)| last))
    }

    /// Whether another process has our name.
    fn has_namesake(&self, now: Instant) -> bool {
        self.namesake.is_some_and(|heard| now.duration_since(heard) < NAMESAKE_KEPT)
    }

    /// How long all of these have said nothing; none if there is one that never did, or nobody at all.
    fn all_unheard(&self, others: &[ReplicaId], now: Instant) -> Option<Duration> {
        let heard = others.iter().map(|replica| self.others.get(replica).map(|heard| heard.at));
        let last = heard.collect::<Option<Vec<Instant>>>()?.into_iter().max()?;
        Some(now.duration_since(last))
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
        let mut tasks = JoinSet::new();
        let heard = bus.listen().await;
        let started = Instant::now();
        tasks.spawn(listen(service.clone(), Arc::clone(&presence), heard));
        tasks.spawn(beat(service.clone(), Arc::clone(&presence), bus, gateways.clone()));
        tasks.spawn(watch_over(service.clone(), Arc::clone(&presence), gateways, started));
        let duties = Duties { service, presence, started, seen: HashMap::new(), given_up: None };
        tasks.spawn(duties.run());
        Self { tasks }
    }

    /// Stops, and lets the service go.
    pub async fn stop(mut self) {
        self.tasks.shutdown().await;
    }
}

async fn listen(service: Service, presence: Arc<Mutex<Presence>>, mut heard: mpsc::Receiver<Vec<u8>>) {
    while let Some(message) = heard.recv().await {
        match Beat::decode(&message) {
            Some(beat) => lock(&presence).hear(service.session(), beat, Instant::now()),
            None => tracing::debug!(bytes = message.len(), "no beat of a replica"),
        }
    }
}

async fn beat(service: Service, presence: Arc<Mutex<Presence>>, bus: Arc<dyn Bus>, gateways: Vec<String>) {
    let (mut quiet_since, mut alone_since) = (Instant::now(), Instant::now());
    let mut ticks = interval(BEAT);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if service.trouble().is_some() {
            // The others are to give this one up, and its agents and the lease with it.
            continue;
        }
        let Session { replica, epoch } = service.session();
        let beat = Beat { version: 1, replica, epoch, gateways: gateways.clone() };
        bus.send(encode(&beat)).await;
        let now = Instant::now();
        if lock(&presence).unheard(quiet_since, now).min(now.duration_since(quiet_since)) >= RENEW {
            // Once; then it has as long again.
            quiet_since = now;
            bus.renew().await;
            continue;
        }
        let others: Vec<ReplicaId> =
            service.live_sessions().map(|s| s.replica).filter(|r| *r != replica).collect();
        let alone = lock(&presence).all_unheard(&others, now).unwrap_or_default();
        if alone.min(now.duration_since(alone_since)) >= RENEW_ALONE {
            alone_since = now;
            tracing::warn!("no other replica is heard: another way to the servers is looked for");
            bus.renew().await;
        }
    }
}

/// Sees whether this replica may serve agents, beside its duties: those wait for the log, which may not answer just
/// when this matters.
async fn watch_over(
    service: Service,
    presence: Arc<Mutex<Presence>>,
    gateways: Vec<String>,
    started: Instant,
) {
    let mut ticks = interval(DUTY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let now = Instant::now();
        let (cut_off, gateways, alone, namesake) = {
            let presence = lock(&presence);
            let cut_off = presence.unheard(started, now) >= CUT_OFF;
            (
                cut_off,
                presence.gateways(&gateways, now),
                presence.others.is_empty(),
                presence.has_namesake(now),
            )
        };
        let same_name = || {
            format!(
                "another process is replica {} too: a data folder was copied. Stop one of the two, and remove the file \
                 replica-id in its data folder before it starts again",
                service.session().replica
            )
        };
        service.shared.set_trouble(|trouble| &mut trouble.name, namesake.then(same_name));
        service.tell_gateways(gateways);
        // Agents of the only replica have nowhere to go.
        let serve = (!cut_off || alone) && service.trouble().is_none();
        if service.set_serving(serve) != serve {
            if serve {
                tracing::info!("agents are served again");
            } else {
                tracing::warn!("cut off from the other replicas, or in trouble: agents are sent to them");
                service.oust(Ousted::All);
            }
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
    started: Instant,
    /// Since when the log has shown a life, for those that were never heard.
    seen: HashMap<Session, Instant>,
    /// Our life that the others gave up, and when that was seen.
    given_up: Option<(Session, Instant)>,
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
        if lock(&self.presence).unheard(self.started, now) >= CUT_OFF || self.service.trouble().is_some() {
            return Ok(());
        }
        let me = self.service.session();
        let (live, lease, term, dead) = {
            let views = self.service.views();
            let known = &views.replicas;
            (
                known.live().collect::<Vec<Session>>(),
                known.lease(),
                known.lease.map_or(0, |lease| lease.term),
                !known.is_live(me),
            )
        };
        if dead {
            let since = match self.given_up {
                Some((session, since)) if session == me => since,
                _ => {
                    tracing::warn!("the other replicas gave this one up: it begins anew");
                    self.service.oust(Ousted::All);
                    self.given_up = Some((me, now));
                    now
                }
            };
            // Another process of this name would have to be heard by then, and two of them would end each other for ever.
            if now.duration_since(since) < LISTEN_FIRST {
                return Ok(());
            }
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
        self.service.raise_schema(me).await?;
        self.service.sweep().await;
        Ok(())
    }
}

impl Service {
    /// The life of this replica that goes on; [`Session::ALONE`] on a log of its own.
    pub fn session(&self) -> Session {
        *self.shared.session.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replicas that live as far as the log knows.
    fn live_sessions(&self) -> std::vec::IntoIter<Session> {
        self.views().replicas.live().collect::<Vec<Session>>().into_iter()
    }

    /// Begins a life of this replica: its earlier ones end, with the sessions they had.
    pub(super) async fn begin_life(&self) -> Result<(), SubmitError> {
        let replica = self.session().replica;
        let origin = Origin::service("fleet".into());
        let own = self.shared.schema;
        let version = level::in_version(env!("CARGO_PKG_VERSION"), own);
        let wait = self.may_come_back_older();
        let begun = self.submit(origin, move |state, now| {
            let (mut events, session) = replica::started(state, replica, &version, now);
            if !wait {
                events.extend(schema::raise_at_start(state, replica, own));
            }
            Ok((events, session))
        });
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
        self.decide(origin, move |state, _| Ok(replica::stopped(state, session, replica::STOPPED_IN_ORDER)))
            .await
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

    /// Whether another replica, of an older program, may only be away for a moment. Once the level is raised there is no
    /// way back for it.
    fn may_come_back_older(&self) -> bool {
        let now = now();
        let grace = u64::try_from(LEVEL_GRACE.as_millis()).unwrap_or(u64::MAX);
        let me = self.session().replica;
        let mut replicas = self.views().replicas.clone();
        replicas.replicas.remove(&me);
        replicas.may_come_back_older(self.shared.schema, now, grace)
    }

    /// Raises the log's schema level if every living replica reads a higher one, and none of an older program was given
    /// up a short while ago.
    async fn raise_schema(&self, holder: Session) -> Result<(), SubmitError> {
        let own = self.shared.schema;
        if self.views().level() >= own || self.may_come_back_older() {
            return Ok(());
        }
        let origin = Origin::service("fleet".into());
        self.decide(origin, move |state, _| Ok(schema::raise(state, holder, own))).await
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
        let (own, start) = (session(1, 1), Instant::now());
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
    fn whoever_speaks_is_heard_however_many_fell_silent() {
        let (own, start) = (session(1, 3), Instant::now());
        let mut presence = Presence::default();
        for n in 0..200 {
            presence.hear(own, beat(n + 2, 1), start + SILENT * u32::from(n));
        }
        assert!(presence.others.len() <= REPLICAS_MAX);
        assert!(presence.others.contains_key(&ReplicaId([201; 16])));
        let now = start + SILENT * 199;
        // Of many that speak at once the first are heard.
        let mut presence = Presence::default();
        (2..=201).for_each(|n| presence.hear(own, beat(n, 1), now));
        assert!(presence.others.contains_key(&ReplicaId([2; 16])) && presence.others.len() == REPLICAS_MAX);
        assert_eq!(presence.all_unheard(&[], now), None);
        assert_eq!(presence.all_unheard(&[ReplicaId([2; 16]), ReplicaId([201; 16])], now), None);
        let both = [ReplicaId([2; 16]), ReplicaId([3; 16])];
        presence.hear(own, beat(2, 1), now + BEAT);
        assert_eq!(presence.all_unheard(&both, now + BEAT * 3), Some(BEAT * 2));
    }

    #[test]
    fn only_a_newer_life_of_ours_is_a_namesake() {
        let (own, now) = (session(1, 3), Instant::now());
        let mut presence = Presence::default();
        presence.hear(own, beat(1, 2), now);
        assert!(presence.own.is_none() && !presence.has_namesake(now), "what we said in the life before");
        presence.hear(own, beat(1, 3), now);
        assert!(presence.own.is_some() && !presence.has_namesake(now));
        presence.hear(own, beat(1, 4), now);
        assert!(presence.has_namesake(now) && !presence.has_namesake(now + NAMESAKE_KEPT));
    }

    #[test]
    fn gateways_are_told_once_each_ours_first() {
        let now = Instant::now();
        let mut presence = Presence::default();
        presence.hear(session(9, 1), beat(3, 1), now);
        presence.hear(session(9, 1), beat(2, 1), now);
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
