//! One synchronization job on one agent: the task that wakes for connections, messages, blocks, the folder and time, tells
//! the machine, and carries out what that asks for. It runs on a thread of its own, for the machine reads its index from
//! disk.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use agent_proto::link::Progress;
use event_schema::{AgentId, AnswerGuard, GuardAnswer, ProblemClass, RunAgentState, TransferStats};
use sync_core::sync::{Action, Confirm, Counters, Index, Obstacle, Replica, Row, conflict_copy_of};
use timebase::Instant as CoreInstant;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};
use tracker_proto::{PeerId, SwarmKey};
use utp2::ContextId;
use utp2_tokio::Handle;

use super::SyncJob;
use super::change::Order;
use super::engine::{Engine, Event, Inlet, Job, Reading, Serve, forget_mark};
use super::link::{Link, Net};
use super::reaching::Reaching;
use super::scout::Ask;
use super::serve::{Arrived, Blocks};
use super::status::SyncStatus;
use super::store::Waiting;
use super::told::{BLOCKED_KNOWN, Teller, progress};
use crate::discovery::Found;
use crate::run::board::{Board, Reports};
use crate::run::dial::Dialer;
use crate::run::event::{Ending, Wakeup};
use crate::run::limiter::Limited;
use crate::run::limits::{EVENTS_WAITING, STOP_PATIENCE, TELEMETRY};
use crate::run::link::code;
use crate::run::record::RunFolder;
use crate::run::task::Host;
use crate::run::work::problem;

/// What the task takes from its queues before it asks the machine what to do.
const BATCH: usize = 128;

/// Rows in memory, beyond which nothing more is taken from the folder until they are stored: some 20 MB.
const UNSAVED: usize = 20_000;

/// How often the regular duties are due.
const TICK: Duration = Duration::from_millis(500);

/// After something happened both indexes are compared when all is quiet, at most so often, and for a hundredth of the
/// time, which a million files make some minutes: what a watcher missed, or came and went between its looks, nobody else
/// would tell before the next scan.
const COMPARE: Duration = Duration::from_secs(5);
const COMPARE_SHARE: u32 = 100;

/// Where work waits and nothing gets on, the indexes are compared after [`COMPARE`], then ever more rarely up to this:
/// it may wait for what a comparison finds, or for a member that is away for weeks.
const COMPARE_STUCK: Duration = Duration::from_secs(3600);

/// When what was changed is looked at, if nobody else did until then.
const CONFIRM: Duration = Duration::from_millis(500);

/// How often a folder that is not there is looked for.
const REOPEN: Duration = Duration::from_secs(2);

/// How often the archive's limit is looked at.
const TRIM: Duration = Duration::from_secs(3600);

/// Paths to be looked at again later; of more, everything is looked at.
const LATER: usize = 10_000;

/// A member that is connected.
pub(super) struct Peer {
    pub(super) link: Link,
    pub(super) _limited: Option<Limited>,
}

/// Whether work gets on.
struct Stuck {
    /// What was done and what waits, as last seen.
    last: Option<(Counters, Waiting)>,
    /// If nothing gets on until then, it is stuck.
    until: Instant,
    wait: Duration,
}

impl Stuck {
    /// Whether it is time to find out why nothing gets on.
    fn look(&mut self, now: Instant, counters: Counters, waiting: Waiting) -> bool {
        // What is refused again and again is no progress.
        let known = Some((Counters { refusals: 0, refused: 0, ..counters }, waiting));
        if self.last != known {
            *self = Self { last: known, until: now + COMPARE, wait: COMPARE };
            return false;
        }
        let stuck = now >= self.until;
        if stuck {
            self.wait = (2 * self.wait).min(COMPARE_STUCK);
            self.until = now + self.wait;
        }
        stuck
    }
}

