//! The task: sockets and timer on one side, the two state machines on the other.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket as StdUdpSocket};
use std::sync::Arc;
use std::time::Duration;

use timebase::Instant;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::time::{self, Interval, MissedTickBehavior};
use tracker_proto::Usable;
use tracker_proto::limits::DATAGRAM_MAX;
use utp2_tokio::{Beside, Endpoint};

use super::lan::{self, LanSockets};
use super::lan6::LanSocketsV6;
use super::{DiscoveryConfig, Shared, addresses};

/// How often interfaces and our own addresses are looked at again: a vehicle that comes into range should
/// not wait for long, and looking costs a few small files.
const REFRESH: Duration = Duration::from_secs(5);

/// Pause after a failed receive, so that a broken socket does not take a whole core.
const RECEIVE_ERROR_PAUSE: Duration = Duration::from_millis(10);

/// One byte more than the longest message, so that longer ones are seen to be too long.
const BUFFER: usize = DATAGRAM_MAX + 1;

pub(super) struct Driver {
    config: DiscoveryConfig,
    /// The µTP2 socket and what came beside µTP2.
    beside: Option<(Endpoint, mpsc::Receiver<Beside>)>,
    /// The trackers that the µTP2 socket can speak to.
    usable: Usable,
    shared: Arc<Shared>,
    tracker_v4: Option<UdpSocket>,
    tracker_v6: Option<UdpSocket>,
    lan: Option<LanSockets>,
    lan_v6: Option<LanSocketsV6>,
    refresh: Interval,
    buffers: Buffers,
}

/// One per socket, as all are waited for at a time.
struct Buffers {
    v4: [u8; BUFFER],
    v6: [u8; BUFFER],
    lan: [u8; BUFFER],
    lan_v6: [u8; BUFFER],
}

enum Wakeup {
    FromTracker(usize, SocketAddr, Family),
    Beside(SocketAddr, Vec<u8>),
    /// The µTP2 socket is gone.
    BesideEnded,
    FromLan(usize, SocketAddr, Family),
    ReceiveFailed,
    Timer,
    Refresh,
    /// The handle changed something.
    Control,
}

enum Family {
    V4,
    V6,
}

impl Driver {
    pub(super) fn new(mut config: DiscoveryConfig, shared: Arc<Shared>) -> io::Result<Self> {
        let beside = config.socket.take();
        let usable = if beside.is_some() { spoken(config.listen.ip()) } else { Usable::NONE };
        let (tracker_v4, tracker_v6) = tracker_sockets(config.listen.ip(), usable)?;
        let mut refresh = time::interval(REFRESH);
        refresh.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let buffers = Buffers { v4: [0; BUFFER], v6: [0; BUFFER], lan: [0; BUFFER], lan_v6: [0; BUFFER] };
        let mut driver = Self {
            config,
            beside,
            usable,
            shared,
            tracker_v4,
            tracker_v6,
            lan: None,
            lan_v6: None,
            refresh,
            buffers,
        };
        driver.refresh();
        Ok(driver)
    }

    pub(super) async fn run(mut self) {
        loop {
            let (timeout, stopping) = self.turn().await;
            if stopping {
                return;
            }
            match self.next(timeout).await {
                Wakeup::FromTracker(len, from, family) => {
                    let buffer = match family {
                        Family::V4 => &self.buffers.v4,
                        Family::V6 => &self.buffers.v6,
                    };
                    let from = SocketAddr::new(from.ip().to_canonical(), from.port());
                    self.shared.lock().client.handle_datagram(self.shared.now(), from, &buffer[..len]);
                }
                Wakeup::Beside(from, bytes) => {
                    let from = SocketAddr::new(from.ip().to_canonical(), from.port());
                    let now = self.shared.now();
                    let mut state = self.shared.lock();
                    // Only trackers are believed to be trackers; anybody else can at most have sent a probe.
                    if state.client.trackers().any(|(tracker, _)| tracker == from) {
                        state.client.handle_datagram(now, from, &bytes);
                    } else {
                        state.prober.handle_datagram(now, from, &bytes);
                    }
                }
                Wakeup::BesideEnded => self.beside = None,
                Wakeup::FromLan(len, from, family) => {
                    let buffer = match family {
                        Family::V4 => &self.buffers.lan,
                        Family::V6 => &self.buffers.lan_v6,
                    };
                    let bytes = &buffer[..len];
                    self.shared.lock().lan.handle_datagram(self.shared.now(), from, bytes);
                }
                Wakeup::ReceiveFailed => time::sleep(RECEIVE_ERROR_PAUSE).await,
                Wakeup::Refresh => self.refresh(),
                Wakeup::Timer | Wakeup::Control => {}
            }
        }
    }

