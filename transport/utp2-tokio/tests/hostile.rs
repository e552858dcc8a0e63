//! A live endpoint on a path where somebody listens, repeats, cuts, flips and invents datagrams.

mod common;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use common::{Blocks, CONTEXT, SECRET, bind, send_all, within};
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use tokio::net::UdpSocket;

const MEGABYTES: u64 = 24;

/// Passes datagrams between a client and `server`, and adds its own.
struct Meddler {
    address: SocketAddr,
    added: Arc<AtomicU64>,
    /// From now on the server sees the client at another port.
    rebind: Arc<AtomicBool>,
}

async fn meddler(server: SocketAddr, malice: bool) -> Meddler {
    let front = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = front.local_addr().unwrap();
    let (added, rebind) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let meddler = Meddler { address, added: added.clone(), rebind: rebind.clone() };
    tokio::spawn(async move {
        let mut back = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let mut rng = ChaCha8Rng::seed_from_u64(11);
        let mut client = None;
        let mut kept: Vec<Vec<u8>> = Vec::new();
        let (mut up, mut down) = (vec![0; 65_536], vec![0; 65_536]);
        loop {
            let (to_server, datagram) = tokio::select! {
                got = front.recv_from(&mut up) => {
                    let Ok((n, from)) = got else { continue };
                    client = Some(from);
                    (true, &up[..n])
                }
                got = back.recv_from(&mut down) => {
                    let Ok((n, _)) = got else { continue };
                    (false, &down[..n])
                }
            };
            if rebind.swap(false, Ordering::Relaxed) {
                back = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            }
            let Some(client) = client else { continue };
            let mut out = vec![datagram.to_vec()];
            if malice && rng.next_u32() % 4 == 0 {
                out.push(evil(&mut rng, datagram, &mut kept));
                added.fetch_add(1, Ordering::Relaxed);
            }
            for datagram in out {
                let _ = match to_server {
                    true => back.send_to(&datagram, server).await,
                    false => front.send_to(&datagram, client).await,
                };
            }
        }
    });
    meddler
}

/// A datagram that should not be: one of an earlier time, or made from this one.
fn evil(rng: &mut ChaCha8Rng, datagram: &[u8], kept: &mut Vec<Vec<u8>>) -> Vec<u8> {
    let r = rng.next_u32();
    let at = |n: usize| (r >> 8) as usize % n.max(1);
    let mut made = datagram.to_vec();
    match r % 7 {
        0 => made.truncate(at(datagram.len() + 1)),
        1 if !made.is_empty() => {
            let i = at(made.len());
            made[i] ^= 1 << (r & 7);
        }
        2 => made.extend_from_slice(&[0xaa; 100]),
        3 => {
            made.resize(at(65_000), 0);
            rng.fill_bytes(&mut made);
        }
        4 => {
            // Begins like a packet of this connection, or like a handshake.
            let keep = at(32).min(made.len());
            rng.fill_bytes(&mut made[keep..]);
        }
        5 => {
            made.resize(1200, 0);
            rng.fill_bytes(&mut made);
            made[..5].copy_from_slice(&[0x80 | ((r >> 4) as u8 % 8), 0x75, 0x70, 0x32, 0x02]);
        }
        _ if !kept.is_empty() => made.clone_from(&kept[at(kept.len())]),
        _ => {}
    }
    match kept.len() {
        0..500 => kept.push(datagram.to_vec()),
        n => kept[at(n)] = datagram.to_vec(),
    }
    made
}

/// Moves blocks through a meddler; gives the server's count of rejected packets.
async fn through(malice: bool, rebind: bool) -> (u64, u64) {
    let bytes = MEGABYTES * 1_000_000;
    let blocks = Blocks::new(bytes);
    let (client, _) = bind(1, None);
    let (server, mut incoming) = bind(2, None);
    for endpoint in [&client, &server] {
        endpoint.add_context(CONTEXT, SECRET, blocks.clone(), blocks.clone());
    }
    let path = meddler(server.local_addr(), malice).await;
    // Somebody else, who sees nothing, throws things at both.
    let stranger = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let targets = [client.local_addr(), server.local_addr()];
    let noise = malice.then(|| {
        tokio::spawn(async move {
            let mut rng = ChaCha8Rng::seed_from_u64(5);
            for i in 0..20_000usize {
                let mut junk = vec![0; rng.next_u32() as usize % 65_000 / (1 + i % 60)];
                rng.fill_bytes(&mut junk);
                let _ = stranger.send_to(&junk, targets[i % 2]).await;
                if i % 20 == 0 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        })
    });
    // Through a meddler that takes its time the handshake may need a few attempts.
    let near = within(60, "connecting", client.connect(path.address, CONTEXT)).await.unwrap();
    let far = within(10, "accepting", incoming.accept()).await.unwrap();
    near.set_rate_limit(Some(20_000_000));
    let before = far.remote();
    let moving = async {
        send_all(&near, bytes).await;
        blocks.all_there().await;
    };
    let rebinding = async {
        if rebind {
            while blocks.ledger.lock().unwrap().received() < bytes / 3 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            path.rebind.store(true, Ordering::Relaxed);
        }
    };
    within(120, "moving", async { tokio::join!(moving, rebinding) }).await;
    blocks.assert_intact();
    if rebind {
        assert_ne!(far.remote(), before, "the connection follows the address");
    }
    if let Some(noise) = noise {
        noise.abort();
    }
    let rejected = far.stats().rejected_packets + near.stats().rejected_packets;
    (path.added.load(Ordering::Relaxed), rejected)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transfer_survives_hostile_datagrams() {
    let (added, rejected) = through(true, false).await;
    println!("{added} hostile datagrams were added, {rejected} packets were rejected by the connection");
    assert!(added > 300);
    assert!(rejected > added / 20, "{rejected} of {added}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transfer_survives_a_new_address() {
    through(false, true).await;
}