/// One synchronization job.
pub(crate) struct SyncTask {
    pub(super) host: Host,
    pub(super) job: SyncJob,
    place: PathBuf,
    folder: RunFolder,
    pub(super) context: ContextId,
    swarm: SwarmKey,
    pub(super) board: Board,
    pub(super) wakeups: mpsc::Sender<Wakeup>,
    woken: mpsc::Receiver<Wakeup>,
    pub(super) to_net: mpsc::Sender<Net>,
    net: mpsc::Receiver<Net>,
    pub(super) blocks: Arc<Blocks>,
    arrivals: mpsc::UnboundedReceiver<Arrived>,
    pub(super) engine: Option<Engine>,
    inlet: Option<Inlet>,
    /// Of the commit that is under way.
    ticket: Option<u64>,
    pub(super) peers: BTreeMap<AgentId, Peer>,
    pub(super) handles: HashMap<Handle, AgentId>,
    pub(super) dialer: Dialer,
    pub(super) reaching: Reaching,
    /// Blocks to be read for peers, and how many are being read.
    pub(super) uploads: VecDeque<Reading>,
    /// Blocks that were sent unasked, in tests.
    pub(super) intruded: u32,
    /// Blocks that are being written, and another copy of one that came meanwhile.
    pub(super) writing: HashMap<(u32, u32), Option<Arrived>>,
    pub(super) reading: usize,
    /// Paths to be looked at again.
    later: BTreeSet<(Instant, Vec<u8>)>,
    /// Paths that were changed here: what becomes of them before the folder's index has seen them, nobody would tell.
    changed: BTreeSet<(Instant, Vec<u8>, u32)>,
    blocked: BTreeMap<Vec<u8>, Obstacle>,
    teller: Teller,
    /// Something happened since both indexes were compared; and when they may be again.
    moved_on: bool,
    next_compare: Instant,
    stuck: Stuck,
    /// Scans of the whole folder that came to their end.
    scans: u64,
    /// When it is known what of what was blocked before is blocked still.
    blocked_known: Option<Instant>,
    /// The rules were changed while the folder was closed.
    recheck: bool,
    /// An answer to the guard that waits for the folder.
    answer: Option<AnswerGuard>,
    next_telemetry: Instant,
    pub(super) bytes_sent: u64,
    trouble: Option<String>,
    epoch: Instant,
    next_tick: Instant,
    next_open: Instant,
    next_trim: Instant,
}

impl SyncTask {
    /// Prepares a job; [`Self::run`] begins it.
    ///
    /// # Errors
    /// If the agent's own folder for the run cannot be made.
    pub(crate) fn new(
        host: Host,
        job: SyncJob,
        place: PathBuf,
        (context, swarm): (ContextId, SwarmKey),
        board: Board,
        wakeups: mpsc::Sender<Wakeup>,
        woken: mpsc::Receiver<Wakeup>,
    ) -> std::io::Result<(Self, Arc<Blocks>)> {
        let folder = RunFolder::open(&host.data, job.run)?;
        let (blocks, arrivals) = Blocks::new();
        let (to_net, net) = mpsc::channel(EVENTS_WAITING);
        let now = Instant::now();
        let dialer = Dialer::new(now, host.me, addresses(&job));
        host.members.add_keys(context, job.members.iter().map(|m| (m.agent, m.key)));
        let reports = Reports::start(job.run, host.reporter.clone(), board.clone());
        let teller = Teller::new(job.run, folder.clone(), reports);
        let task = Self {
            host,
            job,
            place,
            folder,
            context,
            board,
            wakeups,
            woken,
            to_net,
            net,
            blocks: blocks.clone(),
            arrivals,
            engine: None,
            inlet: None,
            ticket: None,
            peers: BTreeMap::new(),
            handles: HashMap::new(),
            dialer,
            reaching: Reaching::new(swarm.clone()),
            swarm,
            uploads: VecDeque::new(),
            writing: HashMap::new(),
            intruded: 0,
            reading: 0,
            later: BTreeSet::new(),
            changed: BTreeSet::new(),
            blocked: BTreeMap::new(),
            teller,
            moved_on: false,
            next_compare: now,
            stuck: Stuck { last: None, until: now, wait: COMPARE },
            scans: 0,
            blocked_known: None,
            recheck: false,
            answer: None,
            next_telemetry: now,
            bytes_sent: 0,
            trouble: None,
            epoch: now,
            next_tick: now,
            next_open: now,
            next_trim: now + TRIM,
        };
        Ok((task, blocks))
    }

