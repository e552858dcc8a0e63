//! The bootstrap file: all an agent needs to find its fleet and be let in.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

/// The bootstrap file, written by `flotilla token create`, in JSON.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bootstrap {
    /// Where to enrol.
    pub management_server: ManagementServer,
    /// Folder below which relative paths of jobs lie. Default: `folders` in the agent's data folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub folders_storage_path: Option<String>,
    /// Tags the agent gives itself; those of the token win.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
}

/// The control service's gateway, as the bootstrap file names it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManagementServer {
    /// `HOST:PORT` of the gateway.
    pub host: String,
    /// Further gateways of the same service, `HOST:PORT` each; tried when `host` does not answer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub further_hosts: Vec<String>,
    /// SHA-256 of the CA certificate, 64 hex digits, colons allowed.
    pub cert_authority_fingerprint: String,
    /// The token's text, a secret. Without it the agent waits for approval.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bootstrap_token: Option<String>,
}

impl core::fmt::Debug for Bootstrap {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Bootstrap").field("host", &self.management_server.host).finish_non_exhaustive()
    }
}

impl core::fmt::Debug for ManagementServer {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("ManagementServer").field("host", &self.host).finish_non_exhaustive()
    }
}
