//! What is carried (CARRYING.md §1).

use event_schema::{Signed, Tagged, tagged_enum};
use serde::{Deserialize, Serialize};

use crate::letter::Letter;

fn none(_: &Tagged) -> Option<Tagged> {
    None
}

tagged_enum! {
    /// One thing that is carried, as it travels.
    pub enum Item, upcast = none {
        /// The fleet's keys.
        (1, 1) "keys" => Keys,
        /// What the service states of an agent.
        (2, 1) "notice" => NoticeSent,
        /// A command.
        (3, 1) "order" => Order,
        /// A report.
        (4, 1) "letter" => Letter,
    }
}

/// The fleet's keys, by its root key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keys {
    /// A signed `TrustBundle`.
    pub signed: Signed,
}

/// What the service states of an agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NoticeSent {
    /// A signed [`crate::Notice`].
    pub signed: Signed,
}

/// A command for somebody.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// The command as the service signed it.
    pub signed: Signed,
}

impl Item {
    /// Bytes that it takes on its way.
    pub fn len(&self) -> usize {
        event_schema::encode(&self.to_tagged()).len()
    }

    /// Never: everything has a kind.
    pub fn is_empty(&self) -> bool {
        false
    }
}
