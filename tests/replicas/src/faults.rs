//! What is done to replicas and servers: one at a time is killed (`kill -9`), cut off from everybody or from the servers
//! alone, stays so for some seconds, and comes back; then everybody has to be well before the next.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::Dice;
use crate::agent::{Agent, Link};
use crate::world::{EACH, Kind, World};

/// How long a fault lasts.
const LASTS: Duration = Duration::from_secs(14);

/// How long agents may take to be connected after a replica is gone.
pub const LIMIT: Duration = Duration::from_secs(10);

/// How long everything may take to be well after a fault is over.
const WELL: Duration = Duration::from_secs(60);

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// `kill -9`.
    Killed,
    /// Its cable is taken out.
    CutOff,
    /// It reaches no server any more, and others as before: a replica keeps its agents and clients, a server its
    /// clients.
    Parted,
}

/// One fault and what it did.
#[derive(Clone, Debug)]
pub struct Fault {
    /// When, from the beginning.
    pub at: Duration,
    /// To what.
    pub kind: Kind,
    /// To which.
    pub nth: usize,
    /// In which way.
    pub how: How,
    /// Agents that were connected there.
    pub agents: usize,
    /// How long the last of them took to be connected elsewhere, from the fault on; none if one did not within the
    /// fault's time.
    pub slowest: Option<Duration>,
    /// Agents of other replicas that lost their link meanwhile.
    pub others: usize,
    /// The longest time that one of all agents knew itself unconnected, until all were connected again.
    pub longest: Duration,
}

impl Fault {
    /// How long it took until the last agent was connected again; none if that took too long to wait for.
    pub fn back(&self) -> Option<Duration> {
        match self.kind {
            Kind::Server => Some(self.longest),
            Kind::Replica => self.slowest.map(|slowest| slowest.max(self.longest)),
        }
    }
}

/// The longest time that an agent has been without a link up to now, and how many are.
fn away(agents: &[Arc<Agent>]) -> (Duration, usize) {
    let since = agents.iter().filter_map(|agent| match agent.kept().link {
        Link::Down(since) => Some(since.elapsed()),
        Link::Up(..) => None,
    });
    since.fold((Duration::ZERO, 0), |(longest, count), time| (longest.max(time), count + 1))
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.kind == Kind::Server { "server" } else { "replica" };
        let done = match self.how {
            How::Killed => "killed",
            How::CutOff => "cut off",
            How::Parted => "cut off from the servers alone",
        };
        write!(f, "{:>6.1} s  {what} {} {done:<30}", self.at.as_secs_f64(), self.nth)?;
        if self.kind == Kind::Replica {
            match self.slowest {
                Some(slowest) => {
                    write!(f, "  {} agents elsewhere after {:.1} s", self.agents, slowest.as_secs_f64())?
                }
                None => write!(f, "  {} agents, NOT ALL elsewhere in time", self.agents)?,
            }
        }
        if self.others > 0 {
            write!(f, "  {} other links lost", self.others)?;
        }
        if self.longest.is_zero() {
            Ok(())
        } else {
            write!(f, "  nobody unconnected for more than {:.1} s", self.longest.as_secs_f64())
        }
    }
}

fn at_gateway(agents: &[Arc<Agent>], gateway: &str) -> Vec<Arc<Agent>> {
    let is = |agent: &&Arc<Agent>| matches!(&agent.kept().link, Link::Up(at, _) if at == gateway);
    agents.iter().filter(is).cloned().collect()
}

/// Does one fault and mends it.
///
/// # Errors
/// If something does not come back.
pub fn inflict(world: &mut World, agents: &[Arc<Agent>], dice: &mut Dice, began: Instant) -> Result<Fault> {
    let kind = if dice.below(2) == 0 { Kind::Server } else { Kind::Replica };
    let nth = dice.below(EACH);
    let how = [How::Killed, How::CutOff, How::Parted][dice.below(3)];
    let gateway = world.gateway(nth);
    let hit = if kind == Kind::Replica { at_gateway(agents, &gateway) } else { vec![] };
    let hit_ids: Vec<_> = hit.iter().map(|agent| agent.id()).collect();
    let others: Vec<_> = agents.iter().filter(|agent| !hit_ids.contains(&agent.id())).cloned().collect();
    let at = Instant::now();
    match how {
        How::Killed => world.node(kind, nth).kill(),
        How::CutOff => world.node(kind, nth).connect(false)?,
        How::Parted => world.part_from_servers(kind, nth, true)?,
    }
    let (mut slowest, mut longest) = (None, Duration::ZERO);
    let mut lost = vec![false; others.len()];
    while at.elapsed() < LASTS {
        std::thread::sleep(Duration::from_millis(20));
        if slowest.is_none() {
            let elsewhere = |agent: &Arc<Agent>| matches!(&agent.kept().link, Link::Up(at_gateway, since) if *since > at && *at_gateway != gateway);
            slowest = hit.iter().all(elsewhere).then(|| at.elapsed());
        }
        for (lost, agent) in lost.iter_mut().zip(&others) {
            *lost |= !matches!(&agent.kept().link, Link::Up(_, since) if *since < at);
        }
        longest = longest.max(away(agents).0);
    }
    match (how, kind) {
        (How::Killed, Kind::Server) => world.start_server(nth)?,
        (How::Killed, Kind::Replica) => world.start_replica(nth, None)?,
        (How::CutOff, _) => world.node(kind, nth).connect(true)?,
        (How::Parted, _) => world.part_from_servers(kind, nth, false)?,
    }
    for node in world.replicas.iter_mut().chain(&mut world.servers) {
        if node.has_died() {
            bail!("{:?} {} ended by itself:\n{}", node.kind, node.nth, node.last_words());
        }
    }
    let longest = longest.max(all_connected(agents)?);
    let others = lost.iter().filter(|lost| **lost).count();
    Ok(Fault { at: at.duration_since(began), kind, nth, how, agents: hit.len(), slowest, others, longest })
}

/// Waits until every agent is connected, and returns the longest that one of them was not.
///
/// # Errors
/// If one is not, for a minute.
pub fn all_connected(agents: &[Arc<Agent>]) -> Result<Duration> {
    let (end, mut longest) = (Instant::now() + WELL, Duration::ZERO);
    loop {
        let (time, down) = away(agents);
        longest = longest.max(time);
        if down == 0 {
            return Ok(longest);
        }
        if Instant::now() > end {
            bail!("{down} agents are not connected after {WELL:?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
