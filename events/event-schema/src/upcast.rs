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
        (40, 1) => newer::<v1::JobCreated, crate::JobCreated>(tagged, 4),
        (40, 2) => newer::<v2::JobCreated, crate::JobCreated>(tagged, 4),
        (40, 3) => newer::<v3::JobCreated, crate::JobCreated>(tagged, 4),
        (50, 1) => newer::<v1::RunStarted, crate::RunStarted>(tagged, 3),
        (50, 2) => newer::<v2::RunStarted, crate::RunStarted>(tagged, 3),
        (53, 1) => newer::<v1::RunProblemReported, crate::RunProblemReported>(tagged, 2),
        (60, 1) => newer::<v1::CommandIssued, crate::CommandIssued>(tagged, 2),
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
    let tagged = event.to_tagged();
    let kind = tagged.kind;
    let version = tagged.version.min(level);
    if version == tagged.version {
        return tagged;
    }
    let shape = |payload: Result<Vec<u8>, NoShape>| payload.map(|payload| Tagged { kind, version, payload });
    if level > 2 {
        let at_3 = match event {
            Event::JobCreated(e) => shape(v3::JobCreated::try_from(e).map(|old| encode(&old))),
            _ => Ok(tagged.clone()),
        };
        return at_3.unwrap_or(tagged);
    }
    let at_2 = match event {
        Event::JobCreated(e) => shape(v2::JobCreated::try_from(e).map(|old| encode(&old))),
        Event::RunStarted(e) => shape(v2::RunStarted::try_from(e).map(|old| encode(&old))),
        _ => Ok(tagged.clone()),
    };
    if level > 1 || at_2.is_err() {
        return at_2.unwrap_or(tagged);
    }
    let payload = match event {
        Event::AgentEnrolled(e) => encode(&v1::AgentEnrolled::from(e)),
        Event::AgentOnline(e) => encode(&v1::AgentOnline::from(e)),
        Event::AgentTagged(e) => encode(&v1::AgentTagged::from(e)),
        Event::EnrolmentRefused(e) => encode(&v1::EnrolmentRefused::from(e)),
        Event::JobCreated(e) => match v1::JobCreated::try_from(e) {
            Ok(old) => encode(&old),
            Err(NoShape) => return tagged,
        },
        Event::RunStarted(e) => encode(&v1::RunStarted::from(e)),
        Event::RunProblemReported(e) => encode(&v1::RunProblemReported::from(e)),
        Event::CommandIssued(e) => encode(&v1::CommandIssued::from(e)),
        Event::ReportReceived(e) => encode(&v1::ReportReceived::from(e)),
        _ => return tagged,
    };
    Tagged { kind: tagged.kind, version: 1, payload }
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

/// Version 3 of what has a version 4: no synchronizations.
pub mod v3 {
    use alloc::string::String;
    use alloc::vec::Vec;

    use serde::{Deserialize, Serialize};

    use super::NoShape;
    use crate::{Disposal, JobId, Place, Private};

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

    impl From<JobCreated> for crate::JobCreated {
        fn from(e: JobCreated) -> Self {
            let spec = match e.spec {
                JobSpec::Distribution { source, destinations } => {
                    crate::JobSpec::Distribution { source, destinations }
                }
                JobSpec::Consolidation { sources, destinations, subfolder, after } => {
                    crate::JobSpec::Consolidation { sources, destinations, subfolder, after }
                }
            };
            Self { job: e.job, name: e.name, spec }
        }
    }

    impl TryFrom<&crate::JobCreated> for JobCreated {
        type Error = NoShape;

        fn try_from(e: &crate::JobCreated) -> Result<Self, NoShape> {
            let spec = match e.spec.clone() {
                crate::JobSpec::Distribution { source, destinations } => {
                    JobSpec::Distribution { source, destinations }
                }
                crate::JobSpec::Consolidation { sources, destinations, subfolder, after } => {
                    JobSpec::Consolidation { sources, destinations, subfolder, after }
                }
                crate::JobSpec::Synchronization { .. } => return Err(NoShape),
            };
            Ok(Self { job: e.job, name: e.name.clone(), spec })
        }
    }
}

/// Version 2 of what has a version 3: distributions alone, and runs that stand alone.
pub mod v2 {
    use alloc::vec::Vec;

    use serde::{Deserialize, Serialize};

    use super::NoShape;
    use crate::{Disposal, JobId, Participant, Place, Private, RunId};

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

    impl From<JobCreated> for crate::JobCreated {
        fn from(e: JobCreated) -> Self {
            let JobSpec::Distribution { source, destinations } = e.spec;
            Self { job: e.job, name: e.name, spec: crate::JobSpec::Distribution { source, destinations } }
        }
    }

    impl TryFrom<&crate::JobCreated> for JobCreated {
        type Error = NoShape;

        fn try_from(e: &crate::JobCreated) -> Result<Self, NoShape> {
            let crate::JobSpec::Distribution { source, destinations } = &e.spec else { return Err(NoShape) };
            let (source, destinations) = (source.clone(), destinations.clone());
            let spec = JobSpec::Distribution { source, destinations };
            Ok(Self { job: e.job, name: e.name.clone(), spec })
        }
    }

    impl From<RunStarted> for crate::RunStarted {
        fn from(e: RunStarted) -> Self {
            let RunStarted { run, job, paths, participants } = e;
            Self { run, job, paths, participants, batch: None, after: Disposal::Keep }
        }
    }

    impl TryFrom<&crate::RunStarted> for RunStarted {
        type Error = NoShape;

        fn try_from(e: &crate::RunStarted) -> Result<Self, NoShape> {
            if e.batch.is_some() || e.after != Disposal::Keep {
                return Err(NoShape);
            }
            let (paths, participants) = (e.paths.clone(), e.participants.clone());
            Ok(Self { run: e.run, job: e.job, paths, participants })
        }
    }
}

/// Version 1 of what has a version 2: all texts in the clear.
pub mod v1 {
    use alloc::string::String;
    use alloc::vec::Vec;

    use serde::{Deserialize, Serialize};

    use super::NoShape;
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
            let spec = crate::JobSpec::Distribution { source: source.into(), destinations };
            Self { job: e.job, name: e.name.into(), spec }
        }
    }

    impl TryFrom<&crate::JobCreated> for JobCreated {
        type Error = NoShape;

        fn try_from(e: &crate::JobCreated) -> Result<Self, NoShape> {
            let crate::JobSpec::Distribution { source, destinations } = &e.spec else { return Err(NoShape) };
            let destinations = destinations.iter().map(Into::into).collect();
            let spec = JobSpec::Distribution { source: source.into(), destinations };
            Ok(Self { job: e.job, name: text(&e.name), spec })
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
            Self { command, agent, sequence, run, joins, signed: signed.into() }
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
