//! The thread that carries one direction: reads frames from one device, lets the bottleneck decide, and writes what
//! survives to the other device when it is due.
//!
//! Owns the waiting and the counting. Waiting: with nothing under way it sleeps until a packet comes; under load it
//! sleeps [`TICK`] at a time and then handles all that has come and all that is due, because waking for every packet
//! would cost more than carrying it. Read first: `shape` (the fate of a packet), `segments` (frames with offloads).

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::time::ClockId;
use serde::Serialize;
use tun_rs::SyncDevice;

use crate::ring::Ring;
use crate::segments::{FRAME_MAX, Layout};
use crate::shape::{Bottleneck, Fate, Shape, picos};

/// How long a loaded direction sleeps before it looks again, at most. What is due is late by half of it on average.
const TICK: Duration = Duration::from_micros(100);

/// What is due so soon is waited for awake: going to sleep takes longer.
const SPIN: Duration = Duration::from_micros(10);

/// Without a packet for so long a direction counts as idle, and the next one wakes it at once.
const IDLE: Duration = Duration::from_millis(2);

/// The longest sleep: how soon an idle direction notices that it shall end.
const LOOK: u16 = 20;

/// Rounds between two looks at the CPU clock, which costs a system call.
const CPU_EVERY: u32 = 64;

/// Frames read before looking at what is due.
const BURST: usize = 64;

/// Packets that were held back, at a time. Beyond this the network is not reordering but storing.
const HELD_MAX: usize = 100_000;

/// What one direction has done.
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct Counters {
    /// Packets on the wire that were handed to the link.
    pub packets: u64,
    /// Their IP bytes.
    pub bytes: u64,
    /// Packets that arrived.
    pub delivered: u64,
    /// Their IP bytes.
    pub delivered_bytes: u64,
    /// Packets lost by chance.
    pub lost: u64,
    /// Packets refused by the full queue.
    pub queue_drops: u64,
    /// Packets lost because the link was down.
    pub outage_drops: u64,
    /// Packets the emulator had no memory for. Not 0: the measurement is void.
    pub overflow: u64,
    /// Packets the kernel dropped before the emulator could read them. Not 0: the emulator was too slow.
    pub missed: u64,
    /// Packets the other side's device refused. Not 0: the measurement is void.
    pub refused: u64,
    /// Datagrams that arrived and found their socket's buffer full: the receiving program is too slow.
    pub socket_drops: u64,
    /// How late packets were delivered, in microseconds.
    pub late_us: Lateness,
    /// CPU time of the thread, in seconds; what the receiving stack does with a packet is part of it.
    pub cpu_seconds: f64,
}

/// A distribution in short.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Lateness {
    /// Mean.
    pub mean: f64,
    /// 99 of 100 are below.
    pub p99: u64,
    /// The latest.
    pub max: u64,
}

/// What the outside can tell a running direction.
#[derive(Debug)]
pub(crate) struct Control {
    pub(crate) stop: AtomicBool,
    pub(crate) down: AtomicBool,
    pub(crate) rate_bps: AtomicU64,
}

/// What a direction tells the outside.
pub(crate) struct Seen {
    counters: Counters,
    late: Histogram<u64>,
}

impl Seen {
    pub(crate) fn new() -> Self {
        let late = Histogram::new_with_bounds(1, 60_000_000, 2).expect("bounds that a histogram takes");
        Self { counters: Counters::default(), late }
    }

    /// Begins anew, apart from CPU time, which is always that since the start and is returned.
    pub(crate) fn count_anew(&mut self) -> f64 {
        let cpu_seconds = self.counters.cpu_seconds;
        self.counters = Counters { cpu_seconds, ..Counters::default() };
        self.late.reset();
        cpu_seconds
    }

    pub(crate) fn counters(&self) -> Counters {
        let late = &self.late;
        let late_us = Lateness { mean: late.mean(), p99: late.value_at_quantile(0.99), max: late.max() };
        Counters { late_us, ..self.counters.clone() }
    }
}

/// A packet that may be overtaken. Ordered by when it is due.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Held {
    due: u64,
    /// Tells equals apart.
    serial: u64,
    /// When it leaves the bottleneck.
    leaves: u64,
    frame: Vec<u8>,
}

pub(crate) struct Carrier {
    from: Arc<SyncDevice>,
    to: Arc<SyncDevice>,
    offloads: bool,
    bottleneck: Bottleneck,
    ring: Ring,
    held: BinaryHeap<Reverse<Held>>,
    control: Arc<Control>,
    seen: Arc<Mutex<Seen>>,
    began: Instant,
    frame: Box<[u8]>,
    scratch: Vec<u8>,
    /// In-order survivors of a frame.
    kept: Vec<usize>,
    /// Counted in this round, not yet told.
    round: Counters,
    late: Vec<u64>,
    last_read: Instant,
    /// [`TICK`], or less where that would be noticed beside the link's own delay.
    tick: Duration,
    rate: u64,
    serial: u64,
    rounds: u32,
}

