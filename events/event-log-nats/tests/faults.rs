//! Answers and requests lost on the way, servers that are gone, too old or full, streams that are no log.

mod support;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::jetstream::stream::{Config, DiscardPolicy, StorageType};
use event_log::conformance::read_everything;
use event_log::{AppendError, EventLog, Position, ReadError, ReadLimit};
use event_log_nats::testing::server_or_skip;
use event_log_nats::{NatsLog, NatsLogOptions, NatsOpenError};
use support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::timeout;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_whose_answer_is_lost_is_recognised_not_repeated() {
    let Some(server) = server("an_append_whose_answer_is_lost_is_recognised_not_repeated") else { return };
    let link = Link::to(server.nats.address().unwrap()).await;
    let log = Arc::new(open(&link.url(), "answer").await);
    let witness = open(&server.nats.url(), "answer").await;
    let stream = name("s");
    log.append(&stream, None, b"1".to_vec()).await.unwrap();

    link.lose_answers.store(true, Ordering::SeqCst);
    let append = {
        let (log, stream) = (Arc::clone(&log), stream.clone());
        tokio::spawn(async move { log.append(&stream, at(1), b"2".to_vec()).await })
    };
    timeout(PATIENCE, witness.wait_beyond(Position(1))).await.expect("the server stored it").unwrap();
    // Another writer goes on from there before the first has learnt that it succeeded.
    witness.append(&stream, at(2), b"3".to_vec()).await.unwrap();
    assert!(!append.is_finished());
    link.heal_by_breaking();
    let position = timeout(PATIENCE, append).await.expect("settled").unwrap().unwrap();
    assert_eq!(position, Position(2));

    let all = read_everything(&witness, ReadLimit::default()).await;
    let bytes: Vec<_> = all.iter().map(|entry| entry.bytes.as_slice()).collect();
    assert_eq!(bytes, [b"1", b"2", b"3"]);
}