    /// Runs until it is told to end.
    pub(crate) async fn run(mut self, found: Option<mpsc::Receiver<Found>>) {
        let mut found = found.unwrap_or_else(|| mpsc::channel(1).1);
        let swarm = self.swarm.clone();
        let pseudonyms = |job: &SyncJob| -> HashMap<PeerId, AgentId> {
            job.members.iter().map(|m| (swarm.peer_id(&m.agent.0), m.agent)).collect()
        };
        let mut known = pseudonyms(&self.job);
        let (ending, done) = loop {
            self.drive();
            let due = self.next_due();
            let room = self.has_room();
            let (events, commits) = match &mut self.inlet {
                Some(Inlet { events, commits }) => (Some(events), Some(commits)),
                None => (None, None),
            };
            let woken = tokio::select! {
                woken = self.woken.recv() => woken,
                Some(result) = next_commit(commits) => {
                    self.committed(result);
                    None
                }
                Some(event) = next_event(events), if room => {
                    self.take_event(event);
                    None
                }
                Some(arrived) = self.arrivals.recv() => {
                    self.take_block(arrived);
                    None
                }
                Some(net) = self.net.recv() => {
                    self.take_net(net);
                    None
                }
                Some(hint) = found.recv() => {
                    if let Some(&agent) = known.get(&hint.peer) {
                        self.take_hint(agent, hint);
                    }
                    None
                }
                () = sleep_until(due) => {
                    self.handle_time();
                    None
                }
            };
            let ended = woken.and_then(|woken| self.take(woken)).or_else(|| self.take_waiting());
            if let Some(end) = ended {
                break end;
            }
            if known.len() != self.job.members.len() {
                known = pseudonyms(&self.job);
            }
        };
        drop(found);
        self.end(ending).await;
        // Whoever asked may have given up waiting.
        let _ = done.send(());
    }

    /// Takes what has come together meanwhile.
    fn take_waiting(&mut self) -> Option<(Ending, oneshot::Sender<()>)> {
        for _ in 0..BATCH {
            let room = self.has_room();
            let event = self.inlet.as_mut().filter(|_| room).and_then(|inlet| inlet.events.try_recv().ok());
            let arrived = self.arrivals.try_recv().ok();
            let net = self.net.try_recv().ok();
            let woken = self.woken.try_recv().ok();
            if event.is_none() && arrived.is_none() && net.is_none() && woken.is_none() {
                break;
            }
            event.into_iter().for_each(|event| self.take_event(event));
            arrived.into_iter().for_each(|arrived| self.take_block(arrived));
            net.into_iter().for_each(|net| self.take_net(net));
            if let Some(end) = woken.and_then(|woken| self.take(woken)) {
                return Some(end);
            }
        }
        None
    }

    fn take(&mut self, woken: Wakeup) -> Option<(Ending, oneshot::Sender<()>)> {
        match woken {
            Wakeup::End(ending, done) => return Some((ending, done)),
            Wakeup::Incoming(conn) => self.adopt(conn),
            Wakeup::Called(agent, conn) => {
                self.dialer.ended(Instant::now(), agent, conn.is_some());
                conn.into_iter().for_each(|conn| self.adopt(conn));
            }
            Wakeup::Met(agent, met) => self.take_met(agent, met),
            Wakeup::Closed(agent, handle) => self.drop_peer(agent, handle),
            Wakeup::Network => self.dialer.begin_anew(Instant::now()),
            Wakeup::Job(job) => self.change_job(*job),
            Wakeup::Answer(answer) => self.answer(answer),
            // Of runs that are not synchronization.
            _ => {}
        }
        None
    }

