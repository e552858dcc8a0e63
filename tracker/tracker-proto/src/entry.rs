//! What an agent says about itself: an [`Entry`] of addresses with a MAC that only members of the swarm
//! can make and check (`PROTOCOL.md` §3.2, §3.3).

use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use subtle::ConstantTimeEq;

use crate::key::{PeerId, SwarmKey};
use crate::limits::ADDRESSES_PER_ENTRY;
use crate::wire::{ParseError, Reader};

const FAMILY_REFLEXIVE: u8 = 0;
const FAMILY_V4: u8 = 4;
const FAMILY_V6: u8 = 6;

/// An address to be reached at, legal by construction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address(Kind);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Kind {
    Reflexive(u16),
    Socket(SocketAddr),
}

impl Address {
    /// A known address. `None` for addresses that nobody can be reached at: port 0, unspecified,
    /// multicast, broadcast, `100::/64`. IPv4 written as IPv6 becomes IPv4; flow label and scope are dropped.
    pub fn socket(addr: SocketAddr) -> Option<Self> {
        legal(addr).map(|a| Self(Kind::Socket(a)))
    }

    /// "The IP address that you see me under, with this port". `None` for port 0.
    pub fn reflexive(port: u16) -> Option<Self> {
        (port != 0).then_some(Self(Kind::Reflexive(port)))
    }

    /// The address to dial, given under which address the announcement came in. A reflexive one keeps the interface
    /// of a link-local `observed`.
    pub fn resolve(self, observed: SocketAddr) -> SocketAddr {
        match self.0 {
            Kind::Reflexive(port) => with_port(observed, port),
            Kind::Socket(addr) => addr,
        }
    }

    fn len(self) -> usize {
        match self.0 {
            Kind::Reflexive(_) => 3,
            Kind::Socket(addr) => socket_len(addr),
        }
    }

    fn emit(self, out: &mut Vec<u8>) {
        match self.0 {
            Kind::Reflexive(port) => {
                out.push(FAMILY_REFLEXIVE);
                out.extend_from_slice(&port.to_be_bytes());
            }
            Kind::Socket(addr) => emit_socket(addr, out),
        }
    }

    fn parse(r: &mut Reader<'_>) -> Result<Self, ParseError> {
        match r.u8()? {
            FAMILY_REFLEXIVE => Self::reflexive(r.u16()?).ok_or(ParseError::Address),
            family => parse_ip_port(family, r).map(|a| Self(Kind::Socket(a))),
        }
    }
}

/// The same host at another port, without a flow label.
fn with_port(mut addr: SocketAddr, port: u16) -> SocketAddr {
    addr.set_port(port);
    if let SocketAddr::V6(v6) = &mut addr {
        v6.set_flowinfo(0);
    }
    addr
}

/// As [`legal`], and a link-local address keeps its interface: for what this host saw itself.
pub(crate) fn dialable(addr: SocketAddr) -> Option<SocketAddr> {
    match addr {
        SocketAddr::V6(v6) if v6.ip().is_unicast_link_local() => {
            // Without an interface nobody knows where that is.
            (v6.scope_id() != 0 && v6.port() != 0).then(|| with_port(addr, v6.port()))
        }
        other => legal(other),
    }
}

/// The canonical form of an address that can be dialled, if it is one.
pub(crate) fn legal(addr: SocketAddr) -> Option<SocketAddr> {
    let ip = addr.ip().to_canonical();
    let broadcast = ip == IpAddr::V4(Ipv4Addr::BROADCAST);
    // RFC 6666; agents use them for what is behind a relay (`edge-agent/PATHS.md` §4.4).
    let discard = matches!(ip, IpAddr::V6(v6) if v6.segments()[..4] == [0x100, 0, 0, 0]);
    let dialable = addr.port() != 0 && !ip.is_unspecified() && !ip.is_multicast() && !broadcast && !discard;
    dialable.then(|| SocketAddr::new(ip, addr.port()))
}

pub(crate) fn socket_len(addr: SocketAddr) -> usize {
    if addr.is_ipv4() { 7 } else { 19 }
}

