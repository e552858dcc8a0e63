//! Where blocks come from and go to: the two traits an application gives the core.

use crate::{Handle, SourceError};

/// Gives the bytes of blocks at the moment they are sent, and again when a piece was lost.
pub trait BlockSource {
    /// Fills `buf` with the bytes of block `tag` from `offset` on.
    ///
    /// Called inside `poll_transmit`, once per packet: it should answer from memory or a cached file.
    /// A block must give the same bytes every time it is asked.
    ///
    /// # Errors
    /// [`SourceError`] gives the block up: it leaves the queue and [`crate::Event::BlockFailed`] follows.
    fn read(&mut self, conn: Handle, tag: u64, offset: u32, buf: &mut [u8]) -> Result<(), SourceError>;
}

/// Takes the pieces of blocks as they arrive: in any order, and now and then twice.
pub trait BlockSink {
    /// A piece of block `tag` at `offset`; `fin` tells that it is the last piece of the block by position
    /// (`offset + data.len()` is the block's length), not that all others have come. The first pieces may come
    /// before [`crate::Event::Connected`] was polled.
    fn write(&mut self, conn: Handle, tag: u64, offset: u32, fin: bool, data: &[u8]);
}