    fn now(&self) -> CoreInstant {
        let micros = self.epoch.elapsed().as_micros();
        CoreInstant::from_micros(u64::try_from(micros).unwrap_or(u64::MAX))
    }

    /// Calls the machine, if it runs.
    pub(super) fn with(&mut self, call: impl FnOnce(&mut Replica, CoreInstant, &mut dyn Index)) {
        let now = self.now();
        if let Some(engine) = &mut self.engine {
            call(&mut engine.replica, now, &mut engine.store);
        }
    }

    /// Whether more may be told of the folder: what is told is kept in memory until it is stored.
    fn has_room(&self) -> bool {
        self.engine.as_ref().is_some_and(|engine| engine.store.unsaved() < UNSAVED)
    }

    fn next_due(&self) -> Instant {
        let machine = self.engine.as_ref().and_then(|engine| engine.replica.poll_timeout());
        // Far away is never.
        let limit = Duration::from_secs(3600);
        let at = |core: CoreInstant| {
            let after = core.saturating_since(self.now()).min(limit);
            Instant::now() + after
        };
        let mut due = machine.map_or(self.next_tick, |core| at(core).min(self.next_tick));
        let changed = self.changed.first().map(|(at, ..)| *at);
        for first in self.later.first().map(|(at, _)| *at).into_iter().chain(changed) {
            due = due.min(first);
        }
        due
    }

    fn handle_time(&mut self) {
        let (core, now) = (self.now(), Instant::now());
        if self.engine.as_ref().is_some_and(|e| e.replica.poll_timeout().is_some_and(|at| at <= core)) {
            self.with(|r, now, index| r.handle_timeout(now, index));
        }
        while self.changed.first().is_some_and(|(at, ..)| *at <= now) {
            let Some((_, path, tries)) = self.changed.pop_first() else { break };
            if let Some(engine) = &self.engine {
                let row = engine.store.row(&path);
                let settled =
                    row.as_ref().and_then(Row::present).map(|here| here.stamp).filter(|s| s.settled);
                engine.ask(Ask::Peek(path, settled, tries));
            }
        }
        while self.later.first().is_some_and(|(at, _)| *at <= now) {
            let Some((_, path)) = self.later.pop_first() else { break };
            if let Some(engine) = &self.engine {
                engine.ask(Ask::Look(path));
            }
        }
        if now >= self.next_tick {
            self.next_tick = now + TICK;
            self.tick(now);
        }
    }

    fn tick(&mut self, now: Instant) {
        if self.engine.is_none() && now >= self.next_open {
            self.open(now);
        }
        if self.engine.as_ref().is_some_and(|engine| !engine.is_there()) {
            self.close("the folder is not there any more".into());
        }
        if self.engine.is_some() {
            self.call_members(now);
            self.reach_members(now);
        }
        self.blocks.sweep();
        if now >= self.next_trim {
            self.next_trim = now + TRIM;
            self.engine.iter().for_each(|engine| engine.ask(Ask::Trim));
        }
        if self.blocked_known.is_some_and(|at| at <= now) {
            self.blocked_known = None;
            self.teller.blocked_known();
        }
        self.refresh_board(now);
    }

    // --- the folder ---

