//! The shell around [`Server`]: one UDP socket, timers, signals, lines on stdout.

use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde_json::json;
use timebase::Instant;
use tokio::net::UdpSocket;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{self, Interval, MissedTickBehavior};

use crate::config::Config;
use crate::limits::DATAGRAMS_PER_TURN;
use crate::server::{Server, Stats};

/// One byte more than the longest message, so that longer ones are seen to be too long.
const BUFFER: usize = tracker_proto::limits::DATAGRAM_MAX + 1;

/// Pause after a failed receive, so that a broken socket does not take a whole core.
const RECEIVE_ERROR_PAUSE: Duration = Duration::from_millis(10);

enum Wakeup {
    Datagram(io::Result<(usize, SocketAddr)>),
    Timer,
    Stats,
    Stop,
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    user1: Signal,
}

/// Serves until SIGTERM or SIGINT.
pub(crate) async fn serve(config: Config, seed: [u8; 32], json: bool) -> io::Result<()> {
    let mut signals = Signals {
        terminate: signal(SignalKind::terminate())?,
        interrupt: signal(SignalKind::interrupt())?,
        user1: signal(SignalKind::user_defined1())?,
    };
    let socket = UdpSocket::bind(config.listen).await?;
    let started = time::Instant::now();
    let now = || Instant::from_micros(started.elapsed().as_micros() as u64);
    let mut server = Server::new(config.limits, seed);
    let mut ticks = config.stats_interval.map(|every| {
        let mut ticks = time::interval_at(started + every, every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        ticks
    });
    print_ready(socket.local_addr()?, json);
    let mut buffer = [0; BUFFER];
    loop {
        let timer = server.poll_timeout().map(|t| started + Duration::from_micros(t.as_micros()));
        match next(&socket, &mut buffer, timer, &mut ticks, &mut signals).await {
            Wakeup::Datagram(Ok((len, from))) => {
                answer(&socket, &mut server, now(), from, &buffer[..len]);
                drain(&socket, &mut server, &now, &mut buffer);
            }
            Wakeup::Datagram(Err(error)) => {
                tracing::debug!(%error, "receive failed");
                time::sleep(RECEIVE_ERROR_PAUSE).await;
            }
            Wakeup::Timer => server.handle_timeout(now()),
            Wakeup::Stats => {
                server.handle_timeout(now());
                print_stats(&server.stats(), started.elapsed(), json);
            }
            Wakeup::Stop => {
                tracing::info!(stats = ?server.stats(), "stopped");
                return Ok(());
            }
        }
    }
}

async fn next(
    socket: &UdpSocket,
    buffer: &mut [u8],
    timer: Option<time::Instant>,
    ticks: &mut Option<Interval>,
    signals: &mut Signals,
) -> Wakeup {
    let timer = async {
        match timer {
            Some(at) => time::sleep_until(at).await,
            None => std::future::pending().await,
        }
    };
    let tick = async {
        match ticks {
            Some(ticks) => drop(ticks.tick().await),
            None => std::future::pending().await,
        }
    };
    // In this order: a flood of datagrams must not keep a signal waiting.
    tokio::select! {
        biased;
        _ = signals.terminate.recv() => Wakeup::Stop,
        _ = signals.interrupt.recv() => Wakeup::Stop,
        _ = signals.user1.recv() => Wakeup::Stats,
        () = tick => Wakeup::Stats,
        received = socket.recv_from(buffer) => Wakeup::Datagram(received),
        () = timer => Wakeup::Timer,
    }
}

/// The form that the socket wants: an IPv4 address on an IPv6 socket is a mapped one.
fn outgoing(to: SocketAddr, is_v6: bool) -> SocketAddr {
    match to.ip() {
        IpAddr::V4(ip) if is_v6 => SocketAddr::new(ip.to_ipv6_mapped().into(), to.port()),
        _ => to,
    }
}

/// Handles what has come in meanwhile, up to a limit.
fn drain(socket: &UdpSocket, server: &mut Server, now: &impl Fn() -> Instant, buffer: &mut [u8]) {
    for _ in 0..DATAGRAMS_PER_TURN {
        let Ok((len, from)) = socket.try_recv_from(buffer) else { return };
        answer(socket, server, now(), from, &buffer[..len]);
    }
}

fn answer(socket: &UdpSocket, server: &mut Server, now: Instant, from: SocketAddr, bytes: &[u8]) {
    let is_v6 = socket.local_addr().is_ok_and(|a| a.is_ipv6());
    for (to, bytes) in server.handle_datagram(now, from, bytes) {
        // A full send buffer loses it, as the network might; the agent asks again.
        if let Err(error) = socket.try_send_to(&bytes, outgoing(to, is_v6)) {
            tracing::debug!(%to, %error, "not sent");
        }
    }
}

fn print_ready(listen: SocketAddr, json: bool) {
    if json {
        print_line(&json!({ "ready": true, "listen": listen }).to_string());
    } else {
        print_line(&format!("Tracker listens on {listen} (UDP). SIGUSR1 prints statistics."));
    }
}

fn print_stats(s: &Stats, uptime: Duration, json: bool) {
    let uptime_s = uptime.as_secs();
    if json {
        print_line(&json!({ "stats": s, "uptime_s": uptime_s }).to_string());
    } else {
        print_line(&format!(
            "up {uptime_s} s: {} swarms, {} entries; {} received, {} announces ({} left, {} found no room), \
             {} cookies, {} calls ({} rings), {} invalid, {} over the rate limit, {} expired",
            s.swarms,
            s.entries,
            s.received,
            s.announces,
            s.leaves,
            s.full,
            s.cookies,
            s.calls,
            s.rings,
            s.invalid,
            s.limited,
            s.expired
        ));
    }
}

/// Prints and flushes. A reader that went away is no reason to stop serving.
fn print_line(line: &str) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}
