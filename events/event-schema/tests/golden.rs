//! The byte forms that are stored and signed, pinned: `tests/golden/vN/*.bin` decode to the values below
//! and the current code encodes these values to exactly those bytes. `v1` has what logs of schema level 1 hold and
//! everything whose shape never changed, `v2` the second version of what has one, with its texts sealed, `v3` what
//! came with schema level 3, which has consolidations, `v4` what came with level 4, which has synchronizations, `v5` what
//! came with level 5, which has backups. The `.json` beside each is the same value for people. Files are only ever added: `GOLDEN_WRITE=1 cargo test -p event-schema --test golden`
//! writes those that are missing and never touches one that exists.
//!
//! `events/SCHEMA.md` is checked here as well: it lists every event with number, version and name.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use ed25519_dalek::SigningKey;
use event_schema::*;
use serde_json::{Value, json};

/// Whether bytes decode to the value that is meant.
type Check = Box<dyn Fn(&[u8]) -> bool>;

/// One pinned value: its file name, its bytes, itself as JSON, and whether bytes decode to it.
struct Golden {
    folder: &'static str,
    name: String,
    bytes: Vec<u8>,
    json: Value,
    decodes: Check,
}

fn agent(n: u8) -> AgentId {
    AgentId([n; 16])
}

const RUN: RunId = RunId([0x52; 16]);
const JOB: JobId = JobId([0x4a; 16]);
const GROUP: GroupId = GroupId([0x47; 16]);
const TOKEN: TokenId = TokenId([0x54; 16]);
const BATCH: BatchId = BatchId([0x42; 16]);
const COMMAND: CommandId = CommandId([0x43; 16]);

fn tags() -> Vec<(String, String)> {
    vec![("AGENT_NAME".into(), "nas-1".into()), ("SITE".into(), "Häfen".into())]
}

fn stats() -> TransferStats {
    TransferStats {
        entries: 5_000,
        bytes_total: 1 << 40,
        blocks_total: 1 << 25,
        blocks_fetched: 300,
        blocks_reused: 2,
        blocks_duplicate: 1,
        blocks_corrupt: 4,
        bytes_from_source: 7_000_000,
        bytes_from_peers: 2_000_000,
        bytes_sent: 127,
    }
}

fn problem() -> Problem {
    Problem {
        class: ProblemClass::UnsafeLink,
        path: b"a\n\xff/link".to_vec(),
        detail: "leads out of the folder".into(),
    }
}

fn participants() -> Vec<Participant> {
    vec![
        Participant { agent: agent(1), role: Role::Source, path: 0 },
        Participant { agent: agent(2), role: Role::Destination, path: 1 },
    ]
}

fn paths() -> Private<Vec<Vec<u8>>> {
    vec![b"/srv/\xfe".to_vec(), b"in".to_vec()].into()
}

fn text() -> Private<ProblemText> {
    let Problem { path, detail, .. } = problem();
    ProblemText { path, detail }.into()
}

fn join() -> JoinRun {
    JoinRun {
        run: RUN,
        job: JOB,
        job_name: "release 7".into(),
        role: Role::Destination,
        path: b"in".to_vec(),
        source: agent(1),
        peers: vec![
            PeerHint { agent: agent(1), public_key: [0x11; 32], role: Role::Source, addresses: vec![] },
            PeerHint {
                agent: agent(2),
                public_key: [0x22; 32],
                role: Role::Destination,
                addresses: vec!["192.0.2.7:5000".into(), "[2001:db8::1]:5000".into()],
            },
        ],
        trackers: vec!["tracker.example:7702".into()],
        sealed_secret: (0..81).collect(),
    }
}

fn synchronize() -> Synchronize {
    Synchronize {
        run: RUN,
        job: JOB,
        job_name: "plans".into(),
        revision: 300,
        path: b"in".to_vec(),
        permission: REVERT,
        selection: selection(),
        policy: policy(),
        members: vec![
            SyncPeer {
                agent: agent(1),
                public_key: [0x11; 32],
                permission: Permission::ReadWrite,
                addresses: vec!["192.0.2.7:5000".into()],
            },
            SyncPeer { agent: agent(2), public_key: [0x22; 32], permission: REVERT, addresses: vec![] },
        ],
        trackers: vec!["tracker.example:7702".into()],
        sealed_secret: (0..81).collect(),
    }
}

fn command() -> Command {
    Command {
        id: COMMAND,
        audience: agent(2),
        sequence: 300,
        issued: Timestamp(1_795_000_000_000),
        not_before: Timestamp(1_794_999_700_000),
        expires: Timestamp(1_797_592_000_000),
        body: join().into(),
    }
}

fn report() -> Report {
    Report {
        agent: AgentId::of_key(&SigningKey::from_bytes(&[2; 32]).verifying_key().to_bytes()),
        sequence: 9,
        time: Timestamp(1_795_000_001_000),
        body: RunCompleted { run: RUN, state: RunAgentState::Done, stats: stats() }.into(),
    }
}

