//! The shapes of the API: what it answers and what it is asked, in JSON.
//!
//! Times are RFC 3339 in UTC with milliseconds. Ids are 32 hex digits. Paths are bytes: `path` is their
//! text with U+FFFD where they are no UTF-8, and `path_hex` then has the bytes themselves.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::backup_view::{KeepShape, OptionsShape, PurposeView, WhenShape};
use super::sync_view::{PolicyView, PolicyWish, ShareView, ShareWish, SyncMemberView, SyncView};

macro_rules! shapes {
    ($($(#[$meta:meta])* $name:ident { $($(#[$fmeta:meta])* $field:ident: $ty:ty),* $(,)? })+) => {$(
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
        pub struct $name { $($(#[$fmeta])* pub $field: $ty),* }
    )+};
}

shapes! {
    /// An error.
    ErrorView {
        /// What went wrong.
        error: ErrorBody,
    }
    /// What went wrong.
    ErrorBody {
        /// For programs: `unauthorized`, `not_found`, `invalid`, `conflict`, `limit`, `too_large`, `refused`,
        /// `method_not_allowed`, `unavailable`.
        code: String,
        /// For people.
        message: String,
    }
    /// The service in a few numbers.
    StatusView {
        /// Version of the program.
        version: String,
        /// The fleet, by its root key (hex).
        fleet: String,
        /// SHA-256 of the CA certificate, as bootstrap files carry it.
        ca_fingerprint: String,
        /// Where agents find the gateway.
        gateway: String,
        /// Last position of the log that is folded.
        position: u64,
        /// SHA-256 over all projections (hex): equal to a rebuild from zero at the same position.
        state_hash: String,
        /// Agents by state.
        agents: BTreeMap<String, u64>,
        /// Runs by state.
        runs: BTreeMap<String, u64>,
        /// Whether the log takes records.
        healthy: bool,
        /// Entries of the log under the newest signed checkpoint; none if nothing is sealed.
        #[serde(default)]
        sealed: Option<u64>,
        /// What an operator has to look at, one line each; see `flotilla audit witnesses`.
        #[serde(default)]
        alarms: Vec<String>,
        /// What does not go on as it should while the service works.
        #[serde(default)]
        warnings: Vec<String>,
        /// First position of the log here: 1, unless its beginning was archived.
        #[serde(default)]
        log_first: u64,
        /// Position that a check of the log has reached, if one runs.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        checking: Option<u64>,
    }
    /// Size and root of a history.
    HeadView {
        /// Entries.
        size: u64,
        /// Root of the Merkle tree over them (base64).
        root: String,
    }
    /// What is sealed, who witnesses it, and which histories do not go together.
    WitnessesView {
        /// Name of the log: it stands for the fleet's root key.
        origin: String,
        /// The newest signed checkpoint; none before the first.
        sealed: Option<HeadView>,
        /// When this service last signed since it was started.
        signed_at: Option<String>,
        /// `good`, `waiting` or `stopped`.
        sealing: String,
        /// Why it waits or stopped.
        sealing_detail: Option<String>,
        /// Agents, sorted by id.
        witnesses: Vec<WitnessView>,
        /// Every conflict on the log, oldest first; each is an alarm.
        conflicts: Vec<ConflictShape>,
        /// Give this as `after` for the next page.
        next: Option<String>,
        /// Position of the log that this is as of.
        as_of: u64,
    }
    /// One agent as a witness.
    WitnessView {
        /// Its id.
        agent: String,
        /// Its name.
        name: String,
        /// Whether its control link is up.
        online: bool,
        /// `agrees`, `conflict`, `nothing` (it holds none yet), `unheard` (it has not said since the service was started,
        /// or its program is older), `unverified` (no key of the log has signed what it holds), `uncompared`.
        state: String,
        /// What it holds.
        held: Option<HeadView>,
        /// When it said so.
        told: Option<String>,
        /// Entries by which that is behind the newest checkpoint.
        lag: Option<u64>,
        /// In a conflict: as many entries of this log, or all that it had.
        log: Option<HeadView>,
        /// Why it could not be verified or compared.
        detail: Option<String>,
        /// Why it did not take the checkpoint that it was last shown.
        refused: Option<String>,
    }
    /// A signed checkpoint is held that the log does not continue.
    ConflictShape {
        /// When it was recorded.
        found: String,
        /// The agent that holds it; none if it is the service's own.
        witness: Option<String>,
        /// That agent's name.
        name: Option<String>,
        /// What is held.
        held: HeadView,
        /// The signed checkpoint itself.
        held_note: String,
        /// As many entries of the log, or all that it had.
        log: HeadView,
    }
    /// The newest checkpoint.
    SealView {
        /// What it is over.
        head: HeadView,
        /// The signed note.
        checkpoint: String,
        /// Why it does not cover everything.
        detail: Option<String>,
    }
    /// The control services that share a log.
    ReplicasView {
        /// In the order of their ids.
        replicas: Vec<ReplicaView>,
        /// Holders of the lease so far.
        term: u64,
        /// Gateways that agents are told, this replica's first.
        gateways: Vec<String>,
        /// Position of the log that this answer shows.
        as_of: u64,
    }
    /// One control service.
    ReplicaView {
        /// Its id: that of its data folder.
        id: String,
        /// `live` or `stopped`, as the log knows it.
        state: String,
        /// Whether it is the one that answers.
        own: bool,
        /// Whether it holds the lease.
        lease: bool,
        /// How often it was started or began anew.
        epoch: u64,
        /// Since when it is in this state.
        since: String,
        /// Version of its program.
        version: String,
        /// Why it stopped.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        ended: Option<String>,
    }
    /// The live state against one that was folded anew from the log's first record.
    LogCheckView {
        /// Position at which both were taken.
        position: u64,
        /// SHA-256 over all live projections (hex).
        state_hash: String,
        /// SHA-256 over the projections folded anew (hex).
        rebuilt_hash: String,
        /// Whether the two are the same.
        equal: bool,
        /// Position behind which it was folded: 0, or the last archived one, from the state that is kept of it.
        #[serde(default)]
        from: u64,
        /// States attested on the log that the fold leads to as well.
        #[serde(default)]
        attested: u64,
        /// States attested in a form that this program does not know.
        #[serde(default)]
        attested_unknown: u64,
        /// States attested that the fold does not lead to.
        #[serde(default)]
        attested_differing: u64,
        /// Position of the first of those.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        first_differing: Option<u64>,
        /// What differs there, in words.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        detail: Option<String>,
        /// What the servers hold against this service's copy of it, if servers keep the log.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        servers: Option<ServersCheckView>,
    }
    /// Everything that the servers of the log hold against the service's own copy.
    ServersCheckView {
        /// Messages looked at.
        messages: u64,
        /// Records compared.
        records: u64,
        /// What is different, each with position and message; the first 1,000.
        differences: Vec<String>,
        /// Differences beyond those.
        more: u64,
        /// Servers that were away or did not answer: nothing is said of them.
        unseen: Vec<String>,
    }
    /// A page of agents.
    AgentsView {
        /// In the order of their ids.
        agents: Vec<AgentView>,
        /// Cursor of the next page, if there is one: give it as `after`.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        next: Option<String>,
        /// Position of the log that this answer shows.
        as_of: u64,
    }
    /// An agent.
    AgentView {
        /// Its id.
        id: String,
        /// Its name, unique among agents that are not removed.
        name: String,
        /// `online`, `offline`, `pending` or `removed`.
        state: String,
        /// Its tags.
        tags: BTreeMap<String, String>,
        /// Version of its program.
        version: String,
        /// Where its µTP2 endpoint was last to be tried.
        addresses: Vec<String>,
        /// When the service last recorded something it did.
        last_seen: String,
        /// When it enrolled.
        enrolled: String,
        /// Its Ed25519 key (hex).
        public_key: String,
        /// Names of the groups it is in.
        groups: Vec<String>,
    }
    /// A change of tags.
    TagsWish {
        /// Tags to set; names become upper-case.
        #[serde(default)]
        set: BTreeMap<String, String>,
        /// Names of tags to take away.
        #[serde(default)]
        remove: Vec<String>,
    }
    /// All tokens.
    TokensView {
        /// In the order in which they were made.
        tokens: Vec<TokenView>,
        /// Cursor of the next page, if there is one.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        next: Option<String>,
        /// Position of the log that this answer shows.
        as_of: u64,
    }
    /// A bootstrap token; its secret is shown once, when it is made.
    TokenView {
        /// Its id, which is no secret.
        id: String,
        /// `live`, `spent`, `expired` or `revoked`.
        state: String,
        /// Tags for agents that use it.
        tags: BTreeMap<String, String>,
        /// How many agents may use it.
        uses: u32,
        /// How many have.
        used: u32,
        /// Ids of those agents.
        used_by: Vec<String>,
        /// When it was made.
        created: String,
        /// Until when it counts.
        expires: String,
    }
    /// A token to be made.
    TokenWish {
        /// Tags for agents that use it; `AGENT_NAME` names them.
        #[serde(default)]
        tags: BTreeMap<String, String>,
        /// How many agents may use it. Default 1.
        #[serde(default)]
        uses: Option<u32>,
        /// Seconds until it expires. Default 86,400.
        #[serde(default)]
        expires_s: Option<u64>,
        /// Folder below which relative paths of jobs lie at the agent.
        #[serde(default)]
        storage_path: Option<String>,
    }
    /// A token that was made.
    TokenCreated {
        /// Its id.
        id: String,
        /// Until when it counts.
        expires: String,
        /// The bootstrap file for the agent; it contains the secret.
        #[schema(value_type = Object)]
        bootstrap: Value,
        /// The same, without storage path, as one word: an enrolment code for text fields. Missing if a gateway's name is
        /// longer than 255 bytes.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        code: Option<String>,
    }
    /// A page of groups.
    GroupsView {
        /// In the order in which they were made.
        groups: Vec<GroupView>,
        /// Cursor of the next page, if there is one.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        next: Option<String>,
        /// Position of the log that this answer shows.
        as_of: u64,
    }
    /// A group.
    GroupView {
        /// Its id.
        id: String,
        /// Its name, unique among groups.
        name: String,
        /// Who is in it.
        members: Vec<MemberView>,
    }
    /// A member of a group.
    MemberView {
        /// The agent's id.
        id: String,
        /// Its name.
        name: String,
        /// `online`, `offline` or `pending`.
        state: String,
    }
    /// A group to be made.
    GroupWish {
        /// Its name.
        name: String,
    }
    /// Agents to be put into a group or taken out of it.
    MembersWish {
        /// Names, ids or unique beginnings of ids.
        agents: Vec<String>,
    }
    /// A page of jobs.
    JobsView {
        /// In the order in which they were made.
        jobs: Vec<JobView>,
        /// Cursor of the next page, if there is one.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        next: Option<String>,
        /// Position of the log that this answer shows.
        as_of: u64,
    }
    /// A job.
    JobView {
        /// Its id.
        id: String,
        /// Its name, unique among jobs.
        name: String,
        /// `distribution`, `consolidation`, `synchronization` or `backup`.
        kind: String,
        /// From where, if it has one source.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        source: Option<PlaceView>,
        /// From where.
        #[serde(default)]
        sources: Vec<PlaceView>,
        /// To where.
        destinations: Vec<PlaceView>,
        /// Of a consolidation or backup: how the folder of each source is named.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        subfolder: Option<String>,
        /// Of a consolidation: what becomes of the sources' files when every destination has them: `keep`, `archive:30d`
        /// or `delete`.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        after: Option<String>,
        /// Of a synchronization: who takes part, and how.
        #[serde(skip_serializing_if = "Vec::is_empty", default)]
        members: Vec<ShareView>,
        /// Of a synchronization: what holds for all members.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        policy: Option<PolicyView>,
        /// Of a backup: when it is started.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        when: Option<WhenShape>,
        /// Of a backup: which versions are kept.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        keep: Option<KeepShape>,
        /// What is asked of its runs, if anything is.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        options: Option<OptionsShape>,
        /// When it was made.
        created: String,
        /// Ids of its runs, newest last, at most 100.
        runs: Vec<String>,
    }
    /// A folder at an agent or at all agents of a group.
    PlaceView {
        /// `agent` or `group`.
        kind: String,
        /// Id of the agent or group.
        id: String,
        /// Its name.
        name: String,
        /// The folder.
        path: String,
        /// Its bytes in hex, if they are no UTF-8.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        path_hex: Option<String>,
    }
    /// A folder, as one asks for it.
    PlaceWish {
        /// An agent (name, id, unique beginning of an id) or a group (name, id); `agent:` or `group:`
        /// before it tells them apart where both exist.
        party: String,
        /// The folder.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        path: Option<String>,
        /// Instead of `path`, its bytes in hex.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        path_hex: Option<String>,
    }
    /// A job to be made.
    JobWish {
        /// `distribution`, `consolidation`, `synchronization` or `backup`.
        kind: String,
        /// Its name.
        name: String,
        /// From where, of a distribution: one agent.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        source: Option<PlaceWish>,
        /// From where, of a consolidation or backup: agents and groups.
        #[serde(skip_serializing_if = "Vec::is_empty", default)]
        sources: Vec<PlaceWish>,
        /// To where. Of a consolidation or backup the path is what the sources' folders are below.
        #[serde(skip_serializing_if = "Vec::is_empty", default)]
        destinations: Vec<PlaceWish>,
        /// Of a synchronization: who takes part, and how.
        #[serde(skip_serializing_if = "Vec::is_empty", default)]
        members: Vec<ShareWish>,
        /// Of a synchronization: what holds for all members.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        policy: Option<PolicyWish>,
        /// Of a consolidation or backup: how the folder of each source is named; `%SRC:TAG%` stands for a tag of the source, `%%` for
        /// a percent sign. Default `/%SRC:AGENT_NAME%`.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        subfolder: Option<String>,
        /// Of a consolidation: what becomes of the sources' files when every destination has them: `keep` (the default),
        /// `archive:30d` (moved to an archive in the source's folder, deleted after so many days) or `delete`.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        after: Option<String>,
        /// Of a backup: when it is started. Default: by hand alone.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        when: Option<WhenShape>,
        /// Of a backup: which versions are kept. Default: the last 7, and one of each of 14 days, 8 weeks, 12 months.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        keep: Option<KeepShape>,
        /// What is asked of its runs; not of a synchronization.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        options: Option<OptionsShape>,
        /// Whether a run is started at once. Default true; of a backup that is not started by hand alone, false.
        #[serde(default)]
        start: Option<bool>,
    }
    /// A job that was made or started.
    JobStarted {
        /// The job.
        job: String,
        /// The run, if one was started.
        run: Option<String>,
        /// Of a consolidation: what binds the runs of this start together.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        batch: Option<String>,
        /// Every run that was started.
        #[serde(default)]
        runs: Vec<String>,
        /// Sources that did not start anew, as their last run of this job is still active.
        #[serde(skip_serializing_if = "Vec::is_empty", default)]
        skipped: Vec<SkippedView>,
    }
    /// A source whose last run is still active.
    SkippedView {
        /// Its id.
        id: String,
        /// Its name.
        name: String,
        /// That run.
        run: String,
    }
    /// A page of starts.
    BatchesView {
        /// Newest first.
        batches: Vec<BatchView>,
        /// Cursor of the next page, if there is one.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        next: Option<String>,
        /// Position of the log that this answer shows.
        as_of: u64,
    }
    /// One start of a job with many sources, with totals over its runs.
    BatchView {
        /// Its id.
        id: String,
        /// Of which job.
        job: String,
        /// The job's name.
        job_name: String,
        /// When it started.
        started: String,
        /// What becomes of the sources' files when every destination has them: `keep`, `archive:30d` or `delete`.
        after: String,
        /// Its runs, one for each source.
        runs_total: u64,
        /// Those that have not ended.
        runs_active: u64,
        /// Runs by outcome, or by state if they have not ended.
        states: BTreeMap<String, u64>,
        /// Files, folders and symlinks of the sources that have told.
        entries: u64,
        /// Bytes of the files of the sources that have told.
        bytes: u64,
        /// Bytes that all destinations together are to have.
        bytes_due: u64,
        /// Bytes that they have.
        bytes_done: u64,
        /// How many problems were reported.
        problems: u64,
        /// Sources that have disposed of their files.
        disposals: u64,
        /// Sources that refused to.
        disposals_refused: u64,
        /// What they did, in all.
        disposed: DisposalView,
        /// The runs, if one batch was asked for.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        runs: Option<Vec<RunSummary>>,
        /// Position of the log that this answer shows.
        as_of: u64,
    }
    /// What became of a source's files.
    DisposalView {
        /// Files that were archived or deleted.
        files: u64,
        /// Their bytes.
        bytes: u64,
        /// Files that stayed, as they are not what was sent any more.
        changed: u64,
        /// Files that were not there any more.
        gone: u64,
        /// Files that stayed, as they could not be read, moved or deleted.
        failed: u64,
        /// Why the source did nothing.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        refused: Option<String>,
    }
    /// A page of runs.
    RunsView {
        /// Newest first.
        runs: Vec<RunSummary>,
        /// Cursor of the next page, if there is one.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        next: Option<String>,
        /// Position of the log that this answer shows.
        as_of: u64,
    }
    /// A run in a list.
    RunSummary {
        /// Its id.
        id: String,
        /// Of which job.
        job: String,
        /// The job's name.
        job_name: String,
        /// `preparing`, `transferring`, `synchronizing`, `finished`, `failed` or `stopped`.
        state: String,
        /// `succeeded`, `succeeded_with_errors`, `failed` or `stopped`, once it ended.
        outcome: Option<String>,
        /// When it started.
        started: String,
        /// When it ended.
        finished: Option<String>,
        /// Files, folders and symlinks, once the source knows.
        entries: Option<u64>,
        /// Bytes of all files.
        bytes: Option<u64>,
        /// How many agents shall receive it.
        destinations: u64,
        /// How many of them have ended.
        destinations_ended: u64,
        /// How many problems were reported.
        problems: u64,
        /// Name of the source.
        #[serde(default)]
        source: String,
        /// The start that it belongs to with others.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        batch: Option<String>,
        /// Of a synchronization: how many take part.
        #[serde(default)]
        members: u64,
        /// What it is for, if it is one of a backup.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        purpose: Option<PurposeView>,
    }
    /// A run.
    RunView {
        /// Its id.
        id: String,
        /// Of which job.
        job: String,
        /// The job's name.
        job_name: String,
        /// `preparing` (no manifest yet), `transferring`, `synchronizing`, `finished`, `failed` or `stopped`.
        state: String,
        /// `succeeded`, `succeeded_with_errors`, `failed` or `stopped`, once it ended.
        outcome: Option<String>,
        /// Why an operator stopped it.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        stop_reason: Option<String>,
        /// Files, folders and symlinks, once the source knows.
        entries: Option<u64>,
        /// Bytes of all files.
        bytes: Option<u64>,
        /// Content blocks.
        blocks: Option<u64>,
        /// When it started.
        started: String,
        /// When it ended.
        finished: Option<String>,
        /// Who takes part: the source, then the destinations.
        agents: Vec<RunAgentView>,
        /// Problems in the order they came, at most 100 per agent and 1,000 in all.
        problems: Vec<ProblemView>,
        /// How many problems were reported.
        problems_total: u64,
        /// Seconds until every destination is expected to have everything; none while that cannot be said.
        eta_seconds: Option<u64>,
        /// Bytes per second that all destinations together verify.
        rate_bytes_s: u64,
        /// Position of the log that this answer shows.
        as_of: u64,
        /// The start that it belongs to with others.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        batch: Option<String>,
        /// What becomes of the source's files when every destination has them: `keep`, `archive:30d` or `delete`.
        #[serde(default)]
        after: String,
        /// What became of them.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        disposal: Option<DisposalView>,
        /// If it synchronizes: how that stands.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        sync: Option<SyncView>,
        /// What it is for, if it is one of a backup.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        purpose: Option<PurposeView>,
        /// What is asked of it, if anything is.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        options: Option<OptionsShape>,
        /// What the log tells of the run, if asked for.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        history: Option<Vec<HistoryView>>,
    }
    /// An agent's part in a run.
    RunAgentView {
        /// Its id.
        id: String,
        /// Its name.
        name: String,
        /// Whether its control link is up.
        online: bool,
        /// `source`, `destination` or `member`.
        role: String,
        /// As a member of a synchronization.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        member: Option<SyncMemberView>,
        /// Its folder.
        path: String,
        /// The folder's bytes in hex, if they are no UTF-8.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        path_hex: Option<String>,
        /// `waiting`, `accepted`, `indexing`, `serving`, `finding_peers`, `fetching_manifest`, `transferring`,
        /// `finalizing`, `stalled`, `done`, `done_with_errors`, `failed`, `stopped` or `synchronizing`.
        state: String,
        /// Since when.
        since: String,
        /// Content blocks in all.
        blocks_total: u64,
        /// Content blocks in place.
        blocks_done: u64,
        /// Content bytes in all.
        bytes_total: u64,
        /// Content bytes in place.
        bytes_done: u64,
        /// Content bytes sent to others.
        bytes_sent: u64,
        /// Bytes verified per second, smoothed.
        rate_bytes_s: u64,
        /// Connected peers.
        peers: u32,
        /// Entries read so far, while a source indexes.
        entries_indexed: u64,
        /// What it moved; given at its end.
        stats: Option<StatsView>,
        /// Its problems, at most 100.
        problems: Vec<ProblemView>,
        /// How many problems it reported.
        problems_total: u64,
        /// The last problem of an agent that failed or is stalled.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        error: Option<String>,
    }
    /// What one agent moved in one run, over all its restarts.
    StatsView {
        /// Files, folders and symlinks of the manifest.
        entries: u64,
        /// Bytes of all files of the manifest.
        bytes_total: u64,
        /// Content blocks of the manifest.
        blocks_total: u64,
        /// Content blocks that arrived and verified.
        blocks_fetched: u64,
        /// Content blocks that were on disk already.
        blocks_reused: u64,
        /// Content blocks that arrived though they were verified before.
        blocks_duplicate: u64,
        /// Blocks that did not match their hash.
        blocks_corrupt: u64,
        /// Content bytes received from the source.
        bytes_from_source: u64,
        /// Content bytes received from other destinations.
        bytes_from_peers: u64,
        /// Content bytes sent to others.
        bytes_sent: u64,
    }
    /// One thing that went wrong.
    ProblemView {
        /// The agent's name.
        agent: String,
        /// Its id.
        agent_id: String,
        /// When it was recorded.
        time: String,
        /// `disk_full`, `permission_denied`, `not_found`, `source_changed`, `unsafe_link`, `unsafe_name`,
        /// `unsupported_kind`, `corrupt_block`, `bad_manifest`, `limit_exceeded`, `io`, `internal` or
        /// `replaced`.
        class: String,
        /// The entry inside the run's folder; empty if none is concerned.
        path: String,
        /// Its bytes in hex, if they are no UTF-8.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        path_hex: Option<String>,
        /// What happened and what to do.
        detail: String,
    }
    /// Keys of private texts, for an auditor who may read them.
    SubjectKeysView {
        /// All that are at hand.
        keys: Vec<SubjectKeyView>,
    }
    /// One key.
    SubjectKeyView {
        /// `job/…`, `agent/…` or `user/…` with the id.
        subject: String,
        /// The key (hex). A secret.
        key: String,
    }
    /// Whose texts are to be erased.
    EraseWish {
        /// `job`, `agent` or `user`.
        kind: String,
        /// Name or id.
        name: String,
        /// Why, for the log; one line.
        reason: String,
    }
    /// What was erased.
    ErasedView {
        /// `job/…`, `agent/…` or `user/…` with the id.
        subject: String,
        /// When it was recorded (RFC 3339, UTC).
        erased: Option<String>,
        /// Whether the key is destroyed; if not, it is tried again.
        key_destroyed: bool,
        /// Whether some of it stands in the clear in what was recorded before the log's schema level 2, or may, because
        /// that is in an archive.
        in_clear: bool,
        /// Of an agent: jobs, by id, of which it took part in runs that are still known, and which are not erased. Under
        /// their keys stand its addresses, and of consolidations the folders that were named after it and its tags.
        #[serde(default)]
        under_jobs: Vec<String>,
        /// The log's position where this was read.
        as_of: u64,
    }
    /// Why a run is stopped.
    StopWish {
        /// For people.
        #[serde(default)]
        reason: Option<String>,
    }
    /// The events of a run.
    HistoriesView {
        /// In the order of the log.
        history: Vec<HistoryView>,
        /// Cursor of the next page, if there is one.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        next: Option<String>,
        /// Position of the log that this answer shows.
        as_of: u64,
    }
    /// One event of a run.
    HistoryView {
        /// Position of its record in the log.
        position: u64,
        /// When the service recorded it.
        time: String,
        /// Its wire name, such as `run.started`.
        kind: String,
        /// Who brought it about: `service`, `operator NAME` or `agent NAME`.
        actor: String,
        /// In words.
        summary: String,
    }
    /// A page of the log.
    LogView {
        /// In order.
        records: Vec<RecordView>,
        /// Position from which to go on.
        next: u64,
    }
    /// A record of the log.
    RecordView {
        /// Its position.
        position: u64,
        /// Its id.
        id: String,
        /// When.
        time: String,
        /// The stream it is told in.
        stream: String,
        /// Who brought it about.
        actor: String,
        /// The record that caused it.
        causation: Option<String>,
        /// The record that began the process it belongs to.
        correlation: String,
        /// What happened.
        events: Vec<EventView>,
    }
    /// An event.
    EventView {
        /// Its wire name.
        kind: String,
        /// In words.
        summary: String,
        /// Its fields; ids and bytes in hex.
        #[schema(value_type = Object)]
        data: Value,
    }
}
