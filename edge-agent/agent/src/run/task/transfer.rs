//! Blocks of one run on their ways: from the disk to peers, from peers to the disk.

use agent_proto::peer::{BlockAddress, UnavailableReason};
use event_schema::{AgentId, ProblemClass, RunAgentState};
use sync_core::{Arrival, Misbehaviour};

use super::{Machine, Task};
use crate::disk::{ReadError, StoreError};
use crate::run::blocks::Arrived;
use crate::run::event::{Looked, ReadJob, Sent, Stored, WriteJob};
use crate::run::limits::READS_WAITING;
use crate::run::link::code;
use crate::run::work::problem;

impl Task {
    pub(super) fn upload(&mut self, agent: AgentId, address: BlockAddress, priority: u8) {
        let Some(peer) = self.peers.get_mut(&agent) else { return };
        if !address.is_manifest() {
            let Some(workers) = &self.workers else { return };
            if peer.link.reads >= READS_WAITING {
                return peer.link.close(code::BROKEN, "asks for blocks and takes that back all the time");
            }
            peer.link.reads += 1;
            peer.link.reading.insert(address.0);
            let job = ReadJob { agent, handle: peer.link.handle(), block: address.index(), priority };
            return workers.read(job);
        }
        let len = self.blocks.len_of(address);
        if len.is_none_or(|len| peer.link.conn.send_block(address.0, len, priority).is_err()) {
            self.read_failed(agent, address, ReadError::NotHere);
        }
    }

    pub(super) fn blocks_looked_up(&mut self, looked: Vec<Looked>) {
        for Looked { job, len } in looked {
            // Otherwise from a connection that another one took over.
            if self.is_present(job.agent, job.handle) {
                self.block_looked_up(job, len);
            }
        }
    }

    fn block_looked_up(&mut self, job: ReadJob, len: Result<u32, ReadError>) {
        let ReadJob { agent, block, priority, .. } = job;
        let address = BlockAddress::content(block);
        let Some(peer) = self.peers.get_mut(&agent) else { return };
        peer.link.reads = peer.link.reads.saturating_sub(1);
        let wanted = peer.link.reading.remove(&address.0);
        match len {
            Ok(len) if wanted => {
                // Refused only when the connection is over, which is told as well.
                if peer.link.conn.send_block(address.0, len, priority).is_ok() {
                    peer.link.sending.insert(address.0, len);
                }
            }
            // Cancelled meanwhile.
            Ok(_) => {}
            Err(error) => self.read_failed(agent, address, error),
        }
    }

    pub(super) fn block_sent(&mut self, agent: AgentId, sent: Sent) {
        let Sent { address, read } = sent;
        let Some(peer) = self.peers.get_mut(&agent) else { return };
        let len = peer.link.sending.remove(&address.0);
        if !read {
            return self.read_failed(agent, address, ReadError::Changed);
        }
        self.record.stats.bytes_sent += u64::from(len.unwrap_or(0));
        let now = self.now();
        self.neighbourhood.used(now, agent);
        match &mut self.machine {
            Machine::Origin(o) => o.handle_sent(now, agent, address),
            Machine::Destination(d) => d.handle_sent(agent, address),
            Machine::None => {}
        }
    }

    fn read_failed(&mut self, agent: AgentId, address: BlockAddress, error: ReadError) {
        match &mut self.machine {
            Machine::Origin(o) if !address.is_manifest() => {
                let reason = match error {
                    ReadError::Changed => UnavailableReason::Changed,
                    ReadError::NotHere | ReadError::Io(_) => UnavailableReason::ReadError,
                };
                o.handle_read_failed(address.index(), reason);
                self.source_unreadable(address.index(), error);
            }
            Machine::Destination(d) => d.handle_read_failed(agent, address),
            Machine::Origin(_) | Machine::None => {}
        }
    }

