//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use units::share;
use utp2_tokio::LossInjector;

/// Moves files over bad networks: encrypted, paced, resumed where they stopped.
#[derive(Parser)]
#[command(
    name = "utp2",
    version,
    arg_required_else_help = true,
    after_help = "\
Example, receiver first:
  export UTP2_SECRET='correct horse battery staple'
  utp2 recv --listen 0.0.0.0:4433 --out incoming
  utp2 send big.iso --to 192.0.2.7:4433

What it would reach elsewhere:
  utp2 sim --rate 1gbit --rtt 200ms --loss 1%

Exit codes: 0 done, 1 failed, 2 wrong usage. FLOTILLA_LOG=info shows who is refused, FLOTILLA_LOG=debug each
packet of a handshake and how the connection stands."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Send files to a waiting `utp2 recv`.
    ///
    /// A transfer that was interrupted goes on where it stopped when the same file is sent again.
    ///
    /// With --json the last line on stdout is an object: ok, error (why the connection failed, or null), files (that
    /// arrived), failed (name and error of each other one), grown (names of files that became longer meanwhile; the
    /// part they began with arrived), bytes (sent now), resumed_bytes (were there before), seconds, goodput_mbps
    /// (10^6 bits/s of file data), retransmitted (bytes sent again) and retransmit_ratio (of all data sent), lost
    /// (packets), base_loss_ppm (loss by chance the path is taken to have, per million), sent_packets, rtt_ms and
    /// rtt_min_ms, public_key (of this sender), peer_key (of the receiver) and peer_key_changed (since --state last
    /// saw it). Of what fails before there is a connection only ok, error and perhaps public_key are told; a wrong
    /// command line (exit code 2) writes nothing to stdout.
    #[command(
        after_help = "Example:\n  utp2 send *.mkv --to 192.0.2.7:4433 --mode background --rate-limit 200mbit"
    )]
    Send(SendArgs),
    /// Wait for files and write them to a folder.
    ///
    /// Blocks are written to NAME.part at their place; when all are there and the BLAKE3 hash of the
    /// whole fits, the file is renamed to NAME, replacing what was there. What is there is written down every two
    /// seconds, and after each 64 MiB (or thousandth of the files under way, if that is more): no more than that is sent
    /// again if this program is killed. Names like those of unfinished files (*.part, *.part.map, *.part.map~, .utp2-*)
    /// are declined.
    ///
    /// With --json each line on stdout is an object, whose `event` is: listening (address, public_key); file (name,
    /// ok, error, size, bytes: how much of it is there, declined: whether it was not even begun); session (ok, peer,
    /// files, failed, unfinished, bytes, seconds, goodput_mbps, error: why it ended before its time).
    ///
    /// Ctrl-C ends it; without --once the exit code is 0 then, if no transfer was cut off by that.
    #[command(after_help = "Example:\n  UTP2_SECRET=… utp2 recv --listen 0.0.0.0:4433 --out incoming --once")]
    Recv(RecvArgs),
    /// Move made-up data over simulated links, in virtual time.
    ///
    /// Runs the real protocol (or another one) through a bottleneck of any kind and tells what it made of
    /// it. The same seed gives the same result, to the byte. With --json the result is one object: goodput_mbps
    /// and ceiling_mbps, utilization (steady part) and utilization_whole, rtts_to_90, retransmit_ratio,
    /// self_loss (datagrams that died of congestion), jain, queue_ms, events (what happened to the path and
    /// how long it took to get over it), flows.
    #[command(after_help = crate::sim::EXAMPLES)]
    Sim(Box<crate::sim::args::SimArgs>),
}

#[derive(Args)]
pub(crate) struct Common {
    /// What both sides know: any text. It is stretched by no password hash, so it is as strong as it is
    /// hard to guess: at least four random words. The command line can be read by other users of the
    /// machine; better set UTP2_SECRET.
    #[arg(long, env = "UTP2_SECRET", hide_env_values = true, value_parser = non_empty)]
    pub(crate) secret: String,
    /// Write machine-readable results to stdout.
    #[arg(long)]
    pub(crate) json: bool,
    /// Accept only a peer with this Ed25519 public key (64 hex digits). Each side prints its own when it starts,
    /// and in its --json; without --state it is a new one each time.
    #[arg(long, value_name = "HEX", value_parser = public_key)]
    pub(crate) peer_key: Option<PublicKey>,
    /// Lose this share of the datagrams, both ways, before they reach the socket (for tests).
    #[arg(long, hide = true, value_parser = share, default_value = "0")]
    pub(crate) inject_loss: f64,
    /// Add this to the round trip (for tests).
    #[arg(long, hide = true, value_parser = duration, default_value = "0ms")]
    pub(crate) inject_delay: Duration,
    /// Decides which datagrams --inject-loss loses.
    #[arg(long, hide = true, default_value_t = 1)]
    pub(crate) inject_seed: u64,
}

