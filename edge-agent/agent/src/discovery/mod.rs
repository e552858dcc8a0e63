//! Finding the other agents of a run: through trackers and by multicast on the local network; and finding out which of
//! their addresses work, also through NATs (`tracker/PROTOCOL.md` §6.1).
//!
//! The protocol is in `tracker-proto` (read `tracker/PROTOCOL.md`); here are its sockets and its clock.
//! Left out: the addresses that a command names (the run engine has them), and who a found address
//! really is: that is settled in the µTP2 handshake.
//!
//! What is found is a *hint*, and hints repeat: a member that announces itself again is told again, so
//! the receiver may take each as "tried lately? if not, try now".

mod addresses;
mod driver;
mod lan;
mod lan6;

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use timebase::Instant;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio::time;
use tracker_proto::client::ClientStats;
use tracker_proto::lan::LanStats;
use tracker_proto::probe::ProbeStats;
use tracker_proto::{
    AgentId, Client, ClientConfig, Event, LanAnnouncer, Peer, PeerId, Prober, SwarmId, SwarmKey,
};
use utp2_tokio::{Beside, Endpoint};

pub(crate) use addresses::{FAR, towards as local_ip};

/// Multicast group of the protocol (`PROTOCOL.md` §7).
pub(crate) const LAN_GROUP: Ipv4Addr = Ipv4Addr::new(239, 255, 70, 76);

/// UDP port of the group.
pub(crate) const LAN_PORT: u16 = 17996;

/// Hints that wait for the run engine; more are dropped, as they come again.
const FOUND_WAITING: usize = 256;

/// How long saying farewell may take at shutdown.
const FAREWELL_PATIENCE: Duration = Duration::from_secs(1);

/// What discovery works with.
pub(crate) struct DiscoveryConfig {
    /// Our µTP2 socket's address. If it is a loopback address, multicast stays on the loopback interface.
    pub(crate) listen: SocketAddr,
    /// Further addresses to announce, such as that of a forwarded port. They go first.
    pub(crate) advertise: Vec<SocketAddr>,
    /// Trackers, at most eight.
    pub(crate) trackers: Vec<SocketAddr>,
    /// Multicast on the local network.
    pub(crate) lan: LanConfig,
    /// We forward for others, and say so.
    pub(crate) relay: bool,
    /// The µTP2 socket, to be shared, and what came to it. Without it trackers are asked from sockets of our own, and
    /// nobody is probed.
    pub(crate) socket: Option<(Endpoint, mpsc::Receiver<Beside>)>,
    /// Unpredictable bytes for jitter and transactions.
    pub(crate) seed: [u8; 32],
}

/// Multicast on the local network.
#[derive(Clone, Debug)]
pub(crate) struct LanConfig {
    /// Default: true.
    pub(crate) enabled: bool,
    /// Ignored when the µTP2 socket listens on a loopback address. Default: automatic.
    pub(crate) interfaces: LanInterfaces,
    /// Default: [`LAN_GROUP`].
    pub(crate) group: Ipv4Addr,
    /// Default: [`LAN_PORT`].
    pub(crate) port: u16,
}

/// Interfaces to announce on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LanInterfaces {
    /// Every interface that is up and can multicast, but point-to-point links; and the loopback.
    Auto,
    /// Those with these names, when they are up.
    Named(Vec<String>),
}

impl Default for LanConfig {
    fn default() -> Self {
        Self { enabled: true, interfaces: LanInterfaces::Auto, group: LAN_GROUP, port: LAN_PORT }
    }
}

/// A hint where a member of the swarm can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// Its µTP2 address.
    pub(crate) addr: SocketAddr,
    /// Its pseudonym in the swarm; [`SwarmKey::peer_id`] tells whose.
    pub(crate) peer: PeerId,
    /// How it was found.
    pub(crate) via: Via,
    /// It says that it is a relay.
    pub(crate) relay: bool,
}

/// How a peer was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Via {
    /// A tracker named it.
    Tracker,
    /// It was heard on the local network.
    Lan,
    /// It answered a probe from there: packets pass in both directions right now.
    Probe,
}

