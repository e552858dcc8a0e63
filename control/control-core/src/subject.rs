//! Subjects of texts that can be erased: who has a key, and the decision to destroy it.
//!
//! Keys themselves are not known here. A text that is decided on is in the clear; the service seals it before it is
//! recorded, under the key of the subject that [`whose`] names, and what it reads it opens as far as it can. Nothing
//! that is decided depends on a text that some replica might not be able to read, save on names being taken.

use event_schema::{AgentId, Event, JobDeleted, JobId, Owner, Subject, SubjectErased, UserId};
use serde::{Deserialize, Serialize};

use crate::agent::Standing;
use crate::{Rejection, State, backup, plan, text};

/// Agents named in a refusal.
const NAMED_MAX: usize = 5;

/// What the log says of a subject's keys, each by its commitment, oldest first. It grows with what operators erase.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// The one that texts are recorded under; none since the last erasure.
    pub live: Option<[u8; 32]>,
    /// Those before it that were not erased: whoever opened the next one did not have them.
    pub lost: Vec<[u8; 32]>,
    /// Those that are destroyed, or to be. None of them counts ever again, whatever a later record says.
    pub erased: Vec<[u8; 32]>,
}

impl Known {
    /// Another key is begun with.
    pub fn open(&mut self, commitment: [u8; 32]) {
        let before = self.live.take().filter(|before| *before != commitment);
        self.lost.extend(before);
        if !self.erased.contains(&commitment) {
            self.lost.retain(|lost| *lost != commitment);
            self.live = Some(commitment);
        }
    }

    /// Everything up to here is erased.
    pub fn erase(&mut self) {
        self.erased.append(&mut self.lost);
        self.erased.extend(self.live.take());
    }

    /// Keys that were not erased.
    pub fn standing(&self) -> impl Iterator<Item = [u8; 32]> {
        self.live.into_iter().chain(self.lost.iter().copied())
    }

    /// Whether every key is erased.
    pub fn is_erased(&self) -> bool {
        self.standing().next().is_none()
    }
}

impl State {
    /// What the log says of a subject's keys; none if it never had one.
    pub fn subject(&self, subject: Subject) -> Option<&Known> {
        self.subjects.get(&subject)
    }

    /// Everybody who has, or had, a key.
    pub fn subjects(&self) -> impl Iterator<Item = (Subject, &Known)> {
        self.subjects.iter().map(|(subject, known)| (*subject, known))
    }
}

/// Whose a text is that is about to be recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// The subject's.
    Subject(Subject),
    /// The one's who is named by it: its writer knows.
    Named,
    /// Nobody knows any more: it is withheld, as it could be about a job that was erased, and under another key no
    /// erasure of that job would reach it.
    Nobody,
}

/// Whose a text is.
pub fn whose(state: &State, owner: Owner) -> Whose {
    match owner {
        Owner::Subject(subject) => Whose::Subject(subject),
        Owner::Run(run, _) => {
            state.job_of(run).map_or(Whose::Nobody, |job| Whose::Subject(Subject::Job(job)))
        }
        Owner::Named => Whose::Named,
    }
}

/// Whether texts that come after an erasure get a new key. Somebody whose name was erased is not nameless for ever: what
/// he decides later is told of him, as is an agent that is let in after it was only ever turned away. Of a job or an
/// agent that is gone there is nothing more to tell: what still comes is withheld.
pub fn begins_anew(state: &State, subject: Subject) -> bool {
    match subject {
        Subject::User(_) => true,
        Subject::Agent(agent) => state.agents.get(&agent).is_none_or(|a| a.standing != Standing::Removed),
        Subject::Job(_) => false,
    }
}

