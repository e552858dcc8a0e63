//! Whole runs between agents in one process, over real sockets on loopback, without a control service.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use agent_proto::{Credential, seal};
use event_schema::{JobId, JoinRun, PeerHint, Problem, Report, ReportBody, RunOptions, Timestamp};
use tempfile::TempDir;
use tokio::time::timeout;

mod asked;
mod versions;

use super::*;
use crate::store::Store;

const LIMIT: Duration = Duration::from_secs(60);
const RUN: RunId = RunId([9; 16]);

pub(super) struct Fleet {
    root: SigningKey,
    issuer: SigningKey,
    secret: [u8; 32],
    trust: watch::Sender<TrustBundle>,
}

impl Fleet {
    pub(super) fn new() -> Self {
        let (root, issuer) = (SigningKey::from_bytes(&[1; 32]), SigningKey::from_bytes(&[2; 32]));
        let bundle = TrustBundle {
            version: 1,
            root_key: root.verifying_key().to_bytes(),
            command_keys: Vec::new(),
            credential_keys: vec![issuer.verifying_key().to_bytes()],
            ca_certificate: Vec::new(),
        };
        Self { root, issuer, secret: [7; 32], trust: watch::channel(bundle).0 }
    }

    pub(super) async fn agent(&self, n: u8, options: Options) -> Agent {
        let dir = tempfile::tempdir().expect("a folder");
        let key = SigningKey::from_bytes(&[100 + n; 32]);
        let mut agent = Agent {
            key,
            dir,
            store: None,
            reporter: None,
            runs: None,
            port: 0,
            options,
            hooks: Hooks::new(),
        };
        agent.start(self).await;
        agent
    }

    /// The run's secret, sealed to an agent.
    pub(super) fn seal(&self, agent: &Agent, run: RunId) -> Vec<u8> {
        let public = agent.key.verifying_key().to_bytes();
        let context = agent_proto::link::seal_context(run);
        let mut ephemeral = [0; 32];
        getrandom::fill(&mut ephemeral).expect("randomness");
        // No two runs have one secret.
        let secret = self.secret.map(|byte| byte ^ run.0[0]);
        seal(&public, &context, &secret, ephemeral).expect("a good key")
    }

    /// The command for `agent`, naming everybody in `agents`; the first is the source.
    fn join(&self, agents: &[&Agent], agent: &Agent, path: &Path) -> JoinRun {
        self.join_as(RUN, agents, agent, path)
    }

    /// The same for another run.
    fn join_as(&self, run: RunId, agents: &[&Agent], agent: &Agent, path: &Path) -> JoinRun {
        let hint = |a: &&Agent| PeerHint {
            agent: a.id(),
            public_key: a.key.verifying_key().to_bytes(),
            role: if a.id() == agents[0].id() { Role::Source } else { Role::Destination },
            addresses: vec![format!("127.0.0.1:{}", a.port)],
        };
        JoinRun {
            run,
            job: JobId([1; 16]),
            job_name: "test".into(),
            role: if agent.id() == agents[0].id() { Role::Source } else { Role::Destination },
            path: path.as_os_str().as_encoded_bytes().to_vec(),
            source: agents[0].id(),
            peers: agents.iter().map(hint).collect(),
            trackers: Vec::new(),
            sealed_secret: self.seal(agent, run),
        }
    }
}

/// The order to take part in a run as in any other.
pub(super) fn part(join: JoinRun) -> TakePart {
    TakePart { join, keeping: false, options: RunOptions::default(), purpose: event_schema::Purpose::Plain }
}

#[derive(Clone, Copy, Default)]
pub(super) struct Options {
    pub(super) lies: bool,
    pub(super) upload_limit: Option<u64>,
}

pub(super) struct Agent {
    pub(super) key: SigningKey,
    dir: TempDir,
    store: Option<Arc<Store>>,
    reporter: Option<Reporter>,
    pub(super) runs: Option<RunManager>,
    pub(super) port: u16,
    options: Options,
    pub(super) hooks: Hooks,
}

