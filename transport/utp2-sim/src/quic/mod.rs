//! quinn-proto as a [`Node`]: what QUIC with CUBIC, BBR or NewReno makes of the same path.
//!
//! The state machine is the real one, with `plain` in the place of TLS. Its application sends endless or
//! counted zeros in many short streams one after the other, since newer versions close a connection whose
//! one long stream has too many gaps. Windows are far above the bandwidth-delay product: it is the
//! controller that is looked at.

mod plain;

use core::time::Duration;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant as StdInstant;

use bytes::{Bytes, BytesMut};
use quinn_proto::congestion::{BbrConfig, ControllerFactory, CubicConfig, NewRenoConfig};
use quinn_proto::{
    ClientConfig, Connection, ConnectionError, ConnectionHandle, DatagramEvent, Dir, EcnCodepoint, Endpoint,
    EndpointConfig, Event, ServerConfig, StreamEvent, StreamId, TransportConfig, VarInt,
};
use timebase::Instant;
use utp2::{Arrival, Ecn};

use crate::network::{Node, Transmission};
use crate::pattern::ENDLESS;
use crate::progress::{Counters, Load, Progress};
use plain::Plain;

/// Length of a stream: some 180 packets, far below the 1024 gaps that quinn allows in one.
const STREAM: u64 = 256 * 1024;
/// What a driver would hand to the kernel in one call; quinn's own limit.
const SEGMENTS_MAX: usize = 10;

/// Which congestion controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Controller {
    /// CUBIC, quinn's default.
    Cubic,
    /// BBR, as quinn has it.
    Bbr,
    /// NewReno.
    NewReno,
}

/// Settings of both ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuicConfig {
    /// The congestion controller.
    pub controller: Controller,
    /// Bytes of a datagram, without discovery.
    pub max_datagram: u16,
    /// Bytes that may be under way or wait for it; see [`crate::Scenario`] for what makes them enough.
    pub window: u64,
}

/// One end of a QUIC connection.
pub struct QuicNode {
    endpoint: Endpoint,
    connection: Option<(ConnectionHandle, Connection)>,
    /// Stands for [`Instant::ZERO`]; only differences to it are ever used.
    zero: StdInstant,
    /// What the endpoint answers without a connection.
    answers: VecDeque<(SocketAddr, Vec<u8>)>,
    role: Role,
    connected_at: Option<Instant>,
    closed: Option<ConnectionError>,
}

enum Role {
    Sender {
        config: Box<ClientConfig>,
        to: SocketAddr,
        start: Instant,
        started: bool,
        /// Bytes that were not given to a stream yet.
        left: u64,
        /// The stream being filled, and what it still wants.
        filling: Option<(StreamId, u64)>,
        zeros: Bytes,
    },
    Receiver {
        received: u64,
        progress: Progress,
    },
}

fn transport(config: QuicConfig) -> Arc<TransportConfig> {
    let mut transport = TransportConfig::default();
    let factory: Arc<dyn ControllerFactory + Send + Sync> = match config.controller {
        Controller::Cubic => Arc::new(CubicConfig::default()),
        Controller::Bbr => Arc::new(BbrConfig::default()),
        Controller::NewReno => Arc::new(NewRenoConfig::default()),
    };
    let window = VarInt::from_u64(config.window).unwrap_or(VarInt::MAX);
    let streams = u32::try_from(config.window / STREAM).unwrap_or(u32::MAX).max(100);
    transport
        .congestion_controller_factory(factory)
        .initial_mtu(config.max_datagram.max(1200))
        .mtu_discovery_config(None)
        .max_idle_timeout(None)
        .send_window(config.window)
        .receive_window(window)
        .stream_receive_window(VarInt::from_u64(STREAM).unwrap_or(VarInt::MAX))
        .max_concurrent_uni_streams(streams.into())
        .send_fairness(false);
    Arc::new(transport)
}

impl QuicNode {
    fn new(seed: [u8; 32], server: Option<ServerConfig>, max_datagram: u16, role: Role) -> Self {
        let mut config = EndpointConfig::new(Arc::new(Plain));
        config.max_udp_payload_size(max_datagram.max(1200)).expect("at least 1200");
        Self {
            endpoint: Endpoint::new(Arc::new(config), server.map(Arc::new), false, Some(seed)),
            connection: None,
            zero: StdInstant::now(),
            answers: VecDeque::new(),
            role,
            connected_at: None,
            closed: None,
        }
    }

