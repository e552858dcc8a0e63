//! Backups: when a start is due ([`when`]), which versions stand where ([`standing`]) and are kept ([`keep`]), what is to
//! be ordered for that ([`plan`]), and giving versions back ([`restore`]). Starts are those of [`crate::batch`].
//!
//! What is kept and when one starts depend on nothing but what is on the log and, for the schedule, the time: asked at
//! another moment, twice, or by another replica, they answer the same. How versions lie in storage:
//! `edge-agent/BACKUP.md`. Why it is so: decision 0026.

mod calendar;
pub mod keep;
pub mod plan;
pub mod restore;
pub mod standing;
pub(crate) mod told;
pub mod version;
pub mod when;
