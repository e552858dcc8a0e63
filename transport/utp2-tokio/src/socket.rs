//! One UDP socket: batches, segmentation offload both ways, large buffers, and what the kernel dropped.
//!
//! Knows nothing of µTP2. Where the system lacks an offload, `quinn-udp` falls back to single datagrams;
//! where it withdraws one in the middle (a device that cannot), the batch is sent again in pieces here.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::time::Duration;

use quinn_udp::{EcnCodepoint, RecvMeta, Transmit, UdpSockRef, UdpSocketState};
use socket2::{Domain, Protocol, Type};
use tokio::io::Interest;
use utp2::Ecn;

use crate::gate::Gate;

/// Bytes asked for the kernel's receive buffer, so that a driver that is not scheduled for a while loses nothing:
/// 10 ms at 5 Gbit/s are wanted at least, and four times as much is asked for, because on a machine that has more to
/// do than its cores can, others run for several slices. Only what waits takes memory. Linux grants at most
/// `net.core.rmem_max`, often 208 KiB, unless the program may administer the network (`CAP_NET_ADMIN`, root).
const RECEIVE_ROOM: usize = 32 << 20;
const RECEIVE_ROOM_MIN: usize = 8 << 20;

/// The same for the send buffer, with `net.core.wmem_max`.
const SEND_ROOM: usize = 8 << 20;

/// Buffers handed to the kernel in one receive call, as many as `quinn-udp` passes on. With GRO each can hold
/// 64 KiB of equal datagrams; without it they take one each, and only the pages touched are memory.
const RECEIVE_BATCH: usize = 32;

/// The kernel's limit for one receive with GRO, and of a UDP datagram.
const RECEIVE_BUFFER: usize = 65_535;

/// The largest UDP payload over IPv4, and so the most bytes of one send with GSO.
pub(crate) const SEND_MAX: usize = 65_507;

/// The kernel's limit of datagrams in one send with GSO (`UDP_MAX_SEGMENTS` of older kernels).
const SEGMENTS_MAX: usize = 64;

/// A bound, non-blocking socket.
pub(crate) struct Socket {
    io: Gate,
    state: UdpSocketState,
    is_v6: bool,
    /// Whether the operating system refused a send outright; said once, then at debug level.
    send_error_told: std::sync::atomic::AtomicBool,
}

