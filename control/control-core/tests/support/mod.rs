//! A fleet on paper: events in, state and projections folded from them, commands signed as the service
//! would sign them.

#![allow(dead_code, reason = "each test uses its own part")]

use control_core::agent::{self, Answer, Enrolment};
use control_core::plan::{self, Order};
use control_core::projection::Views;
use control_core::replica::Session;
use control_core::{Rejection, State, backup, batch, group, job, report, run, token};
use ed25519_dalek::SigningKey;
use event_schema::*;

pub(crate) const NOW: Timestamp = Timestamp(1_795_000_000_000);

pub(crate) struct World {
    pub(crate) state: State,
    pub(crate) views: Views,
    pub(crate) records: Vec<Record>,
    pub(crate) now: Timestamp,
}

/// Agent number `n`: its key.
pub(crate) fn key(n: u8) -> SigningKey {
    SigningKey::from_bytes(&[n; 32])
}

/// Agent number `n`: its id.
pub(crate) fn agent_id(n: u8) -> AgentId {
    AgentId::of_key(&key(n).verifying_key().to_bytes())
}

pub(crate) fn id(n: u8) -> [u8; 16] {
    [n; 16]
}

pub(crate) fn place(party: Party, path: &str) -> Place {
    Place { party, path: path.into() }
}

pub(crate) fn at(n: u8, path: &str) -> Place {
    place(Party::Agent(agent_id(n)), path)
}

pub(crate) fn distribution(source: Place, destinations: &[Place]) -> JobSpec {
    JobSpec::Distribution { source, destinations: destinations.to_vec(), options: Private::default() }
}

pub(crate) fn consolidation(
    sources: &[Place],
    destinations: &[Place],
    subfolder: &str,
    after: Disposal,
) -> JobSpec {
    let (sources, destinations) = (sources.to_vec(), destinations.to_vec());
    JobSpec::Consolidation {
        sources,
        destinations,
        subfolder: subfolder.into(),
        after,
        options: Private::default(),
    }
}

/// A backup of these to agent `storage`, a shelf for each by its name.
pub(crate) fn backup(sources: &[Place], storage: &[Place], when: When, keep: Keep) -> JobSpec {
    JobSpec::Backup {
        sources: sources.to_vec(),
        destinations: storage.to_vec(),
        subfolder: "/%SRC:AGENT_NAME%".into(),
        when,
        keep,
        options: Private::default(),
    }
}

/// Agent number `n` as a member.
pub(crate) fn share(n: u8, path: &str, permission: Permission) -> Share {
    let selection = Selection::default().into();
    Share { party: Party::Agent(agent_id(n)), path: path.into(), permission, selection }
}

pub(crate) fn synchronization(members: &[Share]) -> JobSpec {
    JobSpec::Synchronization { members: members.to_vec(), policy: SyncPolicy::default() }
}

pub(crate) fn disposed(run: RunId) -> ReportBody {
    let disposed = Disposed { files: 3, bytes: 300, ..Disposed::default() };
    DisposalReported { run, disposed }.into()
}

pub(crate) fn enrolment(n: u8, name: &str, token: Option<(TokenId, [u8; 32])>) -> Enrolment {
    Enrolment {
        agent: agent_id(n),
        public_key: key(n).verifying_key().to_bytes(),
        name: name.into(),
        tags: vec![],
        token,
        version: "0.1.0".into(),
        address: "192.0.2.1:4000".into(),
    }
}

impl World {
    pub(crate) fn new() -> Self {
        let mut world =
            Self { state: State::default(), views: Views::default(), records: Vec::new(), now: NOW };
        world.happen(vec![FleetFounded { root_key: [1; 32], ca_fingerprint: [2; 32] }.into()]);
        world
    }

    /// A world with agents 1 to `count`, approved and online.
    pub(crate) fn with_agents(count: u8) -> Self {
        let mut world = Self::new();
        for n in 1..=count {
            world.enrol(n, &format!("agent-{n}"), None);
            world.must(|s| agent::decide(s, agent::Command::Approve { agent: agent_id(n) }));
            world.connect(n);
        }
        world
    }

    /// A world with a run 1 of job 1 from agent 1 to agents 2..=`count`.
    pub(crate) fn with_run(count: u8) -> Self {
        let mut world = Self::with_agents(count);
        let destinations: Vec<Place> = (2..=count).map(|n| at(n, "in")).collect();
        world.create_job(1, distribution(at(1, "out"), &destinations)).expect("a job");
        world.start(1, 1).expect("a run");
        world.issue(1);
        world
    }

