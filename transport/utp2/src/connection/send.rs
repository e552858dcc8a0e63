//! Packets go out: what goes into them, in which order, and when (PROTOCOL.md §6, §8.1, §8.7).

use alloc::vec::Vec;
use core::time::Duration;

use timebase::Instant;

use super::State;
use super::blocks::Piece;
use super::keys::KEY_LIMIT;
use super::received::{FIRST_PACKETS, Rhythm, STEADY_PACKETS};
use super::scoreboard::{Chunk, Fate, MAX_CHUNKS};
use super::session::{Fault, LostPiece, Session};
use crate::config::MIN_DATAGRAM;
use crate::wire::frame::{self, Frame};
use crate::wire::handshake::RESET;
use crate::wire::header::{self, ShortNumber, TAG};
use crate::{BlockSource, Event, Transmit};

/// Records of settled packets that may lie between those in flight, beside half as many as may be in flight.
pub(super) const SETTLED_ALLOWANCE: usize = 4096;

/// A side that only acknowledges asks for an acknowledgement of its own about once a round trip, at least so long after
/// the last: to know the round trip time, and which ranges need not be repeated (§8.3).
const QUIET_PING: Duration = Duration::from_millis(100);

/// Most pieces remembered to be sent once more at the end.
const MAX_TAIL_COPIES: usize = 4096;

/// Bytes of such copies that a connection may send, and in addition a hundredth of what it sent.
const COPIES_AT_FIRST: u64 = 512 << 10;
const COPIES_SHARE: u64 = 100;

/// What leaves within this time may overtake a packet, however little is in flight: its number is told so far (§3.8).
const OVERTAKING_MS: u64 = 30;

/// With less room than this left, a packet is closed rather than given another piece.
const MIN_ROOM: usize = 48;

/// Most bytes of a TICKET frame beside the ticket.
const TICKET_HEAD: usize = 1 + 8 + 16 + 2;

/// Towards an address on trial (§10.2): what the smallest packet needs, what one with an ACK needs, and what is kept
/// from data for repeated challenges.
pub(super) const TRIAL_LEAST: usize = 80;
pub(super) const TRIAL_ACK: usize = 160;
pub(super) const TRIAL_RESERVE: usize = 128;

impl Session {
    /// Fills `buf` with packets of one size, the last one perhaps shorter.
    pub(crate) fn transmit(
        &mut self,
        now: Instant,
        max_segments: usize,
        buf: &mut Vec<u8>,
        source: &mut dyn BlockSource,
    ) -> Result<Option<Transmit>, Fault> {
        if let Some(transmit) = self.mtu_probe(now, buf)? {
            return Ok(Some(transmit));
        }
        let mut segment = 0;
        let mut count = 0;
        self.pacing = None;
        self.update_pacer(now);
        // No more than a millisecond of the rate at a time (§8.7).
        let burst = self.max_burst.min(usize::try_from(self.rate() / 1000).unwrap_or(usize::MAX));
        while count < max_segments.max(1) && (count == 0 || buf.len() + self.datagram <= burst) {
            let start = buf.len();
            if !self.packet(now, buf, source)? {
                break;
            }
            let len = buf.len() - start;
            count += 1;
            if count == 1 {
                segment = len;
            }
            // Only full packets may be followed by another: so all but the last are of one size.
            if len < self.datagram {
                break;
            }
        }
        if count == 0 {
            return Ok(None);
        }
        let ecn = self.ecn.mark();
        self.ecn.on_sent(count);
        Ok(Some(Transmit {
            remote: self.path.remote(),
            len: buf.len(),
            segment_size: (count > 1).then_some(segment),
            ecn,
        }))
    }

