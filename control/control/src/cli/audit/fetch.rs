//! `flotilla audit export --server`: the service's export, verified while it arrives.
//!
//! It is written beside and renamed only once every byte was proved and the end was seen. A download that breaks off
//! begins again: the service then makes a new export, which has more entries.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write as _};
use std::path::Path;

use event_audit::SignedCheckpoint;
use event_audit::export::{Expectation, ExportError, ExportReader};
use indicatif::{ProgressBar, ProgressStyle};

use super::{BUFFER_BYTES, Client, Failure, Global, create_private, output};
use crate::api::EXPORT_DETAIL;

/// How often a download is begun.
const ATTEMPTS: usize = 3;

/// Fetches an export to `place`.
pub(super) fn fetch(
    global: Global,
    place: &Path,
    origin: Option<String>,
) -> Result<SignedCheckpoint, Failure> {
    let as_json = global.json;
    let client = Client::new(global)?;
    let beside = place.with_added_extension("new");
    let expectation = Expectation { origin, heads: Vec::new() };
    let mut attempt = 1;
    let fetched = loop {
        let broken = match download(&client, &beside, &expectation, as_json) {
            Err(Broken::Off(why)) if attempt < ATTEMPTS => why,
            Err(Broken::Off(why) | Broken::Bad(why)) => break Err(Failure::Failed(why)),
            Err(Broken::Failed(failure)) => break Err(failure),
            Ok(checkpoint) => break Ok(checkpoint),
        };
        output::complain(&format!("{broken}; the download begins anew"));
        attempt += 1;
    };
    match fetched {
        Ok(checkpoint) => {
            let renamed = fs::rename(&beside, place);
            renamed.map_err(|error| failed(&beside, "rename", &error))?;
            Ok(checkpoint)
        }
        Err(failure) => {
            // What was written is of no use; a leftover harms nobody.
            let _ = fs::remove_file(&beside);
            Err(failure)
        }
    }
}

/// Why there is no export.
enum Broken {
    /// The connection broke off: again may help.
    Off(String),
    /// What came does not hold.
    Bad(String),
    /// It does not work.
    Failed(Failure),
}

fn failed(path: &Path, what: &str, error: &io::Error) -> Failure {
    Failure::Failed(format!("cannot {what} {}: {error}", path.display()))
}

fn download(
    client: &Client,
    beside: &Path,
    expectation: &Expectation,
    as_json: bool,
) -> Result<SignedCheckpoint, Broken> {
    let (body, detail) =
        client.download("audit/export", EXPORT_DETAIL).map_err(|e| Broken::Failed(e.into()))?;
    let file = create_private(beside).map_err(|error| Broken::Failed(failed(beside, "write", &error)))?;
    let tee = Tee {
        input: BufReader::with_capacity(BUFFER_BYTES, body),
        copy: BufWriter::with_capacity(BUFFER_BYTES, file),
        refused: None,
    };
    // The reader is lost with an error, and with it what the tee knows; so it only borrows it.
    let mut tee = tee;
    match verify(&mut tee, expectation, as_json) {
        Ok(checkpoint) => {
            if let Some(detail) = detail {
                let entries = checkpoint.head().size;
                output::complain(&format!(
                    "the export ends with entry {entries}, which is as far as the service has signed: {detail}"
                ));
            }
            let file = tee.copy.into_inner().map_err(io::IntoInnerError::into_error);
            let synced = file.and_then(|file| file.sync_all());
            synced.map_err(|error| Broken::Failed(failed(beside, "write", &error)))?;
            Ok(checkpoint)
        }
        Err(_) if tee.refused.is_some() => {
            let error = tee.refused.take().unwrap_or_else(|| io::Error::other("no room"));
            Err(Broken::Failed(failed(beside, "write", &error)))
        }
        Err(error @ (ExportError::Read { .. } | ExportError::Cut { .. })) => {
            Err(Broken::Off(format!("the export broke off: {error}")))
        }
        Err(error) => Err(Broken::Bad(format!("BAD: the service's export does not hold: {error}"))),
    }
}

/// Reads the export to its end, every entry proved.
fn verify(
    tee: &mut Tee<impl Read>,
    expectation: &Expectation,
    as_json: bool,
) -> Result<SignedCheckpoint, ExportError> {
    let mut reader = ExportReader::open(tee, expectation)?;
    let bar = if as_json { ProgressBar::hidden() } else { ProgressBar::new(reader.newest().head().size) };
    let style = ProgressStyle::with_template("{bar:30} {human_pos} of {human_len} entries  {elapsed}  {eta}");
    // Of a constant that is right; without it the bar looks otherwise.
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    loop {
        let position = reader.next_entry()?.map(|entry| entry.position);
        match position {
            Some(position) if position % 1024 == 0 => bar.set_position(position),
            Some(_) => {}
            None => break,
        }
    }
    bar.finish_and_clear();
    Ok(reader.newest().clone())
}

/// What is read is written down as well.
struct Tee<R> {
    input: R,
    copy: BufWriter<File>,
    /// Why the copy was not taken.
    refused: Option<io::Error>,
}

impl<R: Read> Read for Tee<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(bytes)?;
        if let Err(error) = self.copy.write_all(&bytes[..read]) {
            let told = io::Error::new(error.kind(), error.to_string());
            self.refused = Some(error);
            return Err(told);
        }
        Ok(read)
    }
}
