//! Opening: reads and verifies every segment, builds the index, and settles how the last segment ends
//! (`events/LOG_FORMAT.md` §5). Cuts a torn tail, never anything that may have been acknowledged.

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use super::base::{self, Base};
use super::index::Index;
use super::reader::{Records, Stop, damaged};
use super::record::{self, Codec, Flaw, LogId};
use super::segment::{self, Header, HeaderFlaw};
use crate::error::{Damage, OpenError};
use crate::position::{Position, StreamName};

/// What was found when a log was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovery {
    /// Records in the log's folder.
    pub records: u64,
    /// The position of the first of them: 1, unless what stood before was archived.
    pub first: Position,
    /// Segment files.
    pub segments: usize,
    /// What an interrupted write had left at the end and was cut off (read-only: is left out), if anything.
    pub torn_tail: Option<TornTail>,
    /// Read-only logs: what stops reading before the end. A log with damage does not open for writing.
    pub damage: Option<Damage>,
}

/// The remains of an append that was never acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TornTail {
    /// The last segment.
    pub path: PathBuf,
    /// Where its whole records end. 0: the file held none and was removed.
    pub offset: u64,
    /// Bytes behind that.
    pub bytes: u64,
}

/// A log as found, ready to be used.
pub(crate) struct Found {
    pub(crate) index: Index,
    pub(crate) log: LogId,
    /// If the log does not begin with its first record.
    pub(crate) base: Option<Base>,
    /// The last segment, open for writing; `None` when read-only.
    pub(crate) tail: Option<Tail>,
    pub(crate) recovery: Recovery,
}

/// The segment that is written to.
pub(crate) struct Tail {
    pub(crate) file: File,
    pub(crate) path: PathBuf,
    /// Bytes, all of them durable.
    pub(crate) len: u64,
}

/// Why a segment can't be read to its end.
enum Trouble {
    Damage(Damage),
    Fatal(OpenError),
}

impl From<OpenError> for Trouble {
    fn from(error: OpenError) -> Trouble {
        Trouble::Fatal(error)
    }
}

/// How often a log is read whose beginning another process moves meanwhile.
const READ_ATTEMPTS: usize = 10;

/// Reads the log in `dir` for reading, beside a process that may write to it and move its beginning. Blocks.
pub(crate) fn recover_beside(dir: &Path) -> Result<Found, OpenError> {
    let mut before = load_base(dir)?;
    let mut attempt = 1;
    loop {
        let found = recover(dir, false, false);
        let is_good = found.as_ref().is_ok_and(|found| found.recovery.damage.is_none());
        let base = load_base(dir)?;
        if is_good || base == before || attempt == READ_ATTEMPTS {
            return found;
        }
        (before, attempt) = (base, attempt + 1);
    }
}

/// Reads segments that left their log's folder: contiguous from the first one that is there, each whole to its last
/// byte. Blocks.
pub(crate) fn recover_archived(dir: &Path, firsts: &RangeInclusive<Position>) -> Result<Found, OpenError> {
    let mut segments = segment::list(dir).map_err(io("list", dir))?;
    segments.retain(|(first, _)| firsts.contains(first));
    let before = segments.first().map_or(Position::ZERO, |(first, _)| Position(first.0.saturating_sub(1)));
    let mut scan = Scan { index: Index::after(before, Vec::new()), log: None, torn: None };
    let damage = scan.all(&segments, false, None)?;
    finish(scan, damage, None, LogId([0; 16]), None)
}

fn load_base(dir: &Path) -> Result<Option<Base>, OpenError> {
    let path = base::path(dir);
    base::load(dir).map_err(|flaw| match flaw {
        base::Flaw::Io(source) => OpenError::Io { doing: "read", path, source },
        base::Flaw::Damaged(what) => OpenError::Base { path, what: what.to_owned() },
        base::Flaw::Unsupported(what) => OpenError::Unsupported { path, what },
    })
}

