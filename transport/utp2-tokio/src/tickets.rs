//! Tickets of peers this endpoint connected to, so that it comes back in one round trip and on a known path.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;

use utp2::{ContextId, PathMemory, Resumption};

/// Peers remembered; the one that was told of longest ago gives way. About 1 KB each.
const MAX: usize = 256;

/// Bounded; in memory only. [`crate::Endpoint::resumptions`] and [`crate::Endpoint::remember`] are the way to a disk.
#[derive(Default)]
pub(crate) struct Tickets {
    by_peer: HashMap<(SocketAddr, ContextId), Held>,
    /// The same keys, oldest first.
    order: VecDeque<(SocketAddr, ContextId)>,
}

struct Held {
    resumption: Resumption,
    /// A ticket is used once (PROTOCOL.md §5.8); what is known of the path outlives it.
    used: bool,
}

impl Tickets {
    pub(crate) fn put(&mut self, remote: SocketAddr, mut resumption: Resumption) {
        let key = (remote, resumption.context());
        if let Some(old) = self.by_peer.get(&key) {
            // A fresh ticket knows nothing of the path yet.
            if resumption.path_memory().is_none() {
                resumption.set_path_memory(old.resumption.path_memory());
            }
            self.order.retain(|k| *k != key);
        } else if self.by_peer.len() == MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.by_peer.remove(&oldest);
        }
        self.order.push_back(key);
        self.by_peer.insert(key, Held { resumption, used: false });
    }

    /// The ticket for a connection to this peer, which takes it.
    pub(crate) fn take(&mut self, remote: SocketAddr, context: ContextId) -> Option<Resumption> {
        let held = self.by_peer.get_mut(&(remote, context))?;
        (!std::mem::replace(&mut held.used, true)).then(|| held.resumption.clone())
    }

    /// The ticket taken last was not answered: the peer is away, and will take it when it is back.
    pub(crate) fn give_back(&mut self, remote: SocketAddr, context: ContextId) {
        if let Some(held) = self.by_peer.get_mut(&(remote, context)) {
            held.used = false;
        }
    }

    /// What is known of the path to this peer.
    pub(crate) fn memory(&self, remote: SocketAddr, context: ContextId) -> Option<PathMemory> {
        self.by_peer.get(&(remote, context))?.resumption.path_memory()
    }

    pub(crate) fn set_memory(&mut self, remote: SocketAddr, context: ContextId, memory: PathMemory) {
        if let Some(held) = self.by_peer.get_mut(&(remote, context)) {
            held.resumption.set_path_memory(Some(memory));
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
        self.by_peer.iter().filter(|(_, h)| !h.used).map(|(k, h)| (k.0, h.resumption.clone())).collect()
    }
}
