//! One synchronization job with its folder open: the machine, its index, and the threads that work for it.
//!
//! The task that owns it calls the machine and carries out what that asks for (`task.rs`); what touches the folder is
//! done by threads, and told as [`Event`]s.

use std::path::Path;
use std::sync::{Arc, RwLock, mpsc as std_mpsc};
use std::thread::JoinHandle;

use agent_proto::sync::{SyncMessage, Value, WEAK_PAGE};
use event_schema::AgentId;
use folder_index::{GuardConfig, Keeper, KeeperConfig};
use sync_core::merkle::Hash;
use sync_core::sync::{Config, KeyNotary, Outcome, Policy, Replica, Stamp};
use timebase::Instant as CoreInstant;
use tokio::sync::mpsc;
use utp2_tokio::Handle;

use super::SyncJob;
use super::attic::Attic;
use super::change::{Changer, Order};
use super::meta::Metadata;
use super::scout::{Ask, Chosen, Rules, Scout, read_rules};
use super::serve::{Arrived, Server, Weak};
use super::stage::Stages;
use super::store::{Fold, Store, StoreError};
use super::tree::{Tree, TreeError, stage_path, stat_at};
use crate::memory::share;
use crate::run::queue::Queue;
use crate::run::task::Host;

/// Threads that change the folder and write what arrives.
const WRITERS: usize = 3;

/// Jobs that a thread takes at a time: the changes among them are made durable together.
const JOBS: usize = 64;

/// Events that wait for the task; threads that bring more wait.
const EVENTS: usize = 1024;

/// Something that the task is told by a thread.
#[derive(Debug)]
pub(super) enum Event {
    /// This is at a path.
    Found { path: Vec<u8>, value: Value, stamp: Stamp },
    /// Nothing is at a path.
    Gone { path: Vec<u8> },
    /// A path is to be looked at again.
    Again { path: Vec<u8>, after: std::time::Duration },
    /// The folder's index does not know yet what was changed at a path.
    Unseen { path: Vec<u8>, tries: u32 },
    /// The rules for what is left out may be others.
    Rules,
    /// Both indexes are to be compared.
    Compare,
    /// They are, and that took so long: what is in the folder is known.
    Compared(std::time::Duration),
    /// The folder is not there any more.
    FolderGone,
    /// A change was made, or not.
    Changed { change: u32, outcome: Outcome, paths: Vec<Vec<u8>> },
    /// What was found of a transfer on this agent.
    Reused { transfer: u32, found: Vec<std::ops::Range<u32>> },
    /// Nothing can be kept of a transfer now.
    Unstaged { transfer: u32 },
    /// A block was written and hashed.
    Written { handle: Handle, transfer: u32, block: u32, hash: Hash },
    /// A block was read for a peer, or not.
    Read { peer: Reading, data: Option<Arc<[u8]>> },
    /// Hashes for a peer.
    Answered { agent: AgentId, handle: Handle, message: SyncMessage },
    /// Something does not work; for people.
    Trouble(String),
}

/// A block to be read for a peer.
#[derive(Clone, Debug)]
pub(super) struct Reading {
    pub(super) agent: AgentId,
    pub(super) handle: Handle,
    pub(super) transfer: u32,
    pub(super) path: Vec<u8>,
    pub(super) root: Hash,
    pub(super) size: u64,
    pub(super) block: u32,
}

/// Work on the folder.
pub(super) enum Job {
    Change(Order),
    Stage { transfer: u32, path: Vec<u8>, root: Hash, size: u64, from: Option<Vec<u8>> },
    Reuse { transfer: u32, first: u32, hashes: Vec<Hash> },
    Search { transfer: u32, sought: Vec<(u32, u32, Hash)> },
    End(u32),
    Write(Arrived),
}

/// Reading for others.
pub(super) enum Serve {
    Block(Reading),
    Hashes {
        agent: AgentId,
        handle: Handle,
        transfer: u32,
        path: Vec<u8>,
        root: Hash,
        size: u64,
        page: Option<u32>,
    },
    /// Weak hashes, of which some are there already.
    Weak {
        agent: AgentId,
        handle: Handle,
        weak: Weak,
    },
}

