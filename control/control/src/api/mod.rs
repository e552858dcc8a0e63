//! The HTTP API under `/api/v1`, the status page, metrics and health.
//!
//! Everything under `/api/v1` but the OpenAPI document needs `Authorization: Bearer TOKEN`. Answers are
//! the shapes of [`view`]; errors are `{"error":{"code","message"}}`. Handlers ask the service and shape
//! its answer; they decide nothing.

mod agents;
mod audit;
mod auth;
pub mod backup_view;
mod backups;
mod batches;
mod check;
mod connections;
mod erase;
mod error;
mod events;
mod explain;
mod export;
mod groups;
mod health;
mod jobs;
mod openapi;
mod page;
mod position;
mod replicas;
mod resolve;
mod runs;
mod shape;
mod sight;
mod sync;
pub mod sync_view;
mod telemetry;
mod tokens;
pub mod view;
mod whole;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware;
use axum::routing::{delete, get, post, put};
use event_log_nats::NatsLog;
use tokio::sync::{Semaphore, watch};

pub use auth::ApiToken;
pub(crate) use backups::{failed_data, options_of, purpose_data};
pub use error::ApiError;
pub(crate) use explain::{ExplainAgentView, ExplainView};
pub(crate) use export::DETAIL as EXPORT_DETAIL;
pub use openapi::document;
pub(crate) use shape::{
    bootstrap_place, data as event_data, disposed, escape_bytes, hex, path as path_text, record, total,
};
pub(crate) use sync::{conflict_key, policy_data};
pub(crate) use telemetry::{AgentFiguresView, TelemetryView};
pub(crate) use whole::{WholeView, whole};

use crate::service::Service;

/// Bytes of a request's body: a job with 1,000 destinations of the longest paths would not fit, one with
/// usual paths does.
const BODY_BYTES_MAX: usize = 1024 * 1024;

/// Streams of live events at once: each holds a page of the log.
const STREAMS_MAX: usize = 64;

/// Exports of the whole history at once: each reads all of the log and hashes it.
const EXPORTS_MAX: usize = 2;

/// Requests that read files of telemetry at once; more wait.
const READINGS_MAX: usize = 2;

/// Entries in one page of a list, and how many if nothing is said.
const PAGE_MAX: usize = 1_000;
const PAGE_DEFAULT: usize = 200;

/// The actor behind the one token there is so far.
const OPERATOR: &str = "admin";

/// What handlers work with.
#[derive(Clone)]
pub struct Api {
    pub(crate) service: Service,
    pub(crate) token: ApiToken,
    /// What bootstrap files say about the gateway.
    pub(crate) gateway: GatewayPlace,
    pub(crate) streams: Arc<Semaphore>,
    pub(crate) exports: Arc<Semaphore>,
    /// For telemetry.
    pub(crate) readings: Arc<Semaphore>,
    /// How far a check of the log has come.
    pub(crate) checking: check::Checking,
    /// Becomes true when the service stops: ends the streams.
    pub(crate) stopping: watch::Receiver<bool>,
    /// The log, if it is kept by servers.
    pub(crate) servers: Option<Arc<NatsLog>>,
}

/// Where agents find the gateway.
#[derive(Clone, Debug)]
pub struct GatewayPlace {
    /// `HOST:PORT`, written into bootstrap files.
    pub host: String,
    /// SHA-256 of the CA certificate, as bootstrap files carry it.
    pub ca_fingerprint: String,
}

impl Api {
    /// The API of a service.
    pub fn new(
        service: Service,
        token: ApiToken,
        gateway: GatewayPlace,
        stopping: watch::Receiver<bool>,
    ) -> Self {
        let streams = Arc::new(Semaphore::new(STREAMS_MAX));
        let exports = Arc::new(Semaphore::new(EXPORTS_MAX));
        let readings = Arc::new(Semaphore::new(READINGS_MAX));
        let checking = check::Checking::default();
        Self { service, token, gateway, streams, exports, readings, checking, stopping, servers: None }
    }

    /// With the servers that keep the log, which a check of the log compares as well.
    #[must_use]
    pub fn with_servers(self, servers: Option<Arc<NatsLog>>) -> Self {
        Self { servers, ..self }
    }

    /// Every route.
    pub fn router(self) -> Router {
        let guarded = Router::new()
            .route("/status", get(health::status))
            .route("/agents", get(agents::list))
            .route("/agents/{agent}", get(agents::show).delete(agents::remove))
            .route("/agents/{agent}/approve", post(agents::approve))
            .route("/agents/{agent}/tags", put(agents::tag))
            .route("/tokens", get(tokens::list).post(tokens::create))
            .route("/tokens/{token}", delete(tokens::revoke))
            .route("/groups", get(groups::list).post(groups::create))
            .route("/groups/{group}", get(groups::show))
            .route("/groups/{group}/add", post(groups::add))
            .route("/groups/{group}/remove", post(groups::remove))
            .route("/jobs", get(jobs::list).post(jobs::create))
            .route("/jobs/{job}", get(jobs::show).delete(jobs::remove))
            .route("/jobs/{job}/start", post(jobs::start))
            .route("/runs", get(runs::list))
            .route("/runs/{run}", get(runs::show))
            .route("/runs/{run}/history", get(runs::history))
            .route("/runs/{run}/telemetry", get(telemetry::show))
            .route("/runs/{run}/connections", get(connections::show))
            .route("/runs/{run}/explain", get(explain::show))
            .route("/runs/{run}/stop", post(runs::stop))
            .route("/runs/{run}/members", post(sync::members))
            .route("/runs/{run}/policy", put(sync::set_policy))
            .route("/runs/{run}/guard", post(sync::guard))
            .route("/runs/{run}/conflicts", get(sync::conflicts))
            .route("/backups/{job}", get(backups::show))
            .route("/backups/{job}/versions", get(backups::versions))
            .route("/backups/{job}/restore", post(backups::restore))
            .route("/batches", get(batches::list))
            .route("/batches/{batch}", get(batches::show))
            .route("/replicas", get(replicas::list))
            .route("/log", get(events::log))
            .route("/log/check", get(check::check))
            .route("/events", get(events::stream))
            .route("/erase", post(erase::erase))
            .route("/audit/keys", get(erase::keys))
            .route("/audit/witnesses", get(audit::witnesses))
            .route("/audit/seal", post(audit::seal))
            .route("/audit/export", get(export::export))
            .route_layer(middleware::from_fn_with_state(self.clone(), position::show))
            .route_layer(middleware::from_fn_with_state(self.clone(), auth::check));
        let api = guarded.route("/openapi.json", get(openapi::show));
        Router::new()
            .route("/", get(page::show))
            .route("/healthz", get(health::live))
            .route("/readyz", get(health::ready))
            .route("/metrics", get(health::metrics))
            .nest("/api/v1", api)
            .fallback(error::no_such_page)
            .method_not_allowed_fallback(error::no_such_method)
            .layer(middleware::from_fn_with_state(self.clone(), auth::count))
            .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
            .with_state(self)
    }
}
