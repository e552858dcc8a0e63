//! Being let in (`edge-agent/PROTOCOL.md` §1.3).

use std::time::Duration;

use agent_proto::link::{Enrol, Enrolled, Refused, ToAgent};
use agent_proto::{Credential, TrustBundle, fingerprint_text};
use ed25519_dalek::SigningKey;
use event_schema::Signed;

use super::backoff::{Backoff, random};
use super::places::{Place, Places};
use super::stream::{LinkError, Stream};
use crate::config::Settings;
use crate::config::{Gateway, Invitation};
use crate::limits::{CONNECT_TIMEOUT, PENDING_MAX, PENDING_MIN};
use crate::status::Status;
use crate::{VERSION, tls};

/// Why the agent cannot be enrolled; trying again would not help.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EnrolError {
    #[error(
        "the gateway at {address} does not belong to the expected fleet: no certificate of its chain has the fingerprint\n  {expected}\nNothing was sent to it. Check `cert_authority_fingerprint` and `host` in the bootstrap file."
    )]
    Untrusted { address: String, expected: String },
    #[error("cannot enrol with {address}: {source}")]
    Certificate { address: String, source: LinkError },
    #[error("enrolment refused: {} ({:?})", .0.detail, .0.reason)]
    Refused(Refused),
    #[error("{0}")]
    Bad(LinkError),
}

/// What an agent gets, checked.
pub(crate) struct Admission {
    pub(crate) certificate: Vec<u8>,
    pub(crate) credential: Vec<u8>,
    /// Name in the fleet.
    pub(crate) name: String,
    pub(crate) trust: Signed,
    pub(crate) bundle: TrustBundle,
}

/// Checks that everything given is for `key` and comes from the fleet with `root_key`.
pub(crate) fn check(
    enrolled: Enrolled,
    key: &SigningKey,
    root_key: &[u8; 32],
) -> Result<Admission, LinkError> {
    let bad = LinkError::BadEnrolment;
    let bundle = TrustBundle::open(&enrolled.trust, root_key)
        .map_err(|_| bad("the trust bundle is not signed by the pinned root key"))?;
    let public = key.verifying_key().to_bytes();
    // Its own begin, as this machine's clock may be far off: validity is for others to ask.
    let credential = open_credential(&enrolled.credential, &bundle, &public)
        .ok_or(bad("the credential is not for this agent and fleet"))?;
    tls::member(&bundle, Some(&enrolled.certificate), key)
        .map_err(|_| bad("the certificate is not for this agent's key"))?;
    Ok(Admission {
        certificate: enrolled.certificate,
        credential: enrolled.credential,
        name: credential.name,
        trust: enrolled.trust,
        bundle,
    })
}

fn open_credential(bytes: &[u8], bundle: &TrustBundle, public: &[u8; 32]) -> Option<Credential> {
    let signed: Signed = event_schema::decode_exact("Credential", bytes).ok()?;
    let inner: Credential = event_schema::decode_exact("Credential", &signed.bytes).ok()?;
    Credential::open(bytes, &bundle.credential_keys, &bundle.root_key, public, inner.not_before).ok()
}

/// Asks to be let in until there is an answer, which comes with the gateway that gave it. Network trouble and waiting for approval are no errors.
pub(crate) async fn enrol(
    invitation: &Invitation,
    settings: &Settings,
    key: &SigningKey,
    status: &Status,
) -> Result<(String, Admission), EnrolError> {
    let first = Place { text: invitation.address.clone(), gateway: invitation.gateway.clone() };
    let mut places = Places::new(first, &invitation.others);
    let mut backoff = Backoff::default();
    loop {
        let Place { text: address, gateway } = places.current().clone();
        let pause = match attempt(invitation, &gateway, settings, key).await {
            Ok(Answer::Admitted(admission)) => return Ok((address, *admission)),
            Ok(Answer::Pending(pause)) => {
                status.link_failed("waiting for approval");
                tracing::info!(
                    agent = %event_schema::AgentId::of_key(&key.verifying_key().to_bytes()),
                    "known to the fleet, waiting for approval (flotilla agents approve)"
                );
                backoff.reset();
                pause
            }
            Err(LinkError::Untrusted) => {
                let expected = fingerprint_text(&invitation.fingerprint);
                return Err(EnrolError::Untrusted { address: address.clone(), expected });
            }
            Err(source @ (LinkError::Name(_) | LinkError::Time)) => {
                return Err(EnrolError::Certificate { address: address.clone(), source });
            }
            Err(LinkError::Refused(refused)) => return Err(EnrolError::Refused(refused)),
            Err(error @ LinkError::BadEnrolment(_)) => return Err(EnrolError::Bad(error)),
            Err(error) => {
                if places.fails() {
                    backoff.grow();
                }
                let pause = backoff.pause();
                status.link_failed(&error.to_string());
                tracing::warn!(%error, gateway = address, again_in = ?pause, "cannot enrol yet");
                pause
            }
        };
        tokio::time::sleep(pause).await;
    }
}

