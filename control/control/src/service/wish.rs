//! What is asked of the writer: decisions of others, and the commands that follow from what was decided.

use std::sync::Arc;

use control_core::{Rejection, State, backup, plan};
use event_log::Position;
use event_schema::{AgentId, Event, JobId, RecordId, RunId, Timestamp};
use tokio::sync::oneshot;

use super::issue::Issuer;
use super::{Origin, SubmitError};

/// What commands follow from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Concern {
    /// What stands in a run.
    Run(RunId),
    /// What stands of a backup besides its runs; with a source: of that one's versions.
    Backup(JobId, Option<AgentId>),
}

impl Concern {
    /// Whether there are commands to be given.
    pub(super) fn is_outstanding(self, state: &State) -> bool {
        match self {
            Self::Run(run) => plan::is_outstanding(state, run),
            Self::Backup(job, of) => backup::plan::is_outstanding(state, job, of),
        }
    }
}

/// A wish on its way through the writer.
pub(crate) trait Wish: Send {
    /// Decides; keeps what the answer needs.
    fn decide(&mut self, state: &State, now: Timestamp) -> Result<Vec<Event>, Rejection>;
    /// Who asks.
    fn origin(&self) -> &Origin;
    /// Whether it has to be decided on what is durable, first in a commit of its own.
    fn is_alone(&self) -> bool {
        false
    }
    /// Whose commands it orders: nobody asks for them again, so they are owed until they are recorded.
    fn orders(&self) -> Option<Concern> {
        None
    }
    /// Whether it is not wanted any more, because who asked has gone.
    fn is_given_up(&self) -> bool {
        false
    }
    /// Tells the one who asked.
    fn answer(self: Box<Self>, result: Result<(), SubmitError>);
}

/// A wish in the writer's hands.
pub(super) struct Waiting {
    pub(super) wish: Box<dyn Wish>,
    /// Records made of it of which it is not known whether they were stored, each with the position before it.
    pub(super) tried: Vec<(RecordId, Position)>,
}

impl From<Box<dyn Wish>> for Waiting {
    fn from(wish: Box<dyn Wish>) -> Self {
        Self { wish, tried: Vec::new() }
    }
}

struct Asked<T, F> {
    origin: Origin,
    /// It means nothing to anybody else, and is dropped with who asked.
    only_if_awaited: bool,
    decide: F,
    value: Option<T>,
    reply: oneshot::Sender<Result<T, SubmitError>>,
}

/// Puts a decision function into the writer's terms.
pub(crate) fn wish<T, F>(
    origin: Origin,
    only_if_awaited: bool,
    decide: F,
) -> (Box<dyn Wish>, oneshot::Receiver<Result<T, SubmitError>>)
where
    T: Send + 'static,
    F: FnMut(&State, Timestamp) -> Result<(Vec<Event>, T), Rejection> + Send + 'static,
{
    let (reply, answer) = oneshot::channel();
    (Box::new(Asked { origin, only_if_awaited, decide, value: None, reply }), answer)
}

impl<T, F> Wish for Asked<T, F>
where
    T: Send,
    F: FnMut(&State, Timestamp) -> Result<(Vec<Event>, T), Rejection> + Send,
{
    fn decide(&mut self, state: &State, now: Timestamp) -> Result<Vec<Event>, Rejection> {
        let (events, value) = (self.decide)(state, now)?;
        self.value = Some(value);
        Ok(events)
    }

    fn origin(&self) -> &Origin {
        &self.origin
    }

    fn is_given_up(&self) -> bool {
        self.only_if_awaited && self.reply.is_closed()
    }

    fn answer(self: Box<Self>, result: Result<(), SubmitError>) {
        let Self { value, reply, .. } = *self;
        let answer = result.map(|()| value.expect("a wish is granted after it was decided"));
        // Whoever does not wait any more does not need the answer.
        let _ = reply.send(answer);
    }
}

/// The commands that are still to be given.
pub(super) struct Orders {
    pub(super) concern: Concern,
    pub(super) origin: Origin,
    pub(super) issuer: Arc<Issuer>,
}

impl Wish for Orders {
    fn decide(&mut self, state: &State, now: Timestamp) -> Result<Vec<Event>, Rejection> {
        Ok(self.issuer.issue(state, self.concern, now))
    }

    fn origin(&self) -> &Origin {
        &self.origin
    }

    fn orders(&self) -> Option<Concern> {
        Some(self.concern)
    }

    fn answer(self: Box<Self>, result: Result<(), SubmitError>) {
        if let Err(error) = result {
            tracing::error!(about = ?self.concern, %error, "commands wait to be issued until the log works again");
        }
    }
}
