//! Measures the log on NATS: `cargo run -p event-log-nats --example throughput_nats`, with `-- --records N` for a shorter
//! rebuild than that of 1,000,000 records.
//!
//! Starts servers of its own (see `testing.rs` for where their program is looked for) that sync before every
//! acknowledgement: one, then three on this machine with three replicas. Beside the log, in turns with it, runs a bare
//! program that does nothing but publish frames of 100 records with the same condition, one at a time. Then the log is
//! opened from its local copy and read whole, and once more with an empty copy.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use async_nats::jetstream::{self, stream::Config};
use event_log::{EventLog, Position, ReadLimit, StreamName};
use event_log_nats::testing::{NatsServer, find_server};
use event_log_nats::{NatsLog, NatsLogOptions};

/// Payload of one record: about what an event of this project takes.
const PAYLOAD_BYTES: usize = 172;
/// Records in a frame of the bare program.
const FRAME: usize = 100;
const TURN: Duration = Duration::from_secs(3);
const TURNS: usize = 3;
/// Writers of the log. Those that were answered fill the next frame while the others' is on its way, so that a frame
/// holds about half as many records.
const WRITERS: [usize; 3] = [1, 2 * FRAME, 1000];

type Failure = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let mut records = 1_000_000;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match (argument.as_str(), arguments.next()) {
            ("--records", Some(number)) => records = number.parse()?,
            _ => return Err(format!("unknown argument {argument}; there is --records N").into()),
        }
    }
    let dir = std::env::temp_dir().join(format!("event-log-nats-throughput-{}", std::process::id()));
    let program = find_server().ok_or("there is no nats-server")?;
    let result = measure(&program, &dir, records).await;
    std::fs::remove_dir_all(&dir)?;
    result
}

async fn measure(program: &Path, dir: &Path, records: u64) -> Result<(), Failure> {
    let server = NatsServer::start(program, dir.join("one"))?;
    compare(&server.url(), 1).await?;
    rebuild(&server.url(), &dir.join("copy"), records).await?;
    drop(server);
    let servers = NatsServer::start_cluster(program, &dir.join("three"), 3)?;
    let urls: Vec<_> = servers.iter().map(NatsServer::url).collect();
    compare(&urls.join(","), 3).await
}

fn options(url: &str, replicas: usize) -> NatsLogOptions {
    NatsLogOptions { replicas, open_timeout: Duration::from_secs(60), ..NatsLogOptions::new(url) }
}

/// The bare program and the log, in turns.
async fn compare(url: &str, replicas: usize) -> Result<(), Failure> {
    let log = Arc::new(NatsLog::open(options(url, replicas)).await?);
    let servers: Vec<_> = url.split(',').map(str::to_owned).collect();
    let context = jetstream::new(async_nats::connect(servers).await?);
    let config = Config {
        name: "BARE".to_owned(),
        subjects: vec!["bare".to_owned()],
        num_replicas: replicas,
        ..Config::default()
    };
    let mut bare = context.create_stream(config).await?;
    println!(
        "{replicas} replica(s), records of {PAYLOAD_BYTES} bytes, durable records/s in turns of {TURN:?}"
    );
    for turn in 1..=TURNS {
        let rate = publish(&context, bare.info().await?.state.last_sequence).await?;
        println!("  turn {turn}: bare program, frames of {FRAME}: {rate:.0}");
        for writers in WRITERS {
            let (rate, per_frame) = append(&log, &context, writers).await?;
            println!("  turn {turn}: log, {writers} writers: {rate:.0} ({per_frame:.0} records a frame)");
        }
    }
    log.close().await;
    Ok(())
}

