//! The task of an endpoint: datagrams, deadlines and wishes in, datagrams and events out.
//!
//! Decides nothing about the protocol. Read first: the crate's page; `utp2`'s page for the drive order.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use timebase::Instant;
use utp2::{Arrival, Ecn, Transmit};

use crate::arrival::Ages;
use crate::beside::{DETOUR_HEADER, is_detour, wrapped};
use crate::fault::{BadPath, LossInjector};
use crate::shared::{BadPaths, Shared, code};
use crate::socket::{NotSent, ReceiveBatch, SEND_MAX};
use crate::talk::Talk;
use crate::timer::Timer;

/// The core bounds a batch by its bytes; counted in the smallest full datagrams, no batch is cut short.
const MIN_DATAGRAM: usize = 1200;

/// Receive calls in a row before sending gets its turn: 4 MiB at most.
const RECEIVES_PER_TURN: usize = 2;

/// Sends in a row before receiving gets its turn: 1 MiB at most.
const SENDS_PER_TURN: usize = 16;

/// Bytes received that are handled under one locking of the core.
const LOCKED_BYTES: usize = 64 << 10;

/// After a turn that received so much, datagrams are left to gather for a while: the sender is not held up by
/// waking us for each batch, and we do not wake for each. In 50 µs a gigabyte a second puts 50 KB into the socket's
/// buffer, and acknowledgements wait a millisecond anyway.
const REST_BYTES: usize = 48 << 10;
const REST: Duration = Duration::from_micros(50);

/// Wakeups by users of connections after which the socket is looked at whether it has woken us or not, so that busy
/// users do not keep what was received waiting.
const COMMANDS_IN_A_ROW: u32 = 8;

/// How long an ending endpoint waits for its last packets to leave.
const END_TIME: Duration = Duration::from_secs(1);

/// The same, if nobody wants to wait for peers: what the copies of CLOSE take, and time for a socket that is full.
const HASTY_END_TIME: Duration = Duration::from_millis(50);

/// Why the driver woke up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wakeup {
    /// The socket has datagrams, or room for what it refused before, or the last turn left some.
    Socket,
    /// A deadline of the core, or of the injected delay.
    Timer,
    /// Somebody used a connection or the endpoint.
    Command,
    /// The endpoint is to end.
    Shutdown,
}

/// How what is in the buffer is to be sent; kept for what the socket had no room for.
#[derive(Clone, Copy)]
struct Parcel {
    /// Where the core sends to.
    remote: SocketAddr,
    /// Where that is: elsewhere on a detour.
    to: SocketAddr,
    ecn: Ecn,
    segment_size: Option<usize>,
}

impl Parcel {
    /// Bytes of each datagram that are not the core's.
    fn overhead(&self) -> usize {
        if self.remote == self.to { 0 } else { DETOUR_HEADER }
    }
}

pub(crate) struct Driver {
    shared: Arc<Shared>,
    timer: Timer,
    /// What the timer is set to.
    armed: Option<Instant>,
    batch: ReceiveBatch,
    ages: Ages,
    /// The transmission under way, kept while the socket refuses it.
    buf: Vec<u8>,
    refused: Option<Parcel>,
    /// Datagrams or transmissions were left for the next turn.
    more: bool,
    /// Datagrams gather meanwhile: the timer ends it, not the socket.
    resting: bool,
    /// Times somebody woke us since we looked at the socket.
    commands: u32,
    max_datagram: usize,
    bad: Option<BadPaths>,
    talk: Talk,
}

/// Ends the endpoint however the driver ends, so that nobody waits for it for ever.
struct EndGuard(Arc<Shared>);

impl Drop for EndGuard {
    fn drop(&mut self) {
        self.0.end();
    }
}

impl Driver {
    pub(crate) fn new(
        shared: Arc<Shared>,
        max_datagram: u16,
        fault: Option<&LossInjector>,
    ) -> io::Result<Self> {
        Ok(Self {
            shared,
            timer: Timer::new()?,
            armed: None,
            batch: ReceiveBatch::new(),
            ages: Ages::default(),
            buf: Vec::new(),
            refused: None,
            more: false,
            resting: false,
            commands: 0,
            max_datagram: usize::from(max_datagram),
            bad: fault.map(|f| {
                let (out, inward) = BadPath::both_ways(f);
                BadPaths { out, inward }
            }),
            talk: Talk::default(),
        })
    }

