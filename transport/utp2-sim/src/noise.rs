//! A node on a machine that does other things too: it is not scheduled for some milliseconds now and then, and its
//! timers are late. What arrives meanwhile waits in a socket buffer of limited size, with the time the kernel noted.
//!
//! Leaves out what a path does to packets; that is [`crate::link`].

use core::time::Duration;
use std::collections::VecDeque;

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use timebase::Instant;
use utp2::Arrival;

use crate::network::{Node, Transmission};

/// How busy the machine is.
#[derive(Clone, Copy, Debug)]
pub struct Noise {
    /// Mean time from the end of a stall to the next one, exponentially distributed.
    pub every: Duration,
    /// Shortest and longest stall; evenly distributed between.
    pub stall: [Duration; 2],
    /// Timers are late by up to so much, evenly distributed.
    pub lateness: Duration,
    /// Bytes the socket holds while nobody reads; what comes then is dropped.
    pub socket: usize,
}

impl Default for Noise {
    /// Two cores with five things to do: six stalls of 1–40 ms a second, timers late by 2 ms at most, a socket
    /// buffer of 8 MiB.
    fn default() -> Self {
        Self {
            every: Duration::from_millis(150),
            stall: [Duration::from_millis(1), Duration::from_millis(40)],
            lateness: Duration::from_millis(2),
            socket: 8 << 20,
        }
    }
}

/// `N` on such a machine; without noise it is `N` itself.
pub struct Host<N> {
    node: N,
    noise: Option<Noise>,
    rng: ChaCha8Rng,
    /// The present stall, or the next one.
    stall: (Instant, Instant),
    now: Instant,
    socket: VecDeque<(Arrival, Vec<u8>)>,
    socket_bytes: usize,
    /// The deadline the node asked for last, and by how much its timer will be late.
    timer: Option<(Instant, Duration)>,
    /// Made when a stall began, and not yet given to the kernel: leaves when it ends, older than its packets say.
    made: Option<(Transmission, Vec<u8>)>,
}

impl<N> Host<N> {
    /// `seed` decides when it stalls.
    #[must_use]
    pub fn new(node: N, noise: Option<Noise>, seed: u64) -> Self {
        let mut host = Self {
            node,
            noise,
            rng: ChaCha8Rng::seed_from_u64(seed),
            stall: (Instant::ZERO, Instant::ZERO),
            now: Instant::ZERO,
            socket: VecDeque::new(),
            socket_bytes: 0,
            timer: None,
            made: None,
        };
        host.next_stall();
        host
    }

    /// The node.
    #[must_use]
    pub fn node(&self) -> &N {
        &self.node
    }

    /// Evenly distributed in [0, 1).
    fn chance(&mut self) -> f64 {
        (self.rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn next_stall(&mut self) {
        let Some(noise) = self.noise else { return };
        let gap = noise.every.mul_f64(-(1.0 - self.chance()).ln());
        let [least, most] = noise.stall;
        let begin = self.stall.1 + gap;
        self.stall = (begin, begin + least + most.saturating_sub(least).mul_f64(self.chance()));
    }

    /// Whether the machine does something else at `now`.
    fn is_stalled(&mut self, now: Instant) -> bool {
        self.now = now;
        if self.noise.is_none() {
            return false;
        }
        while self.stall.1 <= now {
            self.next_stall();
        }
        self.stall.0 <= now
    }
}

impl<N: Node> Host<N> {
    fn read(&mut self, now: Instant) {
        while let Some((arrival, mut datagram)) = self.socket.pop_front() {
            self.socket_bytes -= datagram.len();
            self.node.handle_datagram(now, arrival, &mut datagram);
        }
    }
}

impl<N: Node> Node for Host<N> {
    fn handle_datagram(&mut self, now: Instant, arrival: Arrival, datagram: &mut [u8]) {
        if !self.is_stalled(now) {
            self.read(now);
            self.node.handle_datagram(now, arrival, datagram);
        } else if self.noise.is_some_and(|n| self.socket_bytes + datagram.len() <= n.socket) {
            self.socket_bytes += datagram.len();
            self.socket.push_back((arrival, datagram.to_vec()));
        }
    }

    fn handle_timeout(&mut self, now: Instant) {
        if self.is_stalled(now) {
            if self.made.is_some() {
                return;
            }
        } else {
            self.read(now);
        }
        if self.node.poll_timeout().is_some_and(|t| t <= now) {
            self.node.handle_timeout(now);
        }
    }

    fn poll_timeout(&mut self) -> Option<Instant> {
        if self.is_stalled(self.now) {
            return Some(self.stall.1);
        }
        let deadline = self.node.poll_timeout()?;
        let Some(noise) = self.noise else { return Some(deadline) };
        let late = match self.timer {
            Some((before, late)) if before == deadline => late,
            _ => noise.lateness.mul_f64(self.chance()),
        };
        self.timer = Some((deadline, late));
        Some(deadline + late)
    }

    fn poll_transmit(&mut self, now: Instant, buf: &mut Vec<u8>) -> Option<Transmission> {
        if self.is_stalled(now) {
            if self.made.is_none() {
                let mut own = Vec::new();
                self.made = self.node.poll_transmit(now, &mut own).map(|t| (t, own));
            }
            return None;
        }
        if let Some((transmission, made)) = self.made.take() {
            buf.extend_from_slice(&made);
            return Some(transmission);
        }
        self.node.poll_transmit(now, buf)
    }
}
