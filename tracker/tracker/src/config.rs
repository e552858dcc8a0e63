//! Command line and configuration file.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Parser;
use serde::Deserialize;

use crate::limits::Limits;

const EXAMPLES: &str = "\
Examples:
  flotilla-tracker --listen 0.0.0.0:7070
  flotilla-tracker --listen 127.0.0.1:0 --json
  flotilla-tracker --config /etc/flotilla/tracker.toml

Configuration file (everything may be left out; these are the defaults, save `listen`):
  listen = \"[::]:7070\"
  stats_interval_s = 0               # 0: only on SIGUSR1
  [limits]
  announce_interval_s = 30
  max_swarms = 20000
  max_peers_per_swarm = 4096
  max_entries = 100000
  max_entries_per_source = 4096
  requests_per_second = 100          # per source
  request_burst = 400

Nothing is kept on disk: after a restart, agents announce themselves again within an announce interval.
SIGTERM and Ctrl-C end the tracker, SIGUSR1 prints statistics. FLOTILLA_LOG=debug shows more on stderr.";

/// Tells agents of one run each other's addresses, without learning what the run is about.
#[derive(Debug, Parser)]
#[command(name = "flotilla-tracker", version, after_help = EXAMPLES)]
pub(crate) struct Args {
    /// UDP address to serve; port 0 takes a free one. Overrides `listen` of the file
    #[arg(long, value_name = "ADDR", required_unless_present = "config")]
    listen: Option<SocketAddr>,
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print statistics this often; 0 = only on SIGUSR1. Overrides `stats_interval_s` of the file
    #[arg(long, value_name = "SECONDS")]
    stats_interval: Option<u64>,
    /// Print JSON lines on stdout instead of text
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    listen: Option<SocketAddr>,
    stats_interval_s: u64,
    limits: Limits,
}

/// What the tracker runs with.
#[derive(Debug, PartialEq)]
pub(crate) struct Config {
    pub(crate) listen: SocketAddr,
    pub(crate) stats_interval: Option<Duration>,
    pub(crate) limits: Limits,
}

impl Config {
    pub(crate) fn load(args: &Args) -> anyhow::Result<Self> {
        let file = args.config.as_deref().map(read).transpose()?.unwrap_or_default();
        let stats_s = args.stats_interval.unwrap_or(file.stats_interval_s);
        let listen = args.listen.or(file.listen);
        Ok(Self {
            listen: listen.context("no address: give --listen, or `listen` in the configuration file")?,
            stats_interval: (stats_s > 0).then_some(Duration::from_secs(stats_s)),
            limits: file.limits,
        })
    }
}

fn read(path: &Path) -> anyhow::Result<File> {
    let text = fs::read_to_string(path).with_context(|| format!("can't read {}", path.display()))?;
    parse(&text).with_context(|| format!("in {}", path.display()))
}

fn parse(text: &str) -> anyhow::Result<File> {
    let file: File = toml::from_str(text)?;
    let l = &file.limits;
    ensure!((1..=3600).contains(&l.announce_interval_s), "announce_interval_s must be 1 to 3600");
    let zero = l.max_swarms == 0
        || l.max_peers_per_swarm == 0
        || l.max_entries == 0
        || l.max_entries_per_source == 0
        || l.requests_per_second == 0
        || l.request_burst == 0;
    ensure!(!zero, "limits must not be 0");
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_in_the_help_holds_the_defaults() {
        let (_, rest) = EXAMPLES.split_once("`listen`):\n").unwrap();
        let (toml, _) = rest.split_once("\n\n").unwrap();
        let file = parse(toml).unwrap();
        assert_eq!(file.limits, Limits::default());
        assert_eq!((file.listen, file.stats_interval_s), (Some("[::]:7070".parse().unwrap()), 0));
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in
            ["[limits]\nmax_swarms = 0", "[limits]\nannounce_interval_s = 0", "typo = 1", "listen = 'x'"]
        {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_command_line_overrides_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tracker.toml");
        fs::write(&path, "listen = '127.0.0.1:1'\nstats_interval_s = 5").unwrap();
        let config = |more: &[&str]| {
            let base = ["flotilla-tracker", "--config", path.to_str().unwrap()];
            Config::load(&Args::try_parse_from(base.iter().chain(more)).unwrap()).unwrap()
        };
        assert_eq!(config(&[]).listen.port(), 1);
        let given = config(&["--listen", "127.0.0.1:2", "--stats-interval", "0"]);
        assert_eq!((given.listen.port(), given.stats_interval), (2, None));
        assert!(Args::try_parse_from(["flotilla-tracker"]).is_err());
    }
}
