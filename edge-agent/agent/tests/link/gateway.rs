//! A gateway under the test's control: it does what it is told, right or wrong.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use agent_proto::limits::FRAME_LEN_MAX;
use agent_proto::link::{
    Challenge, CommandSent, Enrol, Enrolled, FrameBuffer, Hello, Ping, Pong, ReportsStored, ToAgent,
    ToGateway, Welcome, frame,
};
use agent_proto::{Credential, TrustBundle, fingerprint_text};
use ed25519_dalek::SigningKey;
use event_schema::{AgentId, Report, ReportBody, Signed, Timestamp};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SubjectPublicKeyInfo};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// No test waits longer for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) const NONCE: [u8; 32] = [42; 32];

pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what} did not happen in time"))
}

pub(crate) fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    Timestamp(since.as_millis() as u64)
}

/// The keys of a fleet.
pub(crate) struct Fleet {
    root: KeyPair,
    params: CertificateParams,
    ca: CertificateDer<'static>,
    pub(crate) command: SigningKey,
    credential: SigningKey,
    pub(crate) trust: TrustBundle,
}

impl Fleet {
    pub(crate) fn new(n: u8) -> Self {
        let root = KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
        let ca = params.self_signed(&root).expect("a CA").der().clone();
        let command = SigningKey::from_bytes(&[n; 32]);
        let credential = SigningKey::from_bytes(&[n + 100; 32]);
        let trust = TrustBundle {
            version: 1,
            root_key: root_key(&root).verifying_key().to_bytes(),
            command_keys: vec![command.verifying_key().to_bytes()],
            credential_keys: vec![credential.verifying_key().to_bytes()],
            ca_certificate: ca.to_vec(),
        };
        Self { root, params, ca, command, credential, trust }
    }

    pub(crate) fn fingerprint(&self) -> String {
        fingerprint_text(&Sha256::digest(&self.ca).into())
    }

    pub(crate) fn signed_trust(&self, bundle: &TrustBundle) -> Signed {
        bundle.sign(&root_key(&self.root))
    }

    /// What an agent gets; valid for `days` from a year ago on.
    pub(crate) fn admit(&self, public_key: &[u8; 32], days: u64) -> Enrolled {
        let mut spki = vec![0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
        spki.extend_from_slice(public_key);
        let mut params = CertificateParams::default();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let year_ago = now().0 / 1000 - 365 * 86_400;
        let epoch = rcgen::date_time_ymd(1970, 1, 1);
        params.not_before = epoch + Duration::from_secs(year_ago);
        params.not_after = epoch + Duration::from_secs(year_ago + days * 86_400);
        let spki = SubjectPublicKeyInfo::from_der(&spki).expect("a key");
        let certificate =
            params.signed_by(&spki, &Issuer::from_params(&self.params, &self.root)).expect("a certificate");
        let credential = Credential {
            version: 1,
            fleet: self.trust.root_key,
            public_key: *public_key,
            name: "camera 7".into(),
            not_before: Timestamp(0),
            not_after: Timestamp::NEVER,
        };
        Enrolled {
            certificate: certificate.der().to_vec(),
            credential: credential.sign(&self.credential),
            trust: self.signed_trust(&self.trust),
        }
    }

    fn acceptor(&self) -> TlsAcceptor {
        let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key");
        let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).expect("a name");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate =
            params.signed_by(&key, &Issuer::from_params(&self.params, &self.root)).expect("a certificate");
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.ca.clone()).expect("a CA");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let clients =
            rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
                .allow_unauthenticated()
                .build()
                .expect("a verifier");
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_client_cert_verifier(clients)
            .with_single_cert(
                vec![certificate.der().clone(), self.ca.clone()],
                PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
            )
            .expect("they belong together");
        TlsAcceptor::from(Arc::new(config))
    }
}

/// The seed stands at a fixed place in ring's PKCS #8 form.
fn root_key(root: &KeyPair) -> SigningKey {
    SigningKey::from_bytes(root.serialized_der()[16..48].try_into().expect("32 bytes"))
}

