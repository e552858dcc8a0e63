//! The command line of `utp2 sim`, and what it makes of it: a [`Scenario`].

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use units::{pair, share};
use utp2_sim::{
    AddressChange, Change, Discipline, FlowConfig, Jitter, LinkConfig, Loss, Move, Policer, Protocol,
    Scenario, Side,
};

use super::sweep::SweepArgs;
use crate::args::{ModeArg, bits, duration, rate};

/// Longest virtual time of a run.
const SPAN_MAX: f64 = 24.0 * 3600.0;

#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct SimArgs {
    #[command(subcommand)]
    pub(crate) sweep: Option<SimCommand>,
    #[command(flatten)]
    pub(crate) run: RunArgs,
}

#[derive(Subcommand)]
pub(crate) enum SimCommand {
    /// Run a whole grid of scenarios and make a table of it, or compare with one that was kept.
    #[command(after_help = super::sweep::EXAMPLES)]
    Sweep(SweepArgs),
}

#[derive(Args)]
pub(crate) struct RunArgs {
    /// Rate of the bottleneck on the wire, Ethernet's overhead included.
    #[arg(long, value_name = "RATE", value_parser = bits, default_value = "1gbit")]
    pub(crate) rate: u64,
    /// Round trip without queues.
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "100ms")]
    pub(crate) rtt: Duration,
    /// Chance loss, both ways, each datagram alone, behind the bottleneck.
    #[arg(long, value_name = "SHARE", value_parser = share, default_value = "0")]
    pub(crate) loss: f64,
    /// Chance loss towards the sender, if it differs from --loss.
    #[arg(long, value_name = "SHARE", value_parser = share)]
    pub(crate) return_loss: Option<f64>,
    /// Lose before the queue instead of behind it: what is lost takes nothing of the rate.
    #[arg(long)]
    pub(crate) loss_before: bool,
    /// Loss in bursts instead, both ways: mean share and mean length, such as 2%,20.
    #[arg(long, value_name = "MEAN,BURST", value_parser = gilbert, conflicts_with = "loss")]
    pub(crate) gilbert: Option<Loss>,
    /// Room of the bottleneck's queue, as a multiple of rate × RTT.
    #[arg(long, value_name = "N", value_parser = positive, default_value = "0.5")]
    pub(crate) queue_bdp: f64,
    /// The same in milliseconds at the bottleneck's rate.
    #[arg(long, value_name = "N", value_parser = positive, conflicts_with = "queue_bdp")]
    pub(crate) queue_ms: Option<f64>,
    /// What the queue does before it is full: codel drops from its head, codel,ecn marks who can be marked.
    #[arg(long, value_name = "AQM", value_parser = aqm)]
    pub(crate) aqm: Option<Discipline>,
    /// Drop, without a queue, what is faster than this; after a comma what passes at once after a pause
    /// (default 50ms of the rate), such as 100mbit,1MB.
    #[arg(long, value_name = "RATE[,BURST]", value_parser = policer)]
    pub(crate) policer: Option<Policer>,
    /// Hold back this share of the datagrams by up to this long, such as 2%,10ms.
    #[arg(long, value_name = "SHARE,TIME", value_parser = reorder)]
    pub(crate) reorder: Option<(f64, Duration)>,
    /// Delay every datagram by up to this long more, all alike; in order unless --jitter-reorders.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(crate) jitter: Option<Duration>,
    /// Let datagrams overtake each other when they are delayed differently.
    #[arg(long, requires = "jitter")]
    pub(crate) jitter_reorders: bool,
    /// Deliver this share of the datagrams twice.
    #[arg(long, value_name = "SHARE", value_parser = share, default_value = "0")]
    pub(crate) duplicate: f64,
    /// Largest IP packet; larger ones vanish.
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u16).range(1280..=9216), default_value_t = 1500)]
    pub(crate) mtu: u16,
    /// From this time on the bottleneck has this rate, such as 30s:200mbit. May be repeated.
    #[arg(long, value_name = "TIME:RATE", value_parser = step)]
    pub(crate) step: Vec<(Duration, u64)>,
    /// From this time on the path's round trip without queues is this long, half of it each way, such as
    /// 30s:120ms. May be repeated.
    #[arg(long, value_name = "TIME:RTT", value_parser = rtt_step)]
    pub(crate) rtt_step: Vec<(Duration, Duration)>,
    /// Both directions are dead from this time on for so long, such as 20s:30s. May be repeated.
    #[arg(long, value_name = "TIME:LENGTH", value_parser = outage)]
    pub(crate) outage: Vec<(Duration, Duration)>,
    /// The sender's address changes at this time; 20s:receiver changes the receiver's, 20s:port only the
    /// port, 20s:receiver:port that of the receiver. May be repeated.
    #[arg(long, value_name = "TIME[:WHAT]", value_parser = address_change)]
    pub(crate) address_change: Vec<AddressChange>,
    /// Move this much in each flow, such as 10GB, and end when it has arrived.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) bytes: Option<u64>,
    /// Send without an end for so many virtual seconds (default 30 without --bytes).
    #[arg(long, value_name = "N", value_parser = positive, conflicts_with = "bytes")]
    pub(crate) seconds: Option<f64>,
    /// Flows, all alike.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256), default_value_t = 1)]
    pub(crate) flows: u16,
    /// When the first flow begins.
    #[arg(long, value_name = "TIME", value_parser = span, default_value = "0s")]
    pub(crate) start: Duration,
    /// Time between the beginnings of two flows.
    #[arg(long, value_name = "TIME", value_parser = span, default_value = "0s")]
    pub(crate) flow_gap: Duration,
    /// Each flow's round trip is this much longer than the one's before.
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "0ms")]
    pub(crate) rtt_spread: Duration,
    /// What the flows speak.
    #[arg(long, value_enum, default_value_t = ProtocolArg::Utp2)]
    pub(crate) protocol: ProtocolArg,
    /// How hard µTP2 competes.
    #[arg(long, value_enum, default_value_t = ModeArg::Full)]
    pub(crate) mode: ModeArg,
    /// What a µTP2 flow may send at most.
    #[arg(long, value_name = "RATE", value_parser = rate)]
    pub(crate) rate_limit: Option<u64>,
    /// The µTP2 flows know the path from an earlier connection, which is simulated first.
    #[arg(long)]
    pub(crate) remembered: bool,
    /// A flow of another protocol on the same bottleneck from this time on (default the beginning), such as
    /// cubic:10s. May be repeated.
    #[arg(long, value_name = "PROTOCOL[:TIME]", value_parser = cross)]
    pub(crate) cross_traffic: Vec<(ProtocolArg, Duration)>,
    /// Where the steady part begins. Default: 15 round trips after the last flow's beginning.
    #[arg(long, value_name = "TIME", value_parser = span)]
    pub(crate) steady_from: Option<Duration>,
    /// Decides every chance. The same seed gives the same bytes.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) seed: u64,
    /// Write what happened as qlog (JSON text sequences): each sender's recovery metrics, the bottleneck.
    #[arg(long, value_name = "FILE")]
    pub(crate) trace: Option<PathBuf>,
    /// Draw rate, delay and loss over time (SVG).
    #[arg(long, value_name = "FILE")]
    pub(crate) plot: Option<PathBuf>,
    /// Time between two samples of --trace and --plot. Default: a four-hundredth of --seconds, else an RTT.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(crate) every: Option<Duration>,
    /// Write one JSON object to stdout.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProtocolArg {
    /// This transport.
    Utp2,
    /// TCP with CUBIC, a small one of our own.
    Cubic,
    /// quinn with CUBIC.
    QuinnCubic,
    /// quinn with BBR.
    QuinnBbr,
    /// quinn with NewReno.
    QuinnNewreno,
}

