//! Virtual-time links and the runner that moves protocols through them.
//!
//! [`Link`] is one direction of a path (rate, queue with or without CoDel, delay, jitter, loss, reordering,
//! duplication, corruption, policing, and how all that changes with time), [`Network`] joins [`Node`]s by
//! links and jumps from one event to the next, [`Scenario`] sends flows through one bottleneck and measures
//! them. Everything is seeded: the same scenario gives the same [`Outcome`], to the byte. No wall clock, no
//! socket, no thread.
//!
//! Read first: `Scenario`, then `Network::run`.

pub mod flow;
pub mod link;
pub mod measure;
pub mod network;
pub mod noise;
pub mod pattern;
pub mod progress;
pub mod protocol;
#[cfg(feature = "quinn")]
pub mod quic;
pub mod scenario;
pub mod sweep;
pub mod tcp;

pub use link::{Change, Discipline, Jitter, Link, LinkConfig, LinkStats, Loss, Policer};
pub use measure::{FlowOutcome, Happening, Outcome, Recovery, Steady, jain};
pub use network::{Move, Network, Node, Stop, Transmission, address_of};
pub use noise::{Host, Noise};
pub use protocol::Protocol;
pub use scenario::{AddressChange, FlowConfig, Sample, Scenario, Side};