    fn open(&mut self, now: Instant) {
        self.next_open = now + REOPEN;
        match Engine::open(&self.host, &self.job, &self.place, self.folder.path(), self.now()) {
            Ok((engine, inlet)) => {
                tracing::info!(run = %self.job.run, folder = %self.place.display(), "synchronizing");
                self.host.known.note(&self.place);
                self.blocks.set_stages(Some(engine.stages.clone()));
                (self.engine, self.inlet, self.trouble) = (Some(engine), Some(inlet), None);
                self.blocked_known = Some(now + BLOCKED_KNOWN);
                self.teller.synchronizing();
                if std::mem::take(&mut self.recheck)
                    && let Some(policy) = self.engine.as_ref().map(Engine::policy)
                {
                    self.with(|r, now, index| r.handle_policy(now, index, policy));
                }
                if let Some(answer) = self.answer.take() {
                    self.answer(answer);
                }
            }
            Err(error) => {
                let text = error.to_string();
                if self.trouble.as_ref() != Some(&text) {
                    tracing::warn!(run = %self.job.run, folder = %self.place.display(), "{text}");
                }
                self.trouble = Some(text);
            }
        }
    }

    /// The folder, or the index, is of no use any more: begins anew when it is there again.
    fn close(&mut self, why: String) {
        tracing::warn!(run = %self.job.run, folder = %self.place.display(), "{why}");
        self.trouble = Some(why);
        self.next_open = Instant::now() + REOPEN;
        for peer in self.peers.values() {
            peer.link.close(code::GOING, "the folder is not there");
        }
        let gone: Vec<(AgentId, Handle)> = self.peers.iter().map(|(a, p)| (*a, p.link.handle())).collect();
        gone.into_iter().for_each(|(agent, handle)| self.drop_peer(agent, handle));
        self.blocks.set_stages(None);
        self.ticket = None;
        self.later.clear();
        self.changed.clear();
        self.blocked.clear();
        self.uploads.clear();
        self.writing.clear();
        self.reading = 0;
        if let (Some(engine), Some(inlet)) = (self.engine.take(), self.inlet.take()) {
            engine.close(inlet);
        }
    }

    fn committed(&mut self, result: Result<(), String>) {
        let Some(engine) = &mut self.engine else { return };
        match engine.store.committed(result) {
            Ok(()) => {
                if let Some(ticket) = self.ticket.take() {
                    self.with(|r, now, index| r.handle_synced(now, index, ticket));
                }
            }
            Err(why) => self.close(format!("the index: {why}")),
        }
    }

    fn take_event(&mut self, event: Event) {
        match event {
            Event::Found { path, value, stamp } => {
                self.moved_on |= self.engine.as_ref().is_some_and(|engine| engine.compared);
                self.with(|r, now, index| r.handle_found(now, index, &path, value, stamp));
            }
            Event::Gone { path } => {
                let there =
                    |engine: &Engine| engine.store.row(&path).is_some_and(|row| row.present().is_some());
                if conflict_copy_of(&path).is_some() && self.engine.as_ref().is_some_and(there) {
                    self.teller.gone(&path);
                }
                self.with(|r, now, index| r.handle_gone(now, index, &path));
            }
            Event::Again { path, after } => {
                if self.later.len() < LATER {
                    self.later.insert((Instant::now() + after, path));
                } else if let Some(keeper) = self.engine.as_ref().and_then(|e| e.keeper.as_ref()) {
                    keeper.rescan();
                }
            }
            Event::Unseen { path, tries } => {
                // Where nothing is watched that takes until the next scan.
                let at = Instant::now() + CONFIRM * (1 << tries.min(6));
                self.changed.insert((at, path, tries));
            }
            Event::Rules => self.reload_rules(),
            Event::Compare => self.engine.iter().for_each(|engine| engine.ask(Ask::Compare)),
            Event::Compared(took) => {
                self.next_compare = Instant::now() + COMPARE.max(took * COMPARE_SHARE);
                if let Some(engine) = &mut self.engine {
                    engine.compared = true;
                }
            }
            Event::FolderGone => self.close("the folder is not there any more".into()),
            Event::Changed { change, outcome, paths } => {
                self.moved_on = true;
                let at = Instant::now() + CONFIRM;
                self.changed.extend(paths.into_iter().map(|path| (at, path, 0)));
                self.with(|r, now, index| r.handle_changed(now, index, change, outcome));
            }
            Event::Reused { transfer, found } => {
                self.with(|r, now, index| r.handle_reused(now, index, transfer, &found));
            }
            Event::Unstaged { transfer } => {
                self.with(|r, now, index| r.handle_unstaged(now, index, transfer));
            }
            Event::Written { handle, transfer, block, hash } => {
                self.block_written(handle, (transfer, block), &hash);
            }
            Event::Read { peer, data } => self.send_block(peer, data),
            Event::Answered { agent, handle, message } => {
                if self.is_present(agent, handle)
                    && let Some(peer) = self.peers.get(&agent)
                {
                    peer.link.send(&message, true);
                }
            }
            Event::Trouble(text) => {
                self.trouble = Some(text.clone());
                self.teller.problem(problem(ProblemClass::Io, text));
            }
        }
    }

