//! A TLS connection to the gateway that carries messages.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use agent_proto::limits::{DEAD_AFTER_S, FRAME_LEN_MAX, HANDSHAKE_TIMEOUT_S};
use agent_proto::link::{Challenge, FrameBuffer, Refused, ToAgent, ToGateway, WITNESS_ALPN, frame};
use event_schema::DecodeError;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::config::Gateway;
use crate::tls::{TlsFault, fault};

/// Silence after which the gateway is gone.
const DEAD_AFTER: Duration = Duration::from_secs(DEAD_AFTER_S);

/// Why there is no link (any more).
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    #[error("{0}")]
    Io(io::Error),
    #[error("the gateway's certificate does not lead to the pinned certificate authority")]
    Untrusted,
    #[error(
        "the gateway's certificate is not for the name {0:?}; name it with `flotilla serve --public-gateway {0}:PORT`"
    )]
    Name(String),
    #[error("the gateway's certificate is not valid now; is this machine's clock right?")]
    Time,
    #[error("this agent's certificate is not valid any more")]
    OurTime,
    #[error("nothing came from the gateway in time while {0}")]
    Timeout(&'static str),
    #[error("this machine is in another network")]
    Moved,
    #[error("the gateway closed the link")]
    Closed,
    #[error("the gateway broke the protocol: {0}")]
    Protocol(#[from] DecodeError),
    #[error("the gateway broke the protocol: {0}")]
    OutOfPlace(&'static str),
    #[error("{} ({:?})", .0.detail, .0.reason)]
    Refused(Refused),
    #[error("commands are missing before the one that came")]
    Gap,
    #[error("a command with a signature that does not hold")]
    Forged,
    #[error("{0} commands on one connection that could not be taken")]
    BadCommands(u32),
    #[error("{0} checkpoints on one connection that are not the log's")]
    BadCheckpoints(u32),
    #[error("what the gateway gave at enrolment does not belong together: {0}")]
    BadEnrolment(&'static str),
    #[error(transparent)]
    Store(#[from] crate::store::StoreError),
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
}

impl From<io::Error> for LinkError {
    fn from(error: io::Error) -> Self {
        match fault(&error) {
            TlsFault::Untrusted => Self::Untrusted,
            TlsFault::Name => Self::Name(String::new()),
            TlsFault::Time => Self::Time,
            TlsFault::OurTime => Self::OurTime,
            // A gateway that was killed says no farewell.
            TlsFault::Other if error.kind() == io::ErrorKind::UnexpectedEof => Self::Closed,
            TlsFault::Other => Self::Io(error),
        }
    }
}

pub(crate) struct Reader {
    stream: ReadHalf<TlsStream<TcpStream>>,
    buffer: FrameBuffer,
    /// Silence after which the gateway is gone.
    pub(crate) patience: Duration,
}

pub(crate) struct Writer {
    stream: WriteHalf<TlsStream<TcpStream>>,
}

/// A connection whose challenge has arrived.
pub(crate) struct Stream {
    pub(crate) reader: Reader,
    pub(crate) writer: Writer,
    pub(crate) challenge: Challenge,
    /// Version 2 was agreed on: the gateway is told what this agent holds as a witness.
    pub(crate) is_witness: bool,
    /// Our end of it: an address under which neighbours may find us.
    pub(crate) local: std::net::IpAddr,
    /// The other end.
    pub(crate) gateway: Option<std::net::SocketAddr>,
}

impl Stream {
    /// Connects; name lookup and TCP, and the TLS handshake, may take `limit` each.
    pub(crate) async fn connect(
        gateway: &Gateway,
        config: Arc<ClientConfig>,
        limit: Duration,
    ) -> Result<Self, LinkError> {
        let name = ServerName::try_from(gateway.host.clone())
            .map_err(|_| LinkError::OutOfPlace("its name is none"))?;
        let connecting = TcpStream::connect((gateway.host.as_str(), gateway.port));
        let tcp = timeout(limit, connecting)
            .await
            .map_err(|_| LinkError::Timeout("connecting"))?
            .map_err(LinkError::Io)?;
        tcp.set_nodelay(true)?;
        let (local, met) = (tcp.local_addr()?.ip().to_canonical(), tcp.peer_addr().ok());
        let tls = timeout(limit, TlsConnector::from(config).connect(name, tcp))
            .await
            .map_err(|_| LinkError::Timeout("shaking hands"))?
            .map_err(|error| match LinkError::from(error) {
                LinkError::Name(_) => LinkError::Name(gateway.host.clone()),
                other => other,
            })?;
        let is_witness = tls.get_ref().1.alpn_protocol() == Some(WITNESS_ALPN);
        let (read, write) = tokio::io::split(tls);
        let mut reader = Reader { stream: read, buffer: FrameBuffer::default(), patience: DEAD_AFTER };
        let first = timeout(limit.min(Duration::from_secs(HANDSHAKE_TIMEOUT_S)), reader.next());
        match first.await.map_err(|_| LinkError::Timeout("waiting for its challenge"))?? {
            ToAgent::Challenge(challenge) => Ok(Self {
                reader,
                writer: Writer { stream: write },
                challenge,
                is_witness,
                local,
                gateway: met,
            }),
            _ => Err(LinkError::OutOfPlace("its first message is no challenge")),
        }
    }
}

impl Reader {
    /// The next message. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Result<ToAgent, LinkError> {
        loop {
            if let Some(message) = self.buffer.next(FRAME_LEN_MAX)? {
                return Ok(ToAgent::decode(message)?);
            }
            let read = timeout(self.patience, self.stream.read_buf(self.buffer.space()));
            if read.await.map_err(|_| LinkError::Timeout("listening"))?? == 0 {
                return Err(LinkError::Closed);
            }
        }
    }
}

impl Writer {
    /// Sends one message. Not cancel-safe.
    pub(crate) async fn send(&mut self, message: impl Into<ToGateway>) -> Result<(), LinkError> {
        let bytes = frame(&message.into().encode());
        let write = async {
            self.stream.write_all(&bytes).await?;
            self.stream.flush().await
        };
        Ok(timeout(DEAD_AFTER, write).await.map_err(|_| LinkError::Timeout("sending"))??)
    }
}