impl From<ProtocolArg> for Protocol {
    fn from(arg: ProtocolArg) -> Self {
        match arg {
            ProtocolArg::Utp2 => Self::Utp2,
            ProtocolArg::Cubic => Self::Cubic,
            ProtocolArg::QuinnCubic => Self::QuinnCubic,
            ProtocolArg::QuinnBbr => Self::QuinnBbr,
            ProtocolArg::QuinnNewreno => Self::QuinnNewReno,
        }
    }
}

impl RunArgs {
    /// What is to be simulated.
    pub(crate) fn scenario(&self) -> Scenario {
        let mut s = Scenario::new(self.rate, self.rtt, 0.0, 0);
        s.seed = self.seed;
        s.steady_from = self.steady_from;
        s.config.max_datagram = self.mtu - 28;
        s.forward = self.link(self.loss);
        s.forward.discipline = self.aqm.unwrap_or_default();
        s.forward.policer = self.policer;
        for &(at, bps) in &self.step {
            s.forward = s.forward.with_step(at, Change::Rate(bps));
        }
        s.reverse = self.link(self.return_loss.unwrap_or(self.loss));
        s.moves = self.address_change.clone();
        let one = FlowConfig {
            bytes: self.bytes.unwrap_or(utp2_sim::pattern::ENDLESS),
            mode: self.mode.into(),
            rate_limit: self.rate_limit,
            protocol: self.protocol.into(),
            ..FlowConfig::endless()
        };
        let mut flows: Vec<FlowConfig> = (0..u32::from(self.flows))
            .map(|i| FlowConfig {
                start: self.start + self.flow_gap * i,
                extra_rtt: self.rtt_spread * i,
                ..one.clone()
            })
            .collect();
        flows.extend(self.cross_traffic.iter().map(|&(protocol, start)| FlowConfig {
            start,
            protocol: protocol.into(),
            mode: utp2::Mode::Full,
            rate_limit: None,
            ..one.clone()
        }));
        s.flows = flows;
        if self.bytes.is_none() {
            s.seconds = Some(Duration::from_secs_f64(self.seconds.unwrap_or(30.0)));
        }
        if self.remembered { s.remembering() } else { s }
    }