    pub(super) fn take_block(&mut self, arrived: Arrived) {
        let Some(&agent) = self.handles.get(&arrived.handle) else { return };
        let (now, block) = (self.now(), arrived.address.index());
        self.neighbourhood.used(now, agent);
        let Machine::Destination(d) = &mut self.machine else { return };
        if arrived.address.is_manifest() {
            if d.handle_manifest_block(now, agent, block, &arrived.data)
                && let Err(error) = self.blocks.keep_manifest_block(block, &arrived.data)
            {
                self.manifest_not_kept(&error);
            }
            return;
        }
        match (d.handle_arrived(now, agent, block), &self.workers) {
            (Arrival::Fresh, Some(workers)) => workers.write(WriteJob { agent, arrived }),
            (Arrival::Fresh, None) => d.handle_not_kept(block),
            (Arrival::Duplicate, _) => self.record.stats.blocks_duplicate += 1,
            (Arrival::Unwanted, _) => {}
        }
    }

    pub(super) fn block_stored(&mut self, stored: Stored) {
        let Stored { agent, handle, block, len, result } = stored;
        let now = self.now();
        let Machine::Destination(d) = &mut self.machine else { return };
        let address = BlockAddress::content(block);
        match result {
            Ok(()) => {
                d.handle_verified(now, block);
                let stats = &mut self.record.stats;
                if agent == self.join.source {
                    stats.bytes_from_source += u64::from(len);
                } else {
                    stats.bytes_from_peers += u64::from(len);
                }
                self.board.lock().bytes_done += u64::from(len);
                if self.state == RunAgentState::Stalled && self.full.is_none() {
                    self.set_state(RunAgentState::Transferring);
                }
            }
            Err(StoreError::Corrupt) => {
                self.blocks.expect_again(handle, address);
                d.handle_corrupt(agent, block);
            }
            Err(StoreError::Full(problem)) => {
                self.blocks.expect_again(handle, address);
                d.handle_not_kept(block);
                self.disk_full(problem);
            }
            Err(StoreError::Entry(problem)) => {
                self.forgo_entry_of(block);
                self.reports.problem(problem);
            }
            Err(StoreError::GivenUp) => d.handle_not_kept(block),
        }
    }

    /// Whether nothing is taken from a peer any more: then its blocks are not even put together.
    pub(super) fn is_avoided(&self, peer: AgentId) -> bool {
        matches!(&self.machine, Machine::Destination(d) if d.is_avoided(peer))
    }

    pub(super) fn misbehaved(&mut self, peer: AgentId, what: Misbehaviour) {
        let (class, told) = match what {
            Misbehaviour::CorruptBlock => {
                self.record.stats.blocks_corrupt += 1;
                (
                    ProblemClass::CorruptBlock,
                    "sent a block that does not match its hash; nothing more is taken from it",
                )
            }
            Misbehaviour::BadHashes => (
                ProblemClass::BadManifest,
                "gave hashes that are not the manifest's; nothing more is taken from it",
            ),
            Misbehaviour::BadHead => (
                ProblemClass::BadManifest,
                "showed a manifest that the source did not sign; it is not believed",
            ),
            Misbehaviour::OtherVersion(version) => {
                return self.fail(problem(
                    ProblemClass::BadManifest,
                    sync_core::manifest::ManifestError::Version(version),
                ));
            }
            Misbehaviour::OtherHead => {
                (ProblemClass::BadManifest, "has another manifest of this run than we; start the job again")
            }
        };
        self.reports.problem(problem(class, format_args!("agent {peer} {told}")));
        if self.is_avoided(peer)
            && let Some(p) = self.peers.get(&peer)
        {
            self.blocks.forget(p.link.handle());
        }
        if matches!(what, Misbehaviour::BadHead | Misbehaviour::OtherHead)
            && let Some(p) = self.peers.get(&peer)
        {
            p.link.close(code::BROKEN, "another manifest");
        }
    }
}
