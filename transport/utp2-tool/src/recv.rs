//! `utp2 recv`: accepts sessions, takes the files offered, verifies and places them.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use utp2::{CloseReason, Handle};
use utp2_tokio::{BlockSink, BlockSource, Closed, Connection, Endpoint};

use crate::args::RecvArgs;
use crate::behind::Behind;
use crate::progress::{Progress, mbps, seconds};
use crate::store::{CannotBegin, OutDir, PartFile, Taken};
use crate::wire::{Ending, Meta, ToReceiver, ToSender, clip, decode, encode, file_and_block};
use crate::{endpoint_config, interrupted, name, print_json, random, secret, state};

/// Files a sender may have under way. Ours has 32.
const FILES_UNDER_WAY_MAX: usize = 64;

/// Jobs on the side at which a session reads no more messages. A file has two at most, and a few may still be about
/// files that have just ended.
const JOBS_MAX: usize = 4 * FILES_UNDER_WAY_MAX;

/// A sender that has nothing under way, has not finished and says nothing for so long holds the place of another one;
/// so does one that does not take what it is told.
const PATIENCE: Duration = Duration::from_secs(60);

/// Sessions at a time; further ones wait to be accepted.
const SESSIONS_MAX: usize = 64;

/// How often what has arrived is written down, for the case that this program is killed: so often, or whenever so many
/// bytes have arrived since, a few seconds' worth at a gigabit being worth keeping; but no fewer than such a part of the
/// files, whose maps are written whole and take up to a 200,000th of them.
const SAVE_EVERY: Duration = Duration::from_secs(2);
const SAVE_BYTES: u64 = 64 << 20;
const SAVE_PART: u64 = 1000;

/// How often progress is shown.
const SHOW_EVERY: Duration = Duration::from_millis(200);

/// A sender that was not heard for so long gives way to another one with the same file: most likely it is
/// the same person, after a crash.
const SILENT: Duration = Duration::from_secs(3);

/// How long a file waits for another transfer of that name to end, and how often it looks whether that one is
/// silent.
const BUSY_TIME: Duration = Duration::from_secs(10);
const BUSY_LOOK: Duration = Duration::from_millis(500);

/// After our farewell the sender closes at once. If nothing is heard of that, this is waited for: so long and a few
/// round trips once it is known to have heard the farewell, and else long enough for the path to come back.
const CLOSE_TIME: Duration = Duration::from_secs(1);
const UNHEARD_TIME: Duration = Duration::from_secs(40);

/// A receiver has nothing to give.
struct NoSource;

impl BlockSource for NoSource {
    fn read(&self, _: Handle, _: u64, _: u32, _: &mut [u8]) -> io::Result<()> {
        Err(io::ErrorKind::NotFound.into())
    }
}

/// What the driver, and who writes behind it, tell a session.
pub(crate) enum Arrived {
    /// Enough to be hashed, or all.
    Hash(u32),
    Failed(u32, String),
}

/// A session as the driver sees it.
pub(crate) struct Inbound {
    conn: Connection,
    /// Packets received when last looked, and since when they are so many.
    heard: Mutex<(u64, Instant)>,
    files: RwLock<HashMap<u32, Arc<PartFile>>>,
    /// Unbounded, but with at most one item for 8 MiB that arrived, and one failure a file.
    tell: mpsc::UnboundedSender<Arrived>,
    bytes: AtomicU64,
    /// We have taken leave; a newer session was given the place of this one.
    leaving: AtomicBool,
    displaced: AtomicBool,
}

struct Sink {
    sessions: RwLock<HashMap<Handle, Arc<Inbound>>>,
    behind: Behind,
}

impl Inbound {
    /// A session that has ended wants to know nothing.
    pub(crate) fn tell(&self, arrived: Arrived) {
        let _ = self.tell.send(arrived);
    }

    /// Notes whether anything was heard from the sender: so many packets until now.
    fn listen(&self) -> u64 {
        let packets = self.conn.stats().received_packets;
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        if heard.0 != packets {
            *heard = (packets, Instant::now());
        }
        packets
    }

    fn may_go(&self) -> bool {
        !self.conn.is_confirmed() || self.is_silent()
    }

