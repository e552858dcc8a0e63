//! Giving others what is here: a bounded queue for each peer, a bounded number with the transport (SYNC.md §5).

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use agent_proto::limits::BLOCK_LEN;
use agent_proto::sync::{FILES_MAX, FileRequest, GetHashes, Request, Statement, Unavailable, Value};
use event_schema::AgentId;
use timebase::Instant;

use super::config::HASH_REQUESTS_MAX;
use super::row::Index;
use super::{Action, Misbehaviour, Replica};
use crate::merkle::Hash;

/// What a peer asked for.
#[derive(Debug, Default)]
pub(super) struct Uploads {
    queue: VecDeque<Wanted>,
    hashes: VecDeque<GetHashes>,
    /// Hashes are being sent.
    hashing: bool,
    /// Given to the transport and not acknowledged.
    sending: usize,
}

#[derive(Debug)]
struct Wanted {
    transfer: u32,
    path: Vec<u8>,
    root: Hash,
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
            Some((path, _)) => p.uploads.hashes.push_back(GetHashes { path, ..ask }),
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
                p.uploads.queue.push_back(Wanted { transfer, path, root, next: first, end: first + count });
            }
        }
        Ok(())
    }

    pub(super) fn serve_cancel(&mut self, peer: AgentId, transfer: u32) {
        if let Some(p) = self.peers.get_mut(&peer) {
            p.uploads.queue.retain(|w| w.transfer != transfer);
            p.uploads.hashes.retain(|w| w.transfer != transfer);
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
            p.uploads.hashing = false;
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
        if !p.uploads.hashing
            && let Some(GetHashes { transfer, path, root, page }) = p.uploads.hashes.pop_front()
        {
            p.uploads.hashing = true;
            self.actions.push_back(Action::UploadHashes { peer, transfer, path, root, page });
        }
        while p.uploads.sending < self.config.sending_max
            && let Some(wanted) = p.uploads.queue.front_mut()
        {
            let (transfer, root, block) = (wanted.transfer, wanted.root, wanted.next);
            let path = wanted.path.clone();
            wanted.next += 1;
            if wanted.next >= wanted.end {
                p.uploads.queue.pop_front();
            }
            p.uploads.sending += 1;
            self.actions.push_back(Action::Upload { peer, transfer, path, root, block });
        }
    }
}
