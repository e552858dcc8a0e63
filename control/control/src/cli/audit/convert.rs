//! `flotilla audit convert`, and the forms beside an export (`events/EXPORTS.md`).

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use event_audit::export::{Expectation, ExportReader};
use event_schema::Record;
use serde::Serialize;
use serde_json::json;

use super::keys::{Reader, With};
use super::{BUFFER_BYTES, Done, Export, Failure, create_private, open_export, output};
use crate::at::At;
use crate::exports::{ConvertError, Converter, Filter, Format, Wanted};

/// Which records.
#[derive(Clone, Debug, Args)]
pub(in crate::cli) struct Pick {
    /// Stop after this position, or before the first record that is later than this time (RFC 3339, UTC)
    #[arg(long, value_name = "POSITION|TIME")]
    until: Option<At>,
    /// Tell only what stands from this position on; everything before is proved and read all the same
    #[arg(long, value_name = "POSITION", default_value_t = 1)]
    from: u64,
    #[command(flatten)]
    wanted: Wanted,
}

/// A wish that goes along with a history.
pub(super) struct Picker {
    until: Option<At>,
    from: u64,
    filter: Filter,
}

impl Pick {
    /// Where to stop.
    pub(super) fn until(&self) -> Option<At> {
        self.until
    }

    pub(super) fn picker(&self) -> Picker {
        Picker { until: self.until, from: self.from, filter: self.wanted.clone().into() }
    }
}

impl Picker {
    /// Whether the record is beyond what is wanted, and so is everything after it.
    pub(super) fn is_past(&self, position: u64, record: &Record) -> bool {
        self.until.is_some_and(|until| until.is_before(position, record.time))
    }

    /// Whether the record is wanted; to be asked for every record, in order.
    pub(super) fn takes(&mut self, position: u64, record: &Record) -> bool {
        let wanted = self.filter.takes(record);
        wanted && position >= self.from
    }

    /// The same for an entry that cannot be read.
    fn takes_unread(&self, position: u64) -> bool {
        let within = !matches!(self.until, Some(At::Position(last)) if position > last);
        within && position >= self.from && self.filter.takes_everything()
    }
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Convert {
    /// The export
    path: PathBuf,
    /// The form
    #[arg(long, value_enum)]
    to: Format,
    /// The file to write, or "-" for stdout; it is replaced only once the new one is complete
    #[arg(long, value_name = "PATH", default_value = "-")]
    out: PathBuf,
    /// Name of the log that the export has to be of
    #[arg(long, value_name = "ORIGIN")]
    origin: Option<String>,
    #[command(flatten)]
    pick: Pick,
    #[command(flatten)]
    with: With,
}

/// A form that was written.
#[derive(Debug, Serialize)]
pub(super) struct Written {
    /// Which.
    pub(super) form: &'static str,
    /// Where.
    pub(super) path: String,
    /// Entries that were wanted.
    pub(super) entries: u64,
    /// JSON values made of them.
    pub(super) values: u64,
}

pub(super) fn convert(as_json: bool, line: &Convert) -> Done {
    let expectation = Expectation { origin: line.origin.clone(), heads: Vec::new() };
    if line.out.as_os_str() == "-" {
        let out = BufWriter::with_capacity(BUFFER_BYTES, io::stdout().lock());
        // Nobody reading any more is no failure, but the end.
        return write(&line.path, &expectation, line.to, &line.pick, line.with.given()?, out).map(drop);
    }
    let written = to_file(&line.path, &expectation, line.to, &line.pick, line.with.given()?, &line.out)?;
    if as_json {
        return output::say_json(&json!(written));
    }
    output::say(&format!("{} entries, {} values in {}", written.entries, written.values, written.path))
}

/// The forms wanted beside an export that is there.
pub(super) fn beside(line: &Export, export: &Path) -> Result<Vec<Written>, Failure> {
    let wanted = [(&line.jsonl, Format::Jsonl), (&line.cloudevents, Format::Cloudevents)];
    let wanted = wanted.into_iter().filter_map(|(path, format)| Some((path.as_ref()?, format)));
    let none = Expectation::default();
    let with = || line.keys.as_deref().map_or_else(|| Ok(Reader::default()), Reader::read);
    wanted.map(|(path, format)| to_file(export, &none, format, &line.pick, with()?, path)).collect()
}

/// Writes a form to a file, which is there once it is complete.
fn to_file(
    export: &Path,
    expectation: &Expectation,
    format: Format,
    pick: &Pick,
    with: Reader,
    path: &Path,
) -> Result<Written, Failure> {
    let beside = path.with_added_extension("new");
    let failed = |what: &str, error: io::Error| {
        Failure::Failed(format!("cannot {what} {}: {error}", beside.display()))
    };
    let file = create_private(&beside).map_err(|error| failed("write", error))?;
    let out = BufWriter::with_capacity(BUFFER_BYTES, file);
    let finished = write(export, expectation, format, pick, with, out).and_then(|(out, entries, values)| {
        let file: File = out.into_inner().map_err(|error| failed("write", error.into_error()))?;
        file.sync_all().map_err(|error| failed("sync", error))?;
        fs::rename(&beside, path).map_err(|error| failed("rename", error))?;
        Ok((entries, values))
    });
    let (entries, values) = finished.inspect_err(|_| {
        // What was written is of no use; a leftover harms nobody.
        let _ = fs::remove_file(&beside);
    })?;
    let form = match format {
        Format::Jsonl => "jsonl",
        Format::Cloudevents => "cloudevents",
        Format::CloudeventsBatch => "cloudevents-batch",
    };
    Ok(Written { form, path: path.to_string_lossy().into(), entries, values })
}

/// Proves each entry and writes the wanted ones; the export is read to its end in any case, so that what was written
/// is known to be of a whole history.
fn write<W: Write>(
    export: &Path,
    expectation: &Expectation,
    format: Format,
    pick: &Pick,
    mut with: Reader,
    out: W,
) -> Result<(W, u64, u64), Failure> {
    let bad = |error| Failure::Failed(format!("BAD: {}: {error}", export.display()));
    let mut reader = ExportReader::open(open_export(export)?, expectation).map_err(bad)?;
    let mut converter = Converter::new(out, format, reader.keys().origin());
    let (mut picker, mut past, mut entries) = (pick.picker(), false, 0);
    while let Some(entry) = reader.next_entry().map_err(bad)? {
        let position = entry.position;
        let mut record = Record::decode(entry.bytes);
        if let Ok(record) = &mut record {
            with.open(record);
        }
        let takes = match &record {
            Ok(record) => {
                past |= picker.is_past(position, record);
                !past && picker.takes(position, record)
            }
            // Nobody knows what it is about, so it is left to those who wanted everything.
            Err(_) => !past && picker.takes_unread(position),
        };
        if takes {
            converter.entry(position, entry.bytes, record.as_ref()).map_err(not_written)?;
            entries += 1;
        }
    }
    let (out, values) = converter.finish().map_err(not_written)?;
    Ok((out, entries, values))
}

fn not_written(error: ConvertError) -> Failure {
    match error {
        ConvertError::Write(error) if error.kind() == io::ErrorKind::BrokenPipe => Failure::Quiet,
        ConvertError::Json(error) if error.io_error_kind() == Some(io::ErrorKind::BrokenPipe) => {
            Failure::Quiet
        }
        error => Failure::of(error),
    }
}
