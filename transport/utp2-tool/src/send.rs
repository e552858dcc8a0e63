//! `utp2 send`: offers files, feeds the blocks the receiver lacks, and waits for its word on each file.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::File;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime};
use std::{fs, io};

use anyhow::{Context, anyhow, bail};
use tokio::task::JoinSet;
use utp2::{CloseReason, Handle, SendError, Stats};
use utp2_tokio::{BlockEvent, BlockSink, BlockSource, Connection, Endpoint};

use crate::args::SendArgs;
use crate::progress::{Progress, mbps, millis, round, seconds};
use crate::wire::{
    BLOCK, Ending, Meta, ToReceiver, ToSender, block_len, blocks_of, clip, decode, encode, file_and_block,
    tag,
};
use crate::{endpoint_config, explain, interrupted, name, place, print_json, random, secret, state};

/// Files under way at a time: enough to hide round trips, few enough to be open at once.
const FILES_UNDER_WAY: usize = 32;

/// How long the receiver may take to say farewell once all files have ended.
const FAREWELL_TIME: Duration = Duration::from_secs(10);

/// How often the connection's figures are logged, at debug level.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Bytes read at a time for the hash.
const HASH_CHUNK: usize = 1 << 20;

/// A file to be sent.
pub(crate) struct Planned {
    path: PathBuf,
    meta: Meta,
}

/// Looks at the files. The inner error is a wrong command line.
pub(crate) fn plan(args: &SendArgs) -> anyhow::Result<Result<Vec<Planned>, String>> {
    let mut names = HashSet::new();
    let mut plan = Vec::new();
    for path in &args.files {
        let Some(file_name) = path.file_name() else {
            return Ok(Err(format!("{} names no file", path.display())));
        };
        if !names.insert(file_name.to_owned()) {
            return Ok(Err(format!("two files are called {}", name::show(&name::bytes(file_name)))));
        }
        let meta = fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
        if !meta.is_file() {
            bail!("{} is not a regular file", path.display());
        }
        plan.push(Planned { path: path.clone(), meta: meta_of(path, &meta) });
    }
    Ok(Ok(plan))
}

fn meta_of(path: &Path, metadata: &fs::Metadata) -> Meta {
    #[cfg(unix)]
    let mode = {
        use std::os::unix::fs::PermissionsExt;
        Some(metadata.permissions().mode() & 0o777)
    };
    #[cfg(not(unix))]
    let mode = None;
    Meta {
        name: name::bytes(path.file_name().unwrap_or_default()),
        size: metadata.len(),
        mode,
        modified: metadata.modified().ok().and_then(since_epoch),
    }
}

fn since_epoch(time: SystemTime) -> Option<(i64, u32)> {
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => Some((i64::try_from(after.as_secs()).ok()?, after.subsec_nanos())),
        Err(before) => {
            let before = before.duration();
            let seconds = i64::try_from(before.as_secs()).ok()?;
            Some(match before.subsec_nanos() {
                0 => (-seconds, 0),
                nanos => (-seconds - 1, 1_000_000_000 - nanos),
            })
        }
    }
}

/// The open files, as the driver reads them.
#[derive(Default)]
struct Source {
    files: RwLock<HashMap<u32, (Arc<File>, u64)>>,
    /// The block being sent, read at once instead of packet by packet.
    current: Mutex<Option<(u64, Vec<u8>)>>,
    errors: Mutex<HashMap<u32, String>>,
}

impl Source {
    fn open(&self, file: u32, opened: Arc<File>, size: u64) {
        self.files.write().unwrap_or_else(PoisonError::into_inner).insert(file, (opened, size));
    }

    fn close(&self, file: u32) {
        self.files.write().unwrap_or_else(PoisonError::into_inner).remove(&file);
    }

    /// Whether an open file is longer now than it was when it was offered.
    fn has_grown(&self, file: u32) -> bool {
        let files = self.files.read().unwrap_or_else(PoisonError::into_inner);
        files.get(&file).is_some_and(|(file, size)| file.metadata().is_ok_and(|now| now.len() > *size))
    }

