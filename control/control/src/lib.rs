//! The parts of the `flotilla` program that its tests and its `main` share.
//!
//! [`pki`] owns the fleet's keys and certificates, [`gateway`] the agents' TLS link, [`service`] the
//! fleet's state over the log, [`api`] the HTTP side, [`serve`] puts them together; [`audit`] seals
//! the log, [`archive`] takes its old segments and reads them, [`retention`] has that done now and then; [`telemetry`]
//! keeps what is not on it. [`cli`] is the operator's command line, which talks to [`api`]; with the rest it shares `audit`,
//! `exports` and [`log_copy`] alone.

pub mod api;
pub mod archive;
mod at;
pub mod audit;
pub mod cli;
pub mod config;
mod exports;
pub mod gateway;
pub mod log_copy;
#[cfg(test)]
mod million;
pub mod pki;
pub mod privacy;
mod private_file;
pub mod retention;
pub mod sealing;
pub mod serve;
pub mod service;
pub mod telemetry;
