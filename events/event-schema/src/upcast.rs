//! Old shapes of payloads, turned into the newest ones while reading, and back while a log of an older level is
//! still written ([`crate::level`]).
//!
//! A stored event is never edited. When a payload changes, its old struct moves here under its
//! version, and a pure function turns it into the next version; `tests/golden.rs` keeps bytes of
//! every version ever written.

use alloc::vec::Vec;
use core::fmt;

use serde::de::DeserializeOwned;

use crate::{Event, Tagged, decode_exact, encode};

/// For enums all of whose payloads still have their first shape.
pub fn none(_: &Tagged) -> Option<Tagged> {
    None
}

/// Events of older versions in their newest.
pub fn event(tagged: &Tagged) -> Option<Tagged> {
    match (tagged.kind, tagged.version) {
        (10, 1) => newer::<v1::AgentEnrolled, crate::AgentEnrolled>(tagged, 2),
        (12, 1) => newer::<v1::AgentOnline, crate::AgentOnline>(tagged, 2),
        (15, 1) => newer::<v1::AgentTagged, crate::AgentTagged>(tagged, 2),
        (23, 1) => newer::<v1::EnrolmentRefused, crate::EnrolmentRefused>(tagged, 2),
        (40, 1) => newer::<v1::JobCreated, crate::JobCreated>(tagged, 5),
        (40, 2) => newer::<v2::JobCreated, crate::JobCreated>(tagged, 5),
        (40, 3) => newer::<v3::JobCreated, crate::JobCreated>(tagged, 5),
        (40, 4) => newer::<v4::JobCreated, crate::JobCreated>(tagged, 5),
        (50, 1) => newer::<v1::RunStarted, crate::RunStarted>(tagged, 4),
        (50, 2) => newer::<v2::RunStarted, crate::RunStarted>(tagged, 4),
        (50, 3) => newer::<v3::RunStarted, crate::RunStarted>(tagged, 4),
        (53, 1) => newer::<v1::RunProblemReported, crate::RunProblemReported>(tagged, 2),
        (60, 1) => newer::<v1::CommandIssued, crate::CommandIssued>(tagged, 3),
        (60, 2) => newer::<v2::CommandIssued, crate::CommandIssued>(tagged, 3),
        (70, 1) => newer::<v1::ReportReceived, crate::ReportReceived>(tagged, 2),
        _ => None,
    }
}

fn newer<Old, New>(tagged: &Tagged, version: u8) -> Option<Tagged>
where
    Old: DeserializeOwned,
    New: From<Old> + serde::Serialize,
{
    // Bytes that are no payload of the old version shall be none of the new one either.
    let payload = decode_exact::<Old>("payload", &tagged.payload)
        .map_or_else(|_| Vec::new(), |old| encode(&New::from(old)));
    Some(Tagged { kind: tagged.kind, version, payload })
}

/// An event in the shape of a level: what the level has no shape for stays in its newest.
pub fn event_at(event: &Event, level: u8) -> Tagged {
    let newest = event.to_tagged();
    if crate::level::of(&newest) <= level {
        return newest;
    }
    let shape = match event {
        Event::JobCreated(e) => match level {
            4.. => v4::JobCreated::try_from(e).map(|old| (4, encode(&old))),
            3 => v3::JobCreated::try_from(e).map(|old| (3, encode(&old))),
            2 => v2::JobCreated::try_from(e).map(|old| (2, encode(&old))),
            _ => v1::JobCreated::try_from(e).map(|old| (1, encode(&old))),
        },
        Event::RunStarted(e) => match level {
            3.. => v3::RunStarted::try_from(e).map(|old| (3, encode(&old))),
            2 => v2::RunStarted::try_from(e).map(|old| (2, encode(&old))),
            _ => v2::RunStarted::try_from(e).map(|_| (1, encode(&v1::RunStarted::from(e)))),
        },
        Event::CommandIssued(e) => match level {
            2.. => v2::CommandIssued::try_from(e).map(|old| (2, encode(&old))),
            _ => v2::CommandIssued::try_from(e).map(|_| (1, encode(&v1::CommandIssued::from(e)))),
        },
        Event::AgentEnrolled(e) => Ok((1, encode(&v1::AgentEnrolled::from(e)))),
        Event::AgentOnline(e) => Ok((1, encode(&v1::AgentOnline::from(e)))),
        Event::AgentTagged(e) => Ok((1, encode(&v1::AgentTagged::from(e)))),
        Event::EnrolmentRefused(e) => Ok((1, encode(&v1::EnrolmentRefused::from(e)))),
        Event::RunProblemReported(e) => Ok((1, encode(&v1::RunProblemReported::from(e)))),
        Event::ReportReceived(e) => Ok((1, encode(&v1::ReportReceived::from(e)))),
        _ => Err(NoShape),
    };
    let kind = newest.kind;
    shape.map_or(newest, |(version, payload)| Tagged { kind, version, payload })
}