pub(crate) struct Gateway {
    listener: TcpListener,
    tls: TlsAcceptor,
    pub(crate) address: SocketAddr,
}

impl Gateway {
    pub(crate) async fn start(fleet: &Fleet) -> Self {
        Self::start_at(fleet, "127.0.0.1:0".parse().expect("an address")).await
    }

    pub(crate) async fn start_at(fleet: &Fleet, address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await.expect("free");
        let address = listener.local_addr().expect("bound");
        Self { listener, tls: fleet.acceptor(), address }
    }

    /// The next connection, up to TLS.
    pub(crate) async fn try_accept(&self) -> io::Result<Link> {
        let (tcp, _) = soon("a connection", self.listener.accept()).await?;
        let tls = soon("TLS", self.tls.accept(tcp)).await?;
        Ok(Link { tls, buffer: FrameBuffer::default() })
    }

    /// The next connection, challenged.
    pub(crate) async fn accept(&self) -> Link {
        let mut link = self.try_accept().await.expect("TLS");
        link.send(Challenge { nonce: NONCE, time: now() }).await;
        link
    }

    /// The next connection of a member, welcomed.
    pub(crate) async fn session(&self, reports_stored: u64) -> (Link, Hello) {
        let mut link = self.accept().await;
        let hello = link.hello().await;
        link.send(Welcome { time: now(), reports_stored, trust: None }).await;
        (link, hello)
    }

    /// Whether somebody comes within a moment.
    pub(crate) async fn somebody_comes(&self, within: Duration) -> bool {
        tokio::time::timeout(within, self.listener.accept()).await.is_ok()
    }
}

pub(crate) struct Link {
    tls: TlsStream<TcpStream>,
    buffer: FrameBuffer,
}

impl Link {
    pub(crate) async fn send(&mut self, message: impl Into<ToAgent>) {
        self.send_bytes(&frame(&message.into().encode())).await;
    }

    pub(crate) async fn send_bytes(&mut self, bytes: &[u8]) {
        self.tls.write_all(bytes).await.expect("sent");
        self.tls.flush().await.expect("sent");
    }

    pub(crate) async fn command(&mut self, signed: Signed) {
        self.send(CommandSent { signed }).await;
    }

    pub(crate) async fn stored(&mut self, up_to: u64) {
        self.send(ReportsStored { up_to }).await;
    }

    /// The next message; `None` when the agent closed. Pings are answered.
    pub(crate) async fn receive(&mut self) -> Option<ToGateway> {
        loop {
            match soon("a message", self.next()).await? {
                ToGateway::Ping(Ping {}) => {
                    // An agent that is gone by now is seen at the next read.
                    let _ = self.tls.write_all(&frame(&ToAgent::from(Pong {}).encode())).await;
                    let _ = self.tls.flush().await;
                }
                message => return Some(message),
            }
        }
    }

    async fn next(&mut self) -> Option<ToGateway> {
        loop {
            if let Some(message) = self.buffer.next(FRAME_LEN_MAX).expect("a frame") {
                return Some(ToGateway::decode(message).expect("a message"));
            }
            match self.tls.read_buf(self.buffer.space()).await {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    pub(crate) async fn enrol(&mut self) -> Enrol {
        match self.receive().await {
            Some(ToGateway::Enrol(enrol)) => enrol,
            other => panic!("{other:?} instead of an enrolment"),
        }
    }

    pub(crate) async fn hello(&mut self) -> Hello {
        assert!(self.tls.get_ref().1.peer_certificates().is_some(), "a member shows its certificate");
        match self.receive().await {
            Some(ToGateway::Hello(hello)) => hello,
            other => panic!("{other:?} instead of a hello"),
        }
    }

    /// The next report, its signature checked.
    pub(crate) async fn report(&mut self, public_key: &[u8; 32]) -> Option<(u64, ReportBody)> {
        match self.receive().await? {
            ToGateway::ReportSent(report) => {
                let report = Report::open(&report.signed, public_key).expect("a good signature");
                assert_eq!(report.agent, AgentId::of_key(public_key));
                Some((report.sequence, report.body))
            }
            other => panic!("{other:?} instead of a report"),
        }
    }
}