    /// Runs until the endpoint is to end.
    pub(crate) async fn run(mut self) {
        let guard = EndGuard(self.shared.clone());
        let mut give_up = None;
        let mut is_hasty = false;
        loop {
            match self.next_wakeup().await {
                Ok(Wakeup::Socket) => self.receive(),
                Ok(Wakeup::Timer) => {
                    self.armed = None;
                    if self.resting {
                        self.receive();
                    }
                }
                Ok(Wakeup::Command) => {
                    self.commands += 1;
                    if self.commands >= COMMANDS_IN_A_ROW {
                        self.receive();
                    }
                }
                Ok(Wakeup::Shutdown) => {
                    let now = self.shared.now();
                    if give_up.is_none() {
                        give_up = Some(now + END_TIME);
                        self.shared.core().close_all();
                    }
                    if self.shared.is_hasty() && !is_hasty {
                        is_hasty = true;
                        give_up = Some(now + HASTY_END_TIME + self.held_back());
                        self.shared.core().endpoint.hasten_end(now);
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "the endpoint ends: its socket or timer failed");
                    break;
                }
            }
            let deadline = self.advance();
            if let Some(give_up) = give_up {
                // Closed connections linger in the core to answer those who missed the news.
                let is_done = deadline.is_none() && self.refused.is_none() && !self.more;
                if is_done || self.shared.now() >= give_up {
                    break;
                }
            }
            if let Err(error) = self.arm(deadline.into_iter().chain(give_up).min()) {
                tracing::error!(%error, "the endpoint ends: its timer failed");
                break;
            }
        }
        drop(guard);
    }

    /// How long the injected delay holds what is sent.
    fn held_back(&self) -> Duration {
        self.bad.as_ref().map_or(Duration::ZERO, |bad| bad.out.delay())
    }

    async fn next_wakeup(&mut self) -> io::Result<Wakeup> {
        let ending = self.shared.is_ending();
        if self.more {
            self.more = false;
            // Others share the thread.
            tokio::task::yield_now().await;
            return Ok(if ending { Wakeup::Shutdown } else { Wakeup::Socket });
        }
        let (shared, timer) = (&self.shared, &self.timer);
        let (receive, send) = (!self.resting, self.refused.is_some());
        let wakeup = tokio::select! {
            biased;
            () = shared.woken() => Wakeup::Command,
            r = shared.socket.wait(receive, send), if receive || send => { r?; Wakeup::Socket }
            r = timer.fired() => { r?; Wakeup::Timer }
        };
        shared.socket.rest();
        Ok(match wakeup {
            Wakeup::Command if shared.is_ending() => Wakeup::Shutdown,
            other => other,
        })
    }

    fn arm(&mut self, deadline: Option<Instant>) -> io::Result<()> {
        let now = self.shared.now();
        let rest_ends = self.resting.then(|| now + REST);
        let deadline = deadline.into_iter().chain(rest_ends).min();
        match deadline {
            // Setting and firing the timer would take longer than a turn.
            Some(at) if at <= now => {
                self.more = true;
                Ok(())
            }
            // An armed timer is left alone if it fires in time: most deadlines move away with every packet, and
            // waking for nothing now and then costs less than setting it each time.
            None => Ok(()),
            Some(at) if self.armed.is_some_and(|armed| armed <= at) => Ok(()),
            Some(_) => {
                self.armed = deadline;
                self.timer.set(deadline.map(|at| at - now))
            }
        }
    }

