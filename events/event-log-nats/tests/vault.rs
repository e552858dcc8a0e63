//! The bucket for secrets beside a log, on a real server.

use event_log::EventLog as _;
use event_log_nats::testing::{NatsServer, server_or_skip};
use event_log_nats::{NatsLog, NatsLogOptions};

#[tokio::test(flavor = "multi_thread")]
async fn secrets_are_written_once_and_overwritten_when_they_go() {
    let Some(program) = server_or_skip("secrets_are_written_once_and_overwritten_when_they_go") else {
        return;
    };
    let dir = tempfile::tempdir().expect("a folder");
    let mut server = NatsServer::start(program, dir.path().join("nats")).expect("starts");
    let log = NatsLog::open(NatsLogOptions::new(&server.url())).await.expect("opens");
    let (vault, other) = (log.vault().await.expect("made"), log.vault().await.expect("found"));
    let secret = |n: u32| format!("a secret that nobody is to find, number {n:08}").into_bytes();
    let many: Vec<_> = (0..200).map(|n| (format!("job.{n:032x}"), secret(n))).collect();
    assert!(vault.create(many.clone()).await.expect("written").is_empty());
    // The first stays; the same again is no conflict, since an answer may have been lost.
    let again = vec![(many[3].0.clone(), secret(900)), many[4].clone(), ("agent.5".into(), secret(5))];
    assert_eq!(other.create(again).await.expect("written"), [many[3].clone()]);
    assert_eq!(other.get(&many[3].0).await.expect("read"), Some(secret(3)));
    assert_eq!(other.get("job.none").await.expect("read"), None);
    assert_eq!(other.list().await.expect("listed").len(), 201);
    // Two at once for one key: one of them wins, and both know which.
    let race = |n: u32| vec![("user.race".to_owned(), secret(n))];
    let (a, b) = tokio::join!(vault.create(race(7001)), other.create(race(7002)));
    let (a, b) = (a.expect("answered"), b.expect("answered"));
    assert_eq!(a.len() + b.len(), 1, "{a:?} {b:?}");

    vault.destroy(&many[3].0, &secret(900)).await.expect("another secret is left alone");
    assert!(other.get(&many[3].0).await.expect("read").is_some());
    vault.destroy(&many[3].0, &secret(3)).await.expect("destroyed");
    other.destroy(&many[3].0, &secret(3)).await.expect("once more is nothing");
    assert_eq!(other.get(&many[3].0).await.expect("read"), None);
    assert!(vault.create(vec![(many[3].0.clone(), secret(901))]).await.expect("written").is_empty());
    // Another tool deleted one, which leaves a marker: it can be written again.
    let client = async_nats::connect(server.url()).await.expect("connects");
    let subject = format!("$KV.{}-keys.job.marked", NatsLogOptions::new("").stream);
    // Kept until it has answered.
    let context = async_nats::jetstream::new(client);
    let stored = context.publish(subject, Vec::new().into()).await.expect("sent");
    stored.await.expect("stored, before anything that follows");
    let marked = || vec![("job.marked".to_owned(), secret(8000))];
    assert!(vault.create(marked()).await.expect("written").is_empty());
    assert_eq!(other.get("job.marked").await.expect("read"), Some(secret(8000)));
    log.close().await;
    server.kill();
    // Nowhere in the server's files, and the others are.
    assert!(!holds(&dir.path().join("nats"), &secret(3)));
    assert!(holds(&dir.path().join("nats"), &secret(2)) && holds(&dir.path().join("nats"), &secret(901)));
}

/// Whether a file under a folder has these bytes.
fn holds(folder: &std::path::Path, bytes: &[u8]) -> bool {
    std::fs::read_dir(folder).expect("a folder").any(|entry| {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            return holds(&path, bytes);
        }
        std::fs::read(&path).is_ok_and(|content| content.windows(bytes.len()).any(|window| window == bytes))
    })
}

/// A log with three replicas, and a service that was told of none: whoever makes the bucket makes it as safe as the log.
/// Every later one looks at what it is like.
#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_has_as_many_replicas_as_its_log() {
    let Some(program) = server_or_skip("a_bucket_has_as_many_replicas_as_its_log") else { return };
    let dir = tempfile::tempdir().expect("a folder");
    let servers = NatsServer::start_cluster(&program, dir.path(), 3).expect("a cluster");
    let urls = servers.iter().map(NatsServer::url).collect::<Vec<_>>().join(",");
    let options = NatsLogOptions { replicas: 3, ..NatsLogOptions::new(&urls) };
    NatsLog::open(options).await.expect("the log").close().await;
    let options = NatsLogOptions::new(&urls);
    assert_eq!(options.replicas, 1);
    let bucket = format!("KV_{}-keys", options.stream);
    let log = NatsLog::open(options).await.expect("the log");
    let vault = log.vault().await.expect("made");
    let client = async_nats::connect(servers[0].url()).await.expect("connects");
    let stream = async_nats::jetstream::new(client).get_stream(bucket).await.expect("there");
    assert_eq!(stream.cached_info().config.num_replicas, 3);
    // Keys below others.
    let secret = |n: u8| vec![n; 60];
    let keys = ["job.1", "job.1.aa", "job.1.bb", "job.11"].map(str::to_owned);
    let secrets = keys.iter().cloned().zip((1..).map(secret)).collect();
    assert!(vault.create(secrets).await.expect("written").is_empty());
    let mut under = vault.list_under("job.1").await.expect("listed");
    under.sort();
    assert_eq!(under, [(keys[1].clone(), secret(2)), (keys[2].clone(), secret(3))]);
    assert_eq!(vault.list().await.expect("listed").len(), 4);
    log.close().await;
}
