//! Agents: enrolment, approval, removal, tags, presence.

use std::collections::BTreeMap;

use event_schema::{
    AgentApproved, AgentEnrolled, AgentId, AgentOffline, AgentOnline, AgentRemoved, AgentSessionOpened,
    AgentTagged, CommandId, EnrolmentRefused, Event, GroupMembersRemoved, JobId, Private, Problem,
    ProblemClass, RefusalReason, RunId, Timestamp, TokenId, TokenUsed,
};

use serde::{Deserialize, Serialize};

use crate::limits::{AGENTS_MAX, PENDING_AGENTS_MAX};
use crate::replica::Session;
use crate::{Rejection, State, sync, text, token};

/// Where an agent stands with the fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Standing {
    Pending,
    Approved,
    Removed,
}

/// An agent as decisions see it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Agent {
    pub(crate) public_key: [u8; 32],
    pub(crate) name: Private<String>,
    pub(crate) tags: Private<Vec<(String, String)>>,
    pub(crate) standing: Standing,
    pub(crate) online: bool,
    /// Where it was last connected, on logs that several services share.
    pub(crate) session: Session,
    pub(crate) addresses: Private<Vec<String>>,
    pub(crate) version: String,
    pub(crate) last_report: u64,
    pub(crate) last_command: u64,
    /// Commands that were not acknowledged yet, by sequence.
    pub(crate) waiting: BTreeMap<u64, Issued>,
}

/// A command that waits for its answer.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Issued {
    pub(crate) command: CommandId,
    pub(crate) run: Option<RunId>,
    pub(crate) is_join: bool,
    /// The backup that it is about, if that is not a run.
    pub(crate) backup: Option<JobId>,
}

impl Agent {
    pub(crate) fn enrol(agents: &mut BTreeMap<AgentId, Self>, e: &AgentEnrolled) {
        let agent = agents.entry(e.agent).or_insert_with(|| Self {
            public_key: e.public_key,
            name: Private::default(),
            tags: Private::default(),
            standing: Standing::Pending,
            online: false,
            session: Session::ALONE,
            addresses: Private::default(),
            version: String::new(),
            last_report: 0,
            last_command: 0,
            waiting: BTreeMap::new(),
        });
        agent.name.clone_from(&e.name);
        agent.tags.clone_from(&e.tags);
        agent.version.clone_from(&e.version);
    }

    pub(crate) fn evolve(&mut self, event: &Event) {
        match event {
            Event::AgentApproved(_) => self.standing = Standing::Approved,
            Event::AgentOnline(e) => {
                self.online = true;
                self.addresses.clone_from(&e.addresses);
                self.version.clone_from(&e.version);
            }
            Event::AgentSessionOpened(e) => self.session = Session { replica: e.replica, epoch: e.epoch },
            Event::AgentOffline(_) => self.online = false,
            Event::AgentRemoved(_) => {
                self.standing = Standing::Removed;
                self.online = false;
                self.waiting.clear();
            }
            Event::AgentTagged(e) => self.tags.clone_from(&e.tags),
            Event::ReportReceived(e) => self.last_report = self.last_report.max(e.sequence),
            Event::CommandIssued(e) => {
                self.last_command = self.last_command.max(e.sequence);
                let issued = Issued {
                    command: e.command,
                    run: e.run,
                    is_join: e.joins,
                    backup: e.backup.map(|backup| backup.job),
                };
                self.waiting.insert(e.sequence, issued);
            }
            Event::CommandAcknowledged(e) => {
                self.waiting.remove(&e.sequence);
            }
            _ => {}
        }
    }
}

/// An agent, proven to hold its key, asks to be let in.
#[derive(Clone, Debug)]
pub struct Enrolment {
    /// Who, by its key.
    pub agent: AgentId,
    /// Its key.
    pub public_key: [u8; 32],
    /// Name it gives itself.
    pub name: String,
    /// Tags it gives itself; those of the token win.
    pub tags: Vec<(String, String)>,
    /// The token it shows: id, and SHA-256 of the text.
    pub token: Option<(TokenId, [u8; 32])>,
    /// Version of the agent program.
    pub version: String,
    /// Where it comes from.
    pub address: String,
}

