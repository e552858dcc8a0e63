//! `wan run`: one receiver, one sender, one link.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use serde_json::json;
use units::{pair, share};
use wan::{Config, Link, Loss, Program, Raised, Shape};

use crate::{interrupted, print_json};

/// How often events are due and ends are looked for.
const LOOK: Duration = Duration::from_millis(5);

/// From a packet of 1500 bytes every 12 s to more than memory can copy, bits per second.
fn rate(text: &str) -> Result<u64, String> {
    units::rate(text, 1_000..=100_000_000_000)
}

/// What a packet waits somewhere: at most a minute, or memory would not hold what is under way.
fn delay(text: &str) -> Result<Duration, String> {
    units::time(text, Duration::from_secs(60))
}

/// How long a run lasts, or when something happens in it: at most a day.
pub(crate) fn time(text: &str) -> Result<Duration, String> {
    units::time(text, Duration::from_secs(24 * 3600))
}

/// What the link is like.
#[derive(clap::Args, Clone)]
pub(crate) struct LinkArgs {
    /// Rate of the bottleneck, both ways: 100mbit, 2.5gbit. Counts IP bytes.
    #[arg(long, value_parser = rate, default_value = "100mbit")]
    pub(crate) rate: u64,
    /// Round trip time without queue; half of it each way.
    #[arg(long, value_parser = delay, default_value = "50ms")]
    pub(crate) rtt: Duration,
    /// Share of packets lost by chance, each alone, both ways: 1%, 0.01.
    #[arg(long, value_parser = share, default_value = "0")]
    pub(crate) loss: f64,
    /// Share lost on the way back, if another one.
    #[arg(long, value_parser = share, value_name = "LOSS")]
    pub(crate) loss_back: Option<f64>,
    /// Loss in bursts instead, from sender to receiver: mean share and packets per burst, such as 2%,20.
    #[arg(long, value_name = "MEAN,BURST", conflicts_with = "loss")]
    pub(crate) gilbert: Option<String>,
    /// Room of the queue as time at the full rate.
    #[arg(long, value_parser = delay, conflicts_with = "queue_bdp", value_name = "TIME")]
    pub(crate) queue: Option<Duration>,
    /// Room of the queue in bandwidth-delay products.
    #[arg(long, default_value_t = 1.0, value_name = "X")]
    pub(crate) queue_bdp: f64,
    /// Up to so much more delay for each packet, each way; the order stays.
    #[arg(long, value_parser = delay, default_value = "0ms")]
    pub(crate) jitter: Duration,
    /// Share of packets held back, and for how long: 2%,10ms.
    #[arg(long, value_name = "SHARE,TIME")]
    pub(crate) reorder: Option<String>,
    /// Largest IP packet.
    #[arg(long, default_value_t = 1500, value_parser = clap::value_parser!(u16).range(576..))]
    pub(crate) mtu: u16,
    /// Bytes on the wire beyond each IP packet; 38 for Ethernet.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(..10_000))]
    pub(crate) overhead: u32,
    /// Let the kernel hand over many packets at once (GSO): needed beyond about 2 Gbit/s.
    #[arg(long)]
    pub(crate) gso: bool,
    /// Decides every chance.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
}

impl LinkArgs {
    pub(crate) fn config(&self) -> Result<Config> {
        let independent = |p: f64| if p > 0.0 { Loss::Independent(p) } else { Loss::None };
        let mut shape = Shape::new(self.rate, self.rtt / 2);
        let room = self.queue.unwrap_or_else(|| self.rtt.mul_f64(self.queue_bdp.clamp(0.0, 1000.0)));
        shape = shape.with_queue(room);
        shape.loss = independent(self.loss);
        shape.jitter = self.jitter;
        shape.overhead = self.overhead;
        if let Some(text) = &self.reorder {
            let late = pair(text, ',', "2%,10ms", share, delay).map_err(anyhow::Error::msg)?;
            (shape.reorder, shape.reorder_by) = late;
        }
        let mut back = shape.clone();
        back.loss = independent(self.loss_back.unwrap_or(self.loss));
        if let Some(text) = &self.gilbert {
            let number = |text: &str| text.trim().parse::<f64>().map_err(|error| error.to_string());
            let (mean, burst) = pair(text, ',', "2%,20", share, number).map_err(anyhow::Error::msg)?;
            ensure!(burst >= 1.0 && mean <= 0.5, "bursts of at least one packet, at most half of all lost");
            shape.loss = Loss::Bursts { mean, burst };
        }
        let peak_bps = self.rate;
        Ok(Config { forward: shape, back, peak_bps, mtu: self.mtu, offloads: self.gso, seed: self.seed })
    }
}

/// Options of `wan run`.
#[derive(clap::Args)]
#[command(after_help = "\
The sender is at 10.77.0.1 (fd77::1), the receiver at 10.77.0.2 (fd77::2). Both run by `sh -c`, their output goes to
stderr. All ends when the sender has ended, and the receiver a while after it.

Example:
  export UTP2_SECRET='four random words here'
  wan run --rate 1gbit --rtt 200ms --loss 1% --gso --raise-buffers \\
    --receiver 'utp2 recv --listen 10.77.0.2:4433 --out /tmp/got --once' \\
    --sender 'utp2 send big.iso --to 10.77.0.2:4433'")]
