//! Counters, as `/metrics` shows them.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that only grows while the process lives.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// The number now.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! metrics {
    ($($(#[$meta:meta])* $name:ident: $help:literal),+ $(,)?) => {
        /// What is counted since the process started.
        #[derive(Debug, Default)]
        pub struct Metrics {
            $($(#[$meta])* pub $name: Counter,)+
        }

        impl Metrics {
            /// Name, help and value of every counter.
            pub fn all(&self) -> Vec<(&'static str, &'static str, u64)> {
                vec![$((stringify!($name), $help, self.$name.value()),)+]
            }
        }
    };
}

metrics! {
    /// Records folded.
    records: "Records folded, those read at the start included",
    /// Events in them.
    events: "Events in those records",
    /// Appends asked for.
    appends: "Appends asked of the log",
    /// Appends that met another writer or an unknown outcome.
    append_conflicts: "Appends that met another writer or had an unknown outcome",
    /// Appends that failed.
    append_failures: "Appends that failed",
    /// Attested states that a fold led to as well.
    attestations_checked: "States attested on the log that were held against the fold and are right",
    /// Attested states that a fold did not lead to.
    attestations_differing: "States attested on the log that the fold does not lead to",
    /// Reports that were news.
    reports: "Signed reports that were recorded",
    /// Reports that were on the log already.
    reports_repeated: "Signed reports that were on the log already",
    /// Reports that were refused.
    reports_refused: "Report batches refused for their signature, audience or sequence",
    /// Enrolments turned away.
    enrolments_refused: "Enrolments turned away",
    /// Telemetry messages.
    progress: "Progress messages of agents",
    /// Checkpoints of the log that were signed.
    checkpoints: "Checkpoints of the log that were signed",
    /// Checkpoints sent to agents.
    checkpoints_sent: "Checkpoints sent to agents, who are their witnesses",
    /// Segments that were archived.
    segments_archived: "Segments of the log that were moved to the archive",
    /// Their records.
    records_archived: "Records in those segments",
    /// HTTP requests.
    http_requests: "HTTP requests",
    /// HTTP requests that were not authorised.
    http_unauthorized: "HTTP requests without a valid token",
    /// HTTP requests that failed for our sake.
    http_errors: "HTTP requests answered with a status of 500 and above",
}
