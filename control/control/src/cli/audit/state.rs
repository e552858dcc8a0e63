//! `flotilla audit state` and `diff`: the fleet as it was, and what changed between two places of its history.

use clap::Args;
use event_schema::Timestamp;
use serde_json::{Map, Value, json};

use super::walk::{Place, Walk};
use super::{Done, Failure, Global, output};
use crate::api::{WholeView, whole};
use crate::at::At;

/// What a state is made of, by the names in its JSON.
const KINDS: [&str; 5] = ["agents", "groups", "tokens", "jobs", "runs"];

#[derive(Debug, Args)]
pub(in crate::cli) struct State {
    #[command(flatten)]
    place: Place,
    /// After this position, or at this time (RFC 3339, UTC); without it, at the end
    #[arg(long, value_name = "TIME|POSITION")]
    at: Option<At>,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Diff {
    #[command(flatten)]
    place: Place,
    /// The earlier place; 0 is before everything
    #[arg(long, value_name = "TIME|POSITION")]
    from: At,
    /// The later place; without it, the end
    #[arg(long, value_name = "TIME|POSITION")]
    to: Option<At>,
}

/// Tokens expire by the time that was asked for, else by the last record's.
fn now(at: Option<At>, walk: &Walk) -> Timestamp {
    match at {
        Some(At::Time(time)) => time,
        _ => walk.fold().views().time(),
    }
}

fn warn(walk: &Walk) {
    if let Some(differs) = &walk.differing {
        output::complain(&format!("WARNING: {differs}"));
    }
    if let Some(position) = walk.clock_back {
        output::complain(&format!(
            "the service's clock went back at entry {position}: a time names the last entry before the first later one"
        ));
    }
}

pub(super) fn state(global: &Global, line: &State) -> Done {
    let mut walk = Walk::open(global, &line.place)?;
    walk.to(line.at)?;
    let whole = whole(walk.fold().views(), now(line.at, &walk));
    warn(&walk);
    if global.json {
        let mut value = serde_json::to_value(&whole).map_err(Failure::of)?;
        value["attested"] = attested(&walk);
        return output::say_json(&value);
    }
    print(&whole, &walk)
}

fn attested(walk: &Walk) -> Value {
    json!({
        "checked": walk.fold().checked,
        "unknown": walk.fold().unknown,
        "first_differing": walk.differing.as_ref().map(|differs| differs.position),
    })
}

fn print(whole: &WholeView, walk: &Walk) -> Done {
    output::say(&format!(
        "position {}{}\nstate    {} (form {})\nattested {} states before it, all of them so{}",
        whole.position,
        whole.time.as_ref().map_or_else(String::new, |time| format!(", {time}")),
        whole.state_hash,
        whole.form,
        walk.fold().checked,
        if walk.differing.is_some() { " EXCEPT THE ONE NAMED ABOVE" } else { "" },
    ))?;
    let section = |name: &str, heads: &[&str], rows: Vec<Vec<String>>| {
        if rows.is_empty() {
            return Ok(());
        }
        output::say(&format!("\n{} {name}", rows.len()))?;
        output::table(heads, rows)
    };
    let tags = |tags: &std::collections::BTreeMap<String, String>| {
        tags.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
    };
    let agents = whole.agents.iter().map(|agent| {
        vec![
            agent.name.clone(),
            agent.state.clone(),
            agent.last_seen.clone(),
            agent.groups.join(", "),
            tags(&agent.tags),
        ]
    });
    section("agents", &["NAME", "STATE", "LAST SEEN", "GROUPS", "TAGS"], agents.collect())?;
    let groups = whole.groups.iter().map(|group| {
        let members: Vec<&str> = group.members.iter().map(|member| member.name.as_str()).collect();
        vec![group.name.clone(), members.join(", ")]
    });
    section("groups", &["NAME", "MEMBERS"], groups.collect())?;
    let tokens = whole.tokens.iter().map(|token| {
        vec![
            token.id.clone(),
            token.state.clone(),
            format!("{} of {}", token.used, token.uses),
            token.expires.clone(),
        ]
    });
    section("tokens", &["ID", "STATE", "USED", "EXPIRES"], tokens.collect())?;
    let jobs = whole.jobs.iter().map(|job| {
        let from: Vec<String> = job.sources.iter().map(crate::api::bootstrap_place).collect();
        let to: Vec<String> = job.destinations.iter().map(crate::api::bootstrap_place).collect();
        vec![job.name.clone(), from.join(", "), to.join(", "), job.runs.len().to_string()]
    });
    section("jobs", &["NAME", "FROM", "TO", "RUNS"], jobs.collect())?;
    let runs = whole.runs.iter().map(|run| {
        let ended = |agent: &&crate::api::view::RunAgentView| agent.state.starts_with("done");
        vec![
            run.id.clone(),
            run.job_name.clone(),
            run.state.clone(),
            run.started.clone(),
            run.finished.clone().unwrap_or_default(),
            format!(
                "{} of {}",
                run.agents.iter().filter(|a| a.role != "source").filter(ended).count(),
                run.agents.len().saturating_sub(1)
            ),
            run.problems_total.to_string(),
        ]
    });
    section("runs", &["ID", "JOB", "STATE", "STARTED", "ENDED", "DONE", "PROBLEMS"], runs.collect())
}

/// One thing that is not what it was.
#[derive(Debug, PartialEq)]
struct Change {
    /// `agents`, `groups` and so on.
    kind: &'static str,
    id: String,
    name: String,
    what: What,
}

#[derive(Debug, PartialEq)]
enum What {
    Added(Value),
    Removed(Value),
    /// Fields by their path, before and after.
    Changed(Vec<(String, Value, Value)>),
}

pub(super) fn diff(global: &Global, line: &Diff) -> Done {
    match (line.from, line.to) {
        (At::Position(from), Some(At::Position(to))) if from > to => {
            return Err(Failure::Usage(format!("--from {from} is after --to {to}: exchange them")));
        }
        (At::Time(from), Some(At::Time(to))) if from > to => {
            return Err(Failure::Usage(format!("--from {from} is after --to {to}: exchange them")));
        }
        _ => {}
    }
    let mut walk = Walk::open(global, &line.place)?;
    walk.to(Some(line.from))?;
    let before = whole(walk.fold().views(), now(Some(line.from), &walk));
    // A position and a time may be given in any order: the fold shows which is which.
    let at = before.position;
    let is_after = match line.to {
        Some(At::Position(to)) => to < at,
        Some(At::Time(to)) => to < walk.fold().views().time(),
        None => false,
    };
    if is_after {
        return Err(Failure::Usage(format!("--from is position {at}, which is after --to: exchange them")));
    }
    walk.to(line.to)?;
    let after = whole(walk.fold().views(), now(line.to, &walk));
    warn(&walk);
    let json = |whole: &WholeView| serde_json::to_value(whole).map_err(Failure::of);
    let changes = changes(&json(&before)?, &json(&after)?);
    let end = |whole: &WholeView| json!({ "position": whole.position, "time": whole.time, "form": whole.form, "state_hash": whole.state_hash });
    if global.json {
        let list: Vec<Value> = changes.iter().map(Change::json).collect();
        return output::say_json(&json!({
            "from": end(&before), "to": end(&after), "changes": list, "attested": attested(&walk),
        }));
    }
    let told = |whole: &WholeView| match &whole.time {
        Some(time) => format!("position {} ({time})", whole.position),
        None => "the beginning".into(),
    };
    output::say(&format!(
        "from {} to {}: {} records, {} things changed\n  state {}\n     to {}",
        told(&before),
        told(&after),
        after.position - before.position,
        changes.len(),
        before.state_hash,
        after.state_hash,
    ))?;
    let mut kind = "";
    for change in &changes {
        if change.kind != kind {
            kind = change.kind;
            output::say(kind)?;
        }
        change.say()?;
    }
    Ok(())
}

impl Change {
    fn json(&self) -> Value {
        let mut value = json!({ "kind": self.kind, "id": self.id, "name": self.name });
        match &self.what {
            What::Added(after) => (value["change"], value["after"]) = ("added".into(), after.clone()),
            What::Removed(before) => (value["change"], value["before"]) = ("removed".into(), before.clone()),
            What::Changed(fields) => {
                value["change"] = "changed".into();
                let field = |(path, before, after): &(String, Value, Value)| json!({ "field": path, "before": before, "after": after });
                value["fields"] = fields.iter().map(field).collect();
            }
        }
        value
    }

