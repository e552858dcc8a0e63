//! Every event there is. Past tense, full sense without context; `events/SCHEMA.md` is the table.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::{
    AgentId, BackupOrder, BatchId, BlockedText, CommandId, ConflictKey, ConflictText, Disposal, Disposed,
    Errand, Field, GroupId, GuardAnswer, JobId, JobSpec, NotThinned, Obstacle, Outcome, Owner, Participant,
    Permission, Place, Private, Problem, ProblemClass, ProblemText, Purpose, RefusalReason, ReplicaId, Role,
    RunAgentState, RunId, RunMember, RunOptions, Selection, Share, Signed, Subject, SyncPolicy, Timestamp,
    TokenId, TransferStats, Visit, tagged_enum,
};

tagged_enum! {
    /// A fact on the log.
    pub enum Event, upcast = crate::upcast::event {
        /// The first record of every log.
        (1, 1) "fleet.founded" => FleetFounded,
        /// An agent showed its key.
        (10, 2) "agent.enrolled" => AgentEnrolled,
        /// An agent belongs to the fleet.
        (11, 1) "agent.approved" => AgentApproved,
        /// An agent's control link came up.
        (12, 2) "agent.online" => AgentOnline,
        /// An agent's control link went away.
        (13, 1) "agent.offline" => AgentOffline,
        /// An agent belongs to the fleet no more.
        (14, 1) "agent.removed" => AgentRemoved,
        /// An agent's tags were set.
        (15, 2) "agent.tagged" => AgentTagged,
        /// An agent's session began at a replica; on logs that several services share.
        (16, 1) "agent.session_opened" => AgentSessionOpened,
        /// A bootstrap token was made.
        (20, 1) "token.created" => TokenCreated,
        /// An agent enrolled with a token.
        (21, 1) "token.used" => TokenUsed,
        /// A token was withdrawn.
        (22, 1) "token.revoked" => TokenRevoked,
        /// Somebody tried to enrol and was turned away.
        (23, 2) "enrolment.refused" => EnrolmentRefused,
        /// A group was made.
        (30, 1) "group.created" => GroupCreated,
        /// Agents joined a group.
        (31, 1) "group.members_added" => GroupMembersAdded,
        /// Agents left a group.
        (32, 1) "group.members_removed" => GroupMembersRemoved,
        /// A job was made.
        (40, 5) "job.created" => JobCreated,
        /// A job was deleted; its runs stay.
        (41, 1) "job.deleted" => JobDeleted,
        /// A run began.
        (50, 4) "run.started" => RunStarted,
        /// The source signed the run's manifest.
        (51, 1) "run.manifest_ready" => RunManifestReady,
        /// An agent of a run came to another state.
        (52, 1) "run.agent_progressed" => RunAgentProgressed,
        /// An agent of a run met a problem.
        (53, 2) "run.problem_reported" => RunProblemReported,
        /// An operator wants the run to end.
        (54, 1) "run.stop_requested" => RunStopRequested,
        /// A run ended.
        (55, 1) "run.finished" => RunFinished,
        /// A run's source has disposed of what every destination has, or will not.
        (56, 1) "run.disposed" => RunDisposed,
        /// A signed command for one agent exists.
        (60, 3) "command.issued" => CommandIssued,
        /// The agent took the command, or refused it.
        (61, 1) "command.acknowledged" => CommandAcknowledged,
        /// A signed report of an agent arrived.
        (70, 2) "report.received" => ReportReceived,
        /// Somebody holds a checkpoint of this log that its history does not continue.
        (80, 1) "audit.conflict" => AuditConflict,
        /// What the whole state amounted to at a position.
        (81, 1) "state.attested" => StateAttested,
        /// A control service began to write to a log that several share.
        (90, 1) "replica.started" => ReplicaStarted,
        /// It writes no more, or was silent for too long.
        (91, 1) "replica.stopped" => ReplicaStopped,
        /// A replica became the one that sees to what no other does.
        (92, 1) "lease.taken" => LeaseTaken,
        /// Records may hold from now on what programs of an older level do not read.
        (93, 1) "schema.raised" => SchemaRaised,
        /// A subject has a key from now on.
        (100, 1) "subject.opened" => SubjectOpened,
        /// A subject's key is to be destroyed, and with it what all its texts say.
        (101, 1) "subject.erased" => SubjectErased,
        /// Who synchronizes in a run from now on, and how.
        (110, 1) "run.members_set" => RunMembersSet,
        /// Both versions of a file are kept.
        (111, 1) "run.conflict_found" => RunConflictFound,
        /// The copy that a conflict left is gone.
        (112, 1) "run.conflict_settled" => RunConflictSettled,
        /// A member asks before so much is deleted.
        (113, 1) "run.guard_raised" => RunGuardRaised,
        /// An operator answered.
        (114, 1) "run.guard_answered" => RunGuardAnswered,
        /// The member asks no more.
        (115, 1) "run.guard_lifted" => RunGuardLifted,
        /// Something cannot be at its path at a member.
        (116, 1) "run.path_blocked" => RunPathBlocked,
        /// It can be there now.
        (117, 1) "run.path_unblocked" => RunPathUnblocked,
        /// A member's index was an older copy of itself.
        (118, 1) "run.rolled_back" => RunRolledBack,
        /// A storage agent keeps a version of a source's folder.
        (120, 1) "backup.version_kept" => BackupVersionKept,
        /// Versions that nothing keeps any more are gone from a storage agent.
        (121, 1) "backup.thinned" => BackupThinned,
        /// A source's folder is not what it was when its last run began.
        (122, 1) "backup.source_changed" => BackupSourceChanged,
    }
}

