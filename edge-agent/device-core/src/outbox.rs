//! Reports that wait to go home (PROTOCOL.md §2.4, DEVICE_FORMAT.md §8).

use alloc::vec::Vec;

use embedded_storage::nor_flash::NorFlash;
use event_schema::{
    Report, ReportBody, RunAgentState, RunCompleted, RunStateReported, Signed, Timestamp, TransferStats,
    encode,
};

use crate::core_state::Core;
use crate::device::{Device, Error};
use crate::limits::{REPORT_LEN_MAX, REPORTS_LEN_MAX, REPORTS_MAX, STATES_MAX};
use crate::store::Item;

/// Reports that are about to enter together with a transaction.
pub(crate) struct Entering {
    first: u64,
    signed: Vec<Vec<u8>>,
}

impl Entering {
    pub(crate) fn items(&self) -> impl Iterator<Item = Item<'_>> {
        (self.first..).zip(&self.signed).map(|(number, bytes)| Item::Report(number, bytes))
    }
}

impl<F: NorFlash> Device<F> {
    /// Numbers and signs reports that must enter, and counts them in `core`.
    pub(crate) fn enter(
        &self,
        core: &mut Core,
        bodies: Vec<ReportBody>,
        time: Timestamp,
    ) -> Result<Entering, Error> {
        let first = core.made + 1;
        let (mut count, mut bytes) = self.store.waiting();
        let mut signed = Vec::with_capacity(bodies.len());
        for body in bodies {
            core.made += 1;
            let report = Report { agent: self.me, sequence: core.made, time, body };
            let report = encode(&report.sign(&self.key));
            if report.len() > REPORT_LEN_MAX {
                return Err(Error::TooLarge);
            }
            count += 1;
            bytes += report.len();
            signed.push(report);
        }
        if count > REPORTS_MAX || bytes > REPORTS_LEN_MAX {
            return Err(Error::OutboxFull);
        }
        Ok(Entering { first, signed })
    }

    /// Reports a state of the order's run; whether it found room. One that did not is counted.
    ///
    /// # Errors
    /// [`Error::Worn`], [`Error::Flash`].
    pub fn report_state(&mut self, state: RunAgentState, now: Option<Timestamp>) -> Result<bool, Error> {
        let Some(run) = self.order()?.and_then(|order| order.body.join().map(|join| join.run)) else {
            return Ok(false);
        };
        let mut core = self.store.core().clone();
        let time = self.at_least(now);
        let crowded = self.store.waiting().0 >= STATES_MAX;
        let body = ReportBody::from(RunStateReported { run, state });
        let entering = match self.enter(&mut core, alloc::vec![body], time) {
            Ok(entering) if !crowded => entering,
            Ok(_) | Err(Error::OutboxFull) => {
                let mut core = self.store.core().clone();
                core.dropped = core.dropped.saturating_add(1);
                self.store.commit(core, &[])?;
                return Ok(false);
            }
            Err(e) => return Err(e),
        };
        let items: Vec<_> = entering.items().collect();
        self.store.commit(core, &items)?;
        Ok(true)
    }

    /// Reports how the order's run ended here, once: whether it was told by this call. The order stays until the service
    /// says that the run is over, so that what is here can be served.
    ///
    /// # Errors
    /// [`Error::OutboxFull`], [`Error::Worn`], [`Error::Flash`].
    pub fn report_end(
        &mut self,
        state: RunAgentState,
        stats: TransferStats,
        now: Option<Timestamp>,
    ) -> Result<bool, Error> {
        let mut core = self.store.core().clone();
        let Some(run) = self.order()?.and_then(|order| order.body.join().map(|join| join.run)) else {
            return Ok(false);
        };
        if core.ended {
            return Ok(false);
        }
        core.ended = true;
        let body = ReportBody::from(RunCompleted { run, state, stats });
        let entering = self.enter(&mut core, alloc::vec![body], self.at_least(now))?;
        let items: Vec<_> = entering.items().collect();
        self.store.commit(core, &items)?;
        Ok(true)
    }

    /// Numbers of the reports that wait: from the first that is not stored at home to the last that was made.
    pub fn waiting(&self) -> core::ops::RangeInclusive<u64> {
        let core = self.store.core();
        core.stored + 1..=core.made
    }

    /// A report that waits, to be sent or given to somebody who carries it home. `None` if there is none of this number,
    /// or the flash lost it.
    ///
    /// # Errors
    /// [`Error::Flash`].
    pub fn report(&mut self, number: u64) -> Result<Option<Signed>, Error> {
        let mut buffer = [0; REPORT_LEN_MAX];
        let bytes = self.store.report(number, &mut buffer)?;
        Ok(bytes.and_then(|bytes| event_schema::decode_exact("Signed", bytes).ok()))
    }

    /// The service has all reports up to this number; whether that was news. More than were ever made counts as all of
    /// them.
    ///
    /// # Errors
    /// [`Error::Worn`].
    pub fn stored(&mut self, up_to: u64) -> Result<bool, Error> {
        let mut core = self.store.core().clone();
        let stored = up_to.min(core.made);
        if stored <= core.stored {
            return Ok(false);
        }
        core.stored = stored;
        self.store.commit(core, &[])?;
        Ok(true)
    }

    /// Reports of states that were dropped for want of room, since the device was made.
    pub fn dropped(&self) -> u32 {
        self.store.core().dropped
    }
}