    fn link(&self, loss: f64) -> LinkConfig {
        let mut link = LinkConfig::new(self.rate, self.rtt / 2);
        let queue = match self.queue_ms {
            Some(ms) => Duration::from_secs_f64(ms / 1e3),
            None => self.rtt.mul_f64(self.queue_bdp),
        };
        link = link.with_queue(queue);
        let loss = self.gilbert.unwrap_or(Loss::independent(loss));
        if self.loss_before {
            link.loss_before = loss
        } else {
            link.loss = loss
        }
        if let Some((share, by)) = self.reorder {
            (link.reorder, link.reorder_by) = (share, by);
        }
        link.jitter = self.jitter.map_or(Jitter::None, Jitter::Uniform);
        link.jitter_reorders = self.jitter_reorders;
        link.duplicate = self.duplicate;
        link.max_datagram = usize::from(self.mtu) - 28;
        for &(at, rtt) in &self.rtt_step {
            link = link.with_step(at, Change::Delay(rtt / 2));
        }
        for &(at, len) in &self.outage {
            link = link.with_outage(at, len);
        }
        link
    }

    /// Time between two samples.
    pub(crate) fn sample_every(&self) -> Duration {
        let usual = match self.bytes {
            Some(_) => self.rtt,
            None => Duration::from_secs_f64(self.seconds.unwrap_or(30.0) / 400.0),
        };
        self.every.unwrap_or(usual).max(Duration::from_millis(1))
    }
}

fn positive(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| format!("{text:?} is not a number"))?;
    if number > 0.0 && number <= SPAN_MAX {
        Ok(number)
    } else {
        Err(format!("a number above 0 and up to {SPAN_MAX} is needed"))
    }
}

/// What a transfer moves, bytes.
fn size(text: &str) -> Result<u64, String> {
    units::size(text, 1..=10_000_000_000_000)
}

/// A point or a length of virtual time: at most a day.
pub(crate) fn span(text: &str) -> Result<Duration, String> {
    units::time(text, Duration::from_secs_f64(SPAN_MAX))
}

fn gilbert(text: &str) -> Result<Loss, String> {
    let number =
        |text: &str| text.trim().parse().map_err(|_| format!("{text:?} is not a number of datagrams"));
    let (mean, burst): (_, f64) = pair(text, ',', "2%,20", share, number)?;
    if burst.is_nan() || burst < 1.0 {
        return Err("bursts have at least one datagram".into());
    }
    Ok(Loss::bursts(mean, burst))
}