/// Frames as fast as one at a time can be acknowledged, without a log.
async fn publish(context: &jetstream::Context, mut last: u64) -> Result<f64, Failure> {
    let payload = bytes::Bytes::from(vec![7; FRAME * PAYLOAD_BYTES]);
    let (started, first) = (Instant::now(), last);
    while started.elapsed() < TURN {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Expected-Last-Sequence", last.to_string());
        last = context.publish_with_headers("bare", headers, payload.clone()).await?.await?.sequence;
    }
    Ok((last - first) as f64 * FRAME as f64 / started.elapsed().as_secs_f64())
}

/// Appends with so many writers, a stream each, one append in flight each; records per second, and per message.
async fn append(
    log: &Arc<NatsLog>,
    context: &jetstream::Context,
    writers: usize,
) -> Result<(f64, f64), Failure> {
    let messages = async || {
        Ok::<u64, Failure>(context.get_stream("FLOTILLA_EVENTS").await?.cached_info().state.messages)
    };
    let before = messages().await?;
    let started = Instant::now();
    let count = append_until(log, writers, move || started.elapsed() >= TURN).await?;
    let rate = count as f64 / started.elapsed().as_secs_f64();
    Ok((rate, count as f64 / (messages().await? - before) as f64))
}

async fn append_until(
    log: &Arc<NatsLog>,
    writers: usize,
    enough: impl Fn() -> bool + Clone + Send + 'static,
) -> Result<u64, Failure> {
    let tasks: Vec<_> = (0..writers)
        .map(|writer| {
            let (log, enough) = (Arc::clone(log), enough.clone());
            tokio::spawn(async move {
                let stream = StreamName::new(format!("writers-{writers}/{writer}"))?;
                let (mut last, mut count) = (log.last_of_stream(&stream).await?, 0_u64);
                while !enough() {
                    last = Some(log.append(&stream, last, vec![writer as u8; PAYLOAD_BYTES]).await?);
                    count += 1;
                }
                Ok::<u64, Failure>(count)
            })
        })
        .collect();
    let mut appends = 0;
    for task in tasks {
        appends += task.await??;
    }
    Ok(appends)
}

/// What a start costs: from the copy, and from the servers alone.
async fn rebuild(url: &str, copy: &Path, records: u64) -> Result<(), Failure> {
    let kept = NatsLogOptions {
        copy: Some(copy.to_path_buf()),
        stream: "REBUILT".to_owned(),
        subject_prefix: "rebuilt".to_owned(),
        ..options(url, 1)
    };
    let log = Arc::new(NatsLog::open(kept.clone()).await?);
    let until = Arc::clone(&log);
    let mut last = log.last_position().await?.0;
    let reached = Arc::new(std::sync::atomic::AtomicU64::new(last));
    let watcher = {
        let reached = Arc::clone(&reached);
        tokio::spawn(async move {
            while let Ok(position) = until.wait_beyond(Position(last)).await {
                last = position.0;
                reached.store(last, std::sync::atomic::Ordering::Relaxed);
            }
        })
    };
    append_until(&log, 4_000, move || reached.load(std::sync::atomic::Ordering::Relaxed) >= records).await?;
    log.close().await;
    watcher.await?;
    drop(log);
    for (what, emptied) in [("the copy", false), ("the copy, again", false), ("the servers alone", true)] {
        if emptied {
            std::fs::remove_dir_all(copy)?;
        }
        let started = Instant::now();
        let log = NatsLog::open(kept.clone()).await?;
        let opened = started.elapsed();
        let (mut next, mut bytes) = (Position(1), 0);
        loop {
            let entries = log.read(next, ReadLimit::default()).await?;
            let Some(last) = entries.last() else { break };
            next = last.position.next();
            bytes += entries.iter().map(|entry| entry.bytes.len()).sum::<usize>();
        }
        println!(
            "rebuild of {} records ({} MB) from {what}: opened in {:.2} s, read in {:.2} s more",
            next.0 - 1,
            bytes / 1_000_000,
            opened.as_secs_f64(),
            (started.elapsed() - opened).as_secs_f64()
        );
        log.close().await;
    }
    Ok(())
}