pub(crate) struct Args {
    #[command(flatten)]
    link: LinkArgs,
    /// What runs at the far end, first.
    #[arg(long, value_name = "COMMAND")]
    receiver: String,
    /// What runs at the near end.
    #[arg(long, value_name = "COMMAND")]
    sender: String,
    /// Time for the receiver to get ready.
    #[arg(long, value_parser = time, default_value = "300ms", value_name = "TIME")]
    ready: Duration,
    /// How long the receiver may take to end after the sender; then it is ended.
    #[arg(long, value_parser = time, default_value = "5s", value_name = "TIME")]
    linger: Duration,
    /// Cut the link: when, and for how long, such as 3s,2s. May be given several times.
    #[arg(long, value_name = "AT,TIME")]
    outage: Vec<String>,
    /// Change the rate towards the receiver: when, and to what, such as 10s,200mbit. May be given several times.
    #[arg(long, value_name = "AT,RATE")]
    rate_step: Vec<String>,
    /// Give the sender's end another address (10.77.0.3, then .4 …) at this time. May be given several times.
    #[arg(long, value_parser = time, value_name = "AT")]
    move_sender: Vec<Duration>,
    /// Raise net.core.rmem_max and wmem_max of the whole machine meanwhile.
    #[arg(long)]
    raise_buffers: bool,
}

enum Event {
    Down(bool),
    Rate(u64),
    Move,
}

/// Whether sender and receiver did well.
pub(crate) fn run(args: &Args) -> Result<bool> {
    let mut config = args.link.config()?;
    let mut events = events(args)?;
    for (_, event) in &events {
        if let Event::Rate(rate) = event {
            config.peak_bps = config.peak_bps.max(*rate);
        }
    }
    ensure!(!interrupted(), "interrupted");
    let _raised = args.raise_buffers.then(Raised::new);
    let mut link = Link::start(&config)?;
    let shell = |command: &str| ["sh".to_owned(), "-c".to_owned(), command.to_owned()];
    let mut receiver = Program::start(&link.b, "the receiver", &shell(&args.receiver), &[], None)?;
    std::thread::sleep(args.ready);
    if let Some(ended) = receiver.ended()? {
        bail!("the receiver ended at once: {}", ended.status);
    }
    let began = Instant::now();
    let mut sender = Program::start(&link.a, "the sender", &shell(&args.sender), &[], None)?;
    let mut addresses = 3..;
    while sender.ended()?.is_none() {
        receiver.ended()?;
        ensure!(!interrupted(), "interrupted");
        while events.last().is_some_and(|(at, _)| *at <= began.elapsed()) {
            match events.pop() {
                Some((_, Event::Down(down))) => link.set_down(down),
                Some((_, Event::Rate(rate))) => link.set_rate(rate),
                Some((_, Event::Move)) => {
                    let number = addresses.next().unwrap_or(3);
                    link.a.change_address(std::net::Ipv4Addr::new(10, 77, 0, number))?;
                }
                None => {}
            }
        }
        std::thread::sleep(LOOK);
    }
    let over = Instant::now();
    while receiver.ended()?.is_none() && over.elapsed() < args.linger {
        ensure!(!interrupted(), "interrupted");
        std::thread::sleep(LOOK);
    }
    let (sent, received) = (sender.ended()?.cloned(), receiver.ended()?.cloned());
    let report = link.report();
    let success = [&sent, &received].into_iter().flatten().all(|ended| ended.success);
    print_json(&json!({
        "sender": sent, "receiver": received, "link": report, "sound": report.is_sound(), "config": config,
    }))?;
    Ok(success && sent.is_some())
}

/// What happens when, the next one last.
fn events(args: &Args) -> Result<Vec<(Duration, Event)>> {
    let mut events = Vec::new();
    for text in &args.outage {
        let (at, length) = pair(text, ',', "20s,5s", time, time).map_err(anyhow::Error::msg)?;
        events.push((at, Event::Down(true)));
        events.push((at + length, Event::Down(false)));
    }
    for text in &args.rate_step {
        let (at, rate) = pair(text, ',', "20s,50mbit", time, rate).map_err(anyhow::Error::msg)?;
        events.push((at, Event::Rate(rate)));
    }
    events.extend(args.move_sender.iter().map(|at| (*at, Event::Move)));
    events.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
    Ok(events)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn read(options: &[&str]) -> Result<Args> {
        let line = ["run", "--receiver", "true", "--sender", "true"].iter().chain(options);
        Ok(Line::try_parse_from(line)?.args)
    }

    #[test]
    fn what_happens_may_take_long_and_a_delay_may_not() {
        let args =
            read(&["--outage", "90s,2min", "--rate-step", "5min,20mbit", "--move-sender", "1h"]).unwrap();
        let at: Vec<u64> = events(&args).unwrap().iter().rev().map(|(at, _)| at.as_secs()).collect();
        assert_eq!(at, [90, 210, 300, 3600], "the next one is last");
        assert!(read(&["--move-sender", "25h"]).is_err());
        for option in ["--rtt", "--queue", "--jitter"] {
            assert!(read(&[option, "61s"]).is_err() && read(&[option, "60s"]).is_ok(), "{option}");
        }
        assert!(read(&["--reorder", "1%,61s"]).unwrap().link.config().is_err());
    }
}
