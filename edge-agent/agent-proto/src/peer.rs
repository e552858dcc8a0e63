//! What agents of a run say to each other over a µTP2 session (`edge-agent/PROTOCOL.md` §3).
//!
//! Each [`PeerMessage`] is one message of µTP2's ordered channel. Blocks themselves travel as tagged
//! data whose tag is a [`BlockAddress`].

use alloc::vec::Vec;

use core::net::{IpAddr, SocketAddr};

use event_schema::{AgentId, Signed, tagged_enum};
use serde::{Deserialize, Serialize};

/// Where a block belongs: the µTP2 tag. Bit 63 tells manifest blocks from content blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BlockAddress(pub u64);

const MANIFEST_BIT: u64 = 1 << 63;

impl BlockAddress {
    /// The `index`-th block of the encoded manifest.
    pub const fn manifest(index: u64) -> Self {
        Self(index | MANIFEST_BIT)
    }

    /// The `index`-th content block, counted through the manifest in entry order.
    pub const fn content(index: u64) -> Self {
        Self(index & !MANIFEST_BIT)
    }

    /// Whether it is a block of the manifest.
    pub const fn is_manifest(self) -> bool {
        self.0 & MANIFEST_BIT != 0
    }

    /// The index, whichever kind it is of.
    pub const fn index(self) -> u64 {
        self.0 & !MANIFEST_BIT
    }
}

/// A run of consecutive block addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockRange {
    /// First address.
    pub first: BlockAddress,
    /// How many, at least 1.
    pub count: u32,
}

tagged_enum! {
    /// From agent to agent.
    pub enum PeerMessage, upcast = event_schema::upcast::none {
        /// First message of both sides.
        (1, 1) "hello" => Hello,
        /// The signed head of the manifest, as soon as it is known.
        (2, 1) "head" => Head,
        /// Ask for hashes of the manifest's blocks.
        (3, 1) "get_manifest_hashes" => GetManifestHashes,
        /// Hashes of the manifest's blocks.
        (4, 1) "manifest_hashes" => ManifestHashes,
        /// Blocks that can be had here from now on.
        (5, 1) "have" => Have,
        /// Send me these blocks.
        (6, 1) "request" => Request,
        /// To an origin: send me blocks of your choice.
        (7, 1) "want" => Want,
        /// Do not send these any more.
        (8, 1) "cancel" => Cancel,
        /// A requested block cannot be had.
        (9, 1) "unavailable" => Unavailable,
        /// Everything is in place here; I go on serving.
        (10, 1) "complete" => Complete,
        /// To a near peer that understands it: I am fetching these from afar.
        (11, 1) "fetching" => Fetching,
        /// To a peer that says it answers: ask for weak hashes of the manifest's blocks.
        (12, 1) "get_manifest_weak" => GetManifestWeak,
        /// Weak hashes of the manifest's blocks.
        (13, 1) "manifest_weak" => ManifestWeak,
        /// Where I am connected to other members (`edge-agent/PATHS.md` §3).
        (20, 1) "peers" => Peers,
    }
}

/// First message of both sides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Version of the agent program, for people, and words on what it can do (`PROTOCOL.md` §3.1).
    pub version: alloc::string::String,
    /// Whether this agent is the run's source: it answers [`Want`].
    pub origin: bool,
}

/// The signed head of the manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// A `sync_core` manifest head under the source's signature.
    pub signed: Signed,
}

/// Ask for hashes of the manifest's blocks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetManifestHashes {
    /// First block.
    pub first: u32,
}

/// Hashes of the manifest's blocks from `first` on, at most [`crate::limits::HASHES_MAX`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestHashes {
    /// First block.
    pub first: u32,
    /// Its hash and the following ones.
    pub hashes: Vec<[u8; 32]>,
}

/// To a peer that says it answers (`PROTOCOL.md` §3.8): ask for weak hashes of the manifest's blocks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetManifestWeak {
    /// First block.
    pub first: u32,
}

/// Weak hashes of the manifest's blocks from `first` on, at most [`crate::limits::HASHES_MAX`]; none from who cannot
/// tell them yet. Nobody vouches for them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestWeak {
    /// First block.
    pub first: u32,
    /// Its weak hash and the following ones.
    pub weak: Vec<u32>,
}

