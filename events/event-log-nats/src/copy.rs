//! The local copy at opening: its folder, what becomes of a damaged one, and the place in the stream where it ends
//! (`events/NATS_FORMAT.md` §6). A copy is never taken for the log's, nor the log for the copy's, on trust: the records
//! around the copy's end must be the same, byte for byte.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use event_log::file::{FileLog, FileLogOptions};
use event_log::{Damage, Entry, EventLog, OpenError, Position, ReadError, ReadLimit};

use crate::applier::Applier;
use crate::error::NatsOpenError;
use crate::frame::Frame;
use crate::limits::DAMAGED_COPIES;
use crate::message::{Format, Stored};
use crate::options::NatsLogOptions;
use crate::servers::{Servers, unavailable};

/// Where the copy lies.
#[derive(Debug)]
pub(crate) enum Folder {
    Kept(PathBuf),
    /// Removed when dropped.
    Temporary(tempfile::TempDir),
}

impl Folder {
    pub(crate) fn path(&self) -> &Path {
        match self {
            Folder::Kept(path) => path,
            Folder::Temporary(dir) => dir.path(),
        }
    }
}

/// Opens the copy, verifying all of it; makes one if there is none, or if what is there is damaged.
pub(crate) async fn open(options: &NatsLogOptions) -> Result<(FileLog, Folder), NatsOpenError> {
    let folder = match &options.copy {
        Some(path) => Folder::Kept(path.clone()),
        None => {
            let made = tempfile::Builder::new().prefix("flotilla-log-copy-").tempdir();
            Folder::Temporary(
                made.map_err(|source| NatsOpenError::Folder { dir: std::env::temp_dir(), source })?,
            )
        }
    };
    let path = folder.path();
    // The servers are what is durable: a torn copy is completed from there.
    let settings = FileLogOptions { sync: false, ..FileLogOptions::default() };
    let copy = match FileLog::open(path, settings.clone()).await {
        Err(error @ (OpenError::Damaged(_) | OpenError::Unsupported { .. })) => {
            let aside =
                move_aside(path).map_err(|source| NatsOpenError::Folder { dir: path.into(), source })?;
            tracing::warn!(
                %error, copy = %path.display(), moved_to = %aside.display(),
                "the local copy of the event log cannot be used; it is moved aside and made anew from the servers"
            );
            FileLog::open(path, settings).await
        }
        opened => opened,
    };
    Ok((copy.map_err(NatsOpenError::Copy)?, folder))
}

/// Renames a folder to the first free of a few names beside it; the last of them is used again and again.
fn move_aside(dir: &Path) -> std::io::Result<PathBuf> {
    let name = |nth: usize| {
        let mut name = dir.file_name().unwrap_or_default().to_owned();
        name.push(format!(".damaged-{nth}"));
        dir.with_file_name(name)
    };
    let free = (1..DAMAGED_COPIES).map(name).find(|path| !path.exists());
    let aside = free.unwrap_or_else(|| name(DAMAGED_COPIES));
    if aside.exists() {
        fs::remove_dir_all(&aside)?;
    }
    fs::rename(dir, &aside)?;
    Ok(aside)
}

/// Reads from the servers what the copy has lost since it was opened: the records of one frame. What they can't deliver
/// is damaged as the copy says.
pub(crate) async fn read_around(
    servers: &Servers,
    from: Position,
    limit: ReadLimit,
    damage: Damage,
) -> Result<Vec<Entry>, ReadError> {
    tracing::warn!(%damage, "the local copy of the event log is damaged, reading from the servers; restart to renew it");
    let found = async {
        let last = servers.last_sequence().await.map_err(|error| passing(servers, &error))?;
        frame(servers, locate(servers, from, last).await?).await
    };
    let Ok((frame, _)) = found.await else { return Err(damage.into()) };
    let positions = (frame.first.0..).map(Position);
    let entries =
        positions.zip(frame.records).map(|(position, (stream, bytes))| Entry { position, stream, bytes });
    let (limit, mut size) = (limit.clamped(), 0);
    let page: Vec<_> = entries
        .filter(|entry| entry.position >= from)
        .take(limit.entries)
        .take_while(|entry| {
            let first = size == 0 && entry.position == from;
            size += entry.bytes.len();
            first || size <= limit.bytes
        })
        .collect();
    if page.is_empty() { Err(damage.into()) } else { Ok(page) }
}

