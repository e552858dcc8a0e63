//! Writing behind the network: a thread of its own, so that a disk that takes its time does not keep datagrams in the
//! socket until it overflows.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use crate::recv::{Arrived, Inbound};
use crate::store::{PartFile, Put, Run};

/// Runs that may wait, of a block at most: 16 MiB, 134 ms at a gigabit. When as many wait, the network
/// waits for the disk after all.
const QUEUE: usize = 512;

/// After some were written, others gather for a while: to be woken for each would cost the network's thread more than
/// the writing. A millisecond of a path of 10 Gbit/s is 40 blocks.
const REST: Duration = Duration::from_micros(500);

enum Job {
    Put {
        session: Arc<Inbound>,
        file: u32,
        part: Arc<PartFile>,
        run: Run,
    },
    /// Everything before it is done.
    Settled(SyncSender<()>),
}

/// To the thread that writes. It ends when this is dropped and all is written.
pub(crate) struct Behind(SyncSender<Job>);

impl Behind {
    pub(crate) fn start() -> io::Result<Self> {
        let (queue, jobs) = sync_channel(QUEUE);
        thread::Builder::new().name("utp2-writer".into()).spawn(move || write(&jobs))?;
        Ok(Self(queue))
    }

    /// Has a run written; what comes of it is told to the session.
    pub(crate) fn put(&self, session: &Arc<Inbound>, file: u32, part: &Arc<PartFile>, run: Run) {
        let job = Job::Put { session: session.clone(), file, part: part.clone(), run };
        if self.0.send(job).is_err() {
            session.tell(Arrived::Failed(
                file,
                "cannot write the file: the thread that writes has failed".into(),
            ));
        }
    }

    /// Waits until everything that was to be put before is written.
    pub(crate) fn settle(&self) {
        let (settled, done) = sync_channel(1);
        // An error of either: there is nobody to wait for.
        let _ = self.0.send(Job::Settled(settled));
        let _ = done.recv();
    }
}

fn write(jobs: &Receiver<Job>) {
    while let Ok(first) = jobs.recv() {
        do_job(first);
        jobs.try_iter().for_each(do_job);
        thread::sleep(REST);
    }
}

fn do_job(job: Job) {
    match job {
        Job::Put { session, file, part, run } => match part.put(run) {
            Put::Done => {}
            Put::Hash => session.tell(Arrived::Hash(file)),
            Put::Failed(reason) => session.tell(Arrived::Failed(file, reason)),
        },
        Job::Settled(settled) => {
            let _ = settled.send(());
        }
    }
}
