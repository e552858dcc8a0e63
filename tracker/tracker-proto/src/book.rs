//! Which announcements to believe (`PROTOCOL.md` §6): right MAC, not oneself, not older than what is
//! known. One book per swarm and channel.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::net::SocketAddr;

use timebase::Instant;

use crate::entry::{Entry, dialable};
use crate::key::{PeerId, SwarmKey};
use crate::limits::{REMEMBER, REMEMBERED_PEERS};

/// Another member of a swarm and where to dial it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its pseudonym; [`SwarmKey::peer_id`] tells whose.
    pub id: PeerId,
    /// Its announcement's sequence.
    pub sequence: u64,
    /// Addresses to try, best first, each once. May be empty.
    pub addrs: Vec<SocketAddr>,
    /// It says that it is a relay.
    pub relay: bool,
}

/// Why an entry was not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Not made by a member of this swarm.
    Forged,
    /// Our own.
    Own,
    /// We know a newer one.
    Stale,
}

#[derive(Debug)]
struct Known {
    sequence: u64,
    heard: Instant,
    /// Sequence of its last ring.
    rung: u64,
}

#[derive(Debug, Default)]
pub(crate) struct PeerBook {
    known: BTreeMap<PeerId, Known>,
}

impl PeerBook {
    /// Checks an entry that came with `observed`. `on_loopback`: we are seen on loopback ourselves, so
    /// that loopback addresses mean this very machine.
    pub(crate) fn accept(
        &mut self,
        now: Instant,
        key: &SwarmKey,
        me: PeerId,
        entry: &Entry,
        observed: SocketAddr,
        on_loopback: bool,
    ) -> Result<Peer, Refusal> {
        if !entry.verify(key) {
            return Err(Refusal::Forged);
        }
        if entry.peer() == me {
            return Err(Refusal::Own);
        }
        match self.known.get_mut(&entry.peer()) {
            Some(k) if k.sequence > entry.sequence() && now - k.heard < REMEMBER => {
                return Err(Refusal::Stale);
            }
            // Hearing the same entry again from a tracker's table is no news of its author.
            Some(k) if k.sequence == entry.sequence() => {}
            Some(k) => {
                // Its clock was set back: its rings begin anew as well.
                k.rung = if entry.sequence() < k.sequence { 0 } else { k.rung };
                (k.sequence, k.heard) = (entry.sequence(), now);
            }
            None => {
                self.make_room();
                self.known.insert(entry.peer(), Known { sequence: entry.sequence(), heard: now, rung: 0 });
            }
        }
        Ok(Peer {
            id: entry.peer(),
            sequence: entry.sequence(),
            addrs: addresses(entry, observed, on_loopback),
            relay: entry.flags().relay,
        })
    }

    /// As [`PeerBook::accept`] for an entry that came with a ring: each rings once, however often it is repeated
    /// (`PROTOCOL.md` §6.4).
    pub(crate) fn accept_ring(
        &mut self,
        now: Instant,
        key: &SwarmKey,
        me: PeerId,
        entry: &Entry,
        observed: SocketAddr,
    ) -> Result<Peer, Refusal> {
        let peer = self.accept(now, key, me, entry, observed, observed.ip().is_loopback())?;
        let known = self.known.get_mut(&peer.id).ok_or(Refusal::Stale)?;
        if entry.sequence() <= known.rung {
            return Err(Refusal::Stale);
        }
        known.rung = entry.sequence();
        Ok(peer)
    }

    fn make_room(&mut self) {
        if self.known.len() >= REMEMBERED_PEERS {
            let oldest = self.known.iter().min_by_key(|(_, k)| k.heard).map(|(id, _)| *id);
            oldest.and_then(|id| self.known.remove(&id));
        }
    }
}

