//! `flotilla audit`: history in a file that proves itself, the check of one, which needs nothing else, and what can be
//! read out of it: the state at any place, what changed, one entry's proof.

mod archive;
mod convert;
mod fetch;
mod keys;
mod proof;
mod state;
mod walk;

use std::fs::{self, File, OpenOptions};
use std::io::{BufReader, BufWriter};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use control_core::form::Checked;
use event_audit::checkpoint::Checkpoint;
use event_audit::export::{Expectation, ExportError, ExportReader};
use event_audit::ledger::{Ledger, LedgerError};
use event_audit::note::Note;
use event_log::file::{FileLog, FileLogOptions};
use event_log::{EventLog as _, OpenError, Position};
use event_schema::{DecodeError, Record};
use serde_json::json;
use std::sync::Arc;

use super::client::Client;
use super::witnesses::Notes;
use super::{Done, Failure, Global, output};
use crate::api::view::{SealView, StatusView};
use crate::archive::{BaseNote, History};
use crate::audit;
use crate::pki::AuditKeys;

/// Bytes read or written at a time.
const BUFFER_BYTES: usize = 256 * 1024;

/// Bytes of a checkpoint's file that are read at most.
const CHECKPOINT_BYTES_MAX: u64 = event_audit::limits::MAX_NOTE_BYTES as u64;

#[derive(Debug, Subcommand)]
pub(super) enum Audit {
    /// Seal the log in the data folder, sign it, and write all of it to one file
    #[command(
        after_help = "Example: flotilla audit export --data ./flotilla-data --out history.flotilla-audit\n\
                  flotilla audit export --server https://fleet.example --token T --out history.flotilla-audit\n\n\
        With --data it works beside a running service and without one; with --server the service makes the export, which \
        is verified while it arrives. Tell the auditor the log's name, which is printed, by a way \
        that you both trust: it stands for the fleet's root key."
    )]
    Export(Export),
    /// Check an export, or one entry's proof, without a service or a network; 1 and the first bad entry if it fails
    #[command(after_help = "Example: flotilla audit verify history.flotilla-audit \
        --origin flotilla/0f1e2d3c4b5a69788796a5b4c3d2e1f0 --seen last-audit.checkpoint")]
    Verify(Verify),
    /// Tell an export's history event by event, each proved before it is told, and the state it leads to as a hash
    #[command(
        after_help = "Example: flotilla audit replay history.flotilla-audit --until 2026-03-01T12:00:00Z\n\n\
        The hash is the one that `flotilla status` shows of the live service at that position."
    )]
    Replay(Replay),
    /// An export in a form that other programs read: lines of JSON, or CloudEvents; each entry is proved first
    #[command(
        after_help = "Example: flotilla audit convert history.flotilla-audit --to cloudevents --agent nas-1 \
        --out nas-1.jsonl\n\nevents/EXPORTS.md describes both forms. A line's leaf hash ties it to the tree."
    )]
    Convert(convert::Convert),
    /// What each agent holds as a witness of the log, and every conflict of histories
    #[command(after_help = "Example: flotilla audit witnesses --json\n\n\
        A conflict means that an agent was shown another history than the one this service now has: the log was \
        restored from an old copy, rewritten or forked. docs/operations.md says what to do.")]
    Witnesses,
    /// The fleet as it was, in the shapes of the API, and its hash: of an export or of the log in a data folder
    #[command(
        after_help = "Example: flotilla audit state history.flotilla-audit --at 2026-03-01T12:00:00Z --json\n\n\
        A time stands for the last record before the first one that is later."
    )]
    State(state::State),
    /// What changed between two places of a history
    #[command(
        after_help = "Example: flotilla audit diff history.flotilla-audit --from 2026-03-01T12:00:00Z --to 5120"
    )]
    Diff(state::Diff),
    /// One entry with its proof in a small file, which `audit verify` checks
    #[command(after_help = "Example: flotilla audit prove 4711 history.flotilla-audit --out 4711.proof.json")]
    Prove(proof::Prove),
}

