//! What the agent is told: command line over configuration file over bootstrap file.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use agent_proto::limits::{GATEWAYS_MAX, NAME_LEN_MAX, TAG_LEN_MAX, TAGS_MAX};
use agent_proto::link::is_token_text;
use agent_proto::{Bootstrap, EnrolmentCodeError, ManagementServer, parse_enrolment_code, parse_fingerprint};
use event_schema::{HOOK_SECONDS_MAX, RunOptions};
use serde::Deserialize;

use crate::discovery::{LanConfig, LanInterfaces};
use crate::hook::{Hook, Hooks};
use crate::limits::{
    CONFIG_LEN_MAX, HOOK_ARGUMENTS_MAX, HOOK_SECONDS, HOOKS_MAX, OUTBOX_MAX, RELAY_SESSIONS_MAX, RELAYS_MAX,
    RUNS_MAX,
};
use crate::relay::RelayLimits;

/// Why the configuration is no good.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{} is longer than {CONFIG_LEN_MAX} bytes", .0.display())]
    Long(PathBuf),
    #[error("{} is no bootstrap file: {source}", path.display())]
    Bootstrap { path: PathBuf, source: serde_json::Error },
    #[error("{}: {source}", path.display())]
    Code { path: PathBuf, source: EnrolmentCodeError },
    #[error("{}: {source}", path.display())]
    Toml { path: PathBuf, source: Box<toml::de::Error> },
    #[error("no data folder: give --data DIR, or `data` in the configuration file")]
    NoData,
    #[error("management_server.host {0:?} is not HOST:PORT")]
    Host(String),
    #[error("cert_authority_fingerprint is not 64 hex digits")]
    Fingerprint,
    #[error(
        "bootstrap_token is malformed: it is <32 hex digits>.<64 hex digits>; was it cut when it was copied?"
    )]
    Token,
    #[error("{0}")]
    Beyond(String),
}

/// The configuration file (TOML); every field is optional.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileConfig {
    /// Data folder.
    data: Option<PathBuf>,
    /// Path of a bootstrap file.
    bootstrap: Option<PathBuf>,
    /// Further gateways, `HOST:PORT` each, beside those the fleet tells.
    #[serde(default)]
    gateways: Vec<String>,
    /// Delete the bootstrap file once the agent is enrolled; default false.
    #[serde(default)]
    consume_bootstrap: bool,
    /// The same as in the bootstrap file.
    management_server: Option<ManagementServer>,
    folders_storage_path: Option<String>,
    #[serde(default)]
    tags: BTreeMap<String, String>,
    /// Name of the agent; default the host's name.
    name: Option<String>,
    /// µTP2 socket.
    listen: Option<SocketAddr>,
    /// Addresses under which others reach that socket from elsewhere (a forwarded port).
    #[serde(default)]
    advertise: Vec<SocketAddr>,
    /// Announce on the local network; default true.
    lan: Option<bool>,
    /// Interfaces for that; default: all that can.
    lan_interfaces: Option<Vec<String>>,
    /// Forward between members of the fleet that cannot reach each other; default false.
    relay: Option<bool>,
    /// Agents that do so, `HOST:PORT` each, beside those that say so.
    #[serde(default)]
    relays: Vec<String>,
    /// Jobs may touch folders below these only; default: whatever this user may.
    #[serde(default)]
    allowed_paths: Vec<PathBuf>,
    /// Jobs may archive or delete files here once every destination has them; default true.
    allow_disposal: Option<bool>,
    /// What one job lacks may be taken from the folders of others; default true.
    share_between_jobs: Option<bool>,
    /// Programs that jobs may ask for by their names before what they bring gets its own.
    #[serde(default)]
    hooks: BTreeMap<String, FileHook>,
    #[serde(default)]
    limits: FileLimits,
}

/// `[hooks.NAME]`; the name has 1 to 32 of a-z, 0-9 and `-`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileHook {
    /// Path of the program, absolute.
    program: PathBuf,
    /// What it is given, as it stands here; no shell reads it. At most 64.
    #[serde(default)]
    arguments: Vec<String>,
    /// Seconds that it may take, 1 to 86,400; a job may ask for less. Default 600.
    timeout_s: Option<u32>,
}

