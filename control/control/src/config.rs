//! The settings of `flotilla serve`: command line first, then the file given with `--config`, then
//! defaults.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use event_log_nats::NatsLogOptions;
use serde::Deserialize;

use crate::retention::Rule;
use crate::telemetry::Keep;

/// Bytes of a configuration file.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// For how long telemetry may be kept.
const TELEMETRY_KEEP: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(3_600)..=Duration::from_secs(3_660 * 86_400);

/// Bytes that telemetry has at least.
const TELEMETRY_BYTES_MIN: u64 = 1_000_000;

/// Trackers and public addresses that can be named.
const PLACES_MAX: usize = 16;

/// A setting that makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not what it should be.
    #[error("{}: {message}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What is wrong and where.
        message: String,
    },
    /// A setting is out of its range.
    #[error("{0}")]
    Setting(String),
}

/// Settings as they may be left out, from the command line or the file. The file has the same names with
/// `_` for `-`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Where log, keys and token are.
    pub data: Option<PathBuf>,
    /// Where the API listens.
    pub http: Option<SocketAddr>,
    /// Whether it may listen beyond loopback without TLS.
    pub http_plaintext: Option<bool>,
    /// Where agents connect.
    pub gateway: Option<SocketAddr>,
    /// `HOST:PORT` under which agents reach the gateway; the first goes into bootstrap files.
    pub public_gateway: Option<Vec<String>>,
    /// A NATS server with JetStream instead of the embedded log.
    pub nats: Option<String>,
    /// Copies of the log on different servers, if it is made now.
    pub nats_replicas: Option<usize>,
    /// A NATS credentials file (user JWT and seed).
    pub nats_credentials: Option<PathBuf>,
    /// The authority that signed the NATS servers' certificates, PEM.
    pub nats_ca: Option<PathBuf>,
    /// Trackers named to agents.
    pub tracker: Option<Vec<String>>,
    /// How long a command may be obeyed, such as `30d`.
    pub command_ttl: Option<String>,
    /// What is kept of agents' progress.
    pub telemetry: TelemetrySettings,
    /// What becomes of old records.
    pub retention: Option<RetentionSettings>,
}

/// Settings of telemetry as they may be left out; a table of its own in the file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TelemetrySettings {
    /// For how long, such as `90 days`; `0s` keeps nothing.
    pub keep: Option<String>,
    /// How much on disk, such as `2 GB`.
    pub max_size: Option<String>,
}

/// The table `[retention]`: old segments of the embedded log go to an archive.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetentionSettings {
    /// How old every record of a segment has to be, such as `400 days`; at least a second.
    pub archive_after: String,
    /// The archive, a folder that is there.
    pub archive_to: PathBuf,
    /// How often it is looked for such segments; at least a second, an hour if nothing is said.
    pub archive_every: Option<String>,
}

/// Settings that are complete and make sense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where log, keys and token are. Default `./flotilla-data`.
    pub data: PathBuf,
    /// Where the API listens. Default `127.0.0.1:7700`.
    pub http: SocketAddr,
    /// Where agents connect. Default `0.0.0.0:7701`.
    pub gateway: SocketAddr,
    /// `HOST:PORT` under which agents reach the gateway.
    pub public_gateway: Vec<String>,
    /// A NATS server with JetStream instead of the embedded log.
    pub nats: Option<String>,
    /// How its servers are used.
    pub nats_access: NatsAccess,
    /// Trackers named to agents.
    pub trackers: Vec<String>,
    /// How long a command may be obeyed. Default 30 days.
    pub command_ttl: Duration,
    /// What is kept of agents' progress; none: nothing. Default 90 days, 2 GB.
    pub telemetry: Option<Keep>,
    /// Which old segments of the log are archived where. Default none.
    pub retention: Option<Rule>,
}

/// How the NATS servers of a log are used, besides where they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NatsAccess {
    /// Copies of the log on different servers, if it is made now. Default 1.
    pub replicas: usize,
    /// A NATS credentials file (user JWT and seed), if the servers ask for one.
    pub credentials: Option<PathBuf>,
    /// A PEM file with the authority that signed the servers' certificates, if it is a private one. Implies TLS.
    pub authority: Option<PathBuf>,
}

impl Default for NatsAccess {
    fn default() -> Self {
        Self { replicas: 1, credentials: None, authority: None }
    }
}

impl NatsAccess {
    /// What the log is opened with; `servers` as `--nats` has them.
    pub fn options(&self, servers: &str) -> NatsLogOptions {
        NatsLogOptions {
            replicas: self.replicas,
            credentials: self.credentials.clone(),
            certificate_authority: self.authority.clone(),
            ..NatsLogOptions::new(servers)
        }
    }
}

