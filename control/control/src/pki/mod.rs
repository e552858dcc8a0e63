//! The fleet's keys: made on first start, kept in a folder of their own, loaded again ever after.
//!
//! Owns the root key and what hangs from it (`edge-agent/PROTOCOL.md` §1.1): CA certificate, gateway
//! certificate, trust bundle, agents' certificates and credentials, run secrets. Leaves out who may
//! have them: that is the service's decision.
//!
//! The folder comes into being in one rename, so either all first keys exist or none. A file that is
//! damaged or missing later stops the start: a fleet must not be founded twice by accident.

mod audit;
pub mod bundle;
mod certificates;
mod files;
#[cfg(test)]
mod tests;

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use agent_proto::link::Enrolled;
use agent_proto::{Credential, RunSecret, TrustBundle, fingerprint_text};
use ed25519_dalek::SigningKey;
use event_schema::{RunId, Signed, Timestamp, decode_exact, encode};
use hkdf::Hkdf;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use sha2::{Digest, Sha256};

pub use audit::AuditKeys;
pub(crate) use certificates::Facts;
use files::Secret;

use crate::privacy::Wrapper;

/// Why the fleet's keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// The system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file of the set is not there.
    #[error("the key file {} is missing; restore the whole keys folder from its backup", path.display())]
    Missing {
        /// Which file.
        path: PathBuf,
    },
    /// A file is not what was written.
    #[error("the key file {} is damaged ({what}); restore the whole keys folder from its backup", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A name that no certificate can carry.
    #[error("{0:?} is neither a host name nor an IP address that the gateway can be reached under")]
    Name(String),
    /// A certificate could not be made.
    #[error("a certificate could not be made: {0}")]
    Certificate(#[from] rcgen::Error),
    /// The TLS library refused our own keys.
    #[error("TLS cannot be set up: {0}")]
    Tls(String),
    /// The agent's key is no Ed25519 key.
    #[error("the agent's key is not a usable Ed25519 key")]
    AgentKey,
}

/// Names of the files in the folder.
mod name {
    pub(super) const ROOT: &str = "root.key";
    pub(super) const COMMAND: &str = "command.key";
    pub(super) const CREDENTIAL: &str = "credential.key";
    pub(super) const GATEWAY: &str = "gateway.key";
    pub(super) const RUN_MASTER: &str = "run-master.key";
    pub(super) const CA: &str = "ca.pem";
    pub(super) const GATEWAY_CERTIFICATE: &str = "gateway.pem";
    pub(super) const TRUST: &str = "trust.bin";
}

/// The fleet's keys and certificates.
pub struct Pki {
    folder: PathBuf,
    root: SigningKey,
    command: SigningKey,
    credential: SigningKey,
    gateway: SigningKey,
    run_master: Secret,
    ca: CertificateDer<'static>,
    trust: TrustBundle,
    trust_signed: Signed,
    names: Vec<String>,
    resolver: Arc<Resolver>,
}

impl fmt::Debug for Pki {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pki").field("folder", &self.folder).finish_non_exhaustive()
    }
}