macro_rules! pinned {
    ($prefix:literal, $enum:ty, $list:ident, [$($payload:expr),+ $(,)?]) => {$({
        let payload = $payload;
        let json = serde_json::to_value(&payload).expect("plain data");
        let value = <$enum>::from(payload);
        let name = value.name();
        let version = <$enum>::KINDS.iter().find(|(kind, ..)| *kind == value.kind()).expect("listed").1;
        $list.push(Golden {
            folder: "v1",
            name: format!(concat!($prefix, "-{}"), name),
            bytes: value.encode(),
            json: json!({"kind": value.kind(), "version": version, "name": name, "payload": json}),
            decodes: Box::new(move |bytes| <$enum>::decode(bytes).as_ref() == Ok(&value)),
        });
    })+};
}

/// Payloads that have a version 2: version 1 from the value in the clear, version 2 with its texts sealed. Both are read
/// as the same value.
macro_rules! pinned_twice {
    ($list:ident, [$($name:ident $payload:tt),+ $(,)?]) => {$({
        let payload = $name $payload;
        let old = upcast::v1::$name::try_from(&payload).expect("it had that shape");
        let json = serde_json::to_value(old).expect("plain data");
        let value = Event::from(payload);
        let (kind, name, meant) = (value.kind(), value.name(), value.clone());
        $list.push(Golden {
            folder: "v1",
            name: format!("event-{name}"),
            bytes: encode(&upcast::event_at(&value, 1)),
            json: json!({"kind": kind, "version": 1, "name": name, "payload": json}),
            decodes: Box::new(move |bytes| Event::decode(bytes).as_ref() == Ok(&meant)),
        });
        let mut sealed = value.clone();
        let mut nonce = 0;
        sealed.private(&mut |field, owner, text| {
            nonce += 1;
            text.seal(owned_by(owner), &KEY(), field, [nonce; 12]);
        });
        let Event::$name(payload) = &sealed else { unreachable!("it was one") };
        let json = match &sealed {
            Event::RunStarted(e) => serde_json::to_value(upcast::v2::RunStarted::try_from(e).expect("old")),
            Event::JobCreated(e) => serde_json::to_value(upcast::v2::JobCreated::try_from(e).expect("old")),
            Event::CommandIssued(e) => serde_json::to_value(upcast::v2::CommandIssued::try_from(e).expect("old")),
            _ => serde_json::to_value(payload),
        };
        let json = json.expect("plain data");
        $list.push(Golden {
            folder: "v2",
            name: format!("event-{name}"),
            bytes: encode(&upcast::event_at(&sealed, 2)),
            json: json!({"kind": kind, "version": 2, "name": name, "payload": json}),
            decodes: Box::new(move |bytes| {
                let Ok(mut read) = Event::decode(bytes) else { return false };
                let shut = read != value;
                let mut opened = true;
                read.private(&mut |field, _, text| opened &= text.open(&KEY(), field));
                shut == (nonce > 0) && opened && read == value
            }),
        });
    })+};
}

/// What came with level 3, and version 3 of what has one, texts sealed.
fn consolidations() -> Vec<Golden> {
    let place = |party, path: &[u8]| Place { party, path: path.to_vec().into() };
    let consolidation = JobSpec::Consolidation {
        sources: vec![place(Party::Group(GROUP), b"footage"), place(Party::Agent(agent(1)), b"/srv/\xfe")],
        destinations: vec![place(Party::Agent(agent(2)), b"in")],
        subfolder: Private::clear("/%SRC:SITE%/%SRC:AGENT_NAME%".into()),
        after: Disposal::Archive { days: 30 },
        options: Private::default(),
    };
    let distribution = JobSpec::Distribution {
        source: place(Party::Agent(agent(1)), b"out"),
        destinations: vec![place(Party::Group(GROUP), b"in")],
        options: Private::default(),
    };
    let started = |batch, after| RunStarted {
        run: RUN,
        job: JOB,
        paths: paths(),
        participants: participants(),
        batch,
        after,
        options: Private::default(),
        purpose: Purpose::Plain,
    };
    let created = |spec| JobCreated { job: JOB, name: "footage".into(), spec };
    let disposed = Disposed { files: 300, bytes: 1 << 33, changed: 1, gone: 2, failed: 3 };
    let refused = Some(RefusalReason::NotAllowed);
    let events: Vec<(&str, Event)> = vec![
        ("", created(consolidation).into()),
        ("-distribution", created(distribution).into()),
        ("", started(Some(BATCH), Disposal::Delete).into()),
        ("-alone", started(None, Disposal::Keep).into()),
        ("", RunDisposed { run: RUN, agent: agent(1), disposed, refused: None }.into()),
        (
            "-refused",
            RunDisposed { run: RUN, agent: agent(1), disposed: Disposed::default(), refused }.into(),
        ),
    ];
    events.into_iter().map(|(suffix, value)| pin_sealed(3, suffix, value)).collect()
}