    /// The end that connects to `to` and sends.
    #[must_use]
    pub fn sender(config: QuicConfig, seed: [u8; 32], to: SocketAddr, load: Load) -> Self {
        let mut client = ClientConfig::new(Arc::new(Plain));
        client.transport_config(transport(config));
        let role = Role::Sender {
            config: Box::new(client),
            to,
            start: load.start,
            started: false,
            left: load.bytes,
            filling: None,
            zeros: Bytes::from(vec![0; STREAM as usize]),
        };
        Self::new(seed, None, config.max_datagram, role)
    }

    /// The end that accepts and counts.
    #[must_use]
    pub fn receiver(config: QuicConfig, seed: [u8; 32], load: Load) -> Self {
        let mut server = ServerConfig::new(Arc::new(Plain), Arc::new(Plain));
        server.transport_config(transport(config));
        let role = Role::Receiver { received: 0, progress: Progress::new(load) };
        Self::new(seed, Some(server), config.max_datagram, role)
    }

    /// How the data arrived; `None` for a sender.
    #[must_use]
    pub fn progress(&self) -> Option<&Progress> {
        match &self.role {
            Role::Sender { .. } => None,
            Role::Receiver { progress, .. } => Some(progress),
        }
    }

    /// When the handshake was done.
    #[must_use]
    pub fn connected_at(&self) -> Option<Instant> {
        self.connected_at
    }

    /// Why the connection ended, if it has.
    #[must_use]
    pub fn closed(&self) -> Option<&ConnectionError> {
        self.closed.as_ref()
    }

    /// The sender's counters. quinn does not tell how much data it repeats: what it holds for lost is
    /// taken for repeated, in bytes of datagrams.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let Some((_, connection)) = &self.connection else { return Counters::default() };
        let stats = connection.stats();
        let rtt = stats.path.rtt;
        Counters {
            state: "Open".into(),
            sent_packets: stats.path.sent_packets,
            data_bytes_sent: stats.udp_tx.bytes,
            retransmitted_bytes: stats.path.lost_bytes,
            lost_packets: stats.path.lost_packets,
            spurious_losses: 0,
            probe_timeouts: 0,
            rtt,
            rtt_min: stats.path.min_rtt,
            rate: (stats.path.cwnd as f64 / rtt.as_secs_f64().max(1e-6)) as u64,
            delivered_rate: 0,
            bytes_in_flight: 0,
            base_loss_ppm: 0,
        }
    }

    fn std(&self, now: Instant) -> StdInstant {
        self.zero + Duration::from_micros(now.as_micros())
    }

    /// Events between connection and endpoint, then those for the application.
    fn drive(&mut self, now: Instant) {
        let Some((handle, connection)) = &mut self.connection else { return };
        while let Some(event) = connection.poll_endpoint_events() {
            if let Some(event) = self.endpoint.handle_event(*handle, event) {
                connection.handle_event(event);
            }
        }
        let mut hungry = false;
        while let Some(event) = connection.poll() {
            match event {
                Event::Connected => {
                    self.connected_at = Some(now);
                    hungry = true;
                }
                Event::ConnectionLost { reason } => self.closed = Some(reason),
                Event::Stream(StreamEvent::Opened { dir: Dir::Uni }) => {
                    while let Some(id) = connection.streams().accept(Dir::Uni) {
                        read(connection, id, now, &mut self.role);
                    }
                }
                Event::Stream(StreamEvent::Readable { id }) => read(connection, id, now, &mut self.role),
                Event::Stream(StreamEvent::Writable { .. } | StreamEvent::Available { .. }) => hungry = true,
                _ => {}
            }
        }
        if hungry {
            feed(connection, &mut self.role);
        }
    }
}

/// Takes what a stream has, in any order.
fn read(connection: &mut Connection, id: StreamId, now: Instant, role: &mut Role) {
    let Role::Receiver { received, progress } = role else { return };
    let mut stream = connection.recv_stream(id);
    let Ok(mut chunks) = stream.read(false) else { return };
    while let Ok(Some(chunk)) = chunks.next(usize::MAX) {
        *received += chunk.bytes.len() as u64;
    }
    let _ = chunks.finalize();
    progress.reached(now, *received);
}

