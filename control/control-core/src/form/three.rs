//! Form 3: form 2 with consolidations, the starts that runs belong to, and what became of sources' files
//! (`events/AUDIT_FORMAT.md` §10.4). It never changes.

use event_schema::{Disposal, Disposed, Place, Private, RefusalReason};

use super::one::Form;
use super::two;
use crate::projection::{DisposalView, RunView, Views};

pub(super) fn hash(views: &Views) -> [u8; 32] {
    two::of_number(3, views)
}

impl Form {
    pub(super) fn consolidation(
        &mut self,
        sources: &[Place],
        destinations: &[Place],
        subfolder: &Private<String>,
        after: Disposal,
    ) {
        self.u8(1);
        self.list(sources.iter(), Self::place);
        self.list(destinations.iter(), Self::place);
        self.private(subfolder, |form, text| form.text(text));
        self.disposal(after);
    }

    /// What a run has at its end.
    pub(super) fn of_batch(&mut self, run: &RunView) {
        self.option(run.batch, |form, batch| form.raw(&batch.0));
        self.disposal(run.after);
        self.option(run.disposal.as_ref(), |form, DisposalView { time, disposed, refused }| {
            let Disposed { files, bytes, changed, gone, failed } = *disposed;
            form.time(*time);
            [files, bytes, changed, gone, failed].into_iter().for_each(|number| form.u64(number));
            form.option(*refused, Self::refusal);
        });
    }

    fn disposal(&mut self, disposal: Disposal) {
        match disposal {
            Disposal::Keep => self.u8(0),
            Disposal::Archive { days } => {
                self.u8(1);
                self.u64(days.into());
            }
            Disposal::Delete => self.u8(2),
        }
    }

    pub(super) fn refusal(&mut self, reason: RefusalReason) {
        self.u8(match reason {
            RefusalReason::BadSignature => 0,
            RefusalReason::WrongAudience => 1,
            RefusalReason::Replayed => 2,
            RefusalReason::TooEarly => 3,
            RefusalReason::Expired => 4,
            RefusalReason::NotUnderstood => 5,
            RefusalReason::NotAllowed => 6,
            RefusalReason::UnknownToken => 7,
            RefusalReason::TokenSpent => 8,
            RefusalReason::TokenExpired => 9,
            RefusalReason::Removed => 10,
        });
    }
}