/// An event with its texts sealed, in the shape of a level.
fn pin_sealed(level: u8, suffix: &str, value: Event) -> Golden {
    let mut sealed = value.clone();
    let mut nonce = 0;
    sealed.private(&mut |field, owner, text| {
        nonce += 1;
        text.seal(owned_by(owner), &KEY(), field, [nonce; 12]);
    });
    let json = match &sealed {
        Event::JobCreated(e) if level == 3 => {
            serde_json::to_value(upcast::v3::JobCreated::try_from(e).expect("it had that shape"))
        }
        Event::JobCreated(e) if level == 4 => {
            serde_json::to_value(upcast::v4::JobCreated::try_from(e).expect("it had that shape"))
        }
        Event::JobCreated(e) => serde_json::to_value(e),
        Event::RunStarted(e) if level < 5 => {
            serde_json::to_value(upcast::v3::RunStarted::try_from(e).expect("it had that shape"))
        }
        Event::RunStarted(e) => serde_json::to_value(e),
        Event::CommandIssued(e) => serde_json::to_value(e),
        Event::BackupVersionKept(e) => serde_json::to_value(e),
        Event::BackupThinned(e) => serde_json::to_value(e),
        Event::BackupSourceChanged(e) => serde_json::to_value(e),
        Event::RunDisposed(e) => serde_json::to_value(e),
        Event::RunMembersSet(e) => serde_json::to_value(e),
        Event::RunConflictFound(e) => serde_json::to_value(e),
        Event::RunConflictSettled(e) => serde_json::to_value(e),
        Event::RunGuardRaised(e) => serde_json::to_value(e),
        Event::RunGuardAnswered(e) => serde_json::to_value(e),
        Event::RunGuardLifted(e) => serde_json::to_value(e),
        Event::RunPathBlocked(e) => serde_json::to_value(e),
        Event::RunPathUnblocked(e) => serde_json::to_value(e),
        Event::RunRolledBack(e) => serde_json::to_value(e),
        _ => unreachable!("none of these"),
    };
    let tagged = upcast::event_at(&sealed, level);
    Golden {
        folder: ["v3", "v4", "v5"][usize::from(level) - 3],
        name: format!("event-{}{suffix}", value.name()),
        bytes: encode(&tagged),
        json: json!({"kind": value.kind(), "version": tagged.version, "name": value.name(), "payload": json.expect("plain")}),
        decodes: Box::new(move |bytes| {
            let Ok(mut read) = Event::decode(bytes) else { return false };
            let mut opened = true;
            read.private(&mut |field, _, text| opened &= text.open(&KEY(), field));
            opened && read == value
        }),
    }
}

fn policy() -> SyncPolicy {
    let archive = Some(ArchiveLimits { max_age_days: Some(30), max_bytes: Some(1 << 40) });
    SyncPolicy { archive, guard_percent: 25, guard_min: 300 }
}

fn selection() -> Selection {
    Selection { ignore: vec!["*.tmp".into(), "!keep.tmp".into()], wanted: vec!["/docs".into()] }
}

fn conflict() -> ConflictKey {
    ConflictKey { agent: [0x02; 4], replica: [0xab, 0xcd], change: 307 }
}

const REVERT: Permission = Permission::ReadOnly { local: LocalChanges::Revert };

/// What came with level 4, and version 4 of what has one, texts sealed.
fn synchronizations() -> Vec<Golden> {
    let share = |party, path: &[u8], permission, selection: Selection| Share {
        party,
        path: path.to_vec().into(),
        permission,
        selection: selection.into(),
    };
    let aside = Permission::ReadOnly { local: LocalChanges::KeepAside };
    let members = vec![
        share(Party::Agent(agent(1)), b"/srv/\xfe", Permission::ReadWrite, Selection::default()),
        share(Party::Group(GROUP), b"in", aside, selection()),
        share(Party::Agent(agent(2)), b"in", REVERT, Selection::default()),
    ];
    let consolidation = JobSpec::Consolidation {
        sources: vec![Place { party: Party::Group(GROUP), path: "footage".into() }],
        destinations: vec![Place { party: Party::Agent(agent(2)), path: "in".into() }],
        subfolder: "/%SRC:SITE%".into(),
        after: Disposal::Delete,
        options: Private::default(),
    };
    let created = |spec| JobCreated { job: JOB, name: "plans".into(), spec };
    let none = SyncPolicy { archive: None, ..policy() };
    let (run, member) = (RUN, agent(2));
    let set = vec![
        (agent(1), b"/srv/\xfe".to_vec(), Permission::ReadWrite, Selection::default()),
        (agent(2), b"in".to_vec(), REVERT, selection()),
        (agent(3), b"in".to_vec(), aside, selection()),
    ];
    let text = ConflictText { path: b"a.txt".to_vec(), copy: b"a.conflict-02020202-abcd307.txt".to_vec() };
    let blocked = BlockedText { path: b"A/\xff".to_vec(), by: b"a/\xff".to_vec() };
    let events: Vec<(&str, Event)> = vec![
        ("", created(JobSpec::Synchronization { members, policy: policy() }).into()),
        ("-no-archive", created(JobSpec::Synchronization { members: vec![], policy: none }).into()),
        ("-consolidation", created(consolidation).into()),
        ("", RunMembersSet::new(run, JOB, 300, policy(), set.into_iter()).into()),
        (
            "",
            RunConflictFound {
                run,
                agent: member,
                conflict: conflict(),
                loser: agent(2),
                winner: agent(1),
                text: text.into(),
            }
            .into(),
        ),
        ("", RunConflictSettled { run, agent: agent(1), conflict: conflict() }.into()),
        ("", RunGuardRaised { run, agent: member, guard: 1 << 40, missing: 300, total: 900 }.into()),
        ("", RunGuardAnswered { run, agent: member, guard: 1 << 40, answer: GuardAnswer::Restore }.into()),
        (
            "",
            RunGuardLifted { run, agent: member, guard: 1 << 40, answer: Some(GuardAnswer::Restore) }.into(),
        ),
        ("-back", RunGuardLifted { run, agent: member, guard: 7, answer: None }.into()),
        (
            "",
            RunPathBlocked {
                run,
                agent: member,
                number: 300,
                obstacle: Obstacle::NameTaken,
                text: blocked.into(),
            }
            .into(),
        ),
        ("", RunPathUnblocked { run, agent: member, number: 300 }.into()),
        ("", RunRolledBack { run, agent: member }.into()),
    ];
    events.into_iter().map(|(suffix, value)| pin_sealed(4, suffix, value)).collect()
}