impl Pki {
    /// Opens the keys in `data/keys`, or makes them if there are none.
    ///
    /// `names` are the host names and IP addresses under which agents reach the gateway, at least one;
    /// when they differ from last time, or the gateway's certificate is in its last third, it is
    /// issued anew.
    ///
    /// # Errors
    /// If a file is missing, damaged or cannot be read or written, or a name is none.
    pub fn open(data: &Path, names: &[String], now: Timestamp) -> Result<Self, PkiError> {
        check_names(names)?;
        let folder = data.join("keys");
        let exists = folder.try_exists().map_err(|source| PkiError::Io { path: folder.clone(), source })?;
        if !exists {
            found(data, &folder, now)?;
        }
        let key = |name: &str| {
            let purpose = name.trim_end_matches(".key");
            Ok::<_, PkiError>(SigningKey::from_bytes(&*files::read_secret(&folder.join(name), purpose)?))
        };
        let (root, command, credential, gateway) =
            (key(name::ROOT)?, key(name::COMMAND)?, key(name::CREDENTIAL)?, key(name::GATEWAY)?);
        let run_master = files::read_secret(&folder.join(name::RUN_MASTER), "run-master")?;
        let ca = read_ca(&folder, &root)?;
        let (trust, trust_signed) = read_trust(&folder, &root, &command, &credential, &ca)?;
        let pki = Self {
            resolver: Arc::new(Resolver::default()),
            names: names.to_vec(),
            folder,
            root,
            command,
            credential,
            gateway,
            run_master,
            ca,
            trust,
            trust_signed,
        };
        let path = pki.folder.join(name::GATEWAY_CERTIFICATE);
        match CertificateDer::from_pem_file(&path) {
            Ok(certificate) if pki.gateway_certificate_is_good(&certificate, now) => pki.show(certificate)?,
            _ => pki.issue_gateway_certificate(now)?,
        }
        Ok(pki)
    }

    /// The CA certificate (DER).
    pub fn ca_certificate(&self) -> &[u8] {
        &self.ca
    }

    /// SHA-256 of the CA certificate: what agents pin and `fleet.founded` records.
    pub fn ca_fingerprint(&self) -> [u8; 32] {
        Sha256::digest(&self.ca).into()
    }

    /// The fingerprint as bootstrap files carry it, `AB:CD:…`.
    pub fn ca_fingerprint_text(&self) -> String {
        fingerprint_text(&self.ca_fingerprint())
    }

    /// The fleet's root public key.
    pub fn root_key(&self) -> [u8; 32] {
        self.root.verifying_key().to_bytes()
    }

    /// The key that commands are signed with.
    pub fn command_key(&self) -> &SigningKey {
        &self.command
    }

    /// The secret of a run, to be sealed into its commands.
    pub fn run_secret(&self, run: RunId) -> RunSecret {
        RunSecret::derive(&self.run_master, run)
    }

    /// What the keys of private texts are wrapped with: every replica has it, and nobody else.
    pub fn subject_keys(&self) -> Wrapper {
        Wrapper::new(&subject_secret(&self.run_master))
    }

    /// The trust bundle, signed by the root key.
    pub fn trust(&self) -> &Signed {
        &self.trust_signed
    }

    /// Version of the trust bundle.
    pub fn trust_version(&self) -> u64 {
        self.trust.version
    }

    /// Certificate, credential and trust bundle for an agent of the fleet.
    ///
    /// # Errors
    /// If its key is no usable Ed25519 key.
    pub fn issue(&self, public_key: &[u8; 32], name: &str, now: Timestamp) -> Result<Enrolled, PkiError> {
        let usable = ed25519_dalek::VerifyingKey::from_bytes(public_key).is_ok_and(|key| !key.is_weak());
        if !usable {
            return Err(PkiError::AgentKey);
        }
        let certificate = certificates::agent(&self.root, *public_key, now)?;
        // The same time as the certificate's, so that both are renewed together.
        let facts = Facts::of(&certificate).ok_or(PkiError::AgentKey)?;
        let credential = Credential {
            version: 1,
            fleet: self.root_key(),
            public_key: *public_key,
            name: name.to_owned(),
            not_before: facts.not_before,
            not_after: facts.not_after,
        };
        Ok(Enrolled {
            certificate: certificate.to_vec(),
            credential: credential.sign(&self.credential),
            trust: self.trust_signed.clone(),
        })
    }

