//! The control link (`edge-agent/PROTOCOL.md` §2): kept up as well as can be, for ever.
//!
//! Owns the order of things: a command is judged, stored with its answer, and only then passed on.
//! Leaves out what commands do (`run`) and how state is stored (`report.rs`). The agent works on
//! without a link; what it has to say waits in the outbox.

mod backoff;
mod enrol;
mod network;
mod places;
mod stream;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use agent_proto::limits::{ADDRESSES_MAX, DEAD_AFTER_S, GATEWAYS_MAX, KEEP_ALIVE_S, REPORTS_IN_FLIGHT_MAX};
use agent_proto::link::{
    CheckpointSent, Enrolled, FEATURE_GATEWAYS, Hello, Holds, Ping, ReportSent, ToAgent,
};
use agent_proto::{TrustBundle, Verdict, judge};
use ed25519_dalek::SigningKey;
use event_schema::{
    AgentId, AnswerGuard, Command, CommandAccepted, CommandBody, CommandRefused, Disposal, FinishAndDispose,
    JoinKeeping, Purpose, RefusalReason, Role, RunId, RunOptions, Signed, Synchronize, THINNED_MAX, TakePart,
    ThinBackup, Timestamp, WatchBackup,
};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until};

use crate::backup;
use crate::clock::FleetClock;
use crate::config::Gateway;
use crate::limits::{
    BAD_COMMANDS_MAX, CONNECT_TIMEOUT, CONNECT_TIMEOUT_OF_SEVERAL, PROGRESS_INTERVAL, REPORT_BYTES_IN_FLIGHT,
    SESSION_GOOD, WELCOME_OF_SEVERAL,
};
use crate::report::{Reporter, Write};
use crate::restrict::Restrictions;
use crate::status::Status;
use crate::store::{Cursor, Membership, RunChange, Store, Wish, newer_trust};
use crate::witness::Witness;
use crate::{VERSION, tls};
use backoff::Backoff;
pub(crate) use enrol::{EnrolError, enrol};
use network::WaysOut;
pub(crate) use places::{Place, Places};
use stream::{LinkError, Reader, Stream, Writer};

/// Between pings, as long as the gateway does not want others.
const KEEP_ALIVE: Duration = Duration::from_secs(KEEP_ALIVE_S);

/// Silence after which a gateway is gone.
const DEAD_AFTER: Duration = Duration::from_secs(DEAD_AFTER_S);

/// The same where the gateway says how often to ping: so many pings, and how late an answer may be.
const PINGS_UNANSWERED: u32 = 2;
/// See [`PINGS_UNANSWERED`].
const PING_GRACE: Duration = Duration::from_secs(1);

/// What is to be done about a run, stored already.
#[derive(Debug)]
pub(crate) enum Order {
    /// Take part.
    Join(Box<TakePart>),
    /// It is over.
    Finish(RunId),
    /// Stop working on it.
    Stop(RunId),
    /// It is over, and every destination has everything: the files of the manifest with this root go, in this way, told at
    /// this time by the fleet's clock.
    Dispose(RunId, [u8; 32], Disposal, Timestamp),
    /// Take part in a synchronization, or go on in another way.
    Synchronize(Box<Synchronize>),
    /// A person's answer to the guard of one.
    Answer(AnswerGuard),
    /// Watch a folder, or do so no more.
    Watch(WatchBackup),
    /// Remove versions, as the command with this sequence says.
    Thin(u64, Box<ThinBackup>),
}

/// Why the link ended.
#[derive(Debug)]
pub(crate) enum LinkEnd {
    /// The agent stops.
    Stopped,
    /// The fleet removed this agent; what it said.
    Removed(String),
}