impl Socket {
    /// Binds `addr`. An IPv6 socket also speaks IPv4 where the system allows it.
    pub(crate) fn bind(addr: SocketAddr) -> io::Result<Self> {
        let socket = socket2::Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
        if addr.is_ipv6()
            && let Err(error) = socket.set_only_v6(false)
        {
            tracing::debug!(%error, "this system has no dual-stack sockets");
        }
        socket.set_nonblocking(true)?;
        socket.bind(&addr.into())?;
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        enlarge_buffers(&socket);
        let io = Gate::new(socket.into())?;
        Ok(Self { io, state, is_v6: addr.is_ipv6(), send_error_told: false.into() })
    }

    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.io.local_addr()
    }

    /// How many datagrams of `size` bytes at most one send takes now.
    pub(crate) fn max_segments(&self, size: usize) -> usize {
        self.state.max_gso_segments().min(SEGMENTS_MAX).min(SEND_MAX / size.max(1)).max(1)
    }

    /// Waits until a receive or a send may succeed, whichever is asked for, or longer by a stale wakeup.
    pub(crate) async fn wait(&self, receive: bool, send: bool) -> io::Result<()> {
        self.io.wait(receive, send).await
    }

    /// Ends the waiting: what comes from now on wakes nobody.
    pub(crate) fn rest(&self) {
        self.io.close();
    }

    /// Sends `data`, one datagram or several of `segment_size`. `Err` only for what the caller can act on;
    /// anything else the network or the system does to a datagram is a loss, which µTP2 mends.
    pub(crate) fn try_send(
        &self,
        remote: SocketAddr,
        ecn: Ecn,
        data: &[u8],
        segment_size: Option<usize>,
    ) -> Result<(), NotSent> {
        let destination = self.outgoing(remote);
        let ecn = EcnCodepoint::from_bits(ecn.bits());
        let transmit = Transmit { destination, ecn, contents: data, segment_size, src_ip: None };
        let Err(error) = self.send_once(&transmit) else { return Ok(()) };
        if error.kind() == io::ErrorKind::WouldBlock {
            return Err(NotSent::WouldBlock);
        }
        if quinn_udp::is_msg_size_err(&error) {
            return Err(NotSent::TooLarge(segment_size.unwrap_or(data.len()).min(data.len())));
        }
        match segment_size {
            // The device refused segmentation; `quinn-udp` has noted it and will report one segment.
            Some(size) if self.state.max_gso_segments() == 1 && size < data.len() => {
                for segment in data.chunks(size) {
                    let single = Transmit { contents: segment, segment_size: None, ..transmit.clone() };
                    match self.send_once(&single) {
                        // It was the size all the while, said in the words of an older kernel.
                        Err(error) if quinn_udp::is_msg_size_err(&error) => {
                            return Err(NotSent::TooLarge(segment.len()));
                        }
                        Err(error) => self.tell(&error, remote),
                        Ok(()) => {}
                    }
                }
            }
            _ => self.tell(&error, remote),
        }
        Ok(())
    }

    fn send_once(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.io.attempt(Interest::WRITABLE, |socket| self.state.try_send(socket, transmit))
    }

    fn tell(&self, error: &io::Error, remote: SocketAddr) {
        if self.send_error_told.swap(true, std::sync::atomic::Ordering::Relaxed) {
            tracing::debug!(%error, %remote, "a datagram could not be sent");
        } else {
            tracing::warn!(%error, %remote, "a datagram could not be sent; further ones at debug level");
        }
    }

    /// Receives what is there into `batch`.
    pub(crate) fn try_recv(&self, batch: &mut ReceiveBatch) -> io::Result<()> {
        let ReceiveBatch { buffers, metas, filled } = batch;
        let mut slices = buffers.each_mut().map(|b| IoSliceMut::new(b));
        *filled = 0;
        *filled =
            match self.io.attempt(Interest::READABLE, |socket| self.state.recv(socket, &mut slices, metas)) {
                Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                    let (buffer, meta) = (&mut buffers[0], &mut metas[0]);
                    self.io.attempt(Interest::READABLE, |_| receive_one(&self.io, buffer, meta))?
                }
                received => received?,
            };
        Ok(())
    }

    /// The form the kernel wants: an IPv4 address on an IPv6 socket is a mapped one.
    fn outgoing(&self, remote: SocketAddr) -> SocketAddr {
        match remote {
            SocketAddr::V4(v4) if self.is_v6 => {
                SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0).into()
            }
            other => other,
        }
    }

    /// Datagrams the kernel dropped because the receive buffer was full, where it tells (Linux).
    pub(crate) fn kernel_drops(&self) -> Option<u64> {
        #[cfg(target_os = "linux")]
        {
            let inode = rustix::fs::fstat(&self.io).ok()?.st_ino;
            let table = if self.is_v6 { "/proc/net/udp6" } else { "/proc/net/udp" };
            drops_of_inode(&std::fs::read_to_string(table).ok()?, inode)
        }
        #[cfg(not(target_os = "linux"))]
        None
    }
}

/// Why nothing was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotSent {
    /// The socket's send buffer is full.
    WouldBlock,
    /// The host knows that the way does not take datagrams of so many bytes: they are never fragmented.
    TooLarge(usize),
}

/// Datagrams of one sender that the kernel received together.
pub(crate) struct Run<'a> {
    pub(crate) remote: SocketAddr,
    pub(crate) ecn: Ecn,
    /// The kernel's receive time, wall clock, since 1970; where it tells (Linux).
    pub(crate) stamp: Option<Duration>,
    pub(crate) data: &'a mut [u8],
    /// Bytes of each datagram but the last.
    pub(crate) stride: usize,
}

/// Received datagrams, as the kernel batched them.
pub(crate) struct ReceiveBatch {
    buffers: [Box<[u8]>; RECEIVE_BATCH],
    metas: [RecvMeta; RECEIVE_BATCH],
    filled: usize,
}

impl ReceiveBatch {
    pub(crate) fn new() -> Self {
        Self {
            buffers: std::array::from_fn(|_| vec![0; RECEIVE_BUFFER].into_boxed_slice()),
            metas: [RecvMeta::default(); RECEIVE_BATCH],
            filled: 0,
        }
    }

    /// Whether the kernel may hold more than it gave.
    pub(crate) fn is_full(&self) -> bool {
        self.filled == RECEIVE_BATCH
    }

