//! TLS towards the gateway: pinned by fingerprint for enrolment, by the pinned CA ever after.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use agent_proto::TrustBundle;
use ed25519_dalek::SigningKey;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore,
    SignatureScheme,
};
use sha2::{Digest, Sha256};

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// What went wrong in TLS, as far as there is something to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TlsFault {
    /// The gateway's certificate does not lead to the CA we pin.
    Untrusted,
    /// It does, but is not for this host.
    Name,
    /// It does, but is not valid at this time; or our clock is wrong.
    Time,
    /// The gateway says that our certificate's time is over.
    OurTime,
    /// Anything else.
    Other,
}

/// Finds the cause in what the TLS stream returned.
pub(crate) fn fault(error: &io::Error) -> TlsFault {
    let cause = error.get_ref().and_then(|e| e.downcast_ref::<Error>());
    match cause {
        Some(Error::InvalidCertificate(cause)) => match cause {
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                TlsFault::Name
            }
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. } => TlsFault::Time,
            _ => TlsFault::Untrusted,
        },
        Some(Error::AlertReceived(AlertDescription::CertificateExpired)) => TlsFault::OurTime,
        _ => TlsFault::Other,
    }
}

/// The Ed25519 key inside a CA certificate.
pub(crate) fn key_of_ca(certificate: &[u8]) -> Option<[u8; 32]> {
    // AlgorithmIdentifier of Ed25519 and the header of a bit string of 32 bytes (RFC 8410).
    const ED25519: [u8; 10] = [0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(certificate)).ok()?;
    roots.roots.first()?.subject_public_key_info.strip_prefix(&ED25519[..])?.try_into().ok()
}

/// Checks that the gateway's chain leads to the one CA with a fingerprint, and keeps that CA.
pub(crate) struct Pin {
    fingerprint: [u8; 32],
    provider: Arc<CryptoProvider>,
    ca: Mutex<Option<CertificateDer<'static>>>,
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pin")
    }
}

impl Pin {
    /// The CA, once a chain led to it.
    pub(crate) fn ca(&self) -> Option<Vec<u8>> {
        self.ca.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|ca| ca.to_vec())
    }
}

impl ServerCertVerifier for Pin {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let pinned = intermediates.iter().find(|c| Sha256::digest(c)[..] == self.fingerprint);
        let ca = pinned.ok_or(Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone()).map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .build()
            .map_err(|e| Error::General(e.to_string()))?
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)?;
        *self.ca.lock().unwrap_or_else(PoisonError::into_inner) = Some(ca.clone().into_owned());
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("only TLS 1.3 is spoken".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// For enrolment: no certificate of ours, theirs pinned.
pub(crate) fn pinned(fingerprint: [u8; 32]) -> (Arc<ClientConfig>, Arc<Pin>) {
    let pin = Arc::new(Pin { fingerprint, provider: provider(), ca: Mutex::default() });
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("ring has TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(pin.clone())
        .with_no_client_auth();
    (Arc::new(config), pin)
}

/// For a member: our certificate, the fleet's CA.
///
/// # Errors
/// If the CA cannot be read, or the certificate is not for our key.
pub(crate) fn member(
    trust: &TrustBundle,
    certificate: Option<&[u8]>,
    key: &SigningKey,
) -> Result<Arc<ClientConfig>, Error> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(trust.ca_certificate.as_slice()))?;
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots);
    let mut config = match certificate {
        Some(certificate) => {
            let chain = vec![CertificateDer::from(certificate.to_vec())];
            config.with_client_auth_cert(chain, pkcs8(key))?
        }
        None => config.with_no_client_auth(),
    };
    // An older gateway names nothing and passes over it (`edge-agent/PROTOCOL.md` §2.1).
    config.alpn_protocols = vec![agent_proto::link::WITNESS_ALPN.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

/// PKCS #8 (RFC 8410) of an Ed25519 key: what rustls signs with.
fn pkcs8(key: &SigningKey) -> PrivateKeyDer<'static> {
    let mut der =
        vec![0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
    der.extend_from_slice(key.as_bytes());
    PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(der))
}
