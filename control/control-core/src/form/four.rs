//! Form 4: form 3 with synchronizations (`events/AUDIT_FORMAT.md` §10.7). It never changes.

use event_schema::{GuardAnswer, LocalChanges, Obstacle, Party, Permission, Selection, Share, SyncPolicy};

use super::one::Form;
use super::two;
use crate::projection::{BlockedView, FileConflictView, GuardView, RunView, SyncMemberView, SyncView, Views};

pub(super) fn hash(views: &Views) -> [u8; 32] {
    two::of_number(4, views)
}

impl Form {
    pub(super) fn synchronization(&mut self, members: &[Share], policy: &SyncPolicy) {
        self.u8(2);
        self.list(members.iter(), Self::share);
        self.policy(policy);
    }

    fn share(&mut self, share: &Share) {
        let (kind, id) = match &share.party {
            Party::Agent(id) => (0, id.0),
            Party::Group(id) => (1, id.0),
        };
        self.u8(kind);
        self.raw(&id);
        self.private(&share.path, |form, path| form.bytes(path));
        self.permission(share.permission);
        self.private(&share.selection, Self::selection);
    }

    fn permission(&mut self, permission: Permission) {
        self.u8(match permission {
            Permission::ReadWrite => 0,
            Permission::ReadOnly { local: LocalChanges::KeepAside } => 1,
            Permission::ReadOnly { local: LocalChanges::Revert } => 2,
        });
    }

    fn selection(&mut self, selection: &Selection) {
        self.list(selection.ignore.iter(), |form, line| form.text(line));
        self.list(selection.wanted.iter(), |form, line| form.text(line));
    }

    fn policy(&mut self, policy: &SyncPolicy) {
        self.option(policy.archive, |form, limits| {
            form.option(limits.max_age_days, |form, days| form.u64(days.into()));
            form.option(limits.max_bytes, Self::u64);
        });
        self.u8(policy.guard_percent);
        self.u64(policy.guard_min.into());
    }

    /// What a run has at its end.
    pub(super) fn of_sync(&mut self, run: &RunView) {
        self.option(run.sync.as_ref(), |form, sync| {
            let SyncView { revision, policy, selections, conflicts, settled } = sync;
            form.u64((*revision).into());
            form.policy(policy);
            form.private(selections, |form, list| form.list(list.iter(), Self::selection));
            form.map(conflicts, |form, key, conflict| {
                form.raw(&key.agent);
                form.raw(&key.replica);
                form.u64(key.change);
                let FileConflictView { found, agent, loser, winner, text } = conflict;
                form.time(*found);
                [agent, loser, winner].into_iter().for_each(|id| form.raw(&id.0));
                form.private(text, |form, text| {
                    form.bytes(&text.path);
                    form.bytes(&text.copy);
                });
            });
            form.u64(*settled);
        });
    }

    /// What a run's agent has at its end.
    pub(super) fn sync_member(&mut self, member: Option<&SyncMemberView>) {
        self.option(member, |form, member| {
            let SyncMemberView { permission, selection, left, guard, blocked, rolled_back } = member;
            form.permission(*permission);
            form.u64((*selection).into());
            form.bool(*left);
            form.option(*guard, |form, guard| {
                let GuardView { number, since, missing, total, answer } = guard;
                form.u64(number);
                form.time(since);
                form.u64(missing);
                form.u64(total);
                form.option(answer, |form, answer| {
                    form.u8(match answer {
                        GuardAnswer::Delete => 0,
                        GuardAnswer::Restore => 1,
                    });
                });
            });
            form.map(blocked, |form, number, BlockedView { time, obstacle, text }| {
                form.u64(*number);
                form.time(*time);
                form.u8(match obstacle {
                    Obstacle::NameTaken => 0,
                    Obstacle::BadName => 1,
                    Obstacle::NobodyHas => 2,
                    Obstacle::UnsafeLink => 3,
                    Obstacle::NoFolder => 4,
                    Obstacle::NotEmpty => 5,
                    Obstacle::TooLarge => 6,
                });
                form.private(text, |form, text| {
                    form.bytes(&text.path);
                    form.bytes(&text.by);
                });
            });
            form.u64(*rolled_back);
        });
    }
}