fn options() -> RunOptions {
    RunOptions {
        rules: vec!["*.tmp".into(), "!keep.tmp".into()],
        first: vec!["/boot/".into()],
        hook: Some("stop-web".into()),
        hook_timeout_s: Some(300),
    }
}

const VERSION: &str = "2026-11-23T013000Z";

/// What came with level 5, and what has a version of it, texts sealed.
fn backups() -> Vec<Golden> {
    let place = |party, path: &[u8]| Place { party, path: path.to_vec().into() };
    let keep = Keep { last: 7, hourly: 24, daily: 14, weekly: 8, monthly: 12, yearly: 3, within_days: 300 };
    let backup = |when, options: RunOptions| JobSpec::Backup {
        sources: vec![place(Party::Group(GROUP), b"data"), place(Party::Agent(agent(1)), b"/srv/\xfe")],
        destinations: vec![place(Party::Agent(agent(2)), b"kept")],
        subfolder: "/%SRC:AGENT_NAME%".into(),
        when,
        keep,
        options: options.into(),
    };
    let distribution = JobSpec::Distribution {
        source: place(Party::Agent(agent(1)), b"out"),
        destinations: vec![place(Party::Group(GROUP), b"in")],
        options: options().into(),
    };
    let consolidation = JobSpec::Consolidation {
        sources: vec![place(Party::Group(GROUP), b"footage")],
        destinations: vec![place(Party::Agent(agent(2)), b"in")],
        subfolder: "/%SRC:SITE%".into(),
        after: Disposal::Keep,
        options: RunOptions { rules: vec![], hook: None, hook_timeout_s: None, ..options() }.into(),
    };
    let created = |spec| JobCreated { job: JOB, name: "offices".into(), spec };
    let calendar = When::Calendar { expression: "30 2 * * mon-fri".into() };
    let started = |options: RunOptions, purpose| RunStarted {
        run: RUN,
        job: JOB,
        paths: paths(),
        participants: participants(),
        batch: Some(BATCH),
        after: Disposal::Keep,
        options: options.into(),
        purpose,
    };
    let issued = |body: CommandBody| {
        let backup = body.backup();
        let (run, joins) = (body.join().map(|join| join.run), body.joins());
        let signed = Command { body, ..command() }.sign(&SigningKey::from_bytes(&[1; 32])).into();
        CommandIssued { command: COMMAND, agent: agent(2), sequence: 300, run, joins, signed, backup }
    };
    let kept = BackupVersionKept {
        run: RUN,
        job: JOB,
        agent: agent(2),
        source: agent(1),
        version: VERSION.into(),
        complete: true,
        shrunk: false,
        unchanged: false,
        entries: 300,
        bytes: 1 << 33,
        shelf: "kept/nas-1".into(),
    };
    let obstacles =
        [ThinObstacle::InUse, ThinObstacle::NotAVersion, ThinObstacle::NoShelf, ThinObstacle::System];
    let thinned = BackupThinned {
        job: JOB,
        agent: agent(2),
        source: agent(1),
        removed: vec!["2026-11-20T013000Z".into(), "2026-11-21T013000Z-2".into()],
        failed: obstacles.map(|why| NotThinned { version: VERSION.into(), why }).to_vec(),
    };
    let events: Vec<(&str, Event)> = vec![
        ("", created(backup(When::Every { minutes: 300 }, options())).into()),
        ("-manual", created(backup(When::Manual, RunOptions::default())).into()),
        ("-calendar", created(backup(calendar, RunOptions::default())).into()),
        (
            "-continuous",
            created(backup(When::Continuous { quiet_seconds: 30, minutes: 300 }, RunOptions::default()))
                .into(),
        ),
        ("-distribution", created(distribution).into()),
        ("-consolidation", created(consolidation).into()),
        ("", started(options(), Purpose::Version { name: VERSION.into() }).into()),
        ("-options", started(options(), Purpose::Plain).into()),
        (
            "-restore",
            started(RunOptions::default(), Purpose::Restore { of: agent(3), version: VERSION.into() }).into(),
        ),
        ("", issued(thin().into()).into()),
        ("-watch", issued(watch().into()).into()),
        ("-unwatch", issued(WatchBackup { job: JOB, folder: None }.into()).into()),
        ("", kept.clone().into()),
        ("-shrunk", BackupVersionKept { complete: false, shrunk: true, unchanged: true, ..kept }.into()),
        ("", thinned.into()),
        ("", BackupSourceChanged { job: JOB, agent: agent(1) }.into()),
    ];
    events.into_iter().map(|(suffix, value)| pin_sealed(5, suffix, value)).collect()
}