    fn is_silent(&self) -> bool {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).1.elapsed() > SILENT
    }

    fn has(&self, name: &[u8]) -> bool {
        let files = self.files.read().unwrap_or_else(PoisonError::into_inner);
        files.values().any(|part| part.meta().name == name)
    }
}

impl Sink {
    fn new() -> io::Result<Self> {
        Ok(Self { sessions: RwLock::default(), behind: Behind::start()? })
    }

    /// Sessions whose sender is sure to be there, now and not only a while ago, or that are ending.
    fn busy_sessions(&self) -> usize {
        let sessions = self.sessions.read().unwrap_or_else(PoisonError::into_inner);
        let is_busy = |session: &Inbound| {
            session.conn.is_confirmed() && (!session.is_silent() || session.leaving.load(Relaxed))
        };
        sessions.values().filter(|session| is_busy(session)).count()
    }

    /// Ends the session of a silent sender that has a file of this name under way, or of one that may be none: what
    /// came early was perhaps a copy (§5.8).
    fn evict(&self, name: &[u8]) {
        let sessions = self.sessions.read().unwrap_or_else(PoisonError::into_inner);
        // Collected, because closing takes the endpoint's lock, under which the driver takes this one.
        let silent: Vec<_> = sessions.values().filter(|s| s.may_go() && s.has(name)).cloned().collect();
        drop(sessions);
        for session in silent {
            session.displaced.store(true, Relaxed);
            session.conn.close(2, "the file is being sent by somebody else");
        }
    }
}

impl BlockSink for Sink {
    fn write(&self, conn: Handle, tag: u64, offset: u32, fin: bool, data: &[u8]) {
        let sessions = self.sessions.read().unwrap_or_else(PoisonError::into_inner);
        let Some(session) = sessions.get(&conn) else { return };
        let (file, block) = file_and_block(tag);
        let files = session.files.read().unwrap_or_else(PoisonError::into_inner);
        let Some(part) = files.get(&file) else { return };
        match part.take(block, offset, fin, data) {
            Taken::New(new, runs) => {
                session.bytes.fetch_add(u64::from(new), Relaxed);
                for run in runs.into_iter().flatten() {
                    self.behind.put(session, file, part, run);
                }
            }
            Taken::Nothing => {}
            Taken::Failed(reason) => session.tell(Arrived::Failed(file, reason)),
        }
    }
}

/// Serves until it is interrupted, or for one session; whether all went well.
pub(crate) async fn run(args: RecvArgs) -> anyhow::Result<bool> {
    let dir = OutDir::open(args.out.clone(), args.fsync)
        .with_context(|| format!("cannot write to {}", args.out.display()))?;
    let kept = args.state.as_deref().map(state::Kept::open).transpose()?;
    let seed = kept.as_ref().map_or_else(random, |kept| Ok(kept.identity))?;
    let (mut config, public_key) = endpoint_config(&args.common, seed)?;
    config.core.accept_early = true;
    let listen = tokio::net::lookup_host(&args.listen)
        .await
        .with_context(|| format!("--listen {} is no address that can be found", args.listen))?
        .next()
        .ok_or_else(|| anyhow!("{} has no address", args.listen))?;
    let (endpoint, mut incoming) =
        Endpoint::bind(listen, config).with_context(|| format!("cannot listen on {}", args.listen))?;
    if let Some(kept) = &kept {
        endpoint.set_lasting_secret(&kept.secret);
    }
    let sink = Arc::new(Sink::new().context("cannot start the thread that writes")?);
    endpoint.add_context(
        secret::CONTEXT,
        secret::derive(&args.common.secret),
        Arc::new(NoSource),
        sink.clone(),
    );
    announce(endpoint.local_addr(), &public_key, args.common.json);
    let mut sessions = JoinSet::new();
    let sessions_max = if args.once { 1 } else { SESSIONS_MAX };
    let mut ok = true;
    let mut one_ended = false;
    let mut interrupted = std::pin::pin!(interrupted());
    // Nothing tells that a sender has fallen silent and another one may come.
    let mut look = tokio::time::interval(BUSY_LOOK);
    loop {
        if args.once && one_ended && sink.busy_sessions() == 0 {
            break;
        }
        let may_accept =
            !(args.once && one_ended) && sink.busy_sessions() < sessions_max && sessions.len() < SESSIONS_MAX;
        tokio::select! {
            conn = incoming.accept(), if may_accept => {
                let conn = conn.ok_or_else(|| anyhow!("the socket failed"))?;
                let session = Session::new(conn, dir.clone(), sink.clone(), args.common.json);
                sessions.spawn(session.run());
            }
            Some(ended) = sessions.join_next() => match ended.context("a session failed")? {
                Outcome::Done => one_ended = true,
                Outcome::Undone => {
                    one_ended = true;
                    // Without --once each session was told of by itself.
                    ok &= !args.once;
                }
                Outcome::Nothing | Outcome::Displaced => {}
            },
            _ = look.tick(), if args.once => {}
            () = &mut interrupted => {
                eprintln!("interrupted");
                ok &= !args.once;
                break;
            }
        }
    }
    endpoint.close().await;
    // Each writes down what it has.
    while let Some(ended) = sessions.join_next().await {
        ok &= !matches!(ended, Ok(Outcome::Undone));
    }
    Ok(ok)
}

