//! A fleet in memory: what the service does, without a log.

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;

use agent_proto::link::is_token_text;
use event_schema::{Command, CommandId, FinishRun, Report, RunId, TokenId};
use tokio::sync::mpsc;

use super::super::*;
use agent_proto::link::{Hello, Progress, Refused};
use event_schema::{RefusalReason, Signed};

/// A token: how many uses are left, and until when.
pub(super) struct Token {
    pub(super) uses: u32,
    pub(super) expired: bool,
}

pub(super) struct Member {
    pub(super) public_key: [u8; 32],
    pub(super) approved: bool,
    pub(super) removed: bool,
    pub(super) commands: Vec<Signed>,
    pub(super) reports: Vec<Report>,
    pub(super) last: watch::Sender<u64>,
}

/// What the gateway told the fleet, in order.
#[derive(Debug, PartialEq)]
pub(super) enum Told {
    Enrol(AgentId),
    Connected(AgentId, Vec<String>),
    Disconnected(AgentId, String),
    Progress(AgentId),
}

pub(super) struct MemoryFleet {
    pub(super) members: Mutex<HashMap<AgentId, Member>>,
    pub(super) tokens: Mutex<HashMap<String, Token>>,
    pub(super) ousted: broadcast::Sender<Ousted>,
    pub(super) gateways: watch::Sender<Arc<[String]>>,
    /// Nothing is recorded while it is so: hellos, goodbyes and reports wait.
    pub(super) log_hangs: watch::Sender<bool>,
    /// Agents that are connected at another replica.
    pub(super) elsewhere: Mutex<HashSet<AgentId>>,
    told: mpsc::UnboundedSender<Told>,
    pki: Arc<Pki>,
}

impl MemoryFleet {
    pub(super) fn new(pki: Arc<Pki>) -> (Arc<Self>, mpsc::UnboundedReceiver<Told>) {
        let (told, telling) = mpsc::unbounded_channel();
        let fleet = Self {
            members: Mutex::default(),
            tokens: Mutex::default(),
            ousted: broadcast::channel(4).0,
            gateways: watch::Sender::new(Arc::new([])),
            log_hangs: watch::Sender::new(false),
            elsewhere: Mutex::default(),
            told,
            pki,
        };
        (Arc::new(fleet), telling)
    }

    pub(super) fn token(&self, n: u8, uses: u32, expired: bool) -> String {
        let text = format!("{}.{}", TokenId([n; 16]), "ab".repeat(32));
        assert!(is_token_text(&text));
        self.tokens.lock().expect("sound").insert(text.clone(), Token { uses, expired });
        text
    }

    /// A member that did not have to ask.
    pub(super) fn admit(&self, public_key: [u8; 32]) {
        let member = Member {
            public_key,
            approved: true,
            removed: false,
            commands: Vec::new(),
            reports: Vec::new(),
            last: watch::channel(0).0,
        };
        self.members.lock().expect("sound").insert(AgentId::of_key(&public_key), member);
    }

    pub(super) fn with<T>(&self, agent: AgentId, f: impl FnOnce(&mut Member) -> T) -> T {
        f(self.members.lock().expect("sound").get_mut(&agent).expect("a member"))
    }

    /// Adds a command for the agent; `pad` bytes make it long.
    pub(super) fn command(&self, agent: AgentId, pad: usize) {
        self.with(agent, |member| {
            let sequence = member.commands.len() as u64 + 1;
            let join = event_schema::JoinRun {
                run: RunId([1; 16]),
                job: event_schema::JobId([2; 16]),
                job_name: "x".repeat(pad),
                role: event_schema::Role::Source,
                path: Vec::new(),
                source: agent,
                peers: Vec::new(),
                trackers: Vec::new(),
                sealed_secret: Vec::new(),
            };
            let command = Command {
                id: CommandId([sequence as u8; 16]),
                audience: agent,
                sequence,
                issued: now(),
                not_before: now(),
                expires: Timestamp::NEVER,
                body: match pad {
                    0 => FinishRun { run: RunId([1; 16]) }.into(),
                    _ => join.into(),
                },
            };
            member.commands.push(command.sign(self.pki.command_key()));
            member.last.send_replace(sequence);
        });
    }

