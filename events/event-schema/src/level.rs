//! Schema levels: which shapes a program reads, and how programs of two levels write one log while a fleet's
//! services are replaced one by one.
//!
//! A log has a level, 1 until `schema.raised` says otherwise; whoever writes uses the shapes of that level. It is
//! raised once every living service reads the higher one. A program says which level it reads in the text of its
//! version, in a place that programs which know nothing of levels pass over.

use alloc::format;
use alloc::string::String;

use crate::{Event, ProblemClass, ReportBody, RunAgentState, Tagged};

/// The level of logs that say nothing.
pub const LEVEL_OLDEST: u8 = 1;

/// The level that this program reads and writes, with all below it.
pub const LEVEL_NEWEST: u8 = 5;

/// The level that has consolidations.
pub const LEVEL_CONSOLIDATION: u8 = 3;

/// The level that has synchronizations.
pub const LEVEL_SYNCHRONIZATION: u8 = 4;

/// The level that has backups, and options of runs.
pub const LEVEL_BACKUP: u8 = 5;

/// Kinds of events that level 1 does not know.
const KINDS_OF_LEVEL_2: [u16; 3] = [93, 100, 101];

/// Kinds of events that level 2 does not know.
const KINDS_OF_LEVEL_3: [u16; 1] = [56];

/// Kinds of events that level 3 does not know.
const KINDS_OF_LEVEL_4: [u16; 9] = [110, 111, 112, 113, 114, 115, 116, 117, 118];

/// Kinds of events that level 4 does not know.
const KINDS_OF_LEVEL_5: [u16; 3] = [120, 121, 122];

/// The lowest level whose programs read an event. Of events that nobody knows that is not told here.
pub fn of(tagged: &Tagged) -> u8 {
    let of_version = match (tagged.kind, tagged.version) {
        // Some were passed over by a level.
        (50, 4) | (60, 3) => LEVEL_BACKUP,
        (_, version) => version.clamp(LEVEL_OLDEST, LEVEL_NEWEST),
    };
    of_kind(tagged.kind).max(of_version)
}

fn of_kind(kind: u16) -> u8 {
    if KINDS_OF_LEVEL_5.contains(&kind) {
        5
    } else if KINDS_OF_LEVEL_4.contains(&kind) {
        4
    } else if KINDS_OF_LEVEL_3.contains(&kind) {
        3
    } else if KINDS_OF_LEVEL_2.contains(&kind) {
        2
    } else {
        1
    }
}

/// The lowest level whose programs read a report. Agents tell what they like: what a replica of the log's level cannot
/// read must not come onto the log.
pub fn of_report(body: &ReportBody) -> u8 {
    match body {
        ReportBody::DisposalReported(_) => LEVEL_CONSOLIDATION,
        ReportBody::ProblemReported(r) if r.problem.class == ProblemClass::Replaced => LEVEL_CONSOLIDATION,
        ReportBody::ProblemReported(r) if r.problem.class == ProblemClass::Damaged => LEVEL_BACKUP,
        ReportBody::VersionKept(_) | ReportBody::Thinned(_) | ReportBody::SourceChanged(_) => LEVEL_BACKUP,
        ReportBody::RunStateReported(r) if r.state == RunAgentState::Synchronizing => LEVEL_SYNCHRONIZATION,
        ReportBody::RunCompleted(r) if r.state == RunAgentState::Synchronizing => LEVEL_SYNCHRONIZATION,
        ReportBody::ConflictFound(_)
        | ReportBody::ConflictSettled(_)
        | ReportBody::GuardRaised(_)
        | ReportBody::GuardLifted(_)
        | ReportBody::PathBlocked(_)
        | ReportBody::PathUnblocked(_)
        | ReportBody::RolledBack(_) => LEVEL_SYNCHRONIZATION,
        ReportBody::CommandAccepted(_)
        | ReportBody::CommandRefused(_)
        | ReportBody::RunStateReported(_)
        | ReportBody::ManifestSigned(_)
        | ReportBody::ProblemReported(_)
        | ReportBody::RunCompleted(_)
        | ReportBody::RunServed(_) => LEVEL_OLDEST,
    }
}

/// A program's version with the level that it reads, in the form of semantic versioning's build metadata.
pub fn in_version(version: &str, level: u8) -> String {
    if level == LEVEL_OLDEST { version.into() } else { format!("{version}+schema.{level}") }
}

/// The level that a program of this version reads.
pub fn of_version(version: &str) -> u8 {
    let Some((_, metadata)) = version.split_once('+') else { return LEVEL_OLDEST };
    let mut parts = metadata.split('.');
    parts.find(|part| *part == "schema");
    parts
        .next()
        .and_then(|level| level.parse().ok())
        .map_or(LEVEL_OLDEST, |level: u8| level.max(LEVEL_OLDEST))
}

/// Whether this program would understand the event's kind at the level.
pub fn knows(level: u8, event: &Event) -> bool {
    level >= of_kind(event.kind())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_tells_its_level() {
        for (version, level) in [
            ("0.1.0", 1),
            ("", 1),
            ("0.2.0+schema.2", 2),
            ("0.2.0-rc.1+a1b2.schema.7.x", 7),
            ("0.2.0+schema", 1),
            ("0.2.0+schema.x", 1),
            ("0.2.0+schema.0", 1),
            ("0.2.0+schema.300", 1),
        ] {
            assert_eq!(of_version(version), level, "{version}");
        }
        assert_eq!(in_version("0.1.0", 1), "0.1.0");
        assert_eq!(of_version(&in_version("0.1.0", LEVEL_NEWEST)), LEVEL_NEWEST);
    }
}