impl Common {
    pub(crate) fn fault(&self) -> Option<LossInjector> {
        let wanted = self.inject_loss > 0.0 || !self.inject_delay.is_zero();
        wanted.then_some(LossInjector {
            loss: self.inject_loss,
            delay: self.inject_delay,
            seed: self.inject_seed,
        })
    }
}

#[derive(Args)]
pub(crate) struct SendArgs {
    /// The files. Their names must differ; folders are not walked.
    #[arg(required = true, value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    /// Where `utp2 recv` listens: HOST:PORT.
    #[arg(long, value_name = "ADDR")]
    pub(crate) to: String,
    /// How hard to compete: full takes what the path gives, fair leaves TCP its share, background yields.
    #[arg(long, value_enum, default_value_t = ModeArg::Full)]
    pub(crate) mode: ModeArg,
    /// Send no faster: 80mbit, 1.5gbit (bits/s), 10MB, 1.5MiB (bytes/s).
    #[arg(long, value_name = "R", value_parser = rate)]
    pub(crate) rate_limit: Option<u64>,
    /// Keep here, readable for you alone, who this sender is (with it, it has the same key each time, which the
    /// receiver may ask for), and what lets the next send to the same receiver start at full speed.
    #[arg(long, value_name = "FILE")]
    pub(crate) state: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) common: Common,
}

#[derive(Args)]
pub(crate) struct RecvArgs {
    /// Address (or name of this machine) and port to listen on; port 0 lets the system choose. `[::]:4433` serves
    /// IPv4 too.
    #[arg(long, value_name = "ADDR", value_parser = host_and_port)]
    pub(crate) listen: String,
    /// Folder for the files; made if it does not exist.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// End after the first session; exit code 1 if it left anything undone. A sender that fell silent may come back
    /// with the same file: that is the same session to this option.
    #[arg(long)]
    pub(crate) once: bool,
    /// Keep here, readable for you alone, who this receiver is: with it, it has the same key each time it starts, and
    /// senders that remember it come back as fast as before. One receiver at a time.
    #[arg(long, value_name = "FILE")]
    pub(crate) state: Option<PathBuf>,
    /// Wait for the disk before a file counts as received.
    #[arg(long)]
    pub(crate) fsync: bool,
    #[command(flatten)]
    pub(crate) common: Common,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum ModeArg {
    Full,
    Fair,
    Background,
}

impl From<ModeArg> for utp2::Mode {
    fn from(mode: ModeArg) -> Self {
        match mode {
            ModeArg::Full => Self::Full,
            ModeArg::Fair => Self::Fair,
            ModeArg::Background => Self::Background,
        }
    }
}

/// An Ed25519 public key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PublicKey(pub(crate) [u8; 32]);

fn non_empty(text: &str) -> Result<String, String> {
    if text.is_empty() { Err("must not be empty".into()) } else { Ok(text.into()) }
}

fn host_and_port(text: &str) -> Result<String, String> {
    match text.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => Ok(text.into()),
        _ => Err("an address and a port are needed, such as 0.0.0.0:4433".into()),
    }
}

fn public_key(text: &str) -> Result<PublicKey, String> {
    let bytes = data_encoding::HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok();
    bytes.and_then(|b| b.try_into().ok()).map(PublicKey).ok_or_else(|| "64 hex digits are needed".into())
}

/// Bits per second. Less than 1 kB/s, a packet a second, never gets anywhere.
pub(crate) fn bits(text: &str) -> Result<u64, String> {
    units::rate(text, 8_000..=8_000_000_000_000)
}

/// Bytes per second, for what counts in bytes.
pub(crate) fn rate(text: &str) -> Result<u64, String> {
    bits(text).map(|bits| bits / 8)
}

/// A time on a path: at most a minute.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    units::time(text, Duration::from_secs(60))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn values_have_limits() {
        assert_eq!((bits("80mbit"), rate("80mbit")), (Ok(80_000_000), Ok(10_000_000)));
        assert!(rate("1kB").is_ok() && rate("999B").is_err() && rate("1001GB").is_err());
        assert!(duration("60s").is_ok() && duration("61s").is_err());
        assert!(host_and_port("localhost:0").is_ok() && host_and_port("[::]:4433").is_ok());
        for wrong in ["4433", ":4433", "localhost", "localhost:http", "localhost:65536"] {
            assert!(host_and_port(wrong).is_err(), "{wrong}");
        }
        assert!(public_key(&"0f".repeat(32)).is_ok() && public_key("0f").is_err());
    }
}
