//! Giving others what is here: a bounded queue for each peer, a bounded number with the transport (SYNC.md §5).

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use agent_proto::limits::BLOCK_LEN;
use agent_proto::sync::{
    FILES_MAX, FileRequest, GetHashes, Request, Statement, Unavailable, Value, WEAK_PAGE,
};
use event_schema::AgentId;
use timebase::Instant;

use super::config::HASH_REQUESTS_MAX;
use super::row::Index;
use super::{Action, Misbehaviour, Replica};
use crate::merkle::Hash;

/// Answers with hashes that are on their way to a peer at a time.
const HASHING: usize = 2;

/// What a peer asked for.
#[derive(Debug, Default)]
pub(super) struct Uploads {
    queue: VecDeque<Wanted>,
    /// And how large the file is.
    hashes: VecDeque<(GetHashes, u64)>,
    /// How often hashes are being sent: plain ones, and once at most weak ones, which take long.
    hashing: usize,
    /// Given to the transport and not acknowledged.
    sending: usize,
}

#[derive(Debug)]
struct Wanted {
    transfer: u32,
    path: Vec<u8>,
    root: Hash,
    size: u64,
    next: u32,
    end: u32,
}

impl Replica {
    /// Where this content is here: at the path the peer named, or anywhere.
    fn find(&self, index: &dyn Index, path: &[u8], root: &Hash) -> Option<(Vec<u8>, u64)> {
        // What a read-only member's owner made is told to nobody.
        let at = |path: &[u8]| match &self.row(index, path)?.present().filter(|h| h.dot.is_some())?.value {
            Value::File { root: here, size, .. } if here == root => Some((path.to_vec(), *size)),
            _ => None,
        };
        // A root says nothing of a size. Who asks goes by what is stated of the path, so that has to be known here, and to fit:
        // else each would take the other for a liar.
        let fits = |size: u64| {
            let stated = |s: &Statement| matches!(&s.value, Value::File { root: of, size: told, .. } if of == root && *told == size);
            self.row(index, path).is_some_and(|row| row.statements.iter().any(stated))
        };
        at(path).or_else(|| at(&index.with_root(root)?).filter(|(_, size)| fits(*size)))
    }

    pub(super) fn serve_hashes(
        &mut self,
        index: &dyn Index,
        peer: AgentId,
        ask: GetHashes,
    ) -> Result<(), Misbehaviour> {
        let transfer = ask.transfer;
        let found = self.find(index, &ask.path, &ask.root);
        let Some(p) = self.peers.get_mut(&peer) else { return Ok(()) };
        match found {
            _ if p.uploads.hashes.len() >= HASH_REQUESTS_MAX => return Err(Misbehaviour::Flood),
            Some((path, size)) => p.uploads.hashes.push_back((GetHashes { path, ..ask }, size)),
            None => self.actions.push_back(Action::Send { peer, message: Unavailable { transfer }.into() }),
        }
        Ok(())
    }

    pub(super) fn serve_request(
        &mut self,
        index: &dyn Index,
        peer: AgentId,
        request: Request,
    ) -> Result<(), Misbehaviour> {
        if request.files.len() > FILES_MAX || request.files.iter().any(|f| f.ranges.len() > FILES_MAX) {
            return Err(Misbehaviour::BadMessage);
        }
        for FileRequest { transfer, path, root, ranges } in request.files {
            let Some((path, size)) = self.find(index, &path, &root) else {
                self.actions.push_back(Action::Send { peer, message: Unavailable { transfer }.into() });
                continue;
            };
            let blocks = size.div_ceil(u64::from(BLOCK_LEN));
            for (first, count) in ranges {
                if u64::from(first) + u64::from(count) > blocks || count == 0 {
                    return Err(Misbehaviour::BadMessage);
                }
                let Some(p) = self.peers.get_mut(&peer) else { return Ok(()) };
                if p.uploads.queue.len() >= self.config.queue_max {
                    // It asks again when it has waited in vain, if it is honest.
                    return Err(Misbehaviour::Flood);
                }
                let path = path.clone();
                p.uploads.queue.push_back(Wanted {
                    transfer,
                    path,
                    root,
                    size,
                    next: first,
                    end: first + count,
                });
            }
        }
        Ok(())
    }

    pub(super) fn serve_cancel(&mut self, peer: AgentId, transfer: u32) {
        if let Some(p) = self.peers.get_mut(&peer) {
            p.uploads.queue.retain(|w| w.transfer != transfer);
            p.uploads.hashes.retain(|(ask, _)| ask.transfer != transfer);
        }
    }

    /// A block of [`Action::Upload`] is acknowledged, or its session over.
    pub fn handle_sent(&mut self, now: Instant, index: &mut dyn Index, peer: AgentId) {
        if let Some(p) = self.peers.get_mut(&peer) {
            p.uploads.sending = p.uploads.sending.saturating_sub(1);
        }
        self.finish(now, index);
    }

    /// What [`Action::UploadHashes`] asked for was sent, or could not be.
    pub fn handle_hashes_sent(&mut self, now: Instant, index: &mut dyn Index, peer: AgentId) {
        if let Some(p) = self.peers.get_mut(&peer) {
            p.uploads.hashing = p.uploads.hashing.saturating_sub(1);
        }
        self.finish(now, index);
    }

    /// A block of [`Action::Upload`] cannot be had: the file is not what was indexed, or cannot be read.
    pub fn handle_read_failed(
        &mut self,
        now: Instant,
        index: &mut dyn Index,
        peer: AgentId,
        transfer: u32,
        path: &[u8],
    ) {
        self.serve_cancel(peer, transfer);
        if let Some(p) = self.peers.get_mut(&peer) {
            p.uploads.sending = p.uploads.sending.saturating_sub(1);
            self.actions.push_back(Action::Send { peer, message: Unavailable { transfer }.into() });
        }
        self.actions.push_back(Action::Look { path: path.to_vec() });
        self.finish(now, index);
    }

    /// Hands the transport what it has room for.
    pub(super) fn upload(&mut self, peer: AgentId) {
        let Some(p) = self.peers.get_mut(&peer) else { return };
        let is_weak = |ask: &GetHashes| ask.page.is_some_and(|page| page & WEAK_PAGE != 0);
        while p.uploads.hashing < HASHING {
            let plain = p.uploads.hashes.iter().position(|(ask, _)| !is_weak(ask));
            let next = plain.or_else(|| (p.uploads.hashing == 0).then_some(0));
            let Some((ask, size)) = next.and_then(|at| p.uploads.hashes.remove(at)) else { break };
            let GetHashes { transfer, path, root, page } = ask;
            p.uploads.hashing += 1;
            self.actions.push_back(Action::UploadHashes { peer, transfer, path, root, size, page });
        }
        while p.uploads.sending < self.config.sending_max
            && let Some(wanted) = p.uploads.queue.front_mut()
        {
            let (transfer, root, size, block) = (wanted.transfer, wanted.root, wanted.size, wanted.next);
            let path = wanted.path.clone();
            wanted.next += 1;
            if wanted.next >= wanted.end {
                p.uploads.queue.pop_front();
            }
            p.uploads.sending += 1;
            self.actions.push_back(Action::Upload { peer, transfer, path, root, size, block });
        }
    }
}