/// Everything the link works with.
pub(crate) struct Link {
    pub(crate) key: SigningKey,
    pub(crate) places: Places,
    /// Gateways that the owner named.
    pub(crate) named: Vec<String>,
    pub(crate) membership: Membership,
    pub(crate) store: Arc<Store>,
    pub(crate) reporter: Reporter,
    pub(crate) clock: Arc<FleetClock>,
    pub(crate) trust: watch::Sender<TrustBundle>,
    pub(crate) credential: watch::Sender<Vec<u8>>,
    pub(crate) cursor: Cursor,
    /// Runs the agent is in.
    pub(crate) active: Arc<Mutex<BTreeSet<RunId>>>,
    pub(crate) runs_max: usize,
    pub(crate) restrictions: Restrictions,
    /// Whether the owner lets jobs dispose of files here.
    pub(crate) allow_disposal: bool,
    /// Addresses to tell, besides that of the link's own end.
    pub(crate) advertise: Vec<SocketAddr>,
    pub(crate) utp2: SocketAddr,
    pub(crate) orders: mpsc::Sender<Order>,
    /// The fleet said so before the last stop; perhaps it has changed its mind.
    pub(crate) was_removed: bool,
    pub(crate) status: Arc<Status>,
    pub(crate) witness: Arc<Mutex<Witness>>,
    /// Where a gateway was met last.
    pub(crate) met: Option<SocketAddr>,
    /// Told when this machine is in another network.
    pub(crate) network: Arc<Notify>,
    /// Held while a command is stored and handed on, so that orders stay in their sequence.
    pub(crate) obeying: Arc<tokio::sync::Mutex<()>>,
}

impl Link {
    /// Keeps the link up until `stopped` or the agent is removed.
    pub(crate) async fn run(mut self, mut stopped: watch::Receiver<bool>) -> LinkEnd {
        let mut backoff = Backoff::default();
        loop {
            let began = Instant::now();
            let ways = self.ways_out();
            let error = tokio::select! {
                () = async { drop(stopped.wait_for(|stop| *stop).await) } => return LinkEnd::Stopped,
                error = self.session() => error,
                () = ways.moved() => LinkError::Moved,
            };
            self.status.link_failed(&error.to_string());
            match error {
                LinkError::Refused(refused) if refused.reason == RefusalReason::Removed => {
                    self.reporter.write(Write { removed: Some(true), ..Write::default() }).await;
                    return LinkEnd::Removed(refused.detail);
                }
                error => {
                    let moved = matches!(error, LinkError::Moved);
                    if moved {
                        self.network.notify_one();
                    }
                    if moved || began.elapsed() >= SESSION_GOOD {
                        backoff.reset();
                    }
                    // A gateway that was cut off with us has not failed.
                    if !moved && self.places.fails() {
                        backoff.grow();
                    }
                    let pause = backoff.pause();
                    let ways = self.ways_out();
                    tracing::warn!(%error, again_in = ?pause, "no link to the gateway");
                    tokio::select! {
                        () = async { drop(stopped.wait_for(|stop| *stop).await) } => return LinkEnd::Stopped,
                        () = sleep(pause) => {}
                        () = ways.opened() => {
                            tracing::info!("the network has changed");
                            self.network.notify_one();
                            backoff.reset();
                            sleep(backoff.pause()).await;
                        }
                    }
                }
            }
        }
    }

    /// The ways to the gateway whose turn it is as they are now.
    fn ways_out(&self) -> WaysOut {
        let Gateway { host, port } = &self.places.current().gateway;
        let literal = host.parse().ok().map(|ip| SocketAddr::new(ip, *port));
        WaysOut::now(literal.or(self.met))
    }

