//! `flotilla log archive`: old segments of the embedded log into an archive, while no service uses the log.

use std::path::PathBuf;

use clap::Args;
use event_log::file::{FileLog, FileLogOptions};
use event_log::{EventLog as _, OpenError};
use serde_json::json;

use super::{Done, Failure, Global, output};
use crate::at::At;
use crate::pki::AuditKeys;
use crate::{retention, serve};

#[derive(Debug, Args)]
pub(super) struct Archive {
    /// Archive segments that end before this position, or all of whose records are earlier than this time (RFC 3339, UTC)
    #[arg(long, value_name = "TIME|POSITION")]
    before: At,
    /// The archive: a folder that is there, empty or an archive of this log
    #[arg(long, value_name = "FOLDER")]
    to: PathBuf,
    /// Only tell what would be archived
    #[arg(long)]
    dry_run: bool,
}

pub(super) fn run(global: &Global, line: &Archive) -> Done {
    if global.server.is_some() {
        return Err(Failure::Usage(
            "log archive works on the data folder of a stopped service; a running one does it by the setting \
             [retention] of its configuration"
                .into(),
        ));
    }
    let data = global.data.clone().unwrap_or_else(|| "flotilla-data".into());
    let folder = data.join("log");
    if !folder.is_dir() {
        let copy = data.join("log-copy").is_dir();
        let hint = if copy { "; a log in NATS is copied to a folder first: `flotilla log copy`" } else { "" };
        return Err(Failure::Failed(format!("there is no embedded event log in {}{hint}", data.display())));
    }
    let in_use = |_| {
        Failure::Failed(format!(
            "a control service uses {}: stop it, or let it archive by itself ([retention] in its configuration)",
            data.display()
        ))
    };
    let _lock = serve::lock_folder(&data).map_err(in_use)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Failure::of)?;
    let report = runtime.block_on(async {
        let log = match FileLog::open(&folder, FileLogOptions::default()).await {
            Err(OpenError::Locked { .. }) => {
                return Err(in_use(serve::ServeError::InUse { data: data.clone() }));
            }
            log => log.map_err(Failure::of)?,
        };
        let keys = AuditKeys::open(&data).map_err(Failure::of)?;
        let told = |segment: &event_log::file::ClosedSegment| {
            if !global.json {
                output::complain(&format!(
                    "archived: positions {} to {}, {}",
                    segment.first,
                    segment.last,
                    output::bytes(segment.bytes)
                ));
            }
        };
        let report =
            retention::archive(&data, &log, keys.list(), line.before, &line.to, line.dry_run, told).await;
        let first = log.first_stored();
        log.close().await;
        Ok((report.map_err(Failure::of)?, first))
    });
    let (report, first) = report?;
    let bytes: u64 = report.plan.segments.iter().map(|segment| segment.bytes).sum();
    let span = report.plan.segments.first().zip(report.plan.segments.last());
    if global.json {
        let planned: Vec<_> = report
            .plan
            .segments
            .iter()
            .map(|s| json!({ "first": s.first.0, "last": s.last.0, "bytes": s.bytes }))
            .collect();
        output::say_json(&json!({
            "dry_run": line.dry_run,
            "segments": planned,
            "archived": report.archived,
            "bytes": bytes,
            "to": line.to.to_string_lossy(),
            "log_first": first.0,
            "kept_because": report.plan.kept.to_string(),
        }))?;
    } else {
        let what = match span {
            None => "nothing to archive".to_owned(),
            Some((from, to)) => format!(
                "{} segments, positions {} to {}, {}{}",
                report.plan.segments.len(),
                from.first,
                to.last,
                output::bytes(bytes),
                if line.dry_run { ", would be archived" } else { " archived" },
            ),
        };
        output::say(&format!("{what}: {}", report.plan.kept))?;
        if !report.archived.is_empty() {
            output::say(&format!(
                "the log begins with position {first} now\nCheck the archive: flotilla audit verify --archive {}",
                line.to.display()
            ))?;
        }
    }
    // What was asked for and is not allowed is a failure if nothing else could be done.
    if span.is_none() && report.plan.kept.is_refusal() { Err(Failure::Quiet) } else { Ok(()) }
}
