//! The control link: what an agent and the gateway say over TLS 1.3 (`edge-agent/PROTOCOL.md` §2).
//!
//! Each message is a frame: `u32` length, little-endian, then the encoded [`ToGateway`] or
//! [`ToAgent`]. The first frame is the gateway's [`Challenge`].

use alloc::string::String;
use alloc::vec::Vec;

use ed25519_dalek::SigningKey;
use event_schema::{
    AgentId, DecodeError, Domain, RefusalReason, RunAgentState, RunId, Signature, Signed, Tagged, Timestamp,
    tagged_enum,
};
use serde::{Deserialize, Serialize};

use crate::limits::FRAME_LEN_MAX;

/// What both sides name in TLS (ALPN) if they know version 2 of the link: version 1 and the messages of witnesses. A
/// side that names nothing speaks version 1 (`edge-agent/PROTOCOL.md` §2.1).
pub const WITNESS_ALPN: &[u8] = b"flotilla/2";

tagged_enum! {
    /// From agent to gateway.
    pub enum ToGateway, upcast = upcast_to_gateway {
        /// Without a client certificate: let me in.
        (1, 1) "enrol" => Enrol,
        /// With one: here I am.
        (2, 2) "hello" => Hello,
        /// A signed report from the outbox.
        (3, 1) "report" => ReportSent,
        /// Telemetry, not recorded.
        (4, 3) "progress" => Progress,
        /// Still there?
        (5, 1) "ping" => Ping,
        /// What I hold as a witness of the log; only where [`WITNESS_ALPN`] was agreed on.
        (6, 1) "holds" => Holds,
    }
}

tagged_enum! {
    /// From gateway to agent.
    pub enum ToAgent, upcast = event_schema::upcast::none {
        /// First frame of every connection.
        (1, 1) "challenge" => Challenge,
        /// Welcome to the fleet; connect again with the certificate.
        (2, 1) "enrolled" => Enrolled,
        /// Known, not approved yet; ask again later.
        (3, 1) "pending" => Pending,
        /// No.
        (4, 1) "refused" => Refused,
        /// Answer to `Hello`.
        (5, 1) "welcome" => Welcome,
        /// A signed command.
        (6, 1) "command" => CommandSent,
        /// Reports up to here are on the log.
        (7, 1) "reports_stored" => ReportsStored,
        /// Still here.
        (8, 1) "pong" => Pong,
        /// The log's newest checkpoint; only where [`WITNESS_ALPN`] was agreed on.
        (9, 1) "checkpoint" => CheckpointSent,
        /// Where else the agent may go; only to those that say they understand it.
        (10, 1) "gateways" => Gateways,
    }
}

/// Bit of [`Hello::features`]: the agent understands [`Gateways`].
pub const FEATURE_GATEWAYS: u32 = 1;

/// The shape of [`Hello`] before it told what the agent understands.
#[derive(Serialize, Deserialize)]
struct Hello1 {
    version: String,
    command_cursor: u64,
    addresses: Vec<String>,
    trust_version: u64,
}

/// The shape of [`Progress`] before it told of connections.
#[derive(Serialize, Deserialize)]
struct Progress1 {
    run: RunId,
    state: RunAgentState,
    blocks_done: u64,
    blocks_total: u64,
    bytes_done: u64,
    bytes_total: u64,
    bytes_sent: u64,
    peers: u32,
    entries: u64,
}

/// The shape of [`Progress`] before there were synchronizations, and before it told what is missing.
#[derive(Serialize, Deserialize)]
struct Progress2 {
    run: RunId,
    state: RunAgentState,
    blocks_done: u64,
    blocks_total: u64,
    bytes_done: u64,
    bytes_total: u64,
    bytes_sent: u64,
    peers: u32,
    entries: u64,
    connections: Option<Vec<PeerConnection>>,
}

