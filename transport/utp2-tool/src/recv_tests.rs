//! Sessions with senders that do not do what ours does.

use std::path::Path;
use std::time::Duration;

use utp2::{CloseReason, Identity};
use utp2_tokio::EndpointConfig;

use super::*;
use crate::store::Put;
use crate::wire::{BLOCK, HAVE_MAX};

/// A sender in the test's hands and the receiver's session with it.
struct Talk {
    conn: Connection,
    session: tokio::task::JoinHandle<Outcome>,
    _endpoints: (Endpoint, Endpoint),
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(Duration::from_secs(20), future).await {
        Ok(done) => done,
        Err(_) => panic!("{what}: not within 20 s"),
    }
}

/// An endpoint of one end or the other.
fn bind(seed: u8, sink: &Arc<Sink>) -> (Endpoint, utp2_tokio::Incoming) {
    let mut config = EndpointConfig::new(Identity::new([seed; 32], Vec::new()), |_, _| true);
    config.core.accept_early = true;
    let (endpoint, incoming) = Endpoint::bind("127.0.0.1:0".parse().unwrap(), config).unwrap();
    endpoint.add_context(secret::CONTEXT, [5; 32], Arc::new(NoSource), sink.clone());
    (endpoint, incoming)
}

fn offer(file: u32) -> ToReceiver {
    let meta = Meta { name: format!("f{file}").into_bytes(), size: 0, mode: None, modified: None };
    ToReceiver::Offer { file, meta }
}

/// A session that nobody serves yet, and its sender.
async fn pair(dir: Arc<OutDir>) -> (Session, Connection, (Endpoint, Endpoint)) {
    let sink = Arc::new(Sink::new().unwrap());
    let (receiver, mut incoming) = bind(1, &sink);
    let (sender, _) = bind(2, &sink);
    let conn = within("connecting", sender.connect(receiver.local_addr(), secret::CONTEXT)).await.unwrap();
    let accepted = within("accepting", incoming.accept()).await.unwrap();
    (Session::new(accepted, dir, sink, false), conn, (receiver, sender))
}

async fn talk_in(dir: Arc<OutDir>, patience: Duration) -> Talk {
    let (mut session, conn, endpoints) = pair(dir).await;
    session.patience = patience;
    Talk { conn, session: tokio::spawn(session.run()), _endpoints: endpoints }
}

async fn talk(out: &Path) -> Talk {
    talk_in(OutDir::open(out.to_owned(), false).unwrap(), PATIENCE).await
}

impl Talk {
    async fn say(&self, message: ToReceiver) {
        self.conn.send_message(&encode(&message)).await.unwrap();
    }

    async fn hear(&self) -> ToSender {
        decode(&within("a message", self.conn.recv_message()).await.unwrap()).unwrap()
    }

    async fn offer(&self, file: u32) {
        self.say(offer(file)).await;
    }

    /// Whether the session ended well.
    async fn end(self) -> bool {
        within("the session's end", self.session).await.unwrap() == Outcome::Done
    }
}

fn done(file: u32, last: bool) -> ToSender {
    ToSender::Ended { file, how: Ending::Done, last }
}

#[tokio::test]
async fn leave_is_taken_with_the_last_file_and_a_lost_close_is_not_waited_for() {
    let temp = tempfile::tempdir().unwrap();
    let talk = talk(temp.path()).await;
    talk.offer(0).await;
    talk.offer(1).await;
    talk.say(ToReceiver::Finished).await;
    let mut accepted = [false; 2];
    for _ in 0..2 {
        let ToSender::Accept { file, .. } = talk.hear().await else { panic!("not accepted") };
        accepted[file as usize] = true;
    }
    assert_eq!(accepted, [true; 2]);
    let blake3 = blake3::hash(&[]).into();
    talk.say(ToReceiver::Sum { file: 1, blake3 }).await;
    assert_eq!(talk.hear().await, done(1, false));
    talk.say(ToReceiver::Sum { file: 0, blake3 }).await;
    assert_eq!(talk.hear().await, done(0, true));
    // CLOSE never comes, the connection would live on for two minutes.
    assert!(talk.end().await);
}

#[tokio::test]
async fn leave_is_taken_at_once_when_nothing_was_offered() {
    let temp = tempfile::tempdir().unwrap();
    let talk = talk(temp.path()).await;
    talk.say(ToReceiver::Finished).await;
    assert_eq!(talk.hear().await, ToSender::Farewell);
    talk.conn.close(0, "done");
    assert!(talk.end().await);
}