fn announce(address: SocketAddr, public_key: &[u8; 32], json: bool) {
    let key = data_encoding::HEXLOWER.encode(public_key);
    eprintln!("listening on {address}, key {key}");
    if json {
        print_json(&serde_json::json!({
            "event": "listening", "address": address.to_string(), "public_key": key,
        }));
    }
}

/// What a session came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// Everything offered is in its place.
    Done,
    Undone,
    /// The sender fell silent, and a newer one has its file now: most likely the same person.
    Displaced,
    /// The sender never showed that it was there: somebody replayed what it once sent, or it tried another way.
    Nothing,
}

/// What a task on the side has found out.
enum Job {
    Opened(u32, Result<Arc<PartFile>, Declined>),
    Hashed(u32, io::Result<Option<[u8; 32]>>),
    Finished(u32, Result<(), String>),
    /// Its room on disk is taken, or can't be.
    Room(u32, io::Result<()>),
    Saved,
}

/// A file that is not even begun.
struct Declined {
    meta: Meta,
    why: String,
}

/// A file of a session.
enum Entry {
    /// Stays until its job answers; with the sender's reason if it has given the file up meanwhile.
    Opening {
        aborted: Option<String>,
    },
    Open {
        part: Arc<PartFile>,
        wanted: Option<[u8; 32]>,
        found: Option<[u8; 32]>,
        hashing: Hashing,
    },
    /// On its way to its place.
    Finishing(Arc<PartFile>),
}

/// What is hashed on the side: one job for a file at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hashing {
    Idle,
    UnderWay,
    /// More has come together since, which the job may have missed.
    Again,
}

struct Session {
    conn: Connection,
    dir: Arc<OutDir>,
    sink: Arc<Sink>,
    inbound: Arc<Inbound>,
    arrivals: mpsc::UnboundedReceiver<Arrived>,
    entries: HashMap<u32, Entry>,
    /// The last file offered. Numbers only rise, so what comes late of a file is never taken for another's.
    last_offer: Option<u32>,
    jobs: JoinSet<Job>,
    /// Tells jobs that wait for something that nobody waits for them.
    ends: watch::Sender<()>,
    progress: Progress,
    json: bool,
    received: u64,
    failed: u64,
    /// The sender has shown that it is there now, and not only once was.
    is_confirmed: bool,
    /// The sender has offered all it has.
    heard_finished: bool,
    /// When the sender last said something, or its last file ended.
    active: Instant,
    /// What is there is being written down.
    is_saving: bool,
    /// Bytes that had arrived when that was last begun.
    saved: u64,
    patience: Duration,
    /// It was closed for not taking what it was told.
    is_unheeded: bool,
    /// When we took leave: all that was offered has ended.
    farewell: Option<Instant>,
    /// When the sender was first seen to have heard that.
    farewell_heard: Option<Instant>,
}

