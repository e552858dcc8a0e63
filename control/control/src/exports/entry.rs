//! One entry as JSON, nothing left out (`events/EXPORTS.md` §1, §2).

use data_encoding::BASE64;
use event_audit::Hash;
use event_schema::{
    Actor, Command, CommandBody, DecodeError, Event, JoinKeeping, Record, Report, ReportBody, Signed,
    TakePart, Timestamp,
};
use serde_json::{Map, Value, json};

use crate::api::{
    conflict_key, disposed, event_data, failed_data, hex, options_of, path_text, policy_data, purpose_data,
};

/// An entry of the log, and what it says.
pub(crate) struct Entry<'e> {
    /// The log's name.
    pub(super) log: &'e str,
    /// Where it stands, from 1.
    pub(super) position: u64,
    /// Its bytes, as they are hashed.
    pub(super) bytes: &'e [u8],
    /// What it was decoded to.
    pub(super) read: Result<&'e Record, &'e DecodeError>,
}

impl Entry<'_> {
    /// The leaf of the audit tree.
    pub(super) fn leaf(&self) -> String {
        Hash::leaf(self.bytes).to_base64()
    }

    /// The whole entry as one object.
    pub(super) fn to_json(&self) -> Value {
        let mut line = json!({
            "log": self.log,
            "position": self.position,
            "leaf": self.leaf(),
            "entry": BASE64.encode(self.bytes),
        });
        let more = match self.read {
            // It is proved all the same, and whoever has a newer program reads it.
            Err(error) => json!({ "unread": error.to_string() }),
            Ok(record) => json!({
                "id": record.id,
                "time": record.time.to_string(),
                "stream": record.stream,
                "actor": actor(&record.actor),
                "causation": record.causation,
                "correlation": record.correlation,
                "events": record.events.iter().map(event).collect::<Vec<_>>(),
            }),
        };
        if let (Value::Object(line), Value::Object(more)) = (&mut line, more) {
            line.extend(more);
        }
        line
    }
}

/// Who brought a record about.
fn actor(actor: &Actor) -> Value {
    match actor {
        Actor::Service => json!({"kind": "service"}),
        Actor::Operator(name) => json!({"kind": "operator", "name": name}),
        Actor::Agent(id) => json!({"kind": "agent", "agent": id}),
    }
}

/// The same in one word or two.
pub(super) fn actor_text(actor: &Actor) -> String {
    match actor {
        Actor::Service => "service".into(),
        Actor::Operator(name) => format!("operator {name}"),
        Actor::Agent(id) => format!("agent {id}"),
    }
}

fn event(event: &Event) -> Value {
    json!({
        "kind": event.name(), "number": event.kind(), "version": version(event), "data": whole_data(event),
    })
}

/// Version of the shape that `data` has: the newest, older payloads are brought to it.
pub(super) fn version(event: &Event) -> u8 {
    Event::KINDS.iter().find(|(number, ..)| *number == event.kind()).map_or(0, |(_, version, _)| *version)
}

/// An event's fields, and of what was signed everything.
pub(super) fn whole_data(event: &Event) -> Value {
    let (signed, name, tell): (_, _, fn(&Signed) -> Value) = match event {
        Event::CommandIssued(e) => (&e.signed, "command_body", command),
        Event::ReportReceived(e) => (&e.signed, "report", report),
        event => return event_data(event),
    };
    let mut data = event_data(event);
    if let Value::Object(data) = &mut data {
        let word = || Value::from(signed.word());
        data.insert("signed".into(), signed.legible().map_or_else(word, signed_bytes));
        data.insert(name.into(), signed.legible().map_or_else(word, tell));
    }
    data
}

/// What was signed, byte for byte: whoever has the key can check it.
fn signed_bytes(signed: &Signed) -> Value {
    let signature = [signed.signature.0, signed.signature.1].concat();
    json!({"bytes": BASE64.encode(&signed.bytes), "signature": BASE64.encode(&signature)})
}

fn command(signed: &Signed) -> Value {
    let command = match Command::decode(&signed.bytes) {
        Ok(command) => command,
        Err(error) => return json!({"unread": error.to_string()}),
    };
    let body = match &command.body {
        CommandBody::JoinRun(join)
        | CommandBody::JoinKeeping(JoinKeeping { join })
        | CommandBody::TakePart(TakePart { join, .. }) => {
            let peers = join.peers.iter().map(|peer| {
                json!({
                    "agent": peer.agent, "public_key": hex(&peer.public_key), "role": named(&peer.role),
                    "addresses": peer.addresses,
                })
            });
            let mut body = json!({
                "run": join.run, "job": join.job, "job_name": join.job_name, "role": named(&join.role),
                "source": join.source, "peers": peers.collect::<Vec<_>>(), "trackers": join.trackers,
                "sealed_secret": BASE64.encode(&join.sealed_secret),
            });
            with_path(&mut body, &join.path);
            if let (CommandBody::TakePart(told), Value::Object(body)) = (&command.body, &mut body) {
                body.insert("keeping".into(), told.keeping.into());
                body.insert("options".into(), options_of(&told.options));
                body.insert("purpose".into(), purpose_data(&told.purpose));
            }
            body
        }
        CommandBody::ThinBackup(told) => {
            let mut body = json!({"job": told.job, "source": told.source, "versions": told.versions});
            with_path(&mut body, &told.path);
            body
        }
        CommandBody::WatchBackup(told) => match &told.folder {
            None => json!({"job": told.job, "folder": null}),
            Some(folder) => {
                let mut watched =
                    json!({"quiet_seconds": folder.quiet_seconds, "pause_minutes": folder.pause_minutes});
                with_path(&mut watched, &folder.path);
                json!({"job": told.job, "folder": watched})
            }
        },
        CommandBody::Synchronize(told) => {
            let members = told.members.iter().map(|peer| {
                json!({
                    "agent": peer.agent, "public_key": hex(&peer.public_key),
                    "permission": peer.permission.name(), "addresses": peer.addresses,
                })
            });
            let mut body = json!({
                "run": told.run, "job": told.job, "job_name": told.job_name, "revision": told.revision,
                "permission": told.permission.name(), "ignore": told.selection.ignore,
                "wanted": told.selection.wanted, "policy": policy_data(&told.policy),
                "members": members.collect::<Vec<_>>(), "trackers": told.trackers,
                "sealed_secret": BASE64.encode(&told.sealed_secret),
            });
            with_path(&mut body, &told.path);
            body
        }
        CommandBody::AnswerGuard(told) => {
            json!({"run": told.run, "guard": told.guard, "answer": told.answer.name()})
        }
        CommandBody::FinishRun(finish) => json!({"run": finish.run}),
        CommandBody::StopRun(stop) => json!({"run": stop.run}),
        CommandBody::FinishAndDispose(finish) => json!({
            "run": finish.run, "root": hex(&finish.root), "disposal": plain(&finish.disposal),
        }),
    };
    json!({
        "kind": command.body.name(), "id": command.id, "audience": command.audience,
        "sequence": command.sequence, "issued": time(command.issued), "not_before": time(command.not_before),
        "expires": time(command.expires), "data": body,
    })
}

