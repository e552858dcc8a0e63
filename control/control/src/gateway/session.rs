//! One connection: challenge, then enrolment or a session (`edge-agent/PROTOCOL.md` §1.3, §2).
//!
//! Reading and writing go on side by side in one task. What is to be written besides commands is kept
//! as "the latest of each kind", so a reader that is slow costs nothing and holds up only itself.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use agent_proto::limits::{
    ADDRESSES_MAX, CHECKPOINT_NOTE_MAX, FRAME_LEN_MAX, FRAME_LEN_MAX_BEFORE_WELCOME, NAME_LEN_MAX,
    REFUSAL_LEN_MAX, REPORTS_IN_FLIGHT_MAX, TAG_LEN_MAX, TAGS_MAX,
};
use agent_proto::link::{
    Challenge, CommandSent, Enrol, Enrolled, FEATURE_GATEWAYS, Gateways, Hello, Holds, Pending, Pong,
    Refused, ReportsStored, ToAgent, ToGateway, WITNESS_ALPN, Welcome,
};
use event_schema::{AgentId, RefusalReason, Signed};
use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::{Instant, interval_at, sleep, sleep_until, timeout};
use tokio_rustls::server::TlsStream;

use super::frames::{FrameError, FrameReader, write};
use super::registry::Kick;
use super::showing::Showing;
use super::{Context, EnrolDecision, EnrolRequest, Fleet, ReportError, Session, now};
use crate::pki::Facts;
use crate::sealing::Heard;
use crate::service::{KEEP_ALIVE_S, Ousted};
use event_audit::SignedCheckpoint;

type Reader = FrameReader<ReadHalf<TlsStream<TcpStream>>>;
type Writer = WriteHalf<TlsStream<TcpStream>>;

/// Commands asked of the service at a time.
const COMMANDS_AT_ONCE: usize = 16;
/// Longest token text that is passed on.
const TOKEN_LEN_MAX: usize = 256;
/// Longest version text that is kept.
const VERSION_LEN_MAX: usize = 64;
/// A last word that is not taken in this time is not said.
const LAST_WORD_TIMEOUT: Duration = Duration::from_secs(5);

/// How a connection ended, if not as it should.
#[derive(Debug, thiserror::Error)]
pub(super) enum End {
    #[error("no TLS session: {0}")]
    Tls(std::io::Error),
    #[error("nothing came in time")]
    Timeout,
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("the client certificate is not for an Ed25519 key")]
    Certificate,
    #[error("protocol broken: {0}")]
    Protocol(&'static str),
    #[error("{}", .0.detail)]
    Refused(Refused),
    #[error("the log is not available: {0}")]
    Unavailable(String),
    #[error("replaced by a newer connection")]
    Replaced,
    #[error("the service stops")]
    Shutdown,
    #[error("the service is cut off from the other replicas")]
    CutOff,
}

impl From<std::io::Error> for End {
    fn from(error: std::io::Error) -> Self {
        Self::Frame(FrameError::Io(error))
    }
}

impl From<Kick> for End {
    fn from(kick: Kick) -> Self {
        match kick {
            Kick::Replaced => Self::Replaced,
            Kick::Removed => Self::Refused(removed()),
            Kick::Shutdown => Self::Shutdown,
            Kick::CutOff => Self::CutOff,
        }
    }
}

fn removed() -> Refused {
    Refused {
        reason: RefusalReason::Removed,
        detail: "this agent was removed from the fleet; to come back it must be enrolled anew".into(),
    }
}

fn not_in_time() -> Refused {
    let detail = "the control service cannot record this now: try another gateway, or this one again later";
    Refused { reason: RefusalReason::TooEarly, detail: detail.into() }
}