/// Finds the place in the stream where the copy ends, and takes from there on.
pub(crate) async fn join(
    servers: &Servers,
    copy: FileLog,
    folder: &Folder,
) -> Result<Applier, NatsOpenError> {
    let (end, prefix) = (copy.last_stored(), &servers.options.subject_prefix);
    let copy = Arc::new(copy);
    if end == Position::ZERO {
        return Ok(Applier::new(copy, prefix));
    }
    let shorter = |at_servers: Position| NatsOpenError::Shorter {
        stream: servers.options.stream.clone(),
        dir: folder.path().to_path_buf(),
        servers: at_servers,
        copy: end,
    };
    let last = servers.last_sequence().await.map_err(|error| passing(servers, &error))?;
    if last == 0 {
        return Err(shorter(Position::ZERO));
    }
    let sequence = locate(servers, end, last).await?;
    let (frame, format) = frame(servers, sequence).await?;
    if frame.last() < end && sequence == last {
        return Err(shorter(frame.last()));
    }
    // What the copy holds of this frame: all of it, or, if it was torn, its beginning.
    let held = copy.read(frame.first, ReadLimit { entries: frame.records.len(), bytes: usize::MAX }).await;
    let held = held.map_err(|error| passing(servers, &error))?;
    if let Some(position) = difference(&frame, &held) {
        return Err(NatsOpenError::OtherHistory {
            stream: servers.options.stream.clone(),
            dir: folder.path().to_path_buf(),
            position,
            sequence,
        });
    }
    let (torn, crc) = (frame.last().0.saturating_sub(end.0), frame.crc);
    if torn > 0 {
        tracing::debug!(torn, "the local copy ended within a frame");
        let rest = frame.records.into_iter().skip(held.len()).collect();
        let completed = copy.append_all(rest).await;
        completed.map_err(|error| passing(servers, &unavailable(error.to_string())))?;
    }
    Ok(Applier::behind(copy, prefix, sequence, format, crc))
}

/// The first position at which a frame and what the copy holds of it differ.
fn difference(frame: &Frame, held: &[Entry]) -> Option<Position> {
    if held.is_empty() {
        return Some(frame.first);
    }
    let same =
        |(entry, (stream, bytes)): (&Entry, &(_, Vec<u8>))| entry.stream == *stream && entry.bytes == *bytes;
    let equal = held.iter().zip(&frame.records).take_while(|pair| same(*pair)).count();
    (equal < held.len()).then(|| Position(frame.first.0 + equal as u64))
}

/// The sequence of the message that holds the record at `position`, or, if none does, of the last one before it:
/// the last message up to `last` that does not begin behind it.
pub(crate) async fn locate(servers: &Servers, position: Position, last: u64) -> Result<u64, NatsOpenError> {
    let (mut low, mut high) = (1, last);
    let (mut probe, mut step) = (last, 1_u64);
    while low < high {
        if first_of(servers, probe).await? <= position {
            low = probe;
        } else {
            high = probe - 1;
        }
        // A copy usually ends where the stream does, or soon before: back from there in growing steps, then by halves.
        step = step.saturating_mul(4);
        probe = if low == 1 { high.saturating_sub(step) } else { 0 };
        if probe <= low {
            probe = high - (high - low) / 2;
        }
    }
    Ok(low)
}

/// The position of the first record in a message.
async fn first_of(servers: &Servers, sequence: u64) -> Result<Position, NatsOpenError> {
    let claimed = servers.any_delivers(sequence, |message: &Stored<'_>| message.claimed_first()).await;
    claimed.map_err(|error| passing(servers, &error))?.map_err(|what| NatsOpenError::Message {
        stream: servers.options.stream.clone(),
        sequence,
        what,
    })
}

/// The frame in a message.
async fn frame(servers: &Servers, sequence: u64) -> Result<(Frame, Format), NatsOpenError> {
    let prefix = &servers.options.subject_prefix;
    let found =
        servers.any_delivers(sequence, |message| Ok((message.frame(prefix)?, message.format()?))).await;
    found.map_err(|error| passing(servers, &error))?.map_err(|what| NatsOpenError::Message {
        stream: servers.options.stream.clone(),
        sequence,
        what,
    })
}

fn passing(servers: &Servers, error: &ReadError) -> NatsOpenError {
    NatsOpenError::JetStream { servers: servers.options.shown_servers(), reason: error.to_string() }
}