#[tokio::test]
async fn a_sender_that_goes_before_its_files_have_ended_is_a_failure() {
    let temp = tempfile::tempdir().unwrap();
    let talk = talk(temp.path()).await;
    talk.offer(0).await;
    talk.say(ToReceiver::Finished).await;
    assert!(matches!(talk.hear().await, ToSender::Accept { file: 0, .. }));
    talk.conn.close(0, "given up");
    assert!(!talk.end().await);
}

#[tokio::test]
async fn a_file_given_up_by_the_sender_may_be_the_last() {
    let temp = tempfile::tempdir().unwrap();
    let talk = talk(temp.path()).await;
    talk.offer(0).await;
    talk.say(ToReceiver::Finished).await;
    assert!(matches!(talk.hear().await, ToSender::Accept { file: 0, .. }));
    talk.say(ToReceiver::Abort { file: 0, reason: "no more".into() }).await;
    let ToSender::Ended { file: 0, how: Ending::Failed { .. }, last: true } = talk.hear().await else {
        panic!("the file failed, and it was the last");
    };
    talk.conn.close(0, "done");
    assert!(!talk.end().await, "a file is missing");
}

#[tokio::test]
async fn an_offer_after_the_last_one_and_another_version_are_refused() {
    let temp = tempfile::tempdir().unwrap();
    let first = talk(temp.path()).await;
    first.say(ToReceiver::Finished).await;
    first.offer(0).await;
    let end = within("the end", first.conn.closed()).await;
    assert!(matches!(end, CloseReason::Peer { code: 1, .. }), "{end:?}");
    assert!(!first.end().await);

    let old = talk(temp.path()).await;
    // `Finished` of version 1.
    old.conn.send_message(&[1, 3]).await.unwrap();
    let CloseReason::Peer { code: 1, reason } = within("the end", old.conn.closed()).await else {
        panic!("not refused");
    };
    assert!(reason.contains("version 1") && reason.contains("version 3"), "{reason}");
    assert!(!old.end().await);
}