/// Old shapes of what agents send: they are older than their gateway while a fleet is upgraded.
fn upcast_to_gateway(tagged: &Tagged) -> Option<Tagged> {
    if tagged.kind == 4 && tagged.version < 3 {
        let old: Progress2 = if tagged.version == 2 {
            event_schema::decode_exact("progress", &tagged.payload).ok()?
        } else {
            let old: Progress1 = event_schema::decode_exact("progress", &tagged.payload).ok()?;
            Progress2 {
                run: old.run,
                state: old.state,
                blocks_done: old.blocks_done,
                blocks_total: old.blocks_total,
                bytes_done: old.bytes_done,
                bytes_total: old.bytes_total,
                bytes_sent: old.bytes_sent,
                peers: old.peers,
                entries: old.entries,
                connections: None,
            }
        };
        let new = Progress {
            run: old.run,
            state: old.state,
            blocks_done: old.blocks_done,
            blocks_total: old.blocks_total,
            bytes_done: old.bytes_done,
            bytes_total: old.bytes_total,
            bytes_sent: old.bytes_sent,
            peers: old.peers,
            entries: old.entries,
            connections: old.connections,
            sync: None,
            standing: None,
        };
        return Some(ToGateway::from(new).to_tagged());
    }
    if (tagged.kind, tagged.version) != (2, 1) {
        return None;
    }
    // What cannot be read stays as it is and is refused as of a version that is not known.
    let old: Hello1 = event_schema::decode_exact("hello", &tagged.payload).ok()?;
    let Hello1 { version, command_cursor, addresses, trust_version } = old;
    let hello = Hello { version, command_cursor, addresses, trust_version, features: 0 };
    Some(ToGateway::from(hello).to_tagged())
}

/// What the gateway opens with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Challenge {
    /// Fresh random bytes; an enrolling agent signs them.
    pub nonce: [u8; 32],
    /// The gateway's clock.
    pub time: Timestamp,
}

/// Ask to be let in.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct Enrol {
    /// The agent's Ed25519 key.
    pub public_key: [u8; 32],
    /// Its signature over the challenge's nonce ([`Enrol::proof`]).
    pub proof: Signature,
    /// Its name for itself (host name, say).
    pub name: String,
    /// Its tags; those of the token win.
    pub tags: Vec<(String, String)>,
    /// The token's text, if it has one.
    pub token: Option<String>,
    /// Version of the agent program.
    pub version: String,
}

impl core::fmt::Debug for Enrol {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Enrol").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Enrol {
    /// The agent's proof that it holds its key, for this connection's challenge.
    pub fn proof(nonce: &[u8; 32], key: &SigningKey) -> Signature {
        Signed::sign(Domain::Enrolment, nonce.to_vec(), key).signature
    }

    /// Whether the proof holds for the challenge that was sent.
    pub fn proof_holds(&self, nonce: &[u8; 32]) -> bool {
        let signed = Signed { bytes: nonce.to_vec(), signature: self.proof };
        signed.verify(Domain::Enrolment, &self.public_key).is_ok()
    }
}

/// Here I am; the agent is the one its certificate names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Version of the agent program.
    pub version: String,
    /// Sequence of the last command stored; the gateway sends what follows.
    pub command_cursor: u64,
    /// Where its µTP2 endpoint can be tried (`IP:PORT`); an unspecified IP stands for the one that
    /// the gateway sees.
    pub addresses: Vec<String>,
    /// Version of the trust bundle it has.
    pub trust_version: u64,
    /// What it understands beyond what every agent does: bits such as [`FEATURE_GATEWAYS`]. Bits that the gateway
    /// does not know mean nothing to it.
    pub features: u32,
}

/// A signed report from the outbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportSent {
    /// An [`event_schema::Report`] under the agent's signature.
    pub signed: Signed,
}

/// Telemetry of a run, a few times a minute or second; lost if nobody listens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Which run.
    pub run: RunId,
    /// Where the agent stands.
    pub state: RunAgentState,
    /// Content blocks verified.
    pub blocks_done: u64,
    /// Content blocks in all; 0 while unknown.
    pub blocks_total: u64,
    /// Content bytes verified.
    pub bytes_done: u64,
    /// Content bytes in all; 0 while unknown.
    pub bytes_total: u64,
    /// Content bytes sent to others.
    pub bytes_sent: u64,
    /// Connected peers.
    pub peers: u32,
    /// Entries read so far while indexing.
    pub entries: u64,
    /// How the peers are connected; every 10 s. At most [`crate::limits::CONNECTIONS_TOLD`].
    pub connections: Option<Vec<PeerConnection>>,
    /// How far a member of a synchronization is; of other runs none.
    pub sync: Option<SyncProgress>,
    /// What is missing and who has it; with `connections`.
    pub standing: Option<Standing>,
}

/// What keeps an agent from being done, as far as it can see.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// Content blocks that are missing; at a source 0.
    pub missing: u64,
    /// Of these, blocks that no peer has which it is connected to.
    pub nowhere: u64,
    /// Blocks that arrived and are not on disk yet.
    pub writing: u32,
    /// Whether its own limit of sending holds back what others wait for.
    pub limited: bool,
    /// Connected peers, those that have most of what is missing first. At most [`crate::limits::HOLDERS_TOLD`].
    pub holders: Vec<Holder>,
}