enum Answer {
    Admitted(Box<Admission>),
    Pending(Duration),
}

async fn attempt(
    invitation: &Invitation,
    gateway: &Gateway,
    settings: &Settings,
    key: &SigningKey,
) -> Result<Answer, LinkError> {
    let (config, pin) = tls::pinned(invitation.fingerprint);
    // An error here means that the chain did not lead to the fingerprint: nothing was sent.
    let stream = Stream::connect(gateway, config, CONNECT_TIMEOUT).await?;
    let root_key = pin
        .ca()
        .and_then(|ca| tls::key_of_ca(&ca))
        .ok_or(LinkError::BadEnrolment("the certificate authority's key is not Ed25519"))?;
    ask(stream, key, settings.name.clone(), settings.tags.clone(), invitation.token.clone(), &root_key).await
}

async fn ask(
    mut stream: Stream,
    key: &SigningKey,
    name: String,
    tags: Vec<(String, String)>,
    token: Option<String>,
    root_key: &[u8; 32],
) -> Result<Answer, LinkError> {
    let enrol = Enrol {
        public_key: key.verifying_key().to_bytes(),
        proof: Enrol::proof(&stream.challenge.nonce, key),
        name,
        tags,
        token,
        version: VERSION.into(),
    };
    stream.writer.send(enrol).await?;
    match stream.reader.next().await? {
        ToAgent::Enrolled(enrolled) => Ok(Answer::Admitted(Box::new(check(enrolled, key, root_key)?))),
        ToAgent::Pending(pending) => {
            let pause = Duration::from_secs(pending.retry_after_s.into()).clamp(PENDING_MIN, PENDING_MAX);
            Ok(Answer::Pending(pause.mul_f64(0.8 + 0.4 * random())))
        }
        ToAgent::Refused(refused) => Err(LinkError::Refused(refused)),
        _ => Err(LinkError::OutOfPlace("no answer to the enrolment")),
    }
}

/// A member whose certificate's time is over asks for a new one with its key.
pub(crate) async fn renew(
    gateway: &Gateway,
    name: &str,
    key: &SigningKey,
    trust: &TrustBundle,
) -> Result<Admission, LinkError> {
    let stream = Stream::connect(gateway, tls::member(trust, None, key)?, CONNECT_TIMEOUT).await?;
    match ask(stream, key, name.to_owned(), Vec::new(), None, &trust.root_key).await? {
        Answer::Admitted(admission) => Ok(*admission),
        Answer::Pending(_) => Err(LinkError::OutOfPlace("a member has to wait for approval")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    #[test]
    fn what_does_not_belong_together_is_refused() {
        let (root, key) = (SigningKey::from_bytes(&[1; 32]), SigningKey::from_bytes(&[2; 32]));
        let root_key = root.verifying_key().to_bytes();
        let bundle = TrustBundle {
            version: 1,
            root_key,
            command_keys: Vec::new(),
            credential_keys: vec![root_key],
            ca_certificate: vec![1, 2, 3],
        };
        let credential = Credential {
            version: 1,
            fleet: root_key,
            public_key: key.verifying_key().to_bytes(),
            name: "nas".into(),
            not_before: clock::now(),
            not_after: event_schema::Timestamp::NEVER,
        };
        let enrolled =
            Enrolled { certificate: vec![1], credential: credential.sign(&root), trust: bundle.sign(&root) };
        let error = |enrolled: Enrolled, root_key: &[u8; 32]| match check(enrolled, &key, root_key) {
            Ok(_) => panic!("taken"),
            Err(error) => error.to_string(),
        };
        assert!(error(enrolled.clone(), &[7; 32]).contains("root key"));
        let foreign = Credential { public_key: [9; 32], ..credential }.sign(&root);
        assert!(
            error(Enrolled { credential: foreign, ..enrolled.clone() }, &root_key).contains("credential")
        );
        assert!(error(enrolled, &root_key).contains("certificate"));
    }
}