impl Carrier {
    pub(crate) fn new(
        (from, to): (Arc<SyncDevice>, Arc<SyncDevice>),
        offloads: bool,
        (shape, peak_bps): (Shape, u64),
        seed: u64,
        control: Arc<Control>,
        seen: Arc<Mutex<Seen>>,
    ) -> Self {
        // What waits in the queue and what is under way at most, a little more for being late. Memory that is never
        // used costs nothing.
        let peak = Shape { rate_bps: peak_bps.max(shape.rate_bps), ..shape.clone() };
        let under_way = peak.bytes_in(shape.delay + shape.jitter + Duration::from_millis(20));
        let memory = (shape.queue_bytes + under_way) / 4 * 5 + (4 << 20);
        let now = Instant::now();
        Self {
            from,
            to,
            offloads,
            rate: shape.rate_bps,
            tick: (shape.delay / 50).clamp(TICK / 4, TICK),
            bottleneck: Bottleneck::new(shape, seed),
            ring: Ring::new(usize::try_from(memory).unwrap_or(usize::MAX)),
            held: BinaryHeap::new(),
            control,
            seen,
            began: now,
            frame: vec![0; FRAME_MAX].into_boxed_slice(),
            scratch: Vec::with_capacity(FRAME_MAX),
            kept: Vec::new(),
            round: Counters::default(),
            late: Vec::with_capacity(4096),
            last_read: now,
            serial: 0,
            rounds: 0,
        }
    }

    /// Carries packets until told to stop.
    pub(crate) fn run(mut self) {
        // The kernel may wake others 50 µs late to save power.
        let _ = nix::sys::prctl::set_timerslack(1);
        while !self.control.stop.load(Ordering::Relaxed) {
            let rate = self.control.rate_bps.load(Ordering::Relaxed);
            if rate != self.rate {
                self.rate = rate;
                self.change_rate(rate);
            }
            self.deliver();
            let read = self.read();
            self.tell();
            if read < BURST {
                self.wait();
            }
        }
    }

    fn now(&self) -> u64 {
        picos(self.began.elapsed())
    }

    /// What waits for the bottleneck leaves at the new rate.
    fn change_rate(&mut self, rate: u64) {
        let now = self.now();
        let step = self.bottleneck.set_rate(now, rate);
        self.ring.retime(|leaves| step.moved(leaves));
        let held = std::mem::take(&mut self.held).into_iter().map(|Reverse(held)| {
            let leaves = step.moved(held.leaves);
            Reverse(Held { leaves, due: held.due - held.leaves + leaves, ..held })
        });
        self.held = held.collect();
    }

    /// Reads what has come, [`BURST`] frames at most.
    fn read(&mut self) -> usize {
        for count in 0..BURST {
            let len = match nix::unistd::read(self.from.as_fd(), &mut self.frame) {
                Ok(len) => len,
                Err(Errno::EINTR) => continue,
                // Nothing there, or the device is gone: its end of the link is being torn down.
                Err(_) => {
                    if count > 0 {
                        self.last_read = Instant::now();
                    }
                    return count;
                }
            };
            self.decide(len);
        }
        self.last_read = Instant::now();
        BURST
    }

    /// Lets the bottleneck decide on every packet of the frame just read.
    fn decide(&mut self, len: usize) {
        let frame = std::mem::take(&mut self.frame);
        let layout = Layout::of(&frame[..len], self.offloads);
        let now = self.now();
        let down = self.control.down.load(Ordering::Relaxed);
        let mut last = (0, 0);
        self.kept.clear();
        for index in 0..layout.count {
            let wire = layout.wire_len(index);
            self.round.packets += 1;
            self.round.bytes += wire as u64;
            if down {
                self.round.outage_drops += 1;
                continue;
            }
            match self.bottleneck.admit(now, wire) {
                Fate::QueueDrop => self.round.queue_drops += 1,
                Fate::Lost => self.round.lost += 1,
                Fate::Delivered { leaves, due, held: false } => {
                    let gap = self.kept.last().is_some_and(|last| last + 1 != index);
                    if gap && !layout.mixes() {
                        self.send_kept(&frame[..len], layout, last);
                    }
                    self.kept.push(index);
                    last = (leaves, due);
                }
                Fate::Delivered { leaves, due, held: true } => {
                    if self.held.len() < HELD_MAX {
                        let mut alone = Vec::with_capacity(wire + 16);
                        layout.pick(&frame[..len], &[index], &mut alone);
                        self.serial += 1;
                        let held = Held { due, serial: self.serial, leaves, frame: alone };
                        self.held.push(Reverse(held));
                    } else {
                        self.round.overflow += 1;
                    }
                }
            }
        }
        self.send_kept(&frame[..len], layout, last);
        self.frame = frame;
    }

