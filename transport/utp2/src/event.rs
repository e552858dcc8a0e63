//! What an endpoint tells its application, and the name of a connection.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use crate::{PathMemory, Resumption};

/// Names a connection of one endpoint; never used again for another one within the endpoint's life.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Handle {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

impl Handle {
    /// The handle as one number, for logs and maps.
    pub const fn as_u64(self) -> u64 {
        (self.generation as u64) << 32 | self.slot as u64
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Handle({}.{})", self.slot, self.generation)
    }
}

/// Something that happened to a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// Handshake done, peer authenticated and authorized; for the accepting side the first sign of the connection.
    Connected,
    /// A whole message, in the order sent.
    Message(Vec<u8>),
    /// A message that came with the first packet of a resumed connection, before that was known to be fresh. It is
    /// authentic and new as far as this endpoint knows, but it is not ordered with [`Event::Message`]s, and only
    /// requests that may be carried out twice should be: a peer that got no answer sends it again as a message.
    EarlyMessage(Vec<u8>),
    /// After [`Event::EarlyMessage`]s: the peer has proved to be there now. What came early was no repetition, or a
    /// copy of what it has just said itself.
    Confirmed,
    /// To be kept for [`crate::Endpoint::connect_resumed`]; replaces the one before.
    Resumption(Resumption),
    /// What the connection has learned of its path, before its end: for [`Resumption::set_path_memory`]. Not if it
    /// learned too little.
    PathLearned(PathMemory),
    /// There is room again after [`crate::SendError::Blocked`].
    MessagesWritable,
    /// Every byte of the block was acknowledged.
    BlockSent {
        /// The block's tag.
        tag: u64,
    },
    /// The source could not read the block; it left the queue.
    BlockFailed {
        /// The block's tag.
        tag: u64,
    },
    /// The connection is over; its handle is void once this is delivered.
    Closed(CloseReason),
}

/// Why a connection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CloseReason {
    /// [`crate::Connection::close`] was called here.
    Local,
    /// The peer closed it.
    Peer {
        /// The application's code; 0xff00 and above are the protocol's (§10).
        code: u16,
        /// Text for people, at most 256 bytes; written by the peer, so not to be trusted.
        reason: String,
    },
    /// No session came about.
    HandshakeFailed(HandshakeFailure),
    /// The peer lost the connection: it restarted, or gave up on us.
    Reset,
    /// Nothing authentic arrived for the idle timeout.
    IdleTimeout,
    /// The context's secret was removed.
    ContextRemoved,
    /// The peer broke the protocol; the text tells where.
    ProtocolViolation(&'static str),
    /// The key's limit was reached without an acknowledged key update.
    KeyLimit,
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local => f.write_str("closed here"),
            Self::Peer { code, reason } => write!(f, "closed by the peer with code {code}: {reason:?}"),
            Self::HandshakeFailed(why) => write!(f, "handshake failed: {why}"),
            Self::Reset => {
                f.write_str("the peer does not know the connection any more; it may have restarted")
            }
            Self::IdleTimeout => f.write_str("nothing heard for the idle timeout"),
            Self::ContextRemoved => f.write_str("the context was removed"),
            Self::ProtocolViolation(what) => write!(f, "the peer broke the protocol: {what}"),
            Self::KeyLimit => f.write_str("the key's limit was reached"),
        }
    }
}

/// Why a handshake failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HandshakeFailure {
    /// No answer within [`crate::Config::handshake_timeout`].
    Timeout,
    /// The peer refused: wrong secret, unknown context, or it does not accept our identity. It does not say which.
    Refused,
    /// The peer is at its limit of connections.
    Busy,
    /// The peer speaks another version of the protocol, or no suite that we speak.
    Version,
    /// The peer's proof of the secret or of its identity did not hold.
    BadProof,
    /// Our [`crate::Authorizer`] did not accept the peer's identity.
    Unauthorized,
}

impl fmt::Display for HandshakeFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Timeout => "no answer in time",
            Self::Refused => "refused by the peer",
            Self::Busy => "the peer is busy",
            Self::Version => "no common version",
            Self::BadProof => "the peer's proof did not hold",
            Self::Unauthorized => "the peer's identity is not accepted here",
        })
    }
}