/// Serves one connection to its end. `half_open` is dropped when the agent is welcome.
///
/// What lasts for moments is boxed, so that a connection that idles for days is small.
pub(super) async fn serve<F: Fleet>(
    context: Arc<Context<F>>,
    tcp: TcpStream,
    address: SocketAddr,
    half_open: impl Send,
) -> Result<(), End> {
    let mut opened = Box::pin(open(&context, tcp)).await?;
    match (opened.certificate.take(), opened.first) {
        (None, ToGateway::Enrol(enrol)) => {
            let answer = Box::pin(enrolment(&*context, enrol, &opened.nonce, address)).await?;
            Box::pin(last_word(&mut opened.writer, Some(answer))).await;
            Ok(())
        }
        (Some(certificate), ToGateway::Hello(hello)) => {
            let begin = Begin { certificate, hello, address, is_witness: opened.is_witness };
            session(&context, begin, opened.reader, opened.writer, half_open).await
        }
        (None, _) => Err(End::Protocol("without a certificate only Enrol is served")),
        (Some(_), _) => Err(End::Protocol("the first message must be Hello")),
    }
}

/// What a session begins with.
struct Begin {
    certificate: Facts,
    hello: Hello,
    address: SocketAddr,
    is_witness: bool,
}

/// A connection whose first message has come.
struct Opened {
    /// Version 2 was agreed on.
    is_witness: bool,
    certificate: Option<Facts>,
    nonce: [u8; 32],
    first: ToGateway,
    reader: Reader,
    writer: Writer,
}

async fn open<F: Fleet>(context: &Context<F>, tcp: TcpStream) -> Result<Opened, End> {
    let limits = &context.limits;
    tcp.set_nodelay(true)?;
    let tls = timeout(limits.handshake_timeout, context.tls.accept(tcp))
        .await
        .map_err(|_| End::Timeout)?
        .map_err(End::Tls)?;
    let certificate = match tls.get_ref().1.peer_certificates() {
        Some([certificate, ..]) => Some(Facts::of(certificate).ok_or(End::Certificate)?),
        _ => None,
    };
    let is_witness = tls.get_ref().1.alpn_protocol() == Some(WITNESS_ALPN);
    let (read, mut writer) = tokio::io::split(tls);
    let mut reader = FrameReader::new(read);
    let mut nonce = [0; 32];
    getrandom::fill(&mut nonce).expect("the system has randomness");
    let first = timeout(limits.handshake_timeout, async {
        write(&mut writer, Challenge { nonce, time: now() }.into()).await?;
        reader.next(FRAME_LEN_MAX_BEFORE_WELCOME).await
    });
    let first = first.await.map_err(|_| End::Timeout)??;
    Ok(Opened { is_witness, certificate, nonce, first, reader, writer })
}

async fn enrolment<F: Fleet>(
    context: &Context<F>,
    enrol: Enrol,
    nonce: &[u8; 32],
    address: SocketAddr,
) -> Result<ToAgent, End> {
    if !enrol.proof_holds(nonce) {
        return Err(End::Protocol("the proof of the key does not hold"));
    }
    let short = |text: &str, max| text.len() <= max && !text.chars().any(char::is_control);
    let fits = short(&enrol.name, NAME_LEN_MAX)
        && short(&enrol.version, VERSION_LEN_MAX)
        && enrol.tags.len() <= TAGS_MAX
        && enrol.tags.iter().all(|(name, value)| short(name, TAG_LEN_MAX) && short(value, TAG_LEN_MAX))
        && enrol.token.as_ref().is_none_or(|token| token.len() <= TOKEN_LEN_MAX);
    if !fits {
        return Err(End::Protocol("name, tags, token or version beyond their limits"));
    }
    let (agent, public_key) = (AgentId::of_key(&enrol.public_key), enrol.public_key);
    let request = EnrolRequest {
        agent,
        public_key,
        name: enrol.name,
        tags: enrol.tags,
        token: enrol.token,
        version: enrol.version,
        address,
    };
    Ok(match context.fleet.enrol(request).await {
        EnrolDecision::Approved { name } => match context.pki.issue(&public_key, &name, now()) {
            Ok(enrolled) => {
                tracing::info!(%agent, name, %address, "agent enrolled");
                enrolled.into()
            }
            Err(error) => {
                tracing::error!(%agent, %error, "no certificate for an approved agent");
                return Err(End::Protocol("no certificate can be issued for this key"));
            }
        },
        EnrolDecision::Pending { retry_after_s } => Pending { retry_after_s }.into(),
        EnrolDecision::Refused(refused) => {
            tracing::warn!(%agent, %address, reason = ?refused.reason, "enrolment refused");
            refused.into()
        }
    })
}