    /// Puts the packets kept so far on their way, with the times of the last of them.
    fn send_kept(&mut self, frame: &[u8], layout: Layout, (leaves, due): (u64, u64)) {
        if self.kept.is_empty() {
            return;
        }
        let whole = self.kept.len() == layout.count;
        let pushed = if whole {
            self.ring.push(frame, leaves, due)
        } else {
            layout.pick(frame, &self.kept, &mut self.scratch);
            self.ring.push(&self.scratch, leaves, due)
        };
        if !pushed {
            self.round.overflow += self.kept.len() as u64;
        }
        self.kept.clear();
    }

    /// Writes what is due.
    fn deliver(&mut self) {
        let mut now = self.now();
        loop {
            let next = self.ring.next_due();
            let held = self.held.peek().map(|Reverse(held)| held.due);
            let due = match (next, held) {
                (Some(a), Some(b)) => a.min(b),
                (Some(one), None) | (None, Some(one)) => one,
                (None, None) => return,
            };
            if due > now {
                now = self.now();
                if due > now {
                    return;
                }
            }
            let late = (now - due) / 1_000_000;
            if next == Some(due) {
                if let Some(frame) = self.ring.front() {
                    note(&mut self.round, &mut self.late, write(&self.to, frame, self.offloads), late);
                }
                self.ring.pop();
            } else if let Some(Reverse(held)) = self.held.pop() {
                note(&mut self.round, &mut self.late, write(&self.to, &held.frame, self.offloads), late);
            }
            if self.late.len() >= 4096 {
                // Much is due: the other threads must see it, and new packets must be read.
                return;
            }
        }
    }

    fn wait(&self) {
        let due = match (self.ring.next_due(), self.held.peek()) {
            (Some(a), Some(Reverse(held))) => Some(a.min(held.due)),
            (a, b) => a.or(b.map(|Reverse(held)| held.due)),
        };
        let until = due.map(|due| Duration::from_nanos(due.saturating_sub(self.now()) / 1000));
        if self.last_read.elapsed() > IDLE {
            return poll(self.from.as_fd(), until.unwrap_or(Duration::MAX));
        }
        match until {
            Some(left) if left < SPIN => std::hint::spin_loop(),
            // Not before the tick is over, even if something is due earlier: that is what makes it a batch.
            _ => std::thread::sleep(self.tick),
        }
    }

    fn tell(&mut self) {
        let round = std::mem::take(&mut self.round);
        self.rounds = self.rounds.wrapping_add(1);
        let cpu = if self.rounds.is_multiple_of(CPU_EVERY) { cpu_seconds() } else { None };
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let all = &mut seen.counters;
        all.packets += round.packets;
        all.bytes += round.bytes;
        all.delivered += round.delivered;
        all.delivered_bytes += round.delivered_bytes;
        all.lost += round.lost;
        all.queue_drops += round.queue_drops;
        all.outage_drops += round.outage_drops;
        all.overflow += round.overflow;
        all.refused += round.refused;
        all.cpu_seconds = cpu.unwrap_or(all.cpu_seconds);
        for late in self.late.drain(..) {
            seen.late.saturating_record(late.max(1));
        }
    }
}

/// What was written: whether the device took it, and what it stands for.
fn write(to: &SyncDevice, frame: &[u8], offloads: bool) -> (bool, Layout) {
    let layout = Layout::of(frame, offloads);
    loop {
        match nix::unistd::write(to.as_fd(), frame) {
            Ok(_) => return (true, layout),
            Err(Errno::EINTR) => {}
            Err(_) => return (false, layout),
        }
    }
}

fn note(round: &mut Counters, late: &mut Vec<u64>, (taken, layout): (bool, Layout), by: u64) {
    if taken {
        round.delivered += layout.count as u64;
        round.delivered_bytes += layout.wire_bytes() as u64;
        late.push(by);
    } else {
        round.refused += layout.count as u64;
    }
}

/// What this thread has used.
fn cpu_seconds() -> Option<f64> {
    let time = nix::time::clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).ok()?;
    Some(time.tv_sec() as f64 + time.tv_nsec() as f64 / 1e9)
}

/// Sleeps until there is something to read, `limit` at most.
fn poll(device: BorrowedFd<'_>, limit: Duration) {
    let mut fds = [PollFd::new(device, PollFlags::POLLIN)];
    if limit >= Duration::from_millis(u64::from(LOOK)) {
        let _ = nix::poll::poll(&mut fds, PollTimeout::from(LOOK));
    } else {
        let limit = nix::sys::time::TimeSpec::from_duration(limit);
        let _ = nix::poll::ppoll(&mut fds, Some(limit), None);
    }
}
