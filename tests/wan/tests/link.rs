//! The emulated link does what it says: its delay, its rate, its loss; and nothing is left of it.

mod common;

use std::fs;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{config, link};
use wan::{Config, Link, Shape, Side};

/// A socket at one end of the link.
fn socket(side: &Side) -> UdpSocket {
    let address = SocketAddr::new(side.address(), 7000);
    let socket = side.run(move || UdpSocket::bind(address)).unwrap().unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    socket
}

fn pair(link: &Link) -> (UdpSocket, UdpSocket) {
    let (a, b) = (socket(&link.a), socket(&link.b));
    a.connect((link.b.address(), 7000)).unwrap();
    b.connect((link.a.address(), 7000)).unwrap();
    (a, b)
}

#[test]
fn an_echo_takes_the_round_trip_time() {
    let Some(link) = link("an_echo_takes_the_round_trip_time", &config(100, 40, 0.0)) else { return };
    let (a, b) = pair(&link);
    let echo = std::thread::spawn(move || {
        let mut buffer = [0; 64];
        for _ in 0..10 {
            let len = b.recv(&mut buffer).unwrap();
            b.send(&buffer[..len]).unwrap();
        }
    });
    let mut buffer = [0; 64];
    let times: Vec<Duration> = (0..10)
        .map(|_| {
            let began = Instant::now();
            a.send(b"are you there?").unwrap();
            assert_eq!(a.recv(&mut buffer).unwrap(), 14);
            began.elapsed()
        })
        .collect();
    echo.join().unwrap();
    let best = times.iter().min().unwrap();
    assert!(
        times.iter().all(|time| *time >= Duration::from_millis(40)),
        "none is faster than the link: {times:?}"
    );
    assert!(*best < Duration::from_millis(50), "the best is not much slower: {times:?}");
    assert!(link.report().is_sound());
}

#[test]
fn a_burst_arrives_at_the_rate_of_the_link_and_the_queue_drops_the_rest() {
    const LEN: usize = 1172; // 1200 with the headers
    let shape = Shape::new(20_000_000, Duration::from_millis(5)).with_queue(Duration::from_secs(1));
    let test = "a_burst_arrives_at_the_rate_of_the_link_and_the_queue_drops_the_rest";
    let Some(link) = link(test, &Config::new(shape.clone())) else { return };
    let (a, b) = pair(&link);
    let fit = shape.queue_bytes / 1200;
    let reader = std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        let mut first = None;
        for _ in 0..fit {
            b.recv(&mut buffer).unwrap();
            first.get_or_insert_with(Instant::now);
        }
        first.unwrap().elapsed()
    });
    for _ in 0..fit * 3 / 2 {
        a.send(&[7; LEN]).unwrap();
    }
    let took = reader.join().unwrap().as_secs_f64();
    let ideal = (fit - 1) as f64 * 1200.0 * 8.0 / 20e6;
    // The upper bound is for machines with other work: what counts is that the link is not faster than it says.
    assert!((ideal * 0.98..ideal * 1.15).contains(&took), "{took} s instead of {ideal}");
    let report = link.report();
    assert!(report.is_sound() && report.forward.packets == fit * 3 / 2, "{report:?}");
    // While the burst was being sent, some more found room.
    assert!((1..=fit / 2).contains(&report.forward.queue_drops), "{report:?}");
}

#[test]
fn a_step_of_the_rate_holds_for_what_waits_already() {
    const LEN: usize = 1172; // 1200 with the headers
    let shape = Shape::new(10_000_000, Duration::from_millis(5)).with_queue(Duration::from_secs(2));
    let config = Config { peak_bps: 100_000_000, ..Config::new(shape) };
    let Some(link) = link("a_step_of_the_rate_holds_for_what_waits_already", &config) else { return };
    let (a, b) = pair(&link);
    let burst = |packets: usize, rate_bps: u64| {
        let began = Instant::now();
        (0..packets).for_each(|_| assert_eq!(a.send(&[7; LEN]).unwrap(), LEN));
        link.set_rate(rate_bps);
        let mut buffer = [0; 2048];
        (0..packets).for_each(|_| assert_eq!(b.recv(&mut buffer).unwrap(), LEN));
        began.elapsed().as_secs_f64()
    };
    // 0.24 s at 10 Mbit/s and 0.48 s at half of it, of which some pass while the burst is being sent.
    let slow = burst(250, 5_000_000);
    assert!(slow > 0.36, "{slow} s");
    // 1.92 s at 5 Mbit/s, 0.1 s at 100 Mbit/s.
    let fast = burst(1000, 100_000_000);
    assert!(fast > 0.09 && fast < 0.96, "{fast} s");
    let report = link.report();
    assert!(report.is_sound() && report.forward.delivered == 1250, "{report:?}");
}