    /// TLS as the gateway speaks it: 1.3 only, a client certificate of this fleet or none.
    ///
    /// # Errors
    /// If the TLS library refuses the CA certificate.
    pub fn gateway_tls(&self) -> Result<rustls::ServerConfig, PkiError> {
        let tls = |e: &dyn fmt::Display| PkiError::Tls(e.to_string());
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.ca.clone()).map_err(|e| tls(&e))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .allow_unauthenticated()
            .build()
            .map_err(|e| tls(&e))?;
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| tls(&e))?
            .with_client_cert_verifier(clients)
            .with_cert_resolver(self.resolver.clone());
        // Older agents name nothing, and get the link's version 1 (`edge-agent/PROTOCOL.md` §2.1).
        config.alpn_protocols = vec![agent_proto::link::WITNESS_ALPN.to_vec()];
        // A link lives for days: resuming one is worth neither memory nor a second way in.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(config)
    }

    /// Issues the gateway's certificate anew if its last third has begun; connections that stand are
    /// not touched. To be called now and then. Returns whether it did.
    ///
    /// # Errors
    /// If the new one cannot be stored.
    pub fn renew_gateway_certificate(&self, now: Timestamp) -> Result<bool, PkiError> {
        let due = match self.resolver.certificate() {
            Some(key) => Facts::of(&key.cert[0]).is_none_or(|facts| facts.due(now)),
            None => true,
        };
        if due {
            self.issue_gateway_certificate(now)?;
        }
        Ok(due)
    }

    fn issue_gateway_certificate(&self, now: Timestamp) -> Result<(), PkiError> {
        let certificate = certificates::gateway(&self.root, &self.gateway, &self.names, now)?;
        files::write(&self.folder.join(name::GATEWAY_CERTIFICATE), pem(&certificate).as_bytes())?;
        tracing::info!(names = ?self.names, "issued the gateway's certificate");
        self.show(certificate)
    }

    fn gateway_certificate_is_good(&self, certificate: &CertificateDer<'_>, now: Timestamp) -> bool {
        let key = self.gateway.verifying_key().to_bytes();
        Facts::of(certificate).is_some_and(|facts| facts.public_key == key && !facts.due(now))
            && certificates::signed_by(certificate, &self.root.verifying_key())
            && certificates::names_are(certificate, &self.names)
    }

    fn show(&self, certificate: CertificateDer<'static>) -> Result<(), PkiError> {
        let key = rustls::crypto::ring::sign::any_eddsa_type(match &certificates::pkcs8(&self.gateway) {
            rustls::pki_types::PrivateKeyDer::Pkcs8(der) => der,
            _ => unreachable!("pkcs8 makes PKCS #8"),
        })
        .map_err(|e| PkiError::Tls(e.to_string()))?;
        // The CA goes with it, so that an agent that knows only its fingerprint can check the chain.
        self.resolver.set(CertifiedKey::new(vec![certificate, self.ca.clone()], key));
        Ok(())
    }
}

/// The same out of a data folder, for those who are not its service.
///
/// # Errors
/// If the keys are not there or cannot be read.
pub fn subject_keys(data: &Path) -> Result<Wrapper, PkiError> {
    let run_master = files::read_secret(&data.join("keys").join(name::RUN_MASTER), "run-master")?;
    Ok(Wrapper::new(&subject_secret(&run_master)))
}

/// The same of a folder that may be another, such as one with nothing but a log; none if it has no keys.
pub fn subject_keys_if_there(data: &Path) -> Option<Result<Wrapper, PkiError>> {
    let is_there = data.join("keys").join(name::RUN_MASTER).exists();
    is_there.then(|| subject_keys(data))
}

fn subject_secret(run_master: &Secret) -> Secret {
    let mut secret = Secret::new([0; 32]);
    Hkdf::<Sha256>::new(None, run_master.as_slice())
        .expand(b"flotilla subjects v1", secret.as_mut_slice())
        .expect("32 bytes are a valid length for HKDF-SHA256");
    secret
}

/// Hands out the gateway's certificate of the moment.
#[derive(Default)]
struct Resolver(RwLock<Option<Arc<CertifiedKey>>>);

