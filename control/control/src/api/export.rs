//! `/api/v1/audit/export`: the whole history in one file that proves itself, as it is made.
//!
//! A blocking thread reads the log and writes the export into a short queue; the answer's body takes from it. So memory
//! is bounded, and a reader that is slow slows the thread, up to a point.

use std::io;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header::{CONTENT_DISPOSITION, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{IntoResponse, Response};
use futures::Stream;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};

use super::audit::sealing;
use super::view::ErrorView;
use super::{Api, ApiError};
use crate::audit;
use crate::sealing::Progress;

/// Bytes in one piece of the body.
const PIECE_BYTES: usize = 64 * 1024;

/// Pieces that wait for the reader.
const PIECES_MAX: usize = 8;

/// How long a reader may take nothing.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long all waiting for a reader may take together before its pace counts.
const GRACE: Duration = Duration::from_secs(600);

/// Bytes that a reader takes in a second of waiting, at least: one that is slower keeps others from exports.
const PACE_BYTES: u64 = 16 * 1024;

/// Why the newest records are not in the export, if so.
pub(crate) const DETAIL: &str = "flotilla-audit-detail";

/// The whole history in one file (`events/AUDIT_FORMAT.md` §6), sealed and signed just now. It is whole only if it can
/// be verified: an export that fails on the way ends early. Two at once.
#[utoipa::path(get, path = "/api/v1/audit/export", tag = "audit",
    responses((status = 200, description = "application/octet-stream", body = Vec<u8>),
        (status = 409, body = ErrorView), (status = 410, body = ErrorView), (status = 503, body = ErrorView)))]
pub(super) async fn export(State(api): State<Api>) -> Result<Response, ApiError> {
    let sealing = sealing(&api)?.clone();
    let first = api.service.log().first().await?;
    if first.0 > 1 {
        return Err(ApiError::archived(format!(
            "the log begins with position {first} here: `flotilla audit export --data DIR --archive FOLDER`, on the \
             service's machine, exports it with its archives"
        )));
    }
    let permit = api.exports.clone().try_acquire_owned();
    let permit = permit.map_err(|_| {
        ApiError::unavailable("two exports are being made already: try again when one is done")
    })?;
    let detail = sealing.seal_now().await.err();
    if let Progress::Stopped(why) = sealing.progress() {
        return Err(ApiError::conflict(why));
    }
    let beside = {
        let sealing = sealing.clone();
        tokio::task::spawn_blocking(move || sealing.ledger_beside()).await
    };
    let unavailable = |error: &dyn std::fmt::Display| ApiError::unavailable(error.to_string());
    let ledger = beside.map_err(|error| unavailable(&error))?.map_err(|error| unavailable(&error))?;
    let Some(ledger) = ledger else {
        return Err(ApiError::conflict(detail.unwrap_or_else(|| "nothing was signed yet".into())));
    };
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(
        CONTENT_DISPOSITION,
        HeaderValue::from_static("attachment; filename=\"history.flotilla-audit\""),
    );
    if let Some(detail) = detail.and_then(|detail| HeaderValue::from_str(&detail).ok()) {
        headers.insert(DETAIL, detail);
    }
    let (pieces, queue) = mpsc::channel(PIECES_MAX);
    let (log, keys) = (api.service.log().clone(), sealing.keys());
    let runtime = Handle::current();
    // The log goes with the thread, the service does not: it can stop meanwhile.
    tokio::task::spawn_blocking(move || {
        let _permit = permit;
        let out = Pipe::new(pieces.clone());
        let written = runtime.block_on(audit::export_sealed(&*log, &ledger, &keys, out));
        if let Err(error) = written {
            tracing::warn!(%error, "an export ended early");
            // Nobody there is no failure.
            let _ = pieces.try_send(Err(io::Error::other(error.to_string())));
        }
    });
    Ok((headers, Body::from_stream(body(queue, api.stopping.clone()))).into_response())
}

type Piece = io::Result<Bytes>;

/// The pieces as they come; an error at the end if the service stops before they are all there.
fn body(queue: mpsc::Receiver<Piece>, stopping: watch::Receiver<bool>) -> impl Stream<Item = Piece> {
    futures::stream::unfold(Some((queue, stopping)), |state| async {
        let (mut queue, mut stopping) = state?;
        let piece = tokio::select! {
            _ = stopping.wait_for(|stopping| *stopping) => Some(Err(io::Error::other("the service stops"))),
            piece = queue.recv() => piece,
        };
        let piece = piece?;
        let more = piece.is_ok().then_some((queue, stopping));
        Some((piece, more))
    })
}

/// Takes what is written, in pieces, into the queue; waits while that is full.
struct Pipe {
    piece: Vec<u8>,
    pieces: mpsc::Sender<Piece>,
    sent: u64,
    waited: Duration,
}

impl Pipe {
    fn new(pieces: mpsc::Sender<Piece>) -> Self {
        Self { piece: Vec::with_capacity(PIECE_BYTES), pieces, sent: 0, waited: Duration::ZERO }
    }

    fn send(&mut self) -> io::Result<()> {
        if is_too_slow(self.sent, self.waited) {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the reader is too slow"));
        }
        let piece = std::mem::replace(&mut self.piece, Vec::with_capacity(PIECE_BYTES));
        let (bytes, began) = (piece.len() as u64, Instant::now());
        let sending = tokio::time::timeout(PATIENCE, self.pieces.send(Ok(piece.into())));
        // On a thread that may block, inside of a task of the runtime: that task's budget must not count here.
        let sent = futures::executor::block_on(tokio::task::unconstrained(sending));
        self.waited += began.elapsed();
        self.sent += bytes;
        match sent {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(io::Error::new(io::ErrorKind::BrokenPipe, "nobody reads it any more")),
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the reader took nothing for a minute")),
        }
    }
}

fn is_too_slow(sent: u64, waited: Duration) -> bool {
    waited > GRACE && sent < waited.as_secs().saturating_mul(PACE_BYTES)
}

impl io::Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = PIECE_BYTES.saturating_sub(self.piece.len()).min(bytes.len());
        self.piece.extend(&bytes[..room]);
        if self.piece.len() >= PIECE_BYTES {
            self.send()?;
        }
        Ok(room)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.piece.is_empty() { Ok(()) } else { self.send() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_crawls_is_left_after_a_while() {
        let minute = |n: u64| Duration::from_secs(60 * n);
        let piece = PIECE_BYTES as u64;
        assert!(!is_too_slow(piece * 10, minute(10)), "it may pick up");
        assert!(is_too_slow(piece * 11, minute(11)));
        assert!(!is_too_slow(20 * 1024 * 60 * 60, minute(60)), "20 KiB a second");
        assert!(is_too_slow(12 * 1024 * 60 * 60, minute(60)));
    }
}
