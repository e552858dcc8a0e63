//! Why the log did not open. Errors of appends and reads are the contract's.

use event_log::Damage;

/// Why a log on NATS did not open, with what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum NatsOpenError {
    /// A setting is out of its range.
    #[error("bad NATS setting: {0}")]
    Setting(String),
    /// No server could be reached, or none let us in.
    #[error("cannot connect to NATS at {servers}: {reason}")]
    Connect {
        /// The addresses, without passwords.
        servers: String,
        /// What the client said.
        reason: String,
    },
    /// The server can't keep a log durably.
    #[error(
        "the NATS server at {servers} is version {version}: too old, it cannot sync before it acknowledges \
         (`sync_interval` came with 2.10), so acknowledged records could be lost; run 2.15.1 or later"
    )]
    ServerTooOld {
        /// The addresses, without passwords.
        servers: String,
        /// What the server calls itself.
        version: String,
    },
    /// The server does not take messages as large as records may be.
    #[error(
        "the NATS server takes messages of {max} bytes, {needed} are needed: set `max_payload: 1MB` or more"
    )]
    MaxPayload {
        /// The server's `max_payload`.
        max: usize,
        /// What a record with its headers may take.
        needed: usize,
    },
    /// JetStream is off or did not answer in time.
    #[error(
        "JetStream on {servers} does not answer: {reason}; is it on (`jetstream {{ store_dir: …, sync_interval: \
         always }}`), and do a majority of its servers run?"
    )]
    JetStream {
        /// The addresses, without passwords.
        servers: String,
        /// What came back.
        reason: String,
    },
    /// There is a stream of this name which can't be a log.
    #[error("the JetStream stream {stream} cannot be an event log: {what}")]
    Unfit {
        /// The stream.
        stream: String,
        /// Why not.
        what: String,
    },
    /// The stream has lost records.
    #[error("{0}; restore the stream from a backup or mirror")]
    Damaged(Damage),
}