/// Why a job's folder or index cannot be used now.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpenError {
    #[error(transparent)]
    Tree(#[from] TreeError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{0}")]
    System(#[from] std::io::Error),
}

/// See the module.
pub(super) struct Engine {
    pub(super) replica: Replica,
    pub(super) store: Store,
    pub(super) stages: Arc<Stages>,
    pub(super) keeper: Option<Keeper>,
    /// The first comparison of both indexes is done.
    pub(super) compared: bool,
    rules: Rules,
    tree: Arc<Tree>,
    metadata: Arc<Metadata>,
    fold: Fold,
    jobs: Arc<Queue<Job>>,
    searches: Arc<Queue<Job>>,
    serves: Arc<Queue<Serve>>,
    asks: std_mpsc::Sender<Ask>,
    threads: Vec<JoinHandle<()>>,
}

/// What an engine tells its task.
pub(super) struct Inlet {
    pub(super) events: mpsc::Receiver<Event>,
    pub(super) commits: mpsc::UnboundedReceiver<Result<(), String>>,
}

impl Engine {
    /// Opens the folder and the index, and begins to watch. Blocks.
    ///
    /// # Errors
    /// If the folder is not there, or is not the job's, or the index cannot be used. It may be later.
    pub(super) fn open(
        host: &Host,
        job: &SyncJob,
        folder: &Path,
        kept: &Path,
        now: CoreInstant,
    ) -> Result<(Self, Inlet), OpenError> {
        let (events, told) = mpsc::channel(EVENTS);
        let (commits, committed) = mpsc::unbounded_channel();
        let index_path = kept.join("sync.redb");
        let new = !index_path.exists();
        let tree = Arc::new(Tree::open(folder, job.run, new)?);
        let fold = fold_of(&tree);
        let done = move |result| drop(commits.send(result));
        let (mut store, _) = Store::open(&index_path, fold.clone(), done)?;
        let metadata = Arc::new(Metadata::new(tree.root()));
        let rules: Rules = Arc::new(RwLock::new(Arc::new(read_rules(&tree, &job.selection))));
        let stages = Stages::open(tree.clone(), host.catalog.clone()).map_err(TreeError::from)?;
        let stages = Arc::new(stages);
        let clock = host.members.clock().clone();
        let attic = Arc::new(Attic::new(tree.clone(), job.run, job.keep, clock, host.data.clone()));
        let changer = Changer::new(tree.clone(), stages.clone(), metadata.clone(), attic.clone());
        changer.recover().map_err(TreeError::from)?;

        let index = host.catalog.as_ref().and_then(|catalog| {
            let opened = catalog.index(folder);
            opened.inspect_err(|error| tracing::warn!(%error, "a folder is scanned without an index")).ok()
        });
        let (asks, asked) = std_mpsc::channel();
        let scout = Scout {
            tree: tree.clone(),
            index: index.clone(),
            metadata: metadata.clone(),
            rows: store.reader(),
            rules: rules.clone(),
            attic,
            out: events.clone(),
        };
        let mut threads = vec![spawn("sync look", move || scout.run(&asked))?];
        // First what is known, then what the scan finds, which begins at the same time.
        let _ = asks.send(Ask::Compare);
        let keeper = index.clone().map(|index| {
            let asks = asks.clone();
            Keeper::start(index, keeper_config(job), move |_| drop(asks.send(Ask::Changed)))
        });
        let jobs = Queue::new(WRITERS);
        let changer = Arc::new(changer);
        // What takes seconds holds up nothing that somebody waits for.
        let searches = Queue::new(1);
        for queue in std::iter::repeat_n(&jobs, WRITERS).chain([&searches]) {
            let worker = Worker {
                tree: tree.clone(),
                stages: stages.clone(),
                changer: changer.clone(),
                out: events.clone(),
            };
            let queue = queue.clone();
            threads.push(spawn("sync write", move || worker.run(&queue))?);
        }
        let serves = Queue::new(1);
        let (server, queue, out) = (Server::new(tree.clone(), index), serves.clone(), events);
        threads.push(spawn("sync read", move || serve(server, &queue, &out))?);

        let mut config = Config::new(job.run, host.me, host.key.verifying_key().to_bytes(), fresh());
        config.local_changes = job.local_changes;
        (config.guard_percent, config.guard_min) = (u64::from(job.guard.0), u64::from(job.guard.1));
        config.sending_max = share(super::SENDING);
        let policy = Box::new(FolderPolicy::new(&rules, &metadata, &tree, &fold));
        let notary = Box::new(KeyNotary(Box::new(host.key.clone())));
        let replica = Replica::new(now, config, policy, notary, &job.members_for_machine(), &mut store);
        let engine = Self {
            replica,
            store,
            stages,
            keeper,
            compared: false,
            rules,
            tree,
            metadata,
            fold,
            jobs,
            searches,
            serves,
            asks,
            threads,
        };
        Ok((engine, Inlet { events: told, commits: committed }))
    }

    /// Has the folder worked on.
    pub(super) fn work(&self, job: Job) {
        let queue = if matches!(job, Job::Search { .. }) { &self.searches } else { &self.jobs };
        queue.push(job);
    }

    /// Has something read for a peer.
    pub(super) fn serve(&self, serve: Serve) {
        self.serves.push(serve);
    }

    /// Whether the folder is the one that was opened.
    pub(super) fn is_there(&self) -> bool {
        self.tree.is_there()
    }

    /// Asks for something to be looked at.
    pub(super) fn ask(&self, ask: Ask) {
        // The thread ends only with the engine.
        let _ = self.asks.send(ask);
    }

    /// Reads the rules again; true if they are others.
    pub(super) fn reload_rules(&self, job: &SyncJob) -> bool {
        let new = read_rules(&self.tree, &job.selection);
        let mut rules = self.rules.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        let changed = format!("{new:?}") != format!("{:?}", **rules);
        if changed {
            *rules = Arc::new(new);
        }
        changed
    }

    /// The policy that the rules make.
    pub(super) fn policy(&self) -> Box<dyn Policy + Send> {
        Box::new(FolderPolicy::new(&self.rules, &self.metadata, &self.tree, &self.fold))
    }

    /// Ends the threads and waits for them. Nothing more is told; what is under way is finished.
    pub(super) fn close(mut self, inlet: Inlet) -> Arc<Stages> {
        // Whoever waits to tell something hears that nobody listens.
        drop(inlet);
        self.keeper = None;
        self.jobs.close();
        self.searches.close();
        self.serves.close();
        self.asks = std_mpsc::channel().0;
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a synchronization job's thread panicked");
            }
        }
        self.stages.clone()
    }
}