/// What an older version of a payload has no words for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoShape;

impl fmt::Display for NoShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("this cannot be said in an older version")
    }
}

impl core::error::Error for NoShape {}

/// Version 4 of what has a version 5: no backups, and nothing that is asked of runs.
pub mod v4 {
    use alloc::string::String;
    use alloc::vec::Vec;

    use serde::{Deserialize, Serialize};

    use super::NoShape;
    use crate::{Disposal, JobId, Place, Private, Share, SyncPolicy};

    /// `JobCreated`, version 4.
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    #[allow(missing_docs, reason = "the newest version's fields are documented")]
    pub struct JobCreated {
        pub job: JobId,
        pub name: Private<String>,
        pub spec: JobSpec,
    }

    /// `JobSpec`, version 4.
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    pub enum JobSpec {
        /// See [`crate::JobSpec::Distribution`].
        Distribution {
            /// The source.
            source: Place,
            /// The destinations.
            destinations: Vec<Place>,
        },
        /// See [`crate::JobSpec::Consolidation`].
        Consolidation {
            /// The sources.
            sources: Vec<Place>,
            /// The destinations.
            destinations: Vec<Place>,
            /// The template of the sources' folders.
            subfolder: Private<String>,
            /// What becomes of the sources' files.
            after: Disposal,
        },
        /// See [`crate::JobSpec::Synchronization`].
        Synchronization {
            /// Who takes part.
            members: Vec<Share>,
            /// What holds for all of them.
            policy: SyncPolicy,
        },
    }

    impl From<JobCreated> for crate::JobCreated {
        fn from(e: JobCreated) -> Self {
            let options = Private::default();
            let spec = match e.spec {
                JobSpec::Distribution { source, destinations } => {
                    crate::JobSpec::Distribution { source, destinations, options }
                }
                JobSpec::Consolidation { sources, destinations, subfolder, after } => {
                    crate::JobSpec::Consolidation { sources, destinations, subfolder, after, options }
                }
                JobSpec::Synchronization { members, policy } => {
                    crate::JobSpec::Synchronization { members, policy }
                }
            };
            Self { job: e.job, name: e.name, spec }
        }
    }

    impl TryFrom<&crate::JobCreated> for JobCreated {
        type Error = NoShape;

        fn try_from(e: &crate::JobCreated) -> Result<Self, NoShape> {
            if e.spec.options().is_some_and(|options| !options.asks_nothing()) {
                return Err(NoShape);
            }
            let spec = match e.spec.clone() {
                crate::JobSpec::Distribution { source, destinations, .. } => {
                    JobSpec::Distribution { source, destinations }
                }
                crate::JobSpec::Consolidation { sources, destinations, subfolder, after, .. } => {
                    JobSpec::Consolidation { sources, destinations, subfolder, after }
                }
                crate::JobSpec::Synchronization { members, policy } => {
                    JobSpec::Synchronization { members, policy }
                }
                crate::JobSpec::Backup { .. } => return Err(NoShape),
            };
            Ok(Self { job: e.job, name: e.name.clone(), spec })
        }
    }
}

