//! What the fuzzer drives: one function of arbitrary bytes per parser, primitive and state machine. **Not API**: it
//! exists for `transport/fuzz`, under the feature `fuzzing`, and changes without notice.
//!
//! Each function takes any bytes, never panics unless something is wrong, and says in its own words what must hold.
//! They live here because they look inside; the crate in `transport/fuzz` is only the engine around them, and the
//! corpora it keeps are replayed by this crate's ordinary tests (`tests::corpora`).

mod codecs;
mod endpoint;
mod input;
mod link;
mod peer;
mod primitives;
mod resume;
mod world;

pub use codecs::{ack, frames, handshake, header, varint};
pub use endpoint::endpoint;
pub use link::link;
pub use peer::peer;
pub use primitives::{aead, exchange, srp};
pub use resume::resume;

pub(crate) use input::Input;

pub use crate::congestion::fuzzing::controller;
pub use crate::connection::fuzzing::{
    blocks, messages, ranges, received, replay as replay_window, scoreboard,
};

/// A target: what it is called, and what it does with any bytes.
pub type Target = (&'static str, fn(&[u8]));

/// Every target of this crate by the name of its binary and of its corpus' folder.
pub const TARGETS: &[Target] = &[
    ("ack", ack),
    ("aead", aead),
    ("blocks", blocks),
    ("controller", controller),
    ("endpoint", endpoint),
    ("exchange", exchange),
    ("frames", frames),
    ("handshake", handshake),
    ("header", header),
    ("link", link),
    ("messages", messages),
    ("peer", peer),
    ("ranges", ranges),
    ("received", received),
    ("replay_window", replay_window),
    ("resume", resume),
    ("scoreboard", scoreboard),
    ("srp", srp),
    ("varint", varint),
];
