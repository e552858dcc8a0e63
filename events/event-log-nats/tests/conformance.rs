//! The suite that every backend passes, against a real server.

mod support;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use event_log::conformance::{Backend, run_all};
use event_log::{BoxFuture, EventLog};
use support::*;

struct Nats {
    url: String,
    count: AtomicU32,
    /// Which name belongs to which handle.
    names: Mutex<HashMap<usize, String>>,
}

impl Nats {
    async fn open(&self, name: String) -> Arc<dyn EventLog> {
        let log: Arc<dyn EventLog> = Arc::new(open(&self.url, &name).await);
        self.names.lock().unwrap().insert(Arc::as_ptr(&log).cast::<()>() as usize, name);
        log
    }
}

impl Backend for Nats {
    fn fresh(&self) -> BoxFuture<'_, Arc<dyn EventLog>> {
        Box::pin(async { self.open(self.count.fetch_add(1, Ordering::Relaxed).to_string()).await })
    }

    fn reopen(&self, closed: Arc<dyn EventLog>) -> BoxFuture<'_, Option<Arc<dyn EventLog>>> {
        Box::pin(async move {
            let name = self.names.lock().unwrap()[&(Arc::as_ptr(&closed).cast::<()>() as usize)].clone();
            Some(self.open(name).await)
        })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jetstream_keeps_the_contract() {
    let Some(server) = server("jetstream_keeps_the_contract") else { return };
    let backend = Nats { url: server.nats.url(), count: AtomicU32::new(0), names: Mutex::default() };
    run_all(&backend).await;
}