impl Settings {
    /// Reads a file of settings (TOML).
    ///
    /// # Errors
    /// If it cannot be read, is too large, or has a setting that does not exist.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let io = |source| ConfigError::Io { path: path.into(), source };
        let file = |message| ConfigError::File { path: path.into(), message };
        if std::fs::metadata(path).map_err(io)?.len() > FILE_BYTES_MAX {
            return Err(file("the file is larger than 1 MiB".into()));
        }
        let text = std::fs::read_to_string(path).map_err(io)?;
        toml::from_str(&text).map_err(|error| file(error.to_string()))
    }

    /// These settings, and those of `other` where these say nothing.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            data: self.data.or(other.data),
            http: self.http.or(other.http),
            http_plaintext: self.http_plaintext.or(other.http_plaintext),
            gateway: self.gateway.or(other.gateway),
            public_gateway: self.public_gateway.or(other.public_gateway),
            nats: self.nats.or(other.nats),
            nats_replicas: self.nats_replicas.or(other.nats_replicas),
            nats_credentials: self.nats_credentials.or(other.nats_credentials),
            nats_ca: self.nats_ca.or(other.nats_ca),
            tracker: self.tracker.or(other.tracker),
            command_ttl: self.command_ttl.or(other.command_ttl),
            telemetry: TelemetrySettings {
                keep: self.telemetry.keep.or(other.telemetry.keep),
                max_size: self.telemetry.max_size.or(other.telemetry.max_size),
            },
            retention: self.retention.or(other.retention),
        }
    }

    /// Completes and checks the settings.
    ///
    /// # Errors
    /// If the API would be offered beyond loopback in plain text without leave, or a place is no
    /// `HOST:PORT`.
    pub fn complete(self) -> Result<Config, ConfigError> {
        let setting = |message: String| Err(ConfigError::Setting(message));
        let http = self.http.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 7700)));
        if !http.ip().is_loopback() && self.http_plaintext != Some(true) {
            return setting(format!(
                "--http {http} would offer the API beyond this machine without encryption. Put a TLS proxy in \
                 front of a loopback address, or give --http-plaintext if there is one"
            ));
        }
        let public_gateway = self.public_gateway.unwrap_or_default();
        let trackers = self.tracker.unwrap_or_default();
        if public_gateway.len() > PLACES_MAX || trackers.len() > PLACES_MAX {
            return setting(format!("at most {PLACES_MAX} trackers and public gateway addresses"));
        }
        for place in public_gateway.iter().chain(&trackers) {
            if host_and_port(place).is_none() {
                return setting(format!("{place:?} is not HOST:PORT"));
            }
        }
        let command_ttl = match &self.command_ttl {
            None => crate::service::COMMAND_TTL,
            Some(text) => match humantime::parse_duration(text) {
                Ok(ttl) if ttl >= Duration::from_secs(60) => ttl,
                _ => return setting(format!("--command-ttl {text:?} is not a time of at least a minute")),
            },
        };
        if self.nats.is_none() && (self.nats_credentials.is_some() || self.nats_ca.is_some()) {
            return setting(
                "--nats-credentials and --nats-ca are for a log in NATS: name its servers with --nats".into(),
            );
        }
        let telemetry = self.telemetry.complete()?;
        let retention = self.retention.map(RetentionSettings::complete).transpose()?;
        if retention.is_some() && self.nats.is_some() {
            return setting(
                "[retention] is for a log in the data folder: one in NATS is kept whole by its servers"
                    .into(),
            );
        }
        Ok(Config {
            data: self.data.unwrap_or_else(|| PathBuf::from("flotilla-data")),
            http,
            gateway: self.gateway.unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], 7701))),
            public_gateway,
            nats: self.nats,
            nats_access: NatsAccess {
                replicas: self.nats_replicas.unwrap_or(1),
                credentials: self.nats_credentials,
                authority: self.nats_ca,
            },
            trackers,
            command_ttl,
            telemetry,
            retention,
        })
    }
}

impl RetentionSettings {
    fn complete(self) -> Result<Rule, ConfigError> {
        let time = |name: &str, text: &str| match humantime::parse_duration(text) {
            Ok(time) if time >= Duration::from_secs(1) => Ok(time),
            _ => Err(ConfigError::Setting(format!("{name} {text:?} is not a time such as \"400 days\""))),
        };
        if self.archive_to.as_os_str().is_empty() {
            return Err(ConfigError::Setting("archive_to names no folder".into()));
        }
        Ok(Rule {
            after: time("archive_after", &self.archive_after)?,
            to: self.archive_to,
            every: self
                .archive_every
                .map_or(Ok(crate::retention::EVERY), |text| time("archive_every", &text))?,
        })
    }
}

impl TelemetrySettings {
    fn complete(&self) -> Result<Option<Keep>, ConfigError> {
        let setting = |message: String| ConfigError::Setting(message);
        let mut keep = Keep::default();
        if let Some(text) = &self.keep {
            let wrong =
                || setting(format!("telemetry: keep {text:?} is not 0s or a time of 1 hour to 10 years"));
            keep.time = humantime::parse_duration(text).map_err(|_| wrong())?;
            if keep.time.is_zero() {
                return Ok(None);
            }
            if !TELEMETRY_KEEP.contains(&keep.time) {
                return Err(wrong());
            }
        }
        if let Some(text) = &self.max_size {
            let wrong = || setting(format!("telemetry: max_size {text:?} is not a size of at least 1 MB"));
            keep.max_bytes = bytes(text).filter(|bytes| *bytes >= TELEMETRY_BYTES_MIN).ok_or_else(wrong)?;
        }
        Ok(Some(keep))
    }
}

