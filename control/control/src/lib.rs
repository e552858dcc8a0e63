//! The parts of the `flotilla` program that its tests and its `main` share.
//!
//! `pki` owns the fleet's keys and certificates, `gateway` the agents' TLS link.

pub mod gateway;
pub mod pki;
