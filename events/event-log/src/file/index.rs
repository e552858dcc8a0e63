//! What is known about a log on disk while it is open: the segments with a sparse map from position to offset, and
//! each stream's last position. Lives in memory, rebuilt by `recovery.rs`, extended by `writer.rs`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::segment;
use crate::error::Damage;
use crate::limits::INDEX_STRIDE_BYTES;
use crate::position::{Position, StreamName};

/// Everything durable and readable, and nothing else.
#[derive(Debug, Default)]
pub(crate) struct Index {
    /// In the order of the log.
    segments: Vec<Segment>,
    streams: HashMap<StreamName, Position>,
    /// The last position that is not here any more; 0 if the log is whole.
    before: Position,
    last: Position,
    /// Read-only logs: why nothing behind `last` can be read.
    pub(crate) damage: Option<Damage>,
}

#[derive(Debug)]
struct Segment {
    first: Position,
    path: Arc<Path>,
    /// Bytes up to which it holds whole, durable records.
    end: u64,
    /// Some records and their offsets, ascending, one per stride.
    marks: Vec<(Position, u64)>,
}

/// Where to begin reading for some position.
#[derive(Debug)]
pub(crate) struct Spot {
    pub(crate) path: Arc<Path>,
    /// The record at `offset` has this position, at or before the wanted one.
    pub(crate) at: Position,
    pub(crate) offset: u64,
    /// Nothing at or behind this offset may be read.
    pub(crate) end: u64,
}

/// A segment that nothing is written to any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClosedSegment {
    /// Position of its first record.
    pub first: Position,
    /// Position of its last one.
    pub last: Position,
    /// Its file.
    pub path: PathBuf,
    /// Bytes of it.
    pub bytes: u64,
}

impl Index {
    /// Of a log that begins behind a position, with the streams that end at or before it.
    pub(crate) fn after(before: Position, streams: Vec<(StreamName, Position)>) -> Index {
        Index { before, last: before, streams: streams.into_iter().collect(), ..Index::default() }
    }

    /// The first position that can be read.
    pub(crate) fn first(&self) -> Position {
        self.before.next()
    }

    /// All segments but the last one.
    pub(crate) fn closed(&self) -> Vec<ClosedSegment> {
        let pairs = self.segments.windows(2);
        let closed = pairs.map(|pair| ClosedSegment {
            first: pair[0].first,
            last: Position(pair[1].first.0 - 1),
            path: pair[0].path.to_path_buf(),
            bytes: pair[0].end,
        });
        closed.collect()
    }

    /// The streams that end at or before a position, by name.
    pub(crate) fn streams_until(&self, position: Position) -> Vec<(StreamName, Position)> {
        let ended = self.streams.iter().filter(|(_, last)| **last <= position);
        let mut ended: Vec<_> = ended.map(|(stream, last)| (stream.clone(), *last)).collect();
        ended.sort();
        ended
    }

    /// Begins behind a position, which is the end of a segment; returns the files that are not needed any more.
    pub(crate) fn begin_after(&mut self, position: Position) -> Vec<Arc<Path>> {
        self.before = position;
        let kept = self.segments.partition_point(|segment| segment.first <= position);
        self.segments.drain(..kept).map(|segment| segment.path).collect()
    }

    pub(crate) fn last(&self) -> Position {
        self.last
    }

    pub(crate) fn segment_count(&self) -> usize {
        self.segments.len()
    }

    pub(crate) fn last_of_stream(&self, stream: &StreamName) -> Option<Position> {
        self.streams.get(stream).copied()
    }

    /// A new, empty last segment.
    pub(crate) fn add_segment(&mut self, first: Position, path: PathBuf) {
        let end = segment::HEADER_BYTES as u64;
        self.segments.push(Segment { first, path: Arc::from(path), end, marks: Vec::new() });
    }

    /// The next record, `len` bytes at the end of the last segment, has become durable.
    pub(crate) fn add_record(&mut self, stream: StreamName, position: Position, len: u64) {
        debug_assert_eq!(position, self.last.next(), "records are added in order");
        self.last = position;
        self.streams.insert(stream, position);
        if let Some(segment) = self.segments.last_mut() {
            let due =
                segment.marks.last().is_none_or(|(_, offset)| segment.end - offset >= INDEX_STRIDE_BYTES);
            if due {
                segment.marks.push((position, segment.end));
            }
            segment.end += len;
        }
    }

    /// Where to begin reading for `position`; `None` if the log ends before it.
    pub(crate) fn locate(&self, position: Position) -> Option<Spot> {
        if position > self.last || position == Position::ZERO {
            return None;
        }
        let after = self.segments.partition_point(|segment| segment.first <= position);
        let segment = self.segments.get(after.checked_sub(1)?)?;
        let after = segment.marks.partition_point(|(mark, _)| *mark <= position);
        let (at, offset) = *segment.marks.get(after.checked_sub(1)?)?;
        Some(Spot { path: Arc::clone(&segment.path), at, offset, end: segment.end })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_located_by_stride_and_segment() {
        let mut index = Index::default();
        let stream = StreamName::new("s").unwrap();
        assert!(index.locate(Position(1)).is_none());
        index.add_segment(Position(1), "a".into());
        for position in 1..=10 {
            index.add_record(stream.clone(), Position(position), INDEX_STRIDE_BYTES / 2);
        }
        index.add_segment(Position(11), "b".into());
        assert!(index.locate(Position(11)).is_none(), "an empty segment holds nothing");
        index.add_record(stream.clone(), Position(11), 100);

        let at = |position| {
            let spot = index.locate(Position(position)).unwrap();
            (spot.path.to_str().unwrap().to_owned(), spot.at.0, spot.offset - segment::HEADER_BYTES as u64)
        };
        assert_eq!(at(1), ("a".to_owned(), 1, 0));
        assert_eq!(at(2), ("a".to_owned(), 1, 0));
        assert_eq!(at(3), ("a".to_owned(), 3, INDEX_STRIDE_BYTES));
        assert_eq!(at(10), ("a".to_owned(), 9, 4 * INDEX_STRIDE_BYTES));
        assert_eq!(at(11), ("b".to_owned(), 11, 0));
        assert!(index.locate(Position(12)).is_none());
        assert!(index.locate(Position::ZERO).is_none());
        assert_eq!((index.last(), index.last_of_stream(&stream)), (Position(11), Some(Position(11))));
    }
}
