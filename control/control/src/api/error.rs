//! Errors as the API tells them.

use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use control_core::Rejection;
use event_log::ReadError;

use super::view::{ErrorBody, ErrorView};
use crate::service::{PastError, SubmitError};

/// A status, a code for programs and a message for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: String,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into() }
    }

    pub(crate) fn unauthorized() -> Self {
        let message = "this needs `Authorization: Bearer TOKEN` with the token of this service (its data \
                       folder's api.json has it)";
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", message)
    }

    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", message)
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid", message)
    }

    pub(crate) fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "conflict", message)
    }

    pub(crate) fn archived(message: impl Into<String>) -> Self {
        Self::new(StatusCode::GONE, "archived", message)
    }

    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", message)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let error = ErrorBody { code: self.code.into(), message: self.message };
        (self.status, axum::Json(ErrorView { error })).into_response()
    }
}

impl From<Rejection> for ApiError {
    fn from(rejection: Rejection) -> Self {
        let message = rejection.to_string();
        match rejection {
            Rejection::Unknown { .. } => Self::not_found(message),
            Rejection::Conflict(_) | Rejection::ReportGap { .. } => Self::conflict(message),
            Rejection::Invalid(_) => Self::invalid(message),
            Rejection::Limit(_) => Self::new(StatusCode::CONFLICT, "limit", message),
            Rejection::Refused { .. } => Self::new(StatusCode::FORBIDDEN, "refused", message),
        }
    }
}

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> Self {
        match error {
            SubmitError::Rejected(rejection) => rejection.into(),
            SubmitError::Unavailable(_) => Self::unavailable(error.to_string()),
            SubmitError::Unknown(_) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "unknown", error.to_string())
            }
        }
    }
}

impl From<PastError> for ApiError {
    fn from(error: PastError) -> Self {
        let message = error.to_string();
        match error {
            PastError::Before { .. } | PastError::Beyond { .. } => Self::not_found(message),
            PastError::ToCome { .. } => Self::invalid(message),
            PastError::Archived { .. } => Self::archived(message),
            PastError::Unavailable(_) => Self::unavailable(message),
        }
    }
}

impl From<ReadError> for ApiError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Archived { .. } => {
                Self::archived(format!("{error}: `flotilla audit replay --archive FOLDER` tells it"))
            }
            error => Self::unavailable(error.to_string()),
        }
    }
}

impl From<JsonRejection> for ApiError {
    fn from(rejection: JsonRejection) -> Self {
        let code = match rejection.status() {
            StatusCode::PAYLOAD_TOO_LARGE => "too_large",
            _ => "invalid",
        };
        Self::new(rejection.status(), code, rejection.body_text())
    }
}

impl From<QueryRejection> for ApiError {
    fn from(rejection: QueryRejection) -> Self {
        Self::invalid(rejection.body_text())
    }
}

/// A JSON body, whose faults are told in our shape.
#[derive(FromRequest)]
#[from_request(via(axum::Json), rejection(ApiError))]
pub(super) struct Json<T>(pub(super) T);

impl<T: serde::Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        axum::Json(self.0).into_response()
    }
}

/// A query, whose faults are told in our shape.
#[derive(FromRequestParts)]
#[from_request(via(axum::extract::Query), rejection(ApiError))]
pub(super) struct Query<T>(pub(super) T);

pub(super) async fn no_such_page() -> ApiError {
    ApiError::not_found(
        "there is nothing here; the API is under /api/v1, its document at /api/v1/openapi.json",
    )
}

pub(super) async fn no_such_method() -> ApiError {
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "not with this method")
}