/// Takes as long as two requests wait for their answers: 10 s.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_only_reads_leaves_a_server_that_says_nothing() {
    let Some(server) = server("who_only_reads_leaves_a_server_that_says_nothing") else { return };
    let link = Link::to(server.nats.address().unwrap()).await;
    let mut options = options(&link.url(), "silent");
    options.read_timeout = Duration::from_secs(15);
    let log = NatsLog::open(options).await.unwrap();
    let witness = open(&server.nats.url(), "silent").await;
    link.lose_connections();
    witness.append(&name("s"), None, b"1".to_vec()).await.unwrap();
    assert_eq!(log.last_position().await.unwrap(), Position(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_that_never_arrived_is_repeated() {
    let Some(server) = server("an_append_that_never_arrived_is_repeated") else { return };
    let link = Link::to(server.nats.address().unwrap()).await;
    let log = Arc::new(open(&link.url(), "request").await);
    let witness = open(&server.nats.url(), "request").await;
    let (mine, other) = (name("mine"), name("other"));
    link.lose_requests.store(true, Ordering::SeqCst);
    let spawn = |stream: &event_log::StreamName| {
        let (log, stream) = (Arc::clone(&log), stream.clone());
        tokio::spawn(async move { log.append(&stream, None, b"late".to_vec()).await })
    };
    let (append, loser) = (spawn(&mine), spawn(&other));
    // Meanwhile someone else takes the place in one of the streams.
    witness.append(&other, None, b"first".to_vec()).await.unwrap();
    link.heal_by_breaking();
    let position = timeout(PATIENCE, append).await.expect("settled").unwrap().unwrap();
    assert_eq!(position, Position(2));
    let error = timeout(PATIENCE, loser).await.expect("settled").unwrap().unwrap_err();
    assert!(
        matches!(error, AppendError::Conflict { expected: None, actual } if actual == at(1)),
        "{error:?}"
    );
    assert_eq!(read_everything(&witness, ReadLimit::default()).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_server_appends_are_refused_in_time_and_nothing_is_sent_later() {
    let Some(mut server) = server("without_a_server_appends_are_refused_in_time_and_nothing_is_sent_later")
    else {
        return;
    };
    let mut options = options(&server.nats.url(), "gone");
    options.append_timeout = Duration::from_millis(300);
    options.read_timeout = Duration::from_millis(300);
    let log = NatsLog::open(options).await.unwrap();
    let stream = name("s");
    log.append(&stream, None, b"1".to_vec()).await.unwrap();
    server.nats.kill();
    // Until the loss is noticed an append may be sent and stay unanswered; after that none is.
    let error = log.append(&stream, at(1), b"2".to_vec()).await.unwrap_err();
    assert!(matches!(error, AppendError::Unknown { .. } | AppendError::Unavailable { .. }), "{error:?}");
    let error = log.append(&name("t"), None, b"3".to_vec()).await.unwrap_err();
    assert!(matches!(error, AppendError::Unavailable { .. }) && !error.may_be_stored(), "{error:?}");
    // What is known can still be read; whether there is more cannot be said.
    assert_eq!(log.read(Position(1), ReadLimit::default()).await.unwrap().len(), 1);
    assert!(matches!(log.read(Position(2), ReadLimit::default()).await, Err(ReadError::Unavailable { .. })));
    assert!(matches!(log.last_position().await, Err(ReadError::Unavailable { .. })));
    assert!(matches!(log.last_of_stream(&stream).await, Err(ReadError::Unavailable { .. })));
    server.nats.restart().unwrap();
    let appended = timeout(PATIENCE, async {
        loop {
            match log.append(&name("t"), None, b"4".to_vec()).await {
                Ok(position) => return position,
                Err(AppendError::Unavailable { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
    });
    appended.await.expect("the client comes back");
    let all = read_everything(&log, ReadLimit::default()).await;
    assert!(all.iter().all(|entry| entry.bytes != b"3"), "what was refused is not stored");
}

#[tokio::test]
async fn a_full_stream_refuses_and_goes_on_when_there_is_room() {
    let Some(server) = server("a_full_stream_refuses_and_goes_on_when_there_is_room") else { return };
    let client = async_nats::connect(server.nats.url()).await.unwrap();
    let context = async_nats::jetstream::new(client);
    let config = Config {
        name: "TEST_full".to_owned(),
        subjects: vec!["test.full.>".to_owned()],
        max_bytes: 20_000,
        discard: DiscardPolicy::New,
        ..Config::default()
    };
    context.create_stream(config).await.unwrap();
    let log = open(&server.nats.url(), "full").await;
    let stream = name("s");
    let mut last = None;
    let error = loop {
        match log.append(&stream, last, vec![1; 1_000]).await {
            Ok(position) => last = Some(position),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, AppendError::NoSpace { .. }) && !error.may_be_stored(), "{error:?}");
    assert!(last > at(10));
    let mut config = context.get_stream("TEST_full").await.unwrap().cached_info().config.clone();
    config.max_bytes = -1;
    context.update_stream(&config).await.unwrap();
    let position = log.append(&stream, last, vec![2; 1_000]).await.unwrap();
    assert_eq!(Some(position), last.map(Position::next));
    assert_eq!(read_everything(&log, ReadLimit::default()).await.len() as u64, position.0);
}

#[tokio::test]
async fn careless_settings_are_found_and_unfit_streams_refused() {
    let Some(server) = server("careless_settings_are_found_and_unfit_streams_refused") else { return };
    let url = server.nats.url();
    let client = async_nats::connect(&url).await.unwrap();
    let context = async_nats::jetstream::new(client);
    let own = open(&url, "own").await;
    let settings: Vec<_> = own.findings().iter().map(|finding| finding.setting).collect();
    assert_eq!(settings, ["num_replicas"], "all that one server can be blamed for");

    let careless = Config {
        name: "TEST_careless".to_owned(),
        subjects: vec!["test.careless.>".to_owned()],
        storage: StorageType::Memory,
        max_age: Duration::from_secs(3_600),
        max_messages: 1_000,
        allow_rollup: true,
        ..Config::default()
    };
    context.create_stream(careless).await.unwrap();
    let log = open(&url, "careless").await;
    let settings: Vec<_> = log.findings().iter().map(|finding| finding.setting).collect();
    let expected =
        ["storage", "max_age", "max_msgs", "allow_rollup_hdrs", "deny_purge", "deny_delete", "num_replicas"];
    assert_eq!(settings, expected);

    let other =
        Config { name: "TEST_unfit".to_owned(), subjects: vec!["other".to_owned()], ..Config::default() };
    context.create_stream(other).await.unwrap();
    let error = NatsLog::open(options(&url, "unfit")).await.unwrap_err();
    assert!(
        matches!(error, NatsOpenError::Unfit { .. }) && error.to_string().contains("subjects"),
        "{error}"
    );

    let mut three = options(&url, "three");
    three.replicas = 3;
    let error = NatsLog::open(three).await.unwrap_err().to_string();
    assert!(error.contains("3 replicas"), "{error}");
}

/// Needs no server: plays one that is too old.
#[tokio::test]
async fn an_old_server_is_refused_and_says_why() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let hello = r#"INFO {"server_id":"X","version":"2.9.10","host":"127.0.0.1","port":4222,"headers":true,"max_payload":1048576,"proto":1,"jetstream":true}"#;
            client.write_all(format!("{hello}\r\n").as_bytes()).await.unwrap();
            let mut buffer = [0; 4096];
            while let Ok(read) = client.read(&mut buffer).await
                && read > 0
            {
                if buffer[..read].windows(4).any(|bytes| bytes == b"PING") {
                    client.write_all(b"PONG\r\n").await.unwrap();
                }
            }
        }
    });
    let options = NatsLogOptions::new(&format!("nats://user:hush@{address}"));
    let error = timeout(PATIENCE, NatsLog::open(options)).await.unwrap().unwrap_err().to_string();
    assert!(
        error.contains("2.9.10") && error.contains("sync_interval") && error.contains("2.15.1"),
        "{error}"
    );
    assert!(!error.contains("hush"), "{error}");
}

#[tokio::test]
async fn an_absent_server_is_named_without_its_password() {
    // A port that was free a moment ago.
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut options = NatsLogOptions::new(&format!("nats://user:hush@{address}"));
    options.open_timeout = Duration::from_millis(300);
    let error = timeout(PATIENCE, NatsLog::open(options)).await.unwrap().unwrap_err().to_string();
    assert!(error.contains(&address.to_string()) && !error.contains("hush"), "{error}");
}

#[tokio::test]
async fn a_server_without_jetstream_is_refused_with_what_to_configure() {
    let Some(program) = server_or_skip("a_server_without_jetstream_is_refused_with_what_to_configure") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let mut child = std::process::Command::new(program)
        .args(["--addr", "127.0.0.1", "--port", "-1", "--ports_file_dir"])
        .arg(dir.path())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let ports = dir.path().join(format!("nats-server_{}.ports", child.id()));
    let opened = timeout(PATIENCE, async {
        let url = loop {
            let text = std::fs::read_to_string(&ports).unwrap_or_default();
            match text.split('"').find(|part| part.starts_with("nats://")) {
                Some(url) => break url.to_owned(),
                None => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        };
        let mut options = NatsLogOptions::new(&url);
        options.open_timeout = Duration::from_millis(500);
        NatsLog::open(options).await
    })
    .await;
    child.kill().unwrap();
    child.wait().unwrap();
    let error = opened.expect("in time").unwrap_err().to_string();
    assert!(error.contains("JetStream") && error.contains("sync_interval: always"), "{error}");
}