fn take_part(purpose: Purpose) -> TakePart {
    TakePart { join: join(), keeping: true, options: options(), purpose }
}

fn thin() -> ThinBackup {
    let versions = vec!["2026-11-20T013000Z".into(), "2026-11-21T013000Z-2".into()];
    ThinBackup { job: JOB, source: agent(1), path: b"kept/nas-1".to_vec(), versions }
}

fn watch() -> WatchBackup {
    let folder = WatchedFolder { path: b"/srv/\xfe".to_vec(), quiet_seconds: 30, pause_minutes: 300 };
    WatchBackup { job: JOB, folder: Some(folder) }
}

/// The key of every subject.
#[allow(non_snake_case, reason = "a constant that cannot be one, as it is wiped when dropped")]
fn KEY() -> SubjectKey {
    SubjectKey::new([0x6b; 32])
}

fn owned_by(owner: Owner) -> Subject {
    match owner {
        Owner::Subject(subject) => subject,
        Owner::Run(..) => Subject::Job(JOB),
        Owner::Named => Subject::User(UserId([0x55; 16])),
    }
}

fn all() -> Vec<Golden> {
    let mut list = Vec::new();
    pinned!(
        "event",
        Event,
        list,
        [
            FleetFounded { root_key: [0xa1; 32], ca_fingerprint: [0xb2; 32] },
            AgentApproved { agent: agent(1) },
            AgentOffline { agent: agent(1), reason: "the link broke".into() },
            AgentRemoved { agent: agent(1) },
            AgentSessionOpened { agent: agent(1), replica: ReplicaId([0x5a; 16]), epoch: 300 },
            TokenCreated {
                token: TOKEN,
                hash: [0xc3; 32],
                tags: tags(),
                uses: 200,
                expires: Timestamp::NEVER
            },
            TokenUsed { token: TOKEN, agent: agent(1) },
            TokenRevoked { token: TOKEN },
            GroupCreated { group: GROUP, name: "harbour".into() },
            GroupMembersAdded { group: GROUP, agents: vec![agent(1), agent(2)] },
            GroupMembersRemoved { group: GROUP, agents: vec![agent(2)] },
            JobDeleted { job: JOB },
            RunManifestReady {
                run: RUN,
                agent: agent(1),
                root: [0xd4; 32],
                entries: 3,
                bytes: 1 << 33,
                blocks: 1 << 18
            },
            RunAgentProgressed {
                run: RUN,
                agent: agent(2),
                state: RunAgentState::Done,
                stats: Some(stats())
            },
            RunStopRequested { run: RUN, reason: "wrong folder".into() },
            RunFinished { run: RUN, outcome: Outcome::SucceededWithErrors },
            CommandAcknowledged {
                command: COMMAND,
                agent: agent(2),
                sequence: 300,
                refused: Some(RefusalReason::NotAllowed),
            },
            AuditConflict {
                witness: Some(agent(2)),
                held_size: 300,
                held_root: [0xe5; 32],
                held_note: "flotilla/0f1e…\n300\n5eXl…\n\n— flotilla/0f1e… AAAA\n".into(),
                log_size: 280,
                log_root: [0xf6; 32],
            },
            StateAttested { at: 1 << 33, form: 1, hash: [0xe5; 32] },
            ReplicaStarted { replica: ReplicaId([0x5a; 16]), epoch: 300, version: "0.1.0".into() },
            ReplicaStopped {
                replica: ReplicaId([0x5a; 16]),
                epoch: 300,
                reason: "silent for too long".into()
            },
            LeaseTaken { replica: ReplicaId([0x5a; 16]), epoch: 300, term: 7 },
            SchemaRaised { level: 2 },
            SubjectOpened { subject: Subject::Job(JOB), commitment: KEY().commitment(Subject::Job(JOB)) },
            SubjectErased { subject: Subject::Job(JOB), reason: "asked for".into() },
        ]
    );
    pinned_twice!(
        list,
        [
            AgentEnrolled {
                agent: agent(1),
                public_key: [0x11; 32],
                name: "nas-1".into(),
                tags: tags().into(),
                token: Some(TOKEN),
                version: "0.1.0".into(),
            },
            AgentOnline {
                agent: agent(1),
                addresses: vec!["192.0.2.7:5000".into()].into(),
                version: "0.1.0".into()
            },
            AgentTagged { agent: agent(1), tags: tags().into() },
            EnrolmentRefused {
                reason: RefusalReason::TokenSpent,
                token: Some(TOKEN),
                agent: agent(3),
                address: "192.0.2.9:40000".into(),
            },
            JobCreated {
                job: JOB,
                name: "release 7".into(),
                spec: JobSpec::Distribution {
                    source: Place { party: Party::Agent(agent(1)), path: b"/srv/\xfe".to_vec().into() },
                    destinations: vec![Place { party: Party::Group(GROUP), path: b"in".to_vec().into() }],
                    options: Private::default(),
                },
            },
            RunStarted {
                run: RUN,
                job: JOB,
                paths: paths(),
                participants: participants(),
                batch: None,
                after: Disposal::Keep,
                options: Private::default(),
                purpose: Purpose::Plain,
            },
            RunProblemReported {
                run: RUN,
                agent: agent(1),
                class: ProblemClass::UnsafeLink,
                concerns_entry: true,
                text: text(),
            },
            CommandIssued {
                command: COMMAND,
                agent: agent(2),
                sequence: 300,
                run: Some(RUN),
                joins: true,
                signed: command().sign(&SigningKey::from_bytes(&[1; 32])).into(),
                backup: None,
            },
            ReportReceived {
                agent: agent(2),
                sequence: 9,
                problem_in: None,
                signed: report().sign(&SigningKey::from_bytes(&[2; 32])).into()
            },
        ]
    );
    list.extend(sealed_report());
    list.extend(consolidations());
    list.extend(synchronizations());
    list.extend(backups());
    pinned!(
        "command",
        CommandBody,
        list,
        [
            join(),
            FinishRun { run: RUN },
            StopRun { run: RUN },
            FinishAndDispose { run: RUN, root: [0xd4; 32], disposal: Disposal::Archive { days: 30 } },
            synchronize(),
            AnswerGuard { run: RUN, guard: 1 << 40, answer: GuardAnswer::Delete },
            JoinKeeping { join: join() },
            take_part(Purpose::Version { name: VERSION.into() }),
            thin(),
            watch(),
        ]
    );
    for (suffix, purpose) in
        [("plain", Purpose::Plain), ("restore", Purpose::Restore { of: agent(3), version: VERSION.into() })]
    {
        let mut one = Vec::new();
        pinned!("command", CommandBody, one, [take_part(purpose)]);
        list.extend(
            one.into_iter().map(|golden| Golden { name: format!("{}-{suffix}", golden.name), ..golden }),
        );
    }
    pinned!(
        "report",
        ReportBody,
        list,
        [
            CommandAccepted { command: COMMAND, sequence: 300 },
            CommandRefused { command: COMMAND, sequence: 301, reason: RefusalReason::Expired },
            RunStateReported { run: RUN, state: RunAgentState::FetchingManifest },
            ManifestSigned { run: RUN, root: [0xd4; 32], entries: 3, bytes: 1 << 33, blocks: 1 << 18 },
            ProblemReported { run: RUN, problem: problem() },
            RunCompleted { run: RUN, state: RunAgentState::DoneWithErrors, stats: stats() },
            RunServed { run: RUN, stats: stats() },
            DisposalReported {
                run: RUN,
                disposed: Disposed { files: 300, bytes: 1 << 33, changed: 1, gone: 2, failed: 3 },
            },
            ConflictFound {
                run: RUN,
                conflict: conflict(),
                path: b"a.txt".to_vec(),
                copy: b"a.conflict-02020202-abcd307.txt".to_vec(),
                loser: agent(2),
                winner: agent(1),
            },
            ConflictSettled { run: RUN, conflict: conflict() },
            GuardRaised { run: RUN, guard: 1 << 40, missing: 300, total: 900 },
            GuardLifted { run: RUN, guard: 1 << 40, answer: Some(GuardAnswer::Delete) },
            PathBlocked {
                run: RUN,
                number: 300,
                path: b"A/\xff".to_vec(),
                obstacle: Obstacle::NameTaken,
                by: b"a/\xff".to_vec(),
            },
            PathUnblocked { run: RUN, number: 300 },
            RolledBack { run: RUN },
            VersionKept {
                run: RUN,
                version: VERSION.into(),
                complete: true,
                unchanged: false,
                entries: 300,
                bytes: 1 << 33,
            },
            Thinned {
                job: JOB,
                source: agent(1),
                removed: vec!["2026-11-20T013000Z".into()],
                failed: vec![NotThinned { version: VERSION.into(), why: ThinObstacle::InUse }],
            },
            SourceChanged { job: JOB },
        ]
    );
    list.extend(records());
    list.extend(envelopes());
    list
}

