//! Virtual-time links and the runner that moves protocols through them.
//!
//! [`Link`] is one direction of a path (rate, drop-tail queue, delay, loss, reordering, duplication,
//! corruption), [`Network`] joins [`Node`]s by links and jumps from one event to the next, [`Scenario`]
//! sends µTP2 flows through one bottleneck and measures them. Everything is seeded: the same scenario
//! gives the same [`Outcome`], to the byte. No wall clock, no socket, no thread.
//!
//! Read first: `Scenario`, then `Network::run`.

pub mod flow;
pub mod link;
pub mod network;
pub mod pattern;
pub mod scenario;

pub use link::{Link, LinkConfig, LinkStats, Loss};
pub use network::{Network, Node, Stop, Transmission, address_of};
pub use scenario::{FlowConfig, FlowOutcome, Outcome, Scenario};