    /// One connection, from the handshake to whatever ends it.
    async fn session(&mut self) -> LinkError {
        match self.try_session().await {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    async fn try_session(&mut self) -> Result<std::convert::Infallible, LinkError> {
        let trust = self.trust.borrow().clone();
        let config = tls::member(&trust, Some(&self.membership.certificate), &self.key)?;
        let several = self.places.len() > 1;
        let limit = if several { CONNECT_TIMEOUT_OF_SEVERAL } else { CONNECT_TIMEOUT };
        let Place { text: address, gateway } = self.places.current().clone();
        let mut stream = match Stream::connect(&gateway, config, limit).await {
            Err(LinkError::OurTime) => {
                tracing::info!("this agent's certificate has expired; asking for a new one");
                let admission = enrol::renew(&gateway, &self.membership.name, &self.key, &trust).await?;
                self.keep(admission).await;
                return Err(LinkError::OurTime);
            }
            stream => stream?,
        };
        self.met = stream.gateway;
        let hello = Hello {
            version: VERSION.into(),
            command_cursor: self.cursor.sequence,
            addresses: addresses(self.utp2, &self.advertise, stream.local),
            trust_version: trust.version,
            features: FEATURE_GATEWAYS,
        };
        stream.writer.send(hello).await?;
        if stream.is_witness {
            let holds = locked(&self.witness).holds();
            stream.writer.send(holds).await?;
        }
        if several {
            stream.reader.patience = WELCOME_OF_SEVERAL * self.places.rounds().saturating_add(1).min(4);
        }
        let welcome = match stream.reader.next().await? {
            ToAgent::Welcome(welcome) => welcome,
            ToAgent::Refused(refused) => return Err(LinkError::Refused(refused)),
            _ => return Err(LinkError::OutOfPlace("no answer to the hello")),
        };
        stream.reader.patience = DEAD_AFTER;
        self.places.works();
        self.clock.set(welcome.time);
        if self.clock.offset_ms().abs() > 60_000 {
            tracing::warn!(
                offset_ms = self.clock.offset_ms(),
                "this machine's clock differs from the fleet's"
            );
        }
        if let Some(newer) = welcome.trust {
            self.take_trust(newer).await;
        }
        let taken_back = std::mem::take(&mut self.was_removed).then_some(false);
        let stored = Some(welcome.reports_stored);
        self.reporter.write(Write { stored, removed: taken_back, ..Write::default() }).await;
        self.status.link_up(&address);
        tracing::info!(gateway = address, "connected");
        let (keep_alive, pings) = watch::channel(KEEP_ALIVE);
        let (home, at_home) = watch::channel(welcome.reports_stored);
        // At most one waits: the next checkpoint comes after the answer to the last.
        let (answers, answered) = mpsc::channel(1);
        let sending =
            send(stream.writer, self.reporter.clone(), self.store.clone(), at_home, pings, answered);
        let answers = stream.is_witness.then_some(answers);
        tokio::select! {
            error = sending => Err(error),
            error = self.listen(&mut stream.reader, home, keep_alive, answers) => Err(error),
        }
    }

    async fn listen(
        &mut self,
        reader: &mut Reader,
        home: watch::Sender<u64>,
        keep_alive: watch::Sender<Duration>,
        answers: Option<mpsc::Sender<Holds>>,
    ) -> LinkError {
        let (mut bad, mut bad_checkpoints) = (0, 0);
        loop {
            let message = match reader.next().await {
                Ok(message) => message,
                Err(error) => return error,
            };
            let outcome = match message {
                ToAgent::CommandSent(command) => self.take_command(&command.signed, &mut bad).await,
                ToAgent::ReportsStored(stored) => {
                    self.reporter.write(Write { stored: Some(stored.up_to), ..Write::default() }).await;
                    home.send_replace(stored.up_to);
                    Ok(())
                }
                ToAgent::Enrolled(enrolled) => self.take_renewal(enrolled).await,
                ToAgent::Refused(refused) => Err(LinkError::Refused(refused)),
                ToAgent::Pong(_) => Ok(()),
                ToAgent::CheckpointSent(sent) => match &answers {
                    Some(answers) => self.take_checkpoint(sent, answers, &mut bad_checkpoints).await,
                    None => Err(LinkError::OutOfPlace("version 2 was not agreed on")),
                },
                ToAgent::Gateways(told) => {
                    if told.keep_alive_s > 0 {
                        let every = Duration::from_secs(told.keep_alive_s.into()).min(KEEP_ALIVE);
                        reader.patience = every * PINGS_UNANSWERED + PING_GRACE;
                        keep_alive.send_replace(every);
                    }
                    self.take_gateways(told.gateways).await;
                    Ok(())
                }
                ToAgent::Challenge(_) | ToAgent::Pending(_) | ToAgent::Welcome(_) => {
                    Err(LinkError::OutOfPlace("a second greeting"))
                }
            };
            if let Err(error) = outcome {
                return error;
            }
        }
    }

    /// Considers a checkpoint, on disk before it is answered. Whatever comes of it, commands are obeyed as before.
    async fn take_checkpoint(
        &mut self,
        sent: CheckpointSent,
        answers: &mpsc::Sender<Holds>,
        bad: &mut u32,
    ) -> Result<(), LinkError> {
        let witness = Arc::clone(&self.witness);
        let considering = tokio::task::spawn_blocking(move || locked(&witness).consider(&sent));
        let outcome = considering.await.expect("considering a checkpoint does not panic");
        if let Some(why) = &outcome.answer.refused {
            tracing::warn!(why, "a checkpoint of the control service's log was refused");
        }
        *bad += u32::from(outcome.is_nonsense);
        if *bad >= BAD_COMMANDS_MAX {
            return Err(LinkError::BadCheckpoints(*bad));
        }
        // A gateway that does not wait for the answer waits here, and for nothing else.
        let _ = answers.send(outcome.answer).await;
        Ok(())
    }

    /// Judges a command, stores what follows from it, and only then passes it on.
    async fn take_command(&mut self, signed: &Signed, bad: &mut u32) -> Result<(), LinkError> {
        let keys = self.trust.borrow().command_keys.clone();
        let me = AgentId::of_key(&self.key.verifying_key().to_bytes());
        let last = self.cursor.sequence;
        let verdict = judge(signed, &keys, me, last, self.clock.now(), |body| !self.allows(body));
        match verdict {
            Verdict::Obey(command) => self.obey(*command).await,
            Verdict::Refuse { command, sequence, reason, in_turn } => {
                tracing::warn!(%command, sequence, ?reason, "command refused");
                self.status.count(|counters| counters.commands_refused += 1);
                let mut write = Write {
                    reports: vec![CommandRefused { command, sequence, reason }.into()],
                    ..Write::default()
                };
                if in_turn {
                    self.cursor = Cursor { sequence, command: Some(command) };
                    write.cursor = Some(self.cursor);
                }
                self.reporter.write(write).await;
                self.status.cursor(self.cursor.sequence);
                *bad += u32::from(!in_turn);
                if *bad >= BAD_COMMANDS_MAX { Err(LinkError::BadCommands(*bad)) } else { Ok(()) }
            }
            Verdict::Forged => {
                self.status.count(|counters| counters.commands_forged += 1);
                Err(LinkError::Forged)
            }
            Verdict::Gap => Err(LinkError::Gap),
        }
    }

    async fn obey(&mut self, command: Command) -> Result<(), LinkError> {
        let (run, order) = match command.body {
            CommandBody::JoinRun(join) => {
                let (options, purpose) = (RunOptions::default(), Purpose::Plain);
                self.join(TakePart { join, keeping: false, options, purpose })
            }
            CommandBody::JoinKeeping(JoinKeeping { join }) => {
                let (options, purpose) = (RunOptions::default(), Purpose::Plain);
                self.join(TakePart { join, keeping: true, options, purpose })
            }
            CommandBody::TakePart(part) => self.join(part),
            CommandBody::ThinBackup(thin) => {
                let (sequence, thin) = (command.sequence, Box::new(thin));
                (RunChange::Thin(sequence, thin.clone()), Order::Thin(sequence, thin))
            }
            CommandBody::WatchBackup(watch) => (RunChange::Watch(watch.clone()), Order::Watch(watch)),
            CommandBody::FinishRun(finish) => {
                (RunChange::Wish(finish.run, Wish::Finish), Order::Finish(finish.run))
            }
            CommandBody::FinishAndDispose(FinishAndDispose { run, root, disposal }) => {
                let told = self.clock.now();
                let wish = Wish::Dispose { root, disposal, told };
                (RunChange::Wish(run, wish), Order::Dispose(run, root, disposal, told))
            }
            CommandBody::StopRun(stop) => (RunChange::Wish(stop.run, Wish::Stop), Order::Stop(stop.run)),
            CommandBody::Synchronize(order) => {
                self.active().insert(order.run);
                let order = Box::new(order);
                (RunChange::Synchronize(order.clone()), Order::Synchronize(order))
            }
            CommandBody::AnswerGuard(answer) => (RunChange::Answer(answer.clone()), Order::Answer(answer)),
        };
        let gate = self.obeying.clone().lock_owned().await;
        self.cursor = Cursor { sequence: command.sequence, command: Some(command.id) };
        let accepted = CommandAccepted { command: command.id, sequence: command.sequence };
        let write = Write {
            reports: vec![accepted.into()],
            cursor: Some(self.cursor),
            run: Some(run),
            ..Write::default()
        };
        self.status.cursor(self.cursor.sequence);
        // The link may end, and with it whatever waits here: what is stored as taken has to be done all the same.
        let (reporter, orders) = (self.reporter.clone(), self.orders.clone());
        let obeyed = tokio::spawn(async move {
            reporter.write(write).await;
            tracing::info!(command = %command.id, sequence = command.sequence, "command accepted");
            // The receiver ends with the agent; the order is stored and carried out after the restart.
            let _ = orders.send(order).await;
            drop(gate);
        });
        obeyed.await.expect("storing a command does not panic");
        Ok(())
    }

    fn join(&self, part: TakePart) -> (RunChange, Order) {
        self.active().insert(part.join.run);
        let part = Box::new(part);
        (RunChange::Join(part.clone()), Order::Join(part))
    }

    fn allows(&self, body: &CommandBody) -> bool {
        if let Some(join) = body.join()
            // Whoever synchronizes is asked with another command.
            && (!self.has_room(join.run) || join.role == Role::Member || !self.restrictions.allow(&join.path))
        {
            return false;
        }
        match body {
            CommandBody::JoinRun(_) | CommandBody::JoinKeeping(_) => true,
            CommandBody::TakePart(part) => {
                part.options.check().is_ok() && backup::Purpose::of(&part.purpose).is_ok()
            }
            CommandBody::ThinBackup(thin) => {
                thin.versions.len() <= THINNED_MAX && self.restrictions.allow(&thin.path)
            }
            CommandBody::WatchBackup(watch) => {
                watch.folder.as_ref().is_none_or(|folder| self.restrictions.allow(&folder.path))
            }
            CommandBody::FinishAndDispose(_) => self.allow_disposal,
            CommandBody::FinishRun(_) | CommandBody::StopRun(_) => true,
            CommandBody::Synchronize(order) => {
                self.has_room(order.run) && self.restrictions.allow(&order.path)
            }
            CommandBody::AnswerGuard(_) => true,
        }
    }

    fn has_room(&self, run: RunId) -> bool {
        let active = self.active();
        active.contains(&run) || active.len() < self.runs_max
    }

    fn active(&self) -> std::sync::MutexGuard<'_, BTreeSet<RunId>> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn take_trust(&mut self, signed: Signed) {
        let kept = self.trust.borrow().version;
        match newer_trust(&signed, &self.membership.root_key, kept) {
            Some(bundle) => {
                tracing::info!(version = bundle.version, "the fleet's keys changed");
                self.reporter.write(Write { trust: Some(signed), ..Write::default() }).await;
                self.trust.send_replace(bundle);
            }
            None => {
                tracing::error!("the gateway offered keys that are older or not signed by the pinned root")
            }
        }
    }

    async fn take_gateways(&mut self, told: Vec<String>) {
        if self.places.learn(&told, &self.named) {
            tracing::info!(gateways = ?told, "the fleet's gateways");
            let gateways = told.into_iter().take(GATEWAYS_MAX).collect();
            self.reporter.write(Write { gateways: Some(gateways), ..Write::default() }).await;
        }
    }

    async fn take_renewal(&mut self, enrolled: Enrolled) -> Result<(), LinkError> {
        let admission = enrol::check(enrolled, &self.key, &self.membership.root_key)?;
        self.keep(admission).await;
        Ok(())
    }

    async fn keep(&mut self, admission: enrol::Admission) {
        self.membership.certificate = admission.certificate;
        self.membership.credential = admission.credential.clone();
        self.membership.name = admission.name;
        let membership = Some(Box::new(self.membership.clone()));
        self.reporter.write(Write { membership, ..Write::default() }).await;
        self.credential.send_replace(admission.credential);
        if admission.bundle.version > self.trust.borrow().version {
            self.take_trust(admission.trust).await;
        }
        tracing::info!("certificate and credential renewed");
    }
}

fn locked(witness: &Mutex<Witness>) -> MutexGuard<'_, Witness> {
    witness.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sends pings, reports, telemetry and what a witness answers until that fails.
async fn send(
    mut writer: Writer,
    reporter: Reporter,
    store: Arc<Store>,
    mut home: watch::Receiver<u64>,
    mut pings: watch::Receiver<Duration>,
    mut answers: mpsc::Receiver<Holds>,
) -> LinkError {
    let mut ping = interval(*pings.borrow_and_update());
    ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut outbox = reporter.outbox_watch();
    let mut sent = *home.borrow();
    // Sequences that the service lacks and we forgot: its log was restored from an older copy.
    let mut skipped = 0;
    let (mut telemetry, mut next_telemetry, mut last_run) = (false, Instant::now(), None);
    loop {
        let stored = *home.borrow_and_update();
        sent = sent.max(stored);
        let in_flight = usize::try_from((sent - stored).saturating_sub(skipped)).unwrap_or(usize::MAX);
        let room = REPORTS_IN_FLIGHT_MAX.saturating_sub(in_flight);
        let last = *outbox.borrow_and_update();
        let outcome = if last > sent && room > 0 {
            match waiting(store.clone(), sent, room).await {
                Ok(reports) => {
                    skipped += reports.first().map_or(last, |(first, _)| first - 1) - sent;
                    sent = reports.last().map_or(last, |(sequence, _)| *sequence);
                    send_reports(&mut writer, reports).await
                }
                Err(error) => Err(error),
            }
        } else {
            tokio::select! {
                _ = ping.tick() => writer.send(Ping {}).await,
                Some(holds) = answers.recv() => writer.send(holds).await,
                // Their senders live as long as the link.
                _ = outbox.changed() => Ok(()),
                _ = home.changed() => Ok(()),
                _ = pings.changed() => {
                    ping = interval(*pings.borrow_and_update());
                    ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
                    Ok(())
                }
                () = reporter.progressed(), if !telemetry => {
                    telemetry = true;
                    Ok(())
                }
                () = sleep_until(next_telemetry), if telemetry => match reporter.take_progress(last_run) {
                    Some(progress) => {
                        next_telemetry = Instant::now() + PROGRESS_INTERVAL;
                        last_run = Some(progress.run);
                        writer.send(progress).await
                    }
                    None => {
                        telemetry = false;
                        Ok(())
                    }
                },
            }
        };
        if let Err(error) = outcome {
            return error;
        }
    }
}

async fn waiting(store: Arc<Store>, after: u64, room: usize) -> Result<Vec<(u64, Signed)>, LinkError> {
    let read = tokio::task::spawn_blocking(move || store.outbox(after, room, REPORT_BYTES_IN_FLIGHT));
    Ok(read.await.expect("reading the outbox does not panic")?)
}

async fn send_reports(writer: &mut Writer, reports: Vec<(u64, Signed)>) -> Result<(), LinkError> {
    for (_, signed) in reports {
        writer.send(ReportSent { signed }).await?;
    }
    Ok(())
}

/// Where the µTP2 socket can be tried: what the owner named, this end of the link, and whatever the
/// gateway sees.
fn addresses(utp2: SocketAddr, advertise: &[SocketAddr], local: IpAddr) -> Vec<String> {
    let mut addresses: Vec<String> = advertise.iter().map(SocketAddr::to_string).collect();
    if utp2.ip().is_unspecified() && (local.is_ipv4() || utp2.is_ipv6()) {
        addresses.push(SocketAddr::new(local, utp2.port()).to_string());
    }
    addresses.push(utp2.to_string());
    addresses.dedup();
    addresses.truncate(ADDRESSES_MAX);
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_others_can_try() {
        let check = |utp2: &str, advertise: &[&str], local: &str, expected: &[&str]| {
            let parse = |text: &str| text.parse::<SocketAddr>().expect("an address");
            let advertise: Vec<_> = advertise.iter().map(|a| parse(a)).collect();
            assert_eq!(addresses(parse(utp2), &advertise, local.parse().expect("an IP")), expected);
        };
        check("0.0.0.0:9", &[], "192.0.2.1", &["192.0.2.1:9", "0.0.0.0:9"]);
        check("0.0.0.0:9", &[], "2001:db8::1", &["0.0.0.0:9"]);
        check("[::]:9", &["203.0.113.5:99"], "192.0.2.1", &["203.0.113.5:99", "192.0.2.1:9", "[::]:9"]);
        check("127.0.0.1:9", &[], "192.0.2.1", &["127.0.0.1:9"]);
    }
}
