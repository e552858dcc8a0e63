//! What the gateway asks of the service: [`Fleet`] for [`Service`].

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use agent_proto::limits::ADDRESSES_MAX;
use agent_proto::link::{CheckpointSent, Hello, Holds, Progress, Refused};
use control_core::agent::{self, Answer, Command, Enrolment};
use control_core::replica::Session as AtReplica;
use control_core::{Rejection, projection::StandingView, report};
use event_audit::SignedCheckpoint;
use event_schema::{AgentId, Event, RefusalReason, Report, Signed, Timestamp, TokenId};
use sha2::{Digest, Sha256};
use tokio::sync::{broadcast, watch};

use super::{Origin, Ousted, Service, SubmitError};
use crate::gateway::{EnrolDecision, EnrolRequest, Fleet, ReportError, Session};
use crate::sealing::{Heard, Sealing};

/// How long an agent that waits for approval, or that met a log out of order, is to wait.
const RETRY_AFTER_S: u32 = 10;

/// Refused enrolments that are recorded in a burst, and the time in which one more is: anybody can
/// cause them, so the log is not theirs to fill.
const REFUSALS_BURST: u32 = 50;
const REFUSAL_EVERY: Duration = Duration::from_secs(10);

/// Lets so many things happen, and one more each time an interval has passed.
#[derive(Debug)]
pub(crate) struct Bucket(Mutex<(u32, Instant)>);

impl Bucket {
    pub(crate) fn new() -> Self {
        Self(Mutex::new((REFUSALS_BURST, Instant::now())))
    }

    fn take(&self, now: Instant) -> bool {
        let mut bucket = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (left, since) = &mut *bucket;
        let passed = now.saturating_duration_since(*since);
        let more = (passed.as_secs() / REFUSAL_EVERY.as_secs()).min(u64::from(REFUSALS_BURST)) as u32;
        if more > 0 {
            *left = (*left + more).min(REFUSALS_BURST);
            *since = now;
        }
        let may = *left > 0;
        *left = left.saturating_sub(1);
        may
    }
}

/// How long the progress of a run is heard after its end: what was on its way.
const LATE: Duration = Duration::from_secs(60);

fn is_heard(finished: Option<Timestamp>, now: Timestamp) -> bool {
    finished.is_none_or(|finished| now < finished.after(LATE))
}

impl Fleet for Service {
    async fn enrol(&self, request: EnrolRequest) -> EnrolDecision {
        let wish = Enrolment {
            agent: request.agent,
            public_key: request.public_key,
            name: request.name,
            tags: request.tags,
            token: request.token.as_deref().and_then(presented),
            version: request.version,
            address: request.address.to_string(),
        };
        if request.token.is_some() && wish.token.is_none() {
            return EnrolDecision::Refused(refused(RefusalReason::UnknownToken));
        }
        let service = self.clone();
        let decided = self
            .submit(Origin::agent(request.agent), move |state, now| {
                let (mut events, answer) = agent::enrol(state, &wish, now);
                let is_refusal = matches!(answer, Answer::Refused(_));
                if is_refusal && !events.is_empty() && !service.shared.refusals.take(Instant::now()) {
                    events.clear();
                }
                Ok((events, answer))
            })
            .await;
        match decided {
            Ok(Answer::Approved { name }) => EnrolDecision::Approved { name },
            Ok(Answer::Pending) => EnrolDecision::Pending { retry_after_s: RETRY_AFTER_S },
            Ok(Answer::Refused(reason)) => {
                self.metrics().enrolments_refused.add(1);
                EnrolDecision::Refused(refused(reason))
            }
            Err(error) => {
                tracing::warn!(agent = %request.agent, %error, "an enrolment was not recorded");
                EnrolDecision::Pending { retry_after_s: RETRY_AFTER_S }
            }
        }
    }

    async fn connected(&self, agent: AgentId, hello: Hello, address: SocketAddr) -> Result<Session, Refused> {
        if !self.is_serving() {
            let detail = "this control service is cut off from the others: try one of those";
            return Err(Refused { reason: RefusalReason::TooEarly, detail: detail.into() });
        }
        let at = self.session();
        let addresses = reachable(&hello.addresses, address.ip());
        let version = hello.version;
        let decided = self.submit_while_awaited(Origin::agent(agent), move |state, _| {
            let (addresses, version) = (addresses.clone(), version.clone());
            let events = agent::decide(state, Command::Connected { agent, session: at, addresses, version })?;
            let name = state.agent_name(agent).unwrap_or_default().to_owned();
            Ok((events, Session { name, reports_stored: state.reports_stored(agent) }))
        });
        decided.await.map_err(|error| match error {
            SubmitError::Rejected(Rejection::Refused { reason, detail }) => Refused { reason, detail },
            other => Refused {
                reason: RefusalReason::TooEarly,
                detail: format!("the control service cannot record this now, try again later: {other}"),
            },
        })
    }

