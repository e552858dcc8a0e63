//! X.509: the CA, the gateway's certificate, the agents' certificates. All keys are Ed25519.

use std::time::Duration;

use ed25519_dalek::{Signer, SigningKey, VerifyingKey};
use event_schema::{AgentId, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyUsagePurpose, PublicKeyData, SerialNumber, SignatureAlgorithm,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use x509_parser::prelude::{FromDer, X509Certificate};

/// What certificates and credentials of agents and gateway live for.
pub(super) const LIFETIME: Duration = Duration::from_secs(365 * 86_400);
/// What the CA lives for: agents pin it, so it outlives the hardware.
const CA_LIFETIME: Duration = Duration::from_secs(40 * 365 * 86_400);
/// Certificates begin this much earlier than they are made: clocks at the edge are off.
const BACKDATED: Duration = Duration::from_secs(86_400);

/// A key that signs certificates, as rcgen wants it.
struct Signing<'a> {
    key: &'a SigningKey,
    public: [u8; 32],
}

impl<'a> Signing<'a> {
    fn new(key: &'a SigningKey) -> Self {
        Self { key, public: key.verifying_key().to_bytes() }
    }
}

impl PublicKeyData for Signing<'_> {
    fn der_bytes(&self) -> &[u8] {
        &self.public
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &rcgen::PKCS_ED25519
    }
}

impl rcgen::SigningKey for Signing<'_> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        Ok(self.key.sign(message).to_bytes().to_vec())
    }
}

/// A bare public key that a certificate is made for.
struct Bare([u8; 32]);

impl PublicKeyData for Bare {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &rcgen::PKCS_ED25519
    }
}

fn ca_params(root: &SigningKey) -> CertificateParams {
    let public = root.verifying_key().to_bytes();
    let mut params = CertificateParams::default();
    params.distinguished_name = named(&format!("Flotilla fleet {}", AgentId::of_key(&public)));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn named(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

fn valid(params: &mut CertificateParams, now: Timestamp, lifetime: Duration) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let begin = Duration::from_millis(now.0).saturating_sub(BACKDATED);
    params.not_before = epoch + begin;
    params.not_after = epoch + Duration::from_millis(now.0) + lifetime;
    let mut serial = [0; 16];
    getrandom::fill(&mut serial).expect("the system has randomness");
    // Positive, and never shorter than it looks.
    serial[0] = serial[0] & 0x7f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
}

/// The CA's certificate, self-signed.
pub(super) fn ca(root: &SigningKey, now: Timestamp) -> Result<CertificateDer<'static>, rcgen::Error> {
    let mut params = ca_params(root);
    valid(&mut params, now, CA_LIFETIME);
    Ok(params.self_signed(&Signing::new(root))?.der().clone())
}

/// A certificate for the gateway under host names and IPs.
pub(super) fn gateway(
    root: &SigningKey,
    key: &SigningKey,
    names: &[String],
    now: Timestamp,
) -> Result<CertificateDer<'static>, rcgen::Error> {
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name = named("Flotilla gateway");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    leaf(params, root, &Bare(key.verifying_key().to_bytes()), now)
}

/// A certificate for an agent's bare key.
pub(super) fn agent(
    root: &SigningKey,
    public_key: [u8; 32],
    now: Timestamp,
) -> Result<CertificateDer<'static>, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = named(&AgentId::of_key(&public_key).to_string());
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    leaf(params, root, &Bare(public_key), now)
}

fn leaf(
    mut params: CertificateParams,
    root: &SigningKey,
    key: &Bare,
    now: Timestamp,
) -> Result<CertificateDer<'static>, rcgen::Error> {
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    valid(&mut params, now, LIFETIME);
    let ca = ca_params(root);
    Ok(params.signed_by(key, &Issuer::from_params(&ca, Signing::new(root)))?.der().clone())
}

/// What we need to know of a certificate.
pub(crate) struct Facts {
    /// The Ed25519 key it is for.
    pub(crate) public_key: [u8; 32],
    /// Until when it is valid.
    pub(crate) not_after: Timestamp,
    /// From when.
    pub(crate) not_before: Timestamp,
}

impl Facts {
    /// Reads a certificate for an Ed25519 key; says nothing about who signed it.
    pub(crate) fn of(der: &[u8]) -> Option<Self> {
        let (rest, certificate) = X509Certificate::from_der(der).ok()?;
        let spki = certificate.public_key();
        let ed25519 = spki.algorithm.algorithm == x509_parser::oid_registry::OID_SIG_ED25519;
        let time = |t: i64| Timestamp(u64::try_from(t).unwrap_or(0).saturating_mul(1000));
        Some(Self {
            public_key: spki.subject_public_key.data.as_ref().try_into().ok()?,
            not_before: time(certificate.validity().not_before.timestamp()),
            not_after: time(certificate.validity().not_after.timestamp()),
        })
        .filter(|_| ed25519 && rest.is_empty())
    }

    /// Whether the last third of its time has begun, or it is not valid yet.
    pub(crate) fn due(&self, now: Timestamp) -> bool {
        let whole = self.not_after.since(self.not_before);
        now < self.not_before || self.not_after.since(now) < whole / 3
    }
}

/// Whether the certificate's signature holds under `key`.
pub(super) fn signed_by(der: &[u8], key: &VerifyingKey) -> bool {
    X509Certificate::from_der(der).is_ok_and(|(_, certificate)| {
        ed25519_dalek::Signature::from_slice(&certificate.signature_value.data).is_ok_and(|signature| {
            key.verify_strict(certificate.tbs_certificate.as_ref(), &signature).is_ok()
        })
    })
}

/// Whether the certificate names exactly these hosts and addresses.
pub(super) fn names_are(der: &[u8], names: &[String]) -> bool {
    use x509_parser::extensions::GeneralName;
    let Ok((_, certificate)) = X509Certificate::from_der(der) else { return false };
    let Ok(Some(alternatives)) = certificate.subject_alternative_name() else { return false };
    let found = alternatives.value.general_names.iter().map(|name| match name {
        GeneralName::DNSName(name) => (*name).to_owned(),
        GeneralName::IPAddress(ip) => match ip.len() {
            4 => <[u8; 4]>::try_from(*ip).map(|ip| std::net::IpAddr::from(ip).to_string()),
            _ => <[u8; 16]>::try_from(*ip).map(|ip| std::net::IpAddr::from(ip).to_string()),
        }
        .unwrap_or_default(),
        _ => String::new(),
    });
    found.eq(names.iter().cloned())
}

/// PKCS #8 (RFC 8410) of an Ed25519 key: what rustls signs with.
pub(super) fn pkcs8(key: &SigningKey) -> PrivateKeyDer<'static> {
    let mut der =
        vec![0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
    der.extend_from_slice(key.as_bytes());
    PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(der))
}