/// Version 3 of what has a version 4: no synchronizations, and runs of which nothing more is asked.
pub mod v3 {
    use alloc::string::String;
    use alloc::vec::Vec;

    use serde::{Deserialize, Serialize};

    use super::NoShape;
    use super::v4;
    use crate::{BatchId, Disposal, JobId, Participant, Place, Private, Purpose, RunId};

    /// `JobCreated`, version 3.
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    #[allow(missing_docs, reason = "the newest version's fields are documented")]
    pub struct JobCreated {
        pub job: JobId,
        pub name: Private<String>,
        pub spec: JobSpec,
    }

    /// `JobSpec`, version 3.
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    pub enum JobSpec {
        /// See [`crate::JobSpec::Distribution`].
        Distribution {
            /// The source.
            source: Place,
            /// The destinations.
            destinations: Vec<Place>,
        },
        /// See [`crate::JobSpec::Consolidation`].
        Consolidation {
            /// The sources.
            sources: Vec<Place>,
            /// The destinations.
            destinations: Vec<Place>,
            /// The template of the sources' folders.
            subfolder: Private<String>,
            /// What becomes of the sources' files.
            after: Disposal,
        },
    }

    /// `RunStarted`, version 3.
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    #[allow(missing_docs, reason = "the newest version's fields are documented")]
    pub struct RunStarted {
        pub run: RunId,
        pub job: JobId,
        pub paths: Private<Vec<Vec<u8>>>,
        pub participants: Vec<Participant>,
        pub batch: Option<BatchId>,
        pub after: Disposal,
    }

    impl From<JobCreated> for crate::JobCreated {
        fn from(e: JobCreated) -> Self {
            let spec = match e.spec {
                JobSpec::Distribution { source, destinations } => {
                    v4::JobSpec::Distribution { source, destinations }
                }
                JobSpec::Consolidation { sources, destinations, subfolder, after } => {
                    v4::JobSpec::Consolidation { sources, destinations, subfolder, after }
                }
            };
            v4::JobCreated { job: e.job, name: e.name, spec }.into()
        }
    }

    impl TryFrom<&crate::JobCreated> for JobCreated {
        type Error = NoShape;

        fn try_from(e: &crate::JobCreated) -> Result<Self, NoShape> {
            let v4::JobCreated { job, name, spec } = v4::JobCreated::try_from(e)?;
            let spec = match spec {
                v4::JobSpec::Distribution { source, destinations } => {
                    JobSpec::Distribution { source, destinations }
                }
                v4::JobSpec::Consolidation { sources, destinations, subfolder, after } => {
                    JobSpec::Consolidation { sources, destinations, subfolder, after }
                }
                v4::JobSpec::Synchronization { .. } => return Err(NoShape),
            };
            Ok(Self { job, name, spec })
        }
    }

    impl From<RunStarted> for crate::RunStarted {
        fn from(e: RunStarted) -> Self {
            let RunStarted { run, job, paths, participants, batch, after } = e;
            let (options, purpose) = (Private::default(), Purpose::Plain);
            Self { run, job, paths, participants, batch, after, options, purpose }
        }
    }

    impl TryFrom<&crate::RunStarted> for RunStarted {
        type Error = NoShape;

        fn try_from(e: &crate::RunStarted) -> Result<Self, NoShape> {
            if !e.options.asks_nothing() || e.purpose != Purpose::Plain {
                return Err(NoShape);
            }
            let (paths, participants) = (e.paths.clone(), e.participants.clone());
            Ok(Self { run: e.run, job: e.job, paths, participants, batch: e.batch, after: e.after })
        }
    }
}

/// Version 2 of what has a version 3: distributions alone, and runs that stand alone.
pub mod v2 {
    use alloc::vec::Vec;

    use serde::{Deserialize, Serialize};

    use super::{NoShape, v3};
    use crate::{AgentId, CommandId, Disposal, JobId, Participant, Place, Private, RunId, Signed};

    /// `JobCreated`, version 2.
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    #[allow(missing_docs, reason = "the newest version's fields are documented")]
    pub struct JobCreated {
        pub job: JobId,
        pub name: Private<alloc::string::String>,
        pub spec: JobSpec,
    }