impl Session {
    fn new(conn: Connection, dir: Arc<OutDir>, sink: Arc<Sink>, json: bool) -> Self {
        let (tell, arrivals) = mpsc::unbounded_channel();
        let inbound = Arc::new(Inbound {
            conn: conn.clone(),
            heard: Mutex::new((0, Instant::now())),
            files: RwLock::default(),
            tell,
            bytes: 0.into(),
            leaving: false.into(),
            displaced: false.into(),
        });
        sink.sessions.write().unwrap_or_else(PoisonError::into_inner).insert(conn.handle(), inbound.clone());
        Self {
            conn,
            dir,
            sink,
            inbound,
            arrivals,
            entries: HashMap::new(),
            last_offer: None,
            jobs: JoinSet::new(),
            ends: watch::Sender::new(()),
            progress: Progress::new(0),
            json,
            received: 0,
            failed: 0,
            is_confirmed: false,
            heard_finished: false,
            active: Instant::now(),
            is_saving: false,
            saved: 0,
            patience: PATIENCE,
            is_unheeded: false,
            farewell: None,
            farewell_heard: None,
        }
    }

    fn bytes(&self) -> u64 {
        self.inbound.bytes.load(Relaxed)
    }

    /// Serves the sender until it leaves.
    async fn run(mut self) -> Outcome {
        let started = Instant::now();
        let remote = self.conn.remote();
        let end = self.serve().await;
        let took = started.elapsed();
        // However the connection ended after that.
        let orderly = self.farewell.is_some() && end.is_ok();
        self.sink.sessions.write().unwrap_or_else(PoisonError::into_inner).remove(&self.conn.handle());
        self.entries.values().filter_map(Entry::open).for_each(|part| part.abandon());
        self.ends.send_replace(());
        let mut late = Vec::new();
        while let Some(job) = self.jobs.join_next().await {
            match job {
                Ok(Job::Opened(_, Ok(part))) => late.push(part),
                Ok(Job::Finished(file, Ok(()))) => self.done(file).await,
                // What is left to do will be done when the file is sent again.
                _ => {}
            }
        }
        let kept = self.keep_unfinished(late).await;
        if !self.conn.is_confirmed() {
            tracing::debug!(%remote, "an early offer was never confirmed");
            return Outcome::Nothing;
        }
        let ok = orderly && self.failed == 0 && kept == 0;
        let error = match &end {
            _ if orderly => None,
            Ok(closed) => closed.as_ref().map(|closed| self.why(closed)),
            Err(error) => Some(format!("{error:#}")),
        };
        if let Some(error) = &error {
            self.progress.say(&format!("{remote}: {}", name::show_text(error)));
        }
        let (bytes, received, failed) = (self.bytes(), self.received, self.failed);
        self.progress.say(&format!(
            "{remote}: {received} files received, {failed} failed, {kept} unfinished; {bytes} bytes in {:.2} s, \
             {:.1} Mbit/s",
            took.as_secs_f64(),
            mbps(bytes, took),
        ));
        if self.json {
            print_json(&serde_json::json!({
                "event": "session", "ok": ok, "peer": remote.to_string(), "files": received, "failed": failed,
                "unfinished": kept, "bytes": bytes, "seconds": seconds(took), "goodput_mbps": mbps(bytes, took),
                "error": error,
            }));
        }
        match ok {
            true => Outcome::Done,
            false if self.inbound.displaced.load(Relaxed) => Outcome::Displaced,
            false => Outcome::Undone,
        }
    }

    /// Why the session ended before its time, for people.
    fn why(&self, closed: &Closed) -> String {
        match &closed.reason {
            CloseReason::Local if self.inbound.displaced.load(Relaxed) => {
                "the sender had fallen silent, and a newer one sends its file now".into()
            }
            CloseReason::Local if self.is_unheeded => "the sender does not take what it is told".into(),
            CloseReason::Local => "this receiver was stopped".into(),
            CloseReason::Peer { code: 0, .. } => "the sender was stopped".into(),
            other => format!("the connection was lost: {other}"),
        }
    }

