//! Endpoints on loopback that move made-up blocks, and a path between them that can be tampered with.
#![allow(dead_code)] // Each test file uses its share.

use std::future::Future;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use utp2::{ContextId, Identity, SendError, Stats};
use utp2_sim::pattern::{self, Ledger};
use utp2_tokio::{
    BlockEvent, BlockSink, BlockSource, Connection, Endpoint, EndpointConfig, Handle, Incoming, LossInjector,
};

pub(crate) const CONTEXT: ContextId = ContextId(*b"loopback testing");
pub(crate) const SECRET: [u8; 32] = [42; 32];
pub(crate) const BLOCK: u32 = 32 * 1024;

/// Fails instead of hanging.
pub(crate) async fn within<T>(seconds: u64, what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(Duration::from_secs(seconds), future).await {
        Ok(done) => done,
        Err(_) => panic!("{what}: not within {seconds} s"),
    }
}

/// Gives the pattern and checks it.
pub(crate) struct Blocks {
    pub(crate) ledger: Mutex<Ledger>,
    pub(crate) complete: Notify,
}

impl Blocks {
    pub(crate) fn new(bytes: u64) -> Arc<Self> {
        Arc::new(Self { ledger: Mutex::new(Ledger::new(bytes, BLOCK)), complete: Notify::new() })
    }

    pub(crate) async fn all_there(&self) {
        while !self.ledger.lock().unwrap().is_complete() {
            self.complete.notified().await;
        }
    }

    pub(crate) fn assert_intact(&self) {
        let ledger = self.ledger.lock().unwrap();
        assert_eq!(ledger.fault(), None);
        assert!(ledger.is_complete());
    }
}

impl BlockSource for Blocks {
    fn read(&self, _: Handle, tag: u64, offset: u32, buf: &mut [u8]) -> io::Result<()> {
        pattern::fill(tag, offset, buf);
        Ok(())
    }
}

impl BlockSink for Blocks {
    fn write(&self, _: Handle, tag: u64, offset: u32, fin: bool, data: &[u8]) {
        let mut ledger = self.ledger.lock().unwrap();
        ledger.write(tag, offset, fin, data);
        if ledger.is_complete() {
            self.complete.notify_one();
        }
    }
}

pub(crate) fn config(seed: u8) -> EndpointConfig {
    EndpointConfig::new(Identity::new([seed; 32], vec![seed]), |_, _| true)
}

pub(crate) fn bind(seed: u8, fault: Option<LossInjector>) -> (Endpoint, Incoming) {
    let mut config = config(seed);
    config.fault = fault;
    Endpoint::bind("127.0.0.1:0".parse().unwrap(), config).unwrap()
}

/// A connection over loopback, both ends, and the blocks the second one receives.
pub(crate) struct Pair {
    pub(crate) client: Endpoint,
    pub(crate) server: Endpoint,
    pub(crate) incoming: Incoming,
    pub(crate) near: Connection,
    pub(crate) far: Connection,
    pub(crate) blocks: Arc<Blocks>,
}

/// Connects; `fault` is around the client.
pub(crate) async fn pair(bytes: u64, fault: Option<LossInjector>) -> Pair {
    let blocks = Blocks::new(bytes);
    let (client, _) = bind(1, fault);
    let (server, mut incoming) = bind(2, None);
    for endpoint in [&client, &server] {
        endpoint.add_context(CONTEXT, SECRET, blocks.clone(), blocks.clone());
    }
    let (near, far) = within(20, "connecting", async {
        let near = client.connect(server.local_addr(), CONTEXT).await.unwrap();
        (near, incoming.accept().await.unwrap())
    })
    .await;
    Pair { client, server, incoming, near, far, blocks }
}

/// Sends blocks 0, 1, … of `bytes` bytes and waits until all are acknowledged.
pub(crate) async fn send_all(conn: &Connection, bytes: u64) {
    let blocks = bytes.div_ceil(u64::from(BLOCK));
    let (mut next, mut sent) = (0, 0);
    while sent < blocks {
        while next < blocks {
            let len = (bytes - next * u64::from(BLOCK)).min(u64::from(BLOCK)) as u32;
            match conn.send_block(next, len, 0) {
                Ok(()) => next += 1,
                Err(SendError::Blocked) => break,
                Err(other) => panic!("{other}"),
            }
        }
        match conn.recv_event().await.unwrap() {
            BlockEvent::Sent { .. } => sent += 1,
            other => panic!("{other:?}"),
        }
    }
}

/// Moves `bytes` bytes and checks them; how long it took and the sender's figures.
pub(crate) async fn transfer(
    what: &str,
    seconds_max: u64,
    bytes: u64,
    fault: Option<LossInjector>,
) -> (Duration, Stats) {
    let pair = pair(bytes, fault).await;
    let started = Instant::now();
    within(seconds_max, what, async {
        send_all(&pair.near, bytes).await;
        pair.blocks.all_there().await;
    })
    .await;
    let took = started.elapsed();
    pair.blocks.assert_intact();
    assert_eq!(pair.near.queued_blocks(), 0);
    let stats = pair.near.stats();
    println!(
        "{what}: {:.1} MB/s, {:.2} s, sent again {:.2} %, lost {} of {} packets, rtt {:?}, kernel drops {:?}",
        bytes as f64 / 1e6 / took.as_secs_f64(),
        took.as_secs_f64(),
        stats.retransmitted_bytes as f64 * 100.0 / stats.data_bytes_sent as f64,
        stats.lost_packets,
        stats.sent_packets,
        stats.rtt,
        pair.server.socket_stats().kernel_drops,
    );
    (took, stats)
}