/// Where the beginning of the log is, if it was archived.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct Archives {
    /// An archive of the log (flotilla log archive), read before what the log still holds (repeatable)
    #[arg(long, value_name = "FOLDER")]
    pub(super) archive: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct Export {
    /// The file to write; it is replaced only once the new one is complete
    #[arg(long, value_name = "PATH", required_unless_present_any = ["jsonl", "cloudevents"])]
    out: Option<PathBuf>,
    /// Also lines of JSON, one an entry, made from the proved entries
    #[arg(long, value_name = "PATH")]
    jsonl: Option<PathBuf>,
    /// Also CloudEvents, one a line, made from the proved entries
    #[arg(long, value_name = "PATH")]
    cloudevents: Option<PathBuf>,
    /// Name of the log that a service's export has to be of
    #[arg(long, value_name = "ORIGIN")]
    origin: Option<String>,
    /// Also write the keys of private texts to a file of its own, for an auditor who may read them
    #[arg(long, value_name = "PATH")]
    keys: Option<PathBuf>,
    #[command(flatten)]
    archives: Archives,
    #[command(flatten)]
    pick: convert::Pick,
}

#[derive(Debug, Args)]
pub(super) struct Verify {
    /// The export, or the proof of an entry
    #[arg(required_unless_present = "archive", conflicts_with = "archive")]
    path: Option<PathBuf>,
    #[command(flatten)]
    archives: Archives,
    /// Name of the log that it has to be of; without it, any fleet's history is taken
    #[arg(long, value_name = "ORIGIN")]
    origin: Option<String>,
    /// A checkpoint seen before (a file), which the history has to contain (repeatable)
    #[arg(long, value_name = "FILE")]
    seen: Vec<PathBuf>,
    /// A checkpoint that an agent holds (a file, from `flotilla-agent checkpoint`): it has to be signed by the log, and
    /// the history has to contain it (repeatable)
    #[arg(long, value_name = "FILE")]
    witness: Vec<PathBuf>,
    /// Keep the newest checkpoint in a file, for --seen of the next check
    #[arg(long, value_name = "FILE")]
    keep: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct Replay {
    #[command(flatten)]
    place: walk::Place,
    #[command(flatten)]
    pick: convert::Pick,
}

pub(super) fn run(global: Global, command: Audit) -> Done {
    match command {
        Audit::Export(line) => export(global, &line),
        Audit::Convert(line) => convert::convert(global.json, &line),
        Audit::Verify(line) if !line.archives.archive.is_empty() => archive::check(global.json, &line),
        Audit::Verify(line) => check(global.json, &line),
        Audit::Replay(line) => replay(&global, &line),
        Audit::Witnesses => {
            let as_json = global.json;
            super::witnesses::show(&Client::new(global)?, as_json)
        }
        Audit::State(line) => state::state(&global, &line),
        Audit::Diff(line) => state::diff(&global, &line),
        Audit::Prove(line) => proof::prove(&global, &line),
    }
}

fn export(global: Global, line: &Export) -> Done {
    let (as_json, with_keys) = (global.json, global.clone());
    let wanted = line.jsonl.as_ref().or(line.cloudevents.as_ref());
    let place = line.out.clone().or_else(|| wanted.map(|path| path.with_added_extension("export")));
    let place = place.ok_or_else(|| Failure::Usage("audit export: where to? Give --out".into()))?;
    let checkpoint = if global.server.is_some() {
        if !line.archives.archive.is_empty() {
            return Err(Failure::Usage(
                "--archive is for the data folder: run it on the service's machine".into(),
            ));
        }
        fetch::fetch(global, &place, line.origin.clone())?
    } else if line.origin.is_some() {
        return Err(Failure::Usage("--origin is for --server: the data folder has its own keys".into()));
    } else {
        export_folder(global, &place, &line.archives)?
    };
    let bytes = fs::metadata(&place).map_err(Failure::of)?.len();
    // Before the forms, which are readable with them.
    let written = line.keys.as_ref().map(|path| keys::write(with_keys, &place, path)).transpose()?;
    let forms = convert::beside(line, &place);
    if line.out.is_none() {
        // It was only the way to the other forms.
        let _ = fs::remove_file(&place);
    }
    let forms = forms?;
    let head = checkpoint.head();
    if as_json {
        return output::say_json(&json!({
            "path": line.out.as_ref().map(|path| path.to_string_lossy()),
            "bytes": bytes,
            "origin": checkpoint.origin(),
            "entries": head.size,
            "root": head.root.to_string(),
            "checkpoint": checkpoint.note(),
            "forms": forms,
            "keys": written,
        }));
    }
    let mut told = format!("{} entries", head.size);
    if let Some(out) = &line.out {
        told += &format!(", {} in {}", output::bytes(bytes), out.display());
    }
    told += &format!("\n  log   {}\n  root  {}", checkpoint.origin(), head.root);
    for form in &forms {
        told +=
            &format!("\n  {}  {} entries, {} lines in {}", form.form, form.entries, form.values, form.path);
    }
    if let (Some(path), Some(count)) = (&line.keys, written) {
        told += &format!(
            "\n  keys  {count} of private texts in {}: give them only to who may read those",
            path.display()
        );
    }
    if let Some(out) = &line.out {
        let (out, origin) = (out.display(), checkpoint.origin());
        told += &format!("\nCheck it anywhere: flotilla audit verify {out} --origin {origin}");
    }
    output::say(&told)
}

/// Exports the log in the data folder to a file, which is there once it is complete.
fn export_folder(
    global: Global,
    place: &Path,
    archives: &Archives,
) -> Result<event_audit::SignedCheckpoint, Failure> {
    let data = global.data.clone().unwrap_or_else(|| "flotilla-data".into());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Failure::of)?;
    runtime.block_on(async {
        let Opened { log, end, base } = open_log(global.clone(), archives).await?;
        is_whole(&log)?;
        let edge = base.as_ref().map(|base| &base.edge);
        let keys = AuditKeys::open(&data).map_err(Failure::of)?;
        let (mut ledger, is_ours) = open_ledger(global, &data, &keys).await?;
        let beside = place.with_added_extension("new");
        let failed = |what: &str, error: std::io::Error| {
            Failure::Failed(format!("cannot {what} {}: {error}", beside.display()))
        };
        let file = create_private(&beside).map_err(|error| failed("write", error))?;
        let out = BufWriter::with_capacity(BUFFER_BYTES, file);
        let written = if is_ours {
            audit::export(&log, end, edge, &mut ledger, &keys, out).await
        } else {
            audit::export_sealed(&log, &ledger, &keys, out).await
        };
        log.close().await;
        match written {
            Ok((out, checkpoint)) => {
                let file = out.into_inner().map_err(|error| failed("write", error.into_error()))?;
                file.sync_all().map_err(|error| failed("sync", error))?;
                fs::rename(&beside, place).map_err(|error| failed("rename", error))?;
                Ok(checkpoint)
            }
            Err(error) => {
                // What was written is of no use; a leftover harms nobody.
                let _ = fs::remove_file(&beside);
                Err(Failure::of(error))
            }
        }
    })
}

