//! What an answer is read from: the present, or the fleet as it was (`?at=`).

use std::ops::Deref;
use std::sync::{Arc, RwLockReadGuard};

use control_core::projection::Views;
use event_schema::Timestamp;
use serde::Deserialize;
use utoipa::IntoParams;

use super::{Api, ApiError};
use crate::at::At;
use crate::service::{Telemetry, now};

/// When.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Moment {
    /// The fleet as it was: after this position of the log, or at this time (RFC 3339, UTC), which stands for the last
    /// record before the first later one. Default: the present.
    pub(super) at: Option<String>,
}

/// Projections to answer from. Not to be held across an await.
pub(super) enum Sight<'a> {
    Present(RwLockReadGuard<'a, Views>),
    Past { views: Arc<Views>, at: Timestamp, nothing: Telemetry },
}

impl Deref for Sight<'_> {
    type Target = Views;

    fn deref(&self) -> &Views {
        match self {
            Self::Present(views) => views,
            Self::Past { views, .. } => views,
        }
    }
}

impl Sight<'_> {
    /// The time at which it is looked: tokens expire by it.
    pub(super) fn now(&self) -> Timestamp {
        match self {
            Self::Present(_) => now(),
            Self::Past { at, .. } => *at,
        }
    }

    /// What agents tell beside the log, which is known of the present alone.
    pub(super) fn telemetry<'t>(&'t self, api: &'t Api) -> &'t Telemetry {
        match self {
            Self::Present(_) => api.service.telemetry(),
            Self::Past { nothing, .. } => nothing,
        }
    }
}

impl Api {
    /// The projections at the moment asked for.
    pub(super) async fn sight(&self, at: Option<&String>) -> Result<Sight<'_>, ApiError> {
        let Some(text) = at else { return Ok(Sight::Present(self.service.views())) };
        let at: At = text.parse().map_err(|error| ApiError::invalid(format!("at: {error}")))?;
        loop {
            let Some(views) = self.service.past(at).await? else {
                let views = self.service.views();
                // What was the present may have become past meanwhile.
                if at.is_before(views.position(), views.time()) {
                    continue;
                }
                return Ok(Sight::Present(views));
            };
            let at = match at {
                At::Time(time) => time,
                At::Position(_) => views.time(),
            };
            return Ok(Sight::Past { views, at, nothing: Telemetry::default() });
        }
    }
}
