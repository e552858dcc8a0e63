//! Which records somebody wants to see: those of an agent, of a job, by an actor.
//!
//! Names are learnt from the history as it goes by, so records have to be shown to a filter from the first one on.

use std::collections::BTreeSet;

use event_schema::{Actor, Event, Record};
use serde_json::Value;

use crate::api::event_data;

/// Digits of an id's beginning that count as one.
const PREFIX_MIN: usize = 4;

/// What is wanted; of several values any will do, of several kinds all have to hold.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Wanted {
    /// Only records about this agent: its name, id or the beginning of its id (repeatable)
    #[arg(long, value_name = "AGENT")]
    agent: Vec<String>,
    /// Only records about this job and its runs: name, id or the beginning of it, also of a run (repeatable)
    #[arg(long, value_name = "JOB|RUN")]
    job: Vec<String>,
    /// Only records brought about by this actor: "service", an operator's or agent's name, or an agent's id (repeatable)
    #[arg(long, value_name = "ACTOR")]
    actor: Vec<String>,
}

/// A wish and what was learnt of names so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Filter {
    wanted: Wanted,
    /// Ids of agents that were given one of the wanted names.
    agents: BTreeSet<String>,
    actors: BTreeSet<String>,
    /// Ids of jobs with one of the wanted names, and of their runs.
    jobs: BTreeSet<String>,
}

/// What a record is about.
#[derive(Default)]
struct Mentions {
    agents: BTreeSet<String>,
    jobs: BTreeSet<String>,
}

impl From<Wanted> for Filter {
    fn from(wanted: Wanted) -> Self {
        Self { wanted, ..Self::default() }
    }
}

impl Filter {
    /// Whether the record is wanted; to be asked for every record, in order.
    pub(crate) fn takes(&mut self, record: &Record) -> bool {
        if self.takes_everything() {
            return true;
        }
        let mut mentions = Mentions::default();
        mentions.stream(&record.stream);
        for event in &record.events {
            let data = event_data(event);
            self.learn(event, &data);
            mentions.value(&data);
        }
        let wanted = &self.wanted;
        let any = |texts: &[String], known: &BTreeSet<String>, ids: &BTreeSet<String>| {
            texts.is_empty()
                || ids.iter().any(|id| known.contains(id) || texts.iter().any(|text| begins(id, text)))
        };
        any(&wanted.agent, &self.agents, &mentions.agents)
            && any(&wanted.job, &self.jobs, &mentions.jobs)
            && (wanted.actor.is_empty() || self.by(&record.actor))
    }

    /// Whether no record is left out.
    pub(crate) fn takes_everything(&self) -> bool {
        let wanted = &self.wanted;
        wanted.agent.is_empty() && wanted.job.is_empty() && wanted.actor.is_empty()
    }

    fn by(&self, actor: &Actor) -> bool {
        let texts = &self.wanted.actor;
        match actor {
            Actor::Service => texts.iter().any(|text| text == "service"),
            Actor::Operator(name) => {
                let name = name.as_str();
                texts.iter().any(|text| text == name || text.strip_prefix("operator ") == Some(name))
            }
            Actor::Agent(id) => {
                let id = id.to_string();
                self.actors.contains(&id) || texts.iter().any(|text| begins(&id, text))
            }
        }
    }

    fn learn(&mut self, event: &Event, data: &Value) {
        let text = |name: &str| data.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        match event {
            Event::AgentEnrolled(_) => {
                let (id, name) = (text("agent"), text("name"));
                if self.wanted.agent.contains(&name) {
                    self.agents.insert(id.clone());
                }
                if self.wanted.actor.contains(&name) {
                    self.actors.insert(id);
                }
            }
            Event::JobCreated(_) if self.wanted.job.contains(&text("name")) => {
                self.jobs.insert(text("job"));
            }
            Event::RunStarted(_) => {
                let job = text("job");
                if self.jobs.contains(&job) || self.wanted.job.iter().any(|text| begins(&job, text)) {
                    self.jobs.insert(text("run"));
                }
            }
            _ => {}
        }
    }
}

impl Mentions {
    fn stream(&mut self, stream: &str) {
        match stream.split_once('/') {
            Some(("agent", id)) => drop(self.agents.insert(id.into())),
            Some(("job" | "run", id)) => drop(self.jobs.insert(id.into())),
            _ => {}
        }
    }

    /// Ids stand under the same names in every event.
    fn value(&mut self, value: &Value) {
        match value {
            Value::Array(list) => list.iter().for_each(|value| self.value(value)),
            Value::Object(fields) => {
                for (name, value) in fields {
                    match (name.as_str(), value) {
                        ("agent" | "witness", Value::String(id)) => drop(self.agents.insert(id.clone())),
                        ("agents", Value::Array(ids)) => {
                            self.agents.extend(ids.iter().filter_map(Value::as_str).map(str::to_owned));
                        }
                        ("run" | "job", Value::String(id)) => drop(self.jobs.insert(id.clone())),
                        // A job's places name agents or groups.
                        ("id", Value::String(id))
                            if fields.get("kind").is_some_and(|kind| kind == "agent") =>
                        {
                            self.agents.insert(id.clone());
                        }
                        (_, value) => self.value(value),
                    }
                }
            }
            _ => {}
        }
    }
}

/// Whether a text is the beginning of an id.
fn begins(id: &str, text: &str) -> bool {
    // An id out of a stream's name may be any text.
    text.len() >= PREFIX_MIN && id.get(..text.len()).is_some_and(|id| id.eq_ignore_ascii_case(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_may_be_any_text() {
        assert!(begins("5f00abcd12", "5F00abcd") && !begins("5f00abcd12", "5f00abce"));
        // The byte where the wanted text ends is within a letter.
        for id in ["1234567\u{e9}", "\u{1f6a2}\u{1f6a2}\u{1f6a2}", ""] {
            for text in ["12345678", "abcdefghi", "0123456789"] {
                assert!(!begins(id, text), "{id} {text}");
            }
        }
    }
}
