//! Who belongs to the fleet, in which groups, and what lets agents in?

use std::collections::{BTreeMap, BTreeSet};

use event_schema::{AgentId, Event, Field, GroupId, Owner, Private, Subject, Timestamp, TokenId, Visit};
use serde::{Deserialize, Serialize};

use crate::replica::Session;

/// Agents, groups, tokens.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Fleet {
    /// The fleet's root key, once founded.
    pub root_key: Option<[u8; 32]>,
    /// SHA-256 of the CA certificate.
    pub ca_fingerprint: Option<[u8; 32]>,
    /// Every agent that ever enrolled, removed ones too.
    pub agents: BTreeMap<AgentId, AgentView>,
    /// Every group.
    pub groups: BTreeMap<GroupId, GroupView>,
    /// Every token.
    pub tokens: BTreeMap<TokenId, TokenView>,
    /// How many enrolments were turned away.
    pub enrolments_refused: u64,
}

/// Where an agent stands with the fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StandingView {
    /// Waits for approval.
    Pending,
    /// Belongs to it.
    Approved,
    /// Belongs to it no more.
    Removed,
}

/// One agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AgentView {
    /// Its name, unique among agents that are not removed.
    pub name: Private<String>,
    /// Its Ed25519 key.
    pub public_key: [u8; 32],
    /// Whether it belongs to the fleet.
    pub standing: StandingView,
    /// Whether its control link is up.
    pub online: bool,
    /// Its tags, sorted.
    pub tags: Private<Vec<(String, String)>>,
    /// Version of its program, as last told.
    pub version: String,
    /// Where its µTP2 endpoint was last to be tried (`IP:PORT`).
    pub addresses: Private<Vec<String>>,
    /// When it enrolled first.
    pub enrolled: Timestamp,
    /// When the service last recorded something it did.
    pub last_seen: Timestamp,
    /// Its last report that is on the log; 0 if none is.
    pub reports_stored: u64,
    /// Where it was last connected, on logs that several services share.
    pub session: Session,
}

/// One group.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GroupView {
    /// Its name, unique among groups.
    pub name: String,
    /// Its members.
    pub members: BTreeSet<AgentId>,
}

/// One bootstrap token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenView {
    /// Tags for agents that use it.
    pub tags: Vec<(String, String)>,
    /// How many agents may use it.
    pub uses: u32,
    /// Who used it.
    pub used_by: Vec<AgentId>,
    /// When it was made.
    pub created: Timestamp,
    /// Until when it counts.
    pub expires: Timestamp,
    /// Whether it was withdrawn.
    pub revoked: bool,
}

impl TokenView {
    /// Whether it would let an agent in at `now`.
    pub fn is_live(&self, now: Timestamp) -> bool {
        !self.revoked && self.used_by.len() < self.uses as usize && now <= self.expires
    }
}

impl Fleet {
    pub(super) fn apply(&mut self, time: Timestamp, event: &Event) {
        match event {
            Event::FleetFounded(e) => {
                self.root_key = Some(e.root_key);
                self.ca_fingerprint = Some(e.ca_fingerprint);
            }
            Event::AgentEnrolled(e) => {
                let agent = self.agents.entry(e.agent).or_insert_with(|| AgentView {
                    name: Private::default(),
                    public_key: e.public_key,
                    standing: StandingView::Pending,
                    online: false,
                    tags: Private::default(),
                    version: String::new(),
                    addresses: Private::default(),
                    enrolled: time,
                    last_seen: time,
                    reports_stored: 0,
                    session: Session::ALONE,
                });
                agent.name.clone_from(&e.name);
                agent.tags.clone_from(&e.tags);
                agent.version.clone_from(&e.version);
                agent.last_seen = time;
            }
            Event::AgentApproved(e) => self.agent(e.agent, |a| a.standing = StandingView::Approved),
            Event::AgentOnline(e) => self.agent(e.agent, |a| {
                a.online = true;
                a.last_seen = time;
                a.addresses.clone_from(&e.addresses);
                a.version.clone_from(&e.version);
            }),
            Event::AgentSessionOpened(e) => self.agent(e.agent, |a| {
                a.session = Session { replica: e.replica, epoch: e.epoch };
            }),
            Event::AgentOffline(e) => self.agent(e.agent, |a| {
                a.online = false;
                a.last_seen = time;
            }),
            Event::AgentRemoved(e) => self.agent(e.agent, |a| {
                a.standing = StandingView::Removed;
                a.online = false;
            }),
            Event::AgentTagged(e) => self.agent(e.agent, |a| a.tags.clone_from(&e.tags)),
            Event::ReportReceived(e) => self.agent(e.agent, |a| {
                a.reports_stored = a.reports_stored.max(e.sequence);
                a.last_seen = time;
            }),
            Event::TokenCreated(e) => {
                let token = TokenView {
                    tags: e.tags.clone(),
                    uses: e.uses,
                    used_by: Vec::new(),
                    created: time,
                    expires: e.expires,
                    revoked: false,
                };
                self.tokens.insert(e.token, token);
            }
            Event::TokenUsed(e) => {
                if let Some(token) = self.tokens.get_mut(&e.token) {
                    token.used_by.push(e.agent);
                }
            }
            Event::TokenRevoked(e) => {
                if let Some(token) = self.tokens.get_mut(&e.token) {
                    token.revoked = true;
                }
            }
            Event::EnrolmentRefused(_) => self.enrolments_refused += 1,
            Event::GroupCreated(e) => {
                let group = GroupView { name: e.name.clone(), members: BTreeSet::new() };
                self.groups.insert(e.group, group);
            }
            Event::GroupMembersAdded(e) => {
                if let Some(group) = self.groups.get_mut(&e.group) {
                    group.members.extend(&e.agents);
                }
            }
            Event::GroupMembersRemoved(e) => {
                if let Some(group) = self.groups.get_mut(&e.group) {
                    group.members.retain(|agent| !e.agents.contains(agent));
                }
            }
            _ => {}
        }
    }

    pub(super) fn private(&mut self, visit: &mut Visit<'_>) {
        for (id, agent) in &mut self.agents {
            let owner = Owner::Subject(Subject::Agent(*id));
            visit(Field::AgentName, owner, &mut agent.name);
            visit(Field::AgentTags, owner, &mut agent.tags);
            visit(Field::AgentAddresses, owner, &mut agent.addresses);
        }
    }

    fn agent(&mut self, id: AgentId, change: impl FnOnce(&mut AgentView)) {
        if let Some(agent) = self.agents.get_mut(&id) {
            change(agent);
        }
    }
}
