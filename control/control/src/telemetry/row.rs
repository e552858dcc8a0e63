//! One bucket of one agent in one run, and its bytes.

use event_schema::RunAgentState;

/// How wide buckets are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Width {
    /// A second.
    Second,
    /// A minute.
    Minute,
    /// A quarter of an hour.
    Quarter,
}

impl Width {
    /// All, narrow ones first.
    pub(crate) const ALL: [Self; 3] = [Self::Second, Self::Minute, Self::Quarter];

    /// How long a bucket is.
    pub(crate) fn seconds(self) -> u64 {
        match self {
            Self::Second => 1,
            Self::Minute => 60,
            Self::Quarter => 900,
        }
    }

    /// How long the time is that one file holds; a multiple of every width.
    pub(super) fn file_seconds(self) -> u64 {
        match self {
            Self::Second => 3_600,
            Self::Minute => 86_400,
            Self::Quarter => 10 * 86_400,
        }
    }

    /// How long rows are kept at most, whatever is set.
    pub(super) fn keep_seconds(self) -> u64 {
        match self {
            Self::Second => 6 * 3_600,
            Self::Minute => 14 * 86_400,
            Self::Quarter => u64::MAX,
        }
    }

    /// The beginning of its files' names.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Second => "1s",
            Self::Minute => "1min",
            Self::Quarter => "15min",
        }
    }

    /// What buckets of `step` seconds are made of: the widest that are narrow enough, then wider ones.
    pub(super) fn for_step(step: u64) -> impl Iterator<Item = Self> {
        let first = Self::ALL.into_iter().rev().find(|width| step.is_multiple_of(width.seconds()));
        let first = first.unwrap_or(Self::Second);
        Self::ALL.into_iter().filter(move |width| *width >= first)
    }
}

/// What happened in a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    /// When it begins, in seconds since 1970; a multiple of its width.
    pub(crate) start: u64,
    /// Where the agent stood at the last sample.
    pub(crate) state: RunAgentState,
    /// Samples.
    pub(crate) samples: u64,
    /// The most peers.
    pub(crate) peers: u32,
    /// Content bytes verified, at the last sample.
    pub(crate) bytes_done: u64,
    /// Content bytes sent, at the last sample.
    pub(crate) bytes_sent: u64,
    /// Bytes verified meanwhile.
    pub(crate) verified: u64,
    /// Bytes sent meanwhile.
    pub(crate) sent: u64,
    /// The most bytes verified in a second, over a second or more.
    pub(crate) peak: u64,
}

/// Every state by its number in files; new ones are added at the end.
const STATES: [RunAgentState; 14] = [
    RunAgentState::Waiting,
    RunAgentState::Accepted,
    RunAgentState::Indexing,
    RunAgentState::Serving,
    RunAgentState::FindingPeers,
    RunAgentState::FetchingManifest,
    RunAgentState::Transferring,
    RunAgentState::Finalizing,
    RunAgentState::Stalled,
    RunAgentState::Done,
    RunAgentState::DoneWithErrors,
    RunAgentState::Failed,
    RunAgentState::Stopped,
    RunAgentState::Synchronizing,
];

impl Row {
    /// Adds a row that is later, or part of the same time.
    pub(crate) fn add(&mut self, later: &Self) {
        self.state = later.state;
        self.samples = self.samples.saturating_add(later.samples);
        self.peers = self.peers.max(later.peers);
        self.bytes_done = later.bytes_done;
        self.bytes_sent = later.bytes_sent;
        self.verified = self.verified.saturating_add(later.verified);
        self.sent = self.sent.saturating_add(later.sent);
        self.peak = self.peak.max(later.peak);
    }

    /// Writes it behind a row that begins at `before`.
    pub(super) fn encode(&self, before: u64, out: &mut Vec<u8>) {
        let state = STATES.iter().position(|state| *state == self.state).unwrap_or_default();
        let numbers = [
            self.start - before,
            state as u64,
            self.samples,
            u64::from(self.peers),
            self.bytes_done,
            self.bytes_sent,
            self.verified,
            self.sent,
            self.peak,
        ];
        numbers.into_iter().for_each(|number| put(number, out));
    }

    /// Reads one behind a row that begins at `before`; none if it is not one.
    pub(super) fn decode(before: u64, bytes: &mut &[u8]) -> Option<Self> {
        Some(Self {
            start: before.checked_add(take(bytes)?)?,
            state: *STATES.get(usize::try_from(take(bytes)?).ok()?)?,
            samples: take(bytes)?,
            peers: u32::try_from(take(bytes)?).ok()?,
            bytes_done: take(bytes)?,
            bytes_sent: take(bytes)?,
            verified: take(bytes)?,
            sent: take(bytes)?,
            peak: take(bytes)?,
        })
    }
}

/// A number in groups of seven bits, the lowest first (LEB128).
pub(super) fn put(mut number: u64, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// The number that `put` wrote.
pub(super) fn take(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        let bits = u64::from(byte & 0x7f);
        if shift == 63 && bits > 1 {
            return None;
        }
        number |= bits << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}