    pub(super) fn remove(&self, agent: AgentId) {
        self.with(agent, |member| member.removed = true);
        self.ousted.send(Ousted::Removed(agent)).expect("the gateway listens");
    }

    async fn log(&self) {
        // The fleet holds the sender.
        let _ = self.log_hangs.subscribe().wait_for(|hangs| !hangs).await;
    }

    fn tell(&self, told: Told) {
        // A test that is over does not listen any more.
        let _ = self.told.send(told);
    }
}

fn refused(reason: RefusalReason) -> Refused {
    Refused { reason, detail: format!("{reason:?}") }
}

impl Fleet for MemoryFleet {
    async fn enrol(&self, request: EnrolRequest) -> EnrolDecision {
        self.tell(Told::Enrol(request.agent));
        let mut members = self.members.lock().expect("sound");
        let known = members.get(&request.agent).is_some_and(|member| member.approved);
        if known {
            return EnrolDecision::Approved { name: request.name };
        }
        let approved = match &request.token {
            None => false,
            Some(text) => match self.tokens.lock().expect("sound").get_mut(text) {
                None => return EnrolDecision::Refused(refused(RefusalReason::UnknownToken)),
                Some(token) if token.expired => {
                    return EnrolDecision::Refused(refused(RefusalReason::TokenExpired));
                }
                Some(Token { uses: 0, .. }) => {
                    return EnrolDecision::Refused(refused(RefusalReason::TokenSpent));
                }
                Some(token) => {
                    token.uses -= 1;
                    true
                }
            },
        };
        members.entry(request.agent).or_insert_with(|| Member {
            public_key: request.public_key,
            approved,
            removed: false,
            commands: Vec::new(),
            reports: Vec::new(),
            last: watch::channel(0).0,
        });
        match approved {
            true => EnrolDecision::Approved { name: request.name },
            false => EnrolDecision::Pending { retry_after_s: 1 },
        }
    }

    async fn connected(&self, agent: AgentId, hello: Hello, _: SocketAddr) -> Result<Session, Refused> {
        self.log().await;
        let members = self.members.lock().expect("sound");
        let Some(member) = members.get(&agent).filter(|member| member.approved) else {
            return Err(refused(RefusalReason::NotAllowed));
        };
        self.tell(Told::Connected(agent, hello.addresses));
        Ok(Session { name: "agent".into(), reports_stored: member.reports.len() as u64 })
    }

    async fn disconnected(&self, agent: AgentId, reason: String) {
        self.log().await;
        self.tell(Told::Disconnected(agent, reason));
    }

    async fn reports(&self, agent: AgentId, reports: Vec<Signed>) -> Result<u64, ReportError> {
        self.log().await;
        self.with(agent, |member| {
            for signed in reports {
                let report = Report::open(&signed, &member.public_key)
                    .map_err(|reason| ReportError::Refused(refused(reason)))?;
                if report.sequence == member.reports.len() as u64 + 1 {
                    member.reports.push(report);
                }
            }
            Ok(member.reports.len() as u64)
        })
    }

    fn progress(&self, agent: AgentId, _: Progress) {
        self.tell(Told::Progress(agent));
    }

    async fn commands_after(&self, agent: AgentId, cursor: u64, max: usize) -> Vec<(u64, Signed)> {
        self.with(agent, |member| {
            let commands = member.commands.iter().cloned();
            (1..).zip(commands).skip(cursor as usize).take(max).collect()
        })
    }

    fn command_watch(&self, agent: AgentId) -> watch::Receiver<u64> {
        self.with(agent, |member| member.last.subscribe())
    }

    fn is_removed(&self, agent: AgentId) -> bool {
        self.members.lock().expect("sound").get(&agent).is_some_and(|member| member.removed)
    }

    fn must_leave(&self, agent: AgentId) -> Option<Ousted> {
        let elsewhere = self.elsewhere.lock().expect("sound").contains(&agent);
        let removed = self.is_removed(agent).then_some(Ousted::Removed(agent));
        removed.or(elsewhere.then_some(Ousted::Moved(agent)))
    }

    fn ousted(&self) -> broadcast::Receiver<Ousted> {
        self.ousted.subscribe()
    }

    fn gateways(&self) -> watch::Receiver<Arc<[String]>> {
        self.gateways.subscribe()
    }
}