/// Emits an address that is [`legal`].
pub(crate) fn emit_socket(addr: SocketAddr, out: &mut Vec<u8>) {
    match addr.ip() {
        IpAddr::V4(ip) => {
            out.push(FAMILY_V4);
            out.extend_from_slice(&ip.octets());
        }
        IpAddr::V6(ip) => {
            out.push(FAMILY_V6);
            out.extend_from_slice(&ip.octets());
        }
    }
    out.extend_from_slice(&addr.port().to_be_bytes());
}

/// Parses an observed address: reflexive ones make no sense there.
pub(crate) fn parse_socket(r: &mut Reader<'_>) -> Result<SocketAddr, ParseError> {
    let family = r.u8()?;
    parse_ip_port(family, r)
}

fn parse_ip_port(family: u8, r: &mut Reader<'_>) -> Result<SocketAddr, ParseError> {
    let ip = match family {
        FAMILY_V4 => IpAddr::V4(Ipv4Addr::from(r.array::<4>()?)),
        FAMILY_V6 => IpAddr::V6(Ipv6Addr::from(r.array::<16>()?)),
        other => return Err(ParseError::Family(other)),
    };
    let addr = SocketAddr::new(ip, r.u16()?);
    // One encoding only: what `legal` would change is refused, or MACs over re-encoded bytes would fail.
    if legal(addr) == Some(addr) { Ok(addr) } else { Err(ParseError::Address) }
}

/// What an entry says beside its addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EntryFlags {
    /// The agent leaves the swarm: forget it.
    pub leaving: bool,
    /// On a LAN: members that hear this should announce themselves.
    pub answer_me: bool,
    /// The announcement left from the µTP2 socket, so its observed address with its port is a µTP2 one.
    pub observed_usable: bool,
    /// The agent forwards between members of the fleet.
    pub relay: bool,
}

impl EntryFlags {
    fn bits(self) -> u8 {
        u8::from(self.leaving)
            | u8::from(self.answer_me) << 1
            | u8::from(self.observed_usable) << 2
            | u8::from(self.relay) << 3
    }

    fn from_bits(bits: u8) -> Result<Self, ParseError> {
        if bits & !0b1111 != 0 {
            return Err(ParseError::Flags(bits));
        }
        let has = |bit: u8| bits & bit != 0;
        Ok(Self { leaving: has(1), answer_me: has(2), observed_usable: has(4), relay: has(8) })
    }
}

/// A member's announcement of itself. Parsing proves the form, [`Entry::verify`] that a member made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    peer: PeerId,
    sequence: u64,
    flags: EntryFlags,
    addresses: Vec<Address>,
    mac: [u8; 16],
}

impl Entry {
    /// Makes an entry. Of `addresses`, the first [`ADDRESSES_PER_ENTRY`] are used.
    pub fn sign(
        key: &SwarmKey,
        peer: PeerId,
        sequence: u64,
        flags: EntryFlags,
        addresses: &[Address],
    ) -> Self {
        let addresses = addresses.iter().take(ADDRESSES_PER_ENTRY).copied().collect();
        let mut entry = Self { peer, sequence, flags, addresses, mac: [0; 16] };
        entry.mac = entry.expected_mac(key);
        entry
    }

    /// Whether a member of the swarm made this entry, in constant time.
    pub fn verify(&self, key: &SwarmKey) -> bool {
        self.expected_mac(key).ct_eq(&self.mac).into()
    }

    /// Pseudonym of the agent.
    pub fn peer(&self) -> PeerId {
        self.peer
    }

    /// Grows with every entry of an agent.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// What the entry says beside its addresses.
    pub fn flags(&self) -> EntryFlags {
        self.flags
    }

    /// Where the agent says it can be reached, best first.
    pub fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    /// Bytes of the encoded entry.
    pub fn encoded_len(&self) -> usize {
        26 + self.addresses.iter().map(|a| a.len()).sum::<usize>() + 16
    }

    pub(crate) fn emit(&self, out: &mut Vec<u8>) {
        self.emit_body(out);
        out.extend_from_slice(&self.mac);
    }