    fn error(&self, file: u32) -> Option<String> {
        self.errors.lock().unwrap_or_else(PoisonError::into_inner).remove(&file)
    }

    fn read_piece(&self, tag: u64, offset: u32, buf: &mut [u8]) -> io::Result<()> {
        let (file, block) = file_and_block(tag);
        let (opened, size) = {
            let files = self.files.read().unwrap_or_else(PoisonError::into_inner);
            let (opened, size) = files.get(&file).ok_or(io::ErrorKind::NotFound)?;
            (opened.clone(), *size)
        };
        let at = u64::from(block) * u64::from(BLOCK);
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if offset == 0 {
            let (_, mut data) = current.take().unwrap_or_default();
            data.resize(block_len(size, block) as usize, 0);
            place::read_at(&opened, &mut data, at)?;
            *current = Some((tag, data));
        }
        let from = offset as usize;
        match &*current {
            Some((held, data)) if *held == tag && from + buf.len() <= data.len() => {
                buf.copy_from_slice(&data[from..from + buf.len()]);
                Ok(())
            }
            _ => place::read_at(&opened, buf, at + u64::from(offset)),
        }
    }
}

impl BlockSource for Source {
    fn read(&self, _: Handle, tag: u64, offset: u32, buf: &mut [u8]) -> io::Result<()> {
        self.read_piece(tag, offset, buf).inspect_err(|error| {
            let what = match error.kind() {
                io::ErrorKind::UnexpectedEof => "the file became shorter while it was read".to_owned(),
                _ => format!("the file cannot be read: {error}"),
            };
            let (file, _) = file_and_block(tag);
            self.errors.lock().unwrap_or_else(PoisonError::into_inner).insert(file, what);
        })
    }
}

/// A sender receives no blocks.
struct NoSink;

impl BlockSink for NoSink {
    fn write(&self, _: Handle, _: u64, _: u32, _: bool, _: &[u8]) {}
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Waiting,
    Offered,
    Sending,
    Done,
    Failed(String),
}

/// The files and how far they have come.
struct Queue {
    source: Arc<Source>,
    files: Vec<Planned>,
    states: Vec<State>,
    /// The next file to be offered.
    next: usize,
    under_way: usize,
    said_finished: bool,
}

/// Who the two are: public keys in hex.
struct Keys {
    public_key: String,
    peer_key: String,
    /// Since the state file last saw the receiver.
    peer_key_changed: bool,
}

struct Sender {
    conn: Connection,
    queue: Queue,
    /// Runs of blocks to be queued: file, first block, count.
    to_queue: VecDeque<(u32, u32, u32)>,
    outstanding: HashSet<u64>,
    /// The receiver has said anything at all; has taken leave.
    heard: bool,
    farewell: bool,
    hashes: JoinSet<(u32, io::Result<[u8; 32]>)>,
    sent: u64,
    resumed: u64,
    /// Files that arrived and had become longer meanwhile.
    grown: Vec<u32>,
    progress: Progress,
}

