//! Read your own writes, at whichever replica.
//!
//! Every answer says up to which position of the log the replica has folded when it answers (`flotilla-position`),
//! which includes whatever the request itself wrote. Who shows that number with the next request, as the header
//! `flotilla-min-position` or as `?min_position=`, is answered from a state that has it: the replica waits until it
//! does.

use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::HeaderValue;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::{Api, ApiError};

/// Position that an answer shows.
pub(super) const POSITION: &str = "flotilla-position";

/// Position that an answer has to show at least.
const MIN_POSITION: &str = "flotilla-min-position";

/// How long a replica that is behind may take to catch up: more than a server takes to restart.
const PATIENCE: Duration = Duration::from_secs(15);

/// Waits for the position that is asked for; says which one the answer shows.
pub(super) async fn show(State(api): State<Api>, request: Request, next: Next) -> Response {
    let wanted = match wanted(&request) {
        Ok(wanted) => wanted,
        Err(error) => return error.into_response(),
    };
    let mut position = api.service.position();
    if wanted > 0 {
        let reached = position.wait_for(|position| *position >= wanted);
        let reached = tokio::time::timeout(PATIENCE, reached).await.is_ok_and(|reached| reached.is_ok());
        if !reached {
            let now = *position.borrow();
            let message = format!(
                "this replica has folded the log up to position {now}, not {wanted}; ask again, or another replica"
            );
            return ApiError::unavailable(message).into_response();
        }
    }
    let mut response = next.run(request).await;
    let now = *position.borrow();
    response.headers_mut().insert(POSITION, HeaderValue::from(now));
    response
}

fn wanted(request: &Request) -> Result<u64, ApiError> {
    let bad = || ApiError::invalid(format!("{MIN_POSITION} is a position of the log, a whole number"));
    if let Some(value) = request.headers().get(MIN_POSITION) {
        return value.to_str().ok().and_then(|text| text.parse().ok()).ok_or_else(bad);
    }
    let query = request.uri().query().unwrap_or_default();
    let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    match pairs.find(|(name, _)| *name == "min_position") {
        Some((_, value)) => value.parse().map_err(|_| bad()),
        None => Ok(0),
    }
}