    pub(crate) fn parse(r: &mut Reader<'_>) -> Result<Self, ParseError> {
        let peer = PeerId(r.array()?);
        let sequence = r.u64()?;
        let flags = EntryFlags::from_bits(r.u8()?)?;
        let count = r.u8()?;
        if usize::from(count) > ADDRESSES_PER_ENTRY {
            return Err(ParseError::Count(count));
        }
        let addresses = (0..count).map(|_| Address::parse(r)).collect::<Result<_, _>>()?;
        Ok(Self { peer, sequence, flags, addresses, mac: r.array()? })
    }

    fn emit_body(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.peer.0);
        out.extend_from_slice(&self.sequence.to_be_bytes());
        out.push(self.flags.bits());
        out.push(u8::try_from(self.addresses.len()).expect("at most ADDRESSES_PER_ENTRY"));
        self.addresses.iter().for_each(|a| a.emit(out));
    }

    fn expected_mac(&self, key: &SwarmKey) -> [u8; 16] {
        let mut body = Vec::with_capacity(self.encoded_len());
        self.emit_body(&mut body);
        key.entry_mac(&body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    fn addr(s: &str) -> SocketAddr {
        s.parse().unwrap()
    }

    #[test]
    fn unreachable_addresses_are_not_addresses() {
        for bad in ["0.0.0.0:1", "10.0.0.1:0", "224.0.0.1:9", "255.255.255.255:9", "[::]:9", "[ff02::1]:9"] {
            assert_eq!(Address::socket(addr(bad)), None, "{bad}");
        }
        assert_eq!(Address::reflexive(0), None);
        assert_eq!(
            Address::socket(addr("[::ffff:10.0.0.1]:7")),
            Address::socket(addr("10.0.0.1:7")),
            "IPv4 written as IPv6"
        );
    }

    #[test]
    fn reflexive_takes_the_observed_ip() {
        let a = Address::reflexive(7).unwrap();
        assert_eq!(a.resolve(addr("192.0.2.9:99")), addr("192.0.2.9:7"));
    }

    #[test]
    fn link_local_addresses_need_their_interface() {
        let SocketAddr::V6(mut seen) = addr("[fe80::1]:99") else { panic!("IPv6") };
        assert_eq!(dialable(seen.into()), None, "on which link?");
        seen.set_scope_id(3);
        let Some(SocketAddr::V6(v6)) = dialable(Address::reflexive(7).unwrap().resolve(seen.into())) else {
            panic!("dialable")
        };
        assert_eq!((v6.port(), v6.scope_id()), (7, 3));
        assert_eq!(dialable(addr("[ff02::1]:9")), None);
    }

    #[test]
    fn every_changed_byte_is_noticed() {
        let key = SwarmKey::from_run_secret(&[7; 32]);
        let addresses = [Address::socket(addr("192.0.2.1:4000")).unwrap(), Address::reflexive(4000).unwrap()];
        let entry = Entry::sign(&key, key.peer_id(&[1; 16]), 5, EntryFlags::default(), &addresses);
        assert!(entry.verify(&key));
        assert!(!entry.verify(&SwarmKey::from_run_secret(&[8; 32])), "another swarm");
        let mut bytes = vec![];
        entry.emit(&mut bytes);
        assert_eq!(bytes.len(), entry.encoded_len());
        for i in 0..bytes.len() {
            for bit in 0..8 {
                let mut forged = bytes.clone();
                forged[i] ^= 1 << bit;
                let mut r = Reader::over(&forged);
                if let Ok(e) = Entry::parse(&mut r) {
                    assert!(!e.verify(&key), "byte {i} bit {bit}");
                }
            }
        }
    }

    #[test]
    fn surplus_addresses_are_left_out() {
        let key = SwarmKey::from_run_secret(&[7; 32]);
        let many: Vec<_> = (1..=20).filter_map(Address::reflexive).collect();
        let entry = Entry::sign(&key, key.peer_id(&[1; 16]), 5, EntryFlags::default(), &many);
        assert_eq!(entry.addresses(), &many[..ADDRESSES_PER_ENTRY]);
    }
}