    /// Until the connection ends, or the sender talks nonsense. `None` if it had taken leave and was not heard again.
    async fn serve(&mut self) -> anyhow::Result<Option<Closed>> {
        let conn = self.conn.clone();
        let mut save = tokio::time::interval(SAVE_EVERY);
        let mut show = tokio::time::interval(SHOW_EVERY);
        // Only offers do no harm when they are repeated; our sender says nothing else so early.
        for message in conn.early_messages() {
            match self.understand(&message)? {
                message @ (ToReceiver::Offer { .. } | ToReceiver::Finished) => {
                    self.on_message(message).await?
                }
                ToReceiver::Sum { .. } | ToReceiver::Abort { .. } => {
                    conn.close(1, "said too early");
                    anyhow::bail!("the sender says too early what may be a repetition");
                }
            }
        }
        loop {
            tokio::select! {
                confirmed = conn.confirmed(), if !self.is_confirmed => match confirmed {
                    Ok(()) => self.look_confirmed(),
                    Err(closed) => return Ok(Some(closed)),
                },
                closed = conn.closed(), if self.jobs.len() >= JOBS_MAX => {
                    return Ok(Some(Closed { reason: closed }));
                }
                message = conn.recv_message(), if self.jobs.len() < JOBS_MAX => match message {
                    Ok(message) => {
                        self.active = Instant::now();
                        self.look_confirmed();
                        let message = self.understand(&message)?;
                        self.on_message(message).await?;
                    }
                    Err(closed) => return Ok(Some(closed)),
                },
                Some(arrived) = self.arrivals.recv() => match arrived {
                    Arrived::Hash(file) => {
                        self.hash(file);
                        self.save_if_much();
                    }
                    Arrived::Failed(file, reason) => self.fail(file, reason, false).await?,
                },
                Some(job) = self.jobs.join_next() => self.on_job(job.context("a task failed")?).await?,
                _ = save.tick() => self.save(),
                _ = show.tick() => {
                    let packets = self.inbound.listen();
                    self.progress.hear(packets);
                    self.progress.set(self.bytes());
                    self.save_if_much();
                    if self.is_left_alone() {
                        return Ok(None);
                    }
                    if self.is_idle() {
                        conn.close(3, "nothing was offered for too long");
                        anyhow::bail!("the sender offers nothing");
                    }
                }
            }
            if self.is_last_word() {
                self.say(ToSender::Farewell).await;
            }
        }
    }

    fn understand(&self, message: &[u8]) -> anyhow::Result<ToReceiver> {
        Ok(decode(message).inspect_err(|error| self.conn.close(1, &error.to_string()))?)
    }

    /// If the sender is there, now, what it offered early is begun in earnest.
    fn look_confirmed(&mut self) {
        if self.is_confirmed || !self.conn.is_confirmed() {
            return;
        }
        self.is_confirmed = true;
        self.progress.say(&format!("{} sends", self.conn.remote()));
        let files: Vec<u32> = self.entries.keys().copied().collect();
        for file in files {
            self.start(file);
        }
    }

    /// Whether it is time to take leave; then what is said next must do so.
    fn is_last_word(&mut self) -> bool {
        let is_last = self.heard_finished && self.entries.is_empty() && self.farewell.is_none();
        if is_last {
            self.farewell = Some(Instant::now());
            self.inbound.leaving.store(true, Relaxed);
        }
        is_last
    }

    /// Whether the sender has gone without its CLOSE having been heard.
    fn is_left_alone(&mut self) -> bool {
        let Some(farewell) = self.farewell else { return false };
        if self.farewell_heard.is_none() && self.conn.unacknowledged_message_bytes() == 0 {
            self.farewell_heard = Some(Instant::now());
        }
        match self.farewell_heard {
            Some(heard) => heard.elapsed() > CLOSE_TIME + self.conn.stats().rtt * 4,
            None => farewell.elapsed() > UNHEARD_TIME,
        }
    }

    /// Whether the sender only holds the place of another one.
    fn is_idle(&self) -> bool {
        !self.heard_finished
            && self.entries.is_empty()
            && self.jobs.is_empty()
            && self.active.elapsed() > self.patience
    }

    /// Says something to the sender. If it is gone, or does not listen, the end will be heard where messages are read.
    async fn say(&mut self, message: ToSender) {
        let message = encode(&message);
        let said = self.conn.send_message(&message);
        if tokio::time::timeout(self.patience, said).await.is_err() {
            self.is_unheeded = true;
            self.conn.close(3, "what is said is not listened to");
        }
    }