fn reorder(text: &str) -> Result<(f64, Duration), String> {
    pair(text, ',', "2%,10ms", share, duration)
}

fn aqm(text: &str) -> Result<Discipline, String> {
    match text {
        "codel" => Ok(Discipline::codel(false)),
        "codel,ecn" => Ok(Discipline::codel(true)),
        "none" | "droptail" => Ok(Discipline::DropTail),
        other => Err(format!("{other:?} is not known; use codel, codel,ecn or droptail")),
    }
}

fn policer(text: &str) -> Result<Policer, String> {
    let (speed, burst) = text.split_once(',').map_or((text, None), |(r, b)| (r, Some(b)));
    let rate_bps = bits(speed)?;
    let burst_bytes = burst.map_or(Ok(rate_bps / 8 / 20), size)?.max(3000);
    Ok(Policer { rate_bps, burst_bytes })
}

fn step(text: &str) -> Result<(Duration, u64), String> {
    pair(text, ':', "30s:200mbit", span, bits)
}

fn rtt_step(text: &str) -> Result<(Duration, Duration), String> {
    pair(text, ':', "30s:120ms", span, duration)
}

fn outage(text: &str) -> Result<(Duration, Duration), String> {
    pair(text, ':', "20s:30s", span, span)
}

fn address_change(text: &str) -> Result<AddressChange, String> {
    let mut parts = text.split(':');
    let at = span(parts.next().unwrap_or_default())?;
    let mut change = AddressChange { at, flow: 0, side: Side::Sender, what: Move::Address };
    for part in parts {
        match part {
            "sender" => change.side = Side::Sender,
            "receiver" => change.side = Side::Receiver,
            "port" => change.what = Move::Port,
            other => return Err(format!("{other:?} is not known; use sender, receiver or port")),
        }
    }
    Ok(change)
}

fn cross(text: &str) -> Result<(ProtocolArg, Duration), String> {
    let (name, start) = text.split_once(':').map_or((text, None), |(n, s)| (n, Some(s)));
    let protocol = ProtocolArg::from_str(name, false).map_err(|_| {
        let known: Vec<String> = ProtocolArg::value_variants()
            .iter()
            .filter_map(|v| v.to_possible_value().map(|p| p.get_name().to_owned()))
            .collect();
        format!("{name:?} is not known; use {}", known.join(", "))
    })?;
    Ok((protocol, start.map_or(Ok(Duration::ZERO), span)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_as_people_write_them() {
        assert_eq!(size("10TB"), Ok(10_000_000_000_000));
        assert_eq!(span("2min"), Ok(Duration::from_secs(120)));
        assert_eq!(step("30s:200mbit"), Ok((Duration::from_secs(30), 200_000_000)));
        assert_eq!(cross("cubic:10s"), Ok((ProtocolArg::Cubic, Duration::from_secs(10))));
        assert_eq!(policer("100mbit"), Ok(Policer { rate_bps: 100_000_000, burst_bytes: 625_000 }));
        assert_eq!(reorder("2%,10ms"), Ok((0.02, Duration::from_millis(10))));
        let change = address_change("5s:receiver:port").unwrap();
        assert_eq!((change.side, change.what), (Side::Receiver, Move::Port));
        assert!((gilbert("2%,20").unwrap().mean() - 0.02).abs() < 1e-9);
    }

    #[test]
    fn what_is_wrong_is_said_with_what_is_right() {
        for (error, says) in [
            (cross("tcp").unwrap_err(), "quinn-bbr"),
            (span("30").unwrap_err(), "needs a unit"),
            (gilbert("2%").unwrap_err(), "2%,20"),
            (aqm("red").unwrap_err(), "codel,ecn"),
            (address_change("5s:middle").unwrap_err(), "receiver"),
            (size("0").unwrap_err(), "10TB"),
            (positive("-1").unwrap_err(), "above 0"),
        ] {
            assert!(error.contains(says), "{error}");
        }
    }
}
