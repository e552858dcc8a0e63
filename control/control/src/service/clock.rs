//! The one place where the service reads the wall clock.

use std::time::{SystemTime, UNIX_EPOCH};

use event_schema::Timestamp;

/// The time by this machine's clock.
pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
