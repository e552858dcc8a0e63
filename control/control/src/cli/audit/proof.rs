//! `flotilla audit prove`: one entry with everything that proves it, in a small file, and the check of one
//! (`events/AUDIT_FORMAT.md` §4).

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use control_core::projection::Views;
use data_encoding::BASE64;
use event_audit::export::{Expectation, ExportReader, prove_entry};
use event_audit::keys::KeyList;
use event_audit::ledger::Ledger;
use event_audit::message::EntryProof;
use event_log::{EventLog as _, Position, ReadError, ReadLimit};
use event_schema::Record;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Archives, Done, Failure, Global, Opened, open_export, open_ledger, open_log, output};
use crate::audit;
use crate::pki::AuditKeys;

/// What the file says it is.
const FORMAT: &str = "flotilla audit proof v1";

/// Bytes of a proof's file that are read: an entry of the largest size in base64, a key list and a checkpoint.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

#[derive(Debug, Args)]
pub(in crate::cli) struct Prove {
    /// Position of the entry
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    entry: u64,
    /// The export; without it, the log in the data folder
    path: Option<PathBuf>,
    /// Name of the log that an export has to be of
    #[arg(long, value_name = "ORIGIN")]
    origin: Option<String>,
    #[command(flatten)]
    archives: Archives,
    /// The file to write; without it, the proof goes to stdout
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// A proof as a file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ProofFile {
    /// What this is.
    format: String,
    /// Position of the entry.
    position: u64,
    /// The entry itself, base64.
    entry: String,
    /// The proof in the form of C2SP tlog-proof, with the checkpoint.
    proof: String,
    /// The signed list of keys.
    keys: String,
}

pub(super) fn prove(global: &Global, line: &Prove) -> Done {
    let (entry, proof, keys) = match line.path.clone().filter(|path| !path.is_dir()) {
        Some(_) if !line.archives.archive.is_empty() => {
            return Err(Failure::Usage("--archive is for a log: an export is whole by itself".into()));
        }
        Some(path) => of_export(line, &path)?,
        None => {
            if line.origin.is_some() {
                return Err(Failure::Usage(
                    "--origin is for exports: the data folder has its own keys".into(),
                ));
            }
            let mut global = global.clone();
            global.data = line.path.clone().or(global.data);
            of_folder(global, line.entry, &line.archives)?
        }
    };
    let file = ProofFile {
        format: FORMAT.into(),
        position: line.entry,
        entry: BASE64.encode(&entry),
        proof: proof.to_text(),
        keys: keys.note().into(),
    };
    let Some(out) = &line.out else { return output::say_json(&file) };
    let mut text = serde_json::to_string_pretty(&file).map_err(Failure::of)?;
    text.push('\n');
    crate::private_file::write(out, text.as_bytes())
        .map_err(|error| Failure::Failed(format!("cannot write {}: {error}", out.display())))?;
    if global.json {
        return output::say_json(&json!({
            "path": out.to_string_lossy(), "bytes": text.len(), "position": line.entry, "origin": keys.origin(),
        }));
    }
    output::say(&format!(
        "entry {} and its proof in {}\nCheck it anywhere: flotilla audit verify {} --origin {}",
        line.entry,
        out.display(),
        out.display(),
        keys.origin()
    ))
}

fn of_export(line: &Prove, path: &Path) -> Result<(Vec<u8>, EntryProof, KeyList), Failure> {
    let bad = |error| Failure::Failed(format!("BAD: {}: {error}", path.display()));
    let expectation = Expectation { origin: line.origin.clone(), heads: Vec::new() };
    let mut reader = ExportReader::open(open_export(path)?, &expectation).map_err(bad)?;
    let found = prove_entry(&mut reader, line.entry).map_err(bad)?;
    let (entry, proof) = found.ok_or_else(|| none(line.entry, reader.newest().head().size))?;
    Ok((entry, proof, reader.keys().clone()))
}

fn none(entry: u64, size: u64) -> Failure {
    Failure::Failed(format!("there is no entry {entry}: the history has the entries 1 to {size}"))
}

