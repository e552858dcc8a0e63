//! Requests to the API, and where it is.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, TlsProvider, parse_pem};

use super::{Failure, Global, output};
use crate::api::view::ErrorView;
use crate::serve::ApiFile;

/// How long one request may take: an append over a network that is restarting takes half a minute.
const REQUEST: Duration = Duration::from_secs(60);

/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(10);

/// How long a download may stand still.
const STANDS_STILL: Duration = Duration::from_secs(90);

/// Bytes of an answer: the largest run with all its problems.
const ANSWER_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// Pages that a list is put together from.
const PAGES_MAX: usize = 1_000;

/// Where requests go. The file is read anew for each, so that a service that was restarted is found.
pub(super) struct Client {
    place: Place,
    http: ureq::Agent,
}

enum Place {
    Named(ApiFile),
    Folder(PathBuf),
}

/// Why a request was not answered as wished.
pub(super) enum RequestError {
    /// The service does not run or cannot be reached: trying again may help.
    Unreachable(String),
    /// It said no.
    Refused { code: String, message: String },
}

impl From<RequestError> for Failure {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::Unreachable(message) | RequestError::Refused { message, .. } => {
                Self::Failed(message)
            }
        }
    }
}

impl Client {
    pub(super) fn new(global: Global) -> Result<Self, Failure> {
        let mut tls = TlsConfig::default();
        let place = match (global.server, global.token) {
            (Some(url), Some(token)) => {
                if url.starts_with("https://") {
                    tls = trusting(global.ca.as_deref())?;
                } else {
                    check_plain(&url)?;
                }
                Place::Named(ApiFile { url: url.trim_end_matches('/').into(), token })
            }
            (Some(url), None) => {
                return Err(Failure::Usage(format!(
                    "--server {url} needs the service's token: --token TOKEN, or FLOTILLA_TOKEN"
                )));
            }
            (None, _) => Place::Folder(global.data.unwrap_or_else(|| "flotilla-data".into())),
        };
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(REQUEST))
            .timeout_connect(Some(CONNECT))
            .http_status_as_error(false)
            .tls_config(tls)
            .proxy(None)
            .max_redirects(0)
            .build();
        Ok(Self { place, http: config.into() })
    }

    fn api(&self) -> Result<ApiFile, RequestError> {
        let folder = match &self.place {
            Place::Named(api) => return Ok(api.clone()),
            Place::Folder(folder) => folder,
        };
        let path = folder.join("api.json");
        let text = std::fs::read(&path).map_err(|error| {
            RequestError::Unreachable(if error.kind() == std::io::ErrorKind::NotFound {
                let folder = folder.display();
                format!(
                    "no control service is running with its data in {folder} (there is no api.json). Start it with \
                     `flotilla serve --data {folder}`, or name another with --data DIR or --server URL --token TOKEN"
                )
            } else {
                format!("cannot read {}: {error}", path.display())
            })
        })?;
        serde_json::from_slice(&text).map_err(|error| {
            RequestError::Unreachable(format!("{} is damaged ({error}): restart the service", path.display()))
        })
    }

    pub(super) fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, RequestError> {
        let api = self.api()?;
        let url = format!("{}/api/v1/{path}", api.url);
        let request = self.http.get(&url).header("Authorization", format!("Bearer {}", api.token));
        answer(&api, request.call())
    }

    /// An answer that may take long.
    pub(super) fn get_slowly<T: DeserializeOwned>(&self, path: &str) -> Result<T, RequestError> {
        let api = self.api()?;
        let url = format!("{}/api/v1/{path}", api.url);
        let request = self.http.get(&url).header("Authorization", format!("Bearer {}", api.token));
        answer(&api, request.config().timeout_global(None).build().call())
    }

    pub(super) fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, RequestError> {
        let api = self.api()?;
        let url = format!("{}/api/v1/{path}", api.url);
        let request = self.http.delete(&url).header("Authorization", format!("Bearer {}", api.token));
        answer(&api, request.call())
    }

    pub(super) fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, RequestError> {
        let api = self.api()?;
        let url = format!("{}/api/v1/{path}", api.url);
        let request = self.http.post(&url).header("Authorization", format!("Bearer {}", api.token));
        answer(&api, request.send_json(body))
    }

    pub(super) fn put<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, RequestError> {
        let api = self.api()?;
        let url = format!("{}/api/v1/{path}", api.url);
        let request = self.http.put(&url).header("Authorization", format!("Bearer {}", api.token));
        answer(&api, request.send_json(body))
    }

    /// Something large, as it comes; and a header of the answer, if it is there.
    pub(super) fn download(
        &self,
        path: &str,
        header: &str,
    ) -> Result<(ureq::BodyReader<'static>, Option<String>), RequestError> {
        let api = self.api()?;
        let url = format!("{}/api/v1/{path}", api.url);
        let request = self.http.get(&url).header("Authorization", format!("Bearer {}", api.token));
        let request = request.config().timeout_global(None).timeout_per_read(Some(STANDS_STILL)).build();
        match request.call() {
            Ok(response) if response.status().is_success() => {
                let header = response.headers().get(header).and_then(|value| value.to_str().ok());
                let header = header.map(str::to_owned);
                Ok((response.into_body().into_with_config().limit(u64::MAX).reader(), header))
            }
            other => answer::<serde::de::IgnoredAny>(&api, other).and_then(|_| {
                Err(RequestError::Refused {
                    code: "unexpected".into(),
                    message: format!("{} answers something else than this program expects", api.url),
                })
            }),
        }
    }

    /// A whole list, page by page: `entries` takes a page apart.
    pub(super) fn list<P: DeserializeOwned, E>(
        &self,
        path: &str,
        mut entries: impl FnMut(P) -> (Vec<E>, Option<String>),
    ) -> Result<Vec<E>, RequestError> {
        let mut all = Vec::new();
        let mut after = String::new();
        for _ in 0..PAGES_MAX {
            let joint = if path.contains('?') { '&' } else { '?' };
            let page = self.get(&format!("{path}{joint}limit=1000{after}"))?;
            let (more, next) = entries(page);
            all.extend(more);
            match next {
                Some(next) => after = format!("&after={next}"),
                None => break,
            }
        }
        Ok(all)
    }
}

