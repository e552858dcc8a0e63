//! Why the log did not open. Errors of appends and reads are the contract's.

use std::path::PathBuf;

use event_log::{Damage, OpenError, Position};

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
    /// The stream has lost records, or holds something that is no record of this log.
    #[error("{0}; restore the stream from a backup, a mirror, or the local copy of a service that has one")]
    Damaged(Damage),
    /// A message by which the place of the local copy in the stream is found is missing or wrong.
    #[error(
        "message {sequence} of the stream {stream} cannot be used: {what}; restore the stream from a backup, a mirror, \
         or the local copy of a service that has one"
    )]
    Message {
        /// The stream.
        stream: String,
        /// The message's sequence number there.
        sequence: u64,
        /// What is wrong with it.
        what: String,
    },
    /// The local copy's folder can't be made, or a damaged copy not be moved aside.
    #[error("cannot use {} for the local copy of the log: {source}", dir.display())]
    Folder {
        /// The folder.
        dir: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The local copy does not open, for another reason than damage.
    #[error("the local copy of the log on NATS: {0}")]
    Copy(#[source] OpenError),
    /// The servers' log is not the one that the local copy is of.
    #[error(
        "the log in the stream {stream} is not the one whose copy is in {}: they differ at position {position} (message \
         {sequence}). Either the servers' history was replaced, or the folder belongs to another log. Nothing was \
         changed. If the servers are right, move the folder away and start again; if the copy is right, restore the \
         stream from it or from a backup", dir.display()
    )]
    OtherHistory {
        /// The stream.
        stream: String,
        /// The copy's folder.
        dir: PathBuf,
        /// The first position found to differ.
        position: Position,
        /// The message that holds it at the servers.
        sequence: u64,
    },
    /// The stream's leader has fewer messages than another of its servers.
    #[error(
        "the leader of the stream {stream} ends at message {leader}, its replica on the server {server} at {end}: the leader \
         has lost records that were acknowledged. Nothing was changed. Let another server lead, then rebuild the damaged \
         one from the others (docs/operations.md, The log in NATS)"
    )]
    LeaderShorter {
        /// The stream.
        stream: String,
        /// The last message of the leader.
        leader: u64,
        /// The server that has more.
        server: String,
        /// The last message there.
        end: u64,
    },
    /// The servers hold fewer records than the local copy.
    #[error(
        "the log in the stream {stream} ends at position {servers}, its copy in {} at {copy}: the servers have lost \
         records that they had acknowledged, or the folder belongs to another log. Nothing was changed. Restore the \
         stream from a backup or from the copy; to give up the records behind {servers}, move the folder away and \
         start again", dir.display()
    )]
    Shorter {
        /// The stream.
        stream: String,
        /// The copy's folder.
        dir: PathBuf,
        /// Where the servers' log ends.
        servers: Position,
        /// Where the copy ends.
        copy: Position,
    },
}
