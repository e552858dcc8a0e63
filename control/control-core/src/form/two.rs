//! Form 2, and what form 3 has in common with it: form 1 with sealed texts as they stand on the log, and what that
//! leaves out (`events/AUDIT_FORMAT.md` §10.3). It never changes.

use super::one::Form;
use crate::projection::{ReplicaView, SubjectView, Views};
use crate::replica::Session;

pub(super) fn hash(views: &Views) -> [u8; 32] {
    of_number(2, views)
}

pub(super) fn of_number(number: u8, views: &Views) -> [u8; 32] {
    let mut form = Form::new(number);
    form.views(views);
    form.u8(views.level());
    form.map(&views.subjects.subjects, |form, subject, view| {
        form.raw(&subject.to_bytes());
        form.subject(view);
    });
    form.map(&views.replicas.replicas, |form, id, replica| {
        form.raw(&id.0);
        form.replica(replica);
    });
    form.option(views.replicas.lease, |form, lease| {
        form.session(lease.holder);
        form.u64(lease.term);
    });
    if number > 4 {
        form.backups(&views.backups);
    }
    form.finish()
}

impl Form {
    fn subject(&mut self, view: &SubjectView) {
        self.raw(&view.commitment);
        self.time(view.opened);
        self.option(view.erased, Self::time);
        self.option(view.reason.as_ref(), |form, reason| form.text(reason));
    }

    fn replica(&mut self, view: &ReplicaView) {
        self.u64(view.epoch);
        self.bool(view.live);
        self.time(view.since);
        self.text(&view.version);
        self.option(view.ended.as_ref(), |form, why| form.text(why));
    }

    pub(super) fn session(&mut self, session: Session) {
        self.raw(&session.replica.0);
        self.u64(session.epoch);
    }
}
