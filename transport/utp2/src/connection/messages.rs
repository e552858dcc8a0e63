//! The message channel: an ordered stream of length-prefixed messages, bounded on both sides (PROTOCOL.md §6).

use alloc::collections::VecDeque;
use alloc::vec;
use alloc::vec::Vec;

use super::ranges::RangeSet;

/// Bytes before each message.
pub(crate) const PREFIX: usize = 4;

/// Bytes not yet acknowledged, and where sending stands.
#[derive(Debug)]
pub(crate) struct MessageSender {
    buffer: VecDeque<u8>,
    capacity: usize,
    /// Stream offset of the buffer's first byte: everything below is acknowledged.
    base: u64,
    /// First byte never sent.
    next: u64,
    acked: RangeSet,
    /// The peer accepts bytes below this offset.
    limit: u64,
    /// Room somebody was refused for want of.
    wanted: usize,
}

impl MessageSender {
    pub(crate) fn new(capacity: usize, limit: u64) -> Self {
        let buffer = VecDeque::new();
        Self { buffer, capacity, base: 0, next: 0, acked: RangeSet::default(), limit, wanted: 0 }
    }

    /// Queues a message, or remembers that there was no room.
    pub(crate) fn push(&mut self, message: &[u8]) -> bool {
        let need = message.len() + PREFIX;
        if self.capacity.saturating_sub(self.buffer.len()) < need {
            self.wanted = need;
            return false;
        }
        self.buffer.extend((message.len() as u32).to_be_bytes());
        self.buffer.extend(message);
        true
    }

    /// Bytes queued and not acknowledged.
    pub(crate) fn buffered(&self) -> usize {
        self.buffer.len()
    }

    pub(crate) fn raise_limit(&mut self, limit: u64) {
        self.limit = self.limit.max(limit);
    }

    /// The next bytes never sent that the peer accepts: offset and length.
    pub(crate) fn peek(&self) -> Option<(u64, usize)> {
        let end = (self.base + self.buffer.len() as u64).min(self.limit);
        (self.next < end).then(|| (self.next, (end - self.next) as usize))
    }

    pub(crate) fn advance(&mut self, len: usize) {
        self.next += len as u64;
    }

    /// What of the range still waits for its acknowledgement: all but what lies at its beginning.
    pub(crate) fn wanted(&self, offset: u64, len: usize) -> Option<(u64, usize)> {
        let end = offset + len as u64;
        let start = offset.max(self.base);
        (start < end && !self.acked.contains(start, end)).then(|| (start, (end - start) as usize))
    }

    /// Copies bytes that are queued and not acknowledged, as [`MessageSender::peek`] and [`MessageSender::wanted`] give
    /// them.
    pub(crate) fn copy(&self, offset: u64, out: &mut [u8]) {
        debug_assert!(offset >= self.base, "what was acknowledged is gone");
        let at = offset.saturating_sub(self.base) as usize;
        let (a, b) = self.buffer.as_slices();
        let mut out = out;
        if at < a.len() {
            let n = out.len().min(a.len() - at);
            let (head, tail) = out.split_at_mut(n);
            head.copy_from_slice(&a[at..at + n]);
            out = tail;
            let n = out.len().min(b.len());
            out[..n].copy_from_slice(&b[..n]);
        } else {
            let at = at - a.len();
            let n = out.len().min(b.len().saturating_sub(at));
            out[..n].copy_from_slice(&b[at..at + n]);
        }
    }

    /// Returns whether somebody who was refused may try again.
    pub(crate) fn on_acked(&mut self, offset: u64, len: usize) -> bool {
        self.acked.insert(offset.max(self.base), offset + len as u64);
        let to = self.acked.reach(self.base);
        if to > self.base {
            self.buffer.drain(..(to - self.base) as usize);
            self.base = to;
            self.acked.remove_below(to);
        }
        let free = self.capacity.saturating_sub(self.buffer.len());
        let writable = self.wanted > 0 && free >= self.wanted.max(self.capacity / 4);
        if writable {
            self.wanted = 0;
        }
        writable
    }
}

/// The peer broke a rule of the channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MessageError {
    BeyondLimit,
    TooLong,
}

/// Puts pieces in order and cuts messages out.
#[derive(Debug)]
pub(crate) struct MessageReceiver {
    buffer: VecDeque<u8>,
    capacity: usize,
    max_message: usize,
    /// Stream offset of the buffer's first byte: everything below was cut out.
    base: u64,
    received: RangeSet,
    /// Bytes cut out that the application has not taken yet.
    untaken: u64,
    /// Bytes taken while the application holds messages back; still part of `untaken`.
    held: Option<u64>,
    /// The limit last told to the peer.
    limit: u64,
}

