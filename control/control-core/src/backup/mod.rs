//! What a backup decides by itself: when a start is due ([`when`]) and which versions are kept ([`keep`]).
//!
//! Both depend on nothing but what is on the log and, for the schedule, the time: asked at another moment, twice, or by
//! another replica, they answer the same. How versions lie in storage: `edge-agent/BACKUP.md`. Why it is so: decision
//! 0026. Nothing on the log says any of it yet.

mod calendar;
pub mod keep;
pub mod version;
pub mod when;
