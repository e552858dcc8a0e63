//! The status page: one embedded file without foreign origins.

use std::sync::LazyLock;

use axum::http::HeaderValue;
use axum::http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};

const PAGE: &str = include_str!("page.html");

/// Allows exactly the page's own script and style, and requests to where it came from.
static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let policy = format!(
        "default-src 'none'; script-src '{}'; style-src '{}'; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        hash_of("<script>", "</script>"),
        hash_of("<style>", "</style>"),
    );
    HeaderValue::from_str(&policy).expect("hashes are ASCII")
});

fn hash_of(open: &str, close: &str) -> String {
    let inside = PAGE.split_once(open).and_then(|(_, rest)| rest.split_once(close));
    let inside = inside.expect("the page has one of each").0;
    format!("sha256-{}", data_encoding::BASE64.encode(&Sha256::digest(inside)))
}

pub(super) async fn show() -> Response {
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
        (CONTENT_SECURITY_POLICY, POLICY.clone()),
    ];
    (headers, PAGE).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_needs_nobody_else() {
        assert_eq!(PAGE.matches("<script").count(), 1);
        assert_eq!(PAGE.matches("<style").count(), 1);
        for foreign in ["http://", "https://", "src=", "onclick=", " style=", "innerHTML", "eval("] {
            assert!(!PAGE.contains(foreign), "{foreign}");
        }
        let policy = POLICY.to_str().expect("ASCII");
        assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"));
    }
}