impl MessageReceiver {
    pub(crate) fn new(capacity: usize, max_message: usize) -> Self {
        Self {
            buffer: VecDeque::new(),
            capacity,
            max_message,
            base: 0,
            received: RangeSet::default(),
            untaken: 0,
            held: None,
            limit: capacity as u64,
        }
    }

    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), MessageError> {
        let end = offset + data.len() as u64;
        if end > self.limit {
            return Err(MessageError::BeyondLimit);
        }
        if end <= self.base || data.is_empty() {
            return Ok(());
        }
        let skip = self.base.saturating_sub(offset) as usize;
        let (offset, data) = (offset.max(self.base), &data[skip..]);
        let at = (offset - self.base) as usize;
        if self.received.insert(offset, end) == 0 {
            return Ok(());
        }
        // Packets are of 1200 bytes at least: nobody who is honest leaves so many holes.
        if self.received.as_slice().len() > self.capacity / 512 + 64 {
            return Err(MessageError::BeyondLimit);
        }
        if self.buffer.len() < at + data.len() {
            self.buffer.resize(at + data.len(), 0);
        }
        let (a, b) = self.buffer.as_mut_slices();
        if at < a.len() {
            let n = data.len().min(a.len() - at);
            a[at..at + n].copy_from_slice(&data[..n]);
            b[..data.len() - n].copy_from_slice(&data[n..]);
        } else {
            let at = at - a.len();
            b[at..at + data.len()].copy_from_slice(data);
        }
        Ok(())
    }

    /// The next whole message.
    pub(crate) fn read(&mut self) -> Result<Option<Vec<u8>>, MessageError> {
        let ready = (self.received.reach(self.base) - self.base) as usize;
        if ready < PREFIX {
            return Ok(None);
        }
        let mut prefix = [0; PREFIX];
        prefix.iter_mut().zip(&self.buffer).for_each(|(p, b)| *p = *b);
        let len = u32::from_be_bytes(prefix) as usize;
        if len > self.max_message {
            return Err(MessageError::TooLong);
        }
        if ready < PREFIX + len {
            return Ok(None);
        }
        self.buffer.drain(..PREFIX);
        let mut message = vec![0; len];
        let (a, b) = self.buffer.as_slices();
        let n = len.min(a.len());
        message[..n].copy_from_slice(&a[..n]);
        message[n..].copy_from_slice(&b[..len - n]);
        self.buffer.drain(..len);
        self.base += (PREFIX + len) as u64;
        self.received.remove_below(self.base);
        self.untaken += (PREFIX + len) as u64;
        if self.buffer.is_empty() && self.buffer.capacity() > 1 << 16 {
            self.buffer = VecDeque::new();
        }
        Ok(Some(message))
    }

    /// The application took a message of `len` bytes. Returns whether the peer should be told of a new limit.
    pub(crate) fn on_taken(&mut self, len: usize) -> bool {
        let taken = (len + PREFIX) as u64;
        if let Some(held) = &mut self.held {
            *held += taken;
            return false;
        }
        self.untaken = self.untaken.saturating_sub(taken);
        self.is_worth_telling()
    }

    /// Whether what is taken from now on counts only when this is called with `false`. Returns whether the peer
    /// should be told of a new limit.
    pub(crate) fn hold(&mut self, hold: bool) -> bool {
        if hold {
            self.held.get_or_insert(0);
            return false;
        }
        self.untaken = self.untaken.saturating_sub(self.held.take().unwrap_or(0));
        self.is_worth_telling()
    }

    /// Whether the room that opened is a quarter of the buffer, or the peer could not send a longest message without.
    fn is_worth_telling(&self) -> bool {
        let spare = self.capacity.saturating_sub(self.max_message + PREFIX);
        self.target() - self.limit >= (self.capacity / 4).min(spare).max(1) as u64
    }

    fn target(&self) -> u64 {
        (self.base - self.untaken + self.capacity as u64).max(self.limit)
    }

    /// The limit to tell now.
    pub(crate) fn tell_limit(&mut self) -> u64 {
        self.limit = self.target();
        self.limit
    }
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha8Rng;
    use rand_core::{Rng, SeedableRng};

    use super::*;

    #[test]
    fn messages_survive_any_order_and_repetition_within_bounds() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let mut s = MessageSender::new(3000, 3000);
        let mut r = MessageReceiver::new(3000, 1000);
        let (mut sent, mut got) = (Vec::new(), Vec::new());
        let mut flying: Vec<(u64, Vec<u8>)> = Vec::new();
        for step in 0..20_000u32 {
            let m = vec![step as u8; rng.next_u32() as usize % 900];
            if sent.len() < 200 && s.push(&m) {
                sent.push(m);
            }
            assert!(s.buffered() <= 3000);
            if let Some((offset, len)) = s.peek() {
                let mut piece = vec![0; len.min(200)];
                s.copy(offset, &mut piece);
                s.advance(piece.len());
                flying.push((offset, piece));
            }
            if flying.len() > 5 || s.peek().is_none() && !flying.is_empty() {
                let i = rng.next_u32() as usize % flying.len();
                let (offset, piece) = flying[i].clone();
                r.write(offset, &piece).unwrap();
                if rng.next_u32() & 1 == 0 {
                    flying.swap_remove(i);
                    s.on_acked(offset, piece.len());
                }
                while let Some(m) = r.read().unwrap() {
                    let tell = r.on_taken(m.len());
                    got.push(m);
                    if tell {
                        s.raise_limit(r.tell_limit());
                    }
                }
                assert!(r.buffer.len() <= 3000);
            }
        }
        assert_eq!(sent.len(), 200);
        assert_eq!(sent, got);
        assert_eq!(s.buffered(), 0);
    }

    #[test]
    fn a_peer_that_ignores_the_limits_is_found_out() {
        let mut r = MessageReceiver::new(100, 50);
        assert_eq!(r.write(90, &[0; 11]), Err(MessageError::BeyondLimit));
        assert_eq!(r.write(0, &[0, 0, 0, 51]), Ok(()));
        assert_eq!(r.read(), Err(MessageError::TooLong));
    }

    #[test]
    fn what_is_taken_while_held_opens_no_window_until_released() {
        let mut r = MessageReceiver::new(100, 50);
        r.hold(true);
        for i in 0..3 {
            r.write(i * 30, &[0, 0, 0, 26]).unwrap();
            r.write(i * 30 + 4, &[7; 26]).unwrap();
            assert_eq!(r.read(), Ok(Some(vec![7; 26])));
            assert!(!r.on_taken(26));
        }
        assert_eq!(r.tell_limit(), 100);
        assert!(!r.hold(true) && r.hold(false));
        assert_eq!(r.tell_limit(), 190);
        assert!(!r.hold(false), "once");
    }

    #[test]
    fn a_message_as_long_as_the_buffer_follows_a_short_one() {
        let mut r = MessageReceiver::new(104, 100);
        r.write(0, &[0, 0, 0, 1, 7]).unwrap();
        assert_eq!(r.read(), Ok(Some(vec![7])));
        assert!(r.on_taken(1), "5 bytes are no quarter, but without them 104 do not fit");
        assert_eq!(r.tell_limit(), 109);
    }

    #[test]
    fn holes_are_limited() {
        let mut r = MessageReceiver::new(1 << 16, 50);
        let refused = (1..30_000).find(|i| r.write(i * 2, &[0]).is_err());
        assert_eq!(refused, Some(128 + 64 + 1));
    }

    #[test]
    fn a_piece_cut_anew_does_not_overwrite_what_has_arrived() {
        let mut s = MessageSender::new(100, 100);
        let mut r = MessageReceiver::new(100, 50);
        assert!(s.push(&[7; 40]));
        let mut first = [0; 30];
        s.copy(0, &mut first);
        s.advance(44);
        r.write(0, &first).unwrap();
        s.on_acked(0, 30);
        // All of it was sent in one piece before, and that is taken for lost.
        assert_eq!(s.wanted(0, 44), Some((30, 14)));
        let mut rest = [0; 14];
        s.copy(30, &mut rest);
        r.write(30, &rest).unwrap();
        assert_eq!(r.read(), Ok(Some(vec![7; 40])));
        assert_eq!((s.wanted(0, 30), s.wanted(44, 0)), (None, None));
    }

    #[test]
    fn a_refused_writer_is_told_when_there_is_room() {
        let mut s = MessageSender::new(100, 1000);
        assert!(s.push(&[0; 90]) && !s.push(&[0; 10]));
        s.advance(94);
        assert!(!s.on_acked(50, 44), "a hole remains");
        assert!(s.on_acked(0, 50));
        assert!(!s.on_acked(0, 50), "once");
    }
}
