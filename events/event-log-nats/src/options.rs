//! How the log is reached and made: [`NatsLogOptions`].

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::error::NatsOpenError;
use crate::message;

/// Where the servers are and which stream is the log.
///
/// Server addresses may carry a password; `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct NatsLogOptions {
    /// Servers of one cluster, such as `nats://10.0.0.1:4222`, `tls://user:password@nats.example:4222`.
    pub servers: Vec<String>,
    /// The JetStream stream: `[A-Za-z0-9_-]`, `FLOTILLA_EVENTS` by default.
    pub stream: String,
    /// What the subjects begin with, `flotilla.ev` by default. Two logs on one server need different ones.
    pub subject_prefix: String,
    /// Copies of the log on different servers when the stream is made, 1 to 5, by default 1. Use 3 on three machines:
    /// one can be lost. An existing stream is not changed.
    pub replicas: usize,
    /// A NATS credentials file (user JWT and seed), if the servers ask for one.
    pub credentials: Option<PathBuf>,
    /// A PEM file with the certificate authority of the servers, if it is a private one. Implies TLS.
    pub certificate_authority: Option<PathBuf>,
    /// A folder for this program's own, verified copy of the log, made if there is none: reads are served from it, and
    /// the next start only fetches what is new. One folder for one log and one program at a time. `None`, the default:
    /// a temporary one, filled from the servers at every start and removed with the log.
    pub copy: Option<PathBuf>,
    /// How long opening may take until the servers answer, and then how long the copy may stand still while it is
    /// filled; 15 s by default: a cluster that just started first elects its leaders.
    pub open_timeout: Duration,
    /// How long an append goes on trying, 30 s by default: longer than a server takes to restart or a cluster to elect
    /// a leader. After that it reports `Unavailable`, or `Unknown` if the record may have been stored.
    pub append_timeout: Duration,
    /// How long a read goes on trying before it reports `Unavailable`, 15 s by default: longer than a cluster takes to
    /// elect a leader.
    pub read_timeout: Duration,
}

impl NatsLogOptions {
    /// The defaults, with servers as `--nats` takes them: one address or several with commas.
    pub fn new(servers: &str) -> NatsLogOptions {
        let servers = servers.split(',').map(|server| server.trim().to_owned()).collect();
        NatsLogOptions {
            servers,
            stream: "FLOTILLA_EVENTS".to_owned(),
            subject_prefix: "flotilla.ev".to_owned(),
            replicas: 1,
            credentials: None,
            certificate_authority: None,
            copy: None,
            open_timeout: Duration::from_secs(15),
            append_timeout: Duration::from_secs(30),
            read_timeout: Duration::from_secs(15),
        }
    }

    pub(crate) fn check(&self) -> Result<(), NatsOpenError> {
        let bad = |what: String| Err(NatsOpenError::Setting(what));
        if self.servers.iter().all(String::is_empty) {
            return bad("no server address".to_owned());
        }
        let name_byte = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
        if self.stream.is_empty() || self.stream.len() > 64 || !self.stream.bytes().all(name_byte) {
            return bad(format!("stream name {:?} (1 to 64 letters, digits, _ and -)", self.stream));
        }
        if !message::is_prefix(&self.subject_prefix) {
            return bad(format!(
                "subject prefix {:?} (1 to 64 letters, digits, _ and -, in parts with dots between)",
                self.subject_prefix
            ));
        }
        if !(1..=5).contains(&self.replicas) {
            return bad(format!("{} replicas (1 to 5)", self.replicas));
        }
        Ok(())
    }

    /// The addresses for people: without user and password.
    pub(crate) fn shown_servers(&self) -> String {
        let shown: Vec<_> = self.servers.iter().map(|server| without_secret(server)).collect();
        shown.join(", ")
    }
}

/// An address without what stands before the last `@`.
fn without_secret(server: &str) -> String {
    match (server.split_once("://"), server.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, host))) => format!("{scheme}://…@{host}"),
        (None, Some((_, host))) => format!("…@{host}"),
        (_, None) => server.to_owned(),
    }
}

impl fmt::Debug for NatsLogOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NatsLogOptions")
            .field("servers", &self.shown_servers())
            .field("stream", &self.stream)
            .field("subject_prefix", &self.subject_prefix)
            .field("replicas", &self.replicas)
            .field("credentials", &self.credentials)
            .field("certificate_authority", &self.certificate_authority)
            .field("copy", &self.copy)
            .field("open_timeout", &self.open_timeout)
            .field("append_timeout", &self.append_timeout)
            .field("read_timeout", &self.read_timeout)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_not_shown() {
        let options = NatsLogOptions::new("nats://user:hush@a:4222, tok:en@b,nats://c");
        let shown = format!("{options:?} {}", options.shown_servers());
        assert!(!shown.contains("hush") && !shown.contains("tok:en"), "{shown}");
        assert!(shown.contains("nats://…@a:4222, …@b, nats://c"), "{shown}");
    }

    #[test]
    fn settings_are_checked() {
        let good = NatsLogOptions::new("localhost");
        assert!(good.check().is_ok());
        let mut servers = good.clone();
        servers.servers = vec![String::new()];
        let mut stream = good.clone();
        stream.stream = "EV.ENTS".to_owned();
        let mut prefix = good.clone();
        prefix.subject_prefix = "flotilla.>".to_owned();
        let mut replicas = good.clone();
        replicas.replicas = 6;
        for bad in [servers, stream, prefix, replicas] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
    }
}