    /// What was received.
    pub(crate) fn runs(&mut self) -> impl Iterator<Item = Run<'_>> {
        self.buffers[..self.filled].iter_mut().zip(&self.metas).map(|(buffer, meta)| Run {
            remote: canonical(meta.addr),
            ecn: Ecn::from_bits(meta.ecn.map_or(0, |e| e as u8)),
            stamp: meta.timestamp,
            data: &mut buffer[..meta.len],
            stride: meta.stride.max(1),
        })
    }
}

/// Receives one datagram, where the kernel knows no `recvmmsg` (Linux before 2.6.33): without its mark and its time.
#[cfg(target_os = "linux")]
fn receive_one(socket: impl std::os::fd::AsFd, buffer: &mut [u8], meta: &mut RecvMeta) -> io::Result<usize> {
    use rustix::net::{RecvFlags, recvfrom};
    let (len, _, from) = recvfrom(socket, buffer, RecvFlags::empty())?;
    let addr = from.and_then(|from| from.try_into().ok());
    *meta = RecvMeta::default();
    meta.addr = addr.ok_or(io::ErrorKind::InvalidData)?;
    (meta.len, meta.stride) = (len, len);
    Ok(1)
}

#[cfg(not(target_os = "linux"))]
fn receive_one<S>(_socket: S, _buffer: &mut [u8], _meta: &mut RecvMeta) -> io::Result<usize> {
    Err(io::ErrorKind::Unsupported.into())
}

/// The address as people write it: a mapped IPv4 address is an IPv4 address.
fn canonical(addr: SocketAddr) -> SocketAddr {
    match addr.ip() {
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => SocketAddr::new(v4.into(), addr.port()),
            None => addr,
        },
        IpAddr::V4(_) => addr,
    }
}

/// Asks for large buffers and says what came of it: too small a buffer looks like loss on the path.
fn enlarge_buffers(socket: &socket2::Socket) {
    let _ = socket.set_recv_buffer_size(RECEIVE_ROOM);
    let _ = socket.set_send_buffer_size(SEND_ROOM);
    #[cfg(target_os = "linux")]
    {
        use rustix::net::sockopt::{set_socket_recv_buffer_size_force, set_socket_send_buffer_size_force};
        // Refused to most users, who keep what was granted above.
        let _ = set_socket_recv_buffer_size_force(socket, RECEIVE_ROOM);
        let _ = set_socket_send_buffer_size_force(socket, SEND_ROOM);
    }
    for (what, wanted, granted) in [
        ("receive (rmem_max)", RECEIVE_ROOM_MIN, socket.recv_buffer_size()),
        ("send (wmem_max)", SEND_ROOM, socket.send_buffer_size()),
    ] {
        match granted {
            Ok(size) if size < wanted => tracing::warn!(
                granted = size,
                wanted,
                "the system grants only a small {what} buffer; fast transfers may lose datagrams here"
            ),
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "the size of the {what} buffer is unknown"),
        }
    }
}