    /// `JobSpec`, version 2.
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    pub enum JobSpec {
        /// See [`crate::JobSpec::Distribution`].
        Distribution {
            /// The source.
            source: Place,
            /// The destinations.
            destinations: Vec<Place>,
        },
    }

    /// `RunStarted`, version 2.
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    #[allow(missing_docs, reason = "the newest version's fields are documented")]
    pub struct RunStarted {
        pub run: RunId,
        pub job: JobId,
        pub paths: Private<Vec<Vec<u8>>>,
        pub participants: Vec<Participant>,
    }

    /// `CommandIssued`, version 2.
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    #[allow(missing_docs, reason = "the newest version's fields are documented")]
    pub struct CommandIssued {
        pub command: CommandId,
        pub agent: AgentId,
        pub sequence: u64,
        pub run: Option<RunId>,
        pub joins: bool,
        pub signed: Private<Signed>,
    }

    impl From<JobCreated> for crate::JobCreated {
        fn from(e: JobCreated) -> Self {
            let JobSpec::Distribution { source, destinations } = e.spec;
            let spec = v3::JobSpec::Distribution { source, destinations };
            v3::JobCreated { job: e.job, name: e.name, spec }.into()
        }
    }

    impl TryFrom<&crate::JobCreated> for JobCreated {
        type Error = NoShape;

        fn try_from(e: &crate::JobCreated) -> Result<Self, NoShape> {
            let v3::JobCreated { job, name, spec } = v3::JobCreated::try_from(e)?;
            let v3::JobSpec::Distribution { source, destinations } = spec else { return Err(NoShape) };
            Ok(Self { job, name, spec: JobSpec::Distribution { source, destinations } })
        }
    }

    impl From<RunStarted> for crate::RunStarted {
        fn from(e: RunStarted) -> Self {
            let RunStarted { run, job, paths, participants } = e;
            let (batch, after) = (None, Disposal::Keep);
            v3::RunStarted { run, job, paths, participants, batch, after }.into()
        }
    }

    impl TryFrom<&crate::RunStarted> for RunStarted {
        type Error = NoShape;

        fn try_from(e: &crate::RunStarted) -> Result<Self, NoShape> {
            let v3::RunStarted { run, job, paths, participants, batch, after } = v3::RunStarted::try_from(e)?;
            if batch.is_some() || after != Disposal::Keep {
                return Err(NoShape);
            }
            Ok(Self { run, job, paths, participants })
        }
    }

    impl From<CommandIssued> for crate::CommandIssued {
        fn from(e: CommandIssued) -> Self {
            let CommandIssued { command, agent, sequence, run, joins, signed } = e;
            Self { command, agent, sequence, run, joins, signed, backup: None }
        }
    }

    impl TryFrom<&crate::CommandIssued> for CommandIssued {
        type Error = NoShape;

        fn try_from(e: &crate::CommandIssued) -> Result<Self, NoShape> {
            if e.backup.is_some() {
                return Err(NoShape);
            }
            let crate::CommandIssued { command, agent, sequence, run, joins, signed, .. } = e.clone();
            Ok(Self { command, agent, sequence, run, joins, signed })
        }
    }
}

/// Version 1 of what has a version 2: all texts in the clear.
pub mod v1 {
    use alloc::string::String;
    use alloc::vec::Vec;

    use serde::{Deserialize, Serialize};

    use super::{NoShape, v2};
    use crate::{
        AgentId, Command, CommandId, JobId, Party, Private, Problem, RefusalReason, Report, ReportBody, Role,
        RunId, Signed, TokenId,
    };

    macro_rules! payloads {
        ($($name:ident { $($field:ident: $ty:ty),* $(,)? })+) => {$(
            #[doc = concat!("`", stringify!($name), "`, version 1.")]
            #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
            #[allow(missing_docs, reason = "the newest version's fields are documented")]
            pub struct $name { $(pub $field: $ty),* }
        )+};
    }