impl From<FileHook> for Hook {
    fn from(hook: FileHook) -> Self {
        let FileHook { program, arguments, timeout_s } = hook;
        let seconds = timeout_s.unwrap_or(HOOK_SECONDS);
        Self { program, arguments, timeout: Duration::from_secs(seconds.into()) }
    }
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileLimits {
    runs: Option<usize>,
    outbox: Option<u64>,
    /// A rate, as `"6MB"` (a second) or `"50mbit"`.
    upload: Option<Rate>,
    /// What a relay forwards, over all meetings; a rate as `upload`. Default 4 MB/s.
    relay_rate: Option<Rate>,
    /// Pairs of agents that a relay serves at a time. Default 64.
    relay_sessions: Option<usize>,
    /// Bytes that a relay forwards for one pair. Default 20 GB.
    relay_session_bytes: Option<u64>,
    /// Bytes of the UDP payload of the largest µTP2 datagrams; default that of [`utp2::Config`].
    datagram: Option<u16>,
}

/// Bytes a second in a file: text as on the command line.
#[derive(Deserialize)]
#[serde(try_from = "String")]
struct Rate(u64);

impl TryFrom<String> for Rate {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        parse_rate(&text).map(Self)
    }
}

/// `500KB`, `6MB`, `1.5MiB`, `50mbit`, `100000` (bytes): bytes a second, at least 1000.
pub(crate) fn parse_rate(text: &str) -> Result<u64, String> {
    units::rate(text, 8_000..=8_000_000_000_000_000).map(|bits| bits / 8)
}

/// `HOST:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Gateway {
    /// Name or IP, without brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl Gateway {
    pub(crate) fn parse(text: &str) -> Result<Self, ConfigError> {
        let bad = || ConfigError::Host(text.to_owned());
        let (host, port) = text.rsplit_once(':').ok_or_else(bad)?;
        let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        if bracketed.is_none() && host.contains(':') {
            return Err(bad());
        }
        let host = bracketed.unwrap_or(host).to_owned();
        let port = port.parse().map_err(|_| bad())?;
        match rustls::pki_types::ServerName::try_from(host.as_str()) {
            Ok(_) if port != 0 => Ok(Self { host, port }),
            _ => Err(bad()),
        }
    }
}

/// What is needed to enrol.
#[derive(Clone)]
pub(crate) struct Invitation {
    pub(crate) gateway: Gateway,
    /// The text of `gateway`.
    pub(crate) address: String,
    /// Further ones, `HOST:PORT` each.
    pub(crate) others: Vec<String>,
    /// SHA-256 of the CA certificate.
    pub(crate) fingerprint: [u8; 32],
    pub(crate) token: Option<String>,
}

/// Everything, checked.
pub(crate) struct Settings {
    pub(crate) data: PathBuf,
    /// Gateways that the owner named, beside that of the invitation.
    pub(crate) gateways: Vec<String>,
    /// None: the agent must be enrolled already.
    pub(crate) invitation: Option<Invitation>,
    /// What is wrong with the bootstrap file: nothing to an agent that is enrolled.
    pub(crate) unreadable: Option<ConfigError>,
    /// The bootstrap file, if it is to be deleted once the agent is enrolled.
    pub(crate) consumed: Option<PathBuf>,
    pub(crate) folders_storage_path: Option<String>,
    pub(crate) tags: Vec<(String, String)>,
    pub(crate) name: String,
    pub(crate) listen: SocketAddr,
    pub(crate) advertise: Vec<SocketAddr>,
    pub(crate) lan: LanConfig,
    pub(crate) allowed_paths: Vec<PathBuf>,
    /// Whether jobs may archive or delete a source's files.
    pub(crate) allow_disposal: bool,
    /// What one job lacks may be taken from the folders of others.
    pub(crate) share_between_jobs: bool,
    /// What jobs may ask for before what they bring gets its names.
    pub(crate) hooks: Hooks,
    pub(crate) runs_max: usize,
    pub(crate) outbox_max: u64,
    /// Bytes a second that are sent to other agents at most.
    pub(crate) upload_limit: Option<u64>,
    /// Bytes of the UDP payload of the largest µTP2 datagrams; none: what the transport thinks best.
    pub(crate) datagram: Option<u16>,
    /// Send false blocks, for tests.
    pub(crate) corrupt_blocks: bool,
    /// Forward for others, within these limits.
    pub(crate) relay: Option<RelayLimits>,
    /// Relays that the owner names.
    pub(crate) relays: Vec<String>,
}

/// What the command line says.
#[derive(Default)]
pub(crate) struct Overrides {
    pub(crate) data: Option<PathBuf>,
    pub(crate) bootstrap: Option<PathBuf>,
    pub(crate) config: Option<PathBuf>,
    pub(crate) listen: Option<SocketAddr>,
    pub(crate) name: Option<String>,
    pub(crate) upload_limit: Option<u64>,
    pub(crate) corrupt_blocks: bool,
}

