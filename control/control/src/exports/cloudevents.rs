//! Events as CloudEvents 1.0 in their JSON format (`events/EXPORTS.md` §3).
//!
//! Written by hand: the attributes are a dozen, and the SDK brings a crate for times that this workspace does without.

use data_encoding::BASE64;
use event_schema::{Event, Record};
use serde_json::{Value, json};

use super::entry::{Entry, actor_text, version, whole_data};

impl Entry<'_> {
    /// One CloudEvent for each event of the entry; for an entry that cannot be read, one that carries its bytes.
    pub(super) fn to_cloud_events(&self) -> Vec<Value> {
        match self.read {
            Ok(record) => {
                let events = record.events.iter().enumerate();
                events.map(|(index, event)| self.cloud_event(record, index, event)).collect()
            }
            Err(_) => vec![json!({
                "specversion": "1.0",
                "id": format!("entry.{}", self.position),
                "source": source(self.log),
                "type": "flotilla.entry.unread",
                "datacontenttype": "application/octet-stream",
                "data_base64": BASE64.encode(self.bytes),
                "sequence": sequence(self.position, 1),
                "logposition": self.position.to_string(),
                "leafhash": self.leaf(),
            })],
        }
    }

    fn cloud_event(&self, record: &Record, index: usize, event: &Event) -> Value {
        let number = index + 1;
        let mut all = json!({
            "specversion": "1.0",
            "id": event_id(&record.id, number),
            "source": source(self.log),
            "type": format!("flotilla.{}", event.name()),
            "subject": record.stream,
            "time": record.time.to_string(),
            "datacontenttype": "application/json",
            "dataschema": format!("urn:flotilla:event:{}:{}", event.name(), version(event)),
            "data": whole_data(event),
            "sequence": sequence(self.position, number),
            "correlationid": record.correlation,
            "logposition": self.position.to_string(),
            "leafhash": self.leaf(),
            "recordid": record.id,
            "eventnumber": number,
            "eventcount": record.events.len(),
            "actor": actor_text(&record.actor),
        });
        // An attribute without a value is left out.
        if let (Value::Object(all), Some(cause)) = (&mut all, record.causation) {
            all.insert("causationid".into(), event_id(&cause, 1).into());
        }
        if let Value::Object(all) = &mut all
            && record.stream.is_empty()
        {
            all.remove("subject");
        }
        all
    }
}

/// The log as a URI: its name with the one prefix exchanged for the other.
fn source(log: &str) -> String {
    format!("urn:flotilla:log:{}", log.strip_prefix("flotilla/").unwrap_or(log))
}

/// An event's id: its record's, and its place in it.
fn event_id(record: &event_schema::RecordId, number: usize) -> String {
    format!("{record}.{number}")
}

/// Sorts as text in the order of history.
fn sequence(position: u64, number: usize) -> String {
    format!("{position:020}.{number:06}")
}
