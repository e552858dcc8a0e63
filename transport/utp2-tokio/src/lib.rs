//! µTP2 on tokio: a UDP socket, the clock and a task around the sans-IO core `utp2`.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use std::sync::Arc;
//! use utp2::{ContextId, Identity, PeerIdentity};
//! use utp2_tokio::{BlockSink, BlockSource, Endpoint, EndpointConfig, Handle};
//!
//! struct Zeros;
//! impl BlockSource for Zeros {
//!     fn read(&self, _: Handle, _tag: u64, _offset: u32, buf: &mut [u8]) -> std::io::Result<()> {
//!         buf.fill(0);
//!         Ok(())
//!     }
//! }
//! impl BlockSink for Zeros {
//!     fn write(&self, _: Handle, _tag: u64, _offset: u32, _fin: bool, _data: &[u8]) {}
//! }
//!
//! let anybody = |_: ContextId, _: &PeerIdentity| true;
//! let config = EndpointConfig::new(Identity::new([7; 32], Vec::new()), anybody);
//! let (endpoint, _incoming) = Endpoint::bind("127.0.0.1:0".parse()?, config)?;
//! let context = ContextId(*b"an example's id.");
//! endpoint.add_context(context, [9; 32], Arc::new(Zeros), Arc::new(Zeros));
//! let conn = endpoint.connect("127.0.0.1:4433".parse()?, context).await?;
//! conn.send_block(1, 32 * 1024, 0)?;
//! conn.send_message(b"that was block 1").await?;
//! # Ok(()) }
//! ```
//!
//! Another protocol may share the socket ([`Endpoint::beside`]), and µTP2 may travel inside its datagrams
//! ([`Endpoint::add_detour`]): that is how agents talk to trackers, open NATs and use relays.
//!
//! # How it is built, and why
//! The core sits behind one mutex; a task per endpoint (the *driver*) moves datagrams and time through it,
//! and the calls of [`Connection`] take the same mutex for a moment. Against a channel of commands this
//! answers at once (`queued_blocks`, `stats`, "no room now"), costs no allocation per block, and a full
//! channel cannot be forgotten. The driver never holds the mutex over a system call on the socket, and
//! for no more than one batch of packets (64 KiB), so a call waits some 100 µs at worst, unless a
//! [`BlockSource`] or [`BlockSink`] is slow: both are called under the mutex. They must answer from
//! memory or from files in the page cache, and must not call back into this crate (that panics, where it
//! would have hung).
//!
//! The driver wakes for one of four reasons (`Wakeup` in `driver.rs`): the socket has something or has room
//! again, the core's deadline has come, somebody used a connection, the endpoint is to end. Deadlines are kept
//! by a `timerfd` on Linux, because pacing needs better than tokio's millisecond. Under load the driver does not
//! wake for every batch of datagrams: it lets them gather for 50 µs and has the socket wake nobody meanwhile
//! (`gate.rs`). When a datagram came is what the kernel noted, not when the driver got to it (`arrival.rs`), so
//! that a machine with other work does not look like a congested network.
//!
//! A handshake is computed on the driver, 4 ms on each side that hold the endpoint's other connections up; at
//! most a few hundred handshakes a second are possible.
//!
//! Nothing here decides protocol matters; see `utp2` and `transport/PROTOCOL.md` for those.

mod arrival;
mod beside;
mod connection;
mod driver;
mod endpoint;
mod fault;
mod gate;
mod shared;
mod socket;
mod talk;
mod tickets;
mod timer;

use std::io;

pub use beside::{Beside, DETOUR_HEADER};
pub use connection::{BlockEvent, Closed, Connection, SendMessageError};
pub use endpoint::{ConnectError, Endpoint, EndpointConfig, Incoming, SocketStats};
pub use fault::LossInjector;
pub use utp2::Handle;

/// Gives the bytes of the blocks of a context; see [`utp2::BlockSource`].
pub trait BlockSource: Send + Sync {
    /// Fills `buf` with the bytes of block `tag` from `offset` on, for each packet as it is sent, and the
    /// same bytes again if it was lost. Called on the driver with the endpoint locked: be quick, and do
    /// not call this crate.
    ///
    /// # Errors
    /// Any error gives the block up; [`BlockEvent::Failed`] follows. Keep the reason yourself.
    fn read(&self, conn: Handle, tag: u64, offset: u32, buf: &mut [u8]) -> io::Result<()>;
}

/// Takes the pieces of the blocks of a context; see [`utp2::BlockSink`].
pub trait BlockSink: Send + Sync {
    /// Takes a piece of block `tag`: in any order, now and then twice. `fin` marks the piece at the
    /// block's end. Called on the driver with the endpoint locked: be quick, and do not call this crate.
    fn write(&self, conn: Handle, tag: u64, offset: u32, fin: bool, data: &[u8]);
}
