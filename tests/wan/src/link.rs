//! The link: two sides and the two threads between them.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::carrier::{Carrier, Control, Counters, Seen};
use crate::shape::Shape;
use crate::side::Side;

/// Real-time priority of the emulator's threads. Any is before every ordinary program.
const PRIORITY: &str = "20";

/// What a link is like.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Config {
    /// From `a` to `b`.
    pub forward: Shape,
    /// From `b` to `a`.
    pub back: Shape,
    /// The highest rate that [`Link::set_rate`] is going to ask for, in bits per second; no more than that of
    /// `forward` unless set. It decides how much memory there is for packets under way: with too little of it
    /// packets are lost and the report is not sound.
    pub peak_bps: u64,
    /// Bytes of the largest IP packet.
    pub mtu: u16,
    /// Whether the kernel hands many packets over at once (GSO). Queue, loss and delay are still decided for each
    /// packet on the wire, but survivors arrive together when the last of them is due.
    pub offloads: bool,
    /// Decides every chance.
    pub seed: u64,
}

impl Config {
    /// A link that is alike both ways, MTU 1500, without offloads.
    #[must_use]
    pub fn new(shape: Shape) -> Self {
        let peak_bps = shape.rate_bps;
        Self { forward: shape.clone(), back: shape, peak_bps, mtu: 1500, offloads: false, seed: 1 }
    }
}

/// What both directions have done.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// From `a` to `b`.
    pub forward: Counters,
    /// From `b` to `a`.
    pub back: Counters,
    /// Whether the emulator's threads went before all others (needs root).
    pub realtime: bool,
}

impl Report {
    /// Whether the emulator kept up: no packet lost that the link did not lose on purpose.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        let sound = |c: &Counters| c.missed + c.overflow + c.refused == 0;
        sound(&self.forward) && sound(&self.back)
    }
}

/// A running link. Dropping it ends it; its namespaces vanish with their last program.
pub struct Link {
    /// One end: senders, in what this crate does by itself.
    pub a: Side,
    /// The other end: receivers.
    pub b: Side,
    directions: [Direction; 2],
    realtime: bool,
}

struct Direction {
    control: Arc<Control>,
    seen: Arc<Mutex<Seen>>,
    thread: Option<JoinHandle<()>>,
    /// What had been counted where counting can't begin anew: by the kernel, and CPU time.
    before: Counters,
}

impl Direction {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Link {
    /// Makes the namespaces and starts carrying.
    ///
    /// # Errors
    /// [`crate::NotPermitted`] if this user or machine can't, anything else if it went wrong.
    pub fn start(config: &Config) -> Result<Self> {
        let a = Side::new(1, config.mtu, config.offloads)?;
        let b = Side::new(2, config.mtu, config.offloads)?;
        let (to_b, to_a) = ((a.device(), b.device()), (b.device(), a.device()));
        let mut realtime = true;
        let mut start = |devices, shape: &Shape, peak_bps, seed, name: &str| -> Result<Direction> {
            let control = Arc::new(Control {
                stop: AtomicBool::new(false),
                down: AtomicBool::new(false),
                rate_bps: AtomicU64::new(shape.rate_bps),
            });
            let seen = Arc::new(Mutex::new(Seen::new()));
            let shape = (shape.clone(), peak_bps);
            let carrier = Carrier::new(devices, config.offloads, shape, seed, control.clone(), seen.clone());
            let (tell, told) = mpsc::channel();
            let thread = std::thread::Builder::new().name(name.into()).spawn(move || {
                let _ = tell.send(nix::unistd::gettid());
                carrier.run();
            })?;
            let id = told.recv().context("the emulator's thread ended")?;
            realtime &= go_first(id.as_raw());
            Ok(Direction { control, seen, thread: Some(thread), before: Counters::default() })
        };
        let directions = [
            start(to_b, &config.forward, config.peak_bps, config.seed.wrapping_mul(2), "wan a to b")?,
            start(to_a, &config.back, 0, config.seed.wrapping_mul(2).wrapping_add(1), "wan b to a")?,
        ];
        Ok(Self { a, b, directions, realtime })
    }

    /// Cuts the link, or mends it. What is under way arrives.
    pub fn set_down(&self, down: bool) {
        self.directions.iter().for_each(|d| d.control.down.store(down, Ordering::Relaxed));
    }

    /// Changes the rate of the direction from `a` to `b`, in bits per second; at most [`Config::peak_bps`]. The bytes
    /// in its queue and the room for them stay as they are.
    pub fn set_rate(&self, rate_bps: u64) {
        self.directions[0].control.rate_bps.store(rate_bps, Ordering::Relaxed);
    }

    /// Forgets what was counted: later reports begin here.
    pub fn count_anew(&mut self) {
        let (a, b) = (&self.a, &self.b);
        for (direction, (side, other)) in self.directions.iter_mut().zip([(a, b), (b, a)]) {
            let cpu_seconds = direction.seen().count_anew();
            let (missed, socket_drops) = (side.missed(), other.socket_drops());
            direction.before = Counters { missed, socket_drops, cpu_seconds, ..Counters::default() };
        }
    }

    /// What both directions have done so far.
    #[must_use]
    pub fn report(&self) -> Report {
        let counters = |direction: &Direction, side: &Side, other: &Side| {
            let mut counters = direction.seen().counters();
            counters.missed = side.missed() - direction.before.missed;
            counters.socket_drops = other.socket_drops() - direction.before.socket_drops;
            counters.cpu_seconds -= direction.before.cpu_seconds;
            counters
        };
        let [forward, back] = &self.directions;
        Report {
            forward: counters(forward, &self.a, &self.b),
            back: counters(back, &self.b, &self.a),
            realtime: self.realtime,
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.directions.iter().for_each(|d| d.control.stop.store(true, Ordering::Relaxed));
        for direction in &mut self.directions {
            if let Some(thread) = direction.thread.take() {
                let _ = thread.join();
            }
        }
    }
}

/// Lets a thread go before ordinary ones; false if this user may not.
fn go_first(thread: i32) -> bool {
    let mut command = Command::new("chrt");
    command.args(["--fifo", "--pid", PRIORITY, &thread.to_string()]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}
