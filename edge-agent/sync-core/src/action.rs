//! What the two machines ask their driver to do.

use alloc::vec::Vec;

use agent_proto::peer::{BlockAddress, PeerMessage, UnavailableReason};
use event_schema::AgentId;

use crate::merkle::Hash;

/// Something to be done by the driver of a [`crate::Destination`] or [`crate::Origin`].
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Send a message to a connected peer.
    Send {
        /// To whom.
        peer: AgentId,
        /// What.
        message: PeerMessage,
    },
    /// Hand a block to the transport; tell `handle_sent` when it is acknowledged, or `handle_read_failed`.
    Upload {
        /// To whom.
        peer: AgentId,
        /// Which.
        block: BlockAddress,
        /// Higher goes first: 2 manifest, 1 asked for, 0 chosen by the origin.
        priority: u8,
    },
    /// Take a block back from the transport if it is still there; nothing is to be told afterwards.
    CancelUpload {
        /// From whose queue.
        peer: AgentId,
        /// Which.
        block: BlockAddress,
    },
    /// Look for the manifest's blocks in manifests that are here already, keep those that match their hash, then call
    /// [`crate::Destination::manifest_sought`]; only to who said that it holds such.
    SeekManifest {
        /// The hash of each block, as the head vouches for it.
        strong: Vec<Hash>,
        /// The weak hash of each block, as a peer told it.
        weak: Vec<u32>,
    },
    /// Every manifest block is verified: decode it, look at the disk, call
    /// [`crate::Destination::begin_content`].
    ManifestComplete,
    /// Nobody can give this content block; its file cannot be completed.
    Lost {
        /// Which.
        block: u64,
        /// Why the source could not give it.
        reason: UnavailableReason,
    },
    /// A peer did what no honest peer does.
    Misbehaved {
        /// Who.
        peer: AgentId,
        /// What.
        what: Misbehaviour,
    },
    /// Every content block is verified or lost.
    ContentComplete,
}

/// What a peer did wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misbehaviour {
    /// A block that does not match its hash. Nothing is taken from the peer any more; from the source only after
    /// several.
    CorruptBlock,
    /// Hashes that do not match the head's root. Nothing is taken from the peer any more.
    BadHashes,
    /// A head that is not signed by the run's source or breaks a limit. Nothing is taken from the peer any more.
    BadHead,
    /// A head, properly signed, of another manifest than the one we know: the source signed two.
    OtherHead,
    /// A head, properly signed, of a manifest of this version, which we cannot read: the source runs another release.
    OtherVersion(u8),
}
