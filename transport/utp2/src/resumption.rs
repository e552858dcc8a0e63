//! What an initiator keeps of a connection to come back without a full handshake (PROTOCOL.md §5.8).

use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::crypto::kdf::Secret;
use crate::handshake::ticket::MAX_TICKET;
use crate::identity::MAX_CREDENTIAL;
use crate::wire::Reader;
use crate::{ContextId, PathMemory, PeerIdentity};

/// First bytes of a stored resumption, with the version of what follows.
const MAGIC: &[u8; 6] = b"utp2r\x02";

/// Lets [`crate::Endpoint::connect_resumed`] come back to a peer in one round trip. Got by
/// [`crate::Event::Resumption`]; a later one replaces an earlier one. To be used once, so that connections cannot be
/// linked by it, and kept secret: who has it and the context's secret can come in our name until it expires.
#[derive(Clone)]
pub struct Resumption {
    pub(crate) context: ContextId,
    pub(crate) peer: PeerIdentity,
    pub(crate) secret: Secret,
    pub(crate) ticket: Vec<u8>,
    pub(crate) lifetime: u32,
    pub(crate) memory: Option<PathMemory>,
}

impl Resumption {
    /// The context it is for.
    pub fn context(&self) -> ContextId {
        self.context
    }

    /// The peer that issued it.
    pub fn peer(&self) -> &PeerIdentity {
        &self.peer
    }

    /// How long the peer accepts it, from when the event came. Nothing breaks if it is used later: a full handshake
    /// follows, one round trip late.
    pub fn lifetime(&self) -> Duration {
        Duration::from_secs(u64::from(self.lifetime))
    }

    /// What is remembered of the path, for the next connection to begin with.
    pub fn path_memory(&self) -> Option<PathMemory> {
        self.memory
    }

    /// Adds what is remembered of the path ([`crate::Connection::path_memory`]), best at the connection's end.
    pub fn set_path_memory(&mut self, memory: Option<PathMemory>) {
        self.memory = memory;
    }

    /// To store it; as secret as the value itself.
    pub fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        let mut out =
            Zeroizing::new(Vec::with_capacity(128 + self.ticket.len() + self.peer.credential.len()));
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&self.context.0);
        out.extend_from_slice(&self.secret.0);
        out.extend_from_slice(&self.lifetime.to_be_bytes());
        emit_memory(&mut out, self.memory);
        out.extend_from_slice(&self.peer.public_key);
        for part in [&self.peer.credential, &self.ticket] {
            out.extend_from_slice(&(part.len() as u16).to_be_bytes());
            out.extend_from_slice(part);
        }
        out
    }

    /// From [`Resumption::to_bytes`]; `None` if the bytes are not such.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut r = Reader::new(bytes.strip_prefix(MAGIC)?);
        let context = ContextId(r.array().ok()?);
        let secret = Secret(r.array().ok()?);
        let lifetime = r.u32().ok()?;
        let memory = parse_memory(&mut r)?;
        let public_key = r.array().ok()?;
        let mut part = |most: usize| {
            let len = usize::from(r.u16().ok()?);
            if len > most { None } else { r.bytes(len).ok().map(<[u8]>::to_vec) }
        };
        let credential = part(MAX_CREDENTIAL)?;
        let ticket = part(MAX_TICKET)?;
        r.is_empty().then_some(Self {
            context,
            peer: PeerIdentity { public_key, credential },
            secret,
            ticket,
            lifetime,
            memory,
        })
    }
}

impl fmt::Debug for Resumption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resumption").field("context", &self.context).finish_non_exhaustive()
    }
}

impl PartialEq for Resumption {
    fn eq(&self, other: &Self) -> bool {
        self.to_bytes().ct_eq(&other.to_bytes()).into()
    }
}

impl Eq for Resumption {}

/// Bytes of a path memory, there or not.
pub(crate) const MEMORY: usize = 17;

pub(crate) fn emit_memory(out: &mut Vec<u8>, memory: Option<PathMemory>) {
    let m = memory.unwrap_or(PathMemory { rate: 0, rtt_min: Duration::ZERO, base_loss_ppm: 0 });
    out.push(u8::from(memory.is_some()));
    out.extend_from_slice(&m.rate.to_be_bytes());
    out.extend_from_slice(&u32::try_from(m.rtt_min.as_micros()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend_from_slice(&m.base_loss_ppm.to_be_bytes());
}

/// The outer `None` is malformed.
pub(crate) fn parse_memory(r: &mut Reader<'_>) -> Option<Option<PathMemory>> {
    let there = r.u8().ok()?;
    let rate = r.u64().ok()?;
    let rtt_min = Duration::from_micros(u64::from(r.u32().ok()?));
    let base_loss_ppm = r.u32().ok()?;
    match there {
        0 => Some(None),
        1 => Some(Some(PathMemory { rate, rtt_min, base_loss_ppm })),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resumption_survives_storage_and_any_cut_of_it_does_not() {
        let memory = PathMemory { rate: 7, rtt_min: Duration::from_millis(3), base_loss_ppm: 9 };
        let r = Resumption {
            context: ContextId([1; 16]),
            peer: PeerIdentity { public_key: [2; 32], credential: alloc::vec![3; 100] },
            secret: Secret([4; 32]),
            ticket: alloc::vec![5; 200],
            lifetime: 6,
            memory: Some(memory),
        };
        let bytes = r.to_bytes();
        let got = Resumption::from_bytes(&bytes).unwrap();
        assert_eq!((&got, got.path_memory(), got.lifetime()), (&r, Some(memory), Duration::from_secs(6)));
        for cut in 0..bytes.len() {
            assert!(Resumption::from_bytes(&bytes[..cut]).is_none());
        }
        let shown = alloc::format!("{r:?}");
        assert!(!shown.contains("4, 4") && !shown.contains("5, 5"), "{shown}");
    }
}
