//! What shares the socket with µTP2: datagrams of another protocol, and detours by which µTP2's own packets travel
//! inside such datagrams.
//!
//! A datagram that begins with [`utp2::BESIDE`] is never µTP2's (PROTOCOL.md §3.8). Those with the header of a detour,
//! from where the detour goes, are unwrapped and handed to the core as if they had come from the detour's address; all
//! others go to whoever took [`crate::Endpoint::beside`].

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc;

/// Bytes before a packet that takes a detour: magic, kind and a channel's name.
pub const DETOUR_HEADER: usize = 12;

/// Detours of one endpoint: what a relay is a last resort for.
const DETOURS: usize = 1024;

/// Datagrams that wait for the other protocol; more are dropped, as a full socket would. Relays forward from here: at
/// 100 MB/s, 10 ms.
const WAITING: usize = 1024;

/// Where detours seem to be: `100::/64`, addresses that nobody has (RFC 6666). The rest is a number that is not used
/// again.
const PLACE: [u16; 4] = [0x100, 0, 0, 0];

/// A datagram of the other protocol, and where it came from.
pub type Beside = (SocketAddr, Vec<u8>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Detour {
    pub(crate) via: SocketAddr,
    pub(crate) header: [u8; DETOUR_HEADER],
}

#[derive(Default)]
struct Table {
    by_place: HashMap<SocketAddr, Detour>,
    by_header: HashMap<(SocketAddr, [u8; DETOUR_HEADER]), SocketAddr>,
    last: u64,
    taker: Option<mpsc::Sender<Beside>>,
}

/// See the module.
#[derive(Default)]
pub(crate) struct BesideTable(Mutex<Table>);

/// Whether it is a detour's address, which the socket has no business with.
pub(crate) fn is_detour(addr: SocketAddr) -> bool {
    matches!(addr.ip(), IpAddr::V6(ip) if ip.segments()[..4] == PLACE)
}

impl BesideTable {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn take(&self) -> mpsc::Receiver<Beside> {
        let (sender, receiver) = mpsc::channel(WAITING);
        self.table().taker = Some(sender);
        receiver
    }

    pub(crate) fn add(&self, via: SocketAddr, header: [u8; DETOUR_HEADER]) -> Option<SocketAddr> {
        let mut table = self.table();
        if let Some(there) = table.by_header.get(&(via, header)) {
            return Some(*there);
        }
        if table.by_place.len() >= DETOURS || is_detour(via) || !header.starts_with(&utp2::BESIDE) {
            return None;
        }
        table.last += 1;
        let bits = (u128::from(PLACE[0]) << 112) | u128::from(table.last);
        let place = SocketAddr::new(Ipv6Addr::from_bits(bits).into(), 1);
        table.by_place.insert(place, Detour { via, header });
        table.by_header.insert((via, header), place);
        Some(place)
    }

    pub(crate) fn remove(&self, place: SocketAddr) {
        let mut table = self.table();
        if let Some(detour) = table.by_place.remove(&place) {
            table.by_header.remove(&(detour.via, detour.header));
        }
    }

    pub(crate) fn find(&self, place: SocketAddr) -> Option<Detour> {
        self.table().by_place.get(&place).copied()
    }

    /// Takes a datagram that begins as the other protocol's do. If it is a packet that took a detour: where it seems
    /// to come from.
    pub(crate) fn arrived(&self, from: SocketAddr, datagram: &[u8]) -> Option<SocketAddr> {
        let table = self.table();
        if let Some(header) = datagram.first_chunk::<DETOUR_HEADER>()
            && let Some(place) = table.by_header.get(&(from, *header))
        {
            return Some(*place);
        }
        if let Some(taker) = &table.taker {
            // Full: lost, as in a full socket.
            let _ = taker.try_send((from, datagram.to_vec()));
        }
        None
    }
}

/// Puts the header before each of the packets of `segment` bytes (the last may be shorter) in `packets`.
pub(crate) fn wrapped(packets: &[u8], segment: usize, header: &[u8; DETOUR_HEADER]) -> Vec<u8> {
    let segment = segment.max(1);
    let count = packets.len().div_ceil(segment);
    let mut out = Vec::with_capacity(packets.len() + count * DETOUR_HEADER);
    for packet in packets.chunks(segment) {
        out.extend_from_slice(header);
        out.extend_from_slice(packet);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(n: u8) -> [u8; DETOUR_HEADER] {
        let mut header = [n; DETOUR_HEADER];
        header[..3].copy_from_slice(&utp2::BESIDE);
        header
    }

    #[test]
    fn detours_are_few_named_once_and_only_for_who_is_there() {
        let table = BesideTable::default();
        let relay: SocketAddr = "192.0.2.1:1".parse().unwrap();
        let place = table.add(relay, header(1)).unwrap();
        assert!(is_detour(place) && !is_detour(relay));
        assert_eq!(table.add(relay, header(1)), Some(place), "the same again");
        assert_eq!(table.add(relay, [0; DETOUR_HEADER]), None, "would be taken for µTP2");
        assert_eq!(table.add(place, header(2)), None, "no detours on detours");
        let mut bytes = header(1).to_vec();
        bytes.push(7);
        assert_eq!(table.arrived(relay, &bytes), Some(place));
        assert_eq!(table.arrived("192.0.2.2:1".parse().unwrap(), &bytes), None, "from elsewhere");
        assert_eq!(table.arrived(relay, &bytes[..11]), None);
        table.remove(place);
        assert_eq!((table.find(place), table.arrived(relay, &bytes)), (None, None));
        let again = table.add(relay, header(1)).unwrap();
        assert_ne!(again, place, "names are not used again");
        let many = (0..2 * DETOURS).filter(|i| {
            let mut h = header(2);
            h[4..12].copy_from_slice(&i.to_be_bytes());
            table.add(relay, h).is_some()
        });
        assert_eq!(many.count(), DETOURS - 1);
    }

    #[test]
    fn what_nobody_takes_in_time_is_lost() {
        let table = BesideTable::default();
        let mut taken = table.take();
        for _ in 0..2 * WAITING {
            table.arrived("192.0.2.1:1".parse().unwrap(), b"FT\x01 hello");
        }
        let mut got = 0;
        while taken.try_recv().is_ok() {
            got += 1;
        }
        assert_eq!(got, WAITING);
    }

    #[test]
    fn every_packet_gets_the_header() {
        let out = wrapped(&[1, 1, 1, 2, 2, 2, 3], 3, &header(9));
        assert_eq!(out.len(), 7 + 3 * DETOUR_HEADER);
        for (packet, expected) in out.chunks(3 + DETOUR_HEADER).zip([&[1, 1, 1][..], &[2, 2, 2], &[3]]) {
            assert_eq!((&packet[..DETOUR_HEADER], &packet[DETOUR_HEADER..]), (&header(9)[..], expected));
        }
    }
}
