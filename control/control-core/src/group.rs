//! Groups: named sets of agents, made by hand.

use std::collections::BTreeSet;

use event_schema::{AgentId, Event, GroupCreated, GroupId, GroupMembersAdded, GroupMembersRemoved};

use serde::{Deserialize, Serialize};

use crate::agent::Standing;
use crate::limits::GROUPS_MAX;
use crate::{Rejection, State, text};

/// A group as decisions see it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Group {
    pub(crate) name: String,
    pub(crate) members: BTreeSet<AgentId>,
}

/// What can be asked about groups.
#[derive(Clone, Debug)]
pub enum Command {
    /// Make an empty group.
    Create {
        /// Its id.
        group: GroupId,
        /// Its name, unique among groups.
        name: String,
    },
    /// Add agents; members already are passed over.
    Add {
        /// Which.
        group: GroupId,
        /// Whom.
        agents: Vec<AgentId>,
    },
    /// Take agents out; those who are no members are passed over.
    Remove {
        /// Which.
        group: GroupId,
        /// Whom.
        agents: Vec<AgentId>,
    },
}

/// Decides about a group.
///
/// # Errors
/// If the group or an agent is unknown, the name is taken or not allowed, or there are too many groups.
pub fn decide(state: &State, command: Command) -> Result<Vec<Event>, Rejection> {
    match command {
        Command::Create { group, name } => {
            if state.groups.get(&group).is_some_and(|known| known.name == name) {
                return Ok(vec![]);
            }
            text::check_name("a group", &name)?;
            if state.group_names.contains(&name) {
                return Err(Rejection::Conflict(format!("there is a group {name} already")));
            }
            if state.groups.len() >= GROUPS_MAX {
                return Err(Rejection::Limit(format!("there are {GROUPS_MAX} groups already")));
            }
            Ok(vec![GroupCreated { group, name }.into()])
        }
        Command::Add { group, agents } => {
            let members = members(state, group)?;
            let mut new = BTreeSet::new();
            for agent in agents {
                let known = state.agents.get(&agent).ok_or_else(|| Rejection::unknown("agent", agent))?;
                if known.standing == Standing::Removed {
                    return Err(Rejection::Conflict(format!("the agent {} was removed", known.name)));
                }
                if !members.contains(&agent) {
                    new.insert(agent);
                }
            }
            Ok(event(new, |agents| GroupMembersAdded { group, agents }.into()))
        }
        Command::Remove { group, agents } => {
            let members = members(state, group)?;
            let gone = agents.into_iter().filter(|agent| members.contains(agent)).collect();
            Ok(event(gone, |agents| GroupMembersRemoved { group, agents }.into()))
        }
    }
}

fn members(state: &State, group: GroupId) -> Result<&BTreeSet<AgentId>, Rejection> {
    state.groups.get(&group).map(|group| &group.members).ok_or_else(|| Rejection::unknown("group", group))
}

fn event(agents: BTreeSet<AgentId>, make: impl FnOnce(Vec<AgentId>) -> Event) -> Vec<Event> {
    if agents.is_empty() { vec![] } else { vec![make(agents.into_iter().collect())] }
}
