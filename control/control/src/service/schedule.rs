//! Starts of backups whose time has come: whoever holds the lease sees to them, or the service that has its log to itself.
//!
//! What is due follows from the log (`control_core::backup::plan`); what is decided here is only when it is looked.

use std::collections::HashMap;
use std::time::Duration;

use control_core::backup::plan::{self, Due};
use control_core::batch;
use control_core::replica::Session;
use event_schema::JobId;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::{Ids, Origin, Service, SubmitError, now};

/// How often it is looked what is due: times of schedules are minutes.
const LOOK: Duration = Duration::from_secs(1);

/// A start that was refused is tried again after so long: a group may have members by then, a source its tag.
const PAUSE: Duration = Duration::from_secs(60);

/// Sees to schedules as long as it lives. Dropping it stops it.
#[derive(Debug)]
pub struct Scheduler {
    task: JoinSet<()>,
}

impl Scheduler {
    /// Begins.
    pub fn start(service: Service) -> Self {
        let mut task = JoinSet::new();
        task.spawn(run(service));
        Self { task }
    }

    /// Stops, and lets the service go. What it asked for may still be recorded.
    pub async fn stop(mut self) {
        self.task.shutdown().await;
    }
}

async fn run(service: Service) {
    let mut refused: HashMap<JobId, Instant> = HashMap::new();
    let mut ticks = interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if !is_ours(&service) {
            continue;
        }
        refused.retain(|_, since| since.elapsed() < PAUSE);
        let due = plan::due(&service.views(), now());
        for due in due.into_iter().filter(|due| !refused.contains_key(&due.job)).collect::<Vec<_>>() {
            let job = due.job;
            match start(&service, due).await {
                Ok(()) => {}
                Err(error) => {
                    tracing::warn!(%job, %error, "a backup that is due is not started; it is tried again");
                    refused.insert(job, Instant::now());
                }
            }
        }
    }
}

/// Whether nobody else sees to it.
fn is_ours(service: &Service) -> bool {
    let me = service.session();
    let holds = || service.views().replicas.lease.is_some_and(|lease| lease.holder == me);
    service.trouble().is_none() && (me == Session::ALONE || holds())
}

async fn start(service: &Service, due: Due) -> Result<(), SubmitError> {
    let job = due.job;
    let id = Ids(now()).batch();
    let started = service.decide(Origin::service(format!("job/{job}")), move |state, now| {
        // Somebody may have been faster: an operator, or who held the lease before.
        if !plan::still_stands(state, &due) {
            return Ok(vec![]);
        }
        let only = due.sources.as_ref().map(|sources| sources.keys().copied().collect());
        batch::start(state, id, job, only.as_ref(), now).map(|started| started.events)
    });
    started.await?;
    tracing::info!(%job, batch = %id, "a backup was due");
    Ok(())
}
