//! What people read: tables, bytes, times. And what a closed pipe means.

use std::io::{self, Write as _};

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

use super::{Done, Failure};
use crate::api::view::RecordView;

/// One line, or a text of several, on stdout. Nobody reading any more is no failure, but the end.
pub(super) fn say(text: &str) -> Done {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Failure::Quiet),
        result => result.map_err(|error| Failure::Failed(format!("cannot write: {error}"))),
    }
}

/// One JSON value on one line.
pub(super) fn say_json(value: &impl Serialize) -> Done {
    say(&serde_json::to_string(value).map_err(Failure::of)?)
}

/// A record of the log: one JSON value, or a line for each of its events.
pub(super) fn say_record(record: &RecordView, as_json: bool) -> Done {
    if as_json {
        return say_json(record);
    }
    for event in &record.events {
        let (position, time, kind) = (record.position, &record.time, &event.kind);
        say(&format!("{position:>8}  {time}  {kind:<22}  {:<18}  {}", record.actor, event.summary))?;
    }
    Ok(())
}

pub(super) fn complain(message: &str) {
    // Where stderr is closed, the exit code has to do.
    let _ = writeln!(io::stderr(), "flotilla: {message}");
}

pub(super) fn table(heads: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> Done {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic).set_header(heads);
    let mut is_empty = true;
    for row in rows {
        is_empty = false;
        table.add_row(row);
    }
    if is_empty {
        return say("none");
    }
    let lines: Vec<String> = table.to_string().lines().map(|line| line.trim_end().to_owned()).collect();
    say(&lines.join("\n"))
}

/// `1.5 MB`: powers of 1,000.
pub(super) fn bytes(count: u64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB", "PB"];
    let (mut value, mut unit) = (count as f64, 0);
    while value >= 1000.0 && unit < units.len() - 1 {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 || value >= 100.0 {
        format!("{value:.0} {}", units[unit])
    } else {
        format!("{value:.1} {}", units[unit])
    }
}

/// `2 min 5 s`.
pub(super) fn seconds(count: u64) -> String {
    match (count / 3600, count / 60 % 60, count % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, m, s) => format!("{m} min {s} s"),
        (h, m, _) => format!("{h} h {m} min"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times() {
        let cases =
            [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (1_500_000, "1.5 MB"), (u64::MAX, "18447 PB")];
        for (count, text) in cases {
            assert_eq!(bytes(count), text);
        }
        for (count, text) in [(0, "0 s"), (125, "2 min 5 s"), (3_725, "1 h 2 min")] {
            assert_eq!(seconds(count), text);
        }
    }
}