/// Blocks that can be had here from now on: verified, or at the origin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Have {
    /// Which, at most [`crate::limits::RANGES_MAX`] ranges.
    pub ranges: Vec<BlockRange>,
}

/// Send me these blocks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Which, at most [`crate::limits::RANGES_MAX`] ranges.
    pub ranges: Vec<BlockRange>,
}

/// To an origin: send me blocks of your choice, those that nobody got from you yet first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Want {
    /// How many more, added to what is still owed.
    pub blocks: u32,
}

/// Do not send these any more; what is on its way may still arrive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cancel {
    /// Which.
    pub ranges: Vec<BlockRange>,
}

/// Why a block cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum UnavailableReason {
    /// Not here (any more).
    NotHere,
    /// The source's file is not what it was when it was indexed.
    Changed,
    /// The file could not be read.
    ReadError,
}

/// A requested block cannot be had here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unavailable {
    /// Which.
    pub block: BlockAddress,
    /// Why.
    pub reason: UnavailableReason,
}

/// Everything is in place here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Complete {}

/// To a peer at the same site: these blocks are asked of far ones here, and can soon be had here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fetching {
    /// Which, at most [`crate::limits::RANGES_MAX`] ranges.
    pub ranges: Vec<BlockRange>,
}

/// Where the sender is connected to other members of the run right now, by no relay (`edge-agent/PATHS.md` §3).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peers {
    /// At most [`crate::limits::PEERS_TOLD`].
    pub peers: Vec<KnownPeer>,
}

/// One of [`Peers`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownPeer {
    /// Who.
    pub agent: AgentId,
    /// Where, at most [`crate::limits::ADDRESSES_TOLD`].
    pub addresses: Vec<PackedAddress>,
    /// It is a relay.
    pub relay: bool,
}

/// An address in 6 or 18 bytes: IP, port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PackedAddress(Vec<u8>);

impl PackedAddress {
    /// Packs an address; flow label and interface are left out.
    pub fn new(addr: SocketAddr) -> Self {
        let mut bytes = match addr.ip().to_canonical() {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        bytes.extend_from_slice(&addr.port().to_be_bytes());
        Self(bytes)
    }

    /// The address, if it is one that somebody could have.
    pub fn address(&self) -> Option<SocketAddr> {
        let (ip, port) = self.0.split_last_chunk::<2>()?;
        let ip = match ip.len() {
            4 => IpAddr::from(<[u8; 4]>::try_from(ip).ok()?),
            16 => IpAddr::from(<[u8; 16]>::try_from(ip).ok()?).to_canonical(),
            _ => return None,
        };
        let port = u16::from_be_bytes(*port);
        let broadcast = ip == IpAddr::from([255; 4]);
        let possible = port != 0 && !ip.is_unspecified() && !ip.is_multicast() && !broadcast;
        possible.then(|| SocketAddr::new(ip, port))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_addresses_are_checked() {
        for good in ["192.0.2.1:7", "[2001:db8::1]:65535", "127.0.0.1:1", "[fe80::1]:9"] {
            let addr: SocketAddr = good.parse().unwrap();
            assert_eq!(PackedAddress::new(addr).address(), Some(addr));
        }
        assert_eq!(
            PackedAddress::new("[::ffff:192.0.2.1]:7".parse().unwrap()).address(),
            Some("192.0.2.1:7".parse().unwrap())
        );
        for bad in ["0.0.0.0:1", "10.0.0.1:0", "224.0.0.1:9", "255.255.255.255:9", "[::]:9", "[ff02::1]:9"] {
            assert_eq!(PackedAddress::new(bad.parse().unwrap()).address(), None, "{bad}");
        }
        for len in (0..40).filter(|l| *l != 6 && *l != 18) {
            assert_eq!(PackedAddress(alloc::vec![9; len]).address(), None, "{len} bytes");
        }
    }

    #[test]
    fn addresses_keep_their_kind() {
        let (m, c) = (BlockAddress::manifest(7), BlockAddress::content(7));
        assert!(m.is_manifest() && !c.is_manifest());
        assert_eq!((m.index(), c.index()), (7, 7));
        let message = PeerMessage::from(Have { ranges: alloc::vec![BlockRange { first: m, count: 3 }] });
        assert_eq!(PeerMessage::decode(&message.encode()), Ok(message));
    }
}