impl Settings {
    pub(crate) fn read(overrides: Overrides) -> Result<Self, ConfigError> {
        let file = match &overrides.config {
            Some(path) => toml::from_str(&read(path)?)
                .map_err(|source| ConfigError::Toml { path: path.clone(), source: Box::new(source) })?,
            None => FileConfig::default(),
        };
        let path = overrides.bootstrap.or(file.bootstrap);
        let given = path.as_deref().map(|path| read(path).and_then(|text| bootstrap(path, &text)));
        let (given, unreadable) = match given.transpose() {
            Ok(given) => (given, None),
            Err(ConfigError::Io { source, .. }) if file.consume_bootstrap && is_missing(&source) => {
                (None, None)
            }
            Err(error) => (None, Some(error)),
        };
        let Given { invitation: invited, storage, mut tags } = given.unwrap_or_default();
        tags.extend(file.tags);
        let usual = RelayLimits::default();
        let relay = RelayLimits {
            rate: file.limits.relay_rate.map_or(usual.rate, |rate| rate.0),
            sessions: file.limits.relay_sessions.unwrap_or(usual.sessions),
            session_bytes: file.limits.relay_session_bytes.unwrap_or(usual.session_bytes),
        };
        let settings = Self {
            relay: file.relay.unwrap_or(false).then_some(relay),
            relays: file.relays,
            data: overrides.data.or(file.data).ok_or(ConfigError::NoData)?,
            gateways: file.gateways,
            invitation: file.management_server.map(invitation).transpose()?.or(invited),
            unreadable,
            consumed: path.filter(|_| file.consume_bootstrap),
            folders_storage_path: file.folders_storage_path.or(storage),
            tags: tags.into_iter().collect(),
            name: overrides.name.or(file.name).unwrap_or_else(host_name),
            listen: overrides.listen.or(file.listen).unwrap_or((Ipv4Addr::UNSPECIFIED, 0).into()),
            datagram: file.limits.datagram,
            advertise: file.advertise,
            lan: LanConfig {
                enabled: file.lan.unwrap_or(true),
                interfaces: file.lan_interfaces.map_or(LanInterfaces::Auto, LanInterfaces::Named),
                ..LanConfig::default()
            },
            allowed_paths: file.allowed_paths,
            allow_disposal: file.allow_disposal.unwrap_or(true),
            share_between_jobs: file.share_between_jobs.unwrap_or(true),
            hooks: file.hooks.into_iter().map(|(name, hook)| (name, hook.into())).collect(),
            runs_max: file.limits.runs.unwrap_or(RUNS_MAX),
            outbox_max: file.limits.outbox.unwrap_or(OUTBOX_MAX),
            upload_limit: overrides.upload_limit.or(file.limits.upload.map(|rate| rate.0)),
            corrupt_blocks: overrides.corrupt_blocks,
        };
        settings.check()?;
        Ok(settings)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let beyond = |what: String| Err(ConfigError::Beyond(what));
        if let Some(max_datagram) = self.datagram
            && let Err(error) = (utp2::Config { max_datagram, ..utp2::Config::default() }).validate()
        {
            return beyond(format!("limits.datagram: {error}"));
        }
        if self.name.is_empty() || self.name.len() > NAME_LEN_MAX || self.name.chars().any(char::is_control) {
            return beyond(format!("the name must have 1 to {NAME_LEN_MAX} bytes and no control characters"));
        }
        if self.tags.len() > TAGS_MAX {
            return beyond(format!("there are more than {TAGS_MAX} tags"));
        }
        for (name, value) in &self.tags {
            if [name, value].iter().any(|t| t.len() > TAG_LEN_MAX || t.chars().any(char::is_control)) {
                return beyond(format!(
                    "tag {name:?}: names and values have at most {TAG_LEN_MAX} bytes and no control characters"
                ));
            }
        }
        if self.relays.len() > RELAYS_MAX {
            return beyond(format!("there are more than {RELAYS_MAX} relays"));
        }
        for text in &self.relays {
            Gateway::parse(text)
                .map_err(|_| ConfigError::Beyond(format!("relays: {text:?} is not HOST:PORT")))?;
        }
        if self
            .relay
            .is_some_and(|r| r.sessions == 0 || r.sessions > RELAY_SESSIONS_MAX || r.session_bytes == 0)
        {
            return beyond(format!(
                "limits.relay_sessions must be 1 to {RELAY_SESSIONS_MAX}, relay_session_bytes not 0"
            ));
        }
        if self.gateways.len() > GATEWAYS_MAX {
            return beyond(format!("there are more than {GATEWAYS_MAX} gateways"));
        }
        for text in &self.gateways {
            Gateway::parse(text)?;
        }
        if self.hooks.len() > HOOKS_MAX {
            return beyond(format!("there are more than {HOOKS_MAX} hooks"));
        }
        let longest = Duration::from_secs(HOOK_SECONDS_MAX.into());
        for (name, hook) in &self.hooks {
            let asked = RunOptions { hook: Some(name.clone()), ..RunOptions::default() };
            if let Err(why) = asked.check() {
                return beyond(format!("hooks: {name:?}: {why}"));
            }
            if !hook.program.is_absolute() {
                return beyond(format!("hooks.{name}: the program's path must be absolute"));
            }
            if hook.arguments.len() > HOOK_ARGUMENTS_MAX || hook.arguments.iter().any(|a| a.contains('\0')) {
                return beyond(format!(
                    "hooks.{name}: at most {HOOK_ARGUMENTS_MAX} arguments, none with a zero byte"
                ));
            }
            if hook.timeout.is_zero() || hook.timeout > longest {
                return beyond(format!("hooks.{name}: timeout_s must be 1 to {HOOK_SECONDS_MAX}"));
            }
        }
        if let Some(path) = self.allowed_paths.iter().find(|path| !path.is_absolute()) {
            return beyond(format!("allowed_paths: {} is not absolute", path.display()));
        }
        Ok(())
    }
}

