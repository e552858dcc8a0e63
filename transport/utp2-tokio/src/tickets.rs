//! Tickets of peers this endpoint connected to, so that it comes back in one round trip and on a known path.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;

use utp2::{ContextId, PathMemory, Resumption};

/// Peers remembered; the one that was told of longest ago gives way. About 1 KB each.
const MAX: usize = 256;

/// Bounded; in memory only. [`crate::Endpoint::resumptions`] and [`crate::Endpoint::remember`] are the way to a disk.
#[derive(Default)]
pub(crate) struct Tickets {
    by_peer: HashMap<(SocketAddr, ContextId), Resumption>,
    /// The same keys, oldest first.
    order: VecDeque<(SocketAddr, ContextId)>,
}

impl Tickets {
    pub(crate) fn put(&mut self, remote: SocketAddr, mut resumption: Resumption) {
        let key = (remote, resumption.context());
        if let Some(old) = self.by_peer.get(&key) {
            // A fresh ticket knows nothing of the path yet.
            if resumption.path_memory().is_none() {
                resumption.set_path_memory(old.path_memory());
            }
            self.order.retain(|k| *k != key);
        } else if self.by_peer.len() == MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.by_peer.remove(&oldest);
        }
        self.order.push_back(key);
        self.by_peer.insert(key, resumption);
    }

    pub(crate) fn get(&self, remote: SocketAddr, context: ContextId) -> Option<Resumption> {
        self.by_peer.get(&(remote, context)).cloned()
    }

    pub(crate) fn set_memory(&mut self, remote: SocketAddr, context: ContextId, memory: Option<PathMemory>) {
        if let (Some(r), Some(_)) = (self.by_peer.get_mut(&(remote, context)), memory) {
            r.set_path_memory(memory);
        }
    }

    pub(crate) fn remove(&mut self, remote: SocketAddr, context: ContextId) {
        if self.by_peer.remove(&(remote, context)).is_some() {
            self.order.retain(|k| *k != (remote, context));
        }
    }

    pub(crate) fn remove_context(&mut self, context: ContextId) {
        self.by_peer.retain(|k, _| k.1 != context);
        self.order.retain(|k| k.1 != context);
    }

    pub(crate) fn all(&self) -> Vec<(SocketAddr, Resumption)> {
        self.by_peer.iter().map(|(k, r)| (k.0, r.clone())).collect()
    }
}
