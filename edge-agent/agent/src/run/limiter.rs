//! One limit of the sending rate for all connections of the agent: divided anew a few times a second among
//! those that have something to send.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::{MissedTickBehavior, interval};
use utp2_tokio::{Connection, Handle};

use super::limits::RATE_INTERVAL;

/// Bytes a second for all connections together.
pub(super) struct Limiter {
    limit: u64,
    connections: Mutex<HashMap<Handle, Connection>>,
}

/// A connection counts until this is dropped.
pub(super) struct Limited {
    limiter: Arc<Limiter>,
    handle: Handle,
}

impl Limiter {
    /// Starts dividing; it ends when nobody holds the limiter any more.
    pub(super) fn start(limit: u64) -> Arc<Self> {
        let limiter = Arc::new(Self { limit, connections: Mutex::default() });
        let weak = Arc::downgrade(&limiter);
        tokio::spawn(async move {
            let mut ticks = interval(RATE_INTERVAL);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                match weak.upgrade() {
                    Some(limiter) => limiter.divide(),
                    None => return,
                }
            }
        });
        limiter
    }

    pub(super) fn add(self: &Arc<Self>, conn: &Connection) -> Limited {
        self.connections().insert(conn.handle(), conn.clone());
        self.divide();
        Limited { limiter: self.clone(), handle: conn.handle() }
    }

    fn connections(&self) -> MutexGuard<'_, HashMap<Handle, Connection>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn divide(&self) {
        let connections = self.connections();
        let busy: Vec<bool> = connections.values().map(|c| c.queued_blocks() > 0).collect();
        let count = busy.iter().filter(|&&b| b).count() as u64;
        for (conn, busy) in connections.values().zip(busy) {
            // An idle one may become busy before the next division.
            let share = self.limit / if busy { count } else { count + 1 };
            conn.set_rate_limit(Some(share.max(1)));
        }
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        let conn = self.limiter.connections().remove(&self.handle);
        drop(conn);
    }
}
