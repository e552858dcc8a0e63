//! Measures the embedded log: `cargo run -p event-log --example throughput [DIR]`.
//!
//! Prints durable appends per second with one writer and with 64, records per second of a replay, and how long opening
//! takes. The log is made in DIR, or in the system's temporary folder, and removed again.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use event_log::file::{FileLog, FileLogOptions};
use event_log::{EventLog, Position, ReadLimit, StreamName};

/// Payload of one record: about what an event of this project takes.
const PAYLOAD_BYTES: usize = 172;
const APPENDING: Duration = Duration::from_secs(3);
const REPLAYED: u64 = 500_000;

type Failure = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let parent = std::env::args_os().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = parent.join(format!("event-log-throughput-{}", std::process::id()));
    let result = measure(&dir).await;
    std::fs::remove_dir_all(&dir)?;
    result
}

async fn measure(dir: &std::path::Path) -> Result<(), Failure> {
    let log: Arc<dyn EventLog> = Arc::new(FileLog::open(dir, FileLogOptions::default()).await?);
    for writers in [1, 16, 64, 512] {
        let (appends, seconds) = append_for(&log, writers, APPENDING).await?;
        println!("{writers:>4} writers: {:>9.0} durable appends/s", appends as f64 / seconds);
    }
    let have = log.last_position().await?.0;
    fill(&log, REPLAYED.saturating_sub(have)).await?;
    log.close().await;

    let started = Instant::now();
    let log = FileLog::open(dir, FileLogOptions::default()).await?;
    let records = log.recovery().records;
    let bytes: u64 =
        std::fs::read_dir(dir)?.map_while(Result::ok).map_while(|e| e.metadata().ok()).map(|m| m.len()).sum();
    println!("opening: {records} records, {} MiB in {:.3} s", bytes >> 20, started.elapsed().as_secs_f64());

    let started = Instant::now();
    let mut next = Position(1);
    loop {
        let page = log.read(next, ReadLimit::default()).await?;
        let Some(last) = page.last() else { break };
        next = last.position.next();
    }
    println!("replay: {:.0} records/s", (next.0 - 1) as f64 / started.elapsed().as_secs_f64());
    Ok(())
}

/// Appends with so many writers, a stream each, one append in flight each.
async fn append_for(log: &Arc<dyn EventLog>, writers: usize, time: Duration) -> Result<(u64, f64), Failure> {
    let started = Instant::now();
    let tasks: Vec<_> = (0..writers)
        .map(|writer| {
            let log = Arc::clone(log);
            tokio::spawn(async move {
                let stream = StreamName::new(format!("writers-{writers}/{writer}"))?;
                let (mut last, mut count) = (None, 0_u64);
                while started.elapsed() < time {
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
    Ok((appends, started.elapsed().as_secs_f64()))
}

/// Makes the log longer, a stream per record so that none waits for another.
async fn fill(log: &Arc<dyn EventLog>, records: u64) -> Result<(), Failure> {
    let mut left: Vec<u64> = (0..records).collect();
    while !left.is_empty() {
        let batch = left.split_off(left.len().saturating_sub(2_000));
        let tasks: Vec<_> = batch
            .into_iter()
            .map(|nth| {
                let log = Arc::clone(log);
                tokio::spawn(async move {
                    let stream = StreamName::new(format!("fill/{nth}"))?;
                    log.append(&stream, None, vec![nth as u8; PAYLOAD_BYTES]).await?;
                    Ok::<(), Failure>(())
                })
            })
            .collect();
        for task in tasks {
            task.await??;
        }
    }
    Ok(())
}
