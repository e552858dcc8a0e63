//! An agent as far as the control link goes: identity, enrolment, one session after the other over mutual TLS, a cursor
//! and an outbox that survive every session. It does what a run asks of it by saying so.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use agent_proto::TrustBundle;
use agent_proto::limits::FRAME_LEN_MAX;
use agent_proto::link::{
    Enrol, Enrolled, FEATURE_GATEWAYS, FrameBuffer, Hello, Ping, ReportSent, ToAgent, ToGateway, frame,
};
use anyhow::{Context as _, Result, bail, ensure};
use ed25519_dalek::SigningKey;
use event_schema::{
    AgentId, Command, CommandAccepted, CommandBody, DisposalReported, Disposed, JoinKeeping, ManifestSigned,
    RefusalReason, Report, ReportBody, Role, RunAgentState, RunCompleted, RunId, RunServed, RunStateReported,
    Signed, TakePart, Timestamp, TransferStats,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, interval, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::world::SOURCES;

/// How long an agent that knows several gateways tries one of them.
const CONNECT: Duration = Duration::from_secs(2);

/// How long its welcome may take; longer once all have failed (`edge-agent/PROTOCOL.md` §2.5).
const WELCOME: Duration = Duration::from_secs(4);

/// Longest pause before the next gateway is tried.
const PAUSE_MS: u64 = 500;

/// What an agent keeps, and what the checker asks.
#[derive(Debug, Default)]
pub struct Kept {
    /// Gateways tried in vain since one welcomed it.
    pub failed: u32,
    /// Sequence of the last command taken.
    pub cursor: u64,
    /// Commands obeyed, by sequence, in the order they came.
    pub obeyed: Vec<(u64, RunId, &'static str)>,
    /// Commands that came although they had been taken, and were not obeyed.
    pub repeated: u64,
    /// What broke the rules of the link.
    pub wrong: Vec<String>,
    /// Reports made, in sequence from 1.
    pub reports: Vec<Signed>,
    /// Up to here the service said that they are on the log.
    pub acknowledged: u64,
    /// Gateways in the order they are tried.
    gateways: Vec<String>,
    keep_alive: Duration,
    /// The gateway it is connected to, and since when; or since when it is to none.
    pub link: Link,
    roles: BTreeMap<RunId, Role>,
    ended: BTreeSet<RunId>,
}

/// Where an agent is.
#[derive(Clone, Debug)]
pub enum Link {
    /// Welcome at this gateway.
    Up(String, std::time::Instant),
    /// Nowhere.
    Down(std::time::Instant),
}

impl Default for Link {
    fn default() -> Self {
        Self::Down(std::time::Instant::now())
    }
}

/// One agent.
#[derive(Debug)]
pub struct Agent {
    nth: usize,
    key: SigningKey,
    kept: Mutex<Kept>,
    /// Changes when there is a report to be sent.
    outbox: watch::Sender<u64>,
}

struct Identity {
    enrolled: Enrolled,
    trust: TrustBundle,
}

type Reading = ReadHalf<TlsStream<TcpStream>>;
type Writing = WriteHalf<TlsStream<TcpStream>>;

fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

fn random(below: u64) -> u64 {
    u64::from(getrandom::u32().unwrap_or(0)) % below.max(1)
}

impl Agent {
    /// A new one with a key of its own.
    ///
    /// # Errors
    /// If the system has no randomness.
    pub fn new(nth: usize, gateways: &[String]) -> Result<Arc<Self>> {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed)?;
        let mut gateways = gateways.to_vec();
        let by = nth % gateways.len();
        gateways.rotate_left(by);
        let kept = Kept { gateways, keep_alive: Duration::from_secs(20), ..Kept::default() };
        Ok(Arc::new(Self {
            nth,
            key: SigningKey::from_bytes(&seed),
            kept: Mutex::new(kept),
            outbox: watch::Sender::new(0),
        }))
    }

    /// Its id.
    pub fn id(&self) -> AgentId {
        AgentId::of_key(&self.key.verifying_key().to_bytes())
    }

    /// Its name in the fleet.
    pub fn name(&self) -> String {
        format!("a{}", self.nth)
    }

    /// What it keeps.
    pub fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enrols and then keeps a link up, for ever.
    pub async fn live(self: Arc<Self>, ca: Arc<Vec<u8>>, token: String) {
        let identity = loop {
            let gateway = self.kept().gateways[0].clone();
            match self.enrol(&gateway, &ca, &token).await {
                Ok(identity) => break identity,
                Err(_) => self.next_gateway().await,
            }
        };
        loop {
            let gateway = self.kept().gateways[0].clone();
            let ended = self.session(&gateway, &ca, &identity).await;
            {
                let mut kept = self.kept();
                if matches!(kept.link, Link::Up(..)) {
                    kept.link = Link::Down(std::time::Instant::now());
                }
                if let Err(error) = ended
                    && let Some(wrong) = error.downcast_ref::<Wrong>()
                {
                    kept.wrong.push(wrong.0.clone());
                }
            }
            self.next_gateway().await;
        }
    }

    fn patience(&self) -> Duration {
        let kept = self.kept();
        WELCOME * (kept.failed / kept.gateways.len() as u32 + 1).min(4)
    }

    async fn next_gateway(&self) {
        {
            let mut kept = self.kept();
            kept.failed += 1;
            kept.gateways.rotate_left(1);
        }
        tokio::time::sleep(Duration::from_millis(random(PAUSE_MS))).await;
    }

    async fn connect(
        &self,
        gateway: &str,
        ca: &[u8],
        identity: Option<&Identity>,
    ) -> Result<TlsStream<TcpStream>> {
        let to: SocketAddr = gateway.parse()?;
        let socket = TcpSocket::new_v4()?;
        let from = Ipv4Addr::new(10, 99, 0, 100 + (self.nth % usize::from(SOURCES)) as u8);
        socket.bind(SocketAddr::new(from.into(), 0))?;
        let tcp = timeout(CONNECT, socket.connect(to)).await??;
        tcp.set_nodelay(true)?;
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from(ca.to_vec()))?;
        let config =
            rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_protocol_versions(&[&rustls::version::TLS13])?
                .with_root_certificates(roots);
        let config = match identity {
            Some(identity) => {
                let mut der = vec![0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
                der.extend_from_slice(self.key.as_bytes());
                let chain = vec![CertificateDer::from(identity.enrolled.certificate.clone())];
                config.with_client_auth_cert(chain, PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(der)))?
            }
            None => config.with_no_client_auth(),
        };
        let name = ServerName::IpAddress(to.ip().into());
        Ok(timeout(CONNECT, TlsConnector::from(Arc::new(config)).connect(name, tcp)).await??)
    }

    async fn enrol(&self, gateway: &str, ca: &[u8], token: &str) -> Result<Identity> {
        let tls = self.connect(gateway, ca, None).await?;
        let (mut read, mut write) = tokio::io::split(tls);
        let mut buffer = FrameBuffer::default();
        let ToAgent::Challenge(challenge) = receive(&mut read, &mut buffer, self.patience()).await? else {
            bail!("no challenge")
        };
        let enrol = Enrol {
            public_key: self.key.verifying_key().to_bytes(),
            proof: Enrol::proof(&challenge.nonce, &self.key),
            name: self.name(),
            tags: vec![],
            token: Some(token.to_owned()),
            version: "trial".into(),
        };
        send(&mut write, enrol).await?;
        match receive(&mut read, &mut buffer, self.patience()).await? {
            ToAgent::Enrolled(enrolled) => {
                let root: TrustBundle = event_schema::decode_exact("TrustBundle", &enrolled.trust.bytes)
                    .map_err(|error| Wrong(format!("trust bundle: {error}")))?;
                Ok(Identity { enrolled, trust: root })
            }
            ToAgent::Refused(refused) => bail!("refused: {}", refused.detail),
            _ => bail!("no answer"),
        }
    }

    async fn session(&self, gateway: &str, ca: &[u8], identity: &Identity) -> Result<()> {
        let tls = self.connect(gateway, ca, Some(identity)).await?;
        let (mut read, mut write) = tokio::io::split(tls);
        let mut buffer = FrameBuffer::default();
        let ToAgent::Challenge(_) = receive(&mut read, &mut buffer, self.patience()).await? else {
            bail!(Wrong("no challenge".into()))
        };
        let hello = Hello {
            version: "trial".into(),
            command_cursor: self.kept().cursor,
            addresses: vec!["0.0.0.0:4000".into()],
            trust_version: identity.trust.version,
            features: FEATURE_GATEWAYS,
        };
        send(&mut write, hello).await?;
        match receive(&mut read, &mut buffer, self.patience()).await? {
            ToAgent::Welcome(welcome) => self.acknowledge(welcome.reports_stored)?,
            ToAgent::Refused(refused) => bail!("refused: {}", refused.detail),
            _ => bail!(Wrong("no welcome".into())),
        }
        {
            let mut kept = self.kept();
            (kept.link, kept.failed) = (Link::Up(gateway.to_owned(), std::time::Instant::now()), 0);
        }
        let (home, at_home) = watch::channel(self.kept().acknowledged);
        tokio::select! {
            ended = self.speak(&mut write, at_home) => ended,
            ended = self.listen(&mut read, &mut buffer, identity, home) => ended,
        }
    }

    fn acknowledge(&self, up_to: u64) -> Result<()> {
        let mut kept = self.kept();
        ensure!(
            up_to <= kept.reports.len() as u64,
            Wrong(format!("reports up to {up_to} are stored, {} were made", kept.reports.len()))
        );
        ensure!(
            up_to >= kept.acknowledged,
            Wrong(format!("reports up to {up_to} are stored, after {} were", kept.acknowledged))
        );
        kept.acknowledged = up_to;
        Ok(())
    }

    async fn speak(&self, write: &mut Writing, mut home: watch::Receiver<u64>) -> Result<()> {
        let mut outbox = self.outbox.subscribe();
        let mut sent = *home.borrow();
        let mut every = self.kept().keep_alive;
        let mut ping = interval(every);
        loop {
            let waiting: Vec<Signed> = {
                let kept = self.kept();
                if kept.keep_alive != every {
                    every = kept.keep_alive;
                    ping = interval(every);
                }
                let room = (kept.acknowledged + 64).saturating_sub(sent) as usize;
                kept.reports.iter().skip(sent as usize).take(room).cloned().collect()
            };
            for signed in waiting {
                send(write, ReportSent { signed }).await?;
                sent += 1;
            }
            tokio::select! {
                _ = ping.tick() => send(write, Ping {}).await?,
                changed = outbox.changed() => changed?,
                changed = home.changed() => changed?,
            }
        }
    }

    async fn listen(
        &self,
        read: &mut Reading,
        buffer: &mut FrameBuffer,
        identity: &Identity,
        home: watch::Sender<u64>,
    ) -> Result<()> {
        loop {
            let keep_alive = self.kept().keep_alive;
            let patience = if keep_alive < Duration::from_secs(20) {
                keep_alive * 2 + Duration::from_secs(1)
            } else {
                Duration::from_secs(60)
            };
            match receive(read, buffer, patience).await? {
                ToAgent::CommandSent(command) => self.take(&command.signed, identity)?,
                ToAgent::ReportsStored(stored) => {
                    self.acknowledge(stored.up_to)?;
                    home.send_replace(stored.up_to);
                }
                ToAgent::Gateways(told) => {
                    let mut kept = self.kept();
                    kept.keep_alive = Duration::from_secs(told.keep_alive_s.into());
                    let current = kept.gateways[0].clone();
                    let mut others: Vec<String> =
                        told.gateways.into_iter().filter(|g| *g != current).collect();
                    if !others.is_empty() {
                        let by = random(others.len() as u64) as usize;
                        others.rotate_left(by);
                    }
                    kept.gateways = std::iter::once(current).chain(others).collect();
                    drop(kept);
                    self.outbox.send_modify(|_| {});
                }
                ToAgent::Refused(refused) => bail!("refused: {}", refused.detail),
                ToAgent::Pong(_) | ToAgent::Enrolled(_) => {}
                _ => bail!(Wrong("a message out of place".into())),
            }
        }
    }

    /// Judges a command as an agent does; obeying it, the cursor and the reports are one step.
    fn take(&self, signed: &Signed, identity: &Identity) -> Result<()> {
        let mut kept = self.kept();
        let command = match Command::open(signed, &identity.trust.command_keys, self.id(), kept.cursor, now())
        {
            Ok(command) => command,
            Err(RefusalReason::Replayed) => {
                kept.repeated += 1;
                return Ok(());
            }
            Err(reason) => bail!(Wrong(format!("a command that is refused: {reason:?}"))),
        };
        if command.sequence != kept.cursor + 1 {
            bail!(Wrong(format!("command {} came after {}", command.sequence, kept.cursor)));
        }
        kept.cursor = command.sequence;
        let mut say = |body: ReportBody| {
            let sequence = kept.reports.len() as u64 + 1;
            kept.reports.push(Report { agent: self.id(), sequence, time: now(), body }.sign(&self.key));
        };
        say(CommandAccepted { command: command.id, sequence: command.sequence }.into());
        let stats =
            TransferStats { entries: 1, blocks_total: 1, blocks_fetched: 1, ..TransferStats::default() };
        let (run, name) = match &command.body {
            CommandBody::JoinRun(join)
            | CommandBody::JoinKeeping(JoinKeeping { join })
            | CommandBody::TakePart(TakePart { join, .. }) => {
                match join.role {
                    Role::Source => {
                        say(RunStateReported { run: join.run, state: RunAgentState::Indexing }.into());
                        let root = [7; 32];
                        say(ManifestSigned { run: join.run, root, entries: 1, bytes: 1, blocks: 1 }.into());
                    }
                    Role::Destination => {
                        say(RunStateReported { run: join.run, state: RunAgentState::Transferring }.into());
                        say(RunCompleted { run: join.run, state: RunAgentState::Done, stats }.into());
                    }
                    Role::Member => bail!(Wrong(format!("command {} joins a member", command.sequence))),
                }
                kept.roles.insert(join.run, join.role);
                (join.run, "join")
            }
            CommandBody::FinishRun(finish) => {
                say(RunServed { run: finish.run, stats }.into());
                kept.ended.insert(finish.run);
                (finish.run, "finish")
            }
            CommandBody::FinishAndDispose(finish) => {
                say(DisposalReported { run: finish.run, disposed: Disposed::default() }.into());
                say(RunServed { run: finish.run, stats }.into());
                kept.ended.insert(finish.run);
                (finish.run, "finish")
            }
            CommandBody::StopRun(stop) => {
                kept.ended.insert(stop.run);
                (stop.run, "stop")
            }
            CommandBody::Synchronize(told) => {
                say(RunStateReported { run: told.run, state: RunAgentState::Synchronizing }.into());
                (told.run, "join")
            }
            CommandBody::AnswerGuard(told) => (told.run, "answer"),
            CommandBody::ThinBackup(_) | CommandBody::WatchBackup(_) => {
                bail!(Wrong(format!("command {} is about a backup, and there is none", command.sequence)))
            }
        };
        kept.obeyed.push((command.sequence, run, name));
        drop(kept);
        self.outbox.send_modify(|news| *news += 1);
        Ok(())
    }
}

/// The service broke a rule: an error that the report has to name.
#[derive(Debug)]
struct Wrong(String);

impl std::fmt::Display for Wrong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Wrong {}

async fn send(write: &mut Writing, message: impl Into<ToGateway>) -> Result<()> {
    write.write_all(&frame(&message.into().encode())).await?;
    Ok(write.flush().await?)
}

async fn receive(read: &mut Reading, buffer: &mut FrameBuffer, patience: Duration) -> Result<ToAgent> {
    let until = Instant::now() + patience;
    loop {
        if let Some(message) = buffer.next(FRAME_LEN_MAX)? {
            return Ok(ToAgent::decode(message)?);
        }
        let read = tokio::time::timeout_at(until, read.read_buf(buffer.space()));
        ensure!(read.await.context("silence")?? > 0, "closed");
    }
}