#[tokio::test]
async fn a_copy_of_an_early_offer_does_no_harm_and_gives_way() {
    let temp = tempfile::tempdir().unwrap();
    let there = |name: &str| std::fs::read(temp.path().join(name)).ok();
    // What arrived of another file of that name, and nobody knows how much of it.
    std::fs::write(temp.path().join("f1.part"), b"partial").unwrap();
    let dir = OutDir::open(temp.path().to_owned(), false).unwrap();
    let sink = Arc::new(Sink::new().unwrap());
    let (receiver, mut incoming) = bind(1, &sink);
    let (sender, _) = bind(2, &sink);
    let to = receiver.local_addr();
    let first = within("connecting", sender.connect(to, secret::CONTEXT)).await.unwrap();
    within("a ticket", async {
        while sender.resumptions().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    drop((first, within("accepting", incoming.accept()).await));

    // Its first packet is caught on the way, and comes later and from elsewhere.
    let catcher = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for (_, resumption) in sender.resumptions() {
        sender.remember(catcher.local_addr().unwrap(), resumption);
    }
    let says = [offer(0), offer(1), ToReceiver::Finished].map(|m| encode(&m));
    let says = says.each_ref().map(Vec::as_slice);
    let mut caught = vec![0; 2000];
    tokio::select! {
        _ = sender.connect_with(catcher.local_addr().unwrap(), secret::CONTEXT, &says) => panic!("nobody answers"),
        n = catcher.recv(&mut caught) => caught.truncate(n.unwrap()),
    }
    catcher.send_to(&caught, to).await.unwrap();
    let conn = within("accepting", incoming.accept()).await.unwrap();
    assert!(!conn.is_confirmed());
    let copy = tokio::spawn(Session::new(conn, dir.clone(), sink.clone(), false).run());
    // It is answered, as far as nothing is lost by it.
    let mut kinds = Vec::new();
    for _ in 0..2 {
        let mut answer = [0; 2000];
        within("an answer", catcher.recv(&mut answer)).await.unwrap();
        kinds.push(answer[0] & 0x80 != 0);
    }
    assert_eq!(kinds, [true, false], "RESUMED, and an ACCEPT");
    assert_eq!((there("f0.part"), there("f1.part")), (Some(Vec::new()), Some(b"partial".to_vec())));

    // Who is there now has precedence at once.
    let begun = Instant::now();
    let conn = within("connecting", sender.connect(to, secret::CONTEXT)).await.unwrap();
    let accepted = within("accepting", incoming.accept()).await.unwrap();
    let session = tokio::spawn(Session::new(accepted, dir, sink, false).run());
    let talk = Talk { conn, session, _endpoints: (receiver, sender) };
    talk.offer(0).await;
    talk.say(ToReceiver::Finished).await;
    assert!(matches!(talk.hear().await, ToSender::Accept { file: 0, .. }));
    assert!(begun.elapsed() < SILENT, "{:?}", begun.elapsed());
    talk.say(ToReceiver::Sum { file: 0, blake3: blake3::hash(&[]).into() }).await;
    assert_eq!(talk.hear().await, done(0, true));
    talk.conn.close(0, "done");
    assert!(talk.end().await);
    assert_eq!(within("the copy's end", copy).await.unwrap(), Outcome::Nothing);
    assert_eq!((there("f0"), there("f0.part")), (Some(Vec::new()), None));
    assert_eq!((there("f1"), there("f1.part")), (None, Some(b"partial".to_vec())));
}

fn meta(name: &str, size: u64) -> Meta {
    Meta { name: name.into(), size, mode: None, modified: None }
}

fn abort(file: u32) -> ToReceiver {
    ToReceiver::Abort { file, reason: "no more".into() }
}

#[tokio::test]
async fn files_that_are_given_up_count_until_nothing_is_done_for_them() {
    let temp = tempfile::tempdir().unwrap();
    let dir = OutDir::open(temp.path().to_owned(), false).unwrap();
    let holder = PartFile::begin(&dir, meta("held", 5), true).unwrap();
    let one = talk_in(dir.clone(), PATIENCE).await;
    // What was given up while it waited is answered when it waits no more.
    one.say(ToReceiver::Offer { file: 0, meta: meta("held", 5) }).await;
    one.say(abort(0)).await;
    one.offer(1).await;
    assert!(matches!(one.hear().await, ToSender::Accept { file: 1, .. }));
    drop(holder);
    let ToSender::Ended { file: 0, how: Ending::Failed { reason }, last: false } = one.hear().await else {
        panic!("the file was given up")
    };
    assert!(reason.contains("no more"), "{reason}");
    drop(one);

    let holder = PartFile::begin(&dir, meta("held", 5), true).unwrap();
    let many = talk_in(dir, PATIENCE).await;
    let say_all = async {
        for file in 0..4 * FILES_UNDER_WAY_MAX as u32 {
            for message in [ToReceiver::Offer { file, meta: meta("held", 5) }, abort(file)] {
                if many.conn.send_message(&encode(&message)).await.is_err() {
                    return;
                }
            }
        }
    };
    within("to say all", say_all).await;
    let begun = Instant::now();
    let end = within("the end", many.conn.closed()).await;
    assert!(matches!(&end, CloseReason::Peer { code: 1, reason } if reason.contains("too many")), "{end:?}");
    assert!(begun.elapsed() < BUSY_TIME);
    assert!(!many.end().await);
    drop(holder);
}

#[tokio::test]
async fn a_number_is_used_once() {
    let temp = tempfile::tempdir().unwrap();
    let talk = talk(temp.path()).await;
    talk.offer(3).await;
    assert!(matches!(talk.hear().await, ToSender::Accept { file: 3, .. }));
    talk.say(abort(3)).await;
    assert!(matches!(talk.hear().await, ToSender::Ended { file: 3, .. }));
    talk.offer(3).await;
    let end = within("the end", talk.conn.closed()).await;
    assert!(matches!(end, CloseReason::Peer { code: 1, .. }), "{end:?}");
    assert!(!talk.end().await);
}

#[tokio::test]
async fn sums_said_again_make_no_work() {
    let temp = tempfile::tempdir().unwrap();
    let dir = OutDir::open(temp.path().to_owned(), false).unwrap();
    let (mut session, _conn, _endpoints) = pair(dir).await;
    session.look_confirmed();
    session.on_offer(0, meta("a", 100_000)).await.unwrap();
    while let Some(job) = within("a job", session.jobs.join_next()).await {
        session.on_job(job.unwrap()).await.unwrap();
    }
    for sum in 0..100 {
        session.on_message(ToReceiver::Sum { file: 0, blake3: [sum; 32] }).await.unwrap();
        session.hash(0);
    }
    assert_eq!(session.jobs.len(), 1, "one for a file");
    let Some(Entry::Open { wanted, hashing, .. }) = session.entries.get(&0) else { panic!("not open") };
    assert_eq!((*wanted, *hashing), (Some([0; 32]), Hashing::Again));
    // What the first job may have missed is looked at once more.
    for left in [1, 0] {
        let job = within("a job", session.jobs.join_next()).await.unwrap().unwrap();
        session.on_job(job).await.unwrap();
        assert_eq!(session.jobs.len(), left);
    }
}

#[tokio::test]
async fn much_that_has_arrived_is_written_down_at_once() {
    let temp = tempfile::tempdir().unwrap();
    let dir = OutDir::open(temp.path().to_owned(), false).unwrap();
    let (mut session, _conn, _endpoints) = pair(dir).await;
    session.look_confirmed();
    session.on_offer(0, meta("a", 3 * u64::from(BLOCK))).await.unwrap();
    while let Some(job) = within("a job", session.jobs.join_next()).await {
        session.on_job(job.unwrap()).await.unwrap();
    }
    let Some(Entry::Open { part, .. }) = session.entries.get(&0) else { panic!("not open") };
    let Taken::New(BLOCK, [None, Some(run)]) = part.take(1, 0, true, &vec![1; BLOCK as usize]) else {
        panic!("not taken")
    };
    assert_eq!(part.put(run), Put::Done);
    for (bytes, jobs) in [(SAVE_BYTES - 1, 0), (SAVE_BYTES, 1), (2 * SAVE_BYTES - 1, 0)] {
        session.inbound.bytes.store(bytes, Relaxed);
        session.save_if_much();
        assert_eq!(session.jobs.len(), jobs, "{bytes}");
        while let Some(job) = within("a job", session.jobs.join_next()).await {
            session.on_job(job.unwrap()).await.unwrap();
            assert!(temp.path().join("a.part.map").exists());
        }
    }
}

#[tokio::test]
async fn who_only_holds_a_place_gives_way() {
    let temp = tempfile::tempdir().unwrap();
    let dir = OutDir::open(temp.path().to_owned(), false).unwrap();
    let patience = Duration::from_secs(1);
    let silent = talk_in(dir.clone(), patience).await;
    let busy = talk_in(dir, patience).await;
    busy.offer(0).await;
    assert!(matches!(busy.hear().await, ToSender::Accept { file: 0, .. }));
    let end = within("the end", silent.conn.closed()).await;
    assert!(matches!(end, CloseReason::Peer { code: 3, .. }), "{end:?}");
    assert!(!silent.end().await);
    // A file may take long.
    tokio::time::sleep(2 * patience).await;
    busy.say(ToReceiver::Sum { file: 0, blake3: blake3::hash(&[]).into() }).await;
    assert_eq!(busy.hear().await, done(0, false));
    let end = within("the end", busy.conn.closed()).await;
    assert!(matches!(end, CloseReason::Peer { code: 3, .. }), "{end:?}");
    assert!(!busy.end().await);
}

#[tokio::test]
async fn who_does_not_listen_is_not_told_for_ever() {
    let temp = tempfile::tempdir().unwrap();
    let dir = OutDir::open(temp.path().to_owned(), false).unwrap();
    let (mut session, conn, _endpoints) = pair(dir).await;
    session.patience = Duration::from_millis(400);
    let have = (0..HAVE_MAX as u32).map(|i| (2 * i, 1)).collect();
    let message = ToSender::Accept { file: 0, have };
    let told = async {
        while tokio::time::timeout(Duration::ZERO, session.conn.closed()).await.is_err() {
            session.say(message.clone()).await;
        }
    };
    within("giving up", told).await;
    let end = within("the end", conn.closed()).await;
    assert!(matches!(end, CloseReason::Peer { code: 3, .. }), "{end:?}");
}

#[tokio::test]
async fn nothing_more_is_read_while_too_much_is_to_be_done() {
    let temp = tempfile::tempdir().unwrap();
    let dir = OutDir::open(temp.path().to_owned(), false).unwrap();
    let (mut session, conn, endpoints) = pair(dir).await;
    for _ in 0..JOBS_MAX {
        let mut ends = session.ends.subscribe();
        session.jobs.spawn(async move {
            let _ = ends.changed().await;
            Job::Saved
        });
    }
    let talk = Talk { conn, session: tokio::spawn(session.run()), _endpoints: endpoints };
    talk.say(ToReceiver::Finished).await;
    let heard = tokio::time::timeout(Duration::from_millis(300), talk.conn.recv_message()).await;
    assert!(heard.is_err(), "{heard:?}");
    // But the end is heard.
    talk.conn.close(0, "given up");
    assert!(!talk.end().await);
}