/// Sends the files; whether all of them arrived.
pub(crate) async fn run(args: SendArgs, plan: Vec<Planned>) -> anyhow::Result<bool> {
    let remote = tokio::net::lookup_host(&args.to)
        .await
        .with_context(|| format!("--to {} is no HOST:PORT that can be found", args.to))?
        .next()
        .ok_or_else(|| anyhow!("{} has no address", args.to))?;
    let local: SocketAddr = match remote {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let seed = args.state.as_deref().map_or_else(random, state::identity)?;
    let (mut config, public_key) = endpoint_config(&args.common, seed)?;
    let key = data_encoding::HEXLOWER.encode(&public_key);
    if args.state.is_some() {
        eprintln!("sending with key {key}");
    }
    config.core.mode = args.mode.into();
    config.core.rate_limit = args.rate_limit;
    let (endpoint, _incoming) = Endpoint::bind(local, config).context("cannot open a socket")?;
    let source = Arc::new(Source::default());
    endpoint.add_context(
        secret::CONTEXT,
        secret::derive(&args.common.secret),
        source.clone(),
        Arc::new(NoSink),
    );
    let mut known_key = None;
    if let Some(path) = &args.state
        && let Some(resumption) = state::load(path, remote)?
    {
        known_key = Some(resumption.peer().public_key);
        endpoint.remember(remote, resumption);
    }
    let started = Instant::now();
    let total = plan.iter().map(|f| f.meta.size).sum();
    let mut queue = Queue {
        source,
        states: vec![State::Waiting; plan.len()],
        files: plan,
        next: 0,
        under_way: 0,
        said_finished: false,
    };
    // To a receiver that is remembered as many as fit go ahead, and are answered when the connection stands.
    let first: Vec<Vec<u8>> = queue.offers()?.iter().map(encode).collect();
    let first: Vec<&[u8]> = first.iter().map(Vec::as_slice).collect();
    let conn = match endpoint.connect_with(remote, secret::CONTEXT, &first).await {
        Ok(conn) => conn,
        Err(error) => {
            let why = explain(&error, &args.to, &key);
            eprintln!("utp2: {why}");
            if args.common.json {
                print_json(&serde_json::json!({ "ok": false, "error": why, "public_key": key }));
            }
            return Ok(false);
        }
    };
    let peer_key = conn.peer().public_key;
    let peer_key_changed = known_key.is_some_and(|known| known != peer_key);
    let peer_key = data_encoding::HEXLOWER.encode(&peer_key);
    if peer_key_changed {
        eprintln!(
            "utp2: {} has another key than the last time, now {peer_key}; with --peer-key that would be refused",
            args.to
        );
    }
    let keys = Keys { public_key: key, peer_key, peer_key_changed };
    let mut sender = Sender {
        conn,
        queue,
        to_queue: VecDeque::new(),
        outstanding: HashSet::new(),
        heard: false,
        farewell: false,
        hashes: JoinSet::new(),
        sent: 0,
        resumed: 0,
        grown: Vec::new(),
        progress: Progress::new(total),
    };
    let moved = tokio::select! {
        moved = sender.transfer() => moved,
        () = interrupted() => Err(anyhow!("interrupted; send again to go on where it stopped")),
    };
    let took = started.elapsed();
    let stats = sender.conn.stats();
    if moved.is_ok() {
        // Nothing of this connection is needed any more, on either side.
        sender.conn.close(0, "done");
        endpoint.leave().await;
    } else {
        sender.conn.close(0, "given up");
        endpoint.close().await;
    }
    if let Some(path) = &args.state {
        let kept = match endpoint.resumptions().first() {
            Some((_, resumption)) => state::save(path, remote, resumption),
            None => state::forget(path, remote),
        };
        if let Err(error) = kept {
            // The files are what counts.
            eprintln!("utp2: {error:#}");
        }
    }
    sender.report(&args, &keys, took, &stats, moved)
}

impl Queue {
    /// What can be offered now; and that it was all, behind the last one.
    fn offers(&mut self) -> anyhow::Result<Vec<ToReceiver>> {
        let mut offers = Vec::new();
        while self.under_way < FILES_UNDER_WAY && self.next < self.files.len() {
            let (index, file) = (self.next, u32::try_from(self.next).context("too many files")?);
            self.next += 1;
            let planned = &self.files[index];
            match File::open(&planned.path) {
                Ok(opened) => {
                    self.source.open(file, Arc::new(opened), planned.meta.size);
                    self.states[index] = State::Offered;
                    self.under_way += 1;
                    offers.push(ToReceiver::Offer { file, meta: planned.meta.clone() });
                }
                Err(error) => self.states[index] = State::Failed(format!("the file cannot be read: {error}")),
            }
        }
        if self.next == self.files.len() && !self.said_finished {
            self.said_finished = true;
            offers.push(ToReceiver::Finished);
        }
        Ok(offers)
    }
}

impl Sender {
    /// Moves all files until the receiver takes leave; an error only if the connection failed.
    async fn transfer(&mut self) -> anyhow::Result<()> {
        let conn = self.conn.clone();
        let mut look = tokio::time::interval(LOOK_EVERY);
        let mut all_ended = None;
        while !self.farewell {
            if self.queue.said_finished && self.queue.under_way == 0 {
                let since: Instant = *all_ended.get_or_insert_with(Instant::now);
                anyhow::ensure!(since.elapsed() < FAREWELL_TIME, "the receiver does not take leave");
            }
            tokio::select! {
                message = conn.recv_message() => {
                    let message = decode(&message.map_err(|closed| self.lost(&closed))?)?;
                    self.heard = true;
                    self.on_message(message).await?;
                }
                event = conn.recv_event() => {
                    self.on_block(event.map_err(|closed| self.lost(&closed))?).await?;
                }
                _ = look.tick() => {
                    let stats = conn.stats();
                    tracing::debug!(?stats, "the connection stands so");
                    self.progress.hear(stats.received_packets);
                }
                Some(hash) = self.hashes.join_next() => {
                    let (file, hash) = hash.context("hashing a file failed")?;
                    self.on_hash(file, hash).await?;
                }
            }
            self.queue_blocks();
            self.offer_more().await?;
            self.progress.set(self.sent);
        }
        Ok(())
    }

    async fn say(&self, message: ToReceiver) -> anyhow::Result<()> {
        Ok(self.conn.send_message(&encode(&message)).await?)
    }

    async fn offer_more(&mut self) -> anyhow::Result<()> {
        for offer in self.queue.offers()? {
            self.say(offer).await?;
        }
        Ok(())
    }

    async fn on_message(&mut self, message: ToSender) -> anyhow::Result<()> {
        match message {
            ToSender::Accept { file, have } => self.on_accept(file, &have),
            ToSender::Ended { file, how, last } => {
                let end = match how {
                    Ending::Done => State::Done,
                    Ending::Declined { reason } | Ending::Failed { reason } => {
                        State::Failed(format!("the receiver says: {}", name::show_text(&reason)))
                    }
                };
                self.end_file(file, end)?;
                if last { self.on_farewell() } else { Ok(()) }
            }
            ToSender::Farewell => self.on_farewell(),
        }
    }

    fn on_farewell(&mut self) -> anyhow::Result<()> {
        if !self.queue.said_finished || self.queue.under_way > 0 {
            bail!("the receiver took leave too early");
        }
        self.farewell = true;
        Ok(())
    }

    fn on_accept(&mut self, file: u32, have: &[(u32, u32)]) -> anyhow::Result<()> {
        let Some(state @ State::Offered) = self.queue.states.get_mut(file as usize) else {
            bail!("the receiver accepts a file that was not offered");
        };
        *state = State::Sending;
        let size = self.queue.files[file as usize].meta.size;
        let blocks = blocks_of(size).context("the file has too many blocks")?;
        let mut next = 0;
        for &(first, count) in have.iter().chain([&(blocks, 0)]) {
            if first < next || first > blocks || count > blocks - first {
                bail!("the receiver has blocks of a file that do not exist");
            }
            if first > next {
                self.to_queue.push_back((file, next, first - next));
            }
            next = first + count;
            let there = (first..next).map(|b| u64::from(block_len(size, b))).sum::<u64>();
            self.resumed += there;
            self.progress.skip(there);
        }
        let opened =
            self.queue.source.files.read().unwrap_or_else(PoisonError::into_inner).get(&file).cloned();
        let (opened, size) = opened.context("a file under way is open")?;
        self.hashes.spawn_blocking(move || (file, hash(&opened, size)));
        Ok(())
    }

    async fn on_block(&mut self, event: BlockEvent) -> anyhow::Result<()> {
        match event {
            BlockEvent::Sent { tag } => {
                let (file, block) = file_and_block(tag);
                if self.outstanding.remove(&tag) {
                    self.sent += u64::from(block_len(self.queue.files[file as usize].meta.size, block));
                }
                Ok(())
            }
            BlockEvent::Failed { tag } => {
                self.outstanding.remove(&tag);
                let (file, _) = file_and_block(tag);
                let reason = self.queue.source.error(file).unwrap_or_else(|| "a block cannot be read".into());
                self.give_up(file, reason).await
            }
            BlockEvent::Lagged { count } => bail!("{count} events were missed"),
        }
    }

    async fn on_hash(&mut self, file: u32, hash: io::Result<[u8; 32]>) -> anyhow::Result<()> {
        match hash {
            _ if self.queue.states[file as usize] != State::Sending => Ok(()),
            Ok(blake3) => self.say(ToReceiver::Sum { file, blake3 }).await,
            Err(error) => self.give_up(file, format!("the file cannot be read: {error}")).await,
        }
    }

    /// Gives a file up for a reason of ours.
    async fn give_up(&mut self, file: u32, reason: String) -> anyhow::Result<()> {
        if self.queue.states[file as usize] == State::Sending {
            self.say(ToReceiver::Abort { file, reason: clip(&reason) }).await?;
            self.end_file(file, State::Failed(reason))?;
        }
        Ok(())
    }

    fn end_file(&mut self, file: u32, end: State) -> anyhow::Result<()> {
        let Some(state @ (State::Offered | State::Sending)) = self.queue.states.get_mut(file as usize) else {
            // It may have been given up here while the word was under way.
            return match self.queue.states.get(file as usize) {
                Some(State::Failed(_)) => Ok(()),
                _ => Err(anyhow!("the receiver speaks of a file that is not under way")),
            };
        };
        let is_done = end == State::Done;
        if is_done && self.queue.source.has_grown(file) {
            self.grown.push(file);
        }
        *state = end;
        self.queue.under_way -= 1;
        self.to_queue.retain(|run| run.0 != file);
        let size = self.queue.files[file as usize].meta.size;
        let (conn, sent) = (&self.conn, &mut self.sent);
        self.outstanding.retain(|&tag| {
            let (of, block) = file_and_block(tag);
            if of == file {
                conn.cancel_block(tag);
                // The word of the receiver may overtake the acknowledgement of a block.
                *sent += if is_done { u64::from(block_len(size, block)) } else { 0 };
            }
            of != file
        });
        self.queue.source.close(file);
        Ok(())
    }

    /// Queues blocks until the connection takes no more.
    fn queue_blocks(&mut self) {
        while let Some((file, first, count)) = self.to_queue.front_mut() {
            let size = self.queue.files[*file as usize].meta.size;
            let tag = tag(*file, *first);
            match self.conn.send_block(tag, block_len(size, *first), 0) {
                Ok(()) => {
                    self.outstanding.insert(tag);
                    *first += 1;
                    *count -= 1;
                    if *count == 0 {
                        self.to_queue.pop_front();
                    }
                }
                // An event follows; if it is the end, so does the reason.
                Err(SendError::Blocked | SendError::Closed) => return,
                Err(other) => unreachable!("no block is empty or too large: {other}"),
            }
        }
    }

    /// What the end of the connection means.
    fn lost(&self, closed: &utp2_tokio::Closed) -> anyhow::Error {
        let reason = name::show_text(&closed.reason.to_string());
        match closed.reason {
            // So ends every release of the receiver what it does not understand.
            CloseReason::Peer { code: 1, .. } if !self.heard => {
                anyhow!(
                    "the receiver hangs up ({reason}): is it of another version? Use one release on both sides"
                )
            }
            CloseReason::Peer { code: 0, .. } => {
                anyhow!("the receiver was stopped; send again to go on where it stopped")
            }
            CloseReason::Peer { code: 2, .. } => anyhow!("a newer sender of the same file took over"),
            _ => anyhow!("the connection was lost: {reason}; send again to go on where it stopped"),
        }
    }

    fn report(
        self,
        args: &SendArgs,
        keys: &Keys,
        took: Duration,
        stats: &Stats,
        moved: anyhow::Result<()>,
    ) -> anyhow::Result<bool> {
        let Self { queue: Queue { files, states, .. }, sent, resumed, grown, progress, .. } = self;
        drop(progress);
        let mut failed = Vec::new();
        for (file, state) in files.iter().zip(&states) {
            let why = match state {
                State::Done => continue,
                State::Failed(why) => why.as_str(),
                _ => "it did not get to its end",
            };
            eprintln!("utp2: {}: {why}", name::show(&file.meta.name));
            failed.push(serde_json::json!({ "name": name::show(&file.meta.name), "error": why }));
        }
        let grown: Vec<String> =
            grown.iter().map(|&file| name::show(&files[file as usize].meta.name)).collect();
        for name in &grown {
            eprintln!("utp2: {name} grew while it was sent: it arrived as long as it was at first");
        }
        let done = states.len() - failed.len();
        let ok = failed.is_empty() && moved.is_ok();
        if let Err(error) = &moved {
            eprintln!("utp2: {error:#}");
        }
        eprintln!(
            "{done} of {} files, {sent} bytes in {:.2} s, {:.1} Mbit/s; {}, round trip {:.1} ms",
            states.len(),
            took.as_secs_f64(),
            mbps(sent, took),
            losses(stats.lost_packets, stats.retransmitted_bytes),
            millis(stats.rtt),
        );
        if args.common.json {
            print_json(&serde_json::json!({
                "ok": ok,
                "public_key": keys.public_key,
                "peer_key": keys.peer_key,
                "peer_key_changed": keys.peer_key_changed,
                "files": done,
                "failed": failed,
                "error": moved.err().map(|e| format!("{e:#}")),
                "bytes": sent,
                "resumed_bytes": resumed,
                "seconds": seconds(took),
                "goodput_mbps": mbps(sent, took),
                "retransmitted": stats.retransmitted_bytes,
                "grown": grown,
                "retransmit_ratio":
                    round(stats.retransmitted_bytes as f64 / stats.data_bytes_sent.max(1) as f64, 6),
                "lost": stats.lost_packets,
                "sent_packets": stats.sent_packets,
                "rtt_ms": millis(stats.rtt),
                "rtt_min_ms": millis(stats.rtt_min),
                "base_loss_ppm": stats.base_loss_ppm,
            }));
        }
        Ok(ok)
    }
}

/// What was lost, for people. What ends a transfer is sent more than once before anything is known to be lost (§8.5).
fn losses(packets: u64, bytes: u64) -> String {
    match (packets, bytes) {
        (0, 0) => "lost nothing".into(),
        (0, _) => format!("lost nothing ({bytes} bytes sent twice as a precaution)"),
        _ => format!("lost {packets} packets, sent again {bytes} bytes"),
    }
}

/// The BLAKE3 hash of a file that must have `size` bytes.
fn hash(file: &File, size: u64) -> io::Result<[u8; 32]> {
    let mut hash = blake3::Hasher::new();
    let mut buf = vec![0; HASH_CHUNK];
    let mut at = 0;
    while at < size {
        let n = (size - at).min(HASH_CHUNK as u64) as usize;
        place::read_at(file, &mut buf[..n], at)?;
        hash.update(&buf[..n]);
        at += n as u64;
    }
    Ok(hash.finalize().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_made_as_a_precaution_are_no_loss() {
        assert_eq!(losses(0, 0), "lost nothing");
        assert_eq!(losses(0, 89_319), "lost nothing (89319 bytes sent twice as a precaution)");
        assert_eq!(losses(3, 5000), "lost 3 packets, sent again 5000 bytes");
    }
}
