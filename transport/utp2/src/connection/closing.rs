//! A connection that was closed here: its peer is told until it stops sending (PROTOCOL.md §10.1).

use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use timebase::Instant;

use super::keys::SealKeys;
use super::session::Session;
use crate::wire::Cid;
use crate::wire::frame::{Frame, MAX_REASON};
use crate::wire::header::{ShortNumber, emit_protected};

/// Least time between two CLOSE packets in answer to a peer that goes on sending.
const CLOSE_INTERVAL: Duration = Duration::from_millis(10);
/// CLOSE packets after the first that leave although nobody asks.
const CLOSE_COPIES: u8 = 3;
/// The closing phase of an endpoint that leaves: 2 ms between copies.
const HASTY_CLOSING: Duration = Duration::from_millis(8);

#[derive(Debug)]
pub(super) struct Closing {
    seal: SealKeys,
    remote_cid: Cid,
    pub(super) peer_reset: [u8; 16],
    next_number: u64,
    code: u16,
    reason: String,
    owed: bool,
    lasts: Duration,
    /// Set when the first CLOSE leaves.
    until: Option<Instant>,
    next: Option<Instant>,
    /// Unasked copies still to be sent, and when: a peer that misses the only one would wait for its idle timeout.
    copies: u8,
    again: Option<Instant>,
}

impl Closing {
    /// Ends a session; the reason is cut to what a CLOSE holds.
    pub(super) fn new(session: Session, code: u16, reason: &str) -> Self {
        Self {
            next_number: session.sent.next_number(),
            lasts: session.probe_timeout() * 3,
            seal: session.seal,
            remote_cid: session.remote_cid,
            peer_reset: session.peer_reset,
            code,
            reason: reason[..reason.floor_char_boundary(MAX_REASON)].into(),
            owed: true,
            until: None,
            next: None,
            copies: CLOSE_COPIES,
            again: None,
        }
    }

    /// Shortens what is left of it.
    pub(super) fn hasten(&mut self, now: Instant) {
        let copy = HASTY_CLOSING / (u32::from(CLOSE_COPIES) + 1);
        self.lasts = self.lasts.min(HASTY_CLOSING);
        self.again = self.again.map(|t| t.min(now + copy));
        self.until = self.until.map(|t| t.min(now + HASTY_CLOSING));
    }

    /// The peer goes on sending.
    pub(super) fn on_packet(&mut self, now: Instant) {
        self.owed |= self.next.is_none_or(|t| t <= now);
    }

    pub(super) fn next_timeout(&self) -> Option<Instant> {
        self.until.into_iter().chain(self.again).min()
    }

    /// Whether it is over.
    pub(super) fn on_timeout(&mut self, now: Instant) -> bool {
        if self.again.is_some_and(|t| t <= now) {
            (self.owed, self.again) = (true, None);
        }
        self.until.is_some_and(|u| u <= now)
    }

    /// Appends a CLOSE if one is owed.
    pub(super) fn emit(&mut self, now: Instant, buf: &mut Vec<u8>) -> bool {
        let lasts = self.lasts;
        self.until.get_or_insert(now + lasts);
        if !core::mem::take(&mut self.owed) {
            return false;
        }
        self.next = Some(now + CLOSE_INTERVAL);
        if self.copies > 0 {
            self.copies -= 1;
            self.again = Some(now + lasts / (u32::from(CLOSE_COPIES) + 1));
        }
        let number = self.next_number;
        self.next_number += 1;
        // At the key's limit the last packet is worth less than the key.
        if !self.seal.advance(number) {
            return false;
        }
        let short = ShortNumber::long(number);
        emit_protected(buf, &self.remote_cid, self.seal.phase, short);
        Frame::Close { code: self.code, reason: self.reason.as_bytes() }.emit_control(buf);
        let tag = self.seal.key.seal(number, buf, short.header());
        buf.extend_from_slice(&tag);
        true
    }
}
