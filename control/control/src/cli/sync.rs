//! `flotilla sync`, `flotilla conflicts`, `flotilla jobs create synchronization`: one folder, many members.

use std::ffi::OsString;

use clap::{ArgGroup, Args, Subcommand, value_parser};

use super::client::{Client, segment};
use super::{Done, Failure, output, place};
use crate::api::escape_bytes;
use crate::api::sync_view::{
    ConflictsView, GuardWish, PolicyWish, ShareView, ShareWish, SharesWish, SyncMemberView,
};
use crate::api::view::{JobWish, PlaceView, RunAgentView, RunView};

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("who").required(true).multiple(true).args(["member", "read_only", "revert"]))]
pub(super) struct Create {
    /// Its name
    #[arg(long)]
    name: String,
    #[command(flatten)]
    shares: Shares,
    #[command(flatten)]
    policy: Policy,
    /// Only make the job
    #[arg(long)]
    no_start: bool,
}

/// Who takes part with which rights.
#[derive(Debug, Args)]
struct Shares {
    /// Who gives and takes changes (repeatable)
    #[arg(long, value_name = "AGENT|GROUP:PATH", value_parser = value_parser!(OsString))]
    member: Vec<OsString>,
    /// Who only receives; what is changed there is kept aside (repeatable)
    #[arg(long, value_name = "AGENT|GROUP:PATH", value_parser = value_parser!(OsString))]
    read_only: Vec<OsString>,
    /// Who only receives; what is changed there goes to its archive (repeatable)
    #[arg(long, value_name = "AGENT|GROUP:PATH", value_parser = value_parser!(OsString))]
    revert: Vec<OsString>,
    /// What those who are named here leave out: a line as in a .gitignore (repeatable)
    #[arg(long, value_name = "RULE")]
    ignore: Vec<String>,
    /// What alone those who are named here want, in the same form (repeatable)
    #[arg(long, value_name = "PATTERN")]
    wanted: Vec<String>,
}

impl Shares {
    fn wishes(self) -> Result<Vec<ShareWish>, Failure> {
        let Self { member, read_only, revert, ignore, wanted } = self;
        let of = |permission: &'static str| move |text| (permission, text);
        let all = member.into_iter().map(of("read_write"));
        let all = all.chain(read_only.into_iter().map(of("read_only")));
        let all = all.chain(revert.into_iter().map(of("read_only_revert")));
        let share = |(permission, text): (&str, OsString)| {
            let place = place::parse(text).map_err(Failure::Usage)?;
            Ok(ShareWish {
                party: place.party,
                path: place.path,
                path_hex: place.path_hex,
                permission: Some(permission.into()),
                ignore: ignore.clone(),
                wanted: wanted.clone(),
            })
        };
        all.map(share).collect()
    }
}

/// What holds for all members.
#[derive(Debug, Args)]
struct Policy {
    /// How long what was replaced or deleted is kept: 30d, 10GB, 30d,10GB, unlimited or none [default: 30d]
    #[arg(long, value_name = "KEEP")]
    archive: Option<String>,
    /// Ask before more than this share of a member's entries is deleted at once; 100: never [default: 25]
    #[arg(long, value_name = "PERCENT")]
    guard_percent: Option<u8>,
    /// Delete fewer entries than this without a question [default: 20]
    #[arg(long, value_name = "ENTRIES")]
    guard_min: Option<u32>,
}