/// The answer to an [`Enrolment`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Let in, under this name.
    Approved {
        /// Its name in the fleet.
        name: String,
    },
    /// Waits for a person.
    Pending,
    /// Turned away.
    Refused(RefusalReason),
}

/// Decides about an enrolment. Refusals are facts too, so there is always an answer; the same agent
/// refused again for the same reason is one fact.
pub fn enrol(state: &State, wish: &Enrolment, now: Timestamp) -> (Vec<Event>, Answer) {
    let known = state.agents.get(&wish.agent);
    match known.map(|agent| agent.standing) {
        Some(Standing::Approved) => {
            return (
                vec![],
                Answer::Approved { name: known.map_or_else(String::new, |a| a.name.to_string()) },
            );
        }
        Some(Standing::Removed) => return refused(state, wish, RefusalReason::Removed),
        Some(Standing::Pending) if wish.token.is_none() => return (vec![], Answer::Pending),
        Some(Standing::Pending) => {}
        None if state.agent_names.len() >= AGENTS_MAX => {
            return refused(state, wish, RefusalReason::NotAllowed);
        }
        None => {}
    }
    let Ok(mut tags) = text::tags(wish.tags.iter().cloned()) else {
        return refused(state, wish, RefusalReason::NotUnderstood);
    };
    let mut events = Vec::new();
    let mut used = None;
    if let Some((id, hash)) = &wish.token {
        match token::check(state, *id, hash, now) {
            Ok(token) => {
                match text::tags(tags.iter().cloned().chain(token.tags.iter().cloned())) {
                    Ok(merged) => tags = merged,
                    // Too many of its own: the token's count.
                    Err(_) => tags.clone_from(&token.tags),
                }
                used = Some(*id);
            }
            Err(reason) => return refused(state, wish, reason),
        }
    } else {
        let pending = state.agents.values().filter(|agent| agent.standing == Standing::Pending).count();
        if pending >= PENDING_AGENTS_MAX {
            return refused(state, wish, RefusalReason::NotAllowed);
        }
    }
    let given = tags.iter().find(|(name, _)| name == "AGENT_NAME").map(|(_, value)| value.as_str());
    let name = free_name(state, wish.agent, given.filter(|name| !name.is_empty()).unwrap_or(&wish.name));
    let mut version = text::one_line(&wish.version);
    text::truncate(&mut version, 64);
    events.push(
        AgentEnrolled {
            agent: wish.agent,
            public_key: wish.public_key,
            name: name.clone().into(),
            tags: tags.into(),
            token: used,
            version,
        }
        .into(),
    );
    match used {
        None => (events, Answer::Pending),
        Some(token) => {
            events.push(TokenUsed { token, agent: wish.agent }.into());
            events.push(AgentApproved { agent: wish.agent }.into());
            (events, Answer::Approved { name })
        }
    }
}

fn refused(state: &State, wish: &Enrolment, reason: RefusalReason) -> (Vec<Event>, Answer) {
    let events = if state.refusals.contains(&(wish.agent, reason)) {
        vec![]
    } else {
        let token = wish.token.map(|(id, _)| id).filter(|id| state.tokens.contains_key(id));
        vec![
            EnrolmentRefused { reason, token, agent: wish.agent, address: wish.address.clone().into() }
                .into(),
        ]
    };
    (events, Answer::Refused(reason))
}

/// The name wished for, with a number if another agent has it.
fn free_name(state: &State, agent: AgentId, wish: &str) -> String {
    let name = text::agent_name(wish);
    let is_free = |name: &str| state.agent_names.get(name).is_none_or(|holder| *holder == agent);
    if is_free(&name) {
        return name;
    }
    (2..=AGENTS_MAX + 2)
        .map(|n| format!("{name}-{n}"))
        .find(|name| is_free(name))
        .expect("more numbers were tried than there can be agents")
}

/// What can be asked about agents.
#[derive(Clone, Debug)]
pub enum Command {
    /// Let a waiting agent in.
    Approve {
        /// Whom.
        agent: AgentId,
    },
    /// Throw an agent out, for good. It leaves its groups, and fails in its runs.
    Remove {
        /// Whom.
        agent: AgentId,
    },
    /// Replace all tags.
    Tag {
        /// Whose.
        agent: AgentId,
        /// The whole set.
        tags: Vec<(String, String)>,
    },
    /// The control link came up.
    Connected {
        /// Whose.
        agent: AgentId,
        /// At which service.
        session: Session,
        /// Where its µTP2 endpoint can be tried.
        addresses: Vec<String>,
        /// Version of the agent program.
        version: String,
    },
    /// The control link went away.
    Disconnected {
        /// Whose.
        agent: AgentId,
        /// At which service: if it is at another one by now, nothing has happened.
        session: Session,
        /// Why.
        reason: String,
    },
}

