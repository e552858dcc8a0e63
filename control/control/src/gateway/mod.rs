//! The gateway: where agents connect (`edge-agent/PROTOCOL.md` §2).
//!
//! TLS 1.3, one task and one small set of buffers per agent. It decides nothing: [`Fleet`] does.

mod fleet;

pub use fleet::{EnrolDecision, EnrolRequest, Fleet, ReportError, Session};