impl Policy {
    fn wish(self) -> PolicyWish {
        let Self { archive, guard_percent, guard_min } = self;
        PolicyWish { archive, guard_percent, guard_min }
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum Sync {
    /// Show who takes part in a synchronization, and how each stands
    #[command(after_help = "Example: flotilla sync members plans")]
    Members {
        /// Id, beginning of the id, name of the job, or "latest"
        #[arg(default_value = "latest")]
        run: String,
    },
    /// Let others take part in a synchronization that runs, or give members other rights
    #[command(
        after_help = "Example: flotilla sync add plans --read-only group:shops:plans --ignore '*.tmp'\n\n\
        A member that is named again gets the rights, rules and patterns that are said now; its folder has to be the same. \
        One that failed tries again. The job itself stays as it was made: a new run begins with its members."
    )]
    Add(Add),
    /// Take members out of a synchronization that runs; their files stay
    #[command(after_help = "Example: flotilla sync remove plans nas-3 group:shops")]
    Remove {
        /// Id, beginning of the id, name of the job, or "latest"
        run: String,
        /// Agents and groups
        #[arg(required = true, value_name = "AGENT|GROUP")]
        members: Vec<String>,
    },
    /// Set how long replaced and deleted files are kept, and when a person is asked; what is not named stays
    #[command(after_help = "Example: flotilla sync policy plans --archive 90d,100GB --guard-percent 50")]
    Policy(SetPolicy),
    /// Answer the guard of a member: so much is gone from its folder that nothing happens until somebody answers
    #[command(after_help = "Example: flotilla sync confirm plans --agent nas-1 --restore\n\n\
        --delete: the deletions were meant, everybody deletes. --restore: they were not, the member fetches everything again.")]
    Confirm(Confirm),
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("who").required(true).multiple(true).args(["member", "read_only", "revert"]))]
pub(super) struct Add {
    /// Id, beginning of the id, name of the job, or "latest"
    run: String,
    #[command(flatten)]
    shares: Shares,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").required(true).multiple(true).args(["archive", "guard_percent", "guard_min"]))]
pub(super) struct SetPolicy {
    /// Id, beginning of the id, name of the job, or "latest"
    run: String,
    #[command(flatten)]
    policy: Policy,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("answer").required(true).args(["delete", "restore"]))]
pub(super) struct Confirm {
    /// Id, beginning of the id, name of the job, or "latest"
    run: String,
    /// Whose guard
    #[arg(long)]
    agent: String,
    /// The deletions were meant
    #[arg(long)]
    delete: bool,
    /// They were not
    #[arg(long)]
    restore: bool,
}

#[derive(Debug, Args)]
pub(super) struct Conflicts {
    /// Id, beginning of the id, name of the job, or "latest"
    #[arg(default_value = "latest")]
    run: String,
}

/// The job to be made.
pub(super) fn wish(line: Create) -> Result<JobWish, Failure> {
    Ok(JobWish {
        members: line.shares.wishes()?,
        policy: Some(line.policy.wish()),
        start: Some(!line.no_start),
        ..JobWish::new("synchronization", line.name)
    })
}

pub(super) fn run(client: &Client, json: bool, command: Sync) -> Done {
    let path = |run: &str, what: &str| format!("runs/{}/{what}", segment(run));
    let run: RunView = match command {
        Sync::Members { run } => {
            let run: RunView = client.get(&format!("runs/{}", segment(&run)))?;
            if run.sync.is_none() {
                return Err(Failure::Failed(format!("the run {} does not synchronize", run.id)));
            }
            run
        }
        Sync::Add(line) => {
            let wish = SharesWish { add: line.shares.wishes()?, remove: vec![] };
            client.post(&path(&line.run, "members"), &wish)?
        }
        Sync::Remove { run, members } => {
            client.post(&path(&run, "members"), &SharesWish { add: vec![], remove: members })?
        }
        Sync::Policy(line) => client.put(&path(&line.run, "policy"), &line.policy.wish())?,
        Sync::Confirm(line) => {
            let answer = if line.delete { "delete" } else { "restore" };
            let wish = GuardWish { agent: line.agent, answer: answer.into() };
            client.post(&path(&line.run, "guard"), &wish)?
        }
    };
    if json { output::say_json(&run) } else { show(&run) }
}

