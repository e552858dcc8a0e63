//! What a backup job says, what its storage agents and sources are told, and what they tell (`edge-agent/BACKUP.md`);
//! and what the owner of a job may ask of each of its runs.

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::{AgentId, JobId, Private};

/// When a job is started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum When {
    /// By hand alone.
    #[default]
    Manual,
    /// Again and again, counted from when the job was made.
    Every {
        /// Minutes between two starts, from 1.
        minutes: u32,
    },
    /// By the calendar in UTC.
    Calendar {
        /// Minute, hour, day of the month, month and day of the week, as in `crontab`: `30 2 * * MON-FRI`. With both
        /// days restricted either is enough.
        expression: String,
    },
    /// When a source's folder has changed; each source for itself.
    Continuous {
        /// Seconds for which the folder has to be quiet before its agent tells of a change, from 1.
        quiet_seconds: u32,
        /// Minutes from one start to the next one of the same source, from 1.
        minutes: u32,
    },
}

/// What is kept of a backup. A version that any of the rules keeps is kept; a count of 0 is no rule.
///
/// Periods are those of the calendar in UTC, weeks begin on Monday. Of a period that counts its newest version is kept,
/// and only periods that have a version count: a source that was away for a month does not lose its last days for that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keep {
    /// So many of the newest.
    pub last: u32,
    /// One of each of so many hours.
    pub hourly: u32,
    /// One of each of so many days.
    pub daily: u32,
    /// One of each of so many weeks.
    pub weekly: u32,
    /// One of each of so many months.
    pub monthly: u32,
    /// One of each of so many years.
    pub yearly: u32,
    /// All that are at most so many days older than the newest one.
    pub within_days: u32,
}

impl Keep {
    /// No rule at all, to set some of. As a policy it is refused.
    pub const NOTHING: Self =
        Self { last: 0, hourly: 0, daily: 0, weekly: 0, monthly: 0, yearly: 0, within_days: 0 };
}

impl Default for Keep {
    /// The last 7, and one of each of 14 days, 8 weeks and 12 months: some 40 versions that reach back a year.
    fn default() -> Self {
        Self { last: 7, daily: 14, weekly: 8, monthly: 12, ..Self::NOTHING }
    }
}

/// What is asked of the runs of a job besides what every run does. The default asks nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunOptions {
    /// What the source leaves out, besides what the folder's own `.flotillaignore` says: lines of its form. At most
    /// [`OPTION_RULES_MAX`], each of at most [`OPTION_LINE_LEN_MAX`] bytes.
    pub rules: Vec<String>,
    /// What destinations fetch before the rest, in this order: patterns in the form of lines of a `.gitignore` at the top
    /// of the folder, without `!`. At most [`OPTION_FIRST_MAX`], each of at most [`OPTION_LINE_LEN_MAX`] bytes.
    pub first: Vec<String>,
    /// What destinations call before what they fetched gets its names: a hook of this name that the owner of each of them
    /// has in its configuration. 1 to [`HOOK_NAME_LEN_MAX`] of `a-z`, `0-9` and `-`; never a command line.
    pub hook: Option<String>,
    /// Seconds that the hook may take, from 1; none: as the agent's configuration says. At most [`HOOK_SECONDS_MAX`].
    pub hook_timeout_s: Option<u32>,
}

/// Rules of a run: as many as a member of a synchronization may have; they stand in each of the run's commands.
pub const OPTION_RULES_MAX: usize = 256;

/// Patterns of what comes first: each is tried with every path of a manifest.
pub const OPTION_FIRST_MAX: usize = 32;

/// Bytes of one rule or pattern: a long path.
pub const OPTION_LINE_LEN_MAX: usize = 1024;

/// Bytes of all rules and patterns of a run together: they stand in each of its commands, of which a record takes many.
pub const OPTIONS_LEN_MAX: usize = 16 * 1024;

/// Bytes of a hook's name.
pub const HOOK_NAME_LEN_MAX: usize = 32;

/// Seconds that a hook may take at most: a day.
pub const HOOK_SECONDS_MAX: u32 = 24 * 60 * 60;

impl RunOptions {
    /// Whether nothing is asked.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// Whether they are within their limits: agents hold what they are told against it too.
    ///
    /// # Errors
    /// What is not, for people.
    pub fn check(&self) -> Result<(), &'static str> {
        let lines = || self.rules.iter().chain(&self.first);
        let is_hook = |name: &String| {
            (1..=HOOK_NAME_LEN_MAX).contains(&name.len())
                && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        };
        if self.rules.len() > OPTION_RULES_MAX {
            Err("a run has at most 256 rules of what is left out")
        } else if self.first.len() > OPTION_FIRST_MAX {
            Err("a run has at most 32 patterns of what comes first")
        } else if lines().any(|line| line.len() > OPTION_LINE_LEN_MAX)
            || lines().map(String::len).sum::<usize>() > OPTIONS_LEN_MAX
        {
            Err("a rule or pattern has at most 1 KiB, all of them 16 KiB")
        } else if lines().any(|line| line.contains(['\n', '\r', '\0'])) {
            Err("a rule or pattern is one line")
        } else if self.first.iter().any(|line| line.starts_with('!') || line.trim().is_empty()) {
            Err("a pattern of what comes first names something, and takes nothing back")
        } else if self.hook.as_ref().is_some_and(|name| !is_hook(name)) {
            Err(
                "a hook's name has 1 to 32 of a-z, 0-9 and -: it names an entry of the agent's own configuration",
            )
        } else if self.hook.is_none() && self.hook_timeout_s.is_some() {
            Err("a hook's time needs a hook")
        } else if self.hook_timeout_s.is_some_and(|s| !(1..=HOOK_SECONDS_MAX).contains(&s)) {
            Err("a hook takes 1 second to a day")
        } else {
            Ok(())
        }
    }
}