    async fn disconnected(&self, agent: AgentId, reason: String) {
        let at = self.session();
        let decided = self.decide(Origin::agent(agent), move |state, _| {
            agent::decide(state, Command::Disconnected { agent, session: at, reason: reason.clone() })
        });
        if let Err(error) = decided.await {
            tracing::warn!(%agent, %error, "an agent's going offline was not recorded");
        }
    }

    async fn reports(&self, agent: AgentId, reports: Vec<Signed>) -> Result<u64, ReportError> {
        let key = {
            let views = self.views();
            match views.fleet.agents.get(&agent) {
                None => return Err(ReportError::Refused(refused(RefusalReason::NotAllowed))),
                Some(view) if view.standing == StandingView::Removed => {
                    return Err(ReportError::Refused(refused(RefusalReason::Removed)));
                }
                Some(view) => view.public_key,
            }
        };
        let mut opened = Vec::with_capacity(reports.len());
        for signed in reports {
            match Report::open(&signed, &key) {
                Ok(report) => opened.push((report, signed)),
                Err(reason) => {
                    self.metrics().reports_refused.add(1);
                    return Err(ReportError::Refused(refused(reason)));
                }
            }
        }
        let came = opened.len() as u64;
        let decided = self.submit(Origin::agent(agent), move |state, _| {
            let events = report::decide(state, agent, &opened)?;
            let taken = events.iter().filter_map(|event| match event {
                Event::ReportReceived(e) => Some(e.sequence),
                _ => None,
            });
            let (new, last) = (taken.clone().count() as u64, taken.max());
            Ok((events, (new, last.unwrap_or_else(|| state.reports_stored(agent)))))
        });
        match decided.await {
            Ok((new, up_to)) => {
                self.metrics().reports.add(new);
                self.metrics().reports_repeated.add(came.saturating_sub(new));
                Ok(up_to)
            }
            Err(SubmitError::Rejected(rejection)) => {
                self.metrics().reports_refused.add(1);
                let reason = match rejection {
                    Rejection::Refused { reason, .. } => reason,
                    _ => RefusalReason::NotAllowed,
                };
                Err(ReportError::Refused(Refused { reason, detail: rejection.to_string() }))
            }
            // The agent sends them again, and those that were recorded are dropped then.
            Err(SubmitError::Unavailable(why) | SubmitError::Unknown(why)) => {
                Err(ReportError::Unavailable(why))
            }
        }
    }

    fn progress(&self, agent: AgentId, progress: Progress) {
        self.metrics().progress.add(1);
        let now = super::now();
        let takes_part = self
            .views()
            .runs
            .runs
            .get(&progress.run)
            .is_some_and(|run| run.agents.contains_key(&agent) && is_heard(run.finished, now));
        if takes_part {
            if let Some(kept) = self.kept_telemetry() {
                kept.take(agent, &progress, now);
            }
            self.telemetry().take(agent, progress, Instant::now());
        }
    }

    async fn commands_after(&self, agent: AgentId, cursor: u64, max: usize) -> Vec<(u64, Signed)> {
        self.views().mailboxes.after(agent, cursor, max)
    }

    fn command_watch(&self, agent: AgentId) -> watch::Receiver<u64> {
        // The lock on the watches is held while the mailbox is read: a command published meanwhile finds
        // the watch, one published before is in the mailbox.
        let mut watches = self.shared.watches();
        let watch = watches
            .entry(agent)
            .or_insert_with(|| watch::Sender::new(self.shared.views().mailboxes.last(agent)));
        watch.subscribe()
    }

    fn sealed(&self) -> Option<watch::Receiver<Option<Arc<SignedCheckpoint>>>> {
        self.sealing().map(Sealing::checkpoints)
    }

    fn log_position(&self) -> u64 {
        *self.shared.position.borrow()
    }

    async fn holds(&self, agent: AgentId, holds: Holds) -> Heard {
        match self.sealing() {
            Some(sealing) => sealing.hear(self, agent, &holds).await,
            None => Heard::default(),
        }
    }

    async fn checkpoint(&self, heard: Heard, with_keys: bool) -> Option<(u64, CheckpointSent)> {
        let shown = self.sealing()?.show(heard, with_keys).await?;
        self.metrics().checkpoints_sent.add(1);
        Some(shown)
    }

