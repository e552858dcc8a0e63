//! A history read from its beginning: an export, each entry proved before it is told, or the log in a data folder. The
//! state is folded on the way, and what was attested is held against it.

use std::collections::VecDeque;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use control_core::form::{Checked, Differs};
use event_audit::export::{Expectation, ExportReader};
use event_log::{EventLog as _, Position, ReadLimit};
use event_schema::{Record, Timestamp};

use super::keys::{Reader, With};
use super::{Archives, Failure, Global, Opened, is_whole, open_export, open_history};
use crate::archive::History;
use crate::at::At;

/// Where records come from.
enum Source {
    Export { path: PathBuf, reader: Box<ExportReader<BufReader<File>>> },
    Log { log: Box<History>, end: Position, page: VecDeque<(u64, Vec<u8>)>, runtime: tokio::runtime::Runtime },
}

/// Which history.
#[derive(Clone, Debug, clap::Args)]
pub(in crate::cli) struct Place {
    /// The export; without it, the log in the data folder
    pub(super) path: Option<PathBuf>,
    /// Name of the log that an export or an archive has to be of
    #[arg(long, value_name = "ORIGIN")]
    pub(super) origin: Option<String>,
    #[command(flatten)]
    pub(super) archives: Archives,
    #[command(flatten)]
    pub(super) with: With,
}

/// A history and the state it has led to so far.
pub(super) struct Walk {
    source: Source,
    with: Reader,
    fold: Checked,
    /// Read, and beyond the place that was asked for last.
    ahead: Option<(u64, Record)>,
    /// Time of the first record.
    first: Option<Timestamp>,
    /// The first record that is earlier than one before it, by more than clocks of several services differ.
    pub(super) clock_back: Option<u64>,
    /// The first attested state that is not the one folded.
    pub(super) differing: Option<Differs>,
}

/// How much a record may be earlier than one before it until it is worth telling.
const CLOCKS_DIFFER_MS: u64 = 10_000;

impl Walk {
    pub(super) fn open(global: &Global, place: &Place) -> Result<Self, Failure> {
        let path = place.path.clone();
        let mut with = place.with.given()?;
        let source = match path.filter(|path| !path.is_dir()) {
            Some(path) => {
                if !place.archives.archive.is_empty() {
                    return Err(Failure::Usage(
                        "--archive is for a log: an export is whole by itself".into(),
                    ));
                }
                let expectation = Expectation { origin: place.origin.clone(), heads: Vec::new() };
                let reader = ExportReader::open(open_export(&path)?, &expectation)
                    .map_err(|error| bad(&path, &error))?;
                Source::Export { path, reader: Box::new(reader) }
            }
            None => {
                if place.origin.is_some() && place.archives.archive.is_empty() {
                    return Err(Failure::Usage(
                        "--origin is for exports: a data folder proves nothing".into(),
                    ));
                }
                let mut global = global.clone();
                // A folder may be named in place of the export.
                global.data = place.path.clone().or(global.data);
                let data = global.data.clone().unwrap_or_else(|| "flotilla-data".into());
                with = place.with.of_folder(&data)?;
                let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
                let runtime = runtime.map_err(Failure::of)?;
                let (origin, archives) = (place.origin.as_deref(), &place.archives);
                let Opened { log, end, .. } = runtime.block_on(open_history(global, archives, origin))?;
                is_whole(&log)?;
                Source::Log { log: Box::new(log), end, page: VecDeque::new(), runtime }
            }
        };
        let fold = Checked::default();
        Ok(Self { source, with, fold, ahead: None, first: None, clock_back: None, differing: None })
    }

    /// The state so far.
    pub(super) fn fold(&self) -> &Checked {
        &self.fold
    }

    /// The next record; none at the end of the history.
    fn read(&mut self) -> Result<Option<(u64, Record)>, Failure> {
        let (position, record) = match &mut self.source {
            Source::Export { path, reader } => {
                match reader.next_entry().map_err(|error| bad(path, &error))? {
                    None => return Ok(None),
                    Some(entry) => (entry.position, Record::decode(entry.bytes)),
                }
            }
            Source::Log { log, end, page, runtime } => {
                if page.is_empty() {
                    let next = Position(self.fold.views().position()).next();
                    let read = runtime.block_on(log.read(next, ReadLimit::default())).map_err(Failure::of)?;
                    let entries = read.into_iter().take_while(|entry| entry.position <= *end);
                    page.extend(entries.map(|entry| (entry.position.0, entry.bytes)));
                }
                match page.pop_front() {
                    None => return Ok(None),
                    Some((position, bytes)) => (position, Record::decode(&bytes)),
                }
            }
        };
        let mut record = record.map_err(|error| {
            Failure::Failed(format!(
                "entry {position} is there, but cannot be read: {error}. Use a newer flotilla, or a place before it"
            ))
        })?;
        self.with.open(&mut record);
        Ok(Some((position, record)))
    }

    /// The next record up to `at`, folded; none where the place is reached.
    pub(super) fn step(&mut self, at: Option<At>) -> Result<Option<(u64, Record)>, Failure> {
        let next = match self.ahead.take() {
            Some(next) => Some(next),
            None => self.read()?,
        };
        let Some((position, record)) = next else { return Ok(None) };
        self.first.get_or_insert(record.time);
        if at.is_some_and(|at| at.is_before(position, record.time)) {
            self.ahead = Some((position, record));
            return Ok(None);
        }
        if position != self.fold.views().position() + 1 {
            return Err(Failure::Failed(format!(
                "the history goes from entry {} to {position}: something is missing",
                self.fold.views().position()
            )));
        }
        if record.time.0.saturating_add(CLOCKS_DIFFER_MS) < self.fold.views().time().0 {
            self.clock_back.get_or_insert(position);
        }
        if let Err(differs) = self.fold.apply(position, &record) {
            self.differing.get_or_insert(differs);
        }
        Ok(Some((position, record)))
    }

    /// Goes on to `at`, or to the end.
    pub(super) fn to(&mut self, at: Option<At>) -> Result<(), Failure> {
        while self.step(at)?.is_some() {}
        let (reached, time) = (self.fold.views().position(), self.fold.views().time());
        match at {
            Some(At::Position(position)) if position > reached => Err(Failure::Failed(format!(
                "there is no entry {position}: the history ends with entry {reached} ({time})"
            ))),
            Some(At::Time(at)) if reached == 0 => Err(Failure::Failed(match self.first {
                Some(first) => format!("nothing had happened at {at}: the history begins at {first}"),
                None => "the history has no entries".into(),
            })),
            _ => Ok(()),
        }
    }
}

fn bad(path: &Path, error: &event_audit::export::ExportError) -> Failure {
    Failure::Failed(format!("BAD: {}: {error}", path.display()))
}