/// What a connected peer has of what is missing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Who.
    pub peer: AgentId,
    /// Missing blocks that it has.
    pub has: u64,
    /// Blocks that it was asked for and has not delivered.
    pub asked: u32,
    /// Seconds since it delivered something, if it was asked for something.
    pub silent_s: u32,
    /// Whether nothing is taken from it, as it sent what was not genuine.
    pub avoided: bool,
}

/// How far a member of a synchronization is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncProgress {
    /// What it is at.
    pub phase: SyncPhase,
    /// Files, folders and symlinks that it has in its folder, as far as they are known.
    pub entries: u64,
    /// Entries that are to be brought, changed or removed yet.
    pub left: u64,
    /// Content bytes of those that are to be fetched yet.
    pub bytes_left: u64,
    /// Conflict copies in the tree.
    pub conflicts: u64,
    /// Paths at which what should be there cannot be.
    pub blocked: u64,
}

/// What a member of a synchronization is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SyncPhase {
    /// Reads its folder for the first time, or after it could not watch it.
    Scanning,
    /// Brings its folder to what it knows of the others.
    Syncing,
    /// Has all that it knows of the others.
    InSync,
    /// Waits for a person's answer before it tells of deletions or changes anything.
    Guarded,
    /// Cannot reach its folder, which is not mounted, say.
    NoFolder,
}

impl SyncPhase {
    /// Its name, as `in_sync`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Scanning => "scanning",
            Self::Syncing => "syncing",
            Self::InSync => "in_sync",
            Self::Guarded => "guarded",
            Self::NoFolder => "no_folder",
        }
    }
}

/// How two agents are connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Way {
    /// Not at all.
    None,
    /// On this host, or as heard on the local network.
    Lan,
    /// From address to address.
    Direct,
    /// So, because both sides sent at the same time.
    Punched,
    /// Another agent forwards.
    Relayed,
}

impl Way {
    /// Its name, as `punched`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Lan => "lan",
            Self::Direct => "direct",
            Self::Punched => "punched",
            Self::Relayed => "relayed",
        }
    }
}

/// One peer of a run, as the agent that tells it sees it (`edge-agent/PATHS.md` §5).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerConnection {
    /// Who.
    pub peer: AgentId,
    /// How.
    pub way: Way,
    /// Who forwards, if somebody does.
    pub relay: Option<AgentId>,
    /// The teller's address on the way there; empty if not known.
    pub local: String,
    /// The peer's, or the relay's; empty without a connection.
    pub remote: String,
    /// The teller called.
    pub initiator: bool,
    /// Smoothed round trip time, µs.
    pub rtt_us: u32,
    /// Bytes a second sent to it, over the last second.
    pub sent_per_s: u64,
    /// Bytes a second received from it.
    pub received_per_s: u64,
    /// Since when.
    pub since: Timestamp,
    /// What was tried since it was connected last, newest last.
    pub tried: Vec<String>,
    /// Why the last try failed; empty if none did.
    pub last_error: String,
}

/// Still there?
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ping {}

/// Everything an agent of the fleet needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enrolled {
    /// Client certificate (X.509, DER), signed by the CA.
    pub certificate: Vec<u8>,
    /// Credential for other agents ([`crate::Credential`], travelling form).
    pub credential: Vec<u8>,
    /// The fleet's keys ([`crate::TrustBundle`]).
    pub trust: Signed,
}

/// Known, not approved yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// Seconds to wait before asking again.
    pub retry_after_s: u32,
}

/// No.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Why.
    pub reason: RefusalReason,
    /// What happened and what to do, for people.
    pub detail: String,
}

/// Answer to `Hello`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The gateway's clock.
    pub time: Timestamp,
    /// Reports up to this sequence are on the log.
    pub reports_stored: u64,
    /// The fleet's keys, if the agent's are older.
    pub trust: Option<Signed>,
}

/// A signed command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandSent {
    /// An [`event_schema::Command`] under a command key.
    pub signed: Signed,
}

/// Reports up to here are on the log and may leave the outbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportsStored {
    /// The sequence.
    pub up_to: u64,
}

/// Still here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pong {}