/// What a bootstrap file says.
#[derive(Default)]
struct Given {
    invitation: Option<Invitation>,
    storage: Option<String>,
    tags: BTreeMap<String, String>,
}

/// A bootstrap file: JSON, or an enrolment code.
fn bootstrap(path: &Path, text: &str) -> Result<Given, ConfigError> {
    if text.trim_start().starts_with('{') {
        let file: Bootstrap = serde_json::from_str(text)
            .map_err(|source| ConfigError::Bootstrap { path: path.to_owned(), source })?;
        let invitation = Some(invitation(file.management_server)?);
        return Ok(Given { invitation, storage: file.folders_storage_path, tags: file.tags });
    }
    let server =
        parse_enrolment_code(text).map_err(|source| ConfigError::Code { path: path.to_owned(), source })?;
    Ok(Given { invitation: Some(invitation(server)?), ..Given::default() })
}

fn is_missing(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}

fn invitation(server: ManagementServer) -> Result<Invitation, ConfigError> {
    if let Some(token) = &server.bootstrap_token
        && !is_token_text(token)
    {
        return Err(ConfigError::Token);
    }
    for text in &server.further_hosts {
        Gateway::parse(text)?;
    }
    Ok(Invitation {
        gateway: Gateway::parse(&server.host)?,
        fingerprint: parse_fingerprint(&server.cert_authority_fingerprint).ok_or(ConfigError::Fingerprint)?,
        token: server.bootstrap_token,
        address: server.host,
        others: server.further_hosts,
    })
}

fn read(path: &Path) -> Result<String, ConfigError> {
    let io = |source| ConfigError::Io { path: path.to_owned(), source };
    let mut text = String::new();
    let read =
        File::open(path).map_err(io)?.take(CONFIG_LEN_MAX + 1).read_to_string(&mut text).map_err(io)?;
    if read as u64 > CONFIG_LEN_MAX { Err(ConfigError::Long(path.to_owned())) } else { Ok(text) }
}