    /// Appends a packet that only finds out whether its size passes (§3.1), if one is due.
    fn mtu_probe(&mut self, now: Instant, buf: &mut Vec<u8>) -> Result<Option<Transmit>, Fault> {
        // While nothing is to be moved, nothing is gained by it; while nothing is acknowledged, nothing is learned.
        // And towards an address that is not proven, every byte allowed is wanted for more.
        if self.probe_backoff > 0 || !self.has_data() || self.path.allowance() != usize::MAX {
            return Ok(None);
        }
        let Some(size) = self.mtu.next_probe(now) else {
            return Ok(None);
        };
        let (number, header) = self.header(now, buf)?;
        Frame::Ping.emit_control(buf);
        buf.resize(size - TAG, frame::PADDING);
        let tag = self.seal.key.seal(number, buf, header);
        buf.extend_from_slice(&tag);
        self.mtu.on_sent(now, number, size);
        self.stats.sent_packets += 1;
        self.stats.sent_bytes += size as u64;
        self.pacer.on_sent(size);
        self.sent.push(now, size, 0, Fate::Quiet, 0);
        self.path.on_sent(size);
        let ecn = self.ecn.mark();
        self.ecn.on_sent(1);
        Ok(Some(Transmit { remote: self.path.remote(), len: size, segment_size: None, ecn }))
    }

    /// The number of the next packet, which must now be sent.
    fn number(&mut self, now: Instant) -> Result<u64, Fault> {
        self.skip_in -= 1;
        if self.skip_in == 0 {
            self.skip_in = self.skip_interval();
            self.sent.push(now, 0, 0, Fate::Skipped, 0);
        }
        let number = self.sent.next_number();
        if !self.seal.advance(number) {
            return Err(Fault::KeyLimit);
        }
        debug_assert!(number < u64::MAX - KEY_LIMIT);
        Ok(number)
    }

    /// Begins the next packet, which must now be sent: its number, and the bytes of its header.
    #[inline]
    fn header(&mut self, now: Instant, buf: &mut Vec<u8>) -> Result<(u64, usize), Fault> {
        let number = self.number(now)?;
        let soon = self.rate().saturating_mul(OVERTAKING_MS) / 1000 / self.datagram as u64;
        let short = ShortNumber::of(number, self.newest_acked.map(|(newest, _)| newest), soon);
        header::emit_protected(buf, &self.remote_cid, self.seal.phase, short);
        Ok((number, short.header()))
    }

    fn has_data(&self) -> bool {
        !self.lost_messages.is_empty()
            || !self.lost_chunks.is_empty()
            || !self.tail_copies.is_empty()
            || self.has_fresh_data()
    }

    /// Whether anything waits that was never sent.
    fn has_fresh_data(&self) -> bool {
        self.messages_out.peek().is_some() || self.blocks.has_unsent()
    }

    /// Whether data may leave now; if not, arms the pacing timer or tells the controller that it is not the reason.
    fn may_send_data(&mut self, now: Instant) -> bool {
        if self.path.allowance() < self.datagram + TRIAL_RESERVE {
            return false;
        }
        if self.probes > 0 {
            return self.has_data();
        }
        let train = self.has_data() && self.controller.is_train(now, self.rate_limit);
        let ready = self.pacer.is_ready(now, self.datagram) || train;
        let in_flight = self.sent.in_flight_bytes();
        let window = self.peer_window.0;
        let fits = in_flight + self.datagram as u64 <= window || in_flight == 0 && window > 0;
        let room = self.sent.in_flight_packets() < self.max_in_flight;
        if in_flight >= self.controller.in_flight_limit() {
            // The controller's own doing: an acknowledgement or the probe timer will go on from here.
            self.pacer.on_held();
            self.controller.on_held(now);
            if self.held.is_none() && self.has_data() {
                self.held = self.oldest_outstanding();
            }
            return false;
        }
        if !self.has_data() || !fits || !room {
            if ready {
                self.controller.on_limited(now);
            }
            self.pacer.on_idle();
            return false;
        }
        self.controller.on_missed(self.pacer.take_missed());
        if self.pacer.take_late() {
            self.controller.on_late(now);
        }
        if !ready {
            self.pacing = Some(self.pacer.next(self.datagram));
        }
        ready
    }