/// The tree of the log in a data folder, and whether it is ours to be fed and signed: the one of a running service is
/// as that has just signed it.
pub(super) async fn open_ledger(
    global: Global,
    data: &Path,
    keys: &AuditKeys,
) -> Result<(Ledger, bool), Failure> {
    let (folder, origin, log_keys) = (data.join("audit"), keys.list().origin(), keys.list().log_keys());
    match Ledger::open(&folder, origin, log_keys) {
        Ok(ledger) => Ok((ledger, true)),
        Err(LedgerError::Locked { .. }) => {
            ask_to_seal(Global { data: Some(data.to_owned()), ..global }).await?;
            let ledger = Ledger::open_beside(&folder, origin, log_keys).map_err(Failure::of)?;
            let none = || Failure::Failed("the service has not signed anything yet; try again".into());
            Ok((ledger.ok_or_else(none)?, false))
        }
        Err(error) => Err(Failure::of(error)),
    }
}

/// Asks the service on a data folder to sign what is durable.
async fn ask_to_seal(global: Global) -> Done {
    let client = Client::new(Global { server: None, ..global })?;
    let asking = tokio::task::spawn_blocking(move || client.post::<SealView>("audit/seal", &json!({})));
    let sealed = asking.await.map_err(Failure::of)??;
    if let Some(why) = sealed.detail {
        output::complain(&format!(
            "the service has signed as far as entry {}, and no further now: {why}",
            sealed.head.size
        ));
    }
    Ok(())
}

/// The log in a data folder, with its archives.
pub(super) struct Opened {
    pub(super) log: History,
    /// The last position that is known to be durable.
    pub(super) end: Position,
    /// Where the log in the folder begins, if not with its first record.
    pub(super) base: Option<BaseNote>,
}