/// Out of the data folder: with its newest checkpoint if that covers the entry, else with a new one.
fn of_folder(
    global: Global,
    entry: u64,
    archives: &Archives,
) -> Result<(Vec<u8>, EntryProof, KeyList), Failure> {
    let data = global.data.clone().unwrap_or_else(|| "flotilla-data".into());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Failure::of)?;
    runtime.block_on(async {
        let Opened { log, end, base } = open_log(global.clone(), archives).await?;
        if entry > end.0 {
            return Err(none(entry, end.0));
        }
        let keys = AuditKeys::open(&data).map_err(Failure::of)?;
        let (folder, list) = (data.join("audit"), keys.list());
        let beside =
            Ledger::open_beside(&folder, list.origin(), list.log_keys()).ok().flatten().and_then(|ledger| {
                let newest = ledger.newest().filter(|newest| newest.head().size >= entry)?.clone();
                Some((ledger, newest))
            });
        let (ledger, checkpoint) = match beside {
            Some(sealed) => sealed,
            None => {
                let (mut ledger, is_ours) = open_ledger(global, &data, &keys).await?;
                let checkpoint = if is_ours {
                    let edge = base.as_ref().map(|base| &base.edge);
                    audit::seal(&log, end, edge, &mut ledger, &keys).await.map_err(Failure::of)?
                } else {
                    let newest = ledger.newest().filter(|newest| newest.head().size >= entry).cloned();
                    newest.ok_or_else(|| {
                        Failure::Failed(format!("the service has not signed entry {entry} yet: try again soon"))
                    })?
                };
                (ledger, checkpoint)
            }
        };
        let proof = ledger.prove_entry(entry - 1, &checkpoint).map_err(Failure::of)?;
        let found = match log.read(Position(entry), ReadLimit::entries(1)).await {
            Err(ReadError::Archived { first }) => {
                return Err(Failure::Failed(format!(
                    "entry {entry} was archived, the log begins with {first} here: name the archive with --archive FOLDER"
                )));
            }
            found => found.map_err(Failure::of)?,
        };
        let found = found.into_iter().find(|found| found.position.0 == entry);
        let bytes = found.ok_or_else(|| none(entry, end.0))?.bytes;
        log.close().await;
        // The log may have been rewritten since the tree was made.
        proof.verify(&bytes, list.origin(), list.log_keys()).map_err(|error| {
            Failure::Failed(format!("entry {entry} of the log is not the one that was sealed: {error}"))
        })?;
        Ok((bytes, proof, list.clone()))
    })
}

/// Whether a file may be a proof: an export begins otherwise.
pub(super) fn looks_like_one(path: &Path) -> bool {
    use std::io::Read as _;
    let mut first = [0; 1];
    fs::File::open(path).is_ok_and(|mut file| file.read_exact(&mut first).is_ok() && first == *b"{")
}

/// Checks a proof's file with nothing but itself.
pub(super) fn check(as_json: bool, path: &Path, origin: Option<&str>) -> Done {
    match open(path, origin) {
        Ok((file, keys, entry, root)) => {
            let record = Record::decode(&entry);
            let shown = record.as_ref().ok().map(|record| {
                // Names of agents and groups are not in the entry: ids stand for them.
                crate::api::record(&Views::default(), file.position, record)
            });
            if as_json {
                return output::say_json(&json!({
                    "good": true,
                    "origin": keys.origin(),
                    "origin_expected": origin.is_some(),
                    "position": file.position,
                    "root": root,
                    "record": shown,
                }));
            }
            output::say(&format!(
                "good: this is entry {} of the history that was signed\n  log          {}{}\n  root         {root}",
                file.position,
                keys.origin(),
                if origin.is_some() {
                    ""
                } else {
                    " (NOT CHECKED: give --origin, or this may be any fleet's history)"
                },
            ))?;
            match (shown, record) {
                (Some(shown), _) => output::say_record(&shown, false),
                (None, Err(error)) => output::say(&format!("  it cannot be shown: {error}")),
                (None, Ok(_)) => Ok(()),
            }
        }
        Err(what) if as_json => {
            output::say_json(&json!({ "good": false, "error": what }))?;
            Err(Failure::Quiet)
        }
        Err(what) => Err(Failure::Failed(format!("BAD: {}: {what}", path.display()))),
    }
}

fn open(path: &Path, origin: Option<&str>) -> Result<(ProofFile, KeyList, Vec<u8>, String), String> {
    let size = fs::metadata(path).map_err(|error| error.to_string())?.len();
    if size > FILE_BYTES_MAX {
        return Err(format!("a proof is no file of {size} bytes"));
    }
    let text = fs::read(path).map_err(|error| error.to_string())?;
    let file: ProofFile =
        serde_json::from_slice(&text).map_err(|error| format!("this is no proof of an entry: {error}"))?;
    if file.format != FORMAT {
        return Err(format!("this is a {:?}; this program reads {FORMAT:?}", file.format));
    }
    let entry = BASE64.decode(file.entry.as_bytes()).map_err(|_| "its entry is no base64")?;
    let keys = KeyList::open(file.keys.as_bytes()).map_err(|error| format!("its key list: {error}"))?;
    if let Some(expected) = origin.filter(|expected| *expected != keys.origin()) {
        return Err(format!("it is of the log {}, not of {expected} as expected", keys.origin()));
    }
    let proof = EntryProof::parse(file.proof.as_bytes()).map_err(|error| error.to_string())?;
    if proof.index.checked_add(1) != Some(file.position) {
        return Err(format!("it says entry {}, its proof is of another", file.position));
    }
    let checkpoint =
        proof.verify(&entry, keys.origin(), keys.log_keys()).map_err(|error| error.to_string())?;
    let root = checkpoint.head().root.to_string();
    Ok((file, keys, entry, root))
}
