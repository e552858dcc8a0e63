//! `wan peer`: senders and receivers of other protocols, to measure beside `utp2`. One file, checked for its length;
//! the benchmark compares the content.
//!
//! Owns the command line and the result. `tcp` is what the kernel gives, unencrypted; `quic` is quinn.

mod quic;
mod tcp;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Result, bail};
use clap::{Subcommand, ValueEnum};
use serde_json::json;

use crate::print_json;

/// What a receiver says when it is ready, on standard output.
pub(crate) const LISTENING: &str = "listening";

/// Bytes read or written at a time.
const CHUNK: usize = 256 << 10;

#[derive(Subcommand)]
pub(crate) enum Args {
    /// Takes one file and ends.
    Recv {
        #[command(flatten)]
        common: Common,
        /// Address and port.
        #[arg(long, value_name = "ADDR")]
        listen: SocketAddr,
        /// Where the file goes.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// Its length, which the sender must keep to.
        #[arg(long, value_name = "BYTES")]
        size: u64,
    },
    /// Sends one file and waits until the receiver has it. Prints bytes, seconds and `goodput_mbps` as JSON.
    Send {
        #[command(flatten)]
        common: Common,
        /// The file.
        file: PathBuf,
        /// Where the receiver listens.
        #[arg(long, value_name = "ADDR")]
        to: SocketAddr,
        /// Parallel connections (TCP).
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
        connections: u32,
    },
}

#[derive(clap::Args, Clone)]
pub(crate) struct Common {
    /// How the bytes travel.
    #[arg(long, value_enum)]
    protocol: Protocol,
    /// Congestion control: bbr, cubic, or what else the kernel has for TCP.
    #[arg(long, default_value = "bbr")]
    congestion: String,
    /// Flow control window (QUIC); 4 × bandwidth × delay is plenty.
    #[arg(long, default_value_t = 64 << 20, value_name = "BYTES")]
    window: u64,
    /// The receiver's certificate: it writes it here, the sender reads it here (QUIC).
    #[arg(long, value_name = "FILE", required_if_eq("protocol", "quic"))]
    cert: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Protocol {
    Tcp,
    Quic,
}

pub(crate) fn run(args: &Args) -> Result<bool> {
    match args {
        Args::Recv { common, listen, out, size } => match common.protocol {
            Protocol::Tcp => tcp::receive(common, *listen, out, *size)?,
            Protocol::Quic => quic::receive(common, *listen, out, *size)?,
        },
        Args::Send { common, file, to, connections } => {
            let began = Instant::now();
            let bytes = match common.protocol {
                Protocol::Tcp => tcp::send(common, file, *to, *connections)?,
                Protocol::Quic if *connections > 1 => bail!("QUIC sends over one connection here"),
                Protocol::Quic => quic::send(common, file, *to)?,
            };
            let seconds = began.elapsed().as_secs_f64();
            let goodput_mbps = bytes as f64 * 8.0 / 1e6 / seconds;
            print_json(&json!({ "bytes": bytes, "seconds": seconds, "goodput_mbps": goodput_mbps }))?;
        }
    }
    Ok(true)
}
