//! The shapes of the API that are about backups, and about what is asked of runs.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::view::{JobWish, PlaceView};

macro_rules! shapes {
    ($($(#[$meta:meta])* $name:ident { $($(#[$fmeta:meta])* $field:ident: $ty:ty),* $(,)? })+) => {$(
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
        pub struct $name { $($(#[$fmeta])* pub $field: $ty),* }
    )+};
}

shapes! {
    /// When a backup is started.
    WhenShape {
        /// `manual`, `every`, `calendar` or `continuous`.
        kind: String,
        /// Of `every`: minutes between two starts, counted from when the job was made. Of `continuous`: minutes from one
        /// start of a source to its next. 1 to 527,040.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        minutes: Option<u32>,
        /// Of `calendar`: minute, hour, day of the month, month, day of the week, as in `crontab`, in UTC.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        expression: Option<String>,
        /// Of `continuous`: seconds for which a source's folder has to be quiet before it is started. 1 to 86,400.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        quiet_seconds: Option<u32>,
    }
    /// Which versions of a backup are kept at each storage agent: those that any rule keeps; 0 is no rule. The newest
    /// complete one stays whatever they say.
    KeepShape {
        /// So many of the newest.
        #[serde(default)]
        last: u32,
        /// One of each of so many hours that have one.
        #[serde(default)]
        hourly: u32,
        /// One of each of so many days.
        #[serde(default)]
        daily: u32,
        /// One of each of so many weeks; they begin on Monday.
        #[serde(default)]
        weekly: u32,
        /// One of each of so many months.
        #[serde(default)]
        monthly: u32,
        /// One of each of so many years.
        #[serde(default)]
        yearly: u32,
        /// All that are at most so many days older than the newest one.
        #[serde(default)]
        within_days: u32,
    }
    /// What is asked of each run of a job.
    OptionsShape {
        /// What the source leaves out, besides what its folder's `.flotillaignore` says: lines as in that file. At most
        /// 256, each of at most 1 KiB.
        #[serde(skip_serializing_if = "Vec::is_empty", default)]
        ignore: Vec<String>,
        /// What destinations fetch before the rest, in this order: patterns as lines of a `.gitignore` at the top of the
        /// folder. At most 32.
        #[serde(skip_serializing_if = "Vec::is_empty", default)]
        first: Vec<String>,
        /// The hook that destinations call before what they fetched gets its names: what their owners have under this
        /// name in the agent's own configuration. 1 to 32 of `a-z`, `0-9` and `-`.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        hook: Option<String>,
        /// Seconds that the hook may take; 1 to 86,400.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        hook_timeout_s: Option<u32>,
    }
    /// What a run is for, if it is one of a backup.
    PurposeView {
        /// `version` (it keeps one of the source's folder) or `restore` (it gives one back).
        kind: String,
        /// Name of the version.
        version: String,
        /// Of a restore: name of the agent whose folder was kept.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        of: Option<String>,
    }
    /// What there is of a backup.
    BackupView {
        /// The job.
        job: String,
        /// Its name.
        job_name: String,
        /// When it is started.
        when: WhenShape,
        /// What is kept.
        keep: KeepShape,
        /// When it is started next; in the past if that is due. Not told if that is not known.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        next_start: Option<String>,
        /// Whose folders were kept, or are watched.
        sources: Vec<BackupSourceView>,
        /// Position of the log that this answer shows.
        as_of: u64,
    }
    /// A source of a backup.
    BackupSourceView {
        /// Its id.
        id: String,
        /// Its name.
        name: String,
        /// Name of the version that its last start was to make: when that was.
        started: Option<String>,
        /// Of a continuous backup: its folder changed since then.
        changed: bool,
        /// Of a continuous backup: `watched` (it was told to), `not_watched` or `refused: ` and why.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        watch: Option<String>,
        /// Name of the newest version that is complete and not suspicious, wherever it is.
        newest: Option<String>,
        /// Versions of it, those at several storage agents counted each.
        versions: u64,
    }
    /// Versions of a backup.
    VersionsView {
        /// The newest first.
        versions: Vec<VersionView>,
        /// What to ask with as `after` for the next page.
        next: Option<String>,
        /// Position of the log that this answer shows.
        as_of: u64,
    }
    /// A version of a source's folder at a storage agent.
    VersionView {
        /// Its name, a time in UTC.
        version: String,
        /// Name of whose folder it is.
        source: String,
        /// Its id.
        source_id: String,
        /// Name of the storage agent.
        storage: String,
        /// Its id.
        storage_id: String,
        /// `complete`, `incomplete` (the run ended with errors there) or `shrunk` (so much less than the one before that a
        /// disk may have been missing at the source): the last two take no other version's place.
        state: String,
        /// Entries of it.
        entries: u64,
        /// Bytes of all its files; what it shares with others counted in each.
        bytes: u64,
        /// The run that made it.
        run: String,
        /// Where it is: the version is a folder in this one.
        path: String,
        /// Its bytes in hex, if they are no UTF-8.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        path_hex: Option<String>,
    }
    /// What is to be given back.
    RestoreWish {
        /// Whose folder: name, id or unique beginning of the id.
        source: String,
        /// Which version: its name, or `latest`, the default: the newest that is complete and not suspicious.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        version: Option<String>,
        /// Instead of `version`: the newest that is not newer than this time (RFC 3339, UTC).
        #[serde(skip_serializing_if = "Option::is_none", default)]
        at: Option<String>,
        /// A file or folder in it, such as `docs/plan.txt`; default: all of it.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        path: Option<String>,
        /// Instead of `path`, its bytes in hex.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        path_hex: Option<String>,
        /// Who gets it; default: the source.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        to: Option<String>,
        /// Into which folder there; default: the one in which it was at the source.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        folder: Option<String>,
        /// Instead of `folder`, its bytes in hex.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        folder_hex: Option<String>,
        /// Which storage agent gives it; default: one that is connected.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        from: Option<String>,
    }
    /// A restore that was started.
    RestoreStarted {
        /// Its run.
        run: String,
        /// Name of the version.
        version: String,
        /// Name of the storage agent that gives it.
        storage: String,
        /// Where it goes.
        to: PlaceView,
    }
}

impl JobWish {
    /// A job of a kind that names nothing yet, and starts as its kind does.
    pub fn new(kind: &str, name: String) -> Self {
        Self {
            kind: kind.into(),
            name,
            source: None,
            sources: vec![],
            destinations: vec![],
            members: vec![],
            policy: None,
            subfolder: None,
            after: None,
            when: None,
            keep: None,
            options: None,
            start: None,
        }
    }
}