    /// Puts events on the log as one record, through their bytes.
    pub(crate) fn happen(&mut self, events: Vec<Event>) {
        if events.is_empty() {
            return;
        }
        let n = self.records.len() as u64 + 1;
        let mut record_id = [0; 16];
        record_id[8..].copy_from_slice(&n.to_be_bytes());
        let record = Record {
            id: RecordId(record_id),
            stream: "test".into(),
            time: self.now,
            actor: Actor::Service,
            causation: None,
            correlation: RecordId(record_id),
            events,
        };
        let record = Record::decode(&record.encode()).expect("what is written can be read");
        for event in &record.events {
            self.state.evolve(event);
        }
        assert!(self.views.apply(n, &record));
        self.records.push(record);
    }

    pub(crate) fn decide(
        &mut self,
        decide: impl FnOnce(&State) -> Result<Vec<Event>, Rejection>,
    ) -> Result<Vec<Event>, Rejection> {
        let events = decide(&self.state)?;
        self.happen(events.clone());
        Ok(events)
    }

    pub(crate) fn must(
        &mut self,
        decide: impl FnOnce(&State) -> Result<Vec<Event>, Rejection>,
    ) -> Vec<Event> {
        self.decide(decide).expect("granted")
    }

    pub(crate) fn enrol(&mut self, n: u8, name: &str, token: Option<(TokenId, [u8; 32])>) -> Answer {
        let (events, answer) = agent::enrol(&self.state, &enrolment(n, name, token), self.now);
        self.happen(events);
        answer
    }

    pub(crate) fn connect(&mut self, n: u8) {
        let addresses = vec![format!("192.0.2.{n}:5000")];
        let version = "0.1.0".to_string();
        self.must(|s| {
            agent::decide(
                s,
                agent::Command::Connected { agent: agent_id(n), session: Session::ALONE, addresses, version },
            )
        });
    }

    pub(crate) fn create_token(&mut self, n: u8, uses: u32, lives_ms: u64) -> Result<Vec<Event>, Rejection> {
        let (now, token) = (self.now, TokenId(id(n)));
        let expires = Timestamp(now.0 + lives_ms);
        let tags = vec![("agent_name".into(), format!("named-{n}"))];
        self.decide(|s| {
            token::decide(s, token::Command::Create { token, hash: [n; 32], tags, uses, expires }, now)
        })
    }

    pub(crate) fn create_group(&mut self, n: u8, members: &[u8]) {
        let group = GroupId(id(n));
        let agents: Vec<AgentId> = members.iter().map(|m| agent_id(*m)).collect();
        self.must(|s| group::decide(s, group::Command::Create { group, name: format!("group-{n}") }));
        self.must(|s| group::decide(s, group::Command::Add { group, agents }));
    }

    pub(crate) fn create_job(&mut self, n: u8, spec: JobSpec) -> Result<Vec<Event>, Rejection> {
        let name = format!("job-{n}");
        self.decide(|s| job::decide(s, job::Command::Create { job: JobId(id(n)), name, spec }))
    }

    pub(crate) fn start(&mut self, run: u8, job: u8) -> Result<Vec<Event>, Rejection> {
        self.decide(|s| run::decide(s, run::Command::Start { run: RunId(id(run)), job: JobId(id(job)) }))
    }

    /// Starts a run for each source of job `job`; what was skipped.
    pub(crate) fn start_batch(&mut self, batch: u8, job: u8) -> Result<batch::Started, Rejection> {
        let started = batch::start(&self.state, BatchId(id(batch)), JobId(id(job)), None, self.now)?;
        self.happen(started.events.clone());
        Ok(started)
    }

    pub(crate) fn stop(&mut self, run: u8) -> Vec<Event> {
        self.stop_run(RunId(id(run)))
    }

    /// The same for a run by its whole id.
    pub(crate) fn stop_run(&mut self, run: RunId) -> Vec<Event> {
        let reason = "enough".to_string();
        self.must(|s| run::decide(s, run::Command::Stop { run, reason }))
    }

    /// Signs and records everything outstanding for a run.
    pub(crate) fn issue(&mut self, run: u8) -> Vec<Order> {
        self.issue_of(RunId(id(run)))
    }

    /// The same for a run by its whole id.
    pub(crate) fn issue_of(&mut self, run: RunId) -> Vec<Order> {
        let mut all = Vec::new();
        loop {
            let orders = plan::orders(&self.state, run, 3);
            assert_eq!(orders.is_empty(), !plan::is_outstanding(&self.state, run));
            if orders.is_empty() {
                return all;
            }
            let events = orders.iter().map(|order| {
                let mut command = run.0;
                command[..8].copy_from_slice(&order.agent.0[..8]);
                command[8..].copy_from_slice(&order.sequence.to_be_bytes());
                let command = Command {
                    id: CommandId(command),
                    audience: order.agent,
                    sequence: order.sequence,
                    issued: self.now,
                    not_before: self.now,
                    expires: Timestamp::NEVER,
                    body: order.task.clone().into_body(order.run, vec![], vec![9]),
                };
                let (agent, sequence) = (order.agent, order.sequence);
                let signed = command.sign(&key(200));
                let joins = command.body.joins();
                CommandIssued {
                    command: command.id,
                    agent,
                    sequence,
                    run: Some(order.run),
                    joins,
                    signed: signed.into(),
                    backup: None,
                }
                .into()
            });
            let events = events.collect();
            self.happen(events);
            all.extend(orders);
        }
    }