/// Reads the log in `dir`, making its first segment if there is none and `writable`; what it changes is made durable if
/// `sync`. Blocks.
pub(crate) fn recover(dir: &Path, writable: bool, sync: bool) -> Result<Found, OpenError> {
    let base = load_base(dir)?;
    let before = base.as_ref().map_or(Position::ZERO, |base| base.position);
    let mut segments = segment::list(dir).map_err(io("list", dir))?;
    // Archived already; a crash kept them from being removed.
    let archived: Vec<_> = segments.extract_if(.., |(first, _)| *first <= before).collect();
    let streams = base.as_ref().map_or_else(Vec::new, |base| base.streams.clone());
    let mut scan =
        Scan { index: Index::after(before, streams), log: base.as_ref().map(|base| base.log), torn: None };
    // The segment behind a base was there before the base was.
    if let Some((first, path)) = segments.last().cloned()
        && !(base.is_some() && segments.len() == 1)
        && let Some(bytes) = unfinished_header(&path)?
    {
        segments.pop();
        tracing::warn!(segment = %path.display(), first = %first, bytes, "removing a segment that was never finished");
        scan.torn = Some(TornTail { path: path.clone(), offset: 0, bytes });
        if writable {
            fs::remove_file(&path).map_err(io("remove", &path))?;
            segment::sync_dir(dir).map_err(io("sync", dir))?;
        }
    }
    let mut damage = scan.all(&segments, writable, segments.len().checked_sub(1))?;
    if base.is_some() && segments.is_empty() {
        let missing = before.next();
        let path = dir.join(segment::file_name(missing));
        let what = format!("the segment that begins at {missing}, behind what was archived, is missing");
        let missing = damaged(missing, &path, 0, &what);
        if writable {
            return Err(OpenError::Damaged(missing));
        }
        damage = Some(missing);
    }
    let log = match scan.log {
        Some(log) => log,
        None => random_log_id(dir)?,
    };
    let tail = if writable { Some(open_tail(dir, log, &mut scan, segments.last(), sync)?) } else { None };
    if writable && !archived.is_empty() {
        tracing::info!(segments = archived.len(), until = %before, "removing segments that were archived before");
        for (_, path) in &archived {
            fs::remove_file(path).map_err(io("remove", path))?;
        }
        segment::sync_dir(dir).map_err(io("sync", dir))?;
    }
    finish(scan, damage, tail, log, base)
}

fn finish(
    mut scan: Scan,
    damage: Option<Damage>,
    tail: Option<Tail>,
    log: LogId,
    base: Option<Base>,
) -> Result<Found, OpenError> {
    scan.index.damage.clone_from(&damage);
    let first = scan.index.first();
    let recovery = Recovery {
        records: scan.index.last().0 + 1 - first.0,
        first,
        segments: scan.index.segment_count(),
        torn_tail: scan.torn,
        damage,
    };
    Ok(Found { index: scan.index, log: scan.log.unwrap_or(log), base, tail, recovery })
}

/// Opens the last segment for writing, cuts its torn tail and syncs it; makes the first segment of a new log.
fn open_tail(
    dir: &Path,
    log: LogId,
    scan: &mut Scan,
    last: Option<&(Position, PathBuf)>,
    sync: bool,
) -> Result<Tail, OpenError> {
    let Some((_, path)) = last else {
        let first = scan.index.last().next();
        let (file, path) = segment::create(dir, Header { first, log }, sync)
            .map_err(|(source, _)| io("create a segment in", dir)(source))?;
        scan.index.add_segment(first, path.clone());
        return Ok(Tail { file, path, len: segment::HEADER_BYTES as u64 });
    };
    let file = OpenOptions::new().read(true).write(true).open(path).map_err(io("open", path))?;
    if let Some(torn) = scan.torn.as_ref().filter(|torn| torn.path == *path) {
        tracing::warn!(
            segment = %path.display(), offset = torn.offset, bytes = torn.bytes,
            "cutting off an append that was interrupted and never acknowledged"
        );
        file.set_len(torn.offset).map_err(io("cut", path))?;
    }
    // A killed writer may have left records that were written and not synced: from here on they count.
    if sync {
        file.sync_all().map_err(io("sync", path))?;
        segment::sync_dir(dir).map_err(io("sync", dir))?;
    }
    let len = file.metadata().map_err(io("stat", path))?.len();
    Ok(Tail { file, path: path.clone(), len })
}

struct Scan {
    index: Index,
    log: Option<LogId>,
    torn: Option<TornTail>,
}

impl Scan {
    /// Reads all segments; the end of the one numbered `open_end` may be torn. What stops it before the end, unless that
    /// is an error because the log is to be written.
    fn all(
        &mut self,
        segments: &[(Position, PathBuf)],
        writable: bool,
        open_end: Option<usize>,
    ) -> Result<Option<Damage>, OpenError> {
        for (nth, (first, path)) in segments.iter().enumerate() {
            match self.segment(*first, path, Some(nth) == open_end) {
                Ok(()) => {}
                Err(Trouble::Fatal(error)) => return Err(error),
                Err(Trouble::Damage(found)) if writable => return Err(OpenError::Damaged(found)),
                Err(Trouble::Damage(found)) => return Ok(Some(found)),
            }
        }
        Ok(None)
    }

