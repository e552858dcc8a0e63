//! Who may ask: the bearer of the token that the service keeps in its data folder.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq as _;

use super::{Api, ApiError};

/// The API's token, kept as a hash; compared in constant time.
#[derive(Clone)]
pub struct ApiToken(Arc<[u8; 32]>);

impl ApiToken {
    /// For the token's text.
    pub fn new(text: &str) -> Self {
        Self(Arc::new(Sha256::digest(text.trim().as_bytes()).into()))
    }

    fn is(&self, shown: &str) -> bool {
        let hash: [u8; 32] = Sha256::digest(shown.trim().as_bytes()).into();
        // Hashing first makes lengths equal; the comparison then takes the same time for every token.
        self.0.as_slice().ct_eq(&hash).into()
    }
}

impl std::fmt::Debug for ApiToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ApiToken")
    }
}

/// Lets requests through that show the token.
pub(super) async fn check(State(api): State<Api>, request: Request, next: Next) -> Response {
    let shown = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = shown.and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(token)
    });
    if token.is_some_and(|token| api.token.is(token)) {
        return next.run(request).await;
    }
    api.service.metrics().http_unauthorized.add(1);
    let mut response = ApiError::unauthorized().into_response();
    response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}

/// Counts, and sets what holds for every answer.
pub(super) async fn count(State(api): State<Api>, request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let metrics = api.service.metrics();
    metrics.http_requests.add(1);
    if response.status() >= StatusCode::INTERNAL_SERVER_ERROR {
        metrics.http_errors.add(1);
    }
    let headers = response.headers_mut();
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    headers.insert("referrer-policy", HeaderValue::from_static("no-referrer"));
    headers.entry("cache-control").or_insert(HeaderValue::from_static("no-store"));
    response
}
