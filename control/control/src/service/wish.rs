//! What is asked of the writer: decisions of others, and the commands that follow from what was decided.

use std::sync::Arc;

use control_core::{Rejection, State};
use event_log::Position;
use event_schema::{Event, RecordId, RunId, Timestamp};
use tokio::sync::oneshot;

use super::issue::Issuer;
use super::{Origin, SubmitError};

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
    /// The run whose commands it orders: nobody asks for them again, so they are owed until they are recorded.
    fn orders(&self) -> Option<RunId> {
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

/// The commands that a run still needs.
pub(super) struct Orders {
    pub(super) run: RunId,
    pub(super) origin: Origin,
    pub(super) issuer: Arc<Issuer>,
}

impl Wish for Orders {
    fn decide(&mut self, state: &State, now: Timestamp) -> Result<Vec<Event>, Rejection> {
        Ok(self.issuer.issue(state, self.run, now))
    }

    fn origin(&self) -> &Origin {
        &self.origin
    }

    fn orders(&self) -> Option<RunId> {
        Some(self.run)
    }

    fn answer(self: Box<Self>, result: Result<(), SubmitError>) {
        if let Err(error) = result {
            tracing::error!(run = %self.run, %error, "commands wait to be issued until the log works again");
        }
    }
}
