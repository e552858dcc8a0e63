//! What both protocols share: the settings, the clock of CPU time, what a side says at its end.

use std::time::Instant;

use anyhow::{Context as _, bail};
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

/// Bytes of UDP payload a datagram has, for both.
pub(crate) const DATAGRAM: u16 = 1452;

/// Bytes the peer may have in flight, for both: more than loopback ever needs.
pub(crate) const WINDOW: u32 = 64 << 20;

/// Bytes asked for each socket's buffers, for both.
pub(crate) const SOCKET_BUFFER: usize = 32 << 20;

pub(crate) struct Settings {
    pub(crate) pairs: usize,
    pub(crate) bytes: u64,
    threads: usize,
    pub(crate) only: Option<String>,
    pub(crate) quinn_cc: String,
    pub(crate) quinn_streams: usize,
    /// Bytes of a block of ours.
    pub(crate) block: u32,
    pub(crate) json: bool,
}

impl Settings {
    pub(crate) fn parse(args: &[String]) -> anyhow::Result<Self> {
        let mut this = Self {
            pairs: 5,
            bytes: 4_000_000_000,
            threads: 1,
            only: None,
            quinn_cc: "cubic".into(),
            quinn_streams: 1,
            block: 32 << 10,
            json: false,
        };
        let mut args = args.iter().skip_while(|a| !a.starts_with("--"));
        while let Some(name) = args.next() {
            if name == "--json" {
                this.json = true;
                continue;
            }
            let value = args.next().with_context(|| format!("{name} needs a value"))?;
            match name.as_str() {
                "--pairs" => this.pairs = value.parse()?,
                "--bytes" => this.bytes = value.parse()?,
                "--threads" => this.threads = value.parse()?,
                "--only" => this.only = Some(value.clone()),
                "--quinn-cc" => this.quinn_cc.clone_from(value),
                "--quinn-streams" => this.quinn_streams = value.parse()?,
                "--block" => this.block = value.parse()?,
                _ => bail!("no such setting: {name}"),
            }
        }
        Ok(this)
    }

    /// The same for both protocols.
    pub(crate) fn runtime(&self) -> anyhow::Result<tokio::runtime::Runtime> {
        let mut builder = match self.threads {
            0 | 1 => tokio::runtime::Builder::new_current_thread(),
            n => {
                let mut builder = tokio::runtime::Builder::new_multi_thread();
                builder.worker_threads(n);
                builder
            }
        };
        Ok(builder.enable_all().build()?)
    }
}

/// Time and CPU from here on.
pub(crate) struct Meter {
    began: Instant,
    cpu: f64,
    ticks: (f64, f64),
}

impl Meter {
    pub(crate) fn start() -> Self {
        Self { began: Instant::now(), cpu: cpu(), ticks: ticks() }
    }

    /// What the other process reads.
    pub(crate) fn stop(&self, bytes: u64, detail: Value) -> Value {
        let (user, sys) = ticks();
        let (user, sys) = (user - self.ticks.0, sys - self.ticks.1);
        json!({
            "bytes": bytes,
            "seconds": self.began.elapsed().as_secs_f64(),
            "cpu": cpu() - self.cpu,
            "sys_share": if user + sys > 0.0 { sys / (user + sys) } else { 0.0 },
            "detail": detail,
        })
    }
}

fn cpu() -> f64 {
    let t = clock_gettime(ClockId::ProcessCPUTime);
    t.tv_sec as f64 + t.tv_nsec as f64 / 1e9
}

/// Clock ticks in user space and in the kernel; only their ratio is used.
fn ticks() -> (f64, f64) {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let mut fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11);
    let mut next = || fields.next().and_then(|f| f.parse().ok()).unwrap_or(0.0);
    (next(), next())
}