/// What an agent holds as a witness: right behind its hello, and once more as the answer to each checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holds {
    /// The newest checkpoint that it has seen proved, a signed note; none if it has seen none.
    /// At most [`CHECKPOINT_NOTE_MAX`](crate::limits::CHECKPOINT_NOTE_MAX) bytes.
    pub checkpoint: Option<String>,
    /// Why the checkpoint it was just shown was refused, one line for people; none if it was taken, or none was shown.
    /// At most [`REFUSAL_LEN_MAX`](crate::limits::REFUSAL_LEN_MAX) bytes.
    pub refused: Option<String>,
}

/// The log's newest checkpoint for one witness.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointSent {
    /// The list of keys that sign checkpoints, itself signed by the root key; with the first checkpoint of a
    /// connection.
    pub keys: Option<String>,
    /// The checkpoint, and the proof that it continues the one held, as `events/AUDIT_FORMAT.md` §4 has it.
    pub advance: String,
}

/// Every gateway of the fleet: the agent goes to another one when its own is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gateways {
    /// `HOST:PORT` each, at most [`GATEWAYS_MAX`](crate::limits::GATEWAYS_MAX); the one that tells it first.
    pub gateways: Vec<String>,
    /// Seconds between pings from now on; the link is dead after twice that and a second more. 0: as without this
    /// message.
    pub keep_alive_s: u16,
}

/// Puts the length before an encoded message.
///
/// # Panics
/// If the message is longer than [`FRAME_LEN_MAX`]: what makes messages must keep them below.
pub fn frame(message: &[u8]) -> Vec<u8> {
    assert!(message.len() <= FRAME_LEN_MAX, "a link message of {} bytes", message.len());
    let mut frame = Vec::with_capacity(4 + message.len());
    frame.extend_from_slice(&(message.len() as u32).to_le_bytes());
    frame.extend_from_slice(message);
    frame
}

/// Length of the message that a frame's first four bytes announce.
///
/// # Errors
/// If it is beyond [`FRAME_LEN_MAX`]: the peer is broken or hostile, close the link.
pub fn frame_len(header: [u8; 4]) -> Result<usize, DecodeError> {
    match u32::from_le_bytes(header) as usize {
        len if len <= FRAME_LEN_MAX => Ok(len),
        _ => Err(DecodeError::Malformed { what: "frame" }),
    }
}

/// Cuts a byte stream into messages.
///
/// Bytes are read into [`FrameBuffer::space`], messages taken with [`FrameBuffer::next`] until there
/// is none. It grows with what arrived, never with what was announced, and shrinks again when empty.
#[derive(Default)]
pub struct FrameBuffer {
    bytes: Vec<u8>,
    /// Bytes at the beginning that were handed out already.
    taken: usize,
}

impl FrameBuffer {
    /// Size when idle, bytes: a ping fits many times.
    const IDLE_LEN: usize = 512;
    /// Room for one read, bytes: a TLS record.
    const CHUNK_LEN: usize = 16 * 1024;

    /// Where the stream's next bytes are to be appended; what was taken is gone from it, and there is
    /// room (capacity) for as much as is sensible to read next.
    pub fn space(&mut self) -> &mut Vec<u8> {
        self.bytes.drain(..self.taken);
        self.taken = 0;
        let end = self.bytes.first_chunk::<4>().and_then(|header| Some(4 + frame_len(*header).ok()?));
        let missing = end.map_or(0, |end| end.saturating_sub(self.bytes.len()));
        if self.bytes.is_empty() {
            self.bytes.shrink_to(Self::IDLE_LEN);
        }
        self.bytes.reserve(missing.clamp(Self::IDLE_LEN, Self::CHUNK_LEN));
        &mut self.bytes
    }

    /// The next message, still encoded, if it has arrived whole.
    ///
    /// # Errors
    /// If it is longer than `max` bytes or than [`FRAME_LEN_MAX`]. It stays so: close the link.
    pub fn next(&mut self, max: usize) -> Result<Option<&[u8]>, DecodeError> {
        let Some((header, _)) = self.bytes[self.taken..].split_first_chunk::<4>() else { return Ok(None) };
        let len = frame_len(*header)?;
        if len > max {
            return Err(DecodeError::Malformed { what: "frame" });
        }
        let begin = self.taken + 4;
        if self.bytes.len() - begin < len {
            return Ok(None);
        }
        self.taken = begin + len;
        Ok(Some(&self.bytes[begin..self.taken]))
    }

    /// Whether no byte of a further message has arrived.
    pub fn is_empty(&self) -> bool {
        self.taken == self.bytes.len()
    }
}