/// Decides about an agent.
///
/// # Errors
/// If the agent is unknown, removed, or (to connect) not approved; if tags make no sense.
pub fn decide(state: &State, command: Command) -> Result<Vec<Event>, Rejection> {
    match command {
        Command::Approve { agent } => match known(state, agent)? {
            Agent { standing: Standing::Approved, .. } => Ok(vec![]),
            Agent { standing: Standing::Pending, .. } => Ok(vec![AgentApproved { agent }.into()]),
            Agent { name, .. } => Err(Rejection::Conflict(format!(
                "the agent {name} was removed, and its key with it: it has to enrol with a new one"
            ))),
        },
        Command::Remove { agent } => remove(state, agent),
        Command::Tag { agent, tags } => {
            let known = known(state, agent)?;
            let tags = text::tags(tags)?;
            if *known.tags == tags {
                Ok(vec![])
            } else {
                Ok(vec![AgentTagged { agent, tags: tags.into() }.into()])
            }
        }
        Command::Connected { agent, session, addresses, version } => {
            if !state.is_live(session) {
                let detail = "this control service was given up by the others and starts anew: try again";
                return Err(refusal(RefusalReason::TooEarly, detail));
            }
            let known = state.agents.get(&agent).ok_or_else(|| {
                refusal(RefusalReason::NotAllowed, "this fleet does not know the agent: it has to enrol")
            })?;
            match known.standing {
                Standing::Removed => Err(refusal(RefusalReason::Removed, "the agent was removed")),
                Standing::Pending => Err(refusal(RefusalReason::NotAllowed, "the agent waits for approval")),
                Standing::Approved => {
                    let mut version = text::one_line(&version);
                    text::truncate(&mut version, 64);
                    let same = known.online && *known.addresses == addresses && known.version == version;
                    let mut events = Vec::new();
                    if known.session != session {
                        let Session { replica, epoch } = session;
                        events.push(AgentSessionOpened { agent, replica, epoch }.into());
                    }
                    if !same {
                        events.push(AgentOnline { agent, addresses: addresses.into(), version }.into());
                    }
                    Ok(events)
                }
            }
        }
        Command::Disconnected { agent, session, reason } => {
            let online =
                state.agents.get(&agent).is_some_and(|known| known.online && known.session == session);
            let reason = text::one_line(&reason);
            Ok(if online { vec![AgentOffline { agent, reason }.into()] } else { vec![] })
        }
    }
}

/// What is recorded when a service starts that has its log to itself: no link has survived it.
pub fn service_restarted(state: &State) -> Vec<Event> {
    let reason = "the control service was restarted";
    state.online_agents().map(|agent| AgentOffline { agent, reason: reason.into() }.into()).collect()
}

fn remove(state: &State, agent: AgentId) -> Result<Vec<Event>, Rejection> {
    if known(state, agent)?.standing == Standing::Removed {
        return Ok(vec![]);
    }
    let mut events: Vec<Event> = vec![AgentRemoved { agent }.into()];
    for (group, known) in &state.groups {
        if known.members.contains(&agent) {
            events.push(GroupMembersRemoved { group: *group, agents: vec![agent] }.into());
        }
    }
    for (id, run) in state.runs.iter().filter(|(_, run)| run.parts.contains_key(&agent)) {
        let problem = Problem {
            class: ProblemClass::Internal,
            path: vec![],
            detail: "the agent was removed from the fleet".into(),
        };
        run.clone().fail(*id, agent, Some(problem), &mut events);
        events.extend(sync::without(*id, run, agent));
    }
    Ok(events)
}

fn known(state: &State, agent: AgentId) -> Result<&Agent, Rejection> {
    state.agents.get(&agent).ok_or_else(|| Rejection::unknown("agent", agent))
}

pub(crate) fn refusal(reason: RefusalReason, detail: &str) -> Rejection {
    Rejection::Refused { reason, detail: detail.into() }
}