    async fn on_message(&mut self, message: ToReceiver) -> anyhow::Result<()> {
        match message {
            ToReceiver::Offer { file, meta } => self.on_offer(file, meta).await?,
            ToReceiver::Sum { file, blake3 } => {
                // The first one counts.
                let Some(Entry::Open { wanted: wanted @ None, .. }) = self.entries.get_mut(&file) else {
                    return Ok(());
                };
                *wanted = Some(blake3);
                // A file without blocks has nothing else to set it off.
                self.hash(file);
                self.compare(file).await?;
            }
            ToReceiver::Abort { file, reason } => {
                let reason = format!("the sender gives up: {}", name::show_text(&reason));
                if let Some(Entry::Opening { aborted }) = self.entries.get_mut(&file) {
                    *aborted = Some(reason);
                } else {
                    self.fail(file, reason, false).await?;
                }
            }
            ToReceiver::Finished => self.heard_finished = true,
        }
        Ok(())
    }

    async fn on_offer(&mut self, file: u32, meta: Meta) -> anyhow::Result<()> {
        if self.heard_finished {
            self.conn.close(1, "an offer after the last one");
            anyhow::bail!("the sender offers more after it had finished");
        }
        if self.last_offer.is_some_and(|last| file <= last) {
            self.conn.close(1, "a file's number is not above the one before");
            anyhow::bail!("the sender numbers its files out of order");
        }
        if self.entries.len() >= FILES_UNDER_WAY_MAX {
            self.conn.close(1, "too many files at a time");
            anyhow::bail!("the sender offers too many files at a time");
        }
        self.last_offer = Some(file);
        self.entries.insert(file, Entry::Opening { aborted: None });
        let (dir, sink, conn) = (self.dir.clone(), self.sink.clone(), self.conn.clone());
        self.jobs.spawn(begin(dir, sink, conn, self.ends.subscribe(), file, meta));
        Ok(())
    }

    async fn on_job(&mut self, job: Job) -> anyhow::Result<()> {
        match job {
            Job::Opened(file, opened) => self.on_opened(file, opened).await?,
            Job::Hashed(file, Ok(digest)) => {
                let Some(Entry::Open { found, hashing, .. }) = self.entries.get_mut(&file) else {
                    return Ok(());
                };
                let is_again = std::mem::replace(hashing, Hashing::Idle) == Hashing::Again;
                if digest.is_some() {
                    *found = digest;
                    self.compare(file).await?;
                } else if is_again {
                    self.hash(file);
                }
            }
            Job::Hashed(file, Err(error)) => {
                self.fail(file, format!("cannot read the file back: {error}"), false).await?;
            }
            Job::Finished(file, Ok(())) => self.done(file).await,
            Job::Finished(file, Err(reason)) => self.fail(file, reason, false).await?,
            // A file that is complete has its room.
            Job::Room(file, Err(error)) if matches!(self.entries.get(&file), Some(Entry::Open { .. })) => {
                self.fail(file, format!("cannot write the file: {error}"), false).await?;
            }
            Job::Room(..) => {}
            Job::Saved => self.is_saving = false,
        }
        Ok(())
    }

    async fn on_opened(&mut self, file: u32, opened: Result<Arc<PartFile>, Declined>) -> anyhow::Result<()> {
        // It stays until now, and its number is its alone.
        let Some(Entry::Opening { aborted }) = self.entries.remove(&file) else { return Ok(()) };
        match (opened, aborted) {
            (Ok(part), None) => self.accept(file, part).await,
            (Ok(part), Some(reason)) => self.end_failed(file, part, reason, false).await?,
            (Err(Declined { meta, why }), _) => {
                self.failed += 1;
                self.progress.say(&format!("{}: declined: {why}", name::show(&meta.name)));
                self.tell_json(&meta, 0, Some(&why), true);
                self.say_ended(file, Ending::Declined { reason: clip(why) }).await;
            }
        }
        Ok(())
    }

