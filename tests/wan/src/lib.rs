//! A wide-area link on one machine, in real time: two network namespaces, a TUN device in each, and a program
//! between them that queues, loses and delays packets. Real programs with real sockets run at both ends.
//!
//! Owns the link ([`Link`]) and programs at its ends ([`Program`]). The binary `wan` adds other protocols to compare
//! with and the benchmark. Links in virtual time are `utp2-sim`'s; use those to compare to the last digit, and these to
//! see what kernel, sockets and processors make of it. Start at [`Link::start`].

mod carrier;
mod host;
mod link;
mod program;
mod ring;
mod segments;
mod shape;
mod side;

pub use carrier::{Counters, Lateness};
pub use host::Raised;
pub use link::{Config, Link, Report};
pub use program::{Ended, Program};
pub use shape::{Loss, Shape};
pub use side::{DEVICE, NotPermitted, Side};
