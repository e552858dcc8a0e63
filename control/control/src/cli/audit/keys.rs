//! Keys of private texts for auditors who may read them: `audit export --keys` writes them, the other tools take them
//! (`events/AUDIT_FORMAT.md` §7). One JSON object a line: `subject` and `key` (hex).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use control_core::subject::Known;
use data_encoding::HEXLOWER;
use event_audit::export::{Expectation, ExportReader};
use event_schema::{Event, Record, Subject, SubjectKey};
use serde_json::json;
use zeroize::Zeroizing;

use super::{Client, Failure, Global, open_export, output};
use crate::api::view::{SubjectKeyView, SubjectKeysView};
use crate::pki;
use crate::privacy::{FileKeys, Given};

/// Bytes of a file of keys that are read: those of the largest fleet.
const FILE_BYTES_MAX: u64 = 1 << 30;

/// With which keys texts are read.
#[derive(Clone, Debug, Default, Args)]
pub(in crate::cli) struct With {
    /// Keys of private texts (a file from `audit export --keys`); without it, those texts are shown as [sealed]
    #[arg(long, value_name = "PATH")]
    keys: Option<PathBuf>,
}

impl With {
    /// The keys, or none.
    pub(super) fn given(&self) -> Result<Reader, Failure> {
        self.keys.as_deref().map_or_else(|| Ok(Reader::default()), Reader::read)
    }

    /// The keys of a data folder that can be read without its service, if no others are named.
    pub(super) fn of_folder(&self, data: &Path) -> Result<Reader, Failure> {
        if self.keys.is_some() {
            return self.given();
        }
        Ok(in_folder(data)?.map_or_else(Reader::default, Reader::new))
    }
}

/// Opens the records of a history from its beginning.
#[derive(Debug, Default)]
pub(super) struct Reader {
    given: Given,
    warned: bool,
}

impl Reader {
    fn new(keys: Vec<(Subject, SubjectKey)>) -> Self {
        Self { given: Given::new(keys), warned: false }
    }

    /// From a file.
    pub(super) fn read(path: &Path) -> Result<Self, Failure> {
        let failed = |what: String| Failure::Failed(format!("the keys in {}: {what}", path.display()));
        let bytes = fs::metadata(path).map_err(|error| failed(error.to_string()))?.len();
        if bytes > FILE_BYTES_MAX {
            return Err(failed(format!("no file of keys has {bytes} bytes")));
        }
        let text = Zeroizing::new(fs::read_to_string(path).map_err(|error| failed(error.to_string()))?);
        let mut keys = Vec::new();
        for (number, line) in (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty()) {
            let key = parse(line).ok_or_else(|| failed(format!("line {number} is no key of a subject")))?;
            keys.push(key);
        }
        Ok(Self::new(keys))
    }

    /// Opens the next record.
    pub(super) fn open(&mut self, record: &mut Record) {
        self.given.open(record);
        if let Some(subject) = self.given.foreign().next().filter(|_| !self.warned) {
            self.warned = true;
            output::complain(&format!(
                "WARNING: the key given for {subject} is not the one that the log names, so it opens nothing: the file is \
                 of another fleet, was changed, or is older than the subject's newest key"
            ));
        }
    }
}

fn parse(line: &str) -> Option<(Subject, SubjectKey)> {
    let view: SubjectKeyView = serde_json::from_str(line).ok()?;
    let bytes = Zeroizing::new(HEXLOWER.decode(view.key.as_bytes()).ok()?);
    let key: [u8; 32] = bytes.as_slice().try_into().ok()?;
    Some((view.subject.parse().ok()?, SubjectKey::new(key)))
}

/// The keys that the data folder's own file holds; none where they are kept elsewhere. What cannot be read there is told,
/// and not taken for something that is elsewhere.
fn in_folder(data: &Path) -> Result<Option<Vec<(Subject, SubjectKey)>>, Failure> {
    let path = data.join(FileKeys::NAME);
    let Some(found) = FileKeys::read(&path).map_err(Failure::of)? else { return Ok(None) };
    let wrapper = pki::subject_keys(data).map_err(|error| {
        Failure::Failed(format!("the keys in {} cannot be unwrapped: {error}", path.display()))
    })?;
    let count = found.keys.len();
    let key = |(subject, wrapped)| Some((subject, wrapper.unwrap(subject, &wrapped)?));
    let keys: Vec<_> = found.keys.into_iter().filter_map(key).collect();
    if found.others > 0 || keys.len() < count {
        output::complain(&format!(
            "WARNING: {} of the keys in {} are damaged or of another fleet: what is under them is shown as [sealed]",
            found.others.max(count - keys.len()),
            path.display()
        ));
    }
    Ok(Some(keys))
}