    async fn accept(&mut self, file: u32, part: Arc<PartFile>) {
        let have = part.have();
        self.inbound.files.write().unwrap_or_else(PoisonError::into_inner).insert(file, part.clone());
        self.entries.insert(file, Entry::Open { part, wanted: None, found: None, hashing: Hashing::Idle });
        self.say(ToSender::Accept { file, have }).await;
        self.start(file);
    }

    /// Tells of an accepted file, takes its room and hashes what is there of it, once the sender is sure to be there.
    fn start(&mut self, file: u32) {
        let Some(Entry::Open { part, .. }) = self.entries.get(&file).filter(|_| self.is_confirmed) else {
            return;
        };
        let part = part.clone();
        let there = part.bytes_there();
        self.progress.add_total(part.meta().size);
        self.progress.skip(there);
        let shown = name::show(&part.meta().name);
        match there {
            0 => self.progress.say(&format!("{shown}: {} bytes", part.meta().size)),
            _ => self.progress.say(&format!("{shown}: {} bytes, {there} are there", part.meta().size)),
        }
        self.jobs.spawn_blocking(move || Job::Room(file, part.take_room()));
        self.hash(file);
    }

    /// Hashes what has come together, on the side.
    fn hash(&mut self, file: u32) {
        let Some(Entry::Open { part, hashing, .. }) = self.entries.get_mut(&file) else { return };
        if *hashing == Hashing::Idle {
            *hashing = Hashing::UnderWay;
            let part = part.clone();
            self.jobs.spawn_blocking(move || Job::Hashed(file, part.hash_some()));
        } else {
            *hashing = Hashing::Again;
        }
    }

    /// Places the file once both sums are known and the same.
    async fn compare(&mut self, file: u32) -> anyhow::Result<()> {
        let Some(Entry::Open { part, wanted: Some(wanted), found: Some(found), .. }) =
            self.entries.get(&file)
        else {
            return Ok(());
        };
        if wanted != found {
            let reason = "its hash is not the sender's: the file changed while it was sent, or since an \
                          earlier attempt; what had arrived was removed, send it again";
            return self.fail(file, reason.to_owned(), true).await;
        }
        let part = part.clone();
        self.entries.insert(file, Entry::Finishing(part.clone()));
        self.jobs.spawn_blocking(move || Job::Finished(file, part.finish()));
        Ok(())
    }

    async fn done(&mut self, file: u32) {
        self.forget_blocks(file);
        let Some(Entry::Finishing(part)) = self.entries.remove(&file) else { return };
        self.received += 1;
        self.progress.say(&format!("{}: received, verified", name::show(&part.meta().name)));
        self.tell_json(part.meta(), part.meta().size, None, false);
        self.say_ended(file, Ending::Done).await;
    }

    /// Ends a file for a reason; `wrong` if what is there is of no use.
    async fn fail(&mut self, file: u32, reason: String, wrong: bool) -> anyhow::Result<()> {
        let part = match self.entries.get(&file) {
            Some(Entry::Open { part, .. } | Entry::Finishing(part)) => part.clone(),
            Some(Entry::Opening { .. }) | None => return Ok(()),
        };
        self.entries.remove(&file);
        self.end_failed(file, part, reason, wrong).await
    }

    async fn end_failed(
        &mut self,
        file: u32,
        part: Arc<PartFile>,
        reason: String,
        wrong: bool,
    ) -> anyhow::Result<()> {
        self.forget_blocks(file);
        // What goes on beside it ends soon.
        part.abandon();
        self.failed += 1;
        self.progress.say(&format!("{}: {reason}", name::show(&part.meta().name)));
        self.tell_json(part.meta(), if wrong { 0 } else { part.bytes_there() }, Some(&reason), false);
        let sink = self.sink.clone();
        let leave = move || {
            if wrong {
                part.discard();
            } else {
                sink.behind.settle();
                part.leave();
            }
        };
        tokio::task::spawn_blocking(leave).await.context("a task failed")?;
        self.say_ended(file, Ending::Failed { reason: clip(reason) }).await;
        Ok(())
    }

    /// Tells what became of a file that is no entry any more, and takes leave in the same breath if it was the last.
    async fn say_ended(&mut self, file: u32, how: Ending) {
        self.active = Instant::now();
        let last = self.is_last_word();
        self.say(ToSender::Ended { file, how, last }).await;
    }