macro_rules! payloads {
    ($($(#[$meta:meta])* $name:ident { $($(#[$fmeta:meta])* $field:ident: $ty:ty),* $(,)? })+) => {$(
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        pub struct $name { $($(#[$fmeta])* pub $field: $ty),* }
    )+};
}

payloads! {
    /// The fleet's identity.
    FleetFounded {
        /// Root public key (Ed25519).
        root_key: [u8; 32],
        /// SHA-256 of the CA certificate (DER): what agents pin.
        ca_fingerprint: [u8; 32],
    }
    /// An agent showed its key and, perhaps, a token.
    AgentEnrolled {
        /// Who, by its key.
        agent: AgentId,
        /// Its Ed25519 key.
        public_key: [u8; 32],
        /// Name it gave itself or was given by the token's tag `AGENT_NAME`.
        name: Private<String>,
        /// Tags from token and agent; names upper-case.
        tags: Private<Vec<(String, String)>>,
        /// The token used; none means the agent waits for approval.
        token: Option<TokenId>,
        /// Version of the agent program.
        version: String,
    }
    /// An agent was let in, by its token or by hand.
    AgentApproved {
        /// Who.
        agent: AgentId,
    }
    /// The control link is up.
    AgentOnline {
        /// Who.
        agent: AgentId,
        /// Addresses (`IP:PORT`) where its µTP2 endpoint can be tried.
        addresses: Private<Vec<String>>,
        /// Version of the agent program.
        version: String,
    }
    /// The control link is gone.
    AgentOffline {
        /// Who.
        agent: AgentId,
        /// Why, for people.
        reason: String,
    }
    /// The agent is out: its certificate is refused from now on.
    AgentRemoved {
        /// Who.
        agent: AgentId,
    }
    /// All tags of the agent, after the change.
    AgentTagged {
        /// Who.
        agent: AgentId,
        /// The whole set; names upper-case.
        tags: Private<Vec<(String, String)>>,
    }
    /// The agent is connected at this replica, and no more where it was before.
    AgentSessionOpened {
        /// Who.
        agent: AgentId,
        /// Where.
        replica: ReplicaId,
        /// Which of the replica's lives.
        epoch: u64,
    }
    /// A bootstrap token, known here only by its hash.
    TokenCreated {
        /// Its id, which is part of the token's text.
        token: TokenId,
        /// SHA-256 of the token's text.
        hash: [u8; 32],
        /// Tags that agents enrolled with it get.
        tags: Vec<(String, String)>,
        /// How many agents may use it.
        uses: u32,
        /// Until when.
        expires: Timestamp,
    }
    /// One use of a token.
    TokenUsed {
        /// Which.
        token: TokenId,
        /// By whom.
        agent: AgentId,
    }
    /// The token is worthless from now on.
    TokenRevoked {
        /// Which.
        token: TokenId,
    }
    /// An enrolment was turned away.
    EnrolmentRefused {
        /// Why.
        reason: RefusalReason,
        /// The token, if its id was known.
        token: Option<TokenId>,
        /// The agent, by the key it showed.
        agent: AgentId,
        /// From where (`IP:PORT`).
        address: Private<String>,
    }
    /// A named, empty group.
    GroupCreated {
        /// Which.
        group: GroupId,
        /// Unique name.
        name: String,
    }
    /// New members.
    GroupMembersAdded {
        /// Which group.
        group: GroupId,
        /// Who joined.
        agents: Vec<AgentId>,
    }
    /// Members gone.
    GroupMembersRemoved {
        /// Which group.
        group: GroupId,
        /// Who left.
        agents: Vec<AgentId>,
    }
    /// A job exists.
    JobCreated {
        /// Which.
        job: JobId,
        /// Unique name.
        name: Private<String>,
        /// What it does.
        spec: JobSpec,
    }
    /// The job is gone from lists.
    JobDeleted {
        /// Which.
        job: JobId,
    }
    /// A run began with these participants.
    RunStarted {
        /// Which.
        run: RunId,
        /// Of which job.
        job: JobId,
        /// The folders of all participants, each once.
        paths: Private<Vec<Vec<u8>>>,
        /// Everybody, groups resolved; nobody if it is a synchronization: [`RunMembersSet`] says who.
        participants: Vec<Participant>,
        /// The start that it belongs to with others, if the job has many sources.
        batch: Option<BatchId>,
        /// What becomes of the source's files when every destination has them.
        after: Disposal,
        /// What is asked of it.
        options: Private<RunOptions>,
        /// What it is for.
        purpose: Purpose,
    }
    /// The source knows what there is to send.
    RunManifestReady {
        /// Which run.
        run: RunId,
        /// The source.
        agent: AgentId,
        /// Merkle root over the manifest's blocks.
        root: [u8; 32],
        /// Files, folders and symlinks.
        entries: u64,
        /// Bytes of all files.
        bytes: u64,
        /// Content blocks.
        blocks: u64,
    }
    /// An agent came to another state.
    RunAgentProgressed {
        /// Which run.
        run: RunId,
        /// Who.
        agent: AgentId,
        /// Where it stands now.
        state: RunAgentState,
        /// What it moved so far; given with terminal states and by the source when it stops serving.
        stats: Option<TransferStats>,
    }
    /// An agent met a problem.
    RunProblemReported {
        /// Which run.
        run: RunId,
        /// Who.
        agent: AgentId,
        /// What kind.
        class: ProblemClass,
        /// Whether it concerns an entry of the run's folder: whether it has a path.
        concerns_entry: bool,
        /// Which entry, and what happened.
        text: Private<ProblemText>,
    }
    /// The run shall end.
    RunStopRequested {
        /// Which run.
        run: RunId,
        /// Why, for people.
        reason: String,
    }
    /// The run ended.
    RunFinished {
        /// Which run.
        run: RunId,
        /// How.
        outcome: Outcome,
    }
    /// The source did what the run's end asked it to do with its files.
    RunDisposed {
        /// Which run.
        run: RunId,
        /// The source.
        agent: AgentId,
        /// What came of it; nothing if it was refused.
        disposed: Disposed,
        /// Why the source refused; none if it did not.
        refused: Option<RefusalReason>,
    }
    /// A command for one agent, signed and ready for anyone to carry.
    CommandIssued {
        /// Which.
        command: CommandId,
        /// For whom.
        agent: AgentId,
        /// Its place in the agent's sequence, from 1 without gaps.
        sequence: u64,
        /// The run it is about.
        run: Option<RunId>,
        /// Whether it asks to take part in the run, or to go on in another way, and so names its folder.
        joins: bool,
        /// The signed command itself.
        signed: Private<Signed>,
        /// What of a backup it is about, if that is not a run.
        backup: Option<BackupOrder>,
    }
    /// The agent's answer to a command.
    CommandAcknowledged {
        /// Which.
        command: CommandId,
        /// By whom.
        agent: AgentId,
        /// Its place in the agent's sequence.
        sequence: u64,
        /// Why it was refused; none if accepted.
        refused: Option<RefusalReason>,
    }
    /// What an agent said under its signature, as it came.
    ReportReceived {
        /// Who.
        agent: AgentId,
        /// Its place in the agent's sequence of reports, from 1 without gaps.
        sequence: u64,
        /// The run in which it tells of a problem, a conflict or a blocked path, and so perhaps names a file; none if it
        /// tells something else.
        problem_in: Option<RunId>,
        /// The signed report itself.
        signed: Private<Signed>,
    }
    /// A checkpoint that the log's own key signed, held by a witness, is of another history than the log now has.
    AuditConflict {
        /// The agent that holds it; none if it is the service's own newest.
        witness: Option<AgentId>,
        /// Entries of the history that it holds.
        held_size: u64,
        /// Their root.
        held_root: [u8; 32],
        /// The signed checkpoint itself (`events/AUDIT_FORMAT.md` §2): what convicts.
        held_note: String,
        /// As many entries of the log, or all that it had if it was shorter.
        log_size: u64,
        /// Their root.
        log_root: [u8; 32],
    }
    /// The service's word for what its state was: whoever folds the same records has to come to the same.
    StateAttested {
        /// Position after which the state was that: the one before this record's.
        at: u64,
        /// Which form of the state the hash is of (`AUDIT_FORMAT.md` §10).
        form: u8,
        /// SHA-256 of the state in that form.
        hash: [u8; 32],
    }
    /// A replica's new life: what its earlier ones held is held no more.
    ReplicaStarted {
        /// Which.
        replica: ReplicaId,
        /// Counts its lives, from 1.
        epoch: u64,
        /// Version of its program.
        version: String,
    }
    /// A replica's life is over: its agents' sessions with it.
    ReplicaStopped {
        /// Which.
        replica: ReplicaId,
        /// Which of its lives.
        epoch: u64,
        /// Why, for people.
        reason: String,
    }
    /// The lease has a new holder.
    LeaseTaken {
        /// Who holds it from now on.
        replica: ReplicaId,
        /// In which of its lives.
        epoch: u64,
        /// Counts holders, from 1.
        term: u64,
    }
    /// From here on the log may hold what only programs of this schema level read (`events/SCHEMA.md`, Levels).
    SchemaRaised {
        /// The new level; it never falls.
        level: u8,
    }
    /// Who synchronizes in a run from now on, and how: the whole of it, after a change. Whoever is not in it any more
    /// stops.
    RunMembersSet {
        /// Which run.
        run: RunId,
        /// Of which job.
        job: JobId,
        /// Counts these events in the run, from 1.
        revision: u32,
        /// The members' folders, each once.
        paths: Private<Vec<Vec<u8>>>,
        /// What they want of the tree, each once.
        selections: Private<Vec<Selection>>,
        /// Everybody, groups resolved.
        members: Vec<RunMember>,
        /// What holds for all of them.
        policy: SyncPolicy,
    }
    /// Two changes of a file knew nothing of each other: both are kept.
    RunConflictFound {
        /// Which run.
        run: RunId,
        /// Who found it first.
        agent: AgentId,
        /// Which conflict.
        conflict: ConflictKey,
        /// Whose change lost.
        loser: AgentId,
        /// Whose change won.
        winner: AgentId,
        /// Where, and under which name the loser is kept.
        text: Private<ConflictText>,
    }
    /// Somebody saw to a conflict.
    RunConflictSettled {
        /// Which run.
        run: RunId,
        /// Who said so first.
        agent: AgentId,
        /// Which conflict.
        conflict: ConflictKey,
    }
    /// A member tells and changes nothing until it is answered, or what is gone is back.
    RunGuardRaised {
        /// Which run.
        run: RunId,
        /// Which member.
        agent: AgentId,
        /// The number of its question.
        guard: u64,
        /// Entries that are gone.
        missing: u64,
        /// Of how many.
        total: u64,
    }
    /// An operator answered a member's question.
    RunGuardAnswered {
        /// Which run.
        run: RunId,
        /// Which member.
        agent: AgentId,
        /// Which question.
        guard: u64,
        /// What to do.
        answer: GuardAnswer,
    }
    /// The member asks no more.
    RunGuardLifted {
        /// Which run.
        run: RunId,
        /// Which member.
        agent: AgentId,
        /// Which question.
        guard: u64,
        /// What was done; none if what was gone is back.
        answer: Option<GuardAnswer>,
    }
    /// Something cannot be at its path.
    RunPathBlocked {
        /// Which run.
        run: RunId,
        /// At which member.
        agent: AgentId,
        /// The member's number for it.
        number: u64,
        /// Why.
        obstacle: Obstacle,
        /// Where.
        text: Private<BlockedText>,
    }
    /// It can be there now, or is not wanted any more.
    RunPathUnblocked {
        /// Which run.
        run: RunId,
        /// At which member.
        agent: AgentId,
        /// The member's number for it.
        number: u64,
    }
    /// A member's index was an older copy of itself: it counts as another replica from now on.
    RunRolledBack {
        /// Which run.
        run: RunId,
        /// Which member.
        agent: AgentId,
    }
    /// A storage agent keeps a version of a source's folder, or found that it has it already.
    BackupVersionKept {
        /// Which run made it.
        run: RunId,
        /// Of which job.
        job: JobId,
        /// The storage agent.
        agent: AgentId,
        /// Whose folder it is.
        source: AgentId,
        /// Its name.
        version: String,
        /// It has everything of the run's manifest.
        complete: bool,
        /// It has so much less than the one before that something may be missing at the source: it takes no other
        /// version's place until the folder has been like that for long.
        shrunk: bool,
        /// Nothing was made: it stood there, and the folder is as it was then.
        unchanged: bool,
        /// Entries of its manifest.
        entries: u64,
        /// Bytes of all its files.
        bytes: u64,
        /// The shelf that it stands on.
        shelf: Private<Vec<u8>>,
    }
    /// A storage agent removed versions that nothing keeps any more.
    BackupThinned {
        /// Of which job.
        job: JobId,
        /// The storage agent.
        agent: AgentId,
        /// Whose versions.
        source: AgentId,
        /// Not there any more.
        removed: Vec<String>,
        /// Still there, and why.
        failed: Vec<NotThinned>,
    }
    /// A source's folder changed since its last run began, for the first time.
    BackupSourceChanged {
        /// Of which job.
        job: JobId,
        /// The source.
        agent: AgentId,
    }
    /// A subject's texts are sealed under this key from now on.
    SubjectOpened {
        /// Whose.
        subject: Subject,
        /// [`crate::SubjectKey::commitment`].
        commitment: [u8; 32],
    }
    /// What was sealed under the subject's key can be read by nobody any more, once the key is destroyed everywhere.
    SubjectErased {
        /// Whose.
        subject: Subject,
        /// Why, for people: which duty was met.
        reason: String,
    }
}

impl RunStarted {
    /// From who takes part as what with which folder. At most 65,536 different folders are told apart, far more than
    /// a run may have participants.
    pub fn new(run: RunId, job: JobId, participants: impl Iterator<Item = (AgentId, Role, Vec<u8>)>) -> Self {
        let mut paths = Numbered::default();
        let participants =
            participants.map(|(agent, role, path)| Participant { agent, role, path: paths.place(path) });
        let participants = participants.collect();
        let (batch, after) = (None, Disposal::Keep);
        let (options, purpose) = (Private::default(), Purpose::Plain);
        Self { run, job, paths: paths.list.into(), participants, batch, after, options, purpose }
    }

    /// The folder of a participant, or the word for what cannot be read.
    pub fn path(&self, participant: &Participant) -> &[u8] {
        path_of(&self.paths, participant.path)
    }
}

impl RunMembersSet {
    /// From who takes part with which folder, rights and selection. At most 65,536 different folders and selections are
    /// told apart, far more than there may be members.
    pub fn new(
        run: RunId,
        job: JobId,
        revision: u32,
        policy: SyncPolicy,
        members: impl Iterator<Item = (AgentId, Vec<u8>, Permission, Selection)>,
    ) -> Self {
        let (mut paths, mut selections) = (Numbered::default(), Numbered::default());
        let members = members.map(|(agent, path, permission, selection)| {
            let (path, selection) = (paths.place(path), selections.place(selection));
            RunMember { agent, path, permission, selection }
        });
        let members = members.collect();
        Self {
            run,
            job,
            revision,
            paths: paths.list.into(),
            selections: selections.list.into(),
            members,
            policy,
        }
    }
}

/// A list without repetitions.
struct Numbered<T> {
    list: Vec<T>,
    places: BTreeMap<T, u16>,
}

impl<T> Default for Numbered<T> {
    fn default() -> Self {
        Self { list: Vec::new(), places: BTreeMap::new() }
    }
}

impl<T: Ord + Clone> Numbered<T> {
    fn place(&mut self, value: T) -> u16 {
        let next = u16::try_from(self.list.len()).unwrap_or(u16::MAX);
        let list = &mut self.list;
        *self.places.entry(value).or_insert_with_key(|value| {
            list.push(value.clone());
            next
        })
    }
}

/// One of a run's folders, or the word for what cannot be read.
pub fn path_of(paths: &Private<Vec<Vec<u8>>>, place: u16) -> &[u8] {
    paths.get(usize::from(place)).map_or(paths.word().as_bytes(), Vec::as_slice)
}

impl RunProblemReported {
    /// What an agent reported, as an event.
    pub fn new(run: RunId, agent: AgentId, problem: Problem) -> Self {
        let Problem { class, path, detail } = problem;
        let concerns_entry = !path.is_empty();
        Self { run, agent, class, concerns_entry, text: ProblemText { path, detail }.into() }
    }
}

impl Event {
    /// Every text in it that is, or has to be, under a subject's key.
    pub fn private(&mut self, visit: &mut Visit<'_>) {
        let of_agent = |agent: AgentId| Owner::Subject(Subject::Agent(agent));
        match self {
            Self::AgentEnrolled(e) => {
                visit(Field::AgentName, of_agent(e.agent), &mut e.name);
                visit(Field::AgentTags, of_agent(e.agent), &mut e.tags);
            }
            Self::AgentOnline(e) => visit(Field::AgentAddresses, of_agent(e.agent), &mut e.addresses),
            Self::AgentTagged(e) => visit(Field::AgentTags, of_agent(e.agent), &mut e.tags),
            Self::EnrolmentRefused(e) => visit(Field::RefusedAddress, of_agent(e.agent), &mut e.address),
            Self::JobCreated(e) => {
                let owner = Owner::Subject(Subject::Job(e.job));
                visit(Field::JobName, owner, &mut e.name);
                e.spec.private(owner, visit);
            }
            Self::RunStarted(e) => {
                let owner = Owner::Subject(Subject::Job(e.job));
                visit(Field::RunPaths, owner, &mut e.paths);
                // What asks nothing says nothing.
                if !e.options.asks_nothing() {
                    visit(Field::RunOptions, owner, &mut e.options);
                }
            }
            Self::BackupVersionKept(e) => {
                visit(Field::Shelf, Owner::Subject(Subject::Job(e.job)), &mut e.shelf);
            }
            Self::RunProblemReported(e) => visit(Field::Problem, Owner::Run(e.run, e.agent), &mut e.text),
            Self::RunMembersSet(e) => {
                let owner = Owner::Subject(Subject::Job(e.job));
                visit(Field::RunPaths, owner, &mut e.paths);
                visit(Field::RunSelections, owner, &mut e.selections);
            }
            Self::RunConflictFound(e) => visit(Field::Conflict, Owner::Run(e.run, e.agent), &mut e.text),
            Self::RunPathBlocked(e) => visit(Field::Blocked, Owner::Run(e.run, e.agent), &mut e.text),
            Self::CommandIssued(e) => {
                let owner = match (e.run, e.backup) {
                    (Some(run), _) if e.joins => Owner::Run(run, e.agent),
                    // It names no folder, and has to reach its agent after the job was erased.
                    (_, Some(BackupOrder { errand: Errand::Unwatch, .. })) => return,
                    (_, Some(backup)) => Owner::Subject(Subject::Job(backup.job)),
                    _ => return,
                };
                visit(Field::Command, owner, &mut e.signed);
            }
            Self::ReportReceived(e) => {
                if let Some(run) = e.problem_in {
                    visit(Field::Report, Owner::Run(run, e.agent), &mut e.signed);
                }
            }
            _ => {}
        }
    }
}

impl JobSpec {
    /// Every folder in it, the name of folders to be made, and what is wanted of folders.
    pub fn private(&mut self, owner: Owner, visit: &mut Visit<'_>) {
        if let Self::Consolidation { subfolder, .. } | Self::Backup { subfolder, .. } = self {
            visit(Field::Subfolder, owner, subfolder);
        }
        if let Some(options) = self.options_mut().filter(|options| !options.asks_nothing()) {
            visit(Field::Options, owner, options);
        }
        let (sources, destinations) = match self {
            Self::Distribution { source, destinations, .. } => (core::slice::from_mut(source), destinations),
            Self::Consolidation { sources, destinations, .. }
            | Self::Backup { sources, destinations, .. } => (sources.as_mut_slice(), destinations),
            Self::Synchronization { members, .. } => {
                for share in members {
                    visit(Field::Path, owner, &mut share.path);
                    visit(Field::Selection, owner, &mut share.selection);
                }
                return;
            }
        };
        for place in sources.iter_mut().chain(destinations) {
            visit(Field::Path, owner, &mut place.path);
        }
    }

    /// Where its content comes from; of a synchronization nowhere in particular.
    pub fn sources(&self) -> &[Place] {
        match self {
            Self::Distribution { source, .. } => core::slice::from_ref(source),
            Self::Consolidation { sources, .. } | Self::Backup { sources, .. } => sources,
            Self::Synchronization { .. } => &[],
        }
    }

    /// Where its content goes; of a synchronization nowhere in particular.
    pub fn destinations(&self) -> &[Place] {
        match self {
            Self::Distribution { destinations, .. }
            | Self::Consolidation { destinations, .. }
            | Self::Backup { destinations, .. } => destinations,
            Self::Synchronization { .. } => &[],
        }
    }

    /// What is asked of its runs; of a synchronization nothing can be.
    pub fn options(&self) -> Option<&Private<RunOptions>> {
        match self {
            Self::Distribution { options, .. }
            | Self::Consolidation { options, .. }
            | Self::Backup { options, .. } => Some(options),
            Self::Synchronization { .. } => None,
        }
    }

    fn options_mut(&mut self) -> Option<&mut Private<RunOptions>> {
        match self {
            Self::Distribution { options, .. }
            | Self::Consolidation { options, .. }
            | Self::Backup { options, .. } => Some(options),
            Self::Synchronization { .. } => None,
        }
    }

    /// Who synchronizes.
    pub fn members(&self) -> &[Share] {
        match self {
            Self::Synchronization { members, .. } => members,
            _ => &[],
        }
    }
}