#[test]
fn there_is_memory_for_what_the_highest_rate_has_under_way() {
    const PACKETS: u64 = 6_000;
    let shape = Shape::new(1_000_000, Duration::from_secs(1));
    let config = Config { peak_bps: 1_000_000_000, ..Config::new(shape) };
    let Some(link) = link("there_is_memory_for_what_the_highest_rate_has_under_way", &config) else { return };
    let (a, _b) = pair(&link);
    link.set_rate(1_000_000_000);
    // 7 MB within the second that the first of them takes; at 1 Mbit/s a tenth of that would be under way.
    for i in 0..PACKETS {
        a.send(&[1; 1172]).unwrap();
        if i % 50 == 0 {
            std::thread::sleep(Duration::from_micros(500));
        }
    }
    let began = Instant::now();
    let forward = loop {
        let forward = link.report().forward;
        let done = forward.delivered + forward.overflow + forward.queue_drops >= PACKETS;
        if done || began.elapsed() > common::WAIT {
            break forward;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    assert_eq!((forward.overflow, forward.delivered + forward.queue_drops), (0, PACKETS), "{forward:?}");
    assert!(forward.delivered * 10 > PACKETS * 9, "{forward:?}");
}

#[test]
fn loss_is_what_was_asked_for_and_nothing_else_gets_lost() {
    const PACKETS: u64 = 20_000;
    let mut config = config(1000, 2, 0.05);
    config.back.loss = wan::Loss::None;
    let Some(link) = link("loss_is_what_was_asked_for_and_nothing_else_gets_lost", &config) else { return };
    let (a, b) = pair(&link);
    let through = Arc::new(AtomicBool::new(false));
    let end = through.clone();
    let reader = std::thread::spawn(move || {
        let mut buffer = [0; 256];
        let mut got = 0;
        b.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        loop {
            // Whether there can be more is to be asked before looking.
            let last = end.load(Ordering::Relaxed);
            match b.recv(&mut buffer) {
                Ok(_) => got += 1,
                Err(_) if last => return got,
                Err(_) => {}
            }
        }
    });
    for i in 0..PACKETS {
        a.send(&[1; 100]).unwrap();
        if i % 50 == 0 {
            std::thread::sleep(Duration::from_micros(500));
        }
    }
    let began = Instant::now();
    let forward = loop {
        let forward = link.report().forward;
        if forward.delivered + forward.lost + forward.queue_drops >= PACKETS || began.elapsed() > common::WAIT
        {
            break forward;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    through.store(true, Ordering::Relaxed);
    let got: u64 = reader.join().unwrap();
    assert_eq!((forward.packets, forward.missed, forward.overflow, forward.refused), (PACKETS, 0, 0, 0));
    assert_eq!(forward.delivered + forward.lost + forward.queue_drops, PACKETS);
    let (n, p) = (PACKETS as f64, 0.05);
    let sigma = (n * p * (1.0 - p)).sqrt();
    assert!((forward.lost as f64 - n * p).abs() < 4.0 * sigma, "{forward:?}");
    // A reader that gets no processor loses some at its socket, which is not the link's doing.
    assert!(got <= forward.delivered && got * 10 > forward.delivered * 9, "{got} of {forward:?}");
}

#[test]
fn a_link_that_is_down_carries_nothing_and_an_end_can_move() {
    let test = "a_link_that_is_down_carries_nothing_and_an_end_can_move";
    let Some(mut link) = link(test, &config(100, 2, 0.0)) else { return };
    let b = socket(&link.b);
    let to = SocketAddr::new(link.b.address(), 7000);
    let a = link.a.run(|| UdpSocket::bind("0.0.0.0:7001")).unwrap().unwrap();
    let mut buffer = [0; 64];
    let from = |a: &UdpSocket, buffer: &mut [u8]| -> IpAddr {
        a.send_to(b"here", to).unwrap();
        b.recv_from(buffer).unwrap().1.ip()
    };
    assert_eq!(from(&a, &mut buffer), link.a.address());
    link.set_down(true);
    a.send_to(b"lost", to).unwrap();
    let began = Instant::now();
    while link.report().forward.outage_drops == 0 {
        assert!(began.elapsed() < common::WAIT, "{:?}", link.report());
        std::thread::sleep(Duration::from_millis(5));
    }
    link.set_down(false);
    link.a.change_address([10, 77, 0, 9].into()).unwrap();
    assert_eq!(from(&a, &mut buffer), IpAddr::from([10, 77, 0, 9]), "what was lost does not arrive");
    assert_eq!(link.report().forward.delivered, 2);
    link.count_anew();
    assert_eq!(from(&a, &mut buffer), link.a.address());
    let forward = link.report().forward;
    assert_eq!((forward.packets, forward.delivered, forward.outage_drops), (1, 1, 0), "{forward:?}");
    assert!((0.0..10.0).contains(&forward.cpu_seconds), "{forward:?}");
}

/// Processes with this argument.
fn running(argument: &str) -> usize {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let lines = processes.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    lines.filter(|line| line.split(|b| *b == 0).any(|part| part == argument.as_bytes())).count()
}

#[test]
fn nothing_is_left_when_it_is_killed() {
    let test = "nothing_is_left_when_it_is_killed";
    if link(test, &config(100, 2, 0.0)).is_none() {
        return;
    }
    // An argument that nobody else has.
    let mark = format!("1000.{}", std::process::id());
    let sleep = format!("sleep {mark} & sleep {mark}; true");
    let mut child = Command::new(env!("CARGO_BIN_EXE_wan"))
        .args(["run", "--receiver", &sleep, "--sender", &sleep])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let wait = |wanted: usize| {
        let began = Instant::now();
        while running(&mark) != wanted {
            assert!(began.elapsed() < common::WAIT, "{} of {wanted} processes", running(&mark));
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    wait(4);
    child.kill().unwrap();
    child.wait().unwrap();
    wait(0);
}