/// Without the keys that a history calls erased: the folder may still have them, for the service was stopped before it
/// destroyed them, or a backup of them was put back.
fn without_erased(keys: &mut Vec<(Subject, SubjectKey)>, export: &Path) -> Result<(), Failure> {
    let mut told: BTreeMap<Subject, Known> = BTreeMap::new();
    let bad = |error| Failure::Failed(format!("{}: {error}", export.display()));
    let mut reader = ExportReader::open(open_export(export)?, &Expectation::default()).map_err(bad)?;
    while let Some(entry) = reader.next_entry().map_err(bad)? {
        // What this program cannot read tells of no key that it knows.
        let Ok(record) = Record::decode(entry.bytes) else { continue };
        for event in &record.events {
            match event {
                Event::SubjectOpened(e) => told.entry(e.subject).or_default().open(e.commitment),
                Event::SubjectErased(e) => {
                    if let Some(known) = told.get_mut(&e.subject) {
                        known.erase();
                    }
                }
                _ => {}
            }
        }
    }
    keys.retain(|(subject, key)| {
        told.get(subject).is_none_or(|known| !known.erased.contains(&key.commitment(*subject)))
    });
    Ok(())
}

/// Writes the keys of a service, running or not, to a file, but for those that the export calls erased; how many.
pub(super) fn write(global: Global, export: &Path, path: &Path) -> Result<usize, Failure> {
    let own = match &global.server {
        Some(_) => None,
        None => in_folder(global.data.as_deref().unwrap_or(Path::new("flotilla-data")))?,
    };
    let keys = match own {
        Some(mut keys) => {
            without_erased(&mut keys, export)?;
            keys.into_iter().map(|(subject, key)| shown(subject, &key)).collect()
        }
        // Kept in NATS, or on another machine: the service has them.
        None => Client::new(global)?.get::<SubjectKeysView>("audit/keys")?.keys,
    };
    let mut text = Zeroizing::new(String::new());
    for key in &keys {
        text.push_str(&json!(key).to_string());
        text.push('\n');
    }
    crate::private_file::write(path, text.as_bytes())
        .map_err(|error| Failure::Failed(format!("cannot write {}: {error}", path.display())))?;
    Ok(keys.len())
}

fn shown(subject: Subject, key: &SubjectKey) -> SubjectKeyView {
    SubjectKeyView { subject: subject.to_string(), key: HEXLOWER.encode(key.as_bytes()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use event_schema::JobId;

    #[test]
    fn a_key_is_read_as_it_was_written() {
        let (subject, key) = (Subject::Job(JobId([7; 16])), SubjectKey::new([9; 32]));
        let line = json!(shown(subject, &key)).to_string();
        assert_eq!(parse(&line), Some((subject, key)));
        for bad in ["", "{}", "null", &line.replace("job", "jab"), &line.replace("09", "0"), &line[1..]] {
            assert!(parse(bad).is_none(), "{bad}");
        }
    }

    /// Only a folder without such a file has its keys elsewhere.
    #[test]
    fn keys_that_cannot_be_read_are_not_taken_for_kept_elsewhere() {
        let dir = tempfile::tempdir().expect("a folder");
        let (data, path) = (dir.path(), dir.path().join(FileKeys::NAME));
        let said = |found: Result<Option<Vec<_>>, Failure>| match found {
            Err(Failure::Failed(why)) => why,
            found => panic!("{:?}", found.map(|found| found.map(|keys| keys.len()))),
        };
        assert!(matches!(in_folder(data), Ok(None)));
        drop(FileKeys::open(&path).expect("made"));
        assert!(said(in_folder(data)).contains("cannot be unwrapped"));
        pki::Pki::open(data, &["localhost".to_owned()], crate::service::now()).expect("made");
        assert!(in_folder(data).is_ok_and(|found| found.is_some_and(|keys| keys.is_empty())));
        fs::write(&path, "something else").expect("written");
        assert!(said(in_folder(data)).contains("damaged"));
    }
}