    /// Appends one packet, if there is something to say.
    fn packet(
        &mut self,
        now: Instant,
        buf: &mut Vec<u8>,
        source: &mut dyn BlockSource,
    ) -> Result<bool, Fault> {
        let allowance = self.path.allowance();
        if allowance < TRIAL_LEAST {
            return Ok(false);
        }
        let ack_due = allowance >= TRIAL_ACK && self.received.due().is_some_and(|d| d <= now);
        let challenge = self.path.challenge_due().is_some_and(|d| d <= now);
        let ticket = self.tell_ticket && allowance >= self.datagram;
        let control = self.tell_window || self.ping || challenge || self.response.is_some() || ticket;
        let data = self.may_send_data(now);
        if !(ack_due || control || data) {
            return Ok(false);
        }
        if self.sent.len() > self.max_in_flight + self.max_in_flight / 2 + SETTLED_ALLOWANCE {
            // A peer that takes our acknowledgements but never tells of our probes would make us remember for ever.
            return Err(Fault::Violation("acknowledged nothing for too long"));
        }
        let start = buf.len();
        let (number, header) = self.header(now, buf)?;
        // Probes also tell a path that lost its larger packets from one that is down (§3.1).
        let most = if self.probes > 0 { usize::from(MIN_DATAGRAM) } else { self.datagram };
        let end = start + most.min(allowance) - TAG;
        let rhythm = self.rhythm();
        // With a RESPONSE, all that arrived is told: what went elsewhere can be told from what is under way.
        let all = Rhythm { interval: Duration::ZERO, ..rhythm };
        let ride = if self.response.is_some() { all } else { rhythm };
        if ack_due || self.received.wants_ride(now, ride) {
            // Where data follows, it gets half of the packet at least.
            let room = if data { most / 2 } else { (end - buf.len()).saturating_sub(64) };
            if self.received.emit(buf, room, number, now) {
                self.stats.acks_sent += 1;
                let quiet = now.saturating_since(self.last_eliciting);
                self.ping |= !data && quiet >= self.rtt.smoothed().max(QUIET_PING);
            }
        }
        self.ping |= data && self.controller.wants_ping(self.pacer.is_rested(self.datagram));
        let mut eliciting = self.control_frames(now, buf, number, end);
        if data && core::mem::take(&mut self.tell_rhythm) {
            self.rhythm_frame(buf, number);
            eliciting = true;
        }
        let mut chunks = 0;
        if data {
            while chunks < MAX_CHUNKS && end - buf.len() >= MIN_ROOM && self.piece(buf, end, source) {
                chunks += 1;
            }
            eliciting |= chunks > 0;
            if chunks > 0 && buf.len() < end {
                if self.has_data() {
                    // More follows: a full packet keeps the batch going.
                    buf.resize(end, frame::PADDING);
                } else if now.saturating_since(self.last_tail_ping) >= rhythm.interval {
                    // The last for now: its acknowledgement should not wait for the interval.
                    Frame::Ping.emit_control(buf);
                    self.last_tail_ping = now;
                }
            }
        }
        if buf.len() == start + header {
            // Everything that seemed to wait was cancelled or could not be read.
            buf.truncate(start);
            return Ok(false);
        }
        // Who has forgotten us answers a RESET only to what is longer (§10.7). Only control frames are that short.
        if buf.len() - start + TAG <= RESET {
            buf.resize(start + RESET + 1 - TAG, frame::PADDING);
        }
        let tag = self.seal.key.seal(number, &mut buf[start..], header);
        buf.extend_from_slice(&tag);
        self.path.on_sent(buf.len() - start);
        self.record(now, buf.len() - start, chunks, eliciting);
        Ok(true)
    }