fn records() -> Vec<Golden> {
    let record = |actor: Actor, causation| Record {
        id: RecordId([0x01; 16]),
        stream: "run/52525252525252525252525252525252".into(),
        time: Timestamp(1_795_000_000_123),
        actor,
        causation,
        correlation: RecordId([0x02; 16]),
        events: vec![
            RunAgentProgressed { run: RUN, agent: agent(2), state: RunAgentState::Failed, stats: None }
                .into(),
            RunFinished { run: RUN, outcome: Outcome::Failed }.into(),
        ],
    };
    let cases = [
        ("record-service", record(Actor::Service, None)),
        ("record-operator", record(Actor::Operator("admin".into()), None)),
        ("record-agent", record(Actor::Agent(agent(2)), Some(RecordId([0x03; 16])))),
    ];
    cases
        .into_iter()
        .map(|(name, record)| Golden {
            folder: "v1",
            name: name.into(),
            bytes: record.encode_at(1),
            json: json!({
                "id": record.id, "stream": record.stream, "time": record.time, "actor": record.actor,
                "causation": record.causation, "correlation": record.correlation,
                "events": record.events.iter().map(Event::name).collect::<Vec<_>>(),
            }),
            decodes: Box::new(move |bytes| Record::decode(bytes).as_ref() == Ok(&record)),
        })
        .collect()
}