/// The last column of the line of this inode in `/proc/net/udp`.
#[cfg(target_os = "linux")]
fn drops_of_inode(table: &str, inode: u64) -> Option<u64> {
    const INODE_COLUMN: usize = 9;
    table.lines().skip(1).find_map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        (columns.get(INODE_COLUMN)?.parse() == Ok(inode)).then(|| columns.last()?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;
    use crate::arrival::Ages;

    async fn fill(socket: &Socket, batch: &mut ReceiveBatch) {
        timeout(Duration::from_secs(10), async {
            loop {
                socket.wait(true, false).await.unwrap();
                match socket.try_recv(batch) {
                    Ok(()) => break,
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                    Err(e) => panic!("{e}"),
                }
            }
        })
        .await
        .expect("a datagram comes");
    }

    async fn receive(socket: &Socket, batch: &mut ReceiveBatch) -> Vec<(SocketAddr, Vec<u8>)> {
        fill(socket, batch).await;
        let mut got = Vec::new();
        for run in batch.runs() {
            got.extend(run.data.chunks(run.stride).map(|d| (run.remote, d.to_vec())));
        }
        got
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn who_may_have_large_buffers_has_them_whatever_the_machine_grants_others() {
        use rustix::net::sockopt::set_socket_recv_buffer_size_force;
        let other = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let may = set_socket_recv_buffer_size_force(&other, RECEIVE_ROOM).is_ok();
        let socket = socket2::Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP)).unwrap();
        let before = socket.recv_buffer_size().unwrap();
        enlarge_buffers(&socket);
        let granted = socket.recv_buffer_size().unwrap();
        assert!(granted >= before && (!may || granted >= RECEIVE_ROOM), "{before} before, {granted} granted");
    }

    #[tokio::test]
    async fn segments_arrive_as_datagrams_whatever_the_offloads() {
        let a = Socket::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let b = Socket::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let n = a.max_segments(1000);
        assert!((1..=64).contains(&n));
        let data: Vec<u8> = (0..n * 1000 - 300).map(|i| (i / 1000) as u8).collect();
        a.wait(false, true).await.unwrap();
        a.try_send(b.local_addr().unwrap(), Ecn::NotEct, &data, Some(1000)).unwrap();
        let (mut got, mut batch) = (Vec::new(), ReceiveBatch::new());
        while got.len() < n {
            got.extend(receive(&b, &mut batch).await);
        }
        assert_eq!(got.len(), n);
        for (i, (from, datagram)) in got.iter().enumerate() {
            assert_eq!(*from, a.local_addr().unwrap());
            assert_eq!(datagram, &data[i * 1000..((i + 1) * 1000).min(data.len())]);
        }
    }

    #[tokio::test]
    async fn an_ipv6_socket_speaks_ipv4_under_its_own_name() {
        let Ok(six) = Socket::bind("[::]:0".parse().unwrap()) else {
            eprintln!("skipped: no IPv6 here");
            return;
        };
        let four = Socket::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        six.wait(false, true).await.unwrap();
        six.try_send(four.local_addr().unwrap(), Ecn::NotEct, b"over", None).unwrap();
        let got = receive(&four, &mut ReceiveBatch::new()).await;
        assert_eq!(got[0].1, b"over");
        four.wait(false, true).await.unwrap();
        four.try_send(got[0].0, Ecn::NotEct, b"and back", None).unwrap();
        let got = receive(&six, &mut ReceiveBatch::new()).await;
        assert_eq!(got[0], (four.local_addr().unwrap(), b"and back".to_vec()));
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn marks_and_receive_times_come_with_the_datagrams() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(a) = Socket::bind(address.parse().unwrap()) else {
                eprintln!("skipped: no IPv6 here");
                continue;
            };
            let b = Socket::bind(address.parse().unwrap()).unwrap();
            let (mut batch, mut ages) = (ReceiveBatch::new(), Ages::default());
            let epoch = std::time::Instant::now();
            let clock = || timebase::Instant::from_micros(epoch.elapsed().as_micros() as u64);
            ages.look(clock);
            // The kernel begins to stamp some time after the first socket asked for it; until then it gives the
            // time of reading.
            let mut stamped = false;
            for round in 0..100 {
                let ecn = [Ecn::NotEct, Ecn::Ect0, Ecn::Ect1, Ecn::Ce][round % 4];
                a.wait(false, true).await.unwrap();
                let before = clock();
                a.try_send(b.local_addr().unwrap(), ecn, b"marked", None).unwrap();
                // The reader is late, which the time of receipt must not show.
                std::thread::sleep(Duration::from_millis(20));
                fill(&b, &mut batch).await;
                let (now, reading) = ages.look(clock);
                let run = batch.runs().next().unwrap();
                assert_eq!(run.ecn, ecn);
                let at = reading.received(now, run.stamp);
                assert!(before <= at + Duration::from_millis(1) && at <= now, "{before:?} {at:?} {now:?}");
                stamped |= now.saturating_since(at) >= Duration::from_millis(15);
                if stamped && round >= 3 {
                    break;
                }
            }
            assert!(stamped, "{address}: never received before it was read");
        }
    }

    #[tokio::test]
    async fn a_datagram_that_no_way_takes_is_told_apart() {
        let a = Socket::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        a.wait(false, true).await.unwrap();
        let sent = a.try_send(a.local_addr().unwrap(), Ecn::NotEct, &[0; SEND_MAX + 1], None);
        assert_eq!(sent, Err(NotSent::TooLarge(SEND_MAX + 1)));
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn the_kernels_drops_are_counted() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n\
                     10: 0100007F:A2B3 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4711 2 0000000000000000 17\n";
        assert_eq!(drops_of_inode(table, 4711), Some(17));
        assert_eq!(drops_of_inode(table, 4712), None);
        assert_eq!(drops_of_inode("nonsense\n\n1 2", 1), None);
        let socket = Socket::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        assert_eq!(socket.kernel_drops(), Some(0));
    }
}
