//! An image from one peer of its run: what a destination says over a session, one block after the other
//! (PROTOCOL.md §3.1 to §3.4, DEVICE_FORMAT.md §5).
//!
//! Owns the conversation, not the session: messages and pieces go in, messages and what came of them come out. It lives
//! as long as the session; what must outlast it is on the flash. It announces nothing and so serves nothing.

use alloc::collections::VecDeque;
use alloc::string::ToString;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

use agent_proto::limits::BLOCK_LEN;
use agent_proto::peer::{BlockAddress, BlockRange, Hello, PeerMessage, Request};
use embedded_storage::nor_flash::NorFlash;
use event_schema::{RunId, Signed};
use sync_core::manifest::ManifestHead;

use crate::device::{Device, Error};
use crate::image::{Payload, PayloadFault, block_len};
use crate::limits::{BLOCKS_MAX, MANIFEST_LEN_MAX, PIECE_LEN, STRETCHES_MAX};
use crate::update::{BeginError, Begun, BlockError, Stored};

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing to do but to wait for the peer.
    More,
    /// This block came and is here for good.
    Kept(u32),
    /// The image is whole: [`Device::activate`] it. Nothing more is asked for.
    Ready,
    /// The image is on trial, or what was confirmed last. Nothing more is asked for.
    Installed,
}

/// Why it does not go on with this peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FetchError {
    /// The peer did what no honest peer does: it is to be avoided.
    Peer(&'static str),
    /// The image must not be installed here, whoever gives it.
    Refused(BeginError),
    /// What the run's source signed is no image.
    NoImage(PayloadFault),
    /// See [`Error`].
    Device(Error),
}

impl fmt::Display for FetchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Peer(what) => f.write_str(what),
            Self::Refused(e) => e.fmt(f),
            Self::NoImage(e) => e.fmt(f),
            Self::Device(e) => e.fmt(f),
        }
    }
}

impl core::error::Error for FetchError {}

impl From<Error> for FetchError {
    fn from(error: Error) -> Self {
        Self::Device(error)
    }
}

impl From<BlockError> for FetchError {
    fn from(error: BlockError) -> Self {
        Self::Device(if let BlockError::Device(e) = error { e } else { Error::Flash })
    }
}

/// The block that is on its way.
struct Asked {
    address: BlockAddress,
    len: u32,
    /// What came of it, sorted, without overlaps.
    got: Vec<Range<u32>>,
}

/// See the module. Takes 32 KiB while a block is on its way.
pub struct Fetch {
    run: RunId,
    source: [u8; 32],
    greeted: bool,
    head: Option<Signed>,
    /// The manifest was checked and the image begun.
    begun: bool,
    over: bool,
    /// Content blocks that the peer has.
    has: u64,
    /// Content blocks that were looked for in the active slot.
    sought: u64,
    asked: Option<Asked>,
    bytes: Vec<u8>,
    out: VecDeque<PeerMessage>,
}

impl Fetch {
    /// For a session that has just come about with a participant of `run`, whose source has this key. `version` is for
    /// people.
    pub fn new(run: RunId, source: [u8; 32], version: &str) -> Self {
        let hello = Hello { version: version.to_string(), origin: false };
        Self {
            run,
            source,
            greeted: false,
            head: None,
            begun: false,
            over: false,
            has: 0,
            sought: 0,
            asked: None,
            bytes: Vec::new(),
            out: VecDeque::from([hello.into()]),
        }
    }

    /// What to send next.
    pub fn poll_message(&mut self) -> Option<PeerMessage> {
        self.out.pop_front()
    }

    /// A message of the peer.
    ///
    /// # Errors
    /// See [`FetchError`]: the session is of no more use.
    pub fn handle_message<F: NorFlash>(
        &mut self,
        device: &mut Device<F>,
        message: PeerMessage,
    ) -> Result<Step, FetchError> {
        if self.over {
            return Ok(Step::More);
        }
        match message {
            PeerMessage::Hello(_) if !self.greeted => self.greeted = true,
            _ if !self.greeted => return Err(FetchError::Peer("the peer did not say hello first")),
            PeerMessage::Head(head) => return self.handle_head(device, head.signed),
            PeerMessage::Have(have) => {
                for range in have.ranges.iter().filter(|range| !range.first.is_manifest()) {
                    self.has |= bits(range);
                }
                return self.go_on(device);
            }
            PeerMessage::Unavailable(gone) => {
                let asked = self.asked.as_ref().is_some_and(|asked| asked.address == gone.block);
                if asked && gone.block.is_manifest() {
                    return Err(FetchError::Peer("the peer does not have the manifest whose head it sent"));
                }
                self.has &= !bits(&BlockRange { first: gone.block, count: 1 });
                if asked {
                    self.asked = None;
                    return self.go_on(device);
                }
            }
            // Nothing was announced, so nothing can be had here; the rest is between those who serve.
            _ => {}
        }
        Ok(Step::More)
    }