    fn reload_rules(&mut self) {
        let Some(engine) = &mut self.engine else { return };
        if engine.reload_rules(&self.job) {
            let policy = engine.policy();
            // What was left out before may be here.
            engine.ask(Ask::Compare);
            self.with(|r, now, index| r.handle_policy(now, index, policy));
        }
    }

    /// A person's answer to the guard; to another question than the one that is open it is passed over.
    fn answer(&mut self, answer: AnswerGuard) {
        if self.engine.is_none() {
            // It may be to a question that was asked before the folder went.
            self.answer = Some(answer);
            return;
        }
        if self.teller.question() != Some(answer.guard) {
            tracing::info!(run = %self.job.run, guard = answer.guard, "an answer to a question that is not open");
            return;
        }
        let confirm = match answer.answer {
            GuardAnswer::Delete => Confirm::Delete,
            GuardAnswer::Restore => Confirm::Restore,
        };
        self.with(|r, now, index| r.handle_confirm(now, index, confirm));
        self.teller.guard_lifted(Some(confirm));
    }

    fn change_job(&mut self, job: SyncJob) {
        let context = self.context;
        self.host.members.add_keys(context, job.members.iter().map(|m| (m.agent, m.key)));
        self.dialer = Dialer::new(Instant::now(), self.host.me, addresses(&job));
        let rules = job.selection != self.job.selection;
        let policy = (job.local_changes, job.keep, job.guard)
            != (self.job.local_changes, self.job.keep, self.job.guard);
        self.job = job;
        let members = self.job.members_for_machine();
        self.with(|r, now, index| r.handle_members(now, index, &members));
        if rules || policy {
            // What the scans leave out, and what the machine was begun with, is another.
            self.close("the job is another now".into());
            self.next_open = Instant::now();
            self.next_tick = Instant::now();
            self.recheck = rules;
        }
    }

    // --- what the machine wants ---

    fn drive(&mut self) {
        while let Some(action) = self.engine.as_mut().and_then(|engine| engine.replica.poll_action()) {
            self.act(action);
        }
        self.pump();
        if let Some(why) = self.engine.as_ref().and_then(|engine| engine.store.failure()) {
            let why = format!("the index: {why}");
            self.close(why);
        }
    }

