//! What the control service decides, as plain functions: no I/O, clock or randomness.
//!
//! A wish becomes events in a `decide` function (which may refuse with a [`Rejection`]), events become
//! [`State`] in [`State::evolve`] (which cannot fail), and what has to be ordered from agents follows
//! from the state in [`plan::orders`]. Ids and the time are arguments. Asking twice is one fact: a wish
//! that is fulfilled already is answered with no events.
//!
//! [`projection`] answers the questions of people, scripts and the gateway from the same events; it is
//! never asked when something is decided. [`form`] puts all of it into a hash that can be compared.
//!
//! Read first: `events/event-schema/src/event.rs`, then [`run`].

pub mod agent;
pub mod audit;
pub mod backup;
pub mod batch;
pub mod form;
pub mod group;
pub mod job;
pub mod limits;
pub mod plan;
pub mod projection;
mod rejection;
pub mod replica;
pub mod report;
pub mod run;
pub mod schema;
pub mod snapshot;
mod state;
pub mod subfolder;
pub mod subject;
pub mod sync;
pub mod text;
pub mod token;

pub use rejection::Rejection;
pub use state::State;