/// Fills streams until the connection takes no more.
fn feed(connection: &mut Connection, role: &mut Role) {
    let Role::Sender { left, filling, zeros, .. } = role else { return };
    loop {
        if filling.is_none() {
            let len = STREAM.min(*left);
            if len == 0 {
                return;
            }
            let Some(id) = connection.streams().open(Dir::Uni) else { return };
            *filling = Some((id, len));
        }
        let Some((id, wants)) = filling else { return };
        let mut stream = connection.send_stream(*id);
        let Ok(written) = stream.write_chunks(&mut [zeros.slice(..*wants as usize)]) else { return };
        *wants -= written.bytes as u64;
        if *left != ENDLESS {
            *left -= written.bytes as u64;
        }
        if *wants == 0 {
            // Only fails for a stream that was stopped or reset, which the receiver does not do.
            let _ = stream.finish();
            *filling = None;
        } else if written.bytes == 0 {
            return;
        }
    }
}

impl Node for QuicNode {
    fn handle_datagram(&mut self, now: Instant, arrival: Arrival, datagram: &mut [u8]) {
        let ecn = match arrival.ecn {
            Ecn::NotEct => None,
            Ecn::Ect0 => Some(EcnCodepoint::Ect0),
            Ecn::Ect1 => Some(EcnCodepoint::Ect1),
            Ecn::Ce => Some(EcnCodepoint::Ce),
        };
        let (at, data) = (self.std(now), BytesMut::from(&*datagram));
        let mut buf = Vec::new();
        match self.endpoint.handle(at, arrival.remote, None, ecn, data, &mut buf) {
            Some(DatagramEvent::ConnectionEvent(handle, event)) => {
                if let Some((own, connection)) = &mut self.connection
                    && *own == handle
                {
                    connection.handle_event(event);
                }
            }
            Some(DatagramEvent::NewConnection(incoming)) => {
                if self.connection.is_none() {
                    match self.endpoint.accept(incoming, at, &mut buf, None) {
                        Ok(new) => self.connection = Some(new),
                        Err(error) => self.closed = Some(error.cause),
                    }
                } else {
                    self.endpoint.ignore(incoming);
                }
            }
            Some(DatagramEvent::Response(t)) => {
                buf.truncate(t.size);
                self.answers.push_back((t.destination, buf));
            }
            None => {}
        }
        self.drive(now);
    }

    fn handle_timeout(&mut self, now: Instant) {
        let at = self.std(now);
        if let Role::Sender { config, to, start, started, .. } = &mut self.role
            && !*started
            && *start <= now
        {
            *started = true;
            let new = self.endpoint.connect(at, (**config).clone(), *to, "simulated");
            self.connection = Some(new.expect("a fresh endpoint connects"));
        }
        if let Some((_, connection)) = &mut self.connection {
            connection.handle_timeout(at);
        }
        self.drive(now);
    }

    fn poll_timeout(&mut self) -> Option<Instant> {
        if let Role::Sender { start, started: false, .. } = self.role {
            return Some(start);
        }
        let at = self.connection.as_mut()?.1.poll_timeout()?;
        let nanos = at.saturating_duration_since(self.zero).as_nanos();
        Some(Instant::from_micros(u64::try_from(nanos.div_ceil(1000)).unwrap_or(u64::MAX)))
    }

    fn poll_transmit(&mut self, now: Instant, buf: &mut Vec<u8>) -> Option<Transmission> {
        if let Some((to, answer)) = self.answers.pop_front() {
            buf.extend_from_slice(&answer);
            return Some(Transmission { to, len: buf.len(), segment_size: None, ecn: Ecn::NotEct });
        }
        let at = self.std(now);
        let t = self.connection.as_mut()?.1.poll_transmit(at, SEGMENTS_MAX, buf)?;
        let ecn = match t.ecn {
            None => Ecn::NotEct,
            Some(EcnCodepoint::Ect0) => Ecn::Ect0,
            Some(EcnCodepoint::Ect1) => Ecn::Ect1,
            Some(EcnCodepoint::Ce) => Ecn::Ce,
        };
        Some(Transmission { to: t.destination, len: t.size, segment_size: t.segment_size, ecn })
    }
}
