//! What agent and gateway, and agent and agent, say to each other, and the trust they rest on.
//!
//! Pure data and checks: no socket, no clock, no randomness. Read `edge-agent/PROTOCOL.md` first.
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod bootstrap;
mod credential;
mod enrolment_code;
mod fingerprint;
mod judge;
pub mod limits;
pub mod link;
pub mod peer;
pub mod relay;
mod run_secret;
mod seal;
pub mod sync;
mod trust;

pub use bootstrap::{Bootstrap, ManagementServer};
pub use credential::{Credential, CredentialError};
pub use enrolment_code::{EnrolmentCodeError, enrolment_code, parse_enrolment_code};
pub use fingerprint::{fingerprint_text, parse_fingerprint};
pub use judge::{Verdict, judge};
pub use run_secret::RunSecret;
pub use seal::{SealError, open, seal};
pub use trust::TrustBundle;
