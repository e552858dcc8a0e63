//! What `utp2 send` and `utp2 recv` say to each other, in messages of postcard behind a version byte.
//!
//! The sender offers files and says `Finished` right behind the last offer; the receiver ends each file by `Ended`, and
//! takes leave with the last of them, so that the sender may close at once. Who has taken leave waits for nothing.
//! A sender that remembers the receiver sends its first offers (and `Finished`, if they are all) with the very first
//! packet. They may be a copy that somebody held back, so until the connection is confirmed an offer begins nothing
//! that is not undone by forgetting it: see `recv::begin`. Everything else comes later.
//!
//! Blocks travel beside the messages: tag = number of the file << 32 | number of the block.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Version 1 said `Finished` when all was done, and was answered a round trip later; version 2 checked files by SHA-256.
const VERSION: u8 = 3;

/// Bytes of a block; the last one of a file is shorter.
pub(crate) const BLOCK: u32 = 32 * 1024;

/// Runs of blocks in one `Accept`: what does not fit is sent again. Keeps the message below 64 KiB.
pub(crate) const HAVE_MAX: usize = 4096;

/// Bytes of a text for people.
pub(crate) const TEXT_MAX: usize = 500;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ToReceiver {
    /// Here is a file. Each has a higher number than the one before.
    Offer { file: u32, meta: Meta },
    /// The BLAKE3 hash of the whole file.
    Sum { file: u32, blake3: [u8; 32] },
    /// It will not come.
    Abort { file: u32, reason: String },
    /// Nothing more will be offered.
    Finished,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Meta {
    /// The last part of the path, as the sender's system has it.
    pub(crate) name: Vec<u8>,
    pub(crate) size: u64,
    /// Permission bits, where the sender has them.
    pub(crate) mode: Option<u32>,
    /// Seconds and nanoseconds since 1970.
    pub(crate) modified: Option<(i64, u32)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ToSender {
    /// Send it, but for these runs of blocks (first, count).
    Accept { file: u32, have: Vec<(u32, u32)> },
    /// Nothing more will happen to it. `last`: `Farewell` goes with it.
    Ended { file: u32, how: Ending, last: bool },
    /// `Finished` was heard, and all that was offered has ended.
    Farewell,
}

/// What became of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Ending {
    /// It is complete, verified and in its place.
    Done,
    /// It cannot be taken.
    Declined { reason: String },
    /// It went wrong on the way.
    Failed { reason: String },
}

/// A message that is not one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    /// Another release wrote it.
    #[error(
        "the other side speaks version {0} of this tool's language, this is version {VERSION}: use one release on both"
    )]
    Version(u8),
    #[error("the other side does not speak the language of this tool")]
    Nonsense,
}

pub(crate) fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    // Version first, then postcard.
    postcard::to_extend(message, vec![VERSION]).expect("these types have no shape postcard refuses")
}

pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Malformed> {
    match bytes.split_first() {
        Some((&VERSION, body)) => match postcard::take_from_bytes(body) {
            Ok((message, [])) => Ok(message),
            _ => Err(Malformed::Nonsense),
        },
        Some((&other, _)) => Err(Malformed::Version(other)),
        None => Err(Malformed::Nonsense),
    }
}

/// Cuts a text to what the other side takes.
pub(crate) fn clip(text: impl ToString) -> String {
    let mut text = text.to_string();
    if text.len() > TEXT_MAX {
        text.truncate(text.floor_char_boundary(TEXT_MAX));
    }
    text
}

pub(crate) fn tag(file: u32, block: u32) -> u64 {
    u64::from(file) << 32 | u64::from(block)
}

pub(crate) fn file_and_block(tag: u64) -> (u32, u32) {
    ((tag >> 32) as u32, tag as u32)
}

/// Blocks of a file of `size` bytes; `None` if they cannot be numbered.
pub(crate) fn blocks_of(size: u64) -> Option<u32> {
    u32::try_from(size.div_ceil(u64::from(BLOCK))).ok()
}

/// The length of a block of a file of `size` bytes; 0 beyond its end.
pub(crate) fn block_len(size: u64, block: u32) -> u32 {
    let rest = size.saturating_sub(u64::from(block) * u64::from(BLOCK));
    u32::try_from(rest).unwrap_or(u32::MAX).min(BLOCK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_back_and_garbage_does_not() {
        let meta = Meta { name: vec![0xff, b'\n'], size: u64::MAX, mode: None, modified: Some((-1, 5)) };
        let offer = ToReceiver::Offer { file: 7, meta };
        let bytes = encode(&offer);
        assert_eq!(decode(&bytes), Ok(offer));
        for cut in 0..bytes.len() {
            assert_eq!(decode::<ToReceiver>(&bytes[..cut]), Err(Malformed::Nonsense));
        }
        for i in 0..bytes.len() {
            for bit in 0..8 {
                let mut wrong = bytes.clone();
                wrong[i] ^= 1 << bit;
                let _ = decode::<ToReceiver>(&wrong);
                let _ = decode::<ToSender>(&wrong);
            }
        }
        let longer = [&bytes[..], &[0]].concat();
        assert_eq!(decode::<ToReceiver>(&longer), Err(Malformed::Nonsense), "nothing may follow");
        // What version 1 said when it had done.
        let old = decode::<ToReceiver>(&[1, 3]).unwrap_err();
        assert_eq!(old, Malformed::Version(1));
        assert!(old.to_string().contains("version 1"), "{old}");
    }

    #[test]
    fn blocks_cover_a_file_exactly() {
        for size in [0, 1, 32_767, 32_768, 32_769, 1 << 40] {
            let blocks = blocks_of(size).unwrap();
            let last = blocks.checked_sub(1).map_or(0, |last| block_len(size, last));
            let before = u64::from(blocks.saturating_sub(1)) * u64::from(BLOCK);
            assert_eq!(before + u64::from(last), size);
            assert_eq!(block_len(size, blocks), 0);
        }
        assert_eq!(blocks_of(u64::MAX), None);
        assert_eq!(file_and_block(tag(3, u32::MAX)), (3, u32::MAX));
        assert_eq!(clip("ä".repeat(400)).len(), 500);
    }
}
