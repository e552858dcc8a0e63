//! The envelope: one decision, all its events, who and why.

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::level::{self, LEVEL_NEWEST};
use crate::{
    AgentId, DecodeError, Event, Field, Owner, Private, RecordId, Tagged, Timestamp, Visit, decode_exact,
    encode, upcast,
};

/// Version of the envelope's shape; the first one until level 2.
const RECORD_VERSION: u8 = 2;

/// Who brought a decision about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Actor {
    /// The service itself: a rule, a timer.
    Service,
    /// A person or script through the API, by the name of its token.
    Operator(Private<String>),
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

/// Both versions: they differ in the actor's shape.
#[derive(Serialize, Deserialize)]
struct Body<A> {
    id: RecordId,
    stream: String,
    time: Timestamp,
    actor: A,
    causation: Option<RecordId>,
    correlation: RecordId,
    events: Vec<Tagged>,
}

impl Record {
    /// The byte form: a version byte, then postcard.
    pub fn encode(&self) -> Vec<u8> {
        self.encode_at(LEVEL_NEWEST)
    }

    /// The byte form that programs of a schema level read.
    ///
    /// # Panics
    /// If the level has no words for it: texts are sealed from level 2 on, and its kinds of events are new.
    pub fn encode_at(&self, level: u8) -> Vec<u8> {
        let events: Vec<Tagged> = self.events.iter().map(|event| upcast::event_at(event, level)).collect();
        assert!(events.iter().all(|tagged| level::of(tagged) <= level), "an event of a newer level");
        let mut bytes = alloc::vec![RECORD_VERSION.min(level)];
        bytes.extend(match level {
            1 => encode(&self.body(upcast::v1::Actor::from(&self.actor), events)),
            _ => encode(&self.body(self.actor.clone(), events)),
        });
        bytes
    }

    fn body<A>(&self, actor: A, events: Vec<Tagged>) -> Body<A> {
        Body {
            id: self.id,
            stream: self.stream.clone(),
            time: self.time,
            actor,
            causation: self.causation,
            correlation: self.correlation,
            events,
        }
    }

    /// Reads the byte form back. What is sealed is shut until somebody opens it ([`Record::private`]).
    ///
    /// # Errors
    /// If the bytes are damaged, or hold a record or event of a version this program does not know.
    /// Such a record must stop its reader: skipping it would make replicas differ.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        Self::decode_up_to(LEVEL_NEWEST, bytes)
    }

    /// As a program of a schema level reads it.
    ///
    /// # Errors
    /// As [`Record::decode`]; and if it holds what that level does not know.
    pub fn decode_up_to(level: u8, bytes: &[u8]) -> Result<Self, DecodeError> {
        let Some((&version, body)) = bytes.split_first() else {
            return Err(DecodeError::Malformed { what: "Record" });
        };
        let unknown = DecodeError::Unknown { what: "Record", kind: 0, version };
        if version > level {
            return Err(unknown);
        }
        let body: Body<Actor> = match version {
            1 => {
                let old: Body<upcast::v1::Actor> = decode_exact("Record", body)?;
                Body {
                    id: old.id,
                    stream: old.stream,
                    time: old.time,
                    actor: old.actor.into(),
                    causation: old.causation,
                    correlation: old.correlation,
                    events: old.events,
                }
            }
            RECORD_VERSION => decode_exact("Record", body)?,
            _ => return Err(unknown),
        };
        if let Some(newer) = body.events.iter().find(|tagged| level::of(tagged) > level) {
            let (kind, version) = (newer.kind, newer.version);
            return Err(DecodeError::Unknown { what: "Event", kind, version });
        }
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

    /// Every text in it that is, or has to be, under a subject's key.
    pub fn private(&mut self, visit: &mut Visit<'_>) {
        if let Actor::Operator(name) = &mut self.actor {
            visit(Field::Actor, Owner::Named, name);
        }
        for event in &mut self.events {
            event.private(visit);
        }
    }
}
