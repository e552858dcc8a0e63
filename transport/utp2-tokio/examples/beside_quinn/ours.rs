//! The µTP2 side: blocks from a buffer in memory, pieces counted and dropped.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context as _;
use serde_json::json;
use tokio::sync::Notify;
use utp2::{ContextId, Identity, PeerIdentity, SendError};
use utp2_tokio::{BlockEvent, BlockSink, BlockSource, Endpoint, EndpointConfig, Handle, Incoming};

use crate::transfer::{DATAGRAM, Meter, Settings, WINDOW};

const CONTEXT: ContextId = ContextId(*b"the throughput's");

/// Gives bytes of one buffer, over and over.
struct Memory(Vec<u8>);

impl BlockSource for Memory {
    fn read(&self, _: Handle, _tag: u64, offset: u32, buf: &mut [u8]) -> io::Result<()> {
        let at = offset as usize;
        buf.copy_from_slice(&self.0[at..at + buf.len()]);
        Ok(())
    }
}

/// Counts, and starts the clock with the first byte.
#[derive(Default)]
struct Count {
    bytes: AtomicU64,
    first: Notify,
}

impl BlockSink for Count {
    fn write(&self, _: Handle, _tag: u64, _offset: u32, _fin: bool, data: &[u8]) {
        if self.bytes.fetch_add(data.len() as u64, Ordering::Relaxed) == 0 {
            self.first.notify_one();
        }
    }
}

fn bind(settings: &Settings, key: u8, sink: Arc<Count>) -> anyhow::Result<(Endpoint, Incoming)> {
    let anybody = |_: ContextId, _: &PeerIdentity| true;
    let mut config = EndpointConfig::new(Identity::new([key; 32], Vec::new()), anybody);
    config.core.max_datagram = DATAGRAM;
    config.core.receive_window = WINDOW;
    let (endpoint, incoming) = Endpoint::bind("127.0.0.1:0".parse()?, config)?;
    let memory = Memory(vec![0x5a; settings.block as usize]);
    endpoint.add_context(CONTEXT, [9; 32], Arc::new(memory), sink);
    Ok((endpoint, incoming))
}

pub(crate) async fn serve(settings: &Settings) -> anyhow::Result<()> {
    let sink = Arc::new(Count::default());
    let (endpoint, mut incoming) = bind(settings, 1, sink.clone())?;
    println!("{}", endpoint.local_addr());
    let conn = incoming.accept().await.context("nobody came")?;
    sink.first.notified().await;
    let meter = Meter::start();
    // The sender says when everything was acknowledged.
    conn.recv_message().await?;
    let stats = conn.stats();
    let result = meter.stop(
        sink.bytes.load(Ordering::Relaxed),
        json!({
            "received_packets": stats.received_packets,
            "acks_sent": stats.acks_sent,
            "kernel_drops": endpoint.socket_stats().kernel_drops,
        }),
    );
    println!("{result}");
    conn.send_message(b"heard").await?;
    conn.closed().await;
    Ok(())
}

pub(crate) async fn send(settings: &Settings, address: &str) -> anyhow::Result<()> {
    let (endpoint, _incoming) = bind(settings, 2, Arc::default())?;
    let conn = endpoint.connect(address.parse()?, CONTEXT).await?;
    let blocks = settings.bytes / u64::from(settings.block);
    let meter = Meter::start();
    let (mut queued, mut sent) = (0, 0);
    while sent < blocks {
        while queued < blocks {
            match conn.send_block(queued, settings.block, 0) {
                Ok(()) => queued += 1,
                Err(SendError::Blocked) => break,
                Err(error) => return Err(error.into()),
            }
        }
        match conn.recv_event().await? {
            BlockEvent::Sent { .. } => sent += 1,
            BlockEvent::Lagged { count } => sent += count,
            BlockEvent::Failed { tag } => anyhow::bail!("block {tag} could not be read"),
        }
    }
    let stats = conn.stats();
    let result = meter.stop(
        blocks * u64::from(settings.block),
        json!({
            "sent_packets": stats.sent_packets,
            "lost_packets": stats.lost_packets,
            "spurious_losses": stats.spurious_losses,
            "retransmitted_bytes": stats.retransmitted_bytes,
            "acks_received": stats.acks_received,
            "probe_timeouts": stats.probe_timeouts,
            "rtt_us": stats.rtt.as_micros() as u64,
            "rtt_min_us": stats.rtt_min.as_micros() as u64,
            "rate": stats.rate,
            "state": format!("{:?}", stats.state),
        }),
    );
    conn.send_message(b"done").await?;
    println!("{result}");
    // Its answer shows that it has the message; closing drops what is under way.
    conn.recv_message().await?;
    endpoint.close().await;
    Ok(())
}