impl Resolver {
    fn set(&self, key: CertifiedKey) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(key));
    }

    fn certificate(&self) -> Option<Arc<CertifiedKey>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Resolver")
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.certificate()
    }
}

fn check_names(names: &[String]) -> Result<(), PkiError> {
    if names.is_empty() {
        return Err(PkiError::Name(String::new()));
    }
    names.iter().try_for_each(|name| {
        ServerName::try_from(name.as_str()).map(drop).map_err(|_| PkiError::Name(name.clone()))
    })
}

/// Makes all first keys in a folder beside, then renames it.
fn found(data: &Path, folder: &Path, now: Timestamp) -> Result<(), PkiError> {
    let beside = data.join("keys.new");
    match fs::remove_dir_all(&beside) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            return Err(PkiError::Io { path: beside, source });
        }
        _ => files::make_folder(&beside)?,
    }
    let make = |name: &str| {
        let secret = files::random();
        files::write_secret(&beside.join(name), name.trim_end_matches(".key"), &secret)?;
        Ok::<_, PkiError>(SigningKey::from_bytes(&secret))
    };
    let (root, command, credential) = (make(name::ROOT)?, make(name::COMMAND)?, make(name::CREDENTIAL)?);
    make(name::GATEWAY)?;
    make(name::RUN_MASTER)?;
    let ca = certificates::ca(&root, now)?;
    files::write(&beside.join(name::CA), pem(&ca).as_bytes())?;
    let trust = TrustBundle {
        version: 1,
        root_key: root.verifying_key().to_bytes(),
        command_keys: vec![command.verifying_key().to_bytes()],
        credential_keys: vec![credential.verifying_key().to_bytes()],
        ca_certificate: ca.to_vec(),
    };
    files::write(&beside.join(name::TRUST), &encode(&trust.sign(&root)))?;
    files::sync_folder(&beside)?;
    fs::rename(&beside, folder).map_err(|source| PkiError::Io { path: folder.to_owned(), source })?;
    files::sync_folder(data)
}

fn read_ca(folder: &Path, root: &SigningKey) -> Result<CertificateDer<'static>, PkiError> {
    let path = folder.join(name::CA);
    let damaged = |what| PkiError::Damaged { path: path.clone(), what };
    let ca = CertificateDer::from_pem_slice(&files::read(&path)?).map_err(|_| damaged("it is no PEM"))?;
    let root = root.verifying_key();
    match Facts::of(&ca) {
        Some(facts) if facts.public_key == root.to_bytes() && certificates::signed_by(&ca, &root) => Ok(ca),
        Some(_) => Err(damaged("it is not the certificate of the root key")),
        None => Err(damaged("it is no certificate")),
    }
}

fn read_trust(
    folder: &Path,
    root: &SigningKey,
    command: &SigningKey,
    credential: &SigningKey,
    ca: &[u8],
) -> Result<(TrustBundle, Signed), PkiError> {
    let path = folder.join(name::TRUST);
    let damaged = |what| PkiError::Damaged { path: path.clone(), what };
    let signed: Signed =
        decode_exact("Signed", &files::read(&path)?).map_err(|_| damaged("it cannot be read"))?;
    let trust = TrustBundle::open(&signed, &root.verifying_key().to_bytes())
        .map_err(|_| damaged("it is not signed by the root key"))?;
    let has = |keys: &[[u8; 32]], key: &SigningKey| keys.contains(&key.verifying_key().to_bytes());
    if has(&trust.command_keys, command)
        && has(&trust.credential_keys, credential)
        && trust.ca_certificate == ca
    {
        Ok((trust, signed))
    } else {
        Err(damaged("it does not name the keys beside it"))
    }
}

fn pem(der: &[u8]) -> String {
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in data_encoding::BASE64.encode(der).as_bytes().chunks(64) {
        text.push_str(std::str::from_utf8(line).expect("base64 is ASCII"));
        text.push('\n');
    }
    text + "-----END CERTIFICATE-----\n"
}