    /// Lets the machines act: sends what they have to send, hands out what they found. Returns when they
    /// want to act again, and whether this was the last time.
    async fn turn(&mut self) -> (Option<Instant>, bool) {
        let (mut to_trackers, mut probes) = (Vec::new(), Vec::new());
        let (timeout, stopping) = {
            let now = self.shared.now();
            let mut state = self.shared.lock();
            state.deliver(now);
            state.client.handle_timeout(now);
            while let Some(datagram) = state.client.poll_transmit(now) {
                to_trackers.push(datagram);
            }
            while let Some(bytes) = state.lan.poll_transmit(now) {
                self.lan.iter().for_each(|lan| lan.send(&bytes));
                self.lan_v6.iter().for_each(|lan| lan.send(&bytes));
            }
            while let Some(datagram) = state.prober.poll_transmit(now) {
                probes.push(datagram);
            }
            let timeouts =
                [state.client.poll_timeout(), state.lan.poll_timeout(), state.prober.poll_timeout()];
            (timeouts.into_iter().flatten().min(), state.stopping)
        };
        if let Some((endpoint, _)) = &self.beside {
            for (to, bytes) in probes {
                // Lost ones are sent again, or the next one is.
                let _ = endpoint.send_beside(to, &bytes);
            }
        }
        for (to, bytes) in to_trackers {
            if let Some((endpoint, _)) = self.beside.as_ref().filter(|_| self.usable.at(to)) {
                let _ = endpoint.send_beside(to, &bytes);
                continue;
            }
            let socket = if to.is_ipv4() { &self.tracker_v4 } else { &self.tracker_v6 };
            if let Some(socket) = socket {
                // What can't be sent counts as lost, and is tried again later.
                let _ = socket.send_to(&bytes, to).await;
            }
        }
        (timeout, stopping)
    }

