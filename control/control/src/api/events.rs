//! `/api/v1/log` and `/api/v1/events`: the log itself, page by page and live.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::sse::{Event as Sse, KeepAlive};
use axum::response::{IntoResponse, Response};
use event_log::{Position, ReadLimit};
use event_schema::Record;
use futures::Stream;
use serde::Deserialize;
use tokio::sync::{OwnedSemaphorePermit, watch};
use utoipa::IntoParams;

use super::error::{Json, Query};
use super::view::{ErrorView, LogView, RecordView};
use super::{Api, ApiError, PAGE_DEFAULT, PAGE_MAX, shape};

/// Records read at once for one stream.
const READ_AHEAD: usize = 64;

/// Records one page of a filtered listing looks at: an answer takes bounded time.
const LOOKED_AT_MAX: usize = 20_000;

/// Where to begin in the log.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct LogQuery {
    /// First position. Default: the log's first one, 1 unless its beginning was archived.
    from: Option<u64>,
    /// Records at most; 1 to 1,000, default 200.
    limit: Option<usize>,
    /// Only records whose stream begins so, such as `run/` or `agent/5f…`.
    stream: Option<String>,
    /// The log as it was: nothing beyond this position or time (RFC 3339, UTC), names as they were then.
    at: Option<String>,
}

/// Records of the log.
#[utoipa::path(get, path = "/api/v1/log", tag = "log", params(LogQuery),
    responses((status = 200, body = LogView), (status = 401, body = ErrorView)))]
pub(super) async fn log(
    State(api): State<Api>,
    Query(query): Query<LogQuery>,
) -> Result<Json<LogView>, ApiError> {
    let limit = query.limit.unwrap_or(PAGE_DEFAULT).clamp(1, PAGE_MAX);
    let mut next = match query.from {
        Some(from) => from.max(1),
        None => api.service.log().first().await?.0,
    };
    let first = next;
    let mut records: Vec<RecordView> = Vec::new();
    // Only what is folded is shown, so that names are known.
    let end = api.sight(query.at.as_ref()).await?.position();
    while records.len() < limit && next <= end && next - first < LOOKED_AT_MAX as u64 {
        let page = read(&api, next, limit).await?;
        let Some((last, _)) = page.last() else { break };
        let page_next = last + 1;
        let views = api.sight(query.at.as_ref()).await?;
        for (position, record) in page {
            if records.len() >= limit || position > end {
                break;
            }
            next = position + 1;
            if query.stream.as_ref().is_none_or(|stream| record.stream.starts_with(stream)) {
                records.push(shape::record(&views, position, &record));
            }
        }
        if records.len() < limit {
            next = page_next.min(end + 1);
        }
    }
    Ok(Json(LogView { records, next }))
}

pub(super) async fn read(api: &Api, from: u64, limit: usize) -> Result<Vec<(u64, Record)>, ApiError> {
    let entries = api.service.log().read(Position(from), ReadLimit::entries(limit)).await;
    let entries = entries?;
    let mut records = Vec::with_capacity(entries.len());
    for entry in entries {
        let mut record = Record::decode(&entry.bytes).map_err(|e| ApiError::unavailable(e.to_string()))?;
        let opened = api.service.ring().open_record(&mut record).await;
        opened.map_err(|error| ApiError::unavailable(error.to_string()))?;
        records.push((entry.position.0, record));
    }
    Ok(records)
}

/// Where to begin with live events.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct StreamQuery {
    /// First position; without it only what comes from now on. The header `Last-Event-ID` wins.
    from: Option<u64>,
}

/// Records as they come, as server-sent events: `id` is the position, `data` a RecordView.
#[utoipa::path(get, path = "/api/v1/events", tag = "log", params(StreamQuery),
    responses((status = 200, description = "text/event-stream of RecordView", body = String),
        (status = 503, body = ErrorView)))]
pub(super) async fn stream(
    State(api): State<Api>,
    Query(query): Query<StreamQuery>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let permit = api.streams.clone().try_acquire_owned();
    let permit = permit.map_err(|_| ApiError::unavailable("too many streams of events are open"))?;
    let seen = match headers.get("last-event-id") {
        None => None,
        Some(value) => {
            let id = value.to_str().ok().and_then(|text| text.parse::<u64>().ok());
            Some(id.ok_or_else(|| ApiError::invalid("Last-Event-ID is a position"))?)
        }
    };
    let seen = seen.or_else(|| query.from.map(|from| from.saturating_sub(1)));
    let seen = seen.unwrap_or_else(|| api.service.views().position());
    let first = api.service.log().first().await?;
    if seen < first.0 - 1 {
        return Err(event_log::ReadError::Archived { first }.into());
    }
    let keep_alive = KeepAlive::new().interval(Duration::from_secs(15));
    Ok(axum::response::Sse::new(live(api, seen, permit)).keep_alive(keep_alive).into_response())
}

struct Cursor {
    api: Api,
    seen: u64,
    position: watch::Receiver<u64>,
    ready: VecDeque<(u64, Record)>,
    _permit: OwnedSemaphorePermit,
}

fn live(api: Api, seen: u64, permit: OwnedSemaphorePermit) -> impl Stream<Item = Result<Sse, Infallible>> {
    let position = api.service.position();
    let cursor = Cursor { api, seen, position, ready: VecDeque::new(), _permit: permit };
    futures::stream::unfold(cursor, |mut cursor| async move {
        let (position, record) = cursor.next().await?;
        let view = shape::record(&cursor.api.service.views(), position, &record);
        let event = Sse::default().id(position.to_string()).event("record");
        let event = event.json_data(&view).unwrap_or_default();
        Some((Ok(event), cursor))
    })
}

impl Cursor {
    /// The next record; none when the service stops or the log cannot be read: the reader comes again
    /// with its last position.
    async fn next(&mut self) -> Option<(u64, Record)> {
        while self.ready.is_empty() {
            let seen = self.seen;
            let stopping = &mut self.api.stopping;
            tokio::select! {
                _ = stopping.wait_for(|stopping| *stopping) => return None,
                reached = self.position.wait_for(|position| *position > seen) => drop(reached.ok()?),
            }
            self.ready.extend(read(&self.api, seen + 1, READ_AHEAD).await.ok()?);
        }
        let next = self.ready.pop_front()?;
        self.seen = next.0;
        Some(next)
    }
}