async fn session<F: Fleet>(
    context: &Arc<Context<F>>,
    begin: Begin,
    mut reader: Reader,
    mut writer: Writer,
    half_open: impl Send,
) -> Result<(), End> {
    let Begin { certificate, mut hello, address, is_witness } = begin;
    let agent = AgentId::of_key(&certificate.public_key);
    hello.addresses = seen_from_here(&hello.addresses, address);
    if hello.version.len() > VERSION_LEN_MAX {
        return Err(End::Protocol("version beyond its limit"));
    }
    if !context.allowances.session(&context.limits, agent, Instant::now()) {
        drop(half_open);
        let refused = Refused {
            reason: RefusalReason::TooEarly,
            detail: "this agent connects too often: each time is a fact that stays on the log".into(),
        };
        Box::pin(last_word(&mut writer, Some(refused.clone().into()))).await;
        return Err(End::Refused(refused));
    }
    let (cursor, trust_version) = (hello.command_cursor, hello.trust_version);
    let knows_gateways = hello.features & FEATURE_GATEWAYS != 0;
    let (place, kicked) = context.registry.enter(agent);
    let mut kicked = Some(kicked);
    let begin = Box::pin(async {
        let mut online = context.registry.turn(&place).await.ok_or(End::Replaced)?;
        if context.fleet.is_removed(agent) {
            return Err(End::Refused(removed()));
        }
        // From here on it may be recorded, even if nobody waits for that any more.
        let before = std::mem::replace(&mut *online, true);
        let begun = context.fleet.connected(agent, hello, address).await;
        *online = before || begun.is_ok();
        begun.map_err(End::Refused)
    });
    // An agent that knows other gateways does not wait for ever, and what it has left is not to be carried out later.
    let begun = match timeout(context.limits.welcome_timeout, begin).await {
        Ok(Ok(session)) => match context.fleet.must_leave(agent) {
            // It went on to another gateway while it was being let in here, where it was not kicked.
            Some(Ousted::Moved(_)) => Err(End::Replaced),
            Some(Ousted::Removed(_)) => Err(End::Refused(removed())),
            Some(Ousted::All) => Err(End::CutOff),
            None => Ok(session),
        },
        Ok(begun) => begun,
        Err(_) => Err(End::Refused(not_in_time())),
    };
    let end = match begun {
        Ok(session) => {
            drop(half_open);
            tracing::debug!(%agent, %address, cursor, "agent connected");
            let renewal = certificate.due(now());
            let renewed = renewal.then(|| context.pki.issue(&certificate.public_key, &session.name, now()));
            let out = Outgoing { may_hold: is_witness.into(), ..Outgoing::default() };
            let greeting =
                Greeting { session, trust_version, renewed: renewed.and_then(Result::ok), knows_gateways };
            converse(context, agent, cursor, greeting, &mut reader, &mut writer, &mut kicked, &out).await
        }
        Err(end) => {
            // What follows may wait for the log; the place is for others.
            drop(half_open);
            if let End::Refused(refused) = &end {
                Box::pin(last_word(&mut writer, Some(refused.clone().into()))).await;
            }
            end
        }
    };
    drop((reader, writer));
    Box::pin(async {
        // The say is a newer session's as soon as there is one, however long the log lets this one wait.
        let turn = async {
            let turn = context.registry.turn(&place);
            tokio::pin!(turn);
            loop {
                tokio::select! {
                    turn = &mut turn => return turn,
                    kick = next_kick(&mut kicked) => if kick == Kick::Replaced { return None },
                }
            }
        };
        if let Some(mut online) = turn.await {
            if std::mem::take(&mut *online) {
                context.fleet.disconnected(agent, end.to_string()).await;
            }
            context.registry.leave(&place);
        }
    })
    .await;
    Err(end)
}

/// Why a session is to end; once.
async fn next_kick(kicked: &mut Option<oneshot::Receiver<Kick>>) -> Kick {
    let Some(waiting) = kicked else { return std::future::pending().await };
    let kick = waiting.await.unwrap_or(Kick::Replaced);
    *kicked = None;
    kick
}

