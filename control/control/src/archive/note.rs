//! What a log keeps of the part that was archived: the note in its base (`events/AUDIT_FORMAT.md` §11.3).

use data_encoding::{BASE64, HEXLOWER};
use event_audit::ledger::Edge;
use event_log::file::Base;
use event_schema::Timestamp;
use serde::{Deserialize, Serialize};

use super::ArchiveError;

const FORMAT: &str = "flotilla log base v1";

/// What is needed to go on behind an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseNote {
    /// The last archived position.
    pub position: u64,
    /// Name of the log.
    pub origin: String,
    /// Time of the last archived record.
    pub time: Timestamp,
    /// Leaf hash of that record.
    pub leaf: [u8; 32],
    /// The edge of the tree there. To be believed when what follows leads to what was signed.
    pub edge: Edge,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    format: String,
    origin: String,
    time: u64,
    leaf: String,
    edge: String,
}

impl BaseNote {
    /// The note's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let text = Text {
            format: FORMAT.into(),
            origin: self.origin.clone(),
            time: self.time.0,
            leaf: HEXLOWER.encode(&self.leaf),
            edge: BASE64.encode(&self.edge.to_bytes()),
        };
        serde_json::to_vec(&text).expect("texts and a number are JSON")
    }

    /// Reads the note of a log's base.
    ///
    /// # Errors
    /// [`ArchiveError::Note`].
    pub fn of(base: &Base) -> Result<Self, ArchiveError> {
        let bad = |what: &str| ArchiveError::Note(what.into());
        let text: Text =
            serde_json::from_slice(&base.note).map_err(|error| ArchiveError::Note(error.to_string()))?;
        if text.format != FORMAT {
            return Err(ArchiveError::Note(format!("it is a {:?}", text.format)));
        }
        let leaf = HEXLOWER.decode(text.leaf.as_bytes()).ok().and_then(|leaf| leaf.try_into().ok());
        let edge = BASE64.decode(text.edge.as_bytes()).ok();
        let edge = edge.and_then(|edge| Edge::from_bytes(base.position.0, &edge));
        Ok(Self {
            position: base.position.0,
            origin: text.origin,
            time: Timestamp(text.time),
            leaf: leaf.ok_or_else(|| bad("its leaf is no hash"))?,
            edge: edge.ok_or_else(|| bad("its edge is not that of a tree of this size"))?,
        })
    }
}