/// Sealed context of a run's secret inside a command: the run's id.
pub fn seal_context(run: RunId) -> [u8; 16] {
    run.0
}

/// The text form of a bootstrap token: `<token id>.<64 hex digits>`; only its SHA-256 is on the log.
pub fn is_token_text(text: &str) -> bool {
    text.split_once('.').is_some_and(|(id, secret)| {
        id.parse::<event_schema::TokenId>().is_ok()
            && secret.len() == 64
            && secret.bytes().all(|b| b.is_ascii_hexdigit())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_agents_hello_is_read() {
        let old = Hello1 {
            version: "0.1.0".into(),
            command_cursor: 300,
            addresses: alloc::vec!["192.0.2.7:5000".into()],
            trust_version: 2,
        };
        let bytes =
            event_schema::encode(&Tagged { kind: 2, version: 1, payload: event_schema::encode(&old) });
        let Ok(ToGateway::Hello(hello)) = ToGateway::decode(&bytes) else { panic!("no hello") };
        assert_eq!((hello.command_cursor, hello.trust_version, hello.features), (300, 2, 0));
        assert_eq!(hello.addresses, old.addresses);
        let cut = event_schema::encode(&Tagged { kind: 2, version: 1, payload: alloc::vec![1] });
        assert!(ToGateway::decode(&cut).is_err());
    }

    #[test]
    fn older_agents_progress_is_read() {
        let old = Progress2 {
            run: RunId([7; 16]),
            state: RunAgentState::Transferring,
            blocks_done: 1,
            blocks_total: 2,
            bytes_done: 3,
            bytes_total: 4,
            bytes_sent: 5,
            peers: 6,
            entries: 7,
            connections: Some(Vec::new()),
        };
        let bytes =
            event_schema::encode(&Tagged { kind: 4, version: 2, payload: event_schema::encode(&old) });
        let Ok(ToGateway::Progress(progress)) = ToGateway::decode(&bytes) else { panic!("no progress") };
        assert_eq!((progress.run, progress.entries, progress.sync), (old.run, 7, None));
        assert_eq!(progress.connections, Some(Vec::new()));
        let cut = event_schema::encode(&Tagged { kind: 4, version: 2, payload: alloc::vec![1] });
        assert!(ToGateway::decode(&cut).is_err());
    }

    #[test]
    fn enrolment_proof_is_bound_to_the_challenge() {
        let key = SigningKey::from_bytes(&[1; 32]);
        let enrol = Enrol {
            public_key: key.verifying_key().to_bytes(),
            proof: Enrol::proof(&[5; 32], &key),
            name: "nas".into(),
            tags: Vec::new(),
            token: None,
            version: "0.1.0".into(),
        };
        assert!(enrol.proof_holds(&[5; 32]));
        assert!(!enrol.proof_holds(&[6; 32]));
        let message = ToGateway::from(enrol);
        assert_eq!(ToGateway::decode(&message.encode()), Ok(message));
    }

    #[test]
    fn messages_come_out_however_the_bytes_are_cut() {
        let bytes = [frame(&[1; 700]), frame(&[]), frame(&[2; 3])].concat();
        for cut in 0..bytes.len() {
            let mut buffer = FrameBuffer::default();
            let mut messages = Vec::new();
            for piece in [&bytes[..cut], &bytes[cut..]] {
                buffer.space().extend_from_slice(piece);
                while let Some(message) = buffer.next(700).expect("within the limit") {
                    messages.push(message.to_vec());
                }
            }
            assert_eq!(messages, [alloc::vec![1; 700], alloc::vec![], alloc::vec![2; 3]]);
            assert!(buffer.is_empty());
        }
        let mut buffer = FrameBuffer::default();
        buffer.space().extend_from_slice(&frame(&[1; 700]));
        assert!(buffer.next(699).is_err());
        let mut buffer = FrameBuffer::default();
        buffer.space().extend_from_slice(&[255; 5]);
        assert!(buffer.next(usize::MAX).is_err());
        assert!(buffer.space().capacity() < 2 * FrameBuffer::CHUNK_LEN, "announced is not arrived");
    }

    #[test]
    fn frames_have_a_limit() {
        assert_eq!(frame(&[1, 2]), [2, 0, 0, 0, 1, 2]);
        assert_eq!(frame_len([2, 0, 0, 0]), Ok(2));
        assert!(frame_len([255, 255, 255, 255]).is_err());
    }
}
