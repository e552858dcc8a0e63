//! One path of a member's index, and the store that holds them (SYNC.md §8).

use alloc::vec::Vec;

use agent_proto::sync::{Dot, Statement, Value};
use event_schema::{AgentId, DecodeError, decode_exact, encode};
use serde::{Deserialize, Serialize};

use super::statement::{dot, same_content};
use crate::merkle::Hash;

/// How a file looked when its content was read, to notice that it changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// Number of the file in its file system; 0 where there is none.
    pub file: u64,
    /// Bytes.
    pub size: u64,
    /// Modification time, ns since 1970.
    pub mtime_ns: i64,
    /// Time of the last change of anything about it, ns; 0 where there is none.
    pub ctime_ns: i64,
    /// Whether it was older than the file system's granularity of time when it was read: if not, it may change again
    /// and look the same. Not part of [`Stamp::is`].
    pub settled: bool,
}

impl Stamp {
    /// Whether both are of the same state of the same file, as far as can be told.
    pub fn is(&self, other: &Self) -> bool {
        Self { settled: true, ..*self } == Self { settled: true, ..*other }
    }
}

/// What is known to be at a path of this member's folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Disk {
    /// Nothing.
    Absent,
    /// This.
    Present(OnDisk),
    /// It was there and is gone; not yet believed (SYNC.md §6).
    Missing(OnDisk),
}

/// Something on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OnDisk {
    /// What.
    pub value: Value,
    /// How it looks.
    pub stamp: Stamp,
    /// Which statement it is; none for a change that is not told: of a read-only member.
    pub dot: Option<Dot>,
}

/// What a row waits for; the store finds rows by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Work {
    /// Nothing.
    None,
    /// What wins is to be brought here.
    Pull,
    /// What is here is to be removed.
    Remove,
    /// What was here is gone: to be believed or not.
    Missing,
    /// A deletion that is done here and kept until everybody knows of it.
    Tombstone,
    /// What wins cannot be here: a name's policy, a folder that holds something else. Looked at again now and then.
    Blocked,
}

/// One path of the index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// Which.
    pub path: Vec<u8>,
    /// The statements that no other one includes, the winner first.
    pub statements: Vec<Statement>,
    /// What is here.
    pub disk: Disk,
    /// What a change made here now would be based on.
    pub context: Vec<Dot>,
    /// Depth of that.
    pub depth: u64,
    /// Some of those who said that they have what wins.
    pub holders: Vec<AgentId>,
    /// When it last changed in what others are told; 0: never told.
    pub sequence: u64,
    /// What it waits for.
    pub work: Work,
}

impl Row {
    pub(super) fn new(path: &[u8]) -> Self {
        Self {
            path: path.to_vec(),
            statements: Vec::new(),
            disk: Disk::Absent,
            context: Vec::new(),
            depth: 0,
            holders: Vec::new(),
            sequence: 0,
            work: Work::None,
        }
    }

    /// What should be there.
    pub fn winner(&self) -> Option<&Statement> {
        self.statements.first()
    }

    /// Whether something should be there.
    pub fn is_live(&self) -> bool {
        self.winner().is_some_and(|w| w.value != Value::Deleted)
    }

    /// What is there.
    pub fn present(&self) -> Option<&OnDisk> {
        match &self.disk {
            Disk::Present(on_disk) => Some(on_disk),
            _ => None,
        }
    }

    /// Which of its statements is on disk here.
    pub fn holds(&self) -> Option<usize> {
        let here = self.present()?;
        let held = here.dot?;
        // A number may have been used twice.
        self.statements.iter().position(|s| dot(s) == held && same_content(&s.value, &here.value))
    }

    /// The content on disk here: what [`Index::with_root`] finds it by.
    pub fn root(&self) -> Option<Hash> {
        match self.present()?.value {
            Value::File { root, .. } => Some(root),
            _ => None,
        }
    }

    /// As stored. Postcard behind a version.
    pub fn encode(&self) -> Vec<u8> {
        encode(&(1u8, self))
    }

    /// What [`Row::encode`] gave.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        match decode_exact::<(u8, Self)>("row", bytes)? {
            (1, row) => Ok(row),
            (version, _) => Err(DecodeError::Unknown { what: "row", kind: 0, version }),
        }
    }
}

/// What changes together in the index.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Rows as they are from now on.
    pub rows: Vec<Row>,
    /// Rows to be forgotten.
    pub forgotten: Vec<Vec<u8>>,
    /// The machine's own state, if it changed.
    pub meta: Option<Vec<u8>>,
    /// What is kept of members that changed.
    pub members: Vec<(AgentId, Vec<u8>)>,
}

impl Batch {
    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.forgotten.is_empty() && self.meta.is_none() && self.members.is_empty()
    }
}

/// The index of one job at one member, kept by the agent on disk.
///
/// Reads see every earlier [`Index::put`] at once. A put need not be on disk when it returns, but puts reach the
/// disk whole and in order; [`super::Action::Sync`] asks for it. An implementation that fails latches its error,
/// takes nothing more and never reports a sync: the machine then acts on nothing, and the agent stops the job.
pub trait Index {
    /// The row of a path.
    fn row(&self, path: &[u8]) -> Option<Row>;
    /// The row with the next path, in byte order.
    fn next(&self, after: &[u8]) -> Option<Row>;
    /// The row with the next sequence.
    fn next_told(&self, after: u64) -> Option<Row>;
    /// The next path with this work.
    fn next_work(&self, work: Work, after: Option<&[u8]>) -> Option<Vec<u8>>;
    /// The previous path with this work; `None` asks for the last one.
    fn previous_work(&self, work: Work, before: Option<&[u8]>) -> Option<Vec<u8>>;
    /// A path whose [`Row::root`] is this.
    fn with_root(&self, root: &Hash) -> Option<Vec<u8>>;
    /// A path that is not [`Disk::Absent`] and folds to this; asked only if [`super::Policy::fold`] ever answers.
    fn with_fold(&self, fold: &[u8]) -> Option<Vec<u8>>;
    /// The machine's own state.
    fn meta(&self) -> Option<Vec<u8>>;
    /// What is kept of members.
    fn members(&self) -> Vec<(AgentId, Vec<u8>)>;
    /// Changes rows, all or none.
    fn put(&mut self, batch: Batch);
}