/// The host's name, or `agent` where it has none.
fn host_name() -> String {
    #[cfg(unix)]
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    #[cfg(not(unix))]
    let name = std::env::var("COMPUTERNAME").unwrap_or_default();
    if name.is_empty() { "agent".into() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str =
        "00000000000000000000000000000001.00000000000000000000000000000000000000000000000000000000000000ff";

    fn settings(bootstrap: &str, config: &str) -> Result<Settings, ConfigError> {
        let folder = tempfile::tempdir().expect("a folder");
        let (b, c) = (folder.path().join("b.json"), folder.path().join("c.toml"));
        std::fs::write(&b, bootstrap).expect("written");
        std::fs::write(&c, config).expect("written");
        Settings::read(Overrides {
            data: Some(folder.path().to_owned()),
            bootstrap: (!bootstrap.is_empty()).then_some(b),
            config: Some(c),
            ..Overrides::default()
        })
    }

    fn bootstrap(host: &str, fingerprint: &str, token: &str) -> String {
        format!(
            r#"{{"management_server": {{"host": "{host}", "cert_authority_fingerprint": "{fingerprint}",
                 "bootstrap_token": "{token}"}}, "tags": {{"SITE": "north", "ROLE": "camera"}}}}"#
        )
    }

    #[test]
    fn the_file_wins_over_the_bootstrap() {
        let b = bootstrap("control.example:7443", &"ab".repeat(32), TOKEN);
        let s = settings(
            &b,
            "name = 'cam'\nlan = false\nallowed_paths = ['/srv']\nshare_between_jobs = false\n[tags]\nSITE = 'south'\n[limits]\nruns = 3",
        )
        .expect("good");
        let invitation = s.invitation.expect("given");
        assert_eq!(invitation.gateway, Gateway { host: "control.example".into(), port: 7443 });
        assert_eq!(invitation.fingerprint, [0xab; 32]);
        assert_eq!(invitation.token.as_deref(), Some(TOKEN));
        assert_eq!((s.name.as_str(), s.lan.enabled, s.runs_max), ("cam", false, 3));
        assert_eq!(s.tags, [("ROLE".into(), "camera".into()), ("SITE".into(), "south".into())]);
        let s = settings("", "[limits]\ndatagram = 1400").expect("good");
        assert_eq!(s.datagram, Some(1400));
        let s = settings("", "").expect("an enrolled agent needs nothing");
        assert_eq!(s.datagram, None);
        assert!(s.invitation.is_none() && !s.name.is_empty() && s.lan.enabled);
    }

    #[test]
    fn hooks_are_what_the_file_says() {
        let file = "[hooks.stop-web]\nprogram = '/bin/stop web'\narguments = ['$X', '; rm']\n[hooks.x]\nprogram = '/x'\ntimeout_s = 5";
        let hooks = settings("", file).expect("good").hooks;
        let stop = &hooks["stop-web"];
        assert_eq!(
            (stop.program.as_path(), stop.timeout),
            (Path::new("/bin/stop web"), Duration::from_secs(600))
        );
        assert_eq!(stop.arguments, ["$X", "; rm"]);
        assert_eq!(hooks["x"].timeout, Duration::from_secs(5));
    }

    #[test]
    fn rates_are_read() {
        for (text, rate) in
            [("6MB", 6_000_000), ("50mbit", 6_250_000), ("1000", 1000), ("1000000gb", 10u64.pow(15))]
        {
            assert_eq!(parse_rate(text), Ok(rate));
        }
        for bad in ["", "999", "1000001gb"] {
            assert!(parse_rate(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn mistakes_are_named() {
        let good = "ab".repeat(32);
        let error = |bootstrap: &str, config: &str| match settings(bootstrap, config) {
            Ok(Settings { unreadable: Some(error), .. }) | Err(error) => error.to_string(),
            Ok(_) => panic!("{bootstrap} {config} was taken"),
        };
        for host in ["", "host", "host:0", "host:99999", "fe80::1:80", "a b:1", "[::1]", "[::1]:x"] {
            assert!(error(&bootstrap(host, &good, TOKEN), "").contains("HOST:PORT"), "{host}");
        }
        assert!(error(&bootstrap("h:1", &good[2..], TOKEN), "").contains("64 hex digits"));
        assert!(error(&bootstrap("h:1", &good, &TOKEN[1..]), "").contains("bootstrap_token"));
        assert!(!error(&bootstrap("h:1", &good, &TOKEN[1..]), "").contains("ff"), "the token is not shown");
        assert!(error("{", "").contains("no bootstrap file"));
        assert!(error("", "nmae = 'x'").contains("nmae"));
        assert!(error("", "allowed_paths = ['srv']").contains("not absolute"));
        assert!(error("", "name = ''").contains("name"));
        for (hook, named) in [
            ("[hooks.'rm -rf']\nprogram = '/bin/true'", "rm -rf"),
            ("[hooks.scan]\nprogram = 'true'", "absolute"),
            ("[hooks.scan]\nprogram = '/bin/true'\ntimeout_s = 0", "timeout_s"),
            ("[hooks.scan]\nprogram = '/bin/true'\ntimeout_s = 86401", "timeout_s"),
            ("[hooks.scan]\nprogram = '/bin/true'\narguments = [\"\\u0000\"]", "zero byte"),
            ("[hooks.scan]\ncommand = '/bin/true'", "command"),
            ("[hooks]\nscan = '/bin/true'", "scan"),
        ] {
            assert!(error("", hook).contains(named), "{hook}");
        }
        for bytes in [1199, 65_001] {
            let error = error("", &format!("[limits]\ndatagram = {bytes}"));
            assert!(error.contains("limits.datagram") && error.contains("1200 to 65000"), "{error}");
        }
        assert_eq!(Gateway::parse("[::1]:7").expect("good"), Gateway { host: "::1".into(), port: 7 });
    }
}