impl Private<RunOptions> {
    /// Whether nothing is asked, which is told in the clear.
    pub fn asks_nothing(&self) -> bool {
        self.is_clear() && self.is_none()
    }
}

/// What a run is for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Purpose {
    /// To bring a folder to others.
    #[default]
    Plain,
    /// To keep a version of the source's folder: the destinations' folders are shelves.
    Version {
        /// Its name, a time such as `2026-11-23T013000Z`, perhaps with a number behind it.
        name: String,
    },
    /// To give back what was kept: the run's source is a storage agent, whose path is that of the version's folder, or
    /// leads on into it.
    Restore {
        /// Whose folder was kept.
        of: AgentId,
        /// Which version of it.
        version: String,
    },
}

/// Which of a backup's affairs a command is about, if it is about no run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BackupOrder {
    /// Of which job.
    pub job: JobId,
    /// What.
    pub errand: Errand,
}

/// See [`BackupOrder`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Errand {
    /// `backup.thin` of a source's versions.
    Thin {
        /// Whose versions.
        source: AgentId,
    },
    /// `backup.watch`, to begin or to go on in another way.
    Watch,
    /// `backup.watch`, to end it.
    Unwatch,
}

/// A folder that its agent is to watch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchedFolder {
    /// The agent's folder: absolute, or below its `folders_storage_path`.
    pub path: Vec<u8>,
    /// Seconds for which it has to be quiet before a change is told.
    pub quiet_seconds: u32,
    /// Minutes from one report to the next.
    pub pause_minutes: u32,
}

/// A version that was to be removed and was not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotThinned {
    /// Its name.
    pub version: String,
    /// Why.
    pub why: ThinObstacle,
}

/// Why a version was not removed (BACKUP.md §5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ThinObstacle {
    /// A run reads it, or makes its successor from it.
    InUse,
    /// What is there is no version that this agent made.
    NotAVersion,
    /// The folder of the versions is not there: perhaps a disk is missing.
    NoShelf,
    /// The system refused.
    System,
}

impl ThinObstacle {
    /// The name for people and scripts, such as `in_use`.
    pub fn name(self) -> &'static str {
        match self {
            Self::InUse => "in_use",
            Self::NotAVersion => "not_a_version",
            Self::NoShelf => "no_shelf",
            Self::System => "system",
        }
    }
}

/// Versions that one `backup.thin` names at most: a command stays small, and there are more commands.
pub const THINNED_MAX: usize = 1_000;

/// Bytes of a version's name at most: `2026-11-23T013000Z-9999`.
pub const VERSION_NAME_LEN_MAX: usize = 23;

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;
    use std::vec;

    #[test]
    fn options_have_limits() {
        let fine = RunOptions {
            rules: vec!["*.tmp".into(), "!keep.tmp".into(), String::new()],
            first: vec!["/boot/".into(); OPTION_FIRST_MAX],
            hook: Some("stop-web-7".into()),
            hook_timeout_s: Some(60),
        };
        assert_eq!(fine.check(), Ok(()));
        assert!(RunOptions::default().is_none() && !fine.is_none());
        let long = "x".repeat(OPTION_LINE_LEN_MAX + 1);
        type Change = fn(&mut RunOptions, &str);
        let bad: &[Change] = &[
            |o, _| o.rules = vec![String::new(); OPTION_RULES_MAX + 1],
            |o, _| o.first.push("x".into()),
            |o, long| o.rules.push(long.into()),
            |o, _| o.rules = vec!["x".repeat(1024); 17],
            |o, _| o.rules.push("a\nb".into()),
            |o, _| o.first = vec!["!x".into()],
            |o, _| o.first = vec![" ".into()],
            |o, _| o.hook = Some(String::new()),
            |o, _| o.hook = Some("rm -rf".into()),
            |o, _| o.hook = Some("../x".into()),
            |o, _| o.hook = Some("x".repeat(33)),
            |o, _| o.hook = None,
            |o, _| o.hook_timeout_s = Some(0),
            |o, _| o.hook_timeout_s = Some(HOOK_SECONDS_MAX + 1),
        ];
        for (nth, change) in bad.iter().enumerate() {
            let mut options = fine.clone();
            change(&mut options, &long);
            assert!(options.check().is_err(), "{}", nth.to_string());
        }
    }
}
