//! Shared by the tests against a real server.

#![allow(dead_code)] // Each test binary uses its own part.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream;
use event_log::{EventLog, Position, StreamName};
use event_log_nats::testing::{NatsServer, server_or_skip};
use event_log_nats::{NatsLog, NatsLogOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Longest wait for anything that must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A server with a folder of its own; fields are dropped in order, the server first.
pub(crate) struct Server {
    pub(crate) nats: NatsServer,
    pub(crate) _dir: tempfile::TempDir,
}

/// A running server; `None` when there is no program and the test is skipped.
pub(crate) fn server(test: &str) -> Option<Server> {
    let program = server_or_skip(test)?;
    let dir = tempfile::tempdir().unwrap();
    let nats = NatsServer::start(program, dir.path()).unwrap();
    Some(Server { nats, _dir: dir })
}

/// A log of its own on that server.
pub(crate) fn options(url: &str, name: &str) -> NatsLogOptions {
    let mut options = NatsLogOptions::new(url);
    options.stream = format!("TEST_{name}");
    options.subject_prefix = format!("test.{name}");
    options
}

pub(crate) async fn open(url: &str, name: &str) -> NatsLog {
    NatsLog::open(options(url, name)).await.unwrap()
}

pub(crate) fn name(text: &str) -> StreamName {
    StreamName::new(text).unwrap()
}

pub(crate) fn at(position: u64) -> Option<Position> {
    Some(Position(position))
}

/// A client of its own, for what happens behind the log's back.
pub(crate) async fn raw(url: &str) -> jetstream::Context {
    jetstream::new(async_nats::connect(url).await.unwrap())
}

/// A stream that anybody may delete from and purge.
pub(crate) fn careless(name: &str) -> jetstream::stream::Config {
    jetstream::stream::Config {
        name: format!("TEST_{name}"),
        subjects: vec![format!("test.{name}.>")],
        ..jetstream::stream::Config::default()
    }
}

/// Appends records one after the other: a frame each.
pub(crate) async fn append_each(log: &NatsLog, stream: &StreamName, records: &[Vec<u8>]) {
    let mut last = log.last_of_stream(stream).await.unwrap();
    for bytes in records {
        last = Some(log.append(stream, last, bytes.clone()).await.unwrap());
    }
}

/// A record in a frame's payload, made without the code under test: two lengths below 128 and two texts.
pub(crate) fn record(stream: &str, bytes: &[u8]) -> Vec<u8> {
    let len = |len: usize| u8::try_from(len).ok().filter(|len| *len < 128).expect("a short text");
    [&[len(stream.len())], stream.as_bytes(), &[len(bytes.len())], bytes].concat()
}

/// The headers of a frame, with the checksum that belongs to them, made without the code under test.
pub(crate) fn frame_headers(first: u64, count: u64, payload: &[u8]) -> HeaderMap {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&first.to_le_bytes());
    crc.update(&count.to_le_bytes());
    crc.update(payload);
    let mut headers = HeaderMap::new();
    headers.insert("Flotilla-Log", "2");
    headers.insert("Flotilla-First", first.to_string());
    headers.insert("Flotilla-Count", count.to_string());
    headers.insert("Flotilla-Crc", format!("{:08x}", crc.finalize()));
    headers.insert("Flotilla-Commit", "00112233445566778899aabbccddeeff");
    headers
}

/// A link to the server that can lose what one side says, and break.
pub(crate) struct Link {
    address: SocketAddr,
    pub(crate) lose_requests: Arc<AtomicBool>,
    pub(crate) lose_answers: Arc<AtomicBool>,
    /// Connections that were made so far, and how many of the first lose everything.
    made: Arc<AtomicUsize>,
    dead: Arc<AtomicUsize>,
    breaks: watch::Sender<u32>,
}

impl Link {
    pub(crate) async fn to(server: SocketAddr) -> Link {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let link = Link {
            address: listener.local_addr().unwrap(),
            lose_requests: Arc::default(),
            lose_answers: Arc::default(),
            made: Arc::default(),
            dead: Arc::default(),
            breaks: watch::Sender::new(0),
        };
        let (requests, answers) = (Arc::clone(&link.lose_requests), Arc::clone(&link.lose_answers));
        let breaks = link.breaks.subscribe();
        let (made, dead) = (Arc::clone(&link.made), Arc::clone(&link.dead));
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(server).await else { continue };
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = server.into_split();
                let nth = made.fetch_add(1, Ordering::SeqCst);
                let is_lost = |lose: &Arc<AtomicBool>| {
                    let (lose, dead) = (Arc::clone(lose), Arc::clone(&dead));
                    move || lose.load(Ordering::SeqCst) || nth < dead.load(Ordering::SeqCst)
                };
                tokio::spawn(carry(from_client, to_server, is_lost(&requests), breaks.clone()));
                tokio::spawn(carry(from_server, to_client, is_lost(&answers), breaks.clone()));
            }
        });
        link
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://{}", self.address)
    }

    /// From now on every connection that there is says nothing, and is not closed; others can be made.
    pub(crate) fn lose_connections(&self) {
        self.dead.store(self.made.load(Ordering::SeqCst), Ordering::SeqCst);
    }

    pub(crate) fn heal_by_breaking(&self) {
        self.lose_requests.store(false, Ordering::SeqCst);
        self.lose_answers.store(false, Ordering::SeqCst);
        self.breaks.send_modify(|breaks| *breaks += 1);
    }
}

async fn carry(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    is_lost: impl Fn() -> bool + Send + 'static,
    mut breaks: watch::Receiver<u32>,
) {
    breaks.mark_unchanged();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = tokio::select! {
            read = from.read(&mut buffer) => read.unwrap_or(0),
            _ = breaks.changed() => 0,
        };
        if read == 0 {
            return;
        }
        if !is_lost() && to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