impl Agent {
    pub(super) fn id(&self) -> AgentId {
        AgentId::of_key(&self.key.verifying_key().to_bytes())
    }

    pub(super) async fn start(&mut self, fleet: &Fleet) {
        let credential = Credential {
            version: 1,
            fleet: fleet.root.verifying_key().to_bytes(),
            public_key: self.key.verifying_key().to_bytes(),
            name: "test".into(),
            not_before: Timestamp(0),
            not_after: Timestamp::NEVER,
        };
        if self.store.is_none() {
            let store = Arc::new(Store::open(&self.dir.path().join("state.redb")).expect("opened"));
            self.reporter = Some(Reporter::start(store.clone(), self.key.clone(), 10_000).expect("started"));
            self.store = Some(store);
        }
        let deps = || RunDeps {
            seed: self.key.to_bytes(),
            credential: watch::channel(credential.sign(&fleet.issuer)).1,
            trust: fleet.trust.subscribe(),
            clock: Arc::default(),
            data_dir: self.dir.path().to_owned(),
            storage_path: self.dir.path().join("folders"),
            listen: ([127, 0, 0, 1], self.port).into(),
            reporter: self.reporter.clone().expect("made above"),
            advertise: Vec::new(),
            lan: crate::discovery::LanConfig { enabled: false, ..Default::default() },
            upload_limit: self.options.upload_limit,
            datagram: None,
            relay: None,
            relays: Vec::new(),
            site: None,
            corrupt_blocks: self.options.lies,
            share_between_jobs: true,
            hooks: self.hooks.clone(),
        };
        // The port of last time is free when the last task of the old manager has seen its end.
        let runs = timeout(LIMIT, async {
            loop {
                match RunManager::start(deps()).await {
                    Ok(runs) => return runs,
                    Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            }
        });
        let runs = runs.await.expect("a socket on loopback");
        self.port = runs.local_addr().port();
        self.runs = Some(runs);
    }

    pub(super) fn runs(&self) -> &RunManager {
        self.runs.as_ref().expect("running")
    }

    fn status(&self) -> RunStatus {
        self.runs().status().into_iter().find(|s| s.run == RUN).expect("in the run")
    }

    pub(super) async fn halt(&mut self) {
        self.runs.take().expect("running").shutdown().await;
    }

    pub(super) fn reports(&self) -> Vec<ReportBody> {
        let store = self.store.as_ref().expect("open");
        let rows = store.outbox(0, usize::MAX, usize::MAX).expect("read");
        rows.iter().map(|(_, signed)| Report::decode(&signed.bytes).expect("ours").body).collect()
    }

    fn problems(&self) -> Vec<Problem> {
        let problem = |body| match body {
            ReportBody::ProblemReported(p) => Some(p.problem),
            _ => None,
        };
        self.reports().into_iter().filter_map(problem).collect()
    }

    fn states(&self) -> Vec<RunAgentState> {
        let state = |body| match body {
            ReportBody::RunStateReported(s) => Some(s.state),
            _ => None,
        };
        self.reports().into_iter().filter_map(state).collect()
    }

    /// Waits for the report that the run ended here.
    async fn completed(&self) -> RunCompleted {
        self.wait("the run to end", || self.ends().first().cloned()).await
    }

    /// All reports that a run ended here.
    fn ends(&self) -> Vec<RunCompleted> {
        let end = |body| match body {
            ReportBody::RunCompleted(end) => Some(end),
            _ => None,
        };
        self.reports().into_iter().filter_map(end).collect()
    }

    async fn wait<T>(&self, what: &str, found: impl Fn() -> Option<T>) -> T {
        let waited = timeout(LIMIT, async {
            loop {
                if let Some(found) = found() {
                    return found;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        waited.await.unwrap_or_else(|_| panic!("waited for {what}: {:?} {:?}", self.status(), self.reports()))
    }
}

/// A tree with large, small, empty and odd entries; its files' bytes are not alike.
fn make_tree(path: &Path, large: usize) {
    let bytes = |len: usize, seed: u64| {
        let mut x = seed | 1;
        let step = |_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            x as u8
        };
        (0..len).map(step).collect::<Vec<u8>>()
    };
    fs::create_dir_all(path.join("deep/er")).expect("room");
    for i in 0..2 {
        fs::write(path.join(format!("large {i}")), bytes(large, i + 5)).expect("room");
    }
    for i in 0..120u64 {
        fs::write(path.join(format!("deep/small {i}")), bytes((i * 613 % 70_000) as usize, i)).expect("room");
    }
    fs::write(path.join("deep/er/empty"), b"").expect("room");
    fs::write(path.join("deep/er/-rf\n\u{1f600}"), b"odd").expect("room");
    std::os::unix::fs::symlink("../small 1", path.join("deep/er/link")).expect("room");
    fs::set_permissions(path.join("deep/small 7"), fs::Permissions::from_mode(0o4751)).expect("ours");
    let old = std::time::UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789);
    fs::File::open(path.join("large 0")).expect("there").set_modified(old).expect("ours");
    fs::File::open(path.join("deep/er")).expect("there").set_modified(old).expect("ours");
}

/// What matters of a tree, by path.
fn listing(path: &Path) -> BTreeMap<Vec<u8>, (u32, i64, i64, Vec<u8>)> {
    let entry = |e: walkdir::DirEntry| {
        let name = e.path().strip_prefix(path).expect("below").as_os_str().as_encoded_bytes().to_vec();
        let meta = e.path().symlink_metadata().expect("there");
        let content = if meta.is_file() {
            fs::read(e.path()).expect("readable")
        } else if meta.is_symlink() {
            fs::read_link(e.path()).expect("a link").into_os_string().into_encoded_bytes()
        } else {
            Vec::new()
        };
        (name, (meta.mode(), meta.mtime(), meta.mtime_nsec(), content))
    };
    walkdir::WalkDir::new(path).into_iter().map(|e| entry(e.expect("readable"))).collect()
}

fn assert_same(a: &Path, b: &Path) {
    let (a, b) = (listing(a), listing(b));
    let differing: Vec<_> = a
        .keys()
        .chain(b.keys())
        .filter(|k| a.get(*k) != b.get(*k))
        .map(|k| k.escape_ascii().to_string())
        .collect();
    assert!(differing.is_empty(), "{differing:?}");
}

/// A source with a tree and destinations that were told nothing yet.
struct Scene {
    fleet: Fleet,
    tree: TempDir,
    got: Vec<TempDir>,
    agents: Vec<Agent>,
}

impl Scene {
    async fn new(large: usize, options: &[Options]) -> Self {
        let fleet = Fleet::new();
        let tree = tempfile::tempdir().expect("a folder");
        make_tree(tree.path(), large);
        let mut agents = Vec::new();
        for (n, &options) in (0..).zip(options) {
            agents.push(fleet.agent(n, options).await);
        }
        let got = options.iter().map(|_| tempfile::tempdir().expect("a folder")).collect();
        Self { fleet, tree, got, agents }
    }

    fn place(&self, n: usize) -> &Path {
        if n == 0 { self.tree.path() } else { self.got[n].path() }
    }

    async fn join(&self, n: usize) {
        let all: Vec<&Agent> = self.agents.iter().collect();
        self.agents[n].runs().take_part(part(self.fleet.join(&all, &self.agents[n], self.place(n)))).await;
    }

    async fn join_all(&self) {
        for n in 0..self.agents.len() {
            self.join(n).await;
        }
    }

    async fn restart(&mut self, n: usize) {
        self.agents[n].halt().await;
        let Self { fleet, agents, .. } = self;
        agents[n].start(fleet).await;
        self.join(n).await;
    }

    async fn shut_down(mut self) {
        for agent in &mut self.agents {
            agent.halt().await;
        }
    }
}

/// What a source's rules leave out does not arrive, and stays as it is where somebody has it already.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_source_leaves_out_is_left_alone_at_destinations() {
    let scene = Scene::new(1 << 20, &[PLAIN; 3]).await;
    let (source, got) = (scene.place(0), scene.place(1));
    fs::write(source.join(".flotillaignore"), "*.key\n/deep/er/\nlarge 1\n").expect("room");
    fs::write(source.join("deep/ours.key"), b"the source's").expect("room");
    fs::create_dir_all(got.join("deep/er")).expect("room");
    for (path, text) in [("deep/ours.key", "another"), ("deep/er/empty", "not empty"), ("large 1", "short")] {
        fs::write(got.join(path), text).expect("room");
    }
    scene.join_all().await;
    for n in 1..3 {
        let end = scene.agents[n].completed().await;
        assert_eq!(end.state, RunAgentState::Done, "{:?}", scene.agents[n].problems());
    }
    let left_out = |path: &[u8]| {
        path.starts_with(b"deep/er") || path.ends_with(b".key") || path == b"large 1" || path == b""
    };
    let of = |path: &Path| {
        let all = listing(path).into_iter().map(|(path, (.., content))| (path, content));
        all.filter(|(path, _)| !left_out(path)).collect::<BTreeMap<_, _>>()
    };
    let sent = of(scene.place(0));
    assert!(sent.contains_key(&b".flotillaignore"[..]) && sent.contains_key(&b"deep/small 7"[..]));
    assert!(of(scene.place(1)) == sent && of(scene.place(2)) == sent);
    assert!(!listing(scene.place(2)).keys().any(|path| !path.is_empty() && left_out(path)));
    for (path, text) in [("deep/ours.key", "another"), ("deep/er/empty", "not empty"), ("large 1", "short")] {
        assert_eq!(fs::read_to_string(got.join(path)).expect("left alone"), text);
    }
    scene.shut_down().await;
}

/// Nothing is sent by a source whose rules nobody can understand, and the run says which line it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_that_cannot_be_used_fail_the_run_at_its_source() {
    let scene = Scene::new(1 << 20, &[PLAIN; 2]).await;
    fs::write(scene.place(0).join(".flotillaignore"), "*.key\n[z-a]\n").expect("room");
    scene.join_all().await;
    let source = &scene.agents[0];
    let problem = source.wait("the problem", || source.problems().into_iter().next()).await;
    assert_eq!(problem.path, b".flotillaignore");
    assert!(problem.detail.contains("line 2"), "{}", problem.detail);
    source.wait("the failure", || source.states().contains(&RunAgentState::Failed).then_some(())).await;
    assert_eq!(listing(scene.place(1)).len(), 1, "but the folder itself");
    scene.shut_down().await;
}

const SLOW: Options = Options { lies: false, upload_limit: Some(4_000_000) };
const PLAIN: Options = Options { lies: false, upload_limit: None };

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_destinations_get_everything_and_the_source_sends_about_one_copy() {
    let scene = Scene::new(6 << 20, &[PLAIN; 4]).await;
    scene.join_all().await;
    for n in 1..4 {
        let end = scene.agents[n].completed().await;
        assert_eq!(end.state, RunAgentState::Done, "{:?}", scene.agents[n].problems());
        assert_same(scene.place(0), scene.place(n));
        let stats = end.stats;
        assert_eq!((stats.blocks_fetched, stats.blocks_reused), (stats.blocks_total, 0));
        assert_eq!(stats.bytes_from_source + stats.bytes_from_peers, stats.bytes_total);
        let states = scene.agents[n].states();
        assert_eq!(states.first(), Some(&RunAgentState::FindingPeers));
        assert_eq!(states.last(), Some(&RunAgentState::Finalizing));
    }
    let source = &scene.agents[0];
    let total = source.status().bytes_total;
    let sent = source.status().stats.bytes_sent;
    println!("the source sent {:.3} copies to 3", sent as f64 / total as f64);
    assert!(sent as f64 <= 1.5 * total as f64, "{sent} of {total}");
    let signed = source.reports().into_iter().filter(|r| matches!(r, ReportBody::ManifestSigned(_)));
    assert_eq!(signed.count(), 1);
    // The run is over: everybody says a last word and forgets it.
    for agent in &scene.agents {
        agent.runs().finish(RUN).await;
        assert!(matches!(agent.reports().last(), Some(ReportBody::RunServed(_))));
        assert!(agent.runs().status().is_empty());
        assert!(!agent.dir.path().join("runs").join(RUN.to_string()).exists());
    }
    scene.shut_down().await;
}

/// A run after another one fetches only what is new of the manifest, at a destination that has the one of before. Who
/// has none, or a damaged one, fetches all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_manifest_only_what_is_new_is_fetched() {
    let scene = Scene::new(1 << 20, &[PLAIN; 3]).await;
    // Their hashes alone are four blocks of the manifest and more.
    fs::create_dir(scene.place(0).join("many")).expect("room");
    for n in 0..4000 {
        fs::write(scene.place(0).join(format!("many/{n:04}")), n.to_string()).expect("room");
    }
    let join = async |n: usize, run: RunId| {
        let all: Vec<&Agent> = scene.agents.iter().collect();
        let order = scene.fleet.join(&all, all[n], scene.place(n));
        let sealed_secret = scene.fleet.seal(all[n], run);
        all[n].runs().take_part(part(JoinRun { run, sealed_secret, ..order })).await;
    };
    // Takes part, and gives what was found of the manifest.
    let receive = async |n: usize, run: RunId| {
        join(n, run).await;
        let agent = &scene.agents[n];
        let done = async || {
            while !agent.ends().iter().any(|end| end.run == run && end.state == RunAgentState::Done) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(LIMIT, done()).await.unwrap_or_else(|_| panic!("not done: {:?}", agent.reports()));
        assert_same(scene.place(0), scene.place(n));
        let status = agent.runs().status().into_iter().find(|status| status.run == run);
        let reused = status.expect("in the run").manifest_reused;
        agent.runs().finish(run).await;
        reused
    };
    let [first, second, third] = [1, 2, 3].map(|n| RunId([n; 16]));
    join(0, first).await;
    assert_eq!(receive(1, first).await, 0);
    // Its hashes are elsewhere in the table now.
    fs::rename(scene.place(0).join("many"), scene.place(0).join("a new name")).expect("ours");
    fs::remove_dir_all(scene.place(1).join("many")).expect("there");
    join(0, second).await;
    let manifest = scene.agents[0].dir.path().join("runs").join(first.to_string()).join("manifest");
    let blocks = fs::metadata(&manifest).expect("there").len() / u64::from(agent_proto::limits::BLOCK_LEN);
    let reused = receive(1, second).await;
    assert!((3..blocks).contains(&reused), "{reused} of {blocks}");
    assert_eq!(receive(2, second).await, 0);
    for held in fs::read_dir(scene.agents[1].dir.path().join("manifests")).expect("kept") {
        fs::write(held.expect("readable").path(), vec![7; 1 << 20]).expect("room");
    }
    join(0, third).await;
    assert_eq!(receive(1, third).await, 0);
    scene.shut_down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_fetched_twice_over_restarts_of_everybody() {
    let mut scene = Scene::new(6 << 20, &[SLOW; 3]).await;
    scene.join_all().await;
    for n in [1, 0, 2, 1] {
        let now = scene.agents[1].status().blocks_done;
        let agent = &scene.agents[1];
        agent.wait("blocks", || (agent.status().blocks_done >= now + 40).then_some(())).await;
        assert!(agent.status().blocks_done < agent.status().blocks_total, "too fast for this test");
        scene.restart(n).await;
        let agent = &scene.agents[1];
        agent.wait("the disk", || (agent.status().blocks_total > 0).then_some(())).await;
    }
    for n in 1..3 {
        let end = scene.agents[n].completed().await;
        assert_eq!(end.state, RunAgentState::Done, "{:?}", scene.agents[n].problems());
        assert_eq!((end.stats.blocks_fetched, end.stats.blocks_reused), (end.stats.blocks_total, 0));
        assert_same(scene.place(0), scene.place(n));
    }
    // Once more after the end: it serves, says nothing again, and touches nothing.
    fs::write(scene.place(1).join("deep/small 3"), b"changed by its owner").expect("room");
    scene.restart(1).await;
    let agent = &scene.agents[1];
    agent.wait("serving", || (agent.status().peers == 2).then_some(())).await;
    assert_eq!(agent.status().state, "done");
    let ends = agent.reports().into_iter().filter(|r| matches!(r, ReportBody::RunCompleted(_)));
    assert_eq!(ends.count(), 1);
    assert_eq!(fs::read(scene.place(1).join("deep/small 3")).expect("there"), b"changed by its owner");
    assert!(!scene.place(1).join(".flotilla").exists());
    scene.shut_down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_liar_is_named_and_the_content_comes_from_others() {
    let liar = Options { lies: true, upload_limit: None };
    let scene = Scene::new(4 << 20, &[SLOW, liar, PLAIN, PLAIN]).await;
    scene.join_all().await;
    for n in 1..4 {
        assert_eq!(scene.agents[n].completed().await.state, RunAgentState::Done);
        assert_same(scene.place(0), scene.place(n));
    }
    let mut found_out = 0;
    for n in 2..4 {
        let end = scene.agents[n].completed().await;
        found_out += end.stats.blocks_corrupt;
        for problem in scene.agents[n].problems() {
            assert_eq!(problem.class, ProblemClass::CorruptBlock);
            assert!(problem.detail.contains(&scene.agents[1].id().to_string()), "{}", problem.detail);
        }
        assert_eq!(scene.agents[n].problems().is_empty(), end.stats.blocks_corrupt == 0);
    }
    assert!(found_out > 0, "the liar was never asked: the test shows nothing");
    scene.shut_down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_changed_at_the_source_is_told_and_the_rest_arrives() {
    let scene = Scene::new(1 << 20, &[PLAIN; 3]).await;
    scene.join(0).await;
    let source = &scene.agents[0];
    source.wait("indexing", || (source.status().state == "serving").then_some(())).await;
    let mut file = fs::OpenOptions::new().write(true).open(scene.place(0).join("large 1")).expect("there");
    file.write_all(b"not what it was").expect("room");
    fs::remove_file(scene.place(0).join("deep/small 9")).expect("there");
    scene.join(1).await;
    scene.join(2).await;
    for n in 1..3 {
        assert_eq!(scene.agents[n].completed().await.state, RunAgentState::DoneWithErrors);
        let mut problems = scene.agents[n].problems();
        problems.sort_by(|a, b| a.path.cmp(&b.path));
        let told: Vec<_> = problems.iter().map(|p| (p.class, p.path.as_slice())).collect();
        let changed = ProblemClass::SourceChanged;
        assert_eq!(told, [(changed, b"deep/small 9".as_slice()), (changed, b"large 1".as_slice())]);
        assert!(!scene.place(n).join("large 1").exists() && !scene.place(n).join("deep/small 9").exists());
        assert_eq!(
            fs::read(scene.place(n).join("large 0")).expect("there"),
            fs::read(scene.place(0).join("large 0")).expect("there")
        );
        assert!(!scene.place(n).join(".flotilla").exists());
    }
    assert!(source.problems().iter().all(|p| p.class == ProblemClass::SourceChanged));
    scene.shut_down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_not_in_the_run_or_lacks_its_secret_gets_nothing() {
    let mut scene = Scene::new(100_000, &[PLAIN; 4]).await;
    // 0 and 1 know the run; 2 has a wrong secret, 3 is not named in the others' commands.
    let named: Vec<&Agent> = scene.agents[..3].iter().collect();
    let all: Vec<&Agent> = scene.agents.iter().collect();
    for n in 0..2 {
        scene.agents[n]
            .runs()
            .take_part(part(scene.fleet.join(&named, &scene.agents[n], scene.place(n))))
            .await;
    }
    let wrong = Fleet { secret: [8; 32], ..Fleet::new() };
    scene.agents[2].runs().take_part(part(wrong.join(&all, &scene.agents[2], scene.place(2)))).await;
    scene.agents[3].runs().take_part(part(scene.fleet.join(&all, &scene.agents[3], scene.place(3)))).await;
    assert_eq!(scene.agents[1].completed().await.state, RunAgentState::Done);
    assert_same(scene.place(0), scene.place(1));
    for n in 2..4 {
        assert_eq!(scene.agents[n].status().state, "finding_peers");
        assert_eq!(scene.agents[n].status().peers, 0);
        scene.agents[n].runs().stop(RUN).await;
        let last = scene.agents[n].reports().pop();
        assert!(matches!(last, Some(ReportBody::RunCompleted(end)) if end.state == RunAgentState::Stopped));
    }
    // A sealed secret that is for somebody else.
    let stolen = scene.fleet.join(&all, &scene.agents[1], scene.place(2));
    scene.agents[2].runs().take_part(part(stolen)).await;
    assert!(scene.agents[2].runs().status().is_empty());
    assert!(scene.agents[2].problems().iter().any(|p| p.class == ProblemClass::Internal));
    let folder = scene.agents[0].dir.path().join("nowhere");
    scene.agents[0].halt().await;
    let Scene { fleet, agents, .. } = &mut scene;
    agents[0].start(fleet).await;
    let _ = fs::remove_dir_all(agents[0].dir.path().join("runs"));
    let named: Vec<&Agent> = scene.agents[..3].iter().collect();
    let join = scene.fleet.join(&named, &scene.agents[0], &folder);
    scene.agents[0].runs().take_part(part(join)).await;
    let source = &scene.agents[0];
    source.wait("the failure", || (source.status().state == "failed").then_some(())).await;
    let told = || source.problems().iter().any(|p| p.class == ProblemClass::NotFound).then_some(());
    source.wait("why", told).await;
    scene.shut_down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_run_leaves_what_is_whole_and_nothing_else() {
    let scene = Scene::new(6 << 20, &[SLOW, SLOW]).await;
    scene.join_all().await;
    let agent = &scene.agents[1];
    agent.wait("blocks", || (agent.status().blocks_done > 60).then_some(())).await;
    agent.runs().stop(RUN).await;
    assert_eq!(agent.completed().await.state, RunAgentState::Stopped);
    assert!(!scene.place(1).join(".flotilla").exists());
    let (whole, there) = (listing(scene.place(0)), listing(scene.place(1)));
    for (name, (_, _, _, content)) in &there {
        assert_eq!(Some(content), whole.get(name).map(|e| &e.3), "{}", name.escape_ascii());
    }
    assert!(there.len() < whole.len());
    scene.shut_down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_stalls_and_goes_on_by_itself() {
    let scene = Scene::new(1 << 20, &[PLAIN; 3]).await;
    let mount = |args: &[&str]| std::process::Command::new(args[0]).args(&args[1..]).status();
    let path = scene.place(1).to_str().expect("UTF-8").to_owned();
    if !mount(&["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", &path]).is_ok_and(|s| s.success()) {
        assert!(std::env::var_os("FLOTILLA_REQUIRE_ALL").is_none(), "mounting a tmpfs needs root");
        eprintln!("SKIPPED a_full_disk_stalls_and_goes_on_by_itself: mounting a tmpfs needs root");
        return;
    }
    let outcome = tokio::spawn({
        let path = path.clone();
        async move {
            scene.join_all().await;
            let agent = &scene.agents[1];
            agent.wait("stalling", || (agent.status().state == "stalled").then_some(())).await;
            assert_eq!(scene.agents[2].completed().await.state, RunAgentState::Done);
            assert!(mount(&["mount", "-o", "remount,size=64m", &path]).is_ok_and(|s| s.success()));
            assert_eq!(agent.completed().await.state, RunAgentState::Done);
            assert_same(scene.place(0), scene.place(1));
            let classes: Vec<_> = agent.problems().iter().map(|p| p.class).collect();
            assert_eq!(classes, [ProblemClass::DiskFull]);
            scene.shut_down().await;
        }
    })
    .await;
    assert!(std::process::Command::new("umount").args(["-l", &path]).status().is_ok_and(|s| s.success()));
    outcome.expect("the run");
}