fn report(signed: &Signed) -> Value {
    let report = match Report::decode(&signed.bytes) {
        Ok(report) => report,
        Err(error) => return json!({"unread": error.to_string()}),
    };
    let body = match &report.body {
        ReportBody::CommandAccepted(r) => json!({"command": r.command, "sequence": r.sequence}),
        ReportBody::CommandRefused(r) => {
            json!({"command": r.command, "sequence": r.sequence, "reason": named(&r.reason)})
        }
        ReportBody::RunStateReported(r) => json!({"run": r.run, "state": r.state.name()}),
        ReportBody::ManifestSigned(r) => json!({
            "run": r.run, "root": hex(&r.root), "entries": r.entries, "bytes": r.bytes, "blocks": r.blocks,
        }),
        ReportBody::ProblemReported(r) => {
            let mut body = json!({
                "run": r.run, "class": named(&r.problem.class), "detail": r.problem.detail,
            });
            with_path(&mut body, &r.problem.path);
            body
        }
        ReportBody::RunCompleted(r) => {
            json!({"run": r.run, "state": r.state.name(), "stats": plain(&r.stats)})
        }
        ReportBody::RunServed(r) => json!({"run": r.run, "stats": plain(&r.stats)}),
        ReportBody::DisposalReported(r) => json!({"run": r.run, "disposed": disposed(&r.disposed)}),
        ReportBody::ConflictFound(r) => {
            let (copy, copy_hex) = path_text(&r.copy);
            let mut body = json!({
                "run": r.run, "conflict": conflict_key(&r.conflict), "copy": copy, "copy_hex": copy_hex,
                "loser": r.loser, "winner": r.winner,
            });
            with_path(&mut body, &r.path);
            body
        }
        ReportBody::ConflictSettled(r) => json!({"run": r.run, "conflict": conflict_key(&r.conflict)}),
        ReportBody::GuardRaised(r) => {
            json!({"run": r.run, "guard": r.guard, "missing": r.missing, "total": r.total})
        }
        ReportBody::GuardLifted(r) => json!({
            "run": r.run, "guard": r.guard, "answer": r.answer.map(event_schema::GuardAnswer::name),
        }),
        ReportBody::PathBlocked(r) => {
            let (by, by_hex) = path_text(&r.by);
            let mut body = json!({
                "run": r.run, "number": r.number, "obstacle": r.obstacle.name(), "by": by, "by_hex": by_hex,
            });
            with_path(&mut body, &r.path);
            body
        }
        ReportBody::PathUnblocked(r) => json!({"run": r.run, "number": r.number}),
        ReportBody::RolledBack(r) => json!({"run": r.run}),
        ReportBody::VersionKept(r) => json!({
            "run": r.run, "version": r.version, "complete": r.complete, "unchanged": r.unchanged,
            "entries": r.entries, "bytes": r.bytes,
        }),
        ReportBody::Thinned(r) => json!({
            "job": r.job, "source": r.source, "removed": r.removed, "failed": failed_data(&r.failed),
        }),
        ReportBody::SourceChanged(r) => json!({"job": r.job}),
    };
    json!({
        "kind": report.body.name(), "agent": report.agent, "sequence": report.sequence,
        "time": time(report.time), "data": body,
    })
}

fn time(time: Timestamp) -> String {
    time.to_string()
}

/// A path as text, and its bytes where it is no UTF-8.
fn with_path(body: &mut Value, path: &[u8]) {
    if let Value::Object(body) = body {
        let (text, bytes) = path_text(path);
        body.insert("path".into(), text.into());
        body.insert("path_hex".into(), bytes.into());
    }
}

/// A plain value of numbers; those are always JSON.
fn plain(value: &impl serde::Serialize) -> Value {
    serde_json::to_value(value).unwrap_or(Value::Object(Map::new()))
}

/// The name of a variant as other parts of an event have it: `disk_full` for `DiskFull`.
fn named(value: &impl std::fmt::Debug) -> String {
    let mut name = String::new();
    for c in format!("{value:?}").chars() {
        if c.is_ascii_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(c.to_ascii_lowercase());
    }
    name
}