    /// Moves what the socket has into the core.
    fn receive(&mut self) {
        (self.resting, self.commands) = (false, 0);
        let mut turn_bytes = 0;
        for _ in 0..RECEIVES_PER_TURN {
            match self.shared.socket.try_recv(&mut self.batch) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    // Such as an ICMP answer to something sent earlier.
                    tracing::debug!(%error, "receiving failed");
                    return;
                }
            }
            let is_full = self.batch.is_full();
            let (read_at, reading) = self.ages.look(|| self.shared.now());
            let mut locked = None;
            let mut bytes = 0;
            for run in self.batch.runs() {
                if let Some(bad) = &mut self.bad {
                    run.data.chunks(run.stride).for_each(|d| bad.inward.push(read_at, run.remote, d));
                    continue;
                }
                if bytes >= LOCKED_BYTES {
                    // Others get their turn.
                    (locked, bytes) = (None, 0);
                }
                bytes += run.data.len();
                turn_bytes += run.data.len();
                let (core, now) = locked.get_or_insert_with(|| {
                    let mut core = self.shared.core();
                    let now = core.advance_to(self.shared.now());
                    (core, now)
                });
                let at = reading.received(read_at, run.stamp);
                let arrival = Arrival { remote: run.remote, at, ecn: run.ecn };
                for datagram in run.data.chunks_mut(run.stride) {
                    self.talk.came(run.remote, datagram);
                    self.shared.deliver(core, *now, arrival, datagram);
                    core.dispatch_events(&self.shared);
                }
            }
            drop(locked);
            if !is_full {
                self.resting = turn_bytes >= REST_BYTES;
                return;
            }
        }
        self.more = true;
    }

    /// Lets the core act and sends what it has to send. Gives the next deadline.
    fn advance(&mut self) -> Option<Instant> {
        let orphans = self.shared.take_orphans();
        {
            let mut core = self.shared.core();
            let now = core.advance_to(self.shared.now());
            for handle in orphans {
                core.close(handle, code::GONE, "nobody holds the connection any more");
            }
            if let Some(bad) = &mut self.bad {
                while let Some((remote, mut datagram)) = bad.inward.pop(now) {
                    let arrival = Arrival { remote, at: now, ecn: Ecn::NotEct };
                    self.talk.came(remote, &datagram);
                    self.shared.deliver(&mut core, now, arrival, &mut datagram);
                    core.dispatch_events(&self.shared);
                }
            }
            if core.endpoint.poll_timeout().is_some_and(|at| at <= now) {
                core.endpoint.handle_timeout(now);
            }
            core.dispatch_events(&self.shared);
        }
        self.transmit();
        let mut core = self.shared.core();
        core.dispatch_events(&self.shared);
        let deadline = core.endpoint.poll_timeout();
        drop(core);
        let inward = self.bad.as_ref().and_then(|b| b.inward.due());
        if self.refused.is_some() {
            // It waits for the socket; to ask for more to send would not help.
            return inward;
        }
        let out = self.bad.as_ref().and_then(|b| b.out.due());
        deadline.into_iter().chain(inward).chain(out).min()
    }

    fn transmit(&mut self) {
        if let Some(refused) = self.refused.take()
            && !self.send(refused)
        {
            return;
        }
        if !self.send_delayed() {
            return;
        }
        for _ in 0..SENDS_PER_TURN {
            let segments = self.shared.socket.max_segments(MIN_DATAGRAM);
            let (now, transmit) = {
                let mut core = self.shared.core();
                let now = core.advance_to(self.shared.now());
                (now, core.poll_transmit(now, segments, &mut self.buf))
            };
            let Some(t) = transmit else { return };
            self.buf.truncate(t.len);
            let Some(parcel) = self.addressed(&t) else { continue };
            let segment = parcel.segment_size.unwrap_or(self.buf.len());
            self.talk.goes(now, t.remote, &self.buf, segment);
            if let Some(bad) = &mut self.bad {
                self.buf.chunks(segment.max(1)).for_each(|datagram| bad.out.push(now, parcel.to, datagram));
                if !self.send_delayed() {
                    return;
                }
            } else if !self.send(parcel) {
                return;
            }
        }
        self.more = true;
    }

    /// Where the buffer goes; puts the headers of a detour before its packets. `None` if the detour is gone.
    fn addressed(&mut self, t: &Transmit) -> Option<Parcel> {
        let (remote, ecn, segment_size) = (t.remote, t.ecn, t.segment_size);
        if !is_detour(remote) {
            return Some(Parcel { remote, to: remote, ecn, segment_size });
        }
        let detour = self.shared.beside.find(remote)?;
        let segment = segment_size.unwrap_or(t.len);
        self.buf = wrapped(&self.buf, segment, &detour.header);
        let segment = segment + DETOUR_HEADER;
        let parcel = Parcel {
            remote,
            to: detour.via,
            ecn,
            segment_size: (self.buf.len() > segment).then_some(segment),
        };
        // The headers may make more of it than one send takes. Should the socket be full just here, the first part is
        // lost.
        let most = SEND_MAX / segment * segment;
        if self.buf.len() > SEND_MAX && most > 0 {
            let rest = self.buf.split_off(most);
            let _ = self.shared.socket.try_send(parcel.to, ecn, &self.buf, Some(segment));
            self.buf = rest;
        }
        Some(parcel)
    }

    /// Sends the buffer; false if the socket has no room, and then it is kept.
    fn send(&mut self, parcel: Parcel) -> bool {
        let Parcel { remote, to, ecn, segment_size } = parcel;
        match self.shared.socket.try_send(to, ecn, &self.buf, segment_size) {
            Ok(()) => true,
            Err(NotSent::TooLarge(size)) => {
                // What was in it is lost, which the core finds by itself.
                tracing::debug!(%remote, size, "the host's way there does not take datagrams of this size");
                let mut core = self.shared.core();
                let now = core.advance_to(self.shared.now());
                core.endpoint.on_too_large(now, remote, size.saturating_sub(parcel.overhead()));
                true
            }
            Err(NotSent::WouldBlock) => {
                self.refused = Some(parcel);
                false
            }
        }
    }

    /// Sends what the injected delay has let go; false if the socket has no room. Leaves the buffer empty.
    fn send_delayed(&mut self) -> bool {
        loop {
            let Some(bad) = &mut self.bad else { return true };
            self.buf.clear();
            let segments = self.shared.socket.max_segments(self.max_datagram);
            let Some((remote, size)) = bad.out.pop_run(self.shared.now(), segments, &mut self.buf) else {
                return true;
            };
            if !self.send(Parcel { remote, to: remote, ecn: Ecn::NotEct, segment_size: Some(size) }) {
                return false;
            }
        }
    }
}
