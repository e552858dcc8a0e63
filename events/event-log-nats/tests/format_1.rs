//! Streams that an older release wrote, one record a message: they are read as they are, go on in frames, and are closed
//! to the older release from then on.

mod support;

use async_nats::HeaderMap;
use async_nats::jetstream;
use event_log::conformance::read_everything;
use event_log::{EventLog, Position, ReadLimit};
use event_log_nats::{NatsLog, NatsOpenError};
use support::*;

/// The stream as the older release made it.
fn older(name: &str) -> jetstream::stream::Config {
    let metadata = [("flotilla-log-format".to_owned(), "1".to_owned())];
    jetstream::stream::Config { metadata: metadata.into(), ..careless(name) }
}

/// Appends as the older release did; the position, or why not.
async fn append(context: &jetstream::Context, log: &str, stream: &str, bytes: &[u8]) -> Result<u64, String> {
    let mut crc = crc32fast::Hasher::new();
    crc.update(stream.as_bytes());
    crc.update(&[0]);
    crc.update(bytes);
    let mut headers = HeaderMap::new();
    headers.insert("Flotilla-Log", "1");
    headers.insert("Flotilla-Crc", format!("{:08x}", crc.finalize()));
    headers.insert("Flotilla-Commit", "00112233445566778899aabbccddeeff");
    let subject = format!("test.{log}.{}", stream.replace('.', "=2e"));
    let sent = context.publish_with_headers(subject, headers, bytes.to_vec().into()).await.unwrap();
    sent.await.map(|ack| ack.sequence).map_err(|error| error.to_string())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_stream_goes_on_in_frames_and_is_closed_to_older_releases() {
    let Some(server) = server("an_old_stream_goes_on_in_frames_and_is_closed_to_older_releases") else {
        return;
    };
    let (url, dir) = (server.nats.url(), tempfile::tempdir().unwrap());
    let context = raw(&url).await;
    context.create_stream(older("old")).await.unwrap();
    let streams = ["fleet", "run/1.a", "..", "frame", "log"];
    let mut expected = Vec::new();
    for nth in 1..=200_u64 {
        let stream = streams[usize::try_from(nth % 5).unwrap()];
        let bytes = vec![nth as u8; usize::try_from(nth).unwrap()];
        assert_eq!(append(&context, "old", stream, &bytes).await, Ok(nth));
        expected.push((stream.to_owned(), bytes));
    }
    let mut options = options(&url, "old");
    options.copy = Some(dir.path().join("copy"));
    let same = async |log: &NatsLog, expected: &[(String, Vec<u8>)]| {
        let all = read_everything(log, ReadLimit::default()).await;
        let all: Vec<_> =
            all.into_iter().map(|entry| (entry.stream.as_str().to_owned(), entry.bytes)).collect();
        assert!(all == expected, "{} records, {} expected", all.len(), expected.len());
    };
    // Twice: the second time the place is found in messages of format 1.
    for _ in 0..2 {
        let log = NatsLog::open(options.clone()).await.unwrap();
        same(&log, &expected).await;
        assert_eq!(log.last_of_stream(&name("..")).await.unwrap(), at(197));
        log.close().await;
    }
    let config = context.get_stream("TEST_old").await.unwrap().cached_info().config.clone();
    assert_eq!(config.metadata["flotilla-log-format"], "2");
    assert_eq!(config.subjects, ["test.old.log.frame"]);
    // An older release that still has it open finds nobody to take its records.
    append(&context, "old", "fleet", b"late").await.unwrap_err();

    let log = NatsLog::open(options.clone()).await.unwrap();
    let mut last = at(196);
    for nth in 0..20_u8 {
        last = Some(log.append(&name("run/1.a"), last, vec![nth]).await.unwrap());
        expected.push(("run/1.a".to_owned(), vec![nth]));
    }
    assert_eq!(last, at(220));
    same(&log, &expected).await;
    assert_eq!(log.scrub().await.unwrap().differences, []);
    log.close().await;
    for copy in [options.copy.clone(), None] {
        options.copy = copy;
        let log = NatsLog::open(options.clone()).await.unwrap();
        same(&log, &expected).await;
        log.close().await;
    }
}

#[tokio::test]
async fn a_record_of_an_older_release_behind_a_frame_is_damage() {
    let Some(server) = server("a_record_of_an_older_release_behind_a_frame_is_damage") else { return };
    let (url, dir) = (server.nats.url(), tempfile::tempdir().unwrap());
    let context = raw(&url).await;
    let mut options = options(&url, "mixed");
    options.copy = Some(dir.path().join("copy"));
    let log = NatsLog::open(options.clone()).await.unwrap();
    append_each(&log, &name("s"), &[b"1".to_vec(), b"2".to_vec()]).await;
    // Somebody opens the subjects again.
    let mut config = context.get_stream("TEST_mixed").await.unwrap().cached_info().config.clone();
    config.subjects = vec!["test.mixed.>".to_owned()];
    context.update_stream(&config).await.unwrap();
    // Its position would be right by its sequence.
    assert_eq!(append(&context, "mixed", "s", b"3").await, Ok(3));
    let error = log.read(Position(3), ReadLimit::default()).await.unwrap_err().to_string();
    assert!(error.contains("position 3") && error.contains("older release"), "{error}");
    log.close().await;
    // Known again from the copy's end alone.
    let error = NatsLog::open(options).await.unwrap_err();
    assert!(
        matches!(error, NatsOpenError::Damaged(_)) && error.to_string().contains("older release"),
        "{error}"
    );
}

#[tokio::test]
async fn a_newer_format_is_refused_by_name() {
    let Some(server) = server("a_newer_format_is_refused_by_name") else { return };
    let context = raw(&server.nats.url()).await;
    let mut config = older("newer");
    config.metadata.insert("flotilla-log-format".to_owned(), "3".to_owned());
    config.subjects = vec!["test.newer.v3".to_owned()];
    context.create_stream(config).await.unwrap();
    let error = NatsLog::open(options(&server.nats.url(), "newer")).await.unwrap_err().to_string();
    assert!(error.contains("format is \"3\"") && error.contains("use a newer one"), "{error}");
}