    fn record(&mut self, now: Instant, size: usize, chunks: u8, eliciting: bool) {
        self.stats.sent_packets += 1;
        self.stats.sent_bytes += size as u64;
        let mut interval = 0;
        if eliciting {
            let alone = self.sent.in_flight_packets() == 0;
            interval = self.controller.on_sent(now, size, alone);
            if alone {
                self.probe_from = now;
            }
            self.last_eliciting = now;
            self.pacer.on_sent(size);
            self.probes = self.probes.saturating_sub(1);
        }
        let fate = if eliciting { Fate::Outstanding } else { Fate::Quiet };
        self.sent.push(now, size, chunks, fate, interval);
        if !eliciting && self.sent.in_flight_packets() == 0 {
            // A side that only acknowledges keeps nothing.
            self.sent.trim(now - self.rtt.smoothed() * 3 - Duration::from_millis(20));
        }
    }

    /// Appends what is owed beside data; returns whether any of it wants an acknowledgement.
    fn control_frames(&mut self, now: Instant, buf: &mut Vec<u8>, number: u64, end: usize) -> bool {
        let start = buf.len();
        if let Some(bytes) = self.response.take() {
            Frame::PathResponse(bytes).emit_control(buf);
        }
        if let Some(bytes) = self.path.take_challenge(now) {
            Frame::PathChallenge(bytes).emit_control(buf);
        }
        if core::mem::take(&mut self.tell_window) {
            let message_limit = self.messages_in.tell_limit();
            Frame::Window { bytes: u64::from(self.own_window), message_limit }.emit_control(buf);
            self.window_told_in = Some(number);
        }
        if core::mem::take(&mut self.ping) {
            Frame::Ping.emit_control(buf);
        }
        if self.tell_ticket
            && let Some(t) = &self.ticket
            && end.saturating_sub(buf.len()) >= t.bytes.len() + TICKET_HEAD
        {
            Frame::Ticket { lifetime: t.lifetime, nonce: t.nonce, ticket: &t.bytes }.emit_control(buf);
            self.tell_ticket = false;
            self.ticket_told_in = Some(number);
        }
        buf.len() > start
    }

    fn rhythm_frame(&mut self, buf: &mut Vec<u8>, number: u64) {
        let interval = self.rtt.ack_interval();
        let packets =
            if self.controller.state() == State::FastStart { FIRST_PACKETS } else { STEADY_PACKETS };
        let interval_us = interval.as_micros() as u64;
        Frame::AckRhythm { interval_us, packets: u64::from(packets) }.emit_control(buf);
        self.rhythm_told = (Rhythm { interval, packets }, number);
    }

    /// Appends one piece: messages first, lost ones before new ones; then blocks by priority, lost pieces before new
    /// ones of the same (§6.3). At the very end, once more what was sent again (§8.5).
    fn piece(&mut self, buf: &mut Vec<u8>, end: usize, source: &mut dyn BlockSource) -> bool {
        while let Some((offset, len)) = self.lost_messages.pop_front() {
            let Some((offset, len)) = self.messages_out.wanted(offset, usize::from(len)) else { continue };
            let sent = self.message_piece(buf, end, offset, len);
            self.stats.retransmitted_bytes += sent as u64;
            if sent < len {
                self.lost_messages.push_front((offset + sent as u64, (len - sent) as u16));
            }
            return true;
        }
        if let Some((offset, len)) = self.messages_out.peek() {
            let sent = self.message_piece(buf, end, offset, len);
            self.messages_out.advance(sent);
            return true;
        }
        while let Some(&lost) = self.lost_chunks.front() {
            // After an outage thousands of these may wait: what is more urgent goes before them.
            if self.blocks.is_next_above(lost.block) {
                break;
            }
            self.lost_chunks.pop_front();
            if self.piece_again(buf, end, lost, source) {
                if self.is_worth_a_copy() {
                    self.copied_bytes += u64::from(lost.len);
                    self.tail_copies.push_back(lost);
                }
                return true;
            }
        }
        while let Some(piece) = self.blocks.peek() {
            if let Some(sent) = self.block_piece(buf, end, &piece, piece.left as usize, source) {
                self.blocks.advance(&piece, sent as u32);
                return true;
            }
        }
        while let Some(copy) = self.tail_copies.pop_front() {
            if self.piece_again(buf, end, copy, source) {
                return true;
            }
        }
        false
    }