    payloads! {
        AgentEnrolled {
            agent: AgentId,
            public_key: [u8; 32],
            name: String,
            tags: Vec<(String, String)>,
            token: Option<TokenId>,
            version: String,
        }
        AgentOnline { agent: AgentId, addresses: Vec<String>, version: String }
        AgentTagged { agent: AgentId, tags: Vec<(String, String)> }
        EnrolmentRefused {
            reason: RefusalReason,
            token: Option<TokenId>,
            agent: AgentId,
            address: String,
        }
        Place { party: Party, path: Vec<u8> }
        JobCreated { job: JobId, name: String, spec: JobSpec }
        Participant { agent: AgentId, role: Role, path: Vec<u8> }
        RunStarted { run: RunId, job: JobId, participants: Vec<Participant> }
        RunProblemReported { run: RunId, agent: AgentId, problem: Problem }
        CommandIssued {
            command: CommandId,
            agent: AgentId,
            sequence: u64,
            run: Option<RunId>,
            signed: Signed,
        }
        ReportReceived { agent: AgentId, sequence: u64, signed: Signed }
    }

    /// `JobSpec`, version 1.
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    pub enum JobSpec {
        /// See [`crate::JobSpec::Distribution`].
        Distribution {
            /// The source.
            source: Place,
            /// The destinations.
            destinations: Vec<Place>,
        },
    }

    /// `Actor`, in records of version 1.
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    pub enum Actor {
        /// The service itself.
        Service,
        /// Somebody through the API.
        Operator(String),
        /// An agent.
        Agent(AgentId),
    }

    impl From<Actor> for crate::Actor {
        fn from(actor: Actor) -> Self {
            match actor {
                Actor::Service => Self::Service,
                Actor::Operator(name) => Self::Operator(name.into()),
                Actor::Agent(agent) => Self::Agent(agent),
            }
        }
    }

    impl From<&crate::Actor> for Actor {
        fn from(actor: &crate::Actor) -> Self {
            match actor {
                crate::Actor::Service => Self::Service,
                crate::Actor::Operator(name) => Self::Operator(text(name)),
                crate::Actor::Agent(agent) => Self::Agent(*agent),
            }
        }
    }

    fn text<T: Clone>(private: &Private<T>) -> T {
        (**private).clone()
    }

    impl From<AgentEnrolled> for crate::AgentEnrolled {
        fn from(e: AgentEnrolled) -> Self {
            let AgentEnrolled { agent, public_key, name, tags, token, version } = e;
            Self { agent, public_key, name: name.into(), tags: tags.into(), token, version }
        }
    }

    impl From<&crate::AgentEnrolled> for AgentEnrolled {
        fn from(e: &crate::AgentEnrolled) -> Self {
            let crate::AgentEnrolled { agent, public_key, name, tags, token, version } = e;
            Self {
                agent: *agent,
                public_key: *public_key,
                name: text(name),
                tags: text(tags),
                token: *token,
                version: version.clone(),
            }
        }
    }

    impl From<AgentOnline> for crate::AgentOnline {
        fn from(e: AgentOnline) -> Self {
            Self { agent: e.agent, addresses: e.addresses.into(), version: e.version }
        }
    }

    impl From<&crate::AgentOnline> for AgentOnline {
        fn from(e: &crate::AgentOnline) -> Self {
            Self { agent: e.agent, addresses: text(&e.addresses), version: e.version.clone() }
        }
    }

    impl From<AgentTagged> for crate::AgentTagged {
        fn from(e: AgentTagged) -> Self {
            Self { agent: e.agent, tags: e.tags.into() }
        }
    }

    impl From<&crate::AgentTagged> for AgentTagged {
        fn from(e: &crate::AgentTagged) -> Self {
            Self { agent: e.agent, tags: text(&e.tags) }
        }
    }

    impl From<EnrolmentRefused> for crate::EnrolmentRefused {
        fn from(e: EnrolmentRefused) -> Self {
            Self { reason: e.reason, token: e.token, agent: e.agent, address: e.address.into() }
        }
    }