/// How discovery is doing.
#[derive(Clone, Debug, Default)]
pub(crate) struct DiscoveryStatus {
    /// The trackers, and whether each is up.
    pub(crate) trackers: Vec<(SocketAddr, bool)>,
    /// Where each tracker last saw us.
    pub(crate) observed: BTreeMap<SocketAddr, SocketAddr>,
    /// Interfaces that multicast works on.
    pub(crate) lan_interfaces: usize,
    /// Those that it works on over IPv6.
    pub(crate) lan_interfaces_v6: usize,
    /// Why multicast does not work at the moment, if it should.
    pub(crate) lan_error: Option<String>,
    /// Swarms that are joined.
    pub(crate) swarms: usize,
    /// Hints dropped as nobody took them.
    pub(crate) hints_dropped: u64,
    /// Tracker client's counters.
    pub(crate) client: ClientStats,
    /// LAN announcer's counters.
    pub(crate) lan: LanStats,
    /// Prober's counters.
    pub(crate) probes: ProbeStats,
}

/// Discovery of one agent: a task with its sockets. Ends when dropped, politely with
/// [`Discovery::shutdown`].
pub(crate) struct Discovery {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

/// What the handle and the task share.
struct Shared {
    state: Mutex<State>,
    /// The task should look at the state.
    wake: Notify,
    started: time::Instant,
}

struct State {
    client: Client,
    lan: LanAnnouncer,
    prober: Prober,
    swarms: BTreeMap<SwarmId, mpsc::Sender<Found>>,
    stopping: bool,
    /// The parts that the machines don't know themselves.
    status: DiscoveryStatus,
}

impl Discovery {
    /// Opens the sockets and starts the task. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When no UDP socket can be had. Trouble with multicast is no error: it is tried again every few
    /// seconds and shown by [`Discovery::status`].
    pub(crate) fn start(config: DiscoveryConfig) -> io::Result<Self> {
        let wall_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64);
        let mut client = Client::new(ClientConfig::new(config.seed, wall_ms));
        client.set_trackers(Instant::ZERO, &config.trackers);
        client.set_relay(config.relay);
        // Generators from one seed must not give the same numbers.
        let (mut lan_seed, mut probe_seed) = (config.seed, config.seed);
        lan_seed[0] ^= 0xff;
        probe_seed[0] ^= 0x55;
        let mut lan = LanAnnouncer::new(lan_seed, wall_ms);
        lan.set_relay(config.relay);
        let state = State {
            client,
            lan,
            prober: Prober::new(probe_seed),
            swarms: BTreeMap::new(),
            stopping: false,
            status: DiscoveryStatus::default(),
        };
        let shared =
            Arc::new(Shared { state: Mutex::new(state), wake: Notify::new(), started: time::Instant::now() });
        let driver = driver::Driver::new(config, Arc::clone(&shared))?;
        Ok(Self { shared, task: tokio::spawn(driver.run()) })
    }

    /// Joins a swarm as agent `me` and announces it at once. The receiver gets hints until the swarm is
    /// left or joined again; dropping it leaves the swarm within seconds.
    ///
    /// In more than a thousand swarms at a time, the receiver of the next one is closed from the start.
    pub(crate) fn join(&self, key: SwarmKey, me: AgentId) -> mpsc::Receiver<Found> {
        let (sender, receiver) = mpsc::channel(FOUND_WAITING);
        let now = self.shared.now();
        let mut state = self.shared.lock();
        let swarm = key.swarm();
        if state.client.join(now, key.clone(), &me) {
            state.prober.join(key.clone(), &me);
            state.lan.join(now, key, &me);
            state.swarms.insert(swarm, sender);
        }
        self.shared.wake.notify_one();
        receiver
    }

    /// Calls a member through the trackers and probes it at these addresses, so that NATs on both sides open. A hint
    /// [`Via::Probe`] follows if one works. Returns how many trackers are asked.
    pub(crate) fn call(&self, swarm: SwarmId, peer: PeerId, addrs: &[SocketAddr]) -> usize {
        let mut state = self.shared.lock();
        let asked = state.client.call(swarm, peer);
        state.prober.probe(self.shared.now(), swarm, peer, addrs);
        self.shared.wake.notify_one();
        asked
    }

    /// Probes a member at addresses that somebody told. A hint [`Via::Probe`] follows if one works.
    pub(crate) fn probe(&self, swarm: SwarmId, peer: PeerId, addrs: &[SocketAddr]) {
        self.shared.lock().prober.probe(self.shared.now(), swarm, peer, addrs);
        self.shared.wake.notify_one();
    }