fn addresses(entry: &Entry, observed: SocketAddr, on_loopback: bool) -> Vec<SocketAddr> {
    let stated = entry.addresses().iter().map(|a| a.resolve(observed));
    let seen = entry.flags().observed_usable.then_some(observed);
    let mut addrs: Vec<SocketAddr> = Vec::new();
    for addr in stated.chain(seen).filter_map(dialable) {
        if (on_loopback || !addr.ip().is_loopback()) && !addrs.contains(&addr) {
            addrs.push(addr);
        }
    }
    addrs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::{Address, EntryFlags};
    use core::time::Duration;

    const OBSERVED: &str = "192.0.2.1:999";

    fn key() -> SwarmKey {
        SwarmKey::from_run_secret(&[7; 32])
    }

    fn entry(peer: u16, sequence: u64, addresses: &[&str]) -> Entry {
        let mut id = [0; 16];
        id[..2].copy_from_slice(&peer.to_be_bytes());
        let addresses: Vec<_> =
            addresses.iter().filter_map(|a| Address::socket(a.parse().unwrap())).collect();
        Entry::sign(&key(), PeerId(id), sequence, EntryFlags::default(), &addresses)
    }

    fn accept(book: &mut PeerBook, now: u64, entry: &Entry) -> Result<Peer, Refusal> {
        let now = Instant::ZERO + Duration::from_secs(now);
        book.accept(now, &key(), PeerId([0xff; 16]), entry, OBSERVED.parse().unwrap(), false)
    }

    #[test]
    fn older_entries_are_stale_for_90_s() {
        let mut book = PeerBook::default();
        assert!(accept(&mut book, 0, &entry(1, 10, &[])).is_ok());
        assert!(accept(&mut book, 1, &entry(1, 10, &[])).is_ok(), "the same again");
        assert_eq!(accept(&mut book, 89, &entry(1, 9, &[])), Err(Refusal::Stale));
        assert!(accept(&mut book, 90, &entry(1, 9, &[])).is_ok(), "a clock in the past heals");
    }

    #[test]
    fn a_ring_rings_once() {
        let mut book = PeerBook::default();
        let at = |s| Instant::ZERO + Duration::from_secs(s);
        let mut ring =
            |s, e: &Entry| book.accept_ring(at(s), &key(), PeerId([0xff; 16]), e, OBSERVED.parse().unwrap());
        assert!(ring(0, &entry(1, 10, &[])).is_ok());
        assert_eq!(ring(1, &entry(1, 10, &[])), Err(Refusal::Stale), "replayed");
        assert_eq!(ring(89, &entry(1, 9, &[])), Err(Refusal::Stale), "older");
        assert!(ring(200, &entry(1, 9, &[])).is_ok(), "a clock in the past heals");
        assert_eq!(ring(201, &entry(1, 9, &[])), Err(Refusal::Stale), "once");
        assert!(ring(201, &entry(1, 11, &[])).is_ok());
    }

    #[test]
    fn forged_and_own_are_refused() {
        let mut book = PeerBook::default();
        let other = SwarmKey::from_run_secret(&[8; 32]);
        let forged = Entry::sign(&other, PeerId([1; 16]), 1, EntryFlags::default(), &[]);
        assert_eq!(accept(&mut book, 0, &forged), Err(Refusal::Forged));
        let own = Entry::sign(&key(), PeerId([0xff; 16]), 1, EntryFlags::default(), &[]);
        assert_eq!(accept(&mut book, 0, &own), Err(Refusal::Own));
        assert!(book.known.is_empty());
    }

    #[test]
    fn memory_is_bounded_and_the_oldest_goes() {
        let mut book = PeerBook::default();
        for i in 0..2 * REMEMBERED_PEERS as u16 {
            accept(&mut book, u64::from(i), &entry(i, 1, &[])).unwrap();
        }
        assert_eq!(book.known.len(), REMEMBERED_PEERS);
        assert!(!book.known.contains_key(&entry(0, 1, &[]).peer()));
    }

    #[test]
    fn foreign_loopback_and_doubles_are_left_out() {
        let mut book = PeerBook::default();
        let e = entry(1, 1, &["127.0.0.1:5", "10.0.0.1:5", "10.0.0.1:5"]);
        assert_eq!(accept(&mut book, 0, &e).unwrap().addrs, ["10.0.0.1:5".parse().unwrap()]);
    }
}