/// Records of version 2, and what only they can hold.
fn sealed_report() -> Vec<Golden> {
    let mut list = Vec::new();
    // A report without a problem is in the clear, one with a problem is not: the former stands among the events.
    let body = ProblemReported { run: RUN, problem: problem() }.into();
    let signed = Report { body, ..report() }.sign(&SigningKey::from_bytes(&[2; 32]));
    let problem: Event =
        ReportReceived { agent: agent(2), sequence: 9, problem_in: Some(RUN), signed: signed.into() }.into();
    for (name, actor, seal) in [
        ("record-clear", Actor::Operator("anna".into()), false),
        ("record-sealed", Actor::Operator("anna".into()), true),
        ("record-withheld", Actor::Operator("anna".into()), true),
    ] {
        let mut record = Record {
            id: RecordId([0x01; 16]),
            stream: "agent/02020202020202020202020202020202".into(),
            time: Timestamp(1_795_000_000_123),
            actor,
            causation: Some(RecordId([0x03; 16])),
            correlation: RecordId([0x02; 16]),
            events: vec![problem.clone()],
        };
        let meant = record.clone();
        let mut nonce = 0;
        let withheld = name == "record-withheld";
        record.private(&mut |field, owner, text| {
            nonce += 1;
            match (seal, withheld) {
                (true, false) => text.seal(owned_by(owner), &KEY(), field, [nonce; 12]),
                (true, true) => text.withhold(),
                _ => {}
            }
        });
        list.push(Golden {
            folder: "v2",
            name: name.into(),
            bytes: record.encode(),
            json: json!({"actor": record.actor, "events": record.events.iter().map(Event::name).collect::<Vec<_>>()}),
            decodes: Box::new(move |bytes| {
                let Ok(mut read) = Record::decode(bytes) else { return false };
                let mut opened = 0;
                read.private(&mut |field, _, text| opened += u32::from(text.open(&KEY(), field)));
                if withheld { opened == 0 && read != meant } else { opened == 2 && read == meant }
            }),
        });
    }
    list
}

/// A command and a report under their signatures: Ed25519 is deterministic, so these are pinned too.
fn envelopes() -> Vec<Golden> {
    let key = |n: u8| SigningKey::from_bytes(&[n; 32]);
    let opens = |seed: u8, domain: Domain, is: Check| {
        move |bytes: &[u8]| {
            let public = key(seed).verifying_key().to_bytes();
            decode_exact::<Signed>("Signed", bytes)
                .is_ok_and(|signed| signed.verify(domain, &public).is_ok_and(&is))
        }
    };
    let (c, r) = (command(), report());
    vec![
        Golden {
            folder: "v1",
            name: "signed-command".into(),
            bytes: encode(&c.sign(&key(1))),
            json: json!({"id": c.id, "audience": c.audience, "sequence": c.sequence, "issued": c.issued,
                "not_before": c.not_before, "expires": c.expires, "body": c.body.name()}),
            decodes: Box::new(opens(
                1,
                Domain::Command,
                Box::new(move |b| Command::decode(b).as_ref() == Ok(&c)),
            )),
        },
        Golden {
            folder: "v1",
            name: "signed-report".into(),
            bytes: encode(&r.sign(&key(2))),
            json: json!({"agent": r.agent, "sequence": r.sequence, "time": r.time, "body": r.body.name()}),
            decodes: Box::new(opens(
                2,
                Domain::Report,
                Box::new(move |b| Report::decode(b).as_ref() == Ok(&r)),
            )),
        },
    ]
}

fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

#[test]
fn stored_bytes_stay_what_they_are() {
    let write = std::env::var_os("GOLDEN_WRITE").is_some();
    for golden in all() {
        let bin = folder(golden.folder).join(format!("{}.bin", golden.name));
        let json = folder(golden.folder).join(format!("{}.json", golden.name));
        let text = format!("{:#}\n", golden.json);
        if write {
            for (path, content) in [(&bin, golden.bytes.as_slice()), (&json, text.as_bytes())] {
                if !path.exists() {
                    fs::write(path, content).expect("written");
                }
            }
        }
        let stored =
            fs::read(&bin).unwrap_or_else(|e| panic!("{}: {e}; see the head of this file", bin.display()));
        assert!((golden.decodes)(&stored), "{}: the stored bytes mean something else now", golden.name);
        assert_eq!(stored, golden.bytes, "{}: the value has other bytes now", golden.name);
        let shown = fs::read_to_string(&json).unwrap_or_else(|e| panic!("{}: {e}", json.display()));
        assert_eq!(shown, text, "{}: the JSON beside it tells another value", golden.name);
        // Neither shorter nor longer bytes are the value.
        for cut in 0..stored.len() {
            assert!(!(golden.decodes)(&stored[..cut]), "{} cut at {cut}", golden.name);
        }
        assert!(!(golden.decodes)(&[stored.as_slice(), &[0]].concat()), "{} with a byte more", golden.name);
    }
}