/// Decides to erase what is recorded under a subject's key. A job that is there yet is deleted with it.
///
/// # Errors
/// If nothing is under a key of the subject; if a run of the job is active, or commands of it are still to be given
/// or answered; if the agent belongs to the fleet.
pub fn erase(state: &State, subject: Subject, reason: &str) -> Result<Vec<Event>, Rejection> {
    let mut events = match subject {
        Subject::Job(job) => erase_job(state, job)?,
        Subject::Agent(agent) => erase_agent(state, agent)?,
        Subject::User(_) => vec![],
    };
    match state.subject(subject) {
        Some(known) if known.is_erased() => return Ok(vec![]),
        Some(_) => {}
        None => {
            return Err(Rejection::Conflict(format!(
                "nothing of {subject} was recorded under a key, so nothing can be erased: what was recorded before the \
                 log's schema level 2 stays as long as the log"
            )));
        }
    }
    events.push(SubjectErased { subject, reason: text::one_line(reason) }.into());
    Ok(events)
}

fn erase_job(state: &State, job: JobId) -> Result<Vec<Event>, Rejection> {
    if let Some(run) = state.active_run(job) {
        return Err(Rejection::Conflict(format!("its run {run} is active: stop that first")));
    }
    let runs: Vec<_> = state.runs.iter().filter(|(_, run)| run.job == job).map(|(id, _)| *id).collect();
    if let Some(run) = runs.iter().find(|run| plan::is_outstanding(state, **run)) {
        return Err(Rejection::Conflict(format!(
            "commands of its run {run} are about to be given: try again"
        )));
    }
    if state.jobs.contains_key(&job) && backup::plan::is_outstanding(state, job, None) {
        return Err(Rejection::Conflict("commands of it are about to be given: try again".into()));
    }
    let waits = |agent: &&crate::agent::Agent| {
        agent
            .waiting
            .values()
            .any(|issued| issued.run.is_some_and(|run| runs.contains(&run)) || issued.backup == Some(job))
    };
    let mut waiting: Vec<&str> =
        state.agents.values().filter(waits).map(|agent| agent.name.as_str()).collect();
    if !waiting.is_empty() {
        let more = waiting.len().saturating_sub(NAMED_MAX);
        waiting.truncate(NAMED_MAX);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        return Err(Rejection::Conflict(format!(
            "commands of it still wait for {}{more}: they name its folders. Wait until these agents were online, or \
             remove them",
            waiting.join(", ")
        )));
    }
    Ok(if state.jobs.contains_key(&job) { vec![JobDeleted { job }.into()] } else { vec![] })
}

fn erase_agent(state: &State, agent: AgentId) -> Result<Vec<Event>, Rejection> {
    match state.agents.get(&agent) {
        Some(known) if known.standing != Standing::Removed => Err(Rejection::Conflict(format!(
            "the agent {} belongs to the fleet: remove it first",
            known.name
        ))),
        // One that was only ever turned away has left its address.
        _ => Ok(vec![]),
    }
}

/// The subject of a user's name, given the keyed hash of it.
pub fn of_user(hash: &[u8; 32]) -> Subject {
    let mut id = [0; 16];
    id.copy_from_slice(&hash[..16]);
    Subject::User(UserId(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_erased_never_counts_again() {
        let mut known = Known::default();
        let standing = |known: &Known| known.standing().collect::<Vec<_>>();
        assert!(known.is_erased());
        known.open([1; 32]);
        known.open([1; 32]);
        assert_eq!((standing(&known), known.is_erased()), (vec![[1; 32]], false));
        // Lost, and begun anew; then the first was found again.
        known.open([2; 32]);
        assert_eq!((known.live, standing(&known)), (Some([2; 32]), vec![[2; 32], [1; 32]]));
        known.open([1; 32]);
        assert_eq!(standing(&known), [[1; 32], [2; 32]]);
        known.erase();
        assert!(known.is_erased() && known.erased == [[2; 32], [1; 32]]);
        known.open([3; 32]);
        assert_eq!(standing(&known), [[3; 32]]);
        // A history in which somebody began with an erased one.
        known.open([2; 32]);
        assert_eq!((known.live, standing(&known), known.erased.len()), (None, vec![[3; 32]], 2));
        known.erase();
        assert_eq!((known.is_erased(), known.erased.len()), (true, 3));
    }
}