    fn is_removed(&self, agent: AgentId) -> bool {
        let views = self.views();
        views.fleet.agents.get(&agent).is_some_and(|view| view.standing == StandingView::Removed)
    }

    fn must_leave(&self, agent: AgentId) -> Option<Ousted> {
        if !self.is_serving() {
            return Some(Ousted::All);
        }
        if self.is_removed(agent) {
            return Some(Ousted::Removed(agent));
        }
        let here = self.session();
        if here == AtReplica::ALONE {
            // What the log tells of replicas was before: sessions of a service that has it to itself are not told.
            return None;
        }
        let sessions = self.shared.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        // Without a record there is no other replica.
        sessions.get(&agent).is_some_and(|at| *at != here).then_some(Ousted::Moved(agent))
    }

    fn ousted(&self) -> broadcast::Receiver<Ousted> {
        self.shared.ousted.subscribe()
    }

    fn gateways(&self) -> watch::Receiver<Arc<[String]>> {
        Self::gateways(self)
    }
}

/// Id and hash of a token's text; none if it is no token.
fn presented(text: &str) -> Option<(TokenId, [u8; 32])> {
    let id = text.split_once('.')?.0.parse().ok()?;
    Some((id, token_hash(text)))
}

/// What is kept of a token's text.
pub(crate) fn token_hash(text: &str) -> [u8; 32] {
    Sha256::digest(text.as_bytes()).into()
}

/// The addresses of a hello that others can try, in their one form.
fn reachable(addresses: &[String], seen: IpAddr) -> Vec<String> {
    let mut list = Vec::new();
    for text in addresses.iter().take(ADDRESSES_MAX) {
        let Ok(mut address) = text.parse::<SocketAddr>() else { continue };
        if address.port() == 0 || address.ip().is_multicast() {
            continue;
        }
        if address.ip().is_unspecified() {
            address.set_ip(seen.to_canonical());
        }
        let text = address.to_string();
        if !list.contains(&text) {
            list.push(text);
        }
    }
    list
}

fn refused(reason: RefusalReason) -> Refused {
    let detail = match reason {
        RefusalReason::UnknownToken => "this fleet has no such token: make one with `flotilla token create`",
        RefusalReason::TokenSpent => "the token has no uses left: make another with `flotilla token create`",
        RefusalReason::TokenExpired => {
            "the token has expired or was revoked: make another with `flotilla token create`"
        }
        RefusalReason::Removed => "the agent was removed from the fleet; to come back it needs a new key",
        RefusalReason::BadSignature => "the signature does not hold under the agent's key",
        RefusalReason::WrongAudience => "the report names another agent",
        RefusalReason::NotUnderstood => "not understood: the agent is newer than the control service",
        RefusalReason::NotAllowed => "the fleet does not know the agent, or is full",
        RefusalReason::Replayed | RefusalReason::TooEarly | RefusalReason::Expired => "not at this time",
    };
    Refused { reason, detail: detail.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_heard_until_a_minute_after_the_end() {
        let end = Timestamp(5_000_000);
        assert!(is_heard(None, end) && is_heard(Some(end), end) && is_heard(Some(end), end.after(LATE / 2)));
        assert!(is_heard(Some(end), Timestamp(1)), "a clock that went back");
        assert!(!is_heard(Some(end), end.after(LATE)));
    }

    #[test]
    fn addresses_are_made_reachable() {
        let seen = "192.0.2.7".parse().unwrap();
        let given = ["0.0.0.0:5000", "[::]:5000", "10.0.0.1:1", "nonsense", "10.0.0.1:0", "224.0.0.1:9"];
        let given = given.map(String::from);
        assert_eq!(reachable(&given, seen), ["192.0.2.7:5000", "10.0.0.1:1"]);
        assert_eq!(reachable(&vec!["10.0.0.1:7".to_string(); 99], seen).len(), 1);
    }

    #[test]
    fn a_bucket_fills_again() {
        let (bucket, start) = (Bucket::new(), Instant::now());
        assert_eq!((0..200).filter(|_| bucket.take(start)).count(), 50);
        let later = start + REFUSAL_EVERY * 3;
        assert_eq!((0..200).filter(|_| bucket.take(later)).count(), 3);
    }

    #[test]
    fn tokens_are_known_by_their_hash() {
        let text = format!("{}.{}", "ab".repeat(16), "0".repeat(64));
        assert_eq!(presented(&text), Some((TokenId([0xab; 16]), token_hash(&text))));
        assert_eq!(presented("no token"), None);
        assert_eq!(presented("xy.00"), None);
    }
}
