//! Who is where: the server's table of entries, bounded in every direction, with expiry by a time that is
//! told (`PROTOCOL.md` §4).
//!
//! Left out: messages and cookies ([`crate::server`]). Whoever calls [`Registry::announce`] has checked
//! that the source is real.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use rand_core::Rng;
use timebase::Instant;
use tracker_proto::limits::PEERS_PER_REPLY;
use tracker_proto::{Entry, ListedPeer, PeerId, SwarmId};

use crate::limits::Limits;

/// There is no room for another entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full;

pub(crate) struct Registry {
    limits: Limits,
    swarms: BTreeMap<SwarmId, Swarm>,
    /// Every entry by the time it ends.
    ends: BTreeSet<(Instant, SwarmId, SocketAddr)>,
    /// Entries per source; no zeros.
    per_source: BTreeMap<IpAddr, usize>,
}

/// Peers in a list, so that a random one is found at once; `places` says who is where in it.
#[derive(Default)]
struct Swarm {
    peers: Vec<Stored>,
    places: BTreeMap<SocketAddr, usize>,
}

struct Stored {
    listed: ListedPeer,
    end: Instant,
}

/// What counts as one source: an IPv4 address, or the IPv6 /64 that a host can choose addresses from.
pub(crate) fn source_of(addr: SocketAddr) -> IpAddr {
    match addr.ip().to_canonical() {
        IpAddr::V4(ip) => IpAddr::V4(ip),
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() & (!0 << 64))),
    }
}

impl Registry {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { limits, swarms: BTreeMap::new(), ends: BTreeSet::new(), per_source: BTreeMap::new() }
    }

    /// Lists an entry, or replaces the one from the same address. What is listed stays listed when there
    /// is no room for more: a flood can't push anybody out.
    pub(crate) fn announce(
        &mut self,
        now: Instant,
        swarm: SwarmId,
        from: SocketAddr,
        entry: Entry,
    ) -> Result<(), Full> {
        let end = now + self.limits.entry_life();
        if let Some(stored) = self.swarms.get_mut(&swarm).and_then(|s| s.stored_mut(from)) {
            self.ends.remove(&(stored.end, swarm, from));
            *stored = Stored { listed: ListedPeer { observed: from, entry }, end };
        } else {
            self.room_for(swarm, from)?;
            *self.per_source.entry(source_of(from)).or_default() += 1;
            let state = self.swarms.entry(swarm).or_default();
            state.places.insert(from, state.peers.len());
            state.peers.push(Stored { listed: ListedPeer { observed: from, entry }, end });
        }
        self.ends.insert((end, swarm, from));
        Ok(())
    }

    /// Removes what was listed from this address, if anything.
    pub(crate) fn remove(&mut self, swarm: SwarmId, from: SocketAddr) {
        let Some(state) = self.swarms.get_mut(&swarm) else { return };
        let Some(stored) = state.remove(from) else { return };
        if state.peers.is_empty() {
            self.swarms.remove(&swarm);
        }
        self.ends.remove(&(stored.end, swarm, from));
        let source = source_of(from);
        let count = self.per_source.get_mut(&source).expect("every entry is counted");
        *count -= 1;
        if *count == 0 {
            self.per_source.remove(&source);
        }
    }

    /// Removes entries whose time is over; returns how many.
    pub(crate) fn expire(&mut self, now: Instant) -> u64 {
        let mut expired = 0;
        while let Some(&(end, swarm, from)) = self.ends.first()
            && end <= now
        {
            self.remove(swarm, from);
            expired += 1;
        }
        expired
    }

    /// When the next entry ends.
    pub(crate) fn next_end(&self) -> Option<Instant> {
        self.ends.first().map(|e| e.0)
    }

    /// Peers of a swarm for `asker`, in `room` bytes: all if they fit, else chosen at random, so that
    /// everybody is named equally often and the members form a well mixed graph.
    pub(crate) fn sample(
        &self,
        swarm: SwarmId,
        asker: SocketAddr,
        mut room: usize,
        rng: &mut impl Rng,
    ) -> Vec<ListedPeer> {
        let mut picked = Vec::new();
        let Some(state) = self.swarms.get(&swarm) else { return picked };
        let others = Shuffled::new(state.peers.len()).map_with(rng, |i| &state.peers[i].listed);
        for peer in others.into_iter().filter(|p| p.observed != asker) {
            if picked.len() < PEERS_PER_REPLY && peer.encoded_len() <= room {
                room -= peer.encoded_len();
                picked.push(peer.clone());
            }
        }
        picked
    }

    /// Where an agent is listed, at most `most` places that are not `caller`: looked for from a random one on, so that
    /// those who list themselves under its name do not always come first.
    pub(crate) fn places_of(
        &self,
        swarm: SwarmId,
        peer: PeerId,
        caller: SocketAddr,
        most: usize,
        rng: &mut impl Rng,
    ) -> Vec<SocketAddr> {
        let Some(state) = self.swarms.get(&swarm).filter(|s| !s.peers.is_empty()) else { return Vec::new() };
        let (before, after) = state.peers.split_at(rng.next_u64() as usize % state.peers.len());
        let listed = after.iter().chain(before).map(|s| &s.listed);
        let places = listed.filter(|l| l.entry.peer() == peer && l.observed != caller).map(|l| l.observed);
        places.take(most).collect()
    }

    pub(crate) fn swarms(&self) -> usize {
        self.swarms.len()
    }

    pub(crate) fn entries(&self) -> usize {
        self.ends.len()
    }

    fn room_for(&self, swarm: SwarmId, from: SocketAddr) -> Result<(), Full> {
        let in_swarm = self.swarms.get(&swarm).map_or(0, |s| s.peers.len());
        let from_source = self.per_source.get(&source_of(from)).copied().unwrap_or(0);
        let room = self.entries() < self.limits.max_entries
            && from_source < self.limits.max_entries_per_source
            && in_swarm < self.limits.max_peers_per_swarm
            && (in_swarm > 0 || self.swarms() < self.limits.max_swarms);
        if room { Ok(()) } else { Err(Full) }
    }
}

impl Swarm {
    fn stored_mut(&mut self, from: SocketAddr) -> Option<&mut Stored> {
        self.places.get(&from).map(|i| &mut self.peers[*i])
    }

    fn remove(&mut self, from: SocketAddr) -> Option<Stored> {
        let place = self.places.remove(&from)?;
        let stored = self.peers.swap_remove(place);
        if let Some(moved) = self.peers.get(place) {
            self.places.insert(moved.listed.observed, place);
        }
        Some(stored)
    }
}

/// The first draws of a random permutation of `0..len`, without writing the whole of it down.
struct Shuffled {
    len: usize,
    swapped: BTreeMap<usize, usize>,
}

impl Shuffled {
    /// Enough to fill an answer though the asker and some large entries are passed over.
    const DRAWS: usize = 2 * PEERS_PER_REPLY;

    fn new(len: usize) -> Self {
        Self { len, swapped: BTreeMap::new() }
    }

    fn map_with<T>(mut self, rng: &mut impl Rng, pick: impl Fn(usize) -> T) -> Vec<T> {
        let draw = |i: usize| {
            let j = i + (rng.next_u64() % (self.len - i) as u64) as usize;
            let drawn = self.swapped.get(&j).copied().unwrap_or(j);
            let first = self.swapped.get(&i).copied().unwrap_or(i);
            self.swapped.insert(j, first);
            pick(drawn)
        };
        (0..self.len.min(Self::DRAWS)).map(draw).collect()
    }
}

#[cfg(test)]
mod tests;
