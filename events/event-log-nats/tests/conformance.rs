//! The suite that every backend passes, against a real server.

mod support;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use event_log::conformance::{Backend, run_all};
use event_log::{BoxFuture, EventLog};
use event_log_nats::NatsLog;
use support::*;

struct Nats {
    url: String,
    count: AtomicU32,
    /// Which name belongs to which handle.
    names: Mutex<HashMap<usize, String>>,
    /// Where copies are kept, if they are.
    copies: Option<tempfile::TempDir>,
}

impl Nats {
    async fn open(&self, name: String) -> Arc<dyn EventLog> {
        let mut options = options(&self.url, &name);
        options.copy = self.copies.as_ref().map(|dir| dir.path().join(&name));
        let log: Arc<dyn EventLog> = Arc::new(NatsLog::open(options).await.unwrap());
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

async fn run(test: &str, copies: Option<tempfile::TempDir>) {
    let Some(server) = server(test) else { return };
    let (url, names) = (server.nats.url(), Mutex::default());
    run_all(&Nats { url, count: AtomicU32::new(0), names, copies }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jetstream_keeps_the_contract() {
    run("jetstream_keeps_the_contract", None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jetstream_keeps_the_contract_with_copies_that_are_kept() {
    run("jetstream_keeps_the_contract_with_copies_that_are_kept", Some(tempfile::tempdir().unwrap())).await;
}
