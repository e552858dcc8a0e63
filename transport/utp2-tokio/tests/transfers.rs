//! Blocks and messages over real sockets on loopback; how connections and endpoints end.

mod common;

use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use common::{BLOCK, Blocks, CONTEXT, SECRET, bind, config, pair, transfer, within};
use utp2::{CloseReason, ContextId, HandshakeFailure};
use utp2_tokio::{
    BlockEvent, BlockSink, BlockSource, ConnectError, Connection, Endpoint, Handle, LossInjector,
    SendMessageError,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_megabytes_clean() {
    transfer("100 MB clean", 60, 100_000_000, None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn loss_and_delay_below_the_protocol() {
    let fault = LossInjector { loss: 0.05, delay: Duration::from_millis(50), seed: 7 };
    let (_, stats) = transfer("64 MB, 5 %, 50 ms", 120, 64_000_000, Some(fault)).await;
    assert!(stats.lost_packets * 30 > stats.sent_packets, "the loss was there: {stats:?}");
    assert!(stats.rtt_min >= Duration::from_millis(50), "the delay was there: {stats:?}");
}

#[tokio::test]
async fn messages_keep_their_order_and_wait_for_room() {
    let pair = pair(1, None).await;
    let echo = tokio::spawn({
        let far = pair.far.clone();
        async move {
            while let Ok(message) = far.recv_message().await {
                far.send_message(&message).await.unwrap();
            }
        }
    });
    let message = |i: u32| vec![i as u8; (i as usize * 37) % 5000 + 4];
    within(60, "echo", async {
        let send = async {
            for i in 0..3000 {
                pair.near.send_message(&message(i)).await.unwrap();
            }
            pair.near.send_message(&vec![7; 1 << 20]).await.unwrap();
        };
        let receive = async {
            for i in 0..3000 {
                assert_eq!(pair.near.recv_message().await.unwrap(), message(i));
            }
            assert_eq!(pair.near.recv_message().await.unwrap(), vec![7; 1 << 20]);
        };
        tokio::join!(send, receive);
    })
    .await;
    let too_large = pair.near.send_message(&vec![0; (1 << 20) + 1]).await;
    assert_eq!(too_large, Err(SendMessageError::TooLarge));
    pair.near.close(3, "enough");
    let end = within(10, "the end", pair.far.closed()).await;
    assert_eq!(end, CloseReason::Peer { code: 3, reason: "enough".into() });
    within(10, "the echo's end", echo).await.unwrap();
    assert!(matches!(pair.near.send_message(b"late").await, Err(SendMessageError::Closed(_))));
    assert_eq!(within(10, "our end", pair.near.recv_message()).await.unwrap_err().reason, CloseReason::Local);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_question_is_answered_at_once() {
    const ROUNDS: u32 = 500;
    let pair = pair(1, None).await;
    let far = pair.far.clone();
    let echo = async move {
        for _ in 0..ROUNDS {
            let message = far.recv_message().await.unwrap();
            far.send_message(&message).await.unwrap();
        }
    };
    let begin = std::time::Instant::now();
    let ask = async {
        for i in 0..ROUNDS {
            pair.near.send_message(&i.to_be_bytes()).await.unwrap();
            assert_eq!(pair.near.recv_message().await.unwrap(), i.to_be_bytes());
        }
        begin.elapsed() / ROUNDS
    };
    let ((), mean) = within(30, "questions", async { tokio::join!(echo, ask) }).await;
    println!("a question and its answer take {mean:?}");
    // Some 100 µs on an idle machine; a timer or a lost wake-up in the way would show.
    assert!(mean < Duration::from_millis(5), "{mean:?}");
}

#[tokio::test]
async fn what_was_sent_before_the_end_is_read_after_it() {
    let pair = pair(1, None).await;
    pair.near.send_message(b"last words").await.unwrap();
    assert_eq!(
        within(10, "an answer", async {
            // The far side reads nothing until it knows that the end has come.
            let first = pair.far.clone();
            let echoed = tokio::spawn(async move { first.recv_message().await });
            let heard = echoed.await.unwrap().unwrap();
            pair.near.send_message(b"truly last").await.unwrap();
            heard
        })
        .await,
        b"last words"
    );
    // Acknowledged means delivered to the far side's mailbox.
    within(10, "quiet", async {
        while pair.near.stats().bytes_in_flight > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    pair.near.close(0, "");
    within(10, "the end", pair.far.closed()).await;
    assert_eq!(pair.far.recv_message().await.unwrap(), b"truly last");
    assert!(pair.far.recv_message().await.is_err());
}

#[tokio::test]
async fn a_peer_that_is_not_read_from_is_held_back() {
    let pair = pair(1, None).await;
    let send = async |n: u32| pair.near.send_message(&[n as u8; 100_000]).await;
    let mut sent = 0;
    while let Ok(done) = tokio::time::timeout(Duration::from_secs(1), send(sent)).await {
        done.unwrap();
        sent += 1;
        assert!(sent < 1000, "100 MB were taken for a reader that does not read");
    }
    // Here, on the way and there: a buffer of 4 MiB each, and the mailbox.
    assert!((80..=200).contains(&sent), "{sent}");
    let receive = async {
        for n in 0..sent + 200 {
            assert_eq!(pair.far.recv_message().await.unwrap(), [n as u8; 100_000]);
        }
    };
    let go_on = async {
        for n in sent..sent + 200 {
            send(n).await.unwrap();
        }
    };
    within(30, "going on", async { tokio::join!(receive, go_on) }).await;
}

#[tokio::test]
async fn the_wrong_secret_gets_nowhere() {
    let blocks = Blocks::new(1);
    let (client, _) = bind(1, None);
    let (server, mut incoming) = bind(2, None);
    client.add_context(CONTEXT, [1; 32], blocks.clone(), blocks.clone());
    server.add_context(CONTEXT, SECRET, blocks.clone(), blocks.clone());
    let refused = within(20, "refusal", client.connect(server.local_addr(), CONTEXT)).await;
    match refused {
        Err(ConnectError::Handshake(CloseReason::HandshakeFailed(
            HandshakeFailure::Refused | HandshakeFailure::BadProof,
        ))) => {}
        other => panic!("{other:?}"),
    }
    let other = ContextId([3; 16]);
    client.add_context(other, SECRET, blocks.clone(), blocks);
    let refused = within(20, "refusal", client.connect(server.local_addr(), other)).await;
    assert!(matches!(refused, Err(ConnectError::Handshake(_))), "{refused:?}");
    let unknown = client.connect(server.local_addr(), ContextId([4; 16])).await;
    assert!(matches!(unknown, Err(ConnectError::Refused(utp2::ConnectError::UnknownContext))), "{unknown:?}");
    assert!(tokio::time::timeout(Duration::from_millis(50), incoming.accept()).await.is_err());
}

#[tokio::test]
async fn an_identity_that_is_not_authorized_gets_nowhere() {
    let blocks = Blocks::new(1);
    let (client, _) = bind(1, None);
    let mut strict = config(2);
    strict.authorizer =
        utp2_tokio::EndpointConfig::new(strict.identity.clone(), |_, peer| peer.credential == [99])
            .authorizer;
    let (server, _incoming) = Endpoint::bind("127.0.0.1:0".parse().unwrap(), strict).unwrap();
    for endpoint in [&client, &server] {
        endpoint.add_context(CONTEXT, SECRET, blocks.clone(), blocks.clone());
    }
    let refused = within(20, "refusal", client.connect(server.local_addr(), CONTEXT)).await;
    assert!(
        matches!(
            refused,
            Err(ConnectError::Handshake(CloseReason::HandshakeFailed(HandshakeFailure::Refused)))
        ),
        "{refused:?}"
    );
}

/// Waits until the endpoint may come back to its peer in one round trip.
async fn a_ticket(endpoint: &Endpoint) {
    within(20, "a ticket", async {
        while endpoint.resumptions().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn who_comes_back_needs_one_round_trip() {
    let pair = pair(0, None).await;
    assert!(!pair.near.is_resumed());
    let mut incoming = pair.incoming;
    a_ticket(&pair.client).await;
    pair.near.close(0, "for now");
    let server = pair.server.local_addr();
    let both =
        async { tokio::join!(pair.client.connect(server, CONTEXT), pair.client.connect(server, CONTEXT)) };
    let (again, second) = within(20, "coming back", both).await;
    let (again, second) = (again.unwrap(), second.unwrap());
    assert!(again.is_resumed() && !second.is_resumed(), "a ticket is used once");
    let far = within(20, "accepting", incoming.accept()).await.unwrap();
    again.send_message(b"here again").await.unwrap();
    assert_eq!(within(20, "a message", far.recv_message()).await.unwrap(), b"here again");
    a_ticket(&pair.client).await;
    // Another endpoint may go on with what was stored.
    let (other, _) = bind(1, None);
    other.add_context(CONTEXT, SECRET, pair.blocks.clone(), pair.blocks.clone());
    for (remote, resumption) in pair.client.resumptions() {
        other.remember(remote, resumption);
    }
    let third = within(20, "connecting", other.connect(pair.server.local_addr(), CONTEXT)).await.unwrap();
    assert!(third.is_resumed());
}

#[tokio::test]
async fn a_ticket_that_nobody_answered_is_kept() {
    let mut config = config(1);
    config.core.handshake_timeout = Duration::from_millis(300);
    let (client, _) = Endpoint::bind("127.0.0.1:0".parse().unwrap(), config).unwrap();
    let (server, _incoming) = bind(2, None);
    for endpoint in [&client, &server] {
        endpoint.add_context(CONTEXT, SECRET, Blocks::new(0), Blocks::new(0));
    }
    let address = server.local_addr();
    let near = within(20, "connecting", client.connect(address, CONTEXT)).await.unwrap();
    a_ticket(&client).await;
    drop(near);
    within(20, "closing", server.close()).await;
    let silence = within(20, "giving up", client.connect(address, CONTEXT)).await;
    assert!(
        matches!(
            silence,
            Err(ConnectError::Handshake(CloseReason::HandshakeFailed(HandshakeFailure::Timeout)))
        ),
        "{silence:?}"
    );
    assert_eq!(client.resumptions().len(), 1);
}

#[tokio::test]
async fn first_messages_go_early_where_they_are_taken_and_come_once() {
    for accept_early in [true, false] {
        let mut config = config(2);
        config.core.accept_early = accept_early;
        let (server, mut incoming) = Endpoint::bind("127.0.0.1:0".parse().unwrap(), config).unwrap();
        let (client, _) = bind(1, None);
        for endpoint in [&client, &server] {
            endpoint.add_context(CONTEXT, SECRET, Blocks::new(0), Blocks::new(0));
        }
        let long = vec![7; 3000];
        for round in 0..3 {
            let before = client.resumptions();
            let what = [&[round][..], b"second", &long, b"fourth"];
            let near = within(20, "connecting", client.connect_with(server.local_addr(), CONTEXT, &what));
            let near = near.await.unwrap();
            assert_eq!(near.is_resumed(), round > 0);
            assert!(near.is_confirmed() && near.early_messages().is_empty());
            let far = within(20, "accepting", incoming.accept()).await.unwrap();
            let mut got = far.early_messages();
            assert_eq!(got.len(), if accept_early && round > 0 { 2 } else { 0 });
            assert!(far.early_messages().is_empty(), "given once");
            far.send_message(b"answer").await.unwrap();
            assert_eq!(within(20, "an answer", near.recv_message()).await.unwrap(), b"answer");
            within(20, "confirmation", far.confirmed()).await.unwrap();
            assert!(far.is_confirmed());
            while got.len() < what.len() {
                got.push(within(20, "a message", far.recv_message()).await.unwrap());
            }
            assert_eq!(got, what);
            within(20, "a new ticket", async {
                while client.resumptions().is_empty() || client.resumptions() == before {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            })
            .await;
        }
    }
}

#[tokio::test]
async fn both_sides_know_each_other() {
    let pair = pair(1, None).await;
    assert_eq!(
        (pair.near.peer().credential.as_slice(), pair.far.peer().credential.as_slice()),
        (&[2][..], &[1][..])
    );
    assert_eq!(pair.near.remote(), pair.server.local_addr());
    assert_eq!(pair.far.remote(), pair.client.local_addr());
    assert_eq!((pair.near.context(), pair.far.context()), (CONTEXT, CONTEXT));
    assert!(pair.near.is_initiator() && !pair.far.is_initiator());
}

#[tokio::test]
async fn the_last_handle_closes_the_connection() {
    let pair = pair(1, None).await;
    let clone = pair.near.clone();
    drop(pair.near);
    clone.send_message(b"still here").await.unwrap();
    assert_eq!(within(10, "a message", pair.far.recv_message()).await.unwrap(), b"still here");
    drop(clone);
    let end = within(10, "the end", pair.far.closed()).await;
    assert!(matches!(end, CloseReason::Peer { code: 0, .. }), "{end:?}");
}

#[tokio::test]
async fn closing_an_endpoint_tells_its_peers() {
    let mut pair = pair(1, None).await;
    within(10, "closing", pair.client.close()).await;
    let end = within(10, "the end", pair.far.closed()).await;
    assert!(matches!(end, CloseReason::Peer { code: 0, .. }), "{end:?}");
    assert_eq!(within(1, "our end", pair.near.closed()).await, CloseReason::Local);
    let late = pair.client.connect(pair.server.local_addr(), CONTEXT).await;
    assert!(matches!(late, Err(ConnectError::EndpointClosed)), "{late:?}");
    within(10, "closing again", pair.client.close()).await;
    within(10, "closing", pair.server.close()).await;
    assert!(within(1, "no more", pair.incoming.accept()).await.is_none());
}

#[tokio::test]
async fn leaving_an_endpoint_tells_its_peers_and_takes_no_round_trip() {
    let fault = LossInjector { loss: 0.0, delay: Duration::from_millis(600), seed: 1 };
    let pair = pair(1, Some(fault)).await;
    pair.near.close(9, "off");
    let begun = std::time::Instant::now();
    within(10, "leaving", pair.client.leave()).await;
    // The injected delay holds the last packets for 300 ms; the closing phase would have taken a second.
    let took = begun.elapsed();
    assert!(took < Duration::from_millis(700), "{took:?}");
    let end = within(10, "the end", pair.far.closed()).await;
    assert!(matches!(end, CloseReason::Peer { code: 9, .. }), "{end:?}");
    within(10, "leaving again", pair.client.leave()).await;
    within(10, "closing after that", pair.client.close()).await;
}

#[tokio::test]
async fn removing_a_context_ends_its_connections() {
    let pair = pair(1, None).await;
    pair.server.remove_context(CONTEXT);
    assert_eq!(within(10, "the end here", pair.far.closed()).await, CloseReason::ContextRemoved);
    within(10, "the end there", pair.near.closed()).await;
}

/// Fails to read one block.
struct Gap(Arc<Blocks>);

impl BlockSource for Gap {
    fn read(&self, conn: Handle, tag: u64, offset: u32, buf: &mut [u8]) -> io::Result<()> {
        if tag == 1 && offset > 10_000 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.0.read(conn, tag, offset, buf)
    }
}

#[tokio::test]
async fn a_block_that_cannot_be_read_fails_alone() {
    let blocks = Blocks::new(3 * u64::from(BLOCK));
    let (client, _) = bind(1, None);
    let (server, mut incoming) = bind(2, None);
    client.add_context(CONTEXT, SECRET, Arc::new(Gap(blocks.clone())), blocks.clone());
    server.add_context(CONTEXT, SECRET, blocks.clone(), blocks.clone());
    let near = within(20, "connecting", client.connect(server.local_addr(), CONTEXT)).await.unwrap();
    let _far = incoming.accept().await.unwrap();
    for tag in 0..3 {
        near.send_block(tag, BLOCK, 0).unwrap();
    }
    let mut events = Vec::new();
    for _ in 0..3 {
        events.push(within(10, "an event", near.recv_event()).await.unwrap());
    }
    events.sort_by_key(|e| match e {
        BlockEvent::Sent { tag } | BlockEvent::Failed { tag } => *tag,
        BlockEvent::Lagged { .. } => u64::MAX,
    });
    use BlockEvent::{Failed, Sent};
    assert_eq!(events, [Sent { tag: 0 }, Failed { tag: 1 }, Sent { tag: 2 }]);
}

/// Breaks the rule that a sink must not call its endpoint.
#[derive(Default)]
struct Meddler(OnceLock<Connection>);

impl BlockSink for Meddler {
    fn write(&self, _: Handle, _: u64, _: u32, _: bool, _: &[u8]) {
        let _ = self.0.get().map(Connection::stats);
    }
}

#[tokio::test]
async fn a_sink_that_calls_its_endpoint_ends_it_and_does_not_hang_it() {
    let blocks = Blocks::new(u64::from(BLOCK));
    let meddler = Arc::new(Meddler::default());
    let (client, _) = bind(1, None);
    let (server, mut incoming) = bind(2, None);
    client.add_context(CONTEXT, SECRET, blocks.clone(), blocks.clone());
    server.add_context(CONTEXT, SECRET, blocks, meddler.clone());
    let near = within(20, "connecting", client.connect(server.local_addr(), CONTEXT)).await.unwrap();
    let far = incoming.accept().await.unwrap();
    meddler.0.set(far.clone()).unwrap();
    near.send_block(0, BLOCK, 0).unwrap();
    within(10, "the end", far.closed()).await;
    assert!(within(1, "no more", incoming.accept()).await.is_none());
}

#[tokio::test]
async fn events_nobody_reads_are_counted_not_kept() {
    const COUNT: u64 = 70_000;
    let pair = pair(COUNT, None).await;
    for tag in 0..COUNT {
        within(60, "room", async {
            while pair.near.send_block(tag, 1, 0).is_err() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
    }
    within(60, "all blocks", async {
        while pair.near.queued_blocks() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let first = within(1, "an event", pair.near.recv_event()).await.unwrap();
    assert_eq!(first, BlockEvent::Lagged { count: COUNT - 65_536 });
    for _ in 0..65_536 {
        assert!(matches!(pair.near.recv_event().await, Ok(BlockEvent::Sent { .. })));
    }
}