    /// Probes a member no more: it is connected.
    pub(crate) fn stop_probing(&self, swarm: SwarmId, peer: PeerId) {
        self.shared.lock().prober.stop(swarm, peer);
    }

    /// Leaves a swarm and tells the others. Nothing happens if it is not joined.
    pub(crate) fn leave(&self, swarm: SwarmId) {
        self.shared.lock().leave(self.shared.now(), swarm);
        self.shared.wake.notify_one();
    }

    /// Replaces the trackers. Those that stay keep their state.
    pub(crate) fn set_trackers(&self, trackers: &[SocketAddr]) {
        let mut state = self.shared.lock();
        state.client.set_trackers(self.shared.now(), trackers);
        state.status.observed.retain(|tracker, _| trackers.contains(tracker));
        self.shared.wake.notify_one();
    }

    /// How discovery is doing.
    pub(crate) fn status(&self) -> DiscoveryStatus {
        let state = self.shared.lock();
        DiscoveryStatus {
            trackers: state.client.trackers().collect(),
            swarms: state.swarms.len(),
            client: state.client.stats(),
            lan: state.lan.stats(),
            probes: state.prober.stats(),
            ..state.status.clone()
        }
    }

    /// Leaves all swarms, tells the others once, and ends.
    pub(crate) async fn shutdown(mut self) {
        {
            let now = self.shared.now();
            let mut state = self.shared.lock();
            let swarms: Vec<_> = state.swarms.keys().copied().collect();
            swarms.into_iter().for_each(|s| state.leave(now, s));
            state.stopping = true;
        }
        self.shared.wake.notify_one();
        // Late or not, the task is gone after this: dropping the handle ends it.
        let _ = time::timeout(FAREWELL_PATIENCE, &mut self.task).await;
    }
}

impl Drop for Discovery {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    fn now(&self) -> Instant {
        Instant::from_micros(self.started.elapsed().as_micros() as u64)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is sound after a panic elsewhere: nothing is left half done by its methods.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn leave(&mut self, now: Instant, swarm: SwarmId) {
        self.swarms.remove(&swarm);
        self.prober.leave(swarm);
        self.client.leave(now, swarm);
        self.lan.leave(swarm);
    }

    /// Hands out what the machines have found.
    fn deliver(&mut self, now: Instant) {
        while let Some(event) = self.client.poll_event() {
            match event {
                Event::Peers { swarm, peers, .. } => {
                    peers.iter().for_each(|p| self.hint(swarm, p, Via::Tracker));
                }
                Event::Observed { tracker, addr } => {
                    self.status.observed.insert(tracker, addr);
                }
                // What it wants is packets from us; µTP2 waits until some of its own have come.
                Event::Ring { swarm, peer, .. } => self.prober.probe(now, swarm, peer.id, &peer.addrs),
                // Shown by the client's own list.
                Event::TrackerUp { .. } | Event::TrackerDown { .. } => {}
            }
        }
        while let Some((swarm, peer)) = self.lan.poll_event() {
            self.hint(swarm, &peer, Via::Lan);
        }
        while let Some(reached) = self.prober.poll_event() {
            let Some(sender) = self.swarms.get(&reached.swarm) else { continue };
            let found = Found { addr: reached.addr, peer: reached.peer, via: Via::Probe, relay: false };
            self.status.hints_dropped += u64::from(sender.try_send(found).is_err());
        }
        self.leave_abandoned(now);
    }

    fn hint(&mut self, swarm: SwarmId, peer: &Peer, via: Via) {
        let Some(sender) = self.swarms.get(&swarm) else { return };
        for &addr in &peer.addrs {
            let sent = sender.try_send(Found { addr, peer: peer.id, via, relay: peer.relay });
            self.status.hints_dropped += u64::from(sent.is_err());
        }
    }

    /// Leaves swarms whose receiver is gone.
    fn leave_abandoned(&mut self, now: Instant) {
        let abandoned: Vec<_> =
            self.swarms.iter().filter(|(_, s)| s.is_closed()).map(|(id, _)| *id).collect();
        abandoned.into_iter().for_each(|id| self.leave(now, id));
    }
}

#[cfg(test)]
mod tests;
