//! Form 1, and what later forms have in common with it. What is written here in which order is `events/AUDIT_FORMAT.md`
//! §10.2 to §10.4 and §10.7; it never changes.
//!
//! Written out by hand instead of derived: a field or variant that is added elsewhere must not slip into hashes that
//! stand on the log already, and every `match` on what is recorded makes the compiler ask.

use std::collections::BTreeMap;

use event_schema::{
    AgentId, JobSpec, Outcome, Party, Place, Private, ProblemClass, Role, RunAgentState, Signed, Timestamp,
    TransferStats,
};
use sha2::{Digest, Sha256};

use crate::projection::{
    AgentView, ConflictView, GroupView, JobView, Mailbox, ProblemView, RunAgentView, RunView, StandingView,
    TokenView, Views,
};

/// Bytes gathered before they are hashed.
const BUFFER_BYTES: usize = 16 * 1024;

pub(super) fn hash(views: &Views) -> [u8; 32] {
    let mut form = Form::new(1);
    form.views(views);
    form.finish()
}

/// A form on its way into the hash. Later ones have the parts of form 1 in them, with their own way to put private texts.
pub(super) struct Form {
    number: u8,
    digest: Sha256,
    buffer: Vec<u8>,
}

impl Form {
    pub(super) fn new(number: u8) -> Self {
        Self { number, digest: Sha256::new(), buffer: Vec::with_capacity(2 * BUFFER_BYTES) }
    }

    pub(super) fn finish(mut self) -> [u8; 32] {
        self.digest.update(&self.buffer);
        self.digest.finalize().into()
    }

    pub(super) fn views(&mut self, views: &Views) {
        self.raw(b"flotilla state\n");
        self.u8(self.number);
        self.u64(views.position());
        self.option(views.fleet.root_key, |form, key| form.raw(&key));
        self.option(views.fleet.ca_fingerprint, |form, print| form.raw(&print));
        self.u64(views.fleet.enrolments_refused);
        self.map(&views.fleet.agents, |form, id, agent| {
            form.raw(&id.0);
            form.agent(agent);
        });
        self.map(&views.fleet.groups, |form, id, group| {
            form.raw(&id.0);
            form.group(group);
        });
        self.map(&views.fleet.tokens, |form, id, token| {
            form.raw(&id.0);
            form.token(token);
        });
        self.map(&views.jobs.jobs, |form, id, job| {
            form.raw(&id.0);
            form.job(job);
        });
        self.map(&views.runs.runs, |form, id, run| {
            form.raw(&id.0);
            form.run(run);
        });
        self.map(&views.mailboxes.agents, |form, id, mailbox| {
            form.raw(&id.0);
            form.mailbox(mailbox);
        });
        self.list(views.conflicts.conflicts.iter(), Form::conflict);
    }