    /// Signs and records everything outstanding for a backup besides its runs.
    pub(crate) fn issue_backup(&mut self, job: u8) -> Vec<backup::plan::Order> {
        let job = JobId(id(job));
        let mut all = Vec::new();
        loop {
            let orders = backup::plan::orders(&self.state, job, None, 2);
            assert_eq!(orders.is_empty(), !backup::plan::is_outstanding(&self.state, job, None));
            if orders.is_empty() {
                return all;
            }
            let events = orders.iter().map(|order| {
                let mut command = job.0;
                command[..8].copy_from_slice(&order.agent.0[..8]);
                command[8..].copy_from_slice(&order.sequence.to_be_bytes());
                let (agent, sequence) = (order.agent, order.sequence);
                let command = Command {
                    id: CommandId(command),
                    audience: agent,
                    sequence,
                    issued: self.now,
                    not_before: self.now,
                    expires: Timestamp::NEVER,
                    body: order.body.clone(),
                };
                let signed = command.sign(&key(200)).into();
                let backup = order.body.backup();
                CommandIssued {
                    command: command.id,
                    agent,
                    sequence,
                    run: None,
                    joins: false,
                    signed,
                    backup,
                }
                .into()
            });
            let events = events.collect();
            self.happen(events);
            all.extend(orders);
        }
    }

    /// Agent `n` says the next things.
    pub(crate) fn says(&mut self, n: u8, bodies: Vec<ReportBody>) -> Vec<Event> {
        let reports = self.reports(n, bodies);
        self.must(|s| report::decide(s, agent_id(n), &reports))
    }

    /// The same, not yet decided about.
    pub(crate) fn reports(&self, n: u8, bodies: Vec<ReportBody>) -> Vec<(Report, Signed)> {
        let first = self.state.reports_stored(agent_id(n)) + 1;
        let number = |(i, body): (usize, ReportBody)| {
            let report = Report { agent: agent_id(n), sequence: first + i as u64, time: self.now, body };
            let signed = report.sign(&key(n));
            (report, signed)
        };
        bodies.into_iter().enumerate().map(number).collect()
    }

    /// Agent `n`'s answer to its first command that waits.
    pub(crate) fn accepts(&self, n: u8) -> ReportBody {
        let (sequence, command) = self.waiting(n);
        CommandAccepted { command, sequence }.into()
    }

    pub(crate) fn waiting(&self, n: u8) -> (u64, CommandId) {
        let (sequence, signed) =
            self.views.mailboxes.after(agent_id(n), 0, 1).pop().expect("a command waits");
        (sequence, Command::decode(&signed.bytes).expect("a command").id)
    }

    /// Folded again from the first record.
    pub(crate) fn rebuilt(&self) -> Views {
        let mut views = Views::default();
        for (i, record) in self.records.iter().enumerate() {
            views.apply(i as u64 + 1, record);
        }
        views
    }
}

/// Names of events, reports left out.
pub(crate) fn kinds(events: &[Event]) -> Vec<&'static str> {
    events.iter().map(Event::name).filter(|name| *name != "report.received").collect()
}

pub(crate) fn progressed(events: &[Event], n: u8) -> Option<RunAgentState> {
    events.iter().rev().find_map(|event| match event {
        Event::RunAgentProgressed(e) if e.agent == agent_id(n) => Some(e.state),
        _ => None,
    })
}

pub(crate) fn outcome(events: &[Event]) -> Option<Outcome> {
    events.iter().find_map(|event| match event {
        Event::RunFinished(e) => Some(e.outcome),
        _ => None,
    })
}

pub(crate) fn state(run: u8, state: RunAgentState) -> ReportBody {
    RunStateReported { run: RunId(id(run)), state }.into()
}

pub(crate) fn completed(run: u8, state: RunAgentState) -> ReportBody {
    let stats = TransferStats { blocks_fetched: 7, bytes_from_source: 70, ..TransferStats::default() };
    RunCompleted { run: RunId(id(run)), state, stats }.into()
}

pub(crate) fn served(run: u8) -> ReportBody {
    let stats = TransferStats { bytes_sent: 99, ..TransferStats::default() };
    RunServed { run: RunId(id(run)), stats }.into()
}

pub(crate) fn manifest(run: u8) -> ReportBody {
    ManifestSigned { run: RunId(id(run)), root: [7; 32], entries: 3, bytes: 300, blocks: 4 }.into()
}

pub(crate) fn problem(run: u8, path: &str) -> ReportBody {
    let problem =
        Problem { class: ProblemClass::PermissionDenied, path: path.into(), detail: "two\nlines".into() };
    ProblemReported { run: RunId(id(run)), problem }.into()
}
