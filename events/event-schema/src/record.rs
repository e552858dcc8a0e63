//! The envelope: one decision, all its events, who and why.

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::{AgentId, DecodeError, Event, RecordId, Tagged, Timestamp, decode_exact, encode};

/// Version of the envelope's shape.
const RECORD_VERSION: u8 = 1;

/// Who brought a decision about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Actor {
    /// The service itself: a rule, a timer.
    Service,
    /// A person or script through the API, by the name of its token.
    Operator(String),
    /// An agent, by a report it signed or by being seen.
    Agent(AgentId),
}

/// One decision with all its events: the unit that is appended, atomically on every backend.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Identity of the record.
    pub id: RecordId,
    /// The stream it belongs to, such as `run/0193…`.
    pub stream: String,
    /// When the service took the decision, by its clock.
    pub time: Timestamp,
    /// Who brought it about.
    pub actor: Actor,
    /// The record that caused this one, if any.
    pub causation: Option<RecordId>,
    /// The business process it belongs to: the id of the record that began it.
    pub correlation: RecordId,
    /// What happened, in order.
    pub events: Vec<Event>,
}

#[derive(Serialize, Deserialize)]
struct RecordV1 {
    id: RecordId,
    stream: String,
    time: Timestamp,
    actor: Actor,
    causation: Option<RecordId>,
    correlation: RecordId,
    events: Vec<Tagged>,
}

impl Record {
    /// The byte form: a version byte, then postcard.
    pub fn encode(&self) -> Vec<u8> {
        let body = RecordV1 {
            id: self.id,
            stream: self.stream.clone(),
            time: self.time,
            actor: self.actor.clone(),
            causation: self.causation,
            correlation: self.correlation,
            events: self.events.iter().map(Event::to_tagged).collect(),
        };
        let mut bytes = alloc::vec![RECORD_VERSION];
        bytes.extend(encode(&body));
        bytes
    }

    /// Reads the byte form back.
    ///
    /// # Errors
    /// If the bytes are damaged, or hold a record or event of a version this program does not know.
    /// Such a record must stop its reader: skipping it would make replicas differ.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let Some((&version, body)) = bytes.split_first() else {
            return Err(DecodeError::Malformed { what: "Record" });
        };
        if version != RECORD_VERSION {
            return Err(DecodeError::Unknown { what: "Record", kind: 0, version });
        }
        let body: RecordV1 = decode_exact("Record", body)?;
        Ok(Self {
            id: body.id,
            stream: body.stream,
            time: body.time,
            actor: body.actor,
            causation: body.causation,
            correlation: body.correlation,
            events: body.events.iter().map(Event::from_tagged).collect::<Result<_, _>>()?,
        })
    }
}
