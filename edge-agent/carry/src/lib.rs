//! What members of a fleet hand each other for those that are out of its reach: commands on their way out, reports on
//! their way home, and what keeps both in bounds. `edge-agent/CARRYING.md` is the specification.
//!
//! Pure: no socket, no clock, no randomness. A [`Bag`] takes what it is brought if it proves itself, and says what
//! somebody else [lacks](Bag::lacking).
#![no_std]

extern crate alloc;

mod bag;
mod item;
mod letter;
mod limits;
mod notice;
mod shelf;
mod summary;

pub use bag::{Bag, Kept, Refused};
pub use item::{Item, Keys, NoticeSent, Order};
pub use letter::{Letter, LetterError};
pub use limits::Limits;
pub use notice::{Notice, Receipt, Removal};
pub use shelf::Floor;
pub use summary::{Sequences, Summary};