    async fn next(&mut self, timeout: Option<Instant>) -> Wakeup {
        let timer = async {
            match timeout {
                Some(t) => {
                    time::sleep_until(self.shared.started + Duration::from_micros(t.as_micros())).await;
                }
                None => std::future::pending().await,
            }
        };
        let beside = async {
            match &mut self.beside {
                Some((_, came)) => came.recv().await,
                None => std::future::pending().await,
            }
        };
        let lan = async {
            match &self.lan {
                Some(lan) => lan.receive(&mut self.buffers.lan).await,
                None => std::future::pending().await,
            }
        };
        let lan_v6 = async {
            match &self.lan_v6 {
                Some(lan) => lan.receive(&mut self.buffers.lan_v6).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = self.shared.wake.notified() => Wakeup::Control,
            _ = self.refresh.tick() => Wakeup::Refresh,
            () = timer => Wakeup::Timer,
            got = receive(&self.tracker_v4, &mut self.buffers.v4) =>
                got.map_or(Wakeup::ReceiveFailed, |(len, from)| Wakeup::FromTracker(len, from, Family::V4)),
            got = receive(&self.tracker_v6, &mut self.buffers.v6) =>
                got.map_or(Wakeup::ReceiveFailed, |(len, from)| Wakeup::FromTracker(len, from, Family::V6)),
            got = beside => got.map_or(Wakeup::BesideEnded, |(from, bytes)| Wakeup::Beside(from, bytes)),
            got = lan =>
                got.map_or(Wakeup::ReceiveFailed, |(len, from)| Wakeup::FromLan(len, from, Family::V4)),
            got = lan_v6 =>
                got.map_or(Wakeup::ReceiveFailed, |(len, from)| Wakeup::FromLan(len, from, Family::V6)),
        }
    }

    /// Looks at interfaces and addresses again; leaves swarms that nobody listens to any more.
    fn refresh(&mut self) {
        let lan = self.refresh_lan();
        let now = self.shared.now();
        let mut state = self.shared.lock();
        match lan {
            Ok(new_interface) => {
                state.status.lan_error = None;
                if new_interface {
                    state.lan.announce_all(now);
                }
            }
            Err(error) => state.status.lan_error = Some(error.to_string()),
        }
        state.status.lan_interfaces_v6 = self.lan_v6.as_ref().map_or(0, LanSocketsV6::interfaces);
        state.status.lan_interfaces = self.lan.as_ref().map_or(0, LanSockets::interfaces);
        let DiscoveryConfig { listen, advertise, .. } = &self.config;
        let trackers: Vec<_> = state.client.trackers().map(|t| t.0).collect();
        state.client.set_addresses(now, addresses::for_trackers(*listen, advertise, &trackers), self.usable);
        state.lan.set_addresses(now, addresses::for_lan(*listen, advertise));
        state.leave_abandoned(now);
    }

    fn refresh_lan(&mut self) -> io::Result<bool> {
        let config = &self.config.lan;
        if !config.enabled {
            return Ok(false);
        }
        let ip = self.config.listen.ip();
        let interfaces = lan::interfaces(ip, &config.interfaces);
        let loopback_only = ip.to_canonical().is_loopback();
        let mut new_v6 = false;
        if spoken(ip).v6 && !loopback_only {
            match &mut self.lan_v6 {
                Some(lan) => new_v6 = lan.update(&interfaces),
                None => match LanSocketsV6::open(config.port, &interfaces) {
                    Ok(lan) => (self.lan_v6, new_v6) = (Some(lan), true),
                    // Many networks have IPv4 only; IPv4 tells what is wrong with all of them.
                    Err(error) => tracing::debug!(%error, "no multicast over IPv6"),
                },
            }
            if !spoken(ip).v4 {
                return Ok(new_v6);
            }
        }
        if let Some(lan) = &mut self.lan {
            return Ok(lan.update(&interfaces) || new_v6);
        }
        self.lan = Some(LanSockets::open(config, loopback_only, &interfaces)?);
        Ok(true)
    }
}

/// The IP versions that a µTP2 socket bound there speaks.
fn spoken(listen: IpAddr) -> Usable {
    match listen {
        IpAddr::V4(_) => Usable { v4: true, v6: false },
        IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some() => Usable { v4: true, v6: false },
        IpAddr::V6(ip) => Usable { v4: ip.is_unspecified(), v6: true },
    }
}

/// Sockets to speak to the trackers that the µTP2 socket does not speak to, from the address that µTP2 uses if it is a
/// certain one.
fn tracker_sockets(listen: IpAddr, usable: Usable) -> io::Result<(Option<UdpSocket>, Option<UdpSocket>)> {
    match listen.to_canonical() {
        _ if usable == (Usable { v4: true, v6: true }) => Ok((None, None)),
        ip if !ip.is_unspecified() && usable != Usable::NONE => Ok((None, None)),
        IpAddr::V4(ip) if !ip.is_unspecified() => Ok((Some(bind(ip.into())?), None)),
        IpAddr::V6(ip) if !ip.is_unspecified() => Ok((None, Some(bind(ip.into())?))),
        _ => {
            let wanted = |usable: bool, any: IpAddr| (!usable).then(|| bind(any)).transpose();
            let v4 = wanted(usable.v4, Ipv4Addr::UNSPECIFIED.into());
            let v6 = wanted(usable.v6, Ipv6Addr::UNSPECIFIED.into());
            // A host may have one of the two only.
            match (v4, v6) {
                (Err(error), Err(_)) => Err(error),
                (v4, v6) => Ok((v4.ok().flatten(), v6.ok().flatten())),
            }
        }
    }
}

fn bind(ip: IpAddr) -> io::Result<UdpSocket> {
    let socket = StdUdpSocket::bind((ip, 0))?;
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket)
}

async fn receive(socket: &Option<UdpSocket>, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
    match socket {
        Some(socket) => socket.recv_from(buffer).await,
        None => std::future::pending().await,
    }
}