    fn handle_head<F: NorFlash>(
        &mut self,
        device: &mut Device<F>,
        signed: Signed,
    ) -> Result<Step, FetchError> {
        if let Some(known) = &self.head {
            return if *known == signed {
                Ok(Step::More)
            } else {
                Err(FetchError::Peer("the peer sent two heads"))
            };
        }
        let head = ManifestHead::open(&signed, self.run, &self.source)
            .map_err(|_| FetchError::Peer("the manifest's head is not one of this run's source"))?;
        if head.len > MANIFEST_LEN_MAX as u64 {
            return Err(FetchError::NoImage(PayloadFault::Size));
        }
        self.head = Some(signed.clone());
        for slot in [device.active().other(), device.active()] {
            if let Some((_, manifest)) = device.manifest(slot)?.filter(|(known, _)| *known == signed) {
                return self.begin(device, &manifest);
            }
        }
        // It is one block: no hashes are needed to tell whether it is the head's.
        self.ask(BlockAddress::manifest(0), head.len as u32);
        Ok(Step::More)
    }

    /// A piece of a block, at any place, now and then twice; to be given as it comes.
    ///
    /// # Errors
    /// See [`FetchError`]: the session is of no more use.
    pub fn handle_piece<F: NorFlash>(
        &mut self,
        device: &mut Device<F>,
        tag: u64,
        offset: u32,
        data: &[u8],
    ) -> Result<Step, FetchError> {
        let Some(asked) = self.asked.as_mut().filter(|asked| asked.address.0 == tag) else {
            return Ok(Step::More);
        };
        let end = u32::try_from(data.len()).ok().and_then(|len| offset.checked_add(len));
        let Some(end) = end.filter(|end| *end <= asked.len) else {
            return Err(FetchError::Peer("a block is longer than it may be"));
        };
        self.bytes[offset as usize..end as usize].copy_from_slice(data);
        asked.add(offset..end);
        if asked.got.len() > STRETCHES_MAX {
            return Err(FetchError::Peer("a block comes in crumbs"));
        }
        if !matches!(&asked.got[..], [whole] if *whole == (0..asked.len)) {
            return Ok(Step::More);
        }
        let (address, len) = (asked.address, asked.len);
        self.asked = None;
        if address.is_manifest() {
            let manifest = core::mem::take(&mut self.bytes);
            return self.begin(device, &manifest[..len as usize]);
        }
        let block = address.index() as u32;
        device.start_block(block)?;
        for (nth, piece) in self.bytes[..len as usize].chunks(PIECE_LEN as usize).enumerate() {
            device.put(block, nth as u32 * PIECE_LEN, piece)?;
        }
        match device.finish_block(block)? {
            Stored::Corrupt => Err(FetchError::Peer("a block is not what its hash says")),
            Stored::Refused(refused) => Err(FetchError::Refused(refused)),
            Stored::Last => Ok(self.end(Step::Ready)),
            Stored::Kept => Ok(match self.go_on(device)? {
                Step::More => Step::Kept(block),
                step => step,
            }),
        }
    }

    fn begin<F: NorFlash>(&mut self, device: &mut Device<F>, manifest: &[u8]) -> Result<Step, FetchError> {
        let Some(head) = &self.head else { return Ok(Step::More) };
        let payload = Payload::open(head, manifest, self.run, &self.source).map_err(|fault| match fault {
            PayloadFault::NotOfHead => FetchError::Peer("the manifest is not the head's"),
            fault => FetchError::NoImage(fault),
        })?;
        match device.begin(&payload) {
            Ok(Begun::Anew | Begun::Resumed) => {
                self.begun = true;
                self.go_on(device)
            }
            Ok(Begun::Ready) => Ok(self.end(Step::Ready)),
            Ok(Begun::OnTrial | Begun::Active) => Ok(self.end(Step::Installed)),
            Err(BeginError::Device(e)) => Err(e.into()),
            // No fault of the image: it may hold the next time.
            Err(BeginError::SlotWorn) => Err(Error::Flash.into()),
            Err(e) => Err(FetchError::Refused(e)),
        }
    }