    fn say(&self) -> Done {
        let named = if self.name.is_empty() || self.name == self.id {
            self.id.clone()
        } else {
            format!("{}  {}", self.name, self.id)
        };
        match &self.what {
            What::Added(after) => {
                let state = after["state"].as_str().map_or_else(String::new, |state| format!("  {state}"));
                output::say(&format!("  + {named}{state}"))
            }
            What::Removed(_) => output::say(&format!("  - {named}")),
            What::Changed(fields) => {
                output::say(&format!("  ~ {named}"))?;
                for (path, before, after) in fields {
                    output::say(&format!("      {path}: {} -> {}", short(before), short(after)))?;
                }
                Ok(())
            }
        }
    }
}

/// Characters of a value that a line shows.
const SHOWN_MAX: usize = 120;

/// A value on a line. `--json` has all of it.
fn short(value: &Value) -> String {
    let text = match value {
        Value::Null => "none".into(),
        Value::String(text) => crate::api::escape_bytes(text.as_bytes()),
        other => other.to_string(),
    };
    match text.char_indices().nth(SHOWN_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

fn changes(before: &Value, after: &Value) -> Vec<Change> {
    let mut changes = Vec::new();
    for kind in KINDS {
        let (old, new) = (by_id(&before[kind]), by_id(&after[kind]));
        let mut ids: Vec<&str> = old.keys().chain(new.keys()).map(String::as_str).collect();
        ids.sort_unstable();
        ids.dedup();
        for id in ids {
            let (old, new) = (old.get(id), new.get(id));
            let what = match (old, new) {
                (None, Some(new)) => What::Added(new.clone()),
                (Some(old), None) => What::Removed(old.clone()),
                (Some(old), Some(new)) => {
                    let mut fields = Vec::new();
                    compare("", old, new, &mut fields);
                    if fields.is_empty() {
                        continue;
                    }
                    What::Changed(fields)
                }
                (None, None) => continue,
            };
            let shown = new.or(old).unwrap_or(&Value::Null);
            changes.push(Change { kind, id: id.to_owned(), name: label(shown).to_owned(), what });
        }
    }
    changes
}

/// Things of a list by their ids.
fn by_id(list: &Value) -> Map<String, Value> {
    let things = list.as_array().into_iter().flatten();
    things.filter_map(|thing| Some((thing["id"].as_str()?.to_owned(), thing.clone()))).collect()
}

/// What people call a thing.
fn label(thing: &Value) -> &str {
    thing["name"].as_str().or(thing["job_name"].as_str()).or(thing["id"].as_str()).unwrap_or_default()
}

/// Fields that differ, by their path. Lists of things with ids are compared thing by thing.
fn compare(path: &str, old: &Value, new: &Value, out: &mut Vec<(String, Value, Value)>) {
    let below = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    match (old, new) {
        _ if old == new => {}
        (Value::Object(old), Value::Object(new)) => {
            let names = old.keys().chain(new.keys().filter(|name| !old.contains_key(*name)));
            // Where the answer was read says nothing about the thing.
            for name in names.filter(|name| *name != "as_of") {
                let field = |object: &Map<String, Value>| object.get(name).cloned().unwrap_or(Value::Null);
                compare(&below(name), &field(old), &field(new), out);
            }
        }
        (Value::Array(old_list), Value::Array(new_list)) => {
            let (a, b) = (by_id(old), by_id(new));
            let are_things = (a.len(), b.len()) == (old_list.len(), new_list.len()) && a.len() + b.len() > 0;
            if !are_things {
                out.push((path.to_owned(), old.clone(), new.clone()));
                return;
            }
            for (id, thing) in &a {
                compare(&below(label(thing)), thing, b.get(id).unwrap_or(&Value::Null), out);
            }
            for (_, thing) in b.iter().filter(|(id, _)| !a.contains_key(*id)) {
                compare(&below(label(thing)), &Value::Null, thing, out);
            }
        }
        _ => out.push((path.to_owned(), old.clone(), new.clone())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_named() {
        let before = json!({"agents": [{"id": "1", "name": "a", "state": "online", "tags": {"X": "1"}, "as_of": 3},
            {"id": "2", "name": "b"}], "runs": [{"id": "r", "job_name": "j", "agents": [{"id": "1", "name": "a", "state": "waiting"}]}]});
        let after = json!({"agents": [{"id": "1", "name": "a", "state": "offline", "tags": {}, "as_of": 9},
            {"id": "3", "name": "c"}], "runs": [{"id": "r", "job_name": "j", "agents": [{"id": "1", "name": "a", "state": "done"}]}]});
        let text = |text: &str| Value::String(text.into());
        let found = changes(&before, &after);
        let expected = vec![
            (
                "agents",
                "1",
                What::Changed(vec![
                    ("state".into(), text("online"), text("offline")),
                    ("tags.X".into(), text("1"), Value::Null),
                ]),
            ),
            ("agents", "2", What::Removed(json!({"id": "2", "name": "b"}))),
            ("agents", "3", What::Added(json!({"id": "3", "name": "c"}))),
            ("runs", "r", What::Changed(vec![("agents.a.state".into(), text("waiting"), text("done"))])),
        ];
        assert_eq!(found.len(), expected.len());
        for (change, (kind, id, what)) in found.iter().zip(&expected) {
            assert_eq!((change.kind, change.id.as_str(), &change.what), (*kind, *id, what));
        }
        assert!(changes(&before, &before).is_empty());
    }

    #[test]
    fn long_values_are_cut_for_people() {
        assert_eq!(short(&Value::String("ä".repeat(200))).chars().count(), SHOWN_MAX + 1);
        assert_eq!(short(&json!("a\u{1b}[2J")), "a\\x1b[2J");
    }
}