    fn act(&mut self, action: Action) {
        let Some(engine) = &mut self.engine else { return };
        match action {
            Action::Sync { ticket } => {
                self.ticket = Some(ticket);
                engine.store.commit();
            }
            Action::Send { peer, message } => {
                if let Some(p) = self.peers.get(&peer) {
                    p.link.send(&message, false);
                }
            }
            Action::Disconnect { peer } => {
                if let Some(p) = self.peers.get(&peer) {
                    p.link.close(code::BROKEN, "broke the rules");
                    let handle = p.link.handle();
                    self.drop_peer(peer, handle);
                }
            }
            Action::Stage { transfer, path, root, size, from } => {
                engine.work(Job::Stage { transfer, path, root, size, from });
            }
            Action::Reuse { transfer, first, hashes } => engine.work(Job::Reuse { transfer, first, hashes }),
            Action::Search { transfer, sought } => engine.work(Job::Search { transfer, sought }),
            Action::Drop { transfer } => {
                self.writing.retain(|(of, _), _| *of != transfer);
                engine.work(Job::End(transfer));
            }
            Action::Upload { peer, transfer, path, root, size, block } => {
                if let Some(p) = self.peers.get(&peer) {
                    let handle = p.link.handle();
                    self.uploads.push_back(Reading {
                        agent: peer,
                        handle,
                        transfer,
                        path,
                        root,
                        size,
                        block,
                    });
                }
            }
            Action::UploadHashes { peer, transfer, path, root, size, page } => {
                if let Some(p) = self.peers.get(&peer) {
                    let handle = p.link.handle();
                    engine.serve(Serve::Hashes { agent: peer, handle, transfer, path, root, size, page });
                }
            }
            Action::Change { change, path, expected, displaced, make } => {
                engine.work(Job::Change(Order { change, path, expected, displaced, make }));
            }
            Action::Look { path } => engine.ask(Ask::Look(path)),
            Action::Conflict { path, copy, loser, winner } => {
                tracing::info!(
                    run = %self.job.run, path = %path.escape_ascii(), copy = %copy.escape_ascii(), %loser, %winner,
                    "two changed it at the same time; one of them is kept beside"
                );
                self.teller.conflict(&path, &copy, loser, winner);
            }
            Action::Blocked { path, why } => {
                tracing::warn!(run = %self.job.run, path = %path.escape_ascii(), ?why, "cannot be here");
                self.teller.blocked(&path, &why);
                self.blocked.insert(path, why);
            }
            Action::Unblocked { path } => {
                self.blocked.remove(&path);
                self.teller.unblocked(&path);
            }
            Action::Guard { missing, total } => {
                tracing::warn!(
                    run = %self.job.run, missing, total,
                    "so much is gone at once that nothing is told until somebody says whether it was meant"
                );
                self.teller.guard(missing, total);
            }
            Action::GuardLifted => {
                tracing::info!(run = %self.job.run, "what was gone is back");
                self.teller.guard_lifted(None);
            }
            Action::RolledBack => {
                tracing::warn!(run = %self.job.run, "the index is an older copy of itself; going on as a new replica");
                self.teller.rolled_back();
            }
            Action::Misbehaved { peer, what } => {
                tracing::warn!(run = %self.job.run, %peer, ?what, "a member misbehaves");
            }
        }
    }

    // --- what is shown ---

