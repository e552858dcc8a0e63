//! The agent's side of the link, as small as it can be, able to misbehave.

use agent_proto::link::{Challenge, Enrol, Enrolled, Hello, ToAgent, ToGateway, frame, frame_len};
use ed25519_dalek::SigningKey;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::super::*;

/// No test waits longer for anything.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// Waits for `future`, not for ever.
pub(super) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what} did not happen in time"))
}

pub(super) struct Client {
    pub(super) tls: TlsStream<TcpStream>,
    pub(super) challenge: Challenge,
}

impl Client {
    /// TLS up to the gateway's challenge.
    pub(super) async fn connect(
        gateway: SocketAddr,
        ca: &[u8],
        identity: Option<(&SigningKey, &[u8])>,
    ) -> io::Result<Self> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from(ca.to_vec())).expect("a CA");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_root_certificates(roots);
        let config = match identity {
            Some((key, certificate)) => {
                let mut der = vec![
                    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04,
                    0x20,
                ];
                der.extend_from_slice(key.as_bytes());
                let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(der));
                let chain = vec![CertificateDer::from(certificate.to_vec())];
                config.with_client_auth_cert(chain, key).expect("they belong together")
            }
            None => config.with_no_client_auth(),
        };
        let tcp = TcpStream::connect(gateway).await?;
        let name = ServerName::try_from("localhost").expect("a name");
        let tls = TlsConnector::from(Arc::new(config)).connect(name, tcp).await?;
        let mut client = Self { tls, challenge: Challenge { nonce: [0; 32], time: Timestamp(0) } };
        match client.receive().await? {
            ToAgent::Challenge(challenge) => client.challenge = challenge,
            other => panic!("{other:?} instead of a challenge"),
        }
        Ok(client)
    }

    pub(super) async fn send(&mut self, message: impl Into<ToGateway>) {
        // A gateway that closed is seen at the next `receive`.
        let _ = self.tls.write_all(&frame(&message.into().encode())).await;
        let _ = self.tls.flush().await;
    }

    pub(super) async fn receive(&mut self) -> io::Result<ToAgent> {
        let reading = async {
            let mut header = [0; 4];
            self.tls.read_exact(&mut header).await?;
            let mut body = vec![0; frame_len(header).expect("below the limit")];
            self.tls.read_exact(&mut body).await?;
            Ok(ToAgent::decode(&body).expect("a message"))
        };
        soon("a message of the gateway", reading).await
    }

    pub(super) fn enrol(&self, key: &SigningKey, token: Option<String>) -> Enrol {
        Enrol {
            public_key: key.verifying_key().to_bytes(),
            proof: Enrol::proof(&self.challenge.nonce, key),
            name: "nas".into(),
            tags: vec![("SITE".into(), "north".into())],
            token,
            version: "0.1.0".into(),
        }
    }
}

/// An agent that enrolled.
pub(super) struct Agent {
    pub(super) key: SigningKey,
    pub(super) enrolled: Enrolled,
}

impl Agent {
    pub(super) fn id(&self) -> AgentId {
        AgentId::of_key(&self.key.verifying_key().to_bytes())
    }

    pub(super) async fn connect(&self, gateway: SocketAddr, ca: &[u8]) -> io::Result<Client> {
        Client::connect(gateway, ca, Some((&self.key, &self.enrolled.certificate))).await
    }

    pub(super) fn hello(cursor: u64) -> Hello {
        Hello {
            version: "0.1.0".into(),
            command_cursor: cursor,
            addresses: vec!["0.0.0.0:4000".into()],
            trust_version: 1,
            features: 0,
        }
    }
}
