//! Why a wish is refused.

use event_schema::RefusalReason;

/// A refusal, in words for the one who asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// What is asked about does not exist.
    #[error("no {what} {id}")]
    Unknown {
        /// Kind of thing.
        what: &'static str,
        /// As it was named.
        id: String,
    },
    /// The wish goes against what is.
    #[error("{0}")]
    Conflict(String),
    /// The wish itself makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// A limit is reached.
    #[error("{0}")]
    Limit(String),
    /// Reports are missing between those on the log and those that came.
    #[error("report {got} came, but {expected} is the next one: send again from there")]
    ReportGap {
        /// The next sequence that can be taken.
        expected: u64,
        /// The sequence that came.
        got: u64,
    },
    /// The agent may not.
    #[error("{detail}")]
    Refused {
        /// Why, for the agent.
        reason: RefusalReason,
        /// Why, for people.
        detail: String,
    },
}

impl Rejection {
    pub(crate) fn unknown(what: &'static str, id: impl ToString) -> Self {
        Self::Unknown { what, id: id.to_string() }
    }
}