/// The same; archives alone where no data folder is named and there is none.
pub(super) async fn open_history(
    global: Global,
    archives: &Archives,
    origin: Option<&str>,
) -> Result<Opened, Failure> {
    let none = ["log", "log-copy"].iter().all(|log| !Path::new("flotilla-data").join(log).is_dir());
    if !archives.archive.is_empty() && global.data.is_none() && none {
        let log = History::open(&archives.archive, None, origin).await.map_err(Failure::of)?;
        let end = log.last_position().await.map_err(Failure::of)?;
        return Ok(Opened { log, end, base: None });
    }
    let opened = open_log(global, archives).await?;
    let others = opened.log.archives().iter().map(|archive| archive.keys().origin());
    if let Some((expected, found)) =
        origin.and_then(|origin| Some((origin, others.into_iter().find(|o| *o != origin)?)))
    {
        return Err(Failure::Failed(format!(
            "the archive is of the log {found}, not of {expected} as expected"
        )));
    }
    Ok(opened)
}

/// Refuses a history of which something is missing.
pub(super) fn is_whole(log: &History) -> Done {
    let Some(missing) = log.missing() else { return Ok(()) };
    Err(Failure::Failed(format!(
        "the entries {} to {} are not here: they were archived. Name their archive with --archive FOLDER (repeatable)",
        missing.start(),
        missing.end()
    )))
}

/// The log in the data folder, or the copy of one that servers keep.
pub(super) async fn open_log(global: Global, archives: &Archives) -> Result<Opened, Failure> {
    if global.server.is_some() && global.data.is_none() {
        return Err(Failure::Usage(
            "this reads an export or a data folder, not a server: name one, or fetch an export with \
             flotilla audit export --server"
                .into(),
        ));
    }
    let data = global.data.clone().unwrap_or_else(|| "flotilla-data".into());
    let folder = log_folder(&data).await?;
    // Whoever may write to it has synced all that it shows. If a service runs, what it has taken is durable; what
    // follows in its file may not be yet.
    let end = match FileLog::open(&folder, FileLogOptions::default()).await {
        Ok(log) => {
            let end = log.last_position().await.map_err(Failure::of)?;
            log.close().await;
            end
        }
        Err(OpenError::Locked { .. }) => {
            // The folder's own service: another that was named would have another log.
            let client = Client::new(Global { server: None, data: Some(data), ..global })?;
            let status = tokio::task::spawn_blocking(move || client.get::<StatusView>("status"));
            Position(status.await.map_err(Failure::of)??.position)
        }
        Err(error) => return Err(Failure::of(error)),
    };
    let log = open_beside(&folder).await?;
    let base = log.base().map(|base| BaseNote::of(&base)).transpose().map_err(Failure::of)?;
    let origin = base.as_ref().map(|base| base.origin.clone());
    let log = History::open(&archives.archive, Some(Arc::new(log)), origin.as_deref()).await;
    Ok(Opened { log: log.map_err(Failure::of)?, end, base })
}

/// Not as its writer, so that a service may start meanwhile.
async fn open_beside(folder: &Path) -> Result<FileLog, Failure> {
    let options = FileLogOptions { read_only: true, ..FileLogOptions::default() };
    FileLog::open(folder, options).await.map_err(Failure::of)
}

/// Where the records are: in the log of the folder itself, or in the verified copy of one that NATS keeps. Where there
/// are both, because the log was moved, the one that goes further.
async fn log_folder(data: &Path) -> Result<PathBuf, Failure> {
    let (own, copy) = (data.join("log"), data.join("log-copy"));
    match (own.is_dir(), copy.is_dir()) {
        (true, false) => Ok(own),
        (false, true) => Ok(copy),
        (true, true) => {
            let ends = (open_beside(&own).await?.last_stored(), open_beside(&copy).await?.last_stored());
            Ok(if ends.1 > ends.0 { copy } else { own })
        }
        (false, false) => Err(Failure::Failed(format!(
            "there is no event log in {}: name the data folder with --data",
            data.display()
        ))),
    }
}

fn create_private(path: &Path) -> std::io::Result<File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