/// What the agent is told right after its hello.
struct Greeting {
    session: Session,
    trust_version: u64,
    renewed: Option<Enrolled>,
    /// It wants to know where else it may go.
    knows_gateways: bool,
}

/// What waits to be written besides commands: the latest of each kind.
#[derive(Default)]
struct Outgoing {
    waiting: Mutex<Waiting>,
    changed: Notify,
    /// The agent is to say what it holds: after its hello, and after each checkpoint.
    may_hold: AtomicBool,
}

#[derive(Default)]
struct Waiting {
    pong: bool,
    stored: Option<u64>,
    heard: Option<Heard>,
    last: Option<Refused>,
}

impl Outgoing {
    fn put(&self, change: impl FnOnce(&mut Waiting)) {
        change(&mut self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_one();
    }

    fn take(&self) -> Waiting {
        std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Reads and writes until one of them ends or the session is kicked. What was begun to be written is
/// written whole before a last word.
async fn converse<F: Fleet>(
    context: &Context<F>,
    agent: AgentId,
    cursor: u64,
    greeting: Greeting,
    reader: &mut Reader,
    writer: &mut Writer,
    kicked: &mut Option<oneshot::Receiver<Kick>>,
    out: &Outgoing,
) -> End {
    let end = {
        let reading = read(context, agent, reader, out);
        let writing = write_all(context, agent, cursor, greeting, writer, out);
        tokio::pin!(reading, writing);
        let end = tokio::select! {
            end = &mut reading => end,
            end = &mut writing => return end,
            kick = next_kick(kicked) => kick.into(),
        };
        if let End::Refused(refused) = &end {
            out.put(|waiting| waiting.last = Some(refused.clone()));
            // A reader that does not take it learns at its next hello.
            let _ = timeout(LAST_WORD_TIMEOUT, writing).await;
        }
        end
    };
    Box::pin(last_word(writer, None)).await;
    end
}

async fn read<F: Fleet>(context: &Context<F>, agent: AgentId, reader: &mut Reader, out: &Outgoing) -> End {
    let mut next = None;
    loop {
        let message = match next.take() {
            Some(message) => message,
            None => match timeout(context.limits.dead_after, reader.next(FRAME_LEN_MAX)).await {
                Ok(Ok(message)) => message,
                Ok(Err(error)) => return error.into(),
                Err(_) => return End::Timeout,
            },
        };
        match message {
            ToGateway::Ping(_) => out.put(|waiting| waiting.pong = true),
            ToGateway::Progress(progress) => context.fleet.progress(agent, progress),
            ToGateway::ReportSent(first) => {
                // Whatever else has arrived goes into the same record of the log.
                let mut reports = vec![first.signed];
                while reports.len() < REPORTS_IN_FLIGHT_MAX {
                    match reader.buffered(FRAME_LEN_MAX) {
                        Ok(Some(ToGateway::ReportSent(report))) => reports.push(report.signed),
                        Ok(other) => {
                            next = other;
                            break;
                        }
                        // The next read meets it again, after these are stored.
                        Err(_) => break,
                    }
                }
                let wait = context.allowances.reports(&context.limits, agent, &reports, Instant::now());
                if !wait.is_zero() {
                    // Nothing more is read meanwhile, so nothing piles up here; nobody else notices.
                    tracing::debug!(%agent, ?wait, "an agent reports more than its share");
                    Box::pin(alive(out, sleep(wait))).await;
                }
                match Box::pin(alive(out, store(context, agent, reports))).await {
                    Ok(up_to) => out.put(|waiting| waiting.stored = Some(up_to)),
                    Err(end) => return end,
                }
            }
            ToGateway::Holds(holds) => {
                if !out.may_hold.swap(false, Ordering::Relaxed) {
                    return End::Protocol("it was not asked what it holds");
                }
                if !within_limits(&holds) {
                    return End::Protocol("a checkpoint beyond its limits");
                }
                let heard = Box::pin(alive(out, context.fleet.holds(agent, holds))).await;
                out.put(|waiting| waiting.heard = Some(heard));
            }
            ToGateway::Hello(_) | ToGateway::Enrol(_) => return End::Protocol("a second greeting"),
        }
    }
}

/// Waits for the service, and answers pings meanwhile before they are read: an agent must not take a log that is slow
/// for a gateway that is dead.
async fn alive<T>(out: &Outgoing, waited_for: impl Future<Output = T>) -> T {
    let every = Duration::from_secs(KEEP_ALIVE_S.into());
    let mut pongs = interval_at(Instant::now() + every, every);
    tokio::pin!(waited_for);
    loop {
        tokio::select! {
            done = &mut waited_for => return done,
            _ = pongs.tick() => out.put(|waiting| waiting.pong = true),
        }
    }
}

fn within_limits(holds: &Holds) -> bool {
    let note = holds.checkpoint.as_ref().is_none_or(|note| note.len() <= CHECKPOINT_NOTE_MAX);
    let refused = holds
        .refused
        .as_ref()
        .is_none_or(|why| why.len() <= REFUSAL_LEN_MAX && !why.chars().any(char::is_control));
    note && refused
}

async fn store<F: Fleet>(context: &Context<F>, agent: AgentId, reports: Vec<Signed>) -> Result<u64, End> {
    context.fleet.reports(agent, reports).await.map_err(|error| match error {
        ReportError::Refused(refused) => End::Refused(refused),
        ReportError::Unavailable(why) => End::Unavailable(why),
    })
}

async fn write_all<F: Fleet>(
    context: &Context<F>,
    agent: AgentId,
    cursor: u64,
    greeting: Greeting,
    writer: &mut Writer,
    out: &Outgoing,
) -> End {
    match try_write_all(context, agent, cursor, greeting, writer, out).await {
        Ok(refused) => End::Refused(refused),
        Err(end) => end,
    }
}

async fn try_write_all<F: Fleet>(
    context: &Context<F>,
    agent: AgentId,
    mut cursor: u64,
    greeting: Greeting,
    writer: &mut Writer,
    out: &Outgoing,
) -> Result<Refused, End> {
    let patience = context.limits.dead_after;
    let trust = (greeting.trust_version < context.pki.trust_version()).then(|| context.pki.trust().clone());
    let welcome = Welcome { time: now(), reports_stored: greeting.session.reports_stored, trust };
    send(writer, patience, welcome.into()).await?;
    if let Some(enrolled) = greeting.renewed {
        send(writer, patience, enrolled.into()).await?;
    }
    let mut watch = context.fleet.command_watch(agent);
    let mut gateways = context.fleet.gateways();
    // What was there before counts as a change.
    gateways.mark_changed();
    let mut follows = greeting.knows_gateways;
    let mut sealed = context.fleet.sealed();
    let mut witness = Showing::new(agent, Instant::now());
    loop {
        let waiting = out.take();
        if follows && gateways.has_changed().unwrap_or(false) {
            let known = gateways.borrow_and_update().to_vec();
            if !known.is_empty() {
                let message = Gateways { gateways: known, keep_alive_s: KEEP_ALIVE_S };
                send(writer, patience, message.into()).await?;
            }
        }
        if waiting.pong {
            send(writer, patience, Pong {}.into()).await?;
        }
        if let Some(up_to) = waiting.stored {
            send(writer, patience, ReportsStored { up_to }.into()).await?;
        }
        if let Some(heard) = waiting.heard {
            witness.heard(heard);
        }
        if let Some(refused) = waiting.last {
            send(writer, patience, refused.clone().into()).await?;
            return Ok(refused);
        }
        if *watch.borrow_and_update() > cursor {
            let commands = Box::pin(context.fleet.commands_after(agent, cursor, COMMANDS_AT_ONCE)).await;
            if !commands.is_empty() {
                for (sequence, signed) in commands {
                    send(writer, patience, CommandSent { signed }.into()).await?;
                    cursor = sequence;
                }
                witness.commanded(context.fleet.log_position());
                continue;
            }
        }
        let newest = sealed.as_mut().map_or(0, |newest| size_of(&newest.borrow_and_update()));
        let due = witness.due(newest);
        if due.is_some_and(|due| due <= Instant::now()) {
            let shown = Box::pin(context.fleet.checkpoint(witness.standing(), witness.is_first())).await;
            witness.shown(Instant::now(), shown.is_some());
            if let Some((_, checkpoint)) = shown {
                out.may_hold.store(true, Ordering::Relaxed);
                send(writer, patience, checkpoint.into()).await?;
            }
            continue;
        }
        tokio::select! {
            () = out.changed.notified() => {}
            changed = watch.changed() => changed.map_err(|_| End::Shutdown)?,
            changed = gateways.changed(), if follows => {
                follows = changed.is_ok();
                // Seen, but not told yet.
                gateways.mark_changed();
            }
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
            () = next_checkpoint(&mut sealed) => {}
        }
    }
}

fn size_of(newest: &Option<Arc<SignedCheckpoint>>) -> u64 {
    newest.as_ref().map_or(0, |newest| newest.head().size)
}

/// Returns when there is a newer checkpoint.
async fn next_checkpoint(sealed: &mut Option<watch::Receiver<Option<Arc<SignedCheckpoint>>>>) {
    let over = match sealed {
        Some(sealed) => sealed.changed().await.is_err(),
        None => std::future::pending().await,
    };
    if over {
        *sealed = None;
    }
}

/// Boxed: its buffers are there only while it lasts.
fn send<'a>(
    writer: &'a mut Writer,
    patience: Duration,
    message: ToAgent,
) -> impl Future<Output = Result<(), End>> + Send + 'a {
    let sending = async move { timeout(patience, write(writer, message)).await };
    let sending = Box::pin(sending);
    async move { Ok(sending.await.map_err(|_| End::Timeout)??) }
}

/// Says a last thing, if any, and closes; a peer that is gone or slow does not matter any more.
async fn last_word(writer: &mut Writer, message: Option<ToAgent>) {
    let farewell = async {
        if let Some(message) = message {
            write(writer, message).await?;
        }
        writer.shutdown().await
    };
    let _ = timeout(LAST_WORD_TIMEOUT, farewell).await;
}

/// Addresses as others may use them: an unspecified IP is the one we see, what is no address is
/// dropped, each is named once.
fn seen_from_here(addresses: &[String], observed: SocketAddr) -> Vec<String> {
    let observed = observed.ip().to_canonical();
    let mut seen = Vec::new();
    for address in addresses.iter().take(ADDRESSES_MAX) {
        let Ok(mut address) = address.parse::<SocketAddr>() else { continue };
        if address.ip().is_unspecified() {
            // An IPv6 wildcard socket takes IPv4 too, the other way round nothing arrives.
            if address.is_ipv4() && observed.is_ipv6() {
                continue;
            }
            address.set_ip(observed);
        }
        let text = address.to_string();
        if address.port() != 0 && !seen.contains(&text) {
            seen.push(text);
        }
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_made_usable() {
        let check = |given: &[&str], observed: &str, expected: &[&str]| {
            let given: Vec<String> = given.iter().map(|a| (*a).to_owned()).collect();
            assert_eq!(seen_from_here(&given, observed.parse().expect("an address")), expected, "{given:?}");
        };
        check(&["0.0.0.0:4000", "192.0.2.7:4000"], "192.0.2.7:999", &["192.0.2.7:4000"]);
        check(&["0.0.0.0:4000"], "[::ffff:192.0.2.7]:999", &["192.0.2.7:4000"]);
        check(&["0.0.0.0:4000"], "[2001:db8::1]:999", &[]);
        check(&["[::]:4000"], "192.0.2.7:999", &["192.0.2.7:4000"]);
        check(
            &["[::]:4000", "[2001:db8::2]:1"],
            "[2001:db8::1]:9",
            &["[2001:db8::1]:4000", "[2001:db8::2]:1"],
        );
        check(&["host:1", "", "192.0.2.7:0"], "192.0.2.7:999", &[]);
        check(&["192.0.2.7:1"; 40], "192.0.2.7:999", &["192.0.2.7:1"]);
    }
}