/// A number of bytes such as `500 MB`, `2GB` or `4 GiB`.
fn bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '_').unwrap_or(text.len());
    let number: u64 = text[..end].replace('_', "").parse().ok()?;
    let unit = match text[end..].trim() {
        "" | "B" => 1,
        "kB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return None,
    };
    number.checked_mul(unit)
}

/// Splits `HOST:PORT`; an IPv6 address stands in brackets.
pub(crate) fn host_and_port(text: &str) -> Option<(String, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let port = port.parse().ok().filter(|port| *port != 0)?;
    let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(inner) => inner.parse::<IpAddr>().ok().filter(IpAddr::is_ipv6)?.to_string(),
        None => host.to_owned(),
    };
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let good = host.parse::<IpAddr>().is_ok()
        || (!host.is_empty() && host.len() <= 253 && host.chars().all(is_name));
    let bracketed = text.starts_with('[') || !host.contains(':');
    (good && bracketed).then_some((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_and_precedence() {
        let config = Settings::default().complete().expect("defaults");
        assert_eq!(config.http.to_string(), "127.0.0.1:7700");
        assert_eq!(config.gateway.to_string(), "0.0.0.0:7701");
        assert_eq!(config.command_ttl, Duration::from_secs(30 * 86_400));
        let file: Settings = toml::from_str("http = \"127.0.0.1:1\"\nnats = \"nats://x\"").expect("TOML");
        let line = Settings { http: Some("127.0.0.1:2".parse().expect("an address")), ..Settings::default() };
        let config = line.or(file).complete().expect("good");
        assert_eq!((config.http.port(), config.nats.as_deref()), (2, Some("nats://x")));
        assert!(toml::from_str::<Settings>("htpp = 1").is_err());
    }

    #[test]
    fn telemetry_is_kept_as_said() {
        let of = |text: &str| toml::from_str::<Settings>(text).expect("TOML").complete();
        assert_eq!(of("").expect("good").telemetry, Some(Keep::default()));
        let keep = of("[telemetry]\nkeep = \"90 days\"\nmax_size = \"4 GiB\"").expect("good").telemetry;
        assert_eq!(keep, Some(Keep { time: Duration::from_secs(90 * 86_400), max_bytes: 4 << 30 }));
        assert_eq!(of("[telemetry]\nkeep = \"0s\"").expect("good").telemetry, None);
        for bad in ["keep = \"1 minute\"", "keep = \"soon\"", "max_size = \"10 kB\"", "max_size = \"2 gigs\""]
        {
            assert!(of(&format!("[telemetry]\n{bad}")).is_err(), "{bad}");
        }
        let line = TelemetrySettings { keep: Some("2h".into()), max_size: None };
        let file: Settings = toml::from_str("[telemetry]\nkeep = \"9h\"\nmax_size = \"5MB\"").expect("TOML");
        let both = Settings { telemetry: line, ..Settings::default() }.or(file).complete().expect("good");
        assert_eq!(both.telemetry, Some(Keep { time: Duration::from_secs(7_200), max_bytes: 5_000_000 }));
    }

    #[test]
    fn old_records_go_where_they_are_told() {
        let read = |text: &str| toml::from_str::<Settings>(text).expect("TOML").complete();
        let good = read("[retention]\narchive_after = \"400 days\"\narchive_to = \"/a\"").expect("good");
        let rule = good.retention.expect("a rule");
        assert_eq!((rule.after.as_secs(), rule.every.as_secs()), (400 * 86_400, 3_600));
        assert_eq!(rule.to, Path::new("/a"));
        for bad in [
            "nats = \"nats://x\"\n[retention]\narchive_after = \"1d\"\narchive_to = \"/a\"",
            "[retention]\narchive_after = \"soon\"\narchive_to = \"/a\"",
            "[retention]\narchive_after = \"1d\"\narchive_to = \"\"",
            "[retention]\narchive_after = \"1d\"\narchive_to = \"/a\"\narchive_every = \"0s\"",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
        assert!(toml::from_str::<Settings>("[retention]\narchive_after = \"1d\"").is_err());
    }

    #[test]
    fn plain_text_stays_on_this_machine() {
        let open = Settings { http: Some("0.0.0.0:80".parse().expect("an address")), ..Settings::default() };
        assert!(open.clone().complete().is_err());
        assert!(Settings { http_plaintext: Some(true), ..open }.complete().is_ok());
    }

    #[test]
    fn places() {
        for (text, host) in [("a.example:1", "a.example"), ("10.0.0.1:2", "10.0.0.1"), ("[::1]:3", "::1")] {
            assert_eq!(host_and_port(text).map(|(host, _)| host).as_deref(), Some(host));
        }
        for bad in ["a", "a:", "a:0", ":1", "::1:3", "[::1:3", "a b:1", "[a]:1"] {
            assert_eq!(host_and_port(bad), None, "{bad}");
        }
    }
}