/// Folders and names of everything that is pinned.
fn pinned() -> BTreeSet<(String, String)> {
    all().into_iter().map(|golden| (golden.folder.to_owned(), golden.name)).collect()
}

#[test]
fn every_kind_is_pinned() {
    let pinned = pinned();
    let kinds = [("event", Event::KINDS), ("command", CommandBody::KINDS), ("report", ReportBody::KINDS)];
    for (prefix, kinds) in kinds {
        let mut numbers = BTreeSet::new();
        for (number, version, name) in kinds {
            assert!(numbers.insert(number), "{prefix} {number} twice");
            for version in 1..=*version {
                // What came with level 2 is pinned beside what there was before: its version is 1.
                let version = match *number {
                    56 if prefix == "event" => 3,
                    110..=118 => 4,
                    120..=122 => 5,
                    50 if prefix == "event" && version == 4 => 5,
                    60 if prefix == "event" && version == 3 => 5,
                    _ => version,
                };
                let file = (format!("v{version}"), format!("{prefix}-{name}"));
                assert!(pinned.contains(&file), "{prefix} {name} has no golden file for version {version}");
            }
        }
    }
}

/// What an older program does with a log that was raised.
#[test]
fn a_program_of_an_older_level_refuses_what_came_after_it() {
    for golden in all() {
        let (old, stored) = (golden.folder == "v1", &golden.bytes);
        if golden.name.starts_with("record-") {
            assert_eq!(Record::decode_up_to(1, stored).is_ok(), old, "{}", golden.name);
            assert!(Record::decode_up_to(2, stored).is_ok(), "{}", golden.name);
        }
        if let (Some(name), Ok(event)) = (golden.name.strip_prefix("event-"), Event::decode(stored)) {
            let late = ["schema.raised", "subject.opened", "subject.erased"].contains(&name);
            let tagged: Tagged = decode_exact("Event", stored).expect("tagged");
            let level = match golden.folder {
                "v5" => 5,
                "v4" => 4,
                "v3" => 3,
                "v1" if !late => 1,
                _ => 2,
            };
            assert_eq!(level::of(&tagged), level, "{name}");
            let kind = event.kind();
            let is_new = 110..=122;
            assert_eq!(level::knows(1, &event), !late && kind != 56 && !is_new.contains(&kind), "{name}");
            assert_eq!(level::knows(2, &event), kind != 56 && !is_new.contains(&kind), "{name}");
            assert_eq!(level::knows(3, &event), !is_new.contains(&kind), "{name}");
            assert_eq!(level::knows(4, &event), kind < 120, "{name}");
            // Whoever writes for an older level says it in that level's words, or not at all.
            let old = upcast::event_at(&event, 2);
            let told = level::of(&old) <= 2;
            let new = ["job.created", "run.started", "run.disposed", "run.disposed-refused"];
            let latest = ["v4", "v5"].contains(&golden.folder);
            let newer = latest || golden.folder == "v3" && new.contains(&name);
            assert_eq!(told, !newer, "{name}");
            assert!(!told || Event::from_tagged(&old).is_ok(), "{name}");
            let old = upcast::event_at(&event, 3);
            let told = level::of(&old) <= 3;
            let is_old = golden.folder == "v4" && name == "job.created-consolidation";
            assert_eq!(told, !latest || is_old, "{name}");
            assert_eq!(Event::from_tagged(&old).as_ref(), Ok(&event), "{name}");
            let old = upcast::event_at(&event, 4);
            assert_eq!(level::of(&old) <= 4, golden.folder != "v5", "{name}");
            assert_eq!(Event::from_tagged(&old).as_ref(), Ok(&event), "{name}");
        }
    }
}

#[test]
fn nothing_stored_is_forgotten() {
    let pinned = pinned();
    for version in ["v1", "v2", "v3", "v4", "v5"] {
        for file in fs::read_dir(folder(version)).expect("the folder") {
            let path = file.expect("an entry").path();
            let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
            let known = pinned.contains(&(version.to_owned(), name));
            assert!(known, "{} is checked by nothing: old files stay readable", path.display());
        }
    }
}

#[test]
fn the_tables_list_every_kind() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../SCHEMA.md");
    let text = fs::read_to_string(path).expect("SCHEMA.md");
    let section = |title: &str| {
        let (_, rest) =
            text.split_once(&format!("\n## {title}\n")).unwrap_or_else(|| panic!("no section {title}"));
        rest.split_once("\n## ").map_or(rest, |(section, _)| section).to_owned()
    };
    let kinds = [("Events", Event::KINDS), ("Commands", CommandBody::KINDS), ("Reports", ReportBody::KINDS)];
    for (title, kinds) in kinds {
        let rows: Vec<(u16, u8, String)> = section(title)
            .lines()
            .filter_map(|line| {
                let cells: Vec<&str> = line.strip_prefix('|')?.split('|').map(str::trim).collect();
                let (number, version) = (cells.first()?.parse().ok()?, cells.get(1)?.parse().ok()?);
                Some((number, version, cells.get(2)?.trim_matches('`').to_owned()))
            })
            .collect();
        let expected: Vec<_> = kinds.iter().map(|(n, v, name)| (*n, *v, (*name).to_owned())).collect();
        assert_eq!(rows, expected, "SCHEMA.md, {title}");
    }
}