fn check(as_json: bool, line: &Verify) -> Done {
    let Some(export) = &line.path else {
        return Err(Failure::Usage("audit verify: what? Name an export".into()));
    };
    if proof::looks_like_one(export) {
        if !line.seen.is_empty() || !line.witness.is_empty() || line.keep.is_some() {
            return Err(Failure::Usage(
                "--seen, --witness and --keep are for exports: a proof is of one entry".into(),
            ));
        }
        return proof::check(as_json, export, line.origin.as_deref());
    }
    let mut expectation = Expectation { origin: line.origin.clone(), heads: Vec::new() };
    for path in &line.seen {
        let checkpoint = read_checkpoint(path)?;
        match &expectation.origin {
            Some(origin) if *origin != checkpoint.origin => {
                return Err(Failure::Failed(format!(
                    "the checkpoint in {} is of the log {}, not of {origin}",
                    path.display(),
                    checkpoint.origin
                )));
            }
            _ => expectation.origin = Some(checkpoint.origin),
        }
        expectation.heads.push(checkpoint.head);
    }
    let refused = |error| Failure::Failed(format!("BAD: {}: {error}", export.display()));
    let witnesses = Notes::read(&line.witness, open_export(export)?, expectation.origin.as_ref(), refused)?;
    expectation.heads.extend(witnesses.heads());
    let mut states = States::default();
    match read_all(export, &expectation, &mut states)? {
        Ok(read) => good(as_json, line, export, &read, &states),
        Err(error) => bad(as_json, export, &error, witnesses.named_in(&error)),
    }
}

/// What was attested in an export, held against the fold of it.
#[derive(Default)]
struct States {
    fold: Checked,
    /// The first entry whose meaning is not known here, and why: nothing is folded from there on.
    unread: Option<(u64, DecodeError)>,
    /// The first attestation that is wrong.
    differing: Option<control_core::form::Differs>,
}

/// A good export.
struct Read {
    checkpoint: event_audit::SignedCheckpoint,
    checkpoints: usize,
    entries: u64,
    entry_bytes: u64,
    origin_expected: bool,
}

/// Reads an export to its end, every entry proved, and folds it.
fn read_all(
    path: &Path,
    expectation: &Expectation,
    states: &mut States,
) -> Result<Result<Read, ExportError>, Failure> {
    let mut reader = match ExportReader::open(open_export(path)?, expectation) {
        Ok(reader) => reader,
        Err(error) => return Ok(Err(error)),
    };
    let (mut entries, mut entry_bytes) = (0, 0);
    loop {
        let entry = match reader.next_entry() {
            Ok(Some(entry)) => entry,
            Ok(None) => break,
            Err(error) => return Ok(Err(error)),
        };
        entries = entry.position;
        entry_bytes += entry.bytes.len() as u64;
        if states.unread.is_some() {
            continue;
        }
        match Record::decode(entry.bytes) {
            Ok(record) => {
                if let Err(differs) = states.fold.apply(entry.position, &record) {
                    states.differing.get_or_insert(differs);
                }
            }
            Err(error) => states.unread = Some((entry.position, error)),
        }
    }
    Ok(Ok(Read {
        checkpoint: reader.newest().clone(),
        checkpoints: reader.checkpoints().len(),
        entries,
        entry_bytes,
        origin_expected: expectation.origin.is_some(),
    }))
}

fn open_export(path: &Path) -> Result<BufReader<File>, Failure> {
    match File::open(path) {
        Ok(file) => Ok(BufReader::with_capacity(BUFFER_BYTES, file)),
        Err(error) => Err(Failure::Failed(format!("cannot read {}: {error}", path.display()))),
    }
}

fn replay(global: &Global, line: &Replay) -> Done {
    let as_json = global.json;
    let mut walk = walk::Walk::open(global, &line.place)?;
    let mut pick = line.pick.picker();
    while let Some((position, record)) = walk.step(line.pick.until())? {
        if let Some(differs) = walk.differing.take() {
            output::complain(&format!("WARNING: {differs}"));
        }
        if pick.takes(position, &record) {
            output::say_record(&crate::api::record(walk.fold().views(), position, &record), as_json)?;
        }
    }
    let views = walk.fold().views();
    let state_hash = data_encoding::HEXLOWER.encode(&views.hash());
    if as_json {
        output::say_json(&json!({ "position": views.position(), "state_hash": state_hash }))
    } else {
        output::say(&format!("at position {} the state is {state_hash}", views.position()))
    }
}

