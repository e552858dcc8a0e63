//! Everything that wakes a run's task.

use std::sync::Arc;

use agent_proto::peer::{BlockAddress, PeerMessage};
use event_schema::{AgentId, AnswerGuard, Problem, ProblemClass, Signed};
use sync_core::BlockMap;
use sync_core::merkle::Hash;
use tokio::sync::oneshot;
use utp2_tokio::{Connection, Handle};

use super::blocks::{Arrived, Content};
use super::reaching::NoMeeting;
use super::sync::SyncJob;
use crate::backup::{Held, VersionName};
use crate::disk::{BlockReader, FileHashes, ManifestFile, ReadError, StoreError};
use crate::relay::Met;

/// How a run is to end here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// It is over everywhere.
    Finish,
    /// It is not wanted any more.
    Stop,
    /// The agent stops; the run goes on after its restart.
    Shutdown,
}

/// What wakes a run's task, beside whole blocks, hints and time.
pub(super) enum Wakeup {
    /// A peer connected.
    Incoming(Connection),
    /// A call ended.
    Called(AgentId, Option<Connection>),
    /// A meeting at a relay came about, or why not.
    Met(AgentId, Result<Met, NoMeeting>),
    /// A message came.
    Message(AgentId, Handle, PeerMessage),
    /// Blocks were acknowledged, or could not be read.
    Sent(AgentId, Handle, Vec<Sent>),
    /// A connection ended.
    Closed(AgentId, Handle),
    /// Blocks to be sent were looked up.
    Looked(Vec<Looked>),
    /// Arrived blocks were checked and written, or not.
    Stored(Vec<Stored>),
    /// The source's folder is indexed.
    Indexed(Result<Box<Indexed>, Problem>),
    /// These blocks of the manifest were found here.
    Sought(std::io::Result<Vec<u64>>),
    /// The manifest is decoded and the disk looked at.
    Prepared(Result<Box<Prepared>, Problem>),
    /// Everything was put in place, or not.
    Finalized(Finalized),
    /// This machine is in another network.
    Network,
    /// A synchronization job is another one now: members, permissions, rules.
    Job(Box<SyncJob>),
    /// What a person says to so many deletions at once (SYNC.md §6).
    Answer(AnswerGuard),
    /// The end of it.
    End(Ending, oneshot::Sender<()>),
}

/// What became of a block that was to be sent.
#[derive(Clone, Copy)]
pub(super) struct Sent {
    pub(super) address: BlockAddress,
    /// Acknowledged; otherwise it could not be read.
    pub(super) read: bool,
}

/// A block that was looked up; if that failed, why.
pub(super) struct Looked {
    pub(super) job: ReadJob,
    pub(super) len: Result<u32, ReadError>,
}

/// A block that was written, or not.
pub(super) struct Stored {
    pub(super) agent: AgentId,
    pub(super) handle: Handle,
    pub(super) block: u64,
    pub(super) len: u32,
    pub(super) result: Result<(), StoreError>,
}

/// A source that is ready.
pub(super) struct Indexed {
    pub(super) manifest: Arc<ManifestFile>,
    pub(super) signed: Signed,
    pub(super) root: Hash,
    pub(super) hashes: FileHashes,
    pub(super) reader: BlockReader,
    /// The blocks that come before the rest.
    pub(super) first: Vec<BlockMap>,
    pub(super) problems: Vec<Problem>,
    /// Indexed in an earlier life.
    pub(super) again: bool,
}

/// A destination that is ready.
pub(super) struct Prepared {
    pub(super) content: Content,
    pub(super) have: BlockMap,
    pub(super) bytes: u64,
    pub(super) reused: u64,
    pub(super) problems: Vec<Problem>,
    pub(super) unwanted: BlockMap,
    /// The blocks that are fetched before the rest.
    pub(super) first: Vec<BlockMap>,
    /// The version that has this content already, in a run that makes one, and what keeps it from being removed.
    pub(super) made: Option<(Made, Option<Held>)>,
}

/// The version that a run has made, or has found to be the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Made {
    pub(super) name: VersionName,
    /// Everything is in it.
    pub(super) complete: bool,
    /// An earlier run made it, and nothing has changed since.
    pub(super) unchanged: bool,
}

/// What putting everything in place came to.
#[derive(Default)]
pub(super) struct Finalized {
    /// What is wrong with single entries, or all of it.
    pub(super) problems: Vec<Problem>,
    /// What was told, and makes nothing incomplete: a version's manifest has what its storage cannot hold.
    pub(super) remarks: Vec<Problem>,
    /// The version that it became, in a run that makes one.
    pub(super) made: Option<Made>,
    /// Why the run cannot come to its end here, or not yet, if the disk is full.
    pub(super) obstacle: Option<Problem>,
}

/// What follows from it.
pub(super) struct Settled {
    /// To be told now: the next try does not see it any more.
    pub(super) told: Vec<Problem>,
    /// Not everything is as it should be.
    pub(super) wrong: bool,
    pub(super) made: Option<Made>,
    /// A full disk, which may have room some day, or why the run is over here.
    pub(super) obstacle: Option<Problem>,
}

impl Finalized {
    pub(super) fn settled(self) -> Settled {
        let Self { problems, remarks, made, obstacle } = self;
        let is_full = |problem: &Problem| problem.class == ProblemClass::DiskFull;
        let (full, mut told): (Vec<Problem>, Vec<Problem>) = problems.into_iter().partition(is_full);
        let wrong = !told.is_empty() || made.as_ref().is_some_and(|made| !made.complete);
        told.extend(remarks);
        Settled { told, wrong, made, obstacle: full.into_iter().next().or(obstacle) }
    }
}

/// A whole block on its way to the disk.
pub(super) struct WriteJob {
    pub(super) agent: AgentId,
    pub(super) arrived: Arrived,
}

/// A block to be made ready for sending.
#[derive(Clone, Copy)]
pub(super) struct ReadJob {
    pub(super) agent: AgentId,
    pub(super) handle: Handle,
    pub(super) block: u64,
    pub(super) priority: u8,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(class: ProblemClass) -> Problem {
        Problem { class, path: b"x".to_vec(), detail: "why".into() }
    }

    /// A full disk is waited for; what was wrong besides is not forgotten meanwhile.
    #[test]
    fn nothing_is_swallowed_by_a_full_disk() {
        let (full, lost) = (problem(ProblemClass::DiskFull), problem(ProblemClass::Io));
        let owner = problem(ProblemClass::PermissionDenied);
        let done = |problems: &[&Problem], obstacle: Option<&Problem>| Finalized {
            problems: problems.iter().copied().cloned().collect(),
            remarks: vec![owner.clone()],
            made: None,
            obstacle: obstacle.cloned(),
        };
        for done in [done(&[&lost, &full], None), done(&[&lost], Some(&full))] {
            let settled = done.settled();
            assert_eq!((settled.wrong, settled.obstacle.as_ref()), (true, Some(&full)));
            assert_eq!(settled.told, [lost.clone(), owner.clone()]);
        }
        let settled = done(&[], None).settled();
        assert!(!settled.wrong && settled.obstacle.is_none(), "what storage cannot hold is in the manifest");
        let settled = done(&[], Some(&lost)).settled();
        assert_eq!(settled.obstacle, Some(lost));
    }
}
