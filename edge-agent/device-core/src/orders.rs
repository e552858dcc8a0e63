//! Commands: taken once, in order and in time, whoever carried them (PROTOCOL.md §2.3, DEVICE_FORMAT.md §6).

use alloc::boxed::Box;
use alloc::vec::Vec;

use agent_proto::{Verdict, judge};
use embedded_storage::nor_flash::NorFlash;
use event_schema::{
    Command, CommandAccepted, CommandBody, CommandId, CommandRefused, RefusalReason, ReportBody, Role,
    RunAgentState, RunCompleted, RunId, Signed, Timestamp, TransferStats, decode_exact, encode,
};

use crate::core_state::{Core, SlotState};
use crate::device::{Device, Error};
use crate::image::blocks_of;
use crate::limits::ORDER_LEN_MAX;
use crate::store::Item;

/// What became of a command.
#[derive(Clone, Debug, PartialEq)]
pub enum Taken {
    /// It is stored with its answer, and to be obeyed.
    Obey(Box<Command>),
    /// Its turn, and stored as refused for this reason.
    Refused(RefusalReason),
    /// Not signed by a key that counts. Nothing was stored.
    Forged,
    /// Authentic, and seen before or for somebody else: nothing was stored, nothing is answered, since whoever is near
    /// can send such ones without end.
    Passed(RefusalReason),
    /// Commands before it are missing. Nothing was stored.
    Gap,
    /// It may have expired, or not be due yet: nobody knows before the time is known. Nothing was stored.
    NeedsTime,
}

impl<F: NorFlash> Device<F> {
    /// Judges a command, stores it with its answer in one transaction, and says what to do. `now` is the time as somebody
    /// trusted told it since the start, if anybody did.
    ///
    /// A device takes part in one run. `run.join` as a destination takes the place of an order before it; the end of its run,
    /// if it was another one, is reported if it was not; `run.finish` and `run.stop` end it. All others are refused as not understood.
    ///
    /// # Errors
    /// [`Error::OutboxFull`]: the command is not taken, and may be brought again. [`Error::Worn`], [`Error::Flash`].
    pub fn take(&mut self, signed: &Signed, now: Option<Timestamp>) -> Result<Taken, Error> {
        let at = self.at_least(now);
        let before = self.store.core();
        let large = encode(signed).len() > ORDER_LEN_MAX;
        let verdict = judge(signed, self.store.trust().command_keys(), self.me, before.cursor, at, |_| large);
        let (command, sequence, reason) = match verdict {
            Verdict::Forged => return Ok(Taken::Forged),
            Verdict::Gap => return Ok(Taken::Gap),
            Verdict::Refuse { in_turn: false, reason, .. } => return Ok(Taken::Passed(reason)),
            Verdict::Refuse { command, sequence, reason, in_turn: true } => (command, sequence, reason),
            Verdict::Obey(_) if now.is_none() => return Ok(Taken::NeedsTime),
            Verdict::Obey(command) if understood(&command.body) => return self.obey(command, signed, at),
            Verdict::Obey(command) => (command.id, command.sequence, RefusalReason::NotUnderstood),
        };
        // What is too early by the latest time that is known to have been may be due by now; what has expired by then has.
        if now.is_none() && reason == RefusalReason::TooEarly {
            return Ok(Taken::NeedsTime);
        }
        let mut core = Core { cursor: sequence, time: at, ..before.clone() };
        let answer = CommandRefused { command, sequence, reason };
        let entering = self.enter(&mut core, alloc::vec![answer.into()], at)?;
        let items: Vec<_> = entering.items().collect();
        self.store.commit(core, &items)?;
        Ok(Taken::Refused(reason))
    }

    fn obey(&mut self, command: Box<Command>, signed: &Signed, at: Timestamp) -> Result<Taken, Error> {
        let mut core = Core { cursor: command.sequence, time: at, ..self.store.core().clone() };
        let mut reports = alloc::vec![accepted(command.id, command.sequence)];
        let current = self.order()?.and_then(|order| order.body.join().map(|join| join.run));
        let bytes = encode(signed);
        let mut order = None;
        match &command.body {
            CommandBody::FinishRun(finish) if current == Some(finish.run) => core.order = 0,
            CommandBody::StopRun(stop) if current == Some(stop.run) => {
                reports.extend(self.stopped(current));
                core.order = 0;
            }
            CommandBody::JoinRun(join) => {
                reports.extend(self.stopped(current.filter(|run| *run != join.run)));
                (core.order, core.ended) = (command.sequence, false);
                order = Some(Item::Order(command.sequence, &bytes));
            }
            _ => {}
        }
        let entering = self.enter(&mut core, reports, at)?;
        let items: Vec<_> = order.into_iter().chain(entering.items()).collect();
        self.store.commit(core, &items)?;
        Ok(Taken::Obey(command))
    }

    /// The end of an order that gives way, if it was not reported.
    fn stopped(&self, current: Option<RunId>) -> Option<ReportBody> {
        let core = self.store.core();
        let run = current.filter(|_| !core.ended)?;
        let mut stats = TransferStats::default();
        if core.spare().state == SlotState::Receiving {
            stats.entries = 1;
            stats.bytes_total = core.spare().len.into();
            stats.blocks_total = blocks_of(core.spare().len).into();
        }
        Some(RunCompleted { run, state: RunAgentState::Stopped, stats }.into())
    }

    /// The command that is being carried out: a `run.join`.
    ///
    /// # Errors
    /// [`Error::Flash`] if it cannot be read, or is not what was stored.
    pub fn order(&mut self) -> Result<Option<Command>, Error> {
        let Some(bytes) = self.store.order()? else { return Ok(None) };
        let signed: Signed = decode_exact("Signed", &bytes).map_err(|_| Error::Flash)?;
        Command::decode(&signed.bytes).map(Some).map_err(|_| Error::Flash)
    }
}

fn accepted(command: CommandId, sequence: u64) -> ReportBody {
    CommandAccepted { command, sequence }.into()
}

/// Whether it is something that devices do.
fn understood(body: &CommandBody) -> bool {
    match body {
        CommandBody::JoinRun(join) => join.role == Role::Destination,
        CommandBody::FinishRun(_) | CommandBody::StopRun(_) => true,
        _ => false,
    }
}