    fn forget_blocks(&self, file: u32) {
        self.inbound.files.write().unwrap_or_else(PoisonError::into_inner).remove(&file);
    }

    /// Tells programs what became of a file, and how much of it is there.
    fn tell_json(&self, meta: &Meta, bytes: u64, error: Option<&str>, declined: bool) {
        if self.json {
            print_json(&serde_json::json!({
                "event": "file", "name": name::show(&meta.name), "size": meta.size, "bytes": bytes,
                "ok": error.is_none(), "error": error, "declined": declined,
            }));
        }
    }

    /// As [`Session::save`], if so much has arrived since that it would be a pity.
    fn save_if_much(&mut self) {
        let open = self.entries.values().filter_map(Entry::open);
        let part = open.map(|part| part.meta().size).fold(0, u64::saturating_add) / SAVE_PART;
        if self.bytes() >= self.saved.saturating_add(part.max(SAVE_BYTES)) {
            self.save();
        }
    }

    /// Writes down what has arrived, on the side.
    fn save(&mut self) {
        let parts: Vec<_> = self.entries.values().filter_map(Entry::open).cloned().collect();
        if parts.is_empty() || self.is_saving {
            return;
        }
        self.is_saving = true;
        self.saved = self.bytes();
        self.jobs.spawn_blocking(move || {
            for part in parts {
                if let Err(error) = part.save_map() {
                    tracing::warn!(%error, "what has arrived could not be written down");
                }
            }
            Job::Saved
        });
    }

    /// Leaves files that did not get to their end for another time, those too that were opened `late`, for
    /// entries that still wait for it or that are given up; how many entries.
    async fn keep_unfinished(&mut self, late: Vec<Arc<PartFile>>) -> usize {
        self.inbound.files.write().unwrap_or_else(PoisonError::into_inner).clear();
        let count = self.entries.len();
        let mut parts = late;
        parts.extend(self.entries.drain().filter_map(|(_, entry)| match entry {
            Entry::Opening { .. } => None,
            Entry::Open { part, .. } | Entry::Finishing(part) => Some(part),
        }));
        let sink = self.sink.clone();
        let keep = move || {
            sink.behind.settle();
            parts.iter().for_each(|part| part.leave());
        };
        let _ = tokio::task::spawn_blocking(keep).await;
        count
    }
}

/// Begins a file, once nobody else is at it, unless the session ends first. What was offered early and would disturb
/// anything is begun when it is confirmed.
async fn begin(
    dir: Arc<OutDir>,
    sink: Arc<Sink>,
    conn: Connection,
    mut ends: watch::Receiver<()>,
    file: u32,
    meta: Meta,
) -> Job {
    let until = Instant::now() + BUSY_TIME;
    let declined = |why: String| Job::Opened(file, Err(Declined { meta: meta.clone(), why }));
    let has_ended = || declined("the session has ended".into());
    loop {
        // Before it looks, so that nothing is missed in between.
        let freed = dir.freed();
        let (there, again) = (dir.clone(), meta.clone());
        let sure = conn.is_confirmed();
        let begun = tokio::task::spawn_blocking(move || PartFile::begin(&there, again, sure)).await;
        match begun {
            Ok(Err(CannotBegin::Unsure | CannotBegin::Busy)) if !sure => {
                if conn.confirmed().await.is_err() {
                    return has_ended();
                }
            }
            Ok(Ok(part)) => return Job::Opened(file, Ok(Arc::new(part))),
            Ok(Err(CannotBegin::Busy)) if Instant::now() < until => {
                sink.evict(&meta.name);
                tokio::select! {
                    () = freed => {}
                    () = tokio::time::sleep(BUSY_LOOK) => {}
                    _ = ends.changed() => return has_ended(),
                }
            }
            Ok(Err(why)) => return declined(why.to_string()),
            Err(error) => return declined(error.to_string()),
        }
    }
}

impl Entry {
    fn open(&self) -> Option<&Arc<PartFile>> {
        match self {
            Self::Open { part, .. } => Some(part),
            Self::Opening { .. } | Self::Finishing(_) => None,
        }
    }
}

#[cfg(test)]
#[path = "recv_tests.rs"]
mod tests;