    /// Takes what is in the active slot already, and asks for the next block that the peer has.
    fn go_on<F: NorFlash>(&mut self, device: &mut Device<F>) -> Result<Step, FetchError> {
        if !self.begun || self.asked.is_some() {
            return Ok(Step::More);
        }
        let missing: Vec<u32> = device.missing().collect();
        for block in missing {
            if self.sought >> block & 1 == 0 {
                self.sought |= 1 << block;
                match device.reuse(block)? {
                    Some(Stored::Last) => return Ok(self.end(Step::Ready)),
                    Some(Stored::Refused(refused)) => return Err(FetchError::Refused(refused)),
                    Some(Stored::Kept) => continue,
                    Some(Stored::Corrupt) | None => {}
                }
            }
            if self.has >> block & 1 == 1 {
                let len = device.progress().map_or(0, |progress| block_len(progress.len, block));
                self.ask(BlockAddress::content(block.into()), len);
                break;
            }
        }
        Ok(Step::More)
    }

    fn ask(&mut self, address: BlockAddress, len: u32) {
        // A manifest is small, and is still here when the first block is asked for.
        let room = if address.is_manifest() { len } else { BLOCK_LEN } as usize;
        if self.bytes.len() != room {
            self.bytes = Vec::new();
            self.bytes.resize(room, 0);
        }
        self.asked = Some(Asked { address, len, got: Vec::new() });
        let ranges = alloc::vec![BlockRange { first: address, count: 1 }];
        self.out.push_back(Request { ranges }.into());
    }

    fn end(&mut self, step: Step) -> Step {
        (self.over, self.asked, self.bytes) = (true, None, Vec::new());
        step
    }
}

impl Asked {
    fn add(&mut self, piece: Range<u32>) {
        let first = self.got.partition_point(|range| range.end < piece.start);
        let last = self.got.partition_point(|range| range.start <= piece.end);
        let joined = &self.got[first..last];
        let start = joined.first().map_or(piece.start, |range| range.start.min(piece.start));
        let end = joined.last().map_or(piece.end, |range| range.end.max(piece.end));
        self.got.splice(first..last, core::iter::once(start..end));
    }
}

/// The content blocks of a range that an image can have.
fn bits(range: &BlockRange) -> u64 {
    let end = range.first.index().saturating_add(range.count.into()).min(BLOCKS_MAX.into());
    (range.first.index()..end).fold(0, |bits, block| bits | 1 << block)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stretches_join_wherever_they_come() {
        let check = |pieces: &[(u32, u32)], then: &[(u32, u32)]| {
            let mut asked = Asked { address: BlockAddress::content(0), len: 100, got: Vec::new() };
            pieces.iter().for_each(|&(start, end)| asked.add(start..end));
            let got: Vec<_> = asked.got.iter().map(|range| (range.start, range.end)).collect();
            assert_eq!(got, then, "{pieces:?}");
        };
        check(&[(0, 10), (10, 20)], &[(0, 20)]);
        check(&[(10, 20), (0, 10)], &[(0, 20)]);
        check(&[(0, 10), (20, 30)], &[(0, 10), (20, 30)]);
        check(&[(0, 10), (20, 30), (10, 20)], &[(0, 30)]);
        check(&[(20, 30), (0, 5), (40, 50), (3, 45)], &[(0, 50)]);
        check(&[(5, 9), (5, 9), (6, 7)], &[(5, 9)]);
        check(&[(20, 30), (0, 10), (12, 15)], &[(0, 10), (12, 15), (20, 30)]);
    }

    #[test]
    fn ranges_beyond_an_image_are_passed_over() {
        let range = |first, count| BlockRange { first: BlockAddress::content(first), count };
        assert_eq!(bits(&range(0, 2)), 3);
        assert_eq!(bits(&range(63, u32::MAX)), 1 << 63);
        assert_eq!(bits(&range(64, 1)), 0);
        assert_eq!(bits(&range(u64::MAX, 5)), 0);
    }
}
