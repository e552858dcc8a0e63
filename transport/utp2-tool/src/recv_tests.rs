//! Sessions with senders that do not do what ours does.

use std::path::Path;
use std::time::Duration;

use sha2::{Digest, Sha256};
use utp2::{CloseReason, Identity};
use utp2_tokio::EndpointConfig;

use super::*;

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

async fn talk(out: &Path) -> Talk {
    let sink = Arc::new(Sink::default());
    let (receiver, mut incoming) = bind(1, &sink);
    let (sender, _) = bind(2, &sink);
    let conn = within("connecting", sender.connect(receiver.local_addr(), secret::CONTEXT)).await.unwrap();
    let accepted = within("accepting", incoming.accept()).await.unwrap();
    let dir = OutDir::open(out.to_owned(), false).unwrap();
    let session = tokio::spawn(Session::new(accepted, dir, sink, false).run());
    Talk { conn, session, _endpoints: (receiver, sender) }
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
    let sha256 = Sha256::digest([]).into();
    talk.say(ToReceiver::Sum { file: 1, sha256 }).await;
    assert_eq!(talk.hear().await, done(1, false));
    talk.say(ToReceiver::Sum { file: 0, sha256 }).await;
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
    assert!(reason.contains("version 1") && reason.contains("version 2"), "{reason}");
    assert!(!old.end().await);
}

#[tokio::test]
async fn a_copy_of_an_early_offer_does_no_harm_and_gives_way() {
    let temp = tempfile::tempdir().unwrap();
    let there = |name: &str| std::fs::read(temp.path().join(name)).ok();
    // What arrived of another file of that name, and nobody knows how much of it.
    std::fs::write(temp.path().join("f1.part"), b"partial").unwrap();
    let dir = OutDir::open(temp.path().to_owned(), false).unwrap();
    let sink = Arc::new(Sink::default());
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
    talk.say(ToReceiver::Sum { file: 0, sha256: Sha256::digest([]).into() }).await;
    assert_eq!(talk.hear().await, done(0, true));
    talk.conn.close(0, "done");
    assert!(talk.end().await);
    assert_eq!(within("the copy's end", copy).await.unwrap(), Outcome::Nothing);
    assert_eq!((there("f0"), there("f0.part")), (Some(Vec::new()), None));
    assert_eq!((there("f1"), there("f1.part")), (None, Some(b"partial".to_vec())));
}
