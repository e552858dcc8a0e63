//! History in forms that other programs read: lines of JSON and CloudEvents (`events/EXPORTS.md`).
//!
//! What a line says is a function of the log's name, the position and the entry's bytes alone: no names are looked up,
//! no state is folded. So a line can be made again from the proved entry, and its leaf hash ties it to the tree.

mod cloudevents;
mod entry;
mod filter;

use std::io::{self, Write};

use event_schema::{DecodeError, Record};

pub(crate) use entry::Entry;
pub(crate) use filter::{Filter, Wanted};

/// A form to write entries in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// One JSON object a line, one line an entry
    Jsonl,
    /// One CloudEvent (JSON) a line, one line an event
    Cloudevents,
    /// CloudEvents in one JSON array, the batch of their JSON format
    CloudeventsBatch,
}

/// Why entries are not written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConvertError {
    /// The output takes no more.
    #[error("cannot write: {0}")]
    Write(#[from] io::Error),
    /// A value is no JSON; does not happen for records.
    #[error("cannot write: {0}")]
    Json(#[from] serde_json::Error),
}

/// Writes entries in a form, in the order they are given.
pub(crate) struct Converter<W> {
    out: W,
    format: Format,
    log: String,
    /// JSON values written.
    values: u64,
}

impl<W: Write> Converter<W> {
    /// For the log of this name.
    pub(crate) fn new(out: W, format: Format, log: &str) -> Self {
        Self { out, format, log: log.to_owned(), values: 0 }
    }

    /// Writes one entry; `read` is what it was decoded to.
    pub(crate) fn entry(
        &mut self,
        position: u64,
        bytes: &[u8],
        read: Result<&Record, &DecodeError>,
    ) -> Result<(), ConvertError> {
        let entry = Entry { log: &self.log, position, bytes, read };
        match self.format {
            Format::Jsonl => {
                serde_json::to_writer(&mut self.out, &entry.to_json())?;
                self.out.write_all(b"\n")?;
                self.values += 1;
            }
            Format::Cloudevents => {
                for event in entry.to_cloud_events() {
                    serde_json::to_writer(&mut self.out, &event)?;
                    self.out.write_all(b"\n")?;
                    self.values += 1;
                }
            }
            Format::CloudeventsBatch => {
                for event in entry.to_cloud_events() {
                    self.out.write_all(if self.values == 0 { b"[\n" } else { b",\n" })?;
                    serde_json::to_writer(&mut self.out, &event)?;
                    self.values += 1;
                }
            }
        }
        Ok(())
    }

    /// Writes what ends the form; gives the output back, and how many JSON values were written.
    pub(crate) fn finish(mut self) -> Result<(W, u64), ConvertError> {
        if self.format == Format::CloudeventsBatch {
            self.out.write_all(if self.values == 0 { b"[]\n" } else { b"\n]\n" })?;
        }
        self.out.flush()?;
        Ok((self.out, self.values))
    }
}

#[cfg(test)]
mod tests;
