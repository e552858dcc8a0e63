//! `/api/v1/log/check`: the log folded anew, held against the live state, against every state that was attested, and, if
//! servers keep it, against what they hold.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::extract::State;
use control_core::form::{Checked, Differs};
use control_core::projection::Views;

use super::error::Json;
use super::events::read;
use super::view::{ErrorView, LogCheckView, ServersCheckView};
use super::{Api, ApiError, PAGE_MAX, shape};
use crate::at::At;

/// Position that a check has reached; 0 while none runs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Checking(Arc<AtomicU64>);

impl Checking {
    /// For whoever waits for it.
    pub(crate) fn reached(&self) -> Option<u64> {
        Some(self.0.load(Ordering::Relaxed)).filter(|position| *position > 0)
    }
}

/// Says that it is over, however it ended.
struct Over(Checking);

impl Drop for Over {
    fn drop(&mut self) {
        self.0.0.store(0, Ordering::Relaxed);
    }
}

/// Folds the log anew, from its first record or from the state at its base, holds every state that was attested against
/// the fold, and compares with the live state; a log kept by servers is compared with the service's copy of it, too.
#[utoipa::path(get, path = "/api/v1/log/check", tag = "log",
    responses((status = 200, body = LogCheckView), (status = 401, body = ErrorView), (status = 503, body = ErrorView)))]
pub(super) async fn check(State(api): State<Api>) -> Result<Json<LogCheckView>, ApiError> {
    let (position, live) = {
        let views = api.service.views();
        (views.position(), views.hash())
    };
    let base = api.service.log().first().await?.0 - 1;
    let mut fold = match base {
        0 => Checked::default(),
        base => {
            // The log is longer than what was archived of it, so this is never the present.
            let views = api.service.past(At::Position(base)).await?;
            Checked::behind(views.map_or_else(Views::default, |views| Views::clone(&views)))
        }
    };
    let over = Over(api.checking.clone());
    let mut differing: Option<Differs> = None;
    let mut differences = 0;
    while fold.views().position() < position {
        let next = fold.views().position() + 1;
        for (at, record) in read(&api, next, PAGE_MAX).await? {
            if at > position {
                break;
            }
            if at != fold.views().position() + 1 {
                let missing = fold.views().position() + 1;
                return Err(ApiError::unavailable(format!("the log has no record {missing}")));
            }
            if let Err(differs) = fold.apply(at, &record) {
                differences += 1;
                differing.get_or_insert(differs);
            }
        }
        if fold.views().position() < next {
            return Err(ApiError::unavailable(format!("the log ends before record {next}")));
        }
        over.0.0.store(fold.views().position(), Ordering::Relaxed);
    }
    drop(over);
    let rebuilt = fold.views().hash();
    let servers = match &api.servers {
        None => None,
        Some(log) => {
            let scrub = log.scrub().await.map_err(|error| ApiError::unavailable(error.to_string()))?;
            Some(ServersCheckView {
                messages: scrub.messages,
                records: scrub.records,
                differences: scrub.differences.iter().map(ToString::to_string).collect(),
                more: scrub.more,
                unseen: scrub.unseen,
            })
        }
    };
    Ok(Json(LogCheckView {
        position,
        from: base,
        state_hash: shape::hex(&live),
        rebuilt_hash: shape::hex(&rebuilt),
        equal: live == rebuilt,
        attested: fold.checked,
        attested_unknown: fold.unknown,
        attested_differing: differences,
        first_differing: differing.as_ref().map(|differs| differs.position),
        detail: differing.as_ref().map(ToString::to_string),
        servers,
    }))
}