    impl From<&crate::EnrolmentRefused> for EnrolmentRefused {
        fn from(e: &crate::EnrolmentRefused) -> Self {
            Self { reason: e.reason, token: e.token, agent: e.agent, address: text(&e.address) }
        }
    }

    impl From<Place> for crate::Place {
        fn from(place: Place) -> Self {
            Self { party: place.party, path: place.path.into() }
        }
    }

    impl From<&crate::Place> for Place {
        fn from(place: &crate::Place) -> Self {
            Self { party: place.party, path: text(&place.path) }
        }
    }

    impl From<JobCreated> for crate::JobCreated {
        fn from(e: JobCreated) -> Self {
            let JobSpec::Distribution { source, destinations } = e.spec;
            let destinations = destinations.into_iter().map(Into::into).collect();
            let spec = v2::JobSpec::Distribution { source: source.into(), destinations };
            v2::JobCreated { job: e.job, name: e.name.into(), spec }.into()
        }
    }

    impl TryFrom<&crate::JobCreated> for JobCreated {
        type Error = NoShape;

        fn try_from(e: &crate::JobCreated) -> Result<Self, NoShape> {
            let v2::JobCreated { job, name, spec } = v2::JobCreated::try_from(e)?;
            let v2::JobSpec::Distribution { source, destinations } = spec;
            let destinations = destinations.iter().map(Into::into).collect();
            let spec = JobSpec::Distribution { source: (&source).into(), destinations };
            Ok(Self { job, name: text(&name), spec })
        }
    }

    impl From<RunStarted> for crate::RunStarted {
        fn from(e: RunStarted) -> Self {
            let named = e.participants.into_iter().map(|p| (p.agent, p.role, p.path));
            Self::new(e.run, e.job, named)
        }
    }

    impl From<&crate::RunStarted> for RunStarted {
        fn from(e: &crate::RunStarted) -> Self {
            let old = |p: &crate::Participant| Participant {
                agent: p.agent,
                role: p.role,
                path: e.path(p).to_vec(),
            };
            Self { run: e.run, job: e.job, participants: e.participants.iter().map(old).collect() }
        }
    }

    impl From<RunProblemReported> for crate::RunProblemReported {
        fn from(e: RunProblemReported) -> Self {
            Self::new(e.run, e.agent, e.problem)
        }
    }

    impl From<&crate::RunProblemReported> for RunProblemReported {
        fn from(e: &crate::RunProblemReported) -> Self {
            let (path, detail) = (e.text.path.clone(), e.text.detail.clone());
            Self { run: e.run, agent: e.agent, problem: Problem { class: e.class, path, detail } }
        }
    }

    impl From<CommandIssued> for crate::CommandIssued {
        fn from(e: CommandIssued) -> Self {
            let command = Command::decode(&e.signed.bytes);
            let joins = command.is_ok_and(|command| command.body.join().is_some());
            let CommandIssued { command, agent, sequence, run, signed } = e;
            Self { command, agent, sequence, run, joins, signed: signed.into(), backup: None }
        }
    }

    impl From<&crate::CommandIssued> for CommandIssued {
        fn from(e: &crate::CommandIssued) -> Self {
            let crate::CommandIssued { command, agent, sequence, run, signed, .. } = e;
            Self { command: *command, agent: *agent, sequence: *sequence, run: *run, signed: text(signed) }
        }
    }

    impl From<ReportReceived> for crate::ReportReceived {
        fn from(e: ReportReceived) -> Self {
            let problem_in = match Report::decode(&e.signed.bytes).map(|report| report.body) {
                Ok(ReportBody::ProblemReported(problem)) => Some(problem.run),
                _ => None,
            };
            Self { agent: e.agent, sequence: e.sequence, problem_in, signed: e.signed.into() }
        }
    }

    impl From<&crate::ReportReceived> for ReportReceived {
        fn from(e: &crate::ReportReceived) -> Self {
            Self { agent: e.agent, sequence: e.sequence, signed: text(&e.signed) }
        }
    }
}
