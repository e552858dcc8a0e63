//! A protected packet comes in: opened, checked against replay, its frames carried out (PROTOCOL.md §4, §7).

use alloc::string::String;
use core::net::SocketAddr;
use core::time::Duration;

use rand_core::Rng;
use timebase::Instant;

use super::messages::MessageError;
use super::path::Proven;
use super::received::Rhythm;
use super::session::{Fault, IssuedTicket, Session};
use crate::handshake::Role;
use crate::wire::frame::Frame;
use crate::wire::header::ShortNumber;
use crate::wire::{Reader, VARINT_MAX};
use crate::{Arrival, BlockSink, Event};

/// Shortest time an address is on trial.
const TRIAL: Duration = Duration::from_secs(1);

/// How long the answer to a PING may wait for data to ride along with, at most; and this part of the round trip.
const PING_WAIT: Duration = Duration::from_millis(1);
const PING_WAIT_PART: u32 = 32;

impl Session {
    /// Returns whether the packet was authentic and new.
    pub(crate) fn receive(
        &mut self,
        now: Instant,
        arrival: Arrival,
        (phase, short): (bool, ShortNumber),
        data: &mut [u8],
        sink: &mut dyn BlockSink,
    ) -> Result<bool, Fault> {
        let from = arrival.remote;
        let largest = self.replay.largest();
        let (number, header) = (short.expand(largest), short.header());
        // Tested before the packet is opened, noted after (§7.2).
        if number > VARINT_MAX || self.replay.is_replay(number) {
            self.stats.rejected_packets += 1;
            if self.path.is_copy_of_interest(from, number)
                && self.open.open(phase, number, largest, data, header).is_some()
                && self.path.on_copy(now, from, number)
            {
                self.update_pacer(now);
            }
            return Ok(false);
        }
        let size = data.len();
        let Some(body) = self.open.open(phase, number, largest, data, header) else {
            self.stats.rejected_packets += 1;
            return if self.open.forgeries >= super::keys::FORGERY_LIMIT {
                Err(Fault::KeyLimit)
            } else {
                Ok(false)
            };
        };
        self.replay.insert(number);
        self.received.insert(number, arrival.at, arrival.ecn);
        self.stats.received_packets += 1;
        self.stats.received_bytes += size as u64;
        self.last_received = now;
        if from != self.path.remote() && largest.is_none_or(|l| number > l) && self.path.may_move(now, from) {
            self.on_moved(now, from, number);
        }
        self.path.on_received(from, size);

        if body.is_empty() {
            return Err(Fault::Violation("empty packet"));
        }
        let (mut eliciting, mut urgent) = (false, false);
        let mut r = Reader::new(body);
        while !r.is_empty() {
            let frame = Frame::parse(&mut r).map_err(|_| Fault::Violation("malformed frame"))?;
            eliciting |= frame.is_eliciting();
            urgent |= matches!(frame, Frame::Ping);
            self.on_frame(now, arrival.at, number, &frame, sink)?;
        }
        if eliciting {
            self.data_run = self.data_run.saturating_add(1);
            self.last_data = now;
            let (rhythm, window, room) = (self.rhythm(), u64::from(self.own_window), self.datagram);
            // Where data is about to leave, the answer to a PING rides along with it (§8.1).
            let wait = PING_WAIT.min(self.rtt.smoothed() / PING_WAIT_PART);
            let soon = self.pacing.filter(|&t| t <= now + wait && self.received.is_gapless());
            let urgent = urgent.then(|| soon.map_or(now, |t| t.max(now)));
            self.received.elicit(now, size, rhythm, window, room, urgent);
        }
        Ok(true)
    }

    fn on_frame(
        &mut self,
        now: Instant,
        at: Instant,
        number: u64,
        frame: &Frame<'_>,
        sink: &mut dyn BlockSink,
    ) -> Result<(), Fault> {
        match *frame {
            Frame::Padding | Frame::Ping => {}
            Frame::Data { tag, offset, fin, data } => {
                self.stats.data_bytes_received += data.len() as u64;
                sink.write(self.handle, tag, offset, fin, data);
            }
            Frame::Ack(ack) => self.on_ack(now, at, &ack)?,
            Frame::Message { offset, data } => {
                let fault = |e| match e {
                    MessageError::BeyondLimit => Fault::FlowControl,
                    MessageError::TooLong => Fault::MessageTooLong,
                };
                self.messages_in.write(offset, data).map_err(fault)?;
                while let Some(message) = self.messages_in.read().map_err(fault)? {
                    self.events.push_back(Event::Message(message));
                }
            }
            Frame::Window { bytes, message_limit } => {
                self.messages_out.raise_limit(message_limit);
                // A later packet's word stands, whatever order they come in.
                if number >= self.peer_window.1 {
                    self.peer_window = (bytes, number);
                }
            }
            Frame::Close { code, reason } => {
                let reason = String::from_utf8_lossy(reason).into_owned();
                return Err(Fault::Peer { code, reason });
            }
            Frame::AckRhythm { interval_us, packets } => {
                if self.rhythm_asked.is_none_or(|(_, n)| number >= n) {
                    self.rhythm_asked = Some((Rhythm::clamped(interval_us, packets), number));
                }
            }
            Frame::Ticket { lifetime, nonce, ticket } => {
                if self.role == Role::Responder {
                    return Err(Fault::Violation("a ticket from who connected"));
                }
                self.new_ticket = Some(IssuedTicket { lifetime, nonce, bytes: ticket.to_vec() });
            }
            Frame::PathChallenge(bytes) => self.response = Some(bytes),
            Frame::PathResponse(bytes) => {
                if let Some(proven) = self.path.on_response(bytes) {
                    self.on_path_proven(now, &proven);
                }
            }
        }
        Ok(())
    }

    /// The peer's newest packet came from elsewhere (§10).
    fn on_moved(&mut self, now: Instant, to: SocketAddr, trigger: u64) {
        let mut challenge = [0; 8];
        self.random.fill_bytes(&mut challenge);
        let until = now + (self.probe_timeout() * 3).max(TRIAL);
        let (rtt, next) = (self.rtt.smoothed(), self.sent.next_number());
        self.path.moved(now, to, challenge, rtt, until, next, trigger);
    }

    /// The application says that the peer can be reached there as well (§10.8).
    pub(super) fn seek(&mut self, now: Instant, to: SocketAddr) -> bool {
        let mut challenge = [0; 8];
        self.random.fill_bytes(&mut challenge);
        let until = now + (self.probe_timeout() * 3).max(TRIAL);
        let (rtt, next) = (self.rtt.smoothed(), self.sent.next_number());
        self.path.seek(now, to, challenge, rtt, until, next)
    }

    /// Only now, and not when a packet merely came from elsewhere: who can replay packets could halve our rate.
    fn on_path_proven(&mut self, now: Instant, proven: &Proven) {
        self.withdraw_below(now, proven.first_number);
        self.probe_backoff = 0;
        if !proven.same_host {
            self.rtt.reset(now);
            self.mtu.reset();
            self.ecn.reset(self.sent.next_number());
            self.resize(now);
        }
        self.controller.on_new_path(now, proven.same_host);
        self.update_pacer(now);
    }

    /// The application took a message.
    pub(super) fn on_message_taken(&mut self, len: usize) {
        if self.messages_in.on_taken(len) {
            self.tell_window = true;
        }
    }
}
