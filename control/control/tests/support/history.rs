//! Records as a service would have written them, put at the end of a log.

use std::path::Path;

use event_log::file::{FileLog, FileLogOptions};
use event_log::{EventLog as _, StreamName};
use event_schema::*;

/// A record of one event, encoded.
pub(crate) fn record(time: Timestamp, event: impl Into<Event>) -> Vec<u8> {
    Record {
        id: RecordId([7; 16]),
        stream: "fleet".into(),
        time,
        actor: Actor::Service,
        causation: None,
        correlation: RecordId([7; 16]),
        events: vec![event.into()],
    }
    .encode()
}

/// Puts records at the end of the log in a data folder, in segments as small as can be; returns the log's end.
pub(crate) fn append(data: &Path, records: impl IntoIterator<Item = Vec<u8>>) -> u64 {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let options = FileLogOptions { segment_bytes: 4096, ..FileLogOptions::default() };
        let log = FileLog::open(data.join("log"), options).await.expect("opens");
        let stream = StreamName::new("fleet").expect("a name");
        for record in records {
            let last = log.last_of_stream(&stream).await.expect("readable");
            log.append(&stream, last, record).await.expect("appended");
        }
        let end = log.last_position().await.expect("readable");
        log.close().await;
        end.0
    })
}
