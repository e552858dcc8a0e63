//! Orders become signed commands: what `control_core::plan` leaves to keys, clock and randomness.

use std::time::Duration;

use agent_proto::RunSecret;
use control_core::plan::{self, Order};
use control_core::{State, backup};
use ed25519_dalek::SigningKey;
use event_schema::{AgentId, Command, CommandBody, CommandIssued, Event, RunId, Timestamp};

use super::ids::{Ids, random};
use super::wish::Concern;

/// Commands in one record, and bytes of them: a record stays well below what every log accepts.
const COMMANDS_MAX: usize = 64;
const BYTES_MAX: usize = 384 * 1024;

/// Commands count from this much before they are made: clocks at the edge are off.
const BACKDATED: Duration = Duration::from_secs(300);

/// What signing needs.
pub(crate) struct Issuer {
    pub(crate) key: SigningKey,
    pub(crate) secret_of: Box<dyn Fn(RunId) -> RunSecret + Send + Sync>,
    pub(crate) trackers: Vec<String>,
    pub(crate) time_to_live: Duration,
}

impl Issuer {
    /// The next outstanding commands, as many as go into one record.
    pub(crate) fn issue(&self, state: &State, concern: Concern, now: Timestamp) -> Vec<Event> {
        let issued: Vec<CommandIssued> = match concern {
            Concern::Run(run) => {
                let orders = plan::orders(state, run, COMMANDS_MAX).into_iter();
                orders.filter_map(|order| self.sign(order, now)).collect()
            }
            Concern::Backup(job, of) => {
                let orders = backup::plan::orders(state, job, of, COMMANDS_MAX).into_iter();
                orders.map(|order| self.issued(order.agent, order.sequence, None, order.body, now)).collect()
            }
        };
        let mut bytes = 0;
        let mut events = Vec::new();
        for event in issued {
            bytes += event.signed.bytes.len() + 128;
            if bytes > BYTES_MAX && !events.is_empty() {
                break;
            }
            events.push(event.into());
        }
        events
    }

    /// Signs one command. None if the agent's key cannot be sealed to: such a key is refused at
    /// enrolment, so it is not met; the run then shows the agent as waiting.
    fn sign(&self, order: Order, now: Timestamp) -> Option<CommandIssued> {
        let Order { agent, public_key, sequence, run, task } = order;
        let sealed = if task.needs_secret() {
            let secret = (self.secret_of)(run);
            let context = agent_proto::link::seal_context(run);
            match agent_proto::seal(&public_key, &context, secret.as_bytes(), random()) {
                Ok(sealed) => sealed,
                Err(error) => {
                    tracing::error!(%agent, %run, %error, "the agent's key cannot be used");
                    return None;
                }
            }
        } else {
            Vec::new()
        };
        let body = task.into_body(run, self.trackers.clone(), sealed);
        Some(self.issued(agent, sequence, Some(run), body, now))
    }

    fn issued(
        &self,
        agent: AgentId,
        sequence: u64,
        run: Option<RunId>,
        body: CommandBody,
        now: Timestamp,
    ) -> CommandIssued {
        let (joins, backup) = (body.joins(), body.backup());
        let command = Command {
            id: Ids(now).command(),
            audience: agent,
            sequence,
            issued: now,
            not_before: Timestamp(now.0.saturating_sub(BACKDATED.as_millis() as u64)),
            expires: now.after(self.time_to_live),
            body,
        };
        let signed = command.sign(&self.key).into();
        CommandIssued { command: command.id, agent, sequence, run, joins, signed, backup }
    }
}