    /// A text that may be sealed: form 1 knows them in the clear alone, form 2 puts what stands on the log.
    pub(super) fn private<T>(&mut self, private: &Private<T>, put: impl FnOnce(&mut Self, &T)) {
        if self.number > 1 {
            match private.sealed() {
                Some(sealed) => {
                    self.u8(1);
                    return self.raw(&sealed.digest());
                }
                None if !private.is_clear() => return self.u8(2),
                None => self.u8(0),
            }
        }
        put(self, private);
    }

    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= BUFFER_BYTES {
            self.digest.update(&self.buffer);
            self.buffer.clear();
        }
    }

    pub(super) fn u8(&mut self, value: u8) {
        self.raw(&[value]);
    }

    pub(super) fn bool(&mut self, value: bool) {
        self.u8(value.into());
    }

    pub(super) fn u64(&mut self, value: u64) {
        self.raw(&value.to_le_bytes());
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.u64(bytes.len() as u64);
        self.raw(bytes);
    }

    pub(super) fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    pub(super) fn time(&mut self, time: Timestamp) {
        self.u64(time.0);
    }

    pub(super) fn option<T>(&mut self, value: Option<T>, put: impl FnOnce(&mut Self, T)) {
        self.bool(value.is_some());
        if let Some(value) = value {
            put(self, value);
        }
    }

    pub(super) fn list<T>(
        &mut self,
        list: impl ExactSizeIterator<Item = T>,
        mut put: impl FnMut(&mut Self, T),
    ) {
        self.u64(list.len() as u64);
        list.for_each(|item| put(self, item));
    }

    pub(super) fn map<K, V>(&mut self, map: &BTreeMap<K, V>, mut put: impl FnMut(&mut Self, &K, &V)) {
        self.list(map.iter(), |form, (key, value)| put(form, key, value));
    }

    fn agents<'a>(&mut self, ids: impl ExactSizeIterator<Item = &'a AgentId>) {
        self.list(ids, |form, id| form.raw(&id.0));
    }

    fn tags(&mut self, tags: &[(String, String)]) {
        self.list(tags.iter(), |form, (name, value)| {
            form.text(name);
            form.text(value);
        });
    }

    fn agent(&mut self, agent: &AgentView) {
        self.private(&agent.name, |form, name| form.text(name));
        self.raw(&agent.public_key);
        self.u8(match agent.standing {
            StandingView::Pending => 0,
            StandingView::Approved => 1,
            StandingView::Removed => 2,
        });
        self.bool(agent.online);
        self.private(&agent.tags, |form, tags| form.tags(tags));
        self.text(&agent.version);
        self.private(&agent.addresses, |form, addresses| {
            form.list(addresses.iter(), |form, address| form.text(address));
        });
        self.time(agent.enrolled);
        self.time(agent.last_seen);
        self.u64(agent.reports_stored);
        if self.number > 1 {
            self.session(agent.session);
        }
    }

    fn group(&mut self, group: &GroupView) {
        self.text(&group.name);
        self.agents(group.members.iter());
    }

    fn token(&mut self, token: &TokenView) {
        self.tags(&token.tags);
        self.u64(token.uses.into());
        self.agents(token.used_by.iter());
        self.time(token.created);
        self.time(token.expires);
        self.bool(token.revoked);
    }

    fn job(&mut self, job: &JobView) {
        self.private(&job.name, |form, name| form.text(name));
        match &job.spec {
            JobSpec::Distribution { source, destinations, .. } => {
                self.u8(0);
                self.place(source);
                self.list(destinations.iter(), Self::place);
            }
            JobSpec::Consolidation { sources, destinations, subfolder, after, .. } => {
                self.consolidation(sources, destinations, subfolder, *after);
            }
            JobSpec::Synchronization { members, policy } => self.synchronization(members, policy),
            JobSpec::Backup { sources, destinations, subfolder, when, keep, .. } => {
                self.backup_job(sources, destinations, subfolder, when, keep);
            }
        }
        if self.number > 4 {
            self.option(job.spec.options(), |form, options| form.private(options, Self::options));
        }
        self.time(job.created);
        self.list(job.runs.iter(), |form, run| form.raw(&run.0));
    }

    pub(super) fn place(&mut self, place: &Place) {
        let (kind, id) = match &place.party {
            Party::Agent(id) => (0, id.0),
            Party::Group(id) => (1, id.0),
        };
        self.u8(kind);
        self.raw(&id);
        self.private(&place.path, |form, path| form.bytes(path));
    }

    fn run(&mut self, run: &RunView) {
        self.raw(&run.job.0);
        self.private(&run.job_name, |form, name| form.text(name));
        self.time(run.started);
        self.option(run.finished, Self::time);
        self.option(run.outcome, |form, outcome| {
            form.u8(match outcome {
                Outcome::Succeeded => 0,
                Outcome::SucceededWithErrors => 1,
                Outcome::Failed => 2,
                Outcome::Stopped => 3,
            });
        });
        self.option(run.stop_reason.as_ref(), |form, reason| form.text(reason));
        self.option(run.manifest, |form, manifest| {
            form.u64(manifest.entries);
            form.u64(manifest.bytes);
            form.u64(manifest.blocks);
        });
        if self.number > 1 {
            self.private(&run.paths, |form, paths| form.list(paths.iter(), |form, path| form.bytes(path)));
        }
        self.map(&run.agents, |form, id, agent| {
            form.raw(&id.0);
            form.run_agent(run, agent);
        });
        self.list(run.problems.iter(), Self::problem);
        self.list(run.history.iter(), |form, position| form.u64(*position));
        if self.number > 2 {
            self.of_batch(run);
        }
        if self.number > 3 {
            self.of_sync(run);
        }
        if self.number > 4 {
            self.of_purpose(run);
        }
    }

    fn run_agent(&mut self, run: &RunView, agent: &RunAgentView) {
        self.u8(match agent.role {
            Role::Source => 0,
            Role::Destination => 1,
            Role::Member => 2,
        });
        match self.number {
            1 => self.bytes(run.path(agent)),
            _ => self.u64(agent.path.into()),
        }
        self.u8(match agent.state {
            RunAgentState::Waiting => 0,
            RunAgentState::Accepted => 1,
            RunAgentState::Indexing => 2,
            RunAgentState::Serving => 3,
            RunAgentState::FindingPeers => 4,
            RunAgentState::FetchingManifest => 5,
            RunAgentState::Transferring => 6,
            RunAgentState::Finalizing => 7,
            RunAgentState::Stalled => 8,
            RunAgentState::Done => 9,
            RunAgentState::DoneWithErrors => 10,
            RunAgentState::Failed => 11,
            RunAgentState::Stopped => 12,
            RunAgentState::Synchronizing => 13,
        });
        self.time(agent.since);
        self.option(agent.stats, Self::stats);
        self.u64(agent.problems);
        if self.number > 3 {
            self.sync_member(agent.member.as_ref());
        }
    }

    fn stats(&mut self, stats: TransferStats) {
        let TransferStats {
            entries,
            bytes_total,
            blocks_total,
            blocks_fetched,
            blocks_reused,
            blocks_duplicate,
            blocks_corrupt,
            bytes_from_source,
            bytes_from_peers,
            bytes_sent,
        } = stats;
        for number in [
            entries,
            bytes_total,
            blocks_total,
            blocks_fetched,
            blocks_reused,
            blocks_duplicate,
            blocks_corrupt,
            bytes_from_source,
            bytes_from_peers,
            bytes_sent,
        ] {
            self.u64(number);
        }
    }

    fn problem(&mut self, view: &ProblemView) {
        self.raw(&view.agent.0);
        self.time(view.time);
        self.u8(match view.class {
            ProblemClass::DiskFull => 0,
            ProblemClass::PermissionDenied => 1,
            ProblemClass::NotFound => 2,
            ProblemClass::SourceChanged => 3,
            ProblemClass::UnsafeLink => 4,
            ProblemClass::UnsafeName => 5,
            ProblemClass::UnsupportedKind => 6,
            ProblemClass::CorruptBlock => 7,
            ProblemClass::BadManifest => 8,
            ProblemClass::LimitExceeded => 9,
            ProblemClass::Io => 10,
            ProblemClass::Internal => 11,
            ProblemClass::Replaced => 12,
            ProblemClass::Damaged => 13,
        });
        self.private(&view.text, |form, text| {
            form.bytes(&text.path);
            form.text(&text.detail);
        });
    }

    fn mailbox(&mut self, mailbox: &Mailbox) {
        self.u64(mailbox.last);
        self.map(&mailbox.waiting, |form, sequence, signed| {
            form.u64(*sequence);
            form.private(signed, Form::signed);
        });
    }

    fn conflict(&mut self, conflict: &ConflictView) {
        self.time(conflict.found);
        self.option(conflict.witness, |form, agent| form.raw(&agent.0));
        for (size, root) in [conflict.held, conflict.log] {
            self.u64(size);
            self.raw(&root);
        }
        self.text(&conflict.held_note);
    }

    fn signed(&mut self, signed: &Signed) {
        self.bytes(&signed.bytes);
        self.raw(&signed.signature.0);
        self.raw(&signed.signature.1);
    }
}
