//! The one error type of the HTTP edge: a status, a stable code, and words that name the value and whose fault it is.

use std::borrow::Cow;

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use pushgate_formats::api::{ErrorAnswer, ErrorBody};

use crate::{
    db::DbError,
    push::{announce::AnnounceError, session::SessionError, signature::SignatureError},
};

/// An answer that is an error.
#[derive(Debug)]
pub struct ApiError {
    pub status: StatusCode,
    pub code: Cow<'static, str>,
    pub message: String,
    pub path: Option<String>,
    /// Seconds, for `Retry-After`.
    pub retry_after: Option<u32>,
}

impl ApiError {
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code: code.into(), message: message.into(), path: None, retry_after: None }
    }

    /// One whose code was found by a judgement: those are kept as text.
    pub fn with_code(status: StatusCode, code: &str, message: impl Into<String>) -> Self {
        Self { code: code.to_owned().into(), ..Self::new(status, "", message) }
    }

    /// 403, saying nothing more than necessary.
    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", message)
    }

    pub fn not_found(what: &str, name: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not-found", format!("there is no {what} `{}`", clean(name)))
    }

    pub fn bad_request(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, message)
    }

    /// A fault of the gateway's own: the cause goes to the log, not to the client.
    pub fn unavailable(cause: &(dyn std::error::Error + 'static)) -> Self {
        tracing::error!(error = cause, "request failed");
        let mut error = Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "unavailable",
            "the gateway can't do this right now; the fault is its own, try again",
        );
        error.retry_after = Some(2);
        error
    }

    /// The fault is the gateway's own: it has no room left to write to.
    pub fn disk_full() -> Self {
        let message = "the gateway's disk is nearly full; its admin has to make room, try again later";
        let mut error = Self::new(StatusCode::INSUFFICIENT_STORAGE, "disk-full", message);
        error.retry_after = Some(60);
        error
    }

    /// The submitter's quarantine, or that of all, has no room.
    pub fn full(body: &ErrorBody) -> Self {
        let code = match body.code.as_str() {
            "quota-exceeded" => "quota-exceeded",
            "daily-quota-exceeded" => "daily-quota-exceeded",
            _ => "gateway-full",
        };
        let mut error = Self::new(StatusCode::INSUFFICIENT_STORAGE, code, body.message.clone());
        error.retry_after = Some(60).filter(|_| code == "gateway-full");
        error
    }

    /// No memory for more at once.
    pub fn no_memory() -> Self {
        let message = "the gateway has no memory for this beside what is under way; try again in a moment";
        let mut error = Self::new(StatusCode::SERVICE_UNAVAILABLE, "gateway-busy", message);
        error.retry_after = Some(2);
        error
    }

    /// Too many at once.
    pub fn busy(message: impl Into<String>) -> Self {
        let mut error = Self::new(StatusCode::TOO_MANY_REQUESTS, "too-many-uploads", message);
        error.retry_after = Some(1);
        error
    }
}

/// What a client sent, as it may stand in a message: bounded, without control characters.
pub fn clean(text: &str) -> String {
    text.chars().take(200).flat_map(char::escape_debug).collect()
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        metrics::counter!("pushgate_errors_total", "code" => self.code.clone()).increment(1);
        let body = ErrorAnswer {
            error: ErrorBody { code: self.code.clone().into_owned(), message: self.message, path: self.path },
        };
        let mut response = (self.status, Json(body)).into_response();
        let headers = response.headers_mut();
        headers.insert("cache-control", http::HeaderValue::from_static("no-store"));
        if self.code.starts_with("token-") {
            // what makes stock Nix, and curl below it, look into the netrc file
            headers.insert("www-authenticate", http::HeaderValue::from_static("Basic realm=\"pushgate\""));
        }
        if let Some(seconds) = self.retry_after {
            headers.insert("retry-after", http::HeaderValue::from(seconds));
        }
        response
    }
}

impl From<DbError> for ApiError {
    fn from(error: DbError) -> Self {
        Self::unavailable(&error)
    }
}

impl From<std::io::Error> for ApiError {
    fn from(error: std::io::Error) -> Self {
        Self::unavailable(&error)
    }
}

impl From<AnnounceError> for ApiError {
    fn from(error: AnnounceError) -> Self {
        let status = match error {
            AnnounceError::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            _ => StatusCode::BAD_REQUEST,
        };
        Self::new(status, error.code(), error.to_string())
    }
}

impl From<SignatureError> for ApiError {
    fn from(error: SignatureError) -> Self {
        match error {
            SignatureError::Db(e) => e.into(),
            SignatureError::TooLong(_) => Self::bad_request(error.code(), error.to_string()),
            SignatureError::Fingerprint { ref path, .. } | SignatureError::Missing { ref path, .. } => {
                let path = Some(path.absolute());
                Self { path, ..Self::new(StatusCode::FORBIDDEN, error.code(), error.to_string()) }
            }
            _ => Self::new(StatusCode::FORBIDDEN, error.code(), error.to_string()),
        }
    }
}

impl From<SessionError> for ApiError {
    fn from(error: SessionError) -> Self {
        match error {
            SessionError::Db(e) => e.into(),
            SessionError::NoMemory => Self::no_memory(),
            other => Self::unavailable(&other),
        }
    }
}
