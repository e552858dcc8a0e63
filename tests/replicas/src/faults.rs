//! What is done to replicas and servers: one at a time is killed (`kill -9`) or cut off, stays so for some seconds, and
//! comes back; then everybody has to be well before the next.

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

/// One fault and what it did.
#[derive(Clone, Debug)]
pub struct Fault {
    /// When, from the beginning.
    pub at: Duration,
    /// To what.
    pub kind: Kind,
    /// To which.
    pub nth: usize,
    /// Killed, or cut off.
    pub killed: bool,
    /// Agents that were connected there.
    pub agents: usize,
    /// How long the last of them took to be connected elsewhere, from the fault on; none if one did not within the
    /// fault's time.
    pub slowest: Option<Duration>,
    /// Agents of other replicas that lost their link meanwhile.
    pub others: usize,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.kind == Kind::Server { "server" } else { "replica" };
        let done = if self.killed { "killed" } else { "cut off" };
        write!(f, "{:>6.1} s  {what} {} {done:<7}", self.at.as_secs_f64(), self.nth)?;
        if self.kind == Kind::Replica {
            match self.slowest {
                Some(slowest) => {
                    write!(f, "  {} agents elsewhere after {:.1} s", self.agents, slowest.as_secs_f64())?
                }
                None => write!(f, "  {} agents, NOT ALL elsewhere in time", self.agents)?,
            }
        }
        if self.others > 0 { write!(f, "  {} other links lost", self.others) } else { Ok(()) }
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
    let (nth, killed) = (dice.below(EACH), dice.below(2) == 0);
    let gateway = world.gateway(nth);
    let hit = if kind == Kind::Replica { at_gateway(agents, &gateway) } else { vec![] };
    let hit_ids: Vec<_> = hit.iter().map(|agent| agent.id()).collect();
    let others: Vec<_> = agents.iter().filter(|agent| !hit_ids.contains(&agent.id())).cloned().collect();
    let at = Instant::now();
    {
        let nodes = if kind == Kind::Server { &mut world.servers } else { &mut world.replicas };
        if killed { nodes[nth].kill() } else { nodes[nth].connect(false)? }
    }
    let mut slowest = None;
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
    }
    match (kind, killed) {
        (Kind::Server, true) => world.start_server(nth)?,
        (Kind::Replica, true) => world.start_replica(nth, None)?,
        (Kind::Server, false) => world.servers[nth].connect(true)?,
        (Kind::Replica, false) => world.replicas[nth].connect(true)?,
    }
    for node in world.replicas.iter_mut().chain(&mut world.servers) {
        if node.has_died() {
            bail!("{:?} {} ended by itself:\n{}", node.kind, node.nth, node.last_words());
        }
    }
    let others = lost.iter().filter(|lost| **lost).count();
    Ok(Fault { at: at.duration_since(began), kind, nth, killed, agents: hit.len(), slowest, others })
}

/// Waits until every agent is connected.
///
/// # Errors
/// If one is not, for a minute.
pub fn all_connected(agents: &[Arc<Agent>]) -> Result<()> {
    let end = Instant::now() + WELL;
    loop {
        let down = agents.iter().filter(|agent| matches!(agent.kept().link, Link::Down(_))).count();
        if down == 0 {
            return Ok(());
        }
        if Instant::now() > end {
            bail!("{down} agents are not connected after {WELL:?}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