fn fresh() -> u64 {
    // Without randomness an index that was lost would count under its old name; the time is another at least.
    getrandom::u64().unwrap_or_else(|_| crate::clock::now().0)
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name.into()).spawn(body)
}

fn keeper_config(job: &SyncJob) -> KeeperConfig {
    let mut config = KeeperConfig::default();
    config.scan.ignore = job.selection.ignore.clone();
    // How much may go at once is the machine's to ask; a mount that is missing stays the scan's.
    config.scan.guard = GuardConfig { least: u64::MAX, ..GuardConfig::default() };
    config
}

/// How the file system takes names for the same: found out by asking for a name in another case.
fn fold_of(tree: &Tree) -> Fold {
    let probe = b"Case-Probe";
    let stage = tree.stage();
    let mode = rustix::fs::Mode::RWXU;
    let made = rustix::fs::mkdirat(stage, probe.as_slice(), mode);
    let folds = matches!(made, Ok(()) | Err(rustix::io::Errno::EXIST))
        && matches!(stat_at(stage, b"case-probe"), Ok(Some(_)));
    let _ = rustix::fs::unlinkat(stage, probe.as_slice(), rustix::fs::AtFlags::REMOVEDIR);
    match folds {
        true => Arc::new(|path: &[u8]| {
            let folded = std::str::from_utf8(path).map(|text| text.to_lowercase().into_bytes());
            Some(folded.unwrap_or_else(|_| path.to_ascii_lowercase()))
        }),
        false => Arc::new(|_: &[u8]| None),
    }
}

/// What this member wants, and what its file system can name.
struct FolderPolicy {
    rules: Arc<Chosen>,
    metadata: Arc<Metadata>,
    tree: Arc<Tree>,
    fold: Fold,
}

impl FolderPolicy {
    fn new(rules: &Rules, metadata: &Arc<Metadata>, tree: &Arc<Tree>, fold: &Fold) -> Self {
        let rules = rules.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        Self { rules, metadata: metadata.clone(), tree: tree.clone(), fold: fold.clone() }
    }
}

impl Policy for FolderPolicy {
    fn wants(&self, path: &[u8], folder: bool) -> bool {
        self.rules.wants(path, folder)
    }

    fn allows_link(&self, path: &[u8], target: &[u8]) -> bool {
        let is_folder = |path: &[u8]| {
            let stat = self.tree.stat(path).ok().flatten();
            Ok::<_, std::convert::Infallible>(stat.is_some_and(|stat| super::tree::is_folder(&stat)))
        };
        matches!(sync_core::manifest::link_stays_inside(path, target, is_folder), Ok(true))
    }

    fn fold(&self, path: &[u8]) -> Option<Vec<u8>> {
        (self.fold)(path)
    }

    fn same_meta(&self, a: &[u8], b: &[u8]) -> bool {
        self.metadata.same(a, b)
    }
}

