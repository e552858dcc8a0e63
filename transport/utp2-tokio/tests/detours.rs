//! Another protocol on the socket, and µTP2 by way of a relay, from there to a direct way, and back when it fails.

mod common;

use std::net::SocketAddr;
use std::time::Duration;

use common::{BLOCK, Blocks, CONTEXT, SECRET, bind, within};
use tokio::net::UdpSocket;
use utp2_tokio::{DETOUR_HEADER, Endpoint};

fn header(channel: u8) -> [u8; DETOUR_HEADER] {
    let mut header = [channel; DETOUR_HEADER];
    header[..3].copy_from_slice(&utp2::BESIDE);
    header
}

/// Passes what comes behind one header on behind the other one, until dropped.
async fn relay(socket: UdpSocket, a: SocketAddr, b: SocketAddr) {
    let mut buffer = [0; 65536];
    loop {
        let Ok((len, from)) = socket.recv_from(&mut buffer).await else { continue };
        let (to, channel) = if from == a { (b, 2) } else { (a, 1) };
        assert_eq!(buffer[..DETOUR_HEADER], header(3 - channel));
        buffer[..DETOUR_HEADER].copy_from_slice(&header(channel));
        let _ = socket.send_to(&buffer[..len], to).await;
    }
}

#[tokio::test]
async fn another_protocol_shares_the_socket() {
    let ((a, _ia), (b, _ib)) = (bind(1, None), bind(2, None));
    let mut taken = b.beside();
    a.send_beside(b.local_addr(), b"FT\x01 hello").unwrap();
    let got = within(10, "it comes", taken.recv()).await.unwrap();
    assert_eq!(got, (a.local_addr(), b"FT\x01 hello".to_vec()));
    assert!(a.send_beside(b.local_addr(), b"hello").is_err(), "would be taken for µTP2");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn by_a_relay_then_directly_and_back_when_that_is_a_lie() {
    const BYTES: u64 = 60_000_000;
    let blocks = Blocks::new(BYTES);
    let ((a, _ia), (b, mut incoming)) = (bind(1, None), bind(2, None));
    for endpoint in [&a, &b] {
        endpoint.add_context(CONTEXT, SECRET, blocks.clone(), blocks.clone());
    }
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let via = socket.local_addr().unwrap();
    let relaying = tokio::spawn(relay(socket, a.local_addr(), b.local_addr()));
    let to_b = a.add_detour(via, header(1)).unwrap();
    let to_a = b.add_detour(via, header(2)).unwrap();
    assert!(Endpoint::is_detour(to_b));
    let (near, far) = within(30, "connecting by the relay", async {
        let near = a.connect(to_b, CONTEXT).await.unwrap();
        (near, incoming.accept().await.unwrap())
    })
    .await;
    assert_eq!((near.remote(), far.remote()), (to_b, to_a));
    let count = BYTES.div_ceil(u64::from(BLOCK));
    let feed = tokio::spawn({
        let near = near.clone();
        async move {
            for tag in 0..count {
                let len = u64::from(BLOCK).min(BYTES - tag * u64::from(BLOCK)) as u32;
                while near.send_block(tag, len, 0).is_err() {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        }
    });
    let arrived = async |bytes: u64| {
        within(60, "data flows", async {
            while far.stats().data_bytes_received < bytes {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await;
    };
    arrived(1_000_000).await;
    // Nobody is there: after a second everything is as before.
    let nobody = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    assert!(near.seek(nobody.local_addr().unwrap()));
    assert!(!near.seek(b.local_addr()), "one at a time");
    within(20, "back to the relay", async {
        while near.remote() != to_b {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let before = far.stats().data_bytes_received;
    arrived(before + 500_000).await;
    // There it is.
    assert!(near.seek(b.local_addr()));
    within(60, "everything arrives", blocks.all_there()).await;
    feed.await.unwrap();
    blocks.assert_intact();
    assert_eq!((near.remote(), far.remote()), (b.local_addr(), a.local_addr()));
    relaying.abort();
    near.send_message(b"without the relay").await.unwrap();
    assert_eq!(within(10, "a message", far.recv_message()).await.unwrap(), b"without the relay");
}