/// A synchronization: how it stands, its policy, its members, and what people should see to.
pub(super) fn show(run: &RunView) -> Done {
    let Some(sync) = &run.sync else { return Ok(()) };
    let mut text = format!("{} of {}: {}", run.id, run.job_name, sync.status);
    if let Some(reason) = &run.stop_reason {
        text.push_str(&format!(": {reason}"));
    }
    text.push_str(&format!("\n  started   {}", run.started));
    match &run.finished {
        Some(finished) => text.push_str(&format!("\n  stopped   {finished}")),
        None => text.push_str("\n  ends      when it is stopped"),
    }
    let policy = &sync.policy;
    text.push_str(&format!("\n  archive   {}", policy.archive));
    text.push_str(&match policy.guard_percent {
        100 => "\n  guard     off".to_owned(),
        percent => format!("\n  guard     asks before more than {percent} % and {} go", policy.guard_min),
    });
    if sync.conflicts > 0 {
        text.push_str(&format!("\n  conflicts {}; flotilla conflicts {} lists them", sync.conflicts, run.id));
    }
    output::say(&text)?;
    let members: Vec<(&RunAgentView, &SyncMemberView)> =
        run.agents.iter().filter_map(|agent| Some((agent, agent.member.as_ref()?))).collect();
    let row = |(agent, member): &(&RunAgentView, &SyncMemberView)| {
        let selective = !member.ignore.is_empty() || !member.wanted.is_empty();
        let rights = member.permission.replace('_', " ");
        vec![
            agent.name.clone(),
            if selective { format!("{rights}, selective") } else { rights },
            if member.left { "leaving".into() } else { member.standing.replace('_', " ") },
            member.entries.to_string(),
            match member.left_entries {
                0 => String::new(),
                left => format!("{left} entries, {}", output::bytes(member.left_bytes)),
            },
            agent.peers.to_string(),
            agent.problems_total.to_string(),
            escape_bytes(agent.path.as_bytes()),
        ]
    };
    let heads = ["AGENT", "RIGHTS", "STATE", "ENTRIES", "LEFT", "PEERS", "PROBLEMS", "FOLDER"];
    output::table(&heads, members.iter().map(row))?;
    for (agent, member) in &members {
        if let Some(guard) = &member.guard {
            let (missing, total) = (guard.missing, guard.total);
            output::say(&match &guard.answer {
                Some(answer) => {
                    format!("guard: {}: {missing} of {total} are gone; it is to {answer}", agent.name)
                }
                None => format!(
                    "guard: {}: {missing} of {total} entries are gone since {}; answer: flotilla sync confirm {} --agent {} \
                     --delete|--restore",
                    agent.name, guard.since, run.id, agent.name
                ),
            })?;
        }
        for blocked in &member.blocked {
            let by = blocked.by.as_ref();
            let by = by.map_or_else(String::new, |by| format!(" by {}", escape_bytes(by.as_bytes())));
            output::say(&format!(
                "blocked: {}: {}: {}{by}",
                agent.name,
                escape_bytes(blocked.path.as_bytes()),
                blocked.obstacle.replace('_', " ")
            ))?;
        }
        let more = member.blocked_total.saturating_sub(member.blocked.len() as u64);
        if more > 0 {
            output::say(&format!("blocked: {}: {more} more", agent.name))?;
        }
        if member.rolled_back > 0 {
            output::say(&format!(
                "note: {}: its index was an older copy of itself {} times; it counted anew",
                agent.name, member.rolled_back
            ))?;
        }
    }
    Ok(())
}

pub(super) fn conflicts(client: &Client, json: bool, line: &Conflicts) -> Done {
    let view: ConflictsView = client.get(&format!("runs/{}/conflicts", segment(&line.run)))?;
    if json {
        return output::say_json(&view);
    }
    let row = |c: &crate::api::sync_view::ConflictView| {
        let text = |path: &str, hex: &Option<String>| {
            let bytes = hex.as_ref().and_then(|hex| data_encoding::HEXLOWER.decode(hex.as_bytes()).ok());
            escape_bytes(bytes.as_deref().unwrap_or(path.as_bytes()))
        };
        vec![
            text(&c.path, &c.path_hex),
            c.winner.clone(),
            c.loser.clone(),
            text(&c.copy, &c.copy_hex),
            c.found.clone(),
        ]
    };
    output::table(
        &["PATH", "HAS THE CHANGE OF", "OTHER CHANGE", "IS IN", "FOUND"],
        view.conflicts.iter().map(row),
    )?;
    if view.conflicts.is_empty() {
        return Ok(());
    }
    output::say("Remove or rename a copy, at any member, when you have seen to it.")
}

/// A job's members, one line each.
pub(super) fn share_line(share: &ShareView) -> String {
    let ShareView { kind, id, name, path, path_hex, permission, ignore, wanted } = share.clone();
    let place = crate::api::bootstrap_place(&PlaceView { kind, id, name, path, path_hex });
    let mut line = format!("{place} ({}", permission.replace('_', " "));
    for (word, lines) in [("without", ignore), ("only", wanted)] {
        if !lines.is_empty() {
            line.push_str(&format!("; {word} {}", lines.join(" ")));
        }
    }
    line.push(')');
    line
}