/// A thread that works on the folder.
struct Worker {
    tree: Arc<Tree>,
    stages: Arc<Stages>,
    changer: Arc<Changer>,
    out: mpsc::Sender<Event>,
}

impl Worker {
    fn run(&self, queue: &Queue<Job>) {
        while let Some(jobs) = queue.take(JOBS) {
            let mut orders = Vec::new();
            let mut told = true;
            for job in jobs {
                told &= match job {
                    Job::Change(order) => {
                        orders.push(order);
                        true
                    }
                    other => self.one(other),
                };
            }
            told &= self.change(&orders);
            if !told {
                return;
            }
        }
    }

    /// Makes changes, and tells of them before anybody can tell what is at their paths then.
    fn change(&self, orders: &[Order]) -> bool {
        if orders.is_empty() {
            return true;
        }
        let _held = self.tree.hold(orders.iter().flat_map(Order::paths));
        let outcomes = self.changer.make(orders);
        if let Some(trouble) = self.changer.take_trouble()
            && self.out.blocking_send(Event::Trouble(trouble)).is_err()
        {
            return false;
        }
        orders.iter().zip(outcomes).all(|(order, outcome)| {
            let paths = match outcome {
                Outcome::Done { .. } => order.paths().map(<[u8]>::to_vec).collect(),
                _ => Vec::new(),
            };
            self.out.blocking_send(Event::Changed { change: order.change, outcome, paths }).is_ok()
        })
    }

    fn one(&self, job: Job) -> bool {
        let event = match job {
            Job::Change(_) => return true,
            Job::End(transfer) => {
                self.stages.end(transfer);
                return true;
            }
            Job::Stage { transfer, path, root, size, from } => {
                match self.stages.begin(transfer, &path, root, size, from.as_deref()) {
                    Ok(found) => Event::Reused { transfer, found },
                    Err(error) => {
                        let problem = crate::disk::problem(error, &path, "making room for a file");
                        return self.unstaged(transfer, problem.detail);
                    }
                }
            }
            Job::Reuse { transfer, first, hashes } => {
                Event::Reused { transfer, found: self.stages.reuse(transfer, first, &hashes) }
            }
            Job::Search { transfer, sought } => {
                Event::Reused { transfer, found: self.stages.search(transfer, sought) }
            }
            Job::Write(Arrived { handle, transfer, block, data, .. }) => {
                match self.stages.write(transfer, block, &data) {
                    Ok(hash) => Event::Written { handle, transfer, block, hash },
                    // Late: the transfer is over.
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => return true,
                    Err(error) => return self.unstaged(transfer, format!("writing what arrives: {error}")),
                }
            }
        };
        self.out.blocking_send(event).is_ok()
    }

    /// Nothing comes of a transfer.
    fn unstaged(&self, transfer: u32, why: String) -> bool {
        self.out.blocking_send(Event::Trouble(why)).is_ok()
            && self.out.blocking_send(Event::Unstaged { transfer }).is_ok()
    }
}

fn serve(mut server: Server, queue: &Queue<Serve>, out: &mpsc::Sender<Event>) {
    while let Some(serves) = queue.take(JOBS) {
        for serve in serves {
            let event = match serve {
                Serve::Block(peer) => {
                    let data = server.block(&peer.path, (&peer.root, peer.size), peer.block);
                    Event::Read { peer, data }
                }
                Serve::Hashes { agent, handle, transfer, path, root, size, page: Some(page) }
                    if page & WEAK_PAGE != 0 =>
                {
                    queue.push(Serve::Weak {
                        agent,
                        handle,
                        weak: Weak::new(transfer, path, (root, size), page),
                    });
                    continue;
                }
                // A part at a time: others wait for less.
                Serve::Weak { agent, handle, weak } => match server.more_weak(weak) {
                    Ok(weak) => {
                        queue.push(Serve::Weak { agent, handle, weak });
                        continue;
                    }
                    Err(message) => Event::Answered { agent, handle, message },
                },
                Serve::Hashes { agent, handle, transfer, path, root, size, page } => {
                    let message = server.answer(transfer, &path, (&root, size), page);
                    Event::Answered { agent, handle, message }
                }
            };
            if out.blocking_send(event).is_err() {
                return;
            }
        }
        server.rest();
    }
}

/// Whether a folder bears the mark of a job.
pub(super) fn forget_mark(folder: &Path, job: &SyncJob) {
    let Some(mark) = crate::restrict::to_path(&stage_path(job.run)) else { return };
    // Only if nothing is in it.
    let _ = std::fs::remove_dir(folder.join(mark));
}