    fn segment(&mut self, first: Position, path: &Path, last: bool) -> Result<(), Trouble> {
        let expected = self.index.last().next();
        if first != expected {
            let what = format!(
                "this segment begins at {first}: the one that begins at {expected} is missing{}",
                if expected == Position(1) { " (or, if it was archived, the file `base`)" } else { "" }
            );
            return Err(Trouble::Damage(damaged(expected, path, 0, &what)));
        }
        let mut file = File::open(path).map_err(io("open", path))?;
        let end = file.metadata().map_err(io("stat", path))?.len();
        let header = self.header(&mut file, first, path)?;
        self.index.add_segment(first, path.to_path_buf());
        let codec = Codec::new(header.log);
        let mut records =
            Records::new(file, codec.clone(), segment::HEADER_BYTES as u64, end).map_err(io("read", path))?;
        loop {
            let offset = records.offset();
            let position = self.index.last().next();
            let damage = |what: &str| Trouble::Damage(damaged(position, path, offset, what));
            match records.next() {
                Ok(None) => return Ok(()),
                Ok(Some(record)) if record.position != position => {
                    return Err(damage(&format!("the record says it is {}", record.position)));
                }
                Ok(Some(record)) => {
                    let stream =
                        StreamName::from_bytes(record.stream).map_err(|error| damage(&error.to_string()))?;
                    self.index.add_record(stream, position, record.len() as u64);
                }
                Err(Stop::Io(error)) => return Err(io("read", path)(error).into()),
                Err(Stop::Flaw(flaw)) if last => {
                    let rest = records.rest().map_err(io("read", path))?;
                    if !is_torn(flaw, rest, &codec) {
                        return Err(damage(flaw.describe()));
                    }
                    self.torn = Some(TornTail { path: path.to_path_buf(), offset, bytes: end - offset });
                    return Ok(());
                }
                Err(Stop::Flaw(flaw)) => return Err(damage(flaw.describe())),
            }
        }
    }

    /// Reads and checks a segment's header.
    fn header(&mut self, file: &mut File, first: Position, path: &Path) -> Result<Header, Trouble> {
        let damage = |what: &str| Trouble::Damage(damaged(first, path, 0, what));
        let mut bytes = [0; segment::HEADER_BYTES];
        match file.read_exact(&mut bytes) {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                return Err(damage("the file ends within the segment's header"));
            }
            read => read.map_err(io("read", path))?,
        }
        let header = match Header::decode(&bytes) {
            Ok(header) => header,
            Err(HeaderFlaw::Damaged(what)) => return Err(damage(what)),
            Err(HeaderFlaw::Unsupported(what)) => {
                return Err(OpenError::Unsupported { path: path.to_path_buf(), what }.into());
            }
        };
        if header.first != first {
            return Err(damage(&format!("the segment says it begins at {}", header.first)));
        }
        if *self.log.get_or_insert(header.log) != header.log {
            return Err(damage("the segment belongs to another log"));
        }
        Ok(header)
    }
}

/// Whether what lies at the end of the last segment is an append that was interrupted (§5).
fn is_torn(flaw: Flaw, rest: &[u8], codec: &Codec) -> bool {
    match flaw {
        Flaw::Short => true,
        Flaw::Wrong(_) => rest.ends_with(&[0; 4]) && !holds_a_record(&rest[1..], codec),
    }
}

/// Whether a whole record begins anywhere in `bytes`.
fn holds_a_record(bytes: &[u8], codec: &Codec) -> bool {
    let places = bytes.len().saturating_sub(record::MIN_BYTES - 1);
    // The two bytes of flags are zero in every record: a cheap question before the checksum.
    (0..places).any(|at| bytes[at + 14..at + 16] == [0, 0] && codec.decode(&bytes[at..]).is_ok())
}

/// The length of a segment that was being made when the machine stopped: cut short within its header, or nothing but
/// zeros.
fn unfinished_header(path: &Path) -> Result<Option<u64>, OpenError> {
    let len = fs::metadata(path).map_err(io("stat", path))?.len();
    if len < segment::HEADER_BYTES as u64 {
        return Ok(Some(len));
    }
    let mut file = File::open(path).map_err(io("open", path))?;
    let mut chunk = vec![0; 64 * 1024];
    loop {
        match file.read(&mut chunk).map_err(io("read", path))? {
            0 => return Ok(Some(len)),
            read if chunk[..read].iter().all(|&byte| byte == 0) => {}
            _ => return Ok(None),
        }
    }
}

fn random_log_id(dir: &Path) -> Result<LogId, OpenError> {
    let mut id = [0; 16];
    getrandom::fill(&mut id)
        .map_err(|error| io("find randomness for", dir)(std::io::Error::other(error.to_string())))?;
    Ok(LogId(id))
}

fn io(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> OpenError {
    move |source| OpenError::Io { doing, path: path.to_path_buf(), source }
}