/// Plain HTTP is for this machine; elsewhere everybody on the way reads the token.
fn check_plain(url: &str) -> Result<(), Failure> {
    let Some(rest) = url.strip_prefix("http://") else {
        return Err(Failure::Usage(format!(
            "--server {url}: the address must begin with https:// or http://"
        )));
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let local = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    if !local {
        output::complain(&format!(
            "warning: the token goes to {host} in the clear; put a TLS proxy in front of the service and use https://, \
             or a tunnel (ssh -L 7700:127.0.0.1:7700 {host})"
        ));
    }
    Ok(())
}

/// Whom to believe: the certificates of a file, or those of this machine.
fn trusting(ca: Option<&Path>) -> Result<TlsConfig, Failure> {
    let roots: Vec<Certificate<'static>> = match ca {
        Some(path) => {
            let told =
                |error: &dyn std::fmt::Display| Failure::Usage(format!("--ca {}: {error}", path.display()));
            let text = std::fs::read(path).map_err(|error| told(&error))?;
            let mut roots = Vec::new();
            for item in parse_pem(&text) {
                if let PemItem::Certificate(certificate) = item.map_err(|error| told(&error))? {
                    roots.push(certificate);
                }
            }
            if roots.is_empty() {
                return Err(told(&"there is no certificate in it (PEM is expected)"));
            }
            roots
        }
        None => {
            let found = rustls_native_certs::load_native_certs();
            if found.certs.is_empty() {
                return Err(Failure::Failed(
                    "this machine has no trusted certificates (Debian: apt-get install ca-certificates); or name those \
                     of the service with --ca FILE"
                        .into(),
                ));
            }
            found.certs.iter().map(|certificate| Certificate::from_der(certificate).to_owned()).collect()
        }
    };
    Ok(TlsConfig::builder()
        .provider(TlsProvider::Rustls)
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .root_certs(RootCerts::new_with_certs(&roots))
        .build())
}

fn answer<T: DeserializeOwned>(
    api: &ApiFile,
    result: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
) -> Result<T, RequestError> {
    let unreachable = |error: &dyn std::fmt::Display| {
        RequestError::Unreachable(format!(
            "the control service at {} does not answer ({error}). Is `flotilla serve` running?",
            api.url
        ))
    };
    let mut response = result.map_err(|error| unreachable(&error))?;
    let status = response.status();
    let body = response.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_vec();
    let body = body.map_err(|error| unreachable(&error))?;
    if status.is_success() {
        return serde_json::from_slice(&body).map_err(|error| RequestError::Refused {
            code: "unexpected".into(),
            message: format!("{} answers something else than this program expects: {error}", api.url),
        });
    }
    Err(match serde_json::from_slice::<ErrorView>(&body) {
        // What the service says is meant for those who write requests.
        Ok(ErrorView { error }) if status.as_u16() == 401 => RequestError::Refused {
            code: error.code,
            message: format!(
                "the control service at {} does not know this token: its own is in its data folder's api.json",
                api.url
            ),
        },
        Ok(ErrorView { error }) => RequestError::Refused { code: error.code, message: error.message },
        Err(_) => RequestError::Refused {
            code: "unexpected".into(),
            message: format!("{} answers {status}: is this a Flotilla control service?", api.url),
        },
    })
}

/// One segment of a path, with what has a meaning there escaped.
pub(super) fn segment(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'~') {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_stay_in_their_segment() {
        assert_eq!(super::segment("a b/../c?d=ä"), "a%20b%2F%2E%2E%2Fc%3Fd%3D%C3%A4");
    }
}