    fn refresh_board(&mut self, now: Instant) {
        let mut status = SyncStatus { trouble: self.trouble.clone(), ..SyncStatus::default() };
        let (mut done, mut waiting) = (Counters::default(), Waiting::default());
        let state = match &self.engine {
            None => "waiting for the folder",
            Some(engine) => {
                (done, waiting) = (*engine.replica.counters(), engine.store.waiting());
                status.count(waiting, &done);
                status.list(&engine.store.copies(), &self.blocked);
                (status.entries, status.missing) = engine.replica.entries();
                status.guarded = engine.replica.is_guarded();
                status.bytes_left = engine.store.bytes_left();
                if let Some(keeper) = &engine.keeper {
                    let keeper = keeper.status();
                    (status.watched, status.unwatched) = (keeper.watched, keeper.unwatched);
                    if std::mem::replace(&mut self.scans, keeper.scans) != keeper.scans {
                        // What came and went between two scans, nobody else tells.
                        engine.ask(Ask::Compare);
                    }
                    if let Some(suspicion) = &keeper.suspicion {
                        status.trouble = Some(suspicion.to_string());
                    }
                }
                let busy = waiting.pull + waiting.remove + waiting.missing > 0 || !engine.replica.is_idle();
                match (engine.compared, status.guarded, busy) {
                    (_, true, _) => "guarded",
                    (false, ..) => "indexing",
                    (.., true) => "synchronizing",
                    (.., false) => "in sync",
                }
            }
        };
        if status.guarded && self.teller.question().is_none() {
            // Raised in an earlier life, and what was told of it lost.
            self.teller.guard(status.missing, status.entries);
        }
        if now >= self.next_telemetry {
            self.next_telemetry = now + 2 * TELEMETRY;
            let sync = Some(progress(state, &status));
            let stats = match self.reaching.is_to_be_shown(now) {
                true => self.board.whole_progress(RunAgentState::Synchronizing, None),
                false => self.board.progress(RunAgentState::Synchronizing),
            };
            let peers = u32::try_from(self.peers.len()).unwrap_or(u32::MAX);
            self.host.reporter.progress(Progress { sync, peers, entries: status.entries, ..stats });
        }
        if state == "synchronizing" {
            self.moved_on = true;
            if now >= self.next_compare && self.stuck.look(now, done, waiting) {
                self.next_compare = now + COMPARE;
                self.engine.iter().for_each(|engine| engine.ask(Ask::Compare));
            }
        } else if state == "in sync" && self.moved_on && now >= self.next_compare {
            self.moved_on = false;
            self.next_compare = now + COMPARE;
            self.engine.iter().for_each(|engine| engine.ask(Ask::Compare));
        }
        let mut board = self.board.lock();
        board.state = state;
        board.entries = status.entries;
        board.peers = u32::try_from(self.peers.len()).unwrap_or(u32::MAX);
        board.stats.bytes_sent = self.bytes_sent;
        board.sync = Some(status);
    }

    // --- the end ---

    async fn end(mut self, ending: Ending) {
        for peer in self.peers.values() {
            peer.link.close(code::GOING, "the agent leaves the job");
        }
        self.peers.clear();
        self.host.endpoint.remove_context(self.context);
        self.host.members.remove(self.context);
        self.woken.close();
        self.blocks.set_stages(None);
        if let (Some(engine), Some(inlet)) = (self.engine.take(), self.inlet.take()) {
            self.save_and_close(engine, inlet, ending).await;
        }
        if ending != Ending::Shutdown {
            let stats = TransferStats { bytes_sent: self.bytes_sent, ..TransferStats::default() };
            self.teller.served(stats);
        }
        self.teller.flush().await;
        if ending != Ending::Shutdown {
            self.folder.remove();
        }
    }

    async fn save_and_close(&self, mut engine: Engine, mut inlet: Inlet, ending: Ending) {
        // What is known saves looking after the next start; what is lost is found again.
        let save = async {
            let mut under_way = self.ticket.is_some();
            while under_way || engine.store.unsaved() > 0 {
                if !under_way {
                    engine.store.commit();
                }
                under_way = false;
                let Some(result) = inlet.commits.recv().await else { return };
                if engine.store.committed(result).is_err() {
                    return;
                }
            }
        };
        if timeout(STOP_PATIENCE, save).await.is_err() {
            tracing::warn!(run = %self.job.run, "the index could not be stored in time");
        }
        let stages = engine.close(inlet);
        if ending != Ending::Shutdown {
            stages.remove_all();
            drop(stages);
            forget_mark(&self.place, &self.job);
        }
    }
}

async fn next_event(events: Option<&mut mpsc::Receiver<Event>>) -> Option<Event> {
    events?.recv().await
}

async fn next_commit(
    commits: Option<&mut mpsc::UnboundedReceiver<Result<(), String>>>,
) -> Option<Result<(), String>> {
    commits?.recv().await
}

fn addresses(job: &SyncJob) -> impl Iterator<Item = (AgentId, Vec<SocketAddr>)> {
    job.members.iter().map(|m| (m.agent, m.addresses.iter().filter_map(|a| a.parse().ok()).collect()))
}