    /// Whether a piece sent again just now should be sent once more: nothing else is to be sent, and not too much was
    /// sent twice so far, which a sender that often has nothing else would (§8.5).
    fn is_worth_a_copy(&self) -> bool {
        !self.has_fresh_data()
            && self.tail_copies.len() < MAX_TAIL_COPIES
            && self.copied_bytes <= COPIES_AT_FIRST + self.stats.data_bytes_sent / COPIES_SHARE
    }

    /// Appends what fits of a piece that was sent before, unless it arrived or nobody wants it any more; the rest of it
    /// is next.
    fn piece_again(
        &mut self,
        buf: &mut Vec<u8>,
        end: usize,
        LostPiece { block, offset, len }: LostPiece,
        source: &mut dyn BlockSource,
    ) -> bool {
        let Some((tag, whole)) = self.blocks.wanted(block, offset, u32::from(len)) else { return false };
        let piece = Piece { block, tag, offset, left: whole - offset };
        let Some(sent) = self.block_piece(buf, end, &piece, usize::from(len), source) else { return false };
        self.stats.retransmitted_bytes += sent as u64;
        if sent < usize::from(len) {
            let (offset, len) = (offset + sent as u32, len - sent as u16);
            self.lost_chunks.push_front(LostPiece { block, offset, len });
        }
        true
    }

    fn message_piece(&mut self, buf: &mut Vec<u8>, end: usize, offset: u64, len: usize) -> usize {
        let room = end - buf.len();
        let len = len.min(room - frame::message_head_len(offset, room));
        frame::emit_message_head(buf, offset, len);
        let at = buf.len();
        buf.resize(at + len, 0);
        self.messages_out.copy(offset, &mut buf[at..]);
        self.sent.push_chunk(Chunk::Message { offset, len: len as u16 });
        len
    }

    /// Reads and appends up to `len` bytes of a block; `None` if the source failed, and the block is gone.
    fn block_piece(
        &mut self,
        buf: &mut Vec<u8>,
        end: usize,
        piece: &Piece,
        len: usize,
        source: &mut dyn BlockSource,
    ) -> Option<usize> {
        let start = buf.len();
        let whole = piece.left as usize;
        let compact = frame::compact_head_len(piece.tag, piece.offset).map(|head| end - start - head);
        let len = if let Some(room) = compact.filter(|&room| len >= room && whole > room) {
            frame::emit_compact_head(buf, piece.tag, piece.offset);
            room
        } else {
            let room = end - start - frame::data_head_len(piece.tag, piece.offset);
            // A piece that fills the packet needs no length; else the length takes up to 4 bytes.
            let (len, explicit) = if len >= room {
                (room, false)
            } else {
                let most = room - crate::wire::varint_len(len as u64);
                (len.min(most), true)
            };
            frame::emit_data_head(buf, piece.tag, piece.offset, len == whole, explicit.then_some(len));
            len
        };
        let at = buf.len();
        buf.resize(at + len, 0);
        if source.read(self.handle, piece.tag, piece.offset, &mut buf[at..]).is_err() {
            buf.truncate(start);
            self.blocks.remove(piece.tag);
            self.events.push_back(Event::BlockFailed { tag: piece.tag });
            return None;
        }
        self.stats.data_bytes_sent += len as u64;
        self.sent.push_chunk(Chunk::Block { block: piece.block, offset: piece.offset, len: len as u16 });
        Some(len)
    }
}
