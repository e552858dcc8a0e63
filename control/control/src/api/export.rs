//! `/api/v1/audit/export`: the whole history in one file that proves itself, as it is made.
//!
//! A blocking thread reads the log and writes the export into a short queue; the answer's body takes from it. So memory
//! is bounded, and a reader that is slow slows the thread, up to a point.

use std::io;
use std::time::Duration;

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
        let out = Pipe { piece: Vec::with_capacity(PIECE_BYTES), pieces: pieces.clone() };
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
}

impl Pipe {
    fn send(&mut self) -> io::Result<()> {
        let piece = std::mem::replace(&mut self.piece, Vec::with_capacity(PIECE_BYTES));
        let sending = tokio::time::timeout(PATIENCE, self.pieces.send(Ok(piece.into())));
        // On a thread that may block, inside of a task of the runtime: that task's budget must not count here.
        match futures::executor::block_on(tokio::task::unconstrained(sending)) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(io::Error::new(io::ErrorKind::BrokenPipe, "nobody reads it any more")),
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the reader took nothing for a minute")),
        }
    }
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