/// A checkpoint that the one who checks has kept: his own copy, so nobody's signature is asked for.
fn read_checkpoint(path: &Path) -> Result<Checkpoint, Failure> {
    let failed =
        |what: String| Failure::Failed(format!("the checkpoint {} cannot be used: {what}", path.display()));
    let note = read_note(path)?;
    let note = Note::parse(&note).map_err(|error| failed(error.to_string()))?;
    Checkpoint::parse(note.unverified_text()).map_err(|error| failed(error.to_string()))
}

/// A checkpoint's file, unless it is longer than any.
pub(super) fn read_note(path: &Path) -> Result<Vec<u8>, Failure> {
    let failed =
        |what: String| Failure::Failed(format!("the checkpoint {} cannot be used: {what}", path.display()));
    let bytes = fs::metadata(path).map_err(|error| failed(error.to_string()))?.len();
    if bytes > CHECKPOINT_BYTES_MAX {
        return Err(failed(format!("it has {bytes} bytes")));
    }
    fs::read(path).map_err(|error| failed(error.to_string()))
}

fn good(as_json: bool, line: &Verify, export: &Path, read: &Read, states: &States) -> Done {
    let checkpoint = &read.checkpoint;
    if let Some(path) = &line.keep {
        crate::private_file::write(path, checkpoint.note().as_bytes())
            .map_err(|error| Failure::Failed(format!("cannot write {}: {error}", path.display())))?;
    }
    let (fold, differing) = (&states.fold, &states.differing);
    let state_hash = data_encoding::HEXLOWER.encode(&fold.views().hash());
    if as_json {
        output::say_json(&json!({
            "good": differing.is_none(),
            "error": differing.as_ref().map(ToString::to_string),
            "first_bad": differing.as_ref().map(|differs| differs.position),
            "origin": checkpoint.origin(),
            "origin_expected": read.origin_expected,
            "entries": read.entries,
            "entry_bytes": read.entry_bytes,
            "root": checkpoint.head().root.to_string(),
            "checkpoints": read.checkpoints,
            "seen": line.seen.len(),
            "witnesses": line.witness.len(),
            "checkpoint": checkpoint.note(),
            "states": states.json(),
        }))?;
        return if differing.is_some() { Err(Failure::Quiet) } else { Ok(()) };
    }
    let origin = if read.origin_expected {
        ""
    } else {
        " (NOT CHECKED: give --origin, or this may be any fleet's history)"
    };
    let (entries, origin) = (read.entries, format!("{}{origin}", checkpoint.origin()));
    if let Some(differs) = differing {
        return Err(Failure::Failed(format!(
            "BAD: {}: all {entries} entries are those that were signed, but they do not say what was attested: {differs}",
            export.display()
        )));
    }
    let mut told = format!(
        "good: all {entries} entries are those that were signed\n  log          {origin}\n  root         {}\n  checkpoints  \
         {}, {} seen before, {} of witnesses\n  states       {} attested, all as folded anew; at the end {state_hash}",
        checkpoint.head().root,
        read.checkpoints,
        line.seen.len(),
        line.witness.len(),
        fold.checked,
    );
    if fold.unknown > 0 {
        told += &format!("\n               {} NOT CHECKED: in a form of a newer flotilla", fold.unknown);
    }
    if let Some((position, error)) = &states.unread {
        told += &format!("\n               NOT FOLDED from entry {position} on: {error}");
    }
    output::say(&told)
}

fn bad(as_json: bool, export: &Path, error: &ExportError, witness: Option<&Path>) -> Done {
    if !as_json {
        let holder = witness.map_or_else(String::new, |path| {
            format!("\n  The witness's checkpoint in {} is signed by the log's own key.", path.display())
        });
        return Err(Failure::Failed(format!("BAD: {}: {error}{holder}", export.display())));
    }
    let entries = error.entries();
    output::say_json(&json!({
        "good": false,
        "error": error.to_string(),
        "witness": witness.map(Path::to_string_lossy),
        "first_bad": entries.as_ref().map(|entries| *entries.start()),
        "first_bad_at_most": entries.as_ref().map(|entries| *entries.end()),
    }))?;
    Err(Failure::Quiet)
}
